//! Tags on their way to one Redis, and what they hold back.

use crate::source::lsn::Lsn;
use crate::tags::Tags;

/// Tags that wait, and the position before the oldest transaction among them.
#[derive(Default)]
pub struct Batch {
    /// The tags.
    pub tags: Tags,
    /// Nothing after this position may be called done while the batch waits.
    pub floor: Option<Lsn>,
}

impl Batch {
    /// Takes in tags of a transaction that began after `floor`.
    pub fn add(&mut self, tags: &Tags, floor: Lsn) {
        self.tags.extend(tags);
        self.floor = Some(self.floor.map_or(floor, |own| own.min(floor)));
    }

    /// Forgets the tags and keeps the memory.
    pub fn clear(&mut self) {
        self.tags.clear();
        self.floor = None;
    }
}
