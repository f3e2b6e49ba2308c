//! A sweep makes everything stale that the rules can reach in one Redis: after a TRUNCATE, after a value that was not sent,
//! and when Redis or the slot lost something.
//!
//! It has a connection of its own beside the batches, goes in slices and pauses as long as each slice took. A cursor does
//! not survive a reconnect, so a sweep that breaks starts again at 0.

mod pass;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::Cache;
use super::connection::Error;
use super::gap::{CATALOG, Gap, Keys, RULES, Scope};
use crate::backoff::Backoff;
use crate::source::lsn::Lsn;
use crate::source::visibility::Snapshot;
pub use pass::{Pace, sweep};

/// Repeats of sweeps that wait one by one, for each delay; more become one.
const REPEATS: usize = 8;

type Running = Pin<Box<dyn Future<Output = Result<u64, Error>>>>;

/// The sweeps of one cache: one runs and one waits; whatever comes meanwhile joins the one that waits.
#[derive(Default)]
pub struct Sweeps {
    reach: Keys,
    /// Keys per second.
    rate: Option<u32>,
    waiting: Option<Wanted>,
    running: Option<(Wanted, Running)>,
    backoff: Backoff,
    failing_since: Option<Instant>,
    resync: Option<Resync>,
    reopens: bool,
    /// Sweeps that were complete, to be done again for those who were computing meanwhile: a queue for each delay.
    repeats: BTreeMap<Duration, VecDeque<Repeat>>,
    alarm: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// A sweep that is owed once more.
struct Repeat {
    due: Instant,
    scope: Scope,
    floor: Lsn,
}

/// What a sweep that is complete was.
#[derive(Debug)]
pub enum Passed {
    /// A sweep by itself.
    Sweep,
    /// A sweep that was complete before, once more.
    Repeat,
    /// The first pass of a resync: what was missed is stale now.
    First,
    /// The second: the gap is closed.
    Second(Gap),
}

/// A sweep that is owed.
#[derive(Clone)]
struct Wanted {
    /// It is for something after this position.
    floor: Lsn,
    scope: Scope,
    /// It is a pass of the resync.
    resync: bool,
    /// What of it the cache's repeats are owed for, and since where: a resync has a second pass of its own, and a repeat that joined has
    /// had its turn.
    again: Option<(Scope, Lsn)>,
}

impl Wanted {
    /// The position that it holds back as a first pass. What is in it of a repeat is owed to the last pass only: else each sweep would
    /// hand the floor of the one before on to the next.
    fn first(&self) -> Option<Lsn> {
        match (self.resync, &self.again) {
            (true, _) => Some(self.floor),
            (false, again) => again.as_ref().map(|(_, floor)| *floor),
        }
    }
}

/// A resync has two passes: at once, and again when every transaction has ended that was running when the gap was noticed.
/// Such a transaction may have changed rows before the slot or the publication could see it, and commit after the first.
struct Resync {
    gap: Gap,
    barrier: Barrier,
    pass: Pass,
    /// The stream goes on without tables that are published now, until it is opened anew.
    reopens: bool,
}

/// What the second pass waits for.
enum Barrier {
    /// This many more snapshots: the first may have been asked for before the gap was noticed.
    Snapshots(u8),
    /// Every transaction below this number has ended.
    Transactions(u64),
}

enum Pass {
    First,
    /// The first is complete.
    Waiting,
    /// The barrier is gone, and the stream has to be opened anew before the second.
    Reopening,
    /// The barrier is gone; a reader that was computing gets the time of the longest repeat.
    Resting(Pin<Box<Sleep>>),
    Second,
}

impl Sweeps {
    /// None is owed; at most `rate` keys per second go stale.
    pub fn new(rate: Option<u32>) -> Sweeps {
        Sweeps { rate, ..Sweeps::default() }
    }

    /// What a sweep reaches from now on.
    pub fn reach(&mut self, keys: Keys) {
        self.reach = keys;
    }

    /// Wants a sweep for something after `floor`.
    pub fn want(&mut self, scope: Scope, floor: Lsn) {
        self.join(Wanted { floor, again: Some((scope.clone(), floor)), scope, resync: false });
    }

    fn join(&mut self, wanted: Wanted) {
        self.waiting = Some(match self.waiting.take() {
            None => wanted,
            Some(own) => Wanted {
                floor: own.floor.min(wanted.floor),
                scope: own.scope.and(wanted.scope),
                resync: own.resync || wanted.resync,
                again: match (own.again, wanted.again) {
                    (Some((own, floor)), Some((wanted, other))) => Some((own.and(wanted), floor.min(other))),
                    (own, wanted) => own.or(wanted),
                },
            },
        });
    }

