//! The stream: a SQL session and a replication connection to one primary, opened together, lost together.

pub mod authentication;
pub mod connection;
pub mod creation;
pub mod error;
pub mod feedback;
pub mod oversized;
pub mod pgoutput;
pub mod relations;
pub mod slot;

use std::future::pending;
use std::time::Duration;

use tokio::time::Instant;

use super::dsn::Dsn;
use super::endpoint::Endpoint;
use super::lsn::Lsn;
use super::session::{self, PINNED, Session, Sql, UNLIMITED, literal, quoted};
use super::{CRASH_MARKS, Hear, MESSAGES, Server, Source, Stream, deliver, first_fit};
use crate::cache::gap::Gap;
use crate::exit::Exit;
use crate::flow::Flow;
use crate::settings::Settings;
use connection::{Connection, Frame};
use creation::Wish;
use error::Error;
use feedback::Feedback;
use slot::{Mode, Names, State};

/// `wal_sender_timeout` of our stream: a daemon that died without a word frees its slot after this long. Any role may set
/// it for itself.
const WAL_SENDER_TIMEOUT: &str = "5s";

/// The first version that keeps a slot on its standbys.
const FAILOVER_SLOTS: u32 = 170_000;

/// The stream of a slot.
pub struct Replication {
    /// Carries it.
    pub connection: Connection,
    /// What the server is told.
    pub feedback: Feedback,
    /// The slot that it reads.
    pub slot: String,
    place: String,
    /// `server_version_num`.
    version: u32,
    /// The publication of inserts is streamed, too.
    inserts: bool,
    /// It has arrived, and nobody has taken it.
    frame: Option<Frame>,
}

/// Opens all connections to the first host that is a primary and fit to be streamed from. `own`: the slot itself is wanted, so nobody else may be
/// reading it.
pub async fn open(dsn: &Dsn, names: &Names, lock_timeout: Duration, own: bool) -> Result<Source<Replication>, Error> {
    first_fit(dsn, async |endpoint| open_at(endpoint, names, lock_timeout, own).await).await
}

async fn open_at(
    endpoint: &Endpoint,
    names: &Names,
    lock_timeout: Duration,
    own: bool,
) -> Result<Source<Replication>, Error> {
    let place = endpoint.to_string();
    let session = Session::open(endpoint, &names.slot).await;
    let session = session.map_err(|error| Error::session("connecting", &place, &error))?;
    let version = slot::verify_server(&session, names, &place).await?;
    slot::verify_publication(&session, names, &place).await?;
    if own {
        creation::verify_free(&session, names, &place).await?;
    }
    let catalog = open_catalog(endpoint, &session, names, lock_timeout, &place).await?;
    let mut connection = connect(endpoint, &session, names, &place).await?;
    let identified = connection.query("IDENTIFY_SYSTEM").await;
    let identified = identified.map_err(|error| Error::stream("IDENTIFY_SYSTEM", &place, &error))?;
    let field = |index: usize| identified.first().and_then(|row| row.get(index)?.clone()).unwrap_or_default();
    let crash = session.value(&format!("SELECT {CRASH_MARKS}")).await;
    let crash = crash.map_err(|error| Error::session("reading the crash mark", &place, &error))?.unwrap_or_default();
    let log = field(2).parse().unwrap_or_default();
    let server = Server { system: field(0), version, timeline: field(1), crash, log };
    let (feedback, slot) = (Feedback::new(Lsn(0)), names.slot.clone());
    let stream = Replication { connection, feedback, slot, place: place.clone(), version, inserts: false, frame: None };
    Ok(Source { session, catalog, server, place, stream })
}

/// The session that reads the catalog, to the same server.
async fn open_catalog(
    endpoint: &Endpoint,
    session: &Session,
    names: &Names,
    lock_timeout: Duration,
    place: &str,
) -> Result<Session, Error> {
    let failed = |error| Error::session("connecting", place, &error);
    let catalog = Session::open(endpoint, &names.slot).await.map_err(failed)?;
    // A migration that holds a lock on a table of ours must not hold up the whole start.
    catalog.execute(&format!("SET lock_timeout = {}", lock_timeout.as_millis())).await.map_err(failed)?;
    let (ours, theirs) = (session.value(WHO).await.map_err(failed)?, catalog.value(WHO).await.map_err(failed)?);
    match ours == theirs {
        true => Ok(catalog),
        false => Err(two_servers(place)),
    }
}

