//! Do the tables give what the rules need? Every problem with rule, table, and the SQL that mends it.

use std::collections::{BTreeSet, HashSet};

use super::catalog::{Catalog, Member, Table};
use crate::rules::diagnostic::{Diagnostic, Place};
use crate::rules::events::Event;
use crate::rules::options::Old;
use crate::rules::tables::TableName;
use crate::rules::template::{Name, Placeholder, Step};
use crate::rules::{Rule, Rules, Tag, value};
use crate::source::replication::slot::Feed;
use crate::source::session::identifier;

/// Problems that refuse the rule set, and those that people should know.
pub fn tables(rules: &Rules, catalog: &Catalog) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    let (mut refused, mut told) = (Vec::new(), Vec::new());
    if let Some(rule) = rules.rules.first() {
        refused.extend(catalog.omissions.iter().map(|omission| rule.place.error("publication", omission.clone())));
    }
    for rule in &rules.rules {
        let matching = rule.tables.among(catalog.tables.keys());
        if matching.is_empty() {
            told.push(rule.place.warning("no-table", format!("no table matches {}", rule.tables)));
        }
        for name in matching {
            let Some(table) = catalog.tables.get(&name) else {
                let problem = rule.place.error("unknown-table", format!("the table {name} does not exist"));
                let known: Vec<String> = catalog.tables.keys().map(ToString::to_string).collect();
                refused.push(problem.suggest(&name.to_string(), known.iter().map(String::as_str)));
                continue;
            };
            refused.extend(of_rule(rule, &name, table));
            if catalog.publication.exists && !is_covered(&name, table, catalog, rules) {
                told.push(uncovered(rule, &name, catalog));
            }
        }
    }
    (refused, told)
}

fn uncovered(rule: &Rule, name: &TableName, catalog: &Catalog) -> Diagnostic {
    let (message, help) = match catalog.feed {
        Feed::Outbox => (
            format!("{name} has not the triggers that its rules need: its changes are not seen"),
            "run `waltag setup --source outbox --apply`".to_owned(),
        ),
        Feed::Replication => {
            let publication = &catalog.publication.name;
            let (sql, quoted) = (name.sql(), identifier(publication));
            (
                format!("{name} is not in the publication \"{publication}\": its changes are not seen"),
                format!("run `waltag setup --apply`, or ALTER PUBLICATION {quoted} ADD TABLE {sql}"),
            )
        }
    };
    rule.place.warning("uncovered", message).help(help)
}

/// Do the publications send every change of the table that its rules listen to? A partitioned root without partitions counts by
/// itself.
pub fn is_covered(name: &TableName, table: &Table, catalog: &Catalog, rules: &Rules) -> bool {
    let enough = |whole: bool, inserted: &dyn Fn() -> bool| whole || (inserted() && only_inserts(rules, name));
    let root = enough(catalog.publication.tables.contains(name), &|| catalog.inserts.tables.contains(name));
    let member = |member: &Member| enough(member.published, &|| member.inserted);
    // A view is looked at, not published.
    table.refreshed.is_some()
        || catalog.covers_all
        || (table.kind == 'p' && root)
        || (!table.members.is_empty() && table.members.iter().all(member))
}

/// Do the rules of a table listen to neither updates nor deletes?
pub fn only_inserts(rules: &Rules, name: &TableName) -> bool {
    let changes = |tag: &Tag| tag.events.contains(Event::Update) || tag.events.contains(Event::Delete);
    !rules.of_table(name).any(|rule| rule.tags.iter().any(changes))
}

/// Does every change of the table arrive, rows and kinds alike? What did not must be made up for once it does.
pub fn sends_all(name: &TableName, table: &Table, catalog: &Catalog, rules: &Rules) -> bool {
    let whole = |member: &Member| member.persistence == 'p' && !member.row_filter;
    is_covered(name, table, catalog, rules) && catalog.omissions.is_empty() && table.members.iter().all(whole)
}

fn of_rule(rule: &Rule, name: &TableName, table: &Table) -> Vec<Diagnostic> {
    if !matches!(table.kind, 'r' | 'p' | 'm') {
        let help = "views and foreign tables have no changes of their own: name the tables behind them";
        return vec![rule.place.error("not-a-table", format!("{name} is not a table")).help(help)];
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
        columns_of(rule, tag, true, |place, column| {
            problems.extend(missing(&place, column, name, table).or_else(|| unlisted(&place, column, name, table)));
        });
        problems.extend(
            tag.template.columns().filter_map(|(column, placeholder)| path_misfit(tag, column, placeholder, table)),
        );
        for (place, condition) in &tag.when {
            let misfit = condition.misfit(|column| table.type_of(column));
            problems.extend(misfit.map(|sentence| place.error("condition-type", sentence)));
        }
    }
    // A column that the rule names for each of its tags is told once.
    let mut told = HashSet::new();
    problems.retain(|problem| told.insert(format!("{}{}", problem.place, problem.message)));
    if problems.is_empty() {
        problems.extend(identity(rule, table));
    }
    problems
}

