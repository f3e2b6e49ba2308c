//! `waltag test`: the `tests:` of the rule files. Values are taken as written; `--live` lets PostgreSQL cast them to the types
//! of the real columns.

use std::collections::BTreeSet;

use tokio_postgres::types::{Kind, Type};

use super::{load, session, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::plain::whole;
use crate::rules::Rules;
use crate::rules::cases::{Case, Expected, Row, Written};
use crate::rules::events::Event;
use crate::rules::plan::{Cell, Change, Column, Plan};
use crate::rules::value::is_json;
use crate::settings::{Environment, Settings};
use crate::setup::catalog::{self, Catalog};
use crate::source::replication::error::Error;
use crate::source::session::{Sql, literal};
use crate::tags::Stale;

/// Runs every test; 65 if one fails.
pub async fn test(settings: &Settings, environment: &Environment, live: bool) -> Result<(), Failure> {
    let rules = load(settings, environment)?;
    let (mut failed, mut database) = (0, None);
    if live {
        let (session, endpoint) = session(settings).await?;
        let read = catalog::read(&session, &rules, &settings.names).await;
        let catalog = read.map_err(|error| Error::session("reading the catalog", &endpoint.to_string(), &error))?;
        database = Some((session, catalog));
    }
    for case in &rules.tests {
        let problems = match run(&rules, case, database.as_ref().map(|(session, catalog)| (&**session, catalog))).await
        {
            Ok(problems) => problems,
            Err(problem) => vec![problem],
        };
        match problems.as_slice() {
            [] => show(format_args!("ok      {}", whole(&case.name))),
            problems => {
                failed += 1;
                show(format_args!("FAILED  {}\n        at {}", whole(&case.name), case.place));
                problems.iter().for_each(|problem| show(format_args!("        {}", whole(problem))));
            }
        }
    }
    show(format_args!("{} tests, {failed} failed", rules.tests.len()));
    match failed {
        0 => Ok(()),
        _ => Err(Failure::new(Exit::Rules, format!("{failed} of {} rule tests failed", rules.tests.len()))),
    }
}

/// What differs, a line each.
async fn run(rules: &Rules, case: &Case, database: Option<(&Sql, &Catalog)>) -> Result<Vec<String>, String> {
    if rules.of_table(&case.table).next().is_none() {
        return Err(format!("no rule names the table {}", case.table));
    }
    let columns = columns(case, database.map(|(_, catalog)| catalog))?;
    let mut texts = Vec::new();
    for row in [&case.old, &case.new] {
        texts.push(match (row, database) {
            (None, _) => None,
            (Some(row), None) => Some(values(row, &columns)),
            (Some(row), Some((sql, _))) => Some(cast(sql, row, &columns).await?),
        });
    }
    let (old, new) = (texts.first().and_then(cells), texts.get(1).and_then(cells));
    let event = match (&old, &new) {
        (Some(_), Some(_)) => Event::Update,
        (None, _) => Event::Insert,
        (_, None) => Event::Delete,
    };
    let plan = Plan::compile(
        rules,
        std::slice::from_ref(&case.table),
        &columns.iter().map(|column| column.bound.clone()).collect::<Vec<_>>(),
    );
    if let [first, ..] = plan.unfit.as_slice() {
        return Err(format!("{first}; give it in the test's rows"));
    }
    let undecided = rules.undecided.get();
    let mut stale: Vec<Stale> = rules.caches.iter().map(|_| Stale::default()).collect();
    let mut problems = Vec::new();
    let change = Change { event, old: old.as_deref(), new: new.as_deref() };
    plan.render(change, &mut stale, |unlisted| problems.push(format!("`{}`: {}", unlisted.template, unlisted.reason)));
    if rules.undecided.get() > undecided && database.is_none() && columns.iter().any(|column| !column.declared) {
        problems.push(
            "a condition cannot be decided for these values: give the types of their columns in `columns:`".into(),
        );
    }
    let made = |stale: &mut Stale| -> BTreeSet<String> {
        stale.take(true).tags.iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect()
    };
    let made: Vec<BTreeSet<String>> = stale.iter_mut().map(made).collect();
    match &case.expect {
        Expected::Together(tags) => {
            let all = made.into_iter().flatten().collect();
            compare("", &tags.iter().cloned().collect(), &all, &mut problems);
        }
        Expected::PerCache(caches) => {
            for (cache, made) in rules.caches.iter().zip(&made) {
                let expected = caches
                    .iter()
                    .filter(|(_, name, _)| *name == cache.name)
                    .flat_map(|(.., tags)| tags.iter().cloned());
                compare(&format!("{}: ", cache.name), &expected.collect(), made, &mut problems);
            }
        }
    }
    Ok(problems)
}

fn cells(texts: &Option<Vec<Option<String>>>) -> Option<Vec<Cell<'_>>> {
    let texts = texts.as_ref()?.iter();
    Some(texts.map(|text| text.as_deref().map_or(Cell::Null, Cell::Text)).collect())
}

