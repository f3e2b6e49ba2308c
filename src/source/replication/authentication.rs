//! The answers to a server that asks who we are: cleartext, MD5 and SCRAM-SHA-256 (manual: "Message Flow", "SASL
//! Authentication"). The cryptography is `postgres-protocol`'s.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend::Message, frontend};

/// Why authentication stopped on our side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server wants a password, and there is none.
    #[error("the server asks for a password and none was given")]
    NoPassword,
    /// A method that waltag does not speak.
    #[error("the server asks for {0}, which waltag does not speak; allow scram-sha-256 in pg_hba.conf")]
    Method(&'static str),
    /// The server's part of the exchange was wrong.
    #[error("authentication failed: {0}")]
    Exchange(#[from] std::io::Error),
}

/// The state of one log-in.
pub struct Challenge<'a> {
    user: &'a str,
    password: Option<&'a [u8]>,
    scram: Option<sasl::ScramSha256>,
}

impl<'a> Challenge<'a> {
    /// Starts with what the DSN knows.
    pub fn new(user: &'a str, password: Option<&'a [u8]>) -> Challenge<'a> {
        Challenge { user, password, scram: None }
    }

    /// Writes the answer to one authentication message into `out`.
    pub fn answer(&mut self, message: &Message, out: &mut BytesMut) -> Result<(), Error> {
        match message {
            Message::AuthenticationCleartextPassword => frontend::password_message(self.password()?, out)?,
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(self.user.as_bytes(), self.password()?, body.salt());
                frontend::password_message(hash.as_bytes(), out)?;
            }
            Message::AuthenticationSasl(body) => {
                if !body.mechanisms().any(|name| Ok(name == sasl::SCRAM_SHA_256))? {
                    return Err(Error::Method("SASL without SCRAM-SHA-256"));
                }
                // Never `y,,` (unrequested): a server that offers -PLUS takes it for a downgrade and refuses.
                let scram = sasl::ScramSha256::new(self.password()?, sasl::ChannelBinding::unsupported());
                frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), out)?;
                self.scram = Some(scram);
            }
            Message::AuthenticationSaslContinue(body) => {
                let scram = self.scram.as_mut().ok_or(Error::Method("SASL out of turn"))?;
                scram.update(body.data())?;
                frontend::sasl_response(scram.message(), out)?;
            }
            Message::AuthenticationSaslFinal(body) => {
                self.scram.as_mut().ok_or(Error::Method("SASL out of turn"))?.finish(body.data())?;
            }
            Message::AuthenticationGss | Message::AuthenticationKerberosV5 | Message::AuthenticationSspi => {
                return Err(Error::Method("GSSAPI, Kerberos or SSPI"));
            }
            _ => return Err(Error::Method("an unknown method")),
        }
        Ok(())
    }

    fn password(&self) -> Result<&'a [u8], Error> {
        self.password.ok_or(Error::NoPassword)
    }
}
