//! The SQL session beside the stream: it answers the fence, reads the catalog, and its end is the sign to let go of the
//! stream (a fast shutdown ends backends first and then waits for us).

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::endpoint::Endpoint;
use super::server_error::ServerError;
use crate::tls::{self, Tls};

/// Settings that every session of ours pins, because role and database may set others and they change the text of
/// values, hence the tags; `synchronous_commit` so that none of our own commits ever waits for a standby.
pub const PINNED: [(&str, &str); 11] = [
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
];

/// Switches every limit off that role or database may set, as far as this version knows it: a stream that goes on for
/// months is idle, and in one transaction, for longer than any of them.
pub const UNLIMITED: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN \
    ('statement_timeout', 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout')";

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
pub struct Sql(Arc<Client>);

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
            None if deepest(&error) == "server does not support TLS" => Error::Refused(NOT_SPOKEN.into()),
            None if error.to_string().starts_with("authentication error") => Error::Refused(deepest(&error)),
            None if deepest(&error).contains("received fatal alert") => {
                Error::Refused(format!("the server refuses our side of TLS ({}): {}", deepest(&error), tls::ALERT))
            }
            None => match tls_error(&error) {
                Some(tls::Error { sentence, transient: false }) => Error::Refused(sentence),
                Some(tls::Error { sentence, .. }) => Error::Away(sentence),
                None => Error::Away(deepest(&error)),
            },
        }
    }
}

/// A handshake that failed has our own error inside.
fn tls_error(error: &tokio_postgres::Error) -> Option<tls::Error> {
    std::error::Error::source(error)?.downcast_ref().cloned()
}

/// What a server without TLS means.
pub const NOT_SPOKEN: &str =
    "the server does not speak TLS, which sslmode demands: set ssl = on in postgresql.conf, or use sslmode=prefer";

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
        let pins: String = PINNED.iter().map(|(name, value)| format!("SET {name} = '{value}';")).collect();
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
        let connecting = async {
            let Some(mode) = endpoint.tls() else {
                let (client, connection) = config.connect(NoTls).await?;
                return Ok((client, tokio::spawn(drive(connection, wake))));
            };
            let tls = Tls::new(mode).map_err(|error| Error::Refused(error.sentence))?;
            let (client, connection) = config.connect(tls).await?;
            Ok::<_, Error>((client, tokio::spawn(drive(connection, wake))))
        };
        let connected = timeout(limit, connecting).await;
        let (client, driver) = connected.map_err(|_| Error::Away(format!("no answer within {limit:?}")))??;
        Ok(Session { sql: Sql(Arc::new(client)), driver, woken })
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
        Ok(self.0.batch_execute(sql).await?)
    }

    /// Runs one query by the simple protocol: every value is text, and poolers need no prepared statements. A server that
    /// does not answer within [`QUERY_LIMIT`] is gone.
    pub async fn rows(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, Error> {
        let answer = timeout(QUERY_LIMIT, self.0.simple_query(sql));
        Ok(rows(answer.await.map_err(|_| Error::mute())??))
    }

    /// The same for a look that may be given up: nothing if it takes longer than `limit`, or is not allowed.
    pub async fn rows_within(&self, limit: Duration, sql: &str) -> Result<Option<Vec<SimpleQueryRow>>, Error> {
        let limit = limit.as_millis();
        // Statements that are sent as one are one transaction.
        match self.rows(&format!("SET LOCAL statement_timeout = {limit}; {sql}")).await {
            Ok(rows) => Ok(Some(rows)),
            Err(Error::Server(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same beside a loop: the query runs while the future is polled, and does not borrow the session.
    pub fn ask(&self, sql: impl Into<Cow<'static, str>>) -> Answer {
        let (session, sql) = (self.clone(), sql.into());
        Box::pin(async move { session.rows(&sql).await })
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
async fn drive<S, T>(mut connection: Connection<S, T>, wake: Sender<()>) -> Result<(), tokio_postgres::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(_) = message? {
            // Full: one is waiting already.
            let _ = wake.try_send(());
        }
    }
    Ok(())
}

/// The rows among a simple query's messages.
fn rows(messages: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// A text as an SQL literal.
pub fn literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}

/// A name as an SQL identifier, always quoted.
pub fn identifier(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        assert_eq!(identifier("odd \"name\""), "\"odd \"\"name\"\"\"");
        assert_eq!(literal("it's").trim(), "'it''s'");
    }
}
