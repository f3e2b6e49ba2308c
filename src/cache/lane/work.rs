//! What a lane does between two calls of the daemon: connect and claim, fly, mark, rest.

use std::collections::BTreeSet;
use std::future::{pending, ready};
use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, sleep_until};

use super::super::batch::Batch;
use super::super::command::{Command, Draw, commands};
use super::super::connection::Error;
use super::super::coverage::Coverage;
use super::super::exchange::Replies;
use super::super::flight::{Asked, Landing, Lives, Load, Outcome, claim, connect, flight};
use super::super::gap::{Gap, REWOUND, Scope};
use super::super::marker::{Answer, BEHIND, Found, OTHER_DAEMON, Witness};
use super::super::masters::Masters;
use super::super::repeats::{PORTION, Taken};
use crate::flow::history::Commit;
use crate::source::lsn::Lsn;
use crate::tags::Tags;

use super::{Attachment, Event, Flight, Lane, MARKER_INTERVAL, MARKER_PAUSE, SourceState, Work};

/// Repeats wait for a moment without first passes, but no longer than this: then each flight carries some of them.
const REPEATS_WAIT: Duration = Duration::from_millis(100);
/// Behind a large transaction a million of them are due at once: a flight carries more of them the later they are, up to so many portions.
const MOST_PORTIONS: usize = 10;

impl Lane {
    /// When there is something to send: tags at once, a repeat when it is due, a marker that moved soon, one that did not
    /// after a while.
    pub(super) fn due(&self) -> Instant {
        let marker = match (self.has_moved(), self.says_nothing()) {
            (_, true) => Instant::now() + MARKER_INTERVAL,
            (true, false) => self.marked_at + MARKER_PAUSE,
            (false, false) => self.marked_at + MARKER_INTERVAL,
        };
        match self.next.tags.is_empty() && self.followers.ready().is_none() {
            false => Instant::now(),
            true => [self.repeats.due(), self.refused.due()].into_iter().flatten().fold(marker, Instant::min),
        }
    }

    /// Must the marker not be written? Without a stream another daemon may say more; and while a master of a Cluster is silent, nothing can be
    /// proven.
    fn says_nothing(&self) -> bool {
        self.source != SourceState::Running || self.progress.is_none() || !self.aside.is_empty() || self.reread
    }

    /// Is there something that the marker should tell or prove?
    fn has_moved(&self) -> bool {
        let told =
            self.told_edition == Some(self.edition) || self.full || self.doubts.is_some() || self.inherited.is_some();
        self.unproven.is_much()
            || self.witness.kept > self.told_kept
            || ((self.progress > self.written || self.forgotten || !told) && self.sweeps.resyncing().is_none())
    }

    /// A write of the marker. During a resync it tells of nothing, so that a crash starts the resync again.
    fn marker_write(&mut self) -> Vec<Command> {
        let resyncing = self.sweeps.resyncing().is_some();
        self.forgotten |= resyncing;
        // As long as it is in doubt, a crash must find what stood there.
        let news = self.told_edition != Some(self.edition) && self.doubts.is_none() && self.inherited.is_none();
        self.in_flight.edition = news.then_some(self.edition);
        self.in_flight.kept = self.witness.kept;
        let rules = news.then(|| self.coverage.text());
        let progress = self.progress.filter(|_| !resyncing);
        let witness = Witness { commit: self.witness.commit.or(self.known), ..self.witness };
        self.marker.write(progress, resyncing, rules.as_deref(), self.followers.is_behind(), &witness)
    }

