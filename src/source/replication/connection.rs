//! A replication connection: startup, CopyBoth, status updates and a clean end
//! (manual: "Streaming Replication Protocol"). tokio-postgres has no CopyBoth, so the framing of `postgres-protocol` is
//! driven here by hand.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{backend, frontend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::super::clock::Timestamp;
use super::super::endpoint::Endpoint;
use super::super::link::{self, Link};
use super::super::lsn::Lsn;
use super::super::server_error::ServerError;
use super::authentication::{self, Challenge};
use super::oversized::{LARGE, Oversized};

/// What is read at once, mostly.
const BUFFER: usize = 64 << 10;
/// A buffer that has held more than this is given back.
const LARGEST_BUFFER: usize = 1 << 20;
/// What is asked here has a few rows.
const ANSWER: usize = 1 << 20;
/// What a row costs beside its bytes.
const ROW: usize = 64;
/// Letter and length of a message.
const HEADER: usize = 5;
/// A write that the server does not take for this long means that it is gone: updates are 39 bytes a second.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// An open replication connection. What was read and not yet understood stays in `read`, so [`Connection::next`] may be
/// dropped at any await (it stands in a `select!`).
pub struct Connection {
    socket: Link,
    read: BytesMut,
    /// The most that it has held.
    peak: usize,
    /// A message that is too large to be held is being read.
    large: Option<Oversized>,
    write: BytesMut,
}

/// What the server sends within CopyBoth.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are told with their variants")]
pub enum Frame {
    /// `w`: a message of the output plugin. `end` is the server's end of WAL when it was sent.
    XLogData { end: Lsn, data: Bytes },
    /// `k`: `end` is the last position decoded; `reply` asks for a status at once.
    Keepalive { end: Lsn, reply: bool },
    /// A warning within the stream; PostgreSQL 18 tells so that it skips a dropped publication.
    Notice(ServerError),
}

/// Why the connection cannot be used (any more).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("{0}")]
    Io(std::io::Error),
    /// The server said no.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The server ended the stream.
    #[error("the server ended the replication stream")]
    Ended,
    /// Nothing that it has to say here is so long.
    #[error("the server sent {1} bytes as one message {0:?}")]
    TooLarge(char, usize),
    /// The server did not say what the protocol promises.
    #[error("unexpected message {0:?} from the server")]
    Unexpected(char),
    /// No encrypted connection as `sslmode` demands it.
    #[error("{0}")]
    Tls(String),
    /// We could not prove who we are.
    #[error("{0}")]
    Authentication(#[from] authentication::Error),
}

impl From<link::Error> for Error {
    fn from(error: link::Error) -> Error {
        match error {
            link::Error::Io(error) => Error::from(error),
            link::Error::Tls(sentence) => Error::Tls(sentence),
            link::Error::Unexpected(tag) => Error::Unexpected(tag),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        match error.kind() {
            // Of the link: the server asks for what it must not, or refuses our certificate.
            std::io::ErrorKind::PermissionDenied if error.get_ref().is_some() => Error::Tls(error.to_string()),
            _ => Error::Io(error),
        }
    }
}

/// A row of a replication command's answer, as text.
pub type Row = Vec<Option<String>>;

impl Connection {
    /// Connects and logs in with `replication=database`. `settings` pins session settings against those of role and
    /// database: a startup parameter outranks `ALTER ROLE ... SET`.
    pub async fn open(endpoint: &Endpoint, settings: &[(&str, &str)]) -> Result<Connection, Error> {
        let socket = Link::open(endpoint, None).await?;
        let end_point = socket.end_point();
        let read = BytesMut::with_capacity(BUFFER);
        let mut connection = Connection { socket, read, peak: 0, large: None, write: BytesMut::new() };
        let config = endpoint.config();
        let user = config.get_user().unwrap_or_default();
        let mut parameters =
            vec![("user", user), ("database", config.get_dbname().unwrap_or(user)), ("replication", "database")];
        if let Some(options) = config.get_options() {
            parameters.push(("options", options));
        }
        parameters.extend_from_slice(settings);
        frontend::startup_message(parameters, &mut connection.write)?;
        connection.flush().await?;
        let challenge = Challenge::new(user, config.get_password(), end_point, config.get_channel_binding());
        connection.log_in(challenge).await?;
        Ok(connection)
    }

