//! The SQL that brings the database to what the rules need, and back. Idempotent: what is there already is not repeated; and
//! resumable: what is to be restored is written down before it is changed.

use std::collections::BTreeMap;

use super::catalog::{Catalog, Member, Table};
use super::verify::{self, is_covered};
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::source::session::{identifier, literal};

const ROLE: &str = include_str!("../../migrations/role.sql");
const PUBLICATION: &str = include_str!("../../migrations/publication.sql");
const IDENTITY: &str = include_str!("../../migrations/identity.sql");
/// Starts the comments by which `setup` knows its own: only what carries one is narrowed, dropped or restored.
const MARK: &str = "waltag setup: ";

/// A role as far as setup goes.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Is it there, and may it log in and replicate?
    pub state: RoleState,
}

/// What the catalog says of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleState {
    /// Not there.
    Missing,
    /// There, without LOGIN or REPLICATION.
    Unfit,
    /// As it should be.
    Fit,
    /// As it should be, and made by setup.
    Ours,
}

/// Statements, in order, so that `rules` work; or why some table cannot be published without harm, a sentence each.
pub fn apply(rules: &Rules, catalog: &Catalog, publication: &str, role: &Role) -> Result<Vec<String>, Vec<String>> {
    let refusals = refusals(rules, catalog);
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let mut statements = role_statements(role);
    let name = identifier(publication);
    // The previous identities are written down first, then changed, then the tables are published: an interruption leaves
    // neither an identity that nobody remembers nor a published table whose updates fail.
    if !catalog.publication {
        let generated = if catalog.version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
        statements.push(PUBLICATION.replace("{publication}", &name).replace("{generated}", generated));
    }
    let changes = identity_changes(rules, catalog);
    let ours = !catalog.publication || is_ours(catalog.comment.as_deref());
    if ours && !catalog.sends_generated {
        statements.push(format!(
            "-- PostgreSQL 18 refuses UPDATE and DELETE of a whole old row whose stored generated columns are not published.\nALTER PUBLICATION {name} SET (publish_generated_columns = stored);"
        ));
    }
    if ours {
        let mut remembered = remembered(catalog);
        for member in &changes {
            remembered.entry(member.table.sql()).or_insert_with(|| identity_of(member));
        }
        let comment = format!("{MARK}{}", serde_json::to_string(&remembered).unwrap_or_default());
        if catalog.comment.as_ref() != Some(&comment) {
            let comment = literal(&comment);
            statements.push(format!(
                "-- Marks the publication as made by setup, and remembers identities for `setup --remove`.\nCOMMENT ON PUBLICATION {name} IS {};",
                comment.trim()
            ));
        }
    }
    for member in changes {
        let cost = match ours {
            true => "each UPDATE and DELETE then logs the whole old row",
            false => {
                "each UPDATE and DELETE then logs the whole old row. `--remove` does not undo it: the publication was not made by setup"
            }
        };
        statements.push(IDENTITY.replace("{table}", &member.table.sql()).replace("{cost}", cost));
    }
    statements.extend(publish(catalog, &name));
    Ok(statements.into_iter().map(|statement| statement.trim_end().to_owned()).collect())
}

fn role_statements(role: &Role) -> Vec<String> {
    let name = identifier(&role.name);
    match role.state {
        RoleState::Missing => vec![
            ROLE.replace("{role}", &name),
            format!("COMMENT ON ROLE {name} IS {};", literal(&format!("{MARK}role")).trim()),
        ],
        RoleState::Unfit => vec![format!("-- What the daemon logs in with.\nALTER ROLE {name} LOGIN REPLICATION;")],
        RoleState::Fit | RoleState::Ours => Vec::new(),
    }
}

/// The members whose identity does not send what their rules need.
fn identity_changes<'a>(rules: &Rules, catalog: &'a Catalog) -> Vec<&'a Member> {
    let mut changes: Vec<&Member> = Vec::new();
    for (table, found) in &catalog.tables {
        let needed = verify::old_columns(rules, table, found);
        changes.extend(found.members.iter().filter(|member| {
            let sent = needed.iter().all(|column| member.key.iter().any(|key| key == column));
            member.identity != 'f' && (member.key.is_empty() || !sent)
        }));
    }
    changes.sort_by(|a, b| a.table.cmp(&b.table));
    changes.dedup_by(|a, b| a.table == b.table);
    changes
}

