//! How far this instance is, in `waltag.progress`: one row, which also says who is at work. Written before rows are deleted, so that a daemon
//! that starts finds either.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::poll::{BY_INDEX, SKIPPED, WITHIN, WRITES, least_since};
use super::polls::{Polls, Seen};
use crate::source::lsn::Lsn;
use crate::source::session::{self, Answer, Session, Sql, literal};

/// Something was done: it is written after this time at the latest.
const AFTER_CONFIRMATION: Duration = Duration::from_millis(100);
/// Nothing was: a sign of life.
const SIGN: Duration = Duration::from_secs(1);
/// A daemon that gives none for so long is gone.
const LEASE: &str = "5 seconds";
/// All rows are looked at this often.
const WHOLE: Duration = Duration::from_secs(600);
/// Seconds since 2020: with 32 bits behind them they fit until 2088.
const MOMENT: &str = "(extract(epoch FROM clock_timestamp())::int8 - 1577836800)";
/// A table that could not be emptied, because a transaction has written or read it, is tried again after this time, doubling ...
const EMPTY_AGAIN: Duration = Duration::from_secs(5);
/// ... to this.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// Rows that one statement deletes.
const PORTION: usize = 10_000;

/// Why the progress was not written.
#[derive(Debug)]
pub enum Error {
    /// Somebody else is at work.
    Lost,
    /// The session.
    Session(session::Error),
}

impl From<session::Error> for Error {
    fn from(error: session::Error) -> Error {
        Error::Session(error)
    }
}

/// What stands there, and what is to be written.
pub struct Progress {
    sql: Sql,
    instance: String,
    owner: String,
    snapshot: String,
    position: Lsn,
    first_poll: u64,
    /// How often writers had found the outbox full, as far as that was made up for.
    skipped: i64,
    /// The outbox is full: when it is to be emptied.
    full: Option<Instant>,
    /// Between two attempts.
    rest: Duration,
    /// Polls that are complete and not confirmed.
    polls: Polls,
    /// Confirmed since the row was written.
    news: bool,
    /// Rows may be left that everybody is done with.
    deletable: bool,
    /// What was done when it was written last, and when everything was deleted that could be: a scan from the very beginning would walk over
    /// all that a long transaction keeps from being vacuumed.
    written: String,
    /// The position that is being written, and the one that was.
    writing_position: Lsn,
    kept: Lsn,
    deleted: Option<String>,
    /// There was nothing left to delete once.
    cleared: bool,
    /// When it was from the very beginning: somebody may take away an instance that held rows back.
    swept: Instant,
    running: Option<(Doing, Answer)>,
    last: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Writing,
    Deleting,
    Emptying,
}

