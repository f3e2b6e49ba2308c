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
    /// The exchange is bound to the connection, ...
    plus: bool,
    /// ... and the server has proven that it knows the password, too.
    proven: bool,
    /// The server lets us in.
    let_in: bool,
}

impl<'a> Challenge<'a> {
    /// Starts with what the DSN knows.
    pub fn new(
        user: &'a str,
        password: Option<&'a [u8]>,
        end_point: Option<Vec<u8>>,
        binding: ChannelBinding,
    ) -> Challenge<'a> {
        Challenge { user, password, end_point, binding, scram: None, plus: false, proven: false, let_in: false }
    }

    /// The server lets us in. A server that asked for a proof and does not give its own is not the one that we know; and
    /// where a bound connection is demanded, anything less could be somebody between.
    pub fn let_in(&mut self) -> Result<(), Error> {
        if self.scram.is_some() && !self.proven {
            return Err(Error::Method("SASL without its own proof"));
        }
        if self.binding == ChannelBinding::Require && !(self.plus && self.proven) {
            return Err(Error::NoBinding);
        }
        self.let_in = true;
        Ok(())
    }

    /// Was [`Challenge::let_in`] reached?
    pub fn is_let_in(&self) -> bool {
        self.let_in
    }

    /// Writes the answer to one authentication message into `out`.
    pub fn answer(&mut self, message: &Message, out: &mut BytesMut) -> Result<(), Error> {
        if self.let_in {
            return Err(Error::Method("another proof after it has let us in"));
        }
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
            Message::AuthenticationSasl(_) if self.scram.is_some() => return Err(Error::Method("SASL twice")),
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
                        self.plus = true;
                        (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point))
                    }
                    // We could have, the server did not offer: it refuses if somebody between took its offer away.
                    Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
                    None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
                };
                if !plain && !self.plus {
                    return Err(Error::Method("SASL without SCRAM-SHA-256"));
                }
                if self.binding == ChannelBinding::Require && !self.plus {
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
                self.proven = true;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// AuthenticationSASL with these mechanisms.
    fn offer(mechanisms: &[&str]) -> Message {
        let list: Vec<u8> = mechanisms.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).chain([0]).collect();
        let length = (8 + list.len()) as u32;
        let bytes = [b"R".as_slice(), &length.to_be_bytes(), &10_u32.to_be_bytes(), &list].concat();
        Message::parse(&mut BytesMut::from(bytes.as_slice())).unwrap().unwrap()
    }

    fn bound() -> Challenge<'static> {
        Challenge::new("u", Some(b"p"), Some(vec![7; 32]), ChannelBinding::Require)
    }

    /// Somebody between who cannot prove anything must not be let through by skipping steps.
    #[test]
    fn a_bound_connection_is_not_skipped() {
        let mut out = BytesMut::new();
        assert!(matches!(bound().let_in(), Err(Error::NoBinding)), "no question at all");
        let mut challenge = bound();
        challenge.answer(&offer(&["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"]), &mut out).unwrap();
        assert!(challenge.let_in().is_err() && !challenge.is_let_in(), "no proof of its own");
        assert!(challenge.answer(&offer(&["SCRAM-SHA-256"]), &mut out).is_err(), "a second offer");
        assert!(matches!(bound().answer(&offer(&["SCRAM-SHA-256"]), &mut out), Err(Error::NoBinding)));
        let mut plain = Challenge::new("u", Some(b"p"), None, ChannelBinding::Prefer);
        plain.answer(&offer(&["SCRAM-SHA-256"]), &mut out).unwrap();
        assert!(plain.let_in().is_err(), "a server that knows no password");
        let mut trusted = Challenge::new("u", None, None, ChannelBinding::Prefer);
        assert!(trusted.let_in().is_ok() && trusted.answer(&offer(&["SCRAM-SHA-256"]), &mut out).is_err());
    }
}
