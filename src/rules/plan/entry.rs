//! One template for one cache, bound to the columns of a relation.

use std::borrow::Cow;

use prometheus_client::metrics::counter::Counter;

use super::super::events::{Event, Events};
use super::super::options::{Changes, Old};
use super::super::style::Style;
use super::super::tables::TableName;
use super::super::template::{Name, Piece as Written, Step, Template};
use super::super::value::walk;
use super::super::{Rule, Tag};
use super::changes::BoundChanges;
use super::row::WholeRow;
use super::unlisted::Bound;
use super::writing::{Writing, cell, constant, patched};
use super::{Cell, Change, Column, REST, Side, WATCHED};
use crate::cache::Cache;
use crate::tags::{Stale, Tags};

/// Bytes of a tag: what is longer stays in memory for as long as a transaction, a repeat or an outage lasts.
const LONGEST: usize = 1 << 10;
/// The same of a whole row, which is no key of anything.
const LONGEST_ROW: usize = 1 << 20;
const TOO_LONG: &str = "a tag is longer than 1 KiB, or a row than 1 MiB";
/// Deeper than a parser goes, or not Unicode: what it holds is not known.
pub(super) const UNREADABLE: &str = "a json value cannot be read";

pub(super) struct Entry {
    pub(super) cache: usize,
    pub(super) events: Events,
    pieces: Vec<Piece>,
    /// Some piece stands for several values.
    fans_out: bool,
    /// Bytes of its tags.
    longest: usize,
    empty_skips: bool,
    constant: bool,
    /// All columns belong to the replica identity: an update without an old row did not change them.
    within_key: bool,
    /// The columns never change: so it was promised.
    same: bool,
    /// A column is missing.
    unfit: bool,
    changes: Vec<BoundChanges>,
    pub(super) when: Vec<usize>,
    unknown: Bound,
    /// Number of the rule, when its tags collapse; above how many; and into what.
    collapse: Option<(usize, usize, Vec<Piece>)>,
    pub(super) text: String,
    pub(super) made: Counter,
}

pub(super) enum Piece {
    Literal(Vec<u8>),
    Column { index: usize, path: Vec<Step>, writing: Writing },
    Row(WholeRow),
}

impl Entry {
    pub(super) fn compile(
        rule: &Rule,
        number: usize,
        tag: &Tag,
        index: usize,
        cache: &Cache,
        table: &TableName,
        columns: &[Column],
    ) -> Result<Entry, String> {
        let style = tag.style.unwrap_or(cache.style);
        let (mut pieces, mut within_key) = bind(&tag.template, table, columns, style)?;
        if tag.template.is_row() {
            // What has no name stands for columns that were not sent.
            let columns = columns
                .iter()
                .enumerate()
                .filter(|(_, column)| column.name != REST && !column.name.starts_with(WATCHED));
            let columns = columns.map(|(at, column)| (column.name.clone(), at, column.type_oid)).collect();
            pieces.push(Piece::Row(WholeRow { columns, texts: cache.takes_texts(), style }));
            within_key = false;
        }
        let mut changes = Vec::new();
        for Changes { only, columns: names } in &tag.changes {
            let mut found = Vec::new();
            for (_, name) in names {
                let is_it = |column: &Column| column.name.strip_prefix(WATCHED).unwrap_or(&column.name) == name;
                match columns.iter().position(is_it) {
                    Some(at) => found.push(at),
                    // One to be watched is missed; one that is gone cannot change.
                    None if *only => return Err(name.clone()),
                    None => {}
                }
            }
            changes.push(BoundChanges { only: *only, columns: found });
        }
        for (_, condition) in &tag.when {
            let named = condition.row.iter().chain(&condition.old).chain(&condition.new);
            if let Some(name) = named.into_iter().find(|name| columns.iter().all(|column| column.name != **name)) {
                return Err(name.clone());
            }
        }
        // What decides about the old row must be known of it, too.
        let key = |name: &String| columns.iter().any(|column| column.name == *name && column.key);
        within_key &= tag.when.iter().all(|(_, condition)| condition.row.iter().chain(&condition.old).all(key));
        // One tag for all rows cannot become many.
        let collapse = match rule.collapse.as_ref().filter(|_| !tag.template.is_constant()) {
            Some(collapse) => {
                let (to, to_within_key) = bind(&collapse.to, table, columns, style)?;
                within_key &= to_within_key;
                Some((number, collapse.over, to))
            }
            None => None,
        };
        let fans_out =
            pieces.iter().any(|piece| matches!(piece, Piece::Column { path, .. } if path.contains(&Step::Each)));
        let is_row = pieces.iter().any(|piece| matches!(piece, Piece::Row(_)));
        let type_of = |name: &str| Some(columns.iter().find(|column| column.name == name)?.type_oid);
        Ok(Entry {
            pieces,
            fans_out,
            longest: if is_row { LONGEST_ROW } else { LONGEST },
            within_key,
            changes,
            unfit: false,
            collapse,
            unknown: Bound::of(tag, cache, table, type_of),
            ..Entry::unfit(rule, tag, index, cache, table)
        })
    }

