//! The SQL that brings triggers to what the rules need, and takes them away again.

use super::carriers::Carrier;
use super::need::{Counts, Need};
use super::triggers::{TRUNCATE, Trigger, Triggers};
use crate::rules::Rules;
use crate::rules::plan::{REST, WATCHED};
use crate::setup::catalog::Catalog;
use crate::setup::statements::{MARK, Role, SCHEMA, Statement, dollars, fill, for_role};
use crate::source::session::{identifier, literal};

const TABLES: &str = include_str!("../../../migrations/outbox.sql");
const CHANGED: &str = include_str!("../../../migrations/outbox_changed.sql");
/// The wake-up: one for each transaction, however often it is asked for. It would make PREPARE TRANSACTION fail.
pub(in crate::setup) const NOTIFY: &str =
    "IF current_setting('max_prepared_transactions') = '0' THEN\n    PERFORM pg_notify('waltag', '');\n  END IF;";
/// The outbox has as many bytes as may be owed: 0.9 µs per row. ...
const FULL: &str = "waltag.outbox_limit() > 0 AND pg_relation_size('waltag.outbox') > waltag.outbox_limit()";
/// ... with large values, which lie elsewhere: 8 µs.
const TOASTED: &str = "waltag.outbox_limit() > 0 AND pg_total_relation_size('waltag.outbox') > waltag.outbox_limit()";
/// All of them may be deleted and not vacuumed, which is not owed. Looked at behind those, and apart: with a query in it an expression takes longer.
pub(in crate::setup) const OWED: &str = "waltag.outbox_limit() > 0 AND pg_total_relation_size('waltag.outbox') > waltag.outbox_limit() + (SELECT last_value FROM waltag.bloat)";
/// What cannot be sent fails here, and not in every poll.
const SENDABLE: &str = "    IF getdatabaseencoding() <> 'UTF8' THEN\n      PERFORM convert_to(array_to_string(was || is_now, ''), 'UTF8');\n    END IF;\n";
/// Without: a comment that says why.
const SILENT: &str = "-- Nobody is notified: the daemon polls.";

/// Statements, in order, so that `rules` work; what no rule needs any more goes. The outbox takes `limit` bytes at most.
pub fn apply(rules: &Rules, catalog: &Catalog, role: &Role, limit: u64) -> Vec<Statement> {
    let triggers = &catalog.triggers;
    let mut statements = role_statements(role);
    let notify = if triggers.notify { NOTIFY } else { SILENT };
    if !triggers.installed || triggers.notifies != triggers.notify || triggers.limit != Some(limit) {
        let names = ["outbox_limit", "measure_outbox", "empty_outbox"];
        let ours = if triggers.installed {
            String::new()
        } else {
            ours_alone(&["outbox", "outbox_id_seq", "progress", "skipped", "bloat"], &names)
        };
        let owed = OWED.to_owned();
        let values = [
            ("schema", SCHEMA.to_owned()),
            ("notify", notify.to_owned()),
            ("limit", limit.to_string()),
            ("ours_alone", ours),
            ("owed", owed),
        ];
        statements.push(Statement::whole(fill(TABLES, &values)));
    }
    if !role.reads_outbox {
        let name = identifier(&role.name);
        statements.push(Statement::new(format!(
            "-- What the daemon needs: no table of the application's is read.\nGRANT USAGE ON SCHEMA waltag TO {name};\n\
             GRANT SELECT, DELETE ON waltag.outbox TO {name};\nGRANT SELECT, INSERT, UPDATE ON waltag.progress TO {name};\n\
             GRANT SELECT ON waltag.skipped TO {name};\nGRANT EXECUTE ON FUNCTION waltag.outbox_limit, waltag.measure_outbox, waltag.empty_outbox TO {name};"
        )));
    }
    let mut kept = Vec::new();
    for carrier in &triggers.carriers {
        let need = carrier.need(rules, catalog);
        statements.extend(of_carrier(triggers, carrier, &need, notify, &mut kept));
    }
    let superfluous = triggers
        .all
        .iter()
        .filter(|trigger| !trigger.cloned && !kept.contains(&(trigger.relation, trigger.name.clone())));
    statements.extend(superfluous.map(|trigger| drop_trigger(trigger, "No rule needs it any more.")));
    let functions = triggers
        .functions
        .values()
        .filter(|(name, _)| triggers.carriers.iter().all(|carrier| function_of(carrier.oid) != *name));
    let mut names: Vec<&String> = functions.map(|(name, _)| name).collect();
    names.sort();
    statements.extend(
        names.into_iter().map(|name| Statement::new(format!("DROP FUNCTION IF EXISTS waltag.{}();", identifier(name)))),
    );
    statements
}

