//! The catalog as far as the rules go: their tables, with every partition and child, and how each identifies its rows.

mod query;

use std::collections::{BTreeSet, HashMap};

use super::outbox;
use super::outbox::triggers::Triggers;
use super::statements::is_ours;
use super::{tags, verify};
use crate::cache::coverage::{self, Fingerprint, Held};
use crate::flow::said::Word;
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::source::lsn::Lsn;
use crate::source::replication::relations::{self, Census, Family, Lineage};
use crate::source::replication::slot::{Feed, Names, inserts_of};
use crate::source::session::{Error, Sql, identifier, literal};
use crate::source::visibility::Snapshot;

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Catalog {
    /// `server_version_num`.
    pub version: u32,
    /// What is to send the changes.
    pub feed: Feed,
    /// With an outbox: the triggers that are there, by relation.
    pub triggers: Triggers,
    /// What was committed before this had arrived when it was begun to be read.
    pub begin: Lsn,
    /// What is visible here is certainly in it, ...
    pub snapshot: Option<Snapshot>,
    /// ... and nothing that was committed after this position.
    pub end: Lsn,
    /// The end of the server's log when it had been read.
    pub log: Lsn,
    /// The publication.
    pub publication: Publication,
    /// The second one, for tables whose rows nothing identifies: it sends what is inserted and truncated, and lets them change
    /// their rows.
    pub inserts: Publication,
    /// The publication sends stored generated columns, or the server is older than 18 and does not ask for it; true if it does not exist.
    pub sends_generated: bool,
    /// What the publications leave out, in words with the SQL that mends it.
    pub omissions: Vec<String>,
    /// The publication is FOR ALL TABLES.
    pub covers_all: bool,
    /// By which tags that are named in SQL are known as such.
    pub word: Word,
    /// Why tags that are named in SQL are not heard although there are functions for it.
    pub deaf: Option<String>,
    /// Who owns a table that the rules name, or a schema of theirs: whoever owns one that a pattern happens to match is not among them.
    pub trusted: BTreeSet<String>,
    /// The rules' tables that exist.
    pub tables: HashMap<TableName, Table>,
}

/// A publication.
#[derive(Debug, Default)]
pub struct Publication {
    /// Its name.
    pub name: String,
    /// Is it there?
    pub exists: bool,
    /// Whose it is, if neither ours, nor a superuser's, nor that of the database's owner.
    pub owner: Option<String>,
    /// Its comment, where `setup` remembers the identities that it changed.
    pub comment: Option<String>,
    /// Tables that it names itself: not their partitions.
    pub tables: Vec<TableName>,
}

impl Publication {
    /// Did `setup` make it?
    pub fn is_ours(&self) -> bool {
        is_ours(self.comment.as_deref())
    }

    /// May `setup` narrow it, and write into its comment? What somebody else made is only added to.
    pub fn may_be_narrowed(&self) -> bool {
        !self.exists || self.is_ours()
    }
}

/// A table of the rules.
#[derive(Debug, Default)]
pub struct Table {
    /// Its number.
    pub oid: u32,
    /// `relkind`: `r` or `p` can be published.
    pub kind: char,
    /// The table itself, or its leaves; with inheritance the table and its children.
    pub members: Vec<Member>,
    /// Every published column of the table.
    pub columns: Vec<Column>,
    /// Does a partitioned root have a primary key?
    pub has_primary_key: bool,
    /// Number of columns, dropped ones included: a new one may have filled every row.
    pub attributes: String,
    /// What changes when readers may have seen something else by its name, ...
    pub named: String,
    /// ... and what explains that harmlessly.
    pub granted: String,
    /// Of a materialized view: its number with that of its file, and counters that a REFRESH CONCURRENTLY moves, which keeps the file.
    pub refreshed: Option<(u32, u32, String)>,
    /// Its number, and how it came to be published: rows of the publication's catalogs with the transaction that wrote them.
    pub publishing: String,
}

impl Table {
    /// The type of a column.
    pub fn type_of(&self, column: &str) -> Option<u32> {
        self.columns.iter().find(|known| known.name == column).map(|known| known.type_oid)
    }

