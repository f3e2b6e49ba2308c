//! The tables of the stream: what Relation messages described, and which tables of the rules a relation belongs to.
//!
//! A relation is its number. Names and ancestors are what the catalog says of that number, and the catalog is read anew whenever something
//! has changed in it ([`Relations::learn`]): a partitioned root that is renamed gives its leaves other rules without a word in the stream.
//! What the stream says of a name counts as well until a catalog has been judged that knows better, because a table may bear another
//! name for a moment.
//!
//! `publish_via_partition_root` is false, so a leaf arrives under its own name. One that is described before any catalog shows it (it was made
//! in this very transaction, or made, filled and dropped since the catalog was read) is in *doubt*: it is taken for a member of each
//! table of the rules whose columns it has, so its tags go stale at once, and a few more with them. One that was known, and is described once
//! more because it was altered, emptied or analyzed, may have become a member: nothing behind it is called done until a catalog says that it has
//! not; if it has, that is a gap of the table.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::pgoutput::{self, Message, Old, Tuple, Value};
use crate::rules::Rules;
use crate::rules::events::Event;
use crate::rules::plan::{Cell, Change, Column, Plan, Unlisted};
use crate::rules::tables::TableName;
use crate::rules::value::{is_json, is_no_array};
use crate::source::lsn::{Lsn, Xid};
use crate::source::visibility::Snapshot;
use crate::tags::Stale;
use tokio_postgres::types::Type;

/// Bytes of relations that are remembered: who may publish tables of her own could otherwise fill the memory with their columns.
const MOST: usize = 48 << 20;
/// What a column takes beside its name, ...
const COLUMN: usize = 64;
/// ... and a relation beside its columns.
const RELATION: usize = 512;

/// A relation with its plan.
pub struct Relation {
    /// Its own name, as the stream said it last.
    pub table: TableName,
    columns: Vec<Column>,
    /// Those whose rules it falls under, and the plan that comes of them.
    tables: Vec<TableName>,
    plan: Plan,
    standing: Standing,
    /// When the last complaint was logged: one a second is enough.
    told: std::cell::Cell<Option<Instant>>,
}

/// How well the catalog knows a relation that was described.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// No catalog was judged since it was described: its name may be another one by now, and was this one.
    is_news: bool,
    /// No catalog that was read shows the transaction that described it.
    doubt: Option<Doubt>,
}

/// What is not known of a relation.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// The transaction that described it.
    xid: Xid,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// No catalog has ever shown it.
    New,
    /// The catalog shows it as it is now, and what arrives may be of a time before.
    Altered,
    /// It was known before. What it brings lies behind this position.
    Again(Lsn),
}

/// Which relations hold rows, when a stream begins.
#[derive(Debug, Default)]
pub struct Census {
    /// Nobody has altered them since what the stream may still bring: the catalog is right about them.
    pub settled: HashSet<u32>,
    /// Somebody has.
    pub altered: HashSet<u32>,
    /// What was visible then.
    pub snapshot: Option<Snapshot>,
}

/// What a catalog says of the tables of the rules.
#[derive(Debug, Default)]
pub struct Lineage {
    /// By the number of a relation: which it is, if it holds rows of tables of the rules or is one that is partitioned.
    pub members: HashMap<u32, Member>,
    /// The tables of the rules, with what a member of each must have.
    pub families: Vec<Family>,
}

/// A relation of tables of the rules.
#[derive(Debug)]
pub struct Member {
    /// Its own name.
    pub table: TableName,
    /// The tables: itself, or its ancestors.
    pub roots: Vec<TableName>,
}

/// A table of the rules that may have members nobody has seen yet.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub table: TableName,
    /// Every column that the stream sends of it, with its type.
    pub columns: Vec<(String, u32)>,
    /// It has partitions or children already: then the columns that its rules use are enough, because others may have been renamed since.
    pub used: Option<BTreeSet<String>>,
}

