//! The replication slot, and everything about the server that must hold before the stream starts.

use crate::exit::Exit;
use crate::source::lsn::Lsn;
use crate::source::session::{self, Session, Sql, identifier, literal};
use crate::source::visibility::names_synchronous_standby;

use super::connection::Connection;
use super::error::{Error, WAL_LEVEL};

/// What the daemon reads from, by name.
#[derive(Clone, Debug)]
pub struct Names {
    /// The slot; also the application_name of both connections.
    pub slot: String,
    /// The publication.
    pub publication: String,
}

/// Name of the second publication, for tables whose rows nothing identifies: it sends what is inserted and truncated, and lets them
/// change their rows. `<publication>_insert`, within the 63 bytes of a name.
pub fn inserts_of(publication: &str) -> String {
    let fits = (0..=publication.len().min(63 - "_insert".len())).rev().find(|end| publication.is_char_boundary(*end));
    format!("{}_insert", publication.get(..fits.unwrap_or_default()).unwrap_or_default())
}

/// Refuses a server from which waltag must not or cannot stream. `place` is for messages.
pub async fn verify_server(session: &Session, names: &Names, place: &str) -> Result<(), Error> {
    let query = "SELECT current_setting('server_version_num'), pg_is_in_recovery(), current_setting('wal_level'), \
                 current_setting('synchronous_standby_names')";
    let rows =
        session.rows(query).await.map_err(|error| Error::session("reading the server's settings", place, &error))?;
    let row = rows.first().ok_or_else(|| Error::away("the server did not answer"))?;
    let field = |index: usize| row.get(index).unwrap_or_default();
    let config = |sentence: String| Err(Error::permanent(Exit::Config, sentence));
    if field(0).parse::<u32>().is_ok_and(|version| version < 140_000) {
        return config(format!("PostgreSQL at {place} is older than 14, the oldest that waltag reads from"));
    }
    if field(1) == "t" {
        return config(format!(
            "{place} is a hot standby; waltag reads from the primary (a standby does not know which transactions its primary still hides). Let WALTAG_DATABASE_URL name the primary, or list all hosts."
        ));
    }
    if field(2) != "logical" {
        return config(format!("{place} runs with wal_level = {}. {WAL_LEVEL}", field(2)));
    }
    verify_not_synchronous(field(3), &names.slot)
}

/// waltag must never be a synchronous standby: the commit would wait for our flush, and our fence for the commit.
pub fn verify_not_synchronous(setting: &str, application_name: &str) -> Result<(), Error> {
    if !names_synchronous_standby(setting, application_name) {
        return Ok(());
    }
    let sentence = format!(
        "synchronous_standby_names = '{setting}' would make waltag a synchronous standby, and every commit would wait for it for ever: list the real standbys by their application_name (waltag's is `{application_name}`) and reload PostgreSQL"
    );
    Err(Error::permanent(Exit::Config, sentence))
}

/// The publication must exist before the slot: START_REPLICATION does not look for it.
pub async fn verify_publication(session: &Session, names: &Names, place: &str) -> Result<(), Error> {
    let query = format!("SELECT 1 FROM pg_publication WHERE pubname = {}", literal(&names.publication));
    let found =
        session.value(&query).await.map_err(|error| Error::session("looking for the publication", place, &error))?;
    if found.is_some() {
        return Ok(());
    }
    let sentence = format!(
        "the publication \"{}\" does not exist in this database at {place}; create it with `waltag setup --apply` as the database's owner",
        names.publication
    );
    Err(Error::permanent(Exit::Config, sentence))
}

/// What the server says of a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `wal_status`: reserved, extended, unreserved, lost.
    pub wal_status: String,
    /// Bytes between the confirmed position and the server's end: ours to answer for.
    pub unconfirmed: i64,
    /// Bytes of WAL that the server keeps for the slot: a transaction that runs for long holds it, too.
    pub retained: i64,
    /// The end of what is committed.
    pub end: Lsn,
}

