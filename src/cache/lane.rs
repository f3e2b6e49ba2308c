//! A lane: one cache with its connection, the batch in flight, the next batch, and the position up to which nothing is
//! owed. Lanes never wait for each other.
//!
//! While Redis is busy with one flight, the next batch fills: group commit.

use std::future::{Future, pending};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep_until};

use super::Cache;
use super::batch::Batch;
use super::connection::Error;
use super::flight::{Outcome, claim, connect, flight};
use super::marker::{Answer, Marker, Origin, Progress};
use super::repeats::Repeats;
use crate::backoff::Backoff;
use crate::source::lsn::Lsn;
use crate::tags::Tags;

/// The marker is written at least this often while the stream runs.
const MARKER_INTERVAL: Duration = Duration::from_secs(1);
/// A marker without tags is written at most this often: a busy database whose changes make nothing stale must not keep
/// Redis busy.
const MARKER_PAUSE: Duration = Duration::from_millis(10);

/// One cache at work.
pub struct Lane {
    cache: Cache,
    marker: Marker,
    connection: Option<MultiplexedConnection>,
    work: Option<Pin<Box<dyn Future<Output = Outcome>>>>,
    next: Batch,
    /// A cleared batch whose memory is used again.
    spare: Batch,
    in_flight: Flight,
    repeats: Repeats,
    progress: Option<Progress>,
    written: Option<Progress>,
    /// When the marker was answered last.
    marked_at: Instant,
    backoff: Backoff,
    attempted: bool,
    /// The work is only the sleep until the next marker, this long.
    asleep: Option<Instant>,
    /// No stream: the marker must not be kept alive against a daemon that has taken over the slot.
    paused: bool,
    /// Redis was full at the last marker.
    full: bool,
}

/// What is under way.
#[derive(Default)]
struct Flight {
    floor: Option<Lsn>,
    size: usize,
    marker: Option<Progress>,
    /// The batch is a repeat of this queue.
    repeat: Option<usize>,
}

/// What the daemon should know.
#[derive(Debug)]
pub enum Event {
    /// The cache is claimed.
    Up,
    /// The cache cannot be used; it is tried again.
    Down(Error),
    /// Tags were acknowledged: how many.
    Sent(usize),
    /// The marker says this position; it may be confirmed.
    Marked,
    /// The marker was refused; it is claimed again.
    Refused(String),
    /// Redis is full; only deletions go through.
    Full,
}

impl Lane {
    /// A lane that connects with its first poll; owed repeats get `share` bytes of memory.
    pub fn new(cache: Cache, marker: Marker, share: usize) -> Lane {
        let repeats = Repeats::new(&cache.repeat, share);
        Lane {
            cache,
            marker,
            connection: None,
            work: Some(Box::pin(async { Outcome::Rested })),
            next: Batch::default(),
            spare: Batch::default(),
            in_flight: Flight::default(),
            repeats,
            progress: None,
            written: None,
            marked_at: Instant::now(),
            backoff: Backoff::default(),
            attempted: false,
            asleep: None,
            paused: false,
            full: false,
        }
    }

    /// The server crashed or changed since the lane was made: the marker says so from now on.
    pub fn set_origin(&mut self, origin: Origin) {
        self.marker.set_origin(origin);
    }

    /// Its cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Takes in tags whose transaction every reader sees.
    pub fn add(&mut self, tags: &Tags, floor: Lsn) {
        if !tags.is_empty() {
            self.next.add(tags, floor);
        }
    }

    /// Everything up to `position` was handed over; what is still owed lowers it. Never goes back: what was done stays done.
    pub fn advance(&mut self, position: Lsn) {
        self.paused = false;
        let first = [self.next.floor, self.in_flight.floor, Some(position)].into_iter().flatten().min();
        let first = first.unwrap_or(position);
        let done = self.repeats.floor().map_or(first, |floor| floor.min(first));
        let before = self.progress.unwrap_or(Progress { done, first });
        self.progress = Some(Progress { done: before.done.max(done), first: before.first.max(first) });
    }

    /// The stream broke: what is owed is still sent, but the marker is not refreshed until [`Lane::advance`].
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// The position that this cache has acknowledged in its marker: all of it may be forgotten by the source.
    pub fn marked(&self) -> Option<Lsn> {
        self.written.map(|progress| progress.done)
    }

    /// Has it been claimed, or tried in vain at least once?
    pub fn attempted(&self) -> bool {
        self.attempted
    }

    /// Bytes that wait for their first pass or are under way; repeats have a share of their own.
    pub fn size(&self) -> usize {
        self.next.tags.size() + self.in_flight.size
    }

    /// Nothing waits, nothing is under way, and the marker says so.
    pub fn is_settled(&self) -> bool {
        self.next.tags.is_empty() && self.in_flight.size == 0 && self.written >= self.progress
    }

    /// Works on; ready when there is something to tell.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        loop {
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

    /// When there is something to send: tags at once, a repeat when it is due, a marker that moved soon, one that did not
    /// after a while.
    fn due(&self) -> Instant {
        let marker = match (self.progress > self.written, self.paused || self.progress.is_none()) {
            (_, true) => Instant::now() + MARKER_INTERVAL,
            (true, false) => self.marked_at + MARKER_PAUSE,
            (false, false) => self.marked_at + MARKER_INTERVAL,
        };
        match self.next.tags.is_empty() {
            false => Instant::now(),
            true => self.repeats.due().map_or(marker, |repeat| repeat.min(marker)),
        }
    }