    /// What does not change unless rows changed, or stopped arriving, in a way that the stream does not tell. `logged`: whoever writes it is
    /// told by the log, and not by a trigger.
    pub fn fingerprint(&self, logged: bool) -> Fingerprint {
        let held = |member: &Member| Held {
            relation: member.oid,
            file: member.file,
            columns: coverage::id(&format!("{} {}", member.written, member.toast)),
            // Rows that are changed while a table is unlogged for a moment are in no log; of a table that a publication names, PostgreSQL refuses to
            // make one. A rewrite by ALTER TABLE gives it another table for large values; TRUNCATE, VACUUM FULL and CLUSTER do not.
            kept: !logged || !member.publishing.is_empty() || member.toast != 0,
        };
        let mut files: Vec<Held> = self.members.iter().map(held).collect();
        let publishing: Vec<&str> = self.members.iter().map(|member| member.publishing.as_str()).collect();
        let mut shape = format!("{} {} {}", self.publishing, self.attributes, publishing.join(" "));
        if let Some((oid, file, counters)) = &self.refreshed {
            // A REFRESH writes another file, and changes nothing else.
            files.push(Held { relation: *oid, file: *file, columns: file.to_string(), kept: false });
            shape = format!("{shape} {counters}");
        }
        files.sort_unstable();
        let all = |own: &str, of: &dyn Fn(&Member) -> &str| {
            let members: Vec<&str> = self.members.iter().map(of).collect();
            coverage::id(&format!("{own} {}", members.join(" ")))
        };
        let (named, granted) =
            (all(&self.named, &|member| &member.named), all(&self.granted, &|member| &member.granted));
        Fingerprint { shape, named, granted, files }
    }
}

/// A column.
#[derive(Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Computed by the server; such columns are not in the stream.
    pub generated: bool,
    /// OID of its type, or of the base type of a domain.
    pub type_oid: u32,
}

impl Catalog {
    /// Where the server's own position says nothing of what has arrived: it was begun to be read when everything up to `begin` had, and
    /// everything that it shows has with `end`.
    pub fn lies_between(&mut self, begin: Lsn, end: Option<Lsn>) {
        if let Some(end) = end {
            (self.begin, self.end) = (begin, end);
        }
    }

    /// As it is for a stream that does not have the publication of inserts yet.
    pub fn forget_inserts(&mut self) {
        self.inserts.tables.clear();
        self.tables.values_mut().flat_map(|table| &mut table.members).for_each(|member| member.inserted = false);
    }

    /// The type of a column.
    pub fn type_of(&self, table: &TableName, column: &str) -> Option<u32> {
        self.tables.get(table)?.type_of(column)
    }

    /// Is there a materialized view among them? Its counters may move when no transaction ends any more.
    pub fn has_views(&self) -> bool {
        self.tables.values().any(|table| table.refreshed.is_some())
    }

    /// Which relations hold the rows of which tables of the rules, and what one that nobody has seen yet must look like.
    pub fn lineage(&self, rules: &Rules) -> Lineage {
        let mut lineage = Lineage::default();
        for (name, table) in self.tables.iter().filter(|(_, table)| matches!(table.kind, 'r' | 'p')) {
            for member in &table.members {
                let known = lineage.members.entry(member.oid);
                let known =
                    known.or_insert_with(|| relations::Member { table: member.table.clone(), roots: Vec::new() });
                known.roots.push(name.clone());
            }
            if table.kind == 'p' {
                let root = relations::Member { table: name.clone(), roots: vec![name.clone()] };
                lineage.members.insert(table.oid, root);
            }
            let has_members = table.kind == 'p' || table.members.len() > 1;
            let sent = table.columns.iter().filter(|column| !column.generated);
            lineage.families.push(Family {
                table: name.clone(),
                columns: sent.map(|column| (column.name.clone(), column.type_oid)).collect(),
                used: if has_members { verify::columns(rules, name) } else { None },
            });
        }
        lineage.families.sort_by(|a, b| a.table.cmp(&b.table));
        lineage.members.values_mut().for_each(|member| member.roots.sort());
        lineage
    }

    /// The tables of the rules that exist, sorted.
    pub fn sorted(&self) -> Vec<(&TableName, &Table)> {
        let mut tables: Vec<_> = self.tables.iter().collect();
        tables.sort_by_key(|(name, _)| *name);
        tables
    }
}

