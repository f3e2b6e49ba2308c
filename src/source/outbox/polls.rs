//! Polls that were handed over, until everything that they brought is done.

use std::collections::VecDeque;

use crate::source::lsn::Lsn;

/// More are not remembered: while Redis is away nothing is confirmed, and there may be a poll every few milliseconds.
const MOST: usize = 1_000;

/// In the order of their positions.
#[derive(Default)]
pub struct Polls(VecDeque<Seen>);

/// What a poll has brought up to its end.
pub struct Seen {
    /// Its end.
    pub position: Lsn,
    /// What was visible to it.
    pub snapshot: String,
    /// How often writers had found the outbox full.
    pub skipped: i64,
}

impl Polls {
    /// A poll was handed over as a whole.
    pub fn add(&mut self, seen: Seen) {
        self.0.push_back(seen);
        if self.0.len() > MOST {
            // A later one stands for those before it: every second, and the last.
            let mut index = 0;
            self.0.retain(|_| {
                index += 1;
                index % 2 == 0 || index > MOST
            });
        }
    }

    /// The last of those that are done when everything up to here is.
    pub fn done(&mut self, position: Lsn) -> Option<Seen> {
        let mut last = None;
        while let Some(seen) = self.0.pop_front_if(|seen| seen.position <= position) {
            last = Some(seen);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(polls: &mut Polls, positions: std::ops::RangeInclusive<u64>) {
        for position in positions {
            polls.add(Seen { position: Lsn(position), snapshot: position.to_string(), skipped: 0 });
            // When everything is confirmed, everything is done.
            assert!(polls.0.len() <= MOST && polls.0.back().is_some_and(|last| last.position == Lsn(position)));
        }
    }

    #[test]
    fn what_is_done_is_never_more_than_was_confirmed() {
        let mut polls = Polls::default();
        add(&mut polls, 1..=100_000);
        let mut last = 0;
        for confirmed in (0..100_000).step_by(77) {
            if let Some(seen) = polls.done(Lsn(confirmed)) {
                assert!(last < seen.position.0 && seen.position.0 <= confirmed);
                assert_eq!(seen.snapshot, seen.position.0.to_string());
                last = seen.position.0;
            }
        }
        assert_eq!(polls.done(Lsn(100_000)).unwrap().position, Lsn(100_000));
        assert!(polls.done(Lsn(u64::MAX)).is_none());
    }
}
