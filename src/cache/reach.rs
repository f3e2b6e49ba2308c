//! How what cannot be listed is found in a Redis, as it stands in a dialect, one line each:
//!
//! | line | meaning |
//! |---|---|
//! | `KEYS` | the tags' own keys: they are there whenever a record can be a hit |
//! | `TAGS tag ...` | these tags are in every record |
//! | `INDEX hash` | a hash of records, each with a JSON list of its tags: the tags that match go stale |
//! | `INDEX hash \| step \| ...` | these steps on each record (`<member>`) instead |
//! | `RECORDS head [EXCEPT=text]` | every key that starts so is a record and is dropped |
//! | `ENTRIES head record` | every key that starts so stands for a record: both are dropped |
//! | `TABLES head \| step` | this step on each key that starts so, and with the table and a colon |
//! | `NONE` | nothing finds it |
//! | `PUBLISH ...`, `BENTOCACHE ...` | after it, for in-process layers |

use super::formula::{Formula, NOTHING};
use super::step::Step;

/// How a sweep of a cache goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reach {
    /// Each way; more than one where an option has several values.
    pub ways: Vec<Way>,
    /// Sent when it is complete.
    pub clear: Vec<Step>,
}

/// A way to find records or tags.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// SCAN for the tags' keys.
    Keys,
    /// These tags are in every record.
    Tags(Vec<Vec<u8>>),
    /// HSCAN of a hash from records to tags.
    Index {
        /// The hash.
        hash: Vec<u8>,
        /// What is done to a record that matches; nothing: its tags are sent.
        entry: Vec<Step>,
    },
    /// Keys that start so are records.
    Records {
        /// Of the key.
        head: Vec<u8>,
        /// Keys with this in them are none.
        except: Vec<u8>,
    },
    /// Keys that start so stand for records.
    Entries {
        /// Of the key.
        head: Vec<u8>,
        /// The record, by `<member>`.
        record: Formula,
    },
    /// SCAN for what belongs to a table: keys that start so, and with the table and a colon.
    Tables {
        /// Of the key.
        head: Vec<u8>,
        /// What is done to it.
        step: Step,
    },
    /// Nothing finds it.
    None,
}

impl Reach {
    /// Takes one line, without its condition.
    pub fn take(&mut self, line: &str, option: &impl Fn(&str) -> Option<String>) -> Result<(), String> {
        let text = |text: &str| -> Result<Vec<u8>, String> { Ok(Formula::parse(text, option)?.render(&NOTHING)) };
        let (line, steps) = line.split_once(" | ").unwrap_or((line, ""));
        let words: Vec<&str> = line.split(' ').collect();
        let way = match words.as_slice() {
            ["KEYS"] => Way::Keys,
            ["NONE"] => Way::None,
            ["TAGS", tags @ ..] => Way::Tags(tags.iter().map(|tag| text(tag)).collect::<Result<_, _>>()?),
            ["INDEX", hash] => {
                let entry = steps.split(" | ").filter(|step| !step.is_empty());
                let entry = entry.map(|step| Step::parse(step, option)).collect::<Result<_, _>>()?;
                Way::Index { hash: text(hash)?, entry }
            }
            ["RECORDS", head] => Way::Records { head: text(head)?, except: Vec::new() },
            ["RECORDS", head, except] => {
                let except = except.strip_prefix("EXCEPT=").unwrap_or_default();
                Way::Records { head: text(head)?, except: text(except)? }
            }
            ["TABLES", head] => Way::Tables { head: text(head)?, step: Step::parse(steps, option)? },
            ["ENTRIES", head, record] => Way::Entries { head: text(head)?, record: Formula::parse(record, option)? },
            _ => {
                let step = Step::parse(line, option)?;
                if !self.clear.contains(&step) {
                    self.clear.push(step);
                }
                return Ok(());
            }
        };
        if !self.ways.contains(&way) {
            self.ways.push(way);
        }
        Ok(())
    }

    /// What it sends itself.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        let of_ways = self.ways.iter().flat_map(|way| match way {
            Way::Index { entry, .. } => entry.as_slice(),
            Way::Tables { step, .. } => std::slice::from_ref(step),
            _ => &[],
        });
        of_ways.chain(&self.clear)
    }

    /// Can it select by the text of a template?
    pub fn selects(&self) -> bool {
        let selects = |way: &Way| match way {
            Way::Keys | Way::Index { .. } | Way::Tables { .. } => true,
            Way::Records { head, .. } => head.is_empty(),
            Way::Tags(_) | Way::Entries { .. } | Way::None => false,
        };
        self.ways.iter().all(selects)
    }
}
