//! Why changes may have been missed, and how much of a cache that concerns.

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
    Keys(Vec<Pattern>),
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
    /// This one and another.
    pub fn and(self, other: Scope) -> Scope {
        match (self, other) {
            (Scope::Keys(mut own), Scope::Keys(others)) => {
                own.extend(others);
                own.dedup();
                Scope::Keys(own)
            }
            _ => Scope::Everything,
        }
    }
}
