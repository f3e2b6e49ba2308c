//! Do the tables give what the rules need? Every problem with rule, table, and the SQL that mends it.

use std::collections::BTreeSet;

use super::catalog::{Catalog, Member, Table};
use crate::rules::diagnostic::Diagnostic;
use crate::rules::events::Event;
use crate::rules::file::TableName;
use crate::rules::{Rule, Rules, Tag};
use crate::source::session::identifier;

/// Problems that refuse the rule set, and those that people should know.
pub fn tables(rules: &Rules, catalog: &Catalog, publication: &str) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    let (mut refused, mut told) = (Vec::new(), Vec::new());
    if let Some(rule) = rules.rules.first() {
        refused.extend(catalog.omissions.iter().map(|omission| {
            rule.place.error("publication", format!("the publication \"{publication}\" leaves changes out: {omission}"))
        }));
    }
    for rule in &rules.rules {
        match catalog.tables.get(&rule.table) {
            None => {
                let problem = rule.place.error("unknown-table", format!("the table {} does not exist", rule.table));
                let known: Vec<String> = catalog.tables.keys().map(ToString::to_string).collect();
                refused.push(problem.suggest(&rule.table.to_string(), known.iter().map(String::as_str)));
            }
            Some(table) => refused.extend(of_rule(rule, table)),
        }
        if let Some(table) = catalog.tables.get(&rule.table)
            && catalog.publication
            && !is_covered(&rule.table, table, catalog)
        {
            let message =
                format!("{} is not in the publication \"{publication}\": its changes are not seen", rule.table);
            let name = identifier(publication);
            let help =
                format!("run `waltag setup --apply`, or ALTER PUBLICATION {name} ADD TABLE {}", rule.table.sql());
            told.push(rule.place.warning("uncovered", message).help(help));
        }
    }
    (refused, told)
}

/// Does the publication send every change of the table? A partitioned root without partitions counts by itself.
pub fn is_covered(name: &TableName, table: &Table, catalog: &Catalog) -> bool {
    let root = catalog.covers_all || (table.kind == 'p' && catalog.published.contains(name));
    root || (!table.members.is_empty() && table.members.iter().all(|member| member.published))
}

/// Does every change of the table arrive, rows and kinds alike? What did not must be made up for once it does.
pub fn sends_all(name: &TableName, table: &Table, catalog: &Catalog) -> bool {
    let whole = |member: &Member| member.persistence == 'p' && !member.row_filter;
    is_covered(name, table, catalog) && catalog.omissions.is_empty() && table.members.iter().all(whole)
}

fn of_rule(rule: &Rule, table: &Table) -> Vec<Diagnostic> {
    if !matches!(table.kind, 'r' | 'p') {
        let help = "views and foreign tables have no changes of their own: name the tables behind them";
        return vec![rule.place.error("not-a-table", format!("{} is not a table", rule.table)).help(help)];
    }
    let mut problems = Vec::new();
    if let Some(member) = table.members.iter().find(|member| member.persistence != 'p') {
        let message = format!("{} is unlogged or temporary: its changes are not in the WAL", member.table);
        problems.push(
            rule.place.error("not-logged", message).help(format!("ALTER TABLE {} SET LOGGED", member.table.sql())),
        );
    }
    if let Some(member) = table.members.iter().find(|member| member.row_filter) {
        let message = format!("the publication sends only some rows of {} (it has a WHERE)", member.table);
        problems.push(rule.place.error("publication", message).help("publish the table without a row filter"));
    }
    for tag in &rule.tags {
        problems.extend(tag.template.columns().filter_map(|(column, placeholder)| {
            let known: Vec<&str> =
                table.columns.iter().filter(|column| !column.generated).map(|column| column.name.as_str()).collect();
            if known.contains(&column) {
                return None;
            }
            let generated = table.columns.iter().any(|known| known.name == column);
            let message = match generated {
                true => {
                    format!("`{column}` of {} is generated: PostgreSQL does not send generated columns", rule.table)
                }
                false => format!("{} has no column `{column}`", rule.table),
            };
            Some(tag.place_of(placeholder).error("unknown-column", message).suggest(column, known))
        }));
    }
    if problems.is_empty() {
        problems.extend(identity(rule, table));
    }
    problems
}

/// The first tag whose old value would not be sent, per member.
fn identity(rule: &Rule, table: &Table) -> Option<Diagnostic> {
    let mut lacking = Vec::new();
    let mut first: Option<(&Tag, &str)> = None;
    for member in &table.members {
        let missing = rule.tags.iter().find_map(|tag| Some((tag, missing_old_column(tag, member)?)));
        if let Some(found) = missing {
            first.get_or_insert(found);
            lacking.push(&member.table);
        }
    }
    let (tag, column) = first?;
    let message = format!(
        "the replica identity of {} does not send the old value of `{column}`: a changed or deleted row would leave `{}` of its old value stale",
        list(&lacking),
        tag.template.text
    );
    let sql: Vec<String> =
        lacking.iter().map(|table| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", table.sql())).collect();
    let help = format!("`waltag setup --apply`, or {}", sql.join(" "));
    Some(tag.place.error("identity", message).help(help))
}

/// A column of `tag` whose old value `member` does not send.
fn missing_old_column<'t>(tag: &'t Tag, member: &Member) -> Option<&'t str> {
    if member.identity == 'f' || !needs_old(tag) {
        return None;
    }
    tag.template.columns().map(|(column, _)| column).find(|column| !member.key.iter().any(|key| key == column))
}

fn needs_old(tag: &Tag) -> bool {
    tag.events.contains(Event::Update) || tag.events.contains(Event::Delete)
}

/// The columns of a table whose old values its rules need.
pub fn old_columns<'a>(rules: &'a Rules, table: &'a TableName) -> BTreeSet<&'a str> {
    let tags = rules.of_table(table).flat_map(|rule| &rule.tags).filter(|tag| needs_old(tag));
    tags.flat_map(|tag| tag.template.columns().map(|(column, _)| column)).collect()
}

fn list(tables: &[&TableName]) -> String {
    let shown: Vec<String> = tables.iter().take(5).map(ToString::to_string).collect();
    match tables.len().saturating_sub(5) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
