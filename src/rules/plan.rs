//! The rules of one relation, bound to its columns: indices and literal bytes, no names. Compiled when a Relation message
//! arrives, so a changed table gets a new plan with its first change.

mod changes;
mod entry;
mod fan;
mod row;
mod unlisted;
mod writing;

use std::cell::Cell as Slot;
use std::collections::HashMap;

use prometheus_client::metrics::counter::Counter;

use super::Rules;
use super::condition::{Condition, Image, Question};
use super::events::Event;
use super::tables::TableName;
use crate::tags::Stale;
use entry::Entry;
pub(crate) use writing::{constant, plain, written};

/// Starts the names of columns of which only is known whether they changed.
pub const WATCHED: char = '\u{1}';

/// Stands for all columns that were not sent; none can be called so.
pub const REST: &str = "";

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
    /// With the table of the rule, which is not that of a partition.
    conditions: Vec<(Condition, String)>,
    columns: Vec<Column>,
    undecided: Counter,
    /// Columns that are looked at: values behind the last one need not be decoded.
    pub width: usize,
    /// Templates that no longer fit the relation, in words. Each change asks for a sweep in their place.
    pub unfit: Vec<String>,
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
    /// Sent, but too long to be held, or no text: another value than before, whatever it is.
    Lost,
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

/// Which image of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Old,
    New,
}

impl Plan {
    /// Binds the rules of `tables` (the relation itself and its ancestors) to the relation's columns.
    pub fn compile(rules: &Rules, tables: &[TableName], columns: &[Column]) -> Plan {
        let (entries, conditions, unfit) = (Vec::new(), Vec::new(), Vec::new());
        let undecided = rules.undecided.clone();
        let mut numbers: HashMap<(String, &TableName), usize> = HashMap::new();
        let mut plan = Plan { entries, conditions, columns: columns.to_vec(), undecided, width: 0, unfit };
        for table in tables {
            for (number, rule) in rules.rules.iter().enumerate().filter(|(_, rule)| rule.tables.contains(table)) {
                for tag in &rule.tags {
                    let mut number_of = |condition: &Condition| {
                        *numbers.entry((condition.text.clone(), table)).or_insert_with(|| {
                            plan.conditions.push((condition.clone(), table.to_string()));
                            plan.conditions.len() - 1
                        })
                    };
                    let when: Vec<usize> = tag.when.iter().map(|(_, condition)| number_of(condition)).collect();
                    for (index, made) in tag.caches.iter().zip(&tag.made) {
                        let Some(cache) = rules.caches.get(*index) else { continue };
                        let compiled = Entry::compile(rule, number, tag, *index, cache, table, columns);
                        let mut entry = compiled.unwrap_or_else(|column| {
                            plan.unfit.push(format!(
                                "{}: `{}` needs the column `{column}`, which {table} does not have (any more)",
                                tag.place, tag.template.text
                            ));
                            Entry::unfit(rule, tag, *index, cache, table)
                        });
                        (entry.made, entry.when) = (made.clone(), when.clone());
                        plan.entries.push(entry);
                    }
                }
            }
        }
        plan.unfit.dedup();
        let of_conditions = plan.conditions.iter().flat_map(|(condition, _)| {
            let names = condition.row.iter().chain(&condition.old).chain(&condition.new);
            names.filter_map(|name| columns.iter().position(|column| column.name == *name))
        });
        let looked_at = plan.entries.iter().flat_map(Entry::columns).chain(of_conditions);
        plan.width = looked_at.max().map_or(0, |last| last + 1);
        // Tables that no rule names may be many, and wide.
        if plan.entries.is_empty() {
            plan.columns = Vec::new();
        }
        plan
    }

    /// Does no rule look at this relation?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Renders every tag that `change` makes stale, one set per cache. What cannot be listed asks for a sweep, and is told.
    pub fn render<'p>(&'p self, change: Change, stale: &mut [Stale], mut unlisted: impl FnMut(Unlisted<'p>)) {
        // Each condition is asked at most once per image.
        let answers: Vec<[Slot<Option<bool>>; 2]> = self.conditions.iter().map(|_| Default::default()).collect();
        let holds = |condition: usize, side: Side| -> bool {
            let Some(slot) = answers.get(condition).and_then(|slots| slots.get(side as usize)) else { return true };
            if slot.get().is_none() {
                slot.set(Some(self.ask(condition, side, &change)));
            }
            slot.get().unwrap_or(true)
        };
        for entry in self.entries.iter().filter(|entry| entry.events.contains(change.event)) {
            let Some(stale) = stale.get_mut(entry.cache) else { continue };
            if let Err(reason) = entry.render(&change, &holds, stale) {
                entry.give_up(stale);
                unlisted(Unlisted { template: &entry.text, reason });
            }
        }
    }

    /// Does a condition hold for an image? Doubt says yes, and is counted.
    fn ask(&self, condition: usize, side: Side, change: &Change) -> bool {
        let Some((condition, table)) = self.conditions.get(condition) else { return true };
        let image = |cells: Option<&[Cell]>, name: &str| {
            let at = self.columns.iter().position(|column| column.name == name)?;
            let type_oid = self.columns.get(at)?.type_oid;
            match cells.map(|cells| cells.get(at).copied().unwrap_or(Cell::Unknown)) {
                // A row that there is not is a row of nulls.
                None | Some(Cell::Null) => Some((type_oid, None)),
                Some(Cell::Text(text)) => Some((type_oid, Some(text.to_owned()))),
                Some(Cell::Unknown | Cell::Lost) => None,
            }
        };
        // An old row that was not sent is no row of nulls.
        let sent = change.old.is_some() || change.event == Event::Insert;
        let old = |name: &str| if sent { image(change.old, name) } else { None };
        let is_lost = |name: &str| {
            let at = self.columns.iter().position(|column| column.name == name);
            at.and_then(|at| change.new?.get(at)) == Some(&Cell::Lost)
        };
        let new = |name: &str| match (image(change.new, name), change.old) {
            // TOAST that did not change.
            (None, Some(_)) if !is_lost(name) => image(change.old, name),
            (found, _) => found,
        };
        let row: Image = match side {
            Side::Old => &old,
            Side::New => &new,
        };
        let question = Question { row, old: &old, new: &new, event: change.event, table };
        condition.holds(&question).unwrap_or_else(|| {
            self.undecided.inc();
            true
        })
    }
}

#[cfg(test)]
mod tests;