/// Adds the tables of the rules to the publication; takes those out that no rule names any more, if the publication is ours.
fn publish(catalog: &Catalog, name: &str) -> Vec<String> {
    if catalog.covers_all {
        return Vec::new();
    }
    let wanted: Vec<(&TableName, &Table)> =
        catalog.names().into_iter().filter_map(|table| Some((table, catalog.tables.get(table)?))).collect();
    let mut missing: Vec<String> = Vec::new();
    for (table, found) in &wanted {
        if is_covered(table, found, catalog) {
            continue;
        }
        if found.kind == 'p' {
            missing.push(table.sql());
            continue;
        }
        // Without ONLY, children that are published already would be an error.
        let only = if found.members.len() > 1 { "ONLY " } else { "" };
        let members = found.members.iter().filter(|member| !member.published);
        missing.extend(members.map(|member| format!("{only}{}", member.table.sql())));
    }
    let belongs = |table: &TableName| {
        wanted.iter().any(|(root, found)| *root == table || found.members.iter().any(|member| member.table == *table))
    };
    let extra: Vec<String> = catalog.published.iter().filter(|table| !belongs(table)).map(TableName::sql).collect();
    let mut statements = Vec::new();
    missing.dedup();
    if !missing.is_empty() {
        statements.push(format!(
            "-- Open transactions are not waited for: what they changed before this is not sent.\nALTER PUBLICATION {name} ADD TABLE {};",
            missing.join(", ")
        ));
    }
    if !extra.is_empty() && is_ours(catalog.comment.as_deref()) {
        statements.push(format!(
            "-- No rule names these any more.\nALTER PUBLICATION {name} DROP TABLE {};",
            extra.join(", ")
        ));
    }
    statements
}

/// Statements, in order, that take away what setup made: slot, publication and identities, role.
pub fn remove(catalog: &Catalog, publication: &str, slot: Option<&str>, role: &Role) -> Vec<String> {
    let mut statements = Vec::new();
    if let Some(slot) = slot {
        statements.push(format!(
            "-- The slot holds back WAL as long as it is there.\nSELECT pg_drop_replication_slot({});",
            literal(slot).trim()
        ));
    }
    if catalog.publication && is_ours(catalog.comment.as_deref()) {
        // One transaction: the publication is the memory of the identities, and a table without one must not stay published.
        let mut block = format!(
            "-- Identities become what they were before `setup`.\nDROP PUBLICATION {};",
            identifier(publication)
        );
        for (table, identity) in remembered(catalog) {
            let previous = match identity.split_once(' ') {
                Some(("i", index)) => format!("USING INDEX {}", identifier(index)),
                _ if identity == "n" => "NOTHING".to_owned(),
                _ => "DEFAULT".to_owned(),
            };
            block.push_str(&format!("\nALTER TABLE IF EXISTS {table} REPLICA IDENTITY {previous};"));
        }
        statements.push(block);
    }
    if role.state == RoleState::Ours {
        statements.push(format!("DROP ROLE {};", identifier(&role.name)));
    }
    statements
}

/// `d`, `n`, or `i` with the index.
fn identity_of(member: &Member) -> String {
    match (member.identity, &member.index) {
        ('i', Some(index)) => format!("i {index}"),
        (identity, _) => identity.to_string(),
    }
}

/// Identities that an earlier run has changed, by quoted table name, from the publication's comment.
fn remembered(catalog: &Catalog) -> BTreeMap<String, String> {
    let comment = catalog.comment.as_deref().and_then(|comment| comment.strip_prefix(MARK));
    comment.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
}

/// Is this a comment of setup's?
pub fn is_ours(comment: Option<&str>) -> bool {
    comment.is_some_and(|comment| comment.starts_with(MARK))
}

/// Tables that would lose writes once they are published.
fn refusals(rules: &Rules, catalog: &Catalog) -> Vec<String> {
    let mut refusals = Vec::new();
    let changes = identity_changes(rules, catalog);
    for table in catalog.names() {
        let Some(found) = catalog.tables.get(table) else { continue };
        if found.kind == 'p' && !found.has_primary_key {
            refusals.push(format!(
                "{table} is partitioned and has no primary key: a new partition would have no replica identity, and every UPDATE of it would fail once it is published. Add a primary key to {table}."
            ));
        }
        for member in &found.members {
            let full = member.identity == 'f' || changes.iter().any(|change| change.table == member.table);
            let sends_generated = catalog.sends_generated || is_ours(catalog.comment.as_deref());
            refusals.extend(member_refusal(member, full, catalog.version, sends_generated));
        }
    }
    refusals
}

fn member_refusal(member: &Member, full: bool, version: u32, sends_generated: bool) -> Option<String> {
    let table = &member.table;
    if full && member.column_list {
        return Some(format!(
            "{table} has a column list in a publication: with REPLICA IDENTITY FULL every UPDATE and DELETE of it would fail. Take the column list out, or use only columns of the primary key in its tags."
        ));
    }
    if version < 180_000 {
        return None;
    }
    if full && (member.virtual_columns || (member.stored_columns && !sends_generated)) {
        return Some(format!(
            "{table} has generated columns that are not published: on PostgreSQL 18 and later REPLICA IDENTITY FULL makes every UPDATE and DELETE of it fail once it is published. Make them STORED and publish them (publish_generated_columns = stored), or use only columns of the primary key in its tags."
        ));
    }
    (!full && member.key_generated).then(|| {
        format!(
            "the replica identity of {table} has a generated column: on PostgreSQL 18 and later every UPDATE and DELETE of it fails once it is published. Choose another primary key or identity index."
        )
    })
}