/// Which server answers.
const WHO: &str = "SELECT pg_postmaster_start_time()::text || ' ' || pg_is_in_recovery()::text";

fn two_servers(place: &str) -> Error {
    Error::away(format!("{place} leads to two servers; all our connections must reach the same one"))
}

/// A replication connection beside a session, to the same server.
async fn connect(endpoint: &Endpoint, session: &Session, names: &Names, place: &str) -> Result<Connection, Error> {
    let mut settings = PINNED.to_vec();
    settings.extend([("wal_sender_timeout", WAL_SENDER_TIMEOUT), ("application_name", names.slot.as_str())]);
    // From the first moment: a role's limit may be shorter than the way to our first query.
    settings.push(("idle_session_timeout", "0"));
    let connecting = Connection::open(endpoint, &settings);
    let limit = endpoint.connect_timeout();
    let connection = tokio::time::timeout(limit, connecting)
        .await
        .map_err(|_| Error::away(format!("{place} does not answer a replication connection within {limit:?}")))?;
    let mut connection = connection.map_err(|error| replication_refused(place, &error))?;
    verify_same_server(session, &mut connection, place).await?;
    Ok(connection)
}

/// Would `run` get its stream here? Nothing is made or taken.
pub async fn probe(endpoint: &Endpoint, session: &Session, names: &Names) -> Result<(), Error> {
    let place = endpoint.to_string();
    slot::verify_server(session, names, &place).await?;
    let mut connection = connect(endpoint, session, names, &place).await?;
    let identified = connection.query("IDENTIFY_SYSTEM").await;
    identified.map(drop).map_err(|error| Error::stream("IDENTIFY_SYSTEM", &place, &error))
}

/// A name with several addresses, or a proxy during a switchover, can lead to two servers; the fence would then ask one
/// about the other's transactions.
async fn verify_same_server(session: &Session, connection: &mut Connection, place: &str) -> Result<(), Error> {
    let ours = session.value(WHO).await.map_err(|error| Error::session("comparing both connections", place, &error))?;
    let failed = |error| Error::stream("comparing both connections", place, &error);
    connection.query(UNLIMITED).await.map_err(failed)?;
    let theirs = connection.query(WHO).await.map_err(failed)?.into_iter().flatten().next().flatten();
    match ours == theirs {
        true => Ok(()),
        false => Err(two_servers(place)),
    }
}

/// A pooler that does not know replication may just hang up.
fn replication_refused(place: &str, error: &connection::Error) -> Error {
    match error {
        connection::Error::Ended => {
            Error::away(format!("{place} closed the replication connection. If it stays so: {}", error::POOLER))
        }
        error => Error::stream("opening the replication connection", place, error),
    }
}

impl Replication {
    /// Reads a temporary copy of the slot, which is gone with the connection.
    pub async fn read_a_copy(&mut self) -> Result<(), Error> {
        self.slot = creation::copy(&mut self.connection, &self.slot, &self.place).await?;
        Ok(())
    }

    /// START_REPLICATION at 0/0: the server goes on from the position that was confirmed last. The publication of inserts is
    /// streamed if it is there; so is what is put into the log by itself: tags that SQL names, and our own canary.
    pub async fn begin(&mut self, session: &Session, names: &Names) -> Result<(), Error> {
        let inserts = slot::inserts_of(&names.publication);
        let query = format!("SELECT 1 FROM pg_publication WHERE pubname = {}", literal(&inserts));
        let found = session.value(&query).await;
        let found = found.map_err(|error| Error::session("looking for the publications", &self.place, &error))?;
        self.inserts = found.is_some();
        let mut publications = quoted(&names.publication);
        if self.inserts {
            publications = format!("{publications},{}", quoted(&inserts));
        }
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names '{}', messages 'true')",
            quoted(&self.slot),
            // Commands of replication know no escapes but this (repl_scanner.l).
            publications.replace('\'', "''")
        );
        let started = self.connection.start_replication(&command).await;
        started.map_err(|error| Error::stream("starting the stream", &self.place, &error))
    }

    /// Where the server goes on: the slot is ours now, nobody else can move it.
    async fn confirmed(&self, session: &Session, names: &Names) -> Result<Lsn, Error> {
        let query = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = {}",
            literal(&names.slot)
        );
        let value = session.value(&query).await;
        let value = value.map_err(|error| Error::session("reading the slot", &self.place, &error))?;
        Ok(value.and_then(|text| text.parse().ok()).unwrap_or_default())
    }

    fn deliver(&mut self, frame: Frame, flow: &mut Flow, heard: &mut Hear<'_>) -> Result<(), Error> {
        match frame {
            Frame::Keepalive { end, reply } => {
                self.feedback.received(end);
                flow.keepalive(end);
                if reply {
                    self.feedback.requested();
                }
                Ok(())
            }
            Frame::Notice(notice) => {
                tracing::error!("the server says: {notice}");
                // PostgreSQL 18 goes on without a publication that was dropped, and sends nothing of what it would have.
                if notice.message.contains("skipped loading publication") {
                    flow.resync(&Gap::new("publication_skipped", "the server skipped the publication"));
                }
                Ok(())
            }
            Frame::XLogData { end, data } => {
                self.feedback.received(end);
                deliver(&data, flow, heard)
            }
        }
    }
}