    async fn log_in(&mut self, mut challenge: Challenge<'_>) -> Result<(), Error> {
        loop {
            match self.message().await? {
                backend::Message::ReadyForQuery(_) if challenge.is_let_in() => return Ok(()),
                backend::Message::ReadyForQuery(_) => return Err(Error::Unexpected('Z')),
                backend::Message::ErrorResponse(body) => return Err(server_error(body.fields())),
                backend::Message::BackendKeyData(_)
                | backend::Message::ParameterStatus(_)
                | backend::Message::NoticeResponse(_) => {}
                backend::Message::AuthenticationOk => challenge.let_in()?,
                message => {
                    challenge.answer(&message, &mut self.write)?;
                    self.flush().await?;
                }
            }
        }
    }

    /// Runs a replication command that answers with rows, such as IDENTIFY_SYSTEM.
    pub async fn query(&mut self, command: &str) -> Result<Vec<Row>, Error> {
        frontend::query(command, &mut self.write)?;
        self.flush().await?;
        let (mut rows, mut failure, mut size) = (Vec::new(), None, 0);
        loop {
            match self.message().await? {
                backend::Message::DataRow(body) => {
                    size += body.buffer().len() + ROW;
                    if size > ANSWER {
                        return Err(Error::TooLarge('D', size));
                    }
                    let mut row = Row::new();
                    let mut ranges = body.ranges();
                    while let Some(range) = ranges.next()? {
                        row.push(range.map(|range| {
                            String::from_utf8_lossy(body.buffer().get(range).unwrap_or_default()).into_owned()
                        }));
                    }
                    rows.push(row);
                }
                backend::Message::ErrorResponse(body) => failure = Some(server_error(body.fields())),
                backend::Message::ReadyForQuery(_) => return failure.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Runs START_REPLICATION and waits until the server has switched to CopyBoth.
    pub async fn start_replication(&mut self, command: &str) -> Result<(), Error> {
        frontend::query(command, &mut self.write)?;
        self.flush().await?;
        let mut failure = None;
        loop {
            // `W` has no place in postgres-protocol: it must be recognised before `Message::parse` sees it.
            if self.skip_copy_both_response().await? {
                return Ok(());
            }
            match self.message().await? {
                backend::Message::ErrorResponse(body) => failure = Some(server_error(body.fields())),
                backend::Message::ReadyForQuery(_) => return Err(failure.unwrap_or(Error::Unexpected('Z'))),
                _ => {}
            }
        }
    }

    async fn skip_copy_both_response(&mut self) -> Result<bool, Error> {
        loop {
            if let Some((tag, length)) = self.too_large()? {
                return Err(Error::TooLarge(char::from(tag), length));
            }
            if let Some(header) = backend::Header::parse(&self.read)? {
                let length = header.len() as usize + 1;
                if header.tag() != b'W' {
                    return Ok(false);
                }
                if self.read.len() >= length {
                    self.read.advance(length);
                    return Ok(true);
                }
            }
            self.fill().await?;
        }
    }

    /// The next frame of the stream. Cancel-safe.
    pub async fn next(&mut self) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// A frame that has already arrived, without touching the socket.
    pub fn buffered(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if let Some(large) = &mut self.large {
                let Some((end, data)) = large.take(&mut self.read).map_err(Error::Unexpected)? else { return Ok(None) };
                self.large = None;
                return Ok(Some(Frame::XLogData { end, data }));
            }
            if let Some((b'd', length)) = self.too_large()? {
                self.read.advance(HEADER);
                self.large = Some(Oversized::new(length));
                continue;
            }
            let data = match self.parse()? {
                None => return Ok(None),
                Some(backend::Message::CopyData(body)) => body.into_bytes(),
                Some(backend::Message::NoticeResponse(body)) => {
                    return Ok(Some(Frame::Notice(ServerError::from_fields(body.fields()))));
                }
                Some(backend::Message::ParameterStatus(_)) => continue,
                Some(backend::Message::ErrorResponse(body)) => return Err(server_error(body.fields())),
                Some(_) => return Err(Error::Ended),
            };
            return frame(data).map(Some);
        }
    }

    /// Sends a Standby status update: `received` as written, `confirmed` as flushed and applied. `ask` sets the reply bit.
    pub async fn status(&mut self, received: Lsn, confirmed: Lsn, ask: bool) -> Result<(), Error> {
        let mut update = BytesMut::with_capacity(34);
        update.put_u8(b'r');
        update.put_u64(received.0);
        update.put_u64(confirmed.0);
        update.put_u64(confirmed.0);
        update.put_u64(Timestamp::now().0);
        update.put_u8(u8::from(ask));
        frontend::CopyData::new(update.freeze())?.write(&mut self.write);
        self.flush().await
    }

    /// Ends the stream: CopyDone, drain until the server is ready again, Terminate; at most `limit`. Closing at once would
    /// make the server log a lost connection; waiting longer would hold up its shutdown.
    pub async fn close(mut self, limit: Duration) {
        let _ = timeout(limit, async {
            frontend::copy_done(&mut self.write);
            self.flush().await?;
            loop {
                match self.message().await? {
                    backend::Message::ReadyForQuery(_) => break,
                    backend::Message::ErrorResponse(_) => return Ok(()),
                    _ => {}
                }
            }
            frontend::terminate(&mut self.write);
            self.flush().await?;
            self.socket.shutdown().await.map_err(Error::from)
        })
        .await;
    }

    async fn message(&mut self) -> Result<backend::Message, Error> {
        loop {
            if let Some(message) = self.parse()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message, if it is there. One that is too large is none of ours: answers have a few lines.
    fn parse(&mut self) -> Result<Option<backend::Message>, Error> {
        match self.too_large()? {
            Some((tag, length)) => Err(Error::TooLarge(char::from(tag), length)),
            None => Ok(backend::Message::parse(&mut self.read)?),
        }
    }

    /// Letter and length of the next message if it is larger than [`LARGE`].
    fn too_large(&self) -> Result<Option<(u8, usize)>, Error> {
        let header = backend::Header::parse(&self.read)?;
        // Its length counts itself.
        let length = |header: &backend::Header| (header.len() as usize).saturating_sub(HEADER - 1);
        Ok(header.map(|header| (header.tag(), length(&header))).filter(|(_, length)| *length > LARGE))
    }

    async fn fill(&mut self) -> Result<(), Error> {
        // A row of 160 MB took a buffer as large, and what is left of a buffer keeps all of it.
        if self.peak > LARGEST_BUFFER && self.read.len() < BUFFER {
            let rest = std::mem::replace(&mut self.read, BytesMut::with_capacity(BUFFER));
            self.read.extend_from_slice(&rest);
            self.peak = 0;
        }
        self.read.reserve(16 << 10);
        let read = self.socket.read_buf(&mut self.read).await?;
        self.peak = self.peak.max(self.read.len());
        if read == 0 { Err(Error::Ended) } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let stalled = || std::io::Error::new(std::io::ErrorKind::TimedOut, "the server does not read what we send");
        let written = async {
            self.socket.write_all_buf(&mut self.write).await?;
            // TLS keeps what the socket does not take at once.
            self.socket.flush().await
        };
        timeout(WRITE_LIMIT, written).await.map_err(|_| stalled())??;
        Ok(())
    }
}

/// SSLRequest, before anything else is said (manual: "SSL Session Encryption"). What SCRAM binds to comes along.
fn server_error(fields: backend::ErrorFields<'_>) -> Error {
    Error::Server(Box::new(ServerError::from_fields(fields)))
}

fn frame(mut data: Bytes) -> Result<Frame, Error> {
    match data.try_get_u8() {
        Ok(b'w') if data.len() >= 24 => {
            let _start = data.get_u64();
            let end = Lsn(data.get_u64());
            let _sent_at = data.get_u64();
            Ok(Frame::XLogData { end, data })
        }
        Ok(b'k') if data.len() >= 17 => {
            let end = Lsn(data.get_u64());
            let _sent_at = data.get_u64();
            Ok(Frame::Keepalive { end, reply: data.get_u8() != 0 })
        }
        Ok(tag) => Err(Error::Unexpected(char::from(tag))),
        Err(_) => Err(Error::Unexpected('d')),
    }
}
