//! Why changes may have been missed, and how much of a cache that concerns.

use std::collections::BTreeSet;

use super::pattern::Pattern;
use crate::source::lsn::Lsn;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// All that the rules can reach.
    everything: bool,
    /// Those of a few templates.
    keys: Keys,
    /// Keys of tags that no rule makes: somebody named them. Nothing stands for them.
    named: BTreeSet<Pattern>,
    /// Their bytes.
    size: usize,
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
        Gap { code, sentence: sentence.into(), scope: Scope::everything() }
    }

    /// The server has crashed: it forgets commits of `synchronous_commit = off` that readers saw.
    pub fn crash() -> Gap {
        Gap::new("crash", "PostgreSQL has crashed")
    }

    /// The server's log ends before what is known of it: its data directory was put back to an older copy.
    pub fn rewound(known: Lsn, end: Lsn) -> Gap {
        Gap::new(
            REWOUND,
            format!("PostgreSQL's log ends at {end}, and was at {known} before: an older copy was put back"),
        )
    }

    /// An outbox stands before what it had written down.
    pub fn taken_back(known: Lsn, stands: Lsn) -> Gap {
        let there = format!("the outbox stands at {stands}, and was at {known} before");
        Gap::new(REWOUND, format!("{there}: an older copy of the database was put back"))
    }

    /// The server's log was written anew past what is known of it.
    pub fn another_history(known: impl std::fmt::Display) -> Gap {
        let sentence =
            format!("PostgreSQL's log does not have the commit {known} any more: an older copy was put back");
        Gap::new(REWOUND, sentence)
    }
}

/// Code of a table that was replaced, rewritten or published anew.
pub const CATALOG: &str = "catalog";
/// Code of templates that are new, or whose table is published only now.
pub const RULES: &str = "rules";
/// Code of a history that is not the one that was known.
pub const REWOUND: &str = "rewound";

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Scope {
    /// All that the rules can reach.
    pub fn everything() -> Scope {
        Scope { everything: true, ..Scope::default() }
    }

    /// These, or everything if that is less work.
    pub fn of(keys: Keys) -> Scope {
        Scope { keys, ..Scope::default() }.bounded()
    }

    /// The keys of tags that are looked for; those that are not within `reach` stay apart.
    pub fn of_tags(patterns: impl Iterator<Item = Pattern>, reach: &Keys) -> Scope {
        let mut scope = Scope::default();
        for pattern in patterns {
            match reach.patterns.iter().any(|known| known.covers(&pattern)) {
                true => drop(scope.keys.patterns.insert(pattern)),
                false => scope.name(pattern),
            }
        }
        scope.bounded()
    }

    fn name(&mut self, pattern: Pattern) {
        let size = pattern.prefix().len() + size_of::<Pattern>();
        if self.named.insert(pattern) {
            self.size += size;
        }
    }

    /// Bytes that nothing else can stand for.
    pub fn size(&self) -> usize {
        self.size
    }

    fn bounded(mut self) -> Scope {
        let bytes = || self.keys.patterns.iter().map(|known| known.prefix().len()).sum::<usize>();
        self.everything |= self.keys.patterns.len() > MOST || bytes() > MOST_BYTES;
        if self.everything {
            self.keys = Keys::default();
        }
        self
    }

    /// This one and another.
    pub fn and(mut self, other: Scope) -> Scope {
        self.everything |= other.everything;
        self.keys.extend(other.keys);
        other.named.into_iter().for_each(|pattern| self.name(pattern));
        self.bounded()
    }

    /// What has to be looked for, where the rules reach this far.
    pub fn within(&self, reach: &Keys) -> Keys {
        let mut keys = if self.everything { reach.clone() } else { self.keys.clone() };
        keys.patterns.extend(self.named.iter().cloned());
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six thousand tags in one statement became everything that the rules reach, and they were not among it.
    #[test]
    fn what_somebody_named_stays() {
        let pattern = |text: String| Pattern::starting(text.as_bytes());
        let reach = Keys { patterns: BTreeSet::from([pattern("page:".into())]), ..Keys::default() };
        let tags = (0..6_000).flat_map(|n| [format!("page:{n}"), format!("blog:{n}:")]).map(pattern);
        let scope = Scope::of_tags(tags, &reach).and(Scope::everything());
        assert!(scope.everything && scope.keys == Keys::default() && scope.size() > 6_000 * 8);
        let keys = scope.within(&reach);
        assert_eq!(keys.patterns.len(), 6_001);
        assert!(keys.patterns.contains(&pattern("blog:5999:".into())));
    }
}