impl Progress {
    /// Takes the instance over, unless another daemon is at work: nothing then. `pooled`: who answers is not who asked, so only time tells.
    pub async fn take(
        sql: &Session,
        instance: &str,
        owner: &str,
        pooled: bool,
    ) -> Result<Option<Progress>, session::Error> {
        let (name, owner_text) = (literal(instance), literal(owner));
        // The moment in the upper bits: a marker of an installation before is behind, and so a gap.
        sql.execute(&format!(
            "{WRITES} INSERT INTO waltag.progress (instance, position, done, skipped) \
             VALUES ({name}, {MOMENT} << 32, pg_current_snapshot(), {SKIPPED}) ON CONFLICT DO NOTHING"
        ))
        .await?;
        // What came with a dump is of another server's transactions, which this one has yet to see.
        let dumped = "DELETE FROM waltag.outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())";
        sql.execute(&format!("{WRITES} {dumped}")).await?;
        let who = if pooled {
            "NULL::int, NULL::timestamptz"
        } else {
            "pg_backend_pid(), (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())"
        };
        let foreign = "pg_snapshot_xmax(done) > pg_snapshot_xmax(pg_current_snapshot())";
        let query = format!(
            "{WRITES} UPDATE waltag.progress p SET done = CASE WHEN {foreign} THEN pg_current_snapshot() ELSE done END, \
             position = CASE WHEN {foreign} THEN greatest(position, {MOMENT} << 32) ELSE position END, owner = {owner_text}, at = clock_timestamp(), (pid, begun) = (SELECT {who}) WHERE instance = {name} \
             AND (owner IN ('', {owner_text}) OR at NOT BETWEEN clock_timestamp() - interval '{LEASE}' AND clock_timestamp() + interval '{LEASE}' OR (pid IS NOT NULL AND NOT EXISTS \
               (SELECT FROM pg_stat_activity a WHERE a.pid = p.pid AND (a.backend_start IS NULL OR a.backend_start = p.begun)))) \
             RETURNING position, done::text, greatest(position >> {WITHIN}, {MOMENT} << 12) + 1, skipped"
        );
        let rows = sql.rows(&query).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let number = |index: usize| row.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        Ok(Some(Progress {
            sql: (**sql).clone(),
            instance: instance.to_owned(),
            owner: owner.to_owned(),
            snapshot: row.get(1).unwrap_or_default().to_owned(),
            position: Lsn(number(0)),
            first_poll: number(2),
            skipped: row.get(3).and_then(|text| text.parse().ok()).unwrap_or_default(),
            full: None,
            rest: EMPTY_AGAIN,
            polls: Polls::default(),
            news: false,
            deletable: true,
            written: row.get(1).unwrap_or_default().to_owned(),
            writing_position: Lsn(number(0)),
            kept: Lsn(number(0)),
            deleted: None,
            cleared: false,
            swept: Instant::now(),
            running: None,
            last: Instant::now(),
        }))
    }

    /// What is in the outbox now is passed over. The position goes ahead of every marker, so each cache finds a gap: ahead of what this process has
    /// `received`, and of the clock.
    pub async fn pass_over(&mut self, received: Lsn) -> Result<(), Error> {
        let ahead = ((received.0 >> WITHIN) + 1) << WITHIN;
        let (instance, owner) = (literal(&self.instance), literal(&self.owner));
        let query = format!(
            "{WRITES} UPDATE waltag.progress SET done = pg_current_snapshot(), position = greatest(position + (1 << {WITHIN}), {ahead}, {MOMENT} << 32), \
             at = clock_timestamp() WHERE instance = {instance} AND owner = {owner} \
             RETURNING position, done::text, (position >> {WITHIN}) + 1"
        );
        let rows = self.sql.rows(&query).await?;
        let row = rows.first().ok_or(Error::Lost)?;
        let number = |index: usize| row.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        (self.position, self.first_poll) = (Lsn(number(0)), number(2));
        self.kept = self.position;
        self.snapshot = row.get(1).unwrap_or_default().to_owned();
        Ok(())
    }

    /// What was done when it was taken over, or written last.
    pub fn confirmed(&self) -> Lsn {
        self.position
    }

    /// The position that the database has.
    pub fn kept(&self) -> Lsn {
        self.kept
    }

    /// Everything visible in it is done.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }

    /// The number of the next poll: higher than that of any before, also of those that nobody wrote down.
    pub fn first_poll(&self) -> u64 {
        self.first_poll
    }

    /// How often writers had found the outbox full, as far as that was made up for.
    pub fn skipped(&self) -> i64 {
        self.skipped
    }

    /// A poll was handed over as a whole.
    pub fn complete(&mut self, seen: Seen) {
        self.polls.add(seen);
    }

    /// The outbox is full, and everything is being made stale: what is in it is not needed any more, by no instance.
    pub fn empty(&mut self) {
        self.full.get_or_insert_with(Instant::now);
    }

    /// Everything up to here is done.
    pub fn confirm(&mut self, position: Lsn) {
        let Some(Seen { position, snapshot, skipped }) = self.polls.done(position) else { return };
        self.news |= self.snapshot != snapshot || self.skipped != skipped;
        (self.position, self.snapshot, self.skipped) = (position, snapshot, skipped);
    }

