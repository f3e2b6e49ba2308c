//! A sweep makes everything stale that the rules can reach in one Redis: after a TRUNCATE, after a value that was not sent,
//! and when Redis or the slot lost something.
//!
//! It has a connection of its own beside the batches, goes in slices and pauses as long as each slice took. A cursor does
//! not survive a reconnect, so a sweep that breaks starts again at 0.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, Sleep, sleep};

use super::Cache;
use super::command::{commands, new_version, on_key};
use super::connection::{self, Error, Kind};
use super::gap::{Gap, Keys, Scope};
use super::pattern::common_glob;
use crate::backoff::Backoff;
use crate::source::lsn::Lsn;
use crate::source::visibility::Snapshot;

/// Keys that Redis looks at per SCAN: calls of about a millisecond.
const COUNT: usize = 500;
/// The longest pause between two slices.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

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
}

/// What a sweep that is complete was.
#[derive(Debug)]
pub enum Passed {
    /// A sweep by itself.
    Sweep,
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
}

/// A resync has two passes: at once, and again when every transaction has ended that was running when the gap was noticed.
/// Such a transaction may have changed rows before the slot or the publication could see it, and commit after the first.
struct Resync {
    gap: Gap,
    barrier: Barrier,
    pass: Pass,
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
        self.join(Wanted { floor, scope, resync: false });
    }

    fn join(&mut self, wanted: Wanted) {
        self.waiting = Some(match self.waiting.take() {
            None => wanted,
            Some(own) => Wanted {
                floor: own.floor.min(wanted.floor),
                scope: own.scope.and(wanted.scope),
                resync: own.resync || wanted.resync,
            },
        });
    }

    /// Begins a resync because something may have been missed.
    pub fn resync(&mut self, gap: Gap, floor: Lsn) {
        let gap = match self.resync.take() {
            None => gap,
            Some(Resync { gap: first, .. }) => Gap { scope: first.scope.and(gap.scope), ..first },
        };
        self.join(Wanted { floor, scope: gap.scope.clone(), resync: true });
        self.resync = Some(Resync { gap, barrier: Barrier::Snapshots(1), pass: Pass::First });
    }

    /// Does a resync wait to hear which transactions are running?
    pub fn needs_snapshot(&self) -> bool {
        self.resync.as_ref().is_some_and(|resync| match resync.pass {
            Pass::First => matches!(resync.barrier, Barrier::Snapshots(_)),
            Pass::Waiting => true,
            Pass::Resting(_) | Pass::Second => false,
        })
    }

    /// Looks at which transactions are running; `rest` is the longest repeat of the cache.
    pub fn observe(&mut self, snapshot: &Snapshot, rest: Duration) {
        let Some(resync) = &mut self.resync else { return };
        match resync.barrier {
            Barrier::Snapshots(0) => resync.barrier = Barrier::Transactions(snapshot.xmax),
            Barrier::Snapshots(more) => resync.barrier = Barrier::Snapshots(more - 1),
            Barrier::Transactions(_) => {}
        }
        if let (Pass::Waiting, Barrier::Transactions(newest)) = (&resync.pass, &resync.barrier)
            && snapshot.xmin >= *newest
        {
            resync.pass = Pass::Resting(Box::pin(sleep(rest)));
        }
    }

    /// The connection was replaced: a cursor does not survive that, and it may be another server now.
    pub fn restart(&mut self) {
        if let Some((wanted, _)) = self.running.take() {
            self.join(wanted);
        }
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

    /// The position that they hold back.
    pub fn floor(&self) -> Option<Lsn> {
        let wanted = [self.waiting.as_ref(), self.running.as_ref().map(|(wanted, _)| wanted)];
        wanted.into_iter().flatten().map(|wanted| wanted.floor).min()
    }

    /// Forgets what is wanted: the cache is detached.
    pub fn forget(&mut self) {
        (self.waiting, self.running, self.resync, self.failing_since) = (None, None, None, None);
    }

    /// Works on; ready when a sweep is complete (how many keys, and what it was) or has failed.
    pub fn poll(&mut self, cache: &Cache, context: &mut Context<'_>) -> Poll<Result<(u64, Passed), Error>> {
        if let Some(Resync { pass, gap, .. }) = &mut self.resync
            && let Pass::Resting(rest) = pass
            && rest.as_mut().poll(context).is_ready()
        {
            *pass = Pass::Second;
            let scope = gap.scope.clone();
            // It holds no position back by itself: the marker tells of no progress meanwhile.
            self.join(Wanted { floor: Lsn(u64::MAX), scope, resync: true });
        }
        if self.running.is_none() {
            let Some(wanted) = self.waiting.take() else { return Poll::Pending };
            let keys = match &wanted.scope {
                Scope::Everything => self.reach.clone(),
                Scope::Some(keys) => keys.clone(),
            };
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
                Ok((swept, self.passed(&wanted)))
            }
            Err(error) => {
                self.backoff.next();
                self.failing_since.get_or_insert_with(Instant::now);
                self.join(wanted);
                Err(error)
            }
        })
    }

    fn passed(&mut self, done: &Wanted) -> Passed {
        // What came while it ran is for the one that waits.
        let more = self.waiting.as_ref().is_some_and(|waiting| waiting.resync);
        match self.resync.take() {
            Some(Resync { gap, barrier, pass: Pass::First }) if done.resync && !more => {
                self.resync = Some(Resync { gap, barrier, pass: Pass::Waiting });
                Passed::First
            }
            Some(Resync { gap, pass: Pass::Second, .. }) if done.resync && !more => Passed::Second(gap),
            resync => {
                self.resync = resync;
                Passed::Sweep
            }
        }
    }
}

