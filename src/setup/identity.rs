//! How each table should identify its rows, so that the log has the old values that the rules need.
//!
//! FULL is the advice: nothing that the application does later can fail because of it. `--prefer wal` takes a unique index
//! where one can be made, which logs less and can stand in the way of a migration.

use std::collections::{BTreeSet, HashMap};

use super::catalog::{Catalog, Member};
use super::statements::remembered;
use super::verify;
use crate::cache::coverage;
use crate::plain::plain;
use crate::rules::Rules;
use crate::source::session::{Error, Sql};

/// An index row must fit into a third of a page (nbtree, BTMaxItemSize): 2,704 bytes with its header.
const LONGEST_KEY: u32 = 2_600;
/// INDEX_MAX_KEYS.
const MOST_COLUMNS: usize = 32;
/// Starts the names of the indexes that setup makes.
pub const INDEX_PREFIX: &str = "waltag_identity_";

/// A table whose identity is to change.
pub struct Change<'a> {
    /// The table.
    pub member: &'a Member,
    /// To what.
    pub to: Identity,
    /// Why it is not an index although one was asked for.
    pub because: Option<String>,
}

/// What identifies rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The whole row.
    Full,
    /// A unique index of ours, with its columns, sorted.
    Index {
        /// Its name.
        name: String,
        /// Its columns.
        columns: Vec<String>,
    },
}

/// What could be in an index, per table by its number: read with `--prefer wal` only.
pub type Indexable = HashMap<u32, Candidate>;

/// What could be in an index of one table.
#[derive(Debug, Default)]
pub struct Candidate {
    /// Columns of the primary key.
    pub primary: Vec<String>,
    columns: Vec<Column>,
    /// Indexes that setup made before.
    pub made: Vec<Made>,
}

#[derive(Debug)]
struct Column {
    name: String,
    nullable: bool,
    generated: bool,
    /// Longest value in bytes; nothing if that is not known, or the type has no order.
    longest: Option<u32>,
}

/// An index that setup made.
#[derive(Debug)]
pub struct Made {
    /// Its name.
    pub name: String,
    /// It was built to its end.
    pub valid: bool,
}

/// Reads what could be in an index of the members of the rules' tables.
pub async fn read_indexable(session: &Sql, catalog: &Catalog) -> Result<Indexable, Error> {
    let numbers = catalog.tables.values().flat_map(|table| &table.members).map(|member| member.oid.to_string());
    let numbers: Vec<String> = numbers.collect();
    if numbers.is_empty() {
        return Ok(Indexable::new());
    }
    let mut indexable = Indexable::new();
    for row in session.rows(&query(&numbers.join(", "))).await? {
        let field = |index: usize| row.get(index).unwrap_or_default();
        let columns: Vec<(String, bool, bool, Option<u32>)> = serde_json::from_str(field(2)).unwrap_or_default();
        let made: Vec<(String, bool)> = serde_json::from_str(field(3)).unwrap_or_default();
        let column = |(name, nullable, generated, longest)| Column { name, nullable, generated, longest };
        let candidate = Candidate {
            primary: serde_json::from_str(field(1)).unwrap_or_default(),
            columns: columns.into_iter().map(column).collect(),
            made: made.into_iter().map(|(name, valid)| Made { name, valid }).collect(),
        };
        indexable.insert(field(0).parse().unwrap_or_default(), candidate);
    }
    Ok(indexable)
}