impl Family {
    /// May a relation with these columns be one of its members? Each has all columns of its parent.
    fn may_have(&self, columns: &HashMap<&str, u32>) -> bool {
        // A domain over a type of people's own is sent by its own number.
        let same = |theirs: &u32, ours: u32| *theirs == ours || *theirs >= FIRST_OF_PEOPLE;
        let has = |(name, ours): &(String, u32)| columns.get(name.as_str()).is_some_and(|theirs| same(theirs, *ours));
        match &self.used {
            // Its types may have been others then.
            Some(used) => used.iter().all(|name| columns.contains_key(name.as_str())),
            None => self.columns.len() <= columns.len() && self.columns.iter().all(has),
        }
    }
}

/// Relations by OID. They belong to one stream: what it described is described again by the next.
#[derive(Default)]
pub struct Relations {
    known: HashMap<u32, Relation>,
    lineage: Lineage,
    census: Census,
    /// What the source itself knows: by the number of a relation, the table above it whose trigger fired.
    roots: HashMap<u32, u32>,
    /// One of them is in doubt, ...
    is_in_doubt: bool,
    /// ... and nothing behind this position may be called done because of it.
    floor: Option<Lsn>,
    /// Base types of domains.
    types: HashMap<u32, u32>,
    /// Bytes of what was described.
    size: usize,
}

/// A change of a relation that the stream has not described.
#[derive(Debug, thiserror::Error)]
#[error("a change arrived for the relation {0}, which was never described")]
pub struct Undescribed(u32);

/// Numbers below are the server's own (transam.h, FirstNormalObjectId).
const FIRST_OF_PEOPLE: u32 = 16_384;

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

impl Relations {
    /// A stream begins. `lineage` is what the catalog says now, `census` which relations it is right about also for what the stream
    /// brings of the past.
    pub fn begin(&mut self, lineage: Lineage, census: Census) {
        *self = Relations { lineage, census, ..Relations::default() };
    }

    /// The position that is held back by what no catalog has shown yet.
    pub fn floor(&self) -> Option<Lsn> {
        self.floor
    }

    /// A catalog was read in whose snapshot this is visible, and everything has arrived that it shows.
    pub fn learn(&mut self, lineage: Lineage, seen: Option<&Snapshot>, rules: &Rules) {
        self.lineage = lineage;
        (self.is_in_doubt, self.floor) = (false, None);
        for (oid, relation) in &mut self.known {
            let Standing { is_news, doubt } = relation.standing;
            if doubt.is_none_or(|doubt| seen.is_none_or(|snapshot| snapshot.sees(doubt.xid))) {
                relation.standing = Standing { is_news: false, doubt: None };
            }
            self.is_in_doubt |= relation.standing.doubt.is_some();
            if let Some(Doubt { kind: Kind::Again(floor), .. }) = relation.standing.doubt {
                self.floor = Some(self.floor.map_or(floor, |own| own.min(floor)));
            }
            let tables = relation.tables_by(&self.lineage, *oid, self.roots.get(oid), rules);
            if is_news && tables.is_empty() {
                tracing::debug!(table = %relation.table, "published, but no rule names it: its changes make nothing stale");
            }
            // Thousands of relations times thousands of rules, every five seconds.
            if tables != relation.tables {
                relation.fall_under(tables, rules);
            }
        }
    }

    /// The source knows which table a relation belongs to.
    pub fn belongs_to(&mut self, oid: u32, root: u32) {
        if oid != root {
            self.roots.insert(oid, root);
        }
    }

    /// Is there one that no catalog has shown yet?
    pub fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// Takes a Type message: which base type is behind a domain.
    pub fn describe_type(&mut self, oid: u32, namespace: &str, name: &str) {
        let built_in = namespace.is_empty() || namespace == "pg_catalog";
        match BASE_TYPES.iter().find(|base| built_in && base.name() == name) {
            Some(base) => drop(self.types.insert(oid, base.oid())),
            // The number may have been another type's.
            None => drop(self.types.remove(&oid)),
        }
    }

    /// Compiles every plan again, by other rules.
    pub fn compile(&mut self, rules: &Rules) {
        for (oid, relation) in &mut self.known {
            let tables = relation.tables_by(&self.lineage, *oid, self.roots.get(oid), rules);
            relation.fall_under(tables, rules);
        }
    }

