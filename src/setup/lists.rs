//! Column lists: `setup --prefer wal` lets a table send only the columns that its rules look at.

use std::collections::{BTreeSet, HashMap};

use super::catalog::{Catalog, Member, Table};
use super::identity::{Change, Identity};
use super::verify;
use crate::rules::Rules;
use crate::rules::tables::TableName;

/// The list of each table that should have one, in the order of the table's columns.
pub type Lists = HashMap<TableName, Vec<String>>;

/// With `wanted` every list that can be; otherwise those that are there and hold what the rules and the identity need.
pub fn choose(rules: &Rules, catalog: &Catalog, changes: &[Change], wanted: bool) -> Lists {
    let mut lists = Lists::new();
    for (name, table) in &catalog.tables {
        let Some(member) = alone(name, table, catalog) else { continue };
        let Some(needed) = needed(rules, name, member, table, changes) else { continue };
        let kept = member.listed.as_ref().filter(|listed| needed.iter().all(|column| listed.contains(column)));
        match (wanted, kept) {
            (false, Some(listed)) => {
                lists.insert(name.clone(), in_order(table, &listed.iter().cloned().collect()));
            }
            (true, _) if needed.len() < table.columns.len() => {
                lists.insert(name.clone(), in_order(table, &needed));
            }
            _ => {}
        }
    }
    lists
}

/// Does what the publication has differ from the list that it should have?
pub fn differs(name: &TableName, table: &Table, lists: &Lists) -> bool {
    let listed = table.members.iter().find_map(|member| member.listed.as_ref());
    let listed = listed.map(|listed| in_order(table, &listed.iter().cloned().collect()));
    listed.as_ref() != lists.get(name)
}

/// A table that holds all its rows itself and is published under its own name: lists of a partitioned root do not reach its leaves.
fn alone<'a>(name: &TableName, table: &'a Table, catalog: &Catalog) -> Option<&'a Member> {
    let [member] = table.members.as_slice() else { return None };
    let own = catalog.publication.tables.contains(name) || !member.published;
    (catalog.version >= 150_000 && table.kind == 'r' && own && member.table == *name).then_some(member)
}

/// Columns of the rules and of the identity that is to be; nothing if it is the whole row.
fn needed(
    rules: &Rules,
    name: &TableName,
    member: &Member,
    table: &Table,
    changes: &[Change],
) -> Option<BTreeSet<String>> {
    let mut needed = verify::columns(rules, name)?;
    match changes.iter().find(|change| change.member.table == *name).map(|change| &change.to) {
        Some(Identity::Full) => return None,
        Some(Identity::Index { columns, .. }) => needed.extend(columns.iter().cloned()),
        None if member.identity == 'f' => return None,
        None => needed.extend(member.key.iter().cloned()),
    }
    // Before PostgreSQL 18 a generated column cannot be in a list.
    let generated = |name: &String| table.columns.iter().any(|column| column.name == *name && column.generated);
    (!needed.is_empty() && !needed.iter().any(generated)).then_some(needed)
}

fn in_order(table: &Table, columns: &BTreeSet<String>) -> Vec<String> {
    table.columns.iter().map(|column| column.name.clone()).filter(|name| columns.contains(name)).collect()
}
