//! Which tables each publication names: the first those whose rows something identifies, the second, `<publication>_insert`, those
//! whose rules listen to nothing but inserts and whose rows nothing identifies. Published with updates, their UPDATE would fail.

use super::catalog::{Catalog, Publication, Table};
use super::identity::{Change, Identity};
use super::lists::{self, Lists};
use super::statements::Statement;
use super::verify;
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::source::session::identifier;

/// The tables of the rules, by the publication that should name them.
pub struct Wanted<'a> {
    whole: Vec<(&'a TableName, &'a Table)>,
    /// Those of the second publication.
    pub inserts: Vec<(&'a TableName, &'a Table)>,
}

/// Divides the tables of the rules.
pub fn divide<'a>(rules: &Rules, catalog: &'a Catalog) -> Wanted<'a> {
    let (inserts, whole) = catalog.sorted().into_iter().partition(|(name, table)| {
        let unidentified = table.members.iter().any(|member| member.identity != 'f' && member.key.is_empty());
        !catalog.covers_all
            && (unidentified || (table.kind == 'p' && !table.has_primary_key))
            && verify::only_inserts(rules, name)
    });
    Wanted { whole, inserts }
}

/// Takes out what must not be in a publication before identities change: lists that no longer hold what is needed.
pub fn widen(catalog: &Catalog, lists: &Lists, changes: &[Change]) -> Vec<Statement> {
    // A list must hold the identity at every moment: one that lacks columns of the index to come is narrowed again at the end.
    let lacks = |name: &TableName, listed: &Vec<String>| {
        changes.iter().any(|change| match &change.to {
            Identity::Index { columns, .. } => {
                change.member.table == *name && !columns.iter().all(|column| listed.contains(column))
            }
            Identity::Full => false,
        })
    };
    let narrow = |(name, table): &(&TableName, &Table)| {
        let listed = table.members.iter().find_map(|member| member.listed.as_ref());
        listed.is_some_and(|listed| !lists.contains_key(name) || lacks(name, listed))
    };
    let again = |(name, _): (&TableName, &Table)| replace(&catalog.publication.name, name, None);
    let ours = catalog.publication.is_ours();
    catalog.sorted().into_iter().filter(|table| ours && narrow(table)).map(again).collect()
}

/// Adds the tables of the rules to their publications; takes those out that no rule names any more, if the publication is ours.
pub fn publish(catalog: &Catalog, wanted: &Wanted, lists: &Lists) -> Vec<Statement> {
    // Out of the one before it comes into the other: the server refuses a table that two publications send with different columns.
    let mut statements: Vec<Statement> = withdraw(&catalog.inserts, &wanted.inserts).into_iter().collect();
    if !catalog.covers_all {
        let is_there = |(name, table): &(&TableName, &Table)| {
            (table.kind == 'p' && catalog.publication.tables.contains(name))
                || (!table.members.is_empty() && table.members.iter().all(|member| member.published))
        };
        let missing = wanted.whole.iter().filter(|table| !is_there(table));
        statements
            .extend(add(&catalog.publication, missing.flat_map(|(name, table)| names(name, table, false, lists))));
        for (name, table) in wanted.whole.iter().filter(|(name, _)| lists.contains_key(name)) {
            if is_there(&(name, table)) && lists::differs(name, table, lists) {
                statements.push(replace(&catalog.publication.name, name, lists.get(name)));
            }
        }
        statements.extend(withdraw(&catalog.publication, &wanted.whole));
    }
    let is_there = |(name, table): &(&TableName, &Table)| {
        (table.kind == 'p' && catalog.inserts.tables.contains(name))
            || (!table.members.is_empty() && table.members.iter().all(|member| member.inserted))
    };
    let missing = wanted.inserts.iter().filter(|table| !is_there(table));
    statements.extend(add(&catalog.inserts, missing.flat_map(|(name, table)| names(name, table, true, &Lists::new()))));
    statements
}

/// What is to be added of a table: the root, or each member that is not there yet.
fn names(name: &TableName, table: &Table, inserts: bool, lists: &Lists) -> Vec<String> {
    if table.kind == 'p' {
        return vec![name.sql()];
    }
    // Without ONLY, children that are published already would be an error.
    let only = if table.members.len() > 1 { "ONLY " } else { "" };
    let there = |inserted: bool, published: bool| if inserts { inserted } else { published };
    let members = table.members.iter().filter(|member| !there(member.inserted, member.published));
    let list = lists.get(name).map(|columns| list(columns)).unwrap_or_default();
    members.map(|member| format!("{only}{}{list}", member.table.sql())).collect()
}

fn add(publication: &Publication, tables: impl Iterator<Item = String>) -> Option<Statement> {
    let mut tables: Vec<String> = tables.collect();
    tables.dedup();
    let list = (!tables.is_empty()).then(|| tables.join(", "))?;
    Some(Statement::new(format!(
        "-- Open transactions are not waited for: what they changed before this is not sent.\nALTER PUBLICATION {} ADD TABLE {list};",
        identifier(&publication.name)
    )))
}

fn withdraw(publication: &Publication, wanted: &[(&TableName, &Table)]) -> Option<Statement> {
    let belongs = |name: &&TableName| {
        wanted.iter().any(|(root, table)| root == name || table.members.iter().any(|member| member.table == **name))
    };
    let extra: Vec<String> = publication.tables.iter().filter(|name| !belongs(name)).map(TableName::sql).collect();
    (!extra.is_empty() && publication.is_ours()).then(|| {
        Statement::new(format!(
            "-- No rule needs these here any more.\nALTER PUBLICATION {} DROP TABLE {};",
            identifier(&publication.name),
            extra.join(", ")
        ))
    })
}

/// Publishes a table again, with other columns, in one transaction.
fn replace(publication: &str, table: &TableName, columns: Option<&Vec<String>>) -> Statement {
    let (publication, name) = (identifier(publication), table.sql());
    let (comment, list) = match columns {
        Some(columns) => (LATER, list(columns)),
        None => {
            ("-- All its columns again: the rules need more than the list had, or the whole old row.", String::new())
        }
    };
    Statement::new(format!(
        "{comment}\nALTER PUBLICATION {publication} DROP TABLE {name};\nALTER PUBLICATION {publication} ADD TABLE {name}{list};"
    ))
}

/// What a column list stands in the way of.
pub const LATER: &str = "-- A column list: only what the rules look at is sent. What fails later: DROP COLUMN and ALTER TYPE of a listed column (DROP COLUMN\n\
    -- ... CASCADE takes the table out of the publication); UPDATE and DELETE, once the table gets REPLICA IDENTITY FULL or another primary key.";

fn list(columns: &[String]) -> String {
    let columns: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
    format!(" ({})", columns.join(", "))
}