    /// Takes a Relation message of a transaction that lies behind `floor`, and compiles its plan.
    pub fn describe(&mut self, relation: &pgoutput::Relation, xid: Xid, floor: Lsn, rules: &Rules) {
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
        let doubt = self.doubt(relation.oid, xid, floor).map(|kind| Doubt { xid, kind });
        self.is_in_doubt |= doubt.is_some();
        if matches!(doubt, Some(Doubt { kind: Kind::Again(_), .. })) {
            self.floor = Some(self.floor.map_or(floor, |own| own.min(floor)));
        }
        let standing = Standing { is_news: true, doubt };
        let (tables, plan) = (Vec::new(), Plan::compile(rules, &[], &columns));
        let mut described = Relation { table, columns, tables, plan, standing, told: Default::default() };
        let tables = described.tables_by(&self.lineage, relation.oid, self.roots.get(&relation.oid), rules);
        described.fall_under(tables, rules);
        self.size += described.size();
        if let Some(before) = self.known.insert(relation.oid, described) {
            self.size -= before.size();
        }
    }

    /// Has the stream described more than can be remembered? Opened anew, it describes what changes again.
    pub fn are_too_many(&self) -> bool {
        self.size > MOST
    }

    /// What is not known of a relation that is described.
    fn doubt(&self, oid: u32, xid: Xid, floor: Lsn) -> Option<Kind> {
        // A member stays one in the catalog's eyes until another is judged, and who got or lost it is told by its fingerprint.
        let is_member = self.lineage.members.contains_key(&oid);
        match self.known.get(&oid) {
            Some(Relation { standing: Standing { doubt: Some(doubt), .. }, .. }) => Some(doubt.kind),
            Some(_) => (!is_member).then_some(Kind::Again(floor)),
            // By a later transaction it may have been altered since.
            None if self.census.settled.contains(&oid) => {
                let is_later = self.census.snapshot.as_ref().is_some_and(|snapshot| !snapshot.sees(xid));
                (is_later && !is_member).then_some(Kind::Again(floor))
            }
            None if self.census.altered.contains(&oid) => Some(Kind::Altered),
            None => (!is_member).then_some(Kind::New),
        }
    }

    /// Renders the tags of a change: which kind it is, and how many templates could not be rendered. `None` for other messages.
    pub fn change(&self, message: &Message, stale: &mut [Stale]) -> Result<Option<(Event, u64)>, Undescribed> {
        Ok(Some(match message {
            Message::Insert { relation, new } => {
                (Event::Insert, self.render(*relation, Event::Insert, None, Some(*new), stale)?)
            }
            Message::Update { relation, old, new } => {
                (Event::Update, self.render(*relation, Event::Update, *old, Some(*new), stale)?)
            }
            Message::Delete { relation, old } => {
                (Event::Delete, self.render(*relation, Event::Delete, Some(*old), None, stale)?)
            }
            Message::Truncate { relations } => {
                let mut unlisted = 0;
                for oid in relations.iter() {
                    let change = Change { event: Event::Truncate, old: None, new: None };
                    unlisted += self.of(oid)?.renders(change, stale);
                }
                (Event::Truncate, unlisted)
            }
            _ => return Ok(None),
        }))
    }

    fn of(&self, oid: u32) -> Result<&Relation, Undescribed> {
        self.known.get(&oid).ok_or(Undescribed(oid))
    }

    fn render(
        &self,
        oid: u32,
        event: Event,
        old: Option<Old>,
        new: Option<Tuple>,
        stale: &mut [Stale],
    ) -> Result<u64, Undescribed> {
        let relation = self.of(oid)?;
        if relation.plan.is_empty() {
            return Ok(0);
        }
        let old = old.map(|old| match old {
            Old::Full(tuple) => relation.cells(tuple, false),
            Old::Key(tuple) => relation.cells(tuple, true),
        });
        let new = new.map(|tuple| relation.cells(tuple, false));
        let change = Change { event, old: old.as_deref(), new: new.as_deref() };
        Ok(relation.renders(change, stale))
    }
}

/// The most bytes of a value that is looked at. What is taken apart (json, arrays, and types that may be arrays) takes up to 110 times its bytes.
fn longest(type_oid: u32) -> usize {
    match is_no_array(type_oid) && !is_json(type_oid) {
        true => 1 << 20,
        false => 512 << 10,
    }
}

