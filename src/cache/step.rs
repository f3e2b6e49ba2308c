//! What is sent for a stale tag, as it stands in a dialect, one line each. A line may begin with conditions, `[mode=set]`, `[channel!=]`; words are
//! separated by spaces, and each is a [`Formula`].
//!
//! | line | meaning |
//! |---|---|
//! | `UNLINK key` | the key is dropped |
//! | `SET key value [XX] [EX seconds]` | the key gets a value that was never used before |
//! | `STAMP key value [EX seconds]` | a time, never lowered |
//! | `HSTAMP key field value ... [EX seconds] [AGE seconds]` | the same in a hash; the first field holds the stamp, and fields that are older than `AGE` go by and by |
//! | `INCR key` | a counter goes up; it is never dropped |
//! | `BUMP key` | the same of a number that PHP serialized |
//! | `MEMBERS key record ...` | the key is a set of members: their records are dropped. Behind it `ZSET`; `LINKS=drop`, `gone` (only of records that were there) or `keep`; `LIKE=pattern` of Lua; `INDEX=head TAGS=head` where a record lists its tags |
//! | `ROWS prefix`, `ROWTEXTS prefix` | django-cacheops: the sets of conditions that a row meets |
//! | `SCAN head` | the tag has no key: a sweep finds what begins so, or has it in an index |
//! | `HDEL key field` | within the steps of an entry |
//! | `PUBLISH channel text`, `BENTOCACHE channel namespace key`, `FUSIONCACHE channel key` | in-process layers are told |

use super::encoding::Encoding;
use super::formula::{Formula, Unit};

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// The key, or the channel.
    pub key: Formula,
    /// What is done to it.
    pub action: Action,
}

/// What is done to a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// UNLINK: like DEL, freed in the background.
    Unlink,
    /// SET; `existing` adds XX, where an absent key is stale anyway.
    Set {
        /// With `<random>` in it.
        value: Formula,
        /// Life in seconds.
        life: Option<u64>,
        /// Only if the key exists.
        existing: bool,
    },
    /// A time, never lowered: a value, or fields and values.
    Stamp {
        /// Of the time.
        unit: Unit,
        /// Value, or field, value, ...
        values: Vec<Formula>,
        /// Life in seconds; 0: for ever.
        life: u64,
        /// Fields of a hash that are older than this many seconds go; 0: none.
        age: u64,
    },
    /// INCR: never dropped, because absent may mean valid.
    Count,
    /// One more than what is there, as PHP serializes a number.
    Bump,
    /// The records of a set's members.
    Members(Box<Members>),
    /// A field of a hash is dropped.
    DropField(Formula),
    /// The tag is a table, a space and a row; `texts`: all its values are.
    Rows {
        /// CACHEOPS_INSIDEOUT.
        texts: bool,
    },
    /// A sweep does it.
    Scan,
    /// PUBLISH.
    Publish(Message),
}

/// The set of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Members {
    /// It is a sorted set.
    pub sorted: bool,
    /// Keys of a member's records.
    pub records: Vec<Formula>,
    /// `drop`, `gone` or `keep`.
    pub links: &'static str,
    /// A Lua pattern of members.
    pub like: String,
    /// Heads of the key that lists a record's tags, and of a tag's set.
    pub index: Option<(Formula, Formula)>,
}

/// What in-process layers are told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// As it stands.
    Text(Formula),
    /// `@boringnode/bus`, binary: type 4 (expire) of a key in a namespace; without a key type 2 (clear).
    Bentocache(Formula, Option<Formula>),
    /// `FusionCache.Backplane:v2`, binary: the entry of a key was set.
    FusionCache(Formula),
}

const VERBS: [&str; 14] = [
    "UNLINK",
    "SET",
    "STAMP",
    "HSTAMP",
    "INCR",
    "MEMBERS",
    "PUBLISH",
    "SCAN",
    "HDEL",
    "BUMP",
    "ROWS",
    "ROWTEXTS",
    "BENTOCACHE",
    "FUSIONCACHE",
];
const LINKS: [&str; 3] = ["drop", "gone", "keep"];

