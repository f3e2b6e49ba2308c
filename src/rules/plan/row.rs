//! A whole row as a JSON object, for clients that keep what they cache under conditions on columns (`rows: true`).

use serde_json::Value;
use tokio_postgres::types::Type;

use super::Cell;
use super::writing::cell;
use crate::rules::style::Style;

/// The columns of the relation, as they go into the object.
pub(super) struct WholeRow {
    /// Names, indices and types.
    pub columns: Vec<(String, usize, u32)>,
    /// Every value is a text, as the language writes it; otherwise what JSON knows is of its type.
    pub texts: bool,
    pub style: Style,
}

impl WholeRow {
    /// Appends the object.
    pub fn write(&self, row: &[Cell], out: &mut Vec<u8>) {
        let mut object = serde_json::Map::new();
        for (name, index, type_oid) in &self.columns {
            let text = match cell(row, *index) {
                Cell::Text(text) => Some(text),
                Cell::Null | Cell::Unknown | Cell::Lost => None,
            };
            object.insert(name.clone(), self.value(*type_oid, text));
        }
        out.extend(Value::Object(object).to_string().bytes());
    }

    fn value(&self, type_oid: u32, text: Option<&str>) -> Value {
        let written = |text: &str| Value::from(self.style.write(type_oid, text).into_owned());
        match (self.texts, text, Type::from_oid(type_oid)) {
            (true, None, _) => Value::from(self.style.null().unwrap_or_default()),
            (true, Some(text), _) => written(text),
            (false, None, _) => Value::Null,
            (false, Some(text), Some(Type::BOOL)) => Value::from(text == "t"),
            (
                false,
                Some(text),
                Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::FLOAT4 | Type::FLOAT8),
            ) => {
                // Digits are kept; what is no number for JSON (NaN) is a text.
                serde_json::from_str::<serde_json::Number>(text).map_or_else(|_| written(text), Value::Number)
            }
            (false, Some(text), _) => written(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_or_as_texts() {
        let columns = [
            ("id", Type::INT8),
            ("live", Type::BOOL),
            ("price", Type::NUMERIC),
            ("gone", Type::TEXT),
            ("at", Type::TIMESTAMPTZ),
        ];
        let columns: Vec<_> =
            columns.iter().enumerate().map(|(at, (name, kind))| ((*name).to_owned(), at, kind.oid())).collect();
        let row = [
            Cell::Text("123456789012345678"),
            Cell::Text("t"),
            Cell::Text("1.50"),
            Cell::Null,
            Cell::Text("2025-01-02 03:04:05+00"),
        ];
        let write = |texts: bool| {
            let mut out = Vec::new();
            WholeRow { columns: columns.clone(), texts, style: Style::Python }.write(&row, &mut out);
            String::from_utf8(out).unwrap()
        };
        let rest = r#""price":"1.50","gone""#;
        let at = r#""at":"2025-01-02 03:04:05+00:00"}"#;
        assert_eq!(write(false), format!(r#"{{"id":123456789012345678,"live":true,{rest}:null,{at}"#));
        assert_eq!(write(true), format!(r#"{{"id":"123456789012345678","live":"True",{rest}:"None",{at}"#));
    }
}
