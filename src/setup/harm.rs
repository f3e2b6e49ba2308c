//! Tables that would lose writes once they are published: promise 5. Each refusal names what would fail, and what to do.

use super::catalog::{Catalog, Member};
use super::identity::{Change, Identity};
use super::publishing::divide;
use crate::rules::Rules;
use crate::rules::tables::TableName;

/// A sentence for each table that cannot be published without harm.
pub fn refusals(rules: &Rules, catalog: &Catalog, changes: &[Change]) -> Vec<String> {
    let mut refusals = Vec::new();
    // Published without its updates, a table can be as it likes.
    let for_inserts: Vec<&TableName> = divide(rules, catalog).inserts.iter().map(|(name, _)| *name).collect();
    for (name, table) in catalog.sorted() {
        if for_inserts.contains(&name) {
            continue;
        }
        if table.kind == 'p' && !table.has_primary_key {
            refusals.push(format!(
                "{name} is partitioned and has no primary key: a new partition would have no replica identity, and every UPDATE of it would fail once it is published. Add a primary key to {name}."
            ));
        }
        refusals.extend(table.members.iter().filter_map(|member| of_member(member, catalog, changes)));
    }
    refusals
}

fn of_member(member: &Member, catalog: &Catalog, changes: &[Change]) -> Option<String> {
    let table = &member.table;
    let ours = catalog.publication.may_be_narrowed();
    let change = changes.iter().find(|change| change.member.table == *table);
    let full = match change {
        Some(change) => change.to == Identity::Full,
        None => member.identity == 'f',
    };
    // A list of our own is taken out first.
    if full && (member.listed_elsewhere || (member.listed.is_some() && !ours)) {
        return Some(format!(
            "{table} has a column list in a publication: with REPLICA IDENTITY FULL every UPDATE and DELETE of it would fail. Take the column list out, or use only columns of the primary key in its tags."
        ));
    }
    if catalog.version < 180_000 {
        return None;
    }
    let sends_generated = catalog.sends_generated || ours;
    if full && (member.virtual_columns || (member.stored_columns && !sends_generated)) {
        return Some(format!(
            "{table} has generated columns that are not published: on PostgreSQL 18 and later REPLICA IDENTITY FULL makes every UPDATE and DELETE of it fail once it is published. Make them STORED and publish them (publish_generated_columns = stored), or use only columns of the primary key in its tags."
        ));
    }
    (!full && change.is_none() && member.key_generated).then(|| {
        format!(
            "the replica identity of {table} has a generated column: on PostgreSQL 18 and later every UPDATE and DELETE of it fails once it is published. Choose another primary key or identity index."
        )
    })
}
