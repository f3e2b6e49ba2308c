//! A lane: one cache with its connection, the batch in flight, the next batch, owed repeats and sweeps, and the position up
//! to which nothing is owed. Lanes never wait for each other.
//!
//! While Redis is busy with one flight, the next batch fills: group commit. This file is what the daemon calls; `work` is
//! what goes on meanwhile.

mod away;
mod missed;
mod refused;
mod state;
#[cfg(test)]
mod tests;
mod unproven;
mod work;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::Cache;
use super::batch::Batch;
use super::connection::Error;
use super::coverage::{Coverage, Truncated};
use super::flight::{Lives, Outcome};
use super::followers::Followers;
use super::gap::{Gap, Scope};
use super::marker::{Found, Marker, Progress, Witness};
use super::masters::Masters;
use super::pattern::Pattern;
use super::repeats::Repeats;
use super::sweep::{Passed, Sweeps};
use crate::backoff::Backoff;
use crate::flow::history::Commit;
use crate::source::clock::Timestamp;
use crate::source::lsn::Lsn;
use crate::source::visibility::Snapshot;
use crate::tags::Tags;
use refused::Refused;
use unproven::Unproven;

/// The marker is written at least this often while the stream runs.
const MARKER_INTERVAL: Duration = Duration::from_secs(1);
/// A marker without tags is written at most this often: a busy database whose changes make nothing stale must not keep
/// Redis busy.
const MARKER_PAUSE: Duration = Duration::from_millis(10);

/// One cache at work.
pub struct Lane {
    cache: Cache,
    marker: Marker,
    connection: Option<Masters>,
    work: Option<Work>,
    /// Masters of a Cluster that do not answer: what is for them waits apart, ...
    aside: BTreeSet<usize>,
    set_aside: Batch,
    /// (more than may be kept: everything that the rules reach stands for what came behind this position) ...
    aside_overflow: Option<Lsn>,
    /// ... until all of them answer a new connection, which is made beside the batches for the others.
    renewal: Option<Work>,
    renewed: Option<Box<(Masters, Found)>>,
    /// Tags that Redis refuses to touch.
    refused: Refused,
    next: Batch,
    /// A cleared batch whose memory is used again.
    spare: Batch,
    in_flight: Flight,
    repeats: Repeats,
    followers: Followers,
    sweeps: Sweeps,
    /// Where the slot started, and where the source is now.
    confirmed: Lsn,
    position: Lsn,
    /// In the server's log, nothing after this was handed over or looked at ...
    end: Lsn,
    /// ... and the stream began here.
    began: Lsn,
    progress: Option<Progress>,
    written: Option<Progress>,
    /// When the marker was answered last.
    marked_at: Instant,
    /// When Redis was asked last what it has evicted.
    lives_at: Instant,
    backoff: Backoff,
    attempted: bool,
    /// The work is only the sleep until the next marker, this long.
    asleep: Option<Instant>,
    source: SourceState,
    /// What is known of the source's history, ...
    witness: Witness,
    /// ... what of it the marker says, ...
    told_kept: Option<Lsn>,
    /// ... and the commit that the marker knew and this stream has still to bring.
    expected: Option<Commit>,
    /// The last commit that the marker knew, as long as no later one has arrived.
    known: Option<Commit>,
    /// What the rules covered by the marker that another daemon has left: it, and not what is remembered, tells what is new.
    inherited: Option<String>,
    /// The marker was read since the stream began. Before, nobody knows whether another daemon has seen to what a catalog shows: what the rules
    /// covered then is kept, with the relations that were emptied.
    has_read: bool,
    uncompared: Option<(Coverage, Truncated)>,
    /// Redis was full at the last marker.
    full: bool,
    /// Too few replicas of Redis have what was sent: since when, and how many have it.
    behind: Option<(Instant, u8)>,
    /// Bytes that may wait while others have room; `None` for the only lane, which makes the reader stop instead.
    share: Option<usize>,
    /// Bytes of tags that Redis does not take: they must not keep others from coming.
    bound: usize,
    away_since: Option<Instant>,
    /// Since when more waits than that.
    over_since: Option<Instant>,
    attachment: Attachment,
    /// Why it is not up.
    trouble: Option<String>,
    /// It has taken tags of this process: a refusal is no wrong setting from the start.
    proven: bool,
    /// What no marker proves yet.
    unproven: Unproven,
    /// The marker was told to forget its progress, and has not been told of any since.
    forgotten: bool,
    /// The slot is further than what was received: the marker decides whether something was missed.
    jumped: bool,
    /// Another daemon may have written meanwhile: the marker is read before it is written again.
    reread: bool,
    /// Templates whose tables have other files than the marker says, the position behind which that is explained or not, and the one
    /// that is held back until then.
    doubts: Option<(Coverage, Lsn, Lsn)>,
    /// The server's end when the catalog was read.
    covered_at: Lsn,
    /// What the rules make stale here, ...
    coverage: Coverage,
    /// ... and whether the marker says it: counted, because it may change while a write is under way.
    edition: u64,
    told_edition: Option<u64>,
}

