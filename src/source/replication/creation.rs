//! A slot is made: because there is none, because its WAL is gone, or because it keeps more than it may.

use std::time::Duration;

use super::connection::{self, Connection};
use super::error::{Error, Kind};
use super::slot::{Mode, Names, OLDEST_WRITER};
use crate::exit::Exit;
use crate::source::lsn::Lsn;
use crate::source::session::{Session, identifier, literal};

/// How the slot is to be.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// How long it lives.
    pub mode: Mode,
    /// It is dropped and made anew if it was confirmed no further than this: behind it, another daemon has done so already.
    pub renew: Option<Lsn>,
    /// The same if more than this is unconfirmed; 0 for no bound.
    pub max_retained: u64,
    /// How long its creation may wait for running transactions.
    pub lock_timeout: Duration,
}

/// Makes sure that the slot exists and can be read from.
pub async fn ensure(
    connection: &mut Connection,
    session: &Session,
    names: &Names,
    wish: Wish,
    place: &str,
) -> Result<(), Error> {
    let query = format!(
        "SELECT plugin, database = current_database(), coalesce(wal_status, ''), temporary, active, \
         pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8, to_jsonb(s) ->> 'failover', confirmed_flush_lsn \
         FROM pg_replication_slots s WHERE slot_name = {}",
        literal(&names.slot)
    );
    let failed = |error| Error::session("looking for the slot", place, &error);
    let rows = session.rows(&query).await.map_err(failed)?;
    let slot = &names.slot;
    let Some(row) = rows.first() else {
        return create(connection, session, slot, wish, place).await;
    };
    let by_hand =
        format!("drop it with SELECT pg_drop_replication_slot({}), or choose another --slot", literal(slot).trim());
    let config = |sentence: String| Err(Error::permanent(Exit::Config, sentence));
    match (row.get(0), row.get(1)) {
        (Some("pgoutput"), Some("t")) => {}
        (Some("pgoutput"), _) => return config(format!("the slot `{slot}` belongs to another database; {by_hand}")),
        _ => return config(format!("the slot `{slot}` is not a pgoutput slot; {by_hand}")),
    }
    if row.get(4) == Some("t") {
        return Err(in_use(slot, place));
    }
    if wish.mode == Mode::Temporary {
        return config(format!("there is a permanent slot `{slot}` and --slot-mode is temporary; {by_hand}"));
    }
    let behind: u64 = row.get(5).and_then(|text| text.parse().ok()).unwrap_or_default();
    let confirmed: Lsn = row.get(7).and_then(|text| text.parse().ok()).unwrap_or_default();
    let reason = match row.get(2) {
        Some("lost") => Some("its WAL is gone".to_owned()),
        _ if wish.renew.is_some_and(|position| confirmed <= position) => Some("it has to be made anew".to_owned()),
        _ if wish.max_retained > 0 && behind > wish.max_retained => {
            Some(format!("it keeps {behind} bytes of WAL, more than --max-retained-wal allows"))
        }
        _ => None,
    };
    if let Some(reason) = reason {
        tracing::warn!(slot, "the slot is dropped and made anew: {reason}. Everything goes stale");
        let drop = format!("SELECT pg_drop_replication_slot({})", literal(slot));
        session.execute(&drop).await.map_err(|error| Error::session("dropping the slot", place, &error))?;
        return create(connection, session, slot, wish, place).await;
    }
    if wish.mode == Mode::Failover && row.get(6) != Some("true") {
        let alter = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", identifier(slot));
        connection.query(&alter).await.map_err(|error| Error::stream("altering the slot", place, &error))?;
    }
    Ok(())
}

fn in_use(slot: &str, place: &str) -> Error {
    Error { sentence: format!("the slot `{slot}` at {place} is in use"), kind: Kind::Standby }
}

/// Does nobody read the slot, or is there none? Asked before anything else is read: whoever stands by asks every second.
pub async fn verify_free(session: &Session, names: &Names, place: &str) -> Result<(), Error> {
    let query = format!("SELECT 1 FROM pg_replication_slots WHERE active AND slot_name = {}", literal(&names.slot));
    let found = session.value(&query).await.map_err(|error| Error::session("looking for the slot", place, &error))?;
    found.map_or(Ok(()), |_| Err(in_use(&names.slot, place)))
}

/// CREATE_REPLICATION_SLOT waits for every transaction that is running; `lock_timeout` bounds that wait, and the one that
/// holds it up is named.
async fn create(
    connection: &mut Connection,
    session: &Session,
    slot: &str,
    wish: Wish,
    place: &str,
) -> Result<(), Error> {
    let name = identifier(slot);
    // 14 has no option list; the old form works on every version.
    let command = match wish.mode {
        Mode::Permanent => format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
        Mode::Temporary => format!("CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
        Mode::Failover => format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER)"),
    };
    let limit = format!("SET lock_timeout = {}", wish.lock_timeout.as_millis());
    let failed = |error| Error::stream("creating the slot", place, &error);
    connection.query(&limit).await.map_err(failed)?;
    let error = match connection.query(&command).await {
        Ok(_) => {
            tracing::info!(slot, mode = ?wish.mode, "created the replication slot");
            return Ok(());
        }
        Err(connection::Error::Server(error)) => error,
        Err(error) => return Err(failed(error)),
    };
    match error.code.as_str() {
        "55P03" => {
            let found = session.value(OLDEST_WRITER).await.ok().flatten();
            let blocker = found.unwrap_or_else(|| "gone meanwhile".into());
            let sentence = format!(
                "the slot `{slot}` waits for running transactions to end; the oldest is {blocker}. Until then nothing is seen"
            );
            Err(Error { sentence, kind: Kind::Blind })
        }
        // Somebody was faster.
        "42710" => {
            Err(Error { sentence: format!("the slot `{slot}` at {place} was made by another"), kind: Kind::Standby })
        }
        _ => Err(failed(connection::Error::Server(error))),
    }
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