impl Stream for Replication {
    /// The commit record comes before other sessions see the rows.
    const FENCED: bool = true;
    const LOGGED: bool = true;

    async fn open(settings: &Settings, _owner: &str) -> Result<Source<Replication>, Error> {
        open(&settings.dsn, &settings.names, settings.lock_timeout, true).await
    }

    async fn start(
        &mut self,
        session: &Session,
        settings: &Settings,
        _received: Lsn,
        renew: Option<Lsn>,
    ) -> Result<Lsn, Error> {
        let Settings { names, lock_timeout, slot_mode, max_retained_wal, .. } = settings;
        if *slot_mode == Mode::Failover && self.version < FAILOVER_SLOTS {
            let place = &self.place;
            let sentence = format!("{place} knows no failover slots: --slot-mode failover needs PostgreSQL 17");
            return Err(Error::permanent(Exit::Config, sentence));
        }
        let wish = Wish { mode: *slot_mode, renew, max_retained: *max_retained_wal, lock_timeout: *lock_timeout };
        creation::ensure(&mut self.connection, session, names, wish, &self.place).await?;
        self.begin(session, names).await?;
        let confirmed = self.confirmed(session, &settings.names).await?;
        self.feedback = Feedback::new(Lsn(0));
        Ok(confirmed)
    }

    async fn next(&mut self, room: bool) -> Result<(), Error> {
        if !room {
            return pending().await;
        }
        if self.frame.is_none() {
            self.frame = Some(self.connection.next().await.map_err(|error| self.failed(&error))?);
        }
        self.feedback.heard();
        Ok(())
    }

    fn take(&mut self, flow: &mut Flow, heard: &mut Hear<'_>) -> Result<(), Error> {
        for _ in 0..MESSAGES {
            let Some(frame) = self.frame.take() else { break };
            self.deliver(frame, flow, heard)?;
            self.frame = self.connection.buffered().map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn past(names: &Names) -> String {
        format!("(SELECT age(catalog_xmin) FROM pg_replication_slots WHERE slot_name = {})", literal(&names.slot))
    }

    fn confirm(&mut self, position: Lsn) {
        self.feedback.confirm(position);
    }

    fn due(&self) -> Option<Instant> {
        Some(self.feedback.due())
    }

    async fn tell(&mut self) -> Result<(), Error> {
        let sent = self.feedback.send(&mut self.connection).await;
        sent.map_err(|error| self.failed(&error))
    }

    async fn finish(&mut self, position: Option<Lsn>) -> Result<(), Error> {
        position.into_iter().for_each(|position| self.feedback.confirm(position));
        let sent = self.feedback.send(&mut self.connection).await;
        sent.map_err(|error| Error::stream("stopping", &self.place, &error))
    }

    async fn end(&self, session: &Session) -> Result<Lsn, Error> {
        let value = session.value("SELECT pg_current_wal_flush_lsn()::text").await;
        let value = value.map_err(|error| Error::session("reading the server's position", &self.place, &error))?;
        Ok(value.and_then(|text| text.parse().ok()).unwrap_or_default())
    }

    fn silence(&self) -> Duration {
        self.feedback.silence()
    }

    fn heard(&mut self) {
        self.feedback.heard();
    }

    fn has_inserts(&self) -> bool {
        self.inserts
    }

    async fn state(sql: Sql, names: &Names) -> Result<Option<State>, session::Error> {
        State::read(&sql, &names.slot).await
    }

    async fn close(self, limit: Duration) {
        self.connection.close(limit).await;
    }
}

impl Replication {
    fn failed(&self, error: &connection::Error) -> Error {
        Error::stream(error::STREAMING, &self.place, error)
    }
}