/// `option=word` or `option!=word` in front of a line.
pub struct Condition<'a> {
    /// The option.
    pub option: &'a str,
    /// The word that is compared.
    pub word: &'a str,
    negated: bool,
}

impl Condition<'_> {
    /// With this word chosen?
    pub fn holds(&self, chosen: &str) -> bool {
        (chosen == self.word) != self.negated
    }
}

/// The conditions of a line, and the rest of it.
pub fn conditions(line: &str) -> (impl Iterator<Item = Condition<'_>>, &str) {
    let (conditions, rest) = match line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
        Some((conditions, rest)) => (conditions, rest),
        None => ("", line),
    };
    let condition = |text| {
        let (option, word) = str::split_once(text, '=')?;
        let negated = option.ends_with('!');
        Some(Condition { option: option.trim_end_matches('!'), word, negated })
    };
    (conditions.split(',').filter_map(condition), rest)
}

impl Step {
    /// Parses a line without its condition; `option` fills the options in.
    pub fn parse(line: &str, option: &impl Fn(&str) -> Option<String>) -> Result<Step, String> {
        let formula = |text: &str| Formula::parse(text, option);
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default();
        if line.split(' ').any(str::is_empty) {
            return Err(format!("`{line}` has two spaces side by side, or one at its end"));
        }
        let (mut places, mut life, mut age, mut flags) = (Vec::new(), None, None, Vec::new());
        while let Some(word) = words.next() {
            match word {
                "EX" | "AGE" => {
                    let text = formula(words.next().unwrap_or_default())?.around().0.to_vec();
                    let seconds = String::from_utf8_lossy(&text).parse::<u64>();
                    let seconds = seconds.map_err(|_| format!("`{word}` of `{line}` is a number of seconds"))?;
                    *(if word == "EX" { &mut life } else { &mut age }) = Some(seconds);
                }
                "XX" | "ZSET" => flags.push((word, "")),
                _ if word
                    .split_once('=')
                    .is_some_and(|(name, _)| ["LINKS", "LIKE", "INDEX", "TAGS"].contains(&name)) =>
                {
                    flags.extend(word.split_once('='));
                }
                _ => places.push(formula(word)?),
            }
        }
        let flag = |name: &str| flags.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        if !VERBS.contains(&verb) {
            return Err(format!("`{verb}` is none of {}", VERBS.join(", ")));
        }
        let mut places = places.into_iter();
        let mut next = || places.next().ok_or_else(|| format!("`{line}` is too short"));
        let key = next()?;
        let action = match verb {
            "UNLINK" => Action::Unlink,
            "SET" => Action::Set { value: next()?, life, existing: flag("XX").is_some() },
            "STAMP" | "HSTAMP" => {
                let values: Vec<Formula> = places.by_ref().collect();
                let unit = values.iter().find_map(Formula::unit).ok_or_else(|| format!("`{line}` has no time"))?;
                Action::Stamp { unit, values, life: life.unwrap_or_default(), age: age.unwrap_or_default() }
            }
            "INCR" => Action::Count,
            "BUMP" => Action::Bump,
            "MEMBERS" => {
                let wanted = flag("LINKS").unwrap_or("drop");
                let links = LINKS.into_iter().find(|known| *known == wanted);
                let index = match (flag("INDEX"), flag("TAGS")) {
                    (Some(index), Some(tags)) => Some((formula(index)?, formula(tags)?)),
                    _ => None,
                };
                Action::Members(Box::new(Members {
                    sorted: flag("ZSET").is_some(),
                    records: places.by_ref().collect(),
                    links: links.ok_or_else(|| format!("`LINKS` is one of {}", LINKS.join(", ")))?,
                    like: String::from_utf8_lossy(formula(flag("LIKE").unwrap_or_default())?.around().0).into_owned(),
                    index,
                }))
            }
            "HDEL" => Action::DropField(next()?),
            "ROWS" => Action::Rows { texts: false },
            "ROWTEXTS" => Action::Rows { texts: true },
            "SCAN" => Action::Scan,
            "PUBLISH" => Action::Publish(Message::Text(next()?)),
            "BENTOCACHE" => Action::Publish(Message::Bentocache(next()?, places.next())),
            _ => Action::Publish(Message::FusionCache(next()?)),
        };
        if places.next().is_some() {
            return Err(format!(
                "`{line}` has more words than `{verb}` takes; `waltag dialects custom` shows the lines"
            ));
        }
        let step = Step { key, action };
        match &step.action {
            Action::Set { value, .. } if !value.is_random() => {
                Err(format!("the value of `{line}` must have `<random>` in it: one that was used before is not stale"))
            }
            _ if step.names_tags() && step.key.tags() > 1 => Err(format!("the key of `{line}` names the tag twice")),
            _ => Ok(step),
        }
    }

