//! How a value becomes text. Many clients hash the tag, so a difference in text is a silent miss: a style writes what the
//! application's language writes when it puts the value into a string.

use std::borrow::Cow;

use tokio_postgres::types::{Kind, Type};

use super::python;

/// A way to write values; per cache, with a default by dialect, or per placeholder as a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// PostgreSQL's text; booleans `true`/`false`, timestamps ISO 8601 with `T`, and `Z` for UTC.
    Plain,
    /// As Python's `str()` writes what psycopg reads: `None`, `True`, `1.0`, six digits of a second.
    Python,
    /// As PHP's string conversion writes what PDO reads: booleans `1` and nothing, all else PostgreSQL's text.
    Php,
    /// PostgreSQL's text, untouched.
    Pg,
}

/// Every style's name, for messages.
pub const NAMES: &[&str] = &["plain", "python", "php", "pg"];

impl Style {
    /// The style of that name.
    pub fn named(name: &str) -> Option<Style> {
        match name {
            "plain" => Some(Style::Plain),
            "python" => Some(Style::Python),
            "php" => Some(Style::Php),
            "pg" => Some(Style::Pg),
            _ => None,
        }
    }

    /// What NULL becomes; `None` skips the tag.
    pub fn null(self) -> Option<&'static str> {
        match self {
            Style::Python => Some("None"),
            Style::Plain | Style::Php | Style::Pg => None,
        }
    }

    /// PostgreSQL's text of a value of type `type_oid` in this style.
    pub fn write(self, type_oid: u32, text: &str) -> Cow<'_, str> {
        let kind = Type::from_oid(type_oid);
        match (self, kind) {
            (Style::Pg, _) | (_, None) => text.into(),
            (Style::Php, Some(Type::BOOL)) => if text == "t" { "1" } else { "" }.into(),
            (Style::Plain, Some(Type::BOOL)) => if text == "t" { "true" } else { "false" }.into(),
            (Style::Plain, Some(Type::TIMESTAMP | Type::TIMESTAMPTZ)) => iso_8601(text).into(),
            (Style::Python, Some(Type::INTERVAL)) => python::interval(text).map_or(text.into(), Cow::Owned),
            (Style::Python, Some(Type::BYTEA)) => python::bytes(text).map_or(text.into(), Cow::Owned),
            (Style::Python, Some(Type::JSON | Type::JSONB)) => python::json(text).map_or(text.into(), Cow::Owned),
            (Style::Python, Some(kind)) if matches!(kind.kind(), Kind::Array(_)) => python::list(&kind, text).into(),
            (Style::Python, Some(kind)) if matches!(kind.kind(), Kind::Range(_)) => match kind.kind() {
                Kind::Range(element) => python::range(element, text).map_or(text.into(), Cow::Owned),
                _ => text.into(),
            },
            (Style::Python, Some(Type::BOOL)) => if text == "t" { "True" } else { "False" }.into(),
            (Style::Python, Some(Type::FLOAT4 | Type::FLOAT8)) => python_float(text).into(),
            (Style::Python, Some(Type::NUMERIC)) => python_decimal(text).into(),
            (Style::Python, Some(Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::TIME | Type::TIMETZ)) => {
                python_time(text).into()
            }
            _ => text.into(),
        }
    }
}

/// `2024-01-02 03:04:05.6+00` -> `2024-01-02T03:04:05.6Z`. The sessions run in UTC, so `+00` is the only offset.
fn iso_8601(text: &str) -> String {
    let joined = text.replacen(' ', "T", 1);
    match joined.strip_suffix("+00") {
        Some(utc) => format!("{utc}Z"),
        None => joined,
    }
}

/// `datetime.__str__`: no fraction or six digits; offsets with minutes.
fn python_time(text: &str) -> String {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut out = match text.split_once('.') {
        Some((whole, rest)) => {
            let (fraction, offset) = rest.split_at(digits(rest));
            format!("{whole}.{fraction:0<6}{offset}")
        }
        None => text.to_owned(),
    };
    let offset =
        out.rfind(['+', '-']).filter(|at| out.get(*at..).is_some_and(|end| end.len() == 3) && out.contains(':'));
    if offset.is_some() {
        out.push_str(":00");
    }
    out
}

