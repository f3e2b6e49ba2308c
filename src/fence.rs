//! The fence: tags wait here until every new snapshot on the primary sees their transaction.
//!
//! Transactions that one snapshot shows as finished go at once, the others wait aside; no order is kept, only the
//! confirmed position waits for the oldest.

use std::time::Duration;

use tokio::time::Instant;

use crate::cache::gap::Scope;
use crate::source::clock::Timestamp;
use crate::source::lsn::{Lsn, Xid};
use crate::source::visibility::Snapshot;
use crate::tags::Stale;

/// The first wait after a snapshot left transactions behind; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(1);
/// The longest wait between two snapshots.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// Tags of one transaction, or of a piece of a large one.
pub struct Waiting {
    /// The transaction.
    pub xid: Xid,
    /// Everything up to here came before it.
    pub floor: Lsn,
    /// What it makes stale, per cache.
    pub stale: Vec<Stale>,
    /// When it was committed, by the server's clock.
    pub committed: Timestamp,
    /// When its tags arrived here.
    pub since: Instant,
}

impl Waiting {
    fn size(&self) -> usize {
        self.stale.iter().map(Stale::size).sum::<usize>() + size_of::<Waiting>()
    }
}

/// What waits, and when to look again.
#[derive(Default)]
pub struct Fence {
    waiting: Vec<Waiting>,
    size: usize,
    next_look: Option<Instant>,
    wait: Duration,
    /// A transaction that a snapshot has shown: later pieces of it need no other. At most the newest few are kept.
    seen: Option<Xid>,
}

impl Fence {
    /// Takes in tags. Something new is looked at at once: it is nearly always visible already.
    pub fn add(&mut self, waiting: Waiting) {
        self.size += waiting.size();
        self.waiting.push(waiting);
        self.next_look = Some(Instant::now());
    }

    /// When the next snapshot is wanted; `None` while nothing waits.
    pub fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// Was this transaction seen already?
    pub fn has_seen(&self, xid: Xid) -> bool {
        self.seen == Some(xid)
    }

    /// Hands out what the snapshot shows as finished, in order of arrival.
    pub fn release(&mut self, snapshot: &Snapshot) -> Vec<Waiting> {
        let (seen, left): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|waiting| snapshot.sees(waiting.xid));
        self.waiting = left;
        self.size = self.waiting.iter().map(Waiting::size).sum();
        if let Some(newest) = seen.last() {
            self.seen = Some(newest.xid);
        }
        if self.waiting.is_empty() {
            self.next_look = None;
            self.wait = FIRST_WAIT;
        } else {
            // Progress or not: those that are left are looked at ever more slowly.
            self.wait = if seen.is_empty() { (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT) } else { FIRST_WAIT };
            self.next_look = Some(Instant::now() + self.wait);
        }
        seen
    }

    /// The caches have changed: what waits for `origins[new]` is for `new` from now on. A cache without an origin may have been
    /// reached by any of what waits, so it is swept once more behind each.
    pub fn rearrange(&mut self, origins: &[Option<usize>]) {
        for waiting in &mut self.waiting {
            let mut old = std::mem::take(&mut waiting.stale);
            let moved = origins.iter().map(|origin| match origin.and_then(|index| old.get_mut(index)) {
                Some(stale) => std::mem::take(stale),
                None => Stale::of(Scope::everything()),
            });
            waiting.stale = moved.collect();
        }
        self.size = self.waiting.iter().map(Waiting::size).sum();
    }

    /// The position before the oldest transaction that waits.
    pub fn floor(&self) -> Option<Lsn> {
        self.waiting.iter().map(|waiting| waiting.floor).min()
    }

    /// Bytes that wait.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many transactions (or pieces) wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets everything: the stream broke, and what was not confirmed comes again.
    pub fn clear(&mut self) {
        *self = Fence::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(xid: u32, floor: u64) -> Waiting {
        let committed = Timestamp::default();
        Waiting { xid: Xid(xid), floor: Lsn(floor), stale: vec![Stale::default()], committed, since: Instant::now() }
    }

    #[test]
    fn a_waiting_transaction_holds_back_the_floor_and_nothing_else() {
        let mut fence = Fence::default();
        fence.add(waiting(10, 100));
        fence.add(waiting(11, 200));
        fence.add(waiting(12, 300));
        assert_eq!(fence.floor(), Some(Lsn(100)));
        let released = fence.release(&Snapshot::parse("10:13:10").unwrap());
        assert_eq!(released.iter().map(|waiting| waiting.xid.0).collect::<Vec<_>>(), [11, 12]);
        assert_eq!(fence.floor(), Some(Lsn(100)));
        assert!(fence.next_look().is_some() && fence.has_seen(Xid(12)) && !fence.has_seen(Xid(10)));
        assert_eq!(fence.release(&Snapshot::parse("13:13:").unwrap()).len(), 1);
        assert_eq!((fence.floor(), fence.next_look(), fence.size()), (None, None, 0));
    }

    #[test]
    fn looks_ever_more_slowly_while_nothing_moves() {
        let mut fence = Fence::default();
        fence.add(waiting(10, 100));
        let stuck = Snapshot::parse("10:11:10").unwrap();
        let waits: Vec<Duration> = (0..8)
            .map(|_| {
                fence.release(&stuck);
                fence.wait
            })
            .collect();
        assert_eq!(waits[0], FIRST_WAIT);
        assert_eq!(waits[7], LONGEST_WAIT);
    }
}
