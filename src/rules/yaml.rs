//! A YAML text as a tree that knows where everything stands. Scalars keep the text as written: `1.50` is not a number
//! here, and `yes` no boolean.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Location, Spanned, Tagged};

use super::diagnostic::{Diagnostic, Place, Source};

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    /// Where its text begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// What a [`Node`] holds.
#[derive(Debug)]
pub enum Value {
    /// Nothing, `null` or `~`.
    Null,
    /// A text, number or boolean, as written; quotes and escapes resolved.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// Keys in order; equal keys were reported and dropped.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug)]
pub struct Key {
    /// Where.
    pub place: Place,
    /// Its text.
    pub name: String,
}

impl Value {
    /// For messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Scalar(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Parses one document. `Err` is bad YAML; keys written twice and tags (`!x`) are reported into `problems`.
pub fn parse(source: &Arc<Source>, problems: &mut Vec<Diagnostic>) -> Result<Node, Box<Diagnostic>> {
    let options = serde_yaml::options! {
        duplicate_keys: serde_yaml::options::DuplicateKeyPolicy::PassThrough
    };
    match serde_yaml::from_str_with_options::<Raw>(&source.text, options) {
        Ok(raw) => Ok(Tree { source, problems }.node(raw)),
        Err(error) => {
            let (line, column) =
                error.location().map_or((1, 1), |at| (at.line().max(1) as usize, at.column().max(1) as usize));
            let message = error.without_snippet().to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            let place = Place { source: source.clone(), line, column, width: 1 };
            Err(Box::new(place.error("yaml", message).help("this is YAML; texts with : { } [ ] < > # ! want quotes")))
        }
    }
}

/// What serde hands over, before places and texts are resolved against the source.
struct Raw {
    at: Location,
    tag: Option<String>,
    value: RawValue,
}

enum RawValue {
    Null,
    Text(String),
    /// A plain scalar that YAML takes for a number or boolean: its text is in the source.
    Typed(String),
    List(Vec<Raw>),
    Map(Vec<(Spanned<String>, Raw)>),
}

struct Tree<'a> {
    source: &'a Arc<Source>,
    problems: &'a mut Vec<Diagnostic>,
}

impl Tree<'_> {
    fn place(&self, at: &Location) -> Place {
        Place {
            source: self.source.clone(),
            line: (at.line() as usize).max(1),
            column: (at.column() as usize).max(1),
            width: (at.span().len() as usize).max(1),
        }
    }

    fn node(&mut self, raw: Raw) -> Node {
        let place = self.place(&raw.at);
        if let Some(tag) = raw.tag {
            let help = "write the value without a tag; texts want quotes";
            self.problems.push(place.error("yaml-tag", format!("YAML tag `{tag}` is not allowed")).help(help));
        }
        let value = match raw.value {
            RawValue::Null => Value::Null,
            RawValue::Text(text) => Value::Scalar(text),
            RawValue::Typed(parsed) => Value::Scalar(self.as_written(&raw.at).unwrap_or(parsed)),
            RawValue::List(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            RawValue::Map(entries) => Value::Map(self.entries(entries)),
        };
        Node { place, value }
    }

    fn entries(&mut self, raw: Vec<(Spanned<String>, Raw)>) -> Vec<(Key, Node)> {
        let mut entries: Vec<(Key, Node)> = Vec::with_capacity(raw.len());
        for (key, value) in raw {
            let place = self.place(&key.referenced);
            let node = self.node(value);
            match entries.iter().find(|(known, _)| known.name == key.value) {
                Some((first, _)) => {
                    let message = format!("key `{}` is written twice", key.value);
                    let help =
                        format!("the first one is in line {}; YAML would silently keep one of them", first.place.line);
                    self.problems.push(place.error("duplicate-key", message).help(help));
                }
                None => entries.push((Key { place, name: key.value }, node)),
            }
        }
        entries
    }

    fn as_written(&self, at: &Location) -> Option<String> {
        let span = at.span();
        let start = usize::try_from(span.byte_offset()?).ok()?;
        let end = start + usize::try_from(span.byte_len()?).ok()?;
        self.source.text.get(start..end).map(str::to_owned)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        let Spanned { value: Tagged(value, tag), referenced, .. } =
            Spanned::<Tagged<RawValue>>::deserialize(deserializer)?;
        Ok(Raw { at: referenced, tag, value })
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawValue, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list or a mapping")
    }

    fn visit_str<E>(self, text: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<RawValue, E> {
        Err(E::custom("binary values are not allowed"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawValue, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(RawValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawValue, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            map.push((key, entries.next_value()?));
        }
        if map.len() > 100_000 {
            return Err(A::Error::custom("more than 100,000 keys"));
        }
        Ok(RawValue::Map(map))
    }
}
