//! What we tell the walsender, and when: every second even while nothing is read, soon after a position was confirmed,
//! and when asked, but never in a storm (a server that shuts down asks 10,000 times a second).

use std::time::Duration;

use tokio::time::Instant;

use super::connection::{Connection, Error};
use crate::source::lsn::Lsn;

/// The server ends a stream that is silent for `wal_sender_timeout`, which ours sets to 5 s.
const INTERVAL: Duration = Duration::from_secs(1);
/// After a confirmation; group commits arrive faster than anybody needs to know.
const AFTER_CONFIRMATION: Duration = Duration::from_millis(10);
/// Between two answers to keepalives that ask.
const AFTER_REQUEST: Duration = Duration::from_millis(100);
/// After this much silence we ask for an answer ourselves.
const ASK_AFTER: Duration = Duration::from_secs(10);

/// The state of our answers on one connection.
pub struct Feedback {
    received: Lsn,
    confirmed: Lsn,
    told: Lsn,
    asked: bool,
    last: Instant,
    heard: Instant,
}

impl Feedback {
    /// Starts with what the caches have acknowledged already.
    pub fn new(confirmed: Lsn) -> Feedback {
        Feedback {
            received: confirmed,
            confirmed,
            told: Lsn(0),
            asked: false,
            last: Instant::now(),
            heard: Instant::now(),
        }
    }

    /// The stream has brought everything up to here.
    pub fn received(&mut self, position: Lsn) {
        self.received = self.received.max(position);
    }

    /// Everything up to here may be forgotten by the server. Never goes back.
    pub fn confirm(&mut self, position: Lsn) {
        self.confirmed = self.confirmed.max(position);
        self.received = self.received.max(position);
    }

    /// A keepalive asked for an answer.
    pub fn requested(&mut self) {
        self.asked = true;
    }

    /// The server said something, or is not listened to: it is not silent.
    pub fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// How long the server has said nothing although it was asked.
    pub fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// When the next update is due.
    pub fn due(&self) -> Instant {
        let wait = match (self.confirmed > self.told, self.asked) {
            (true, _) => AFTER_CONFIRMATION,
            (false, true) => AFTER_REQUEST,
            (false, false) => INTERVAL,
        };
        self.last + wait
    }

    /// Sends an update.
    pub async fn send(&mut self, connection: &mut Connection) -> Result<(), Error> {
        connection.status(self.received, self.confirmed, self.silence() > ASK_AFTER).await?;
        self.told = self.confirmed;
        self.asked = false;
        self.last = Instant::now();
        Ok(())
    }
}