impl State {
    /// Reads it; nothing if the slot is gone.
    pub async fn read(sql: &Sql, slot: &str) -> Result<Option<State>, session::Error> {
        let query = format!(
            "SELECT coalesce(wal_status, ''), pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8, \
             pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8, pg_current_wal_flush_lsn()::text FROM pg_replication_slots WHERE slot_name = {}",
            literal(slot)
        );
        let rows = sql.rows(&query).await?;
        Ok(rows.first().map(|row| {
            let number = |index: usize| row.get(index).and_then(|text| text.parse().ok()).unwrap_or_default();
            State {
                wal_status: row.get(0).unwrap_or_default().into(),
                unconfirmed: number(1),
                retained: number(2),
                end: row.get(3).and_then(|text| text.parse().ok()).unwrap_or_default(),
            }
        }))
    }
}

/// Makes sure that the slot exists and can be read from.
pub async fn ensure(
    connection: &mut Connection,
    session: &Session,
    names: &Names,
    lock_timeout: std::time::Duration,
    place: &str,
) -> Result<(), Error> {
    let query = format!(
        "SELECT plugin, database = current_database(), coalesce(wal_status, '') FROM pg_replication_slots WHERE slot_name = {}",
        literal(&names.slot)
    );
    let rows = session.rows(&query).await.map_err(|error| Error::session("looking for the slot", place, &error))?;
    let slot = &names.slot;
    if let Some(row) = rows.first() {
        let drop =
            format!("drop it with SELECT pg_drop_replication_slot({}), or choose another --slot", literal(slot).trim());
        return match (row.get(0), row.get(1), row.get(2)) {
            (Some("pgoutput"), Some("t"), Some("lost")) => Err(Error::permanent(
                Exit::Config,
                format!("the slot `{slot}` was invalidated (its WAL is gone); {drop}, then make the caches stale"),
            )),
            (Some("pgoutput"), Some("t"), _) => Ok(()),
            (Some("pgoutput"), _, _) => {
                Err(Error::permanent(Exit::Config, format!("the slot `{slot}` belongs to another database; {drop}")))
            }
            _ => Err(Error::permanent(Exit::Config, format!("the slot `{slot}` is not a pgoutput slot; {drop}"))),
        };
    }
    create(connection, session, slot, lock_timeout, place).await
}

/// Makes a temporary slot where `slot` stands, or at the end if there is none yet; its name. The original may be in use.
pub async fn copy(connection: &mut Connection, slot: &str, place: &str) -> Result<String, Error> {
    let failed = |error| Error::stream("copying the slot", place, &error);
    let copy = format!("{:.50}_dry_{:08x}", slot, rand::random::<u32>());
    let query = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = {}", literal(slot));
    let command = match connection.query(&query).await.map_err(failed)?.is_empty() {
        true => format!("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT", identifier(&copy)),
        false => format!("SELECT pg_copy_logical_replication_slot({}, {}, true)", literal(slot), literal(&copy)),
    };
    connection.query(&command).await.map_err(failed)?;
    Ok(copy)
}

/// The transaction that a new slot waits for. Locks are visible to every role; the transactions of others' sessions are not.
const OLDEST_WRITER: &str = "SELECT coalesce('of process ' || l.pid || coalesce(' (' || a.usename || ')', ''), 'a prepared transaction') \
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'transactionid' AND l.granted \
    AND l.mode = 'ExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid() ORDER BY age(l.transactionid) DESC LIMIT 1";

/// CREATE_REPLICATION_SLOT waits for every transaction that is running; `lock_timeout` bounds that wait, and the one that
/// holds it up is named.
async fn create(
    connection: &mut Connection,
    session: &Session,
    slot: &str,
    lock_timeout: std::time::Duration,
    place: &str,
) -> Result<(), Error> {
    // 14 has no option list; this old form works on every version.
    let command = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput NOEXPORT_SNAPSHOT", identifier(slot));
    let limit = format!("SET lock_timeout = {}", lock_timeout.as_millis());
    let failed = |error| Error::stream("creating the slot", place, &error);
    connection.query(&limit).await.map_err(failed)?;
    match connection.query(&command).await {
        Ok(_) => {
            tracing::info!(slot, "created the replication slot");
            Ok(())
        }
        Err(super::connection::Error::Server(error)) if error.code == "55P03" => {
            let found = session.value(OLDEST_WRITER).await.ok().flatten();
            let blocker = found.unwrap_or_else(|| "gone meanwhile".into());
            Err(Error::away(format!(
                "the slot `{slot}` waits for running transactions to end; the oldest is {blocker}"
            )))
        }
        Err(error) => Err(failed(error)),
    }
}
