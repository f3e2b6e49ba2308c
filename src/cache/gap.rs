//! Why changes may have been missed, and how much of a cache that concerns.

use std::collections::HashSet;

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

/// Keys that a sweep is for, and tags that stand for more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Keys {
    /// Keys to look for.
    pub patterns: Vec<Pattern>,
    /// Tags to send.
    pub tags: Vec<Vec<u8>>,
}

impl Keys {
    /// Adds what is not there yet.
    pub fn extend(&mut self, more: &Keys) {
        // One row at a time adds one or two.
        if more.patterns.len() + more.tags.len() < 8 {
            for pattern in &more.patterns {
                if !self.patterns.contains(pattern) {
                    self.patterns.push(pattern.clone());
                }
            }
            for tag in &more.tags {
                if !self.tags.contains(tag) {
                    self.tags.push(tag.clone());
                }
            }
            return;
        }
        let patterns: HashSet<&Pattern> = self.patterns.iter().chain(&more.patterns).collect();
        let tags: HashSet<&Vec<u8>> = self.tags.iter().chain(&more.tags).collect();
        *self = Keys { patterns: patterns.into_iter().cloned().collect(), tags: tags.into_iter().cloned().collect() };
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
    /// This one and another.
    pub fn and(self, other: Scope) -> Scope {
        match (self, other) {
            (Scope::Some(mut own), Scope::Some(others)) => {
                own.extend(&others);
                Scope::Some(own)
            }
            _ => Scope::Everything,
        }
    }
}
