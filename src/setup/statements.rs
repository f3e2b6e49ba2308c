//! The SQL that brings the database to what the rules need, and back. Idempotent: what is there already is not repeated.

use std::collections::BTreeMap;

use super::catalog::{Catalog, Member, Table};
use super::verify;
use crate::rules::Rules;
use crate::rules::file::TableName;
use crate::source::session::{identifier, literal};

const ROLE: &str = include_str!("../../migrations/role.sql");
const PUBLICATION: &str = include_str!("../../migrations/publication.sql");
const IDENTITY: &str = include_str!("../../migrations/identity.sql");
/// Starts the comments by which `--remove` knows what `setup` made.
const MARK: &str = "waltag setup: ";

/// One statement with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// SQL, with a comment that says what it costs.
    pub sql: String,
}

/// Why a table cannot be published without harm.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The sentence.
    pub sentence: String,
}

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

/// What to run so that `rules` work.
pub fn apply(rules: &Rules, catalog: &Catalog, publication: &str, role: &Role) -> Result<Vec<Statement>, Vec<Refusal>> {
    let mut statements = Vec::new();
    let name = identifier(&role.name);
    match role.state {
        RoleState::Missing => {
            statements.push(sql(&ROLE.replace("{role}", &name)));
            statements.push(sql(&format!("COMMENT ON ROLE {name} IS {};", literal(&format!("{MARK}role")))));
        }
        RoleState::Unfit => {
            statements.push(sql(&format!("-- What the daemon logs in with.\nALTER ROLE {name} LOGIN REPLICATION;")));
        }
        RoleState::Fit | RoleState::Ours => {}
    }
    let (mut refusals, mut remembered) = (Vec::new(), remembered(catalog));
    for table in rules.tables() {
        let Some(found) = catalog.tables.get(table) else { continue };
        if let Some(sentence) = root_refusal(table, found) {
            refusals.push(Refusal { sentence });
        }
        let needed = verify::old_columns(rules, table);
        for member in &found.members {
            let identified = !member.key.is_empty() || member.identity == 'f';
            let sent = member.identity == 'f' || needed.iter().all(|column| member.key.iter().any(|key| key == column));
            if identified && sent {
                continue;
            }
            if let Some(sentence) = full_refusal(member, catalog.version) {
                refusals.push(Refusal { sentence });
                continue;
            }
            remembered.entry(member.table.to_string()).or_insert(member.identity.to_string());
            let cost = "each UPDATE and DELETE then logs the whole old row";
            let text = IDENTITY.replace("{table}", &member.table.sql()).replace("{cost}", cost);
            statements.push(sql(&text));
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    statements.extend(publish(rules, catalog, publication));
    let comment = serde_json::to_string(&remembered).unwrap_or_default();
    let comment = format!("{MARK}{comment}");
    if catalog.comment.as_ref() != Some(&comment) && (!statements.is_empty() || catalog.comment.is_none()) {
        let text = format!(
            "-- Remembers the identities as they were, for `setup --remove`.\nCOMMENT ON PUBLICATION {} IS {};",
            identifier(publication),
            literal(&comment).trim()
        );
        statements.push(sql(&text));
    }
    Ok(statements)
}

/// Adds the tables of the rules to the publication, and takes those out that no rule names any more.
fn publish(rules: &Rules, catalog: &Catalog, publication: &str) -> Vec<Statement> {
    let name = identifier(publication);
    let wanted: Vec<&TableName> =
        rules.tables().into_iter().filter(|table| catalog.tables.contains_key(table)).collect();
    let list = |tables: &[&TableName]| tables.iter().map(|table| table.sql()).collect::<Vec<_>>().join(", ");
    if !catalog.publication {
        let text = PUBLICATION.replace("{publication}", &name).replace("{tables}", &list(&wanted));
        return if wanted.is_empty() { Vec::new() } else { vec![sql(&text)] };
    }
    if catalog.covers_all {
        return Vec::new();
    }
    let covered = |table: &TableName| {
        let members = catalog.tables.get(table).map(|found| found.members.as_slice()).unwrap_or_default();
        catalog.published.contains(table) || (!members.is_empty() && members.iter().all(|member| member.published))
    };
    let missing: Vec<&TableName> = wanted.iter().copied().filter(|table| !covered(table)).collect();
    // Children of an inherited table are listed by themselves; they go when none of their roots is wanted.
    let belongs = |table: &TableName| {
        wanted.contains(&table)
            || wanted
                .iter()
                .filter_map(|root| catalog.tables.get(root))
                .any(|root| root.members.iter().any(|m| m.table == *table))
    };
    let extra: Vec<&TableName> = catalog.published.iter().filter(|table| !belongs(table)).collect();
    let mut statements = Vec::new();
    if !missing.is_empty() {
        let text = format!(
            "-- Open transactions are not waited for: what they changed before this is not sent.\nALTER PUBLICATION {name} ADD TABLE {};",
            list(&missing)
        );
        statements.push(sql(&text));
    }
    if !extra.is_empty() && catalog.comment.as_ref().is_some_and(|comment| comment.starts_with(MARK)) {
        let text = format!("-- No rule names these any more.\nALTER PUBLICATION {name} DROP TABLE {};", list(&extra));
        statements.push(sql(&text));
    }
    statements
}

/// What to run to take everything away: publication, identities, slot, role, in this order.
pub fn remove(catalog: &Catalog, publication: &str, slot: Option<&str>, role: &Role) -> Vec<Statement> {
    let mut statements = Vec::new();
    if let Some(slot) = slot {
        let text = format!(
            "-- The slot holds back WAL as long as it is there.\nSELECT pg_drop_replication_slot({});",
            literal(slot).trim()
        );
        statements.push(sql(&text));
    }
    if catalog.publication {
        statements.push(sql(&format!("DROP PUBLICATION {};", identifier(publication))));
    }
    for (table, identity) in remembered(catalog) {
        let Some(table) = TableName::parse(&table) else { continue };
        let word = match identity.as_str() {
            "n" => "NOTHING",
            _ => "DEFAULT",
        };
        let text =
            format!("-- As it was before `setup`.\nALTER TABLE IF EXISTS {} REPLICA IDENTITY {word};", table.sql());
        statements.push(sql(&text));
    }
    if role.state == RoleState::Ours {
        statements.push(sql(&format!("DROP ROLE {};", identifier(&role.name))));
    }
    statements
}

/// Identities that an earlier run has changed, from the publication's comment.
fn remembered(catalog: &Catalog) -> BTreeMap<String, String> {
    let comment = catalog.comment.as_deref().and_then(|comment| comment.strip_prefix(MARK));
    comment.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
}

/// Is the comment on a role one of ours?
pub fn is_ours(comment: Option<&str>) -> bool {
    comment.is_some_and(|comment| comment.starts_with(MARK))
}

/// The next partition of a root without a primary key has no identity, and updates of it would fail.
fn root_refusal(table: &TableName, found: &Table) -> Option<String> {
    (found.kind == 'p' && !found.has_primary_key).then(|| {
        format!(
            "{table} is partitioned and has no primary key: a new partition would have no replica identity, and every UPDATE of it would fail once it is published. Add a primary key to {table}."
        )
    })
}

fn full_refusal(member: &Member, version: u32) -> Option<String> {
    let table = &member.table;
    if member.column_list {
        return Some(format!(
            "{table} has a column list in a publication: with REPLICA IDENTITY FULL every UPDATE and DELETE of it would fail. Take the column list out, or use only columns of the primary key in its tags."
        ));
    }
    (member.generated && version >= 180_000).then(|| {
        format!(
            "{table} has generated columns: on PostgreSQL 18 and later REPLICA IDENTITY FULL would make every UPDATE and DELETE of it fail. Use only columns of the primary key in its tags."
        )
    })
}

fn sql(text: &str) -> Statement {
    Statement { sql: text.trim_end().to_owned() }
}