    /// Begins a resync because something may have been missed.
    pub fn resync(&mut self, gap: Gap, floor: Lsn) {
        let reopens = self.reopens && [CATALOG, RULES].contains(&gap.code);
        let (gap, reopens) = match self.resync.take() {
            None => (gap, reopens),
            Some(Resync { gap: first, reopens: before, .. }) => {
                (Gap { scope: first.scope.and(gap.scope), ..first }, before || reopens)
            }
        };
        self.join(Wanted { floor, scope: gap.scope.clone(), resync: true, again: None });
        self.resync = Some(Resync { gap, barrier: Barrier::Snapshots(1), pass: Pass::First, reopens });
    }

    /// Must the stream be opened anew behind a gap that publishing caused? Some servers go on with what they knew of a table that a
    /// transaction was writing when it was published.
    pub fn reopen_behind(&mut self, reopens: bool) {
        self.reopens = reopens;
    }

    /// Does a second pass wait for that?
    pub fn wants_reopening(&self) -> bool {
        self.resync.as_ref().is_some_and(|resync| matches!(resync.pass, Pass::Reopening))
    }

    /// The stream was opened anew; `rest` is the longest repeat of the cache.
    pub fn reopened(&mut self, rest: Duration) {
        if let Some(resync) = self.resync.as_mut().filter(|resync| matches!(resync.pass, Pass::Reopening)) {
            resync.pass = Pass::Resting(Box::pin(sleep(rest)));
        }
    }

    /// Does one wait to hear which of them is the newest?
    pub fn needs_newest(&self) -> bool {
        self.resync.as_ref().is_some_and(|resync| matches!(resync.barrier, Barrier::Snapshots(_)))
    }

    /// Does a resync wait to hear which transactions are running?
    pub fn needs_snapshot(&self) -> bool {
        self.resync.as_ref().is_some_and(|resync| match resync.pass {
            Pass::First => matches!(resync.barrier, Barrier::Snapshots(_)),
            Pass::Waiting => true,
            Pass::Reopening | Pass::Resting(_) | Pass::Second => false,
        })
    }

    /// Looks at which transactions are running; `rest` is the longest repeat of the cache.
    pub fn observe(&mut self, snapshot: &Snapshot, rest: Duration) {
        let Some(resync) = &mut self.resync else { return };
        // One that does not say which is the newest may have been asked for before the gap was noticed.
        if let Some(next) = snapshot.next {
            match resync.barrier {
                Barrier::Snapshots(0) => resync.barrier = Barrier::Transactions(next),
                Barrier::Snapshots(more) => resync.barrier = Barrier::Snapshots(more - 1),
                Barrier::Transactions(_) => {}
            }
        }
        if let (Pass::Waiting, Barrier::Transactions(newest)) = (&resync.pass, &resync.barrier)
            && snapshot.xmin >= *newest
        {
            resync.pass = match resync.reopens {
                true => Pass::Reopening,
                false => Pass::Resting(Box::pin(sleep(rest))),
            };
        }
    }

    /// The connection was replaced: a cursor does not survive that, and it may be another server now.
    pub fn restart(&mut self) {
        if let Some((wanted, _)) = self.running.take() {
            self.join(wanted);
        }
    }

    /// Bytes that wait and cannot be bounded otherwise.
    pub fn size(&self) -> usize {
        let repeats = self.repeats.values().flatten().map(|repeat| repeat.scope.size());
        self.wanted().map(|wanted| wanted.scope.size()).chain(repeats).sum()
    }

