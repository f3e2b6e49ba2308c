//! The triggers that are there, and what that means for the rules: a table whose trigger is missing, disabled or knows less than its rules
//! need is not covered. Their rows in the catalog are a part of the table's fingerprint, so one that was disabled for a while is a gap.

use std::collections::HashMap;

use super::carriers::{Carrier, carriers};
use super::need::Need;
use super::statements::function_of;
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::setup::catalog::Catalog;
use crate::setup::statements::MARK;
use crate::source::session::{Error, Sql};

/// Name of a row trigger; that of a partitioned table has its number behind it.
pub const CHANGE: &str = "waltag_change";
/// The same for TRUNCATE.
pub const TRUNCATE: &str = "waltag_truncate";

/// Everything of the outbox that is in the database.
#[derive(Debug, Default)]
pub struct Triggers {
    /// Tables and functions are there.
    pub installed: bool,
    /// Writers should wake the daemon.
    pub notify: bool,
    /// The trigger function for TRUNCATE does.
    pub notifies: bool,
    /// How many bytes the outbox may have; 0: no bound.
    pub limit: Option<u64>,
    /// Triggers by relation.
    pub all: Vec<Trigger>,
    /// Trigger functions with what they write down.
    pub functions: HashMap<u32, (String, Option<Need>)>,
    /// Relations that should have them.
    pub carriers: Vec<Carrier>,
}

/// A trigger of ours.
#[derive(Debug)]
pub struct Trigger {
    /// Whose.
    pub relation: u32,
    /// Whose, by name.
    pub table: TableName,
    /// [`Carrier::trigger`] or [`TRUNCATE`].
    pub name: String,
    /// It fires for everybody.
    pub enabled: bool,
    /// PostgreSQL made it for a partition.
    pub cloned: bool,
    /// Its row in the catalog, and that of what it calls: one that wrote down less for a while is a gap.
    pub row: String,
    /// Bits of kinds of changes (`pg_trigger.tgtype`).
    pub kinds: u32,
    /// Its function.
    pub function: u32,
}

