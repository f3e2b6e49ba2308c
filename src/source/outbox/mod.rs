//! The second source: a table that triggers fill within the writers' transactions ([`crate::setup::outbox`] makes it).
//!
//! The table is the truth, NOTIFY only wakes. A [`poll`] is one statement that reads what became visible since the snapshot
//! before, never by the rows' numbers: a number that is lower may become visible later (a quarter of the rows of a prototype did).
//! Its rows become the messages that logical replication would have sent ([`frames`]), so nothing above knows the difference. What
//! is done is written into `waltag.progress` ([`progress`]), and rows that every instance is done with are deleted. No transaction
//! stays open meanwhile.
//!
//! A position counts polls: the moment of the first in its upper bits, so those of a later life are higher; in the lower 20 the transactions
//! of one poll.

pub mod frames;
pub mod poll;
pub mod polls;
mod progress;
pub mod shapes;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use self::frames::{Builder, Frame};
use self::poll::Poll;
use self::progress::Progress;
use self::shapes::Shapes;
use super::endpoint::Endpoint;
use super::lsn::Lsn;
use super::replication::error::{Error, Kind, READING_OUTBOX};
use super::replication::slot::{Names, State, verify_primary};
use super::session::{self, Session, Sql, literal};
use super::visibility::Snapshot;
use super::{CRASH_MARKS, Hear, MESSAGES, Server, Source, Stream, deliver, first_fit};
use crate::cache::gap::Gap;
use crate::exit::Exit;
use crate::flow::Flow;
use crate::settings::Settings;

/// The channel that writers notify.
const CHANNEL: &str = "waltag";

/// Polls, and what came of them.
pub struct Outbox {
    poll: Poll,
    progress: Progress,
    shapes: Shapes,
    /// Reads and writes the tables: an answer of this session that is not taken yet must not hold up the other's.
    reader: Session,
    /// A session of its own: one that listens within a transaction keeps the queue of notifications from being trimmed.
    listener: Option<Session>,
    builder: Builder,
    frames: VecDeque<Frame>,
    place: String,
    /// The loop knows that this position was written down.
    told_kept: Lsn,
    interval: Duration,
    /// When the next poll begins; after a notification at once, or when the server has rested from the last for as long as that took: many
    /// writers would make it do nothing else.
    due: Instant,
    begun: Instant,
    rested: Instant,
    /// What the last poll that is complete saw, and its position.
    polled: Option<(Snapshot, Lsn)>,
}

impl Stream for Outbox {
    /// A poll reads what is visible.
    const FENCED: bool = false;
    const LOGGED: bool = false;

    async fn open(settings: &Settings, owner: &str) -> Result<Source<Outbox>, Error> {
        first_fit(&settings.dsn, async |endpoint| open_at(endpoint, settings, owner).await).await
    }

    async fn start(
        &mut self,
        _session: &Session,
        _settings: &Settings,
        received: Lsn,
        renew: Option<Lsn>,
    ) -> Result<Lsn, Error> {
        if renew.is_some_and(|position| self.progress.confirmed() <= position) {
            tracing::warn!("what is in the outbox is passed over: it cannot be read. Everything goes stale");
            self.progress.pass_over(received).await.map_err(|error| self.failed("passing over the outbox", error))?;
            self.poll = Poll::new(&self.reader, &self.progress);
        }
        self.poll.goes_on_behind(received);
        Ok(self.progress.confirmed())
    }

    async fn next(&mut self, room: bool) -> Result<(), Error> {
        loop {
            if room && !self.frames.is_empty() {
                return Ok(());
            }
            if room && self.poll.wants_more() {
                self.poll.go_on();
            }
            let polling = self.poll.is_running() || self.shapes.is_running();
            tokio::select! {
                biased;
                told = self.progress.work() => {
                    if let Some(number) = told.map_err(|error| self.failed("writing the progress", error))? {
                        self.poll.has_emptied(number);
                    }
                    if self.told_kept < self.progress.kept() {
                        // The markers are to say so.
                        self.told_kept = self.progress.kept();
                        return Ok(());
                    }
                }
                // An answer that nobody takes would hold up those behind it.
                rows = self.poll.answer(), if self.poll.is_running() => {
                    rows.map_err(|error| Error::session(READING_OUTBOX, &self.place, &error))?;
                    self.shapes.learn(self.poll.relations());
                }
                learnt = self.shapes.answer(), if self.shapes.is_running() => {
                    learnt.map_err(|error| Error::session("reading the shape of a table", &self.place, &error))?;
                }
                woken = listen(&mut self.listener), if room && !polling => {
                    woken.map_err(|error| Error::session("listening", &self.place, &error))?;
                    self.due = Instant::now().max(self.rested);
                }
                () = sleep_until(self.due), if room && !polling && !self.poll.has_rows() => {
                    self.poll.begin();
                    self.begun = Instant::now();
                    self.due = Instant::now() + self.interval;
                }
            }
            if !self.poll.is_running() && !self.shapes.is_running() && self.poll.has_rows() {
                self.build();
                // The next page comes while this one is taken; without room it waits for it.
                if room && self.poll.wants_more() {
                    self.poll.go_on();
                }
            }
        }
    }

