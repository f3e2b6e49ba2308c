//! PostgreSQL's timestamps on the wire: microseconds since 2000-01-01 UTC.

use std::time::{Duration, SystemTime};

/// Microseconds between the Unix epoch and PostgreSQL's.
const EPOCH: u64 = 946_684_800_000_000;

/// A moment by the clock of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// By our own clock.
    pub fn now() -> Timestamp {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp((now.as_micros() as u64).saturating_sub(EPOCH))
    }

    /// How long ago that is by our own clock; zero if the server's is ahead.
    pub fn elapsed(self) -> Duration {
        Duration::from_micros(Timestamp::now().0.saturating_sub(self.0))
    }
}
