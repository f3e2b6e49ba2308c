//! Which certificates are accepted under which `sslmode`.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::{Verify, store};

#[derive(Debug)]
struct Verifier {
    verify: Verify,
    /// None verifies nothing.
    chain: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

/// For these trusted certificates. The error is a sentence.
pub(super) fn new(
    verify: Verify,
    roots: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let chain = match verify {
        Verify::Nothing => None,
        Verify::Chain | Verify::Name => {
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store(&roots)), provider.clone());
            Some(builder.build().map_err(|error| format!("no usable certificate in sslrootcert: {error}"))?)
        }
    };
    Ok(Arc::new(Verifier { verify, chain, roots, provider }))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let verified = chain.verify_server_cert(certificate, intermediates, name, ocsp, now);
        let Err(Error::InvalidCertificate(reason)) = &verified else { return verified };
        match reason {
            // The chain is good: the name is looked at last.
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
                if self.verify == Verify::Chain =>
            {
                Ok(ServerCertVerified::assertion())
            }
            // A certificate that signed itself, as in the PostgreSQL manual, given as its own root. Its dates were looked at
            // before; webpki only objects that an authority serves.
            CertificateError::Other(other)
                if other.to_string().contains("CaUsedAsEndEntity") && self.roots.contains(certificate) =>
            {
                if self.verify == Verify::Name {
                    rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            _ => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
