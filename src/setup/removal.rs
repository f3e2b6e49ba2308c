//! The way back: slot, publications and identities, indexes, role; as far as setup made them.

use std::collections::HashSet;

use super::catalog::Catalog;
use super::identity::INDEX_PREFIX;
use super::statements::{Role, Statement, remembered, use_index};
use crate::rules::tables::TableName;
use crate::source::session::{Error, Sql, identifier, literal};

/// What only the way back needs to know.
#[derive(Debug, Default)]
pub struct Remains {
    /// The slot, if it is there.
    pub slot: Option<String>,
    /// Tables, as SQL, that another publication sends the updates of and that nothing would identify as they were before.
    pub still_published: HashSet<String>,
    /// Tables, as SQL, that the owner of the publication could not have altered: whoever owns it writes what is remembered, and must not have the
    /// tables of others changed by it.
    pub foreign: HashSet<String>,
    /// Indexes that setup made, as SQL, with their tables, and whether they identify rows.
    pub indexes: Vec<(String, String, bool)>,
}

impl Remains {
    /// Reads it.
    pub async fn read(session: &Sql, catalog: &Catalog, slot: &str) -> Result<Remains, Error> {
        let query = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = {}", literal(slot));
        let mut remains = Remains { slot: session.value(&query).await?.map(|_| slot.to_owned()), ..Remains::default() };
        for (table, previous) in remembered(catalog) {
            let Some(name) = TableName::parse_sql(&table) else { continue };
            let query = still_published(&name, &previous, catalog);
            let rows = session.rows(&query).await?;
            let yes = |index: usize| rows.first().and_then(|row| row.get(index)) == Some("t");
            if yes(0) {
                remains.still_published.insert(table);
            } else if yes(1) {
                remains.foreign.insert(table);
            }
        }
        let query = format!(
            "SELECT k.relname, n.nspname, c.relname, i.indisreplident FROM pg_index i \
             JOIN pg_class k ON k.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid \
             JOIN pg_namespace n ON n.oid = k.relnamespace WHERE starts_with(k.relname, '{INDEX_PREFIX}') ORDER BY 2, 1"
        );
        for row in session.rows(&query).await? {
            let field = |index: usize| row.get(index).unwrap_or_default();
            let table = format!("{}.{}", identifier(field(1)), identifier(field(2)));
            let index = format!("{}.{}", identifier(field(1)), identifier(field(0)));
            remains.indexes.push((index, table, field(3) == "t"));
        }
        Ok(remains)
    }
}

/// Would an UPDATE of the table fail with its previous identity, because another publication sends it?
fn still_published(table: &TableName, previous: &str, catalog: &Catalog) -> String {
    let ours = format!("{}, {}", literal(&catalog.publication.name), literal(&catalog.inserts.name));
    let by_schema = match catalog.version {
        150_000.. => {
            "OR EXISTS (SELECT FROM pg_publication_namespace pn WHERE pn.pnpubid = p.oid AND pn.pnnspid = c.relnamespace)"
        }
        _ => "",
    };
    let identified = match previous {
        "n" => "false",
        "d" => "EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)",
        _ => "true",
    };
    format!(
        "SELECT NOT {identified} AND EXISTS (SELECT FROM pg_publication p WHERE (p.pubupdate OR p.pubdelete) AND p.pubname NOT IN ({ours}) \
         AND (p.puballtables {by_schema} OR EXISTS (SELECT FROM pg_publication_rel pr WHERE pr.prpubid = p.oid \
           AND (pr.prrelid = c.oid OR pr.prrelid IN (SELECT pg_partition_ancestors(c.oid)))))), \
         NOT EXISTS (SELECT FROM pg_publication p JOIN pg_roles o ON o.oid = p.pubowner WHERE p.pubname IN ({ours}) \
           AND (o.rolsuper OR pg_has_role(o.oid, c.relowner, 'MEMBER'))) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND c.relname = {}",
        literal(&table.schema),
        literal(&table.name)
    )
}

/// Statements, in order, that take away what setup made.
pub fn remove(catalog: &Catalog, remains: &Remains, role: &Role) -> Vec<Statement> {
    let mut statements = Vec::new();
    if let Some(slot) = &remains.slot {
        statements.push(Statement::new(format!(
            "-- The slot holds back WAL as long as it is there.\nSELECT pg_drop_replication_slot({});",
            literal(slot).trim()
        )));
    }
    if catalog.inserts.is_ours() {
        statements.push(Statement::new(format!("DROP PUBLICATION {};", identifier(&catalog.inserts.name))));
    }
    if catalog.publication.is_ours() {
        statements.push(restore(catalog, remains));
    }
    // One that identifies rows may go only if this very removal gives its table another identity: it may be another installation's.
    let restored = remembered(catalog);
    for (index, table, identifies) in &remains.indexes {
        if *identifies && (!restored.contains_key(table) || remains.still_published.contains(table)) {
            continue;
        }
        statements.push(Statement::alone(format!("DROP INDEX CONCURRENTLY IF EXISTS {index};")));
    }
    statements.extend(role.removal());
    statements
}

/// One transaction: the publication is the memory of the identities, and a table without one must not stay published.
fn restore(catalog: &Catalog, remains: &Remains) -> Statement {
    let name = identifier(&catalog.publication.name);
    let mut block = format!("-- Identities become what they were before `setup`.\nDROP PUBLICATION {name};");
    for (table, identity) in remembered(catalog) {
        if remains.still_published.contains(&table) {
            block.push_str(&format!(
                "\n-- {} keeps its identity: another publication sends it, and its UPDATE would fail without one.",
                table
            ));
            continue;
        }
        if remains.foreign.contains(&table) {
            block.push_str(&format!("\n-- {table} keeps its identity: it is not a table of the publication's owner."));
            continue;
        }
        let previous = match identity.split_once(' ') {
            Some(("i", index)) => {
                let use_it = TableName::parse_sql(&table).map(|table| use_index(&table, index));
                block.extend(use_it.map(|use_it| format!("\n{use_it}")));
                continue;
            }
            _ if identity == "n" => "NOTHING".to_owned(),
            _ => "DEFAULT".to_owned(),
        };
        block.push_str(&format!("\nALTER TABLE IF EXISTS {table} REPLICA IDENTITY {previous};"));
    }
    Statement::new(block)
}
