//! The tables of the stream: what Relation messages described, and which tables of the rules a relation belongs to.
//!
//! `publish_via_partition_root` is false, so a leaf arrives under its own name; its rules are those of its ancestors in
//! `pg_inherits`.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::pgoutput::{self, Message, Old, Tuple, Value};
use crate::rules::Rules;
use crate::rules::events::Event;
use crate::rules::plan::{Cell, Change, Column, Plan, Unlisted};
use crate::rules::tables::TableName;
use crate::source::session::{self, Session};
use crate::tags::Stale;
use tokio_postgres::types::Type;

/// A relation with its plan.
pub struct Relation {
    /// Its own name.
    pub table: TableName,
    columns: Vec<Column>,
    plan: Plan,
    /// When the last complaint was logged: one a second is enough.
    told: std::cell::Cell<Option<Instant>>,
}

/// Relations by OID, and the ancestors of every relation that was seen. Kept over reconnects: a leaf that was detached or
/// dropped meanwhile is still found in older changes.
#[derive(Default)]
pub struct Relations {
    known: HashMap<u32, Relation>,
    ancestors: HashMap<u32, Vec<TableName>>,
    /// Those of them that are partitions: patterns mean their roots.
    partitions: HashSet<u32>,
    /// Base types of domains.
    types: HashMap<u32, u32>,
}

/// Built-in types that mean something to styles, paths and conditions: a domain over one of them is one of them.
const BASE_TYPES: [Type; 36] = [
    Type::BOOL,
    Type::INT2,
    Type::INT4,
    Type::INT8,
    Type::OID,
    Type::FLOAT4,
    Type::FLOAT8,
    Type::NUMERIC,
    Type::TIMESTAMP,
    Type::TIMESTAMPTZ,
    Type::TIME,
    Type::TIMETZ,
    Type::DATE,
    Type::INTERVAL,
    Type::BYTEA,
    Type::UUID,
    Type::JSON,
    Type::JSONB,
    Type::TEXT,
    Type::VARCHAR,
    Type::BPCHAR,
    Type::BOOL_ARRAY,
    Type::INT2_ARRAY,
    Type::INT4_ARRAY,
    Type::INT8_ARRAY,
    Type::FLOAT4_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::NUMERIC_ARRAY,
    Type::TIMESTAMP_ARRAY,
    Type::TIMESTAMPTZ_ARRAY,
    Type::DATE_ARRAY,
    Type::UUID_ARRAY,
    Type::TEXT_ARRAY,
    Type::VARCHAR_ARRAY,
    Type::JSONB_ARRAY,
    Type::BYTEA_ARRAY,
];

/// Ancestors of members of partitioned or inherited tables: member, ancestor's schema, ancestor's name.
fn ancestors(condition: &str) -> String {
    format!(
        "WITH RECURSIVE tree(member, ancestor) AS (\
         SELECT inhrelid, inhparent FROM pg_inherits {condition} UNION \
         SELECT tree.member, i.inhparent FROM tree JOIN pg_inherits i ON i.inhrelid = tree.ancestor) \
         SELECT member::oid::text, n.nspname, c.relname, \
         (SELECT m.relispartition FROM pg_class m WHERE m.oid = member) FROM tree \
         JOIN pg_class c ON c.oid = tree.ancestor JOIN pg_namespace n ON n.oid = c.relnamespace"
    )
}

impl Relations {
    /// Reads all ancestors: at each connect.
    pub async fn read_ancestors(&mut self, session: &Session) -> Result<(), session::Error> {
        self.read(session, &ancestors("")).await
    }

    /// Reads the ancestors of one relation: before it is described, because it may be attached since the connect.
    pub async fn read_ancestors_of(&mut self, oid: u32, session: &Session) -> Result<(), session::Error> {
        self.read(session, &ancestors(&format!("WHERE inhrelid = {oid}"))).await
    }

    async fn read(&mut self, session: &Session, query: &str) -> Result<(), session::Error> {
        for row in session.rows(query).await? {
            let field = |index| row.get(index).unwrap_or_default().to_owned();
            let Ok(member) = field(0).parse() else { continue };
            let ancestor = TableName { schema: field(1), name: field(2) };
            if row.get(3) == Some("t") {
                self.partitions.insert(member);
            }
            let known = self.ancestors.entry(member).or_default();
            if !known.contains(&ancestor) {
                known.push(ancestor);
            }
        }
        Ok(())
    }

    /// Takes a Type message: which base type is behind a domain.
    pub fn describe_type(&mut self, oid: u32, namespace: &str, name: &str) {
        let built_in = namespace.is_empty() || namespace == "pg_catalog";
        if let Some(base) = BASE_TYPES.iter().find(|base| built_in && base.name() == name) {
            self.types.insert(oid, base.oid());
        }
    }

    fn is_new(&self, oid: u32) -> bool {
        !self.known.contains_key(&oid)
    }

    /// Compiles every plan again, by other rules.
    pub fn compile(&mut self, rules: &Rules) {
        for (oid, relation) in &mut self.known {
            let partition = self.partitions.contains(oid);
            let tables = tables(&relation.table, partition, self.ancestors.get(oid), rules);
            relation.plan = Plan::compile(rules, &tables, &relation.columns);
            relation.tell_unfit();
        }
    }

