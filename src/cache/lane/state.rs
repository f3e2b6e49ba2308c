//! How a lane is: what the daemon goes by, and shows.

use super::super::gap::Gap;
use super::{Attachment, Lane};
use crate::source::lsn::Lsn;

impl Lane {
    /// The resync under way, and whether everything may still be stale.
    pub fn resyncing(&self) -> Option<(&Gap, bool)> {
        self.sweeps.resyncing().map(|gap| (gap, self.sweeps.is_stale()))
    }

    /// Is there a connection on which the cache was claimed?
    pub fn is_up(&self) -> bool {
        self.connection.is_some() && self.is_attached()
    }

    /// The standbys that its application reads from, and whether each is there.
    pub fn replicas(&self) -> impl Iterator<Item = (&str, bool)> {
        self.followers.places()
    }

    /// Why it is not up.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Is Redis full?
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// How many replicas of Redis have what was sent, if they are too few.
    pub fn replicas_behind(&self) -> Option<u8> {
        self.behind.map(|(_, count)| count)
    }

    /// Does it hold back the position?
    pub fn is_attached(&self) -> bool {
        self.attachment == Attachment::Attached
    }

    /// The position that this cache has acknowledged in its marker: all of it may be forgotten by the source.
    pub fn marked(&self) -> Option<Lsn> {
        self.written.map(|progress| progress.done)
    }

    /// Every tag up to here was acknowledged once: what a reader of its own writes waits for. Nothing while it is open whether something
    /// was missed, and until the first pass that makes up for it is complete.
    pub fn reached(&self) -> Option<Lsn> {
        let is_open = self.jumped || self.reread || self.expected.is_some() || self.doubts.is_some();
        let claimed = self.attempted && self.written.is_some() | self.forgotten && self.edition > 0;
        self.progress.filter(|_| claimed && !is_open && !self.sweeps.is_stale()).map(|progress| progress.first)
    }

    /// Has it been claimed, or tried in vain at least once?
    pub fn attempted(&self) -> bool {
        self.attempted
    }

    /// Bytes that wait for their first pass or are under way; repeats have a share of their own.
    pub fn size(&self) -> usize {
        let waiting = self.next.tags.size() + self.set_aside.tags.size() + self.refused.size();
        waiting + self.in_flight.size + self.sweeps.size() + self.followers.scope_size()
    }

    /// No first pass waits or is under way, and the marker says what it can: a stop waits for neither repeats nor sweeps.
    pub fn is_settled(&self) -> bool {
        let told = (self.written >= self.progress && !self.forgotten)
            || self.sweeps.resyncing().is_some()
            || !self.is_attached();
        self.next.tags.is_empty() && self.in_flight.size == 0 && (told || !self.aside.is_empty())
    }
}