    /// The next thing to do on an open connection.
    fn start(&mut self) -> Pin<Box<dyn Future<Output = Outcome>>> {
        let Some(connection) = self.connection.clone() else { return Box::pin(pending()) };
        let due = self.due();
        if Instant::now() < due {
            self.asleep = Some(due);
            return rest_until(due);
        }
        // The marker tells of the batches before this one, all of whose replies were good.
        let moved = self.progress > self.written || Instant::now() >= self.marked_at + MARKER_INTERVAL;
        let marker = self.progress.filter(|_| moved && !self.paused);
        let write = marker.map(|progress| self.marker.write(Some(progress)));
        let (batch, repeat) = self.next_batch();
        self.in_flight = Flight { floor: batch.floor, size: batch.tags.size().max(1), marker, repeat };
        Box::pin(flight(self.cache.clone(), connection, write, batch))
    }

    /// First passes go before repeats.
    fn next_batch(&mut self) -> (Batch, Option<usize>) {
        if self.next.tags.is_empty() {
            match self.repeats.take(Instant::now()) {
                Ok(Some((queue, tags))) => return (Batch { tags, floor: None }, Some(queue)),
                Ok(None) => {}
                Err(error) => tracing::error!(cache = self.cache.name, "owed repeats cannot be read back: {error}"),
            }
        }
        (std::mem::replace(&mut self.next, std::mem::take(&mut self.spare)), None)
    }

    fn finish(&mut self, outcome: Outcome) -> Option<Event> {
        match outcome {
            Outcome::Rested => {
                if self.connection.is_none() && self.paused {
                    // To connect is to claim, and another daemon may hold the slot now.
                    self.work = Some(rest_until(Instant::now() + MARKER_PAUSE));
                } else if self.connection.is_none() {
                    self.work = Some(Box::pin(connect(self.cache.clone(), self.marker.load(), self.marker.read())));
                }
                None
            }
            Outcome::Connected(connected) => {
                let (connection, owner, seq) = *connected;
                self.marker.found(owner, seq);
                self.work =
                    Some(Box::pin(claim(self.cache.clone(), connection.clone(), self.marker.write(self.progress))));
                self.connection = Some(connection);
                self.in_flight.marker = self.progress;
                None
            }
            Outcome::Claimed(Ok(answer)) => Some(match self.marked_by(&answer) {
                told @ (None | Some(Event::Full)) => {
                    self.attempted = true;
                    told.unwrap_or(Event::Up)
                }
                Some(refusal) => {
                    self.connection = None;
                    self.rest();
                    refusal
                }
            }),
            Outcome::Landed { batch, marker, result } => {
                let refusal = marker.and_then(|answer| self.marked_by(&answer));
                let flight = std::mem::take(&mut self.in_flight);
                match result {
                    Ok(()) => self.landed(batch, flight, refusal),
                    Err(error) => {
                        // A first pass is sent again as a whole, a repeat is still owed: both may be repeated at will.
                        if flight.repeat.is_none() {
                            self.add(&batch.tags, batch.floor.unwrap_or_default());
                        }
                        Some(self.fail(error))
                    }
                }
            }
            Outcome::Claimed(Err(error)) | Outcome::Failed(error) => Some(self.fail(error)),
        }
    }

    fn landed(&mut self, batch: Batch, flight: Flight, refusal: Option<Event>) -> Option<Event> {
        self.backoff.reset();
        let sent = batch.tags.len();
        let spare = match flight.repeat {
            Some(queue) => {
                self.repeats.done(queue, sent);
                Some(batch)
            }
            None => self.repeats.owe(batch),
        };
        if let Some(mut spare) = spare {
            spare.clear();
            self.spare = spare;
        }
        refusal.or(match sent {
            0 => Some(Event::Marked),
            sent => Some(Event::Sent(sent)),
        })
    }

    /// Takes the answer to a marker; a refusal is told, and the next write claims what stands there now.
    fn marked_by(&mut self, answer: &Value) -> Option<Event> {
        let wanted = self.in_flight.marker.take();
        self.marked_at = Instant::now();
        match self.marker.answered(answer) {
            Answer::Written => {
                self.written = self.written.max(wanted);
                self.full = false;
                None
            }
            Answer::Refused(reason) => Some(Event::Refused(reason)),
            Answer::Full => {
                self.written = self.written.max(wanted);
                (!std::mem::replace(&mut self.full, true)).then_some(Event::Full)
            }
        }
    }

    fn fail(&mut self, error: Error) -> Event {
        self.attempted = true;
        self.connection = None;
        self.in_flight = Flight::default();
        self.rest();
        Event::Down(error)
    }

    fn rest(&mut self) {
        self.work = Some(rest_until(Instant::now() + self.backoff.next()));
    }
}

fn rest_until(due: Instant) -> Pin<Box<dyn Future<Output = Outcome>>> {
    Box::pin(async move {
        sleep_until(due).await;
        Outcome::Rested
    })
}