    fn take(&mut self, flow: &mut Flow, heard: &mut Hear<'_>) -> Result<(), Error> {
        for _ in 0..MESSAGES {
            match self.frames.pop_front() {
                None => break,
                Some(Frame::Data(data)) => deliver(&data, flow, heard)?,
                Some(Frame::Complete(seen)) => {
                    flow.keepalive(seen.position);
                    self.polled = Snapshot::parse(&seen.snapshot).map(|snapshot| (snapshot, seen.position));
                    self.progress.complete(seen);
                }
                Some(Frame::Root(relation, root)) => flow.relations.belongs_to(relation, root),
                Some(Frame::Logged(log)) => flow.logged_before(log),
                Some(Frame::Skipped) => {
                    flow.resync(&Gap::new("outbox_full", "the outbox was full, and changes were not written down"));
                    self.progress.empty();
                }
                Some(Frame::Lost) => {
                    flow.resync(&Gap::new("lost_table", "rows of a table arrived that is not there any more"));
                }
            }
        }
        Ok(())
    }

    fn past(names: &Names) -> String {
        format!(
            "(SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8 - pg_snapshot_xmin(done)::text::int8 FROM waltag.progress \
             WHERE instance = {})",
            literal(&names.slot)
        )
    }

    fn confirm(&mut self, position: Lsn) {
        self.progress.confirm(position);
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    async fn tell(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn finish(&mut self, position: Option<Lsn>) -> Result<(), Error> {
        position.into_iter().for_each(|position| self.progress.confirm(position));
        self.poll.forget();
        self.shapes.forget();
        self.progress.leave().await.map_err(|error| self.failed("writing the progress", error))
    }

    async fn end(&self, _session: &Session) -> Result<Lsn, Error> {
        Ok(self.poll.horizon())
    }

    fn horizon(&self) -> Option<Lsn> {
        Some(self.poll.horizon())
    }

    fn kept(&self) -> Option<Lsn> {
        Some(self.progress.kept())
    }

    fn polled(&self) -> Option<&(Snapshot, Lsn)> {
        self.polled.as_ref()
    }

    fn wake(&mut self) {
        self.due = self.due.min(Instant::now());
    }

    async fn state(sql: Sql, _names: &Names) -> Result<Option<State>, session::Error> {
        let rows = sql.rows("SELECT waltag.measure_outbox(), waltag.outbox_limit()").await?;
        let number = |index: usize| rows.first()?.get(index)?.parse().ok();
        Ok(Some(State { outbox: number(0), outbox_limit: number(1), ..State::default() }))
    }

    async fn close(self, _limit: Duration) {}
}

impl Outbox {
    /// Makes frames of the rows that have come.
    fn build(&mut self) {
        let begin = self.poll.position();
        let page = self.poll.take_page();
        self.builder.build(page, self.shapes.known(), begin, &mut self.frames);
        if self.poll.is_complete() {
            self.rested = Instant::now() + self.begun.elapsed();
        }
    }

    fn failed(&self, doing: &str, error: progress::Error) -> Error {
        match error {
            progress::Error::Lost => Error {
                sentence: format!("another daemon has taken over the outbox at {}", self.place),
                kind: Kind::Standby,
            },
            progress::Error::Session(error) => Error::session(doing, &self.place, &error),
        }
    }
}

async fn listen(listener: &mut Option<Session>) -> Result<(), session::Error> {
    match listener {
        Some(listener) => listener.notified().await,
        None => std::future::pending().await,
    }
}

async fn open_at(endpoint: &Endpoint, settings: &Settings, owner: &str) -> Result<Source<Outbox>, Error> {
    let (place, name) = (endpoint.to_string(), &settings.names.slot);
    let open = async || {
        let session = match settings.no_listen {
            true => Session::open_pooled(endpoint, name).await,
            false => Session::open(endpoint, name).await,
        };
        session.map_err(|error| Error::session("connecting", &place, &error))
    };
    let (session, catalog, reader) = (open().await?, open().await?, open().await?);
    let failed = |error| Error::session("reading the server's state", &place, &error);
    // Nothing is asked of a table, or of a function, before it is known whose it is: a view of a stranger's would run as us.
    let query = "SELECT current_setting('server_version_num'), pg_is_in_recovery(), \
        (SELECT count(*) = 3 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'waltag' \
           AND (c.relname, c.relkind::text) IN (('outbox', 'r'), ('progress', 'r'), ('bloat', 'S'))), current_setting('server_encoding'), \
        (SELECT (o.rolsuper OR o.rolname = current_user OR n.nspowner IN (SELECT datdba FROM pg_database WHERE datname = current_database()) \
           OR EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid \
             WHERE p.pronamespace = n.oid AND c.relowner = n.nspowner)) \
           AND NOT EXISTS (SELECT FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.relnamespace = n.oid AND c.relowner <> n.nspowner AND NOT r.rolsuper) \
           AND NOT EXISTS (SELECT FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner WHERE p.pronamespace = n.oid AND p.proowner <> n.nspowner AND NOT r.rolsuper) \
         FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner WHERE n.nspname = 'waltag')";
    let rows = session.rows(query).await.map_err(failed)?;
    let field = |index: usize| rows.first().and_then(|row| row.get(index)).unwrap_or_default();
    let config = |sentence: String| Err(Error::permanent(Exit::Config, sentence));
    let version = verify_primary(field(0), field(1), &place)?;
    if field(3) == "SQL_ASCII" {
        return config(format!(
            "the database at {place} is SQL_ASCII: nobody knows which characters its texts are made of"
        ));
    }
    if field(2) == "t" && field(4) != "t" {
        return config(format!(
            "the schema `waltag` at {place}, or what stands in it, belongs to a role that owns neither the database nor a table with waltag's triggers: nothing of it is run"
        ));
    }
    if field(2) != "t" {
        return config(format!(
            "there is no outbox in this database at {place}; create it with `waltag setup --source outbox --apply` as the database's owner"
        ));
    }
    // `pg_control_checkpoint()` lags behind a promotion; a file name does not.
    // A slot belongs to a server, an outbox to a database.
    let query = format!(
        "SELECT concat(system_identifier, '.', (SELECT oid FROM pg_database WHERE datname = current_database())), \
         ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int, {CRASH_MARKS}, pg_current_wal_insert_lsn() \
         FROM pg_control_system()"
    );
    let rows = session.rows(&query).await.map_err(failed)?;
    let field = |index: usize| rows.first().and_then(|row| row.get(index)).unwrap_or_default().to_owned();
    let log = field(3).parse().unwrap_or_default();
    let server = Server { system: field(0), version, timeline: field(1), crash: field(2), log };
    let progress = Progress::take(&reader, name, owner, settings.no_listen).await;
    let progress = progress.map_err(|error| Error::session("taking the outbox", &place, &error))?;
    let Some(progress) = progress else {
        let sentence = format!("another daemon works on the outbox at {place}");
        return Err(Error { sentence, kind: Kind::Standby });
    };
    let listener = match settings.no_listen {
        true => None,
        false => {
            let failed = |error| Error::session("listening", &place, &error);
            let listener = Session::open(endpoint, name).await.map_err(failed)?;
            listener.execute(&format!("LISTEN {CHANNEL}")).await.map_err(failed)?;
            Some(listener)
        }
    };
    let stream = Outbox {
        poll: Poll::new(&reader, &progress),
        shapes: Shapes::new(&reader),
        progress,
        reader,
        listener,
        builder: Builder::default(),
        frames: VecDeque::new(),
        place: place.clone(),
        told_kept: Lsn(0),
        interval: settings.poll,
        due: Instant::now(),
        begun: Instant::now(),
        rested: Instant::now(),
        polled: None,
    };
    Ok(Source { session, catalog, server, place, stream })
}