    /// The next thing to do on an open connection.
    pub(super) fn start(&mut self) -> Work {
        if let Some(connected) = self.renewed.take() {
            return Box::pin(ready(Outcome::Connected(connected)));
        }
        let is_cluster = self.connection.as_ref().is_some_and(Masters::is_cluster);
        if self.reread && is_cluster && self.source != SourceState::Broken {
            // One of its masters may be silent: tags for the others need not wait until all of them answer. The marker says nothing meanwhile.
            if self.renewal.is_none() {
                self.renewal = Some(self.connecting());
            }
        } else if self.reread && !is_cluster {
            self.reread = false;
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
        let marker = self.progress.filter(|_| moved && !self.says_nothing());
        let write = marker.map(|_| self.marker_write()).unwrap_or_default();
        let mut asked = Asked::default();
        if marker.is_some() {
            self.unproven.asked();
            asked.keys = self.marker.evictable();
            asked.before = self.lives_at.elapsed() >= MARKER_INTERVAL;
            // A proxy may lead to another Redis without a word: what it took instead proves nothing.
            asked.after = self.unproven.is_asked();
            if asked.before {
                self.lives_at = Instant::now();
            }
        }
        self.in_flight.retries = false;
        let load = self.load();
        let told = marker.filter(|_| self.sweeps.resyncing().is_none());
        self.in_flight = Flight {
            floor: load.first.floor,
            size: load.first.tags.size().max(1),
            marker: told,
            delays_changed: false,
            retries: self.in_flight.retries,
            kept: self.in_flight.kept.take(),
            edition: self.in_flight.edition.take(),
            redirected: false,
            lives: Lives::default(),
        };
        Box::pin(flight(self.cache.clone(), connection, write, load, asked, self.aside.clone()))
    }

    /// What the next flight carries. Whatever is owed once more makes progress while first passes keep coming: with each flight, and at twice
    /// the pace at which it arises.
    fn load(&mut self) -> Load {
        let now = Instant::now();
        if let Some((tags, floor)) = self.refused.take(now) {
            self.next.add(&tags, floor, None);
            self.in_flight.retries = true;
        }
        let first = std::mem::replace(&mut self.next, std::mem::take(&mut self.spare));
        let first = self.without_the_silent(first);
        let mut followers = Tags::default();
        followers.extend_from(self.followers.ready());
        let waits = !first.tags.is_empty() && self.repeats.overdue(now).is_none_or(|late| late < REPEATS_WAIT);
        let late = self.repeats.overdue(now).unwrap_or_default().as_millis() / REPEATS_WAIT.as_millis();
        let portions = usize::try_from(late).unwrap_or_default().clamp(1, MOST_PORTIONS);
        let most = portions * PORTION.max(2 * self.cache.repeat.len() * first.tags.len());
        let repeats = if waits { Taken::default() } else { self.due_repeats(now, most) };
        Load { first, followers, repeats }
    }

    fn due_repeats(&mut self, now: Instant, most: usize) -> Taken {
        match self.repeats.take(now, most) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::error!(cache = self.cache.name, "owed repeats cannot be read back: {error}; sweeping");
                let floor = self.repeats.give_up(now);
                self.sweeps.want(Scope::everything(), floor.unwrap_or(self.position));
                Taken::default()
            }
        }
    }

    /// What is for a master of a Cluster that does not answer waits apart.
    fn without_the_silent(&mut self, batch: Batch) -> Batch {
        let Some(masters) = self.connection.clone().filter(|_| !self.aside.is_empty()) else { return batch };
        let mut rest = Batch { floor: batch.floor, committed: batch.committed, ..Batch::default() };
        for tag in batch.tags.iter() {
            let first = commands(&self.cache, tag, Draw::new(&self.cache)).next();
            let node = first.and_then(|command| masters.of(command.key()));
            match node.is_some_and(|node| self.aside.contains(&node)) {
                true => self.put_aside(tag, batch.floor.unwrap_or(self.confirmed)),
                false => drop(rest.tags.insert(tag)),
            }
        }
        if rest.tags.is_empty() { Batch::default() } else { rest }
    }

    pub(super) fn finish(&mut self, outcome: Outcome) -> Option<Event> {
        match outcome {
            Outcome::Rested => {
                if self.connection.is_none() && self.source == SourceState::Broken {
                    // To connect is to claim, and another daemon may hold the slot now.
                    self.work = Some(rest_until(Instant::now() + MARKER_PAUSE));
                } else if self.connection.is_none() {
                    self.work = Some(self.connecting());
                }
                None
            }
            // The stream broke meanwhile: another daemon may have the slot by now, and to claim would take its marker away.
            Outcome::Connected(_) if self.source == SourceState::Broken => {
                self.work = Some(rest_until(Instant::now() + MARKER_PAUSE));
                None
            }
            Outcome::Connected(connected) => {
                self.reread = false;
                let (connection, found) = *connected;
                // It may be another server now. If it is not, because only slots of a Cluster moved, a sweep finds by itself what that means to it: it
                // would never be complete if each of them made it begin anew.
                if !self.marker.is_where_it_was(&found) {
                    self.sweeps.restart();
                    self.owe_again();
                }
                self.no_one_is_silent();
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
            Outcome::Landed(landing) => Some(self.take_landed(*landing)),
            Outcome::Claimed(Err(error)) | Outcome::Failed(error) => Some(self.fail(error)),
        }
    }

    fn connecting(&self) -> Work {
        Box::pin(connect(self.cache.clone(), self.marker.key().to_owned(), self.marker.witnesses()))
    }

    /// Takes the answers to a flight.
    fn take_landed(&mut self, landing: Landing) -> Event {
        let Landing { load, mut replies, replicas, lives, result } = landing;
        let is_elsewhere = self.marker.is_elsewhere(&lives.before) || self.marker.is_elsewhere(&lives.after);
        self.in_flight.lives = lives;
        let behind = replicas.and_then(|count| self.replicated(count));
        let loss = replies.loss.take();
        self.in_flight.redirected = replies.moved || loss.is_some() || is_elsewhere;
        let complete = result.is_ok() && loss.is_none();
        let markers = std::mem::take(&mut replies.markers);
        let refusal = (!markers.is_empty()).then(|| self.marked_by(&markers, complete)).flatten();
        let flight = std::mem::take(&mut self.in_flight);
        let event = match result {
            Ok(()) => {
                let futile = replies.futile.take().map(|futile| Event::Futile(futile.0, futile.1));
                let withheld = self.keep_what_was_not_taken(&load, &replies);
                if flight.retries && replies.refused.is_empty() {
                    self.refused.go_on();
                }
                let event = self.landed(load, flight);
                let lost = loss.and_then(|loss| self.lose(&replies.lost, *loss));
                refusal.or(lost).or(withheld).or(futile).or(behind).unwrap_or(event)
            }
            Err(error) => {
                // A first pass is sent again as a whole; what was to be repeated is still owed: both may be repeated at will.
                let first = load.first;
                self.add(&first.tags, first.floor.unwrap_or_default(), first.committed);
                return self.fail(error);
            }
        };
        if replies.moved || is_elsewhere {
            // The slots lie otherwise now, or it is another Redis: who has them is asked again, and what stands there.
            self.reread = true;
            self.owe_again();
        }
        event
    }

    /// Tags that Redis refused, or that a silent master was asked for, are still owed.
    fn keep_what_was_not_taken(&mut self, load: &Load, replies: &Replies) -> Option<Event> {
        if replies.refused.is_empty() && replies.unanswered.is_empty() {
            return None;
        }
        let done = self.written.map_or(self.confirmed, |written| written.done);
        let (firsts, floor) = (load.first.tags.len(), load.first.floor.unwrap_or(self.confirmed));
        let mut count = 0;
        for (number, tag) in load.tags().enumerate() {
            let floor = if number < firsts { floor } else { done };
            if replies.unanswered.contains(&number) {
                self.put_aside(tag, floor);
            } else if replies.refused.contains(&number) {
                self.refused.add(tag, floor, self.bound);
                count += 1;
            }
        }
        let refusal = replies.refusal.as_deref()?;
        let news = self.trouble.as_ref() != Some(&refusal.sentence);
        self.trouble = Some(refusal.sentence.clone());
        news.then(|| Event::Withheld(count, refusal.clone()))
    }

    /// A master of a Cluster does not answer. The others go on; all are connected to anew beside them.
    fn lose(&mut self, lost: &BTreeSet<usize>, error: Error) -> Option<Event> {
        let news = self.aside.is_empty();
        self.aside.extend(lost);
        self.trouble = Some(error.sentence.clone());
        let away = self.away_since.get_or_insert_with(Instant::now).elapsed();
        if away >= self.cache.detach_after && self.share.is_some() {
            return self.detach(&error.sentence);
        }
        if self.renewal.is_none() {
            self.renewal = Some(rest_until(Instant::now() + self.backoff.next()));
        }
        news.then_some(Event::Lost(error))
    }

    /// What comes of a connection that is made beside the batches: the next thing to do beside them.
    pub(super) fn take_renewal(&mut self, outcome: Outcome) -> Option<Work> {
        match outcome {
            Outcome::Rested => Some(self.connecting()),
            Outcome::Connected(connected) => {
                // All of them answer. What is in the air lands first.
                self.renewed = Some(connected);
                self.wake_up();
                None
            }
            Outcome::Failed(error) => {
                self.trouble = Some(error.sentence);
                Some(rest_until(Instant::now() + self.backoff.next()))
            }
            Outcome::Claimed(_) | Outcome::Landed(_) => None,
        }
    }

    fn put_aside(&mut self, tag: &[u8], floor: Lsn) {
        match self.set_aside.tags.size() < self.bound {
            true => self.set_aside.insert(tag, floor),
            false => self.aside_overflow = Some(self.aside_overflow.map_or(floor, |own| own.min(floor))),
        }
    }

    /// There is something else to do than to sleep.
    fn wake_up(&mut self) {
        if self.asleep.take().is_some() {
            self.work = None;
        }
    }

    /// Every master answers, or none is connected: nothing waits apart.
    pub(super) fn no_one_is_silent(&mut self) {
        (self.renewal, self.renewed) = (None, None);
        self.aside.clear();
        if let Some(floor) = self.aside_overflow.take() {
            self.sweeps.want(Scope::everything(), floor);
        }
        let batch = std::mem::take(&mut self.set_aside);
        if let Some(floor) = batch.floor {
            self.next.add(&batch.tags, floor, batch.committed);
        }
    }

    /// What the marker that was found means. A cache that was detached counts again from here on.
    pub(super) fn gap(&mut self, found: Found) -> Option<Gap> {
        let detached = !self.is_attached();
        self.attachment = Attachment::Attached;
        let told = self.written.map_or(self.confirmed, |written| written.done.max(self.confirmed));
        let jumped = std::mem::take(&mut self.jumped);
        let before = found.rules.clone().unwrap_or_default();
        let commit = found.commit.as_ref().and_then(|text| text.parse::<Commit>().ok());
        // Another daemon has judged catalogs meanwhile: what it found is no news any more, and what is remembered here is old.
        let inherits = self.marker.is_inherited(&found) && self.edition > 0;
        if self.written.is_none() && found.replicas.as_deref() == Some(BEHIND) {
            self.followers.suspect(self.began);
        }
        self.has_read = true;
        let uncompared = self.uncompared.take();
        let coverage = (!inherits || uncompared.is_some()).then_some(&self.coverage);
        let gap = self.marker.found(found, told, coverage, jumped);
        let is_compared = uncompared.is_some();
        let gap = gap.or_else(|| {
            let (before, truncated) = uncompared.filter(|_| !inherits)?;
            self.coverage.since(&before, &truncated)
        });
        // One gap of this kind makes up for whatever the marker knows of that history.
        let is_made_up_for = gap.is_some() || self.sweeps.resyncing().is_some_and(|gap| gap.code == REWOUND);
        self.known = commit.filter(|_| !is_made_up_for);
        self.expected = self.known.filter(|commit| commit.end > self.confirmed);
        self.inherited = (inherits && !is_compared && gap.is_none()).then(|| before.clone());
        // What this process wrote was judged by every catalog that it has read since.
        let doubts = if self.marker.is_own() || inherits { Coverage::default() } else { self.coverage.doubts(&before) };
        if gap.is_none() && !doubts.templates.is_empty() {
            self.doubts = Some((doubts, self.covered_at, self.confirmed));
        }
        self.told_edition = None;
        let gap = if detached { Some(Gap::new("detached", "it was away for too long")) } else { gap }?;
        let news = self.sweeps.resyncing().is_none();
        self.make_up_for(gap.clone(), self.position);
        news.then_some(gap)
    }

    fn landed(&mut self, load: Load, flight: Flight) -> Event {
        self.backoff.reset();
        self.proven = true;
        if let Some(floor) = self.refused.overflow() {
            self.sweeps.want(Scope::everything(), floor);
        }
        if self.aside.is_empty() {
            self.away_since = None;
            if self.sweeps.failing().is_zero() && self.refused.len() == 0 {
                self.trouble = None;
            }
        }
        let (sent, committed) = (load.len(), load.first.committed);
        let Load { first, followers, repeats } = load;
        if !followers.is_empty()
            && let Some(batch) = self.followers.done()
        {
            // A reader there may have been computing.
            drop(self.owe_on(batch));
        }
        if !flight.delays_changed
            && let Some(floor) = self.repeats.done(&repeats)
        {
            self.unproven.keep(Batch { tags: repeats.tags, floor: Some(floor), committed: None });
        }
        self.followers.hold(&first, self.end);
        let spare = if first.floor.is_some() { self.owe_on(first) } else { Some(first) };
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
        let (edition, kept) = (self.in_flight.edition.take(), self.in_flight.kept.take());
        self.marked_at = Instant::now();
        match self.marker.answered(answers, complete) {
            Answer::Written => {
                self.written = self.written.max(wanted);
                self.full = false;
                self.told_edition = edition.or(self.told_edition);
                self.told_kept = kept.max(self.told_kept);
                if !self.in_flight.redirected {
                    self.marker.lived(std::mem::take(&mut self.in_flight.lives.before));
                }
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
