//! The SQL session beside the stream: it answers the fence, reads the catalog, and its end is the sign to let go of the
//! stream (a fast shutdown ends backends first and then waits for us).

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::{AsyncMessage, Client, Connection, SimpleQueryMessage, SimpleQueryRow};

use super::endpoint::Endpoint;
use super::link::{self, Link, Meter, Shaken, TOO_LONG};
use super::server_error::ServerError;
use crate::plain::is_hidden;

/// Settings that every session of ours pins, because role and database may set others and they change the text of
/// values, hence the tags; `synchronous_commit` so that none of our own commits ever waits for a standby.
pub const PINNED: [(&str, &str); 13] = [
    // Names in values (of type regclass) have their schema, as those that triggers write.
    ("search_path", SEARCH_PATH),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("default_transaction_isolation", "read committed"),
    ("synchronous_commit", "local"),
    ("statement_timeout", "0"),
    // Providers set it for everybody when a disk is full; the outbox is emptied by writing.
    ("default_transaction_read_only", "off"),
    // A look at the catalog of 2,500 tables took 16.8 s with it and 0.8 s without: its cost estimates are large, its rows few.
    ("jit", "off"),
    // Names with odd characters are written as U&"...", which is refused without.
    ("standard_conforming_strings", "on"),
];

/// Where names are looked for that have no schema: whoever may write into a schema before it could put a function, an operator or a table of
/// her own in the place of PostgreSQL's, and it would run with our rights (manual: "Writing SECURITY DEFINER Functions Safely").
pub const SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// Before each statement, in the same transaction: behind a pooler each may have another server process, where nothing was set.
const PIN: &str = "SET LOCAL search_path = pg_catalog, pg_temp;";

/// Switches every limit off that role or database may set, as far as this version knows it: a stream that goes on for
/// months is idle, and in one transaction, for longer than any of them.
pub const UNLIMITED: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN \
    ('statement_timeout', 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout')";

/// What a row of an answer costs in memory beside its bytes.
const ROW: u64 = 128;
/// The same for each of its columns.
const COLUMN: u64 = 24;

/// Our queries take milliseconds; one that takes this long is not coming back.
pub const QUERY_LIMIT: Duration = Duration::from_secs(10);

/// An open session. Dropping it closes the connection.
pub struct Session {
    sql: Sql,
    driver: JoinHandle<Result<(), tokio_postgres::Error>>,
    woken: Receiver<()>,
}

/// An answer that comes beside a loop.
pub type Answer = Pin<Box<dyn Future<Output = Result<Vec<SimpleQueryRow>, Error>>>>;

/// The way to run queries on a session: also beside the loop that holds the session itself.
#[derive(Clone)]
pub struct Sql {
    client: Arc<Client>,
    /// Bounds what the server answers.
    meter: Meter,
}

impl std::ops::Deref for Session {
    type Target = Sql;

    fn deref(&self) -> &Sql {
        &self.sql
    }
}

/// Why a session is not there, or a query failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The server asks for a password, and there is none.
    #[error("the server asks for a password and none was given")]
    NoPassword,
    /// Not encrypted or not bound as `sslmode` and `channel_binding` demand it.
    #[error("{0}")]
    Refused(String),
    /// The server cannot be reached, or the connection broke.
    #[error("{0}")]
    Away(String),
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        match error.as_db_error() {
            Some(server) => Error::Server(Box::new(ServerError::from_sql(server))),
            // The only word that tokio-postgres has for it.
            None if deepest(&error) == "password missing" => Error::NoPassword,
            None if refused(&error) => Error::Refused(deepest(&error)),
            None if error.to_string().starts_with("authentication error") => Error::Refused(deepest(&error)),
            None => Error::Away(deepest(&error)),
        }
    }
}

impl From<link::Error> for Error {
    fn from(error: link::Error) -> Error {
        match error {
            link::Error::Tls(sentence) => Error::Refused(sentence),
            link::Error::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Error::Refused(error.to_string())
            }
            error => Error::Away(error.to_string()),
        }
    }
}

/// The link has refused what the server asks for, or the server our certificate.
fn refused(error: &tokio_postgres::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    io.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied && error.get_ref().is_some())
}

impl Error {
    /// The server did not answer a query in time.
    pub fn mute() -> Error {
        Error::Away(format!("no answer within {QUERY_LIMIT:?}"))
    }
}

