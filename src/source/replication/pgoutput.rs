//! Decoder of pgoutput's messages, protocol version 1 (manual: "Logical Replication Message Formats").
//!
//! Nothing is copied: a [`Tuple`] borrows the bytes of its frame. Any bytes are safe to decode; what is not a message
//! is an [`Error`], never a panic, and trailing bytes are an error too: they would mean that we misread the rest.

use super::super::clock::Timestamp;
use super::super::lsn::{Lsn, Xid};
use super::oversized::LEFT_OUT;

/// A message of the stream. Origin, which waltag has no use for, is [`Message::Other`].
#[derive(Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields' names are the manual's")]
pub enum Message<'a> {
    /// Start of a committed transaction. `final_lsn` is the LSN of its commit record.
    Begin { final_lsn: Lsn, committed: Timestamp, xid: Xid },
    /// End of a transaction. `end_lsn` is what may be confirmed; `commit_lsn` is not.
    Commit { commit_lsn: Lsn, end_lsn: Lsn },
    /// Shape of a table. Repeats after ALTER, TRUNCATE and reconnects.
    Relation(Relation<'a>),
    /// A new row.
    Insert { relation: u32, new: Tuple<'a> },
    /// A changed row. `old` is there when the identity is FULL, or when a column of the identity changed.
    Update { relation: u32, old: Option<Old<'a>>, new: Tuple<'a> },
    /// A deleted row.
    Delete { relation: u32, old: Old<'a> },
    /// Emptied tables: leaves of a partitioned table, never its root.
    Truncate { relations: Relations<'a> },
    /// A type that is not built in; `name` is that of its base type when it is a domain.
    Type { oid: u32, namespace: &'a str, name: &'a str },
    /// A message that somebody put into the log. Any role can. A transactional one comes within its transaction, and only if that committed.
    Message { transactional: bool, prefix: &'a str, content: &'a [u8] },
    /// Origin.
    Other,
}

/// Old row of an update or delete.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Old<'a> {
    /// `O`: every column (REPLICA IDENTITY FULL).
    Full(Tuple<'a>),
    /// `K`: the identity's columns; all others stand there as NULL and mean nothing.
    Key(Tuple<'a>),
}

/// Table as the server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Relation<'a> {
    /// Its OID: names later messages.
    pub oid: u32,
    /// Schema; empty for `pg_catalog`.
    pub namespace: &'a str,
    /// Table name.
    pub name: &'a str,
    /// `relreplident`: `d`, `n`, `f` or `i`.
    pub identity: u8,
    /// Published columns in order.
    pub columns: Vec<Column<'a>>,
}

/// Column of a [`Relation`].
#[derive(Clone, Debug, PartialEq)]
pub struct Column<'a> {
    /// Part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: &'a str,
    /// OID of its type.
    pub type_oid: u32,
}

/// Row, still encoded: `count` columns in `bytes`, whose lengths were checked by the decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuple<'a> {
    count: u16,
    bytes: &'a [u8],
}

/// One column of a [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the update did not touch: neither NULL nor empty, just not sent.
    Unchanged,
    /// Text output of the type.
    Text(&'a [u8]),
    /// Too long to be held ([`super::oversized`]): sent, and not to be had.
    LeftOut,
    /// Binary output; never asked for, so never seen.
    Binary(&'a [u8]),
}

/// OIDs of a Truncate message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relations<'a>(&'a [u8]);

/// What was wrong with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The message ends before its content does.
    #[error("pgoutput message ends early")]
    Truncated,
    /// Bytes are left after the content.
    #[error("pgoutput message has {0} bytes too many")]
    Trailing(usize),
    /// A tag that no protocol 1 message has.
    #[error("unknown pgoutput tag {0:#04x}")]
    Tag(u8),
    /// A name that is not UTF-8 although the session asked for it.
    #[error("pgoutput name is not UTF-8")]
    Name,
}

impl<'a> Message<'a> {
    /// Decodes the content of one XLogData frame.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut read = Reader(bytes);
        let message = match read.u8()? {
            b'B' => {
                let final_lsn = read.lsn()?;
                let committed = Timestamp(read.u64()?);
                Message::Begin { final_lsn, committed, xid: Xid(read.u32()?) }
            }
            b'C' => {
                let _flags = read.u8()?;
                let message = Message::Commit { commit_lsn: read.lsn()?, end_lsn: read.lsn()? };
                let _commit_time = read.u64()?;
                message
            }
            b'R' => Message::Relation(read.relation()?),
            b'I' => Message::Insert { relation: read.u32()?, new: read.marked(b'N')? },
            b'U' => {
                let relation = read.u32()?;
                let (old, mark) = match read.u8()? {
                    b'K' => (Some(Old::Key(read.tuple()?)), read.u8()?),
                    b'O' => (Some(Old::Full(read.tuple()?)), read.u8()?),
                    mark => (None, mark),
                };
                if mark != b'N' {
                    return Err(Error::Tag(mark));
                }
                Message::Update { relation, old, new: read.tuple()? }
            }
            b'D' => {
                let relation = read.u32()?;
                let old = match read.u8()? {
                    b'K' => Old::Key(read.tuple()?),
                    b'O' => Old::Full(read.tuple()?),
                    mark => return Err(Error::Tag(mark)),
                };
                Message::Delete { relation, old }
            }
            b'T' => {
                let count = read.u32()? as usize;
                let _options = read.u8()?;
                Message::Truncate { relations: Relations(read.take(count.checked_mul(4).ok_or(Error::Truncated)?)?) }
            }
            b'Y' => Message::Type { oid: read.u32()?, namespace: read.name()?, name: read.name()? },
            b'M' => {
                let (flags, _lsn, prefix) = (read.u8()?, read.lsn()?, read.name()?);
                let length = read.u32()? as usize;
                Message::Message { transactional: flags & 1 != 0, prefix, content: read.take(length)? }
            }
            b'O' => return Ok(Message::Other),
            tag => return Err(Error::Tag(tag)),
        };
        match read.0.len() {
            0 => Ok(message),
            left => Err(Error::Trailing(left)),
        }
    }
}

