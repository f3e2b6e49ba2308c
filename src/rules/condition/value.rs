//! A column's value as CEL takes it.

use std::collections::HashMap;

use cel::Value;
use tokio_postgres::types::{Kind, Type};

use crate::rules::value::elements;

/// A column's text as CEL takes it.
pub(super) fn value(type_oid: u32, text: String) -> Value {
    let number = |text: &str| match text.parse::<i64>() {
        Ok(whole) => Some(Value::Int(whole)),
        Err(_) => text.parse::<f64>().ok().map(Value::Float),
    };
    match Type::from_oid(type_oid) {
        Some(Type::BOOL) => Value::Bool(text == "t"),
        // Padded with blanks, which do not count.
        Some(Type::BPCHAR) => text.trim_end_matches(' ').to_owned().into(),
        Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::NUMERIC | Type::FLOAT4 | Type::FLOAT8) => {
            number(&text).unwrap_or_else(|| text.into())
        }
        Some(Type::JSON | Type::JSONB) => serde_json::from_str(&text).map_or_else(|_| text.into(), json),
        Some(kind) => match kind.kind() {
            Kind::Array(element) => {
                let element = element.oid();
                let items = elements(&text).into_iter();
                let items = items.map(|item| item.map_or(Value::Null, |item| value(element, item)));
                Value::List(items.collect::<Vec<_>>().into())
            }
            _ => text.into(),
        },
        None => text.into(),
    }
}

pub(super) fn json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Array(items) => Value::List(items.into_iter().map(json).collect::<Vec<_>>().into()),
        serde_json::Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (key, json(value))).collect::<HashMap<_, _>>().into()
        }
    }
}

/// Some value of a type, as PostgreSQL writes it.
pub(super) fn sample(type_oid: u32) -> &'static str {
    match Type::from_oid(type_oid) {
        Some(Type::BOOL) => "t",
        Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::NUMERIC | Type::FLOAT4 | Type::FLOAT8) => "1",
        Some(Type::JSON | Type::JSONB) => "{}",
        Some(kind) if matches!(kind.kind(), Kind::Array(_)) => "{}",
        _ => "a",
    }
}
