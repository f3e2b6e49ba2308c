//! `tests:` of a rule file: a change of a row, and the tags that it should make stale.

use super::diagnostic::{Diagnostic, Place};
use super::fields::{self, Fields};
use super::tables::TableName;
use super::value;
use super::yaml::{Node, Value};

/// Keys of a test.
pub(crate) const KEYS: [&str; 7] = ["name", "table", "old", "new", "columns", "rows", "expect"];

/// One test.
pub struct Case {
    /// What it shows.
    pub name: String,
    /// Where it begins.
    pub place: Place,
    /// The table.
    pub table: TableName,
    /// The row before; none on INSERT.
    pub old: Option<Row>,
    /// The row after; none on DELETE.
    pub new: Option<Row>,
    /// Types by column, as SQL names them.
    pub columns: Vec<(Place, String, String)>,
    /// The tags.
    pub expect: Expected,
}

/// Columns with their values.
pub type Row = Vec<(String, Written)>;

/// What is expected.
pub enum Expected {
    /// Of all caches together.
    Together(Vec<String>),
    /// Of each cache; a cache that is not named makes none.
    PerCache(Vec<(Place, String, Vec<String>)>),
}

/// A value as it is written: never a YAML number.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// SQL NULL.
    Null,
    /// PostgreSQL's text, or a boolean as `true` and `false`.
    Text(String),
    /// An array, or within json a list.
    List(Vec<Written>),
    /// A json object.
    Map(Vec<(String, Written)>),
}

impl Case {
    /// Reads one entry of `tests:`.
    pub(super) fn read(node: &Node, schema: &str, problems: &mut Vec<Diagnostic>) -> Option<Case> {
        let fields = Fields::of(node, "a test", &KEYS, problems)?;
        let name = fields.require("name", "the test", problems).and_then(|node| fields::text(node, "`name`", problems));
        let table = fields.require("table", "the test", problems);
        let table = table.and_then(|node| fields::text(node, "`table`", problems));
        let expect = fields.require("expect", "the test", problems).and_then(|node| expected(node, problems));
        let mut row = |key: &str| fields.get(key).and_then(|node| row(node, key, problems));
        let (old, new) = (row("old"), row("new"));
        if old.is_none() && new.is_none() {
            problems.push(fields.place.error("missing-key", "the test has neither `old` nor `new`"));
        }
        let mut columns = Vec::new();
        if let Some(node) = fields.get("columns") {
            for (key, node) in map(node, "`columns`", problems) {
                if let Some((_, text)) = fields::text(node, "a type", problems) {
                    columns.push((node.place.clone(), key.name.clone(), text.to_owned()));
                }
            }
        }
        let ((_, name), (place, table)) = (name?, table?);
        let Some(table) = TableName::parse_in(schema, table) else {
            problems.push(place.error("table", format!("`{table}` is not a table name")));
            return None;
        };
        Some(Case { name: name.to_owned(), place: fields.place.clone(), table, old, new, columns, expect: expect? })
    }
}

fn map<'a>(node: &'a Node, what: &str, problems: &mut Vec<Diagnostic>) -> &'a [(super::yaml::Key, Node)] {
    match &node.value {
        Value::Map(entries) => entries,
        other => {
            problems.push(node.place.error("type", format!("{what} is a mapping, not {}", other.kind())));
            &[]
        }
    }
}

fn row(node: &Node, key: &str, problems: &mut Vec<Diagnostic>) -> Option<Row> {
    if let Value::Null = node.value {
        return None;
    }
    Some(map(node, &format!("`{key}`"), problems).iter().map(|(key, node)| (key.name.clone(), written(node))).collect())
}

fn written(node: &Node) -> Written {
    match &node.value {
        Value::Null => Written::Null,
        Value::Scalar(text) => Written::Text(text.clone()),
        Value::List(items) => Written::List(items.iter().map(written).collect()),
        Value::Map(entries) => {
            Written::Map(entries.iter().map(|(key, node)| (key.name.clone(), written(node))).collect())
        }
    }
}

fn expected(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<Expected> {
    let tags = |node: &Node, problems: &mut Vec<Diagnostic>| -> Vec<String> {
        fields::list(node, "the tags", problems)
            .iter()
            .filter_map(|node| Some(fields::text(node, "a tag", problems)?.1.to_owned()))
            .collect()
    };
    match &node.value {
        Value::Map(entries) => Some(Expected::PerCache(
            entries.iter().map(|(key, node)| (key.place.clone(), key.name.clone(), tags(node, problems))).collect(),
        )),
        _ => Some(Expected::Together(tags(node, problems))),
    }
}

impl Written {
    /// PostgreSQL's text of it in a column of this type; `None` is NULL.
    pub fn text(&self, array: bool, boolean: bool) -> Option<String> {
        match self {
            Written::Null => None,
            Written::Text(text) if boolean => Some(match text.as_str() {
                "true" => "t".into(),
                "false" => "f".into(),
                other => other.to_owned(),
            }),
            Written::Text(text) => Some(text.clone()),
            Written::List(items) if array => Some(value::array(items.iter().map(|item| item.text(true, boolean)))),
            Written::List(_) | Written::Map(_) => Some(self.json().to_string()),
        }
    }

    fn json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Written::Null => Json::Null,
            // A number or a boolean where the text is one.
            Written::Text(text) => match serde_json::from_str(text) {
                Ok(scalar @ (Json::Bool(_) | Json::Number(_))) => scalar,
                _ => Json::String(text.clone()),
            },
            Written::List(items) => items.iter().map(Written::json).collect(),
            Written::Map(entries) => entries.iter().map(|(key, value)| (key.clone(), value.json())).collect(),
        }
    }
}