impl<'a> Tuple<'a> {
    /// The columns in order.
    pub fn values(self) -> impl Iterator<Item = Value<'a>> {
        let mut read = Reader(self.bytes);
        (0..self.count).map_while(move |_| read.value().ok())
    }
}

impl Relations<'_> {
    /// The OIDs in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.chunks_exact(4).map(|oid| oid.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }
}

/// What is left to read of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Error> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn lsn(&mut self) -> Result<Lsn, Error> {
        Ok(Lsn(self.u64()?))
    }

    fn name(&mut self) -> Result<&'a str, Error> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Error::Truncated)?;
        let name = self.take(end)?;
        self.u8()?;
        std::str::from_utf8(name).map_err(|_| Error::Name)
    }

    fn relation(&mut self) -> Result<Relation<'a>, Error> {
        let (oid, namespace, name, identity) = (self.u32()?, self.name()?, self.name()?, self.u8()?);
        let count = self.u16()?;
        let mut columns = Vec::new();
        for _ in 0..count {
            let (flags, name, type_oid) = (self.u8()?, self.name()?, self.u32()?);
            let _type_modifier = self.u32()?;
            columns.push(Column { key: flags & 1 != 0, name, type_oid });
        }
        Ok(Relation { oid, namespace, name, identity, columns })
    }

    fn marked(&mut self, expected: u8) -> Result<Tuple<'a>, Error> {
        match self.u8()? {
            mark if mark == expected => self.tuple(),
            mark => Err(Error::Tag(mark)),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, Error> {
        let count = self.u16()?;
        let start = self.0;
        for _ in 0..count {
            self.value()?;
        }
        let (bytes, _) = start.split_at_checked(start.len() - self.0.len()).ok_or(Error::Truncated)?;
        Ok(Tuple { count, bytes })
    }

    fn value(&mut self) -> Result<Value<'a>, Error> {
        match self.u8()? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            LEFT_OUT => Ok(Value::LeftOut),
            kind @ (b't' | b'b') => {
                let length = self.u32()? as usize;
                let bytes = self.take(length)?;
                Ok(if kind == b't' { Value::Text(bytes) } else { Value::Binary(bytes) })
            }
            kind => Err(Error::Tag(kind)),
        }
    }
}

#[cfg(test)]
mod tests;