fn compare(head: &str, expected: &BTreeSet<String>, made: &BTreeSet<String>, problems: &mut Vec<String>) {
    problems.extend(expected.difference(made).map(|tag| format!("- {head}{tag}    (expected, not made)")));
    problems.extend(made.difference(expected).map(|tag| format!("+ {head}{tag}    (made, not expected)")));
}

/// A column of a test, and the SQL name of its type.
struct Typed {
    bound: Column,
    sql: String,
    declared: bool,
}

/// The columns of both rows: by the test's `columns:`, by the database, else by how the values are written.
fn columns(case: &Case, catalog: Option<&Catalog>) -> Result<Vec<Typed>, String> {
    let mut columns: Vec<Typed> = Vec::new();
    let table = catalog.map(|catalog| {
        catalog.tables.get(&case.table).ok_or_else(|| format!("the table {} does not exist", case.table))
    });
    let table = table.transpose()?;
    for (name, value) in case.old.iter().chain(&case.new).flatten() {
        if columns.iter().any(|column| column.bound.name == *name) {
            continue;
        }
        let declared = case.columns.iter().find(|(_, column, _)| column == name).map(|(.., sql)| sql.clone());
        let is_declared = declared.is_some() || table.is_some();
        let (type_oid, sql) = match (declared, table) {
            (Some(sql), _) if !is_type_name(&sql) => {
                return Err(format!("`{sql}` is not the name of a type"));
            }
            (Some(sql), _) => (type_named(&sql), sql),
            (None, Some(table)) => {
                let type_oid = table.type_of(name).ok_or_else(|| format!("{} has no column `{name}`", case.table))?;
                (type_oid, Type::from_oid(type_oid).map_or("text".into(), |kind| kind.name().to_owned()))
            }
            (None, None) => match value {
                Written::List(items) if !items.iter().any(|item| matches!(item, Written::Map(_))) => {
                    (Type::TEXT_ARRAY.oid(), "text[]".into())
                }
                Written::List(_) | Written::Map(_) => (Type::JSONB.oid(), "jsonb".into()),
                Written::Null | Written::Text(_) => (Type::TEXT.oid(), "text".into()),
            },
        };
        columns.push(Typed { bound: Column { name: name.clone(), type_oid, key: true }, sql, declared: is_declared });
    }
    Ok(columns)
}

/// The name of a type with its numbers, and nothing that could be more: it becomes part of a statement.
fn is_type_name(sql: &str) -> bool {
    let bare = match (sql.split_once('('), sql.rsplit_once(')')) {
        (None, None) => sql.to_owned(),
        (Some((head, _)), Some((within, tail))) => {
            let numbers = within.strip_prefix(head).and_then(|numbers| numbers.strip_prefix('('));
            if !numbers
                .is_some_and(|numbers| numbers.bytes().all(|byte| byte.is_ascii_digit() || b", ".contains(&byte)))
            {
                return false;
            }
            format!("{head}{tail}")
        }
        _ => return false,
    };
    let mut brackets = bare.trim_end();
    while let Some(less) = brackets.strip_suffix("[]") {
        brackets = less;
    }
    brackets.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_ .\"".contains(&byte))
        && brackets.matches('"').count() % 2 == 0
}

