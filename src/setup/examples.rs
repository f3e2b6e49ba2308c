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
use crate::source::session::{Error, Sql, identifier};

/// Looking must not take longer than this per table.
const LIMIT: Duration = Duration::from_secs(2);

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
pub async fn collect(session: &Sql, rules: &Rules, catalog: &Catalog) -> Result<Vec<Example>, Error> {
    let mut examples: Vec<Example> = Vec::new();
    for (name, _) in catalog.sorted() {
        let values = values(session, rules, name, catalog).await?;
        for rule in rules.of_table(name) {
            for tag in &rule.tags {
                for (column, placeholder) in tag.template.columns() {
                    let Some(kind) = catalog.type_of(name, column).and_then(differing) else { continue };
                    let value = values.get(column).cloned().flatten();
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

/// A value of each such column of a table.
async fn values(
    session: &Sql,
    rules: &Rules,
    name: &TableName,
    catalog: &Catalog,
) -> Result<HashMap<String, Option<String>>, Error> {
    let templates = rules.of_table(name).flat_map(|rule| &rule.tags).flat_map(|tag| tag.template.columns());
    let differs = |column: &&str| catalog.type_of(name, column).and_then(differing).is_some();
    let mut columns: Vec<&str> = templates.map(|(column, _)| column).filter(differs).collect();
    columns.sort_unstable();
    columns.dedup();
    if columns.is_empty() {
        return Ok(HashMap::new());
    }
    let one = |column: &&str| {
        let column = identifier(column);
        format!("(SELECT {column} FROM {} WHERE {column} IS NOT NULL LIMIT 1)", name.sql())
    };
    let query = format!("SELECT {}", columns.iter().map(one).collect::<Vec<_>>().join(", "));
    // No SELECT, or too slow: nothing to show.
    let rows = session.rows_within(LIMIT, &query).await?.unwrap_or_default();
    let value = |at: usize| rows.first().and_then(|row| row.get(at)).map(str::to_owned);
    Ok(columns.iter().enumerate().map(|(at, column)| ((*column).to_owned(), value(at))).collect())
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
