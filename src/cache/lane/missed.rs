//! What a lane may have missed: a stream that begins elsewhere, tables that are not what they were, a resync that somebody asks for.

use super::super::coverage::{Coverage, Truncated};
use super::super::gap::{Gap, REWOUND, Scope};
use super::super::marker::Origin;
use super::{Attachment, Lane};
use crate::flow::history::{History, Verdict};
use crate::flow::truncations::Truncations;
use crate::source::lsn::Lsn;

impl Lane {
    /// A stream starts: where, and on which server. One that has crashed since may have lost commits that readers saw.
    /// `log` is where the server's log was.
    /// `reopens`: the server wants another stream behind a gap that publishing caused.
    pub fn begin(&mut self, confirmed: Lsn, log: Lsn, origin: Origin, reopens: bool) -> Option<Gap> {
        (self.began, self.end) = (log, self.end.max(log));
        self.sweeps.reopen_behind(reopens);
        self.sweeps.reopened(self.cache.repeat.last().copied().unwrap_or_default());
        // What lies between was never sent to us: the slot was made anew, or moved, or read by another daemon, and that one's
        // claim says how far it was. So the marker is read again, before anything is written.
        self.jumped |= (self.progress.is_some() || self.attempted) && confirmed > self.position;
        self.reread = self.connection.is_some();
        self.has_read = false;
        if self.asleep.take().is_some() {
            self.work = None;
        }
        self.confirmed = confirmed;
        self.position = self.position.max(confirmed);
        let gap = self.marker.set_origin(origin).filter(|_| self.is_attached())?;
        self.make_up_for(gap.clone(), self.position);
        Some(gap)
    }

    /// What the rules make stale here from now on, after these relations were emptied. What they did not before has missed
    /// changes. At first nothing is known of before: the marker will tell.
    /// Everything that the catalog shows has arrived with `end`; `log` is where the server's log was when it was read.
    pub fn cover(&mut self, coverage: Coverage, truncated: &Truncated, end: Lsn, log: Lsn) -> Option<Gap> {
        self.end = self.end.max(log);
        self.covered_at = end;
        let inherited = self.inherited.take();
        if coverage == self.coverage && inherited.is_none() {
            return None;
        }
        if self.edition > 0 && !self.has_read {
            self.sweeps.reach(coverage.reach.clone());
            let before = std::mem::replace(&mut self.coverage, coverage);
            self.uncompared.get_or_insert((before, Truncated::new())).1.extend(truncated);
            self.edition += 1;
            return None;
        }
        let gap = match inherited {
            // What another daemon has found meanwhile stands in the marker that it left.
            Some(before) => {
                let doubts = coverage.doubts(&before);
                coverage.beyond(&before).or_else(|| doubts.unexplained(truncated))
            }
            _ => coverage.since(&self.coverage, truncated),
        };
        let gap = gap.filter(|_| self.edition > 0 && self.is_attached());
        self.sweeps.reach(coverage.reach.clone());
        self.coverage = coverage;
        self.edition += 1;
        let gap = gap?;
        self.make_up_for(gap.clone(), self.position);
        Some(gap)
    }

    /// Is what the stream has brought the history that the marker knew?
    pub fn settle_history(&mut self, history: &History) -> Option<Gap> {
        let expected = self.expected?;
        match history.verdict_of(&expected) {
            Verdict::Open => None,
            Verdict::Same => {
                self.expected = None;
                None
            }
            Verdict::Another => {
                (self.expected, self.known) = (None, None);
                if self.sweeps.resyncing().is_some_and(|gap| gap.code == REWOUND) {
                    // Another cache has found out, and this one is made stale already.
                    return None;
                }
                let gap = Gap::another_history(expected);
                self.make_up_for(gap.clone(), self.position);
                Some(gap)
            }
        }
    }

    /// Has it said which commit it knows?
    pub fn has_told_its_history(&self) -> bool {
        self.expected.is_none() && self.has_read
    }

    /// Everything up to `received` has arrived: were the tables with other files emptied by a TRUNCATE?
    pub fn settle_doubts(&mut self, received: Lsn, truncations: &Truncations) -> Option<Gap> {
        let (doubts, ..) = self.doubts.take_if(|(_, until, _)| received >= *until)?;
        let gap = doubts.unexplained(&truncations.relations())?;
        self.make_up_for(gap.clone(), self.position);
        Some(gap)
    }

    /// Is it known what the rules make stale here?
    pub fn is_covered(&self) -> bool {
        self.edition > 0
    }

    /// These keys go stale, because of a transaction after `floor`.
    pub fn sweep(&mut self, scope: Scope, floor: Lsn) {
        if self.attachment == Attachment::Attached {
            self.followers.sweep(scope.clone(), self.end, floor);
            self.sweeps.want(scope, floor);
        }
    }

    /// Everything that the rules can reach goes stale, because something may have been missed after `floor`.
    pub fn resync(&mut self, gap: Gap, floor: Lsn) {
        if self.attachment == Attachment::Attached {
            self.make_up_for(gap, floor);
        }
    }

    /// Begins a resync, for the readers of standbys, too.
    pub(super) fn make_up_for(&mut self, gap: Gap, floor: Lsn) {
        self.followers.sweep(gap.scope.clone(), self.end, floor);
        self.sweeps.resync(gap, floor);
    }
}
