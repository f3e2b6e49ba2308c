//! What a lane does between two calls of the daemon: connect and claim, fly, mark, rest.

use std::future::{Future, pending};
use std::pin::Pin;

use redis::Value;
use tokio::time::{Instant, sleep_until};

use super::super::batch::Batch;
use super::super::command::Command;
use super::super::coverage::Coverage;
use super::super::exchange::Replies;
use super::super::flight::{Outcome, claim, connect, flight};
use super::super::gap::{Gap, Scope};
use super::super::marker::{Answer, BEHIND, Found, OTHER_DAEMON};
use crate::tags::Tags;

use super::{Attachment, Event, Flight, Lane, MARKER_INTERVAL, MARKER_PAUSE};

type Work = Pin<Box<dyn Future<Output = Outcome>>>;

impl Lane {
    /// When there is something to send: tags at once, a repeat when it is due, a marker that moved soon, one that did not
    /// after a while.
    pub(super) fn due(&self) -> Instant {
        let marker = match (self.has_moved(), self.paused || self.progress.is_none()) {
            (_, true) => Instant::now() + MARKER_INTERVAL,
            (true, false) => self.marked_at + MARKER_PAUSE,
            (false, false) => self.marked_at + MARKER_INTERVAL,
        };
        match self.next.tags.is_empty() && self.followers.ready().is_none() {
            false => Instant::now(),
            true => self.repeats.due().map_or(marker, |repeat| repeat.min(marker)),
        }
    }

    /// Is there something that the marker should tell or prove?
    fn has_moved(&self) -> bool {
        let told = self.told_edition == Some(self.edition) || self.full || self.doubts.is_some();
        self.unproven.is_much()
            || ((self.progress > self.written || self.forgotten || !told) && self.sweeps.resyncing().is_none())
    }

    /// A write of the marker. During a resync it tells of nothing, so that a crash starts the resync again.
    fn marker_write(&mut self) -> Vec<Command> {
        let resyncing = self.sweeps.resyncing().is_some();
        self.forgotten |= resyncing;
        // As long as it is in doubt, a crash must find what stood there.
        let news = self.told_edition != Some(self.edition) && self.doubts.is_none();
        self.in_flight.edition = news.then_some(self.edition);
        let rules = news.then(|| self.coverage.text());
        self.marker.write(self.progress.filter(|_| !resyncing), resyncing, rules.as_deref(), self.followers.is_behind())
    }

    /// The next thing to do on an open connection.
    pub(super) fn start(&mut self) -> Work {
        if std::mem::take(&mut self.reread) {
            self.connection = None;
            return rest_until(Instant::now());
        }
        let Some(connection) = self.connection.clone() else { return Box::pin(pending()) };
        let due = self.due();
        if Instant::now() < due {
            self.asleep = Some(due);
            return rest_until(due);
        }
        // The marker tells of the batches before this one, all of whose replies were good.
        let moved = self.has_moved() || Instant::now() >= self.marked_at + MARKER_INTERVAL;
        let marker = self.progress.filter(|_| moved && !self.paused);
        let write = marker.map(|_| self.marker_write()).unwrap_or_default();
        if marker.is_some() {
            self.unproven.asked();
        }
        let followers = self.next.tags.is_empty() && self.followers.ready().is_some();
        let (batch, repeat) = self.next_batch();
        let told = marker.filter(|_| self.sweeps.resyncing().is_none());
        let edition = self.in_flight.edition;
        self.in_flight = Flight {
            floor: batch.floor,
            size: batch.tags.size().max(1),
            marker: told,
            repeat,
            followers,
            edition,
            redirected: false,
            lives: Vec::new(),
        };
        let due = marker.is_some() && self.lives_at.elapsed() >= MARKER_INTERVAL;
        let evictable = if due { self.marker.evictable() } else { Vec::new() };
        if due {
            self.lives_at = Instant::now();
        }
        Box::pin(flight(self.cache.clone(), connection, write, batch, evictable))
    }