/// Number, primary key, columns with their longest values, our indexes. A type without a default btree operator class has no
/// order; `varchar` borrows that of `text`.
fn query(numbers: &str) -> String {
    format!(
        "SELECT c.oid, \
           (SELECT coalesce(json_agg(a.attname ORDER BY a.attnum), '[]') FROM pg_index i JOIN pg_attribute a \
             ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) WHERE i.indrelid = c.oid AND i.indisprimary), \
           (SELECT coalesce(json_agg(json_build_array(a.attname, NOT a.attnotnull, a.attgenerated <> '', \
             CASE WHEN NOT (t.typtype = 'e' OR t.typname = 'varchar' OR EXISTS (SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod \
                    WHERE m.amname = 'btree' AND o.opcdefault AND o.opcintype IN (t.oid, t.typbasetype))) THEN NULL \
                  WHEN a.attlen > 0 THEN a.attlen \
                  WHEN t.typname IN ('varchar', 'bpchar') AND a.atttypmod > 4 THEN (a.atttypmod - 4) * \
                    pg_encoding_max_length((SELECT encoding FROM pg_database WHERE datname = current_database())) + 4 \
                  WHEN t.typname = 'numeric' AND a.atttypmod > 4 THEN ((a.atttypmod - 4) >> 16) / 2 + 16 END)), '[]') \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
           (SELECT coalesce(json_agg(json_build_array(k.relname, i.indisvalid AND i.indisunique)), '[]') \
             FROM pg_index i JOIN pg_class k ON k.oid = i.indexrelid \
             WHERE i.indrelid = c.oid AND starts_with(k.relname, '{INDEX_PREFIX}')) \
         FROM pg_class c WHERE c.oid IN ({numbers})"
    )
}

/// The members whose identity does not send what their rules need, sorted; with `indexable` also those that `setup` made FULL and
/// for which an index will do.
pub fn changes<'a>(rules: &Rules, catalog: &'a Catalog, indexable: Option<&Indexable>) -> Vec<Change<'a>> {
    let made_full = remembered(catalog);
    let mut changes: Vec<Change> = Vec::new();
    for (name, table) in &catalog.tables {
        let needed = verify::old_columns(rules, name, table);
        let may_go_without = verify::only_inserts(rules, name);
        for member in &table.members {
            let sent = needed.iter().all(|column| member.key.contains(column));
            let lacking = member.identity != 'f' && !(may_go_without || (sent && !member.key.is_empty()));
            let ours = member.identity == 'f' && made_full.contains_key(&member.table.sql());
            let Some(indexable) = indexable.filter(|_| lacking || ours) else {
                if lacking {
                    changes.push(Change { member, to: Identity::Full, because: None });
                }
                continue;
            };
            match index(member, indexable.get(&member.oid).unwrap_or(&Candidate::default()), &needed) {
                Ok(to) => changes.push(Change { member, to, because: None }),
                Err(reason) if lacking => {
                    changes.push(Change { member, to: Identity::Full, because: Some(reason) });
                }
                Err(_) => {}
            }
        }
    }
    changes.sort_by(|a, b| a.member.table.cmp(&b.member.table));
    changes.dedup_by(|a, b| a.member.table == b.member.table);
    changes
}

/// An index over the primary key, which makes it unique, and what the rules need; or why there can be none.
fn index(member: &Member, candidate: &Candidate, needed: &BTreeSet<String>) -> Result<Identity, String> {
    if candidate.primary.is_empty() {
        return Err("it has no primary key, so an index over what the rules need is not unique".into());
    }
    let columns: BTreeSet<&String> = candidate.primary.iter().chain(needed).collect();
    if columns.len() > MOST_COLUMNS {
        return Err(format!("its rules need {} old columns, and an index has at most {MOST_COLUMNS}", columns.len()));
    }
    let mut length = 0;
    for name in &columns {
        let column = candidate.columns.iter().find(|column| column.name == **name);
        match column {
            Some(Column { nullable: true, .. }) => return Err(format!("`{}` can be NULL", plain(name))),
            Some(Column { generated: true, .. }) => return Err(format!("`{}` is generated", plain(name))),
            Some(Column { longest: Some(longest), .. }) => length += longest,
            _ => return Err(format!("values of `{}` can be too long for an index, or have no order", plain(name))),
        }
    }
    if length > LONGEST_KEY {
        return Err(format!("its columns can be {length} bytes long, and an index row has at most {LONGEST_KEY}"));
    }
    let columns: Vec<String> = columns.into_iter().cloned().collect();
    let name = format!("{INDEX_PREFIX}{}_{}", member.oid, coverage::id(&columns.join("\0")));
    Ok(Identity::Index { name, columns })
}
