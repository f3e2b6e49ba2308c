//! The catalog as far as the rules go: their tables, with every partition and child, and how each identifies its rows.

use std::collections::HashMap;

use crate::cache::coverage::Fingerprint;
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::source::session::{Error, Sql, identifier, literal};

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Catalog {
    /// `server_version_num`.
    pub version: u32,
    /// Does the publication exist?
    pub publication: bool,
    /// It sends stored generated columns, or the server is older than 18 and does not ask for it; true if it does not exist.
    pub sends_generated: bool,
    /// Its comment, where `setup` remembers the identities that it changed.
    pub comment: Option<String>,
    /// What the publication leaves out, in words with the SQL that mends it.
    pub omissions: Vec<String>,
    /// Tables that the publication names itself: not their partitions.
    pub published: Vec<TableName>,
    /// The publication is FOR ALL TABLES.
    pub covers_all: bool,
    /// The rules' tables that exist.
    pub tables: HashMap<TableName, Table>,
}

/// A table of the rules.
#[derive(Debug, Default)]
pub struct Table {
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
    /// Its number, and how it came to be published: rows of the publication's catalogs with the transaction that wrote them.
    pub publishing: String,
}

impl Table {
    /// The type of a column.
    pub fn type_of(&self, column: &str) -> Option<u32> {
        self.columns.iter().find(|known| known.name == column).map(|known| known.type_oid)
    }

    /// What does not change unless rows changed, or stopped arriving, in a way that the stream does not tell.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut files: Vec<(u32, u32)> = self.members.iter().map(|member| (member.oid, member.file)).collect();
        files.sort_unstable();
        Fingerprint { shape: format!("{} {}", self.publishing, self.attributes), files }
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
    /// The type of a column.
    pub fn type_of(&self, table: &TableName, column: &str) -> Option<u32> {
        self.tables.get(table)?.type_of(column)
    }

    /// The tables of the rules, sorted.
    pub fn names(&self) -> Vec<&TableName> {
        let mut names: Vec<&TableName> = self.tables.keys().collect();
        names.sort();
        names
    }
}

/// A table that holds rows.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub table: TableName,
    /// Its number, ...
    pub oid: u32,
    /// ... and that of its file: another one after a rewrite.
    pub file: u32,
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
    /// It is in the publication.
    pub published: bool,
    /// Some publication has a column list for it.
    pub column_list: bool,
    /// The publication sends only some of its rows.
    pub row_filter: bool,
    /// It has generated columns that are computed when they are read: those can never be sent.
    pub virtual_columns: bool,
    /// It has generated columns that are stored.
    pub stored_columns: bool,
}