/// Work that is under way.
type Work = Pin<Box<dyn Future<Output = Outcome>>>;

/// What brings the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceState {
    /// A stream runs.
    Running,
    /// There is none: the marker must not be kept alive against a daemon that has taken over the slot, and to connect is to claim.
    Broken,
    /// There is none, and no slot that another daemon could have.
    Blind,
}

/// Does this cache count?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attachment {
    /// Its tags are kept and it holds back the position.
    Attached,
    /// It was away for too long: nothing is kept, and it is swept as a whole when it answers again.
    Detached,
}

/// What is under way.
#[derive(Default)]
struct Flight {
    floor: Option<Lsn>,
    size: usize,
    marker: Option<Progress>,
    /// The delays changed meanwhile: what is repeated belongs to queues that may be gone.
    delays_changed: bool,
    /// Some of it was refused before.
    retries: bool,
    /// What the marker says of the outbox.
    kept: Option<Lsn>,
    /// The marker says what the rules cover.
    edition: Option<u64>,
    /// Slots of a Cluster were not where they were thought to be, or a master did not answer.
    redirected: bool,
    /// Which Redis it was.
    lives: Lives,
}

/// What the daemon should know.
#[derive(Debug)]
pub enum Event {
    /// The cache is claimed.
    Up,
    /// The cache cannot be used; it is tried again.
    Down(Error),
    /// It holds nothing back any more.
    Detached(Error),
    /// Tags were acknowledged: how many, and when the oldest was committed (first passes only).
    Sent(usize, Option<Timestamp>),
    /// The marker says this position; it may be confirmed.
    Marked,
    /// The marker was refused; it is claimed again.
    Refused(Gap),
    /// Redis is full; only deletions go through.
    Full,
    /// Fewer replicas of Redis than `wait_replicas` have what was sent.
    Behind(u8),
    /// Commands were counted and passed over.
    Futile(u64, Error),
    /// Redis refuses so many tags; they are owed.
    Withheld(usize, Error),
    /// A master of a Cluster does not answer: its keys wait.
    Lost(Error),
    /// Changes may have been missed: everything that the rules can reach goes stale.
    Resync(Gap),
    /// A sweep is complete: keys that it touched, and what it was.
    Swept(u64, Passed),
}

impl Lane {
    /// A lane that connects with its first poll. Owed repeats get half of `share`; beside other lanes what waits gets
    /// `share`, too. Sweeps touch at most `rate` keys per second. `name` is
    /// that of our sessions.
    pub fn new(cache: Cache, marker: Marker, share: usize, alone: bool, rate: Option<u32>, name: &str) -> Lane {
        let repeats = Repeats::new(&cache.repeat, share / 2);
        let followers = Followers::watch(&cache.replicas, name, share / 2);
        Lane {
            cache,
            marker,
            connection: None,
            work: Some(Box::pin(async { Outcome::Rested })),
            aside: BTreeSet::new(),
            set_aside: Batch::default(),
            aside_overflow: None,
            bound: share / 2,
            renewal: None,
            renewed: None,
            refused: Refused::default(),
            next: Batch::default(),
            spare: Batch::default(),
            in_flight: Flight::default(),
            repeats,
            followers,
            end: Lsn(0),
            began: Lsn(0),
            sweeps: Sweeps::new(rate),
            confirmed: Lsn(0),
            position: Lsn(0),
            progress: None,
            written: None,
            marked_at: Instant::now(),
            lives_at: Instant::now(),
            backoff: Backoff::default(),
            attempted: false,
            asleep: None,
            source: SourceState::Running,
            witness: Witness::default(),
            told_kept: None,
            expected: None,
            known: None,
            inherited: None,
            has_read: false,
            uncompared: None,
            full: false,
            behind: None,
            share: (!alone).then_some(share),
            away_since: None,
            over_since: None,
            attachment: Attachment::Attached,
            trouble: None,
            proven: false,
            unproven: Unproven::default(),
            forgotten: false,
            jumped: false,
            reread: false,
            doubts: None,
            covered_at: Lsn(0),
            coverage: Coverage::default(),
            edition: 0,
            told_edition: None,
        }
    }

    /// The same Redis under the same options: what [`Cache::is_same`] lets differ may be new.
    pub fn set_cache(&mut self, cache: Cache, share: usize, alone: bool) {
        self.share = (!alone).then_some(share);
        self.bound = share / 2;
        self.in_flight.delays_changed |= self.cache.repeat != cache.repeat;
        self.repeats.set_delays(&cache.repeat);
        if cache.wait_replicas == 0 {
            self.behind = None;
        }
        self.cache = cache;
    }