    /// Writes what was confirmed, and deletes. Ready after each statement, with what the sequence says if the outbox was emptied. Cancel-safe.
    pub async fn work(&mut self) -> Result<Option<i64>, Error> {
        if self.running.is_none() {
            let wait = if self.news { AFTER_CONFIRMATION } else { SIGN };
            let full = self.full.is_some_and(|since| since <= Instant::now());
            if !self.deletable && !full {
                sleep_until(self.last + wait).await;
            }
            // However much there is to delete, the sign of life comes in between.
            let write = self.last.elapsed() >= SIGN || (!self.deletable && !full);
            self.running = Some(match (write, full) {
                (true, _) => (Doing::Writing, self.sql.ask(self.writing(&self.owner))),
                (false, true) => (Doing::Emptying, self.sql.ask(format!("{WRITES} SELECT waltag.empty_outbox()"))),
                (false, false) => (Doing::Deleting, self.sql.ask(self.deletion())),
            });
            if write {
                (self.deletable, self.news) = (self.deletable || self.news, false);
                self.written.clone_from(&self.snapshot);
                self.writing_position = self.position;
            }
        }
        let Some((doing, running)) = &mut self.running else { return Ok(None) };
        let doing = *doing;
        let answer = running.await;
        self.running = None;
        let rows = answer?;
        match doing {
            Doing::Writing => {
                self.last = Instant::now();
                self.kept = self.writing_position;
                if rows.is_empty() { Err(Error::Lost) } else { Ok(None) }
            }
            Doing::Emptying => {
                let number = rows.first().and_then(|row| row.get(0)).and_then(|text| text.parse::<i64>().ok());
                // Whoever reads or writes the table keeps it locked, and those behind us wait with us.
                self.rest = if number.is_some() { EMPTY_AGAIN } else { (self.rest * 2).min(LONGEST_REST) };
                self.full = number.is_none().then(|| Instant::now() + self.rest);
                Ok(number.filter(|number| *number > 0))
            }
            Doing::Deleting => {
                let deleted = rows.first().and_then(|row| row.get(0)).and_then(|text| text.parse::<usize>().ok());
                let deleted = deleted.unwrap_or_default();
                // The daemon before may still be deleting the same rows: at first only none are all.
                self.cleared |= deleted == 0;
                self.deletable = deleted >= if self.cleared { PORTION } else { 1 };
                if !self.deletable && self.swept.elapsed() > WHOLE {
                    (self.deleted, self.swept) = (None, Instant::now());
                } else if !self.deletable {
                    self.deleted = Some(self.written.clone());
                }
                Ok(None)
            }
        }
    }

    /// The last words: what was confirmed, and that nobody is at work.
    pub async fn leave(&mut self) -> Result<(), Error> {
        self.running = None;
        let rows = self.sql.rows(&self.writing("")).await?;
        if rows.is_empty() { Err(Error::Lost) } else { Ok(()) }
    }

    fn writing(&self, owner: &str) -> String {
        format!(
            "{WRITES} UPDATE waltag.progress SET position = {}, done = '{}', skipped = {}, owner = {}, at = clock_timestamp() \
             WHERE instance = {} AND owner = {} RETURNING 1",
            self.position.0,
            self.snapshot,
            self.skipped,
            literal(owner),
            literal(&self.instance),
            literal(&self.owner)
        )
    }

    /// What every instance is done with. Whoever is done last deletes, so each looks at what it has done since.
    fn deletion(&self) -> String {
        let since = self.deleted.as_ref().map(|snapshot| format!("xid >= ({}) AND", least_since(snapshot)));
        let since = since.unwrap_or_default();
        format!(
            "{WRITES} {BY_INDEX} WITH gone AS (DELETE FROM waltag.outbox WHERE (xid, id) IN (SELECT xid, id FROM waltag.outbox o \
             WHERE {since} xid < (SELECT pg_snapshot_xmax(done) FROM waltag.progress ORDER BY 1 LIMIT 1) \
             AND NOT EXISTS (SELECT FROM waltag.progress p WHERE NOT pg_visible_in_snapshot(o.xid, p.done)) \
             ORDER BY xid, id LIMIT {PORTION}) RETURNING 1) SELECT count(*) FROM gone"
        )
    }
}
