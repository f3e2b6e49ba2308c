//! `waltag schema`: a JSON Schema of rule files, made of the same lists that the reader goes by.

use serde_json::{Value, json};

use super::show;
use crate::cache::dialects;
use crate::rules::events::EVENTS;
use crate::rules::{file, options, style};

/// Prints it.
pub fn schema() {
    show(serde_json::to_string_pretty(&rule_file()).unwrap_or_default());
}

fn rule_file() -> Value {
    let text = json!({"type": "string"});
    let texts = json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]});
    let events = json!({"type": "array", "items": {"enum": EVENTS.map(|(_, name)| name)}});
    let unknown =
        json!({"anyOf": [{"enum": ["pattern", "everything"]}, {"type": "array", "items": {"type": "string"}}]});
    let old = json!({"enum": options::OLD.map(|(name, _)| name)});
    let of = |key: &str| -> Value {
        match key {
            "events" => events.clone(),
            "ignore" | "only" | "caches" | "tables" => texts.clone(),
            "unknown" => unknown.clone(),
            "old" => old.clone(),
            "style" => json!({"enum": style::NAMES}),
            "collapse" => json!({
                "type": "object", "additionalProperties": false, "required": ["over", "to"],
                "properties": {"over": {"type": "integer", "minimum": 1}, "to": {"type": "string"}},
            }),
            "rows" => json!({"const": true}),
            _ => text.clone(),
        }
    };
    let object = |keys: &[&str], required: &[&str]| {
        let properties: serde_json::Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), of(key))).collect();
        json!({"type": "object", "additionalProperties": false, "required": required, "properties": properties})
    };
    let tag_keys = [file::TAG_KEYS, &options::KEYS].concat();
    let rule_keys = [file::RULE_KEYS, &options::KEYS].concat();
    let mut rule = object(&rule_keys, &[]);
    rule["properties"]["tags"] =
        json!({"type": "array", "items": {"anyOf": [{"type": "string"}, object(&tag_keys, &["tag"])]}});
    let dialects: Vec<&str> = dialects::all().map(|dialect| dialect.name).collect();
    let row = json!({"type": ["object", "null"]});
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "waltag rule file",
        "type": "object",
        "additionalProperties": false,
        "required": ["version"],
        "properties": {
            "version": {"const": 1},
            "defaults": object(&file::DEFAULT_KEYS, &[]),
            "caches": {"type": "object", "additionalProperties": {
                "type": "object", "required": ["url", "dialect"],
                "properties": {"url": {"type": "string"}, "dialect": {"enum": dialects}},
            }},
            "rules": {"type": "array", "items": rule},
            "tests": {"type": "array", "items": {
                "type": "object", "additionalProperties": false, "required": ["name", "table", "expect"],
                "properties": {
                    "name": text, "table": text, "old": row, "new": row, "columns": {"type": "object"}, "rows": {"type": "object"},
                    "expect": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object"}]},
                },
            }},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schema says what the reader takes: the same top-level keys, and those of a test.
    #[test]
    fn in_step_with_the_reader() {
        let schema = rule_file();
        let keys =
            |value: &Value| value.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
        let set = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(keys(&schema["properties"]), set(&file::FILE_KEYS));
        assert_eq!(keys(&schema["properties"]["tests"]["items"]["properties"]), set(&crate::rules::cases::KEYS));
        assert_eq!(keys(&schema["properties"]["defaults"]["properties"]), set(&file::DEFAULT_KEYS));
        let rule = keys(&schema["properties"]["rules"]["items"]["properties"]);
        assert_eq!(rule, set(&[file::RULE_KEYS, &options::KEYS].concat()));
    }
}