/// Takes away again what default privileges have given to others, of new tables and of these functions: values of every row pass here, and
/// who deletes them hides a change.
pub(in crate::setup) fn ours_alone(relations: &[&str], functions: &[&str]) -> String {
    if relations.is_empty() && functions.is_empty() {
        return String::new();
    }
    let list = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
        format!("ARRAY[{}]::name[]", names.join(", "))
    };
    format!(
        "DO $waltag$ DECLARE one record; BEGIN\n  FOR one IN SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, c.oid::regclass::text AS name, \
         a.grantee AS who FROM pg_class c, aclexplode(c.relacl) a \
         WHERE c.relnamespace = 'waltag'::regnamespace AND c.relname = ANY ({relations}) AND a.grantee <> c.relowner UNION \
         SELECT 'FUNCTION', p.oid::regprocedure::text, a.grantee FROM pg_proc p, aclexplode(p.proacl) a \
         WHERE p.pronamespace = 'waltag'::regnamespace AND p.proname = ANY ({functions}) AND a.grantee <> p.proowner LOOP\n    \
         EXECUTE format('REVOKE ALL ON %s %s FROM %s', one.kind, one.name, CASE one.who WHEN 0 THEN 'PUBLIC' ELSE one.who::regrole::text END);\n  \
         END LOOP;\nEND $waltag$;",
        relations = list(relations),
        functions = list(functions)
    )
}

/// Function and triggers of one carrier, as far as they are not there.
fn of_carrier(
    triggers: &Triggers,
    carrier: &Carrier,
    need: &Need,
    notify: &str,
    kept: &mut Vec<(u32, String)>,
) -> Vec<Statement> {
    let mut statements = Vec::new();
    let row_events: Vec<String> = ["insert", "update", "delete"]
        .iter()
        .filter(|event| need.events.contains(**event))
        .map(|event| event.to_uppercase())
        .collect();
    if !row_events.is_empty() {
        let called = carrier.trigger();
        kept.push((carrier.oid, called.clone()));
        let name = function_of(carrier.oid);
        let there = triggers.functions.values().find(|(known, _)| *known == name);
        if there.and_then(|(_, known)| known.as_ref()) != Some(need) {
            statements.push(Statement::whole(function(carrier, need, notify)));
        }
        let of_rows = need.events.iter().filter(|event| *event != "truncate").cloned().collect();
        let trigger = triggers.of(carrier.oid, &called);
        // A dump that was restored brings functions that are called after other numbers.
        let own =
            |trigger: &Trigger| triggers.functions.get(&trigger.function).is_some_and(|(known, _)| *known == name);
        let fits = trigger.is_some_and(|trigger| trigger.events() == of_rows && own(trigger));
        if !fits || trigger.is_some_and(|trigger| !trigger.enabled) {
            let create = format!(
                "AFTER {} ON {{}} FOR EACH ROW EXECUTE FUNCTION waltag.{}()",
                row_events.join(" OR "),
                identifier(&name)
            );
            statements.push(create_trigger(&called, &carrier.table.sql(), &create));
        }
        // One leaf alone can be disabled.
        let disabled = carrier.emptied.iter().filter(|(oid, _)| *oid != carrier.oid);
        let disabled = disabled.filter(|(oid, _)| triggers.of(*oid, &called).is_some_and(|trigger| !trigger.enabled));
        statements.extend(
            disabled.map(|(_, table)| {
                Statement::new(format!("ALTER TABLE {} ENABLE ALWAYS TRIGGER {called};", table.sql()))
            }),
        );
    }
    if need.events.contains("truncate") {
        for (oid, table) in &carrier.emptied {
            kept.push((*oid, TRUNCATE.to_owned()));
            if !triggers.of(*oid, TRUNCATE).is_some_and(|trigger| trigger.enabled) {
                let create = "AFTER TRUNCATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION waltag.truncated()";
                statements.push(create_trigger(TRUNCATE, &table.sql(), create));
            }
        }
    }
    statements
}

/// ALWAYS: for the apply worker of a logical subscriber, and for sessions that call themselves replicas, too.
fn create_trigger(name: &str, table: &str, create: &str) -> Statement {
    Statement::new(format!(
        "-- It waits for the transactions that write the table, and they for it: at most --lock-timeout at a time.\n\
         DROP TRIGGER IF EXISTS {name} ON {table};\nCREATE TRIGGER {name} {};\nALTER TABLE {table} ENABLE ALWAYS TRIGGER {name};",
        create.replace("{}", table)
    ))
}

fn drop_trigger(trigger: &Trigger, why: &str) -> Statement {
    Statement::new(format!(
        "-- {why}\nDROP TRIGGER IF EXISTS {} ON {};",
        identifier(&trigger.name),
        trigger.table.sql()
    ))
}

pub(super) fn function_of(oid: u32) -> String {
    format!("changed_{oid}")
}