/// A table that holds rows.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub table: TableName,
    /// Its number, ...
    pub oid: u32,
    /// ... that of its file: another one after a rewrite, ...
    pub file: u32,
    /// ... that of the table behind it for large values, if it has one, ...
    pub toast: u32,
    /// ... and the transactions that wrote its columns into pg_attribute.
    pub written: String,
    /// The rows of the publications that name it, each with the transaction that wrote it.
    pub publishing: String,
    /// The transaction that wrote the row of its type, and what explains that harmlessly.
    pub named: String,
    /// Owner and grants of that type.
    pub granted: String,
    /// `relreplident`: `d`, `n`, `f` or `i`.
    pub identity: char,
    /// Columns of the index that identifies rows; empty without one.
    pub key: Vec<String>,
    /// Name of that index.
    pub index: Option<String>,
    /// One of these columns is generated.
    pub key_generated: bool,
    /// `relpersistence`: only `p` is logged.
    pub persistence: char,
    /// It is in the publication, ...
    pub published: bool,
    /// ... and in the second one, for inserts.
    pub inserted: bool,
    /// The columns that the publication sends, if it has a list for it.
    pub listed: Option<Vec<String>>,
    /// Another publication has a column list for it.
    pub listed_elsewhere: bool,
    /// The publication sends only some of its rows.
    pub row_filter: bool,
    /// It has generated columns that are computed when they are read: those can never be sent.
    pub virtual_columns: bool,
    /// It has generated columns that are stored.
    pub stored_columns: bool,
}

/// Which relations hold rows, and which of them were altered within the last transactions; how many, `past` says in SQL.
pub async fn census(session: &Sql, past: &str) -> Result<Census, Error> {
    let rows = session.rows(&query::census(past)).await?;
    let numbers = |index: usize| {
        let numbers = rows.first().and_then(|row| row.get(index)).unwrap_or_default();
        numbers.split(' ').filter_map(|number| number.parse().ok()).collect()
    };
    let snapshot = rows.first().and_then(|row| Snapshot::parse(row.get(2)?));
    Ok(Census { settled: numbers(0), altered: numbers(1), snapshot })
}

/// What changes whenever something does that [`read`] reads, but for the counters of views. With 60,000 relations 0.15 s, where the whole
/// takes 1.5 s.
pub async fn state(session: &Sql, version: u32) -> Result<String, Error> {
    Ok(session.value(&query::state(version >= 150_000)).await?.unwrap_or_default())
}

/// Reads the catalog.
pub async fn read(session: &Sql, rules: &Rules, names: &Names) -> Result<Catalog, Error> {
    let version = session.value("SELECT current_setting('server_version_num')").await?;
    let version = version.and_then(|text| text.parse().ok()).unwrap_or_default();
    let mut catalog = Catalog { version, feed: names.feed, ..Catalog::default() };
    read_into(&mut catalog, session, rules, &names.publication).await?;
    match catalog.feed {
        Feed::Outbox => {
            outbox::triggers::read_into(&mut catalog, session, rules, names.wakes).await?;
            catalog.word = Word::Unneeded;
        }
        Feed::Replication => catalog.word = tags::word(session, &catalog.trusted, &mut catalog.deaf).await?,
    }
    Ok(catalog)
}