    /// Takes a Relation message and compiles its plan.
    pub fn describe(&mut self, relation: &pgoutput::Relation, rules: &Rules) {
        // The empty namespace is pg_catalog's.
        let schema = if relation.namespace.is_empty() { "pg_catalog" } else { relation.namespace };
        let table = TableName { schema: schema.to_owned(), name: relation.name.to_owned() };
        let column = |column: &pgoutput::Column| Column {
            name: column.name.to_owned(),
            type_oid: self.types.get(&column.type_oid).copied().unwrap_or(column.type_oid),
            // Under FULL every column carries the flag, but say so once more: all old values are sent.
            key: column.key || relation.identity == b'f',
        };
        let columns: Vec<Column> = relation.columns.iter().map(column).collect();
        let partition = self.partitions.contains(&relation.oid);
        let tables = tables(&table, partition, self.ancestors.get(&relation.oid), rules);
        let plan = Plan::compile(rules, &tables, &columns);
        if plan.is_empty() && plan.unfit.is_empty() && self.is_new(relation.oid) {
            tracing::warn!(%table, "published, but no rule names it: its changes make nothing stale. Was it a partition that was detached or dropped?");
        }
        let described = Relation { table, columns, plan, told: Default::default() };
        described.tell_unfit();
        self.known.insert(relation.oid, described);
    }

    /// Renders the tags of a change: which kind it is, and how many templates could not be rendered. `None` for other messages.
    pub fn change(&self, message: &Message, stale: &mut [Stale]) -> Option<(Event, u64)> {
        Some(match message {
            Message::Insert { relation, new } => {
                (Event::Insert, self.render(*relation, Event::Insert, None, Some(*new), stale))
            }
            Message::Update { relation, old, new } => {
                (Event::Update, self.render(*relation, Event::Update, *old, Some(*new), stale))
            }
            Message::Delete { relation, old } => {
                (Event::Delete, self.render(*relation, Event::Delete, Some(*old), None, stale))
            }
            Message::Truncate { relations } => {
                (Event::Truncate, relations.iter().map(|oid| self.truncate(oid, stale)).sum())
            }
            _ => return None,
        })
    }

    fn render(&self, oid: u32, event: Event, old: Option<Old>, new: Option<Tuple>, stale: &mut [Stale]) -> u64 {
        let Some(relation) = self.known.get(&oid) else {
            tracing::error!(oid, "a change arrived for a relation that was never described");
            return 0;
        };
        if relation.plan.is_empty() {
            return 0;
        }
        let old = old.map(|old| match old {
            Old::Full(tuple) => relation.cells(tuple, false),
            Old::Key(tuple) => relation.cells(tuple, true),
        });
        let new = new.map(|tuple| relation.cells(tuple, false));
        let change = Change { event, old: old.as_deref(), new: new.as_deref() };
        relation.renders(change, stale)
    }

    fn truncate(&self, oid: u32, stale: &mut [Stale]) -> u64 {
        let change = Change { event: Event::Truncate, old: None, new: None };
        self.known.get(&oid).map_or(0, |relation| relation.renders(change, stale))
    }
}

/// The tables whose rules a relation falls under: its own and its ancestors'. A partition goes by its own name only where a rule
/// names it: a pattern means its root.
fn tables(own: &TableName, partition: bool, ancestors: Option<&Vec<TableName>>, rules: &Rules) -> Vec<TableName> {
    let named = || rules.rules.iter().any(|rule| rule.tables.one() == Some(own));
    let own = Some(own).filter(|_| !partition || named());
    own.into_iter().chain(ancestors.into_iter().flatten()).cloned().collect()
}

impl Relation {
    /// The cells that the plan looks at. In a key tuple the columns outside the identity stand there as NULL and mean
    /// nothing.
    fn cells<'a>(&self, tuple: Tuple<'a>, key_only: bool) -> Vec<Cell<'a>> {
        let cell = |(value, column): (Value<'a>, &Column)| match value {
            _ if key_only && !column.key => Cell::Unknown,
            Value::Null => Cell::Null,
            Value::Unchanged => Cell::Unknown,
            // The session asked for UTF-8 text; anything else is not a value that a template could write.
            Value::Text(bytes) => std::str::from_utf8(bytes).map_or(Cell::Unknown, Cell::Text),
            Value::Binary(_) => Cell::Unknown,
        };
        tuple.values().zip(&self.columns).take(self.plan.width).map(cell).collect()
    }

    fn renders(&self, change: Change, stale: &mut [Stale]) -> u64 {
        let mut count = 0;
        self.plan.render(change, stale, |unlisted| {
            count += 1;
            self.tell(&unlisted);
        });
        count
    }

    fn tell_unfit(&self) {
        for sentence in &self.plan.unfit {
            tracing::error!(table = %self.table, "{sentence}: each change of the table makes everything stale that the rules reach");
        }
    }

    fn tell(&self, unlisted: &Unlisted) {
        if self.told.get().is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        self.told.set(Some(Instant::now()));
        let Unlisted { template, reason } = unlisted;
        tracing::error!(table = %self.table, template, "{reason}: everything that the rules reach in its caches goes stale");
    }
}