/// A built-in type by its SQL name; text where it is none of these.
fn type_named(sql: &str) -> u32 {
    let lower = sql.to_ascii_lowercase();
    let (element, array) = lower.strip_suffix("[]").map_or((lower.as_str(), false), |element| (element, true));
    let bare = element.split('(').next().unwrap_or_default().trim();
    let (kind, list) = match bare {
        "bool" | "boolean" => (Type::BOOL, Type::BOOL_ARRAY),
        "int2" | "smallint" => (Type::INT2, Type::INT2_ARRAY),
        "int4" | "int" | "integer" => (Type::INT4, Type::INT4_ARRAY),
        "int8" | "bigint" => (Type::INT8, Type::INT8_ARRAY),
        "float4" | "real" => (Type::FLOAT4, Type::FLOAT4_ARRAY),
        "float8" | "double precision" => (Type::FLOAT8, Type::FLOAT8_ARRAY),
        "numeric" | "decimal" => (Type::NUMERIC, Type::NUMERIC_ARRAY),
        "timestamp" | "timestamp without time zone" => (Type::TIMESTAMP, Type::TIMESTAMP_ARRAY),
        "timestamptz" | "timestamp with time zone" => (Type::TIMESTAMPTZ, Type::TIMESTAMPTZ_ARRAY),
        "date" => (Type::DATE, Type::DATE_ARRAY),
        "time" => (Type::TIME, Type::TIME_ARRAY),
        "interval" => (Type::INTERVAL, Type::INTERVAL_ARRAY),
        "uuid" => (Type::UUID, Type::UUID_ARRAY),
        "bytea" => (Type::BYTEA, Type::BYTEA_ARRAY),
        "json" => (Type::JSON, Type::JSON_ARRAY),
        "jsonb" => (Type::JSONB, Type::JSONB_ARRAY),
        _ => (Type::TEXT, Type::TEXT_ARRAY),
    };
    if array { list.oid() } else { kind.oid() }
}

/// PostgreSQL's texts of a row; a column that the row does not give is NULL.
fn values(row: &Row, columns: &[Typed]) -> Vec<Option<String>> {
    let value = |column: &Typed| {
        let (_, written) = row.iter().find(|(name, _)| *name == column.bound.name)?;
        let kind = Type::from_oid(column.bound.type_oid);
        let element = kind.as_ref().map(Type::kind);
        let array = matches!(element, Some(Kind::Array(_))) || (kind.is_none() && !is_json(column.bound.type_oid));
        let boolean = matches!(kind, Some(Type::BOOL | Type::BOOL_ARRAY));
        written.text(array, boolean)
    };
    columns.iter().map(value).collect()
}

/// The same, as the database would hold and send them.
async fn cast(sql: &Sql, row: &Row, columns: &[Typed]) -> Result<Vec<Option<String>>, String> {
    let texts = values(row, columns);
    let list: Vec<String> = texts
        .iter()
        .zip(columns)
        .map(|(text, column)| match text {
            // A type in a schema may be a domain of whoever made it, and its conditions would be worked out with our rights.
            Some(text) if column.sql.contains(['.', '"']) => format!("{}::text", literal(text)),
            Some(text) => format!("({}::{})::text", literal(text), column.sql),
            None => "NULL".to_owned(),
        })
        .collect();
    let rows = sql.rows(&format!("SELECT {}", list.join(", "))).await.map_err(|error| error.to_string())?;
    let row = rows.first().ok_or("no answer")?;
    // What a cast to text says of booleans is not what the stream sends.
    let sent = |(index, column): (usize, &Typed)| match (row.get(index), column.bound.type_oid == Type::BOOL.oid()) {
        (Some("true"), true) => Some("t".to_owned()),
        (Some("false"), true) => Some("f".to_owned()),
        (text, _) => text.map(str::to_owned),
    };
    Ok(columns.iter().enumerate().map(sent).collect())
}
