//! How a client library marks a tag stale, as data: its options under the client's own names, what is sent for a tag, how what cannot be
//! listed is found. A new client is a new entry in [`super::dialects`].

use super::releases::{self, Library};
use crate::rules::style::Style;

/// A client library, or a plain primitive.
#[derive(Debug)]
pub struct Dialect {
    /// Name in rule files.
    pub name: &'static str,
    /// Whose format it is.
    pub client: &'static str,
    /// How far that is known.
    pub verified: Verified,
    /// How its application writes values into tags.
    pub style: Style,
    /// Its options beside those of every cache.
    pub options: &'static [Opt],
    /// What is sent for a stale tag ([`super::step`]).
    pub steps: &'static [&'static str],
    /// What finds the records, or the tags, that cannot be listed ([`super::reach`]).
    pub sweep: &'static [&'static str],
    /// It compares times, and takes one in the future as it is.
    pub future: bool,
    /// Its sets expire before their records.
    pub forgets: bool,
    /// Which texts can be a tag of it.
    pub tags: Texts,
    /// Which races it leaves open, and what closes them.
    pub races: &'static str,
    /// What its users should know.
    pub note: &'static str,
}

/// Where the knowledge of a format comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// `scripts/test clients` runs this version of the library.
    Run(&'static str),
    /// The source of this version was read; the library was not run.
    Read(&'static str),
    /// There is no library.
    Primitive,
}

/// An option of a dialect.
#[derive(Debug)]
pub struct Opt {
    /// Its name, which is the client's.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Taken if nothing is said; without one it must be given.
    pub default: Option<&'static str>,
    /// What it is, in the client's words.
    pub about: &'static str,
    /// Needed only with this word of another option.
    pub needed_if: Option<(&'static str, &'static str)>,
}

/// What an option takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text, or several: each is written.
    Text,
    /// One of these.
    Word(&'static [&'static str]),
    /// A time of at least a second; stands for its seconds.
    Seconds,
    /// Releases of cache-tagging and cache-dependencies; stands for the prefix of their tag keys.
    Django(Library),
    /// A release of Symfony; stands for the infix of its tag keys, and in conditions for the first release that has it.
    Symfony,
}

/// Which texts can be a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texts {
    /// Any.
    Any,
    /// Any; the text is the key itself, so an empty placeholder skips the tag: `user:` must not be reached by accident.
    Keys,
    /// None of these characters.
    Without(&'static str),
    /// Nothing but ASCII letters, digits and these.
    Only(&'static str),
    /// Texts without columns.
    Constant,
    /// `<@table>` and nothing else.
    Table,
    /// None: `rows: true`.
    Rows,
}

/// What all others are compared with: `..PLAIN` in a table of dialects.
pub const PLAIN: Dialect = Dialect {
    name: "",
    client: "",
    verified: Verified::Primitive,
    style: Style::Plain,
    options: &[],
    steps: &[],
    sweep: &["KEYS"],
    future: true,
    forgets: false,
    tags: Texts::Any,
    races: LATE,
    note: "",
};

/// Of clients that store a record and link it in two steps, or whose sets expire before their records.
pub const RECORDS: Opt = Opt::text(
    "records",
    Some(""),
    "how the keys of records begin: a sweep drops all of them, those that no set has (any more), too",
);

/// Of most clients.
pub const LATE: &str =
    "a reader that computes over the commit stores the old value: `repeat`, longer than the computation";
/// Of clients that compare times.
pub const STAMPED: &str =
    "a reader that computes over the commit stores the old value: `guard`, or `repeat`, longer than the computation";
/// Of clients that take the time before they compute.
pub const EARLY: &str =
    "none for the computation; clocks: `repeat` or `guard` longer than the application's clock may differ";

impl Dialect {
    /// Does its own `set()` look for locks?
    pub fn locks(&self) -> bool {
        self.name == "cache-dependencies"
    }

    /// May its records have any name?
    pub fn is_open(&self) -> bool {
        self.steps.iter().any(|line| line.starts_with("SCAN"))
    }
}

impl Opt {
    /// Another name of it: `releases` reads better in a list.
    pub fn alias(&self) -> Option<&'static str> {
        matches!(self.kind, Kind::Django(_)).then_some("releases")
    }

    /// Some are needed only if another says so: those of the primitives' sweep.
    pub(super) fn is_needed(&self, chosen: &[super::choices::Choice]) -> bool {
        let Some((name, word)) = self.needed_if else { return true };
        let choice = chosen.iter().find(|choice| choice.name == name);
        choice.is_some_and(|choice| choice.values.iter().any(|(chosen, _)| chosen == word))
    }

    /// An option that is a text.
    pub const fn text(name: &'static str, default: Option<&'static str>, about: &'static str) -> Opt {
        Opt { name, kind: Kind::Text, default, about, needed_if: None }
    }

    /// An option that is one of a few words, the first by default.
    pub const fn word(name: &'static str, words: &'static [&'static str], about: &'static str) -> Opt {
        let default = match words {
            [first, ..] => Some(*first),
            [] => None,
        };
        Opt { name, kind: Kind::Word(words), default, about, needed_if: None }
    }
}

impl Kind {
    /// What `text` stands for: the word of conditions, and what is filled in. The error is a sentence, and help.
    pub fn read(self, name: &str, text: &str) -> Result<(String, String), (String, Vec<&'static str>)> {
        match self {
            Kind::Text => Ok((text.to_owned(), text.to_owned())),
            Kind::Word(words) if words.contains(&text) => Ok((text.to_owned(), text.to_owned())),
            Kind::Word(words) => Err((format!("`{name}` cannot be `{text}`"), words.to_vec())),
            Kind::Seconds if text.is_empty() => Ok(Default::default()),
            Kind::Seconds => match crate::quantity::duration(text) {
                // Rounded up: a tag must not be gone before its time.
                Ok(time) if time.as_secs() >= 1 => Ok((text.to_owned(), time.as_secs_f64().ceil().to_string())),
                Ok(_) => Err((format!("`{name}` is at least 1s"), Vec::new())),
                Err(sentence) => Err((sentence, Vec::new())),
            },
            Kind::Django(library) => match releases::tag_prefix(text) {
                Some(prefix) => Ok((text.to_owned(), prefix.to_owned())),
                None => {
                    let (first, last) = releases::range(library);
                    let range = format!("releases run from {first} to {last}");
                    Err((format!("`{text}` is not a release whose tag keys are known; {range}"), Vec::new()))
                }
            },
            Kind::Symfony => match releases::symfony(text) {
                Some((first, infix)) => Ok((first.to_owned(), infix.to_owned())),
                None => Err((
                    format!("`{text}` is not a release of Symfony's cache: 4.3 or later, such as 6.4"),
                    Vec::new(),
                )),
            },
        }
    }
}