    /// How long every sweep has failed.
    pub fn failing(&self) -> Duration {
        self.failing_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The resync under way. Until it is complete the marker tells of no progress, so that a crash starts it again.
    pub fn resyncing(&self) -> Option<&Gap> {
        self.resync.as_ref().map(|resync| &resync.gap)
    }

    /// Is the first pass of a resync still owed? Until then anything may be stale.
    pub fn is_stale(&self) -> bool {
        self.resync.as_ref().is_some_and(|resync| matches!(resync.pass, Pass::First))
    }

    /// The position that their first passes hold back.
    pub fn floor(&self) -> Option<Lsn> {
        self.wanted().filter_map(Wanted::first).min()
    }

    /// The position that they hold back, repeats included.
    pub fn last_floor(&self) -> Option<Lsn> {
        let repeats = self.repeats.values().flatten().map(|repeat| repeat.floor);
        self.wanted().map(|wanted| wanted.floor).chain(repeats).min()
    }

    fn wanted(&self) -> impl Iterator<Item = &Wanted> {
        self.waiting.iter().chain(self.running.as_ref().map(|(wanted, _)| wanted))
    }

    /// Forgets what is wanted: the cache is detached.
    pub fn forget(&mut self) {
        (self.waiting, self.running, self.resync, self.failing_since) = (None, None, None, None);
        self.repeats.clear();
    }

    /// Works on; ready when a sweep is complete (how many keys, what it was, and what for) or has failed.
    pub fn poll(&mut self, cache: &Cache, context: &mut Context<'_>) -> Poll<Result<(u64, Passed, Scope), Error>> {
        if let Some(Resync { pass, gap, .. }) = &mut self.resync
            && let Pass::Resting(rest) = pass
            && rest.as_mut().poll(context).is_ready()
        {
            *pass = Pass::Second;
            let scope = gap.scope.clone();
            // It holds no position back by itself: the marker tells of no progress meanwhile.
            self.join(Wanted { floor: Lsn(u64::MAX), scope, resync: true, again: None });
        }
        self.poll_repeats(context);
        if self.running.is_none() {
            let Some(wanted) = self.waiting.take() else { return Poll::Pending };
            let keys = wanted.scope.within(&self.reach);
            let (cache, wait, pace) = (cache.clone(), self.backoff.pause(), Pace { rate: self.rate, dry_run: false });
            let run = async move {
                sleep(wait).await;
                sweep(&cache, &keys, pace).await
            };
            self.running = Some((wanted, Box::pin(run)));
        }
        let Some((_, run)) = &mut self.running else { return Poll::Pending };
        let Poll::Ready(outcome) = run.as_mut().poll(context) else { return Poll::Pending };
        let Some((wanted, _)) = self.running.take() else { return Poll::Pending };
        Poll::Ready(match outcome {
            Ok(swept) => {
                self.backoff.reset();
                self.failing_since = None;
                let scope = wanted.scope.clone();
                Ok((swept, self.passed(wanted, &cache.repeat), scope))
            }
            Err(error) => {
                self.backoff.next();
                self.failing_since.get_or_insert_with(Instant::now);
                self.join(wanted);
                Err(error)
            }
        })
    }

    /// Joins the repeats whose time has come.
    fn poll_repeats(&mut self, context: &mut Context<'_>) {
        let due = |queue: &VecDeque<Repeat>| queue.front().map(|repeat| repeat.due);
        while let Some((due, delay)) =
            self.repeats.iter().filter_map(|(delay, queue)| Some((due(queue)?, *delay))).min()
        {
            let alarm = match &mut self.alarm {
                Some((at, alarm)) if *at == due => alarm,
                _ => &mut self.alarm.insert((due, Box::pin(sleep_until(due)))).1,
            };
            if alarm.as_mut().poll(context).is_pending() {
                return;
            }
            if let Some(Repeat { scope, floor, .. }) = self.repeats.get_mut(&delay).and_then(VecDeque::pop_front) {
                self.join(Wanted { floor, scope, resync: false, again: None });
            }
        }
    }

    /// Whoever was computing meanwhile may store what was true before: each delay after now the same goes stale again. A queue that is
    /// full merges its last two, so nothing comes later than twice its delay.
    fn owe_repeats(&mut self, scope: &Scope, floor: Lsn, delays: &[Duration]) {
        for delay in delays {
            let queue = self.repeats.entry(*delay).or_default();
            queue.push_back(Repeat { due: Instant::now() + *delay, scope: scope.clone(), floor });
            if queue.len() > REPEATS
                && let (Some(last), Some(before)) = (queue.pop_back(), queue.pop_back())
            {
                let (scope, floor) = (before.scope.and(last.scope), before.floor.min(last.floor));
                queue.push_back(Repeat { due: last.due, scope, floor });
            }
        }
    }

    fn passed(&mut self, done: Wanted, delays: &[Duration]) -> Passed {
        if let Some((scope, floor)) = &done.again {
            self.owe_repeats(scope, *floor, delays);
        }
        // What came while it ran is for the one that waits.
        let more = self.waiting.as_ref().is_some_and(|waiting| waiting.resync);
        match self.resync.take() {
            Some(Resync { gap, barrier, pass: Pass::First, reopens }) if done.resync && !more => {
                self.resync = Some(Resync { gap, barrier, pass: Pass::Waiting, reopens });
                Passed::First
            }
            Some(Resync { gap, pass: Pass::Second, .. }) if done.resync && !more => Passed::Second(gap),
            resync => {
                self.resync = resync;
                if done.first().is_some() { Passed::Sweep } else { Passed::Repeat }
            }
        }
    }
}
