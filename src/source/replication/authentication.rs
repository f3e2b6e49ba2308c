//! The answers to a server that asks who we are: cleartext, MD5 and SCRAM-SHA-256 (manual: "Message Flow", "SASL
//! Authentication"). The cryptography is `postgres-protocol`'s.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend::Message, frontend};
use tokio_postgres::config::ChannelBinding;

/// Why authentication stopped on our side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server wants a password, and there is none.
    #[error("the server asks for a password and none was given")]
    NoPassword,
    /// A method that waltag does not speak.
    #[error("the server asks for {0}, which waltag does not speak; allow scram-sha-256 in pg_hba.conf")]
    Method(&'static str),
    /// `channel_binding=require`, and there is none.
    #[error("channel_binding=require, but the server does not offer SCRAM-SHA-256-PLUS over TLS")]
    NoBinding,
    /// The server's part of the exchange was wrong.
    #[error("authentication failed: {0}")]
    Exchange(#[from] std::io::Error),
}

/// The state of one log-in.
pub struct Challenge<'a> {
    user: &'a str,
    password: Option<&'a [u8]>,
    /// What the encrypted connection can be bound to.
    end_point: Option<Vec<u8>>,
    binding: ChannelBinding,
    scram: Option<sasl::ScramSha256>,
    bound: bool,
}

impl<'a> Challenge<'a> {
    /// Starts with what the DSN knows.
    pub fn new(
        user: &'a str,
        password: Option<&'a [u8]>,
        end_point: Option<Vec<u8>>,
        binding: ChannelBinding,
    ) -> Challenge<'a> {
        Challenge { user, password, end_point, binding, scram: None, bound: false }
    }

    /// The server lets us in: enough, unless a bound connection is demanded.
    pub fn passed(&self) -> Result<(), Error> {
        if self.binding == ChannelBinding::Require && !self.bound { Err(Error::NoBinding) } else { Ok(()) }
    }

    /// Writes the answer to one authentication message into `out`.
    pub fn answer(&mut self, message: &Message, out: &mut BytesMut) -> Result<(), Error> {
        match message {
            // Without SCRAM there is nothing to bind: not even the password may be sent then.
            Message::AuthenticationCleartextPassword | Message::AuthenticationMd5Password(_)
                if self.binding == ChannelBinding::Require =>
            {
                return Err(Error::NoBinding);
            }
            Message::AuthenticationCleartextPassword => frontend::password_message(self.password()?, out)?,
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(self.user.as_bytes(), self.password()?, body.salt());
                frontend::password_message(hash.as_bytes(), out)?;
            }
            Message::AuthenticationSasl(body) => {
                let (mut plain, mut plus) = (false, false);
                body.mechanisms().for_each(|name| {
                    plain |= name == sasl::SCRAM_SHA_256;
                    plus |= name == sasl::SCRAM_SHA_256_PLUS;
                    Ok(())
                })?;
                let end_point = self.end_point.clone().filter(|_| self.binding != ChannelBinding::Disable);
                let (mechanism, binding) = match end_point {
                    Some(end_point) if plus => {
                        self.bound = true;
                        (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point))
                    }
                    // We could have, the server did not offer: it refuses if somebody between took its offer away.
                    Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
                    None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
                };
                if !plain && !self.bound {
                    return Err(Error::Method("SASL without SCRAM-SHA-256"));
                }
                if self.binding == ChannelBinding::Require && !self.bound {
                    return Err(Error::NoBinding);
                }
                let scram = sasl::ScramSha256::new(self.password()?, binding);
                frontend::sasl_initial_response(mechanism, scram.message(), out)?;
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
