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
use super::marker::{Answer, Marker, Origin};
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
    done: Option<Lsn>,
    written: Option<Lsn>,
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
    marker: Option<Lsn>,
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
    /// A lane that connects with its first poll.
    pub fn new(cache: Cache, marker: Marker) -> Lane {
        Lane {
            cache,
            marker,
            connection: None,
            work: Some(Box::pin(async { Outcome::Rested })),
            next: Batch::default(),
            spare: Batch::default(),
            in_flight: Flight::default(),
            done: None,
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
        let owed = [self.next.floor, self.in_flight.floor].into_iter().flatten().min();
        let done = owed.map_or(position, |floor| floor.min(position));
        self.done = self.done.max(Some(done));
    }

    /// The stream broke: what is owed is still sent, but the marker is not refreshed until [`Lane::advance`].
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// The position that this cache has acknowledged in its marker: all of it may be forgotten by the source.
    pub fn marked(&self) -> Option<Lsn> {
        self.written
    }

    /// Has it been claimed, or tried in vain at least once?
    pub fn attempted(&self) -> bool {
        self.attempted
    }

    /// Bytes that wait or are under way.
    pub fn size(&self) -> usize {
        self.next.tags.size() + self.in_flight.size
    }

    /// Nothing waits, nothing is under way, and the marker says so.
    pub fn is_settled(&self) -> bool {
        self.next.tags.is_empty() && self.in_flight.size == 0 && self.written >= self.done
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

    /// When there is something to send: tags at once, a marker that moved soon, one that did not after a while.
    fn due(&self) -> Instant {
        match (self.next.tags.is_empty(), self.done > self.written, self.paused || self.done.is_none()) {
            (false, _, _) => Instant::now(),
            (true, _, true) => Instant::now() + MARKER_INTERVAL,
            (true, true, false) => self.marked_at + MARKER_PAUSE,
            (true, false, false) => self.marked_at + MARKER_INTERVAL,
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
        let moved = self.done > self.written || Instant::now() >= self.marked_at + MARKER_INTERVAL;
        let marker = self.done.filter(|_| moved && !self.paused);
        let write = marker.map(|done| self.marker.write(Some(done)));
        let batch = std::mem::replace(&mut self.next, std::mem::take(&mut self.spare));
        self.in_flight = Flight { floor: batch.floor, size: batch.tags.size().max(1), marker };
        Box::pin(flight(self.cache.clone(), connection, write, batch))
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
                self.work = Some(Box::pin(claim(self.cache.clone(), connection.clone(), self.marker.write(self.done))));
                self.connection = Some(connection);
                self.in_flight.marker = self.done;
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
            Outcome::Landed { mut batch, marker, result } => {
                let sent = batch.tags.len();
                let refusal = marker.and_then(|answer| self.marked_by(&answer));
                self.in_flight = Flight::default();
                if let Err(error) = result {
                    // Sent again as a whole: an invalidation may be repeated at will.
                    let floor = batch.floor.unwrap_or_default();
                    self.add(&batch.tags, floor);
                    return Some(self.fail(error));
                }
                batch.clear();
                self.spare = batch;
                self.backoff.reset();
                refusal.or(match sent {
                    0 => Some(Event::Marked),
                    sent => Some(Event::Sent(sent)),
                })
            }
            Outcome::Claimed(Err(error)) | Outcome::Failed(error) => Some(self.fail(error)),
        }
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