/// Reads the catalog.
pub async fn read(session: &Sql, rules: &Rules, publication: &str) -> Result<Catalog, Error> {
    let version = session.value("SELECT current_setting('server_version_num')").await?;
    let mut catalog =
        Catalog { version: version.and_then(|text| text.parse().ok()).unwrap_or_default(), ..Catalog::default() };
    read_publication(session, publication, &mut catalog).await?;
    let mut tables: Vec<TableName> = rules.tables().into_iter().cloned().collect();
    if rules.has_patterns() {
        for row in session.rows(ALL_TABLES).await? {
            let field = |index: usize| row.get(index).unwrap_or_default().to_owned();
            let table = TableName { schema: field(0), name: field(1) };
            if !tables.contains(&table) && rules.of_table(&table).next().is_some() {
                tables.push(table);
            }
        }
    }
    let names: Vec<String> =
        tables.iter().map(|table| format!("({}, {})", literal(&table.schema), literal(&table.name))).collect();
    if names.is_empty() {
        return Ok(catalog);
    }
    let query = tables_query(&names.join(", "), publication, catalog.version >= 150_000);
    for row in session.rows(&query).await? {
        let field = |index: usize| row.get(index).unwrap_or_default();
        let name = TableName { schema: field(0).into(), name: field(1).into() };
        let columns: Vec<(String, bool, u32)> = serde_json::from_str(field(3)).unwrap_or_default();
        let columns =
            columns.into_iter().map(|(name, generated, type_oid)| Column { name, generated, type_oid }).collect();
        let (attributes, publishing) = (field(5).to_owned(), field(6).to_owned());
        let (kind, has_primary_key) = (letter(field(2)), field(4) == "t");
        let table = Table { kind, members: Vec::new(), columns, has_primary_key, attributes, publishing };
        catalog.tables.insert(name, table);
    }
    let query = members_query(&names.join(", "), publication, catalog.version >= 150_000);
    for row in session.rows(&query).await? {
        let field = |index: usize| row.get(index).unwrap_or_default();
        let root = TableName { schema: field(0).into(), name: field(1).into() };
        let member = Member {
            table: TableName { schema: field(2).into(), name: field(3).into() },
            identity: letter(field(4)),
            persistence: letter(field(5)),
            key: serde_json::from_str(field(6)).unwrap_or_default(),
            published: field(7) == "t",
            column_list: field(8) == "t",
            virtual_columns: field(9) == "t",
            stored_columns: field(15) == "t",
            row_filter: field(10) == "t",
            index: row.get(11).map(str::to_owned),
            key_generated: field(12) == "t",
            oid: field(13).parse().unwrap_or_default(),
            file: field(14).parse().unwrap_or_default(),
        };
        if let Some(table) = catalog.tables.get_mut(&root) {
            table.members.push(member);
        }
    }
    Ok(catalog)
}

async fn read_publication(session: &Sql, publication: &str, catalog: &mut Catalog) -> Result<(), Error> {
    let name = literal(publication);
    let generated = if catalog.version >= 180_000 { "pubgencols = 's'" } else { "true" };
    let query = format!(
        "SELECT puballtables, obj_description(oid, 'pg_publication'), pubviaroot, \
         array_to_string(ARRAY[CASE WHEN NOT pubinsert THEN 'insert' END, CASE WHEN NOT pubupdate THEN 'update' END, \
         CASE WHEN NOT pubdelete THEN 'delete' END, CASE WHEN NOT pubtruncate THEN 'truncate' END], ', '), {generated} \
         FROM pg_publication WHERE pubname = {name}"
    );
    let rows = session.rows(&query).await?;
    catalog.sends_generated = true;
    if let Some(row) = rows.first() {
        catalog.publication = true;
        catalog.sends_generated = row.get(4) == Some("t");
        catalog.covers_all = row.get(0) == Some("t");
        catalog.comment = row.get(1).map(str::to_owned);
        let alter = format!("ALTER PUBLICATION {} SET", identifier(publication));
        if row.get(2) == Some("t") {
            catalog.omissions.push(format!(
                "it publishes partitions through their root, which sends NULL for old values that a leaf does not log: {alter} (publish_via_partition_root = false)"
            ));
        }
        if let Some(kinds) = row.get(3).filter(|kinds| !kinds.is_empty()) {
            catalog
                .omissions
                .push(format!("it does not publish {kinds}: {alter} (publish = 'insert, update, delete, truncate')"));
        }
    }
    let query = format!(
        "SELECT n.nspname, c.relname FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
         JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = {name}"
    );
    for row in session.rows(&query).await? {
        let field = |index: usize| row.get(index).unwrap_or_default().to_owned();
        catalog.published.push(TableName { schema: field(0), name: field(1) });
    }
    Ok(())
}

/// What a pattern can mean: tables of people, partitions by their root only.
const ALL_TABLES: &str = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'";

