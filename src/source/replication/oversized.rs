//! A message of the stream that is too large to be held: a row of a gigabyte is a legal row. It is read as it arrives, and values that are long are
//! left out, so that what comes of it is a message like any other (manual: "Logical Replication Message Formats").

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::super::lsn::Lsn;

/// Bytes of a CopyData from which on it is read like this.
pub const LARGE: usize = 16 << 20;
/// Longer values are left out, ...
const VALUE: usize = 64 << 10;
/// ... and so are all once so much was kept.
const KEPT: usize = 8 << 20;
/// Bytes of a logical message that are kept: one more than `waltag.invalidate` sends.
const CONTENT: usize = (64 << 10) + 1;
/// Bytes of a prefix.
const PREFIX: usize = 1 << 10;
/// XLogData: its letter, where it starts and ends, when it was sent.
const HEAD: usize = 25;
/// The letter of a value that was left out; pgoutput has none like it.
pub const LEFT_OUT: u8 = b'x';

/// Part of a message, and what comes next.
#[derive(Debug)]
pub struct Oversized {
    /// Bytes of the message that have not come.
    left: usize,
    step: Step,
    end: Lsn,
    out: BytesMut,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Head,
    Kind,
    Relation,
    /// `K`, `O` or `N`; or the end.
    Row,
    Columns,
    /// So many are to come.
    Column(u16),
    /// Bytes of a value, before so many columns.
    Keep(usize, u16),
    Skip(usize, u16),
    /// Flags and position of a logical message.
    Flags,
    /// So many bytes of it were kept.
    Prefix(usize),
    Length,
}

impl Oversized {
    /// A CopyData of so many bytes.
    pub fn new(length: usize) -> Oversized {
        Oversized { left: length, step: Step::Head, end: Lsn(0), out: BytesMut::new() }
    }

    /// Takes what has arrived: position and message once it is complete. An error if this is no row and no logical message: nothing else is so large.
    pub fn take(&mut self, read: &mut BytesMut) -> Result<Option<(Lsn, Bytes)>, char> {
        loop {
            let wrong = || Err('d');
            match self.step {
                Step::Head => {
                    let Some(mut head) = self.bytes(read, HEAD)? else { return Ok(None) };
                    match head.get_u8() {
                        b'w' => {}
                        other => return Err(char::from(other)),
                    }
                    let _start = head.get_u64();
                    self.end = Lsn(head.get_u64());
                    self.step = Step::Kind;
                }
                Step::Kind => {
                    let Some(mut kind) = self.bytes(read, 1)? else { return Ok(None) };
                    let kind = kind.get_u8();
                    self.out.put_u8(kind);
                    self.step = match kind {
                        b'I' | b'U' | b'D' => Step::Relation,
                        b'M' => Step::Flags,
                        other => return Err(char::from(other)),
                    };
                }
                Step::Relation => {
                    let Some(relation) = self.bytes(read, 4)? else { return Ok(None) };
                    self.out.put(relation);
                    self.step = Step::Row;
                }
                Step::Row if self.left == 0 => return Ok(Some((self.end, self.out.split().freeze()))),
                Step::Row => {
                    let Some(mark) = self.bytes(read, 1)? else { return Ok(None) };
                    self.out.put(mark);
                    self.step = Step::Columns;
                }
                Step::Columns => {
                    let Some(count) = self.bytes(read, 2)? else { return Ok(None) };
                    self.step = Step::Column(count.clone().get_u16());
                    self.out.put(count);
                }
                Step::Column(0) => self.step = Step::Row,
                Step::Column(count) => match read.first() {
                    None => return Ok(None),
                    Some(b'n' | b'u') => {
                        let Some(kind) = self.bytes(read, 1)? else { return Ok(None) };
                        self.out.put(kind);
                        self.step = Step::Column(count - 1);
                    }
                    Some(b't' | b'b') => {
                        let Some(head) = self.bytes(read, 5)? else { return Ok(None) };
                        let length = head.clone().slice(1..).get_u32() as usize;
                        if length > self.left {
                            return wrong();
                        }
                        self.step = match length > VALUE || self.out.len() + length > KEPT {
                            true => {
                                self.out.put_u8(LEFT_OUT);
                                Step::Skip(length, count - 1)
                            }
                            false => {
                                self.out.put(head);
                                Step::Keep(length, count - 1)
                            }
                        };
                    }
                    Some(_) => return wrong(),
                },
                Step::Keep(length, count) => {
                    let Some(value) = self.bytes(read, length)? else { return Ok(None) };
                    self.out.put(value);
                    self.step = Step::Column(count);
                }
                Step::Skip(0, count) => self.step = Step::Column(count),
                Step::Skip(length, count) => {
                    let part = length.min(read.len());
                    if part == 0 {
                        return Ok(None);
                    }
                    read.advance(part);
                    self.left -= part;
                    self.step = Step::Skip(length - part, count);
                }
                Step::Flags => {
                    let Some(flags) = self.bytes(read, 9)? else { return Ok(None) };
                    self.out.put(flags);
                    self.step = Step::Prefix(0);
                }
                Step::Prefix(kept) => {
                    let part = read.iter().position(|byte| *byte == 0).unwrap_or(read.len()).min(self.left);
                    let own = part.min(PREFIX - kept);
                    self.out.extend_from_slice(read.get(..own).unwrap_or_default());
                    read.advance(part);
                    self.left -= part;
                    self.step = Step::Prefix(kept + own);
                    let Some(end) = self.bytes(read, 1)? else { return Ok(None) };
                    self.out.put(end);
                    self.step = Step::Length;
                }
                Step::Length => {
                    let Some(mut length) = self.bytes(read, 4)? else { return Ok(None) };
                    let length = length.get_u32() as usize;
                    if length != self.left {
                        return Err('M');
                    }
                    let kept = length.min(CONTENT);
                    self.out.put_u32(kept as u32);
                    self.out.put_bytes(0, kept);
                    // Too long to be heard, whatever it says.
                    self.step = Step::Skip(length, 0);
                }
            }
        }
    }

