//! The rules of one relation, bound to its columns: indices and literal bytes, no names. Compiled when a Relation message
//! arrives, so a changed table gets a new plan with its first change.

use std::borrow::Cow;

use prometheus_client::metrics::counter::Counter;

use super::Rules;
use super::events::{Event, Events};
use super::file::TableName;
use super::filter::Filter;
use super::style::Style;
use super::template::{Name, Piece as Written, Placeholder, Template};
use crate::cache::Cache;
use crate::tags::{Stale, Tags};

/// A column of the relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// OID of its type.
    pub type_oid: u32,
    /// Part of the replica identity.
    pub key: bool,
}

/// Everything that a change of one relation makes stale.
pub struct Plan {
    entries: Vec<Entry>,
    /// Columns that are looked at: values behind the last one need not be decoded.
    pub width: usize,
    /// Templates that no longer fit the relation, in words. Each change asks for a sweep in their place.
    pub unfit: Vec<String>,
}

/// One template for one cache.
struct Entry {
    cache: usize,
    events: Events,
    pieces: Vec<Piece>,
    empty_skips: bool,
    constant: bool,
    /// All columns belong to the replica identity: an update without an old row did not change them.
    within_key: bool,
    /// A column is missing.
    unfit: bool,
    text: String,
    made: Counter,
}

enum Piece {
    Literal(Vec<u8>),
    Column { index: usize, writing: Writing },
}

/// A column's value in one image of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// PostgreSQL's text.
    Text(&'a str),
    /// Not sent: TOAST that did not change, or a column outside the identity.
    Unknown,
}

/// One change of a relation; each image holds at least [`Plan::width`] cells.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What happened.
    pub event: Event,
    /// The row before, if it was sent.
    pub old: Option<&'a [Cell<'a>]>,
    /// The row after.
    pub new: Option<&'a [Cell<'a>]>,
}

/// A tag that should have been made stale and could not be written: which template, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Unlisted<'a> {
    /// The template's text.
    pub template: &'a str,
    /// Why.
    pub reason: &'static str,
}

impl Plan {
    /// Binds the rules of `tables` (the relation itself and its ancestors) to the relation's columns.
    pub fn compile(rules: &Rules, tables: &[TableName], columns: &[Column]) -> Plan {
        let mut plan = Plan { entries: Vec::new(), width: 0, unfit: Vec::new() };
        for table in tables {
            for tag in rules.of_table(table).flat_map(|rule| &rule.tags) {
                for (index, made) in tag.caches.iter().zip(&tag.made) {
                    let Some(cache) = rules.caches.get(*index) else { continue };
                    match Entry::compile(&tag.template, tag.events, *index, cache, table, columns) {
                        Ok(entry) => plan.entries.push(Entry { made: made.clone(), ..entry }),
                        Err(column) => {
                            plan.unfit.push(format!(
                                "{}: `{}` needs the column `{column}`, which {table} does not have (any more)",
                                tag.place, tag.template.text
                            ));
                            plan.entries.push(Entry::unfit(&tag.template, tag.events, *index));
                        }
                    }
                }
            }
        }
        plan.unfit.dedup();
        let columns = plan.entries.iter().flat_map(|entry| &entry.pieces).filter_map(|piece| match piece {
            Piece::Column { index, .. } => Some(index + 1),
            Piece::Literal(_) => None,
        });
        plan.width = columns.max().unwrap_or(0);
        plan
    }

    /// Does no rule look at this relation?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Renders every tag that `change` makes stale, one set per cache. What cannot be listed asks for a sweep, and is told.
    pub fn render<'p>(&'p self, change: Change, stale: &mut [Stale], mut unlisted: impl FnMut(Unlisted<'p>)) {
        for entry in self.entries.iter().filter(|entry| entry.events.contains(change.event)) {
            let Some(Stale { tags, sweep }) = stale.get_mut(entry.cache) else { continue };
            let rendered = match (change.event, entry.constant) {
                (Event::Truncate, true) => entry.insert(&[], tags),
                (Event::Truncate, false) => Err("TRUNCATE does not say which rows there were"),
                _ => entry.render(change, tags),
            };
            if let Err(reason) = rendered {
                *sweep = true;
                unlisted(Unlisted { template: &entry.text, reason });
            }
        }
    }
}

