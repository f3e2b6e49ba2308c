//! `waltag init`: a rule file to start from, made of the tables that are there.

use std::collections::BTreeMap;

use super::{detect, session, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::rules::tables::TableName;
use crate::settings::Settings;
use crate::source::replication::error::Error;

/// Tables of people with their primary key, their foreign keys (`column>table`), and whether they are published and how they
/// identify rows; partitions by their root only.
const TABLES: &str = "SELECT n.nspname, c.relname, c.relreplident::text, \
    coalesce((SELECT string_agg(a.attname, E'\\n' ORDER BY a.attnum) FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid \
      AND a.attnum = ANY (i.indkey) WHERE i.indrelid = c.oid AND i.indisprimary), ''), \
    coalesce((SELECT string_agg(a.attname || E'\\t' || f.relname, E'\\n' ORDER BY a.attnum) FROM pg_constraint k \
      JOIN pg_attribute a ON a.attrelid = c.oid AND k.conkey = ARRAY[a.attnum] JOIN pg_class f ON f.oid = k.confrelid \
      WHERE k.conrelid = c.oid AND k.contype = 'f'), ''), \
    greatest(c.reltuples, 0)::int8 \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2";

const HEAD: &str = "\
# A start, made by `waltag init`: remove what is not cached, and name the tags as the application does.
#   waltag check --live      are the rules right?
#   waltag setup             the SQL that they need
#   waltag run --dry-run     what they would make stale
version: 1

caches:";

const CACHE: &str = "  default:
    url: \"${REDIS_URL:-redis://127.0.0.1:6379/0}\"
    dialect: keys            # the library that reads this cache (`waltag dialects`); with `keys` the tag is the key
    # key_prefix, version, ...: the library's own settings, under its own names
    repeat: [1s]             # made stale again: heals readers that were computing meanwhile";

/// Prints it.
pub async fn init(settings: &Settings, redis: Option<&str>) -> Result<(), Failure> {
    let (session, endpoint) = session(settings).await?;
    let place = endpoint.to_string();
    let rows = session.rows(TABLES).await;
    let rows = rows.map_err(|error| Error::session("reading the catalog", &place, &error))?;
    if rows.is_empty() {
        return Err(Failure::new(Exit::NoRules, format!("{} at {place} has no tables", settings.dsn.database())));
    }
    let found = match redis {
        Some(url) => detect::caches(url).await?,
        None => Vec::new(),
    };
    show(HEAD);
    found.iter().for_each(show);
    if found.is_empty() {
        show(CACHE);
    }
    show("\nrules:");
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for row in &rows {
        *names.entry(row.get(1).unwrap_or_default().to_owned()).or_default() += 1;
    }
    for row in &rows {
        let field = |index: usize| row.get(index).unwrap_or_default();
        let table = TableName { schema: field(0).to_owned(), name: field(1).to_owned() };
        let key: Vec<&str> = field(3).lines().collect();
        let references = field(4).lines().filter_map(|line| line.split_once('\t'));
        // Two schemas may have a table of the same name.
        let head = match names.get(field(1)) {
            Some(1) => field(1).to_owned(),
            _ => format!("{}.{}", field(0), field(1)),
        };
        show(format_args!("\n  # about {} rows{}", field(5), identity(field(2), &key)));
        show(format_args!("  - table: {}", yaml(&written(&table))));
        show("    tags:");
        match key.as_slice() {
            [] => show(format_args!("      - {}", yaml(&escaped(&head)))),
            key => {
                let columns: Vec<String> = key.iter().map(|column| placeholder(column)).collect();
                show(format_args!("      - {}", yaml(&format!("{}:{}", escaped(&head), columns.join(":")))));
            }
        }
        for (column, other) in references {
            let tag = format!("{}:{}:{}", escaped(other), placeholder(column), escaped(&head));
            show(format_args!("      # - {}", yaml(&tag)));
        }
        show(format_args!("      # - {{ tag: {}, events: [insert, delete, truncate] }}", yaml(&escaped(&head))));
    }
    Ok(())
}

fn identity(identity: &str, key: &[&str]) -> &'static str {
    match (identity, key) {
        ("f", _) => "; sends whole old rows",
        (_, []) => "; has no primary key: `waltag setup` gives it REPLICA IDENTITY FULL",
        _ => "; old values of other columns than the key need REPLICA IDENTITY FULL (`waltag setup`)",
    }
}

/// As it is read back: parts with odd characters in quotes.
fn written(table: &TableName) -> String {
    let part = |text: &str| match text.contains(['.', '"']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    match table.schema.as_str() {
        "public" => part(&table.name),
        schema => format!("{}.{}", part(schema), part(&table.name)),
    }
}

fn placeholder(column: &str) -> String {
    let odd = column.contains(['"', '.', '[', ']', '(', ')', '{', '}', ' ', '<', '>', '|', '@']);
    match odd {
        true => format!("<\"{}\">", column.replace('"', "\"\"")),
        false => format!("<{column}>"),
    }
}

fn escaped(literal: &str) -> String {
    literal.replace('<', "<<")
}

/// A double-quoted YAML scalar: JSON's strings are such.
fn yaml(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}
