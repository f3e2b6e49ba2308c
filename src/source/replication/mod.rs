//! The stream: a SQL session and a replication connection to one primary, opened together, lost together.

pub mod authentication;
pub mod connection;
pub mod creation;
pub mod error;
pub mod feedback;
pub mod pgoutput;
pub mod relations;
pub mod slot;

use std::time::Duration;

use super::dsn::Dsn;
use super::endpoint::Endpoint;
use super::lsn::Lsn;
use super::session::{PINNED, Session, UNLIMITED, identifier, literal};
use crate::exit::Exit;
use connection::Connection;
use creation::Wish;
use error::{Error, Kind};
use slot::{Mode, Names};

/// `wal_sender_timeout` of our stream: a daemon that died without a word frees its slot after this long. Any role may set
/// it for itself.
const WAL_SENDER_TIMEOUT: &str = "5s";

/// The first version that keeps a slot on its standbys.
const FAILOVER_SLOTS: u32 = 170_000;

/// Both connections, before the stream was started.
pub struct Source {
    /// Answers the fence.
    pub session: Session,
    /// Carries the stream.
    pub connection: Connection,
    /// Which server, and in what life.
    pub server: Server,
    /// Address for messages.
    pub place: String,
    /// The slot that it reads.
    pub slot: String,
    /// The publication of inserts is streamed, too.
    pub inserts: bool,
    /// `server_version_num`.
    pub version: u32,
}

/// Which slot is read.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// Our own; it is made if it is not there.
    Own(Wish),
    /// A temporary copy, which is gone with the connection.
    Copy,
}

/// Which server, and in what life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// System identifier of the cluster.
    pub system: String,
    /// Its timeline, from IDENTIFY_SYSTEM.
    pub timeline: String,
    /// `pg_stat_bgwriter.stats_reset`: changes over a crash.
    pub crash: String,
}

/// Opens both connections to the first host that is a primary and fit to be streamed from.
pub async fn open(dsn: &Dsn, names: &Names, lock_timeout: Duration, which: Which) -> Result<Source, Error> {
    let mut worst: Option<Error> = None;
    for endpoint in dsn.endpoints() {
        match open_at(endpoint, names, lock_timeout, which).await {
            Ok(source) => return Ok(source),
            // With several hosts, one that is away may be the primary: then waiting helps.
            Err(error) if worst.as_ref().is_none_or(|worst| matches!(worst.kind, Kind::Permanent(_))) => {
                worst = Some(error);
            }
            Err(_) => {}
        }
    }
    Err(worst.unwrap_or_else(|| Error::away("the database URL names no host")))
}

async fn open_at(endpoint: &Endpoint, names: &Names, lock_timeout: Duration, which: Which) -> Result<Source, Error> {
    let place = endpoint.to_string();
    let session = Session::open(endpoint, &names.slot).await;
    let session = session.map_err(|error| Error::session("connecting", &place, &error))?;
    let version = slot::verify_server(&session, names, &place).await?;
    slot::verify_publication(&session, names, &place).await?;
    if matches!(which, Which::Own(Wish { mode: Mode::Failover, .. })) && version < FAILOVER_SLOTS {
        let sentence = format!("{place} knows no failover slots: --slot-mode failover needs PostgreSQL 17");
        return Err(Error::permanent(Exit::Config, sentence));
    }
    // A migration that holds a lock on a table of ours must not hold up the whole start.
    let limit = format!("SET lock_timeout = {}", lock_timeout.as_millis());
    session.execute(&limit).await.map_err(|error| Error::session("connecting", &place, &error))?;
    let mut connection = connect(endpoint, &session, names, &place).await?;
    let identified = connection.query("IDENTIFY_SYSTEM").await;
    let identified = identified.map_err(|error| Error::stream("IDENTIFY_SYSTEM", &place, &error))?;
    let field = |index: usize| identified.first().and_then(|row| row.get(index)?.clone()).unwrap_or_default();
    let crash = session.value("SELECT stats_reset::text FROM pg_stat_bgwriter").await;
    let crash = crash.map_err(|error| Error::session("reading the crash mark", &place, &error))?.unwrap_or_default();
    let server = Server { system: field(0), timeline: field(1), crash };
    let slot = match which {
        Which::Own(wish) => {
            creation::ensure(&mut connection, &session, names, wish, &place).await?;
            names.slot.clone()
        }
        Which::Copy => creation::copy(&mut connection, &names.slot, &place).await?,
    };
    Ok(Source { session, connection, server, place, slot, inserts: false, version })
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
    let query = "SELECT pg_postmaster_start_time()::text || ' ' || pg_is_in_recovery()::text";
    let ours =
        session.value(query).await.map_err(|error| Error::session("comparing both connections", place, &error))?;
    let failed = |error| Error::stream("comparing both connections", place, &error);
    connection.query(UNLIMITED).await.map_err(failed)?;
    let theirs = connection.query(query).await.map_err(failed)?.into_iter().flatten().next().flatten();
    if ours == theirs {
        return Ok(());
    }
    Err(Error::away(format!("{place} leads to two servers; the SQL session and the stream must reach the same one")))
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

impl Source {
    /// START_REPLICATION at 0/0: the server goes on from the position that was confirmed last. The publication of inserts is
    /// streamed if it is there; with `messages` also what is put into the log by itself.
    pub async fn start(&mut self, names: &Names, messages: bool) -> Result<(), Error> {
        let inserts = slot::inserts_of(&names.publication);
        let query = format!("SELECT 1 FROM pg_publication WHERE pubname = {}", literal(&inserts));
        let found = self.session.value(&query).await;
        let found = found.map_err(|error| Error::session("looking for the publications", &self.place, &error))?;
        self.inserts = found.is_some();
        let mut publications = identifier(&names.publication);
        if self.inserts {
            publications = format!("{publications},{}", identifier(&inserts));
        }
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, messages '{messages}')",
            identifier(&self.slot),
            literal(&publications).trim()
        );
        let started = self.connection.start_replication(&command).await;
        started.map_err(|error| Error::stream("starting the stream", &self.place, &error))
    }

    /// The end of what was committed until now.
    pub async fn end(&self) -> Result<Lsn, Error> {
        let value = self.session.value("SELECT pg_current_wal_flush_lsn()::text").await;
        let value = value.map_err(|error| Error::session("reading the server's position", &self.place, &error))?;
        Ok(value.and_then(|text| text.parse().ok()).unwrap_or_default())
    }

    /// Where the server goes on: the slot is ours now, nobody else can move it.
    pub async fn confirmed(&self, names: &Names) -> Result<Lsn, Error> {
        let query = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = {}",
            literal(&names.slot)
        );
        let value = self.session.value(&query).await;
        let value = value.map_err(|error| Error::session("reading the slot", &self.place, &error))?;
        Ok(value.and_then(|text| text.parse().ok()).unwrap_or_default())
    }
}