async fn read_into(catalog: &mut Catalog, session: &Sql, rules: &Rules, publication: &str) -> Result<(), Error> {
    catalog.begin = position(session).await?;
    catalog.snapshot = session.value("SELECT pg_current_snapshot()").await?.and_then(|text| Snapshot::parse(&text));
    let inserts = inserts_of(publication);
    // What a publication of this name says is no matter of an outbox.
    if catalog.feed == Feed::Replication {
        catalog.inserts = read_publication(session, &inserts, &["insert", "truncate"], catalog).await?;
        let kinds = ["insert", "update", "delete", "truncate"];
        catalog.publication = read_publication(session, publication, &kinds, catalog).await?;
    }
    let by_name: BTreeSet<TableName> = rules.tables().into_iter().cloned().collect();
    let mut tables = by_name.clone();
    if rules.has_patterns() {
        for row in session.rows(&query::tables_like(rules.patterns())).await? {
            let field = |index: usize| row.get(index).unwrap_or_default().to_owned();
            let table = TableName { schema: field(0), name: field(1) };
            if !tables.contains(&table) && rules.of_table(&table).next().is_some() {
                tables.insert(table);
            }
        }
    }
    if tables.is_empty() {
        (catalog.end, catalog.log) = (catalog.begin, catalog.begin);
        return Ok(());
    }
    let schemas: Vec<String> = tables.iter().map(|table| literal(&table.schema)).collect();
    let names: Vec<String> = tables.iter().map(|table| literal(&table.name)).collect();
    let wanted = query::wanted(&schemas, &names);
    let query = query::tables(&wanted, &[publication, &inserts], catalog.version >= 150_000);
    for row in session.rows(&query).await? {
        let field = |index: usize| row.get(index).unwrap_or_default();
        let name = TableName { schema: field(0).into(), name: field(1).into() };
        let columns: Vec<(String, bool, u32)> = serde_json::from_str(field(3)).unwrap_or_default();
        let columns: Vec<Column> =
            columns.into_iter().map(|(name, generated, type_oid)| Column { name, generated, type_oid }).collect();
        let (attributes, publishing) = (field(5).to_owned(), format!("{} {} {}", field(6), field(12), field(13)));
        let (kind, has_primary_key) = (letter(field(2)), field(4) == "t");
        let number = |index: usize| field(index).parse().unwrap_or_default();
        let refreshed = (kind == 'm').then(|| (number(7), number(8), field(9).to_owned()));
        let oid = number(7);
        // A column that takes another one's name has other values by it; one that is added or dropped does not.
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let (named, granted) =
            (format!("{} {}", field(10), names.join(" ")), format!("{} {}", field(11), columns.len()));
        if by_name.contains(&name) {
            catalog.trusted.insert(field(14).to_owned());
        }
        catalog.trusted.insert(field(15).to_owned());
        let table = Table {
            oid,
            kind,
            members: Vec::new(),
            columns,
            has_primary_key,
            attributes,
            named,
            granted,
            refreshed,
            publishing,
        };
        catalog.tables.insert(name, table);
    }
    let query = query::members(&wanted, publication, &inserts, catalog.version >= 150_000);
    for row in session.rows(&query).await? {
        let field = |index: usize| row.get(index).unwrap_or_default();
        let root = TableName { schema: field(0).into(), name: field(1).into() };
        let member = Member {
            table: TableName { schema: field(2).into(), name: field(3).into() },
            identity: letter(field(4)),
            persistence: letter(field(5)),
            key: serde_json::from_str(field(6)).unwrap_or_default(),
            published: field(7) == "t",
            listed_elsewhere: field(8) == "t",
            virtual_columns: field(9) == "t",
            stored_columns: field(15) == "t",
            row_filter: field(10) == "t",
            index: row.get(11).map(str::to_owned),
            key_generated: field(12) == "t",
            oid: field(13).parse().unwrap_or_default(),
            file: field(14).parse().unwrap_or_default(),
            written: field(18).to_owned(),
            toast: field(19).parse().unwrap_or_default(),
            publishing: field(20).to_owned(),
            named: field(21).to_owned(),
            granted: field(22).to_owned(),
            inserted: field(16) == "t",
            listed: row.get(17).and_then(|list| serde_json::from_str(list).ok()),
        };
        if let Some(table) = catalog.tables.get_mut(&root) {
            table.members.push(member);
        }
    }
    catalog.end = position(session).await?;
    catalog.log = catalog.end;
    Ok(())
}

/// The end of what is committed; zero on a standby.
async fn position(session: &Sql) -> Result<Lsn, Error> {
    let query = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END";
    Ok(session.value(query).await?.and_then(|text| text.parse().ok()).unwrap_or_default())
}

/// Reads a publication that should send `kinds`.
async fn read_publication(
    session: &Sql,
    name: &str,
    kinds: &[&str],
    catalog: &mut Catalog,
) -> Result<Publication, Error> {
    let mut publication = Publication { name: name.to_owned(), ..Publication::default() };
    let rows = session.rows(&query::publication(name, catalog.version >= 180_000)).await?;
    catalog.sends_generated = true;
    if let Some(row) = rows.first() {
        publication.exists = true;
        publication.comment = row.get(1).map(str::to_owned);
        publication.owner = row.get(5).map(str::to_owned);
        catalog.covers_all = row.get(0) == Some("t");
        catalog.sends_generated = row.get(4) == Some("t");
        let alter = format!("ALTER PUBLICATION {} SET", identifier(name));
        if row.get(2) == Some("t") {
            catalog.omissions.push(format!(
                "the publication \"{name}\" leaves changes out: it publishes partitions through their root, which sends NULL for old values that a leaf does not log: {alter} (publish_via_partition_root = false)"
            ));
        }
        let sent: Vec<&str> = row.get(3).unwrap_or_default().split(", ").collect();
        let missing: Vec<&str> = kinds.iter().copied().filter(|kind| !sent.contains(kind)).collect();
        if !missing.is_empty() {
            catalog.omissions.push(format!(
                "the publication \"{name}\" leaves changes out: it does not publish {}: {alter} (publish = '{}')",
                missing.join(", "),
                kinds.join(", ")
            ));
        }
    }
    for row in session.rows(&query::published(name)).await? {
        let field = |index: usize| row.get(index).unwrap_or_default().to_owned();
        publication.tables.push(TableName { schema: field(0), name: field(1) });
    }
    Ok(publication)
}

fn letter(text: &str) -> char {
    text.chars().next().unwrap_or(' ')
}
