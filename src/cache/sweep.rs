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
use tokio::time::{Instant, sleep};

use super::Cache;
use super::command::{new_version, on_key};
use super::connection::{self, Error, Kind};
use super::pattern::{Pattern, common_glob};
use crate::backoff::Backoff;
use crate::source::lsn::Lsn;

/// Keys that Redis looks at per SCAN: calls of about a millisecond.
const COUNT: usize = 500;
/// The longest pause between two slices.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

type Running = Pin<Box<dyn Future<Output = Result<u64, Error>>>>;

/// The sweeps of one cache: one runs and one waits; whatever comes meanwhile joins the one that waits.
#[derive(Default)]
pub struct Sweeps {
    patterns: Vec<Pattern>,
    waiting: Option<Lsn>,
    running: Option<(Lsn, Running)>,
    backoff: Backoff,
    /// Some reason for the resync came after the sweep that runs had started.
    uncovered: bool,
    failing_since: Option<Instant>,
    /// Why a resync is under way: until it is complete the marker tells of no progress, so that a crash starts it again.
    resync: Option<String>,
}

impl Sweeps {
    /// What a sweep reaches from now on.
    pub fn reach(&mut self, patterns: Vec<Pattern>) {
        self.patterns = patterns;
    }

    /// Wants a sweep for something after `floor`.
    pub fn want(&mut self, floor: Lsn) {
        self.waiting = Some(self.waiting.map_or(floor, |own| own.min(floor)));
    }

    /// Wants a sweep because something may have been missed.
    pub fn resync(&mut self, reason: String, floor: Lsn) {
        self.resync.get_or_insert(reason);
        self.uncovered = true;
        self.want(floor);
    }

    /// The connection was replaced: a cursor does not survive that, and it may be another server now.
    pub fn restart(&mut self) {
        if let Some((floor, _)) = self.running.take() {
            self.uncovered = self.resync.is_some();
            self.want(floor);
        }
    }

    /// How long every sweep has failed.
    pub fn failing(&self) -> Duration {
        self.failing_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Is a resync outstanding?
    pub fn is_resyncing(&self) -> bool {
        self.resync.is_some()
    }

    /// The position that they hold back.
    pub fn floor(&self) -> Option<Lsn> {
        [self.waiting, self.running.as_ref().map(|(floor, _)| *floor)].into_iter().flatten().min()
    }

    /// Forgets what is wanted: the cache is detached.
    pub fn forget(&mut self) {
        (self.waiting, self.running, self.resync) = (None, None, None);
        (self.uncovered, self.failing_since) = (false, None);
    }

    /// Works on; ready when a sweep is complete (how many keys, and the resync that it ends) or has failed.
    pub fn poll(&mut self, cache: &Cache, context: &mut Context<'_>) -> Poll<Result<(u64, Option<String>), Error>> {
        if self.running.is_none() {
            let Some(floor) = self.waiting.take() else { return Poll::Pending };
            let (cache, patterns, wait) = (cache.clone(), self.patterns.clone(), self.backoff.pause());
            let run = async move {
                sleep(wait).await;
                if patterns.is_empty() { Ok(0) } else { sweep(&cache, &patterns).await }
            };
            self.uncovered = false;
            self.running = Some((floor, Box::pin(run)));
        }
        let Some((floor, run)) = &mut self.running else { return Poll::Pending };
        let Poll::Ready(outcome) = run.as_mut().poll(context) else { return Poll::Pending };
        let floor = *floor;
        self.running = None;
        Poll::Ready(match outcome {
            Ok(swept) => {
                self.backoff.reset();
                self.failing_since = None;
                let ended = if self.uncovered { None } else { self.resync.take() };
                Ok((swept, ended))
            }
            Err(error) => {
                self.backoff.next();
                self.failing_since.get_or_insert_with(Instant::now);
                self.uncovered = self.resync.is_some();
                self.want(floor);
                Err(error)
            }
        })
    }
}

/// Makes every key stale that one of the patterns matches; how many.
async fn sweep(cache: &Cache, patterns: &[Pattern]) -> Result<u64, Error> {
    let failed = |error| Error::new(cache, &error);
    let mut connection = connection::open(cache).await?;
    let glob = common_glob(patterns);
    let (mut cursor, mut swept) = (0_u64, 0);
    loop {
        let begin = Instant::now();
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(glob.as_slice()).arg("COUNT").arg(COUNT);
        let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut connection).await.map_err(failed)?;
        let mut pipeline = redis::Pipeline::new();
        pipeline.ignore_errors();
        // No pattern ever touches the markers.
        let owed = |key: &Vec<u8>| !key.starts_with(b"waltag:") && patterns.iter().any(|pattern| pattern.matches(key));
        for key in keys.into_iter().filter(owed) {
            pipeline.add_command(on_key(cache, key, new_version()).pack());
            swept += 1;
        }
        let replies: Vec<Value> = match pipeline.is_empty() {
            true => Vec::new(),
            false => pipeline.query_async(&mut connection).await.map_err(failed)?,
        };
        for reply in replies {
            if let Value::ServerError(error) = reply {
                let error = Error::reply(cache, error);
                if error.kind != Kind::Futile {
                    return Err(error);
                }
                // One key that refuses its command for ever must not hold up all others.
                tracing::error!(cache = cache.name, "{}; passed over by a sweep", error.sentence);
            }
        }
        if next == 0 {
            return Ok(swept);
        }
        cursor = next;
        sleep(begin.elapsed().min(LONGEST_PAUSE)).await;
    }
}