/// How a sweep goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// At most this many keys per second; without it only the pauses.
    pub rate: Option<u32>,
    /// Count, and touch nothing.
    pub dry_run: bool,
}

impl Pace {
    /// The pause after a slice that took `elapsed` and made `count` keys stale.
    fn pause(self, elapsed: Duration, count: u64) -> Duration {
        let by_rate = self.rate.map(|rate| Duration::from_secs_f64(count as f64 / f64::from(rate)));
        elapsed.min(LONGEST_PAUSE).max(by_rate.unwrap_or_default().saturating_sub(elapsed))
    }
}

/// Makes every key stale that one of the patterns matches, and the tags; how many.
pub async fn sweep(cache: &Cache, Keys { patterns, tags }: &Keys, pace: Pace) -> Result<u64, Error> {
    if patterns.is_empty() && tags.is_empty() {
        return Ok(0);
    }
    let failed = |error| Error::new(cache, &error);
    let mut connection = connection::open(cache).await?;
    let mut pipeline = redis::Pipeline::new();
    pipeline.ignore_errors();
    for command in tags.iter().flat_map(|tag| commands(cache, tag, new_version())).filter(|_| !pace.dry_run) {
        pipeline.add_command(command.pack());
    }
    let sent = send(cache, &mut connection, pipeline).await? as u64;
    if patterns.is_empty() {
        return Ok(sent);
    }
    let glob = common_glob(patterns);
    let (mut cursor, mut swept) = (0_u64, sent);
    loop {
        let begin = Instant::now();
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(glob.as_slice()).arg("COUNT").arg(COUNT);
        let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut connection).await.map_err(failed)?;
        let mut pipeline = redis::Pipeline::new();
        pipeline.ignore_errors();
        // No pattern ever touches the markers.
        let owed = |key: &Vec<u8>| !key.starts_with(b"waltag:") && patterns.iter().any(|pattern| pattern.matches(key));
        let before = swept;
        for key in keys.into_iter().filter(owed) {
            if !pace.dry_run {
                on_key(cache, key, new_version()).for_each(|command| {
                    pipeline.add_command(command.pack());
                });
            }
            swept += 1;
        }
        send(cache, &mut connection, pipeline).await?;
        if next == 0 {
            return Ok(swept);
        }
        cursor = next;
        sleep(pace.pause(begin.elapsed(), swept - before)).await;
    }
}

/// Sends a slice; how many commands it had. One key that refuses its command for ever must not hold up all others.
async fn send(
    cache: &Cache,
    connection: &mut redis::aio::MultiplexedConnection,
    pipeline: redis::Pipeline,
) -> Result<usize, Error> {
    if pipeline.is_empty() {
        return Ok(0);
    }
    let replies: redis::RedisResult<Vec<Value>> = pipeline.query_async(connection).await;
    let replies = replies.map_err(|error| Error::new(cache, &error))?;
    let count = replies.len();
    for reply in replies {
        if let Value::ServerError(error) = reply {
            let error = Error::reply(cache, error);
            if error.kind != Kind::Futile {
                return Err(error);
            }
            tracing::error!(cache = cache.name, "{}; passed over by a sweep", error.sentence);
        }
    }
    Ok(count)
}
