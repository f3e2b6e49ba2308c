//! `waltag explain`: which rules, which tags, the exact Redis commands of one change. Offline: it knows the columns from
//! the rows that are given.

use serde_json::{Map, Value};
use tokio_postgres::types::Type;

use super::{load, show, table_named};
use crate::cache::command::{Draw, commands};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::plain::whole;
use crate::rules::Rules;
use crate::rules::events::Event;
use crate::rules::plan::{Cell, Change, Column, Plan};
use crate::rules::tables::TableName;
use crate::rules::value;
use crate::settings::{Environment, Settings};
use crate::tags::Stale;

/// Prints what a change of `table` would do.
pub fn explain(
    settings: &Settings,
    environment: &Environment,
    table: &str,
    old: Option<&str>,
    new: Option<&str>,
) -> Result<(), Failure> {
    let rules = load(settings, environment)?;
    let usage = |sentence: String| Failure::new(Exit::Usage, sentence);
    let row = |name: &str, text: Option<&str>| text.map(|text| row(name, text)).transpose().map_err(usage);
    let (old, new) = (row("--old", old)?, row("--new", new)?);
    let event = match (&old, &new) {
        (Some(_), Some(_)) => Event::Update,
        (None, Some(_)) => Event::Insert,
        (Some(_), None) => Event::Delete,
        (None, None) => return Err(usage("give the row as --new, as --old, or both".into())),
    };
    let table = table_named(&rules, table)?;
    tell(&rules, &table, event, old.as_ref(), new.as_ref())
}

fn tell(
    rules: &Rules,
    table: &TableName,
    event: Event,
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
) -> Result<(), Failure> {
    let columns = columns(old, new);
    let plan = Plan::compile(rules, std::slice::from_ref(table), &columns);
    if let [first, ..] = plan.unfit.as_slice() {
        return Err(Failure::new(Exit::Usage, format!("{first}; give it in the row")));
    }
    let texts = |row: &Map<String, Value>| columns.iter().map(|column| text(row.get(&column.name))).collect::<Vec<_>>();
    let (old, new) = (old.map(texts), new.map(texts));
    let (old, new) = (old.as_ref().map(|row| cells(row)), new.as_ref().map(|row| cells(row)));
    let change = Change { event, old: old.as_deref(), new: new.as_deref() };
    for rule in rules.of_table(table) {
        let templates: Vec<&str> = rule.tags.iter().map(|tag| tag.template.text.as_str()).collect();
        show(format_args!("{}  {}  {}", rule.place, rule.tables, whole(&templates.join("  "))));
    }
    let mut stale: Vec<Stale> = rules.caches.iter().map(|_| Stale::default()).collect();
    let mut unlisted = Vec::new();
    plan.render(change, &mut stale, |entry| unlisted.push(format!("`{}`: {}", entry.template, entry.reason)));
    let stale: Vec<Stale> = stale.iter_mut().map(|stale| stale.take(true)).collect();
    for (cache, stale) in rules.caches.iter().zip(&stale).filter(|(_, stale)| !stale.tags.is_empty()) {
        show(format_args!("\n{} ({}, {})", cache.name, cache.dialect.name, cache.address()));
        for tag in stale.tags.iter() {
            show(format_args!("  {}", whole(&String::from_utf8_lossy(tag))));
            for command in commands(cache, tag, Draw::new(cache)) {
                show(format_args!("    {command}"));
            }
            for line in cache.dialect.sweep.iter().filter(|_| cache.is_scanned()) {
                show(format_args!("    # looked for: {}", line.trim_end()));
            }
        }
    }
    if stale.iter().all(Stale::is_empty) {
        show(format_args!("\nno tag goes stale"));
    }
    unlisted.iter().for_each(|sentence| show(format_args!("\ncannot be listed: {}", whole(sentence))));
    Ok(())
}

fn row(flag: &str, text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(_) => Err(format!("{flag} is an object of column names and values, such as '{{\"id\": 7}}'")),
        Err(error) => Err(format!("{flag} is not JSON: {error}")),
    }
}

/// The columns of both rows. What JSON knows is typed; everything else is PostgreSQL's text as given.
fn columns(old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for (name, value) in [old, new].into_iter().flatten().flatten() {
        let type_oid = match value {
            Value::Bool(_) => Type::BOOL,
            Value::Number(number) if number.is_f64() => Type::NUMERIC,
            Value::Number(_) => Type::INT8,
            Value::Array(items) if !items.iter().any(Value::is_object) => Type::TEXT_ARRAY,
            Value::Array(_) => Type::JSONB,
            Value::Object(_) => Type::JSONB,
            Value::Null | Value::String(_) => Type::TEXT,
        }
        .oid();
        match columns.iter_mut().find(|column| column.name == *name) {
            Some(known) if known.type_oid == Type::TEXT.oid() => known.type_oid = type_oid,
            Some(_) => {}
            None => columns.push(Column { name: name.clone(), type_oid, key: true }),
        }
    }
    columns
}

fn text(value: Option<&Value>) -> Option<String> {
    match value {
        None | Some(Value::Null) => None,
        Some(Value::Bool(true)) => Some("t".into()),
        Some(Value::Bool(false)) => Some("f".into()),
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(items)) if !items.iter().any(Value::is_object) => {
            Some(value::array(items.iter().map(|item| text(Some(item)))))
        }
        Some(other) => Some(other.to_string()),
    }
}

fn cells(row: &[Option<String>]) -> Vec<Cell<'_>> {
    row.iter().map(|text| text.as_deref().map_or(Cell::Null, Cell::Text)).collect()
}
