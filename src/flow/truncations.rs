//! Tables that a TRUNCATE emptied: they have other files, which is no news because the stream tells of it. So nothing may be called done
//! that is behind a TRUNCATE, before the catalog was read again and the markers say which files there are.

use crate::cache::coverage::Truncated;
use crate::source::lsn::{Lsn, Xid};

/// What the stream told of and no catalog that was read shows for certain.
#[derive(Default)]
pub struct Truncations(Vec<Truncation>);

struct Truncation {
    relation: u32,
    xid: Xid,
    /// Its commit.
    position: Lsn,
    /// Before its transaction.
    floor: Lsn,
}

impl Truncations {
    /// A relation was emptied by the transaction that commits at `position`.
    pub fn add(&mut self, relation: u32, xid: Xid, position: Lsn, floor: Lsn) {
        self.0.push(Truncation { relation, xid, position, floor });
    }

    /// The position that they hold back.
    pub fn floor(&self) -> Option<Lsn> {
        self.0.iter().map(|known| known.floor).min()
    }

    /// Which relations were emptied, and by whom: a later rewrite has another writer.
    pub fn relations(&self) -> Truncated {
        self.0.iter().map(|known| (known.relation, known.xid.0)).collect()
    }

    /// A catalog is in force that was begun to be read at `position`: what was committed before is in it.
    pub fn looked(&mut self, position: Lsn) {
        self.0.retain(|known| known.position > position);
    }
}
