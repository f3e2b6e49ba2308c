//! What the text of a column holds: elements of an array, places within json. Template paths (`<labels[]>`,
//! `<payload.user.id>`) walk through it.

use std::borrow::Cow;

use serde_json::Value as Json;
use tokio_postgres::types::{Kind, Type};

use super::template::Step;

/// A value found at the end of a path: its type, and PostgreSQL's text; `None` is NULL.
pub type Found<'a> = (u32, Option<Cow<'a, str>>);

/// Follows `path` from a column's text; more than one value where it fans out. A place that is not there is NULL, an array
/// that is empty gives nothing. `None`: json that cannot be read (too deep, or a lone surrogate).
pub fn walk<'a>(type_oid: u32, text: &'a str, path: &[Step]) -> Option<Vec<Found<'a>>> {
    match path {
        [] => Some(vec![(type_oid, Some(text.into()))]),
        [Step::Each] if !is_json(type_oid) => {
            let element = element_type(type_oid);
            Some(elements(text).into_iter().map(|value| (element, value.map(Cow::Owned))).collect())
        }
        _ => {
            let mut found = Vec::new();
            descend(&serde_json::from_str::<Json>(text).ok()?, path, &mut found);
            Some(found)
        }
    }
}

/// json or jsonb?
pub fn is_json(type_oid: u32) -> bool {
    matches!(Type::from_oid(type_oid), Some(Type::JSON | Type::JSONB))
}

/// Is it known to be something other than an array? (Types of extensions and enums have numbers that say nothing.)
pub fn is_no_array(type_oid: u32) -> bool {
    Type::from_oid(type_oid).is_some_and(|kind| !matches!(kind.kind(), Kind::Array(_)))
}

/// The type of an array's elements; text where the type is not built in.
pub fn element_type(type_oid: u32) -> u32 {
    match Type::from_oid(type_oid).as_ref().map(Type::kind) {
        Some(Kind::Array(element)) => element.oid(),
        _ => Type::TEXT.oid(),
    }
}

fn descend<'a>(json: &Json, path: &[Step], found: &mut Vec<Found<'a>>) {
    match (path, json) {
        ([], scalar) => found.push(scalar_text(scalar)),
        ([Step::Key(key), rest @ ..], Json::Object(fields)) => match fields.get(key) {
            Some(inner) => descend(inner, rest, found),
            None => found.push((Type::TEXT.oid(), None)),
        },
        ([Step::Each, rest @ ..], Json::Array(items)) => items.iter().for_each(|item| descend(item, rest, found)),
        _ => found.push((Type::TEXT.oid(), None)),
    }
}

fn scalar_text<'a>(json: &Json) -> Found<'a> {
    match json {
        Json::Null => (Type::TEXT.oid(), None),
        Json::Bool(true) => (Type::BOOL.oid(), Some("t".into())),
        Json::Bool(false) => (Type::BOOL.oid(), Some("f".into())),
        Json::Number(number) if number.is_f64() => (Type::FLOAT8.oid(), Some(number.to_string().into())),
        Json::Number(number) => (Type::INT8.oid(), Some(number.to_string().into())),
        Json::String(text) => (Type::TEXT.oid(), Some(text.clone().into())),
        Json::Array(_) | Json::Object(_) => (Type::JSONB.oid(), Some(json.to_string().into())),
    }
}

/// An array as PostgreSQL writes it: the inverse of [`elements`].
pub fn array(items: impl Iterator<Item = Option<String>>) -> String {
    let quote = |text: String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let items = items.map(|item| item.map_or("NULL".to_owned(), quote));
    format!("{{{}}}", items.collect::<Vec<_>>().join(","))
}

/// The elements of an array as PostgreSQL writes it (manual: "Array Input and Output Syntax"); dimensions are flattened.
pub fn elements(text: &str) -> Vec<Option<String>> {
    // `[0:1]={...}` where the bounds are not the usual ones.
    let body = match text.find('{') {
        Some(at) => text.get(at..).unwrap_or_default(),
        None => return Vec::new(),
    };
    let (mut found, mut element, mut quoted, mut was_quoted, mut escaped) =
        (Vec::new(), String::new(), false, false, false);
    for character in body.chars() {
        match character {
            _ if escaped => {
                element.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => {
                quoted = !quoted;
                was_quoted = true;
            }
            other if quoted => element.push(other),
            '{' => {}
            ',' | '}' => {
                if was_quoted || !element.is_empty() {
                    let null = !was_quoted && element == "NULL";
                    found.push((!null).then(|| std::mem::take(&mut element)));
                }
                element.clear();
                was_quoted = false;
            }
            other => element.push(other),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays() {
        let some = |list: &[&str]| list.iter().map(|text| Some((*text).to_owned())).collect::<Vec<_>>();
        assert_eq!(elements("{}"), []);
        assert_eq!(elements("{1,2}"), some(&["1", "2"]));
        assert_eq!(elements(r#"{"a,b","c \"d\" \\e","",NULL,"NULL"}"#), {
            let mut list = some(&["a,b", "c \"d\" \\e", ""]);
            list.extend([None, Some("NULL".into())]);
            list
        });
        assert_eq!(elements("{{1,2},{3,4}}"), some(&["1", "2", "3", "4"]));
        assert_eq!(elements("[0:1]={1,2}"), some(&["1", "2"]));
        assert_eq!(elements("nonsense"), []);
        let (element, text) = walk(Type::INT4_ARRAY.oid(), "{7}", &[Step::Each]).unwrap().remove(0);
        assert_eq!((element, text.as_deref()), (Type::INT4.oid(), Some("7")));
    }

    #[test]
    fn json() {
        let text = r#"{"user": {"id": 7, "ok": true, "x": 1.50, "none": null}, "tags": ["a", null, {"n": 1}]}"#;
        let found = |path: &[&str]| -> Vec<(u32, Option<String>)> {
            let step = |step: &&str| if *step == "[]" { Step::Each } else { Step::Key((*step).to_owned()) };
            let path: Vec<Step> = path.iter().map(step).collect();
            walk(Type::JSONB.oid(), text, &path)
                .unwrap()
                .into_iter()
                .map(|(oid, text)| (oid, text.map(Cow::into_owned)))
                .collect()
        };
        let one = |kind: Type, text: &str| vec![(kind.oid(), Some(text.to_owned()))];
        assert_eq!(found(&["user", "id"]), one(Type::INT8, "7"));
        assert_eq!(found(&["user", "ok"]), one(Type::BOOL, "t"));
        assert_eq!(found(&["user", "none"]), [(Type::TEXT.oid(), None)]);
        assert_eq!(found(&["user", "other", "x"]), [(Type::TEXT.oid(), None)]);
        assert_eq!(found(&["tags", "[]"]).len(), 3);
        assert_eq!(found(&["tags", "[]", "n"])[2], (Type::INT8.oid(), Some("1".into())));
        assert_eq!(found(&["tags"])[0].0, Type::JSONB.oid());
        assert_eq!(walk(Type::JSONB.oid(), "{", &[Step::Key("a".into())]), None, "not NULL: not known");
    }
}