    /// Looks at which transactions are running: a resync waits for some to end.
    pub fn observe(&mut self, snapshot: &Snapshot) {
        self.sweeps.observe(snapshot, self.cache.repeat.last().copied().unwrap_or_default());
    }

    /// Does a resync wait for a snapshot?
    pub fn needs_snapshot(&self) -> bool {
        self.sweeps.needs_snapshot()
    }

    /// Does it wait to hear which of the running transactions is the newest?
    pub fn needs_newest(&self) -> bool {
        self.sweeps.needs_newest()
    }

    /// Must the stream be opened anew before a resync goes on?
    pub fn wants_reopening(&self) -> bool {
        self.sweeps.wants_reopening()
    }

    /// Its cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Takes in tags whose transaction every reader sees.
    pub fn add(&mut self, tags: &Tags, floor: Lsn, committed: Option<Timestamp>) {
        if tags.is_empty() || self.attachment == Attachment::Detached {
            return;
        }
        if self.cache.is_scanned() {
            let patterns = tags.iter().flat_map(|tag| Pattern::of_tag(&self.cache, tag));
            self.sweep(Scope::of_tags(patterns, &self.coverage.reach), floor);
        }
        self.next.add(tags, floor, committed);
    }

    /// Everything up to `position` was handed over, and in the log up to `end`; what is still owed lowers it. Never goes
    /// back: what was done stays done, unless a connection ended before a marker had proven it.
    pub fn advance(&mut self, position: Lsn, end: Lsn, witness: Witness) {
        self.source = SourceState::Running;
        self.end = self.end.max(end);
        self.witness = Witness { log: self.witness.log.max(witness.log).max(self.end), ..witness };
        self.marker.has_grown(self.witness.log);
        self.position = self.position.max(position);
        if self.attachment == Attachment::Detached {
            return;
        }
        let apart = self.set_aside.floor.into_iter().chain(self.aside_overflow).min();
        let waiting = [self.next.floor, self.in_flight.floor, apart, self.refused.floor()];
        let first = waiting.into_iter().chain([self.sweeps.floor()]).flatten().fold(position, Lsn::min);
        let doubted = self.doubts.as_ref().map(|(_, _, floor)| *floor);
        let expected = self.expected.map(|_| self.confirmed);
        let done = [self.repeats.floor(), self.sweeps.last_floor(), self.followers.floor(), doubted, expected]
            .into_iter()
            .flatten()
            .fold(first, Lsn::min);
        let before = self.progress.unwrap_or(Progress { done, first });
        self.progress = Some(Progress { done: before.done.max(done), first: before.first.max(first) });
    }

    /// The end of the server's log as far as it is known here.
    pub fn log(&self) -> Lsn {
        self.witness.log.max(self.end)
    }

    /// The stream broke: what is owed is still sent, but the marker is not refreshed until [`Lane::advance`].
    pub fn pause(&mut self) {
        self.source = SourceState::Broken;
    }

    /// There is no slot, so nobody else can have it: a Redis that went away is connected to again, because what is missed goes stale in it.
    pub fn go_blind(&mut self) {
        self.source = SourceState::Blind;
    }

    /// Works on; ready when there is something to tell.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if self.holds_up_others()
            && let Some(event) = self.detach("more tags wait than its share of --tag-memory holds")
        {
            return Poll::Ready(event);
        }
        while self.followers.poll(context).is_ready() {
            if let Some((scope, floor)) = self.followers.look(self.began, self.end, self.position) {
                tracing::info!(cache = self.cache.name, "a replica has caught up with what was swept");
                self.sweeps.want(scope, floor);
            }
            self.wake();
        }
        loop {
            // A sweep starts behind the claim: before it the marker says whose Redis this is.
            if self.connection.is_some()
                && let Poll::Ready(outcome) = self.sweeps.poll(&self.cache, context)
            {
                return Poll::Ready(match outcome {
                    Ok((swept, passed, scope)) => {
                        self.unproven.swept(scope);
                        Event::Swept(swept, passed)
                    }
                    Err(error) => self.sweep_failed(error),
                });
            }
            if let Some(renewal) = &mut self.renewal
                && let Poll::Ready(outcome) = renewal.as_mut().poll(context)
            {
                self.renewal = self.take_renewal(outcome);
                continue;
            }
            if self.work.is_none() {
                self.work = Some(self.start());
            }
            let Some(work) = &mut self.work else { return Poll::Pending };
            let Poll::Ready(outcome) = work.as_mut().poll(context) else { return Poll::Pending };
            self.work = None;
            self.asleep = None;
            if let Some(event) = self.finish(outcome) {
                return Poll::Ready(event);
            }
        }
    }

    /// To be called when tags or positions were added: a lane asleep until its marker is due is woken if that is sooner now.
    pub fn wake(&mut self) {
        if self.asleep.is_some_and(|until| self.due() < until) {
            self.asleep = None;
            self.work = None;
        }
    }
}
