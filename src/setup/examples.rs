//! Values whose text differs between languages, each with one from the database as it would stand in a tag: most clients hash
//! the tag, so nobody sees a difference, and the record stays.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::types::{Kind, Type};

use super::catalog::Catalog;
use crate::rules::diagnostic::Place;
use crate::rules::plan::written;
use crate::rules::tables::TableName;
use crate::rules::template::Name;
use crate::rules::{Rules, value};
use crate::source::endpoint::Endpoint;
use crate::source::session::{Error, Session, identifier};

/// Looking must not take longer than this per table.
const LIMIT: Duration = Duration::from_secs(2);
/// Rows that are looked at for one that has a value, ...
const ROWS: usize = 1_000;
/// ... in the first partitions.
const MEMBERS: usize = 3;

/// A placeholder with a value.
#[derive(Clone, Debug)]
pub struct Example {
    /// The placeholder.
    pub place: Place,
    /// The cache that it is written for.
    pub cache: String,
    /// The table's column.
    pub column: String,
    /// Its type.
    pub kind: String,
    /// PostgreSQL's text; nothing if the table is empty or may not be read.
    pub value: Option<String>,
    /// What stands in the tag; nothing if the tag is skipped.
    pub text: Option<String>,
}

/// One example per placeholder and cache, for the types whose text differs.
pub async fn collect(endpoint: &Endpoint, rules: &Rules, catalog: &Catalog) -> Result<Vec<Example>, Error> {
    let mut examples: Vec<Example> = Vec::new();
    for (name, _) in catalog.sorted() {
        let values = values(endpoint, rules, name, catalog).await?;
        for rule in rules.of_table(name) {
            for tag in &rule.tags {
                for (column, placeholder) in tag.template.columns() {
                    let Some(kind) = catalog.type_of(name, column).and_then(differing) else { continue };
                    let value = values.get(column).cloned();
                    let path = match &placeholder.name {
                        Name::Column(_, path) => path.as_slice(),
                        _ => &[],
                    };
                    for cache in tag.caches.iter().filter_map(|cache| rules.caches.get(*cache)) {
                        let style = tag.style.unwrap_or(cache.style);
                        let found = value.as_ref().and_then(|text| value::walk(kind.oid(), text, path));
                        let text = found.and_then(|found| {
                            let (type_oid, text) = found.into_iter().next()?;
                            written(placeholder, style, type_oid, text).map(Cow::into_owned)
                        });
                        examples.push(Example {
                            place: tag.place_of(placeholder),
                            cache: cache.name.clone(),
                            column: format!("{name}.{column}"),
                            kind: kind.name().to_owned(),
                            value: value.clone(),
                            text,
                        });
                    }
                }
            }
        }
    }
    Ok(examples)
}

/// A value of each such column of a table. By COPY of a table that holds rows, which reads what lies there and works out nothing: a view or a
/// foreign table is refused, and neither expressions of indexes and constraints nor policies are looked at, which would run with our rights.
async fn values(
    endpoint: &Endpoint,
    rules: &Rules,
    name: &TableName,
    catalog: &Catalog,
) -> Result<HashMap<String, String>, Error> {
    let templates = rules.of_table(name).flat_map(|rule| &rule.tags).flat_map(|tag| tag.template.columns());
    let Some(table) = catalog.tables.get(name).filter(|table| matches!(table.kind, 'r' | 'p')) else {
        return Ok(HashMap::new());
    };
    let is_read = |column: &&str| {
        let known = table.columns.iter().find(|known| known.name == *column);
        known.is_some_and(|known| !known.generated && differing(known.type_oid).is_some())
    };
    let mut columns: Vec<&str> = templates.map(|(column, _)| column).filter(is_read).collect();
    columns.sort_unstable();
    columns.dedup();
    let mut found = HashMap::new();
    for member in table.members.iter().take(MEMBERS) {
        let wanted: Vec<&str> = columns.iter().copied().filter(|column| !found.contains_key(*column)).collect();
        if wanted.is_empty() {
            break;
        }
        let list: Vec<String> = wanted.iter().map(|column| identifier(column)).collect();
        let copy = format!("COPY {} ({}) TO STDOUT", member.table.sql(), list.join(", "));
        // A session of its own: what is not read to its end is given up with it.
        let session = Session::open(endpoint, "waltag check").await?;
        let limits = format!("SET statement_timeout = {}; SET row_security = off", LIMIT.as_millis());
        session.execute(&limits).await?;
        // No SELECT, a policy, or too slow: nothing to show.
        for row in session.copy(&copy, ROWS).await? {
            for (column, value) in wanted.iter().zip(row) {
                if let (Some(value), false) = (value, found.contains_key(*column)) {
                    found.insert((*column).to_owned(), value);
                }
            }
        }
    }
    Ok(found)
}

/// A type whose values are written differently by different languages.
fn differing(type_oid: u32) -> Option<Type> {
    let kind = Type::from_oid(type_oid)?;
    let differs = matches!(
        kind,
        Type::BOOL
            | Type::FLOAT4
            | Type::FLOAT8
            | Type::NUMERIC
            | Type::TIMESTAMP
            | Type::TIMESTAMPTZ
            | Type::TIME
            | Type::TIMETZ
            | Type::INTERVAL
            | Type::BYTEA
            | Type::BPCHAR
            | Type::JSON
            | Type::JSONB
    ) || matches!(kind.kind(), Kind::Array(_) | Kind::Range(_));
    differs.then_some(kind)
}
