//! What is asked of the catalog. Without functions that open the tables (`pg_get_replica_identity_index`,
//! `pg_publication_tables`): a migration that holds a lock on one of them must not hold up the session that answers the fence.

use crate::rules::tables::TableName;
use crate::source::BASE_TYPE;
use crate::source::session::literal;

/// What patterns can mean: tables of people, partitions by their root only. Others are not asked for, because a name that is not in the database's own
/// encoding makes the whole answer fail.
pub(super) fn tables_like<'a>(patterns: impl Iterator<Item = &'a TableName>) -> String {
    let like = |pattern: &str| {
        let escaped = pattern.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        literal(&escaped.replace('*', "%").replace('?', "_"))
    };
    let one =
        |table: &TableName| format!("n.nspname LIKE {} AND c.relname LIKE {}", like(&table.schema), like(&table.name));
    let any: Vec<String> = patterns.map(one).collect();
    format!("{ALL_TABLES} AND ({})", if any.is_empty() { "false".to_owned() } else { any.join(" OR ") })
}

const ALL_TABLES: &str = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'waltag') AND n.nspname NOT LIKE 'pg\\_%'";

/// FOR ALL TABLES?, comment, via the root?, kinds of changes, stored generated columns?
pub(super) fn publication(name: &str, with_generated: bool) -> String {
    let generated = if with_generated { "pubgencols = 's'" } else { "true" };
    format!(
        "SELECT puballtables, obj_description(oid, 'pg_publication'), pubviaroot, \
         array_to_string(ARRAY[CASE WHEN pubinsert THEN 'insert' END, CASE WHEN pubupdate THEN 'update' END, \
         CASE WHEN pubdelete THEN 'delete' END, CASE WHEN pubtruncate THEN 'truncate' END], ', '), {generated}, \
         (SELECT o.rolname FROM pg_roles o WHERE o.oid = pubowner AND NOT o.rolsuper AND o.rolname <> current_user \
           AND o.oid NOT IN (SELECT datdba FROM pg_database WHERE datname = current_database())) \
         FROM pg_publication WHERE pubname = {}",
        literal(name)
    )
}

/// Schema and name of the tables that a publication names itself.
pub(super) fn published(name: &str) -> String {
    format!(
        "SELECT n.nspname, c.relname FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
         JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = {}",
        literal(name)
    )
}

/// The tables of two lists, schemas and names, as a table of two columns. A list of pairs (`(a, b) IN ((1, 2), ...)`) is a condition of thousands of
/// terms that is tried for each row: 2,500 tables took 16.8 s.
pub(super) fn wanted(schemas: &[String], names: &[String]) -> String {
    let list = |texts: &[String]| texts.join(", ");
    format!("unnest(ARRAY[{}]::name[], ARRAY[{}]::name[]) AS wanted(schema, name)", list(schemas), list(names))
}