/// tokio-postgres says "error connecting to server"; what the operating system said is further down.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl Session {
    /// Logs in and pins the settings. `name` becomes the application_name.
    pub async fn open(endpoint: &Endpoint, name: &str) -> Result<Session, Error> {
        let session = Session::open_pooled(endpoint, name).await?;
        // SET, not startup options: poolers pass it on.
        let pin = |(name, value): &(&str, &str)| match *name {
            // A list: quoted it would be one name.
            "search_path" => format!("SET {name} = {value};"),
            _ => format!("SET {name} = '{value}';"),
        };
        let pins: String = PINNED.iter().map(pin).collect();
        session.rows(&format!("{pins} {UNLIMITED}")).await?;
        Ok(session)
    }

    /// Logs in and sets nothing: behind a pooler each statement may have another server process, which others use as well.
    pub async fn open_pooled(endpoint: &Endpoint, name: &str) -> Result<Session, Error> {
        let mut config = endpoint.config().clone();
        config.application_name(name);
        let limit = endpoint.connect_timeout();
        // One wake-up that waits is as good as many.
        let (wake, woken) = channel(1);
        let meter = Meter::default();
        let metered = meter.clone();
        let connecting = async {
            let link = Link::open(endpoint, Some(metered.clone())).await?;
            // Hands have been shaken: for tokio-postgres that is TLS from the first byte, or none.
            config.ssl_negotiation(SslNegotiation::Direct);
            config.ssl_mode(if link.is_encrypted() { SslMode::Require } else { SslMode::Disable });
            let (client, connection) = config.connect_raw(link, Shaken).await?;
            Ok::<_, Error>((client, tokio::spawn(drive(connection, wake, metered))))
        };
        let connected = timeout(limit, connecting).await;
        let (client, driver) = connected.map_err(|_| Error::Away(format!("no answer within {limit:?}")))??;
        Ok(Session { sql: Sql { client: Arc::new(client), meter }, driver, woken })
    }

    /// Somebody has notified a channel that it listens to. Cancel-safe; an error says that the session has ended.
    pub async fn notified(&mut self) -> Result<(), Error> {
        match self.woken.recv().await {
            Some(()) => Ok(()),
            None => Err(self.closed().await),
        }
    }

    /// Ends when the session has ended, with the reason. Cancel-safe, but once it has ended the session must be dropped.
    pub async fn closed(&mut self) -> Error {
        match (&mut self.driver).await {
            Ok(Err(error)) => error.into(),
            _ => Error::Away("the SQL session ended".into()),
        }
    }
}

impl Sql {
    /// Runs statements that return nothing of interest.
    pub async fn execute(&self, sql: &str) -> Result<(), Error> {
        Ok(self.client.batch_execute(&format!("{PIN} {sql}")).await?)
    }