impl Entry {
    fn compile(
        template: &Template,
        events: Events,
        index: usize,
        cache: &Cache,
        table: &TableName,
        columns: &[Column],
    ) -> Result<Entry, String> {
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
                Name::Column(name) => {
                    let found = columns.iter().position(|column| column.name == *name);
                    let (index, column) =
                        found.and_then(|at| Some((at, columns.get(at)?))).ok_or_else(|| name.clone())?;
                    within_key &= column.key;
                    let style = placeholder.style.unwrap_or(cache.style);
                    let null = placeholder.style.and_then(Style::null);
                    let filters = placeholder.filters.clone();
                    let writing = Writing { type_oid: column.type_oid, style, null, filters };
                    pieces.push(Piece::Column { index, writing });
                }
            }
        }
        let (empty_skips, constant) = (cache.dialect.empty_skips, template.is_constant());
        let (unfit, text, made) = (false, template.text.clone(), Counter::default());
        Ok(Entry { cache: index, events, pieces, empty_skips, constant, within_key, unfit, text, made })
    }

    /// Stands for a template that needs a column which is not there.
    fn unfit(template: &Template, events: Events, cache: usize) -> Entry {
        let (pieces, text, made) = (Vec::new(), template.text.clone(), Counter::default());
        Entry { cache, events, pieces, empty_skips: false, constant: false, within_key: false, unfit: true, text, made }
    }

    fn render(&self, change: Change, tags: &mut Tags) -> Result<(), &'static str> {
        if self.unfit {
            return Err("a column that the template needs is gone");
        }
        if let Some(new) = change.new {
            self.insert(new, tags).or_else(|reason| match change.old {
                // A TOASTed value that did not change is in the old row, if that was sent.
                Some(old) => self.insert(&patched(new, old), tags),
                None => Err(reason),
            })?;
        }
        match (change.event, change.old) {
            (Event::Insert, _) => Ok(()),
            (_, Some(old)) => self.insert(old, tags),
            // No old row: the identity's columns did not change, so the new image said all.
            (_, None) if self.within_key => Ok(()),
            (_, None) => Err("the replica identity does not send the old value"),
        }
    }

    fn insert(&self, row: &[Cell], tags: &mut Tags) -> Result<(), &'static str> {
        let mut unknown = false;
        let new = tags.insert_with(|out| {
            self.pieces.iter().all(|piece| match piece {
                Piece::Literal(bytes) => {
                    out.extend_from_slice(bytes);
                    true
                }
                Piece::Column { index, writing } => {
                    let cell = row.get(*index).copied().unwrap_or(Cell::Unknown);
                    unknown |= cell == Cell::Unknown;
                    let value = match cell {
                        Cell::Text(text) => Some(text),
                        Cell::Null | Cell::Unknown => None,
                    };
                    match writing.write(value) {
                        Some(text) if !(self.empty_skips && text.is_empty()) => {
                            out.extend_from_slice(text.as_bytes());
                            true
                        }
                        _ => false,
                    }
                }
            }) && !unknown
        });
        self.made.inc_by(u64::from(new));
        if unknown { Err("the replica identity does not send the old value") } else { Ok(()) }
    }
}

/// The new row, with what was not sent taken from the old one.
fn patched<'a>(new: &[Cell<'a>], old: &[Cell<'a>]) -> Vec<Cell<'a>> {
    let pairs = new.iter().zip(old);
    pairs.map(|(new, old)| if *new == Cell::Unknown { *old } else { *new }).collect()
}

/// How a column's value becomes text: its style first, then the filters in order.
struct Writing {
    type_oid: u32,
    style: Style,
    /// What NULL is before the filters: only a style that the placeholder names itself says so.
    null: Option<&'static str>,
    filters: Vec<Filter>,
}

impl Writing {
    /// `None` skips the tag: NULL that neither the style nor a filter gives a text.
    fn write<'a>(&self, value: Option<&'a str>) -> Option<Cow<'a, str>> {
        let text = value.map(|value| self.style.write(self.type_oid, value)).or(self.null.map(Into::into));
        filtered(text, &self.filters).or_else(|| self.style.null().map(Into::into))
    }
}

fn filtered<'a>(text: Option<Cow<'a, str>>, filters: &[Filter]) -> Option<Cow<'a, str>> {
    filters.iter().fold(text, |text, filter| match (filter, text) {
        (Filter::Default(default), None) => Some(default.clone().into()),
        (Filter::Lower, Some(text)) => Some(text.to_lowercase().into()),
        (Filter::Upper, Some(text)) => Some(text.to_uppercase().into()),
        (_, text) => text,
    })
}

/// `<@table>` and `<@schema>`.
pub(crate) fn constant(name: &str, placeholder: &Placeholder) -> Vec<u8> {
    filtered(Some(name.into()), &placeholder.filters).unwrap_or_default().into_owned().into_bytes()
}

#[cfg(test)]
mod tests;