fn tables_query(names: &str, publication: &str, with_schemas: bool) -> String {
    let by_schema = match with_schemas {
        true => {
            "(SELECT string_agg(pn.oid || ':' || pn.xmin, ',' ORDER BY pn.oid) FROM pg_publication_namespace pn WHERE pn.pnpubid = p.oid)"
        }
        false => "''",
    };
    format!(
        "SELECT n.nspname, c.relname, c.relkind::text, \
         (SELECT coalesce(json_agg(json_build_array(a.attname, a.attgenerated <> '', \
            coalesce(nullif(t.typbasetype, 0), t.oid)::int8) ORDER BY a.attnum), '[]') \
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
         EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary), c.relnatts, \
         c.oid || ' ' || coalesce((SELECT concat(p.oid, ':', p.xmin, ' ', {by_schema}, ' ', \
            (SELECT string_agg(pr.oid || ':' || pr.xmin, ',' ORDER BY pr.oid) FROM pg_publication_rel pr WHERE pr.prpubid = p.oid \
              AND (pr.prrelid = c.oid OR pr.prrelid IN (SELECT relid FROM pg_partition_tree(c.oid))))) \
            FROM pg_publication p WHERE p.pubname = {publication}), '') \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE (n.nspname, c.relname) IN ({names})",
        publication = literal(publication)
    )
}

/// Without functions that open the tables (`pg_get_replica_identity_index`, `pg_publication_tables`): a migration that holds
/// a lock on one of them must not hold up the session that answers the fence.
fn members_query(names: &str, publication: &str, with_lists_and_filters: bool) -> String {
    let (column_lists, row_filter, by_schema) = if with_lists_and_filters {
        (
            "EXISTS (SELECT FROM pg_publication_rel pr WHERE pr.prrelid = c.oid AND pr.prattrs IS NOT NULL)",
            "EXISTS (SELECT FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid \
              WHERE pr.prrelid IN (c.oid, tree.root) AND pr.prqual IS NOT NULL AND p.pubname = ",
            "EXISTS (SELECT FROM pg_publication_namespace pn JOIN pg_class m ON m.relnamespace = pn.pnnspid \
              WHERE pn.pnpubid = p.oid AND (m.oid = c.oid OR m.oid IN (SELECT pg_partition_ancestors(c.oid))))",
        )
    } else {
        ("false", "(false AND '' = ", "false")
    };
    format!(
        "WITH RECURSIVE tree(root, oid) AS (\
           SELECT c.oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE (n.nspname, c.relname) IN ({names}) \
           UNION SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid) \
         SELECT rn.nspname, r.relname, n.nspname, c.relname, c.relreplident::text, c.relpersistence::text, \
           (SELECT coalesce(json_agg(a.attname), '[]') FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (key.indkey)), \
           EXISTS (SELECT FROM pg_publication p WHERE p.pubname = {publication} AND (p.puballtables OR {by_schema} \
             OR EXISTS (SELECT FROM pg_publication_rel pr WHERE pr.prpubid = p.oid \
               AND (pr.prrelid = c.oid OR pr.prrelid IN (SELECT pg_partition_ancestors(c.oid)))))), \
           {column_lists}, \
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated = 'v'), \
           {row_filter} {publication}), \
           (SELECT k.relname FROM pg_class k WHERE k.oid = key.indexrelid), \
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (key.indkey) AND a.attgenerated <> ''), \
           c.oid, c.relfilenode, \
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated = 's') \
         FROM tree JOIN pg_class r ON r.oid = tree.root JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_index key ON key.indrelid = c.oid AND {IDENTITY_INDEX} \
         WHERE c.relkind = 'r' ORDER BY n.nspname, c.relname",
        publication = literal(publication)
    )
}

/// Which index identifies the rows of `c` (relcache.c, RelationGetIndexList): a deferrable primary key identifies nothing.
const IDENTITY_INDEX: &str = "key.indislive AND key.indisvalid AND key.indisunique AND key.indimmediate AND key.indpred IS NULL \
    AND CASE c.relreplident WHEN 'd' THEN key.indisprimary WHEN 'i' THEN key.indisreplident ELSE false END";

fn letter(text: &str) -> char {
    text.chars().next().unwrap_or(' ')
}
