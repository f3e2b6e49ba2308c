//! Distinct tags, back to back in one buffer: rendered in place, dropped again when the tag is already there. No
//! allocation per tag, and half the memory of a set of strings.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::cache::gap::Scope;

/// Room that a tag which is not kept may leave behind it.
const KEPT: usize = 1 << 20;

/// A set of byte strings in order of arrival.
#[derive(Default)]
pub struct Tags {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    index: HashTable<u32>,
    // Column values are chosen by whoever writes the rows, so the hash is keyed.
    hasher: DefaultHashBuilder,
}

impl Tags {
    /// Lets `render` append one tag; keeps it if it says so and the tag is new. True if kept.
    pub fn insert_with(&mut self, render: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let start = self.bytes.len();
        let wanted = render(&mut self.bytes);
        let Tags { bytes, ends, index, hasher } = self;
        let tag = bytes.get(start..).unwrap_or_default();
        let hash = hasher.hash_one(tag);
        if !wanted || index.find(hash, |at| slice(bytes, ends, *at) == tag).is_some() {
            let length = tag.len();
            bytes.truncate(start);
            // A value of 160 MB is no tag, and took as much to find out.
            if length > KEPT {
                bytes.shrink_to(start + KEPT);
            }
            return false;
        }
        let at = ends.len() as u32;
        ends.push(bytes.len() as u32);
        index.insert_unique(hash, at, |at| hasher.hash_one(slice(bytes, ends, *at)));
        true
    }

    /// Adds a finished tag.
    pub fn insert(&mut self, tag: &[u8]) -> bool {
        self.insert_with(|out| {
            out.extend_from_slice(tag);
            true
        })
    }

    /// Adds every tag of `other`.
    pub fn extend(&mut self, other: &Tags) {
        for tag in other.iter() {
            self.insert(tag);
        }
    }

    /// Adds every tag of `other`, if there is one.
    pub fn extend_from(&mut self, other: Option<&Tags>) {
        other.into_iter().for_each(|other| self.extend(other));
    }

    /// The tags in order of arrival.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len() as u32).map(|at| slice(&self.bytes, &self.ends, at))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Memory that it holds, in bytes: what was allocated, which may be twice what is in use.
    pub fn size(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>() + self.index.allocation_size()
    }

    /// Forgets the tags and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.index.clear();
    }
}

/// What a transaction makes stale in one cache.
#[derive(Default)]
pub struct Stale {
    /// The tags that could be listed.
    pub tags: Tags,
    /// Some could not: these keys go stale.
    pub sweep: Option<Scope>,
    /// Tags of rules that collapse: they wait for the end of the transaction.
    held: Vec<Held>,
}

/// Bytes that a rule's tags may hold until its transaction ends: more of them collapse, however few.
const HELD: usize = 1 << 20;

/// The tags of one rule with `collapse`.
pub struct Held {
    rule: usize,
    over: usize,
    /// Its tags, as long as they are not too many.
    pub tags: Tags,
    /// What they become if they are.
    pub to: Tags,
    collapsed: bool,
}

impl Held {
    /// To be called when tags were added.
    pub fn collapse(&mut self) {
        if self.collapsed || self.tags.len() > self.over || self.tags.size() > HELD {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.collapsed = true;
        self.tags = Tags::default();
    }
}

impl Stale {
    /// Nothing but a sweep.
    pub fn of(scope: Scope) -> Stale {
        Stale { sweep: Some(scope), ..Stale::default() }
    }

    /// More keys go stale.
    pub fn sweep(&mut self, scope: Scope) {
        self.sweep = Some(match self.sweep.take() {
            Some(own) => own.and(scope),
            None => scope,
        });
    }

    /// The tags of a rule that collapse above `over`.
    pub fn held(&mut self, rule: usize, over: usize) -> &mut Held {
        let at = self.held.iter().position(|held| held.rule == rule).unwrap_or_else(|| {
            self.held.push(Held { rule, over, tags: Tags::default(), to: Tags::default(), collapsed: false });
            self.held.len() - 1
        });
        &mut self.held[at]
    }

    /// Bytes that can be handed out before the transaction ends.
    pub fn ready(&self) -> usize {
        self.tags.size() + self.held.iter().filter(|held| held.collapsed).map(|held| held.to.size()).sum::<usize>()
    }

    /// Bytes that it holds.
    pub fn size(&self) -> usize {
        self.tags.size() + self.held.iter().map(|held| held.tags.size() + held.to.size()).sum::<usize>()
    }

    /// Hands out what can go: at the end of the transaction (`whole`) all of it.
    pub fn take(&mut self, whole: bool) -> Stale {
        let (mut tags, sweep) = (std::mem::take(&mut self.tags), self.sweep.take());
        for held in &mut self.held {
            if held.collapsed {
                tags.extend(&std::mem::take(&mut held.to));
            } else if whole {
                tags.extend(&held.tags);
            }
        }
        if whole {
            self.held.clear();
        }
        Stale { tags, sweep, held: Vec::new() }
    }

    /// Collapses the tags of the rule that holds the most; nothing if none is left.
    pub fn collapse_largest(all: &mut [Stale]) -> bool {
        let open = all.iter_mut().flat_map(|stale| &mut stale.held).filter(|held| !held.collapsed);
        let Some(largest) = open.max_by_key(|held| held.tags.size()) else { return false };
        largest.give_up();
        true
    }

    /// Nothing at all?
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.sweep.is_none() && self.held.is_empty()
    }
}

fn slice<'a>(bytes: &'a [u8], ends: &[u32], at: u32) -> &'a [u8] {
    let at = at as usize;
    let start = at.checked_sub(1).and_then(|before| ends.get(before)).map_or(0, |end| *end as usize);
    ends.get(at).and_then(|end| bytes.get(start..*end as usize)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_in_order() {
        let mut tags = Tags::default();
        for tag in ["b", "a", "b", "", "a", "ab", ""] {
            tags.insert(tag.as_bytes());
        }
        assert_eq!(tags.iter().collect::<Vec<_>>(), [&b"b"[..], b"a", b"", b"ab"]);
        assert!(!tags.insert_with(|out| {
            out.extend_from_slice(b"half");
            false
        }));
        assert_eq!(tags.len(), 4);
        tags.clear();
        assert!(tags.is_empty() && tags.insert(b"b"));
    }

    #[test]
    fn many() {
        let mut tags = Tags::default();
        for round in 0..2 {
            for number in 0..10_000 {
                assert_eq!(tags.insert(format!("t:{number}").as_bytes()), round == 0);
            }
        }
        assert_eq!(tags.len(), 10_000);
    }
}
