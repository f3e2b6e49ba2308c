//! The SQL that brings the database to what the rules need. Idempotent: what is there already is not repeated; and resumable: what
//! is to be restored is written down before it is changed.

use std::collections::BTreeMap;
use std::fmt;

use super::catalog::{Catalog, Member};
use super::cost::{Cost, Costs};
use super::identity::{Change, Identity, Indexable};
use super::lists::Lists;
use super::{harm, lists, publishing};
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::source::session::{identifier, literal};

const ROLE: &str = include_str!("../../migrations/role.sql");
const PUBLICATION: &str = include_str!("../../migrations/publication.sql");
const INSERTS: &str = include_str!("../../migrations/publication_insert.sql");
const IDENTITY: &str = include_str!("../../migrations/identity.sql");
const INDEX: &str = include_str!("../../migrations/identity_index.sql");
/// What PostgreSQL 18 refuses with a whole old row.
const LATER: &str =
    ".\n-- What fails later: UPDATE and DELETE, once a migration adds a VIRTUAL generated column; make it STORED";
/// Starts the comments by which `setup` knows its own: only what carries one is narrowed, dropped or restored.
pub(super) const MARK: &str = "waltag setup: ";

/// One step.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The SQL, under its comment.
    pub text: String,
    /// What clears away an attempt that could not have its lock: an index that was begun stays there, invalid, until the next run.
    pub clear: Option<String>,
    /// It refuses to stand in a transaction with another.
    pub alone: bool,
    /// It begins with a condition for the rest: whoever runs it with a program that goes on behind an error must not run half of it.
    pub whole: bool,
}

impl Statement {
    /// A statement that leaves nothing behind when it fails.
    pub fn new(text: impl Into<String>) -> Statement {
        Statement { text: text.into().trim_end().to_owned(), clear: None, alone: false, whole: false }
    }

    /// The same for one that builds or drops an index beside the writers.
    pub fn alone(text: impl Into<String>) -> Statement {
        Statement { alone: true, ..Statement::new(text) }
    }

    /// Several that are done together or not at all.
    pub fn whole(text: impl Into<String>) -> Statement {
        Statement { whole: true, ..Statement::new(text) }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whole {
            true => write!(f, "BEGIN;\n{}\nCOMMIT;", self.text),
            false => f.write_str(&self.text),
        }
    }
}

/// A role as far as setup goes.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Is it there, and may it log in and replicate?
    pub state: RoleState,
    /// Another database of the server has given it something: it cannot be dropped from here.
    pub elsewhere: bool,
    /// It may read and empty the outbox.
    pub reads_outbox: bool,
    /// Amazon's servers give no REPLICATION; there the role becomes a member of this one.
    pub by_membership: bool,
}

impl Role {
    /// The way back, if it is ours and nobody else's.
    pub fn removal(&self) -> Option<Statement> {
        let ours = self.state == RoleState::Ours && !self.elsewhere;
        ours.then(|| Statement::new(format!("DROP ROLE {};", identifier(&self.name))))
    }
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

/// Which changes of the database were decided on.
pub struct Decided<'a> {
    /// Identities.
    pub changes: &'a [Change<'a>],
    /// What they cost.
    pub costs: &'a Costs,
    /// With `--prefer wal`: what could be in an index.
    pub indexable: Option<&'a Indexable>,
    /// The server knows virtual generated columns (PostgreSQL 18).
    pub virtual_columns: bool,
}

/// Statements, in order, so that `rules` work; or why some table cannot be published without harm, a sentence each.
pub fn apply(rules: &Rules, catalog: &Catalog, decided: &Decided, role: &Role) -> Result<Vec<Statement>, Vec<String>> {
    let refusals = harm::refusals(rules, catalog, decided.changes);
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let mut statements = role_statements(role);
    let (wanted, name) = (publishing::divide(rules, catalog), identifier(&catalog.publication.name));
    let ours = catalog.publication.may_be_narrowed();
    // What somebody else publishes is not narrowed.
    let lists = match ours {
        true => lists::choose(rules, catalog, decided.changes, decided.indexable.is_some()),
        false => Lists::new(),
    };
    // The previous identities are written down first, then changed, then the tables are published: an interruption leaves
    // neither an identity that nobody remembers nor a published table whose updates fail.
    if !catalog.publication.exists {
        let generated = if catalog.version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
        let values = [("publication", name.clone()), ("generated", generated.to_owned())];
        statements.push(Statement::new(fill(PUBLICATION, &values)));
    }
    if !catalog.inserts.exists && !wanted.inserts.is_empty() {
        let name = identifier(&catalog.inserts.name);
        statements.push(Statement::new(fill(INSERTS, &[("publication", name.clone())])));
        statements.push(Statement::new(format!("COMMENT ON PUBLICATION {name} IS '{MARK}inserts';")));
    }
    if ours && !catalog.sends_generated {
        statements.push(Statement::new(format!(
            "-- PostgreSQL 18 refuses UPDATE and DELETE of a whole old row whose stored generated columns are not published.\nALTER PUBLICATION {name} SET (publish_generated_columns = stored);"
        )));
    }
    if ours {
        statements.extend(remember(catalog, decided.changes));
    }
    statements.extend(publishing::widen(catalog, &lists, decided.changes));
    decided.changes.iter().for_each(|change| statements.extend(change_identity(change, decided, ours)));
    statements.extend(publishing::publish(catalog, &wanted, &lists));
    Ok(statements)
}

