//! `<column|filter>`: what may be done to a value on its way into a tag. A style may stand first; then the filters, in
//! order.

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
}

/// Every filter's name, for messages.
pub const NAMES: &[&str] = &["python", "plain", "pg", "lower", "upper", "default:"];

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
        let filter = match (name, argument) {
            ("default", Some(value)) => return Ok(Filter::Default(value.to_owned())),
            ("default", None) => return Err(Error::Argument("`default` wants a text: default:none".into())),
            ("lower", _) => Filter::Lower,
            ("upper", _) => Filter::Upper,
            (style, _) if Style::named(style).is_some() => {
                let sentence = format!("a style writes the value itself, so it stands first: <column|{style}|...>");
                return Err(Error::Argument(sentence));
            }
            (other, _) => return Err(Error::Unknown(other.to_owned())),
        };
        match argument {
            Some(_) => Err(Error::Argument(format!("`{name}` takes no argument"))),
            None => Ok(filter),
        }
    }
}
