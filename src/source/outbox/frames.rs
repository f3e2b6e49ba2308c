//! Rows of the outbox as the messages that pgoutput would have sent (manual: "Logical Replication Message Formats").

use std::collections::{HashMap, VecDeque};

use super::poll::{Page, Row, WITHIN};
use super::polls::Seen;
use super::shapes::{Known, Shape};
use crate::rules::plan::REST;
use crate::source::PREFIX;
use crate::source::lsn::Lsn;

/// What arrives.
pub enum Frame {
    /// A message.
    Data(Vec<u8>),
    /// A poll was complete: everything visible in the snapshot has arrived.
    Complete(Seen),
    /// Writers have found the outbox full since the poll before.
    Skipped,
    /// In the server's log, what follows ends before this.
    Logged(Lsn),
    /// A relation belongs to another, whose trigger it was.
    Root(u32, u32),
    /// A row of a table that nobody knows any more.
    Lost,
}

/// What was sent so far.
#[derive(Default)]
pub struct Builder {
    /// The transaction that is not complete, and its position.
    open: Option<(u64, u64)>,
    /// Of this poll.
    transactions: u64,
    /// As each relation was described last.
    described: HashMap<u32, (Shape, Vec<String>)>,
}

impl Builder {
    /// Appends the messages of a page; `begin` is the position of its poll. A transaction that is not complete goes on in the next page.
    pub fn build(&mut self, page: Page, shapes: &Known, begin: Lsn, out: &mut VecDeque<Frame>) {
        if let Some(log) = page.first.filter(|_| !page.rows.is_empty()) {
            out.push_back(Frame::Logged(log));
        }
        if page.full {
            out.push_back(Frame::Skipped);
        }
        if page.first.is_some() {
            self.open = None;
            self.transactions = 0;
        }
        for row in page.rows {
            if self.open.is_some_and(|(open, _)| open != row.xid) {
                self.commit(out);
            }
            if self.open.is_none() {
                self.transactions = (self.transactions + 1).min((1 << WITHIN) - 2);
                let position = begin.0 + self.transactions;
                self.open = Some((row.xid, position));
                let mut data = vec![b'B'];
                data.extend(position.to_be_bytes());
                data.extend(row.at.0.to_be_bytes());
                data.extend((row.xid as u32).to_be_bytes());
                out.push_back(Frame::Data(data));
            }
            self.changes(row, shapes, out);
        }
        if let Some(snapshot) = page.complete {
            self.commit(out);
            let position = Lsn(begin.0 | ((1 << WITHIN) - 1));
            out.push_back(Frame::Complete(Seen { position, snapshot, skipped: page.skipped }));
        }
    }

    fn commit(&mut self, out: &mut VecDeque<Frame>) {
        let Some((_, position)) = self.open.take() else { return };
        let mut data = vec![b'C', 0];
        data.extend(position.to_be_bytes());
        data.extend(position.to_be_bytes());
        data.extend(0_u64.to_be_bytes());
        out.push_back(Frame::Data(data));
    }

    fn changes(&mut self, row: Row, shapes: &Known, out: &mut VecDeque<Frame>) {
        if row.kind == b'm' {
            let content = row.names.first().map(String::as_bytes).unwrap_or_default();
            let mut data = vec![b'M', 1];
            data.extend(0_u64.to_be_bytes());
            data.extend([PREFIX.as_bytes(), b"\0"].concat());
            data.extend((content.len() as u32).to_be_bytes());
            data.extend(content);
            out.push_back(Frame::Data(data));
            return;
        }
        let Some(shape) = shapes.of(row.relation, row.root) else {
            out.push_back(Frame::Lost);
            return;
        };
        let mut names = row.names;
        let compared = names.last().is_some_and(|last| last == REST);
        match row.kind {
            b't' => names = shape.columns.iter().map(|(name, _)| name.clone()).collect(),
            // Nothing is known of it but that it happened.
            kind if !matches!(kind, b'i' | b'u' | b'd') => names.clear(),
            // What was not compared may have changed.
            _ if !compared => names.push(REST.into()),
            _ => {}
        }
        self.describe(row.relation, row.root, shape, &names, out);
        let relation = row.relation.to_be_bytes();
        let data = |kind: u8, rest: &[u8]| Frame::Data([&[kind], &relation[..], rest].concat());
        let width = names.len();
        let tuple = |mark: u8, values: Option<&Vec<Option<String>>>| tuple(mark, values, width, compared);
        let (old, new) = (row.old.as_ref(), row.new.as_ref());
        match row.kind {
            b't' => out.push_back(Frame::Data([b"T", &1_u32.to_be_bytes()[..], &[0], &relation[..]].concat())),
            b'i' => out.push_back(data(b'I', &tuple(b'N', new))),
            b'u' => out.push_back(data(b'U', &[tuple(b'O', old), tuple(b'N', new)].concat())),
            b'd' => out.push_back(data(b'D', &tuple(b'O', old))),
            _ => {
                out.push_back(data(b'I', &tuple(b'N', None)));
                out.push_back(data(b'U', &tuple(b'N', None)));
                out.push_back(data(b'D', &tuple(b'O', None)));
            }
        }
    }

    /// A Relation message, if it was described otherwise before.
    fn describe(&mut self, relation: u32, root: u32, shape: &Shape, names: &[String], out: &mut VecDeque<Frame>) {
        if self.described.get(&relation).is_some_and(|(known, columns)| known == shape && columns == names) {
            return;
        }
        out.push_back(Frame::Root(relation, root));
        let mut data = vec![b'R'];
        data.extend(relation.to_be_bytes());
        data.extend([shape.schema.as_bytes(), b"\0", shape.name.as_bytes(), b"\0f"].concat());
        data.extend((names.len() as u16).to_be_bytes());
        for name in names {
            let type_oid = shape.columns.iter().find(|(column, _)| column == name).map_or(0, |(_, type_oid)| *type_oid);
            data.push(1);
            data.extend([name.as_bytes(), b"\0"].concat());
            data.extend(type_oid.to_be_bytes());
            data.extend((-1_i32).to_be_bytes());
        }
        out.push_back(Frame::Data(data));
        self.described.insert(relation, (shape.clone(), names.to_vec()));
    }
}

/// The columns of a row: those that are written down, and the rest, which without a comparison is not known to be the same.
fn tuple(mark: u8, values: Option<&Vec<Option<String>>>, width: usize, compared: bool) -> Vec<u8> {
    let mut data = vec![mark];
    data.extend((width as u16).to_be_bytes());
    for index in 0..width {
        match values.and_then(|values| values.get(index)) {
            Some(Some(text)) => {
                data.push(b't');
                data.extend((text.len() as u32).to_be_bytes());
                data.extend(text.bytes());
            }
            None if index + 1 == width && !compared => {
                let unknown: &[u8] = if mark == b'O' { b"u" } else { b"t\0\0\0\0" };
                data.extend(unknown);
            }
            Some(None) | None => data.push(b'n'),
        }
    }
    data
}
