//! How Python writes compound values: `str()` of what psycopg reads.

use std::fmt::Write;

use serde_json::Value as Json;
use tokio_postgres::types::Type;

use super::style::{Style, python_float};
use super::value::{element_type, elements};

/// `timedelta.__str__`. psycopg takes a month for 30 and a year for 365 days.
pub(super) fn interval(text: &str) -> Option<String> {
    // PostgreSQL sends nothing that 64 bits do not hold; whoever speaks in its place may.
    let number = |digits: &str| digits.parse::<i64>().ok().map(i128::from);
    let (mut days, mut micros) = (0_i128, 0_i128);
    let mut words = text.split(' ').peekable();
    while let Some(word) = words.next() {
        if word.contains(':') {
            let (sign, clock) = word.strip_prefix('-').map_or((1, word), |clock| (-1, clock));
            let mut parts = clock.split(':');
            let (hours, minutes) = (number(parts.next()?)?, number(parts.next()?)?);
            let (seconds, fraction) = parts.next()?.split_once('.').unwrap_or((clock.rsplit(':').next()?, "0"));
            let fraction = number(&format!("{fraction:0<6}"))?;
            micros += sign * (((hours * 60 + minutes) * 60 + number(seconds)?) * 1_000_000 + fraction);
            continue;
        }
        days += number(word)?
            * match words.next()? {
                "year" | "years" => 365,
                "mon" | "mons" => 30,
                "day" | "days" => 1,
                _ => return None,
            };
    }
    const DAY: i128 = 86_400_000_000;
    days += micros.div_euclid(DAY);
    micros = micros.rem_euclid(DAY);
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let mut out = match days {
        0 => String::new(),
        1 | -1 => format!("{days} day, "),
        _ => format!("{days} days, "),
    };
    let _ = write!(out, "{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        let _ = write!(out, ".{fraction:06}");
    }
    Some(out)
}

/// `bytes.__repr__` of PostgreSQL's `\x6162`.
pub(super) fn bytes(text: &str) -> Option<String> {
    let hex = text.strip_prefix("\\x")?.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = hex.chunks(2).map(byte).collect::<Option<_>>()?;
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
    let mut out = format!("b{quote}");
    for byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b'\'' if quote == '\'' => out.push_str("\\'"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => drop(write!(out, "\\x{byte:02x}")),
        }
    }
    out.push(quote);
    Some(out)
}

/// `str.__repr__`.
fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\'' if quote == '\'' => out.push_str("\\'"),
            control if (control as u32) < 0x20 || control as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", control as u32);
            }
            other => out.push(other),
        }
    }
    out.push(quote);
    out
}

/// `list.__str__`: the elements by their `repr()`.
pub(super) fn list(kind: &Type, text: &str) -> String {
    let element = element_type(kind.oid());
    let item = |value: Option<String>| match (value, Type::from_oid(element)) {
        (None, _) => "None".to_owned(),
        (Some(value), Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID)) => value,
        (Some(value), Some(Type::BOOL | Type::FLOAT4 | Type::FLOAT8)) => {
            Style::Python.write(element, &value).into_owned()
        }
        (Some(value), Some(Type::NUMERIC)) => format!("Decimal('{}')", Style::Python.write(element, &value)),
        (Some(value), Some(Type::UUID)) => format!("UUID('{value}')"),
        (Some(value), Some(Type::DATE)) => {
            numbers(&value).map_or_else(|| repr(&value), |date| format!("datetime.date({date})"))
        }
        (Some(value), Some(Type::TIMESTAMP)) => {
            numbers(&value).map_or_else(|| repr(&value), |moment| format!("datetime.datetime({moment})"))
        }
        (Some(value), _) => repr(&value),
    };
    format!("[{}]", elements(text).into_iter().map(item).collect::<Vec<_>>().join(", "))
}

/// The arguments of a date or datetime: seconds and microseconds only where they are not zero.
fn numbers(text: &str) -> Option<String> {
    let moment: jiff::civil::DateTime = text.parse().ok()?;
    let mut parts = vec![i64::from(moment.year()), i64::from(moment.month()), i64::from(moment.day())];
    if text.contains(':') {
        parts.extend([i64::from(moment.hour()), i64::from(moment.minute())]);
        let (seconds, micros) = (i64::from(moment.second()), i64::from(moment.subsec_nanosecond()) / 1_000);
        match (seconds, micros) {
            (0, 0) => {}
            (seconds, 0) => parts.push(seconds),
            (seconds, micros) => parts.extend([seconds, micros]),
        }
    }
    Some(parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

/// `Range.__str__` of psycopg: the bounds by their `str()`, `None` where there is none.
pub(super) fn range(element: &Type, text: &str) -> Option<String> {
    if text == "empty" {
        return Some(text.to_owned());
    }
    let (open, body) = text.split_at_checked(1)?;
    let (body, close) = body.split_at_checked(body.len().checked_sub(1)?)?;
    // A bound with a blank or a comma stands in quotes; none that psycopg reads as a value has a quote within.
    let quoted = body.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    let (lower, upper) = match quoted {
        Some((lower, rest)) => (lower, rest.strip_prefix(',')?),
        None => body.split_once(',')?,
    };
    let bound = |text: &str| match text.trim_matches('"') {
        "" => "None".to_owned(),
        value => Style::Python.write(element.oid(), value).into_owned(),
    };
    Some(format!("{open}{}, {}{close}", bound(lower), bound(upper)))
}

/// `str()` of what `json.loads` makes: a text is itself, all else its `repr()`. Keys keep their order.
pub(super) fn json(text: &str) -> Option<String> {
    Some(match serde_json::from_str(text).ok()? {
        Json::String(text) => text,
        value => json_repr(&value),
    })
}

fn json_repr(value: &Json) -> String {
    match value {
        Json::Null => "None".into(),
        Json::Bool(true) => "True".into(),
        Json::Bool(false) => "False".into(),
        Json::Number(number) if number.is_f64() => python_float(&number.to_string()),
        Json::Number(number) => number.to_string(),
        Json::String(text) => repr(text),
        Json::Array(items) => format!("[{}]", items.iter().map(json_repr).collect::<Vec<_>>().join(", ")),
        Json::Object(fields) => {
            let entries = fields.iter().map(|(key, value)| format!("{}: {}", repr(key), json_repr(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}