impl Relation {
    /// Bytes that it takes.
    fn size(&self) -> usize {
        let columns = self.columns.iter().map(|column| column.name.len() + COLUMN).sum::<usize>();
        columns + self.table.schema.len() + self.table.name.len() + RELATION
    }

    /// The tables whose rules it falls under: those that the catalog says; its own name, if the catalog has it under another one or not at
    /// all, until one was judged that knows better; and while it is in doubt each that it may be a member of.
    fn tables_by(&self, lineage: &Lineage, oid: u32, root: Option<&u32>, rules: &Rules) -> Vec<TableName> {
        let member = lineage.members.get(&oid).or_else(|| lineage.members.get(root?));
        let mut tables = member.map(|member| member.roots.clone()).unwrap_or_default();
        let is_known_so = member.is_some_and(|member| member.table == self.table);
        let is_named = || rules.of_table(&self.table).next().is_some();
        if self.standing.is_news && !is_known_so && !tables.contains(&self.table) && is_named() {
            tables.push(self.table.clone());
        }
        let may_be_others = match self.standing.doubt.map(|doubt| doubt.kind) {
            Some(Kind::New) => member.is_none(),
            Some(Kind::Altered) => true,
            Some(Kind::Again(_)) | None => false,
        };
        if may_be_others {
            let columns = self.columns.iter().map(|column| (column.name.as_str(), column.type_oid)).collect();
            for family in lineage.families.iter().filter(|family| family.may_have(&columns)) {
                if !tables.contains(&family.table) {
                    tables.push(family.table.clone());
                }
            }
        }
        tables
    }

    fn fall_under(&mut self, tables: Vec<TableName>, rules: &Rules) {
        let before = std::mem::replace(&mut self.plan, Plan::compile(rules, &tables, &self.columns));
        self.tables = tables;
        if before.unfit != self.plan.unfit {
            self.tell_unfit();
        }
    }