/// The tables `wanted`: schema, name, kind, columns, has a primary key?, number of columns, how it is published, number, file,
/// what a REFRESH moves.
///
/// How it is published is told by the rows that publish it, each with the transaction that wrote it: its own, those of its ancestors, and
/// those of partitioned tables below it.
///
/// Then what readers see by a name although no row changes: its schema, and why that may have been written otherwise; what ties partitions
/// and children to it, one that is taken off and put back included; and the expressions of columns that are computed when they are read.
pub(super) fn tables(wanted: &str, publications: &[&str], with_schemas: bool) -> String {
    let by_schema = match with_schemas {
        true => {
            "(SELECT string_agg(pn.oid || ':' || pn.xmin, ',' ORDER BY pn.oid) FROM pg_publication_namespace pn WHERE pn.pnpubid = p.oid)"
        }
        false => "''",
    };
    let publications: Vec<String> = publications.iter().map(|name| literal(name)).collect();
    format!(
        "WITH p AS MATERIALIZED (SELECT oid, pubname, xmin, puballtables FROM pg_publication WHERE pubname IN ({publications})), \
         p_text AS MATERIALIZED (SELECT p.oid, p.pubname, concat(p.oid, ':', p.xmin, ' ', {by_schema}, ' ') AS text, \
            p.puballtables OR coalesce({by_schema}, '') <> '' AS is_wide FROM p) \
         SELECT n.nspname, c.relname, c.relkind::text, \
         (SELECT coalesce(json_agg(json_build_array(a.attname, a.attgenerated <> '', \
            CASE t.typtype WHEN 'd' THEN {BASE_TYPE} ELSE t.oid::int8 END) ORDER BY a.attnum), '[]') \
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
         EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary), c.relnatts, \
         c.oid || ' ' || coalesce((SELECT string_agg(\
            concat(p.text, own.rows), ' ' ORDER BY p.pubname) FROM p_text p, LATERAL (SELECT string_agg(pr.oid || ':' || pr.xmin, ',' ORDER BY pr.oid) FROM pg_publication_rel pr WHERE pr.prpubid = p.oid \
              AND pr.prrelid = ANY (CASE WHEN c.relkind = 'p' THEN {below} WHEN c.relispartition THEN {above} ELSE ARRAY[c.oid] END)) own(rows) \
            WHERE p.is_wide OR own.rows IS NOT NULL), ''), c.oid, c.relfilenode, \
         CASE c.relkind WHEN 'm' THEN concat(pg_stat_get_tuples_inserted(c.oid), ' ', pg_stat_get_tuples_updated(c.oid), ' ', \
            pg_stat_get_tuples_deleted(c.oid)) END, \
         concat(n.oid, ':', n.xmin), concat(n.nspowner, ' ', n.nspacl), \
         CASE WHEN c.relhassubclass THEN {edges} END, \
         (SELECT string_agg(d.xmin::text, ' ' ORDER BY d.oid) FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum \
            WHERE d.adrelid = c.oid AND a.attgenerated = 'v'), pg_get_userbyid(c.relowner), pg_get_userbyid(n.nspowner) \
         FROM {wanted} JOIN pg_namespace n ON n.nspname = wanted.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name",
        publications = publications.join(", "),
        edges = "(WITH RECURSIVE tree(oid, written) AS (SELECT c.oid, NULL::text UNION SELECT i.inhrelid, i.xmin::text FROM tree \
            JOIN pg_inherits i ON i.inhparent = tree.oid) SELECT concat(count(*), ':', sum(written::int8)) FROM tree)",
        below = "(WITH RECURSIVE tree(oid) AS (SELECT c.oid UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid \
            JOIN pg_class k ON k.oid = i.inhrelid AND k.relkind = 'p'), line(oid) AS (SELECT c.oid UNION SELECT i.inhparent FROM line \
            JOIN pg_inherits i ON i.inhrelid = line.oid) SELECT array_agg(oid) FROM (SELECT oid FROM tree UNION SELECT oid FROM line) around)",
        above = "(WITH RECURSIVE line(oid) AS (SELECT c.oid UNION SELECT i.inhparent FROM line JOIN pg_inherits i ON i.inhrelid = line.oid) \
            SELECT array_agg(oid) FROM line)",
    )
}