    /// Runs one statement that refuses to stand in a transaction with another (CREATE INDEX CONCURRENTLY). Every name in it has its schema.
    pub async fn execute_alone(&self, sql: &str) -> Result<(), Error> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Runs one query by the simple protocol: every value is text, and poolers need no prepared statements. A server that
    /// does not answer within [`QUERY_LIMIT`] is gone.
    pub async fn rows(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, Error> {
        self.rows_as_written(&format!("{PIN} {sql}")).await
    }

    async fn rows_as_written(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, Error> {
        let reading = async {
            let _question = self.meter.begin();
            let (mut rows, mut answer) = (Vec::new(), pin!(self.client.simple_query_raw(sql).await?));
            while let Some(message) = poll_fn(|context| answer.as_mut().poll_next(context)).await {
                if let SimpleQueryMessage::Row(row) = message? {
                    self.meter
                        .spend(ROW + COLUMN * row.len() as u64)
                        .map_err(|error| Error::Away(error.to_string()))?;
                    rows.push(row);
                }
            }
            Ok(rows)
        };
        let answer = timeout(QUERY_LIMIT, reading).await.map_err(|_| Error::mute())?;
        // The link has broken, and said why to the task that reads from it.
        answer.map_err(|error| if self.meter.is_spent() { Error::Away(TOO_LONG.into()) } else { error })
    }

    /// The first rows that a COPY ... TO STDOUT in its text form brings; none if the server refuses, or the statement takes too long. The session
    /// must be dropped afterwards, because the rest still comes.
    pub async fn copy(&self, copy: &str, most: usize) -> Result<Vec<Vec<Option<String>>>, Error> {
        let reading = async {
            let _question = self.meter.begin();
            let stream = match self.client.copy_out(copy).await {
                Ok(stream) => stream,
                Err(error) if error.as_db_error().is_some() => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let (mut rows, mut stream) = (Vec::new(), pin!(stream));
            // An error in between is the statement's own limit.
            while let Some(Ok(line)) = poll_fn(|context| stream.as_mut().poll_next(context)).await {
                rows.push(copied(&line));
                if rows.len() >= most {
                    break;
                }
            }
            Ok(rows)
        };
        timeout(QUERY_LIMIT, reading).await.map_err(|_| Error::mute())?
    }

    /// The same beside a loop: the query runs while the future is polled, and does not borrow the session.
    pub fn ask(&self, sql: impl Into<Cow<'static, str>>) -> Answer {
        let (session, sql) = (self.clone(), sql.into());
        Box::pin(async move { session.rows(&sql).await })
    }

    /// The same for the statement that stands between a commit and its tags: every name in it has its schema, so nothing is set before it (0.03 ms
    /// in place of 0.06).
    pub fn ask_qualified(&self, sql: &'static str) -> Answer {
        let session = self.clone();
        Box::pin(async move { session.rows_as_written(sql).await })
    }

    /// First column of the first row.
    pub async fn value(&self, sql: &str) -> Result<Option<String>, Error> {
        Ok(self.rows(sql).await?.first().and_then(|row| row.get(0)).map(str::to_owned))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Moves what is sent and received, and says when somebody has notified.
async fn drive(
    mut connection: Connection<Link, Link>,
    wake: Sender<()>,
    meter: Meter,
) -> Result<(), tokio_postgres::Error> {
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(_) = message? {
            // Nobody asked for it: a session that listens hears millions.
            meter.was_told();
            // Full: one is waiting already.
            let _ = wake.try_send(());
        }
    }
    Ok(())
}

/// The values of a row of COPY (manual: "COPY", Text Format).
fn copied(line: &[u8]) -> Vec<Option<String>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let value = |text: &[u8]| {
        if text == b"\\N" {
            return None;
        }
        let mut bytes = text.iter();
        let mut out = Vec::with_capacity(text.len());
        while let Some(byte) = bytes.next() {
            out.push(match byte {
                b'\\' => match bytes.next() {
                    Some(b'b') => 8,
                    Some(b'f') => 12,
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(b'v') => 11,
                    other => *other.unwrap_or(&b'\\'),
                },
                other => *other,
            });
        }
        Some(String::from_utf8_lossy(&out).into_owned())
    };
    line.split(|byte| *byte == b'\t').map(value).collect()
}

/// A text as an SQL literal. Characters that are not seen as themselves are escaped: what is printed stays one line, and shows what it is.
pub fn literal(text: &str) -> String {
    if !text.contains(is_hidden) {
        return postgres_protocol::escape::escape_literal(text);
    }
    let mut out = String::from(" E'");
    for character in text.chars() {
        match character {
            '\'' => out.push_str("''"),
            '\\' => out.push_str("\\\\"),
            hidden if is_hidden(hidden) => out.push_str(&format!("\\U{:08X}", u32::from(hidden))),
            other => out.push(other),
        }
    }
    out + "'"
}

/// A name as an SQL identifier, always quoted; characters as in [`literal`] (manual: "Identifiers and Key Words", U&"").
pub fn identifier(name: &str) -> String {
    if !name.contains(is_hidden) {
        return quoted(name);
    }
    let mut out = String::from("U&\"");
    for character in name.chars() {
        match character {
            '"' => out.push_str("\"\""),
            '\\' => out.push_str("\\\\"),
            hidden if is_hidden(hidden) => out.push_str(&format!("\\+{:06X}", u32::from(hidden))),
            other => out.push(other),
        }
    }
    out + "\""
}

/// A name in double quotes and with nothing else about it: commands of replication know no other form, and nobody is shown them.
pub fn quoted(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_copy() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(copied(b"a\\tb\\\\c\\n\t\\N\t\t\\\\N\n"), [text("a\tb\\c\n"), None, text(""), text("\\N")]);
    }

    #[test]
    fn quoting() {
        assert_eq!(identifier("odd \"name\""), "\"odd \"\"name\"\"\"");
        assert_eq!(literal("it's").trim(), "'it''s'");
        assert_eq!(identifier("a\n\"\\; --"), "U&\"a\\+00000A\"\"\\\\; --\"");
        assert_eq!(literal("a\n'\\; --").trim(), "E'a\\U0000000A''\\\\; --'");
    }
}