    /// Stands for a template that needs a column which is not there.
    pub(super) fn unfit(rule: &Rule, tag: &Tag, cache: usize, of: &Cache, table: &TableName) -> Entry {
        Entry {
            cache,
            events: tag.events,
            pieces: Vec::new(),
            fans_out: false,
            longest: LONGEST,
            empty_skips: of.dialect.tags == crate::cache::dialect::Texts::Keys,
            constant: tag.template.is_constant(),
            within_key: false,
            same: rule.old == Old::Same,
            unfit: true,
            changes: Vec::new(),
            when: Vec::new(),
            unknown: Bound::of(tag, of, table, |_| None),
            collapse: None,
            text: tag.template.text.clone(),
            made: Counter::default(),
        }
    }

    /// Indices of the columns that it looks at.
    pub(super) fn columns(&self) -> impl Iterator<Item = usize> {
        let collapse = self.collapse.iter().flat_map(|(.., pieces)| pieces);
        let pieces = self.pieces.iter().chain(collapse).filter_map(|piece| match piece {
            Piece::Column { index, .. } => Some(*index),
            Piece::Row(_) => Some(LAST),
            Piece::Literal(_) => None,
        });
        // What must not have changed to be ignored is every other column.
        let compared = self.changes.iter().flat_map(|changes| match changes.only {
            true => changes.columns.clone(),
            false => vec![LAST],
        });
        pieces.chain(compared)
    }

