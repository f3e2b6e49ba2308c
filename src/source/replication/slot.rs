//! The replication slot as the server sees it, and everything about the server that must hold before the stream starts.

use crate::exit::Exit;
use crate::source::session::{self, Session, Sql, literal};
use crate::source::visibility::names_synchronous_standby;

use super::error::{Error, WAL_LEVEL};

/// How long the slot lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// It outlives the daemon: what was missed meanwhile comes with the next start.
    #[default]
    Permanent,
    /// It ends with the connection and keeps nothing; each start makes everything stale.
    Temporary,
    /// Permanent, and kept on the standbys, too (PostgreSQL 17).
    Failover,
}

/// What the daemon reads from, by name.
#[derive(Clone, Debug)]
pub struct Names {
    /// The slot; also the application_name of all connections, and the instance that reads an outbox.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// Which of both is read.
    pub feed: Feed,
    /// Whoever fills an outbox wakes its readers.
    pub wakes: bool,
}

/// Where changes come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feed {
    /// Logical replication, by a slot and a publication.
    #[default]
    Replication,
    /// A table that triggers fill.
    Outbox,
}

/// Name of the second publication, for tables whose rows nothing identifies: it sends what is inserted and truncated, and lets them
/// change their rows. `<publication>_insert`, within the 63 bytes of a name.
pub fn inserts_of(publication: &str) -> String {
    let fits = (0..=publication.len().min(63 - "_insert".len())).rev().find(|end| publication.is_char_boundary(*end));
    format!("{}_insert", publication.get(..fits.unwrap_or_default()).unwrap_or_default())
}

/// Refuses a server from which waltag must not or cannot stream; its version. `place` is for messages.
pub async fn verify_server(session: &Session, names: &Names, place: &str) -> Result<u32, Error> {
    let query = "SELECT current_setting('server_version_num'), pg_is_in_recovery(), current_setting('wal_level'), \
                 current_setting('synchronous_standby_names')";
    let rows =
        session.rows(query).await.map_err(|error| Error::session("reading the server's settings", place, &error))?;
    let row = rows.first().ok_or_else(|| Error::away("the server did not answer"))?;
    let field = |index: usize| row.get(index).unwrap_or_default();
    let config = |sentence: String| Err(Error::permanent(Exit::Config, sentence));
    let version = verify_primary(field(0), field(1), place)?;
    if field(2) != "logical" {
        return config(format!("{place} runs with wal_level = {}. {WAL_LEVEL}", field(2)));
    }
    verify_not_synchronous(field(3), &names.slot)?;
    Ok(version)
}

/// A server that is new enough and no standby, by its `server_version_num` and `pg_is_in_recovery()`; its version.
pub fn verify_primary(version: &str, standby: &str, place: &str) -> Result<u32, Error> {
    let config = |sentence: String| Err(Error::permanent(Exit::Config, sentence));
    let version = version.parse::<u32>().unwrap_or_default();
    if version < 140_000 {
        return config(format!("PostgreSQL at {place} is older than 14, the oldest that waltag reads from"));
    }
    if standby == "t" {
        return config(format!(
            "{place} is a hot standby; waltag reads from the primary (a standby does not know which transactions its primary still hides). Let WALTAG_DATABASE_URL name the primary, or list all hosts."
        ));
    }
    Ok(version)
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

/// Does a stream of this server go on with what it knew of a table that a transaction was writing when the table was published? Mended in
/// PostgreSQL 14.18, 15.13, 16.9 and 17.5 (release notes: "invalidate caches of in-progress transactions").
pub fn forgets_tables(version: u32) -> bool {
    let mended = match version / 10_000 {
        14 => 18,
        15 => 13,
        16 => 9,
        17 => 5,
        _ => 0,
    };
    version % 10_000 < mended
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
    /// Bytes that may still be written before the server takes the slot's WAL away; none where it never does.
    pub safe: Option<i64>,
    /// Why the server has invalidated it (PostgreSQL 17).
    pub invalidated: Option<String>,
    /// Who makes the server keep more than is unconfirmed.
    pub holder: Option<String>,
    /// Bytes of the outbox, where one is read in place of a slot.
    pub outbox: Option<i64>,
    /// What it may have; 0 for no bound.
    pub outbox_limit: Option<i64>,
}

/// More than this beyond what is unconfirmed, and somebody holds it: the slot moves only every 15 s or so.
const HELD: i64 = 64 << 20;

impl State {
    /// Reads it; nothing if the slot is gone.
    pub async fn read(sql: &Sql, slot: &str) -> Result<Option<State>, session::Error> {
        let query = format!(
            "SELECT coalesce(wal_status, ''), pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8, \
             pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8, safe_wal_size, to_jsonb(s) ->> 'invalidation_reason' \
             FROM pg_replication_slots s WHERE slot_name = {}",
            literal(slot)
        );
        let rows = sql.rows(&query).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let number = |index: usize| row.get(index).and_then(|text| text.parse().ok());
        let mut state = State {
            wal_status: row.get(0).unwrap_or_default().into(),
            unconfirmed: number(1).unwrap_or_default(),
            retained: number(2).unwrap_or_default(),
            safe: number(3),
            invalidated: row.get(4).map(str::to_owned),
            holder: None,
            outbox: None,
            outbox_limit: None,
        };
        if state.retained - state.unconfirmed > HELD {
            state.holder = sql.value(OLDEST_WRITER).await?;
        }
        Ok(Some(state))
    }
}

/// The transaction that a new slot waits for, and that keeps WAL from being removed. Locks are visible to every role; the
/// transactions of others' sessions are not.
pub(super) const OLDEST_WRITER: &str = "SELECT coalesce('of process ' || l.pid || coalesce(' (' || a.usename || ')', '') \
    || coalesce(', begun ' || date_trunc('second', now() - a.xact_start) || ' ago', ', ' || age(l.transactionid) || ' transactions old'), \
    'a prepared transaction') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'transactionid' \
    AND l.granted AND l.mode = 'ExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid() ORDER BY age(l.transactionid) DESC LIMIT 1";