/// `float.__repr__`: the shortest digits that read back the same, exponents below 1e-4 and from 1e16.
pub(super) fn python_float(text: &str) -> String {
    let Ok(value) = text.parse::<f64>() else { return text.to_owned() };
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// `Decimal.__str__`: digits as they are, unless the number is smaller than 1e-6 (General Decimal Arithmetic,
/// "to-scientific-string"). PostgreSQL's numeric never prints an exponent itself.
fn python_decimal(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let Some(fraction) = digits.strip_prefix("0.").filter(|rest| rest.bytes().all(|b| b.is_ascii_digit())) else {
        return text.to_owned();
    };
    let significant = fraction.trim_start_matches('0');
    let coefficient = if significant.is_empty() { "0" } else { significant };
    let adjusted = coefficient.len() as i64 - 1 - fraction.len() as i64;
    if adjusted >= -6 {
        return text.to_owned();
    }
    let (first, rest) = coefficient.split_at(1);
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{first}{point}{rest}E{adjusted}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let (plain, python, pg) = (Style::Plain, Style::Python, Style::Pg);
        for (style, kind, text, expected) in [
            (plain, Type::BOOL, "t", "true"),
            (python, Type::BOOL, "f", "False"),
            (pg, Type::BOOL, "f", "f"),
            (python, Type::INT4, "15", "15"),
            (python, Type::TEXT, "t", "t"),
            (python, Type::FLOAT8, "1", "1.0"),
            (python, Type::FLOAT8, "0.1", "0.1"),
            (python, Type::FLOAT8, "1e+15", "1000000000000000.0"),
            (python, Type::FLOAT8, "1e+16", "1e+16"),
            (python, Type::FLOAT8, "1.5e-05", "1.5e-05"),
            (python, Type::FLOAT8, "0.0001", "0.0001"),
            (python, Type::FLOAT8, "-0", "-0.0"),
            (python, Type::FLOAT8, "Infinity", "inf"),
            (python, Type::FLOAT8, "NaN", "nan"),
            (python, Type::NUMERIC, "1000", "1000"),
            (python, Type::NUMERIC, "1.50", "1.50"),
            (python, Type::NUMERIC, "0.000001", "0.000001"),
            (python, Type::NUMERIC, "0.0000001", "1E-7"),
            (python, Type::NUMERIC, "-0.00000012", "-1.2E-7"),
            (python, Type::NUMERIC, "0.00000000", "0E-8"),
            (python, Type::NUMERIC, "0.00", "0.00"),
            (python, Type::NUMERIC, "0.0000000é", "0.0000000é"),
            (python, Type::TIMESTAMP, "2024-01-02 03:04:05.6", "2024-01-02 03:04:05.600000"),
            (python, Type::TIMESTAMP, "2024-01-02 03:04:05", "2024-01-02 03:04:05"),
            (python, Type::TIMESTAMPTZ, "2024-01-02 03:04:05.25+00", "2024-01-02 03:04:05.250000+00:00"),
            (python, Type::TIMESTAMPTZ, "2024-01-02 03:04:05+00", "2024-01-02 03:04:05+00:00"),
            (python, Type::TIME, "03:04:05.6", "03:04:05.600000"),
            (python, Type::DATE, "2024-01-02", "2024-01-02"),
            (python, Type::INTERVAL, "1 year 2 mons 3 days 04:05:06.7", "428 days, 4:05:06.700000"),
            (python, Type::INTERVAL, "-00:00:01", "-1 day, 23:59:59"),
            (python, Type::INTERVAL, "1 day", "1 day, 0:00:00"),
            // An overflow: no interval of PostgreSQL is as long.
            (python, Type::INTERVAL, "9223372036854775807 mons", "276701161105643274210 days, 0:00:00"),
            (python, Type::INTERVAL, "00:00:00", "0:00:00"),
            (python, Type::BYTEA, "\\x00617f27", r#"b"\x00a\x7f'""#),
            (python, Type::INT4_ARRAY, "{1,NULL,2}", "[1, None, 2]"),
            (python, Type::TEXT_ARRAY, r#"{a,"it's","x\"y"}"#, r#"['a', "it's", 'x"y']"#),
            (python, Type::BOOL_ARRAY, "{t,f}", "[True, False]"),
            (python, Type::NUMERIC_ARRAY, "{1.50}", "[Decimal('1.50')]"),
            (python, Type::INT4_RANGE, "[1,5)", "[1, 5)"),
            (python, Type::TS_RANGE, r#"["2026-01-02 03:04:05",)"#, "[2026-01-02 03:04:05, None)"),
            (python, Type::INT4_RANGE, "empty", "empty"),
            (
                python,
                Type::TIMESTAMP_ARRAY,
                r#"{"2026-01-02 03:04:00","2026-01-02 03:04:00.5"}"#,
                "[datetime.datetime(2026, 1, 2, 3, 4), datetime.datetime(2026, 1, 2, 3, 4, 0, 500000)]",
            ),
            (python, Type::JSONB, r#"{"a": [1, 2.5, true, null, "b"]}"#, "{'a': [1, 2.5, True, None, 'b']}"),
            (Style::Php, Type::BOOL, "t", "1"),
            (Style::Php, Type::BOOL, "f", ""),
            (Style::Php, Type::FLOAT8, "1", "1"),
            (plain, Type::TIMESTAMPTZ, "2024-01-02 03:04:05+00", "2024-01-02T03:04:05Z"),
            (plain, Type::TIMESTAMP, "2024-01-02 03:04:05.6", "2024-01-02T03:04:05.6"),
        ] {
            assert_eq!(style.write(kind.oid(), text), expected, "{style:?} {kind} {text}");
        }
    }
}
