//! A lane that cannot send: what it keeps, and when it no longer holds up the others.

use tokio::time::Instant;

use super::super::batch::Batch;
use super::super::connection::{Error, Kind};
use super::super::repeats::Repeats;
use super::refused::Refused;
use super::unproven::{Acknowledged, Unproven};
use super::{Attachment, Event, Flight, Lane};

impl Lane {
    /// More waits than its share, and that is no matter of a moment: it is away, or has been too slow for too long. One that only connects anew
    /// is neither: what arrives meanwhile finds room, or the reader stops for that moment.
    pub(super) fn holds_up_others(&mut self) -> bool {
        let waiting = self.next.tags.size() + self.set_aside.tags.size() + self.refused.size();
        if self.share.is_none_or(|share| waiting <= share) {
            self.over_since = None;
            return false;
        }
        let over = self.over_since.get_or_insert_with(Instant::now).elapsed();
        let away = self.away_since.is_some() && (self.connection.is_none() || !self.aside.is_empty());
        away || over >= self.cache.detach_after
    }

    /// The connection ends: what no marker has proven may be lost by then, and is owed once more. Nothing behind the marker counts as done.
    pub(super) fn owe_again(&mut self) {
        let Some(Acknowledged { batches, scope, .. }) = self.unproven.take() else { return };
        self.progress = self.written;
        for batch in batches {
            self.add(&batch.tags, batch.floor.unwrap_or(self.confirmed), None);
        }
        if let Some(scope) = scope {
            self.sweeps.want(scope, self.written.map_or(self.confirmed, |written| written.done));
        }
    }

    pub(super) fn fail(&mut self, error: Error) -> Event {
        self.trouble = Some(error.sentence.clone());
        self.attempted = true;
        (self.connection, self.behind) = (None, None);
        self.in_flight = Flight::default();
        self.no_one_is_silent();
        self.owe_again();
        self.sweeps.restart();
        self.rest();
        let away = self.away_since.get_or_insert_with(Instant::now).elapsed();
        if ((error.kind == Kind::Refused && self.proven) || away >= self.cache.detach_after)
            && self.share.is_some()
            && let Some(event) = self.detach(&error.sentence)
        {
            return event;
        }
        Event::Down(error)
    }

    /// Batches may go through while a sweep cannot: for as long as it is owed it holds back the others, too.
    pub(super) fn sweep_failed(&mut self, error: Error) -> Event {
        self.trouble = Some(error.sentence.clone());
        let hopeless = (error.kind == Kind::Refused && self.proven) || self.sweeps.failing() >= self.cache.detach_after;
        if !hopeless || self.share.is_none() {
            return Event::Down(error);
        }
        self.detach(&error.sentence).unwrap_or(Event::Down(error))
    }

    /// Nothing is kept for it any more. Its marker is now behind the confirmed position, which is exactly what makes it
    /// swept when it answers again, also after a crash.
    pub(super) fn detach(&mut self, reason: &str) -> Option<Event> {
        if !self.is_attached() {
            return None;
        }
        self.attachment = Attachment::Detached;
        // It counts again by connecting anew.
        self.connection = None;
        self.in_flight = Flight::default();
        self.rest();
        self.no_one_is_silent();
        (self.next, self.unproven, self.refused) = (Batch::default(), Unproven::default(), Refused::default());
        (self.expected, self.inherited) = (None, None);
        self.repeats = Repeats::new(&self.cache.repeat, self.share.unwrap_or_default() / 2);
        self.sweeps.forget();
        self.followers.forget();
        (self.progress, self.written) = (None, None);
        let (cache, address) = (self.cache.name.clone(), self.cache.address());
        Some(Event::Detached(Error { cache, address, sentence: reason.to_owned(), kind: Kind::Away }))
    }
}
