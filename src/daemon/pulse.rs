//! Messages of our own in the log (manual: `pg_logical_emit_message`). The canary measures the way through the log; the nudge
//! brings commits out that nobody has flushed yet. Neither says whether the server lives: behind a big transaction that is not
//! published a canary comes late, and to reconnect because of it would decode the same again, for ever.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::SimpleQueryRow;

use crate::source::PREFIX;
use crate::source::lsn::Lsn;
use crate::source::session::{Answer, Sql};

/// Between two looks at whether something lies unflushed.
const NUDGE: Duration = Duration::from_millis(10);
/// PostgreSQL 17 can flush with the message itself.
const FLUSHES: u32 = 170_000;

/// What is sent, and when.
pub(super) struct Pulse {
    /// Between two canaries.
    interval: Option<Duration>,
    owner: String,
    version: u32,
    /// The canary that is on its way.
    sent: Option<(u64, Instant)>,
    count: u64,
    canary_due: Instant,
    nudge_due: Instant,
    /// A message is being sent; with those who wait for it, if it is a nudge.
    pub(super) running: Option<Answer>,
    nudging: Option<u64>,
    /// For so many who wait what was written has been brought out.
    nudged: u64,
}

impl Pulse {
    pub(super) fn new(interval: Option<Duration>, owner: &str, version: u32) -> Pulse {
        let now = Instant::now();
        Pulse {
            interval,
            owner: owner.to_owned(),
            version,
            sent: None,
            count: 0,
            canary_due: now,
            nudge_due: now,
            running: None,
            nudging: None,
            nudged: 0,
        }
    }

    /// When the next message is due. `always`: all commits are brought out; otherwise those that somebody waits for, so many until now.
    pub(super) fn due(&self, always: bool, arrived: u64) -> Option<Instant> {
        let nudging = always || arrived > self.nudged;
        let canary = self.interval.filter(|_| self.sent.is_none()).map(|_| self.canary_due);
        [canary, nudging.then_some(self.nudge_due)].into_iter().flatten().min()
    }

    /// Sends what is due.
    pub(super) fn send(&mut self, sql: &Sql, arrived: u64) {
        let now = Instant::now();
        if let Some(interval) = self.interval.filter(|_| self.sent.is_none() && self.canary_due <= now) {
            self.count += 1;
            (self.sent, self.canary_due) = (Some((self.count, now)), now + interval);
            let flush = if self.version >= FLUSHES { ", true" } else { "" };
            let word = format!("canary {} {}", self.owner, self.count);
            let query = format!("SELECT pg_logical_emit_message(false, '{PREFIX}', '{word}'{flush})");
            self.running = Some(sql.ask(query));
            return;
        }
        (self.nudge_due, self.nudging) = (now + NUDGE, Some(arrived));
        // Before 17 only a commit flushes: ours waits for no standby, and costs a transaction number.
        let emit = match self.version >= FLUSHES {
            true => format!("SELECT pg_logical_emit_message(false, '{PREFIX}', 'nudge', true)"),
            false => format!("SELECT pg_logical_emit_message(true, '{PREFIX}', 'nudge')"),
        };
        let query = format!(
            "SELECT pg_current_wal_insert_lsn(), CASE WHEN pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn() THEN ({emit})::text END"
        );
        self.running = Some(sql.ask(query));
    }

    /// What was sent has been answered: for so many who wait the log, as far as it was written when they came, is flushed, and where it ends.
    pub(super) fn answered(&mut self, rows: &[SimpleQueryRow]) -> Option<(u64, Lsn)> {
        let arrived = self.nudging.take()?;
        self.nudged = arrived;
        Some((arrived, rows.first()?.get(0)?.parse().ok()?))
    }

    /// It could not be sent: another follows.
    pub(super) fn give_up(&mut self) {
        (self.sent, self.nudging) = (None, None);
    }

    /// Takes a message of the stream; how long the canary took if it is ours: any role can send one, so it is believed only if we have just
    /// sent it.
    pub(super) fn heard(&mut self, prefix: &str, content: &[u8]) -> Option<Duration> {
        let (number, at) = self.sent?;
        if prefix != PREFIX || content != format!("canary {} {number}", self.owner).as_bytes() {
            return None;
        }
        self.sent = None;
        Some(at.elapsed())
    }
}