fn remember(catalog: &Catalog, changes: &[Change]) -> Option<Statement> {
    let mut remembered = remembered(catalog);
    for Change { member, .. } in changes {
        remembered.entry(member.table.sql()).or_insert_with(|| identity_of(member));
    }
    let comment = format!("{MARK}{}", serde_json::to_string(&remembered).unwrap_or_default());
    (catalog.publication.comment.as_ref() != Some(&comment)).then(|| {
        Statement::new(format!(
            "-- Marks the publication as made by setup, and remembers identities for `setup --remove`.\nCOMMENT ON PUBLICATION {} IS {};",
            identifier(&catalog.publication.name),
            literal(&comment).trim()
        ))
    })
}

/// The identity, with its index: made beside the writers, taken into use, and only then its predecessor dropped.
fn change_identity(change: &Change, decided: &Decided, ours: bool) -> Vec<Statement> {
    let (table, cost) = (change.member.table.sql(), decided.costs.get(&change.member.table));
    let forgotten = match ours {
        true => "",
        false => ". `--remove` does not undo it: the publication was not made by setup",
    };
    let Identity::Index { name, columns } = &change.to else {
        let because = change.because.as_ref().map(|reason| format!("-- No index can do: {reason}.\n"));
        let later = if decided.virtual_columns { LATER } else { "" };
        let cost = format!("{}{forgotten}{later}", Cost::of_full(cost));
        let text = fill(IDENTITY, &[("table", table), ("cost", cost)]);
        return vec![Statement::new(because.unwrap_or_default() + &text)];
    };
    let schema = identifier(&change.member.table.schema);
    let made = decided.indexable.and_then(|indexable| indexable.get(&change.member.oid)).map(|found| &found.made);
    let made = made.map(Vec::as_slice).unwrap_or_default();
    let drop = |name: &str| format!("DROP INDEX CONCURRENTLY IF EXISTS {schema}.{};", identifier(name));
    let mut statements = Vec::new();
    let known = made.iter().find(|index| index.name == *name);
    if known.is_some_and(|index| !index.valid) {
        statements.push(Statement::alone(format!("-- An index that was begun and not finished.\n{}", drop(name))));
    }
    if !known.is_some_and(|index| index.valid) {
        let columns: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
        let text = format!(
            "-- Beside the writers; it waits for the transactions that are running.\nCREATE UNIQUE INDEX CONCURRENTLY {} ON {table} ({});",
            identifier(name),
            columns.join(", ")
        );
        statements.push(Statement { clear: Some(drop(name)), ..Statement::alone(text) });
    }
    let cost = format!("{}{forgotten}", Cost::of_index(cost));
    let text = fill(INDEX, &[("cost", cost), ("use", use_index(&change.member.table, name))]);
    statements.push(Statement::new(text));
    let former = made.iter().filter(|index| index.name != *name);
    statements
        .extend(former.map(|index| Statement::alone(format!("-- Replaced by the one above.\n{}", drop(&index.name)))));
    statements
}

fn role_statements(role: &Role) -> Vec<Statement> {
    let name = identifier(&role.name);
    let replication = match role.by_membership {
        true => format!("ALTER ROLE {name} LOGIN;\nGRANT rds_replication TO {name};"),
        false => format!("ALTER ROLE {name} LOGIN REPLICATION;"),
    };
    let create = match role.by_membership {
        true => {
            fill(&ROLE.replace(" LOGIN REPLICATION;", " LOGIN;\nGRANT rds_replication TO {role};"), &[("role", name)])
        }
        false => fill(ROLE, &[("role", name)]),
    };
    for_role(role, create, &replication)
}