fn function(carrier: &Carrier, need: &Need, notify: &str) -> String {
    let watched: Vec<&String> = need.watched.difference(&need.columns).collect();
    let values = |row: &str| {
        // `%s` is the type's own output; a cast to text is not (of a boolean, a padded character, an address).
        let value = |column: &String| {
            let column = format!("{row}.{}", identifier(column));
            format!("CASE WHEN num_nulls({column}) = 0 THEN format('%s', {column}) END")
        };
        need.columns.iter().map(value).collect::<Vec<_>>().join(", ")
    };
    let array = |names: Vec<String>| format!("ARRAY[{}]::text[]", names.join(", "));
    let quoted = |name: &str| literal(name).trim().to_owned();
    let columns: Vec<String> = need.columns.iter().map(|name| quoted(name)).collect();
    // Of what is only watched there is no value: it is called otherwise.
    let marks = watched.iter().map(|name| quoted(&format!("{WATCHED}{name}")));
    let names = columns.iter().cloned().chain(marks).chain(need.counts_rest().then(|| quoted(REST))).collect();
    let comment = format!("{MARK}{}", serde_json::to_string(need).unwrap_or_default());
    let declarations = if need.watched.is_empty() { "" } else { "  before record;\n  rest boolean;\n" };
    let values = [
        ("schema", SCHEMA.to_owned()),
        ("table", carrier.table.to_string()),
        ("function", format!("waltag.{}", identifier(&function_of(carrier.oid)))),
        ("names", array(names)),
        ("columns", array(columns)),
        ("read", quoted(&format!("SELECT ARRAY[{}]::text[]", values("($1)")))),
        ("declarations", declarations.to_owned()),
        ("old", values("OLD")),
        ("new", values("NEW")),
        ("compared", compared(need, &watched)),
        ("root", carrier.oid.to_string()),
        ("utf8", SENDABLE.to_owned()),
        ("full", FULL.to_owned()),
        ("toasted", TOASTED.to_owned()),
        ("owed", OWED.to_owned()),
        ("notify", notify.to_owned()),
        ("comment", literal(&comment).trim().to_owned()),
    ];
    let dollars = dollars(values.iter().map(|(_, value)| value));
    fill(CHANGED, &[&values[..], &[("dollars", dollars)]].concat())
}

/// Which of the watched columns changed, whether anything else did, and whether all that is worth a row. Compared as texts, or as they
/// are stored: not every type has an equality.
fn compared(need: &Need, watched: &[&String]) -> String {
    if need.watched.is_empty() {
        return String::new();
    }
    let differs = |name: &String| {
        // A column may have a collation by which different texts are equal.
        let texts = "format('%s', OLD.{0}) COLLATE \"C\" <> format('%s', NEW.{0}) COLLATE \"C\"";
        format!("(num_nulls(OLD.{{0}}) <> num_nulls(NEW.{{0}}) OR {texts})").replace("{0}", &identifier(name))
    };
    let equal: String =
        need.watched.iter().map(|name| format!("      before.{0} := NEW.{0};\n", identifier(name))).collect();
    let mark = |condition: &str| format!("CASE WHEN {condition} THEN '1' ELSE '' END");
    let marks: Vec<String> =
        watched.iter().map(|name| mark(&differs(name))).chain(need.counts_rest().then(|| mark("rest"))).collect();
    let blanks = vec!["''"; marks.len()].join(", ");
    let skip = match &need.counts {
        None => String::new(),
        Some(Counts { rest, columns }) => {
            let counted: Vec<String> = columns.iter().map(differs).chain(rest.then(|| "rest".to_owned())).collect();
            let counted = if counted.is_empty() { "false".to_owned() } else { counted.join(" OR ") };
            format!("      IF NOT ({counted}) THEN\n        RETURN NULL;\n      END IF;\n")
        }
    };
    format!(
        "    IF TG_OP = 'UPDATE' THEN\n      before := OLD;\n{equal}      rest := before *<> NEW;\n{skip}      was := was || ARRAY[{blanks}]::text[];\n      \
         is_now := is_now || ARRAY[{}]::text[];\n    END IF;\n",
        marks.join(", ")
    )
}

impl Need {
    /// Does it say whether columns changed that nobody watches? Without watched columns nothing is compared.
    fn counts_rest(&self) -> bool {
        !self.watched.is_empty()
    }
}

fn role_statements(role: &Role) -> Vec<Statement> {
    let name = identifier(&role.name);
    let create = format!(
        "-- The daemon's role. It has no password; give it one with \\password, or let pg_hba.conf decide.\nCREATE ROLE {name} LOGIN;"
    );
    for_role(role, create, &format!("ALTER ROLE {name} LOGIN;"))
}

/// Statements, in order, that take everything away.
pub fn remove(catalog: &Catalog, role: &Role) -> Vec<Statement> {
    let own = catalog.triggers.all.iter().filter(|trigger| !trigger.cloned);
    let mut statements: Vec<Statement> =
        own.map(|trigger| drop_trigger(trigger, "Its changes are not seen any more.")).collect();
    if catalog.triggers.installed || !catalog.triggers.functions.is_empty() {
        statements.push(Statement::new("-- Tables and functions.\nDROP SCHEMA waltag CASCADE;"));
    }
    statements.extend(role.removal());
    statements
}
