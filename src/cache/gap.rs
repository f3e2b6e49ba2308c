//! Why changes may have been missed, and how much of a cache that concerns.

use std::collections::BTreeSet;

use super::pattern::Pattern;

/// A reason for a resync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// A word for metrics.
    pub code: &'static str,
    /// What happened.
    pub sentence: String,
    /// What goes stale because of it.
    pub scope: Scope,
}

/// Which keys a sweep is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that the rules can reach.
    Everything,
    /// Those of a few templates.
    Some(Keys),
}

/// More patterns than this are looked for as everything: each key of a Redis is compared with them, and they stay in memory until their
/// last pass.
const MOST: usize = 4_096;
/// The same of their bytes.
const MOST_BYTES: usize = 256 << 10;

/// Keys that a sweep is for, and tags that stand for more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Keys {
    /// Keys to look for.
    pub patterns: BTreeSet<Pattern>,
    /// Tags to send.
    pub tags: BTreeSet<Vec<u8>>,
}

impl Keys {
    /// Adds what is not there yet.
    pub fn extend(&mut self, more: Keys) {
        self.patterns.extend(more.patterns);
        self.tags.extend(more.tags);
    }
}

impl Gap {
    /// A gap that concerns all of the cache.
    pub fn new(code: &'static str, sentence: impl Into<String>) -> Gap {
        Gap { code, sentence: sentence.into(), scope: Scope::Everything }
    }
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Scope {
    /// The same, or everything if that is less work.
    pub fn bounded(self) -> Scope {
        match self {
            Scope::Some(keys)
                if keys.patterns.len() > MOST
                    || keys.patterns.iter().map(|known| known.prefix().len()).sum::<usize>() > MOST_BYTES =>
            {
                Scope::Everything
            }
            scope => scope,
        }
    }

    /// This one and another.
    pub fn and(self, other: Scope) -> Scope {
        match (self, other) {
            (Scope::Some(mut own), Scope::Some(others)) => {
                own.extend(others);
                Scope::Some(own).bounded()
            }
            _ => Scope::Everything,
        }
    }
}