/// The relations that hold the rows of the tables `wanted`: the tables themselves and all below them. Last the row of the type: it is written by whoever
/// renames one or moves it to another schema, and with another owner or grants, which are told beside it.
pub(super) fn members(wanted: &str, publication: &str, inserts: &str, with_lists_and_filters: bool) -> String {
    let (main, inserts) = (literal(publication), literal(inserts));
    let (elsewhere, list, filtered, by_schema) = match with_lists_and_filters {
        true => (
            format!(
                "EXISTS (SELECT FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid \
                  WHERE pr.prrelid = c.oid AND pr.prattrs IS NOT NULL AND p.pubname <> {main})"
            ),
            format!(
                "(SELECT json_agg(a.attname) FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid \
                  JOIN pg_attribute a ON a.attrelid = pr.prrelid AND a.attnum = ANY (pr.prattrs) \
                  WHERE pr.prrelid = c.oid AND p.pubname = {main} HAVING count(*) > 0)"
            ),
            format!(
                "EXISTS (SELECT FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid \
                  WHERE pr.prrelid IN (c.oid, tree.root) AND pr.prqual IS NOT NULL AND p.pubname IN ({main}, {inserts}))"
            ),
            "UNION SELECT pn.pnpubid, m.oid FROM pg_publication_namespace pn JOIN pg_class m ON m.relnamespace = pn.pnnspid \
              AND m.relkind IN ('r', 'p')",
        ),
        false => ("false".to_owned(), "NULL".to_owned(), "false".to_owned(), ""),
    };
    let published = |name: &str| {
        format!(
            "EXISTS (SELECT FROM pg_publication p WHERE p.pubname = {name} AND (p.puballtables OR EXISTS (SELECT FROM sent \
             WHERE sent.publication = p.oid AND sent.oid = c.oid)))"
        )
    };
    format!(
        // A publication goes down to partitions, not to children by inheritance.
        "WITH RECURSIVE roots(oid) AS MATERIALIZED (SELECT c.oid FROM {wanted} JOIN pg_namespace n ON n.nspname = wanted.schema \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name), \
         tree(root, oid) AS (SELECT oid, oid FROM roots UNION SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid), \
         named(publication, oid) AS (SELECT pr.prpubid, pr.prrelid FROM pg_publication_rel pr {by_schema}), \
         sent(publication, oid) AS (SELECT n.publication, n.oid FROM named n JOIN pg_publication p ON p.oid = n.publication \
             AND p.pubname IN ({main}, {inserts}) UNION SELECT sent.publication, i.inhrelid FROM sent JOIN pg_inherits i ON i.inhparent = sent.oid \
             JOIN pg_class k ON k.oid = i.inhrelid AND k.relispartition), \
         attributes(oid, written, virtual, stored) AS MATERIALIZED (SELECT a.attrelid, sum(a.xmin::text::int8), bool_or(a.attgenerated = 'v'), \
             bool_or(a.attgenerated = 's') FROM pg_attribute a WHERE a.attrelid IN (SELECT oid FROM tree) AND a.attnum > 0 GROUP BY 1) \
         SELECT rn.nspname, r.relname, n.nspname, c.relname, c.relreplident::text, c.relpersistence::text, \
           (SELECT coalesce(json_agg(a.attname), '[]') FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (key.indkey)), \
           {published}, {elsewhere}, coalesce(attributes.virtual, false), {filtered}, \
           (SELECT k.relname FROM pg_class k WHERE k.oid = key.indexrelid), \
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (key.indkey) AND a.attgenerated <> ''), \
           c.oid, c.relfilenode, coalesce(attributes.stored, false), {inserted}, {list}, attributes.written, c.reltoastrelid, \
           (SELECT string_agg(pr.oid || ':' || pr.xmin, ',' ORDER BY pr.oid) FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid \
             AND p.pubname IN ({main}, {inserts}) WHERE pr.prrelid = c.oid), \
           t.xmin::text, concat(t.typowner, ' ', t.typacl) \
         FROM tree JOIN pg_class r ON r.oid = tree.root JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN attributes ON attributes.oid = c.oid \
         LEFT JOIN pg_type t ON t.oid = c.reltype \
         LEFT JOIN pg_index key ON key.indrelid = c.oid AND {IDENTITY_INDEX} \
         WHERE c.relkind = 'r' ORDER BY n.nspname, c.relname",
        published = published(&main),
        inserted = published(&inserts),
    )
}

/// Every change of a catalog writes a row with another transaction; counts for those that go. Triggers are what an outbox goes by.
pub(super) fn state(with_schemas: bool) -> String {
    let schemas = if with_schemas {
        "(SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_publication_namespace), "
    } else {
        ""
    };
    format!(
        "SELECT concat_ws(' ', {schemas}\
    (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_class), (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_attribute), \
    (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_inherits), (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_index), \
    (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_namespace), (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_trigger), \
    (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_proc), (SELECT string_agg(concat(oid, ':', xmin), ',' ORDER BY oid) FROM pg_publication), \
    (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_publication_rel), \
    (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_description WHERE classoid IN ('pg_publication'::regclass, 'pg_proc'::regclass)))"
    )
}

/// Relations that hold rows: those that were not altered within `past` transactions, whose catalog is right for as long, and the others; and what was visible then. Three
/// texts.
pub(super) fn census(past: &str) -> String {
    format!(
        "WITH past AS MATERIALIZED (SELECT coalesce({past}, 2147483647) AS age), known AS (SELECT c.oid, age(c.xmin) > past.age \
         AND c.oid NOT IN (SELECT a.attrelid FROM pg_attribute a, past WHERE age(a.xmin) <= past.age) \
         AND c.oid NOT IN (SELECT i.inhrelid FROM pg_inherits i, past WHERE age(i.xmin) <= past.age) AS settled \
         FROM pg_class c, past WHERE c.relkind = 'r' AND c.oid >= 16384) \
         SELECT string_agg(oid::text, ' ') FILTER (WHERE settled), string_agg(oid::text, ' ') FILTER (WHERE NOT settled), \
         pg_current_snapshot()::text FROM known"
    )
}

/// Which index identifies the rows of `c` (relcache.c, RelationGetIndexList): a deferrable primary key identifies nothing.
const IDENTITY_INDEX: &str = "key.indislive AND key.indisvalid AND key.indisunique AND key.indimmediate AND key.indpred IS NULL \
    AND CASE c.relreplident WHEN 'd' THEN key.indisprimary WHEN 'i' THEN key.indisreplident ELSE false END";
