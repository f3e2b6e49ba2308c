//! `<column|filter>`: what may be done to a value on its way into a tag. A style may stand first; then the filters, in
//! order.

use std::borrow::Cow;
use std::fmt::Write;

use jiff::civil::{Date, DateTime};
use md5::{Digest, Md5};
use sha1::Sha1;
use unicode_normalization::UnicodeNormalization;

use super::style::Style;

/// A filter with its argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// `lower`: lower case, by Unicode's rules.
    Lower,
    /// `upper`: upper case, by Unicode's rules.
    Upper,
    /// `default:TEXT`: this text in place of NULL.
    Default(String),
    /// `md5`: hexadecimal.
    Md5,
    /// `sha1`: hexadecimal.
    Sha1,
    /// `date:FORMAT`: a date or timestamp by strftime.
    Date(String),
    /// `urlencode`: as JavaScript's encodeURIComponent.
    UrlEncode,
    /// `slug`: as Django's slugify.
    Slug,
    /// `truncate:N`: the first N characters.
    Truncate(usize),
}

/// Every filter's name, for messages.
pub const NAMES: &[&str] = &[
    "python",
    "php",
    "plain",
    "pg",
    "lower",
    "upper",
    "default:",
    "md5",
    "sha1",
    "date:",
    "urlencode",
    "slug",
    "truncate:",
];

/// Why a filter cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// No filter has this name.
    Unknown(String),
    /// An argument too many or too few, or a filter at the wrong place.
    Argument(String),
}

impl Filter {
    /// Parses `name` or `name:argument`.
    pub fn parse(text: &str) -> Result<Filter, Error> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name.trim(), Some(argument)),
            None => (text.trim(), None),
        };
        let wrong = |sentence: String| Err(Error::Argument(sentence));
        let filter = match (name, argument) {
            ("default", Some(value)) => return Ok(Filter::Default(value.to_owned())),
            ("default", None) => return wrong("`default` wants a text: default:none".into()),
            ("date", None) => return wrong("`date` wants a format: date:%Y-%m-%d".into()),
            ("date", Some(format)) => {
                return match jiff::fmt::strtime::format(format, DateTime::ZERO) {
                    Ok(_) => Ok(Filter::Date(format.to_owned())),
                    Err(error) => wrong(format!("`{format}` is not a format of strftime: {error}")),
                };
            }
            ("truncate", number) => {
                return match number.and_then(|text| text.trim().parse().ok()) {
                    Some(length) if length > 0 => Ok(Filter::Truncate(length)),
                    _ => wrong("`truncate` wants a number of characters: truncate:20".into()),
                };
            }
            ("lower", _) => Filter::Lower,
            ("upper", _) => Filter::Upper,
            ("md5", _) => Filter::Md5,
            ("sha1", _) => Filter::Sha1,
            ("urlencode", _) => Filter::UrlEncode,
            ("slug", _) => Filter::Slug,
            (style, _) if Style::named(style).is_some() => {
                return wrong(format!("a style writes the value itself, so it stands first: <column|{style}|...>"));
            }
            (other, _) => return Err(Error::Unknown(other.to_owned())),
        };
        match argument {
            Some(_) => wrong(format!("`{name}` takes no argument")),
            None => Ok(filter),
        }
    }

    /// What becomes of a value; `None` is NULL.
    pub fn apply<'a>(&self, value: Option<Cow<'a, str>>) -> Option<Cow<'a, str>> {
        let Some(text) = value else {
            return match self {
                Filter::Default(default) => Some(default.clone().into()),
                _ => None,
            };
        };
        Some(match self {
            Filter::Default(_) => text,
            Filter::Lower => text.to_lowercase().into(),
            Filter::Upper => text.to_uppercase().into(),
            Filter::Md5 => hexadecimal(&Md5::digest(text.as_bytes())).into(),
            Filter::Sha1 => hexadecimal(&Sha1::digest(text.as_bytes())).into(),
            Filter::Date(format) => date(&text, format).map_or(text, Cow::Owned),
            Filter::UrlEncode => urlencode(&text).into(),
            Filter::Slug => slug(&text).into(),
            Filter::Truncate(length) => text.chars().take(*length).collect::<String>().into(),
        })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A date or timestamp in ISO form, with or without an offset (the sessions run in UTC); `infinity` and years before Christ
/// stay as they are.
fn date(text: &str, format: &str) -> Option<String> {
    let local = text.strip_suffix("+00").or(text.strip_suffix('Z')).unwrap_or(text);
    let moment =
        local.parse::<DateTime>().ok().or_else(|| Some(local.parse::<Date>().ok()?.to_datetime(Default::default())))?;
    jiff::fmt::strtime::format(format, moment).ok()
}

/// Everything but `A-Z a-z 0-9 - _ . ! ~ * ' ( )` (ECMA-262, encodeURIComponent).
fn urlencode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'!' | b'~' | b'*' | b'\'' | b'(' | b')' => {
                out.push(char::from(byte));
            }
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}

/// django.utils.text.slugify: NFKD, ASCII only, lower case, words joined by one hyphen, none at the ends.
fn slug(text: &str) -> String {
    let ascii = text.nfkd().filter(char::is_ascii).collect::<String>().to_lowercase();
    let kept: String =
        ascii.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || c.is_whitespace()).collect();
    let mut slug = String::with_capacity(kept.len());
    for character in kept.chars() {
        match character {
            '-' => joined(&mut slug),
            space if space.is_whitespace() => joined(&mut slug),
            other => slug.push(other),
        }
    }
    slug.trim_matches(['-', '_']).to_owned()
}

fn joined(slug: &mut String) {
    if !slug.ends_with('-') {
        slug.push('-');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (filter, text, expected) in [
            ("lower", "ÅBC", "åbc"),
            ("upper", "straße", "STRASSE"),
            ("md5", "a", "0cc175b9c0f1b6a831c399e269772661"),
            ("sha1", "a", "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"),
            ("date:%Y-%m", "2026-11-22 10:00:00.5+00", "2026-11"),
            ("date:%d.%m.%y %H:%M", "2026-11-02 03:04:05", "02.11.26 03:04"),
            ("date:%j", "2026-02-01", "032"),
            ("date:%Y", "infinity", "infinity"),
            ("urlencode", "blå-sko/a b&c~!*'()", "bl%C3%A5-sko%2Fa%20b%26c~!*'()"),
            ("slug", " Blå & Grün: It's  a--Test_ ", "bla-grun-its-a-test"),
            ("slug", "ﬁne_snake", "fine_snake"),
            ("slug", "日本", ""),
            ("truncate:3", "åäöx", "åäö"),
            ("default:x", "y", "y"),
        ] {
            let filter = Filter::parse(filter).unwrap();
            assert_eq!(filter.apply(Some(text.into())).as_deref(), Some(expected), "{filter:?} {text}");
        }
        assert_eq!(Filter::Default("x".into()).apply(None).as_deref(), Some("x"));
        assert_eq!(Filter::Md5.apply(None), None);
        for wrong in ["truncate", "truncate:0", "truncate:x", "date", "date:%Q", "md5:1", "default"] {
            assert!(matches!(Filter::parse(wrong), Err(Error::Argument(_))), "{wrong}");
        }
    }
}
