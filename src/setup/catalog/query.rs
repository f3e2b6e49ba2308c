//! What is asked of the catalog. Without functions that open the tables (`pg_get_replica_identity_index`,
//! `pg_publication_tables`): a migration that holds a lock on one of them must not hold up the session that answers the fence.

use crate::source::BASE_TYPE;
use crate::source::session::literal;

/// What a pattern can mean: tables of people, partitions by their root only.
pub(super) const ALL_TABLES: &str = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'waltag') AND n.nspname NOT LIKE 'pg\\_%'";

/// FOR ALL TABLES?, comment, via the root?, kinds of changes, stored generated columns?
pub(super) fn publication(name: &str, with_generated: bool) -> String {
    let generated = if with_generated { "pubgencols = 's'" } else { "true" };
    format!(
        "SELECT puballtables, obj_description(oid, 'pg_publication'), pubviaroot, \
         array_to_string(ARRAY[CASE WHEN pubinsert THEN 'insert' END, CASE WHEN pubupdate THEN 'update' END, \
         CASE WHEN pubdelete THEN 'delete' END, CASE WHEN pubtruncate THEN 'truncate' END], ', '), {generated} \
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

/// The tables called `names`: schema, name, kind, columns, has a primary key?, number of columns, how it is published, number, file,
/// what a REFRESH moves.
pub(super) fn tables(names: &str, publications: &[&str], with_schemas: bool) -> String {
    let by_schema = match with_schemas {
        true => {
            "(SELECT string_agg(pn.oid || ':' || pn.xmin, ',' ORDER BY pn.oid) FROM pg_publication_namespace pn WHERE pn.pnpubid = p.oid)"
        }
        false => "''",
    };
    let publications: Vec<String> = publications.iter().map(|name| literal(name)).collect();
    format!(
        "SELECT n.nspname, c.relname, c.relkind::text, \
         (SELECT coalesce(json_agg(json_build_array(a.attname, a.attgenerated <> '', \
            {BASE_TYPE}) ORDER BY a.attnum), '[]') \
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
         EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary), c.relnatts, \
         c.oid || ' ' || coalesce((SELECT string_agg(concat(p.oid, ':', p.xmin, ' ', {by_schema}, ' ', \
            (SELECT string_agg(pr.oid || ':' || pr.xmin, ',' ORDER BY pr.oid) FROM pg_publication_rel pr WHERE pr.prpubid = p.oid \
              AND (pr.prrelid = c.oid OR pr.prrelid IN (SELECT relid FROM pg_partition_tree(c.oid))))), ' ' ORDER BY p.pubname) \
            FROM pg_publication p WHERE p.pubname IN ({publications})), ''), c.oid, c.relfilenode, \
         CASE c.relkind WHEN 'm' THEN concat(pg_stat_get_tuples_inserted(c.oid), ' ', pg_stat_get_tuples_updated(c.oid), ' ', \
            pg_stat_get_tuples_deleted(c.oid)) END \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE (n.nspname, c.relname) IN ({names})",
        publications = publications.join(", ")
    )
}

/// The tables that hold the rows of the tables called `names`: the roots and all below them.
pub(super) fn members(names: &str, publication: &str, inserts: &str, with_lists_and_filters: bool) -> String {
    let (main, inserts) = (literal(publication), literal(inserts));
    let (elsewhere, list, row_filter, by_schema) = if with_lists_and_filters {
        (
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
            "EXISTS (SELECT FROM pg_publication_namespace pn JOIN pg_class m ON m.relnamespace = pn.pnnspid \
              WHERE pn.pnpubid = p.oid AND (m.oid = c.oid OR m.oid IN (SELECT pg_partition_ancestors(c.oid))))",
        )
    } else {
        ("false".to_owned(), "NULL".to_owned(), "false".to_owned(), "false")
    };
    let published = |name: &str| {
        format!(
            "EXISTS (SELECT FROM pg_publication p WHERE p.pubname = {name} AND (p.puballtables OR {by_schema} \
             OR EXISTS (SELECT FROM pg_publication_rel pr WHERE pr.prpubid = p.oid \
               AND (pr.prrelid = c.oid OR pr.prrelid IN (SELECT pg_partition_ancestors(c.oid))))))"
        )
    };
    format!(
        "WITH RECURSIVE tree(root, oid) AS (\
           SELECT c.oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE (n.nspname, c.relname) IN ({names}) \
           UNION SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid) \
         SELECT rn.nspname, r.relname, n.nspname, c.relname, c.relreplident::text, c.relpersistence::text, \
           (SELECT coalesce(json_agg(a.attname), '[]') FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (key.indkey)), \
           {published}, {elsewhere}, \
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated = 'v'), \
           {row_filter}, \
           (SELECT k.relname FROM pg_class k WHERE k.oid = key.indexrelid), \
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (key.indkey) AND a.attgenerated <> ''), \
           c.oid, c.relfilenode, \
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated = 's'), \
           {inserted}, {list}, c.xmin::text \
         FROM tree JOIN pg_class r ON r.oid = tree.root JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_index key ON key.indrelid = c.oid AND {IDENTITY_INDEX} \
         WHERE c.relkind = 'r' ORDER BY n.nspname, c.relname",
        published = published(&main),
        inserted = published(&inserts),
    )
}

/// Which index identifies the rows of `c` (relcache.c, RelationGetIndexList): a deferrable primary key identifies nothing.
const IDENTITY_INDEX: &str = "key.indislive AND key.indisvalid AND key.indisunique AND key.indimmediate AND key.indpred IS NULL \
    AND CASE c.relreplident WHEN 'd' THEN key.indisprimary WHEN 'i' THEN key.indisreplident ELSE false END";