    /// Is its key the tag's own, so that a sweep may find tags by it?
    pub fn names_tags(&self) -> bool {
        self.key.has_tag() && !matches!(self.action, Action::Publish(_) | Action::Scan)
    }

    /// Does the key show the tag as it is?
    pub fn is_readable(&self) -> bool {
        !self.names_tags() || self.key.around().1 == Some(&Encoding::Verbatim)
    }

    /// The Lua script that it needs.
    pub fn script(&self) -> Option<&'static str> {
        match self.action {
            Action::Stamp { .. } => Some(STAMP),
            Action::Members(_) => Some(MEMBERS),
            Action::Bump => Some(BUMP),
            Action::Rows { .. } => Some(ROWS),
            _ => None,
        }
    }
}

/// Sets a time unless it is lower.
pub const STAMP: &str = include_str!("scripts/stamp.lua");
/// What a row meets.
pub const ROWS: &str = include_str!("scripts/rows.lua");
/// Counts what PHP serialized.
pub const BUMP: &str = include_str!("scripts/bump.lua");
/// One slice of a set.
pub const MEMBERS: &str = include_str!("scripts/members.lua");

impl Message {
    /// The bytes of the message; `now` in ticks.
    pub fn render(&self, fill: &super::formula::Fill) -> Vec<u8> {
        match self {
            Message::Text(text) => text.render(fill),
            Message::Bentocache(namespace, key) => {
                bentocache(&namespace.render(fill), key.as_ref().map(|key| key.render(fill)))
            }
            Message::FusionCache(key) => fusion_cache(&key.render(fill), Unit::Ticks.of(fill.now)),
        }
    }
}

/// `@boringnode/bus` 0.9 in its binary encoding: 24 bytes of a bus that is nobody's, the type, and texts with a 32-bit length in front.
fn bentocache(namespace: &[u8], key: Option<Vec<u8>>) -> Vec<u8> {
    let mut out = b"waltag------------------".to_vec();
    out.push(if key.is_some() { 4 } else { 2 });
    for text in [Some(namespace.to_vec()), key].into_iter().flatten() {
        out.extend((text.len() as u32).to_be_bytes());
        out.extend(text);
    }
    out
}

/// `FusionCacheBackplaneMessage.ToByteArray` (2.7): version, source, time, action 1 (set), key; little-endian.
fn fusion_cache(key: &[u8], ticks: u64) -> Vec<u8> {
    const SOURCE: &[u8] = b"waltag";
    let mut out = vec![0];
    out.extend((SOURCE.len() as u32).to_le_bytes());
    out.extend(SOURCE);
    out.extend(ticks.to_le_bytes());
    out.push(1);
    out.extend((key.len() as u32).to_le_bytes());
    out.extend(key);
    out
}