/// Makes the role, and marks it as made by setup; or gives it what it lacks.
pub(super) fn for_role(role: &Role, create: String, alter: &str) -> Vec<Statement> {
    match role.state {
        RoleState::Missing => {
            let (name, comment) = (identifier(&role.name), literal(&format!("{MARK}role")));
            let comment = format!("COMMENT ON ROLE {name} IS {};", comment.trim());
            vec![Statement::new(create), Statement::new(comment)]
        }
        RoleState::Unfit => vec![Statement::new(format!(
            "-- What the daemon logs in with. The role was there before: whoever made it may know its password.\n{alter}"
        ))],
        RoleState::Fit | RoleState::Ours => Vec::new(),
    }
}

/// `d`, `n`, or `i` with the index.
fn identity_of(member: &Member) -> String {
    match (member.identity, &member.index) {
        ('i', Some(index)) => format!("i {index}"),
        (identity, _) => identity.to_string(),
    }
}

/// Identities that an earlier run has changed, by table as SQL, from the publication's comment. Whoever owns the publication can write what she
/// likes there, so what is not the name of a table, or not as setup writes it, is nothing.
pub fn remembered(catalog: &Catalog) -> BTreeMap<String, String> {
    let comment = catalog.publication.comment.as_deref().and_then(|comment| comment.strip_prefix(MARK));
    let known: BTreeMap<String, String> = comment.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    known.into_iter().filter(|(table, _)| TableName::parse_sql(table).is_some()).collect()
}

/// Takes an index of plain columns into use. The table's owner could have put another one in its place, by the same name, and its expressions would be
/// worked out with the rights of whoever runs this: so it is looked at while nobody can change it.
pub(super) fn use_index(table: &TableName, index: &str) -> String {
    let text = |text: &str| literal(text).trim().to_owned();
    let (name, index_name) = (table.sql(), identifier(index));
    let (schema, relation, index) = (text(&table.schema), text(&table.name), text(index));
    let mark = dollars([&name, &index_name, &schema, &relation, &index].into_iter());
    format!(
        "DO {mark} BEGIN\n  LOCK TABLE ONLY {name} IN ACCESS EXCLUSIVE MODE;\n  IF NOT EXISTS (SELECT FROM pg_index i JOIN pg_class k ON k.oid = i.indexrelid \
         JOIN pg_class t ON t.oid = i.indrelid\n      JOIN pg_namespace n ON n.oid = t.relnamespace WHERE n.nspname = {schema} AND t.relname = {relation} \
         AND t.relkind = 'r'\n      AND k.relname = {index} AND i.indexprs IS NULL AND i.indpred IS NULL) THEN\n    \
         RAISE EXCEPTION 'the index % is gone, or is another one', {index};\n  END IF;\n  \
         ALTER TABLE {name} REPLICA IDENTITY USING INDEX {index_name};\nEND {mark};"
    )
}

/// Makes the schema, if it is not there, and goes no further unless everything in it is ours or a superuser's: whoever else has something there
/// could put a trigger on our tables, which would run with our rights.
pub(super) const SCHEMA: &str = include_str!("../../migrations/schema.sql");

/// Fills the braces of a template in one pass: a table or a column may be called `{cost}`.
pub(super) fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((head, tail)) = rest.split_once('{') {
        out.push_str(head);
        let known = values.iter().find_map(|(name, value)| Some((tail.strip_prefix(name)?.strip_prefix('}')?, value)));
        match known {
            Some((tail, value)) => {
                out.push_str(value);
                rest = tail;
            }
            None => {
                out.push('{');
                rest = tail;
            }
        }
    }
    out + rest
}

/// What stands around the body of a function, and nowhere within: a column may be called `$waltag$`.
pub(super) fn dollars<'a>(values: impl Iterator<Item = &'a String> + Clone) -> String {
    let mut marks = std::iter::once("$waltag$".to_owned()).chain((1..).map(|number| format!("$waltag{number}$")));
    marks.find(|mark| !values.clone().any(|value| value.contains(mark.as_str()))).unwrap_or_default()
}

/// Is this a comment of setup's?
pub fn is_ours(comment: Option<&str>) -> bool {
    comment.is_some_and(|comment| comment.starts_with(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever may make a table that a pattern of the rules matches must not be able to put SQL into the owner's setup.
    #[test]
    fn names_stay_names() {
        let evil = ["\"$waltag$; DROP TABLE t; $waltag1$\"".to_owned(), "x".to_owned()];
        assert_eq!(dollars(evil.iter()), "$waltag2$");
        assert_eq!(dollars(evil[1..].iter()), "$waltag$");
    }

    #[test]
    fn a_value_is_no_template() {
        assert_eq!(fill("{a} {b} {c", &[("a", "{b}".to_owned()), ("b", "x".to_owned())]), "{b} x {c");
    }
}
