//! Why there is no stream, in sentences that end with the remedy.

use super::connection;
use crate::exit::Exit;
use crate::source::server_error::ServerError;
use crate::source::session;

/// Why the stream could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Error {
    /// What happened, where, and what to do.
    pub sentence: String,
    /// What the daemon does about it.
    pub kind: Kind,
}

/// What to do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server is away, starting, or shutting down: try again.
    Away,
    /// Somebody else holds the slot: wait for it.
    Standby,
    /// The slot cannot be read any more: it is dropped and made anew.
    Renew,
    /// What comes next cannot be decoded, by the server or by us. Once, that may be a moment's trouble; at the same position again and
    /// again, the slot cannot be read any more.
    Undecodable,
    /// There is no slot, and none can be made yet: changes are missed.
    Blind,
    /// Only people can mend it: exit before the first READY, retry afterwards.
    Permanent(Exit),
}

/// What is being done while changes arrive.
pub const STREAMING: &str = "streaming";
/// The same where they are read from a table.
pub const READING_OUTBOX: &str = "reading the outbox";

/// Classes of errors that pass by themselves (manual: "PostgreSQL Error Codes"): connections, rollbacks, resources, states of objects, operators who
/// intervene. Whatever else a server says while it decodes, it will say again.
const PASSING: [&str; 6] = ["08", "25", "40", "53", "55", "57"];

impl Error {
    /// Try again.
    pub fn away(sentence: impl Into<String>) -> Error {
        Error { sentence: sentence.into(), kind: Kind::Away }
    }

    /// What came cannot be read.
    pub fn undecodable(sentence: impl Into<String>) -> Error {
        Error { sentence: sentence.into(), kind: Kind::Undecodable }
    }

    /// Only people can mend it.
    pub fn permanent(exit: Exit, sentence: impl Into<String>) -> Error {
        Error { sentence: sentence.into(), kind: Kind::Permanent(exit) }
    }

    /// What the server said while `doing` something at `place`.
    pub fn server(doing: &str, place: &str, error: &ServerError) -> Error {
        let said = format!("{doing} at {place}: {error}");
        let config = |remedy: &str| Error::permanent(Exit::Config, format!("{said}. {remedy}"));
        match error.code.as_str() {
            "28P01" | "28000" => config(
                "Correct user and password in WALTAG_DATABASE_URL, or the server's pg_hba.conf (a replication connection with a database matches that database's line).",
            ),
            "3D000" => config("Correct the database in WALTAG_DATABASE_URL."),
            "42501" => Error::permanent(
                Exit::NoPermission,
                format!(
                    "{said}. The role needs LOGIN REPLICATION: run `waltag setup --apply` as the database's owner, or ALTER ROLE ... REPLICATION."
                ),
            ),
            "53400" => config(
                "Raise max_replication_slots or drop a slot that is not used (it needs a restart of PostgreSQL).",
            ),
            // Before it starts the stream waltag looks for the publication: it is younger than what the slot still has to read.
            "42704" => Error { sentence: said, kind: Kind::Renew },
            // A value that no reader in UTF-8 can be sent: the log cannot be read over it, and everything goes stale once behind it.
            "22P05" | "22021" if doing == STREAMING => Error { sentence: said, kind: Kind::Renew },
            "55006" => Error { sentence: said, kind: Kind::Standby },
            // PgBouncer reports what it does not pass on with this code.
            "08P01" if error.message.contains("replication") || error.message.contains("startup parameter") => {
                config(POOLER)
            }
            "55000" if error.message.contains("wal_level") => config(WAL_LEVEL),
            _ if error.message.contains("unsupported startup parameter") => config(POOLER),
            code if [STREAMING, READING_OUTBOX].contains(&doing)
                && !PASSING.iter().any(|class| code.starts_with(class)) =>
            {
                Error::undecodable(said)
            }
            _ => Error::away(said),
        }
    }

    /// A failed query or log-in of the SQL session.
    pub fn session(doing: &str, place: &str, error: &session::Error) -> Error {
        match error {
            session::Error::Server(error) => Error::server(doing, place, error),
            session::Error::NoPassword => Error::permanent(
                Exit::Config,
                format!("{doing} at {place}: {error}; put it into WALTAG_DATABASE_URL, PGPASSWORD or ~/.pgpass"),
            ),
            session::Error::Refused(sentence) => {
                Error::permanent(Exit::Config, format!("{doing} at {place}: {sentence}"))
            }
            session::Error::Away(sentence) => Error::away(format!("{doing} at {place}: {sentence}")),
        }
    }

    /// A failure of the replication connection.
    pub fn stream(doing: &str, place: &str, error: &connection::Error) -> Error {
        match error {
            connection::Error::Server(error) => Error::server(doing, place, error),
            connection::Error::Authentication(error) => {
                Error::permanent(Exit::Config, format!("{doing} at {place}: {error}"))
            }
            connection::Error::Tls(sentence) => {
                Error::permanent(Exit::Config, format!("{doing} at {place}: {sentence}"))
            }
            connection::Error::Unexpected(_) if doing == STREAMING => {
                Error::undecodable(format!("{doing} at {place}: {error}"))
            }
            other => Error::away(format!("{doing} at {place}: {other}")),
        }
    }
}

/// The remedy for a pooler that does not pass replication on.
pub const POOLER: &str = "This looks like a connection pooler, which does not carry replication: let WALTAG_DATABASE_URL name PostgreSQL itself.";
/// The remedy for a server without logical decoding.
pub const WAL_LEVEL: &str =
    "Logical replication needs wal_level = logical in postgresql.conf and a restart of PostgreSQL.";