    /// The cells that the plan looks at. In a key tuple the columns outside the identity stand there as NULL and mean
    /// nothing.
    fn cells<'a>(&self, tuple: Tuple<'a>, key_only: bool) -> Vec<Cell<'a>> {
        let cell = |(value, column): (Value<'a>, &Column)| match value {
            _ if key_only && !column.key => Cell::Unknown,
            Value::Null => Cell::Null,
            Value::Unchanged => Cell::Unknown,
            // The session asked for UTF-8 text; anything else is not a value that a template could write.
            Value::Text(bytes) if bytes.len() > longest(column.type_oid) => Cell::Lost,
            Value::Text(bytes) => std::str::from_utf8(bytes).map_or(Cell::Lost, Cell::Text),
            Value::LeftOut | Value::Binary(_) => Cell::Lost,
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
        tracing::error!(table = %self.table, template, "{reason}: what stands for it goes stale, by `unknown:`, or everything that the rules reach in its caches");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::expand::Surroundings;

    const INT: u32 = 23;
    const TEXT: u32 = 25;

    fn name(name: &str) -> TableName {
        TableName { schema: "public".into(), name: name.into() }
    }

    fn rules() -> Rules {
        let text = r#"{version: 1, caches: {c: {url: "redis://h", dialect: keys}}, rules: [
            {table: item, tags: ["item:<id>"]}, {table: part, tags: ["part:<id>"]}]}"#;
        Rules::parse(vec![("r.yaml".into(), text.into())], &Surroundings::new(&|_| None, None)).unwrap()
    }

    /// `item` is the relation 1; `part` is partitioned, and its partition is the relation 2.
    fn lineage() -> Lineage {
        let member = |own: &str, root: &str| Member { table: name(own), roots: vec![name(root)] };
        let columns = |second: &str| vec![("id".to_owned(), INT), (second.to_owned(), TEXT)];
        let used = Some(BTreeSet::from(["id".to_owned()]));
        Lineage {
            members: HashMap::from([(1, member("item", "item")), (2, member("part_1", "part"))]),
            families: vec![
                Family { table: name("item"), columns: columns("name"), used: None },
                Family { table: name("part"), columns: columns("text"), used },
            ],
        }
    }

    fn describe(relations: &mut Relations, oid: u32, own: &str, columns: &[(&str, u32)], xid: u32) {
        let columns = columns.iter().map(|(name, type_oid)| pgoutput::Column { key: true, name, type_oid: *type_oid });
        let relation =
            pgoutput::Relation { oid, namespace: "public", name: own, identity: b'f', columns: columns.collect() };
        relations.describe(&relation, Xid(xid), Lsn(100), &rules());
    }

    fn tables(relations: &Relations, oid: u32) -> Vec<&str> {
        relations.known[&oid].tables.iter().map(|table| table.name.as_str()).collect()
    }

    #[test]
    fn what_the_catalog_and_the_stream_say_of_a_relation() {
        let mut relations = Relations::default();
        relations.begin(
            lineage(),
            Census { settled: HashSet::from([1, 2, 3]), altered: HashSet::from([4]), snapshot: None },
        );
        let item = [("id", INT), ("name", TEXT)];
        describe(&mut relations, 1, "item", &item, 10);
        describe(&mut relations, 2, "part_1", &[("id", INT), ("text", TEXT)], 10);
        describe(&mut relations, 3, "item_like", &item, 10);
        assert_eq!([1, 2, 3].map(|oid| tables(&relations, oid)), [vec!["item"], vec!["part"], vec![]]);
        assert!(!relations.is_in_doubt(), "the catalog knows them");
        // It bears another name for a moment, and another one bears its name.
        describe(&mut relations, 1, "other", &item, 11);
        describe(&mut relations, 3, "item", &item, 11);
        assert_eq!([1, 3].map(|oid| tables(&relations, oid)), [["item"], ["item"]]);
        assert_eq!(relations.floor(), Some(Lsn(100)), "it may have become a member");
        // It was altered lately, and what arrives may be older than that.
        describe(&mut relations, 4, "moved", &item, 11);
        assert_eq!(tables(&relations, 4), ["item", "part"]);
        let seen = Snapshot::parse("12:12:").unwrap();
        relations.learn(lineage(), Some(&seen), &rules());
        assert_eq!([1, 3].map(|oid| tables(&relations, oid)), [vec!["item"], vec![]], "the catalog has been judged");
        assert_eq!((relations.floor(), relations.is_in_doubt()), (None, false));
    }

    #[test]
    fn who_is_in_doubt_is_taken_for_a_member() {
        let mut relations = Relations::default();
        relations.begin(lineage(), Census::default());
        // A partition that is made and filled in one transaction; columns of others were renamed since.
        describe(&mut relations, 7, "part_2", &[("id", INT), ("renamed", TEXT)], 10);
        assert_eq!((tables(&relations, 7), relations.is_in_doubt()), (vec!["part"], true));
        describe(&mut relations, 8, "child", &[("id", INT), ("name", TEXT), ("more", INT)], 10);
        assert_eq!(tables(&relations, 8), ["item", "part"], "a child has all columns of its parent");
        describe(&mut relations, 9, "log", &[("id", TEXT), ("name", TEXT)], 10);
        assert_eq!(
            tables(&relations, 9),
            ["part"],
            "its types may have been others, but not those of a parent without children"
        );
        // The commit waits for a standby: no catalog shows it.
        relations.learn(lineage(), Snapshot::parse("10:11:10").as_ref(), &rules());
        assert_eq!((tables(&relations, 7), relations.is_in_doubt()), (vec!["part"], true));
        let mut judged = lineage();
        judged.members.insert(7, Member { table: name("part_2"), roots: vec![name("part")] });
        relations.learn(judged, Snapshot::parse("11:11:").as_ref(), &rules());
        assert_eq!((tables(&relations, 7), tables(&relations, 8)), (vec!["part"], vec![]));
        assert!(!relations.is_in_doubt());
        // The source knows the table above a partition that no catalog has.
        relations.belongs_to(20, 21);
        let mut judged = lineage();
        judged.members.insert(21, Member { table: name("part"), roots: vec![name("part")] });
        relations.learn(judged, None, &rules());
        describe(&mut relations, 20, "part_3", &[("id", INT)], 12);
        assert_eq!(tables(&relations, 20), ["part"]);
    }
}