    /// The next bytes, once so many are there.
    fn bytes(&mut self, read: &mut BytesMut, count: usize) -> Result<Option<Bytes>, char> {
        if count > self.left {
            return Err('d');
        }
        if read.len() < count {
            return Ok(None);
        }
        self.left -= count;
        Ok(Some(read.split_to(count).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::replication::pgoutput::{Message, Value};

    fn update(value: usize) -> Vec<u8> {
        let mut data = vec![b'w'];
        data.extend([7, 9, 11].map(u64::to_be_bytes).concat());
        data.extend([b'U', 0, 0, 0, 5]);
        for mark in [b'O', b'N'] {
            data.extend([mark, 0, 3, b't', 0, 0, 0, 1, b'1', b'n', b't']);
            data.extend((value as u32).to_be_bytes());
            data.extend(vec![b'a'; value]);
        }
        data
    }

    /// In pieces of `size` bytes.
    fn taken(data: &[u8], size: usize) -> Result<Option<(Lsn, Bytes)>, char> {
        let (mut oversized, mut read) = (Oversized::new(data.len()), BytesMut::new());
        for piece in data.chunks(size) {
            read.extend_from_slice(piece);
            if let Some(complete) = oversized.take(&mut read)? {
                assert!(read.is_empty());
                return Ok(Some(complete));
            }
        }
        Ok(None)
    }

    #[test]
    fn long_values_are_left_out_and_nothing_else() {
        for size in [1, 7, 4096, usize::MAX] {
            let (end, message) = taken(&update(VALUE + 1), size).unwrap().unwrap();
            let Message::Update { relation: 5, old: Some(_), new } = Message::parse(&message).unwrap() else {
                panic!()
            };
            assert_eq!(end, Lsn(9));
            assert_eq!(new.values().collect::<Vec<_>>(), [Value::Text(b"1"), Value::Null, Value::LeftOut]);
            let short = update(3);
            let (_, message) = taken(&short, size).unwrap().unwrap();
            assert_eq!(message, short[HEAD..], "as it is");
        }
        let mut message = vec![b'w'];
        message.extend([0; 24]);
        message.extend([&b"M\x01"[..], &[0; 8], b"waltag:x\0", &100_000u32.to_be_bytes(), &[b'{'; 100_000]].concat());
        let (_, taken) = taken(&message, 999).unwrap().unwrap();
        let Message::Message { prefix: "waltag:x", content, .. } = Message::parse(&taken).unwrap() else { panic!() };
        assert_eq!(content.len(), CONTENT);
        let mut message = vec![b'w'];
        message.extend([0; 24]);
        message.extend([&b"M\x01"[..], &[0; 8], &[b'p'; 5_000], b"\0", &3u32.to_be_bytes(), b"abc"].concat());
        for size in [1, 999, usize::MAX] {
            let (_, long) = super::tests::taken(&message, size).unwrap().unwrap();
            let Message::Message { prefix, content, .. } = Message::parse(&long).unwrap() else { panic!() };
            assert_eq!((prefix.len(), content.len()), (PREFIX, 3), "a prefix may be as long as a row");
        }
    }

    #[test]
    fn what_is_no_row_is_an_error() {
        let mut data = update(10);
        data.truncate(60);
        assert!(taken(&data, 8).is_err(), "a value is longer than the message");
        let mut data = update(10);
        data[25] = b'R';
        assert!(matches!(taken(&data, 8), Err('R')));
    }
}