impl Trigger {
    /// The kinds of changes that it fires for.
    pub fn events(&self) -> std::collections::BTreeSet<String> {
        // TRIGGER_TYPE_INSERT, DELETE, UPDATE, TRUNCATE of pg_trigger.h.
        let bits = [(4, "insert"), (8, "delete"), (16, "update"), (32, "truncate")];
        bits.iter().filter(|(bit, _)| self.kinds & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
    }
}

impl Triggers {
    /// A trigger of a relation.
    pub fn of(&self, relation: u32, name: &str) -> Option<&Trigger> {
        self.all.iter().find(|trigger| trigger.relation == relation && trigger.name == name)
    }
}

const INSTALLED: &str = "SELECT to_regclass('waltag.outbox') IS NOT NULL AND to_regclass('waltag.progress') IS NOT NULL \
    AND to_regclass('waltag.bloat') IS NOT NULL, coalesce((SELECT prosrc LIKE '%pg_notify%' FROM pg_proc WHERE oid = to_regproc('waltag.truncated')), false), \
    (SELECT substring(concat(prosrc, pg_get_function_sqlbody(oid)) FROM '\\d+') FROM pg_proc WHERE oid = to_regproc('waltag.outbox_limit'))";

const TRIGGERS: &str = "SELECT t.tgrelid, rn.nspname, c.relname, t.tgname, t.tgenabled = 'A', t.tgparentid <> 0, \
    concat(t.oid, ':', t.xmin, t.tgenabled, CASE WHEN p.proname LIKE 'changed\\_%' THEN concat(':', p.oid, ':', p.xmin) END), t.tgtype, t.tgfoid \
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_class c ON c.oid = t.tgrelid \
    JOIN pg_namespace rn ON rn.oid = c.relnamespace WHERE n.nspname = 'waltag' ORDER BY t.oid";

const FUNCTIONS: &str = "SELECT p.oid, p.proname, obj_description(p.oid, 'pg_proc') FROM pg_proc p \
    JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'waltag' AND p.proname LIKE 'changed\\_%'";

/// Reads them, and lets the catalog say what they mean.
pub async fn read_into(catalog: &mut Catalog, session: &Sql, rules: &Rules, wakes: bool) -> Result<(), Error> {
    let mut triggers = Triggers::default();
    if let Some(row) = session.rows(INSTALLED).await?.first() {
        let yes = |index: usize| row.get(index) == Some("t");
        (triggers.installed, triggers.notify, triggers.notifies) = (yes(0), wakes, yes(1));
        triggers.limit = row.get(2).and_then(|text| text.parse().ok());
    }
    for row in session.rows(TRIGGERS).await? {
        let field = |index: usize| row.get(index).unwrap_or_default();
        triggers.all.push(Trigger {
            relation: field(0).parse().unwrap_or_default(),
            table: TableName { schema: field(1).into(), name: field(2).into() },
            name: field(3).into(),
            enabled: field(4) == "t",
            cloned: field(5) == "t",
            row: field(6).into(),
            kinds: field(7).parse().unwrap_or_default(),
            function: field(8).parse().unwrap_or_default(),
        });
    }
    for row in session.rows(FUNCTIONS).await? {
        let field = |index: usize| row.get(index).unwrap_or_default();
        let need = field(2).strip_prefix(MARK).and_then(|json| serde_json::from_str(json).ok());
        triggers.functions.insert(field(0).parse().unwrap_or_default(), (field(1).to_owned(), need));
    }
    let relations = catalog.tables.values();
    let numbers = relations.flat_map(|table| table.members.iter().map(|member| member.oid).chain([table.oid]));
    let numbers: Vec<String> = numbers.map(|oid| oid.to_string()).collect();
    let mut ancestors: HashMap<u32, Vec<u32>> = HashMap::new();
    if !numbers.is_empty() {
        let query = format!(
            "SELECT c.oid, a.relid::oid FROM pg_class c, pg_partition_ancestors(c.oid) a WHERE c.oid IN ({}) AND a.relid <> c.oid",
            numbers.join(", ")
        );
        for row in session.rows(&query).await? {
            let number = |index: usize| row.get(index).and_then(|text| text.parse().ok()).unwrap_or_default();
            ancestors.entry(number(0)).or_default().push(number(1));
        }
    }
    catalog.triggers = triggers;
    catalog.triggers.carriers = carriers(catalog, &ancestors);
    judge(catalog, rules, &ancestors);
    Ok(())
}

/// An outbox sends whole old rows of every table that has fitting triggers, be it logged or not.
fn judge(catalog: &mut Catalog, rules: &Rules, ancestors: &HashMap<u32, Vec<u32>>) {
    let triggers = std::mem::take(&mut catalog.triggers);
    let fit: HashMap<u32, bool> = triggers
        .carriers
        .iter()
        .map(|carrier| {
            let need = carrier.need(rules, catalog);
            (carrier.oid, is_fit(&triggers, carrier, &need, carrier.columns(catalog)))
        })
        .collect();
    catalog.publication.exists = triggers.installed;
    let roots = catalog.tables.iter().filter(|(_, table)| table.kind == 'p' && fit.get(&table.oid) == Some(&true));
    catalog.publication.tables = roots.map(|(name, _)| name.clone()).collect();
    for table in catalog.tables.values_mut() {
        let mut shape = vec![table.oid.to_string()];
        for member in &mut table.members {
            let above = ancestors.get(&member.oid).map(Vec::as_slice).unwrap_or_default();
            let carrier = above.iter().chain([&member.oid]).copied().find(|oid| fit.contains_key(oid));
            let name = triggers.carriers.iter().find(|known| Some(known.oid) == carrier).map(Carrier::trigger);
            let off = name.and_then(|name| triggers.of(member.oid, &name)).is_some_and(|trigger| !trigger.enabled);
            member.published = !off && carrier.and_then(|oid| fit.get(&oid)).copied().unwrap_or_default();
            (member.identity, member.row_filter, member.listed) = ('f', false, None);
            if member.persistence == 'u' {
                member.persistence = 'p';
            }
            shape.extend(carrier.into_iter().chain([member.oid]).flat_map(|oid| rows(&triggers, oid)));
        }
        shape.extend(rows(&triggers, table.oid));
        shape.sort();
        shape.dedup();
        table.publishing = shape.join(" ");
    }
    catalog.triggers = triggers;
}

/// What of a relation's triggers is a gap when it changes.
fn rows(triggers: &Triggers, relation: u32) -> impl Iterator<Item = String> + '_ {
    let own = triggers.all.iter().filter(move |trigger| trigger.relation == relation);
    own.map(|trigger| trigger.row.clone())
}

/// Does the carrier's trigger write down what is needed? A partition that was made later has no trigger for TRUNCATE yet; the catalog
/// tells of another file.
fn is_fit(triggers: &Triggers, carrier: &Carrier, need: &Need, columns: &[crate::setup::catalog::Column]) -> bool {
    let truncate = triggers.of(carrier.oid, TRUNCATE).is_some_and(|trigger| trigger.enabled);
    if need.events.iter().all(|event| event == "truncate") {
        return truncate;
    }
    let Some(trigger) = triggers.of(carrier.oid, &carrier.trigger()).filter(|trigger| trigger.enabled) else {
        return false;
    };
    let Some((name, Some(known))) = triggers.functions.get(&trigger.function) else { return false };
    // A dump that was restored brings functions for the numbers that its tables had.
    if *name != function_of(carrier.oid) {
        return false;
    }
    let mut events = trigger.events();
    if truncate {
        events.insert("truncate".into());
    }
    known.covers(need, columns) && events.is_superset(&need.events)
}
