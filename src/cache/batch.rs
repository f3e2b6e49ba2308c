//! Tags on their way to one Redis, and what they hold back.

use crate::source::clock::Timestamp;
use crate::source::lsn::Lsn;
use crate::tags::Tags;

/// Memory that an empty batch may keep.
const KEPT: usize = 64 << 10;

/// Tags that wait, and the position before the oldest transaction among them.
#[derive(Default)]
pub struct Batch {
    /// The tags.
    pub tags: Tags,
    /// Nothing after this position may be called done while the batch waits.
    pub floor: Option<Lsn>,
    /// When the oldest of them was committed.
    pub committed: Option<Timestamp>,
}

impl Batch {
    /// Takes in tags of a transaction after `floor`.
    pub fn add(&mut self, tags: &Tags, floor: Lsn, committed: Option<Timestamp>) {
        self.tags.extend(tags);
        self.committed = [self.committed, committed].into_iter().flatten().min();
        self.floor = Some(self.floor.map_or(floor, |own| own.min(floor)));
    }

    /// Takes in one tag of a transaction after `floor`.
    pub fn insert(&mut self, tag: &[u8], floor: Lsn) {
        self.tags.insert(tag);
        self.floor = Some(self.floor.map_or(floor, |own| own.min(floor)));
    }

    /// Without its tags, and with its memory if that is little: what a busy moment took must not be kept for ever.
    #[must_use]
    pub fn emptied(self) -> Batch {
        let mut tags = self.tags;
        tags.clear();
        match tags.size() <= KEPT {
            true => Batch { tags, ..Batch::default() },
            false => Batch::default(),
        }
    }
}
