//! Tables that a TRUNCATE emptied: they have other files, which is no news because the stream tells of it. So nothing may be called done
//! that is behind a TRUNCATE, before the catalog was read again and the markers say which files there are.

use crate::cache::coverage::Truncated;
use crate::source::lsn::{Lsn, Xid};
use crate::source::visibility::Snapshot;

/// What the stream told of and no catalog that was read shows for certain.
#[derive(Default)]
pub struct Truncations(Vec<Truncation>);

struct Truncation {
    relation: u32,
    xid: Xid,
    /// Before its transaction.
    floor: Lsn,
}

impl Truncations {
    /// A relation was emptied by a transaction behind `floor`.
    pub fn add(&mut self, relation: u32, xid: Xid, floor: Lsn) {
        self.0.push(Truncation { relation, xid, floor });
    }

    /// The position that they hold back.
    pub fn floor(&self) -> Option<Lsn> {
        self.0.iter().map(|known| known.floor).min()
    }

    /// Which relations were emptied.
    pub fn relations(&self) -> Truncated {
        self.0.iter().map(|known| known.relation).collect()
    }

    /// A catalog is in force that shows what `snapshot` sees. Its position does not tell: a TRUNCATE whose commit waits for a standby is in
    /// the log, and in no catalog yet.
    pub fn looked(&mut self, snapshot: &Snapshot) {
        self.0.retain(|known| !snapshot.sees(known.xid));
    }
}
