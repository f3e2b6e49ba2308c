//! The socket to a PostgreSQL server: TLS is begun here, for the SQL session and for the replication connection alike. What the server asks for at
//! the log-in is looked at before it is answered (`require_auth`), and how much it answers is counted.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::Config;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::endpoint::{Address, Endpoint};
use super::login::Login;
use crate::tls::{self, Tls};

/// Bytes of one answer: a catalog of 60,000 tables has 6 MB, a page of the outbox at most 30.
const ANSWER: u64 = 64 << 20;

/// What an answer is that is longer.
pub const TOO_LONG: &str = "the server's answer is larger than 64 MiB";

/// Anything that carries bytes both ways.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A connected socket.
pub struct Link {
    socket: Box<dyn Socket>,
    /// What SCRAM can be bound to, and whether there is TLS at all.
    encrypted: Option<Option<Vec<u8>>>,
    login: Login,
    meter: Option<Meter>,
}

/// How many bytes may come before somebody asks again.
#[derive(Clone, Default)]
pub struct Meter(Arc<AtomicU64>, Arc<AtomicU64>);

impl Meter {
    /// Another answer is expected.
    pub fn renew(&self) {
        self.0.store(ANSWER, Ordering::Relaxed);
    }

    /// The same until what is handed out here is dropped: what comes beside the answer does not renew it.
    pub fn begin(&self) -> Question {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.renew();
        Question(self.clone())
    }

    /// Something came that nobody had asked for.
    pub fn was_told(&self) {
        if self.1.load(Ordering::Relaxed) == 0 {
            self.renew();
        }
    }

    /// Did it end because it was too long?
    pub fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// So many bytes of it are there.
    pub fn spend(&self, bytes: u64) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(bytes), Ordering::Relaxed);
        match left < bytes {
            true => Err(io::Error::other(TOO_LONG)),
            false => Ok(()),
        }
    }
}

/// An answer is awaited.
pub struct Question(Meter);

impl Drop for Question {
    fn drop(&mut self) {
        self.0.1.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not encrypted as `sslmode` demands it.
    #[error("{0}")]
    Tls(String),
    /// It answers the wish for TLS with something else.
    #[error("unexpected message {0:?} from the server")]
    Unexpected(char),
}

impl Link {
    /// Connects, and shakes hands if TLS is wanted. With a `meter` answers are bounded.
    pub async fn open(endpoint: &Endpoint, meter: Option<Meter>) -> Result<Link, Error> {
        let login = Login::new(endpoint.methods().clone());
        let (socket, encrypted) = match endpoint.address() {
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                keep_alive(&stream, endpoint.config())?;
                encrypt(stream, endpoint).await?
            }
            Address::Unix(path) => (Box::new(UnixStream::connect(path).await?) as Box<dyn Socket>, None),
        };
        meter.iter().for_each(Meter::renew);
        Ok(Link { socket, encrypted, login, meter })
    }

    /// `tls-server-end-point` of RFC 5929, if there is TLS and its certificate names a hash.
    pub fn end_point(&self) -> Option<Vec<u8>> {
        self.encrypted.clone().flatten()
    }

    /// Is there TLS?
    pub fn is_encrypted(&self) -> bool {
        self.encrypted.is_some()
    }
}

/// What a server without TLS means.
pub const NOT_SPOKEN: &str =
    "the server does not speak TLS, which sslmode demands: set ssl = on in postgresql.conf, or use sslmode=prefer";

/// The socket, and what can be bound to if it is encrypted.
type Encrypted = (Box<dyn Socket>, Option<Option<Vec<u8>>>);

async fn encrypt(mut stream: TcpStream, endpoint: &Endpoint) -> Result<Encrypted, Error> {
    let Some(mode) = endpoint.tls() else { return Ok((Box::new(stream), None)) };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // One byte and no more: what a man in the middle puts behind it must not be taken for the server's encrypted words.
    match stream.read_u8().await? {
        b'S' => {
            let tls = Tls::new(mode).map_err(|error| Error::Tls(error.to_string()))?;
            let stream = tls.connect(endpoint.name(), stream).await.map_err(|error| match error.transient {
                true => Error::Io(io::Error::other(error.sentence)),
                false => Error::Tls(error.sentence),
            })?;
            let end_point = stream.server_end_point();
            Ok((Box::new(stream), Some(end_point)))
        }
        b'N' if mode.required => Err(Error::Tls(NOT_SPOKEN.into())),
        b'N' => Ok((Box::new(stream), None)),
        // An error, for example a server without a process to spare.
        other => Err(Error::Unexpected(char::from(other))),
    }
}

fn keep_alive(stream: &TcpStream, config: &Config) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    if config.get_keepalives() {
        let mut probes = socket2::TcpKeepalive::new().with_time(config.get_keepalives_idle());
        if let Some(interval) = config.get_keepalives_interval() {
            probes = probes.with_interval(interval);
        }
        if let Some(retries) = config.get_keepalives_retries() {
            probes = probes.with_retries(retries);
        }
        socket.set_tcp_keepalive(&probes)?;
    }
    socket.set_tcp_user_timeout(config.get_tcp_user_timeout().copied())
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = read {
            let new = buffer.filled().get(before..).unwrap_or_default();
            let link = self.as_mut().get_mut();
            link.login.hear(new).map_err(|sentence| io::Error::new(io::ErrorKind::PermissionDenied, sentence))?;
            if let Some(meter) = &link.meter {
                meter.spend(new.len() as u64)?;
            }
        }
        read.map_err(|error| match tls::is_alert(&error) {
            // With TLS 1.3 the server judges our certificate only after the handshake.
            true => io::Error::new(io::ErrorKind::PermissionDenied, tls::explain(&error, "the server")),
            false => error,
        })
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl TlsStream for Link {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// For tokio-postgres: hands have been shaken already.
pub struct Shaken;

impl TlsConnect<Link> for Shaken {
    type Stream = Link;
    type Error = io::Error;
    type Future = Ready<Result<Link, io::Error>>;

    fn connect(self, link: Link) -> Self::Future {
        ready(Ok(link))
    }
}
