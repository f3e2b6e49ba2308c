//! TLS to PostgreSQL: one rustls configuration for the SQL session and the replication connection. Redis gets the same inputs
//! ([`Files`]): redis-rs builds its own configuration from them.
//!
//! `sslmode` means what it means to libpq (manual: "SSL Support"): `prefer` and `require` encrypt without verifying, unless
//! `require` has a root certificate; `verify-ca` verifies the chain, `verify-full` the name as well.

mod certificate;
mod verifier;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;

use crate::files;

/// How a connection is encrypted and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mode {
    /// A server that does not speak TLS is refused.
    pub required: bool,
    /// What is verified.
    pub verify: Verify,
    /// Certificates and key.
    pub files: Files,
}

/// What is verified of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Nothing: who listens passively learns nothing, who stands between can read all.
    Nothing,
    /// That a trusted authority signed its certificate.
    Chain,
    /// And that the certificate is for this host.
    Name,
}

/// PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Certificates of trusted authorities; those of the system without it.
    pub root: Option<PathBuf>,
    /// Our certificate with its chain, ...
    pub certificate: Option<PathBuf>,
    /// ... and its key.
    pub key: Option<PathBuf>,
}

/// Why there is no encrypted connection, with the remedy.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Error {
    /// What happened, and what to do.
    pub sentence: String,
    /// The connection broke: trying again helps.
    pub transient: bool,
}

impl Error {
    fn new(sentence: impl Into<String>) -> Error {
        Error { sentence: sentence.into(), transient: false }
    }
}

/// The remedy when the server refuses us.
pub const ALERT: &str = "does it demand a client certificate (sslcert and sslkey) of an authority that it trusts?";

/// A usable configuration.
pub struct Tls {
    config: Arc<ClientConfig>,
    verify: Verify,
}

impl Tls {
    /// Reads the files anew: certificates are renewed while the daemon runs.
    pub fn new(mode: &Mode) -> Result<Tls, Error> {
        let Files { root, certificate, key } = &mode.files;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Error::new(error.to_string()))?;
        let roots = match mode.verify {
            Verify::Nothing => Vec::new(),
            Verify::Chain | Verify::Name => roots(root.as_deref())?,
        };
        let verifier = verifier::new(mode.verify, roots, provider).map_err(Error::new)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let config = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                let private = {
                    let content = files::read(key).map_err(|error| unusable("private key", key, error))?;
                    PrivateKeyDer::from_pem_slice(&content).map_err(|error| unusable("private key", key, error))?
                };
                let made = builder.with_client_auth_cert(chain, private);
                made.map_err(|error| unusable("client certificate and key", certificate, error))?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(Error::new("sslcert and sslkey go together")),
        };
        Ok(Tls { config: Arc::new(config), verify: mode.verify })
    }

    /// Shakes hands; `host` is the name that the certificate should be for.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, host: &str, socket: S) -> Result<Stream<S>, Error> {
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            // A name that no certificate can be for does not matter where none is looked at.
            Err(_) if self.verify == Verify::Nothing => ServerName::from(std::net::Ipv4Addr::UNSPECIFIED),
            Err(_) => return Err(Error::new(format!("`{host}` is neither a host name nor an IP address"))),
        };
        let connecting = TlsConnector::from(self.config.clone()).connect(name, socket);
        connecting
            .await
            .map(Stream)
            .map_err(|error| Error { sentence: explain(&error, host), transient: reason(&error).is_none() })
    }
}

/// The trusted certificates: of a file, or of the system.
fn roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, Error> {
    if let Some(file) = file {
        return certificates(file);
    }
    let found = rustls_native_certs::load_native_certs();
    match (found.certs.is_empty(), found.errors.first()) {
        (false, _) => Ok(found.certs),
        (true, Some(error)) => {
            Err(Error::new(format!("the system's certificates cannot be read: {error}; give sslrootcert")))
        }
        (true, None) => Err(Error::new("the system has no certificates: install ca-certificates, or give sslrootcert")),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let content = files::read(file).map_err(|error| unusable("certificate", file, error))?;
    match CertificateDer::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>() {
        Ok(list) if list.is_empty() => Err(Error::new(format!("{} holds no certificate", file.display()))),
        read => read.map_err(|error| unusable("certificate", file, error)),
    }
}

fn unusable(what: &str, file: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(format!("the {what} in {} cannot be used: {error}", file.display()))
}

/// A store of these certificates; those that rustls cannot read are left out.
fn store(certificates: &[CertificateDer<'static>]) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates.iter().cloned());
    store
}

fn reason(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Has the server refused us?
pub fn is_alert(error: &io::Error) -> bool {
    matches!(reason(error), Some(rustls::Error::AlertReceived(_)))
}

/// What a failed handshake means.
pub fn explain(error: &io::Error, host: &str) -> String {
    if is_alert(error) {
        return format!("the server refuses our side of TLS ({error}): {ALERT}");
    }
    let Some(rustls::Error::InvalidCertificate(reason)) = reason(error) else {
        return format!("the TLS handshake failed: {error}");
    };
    use rustls::CertificateError as Reason;
    match reason {
        // The second: an authority of the same name has another key.
        Reason::UnknownIssuer | Reason::BadSignature => format!(
            "the certificate of {host} is signed by no authority that waltag trusts: give the authority's certificate as sslrootcert"
        ),
        Reason::NotValidForName | Reason::NotValidForNameContext { .. } => format!(
            "the certificate is not for {host} ({reason}): connect by the name that it is for, or use sslmode=verify-ca"
        ),
        Reason::Expired | Reason::ExpiredContext { .. } => format!("the certificate of {host} has expired ({reason})"),
        _ if format!("{reason:?}").contains("UnsupportedCertVersion") => format!(
            "the certificate of {host} is of version 1, which is not verified safely: make one of version 3, with a subjectAltName"
        ),
        _ => format!("the certificate of {host} is refused: {reason}"),
    }
}

/// An encrypted connection.
pub struct Stream<S>(tokio_rustls::client::TlsStream<S>);

impl<S> Stream<S> {
    /// `tls-server-end-point` of RFC 5929 for SCRAM-SHA-256-PLUS; none where the certificate's signature names no hash.
    pub fn server_end_point(&self) -> Option<Vec<u8>> {
        let (_, session) = self.0.get_ref();
        certificate::end_point(session.peer_certificates()?.first()?)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