    /// First passes go before repeats.
    fn next_batch(&mut self) -> (Batch, Option<usize>) {
        if self.next.tags.is_empty() {
            if let Some(ready) = self.followers.ready() {
                let mut tags = Tags::default();
                tags.extend(ready);
                return (Batch { tags, ..Batch::default() }, None);
            }
            match self.repeats.take(Instant::now()) {
                Ok(Some((queue, tags))) => return (Batch { tags, ..Batch::default() }, Some(queue)),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(cache = self.cache.name, "owed repeats cannot be read back: {error}; sweeping");
                    let floor = self.repeats.give_up(Instant::now());
                    self.sweeps.want(Scope::everything(), floor.unwrap_or(self.position));
                }
            }
        }
        (std::mem::replace(&mut self.next, std::mem::take(&mut self.spare)), None)
    }

    pub(super) fn finish(&mut self, outcome: Outcome) -> Option<Event> {
        match outcome {
            Outcome::Rested => {
                if self.connection.is_none() && self.paused {
                    // To connect is to claim, and another daemon may hold the slot now.
                    self.work = Some(rest_until(Instant::now() + MARKER_PAUSE));
                } else if self.connection.is_none() {
                    self.work = Some(Box::pin(connect(
                        self.cache.clone(),
                        self.marker.key().to_owned(),
                        self.marker.witnesses(),
                    )));
                }
                None
            }
            Outcome::Connected(connected) => {
                let (connection, found) = *connected;
                // It may be another server now.
                self.sweeps.restart();
                if !self.marker.is_where_it_was(&found) {
                    self.owe_again();
                }
                let gap = self.gap(found);
                self.work = Some(Box::pin(claim(self.cache.clone(), connection.clone(), self.marker_write())));
                self.connection = Some(connection);
                // Replicas are waited for behind a flight.
                let counts = self.sweeps.resyncing().is_none() && self.cache.wait_replicas == 0;
                self.in_flight.marker = self.progress.filter(|_| counts);
                gap.map(Event::Resync)
            }
            Outcome::Claimed(Ok(answers)) => Some(match self.marked_by(&answers, true) {
                told @ (None | Some(Event::Full)) => {
                    (self.attempted, self.trouble) = (true, None);
                    told.unwrap_or(Event::Up)
                }
                Some(refusal) => {
                    self.connection = None;
                    self.rest();
                    refusal
                }
            }),
            Outcome::Landed { batch, replies: Replies { markers, futile, moved }, replicas, lives, result } => {
                self.in_flight.lives = lives;
                let behind = replicas.and_then(|count| self.replicated(count));
                self.in_flight.redirected = moved;
                let refusal = (!markers.is_empty()).then(|| self.marked_by(&markers, result.is_ok())).flatten();
                let flight = std::mem::take(&mut self.in_flight);
                let landed = match result {
                    Ok(()) => {
                        let event = self.landed(batch, flight);
                        let futile = futile.map(|futile| Event::Futile(futile.0, futile.1));
                        Some(refusal.or(futile).or(behind).unwrap_or(event))
                    }
                    Err(error) => {
                        // A first pass is sent again as a whole, a repeat is still owed: both may be repeated at will.
                        if flight.repeat.is_none() && !flight.followers {
                            self.add(&batch.tags, batch.floor.unwrap_or_default(), batch.committed);
                        }
                        Some(self.fail(error))
                    }
                };
                if moved {
                    // The slots lie otherwise now: who has them is asked again, and what stands there.
                    self.reread = true;
                    self.owe_again();
                }
                landed
            }
            Outcome::Claimed(Err(error)) | Outcome::Failed(error) => Some(self.fail(error)),
        }
    }

    /// What the marker that was found means. A cache that was detached counts again from here on.
    pub(super) fn gap(&mut self, found: Found) -> Option<Gap> {
        let detached = !self.is_attached();
        self.attachment = Attachment::Attached;
        let told = self.written.map_or(self.confirmed, |written| written.done.max(self.confirmed));
        let jumped = std::mem::take(&mut self.jumped);
        let before = found.rules.clone().unwrap_or_default();
        if self.written.is_none() && found.replicas.as_deref() == Some(BEHIND) {
            self.followers.suspect(self.began);
        }
        let gap = self.marker.found(found, told, &self.coverage, jumped);
        // What this process wrote was judged by every catalog that it has read since.
        let doubts = if self.marker.is_own() { Coverage::default() } else { self.coverage.doubts(&before) };
        if gap.is_none() && !doubts.templates.is_empty() {
            self.doubts = Some((doubts, self.covered_at, self.confirmed));
        }
        self.told_edition = None;
        let gap = if detached { Some(Gap::new("detached", "it was away for too long")) } else { gap }?;
        let news = self.sweeps.resyncing().is_none();
        self.make_up_for(gap.clone(), self.position);
        news.then_some(gap)
    }

    fn landed(&mut self, batch: Batch, flight: Flight) -> Event {
        self.backoff.reset();
        (self.away_since, self.proven) = (None, true);
        if self.sweeps.failing().is_zero() {
            self.trouble = None;
        }
        let (sent, committed) = (batch.tags.len(), batch.committed);
        if flight.repeat.is_none() && !flight.followers {
            self.followers.hold(&batch, self.end);
        }
        let spare = match flight.repeat {
            Some(queue) => match self.repeats.done(queue, sent) {
                Some(floor) => {
                    self.unproven.keep(Batch { floor: Some(floor), ..batch });
                    None
                }
                None => Some(batch),
            },
            None if flight.followers => {
                // A reader there may have been computing.
                if let Some(batch) = self.followers.done() {
                    self.owe_on(batch);
                }
                Some(batch)
            }
            None if batch.floor.is_some() => self.owe_on(batch),
            None => Some(batch),
        };
        if let Some(spare) = spare {
            self.spare = spare.emptied();
        }
        if sent == 0 { Event::Marked } else { Event::Sent(sent, committed) }
    }

    /// So many replicas have what the marker tells of. If they are too few it does not count, for as long as an absent cache may hold up the
    /// others; then it does: what a failover loses is seen by the marker all the same.
    fn replicated(&mut self, count: u8) -> Option<Event> {
        if count >= self.cache.wait_replicas {
            self.behind = None;
            return None;
        }
        let news = self.behind.is_none();
        let (since, _) = *self.behind.insert((self.behind.map_or_else(Instant::now, |(since, _)| since), count));
        if since.elapsed() < self.cache.detach_after {
            self.in_flight.marker = None;
        }
        news.then_some(Event::Behind(count))
    }

    /// Tags whose pass was acknowledged are owed the repeats, or a proof: hands the batch back if it is not needed any more.
    fn owe_on(&mut self, batch: Batch) -> Option<Batch> {
        if !self.cache.repeat.is_empty() {
            return self.repeats.owe(batch);
        }
        self.unproven.keep(batch);
        None
    }

    /// Takes the answer to a marker. A refusal is a loss: it is told, everything goes stale, and the next write claims what
    /// stands there now.
    pub(super) fn marked_by(&mut self, answers: &[Value], complete: bool) -> Option<Event> {
        // Sent on to another node, it proves nothing of what went to the one before.
        let wanted = self.in_flight.marker.take().filter(|_| !self.in_flight.redirected);
        let edition = self.in_flight.edition.take();
        self.marked_at = Instant::now();
        match self.marker.answered(answers, complete) {
            Answer::Written => {
                self.written = self.written.max(wanted);
                self.full = false;
                self.told_edition = edition.or(self.told_edition);
                self.marker.lived(std::mem::take(&mut self.in_flight.lives));
                // Whoever loses what came before loses this as well, and the next marker finds out.
                if !self.in_flight.redirected {
                    self.unproven.proven();
                }
                if wanted.is_some() {
                    self.forgotten = false;
                }
                None
            }
            Answer::Refused(gap) => {
                self.told_edition = None;
                // What another daemon says of its progress decides when this one claims again, if it ever does.
                if gap.code != OTHER_DAEMON {
                    self.make_up_for(gap.clone(), self.position);
                }
                Some(Event::Refused(gap))
            }
            Answer::Open => None,
            // Why, the next reading of it tells.
            Answer::Gone => {
                self.reread = true;
                None
            }
            Answer::Full => {
                self.written = self.written.max(wanted);
                (!std::mem::replace(&mut self.full, true)).then_some(Event::Full)
            }
        }
    }

    pub(super) fn rest(&mut self) {
        self.work = Some(rest_until(Instant::now() + self.backoff.next()));
    }
}

fn rest_until(due: Instant) -> Work {
    Box::pin(async move {
        sleep_until(due).await;
        Outcome::Rested
    })
}