/// Every column that a tag names, where it is named; with `compared` those of `ignore` and `only`, too.
pub(super) fn columns_of<'t>(rule: &'t Rule, tag: &'t Tag, compared: bool, mut see: impl FnMut(Place, &'t str)) {
    tag.template.columns().for_each(|(column, placeholder)| see(tag.place_of(placeholder), column));
    for changes in tag.changes.iter().filter(|_| compared) {
        changes.columns.iter().for_each(|(place, column)| see(place.clone(), column));
    }
    for (place, condition) in &tag.when {
        let named = condition.row.iter().chain(&condition.old).chain(&condition.new);
        named.for_each(|column| see(place.clone(), column));
    }
    if let Some(collapse) = &rule.collapse {
        collapse.to.columns().for_each(|(column, _)| see(collapse.place.clone(), column));
    }
}

fn missing(place: &Place, column: &str, name: &TableName, table: &Table) -> Option<Diagnostic> {
    let known: Vec<&str> =
        table.columns.iter().filter(|column| !column.generated).map(|column| column.name.as_str()).collect();
    if known.contains(&column) {
        return None;
    }
    let message = match table.columns.iter().any(|known| known.name == column) {
        true => format!(
            "`{column}` of {name} is generated: PostgreSQL does not send generated columns (an outbox has those that are STORED)"
        ),
        false => format!("{name} has no column `{column}`"),
    };
    Some(place.error("unknown-column", message).suggest(column, known))
}

/// A column that the publication's column list leaves out.
fn unlisted(place: &Place, column: &str, name: &TableName, table: &Table) -> Option<Diagnostic> {
    let leaves_out = |list: &Vec<String>| !list.iter().any(|listed| listed == column);
    table.members.iter().find(|member| member.listed.as_ref().is_some_and(leaves_out))?;
    let message = format!("the publication sends only some columns of {name}, and not `{column}`");
    Some(place.error("column-list", message).help("`waltag setup --apply` publishes what the rules need"))
}

/// `<labels[]>` of no array, `<a.b>` of no json.
fn path_misfit(tag: &Tag, column: &str, placeholder: &Placeholder, table: &Table) -> Option<Diagnostic> {
    let Name::Column(_, path) = &placeholder.name else { return None };
    let type_oid = table.type_of(column)?;
    let fits = match path.as_slice() {
        [] => true,
        [Step::Each] => value::is_json(type_oid) || !value::is_no_array(type_oid),
        _ => value::is_json(type_oid),
    };
    let wanted = if path == &[Step::Each] { "an array nor json" } else { "json" };
    let message = || format!("`{column}` is not {wanted}: there is nothing to descend into");
    (!fits).then(|| tag.place_of(placeholder).error("path", message()))
}

/// The first tag whose old value would not be sent, per member.
fn identity(rule: &Rule, table: &Table) -> Option<Diagnostic> {
    if rule.old != Old::Require {
        return None;
    }
    let mut lacking = Vec::new();
    let mut first: Option<(&Tag, String)> = None;
    for member in &table.members {
        let missing = rule.tags.iter().find_map(|tag| Some((tag, missing_old_column(rule, tag, member, table)?)));
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

/// A column that `tag` needs of the old row and `member` does not send.
fn missing_old_column(rule: &Rule, tag: &Tag, member: &Member, table: &Table) -> Option<String> {
    if member.identity == 'f' {
        return None;
    }
    old_columns_of(rule, tag, table).into_iter().find(|column| !member.key.contains(column))
}

/// The columns whose old values a tag needs: its own, those of its conditions, and those that are compared.
fn old_columns_of(rule: &Rule, tag: &Tag, table: &Table) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let update = tag.events.contains(Event::Update);
    if !update && !tag.events.contains(Event::Delete) {
        return needed;
    }
    let collapse = rule.collapse.iter().flat_map(|collapse| collapse.to.columns());
    needed.extend(tag.template.columns().chain(collapse).map(|(column, _)| column.to_owned()));
    if tag.template.is_row() {
        needed.extend(table.columns.iter().filter(|column| !column.generated).map(|column| column.name.clone()));
    }
    for (_, condition) in &tag.when {
        needed.extend(condition.row.iter().chain(&condition.old).cloned());
    }
    for changes in tag.changes.iter().filter(|_| update) {
        let named: Vec<&String> = changes.columns.iter().map(|(_, column)| column).collect();
        match changes.only {
            true => needed.extend(named.into_iter().cloned()),
            false => {
                let others = table.columns.iter().filter(|column| !column.generated && !named.contains(&&column.name));
                needed.extend(others.map(|column| column.name.clone()));
            }
        }
    }
    needed
}

/// The columns of a table whose old values its rules need.
pub fn old_columns(rules: &Rules, name: &TableName, table: &Table) -> BTreeSet<String> {
    let required = rules.of_table(name).filter(|rule| rule.old == Old::Require);
    required.flat_map(|rule| rule.tags.iter().flat_map(|tag| old_columns_of(rule, tag, table))).collect()
}

/// Every column of a table that its rules look at; nothing if they compare all of them.
pub fn columns(rules: &Rules, name: &TableName) -> Option<BTreeSet<String>> {
    let mut named = BTreeSet::new();
    for rule in rules.of_table(name) {
        for tag in &rule.tags {
            if tag.template.is_row() || tag.changes.iter().any(|changes| !changes.only) {
                return None;
            }
            columns_of(rule, tag, true, |_, column| {
                named.insert(column.to_owned());
            });
        }
    }
    Some(named)
}

fn list(tables: &[&TableName]) -> String {
    let shown: Vec<String> = tables.iter().take(5).map(ToString::to_string).collect();
    match tables.len().saturating_sub(5) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