    pub(super) fn render(
        &self,
        change: &Change,
        holds: &impl Fn(usize, Side) -> bool,
        stale: &mut Stale,
    ) -> Result<(), &'static str> {
        if self.unfit {
            return Err("a column that the template needs is gone");
        }
        if change.event == Event::Truncate {
            // It asks no condition: there is no row to ask about.
            return match self.constant {
                true => self.insert(&[], stale),
                false => Err("TRUNCATE does not say which rows there were"),
            };
        }
        if change.event == Event::Update && !self.changes.iter().all(|changes| changes.concern(change)) {
            return Ok(());
        }
        let wanted = |side: Side| self.when.iter().all(|condition| holds(*condition, side));
        if let Some(new) = change.new
            && wanted(Side::New)
        {
            self.insert(new, stale).or_else(|reason| match change.old {
                // A TOASTed value that did not change is in the old row, if that was sent.
                Some(old) => self.insert(&patched(new, old), stale),
                None => Err(reason),
            })?;
        }
        match (change.event, change.old) {
            (Event::Insert, _) => Ok(()),
            (_, Some(_)) if !wanted(Side::Old) => Ok(()),
            (_, Some(old)) => match change.new.filter(|_| self.same) {
                Some(new) => self.insert(&patched(old, new), stale),
                None => self.insert(old, stale),
            },
            // No old row: the identity's columns did not change, so the new image said all.
            (_, None) if self.within_key || self.same => Ok(()),
            (_, None) => Err("the replica identity does not send the old value"),
        }
    }

    /// The tags could not be listed.
    pub(super) fn give_up(&self, stale: &mut Stale) {
        match &self.unknown {
            Bound::Sweep(scope) => stale.sweep(scope.clone()),
            Bound::Tags(tags) => tags.iter().for_each(|tag| {
                stale.tags.insert(tag);
            }),
        }
    }

    fn insert(&self, row: &[Cell], stale: &mut Stale) -> Result<(), &'static str> {
        let Some((number, over, to)) = &self.collapse else {
            return self.write(&self.pieces, row, &mut stale.tags).map(drop);
        };
        let held = stale.held(*number, *over);
        // Nothing may stand for the row's tags but a tag: without one they go by themselves.
        if !self.write(to, row, &mut held.to)? {
            return self.write(&self.pieces, row, &mut stale.tags).map(drop);
        }
        self.write(&self.pieces, row, &mut held.tags)?;
        held.collapse();
        Ok(())
    }

    /// Writes the tags of one row; does it have any?
    fn write(&self, pieces: &[Piece], row: &[Cell], tags: &mut Tags) -> Result<bool, &'static str> {
        let has = |wanted: Cell| {
            let is_such = |index: usize| cell(row, index) == wanted;
            pieces.iter().any(|piece| match piece {
                Piece::Column { index, .. } => is_such(*index),
                Piece::Row(whole) => whole.columns.iter().any(|(_, index, _)| is_such(*index)),
                Piece::Literal(_) => false,
            })
        };
        if has(Cell::Unknown) {
            return Err("the replica identity does not send the old value");
        }
        if has(Cell::Lost) {
            return Err("a value is longer than is looked at (1 MiB; json and arrays 512 KiB)");
        }
        if self.fans_out {
            return self.fan_out(pieces, row, tags);
        }
        let (mut written, mut failure) = (false, None);
        let new = tags.insert_with(|out| {
            let begin = out.len();
            written = pieces.iter().all(|piece| match piece {
                Piece::Literal(bytes) => {
                    out.extend_from_slice(bytes);
                    true
                }
                Piece::Row(whole) => {
                    whole.write(row, out);
                    true
                }
                Piece::Column { index, path, writing } => {
                    let text = match cell(row, *index) {
                        Cell::Text(text) if path.is_empty() => writing.write(writing.type_oid, Some(text.into())),
                        Cell::Text(text) => match walk(writing.type_oid, text, path) {
                            Some(mut found) => {
                                let (type_oid, value) = found.pop().unwrap_or((0, None));
                                writing.write(type_oid, value)
                            }
                            None => {
                                failure = Some(UNREADABLE);
                                None
                            }
                        },
                        Cell::Null | Cell::Unknown | Cell::Lost => writing.write(writing.type_oid, None),
                    };
                    self.push(out, text)
                }
            });
            if written {
                failure = failure.or(self.too_long(out.len() - begin));
            }
            written && failure.is_none()
        });
        self.made.inc_by(u64::from(new));
        failure.map_or(Ok(written), Err)
    }

    /// Why a tag of so many bytes is none.
    pub(super) fn too_long(&self, bytes: usize) -> Option<&'static str> {
        (bytes > self.longest).then_some(TOO_LONG)
    }

    pub(super) fn push(&self, out: &mut Vec<u8>, text: Option<Cow<str>>) -> bool {
        match text {
            Some(text) if !(self.empty_skips && text.is_empty()) => {
                // No more than it takes to see that it is too long: the buffer keeps its memory.
                out.extend_from_slice(text.as_bytes().get(..=self.longest).unwrap_or(text.as_bytes()));
                true
            }
            _ => false,
        }
    }
}

/// Stands for the last column in [`Entry::columns`], whatever it is.
const LAST: usize = u16::MAX as usize;

fn bind(
    template: &Template,
    table: &TableName,
    columns: &[Column],
    style: Style,
) -> Result<(Vec<Piece>, bool), String> {
    let (mut pieces, mut within_key) = (Vec::new(), true);
    for written in &template.pieces {
        let placeholder = match written {
            Written::Literal(text) => {
                pieces.push(Piece::Literal(text.as_bytes().to_vec()));
                continue;
            }
            Written::Placeholder(placeholder) => placeholder,
        };
        match &placeholder.name {
            Name::Table => pieces.push(Piece::Literal(constant(&table.name, placeholder))),
            Name::Schema => pieces.push(Piece::Literal(constant(&table.schema, placeholder))),
            // It needs all columns: see Entry::compile.
            Name::Row => {}
            Name::Column(name, path) => {
                let found = columns.iter().position(|column| column.name == *name);
                let (index, column) = found.and_then(|at| Some((at, columns.get(at)?))).ok_or_else(|| name.clone())?;
                within_key &= column.key;
                let writing = Writing::of(placeholder, style, column.type_oid);
                pieces.push(Piece::Column { index, path: path.clone(), writing });
            }
        }
    }
    Ok((pieces, within_key))
}
