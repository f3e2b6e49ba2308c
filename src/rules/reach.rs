//! What the rules reach: which keys a sweep looks for, and what they cover.

use std::collections::HashSet;

use super::cases::Expected;
use super::diagnostic::Diagnostic;
use super::options::{Changes, Unknown};
use super::tables::TableName;
use super::{Rule, Rules, Tag, plan};
use crate::cache::Cache;
use crate::cache::command::Operation;
use crate::cache::coverage::{self, Coverage, Covered, Fingerprint};
use crate::cache::gap::Keys;
use crate::cache::pattern::Pattern;

impl Rules {
    /// `unknown` where it cannot select, `collapse` that would fan out, tests of caches that are not there.
    pub(super) fn refuse_unfit(&self, problems: &mut Vec<Diagnostic>) {
        for rule in &self.rules {
            for tag in &rule.tags {
                let place = match &tag.unknown {
                    Some((_, Unknown::Tags(_))) => continue,
                    Some((place, _)) => place,
                    None => &tag.place,
                };
                let wanted = matches!(tag.unknown, Some((_, Unknown::Pattern)));
                for cache in tag.caches.iter().filter_map(|index| self.caches.get(*index)) {
                    if cache.fence.is_some() && tag.template.is_constant() {
                        let message = format!(
                            "`{}` is the same for every row, and the cache `{}` has a `fence`",
                            tag.template.text, cache.name
                        );
                        let help = "a tag that changes more often than the fence would never be cached: use another cache for it";
                        problems.push(tag.place.error("fence", message).help(help));
                    }
                    let hashed = cache.keys.iter().any(|key| Pattern::of_formula(key).is_some());
                    let table = TableName { schema: "s".into(), name: "t".into() };
                    let any = Pattern::of_template(&tag.template, cache, tag.style, &table, |_| None).is_none();
                    // Everything is what the templates can render: that could be any key, too.
                    if (hashed && wanted) || (!hashed && any && !cache.dialect.planned) {
                        let message = format!(
                            "`{}` cannot be found by its pattern in the cache `{}`",
                            tag.template.text, cache.name
                        );
                        let help = match hashed {
                            true => "its keys are hashed: write `unknown: everything`, or tags without columns",
                            false => {
                                "it must start with a literal that ends in a separator; or name tags without columns"
                            }
                        };
                        problems.push(place.error("unknown-pattern", message).help(help));
                    }
                }
            }
        }
        for case in &self.tests {
            let Expected::PerCache(caches) = &case.expect else { continue };
            for (place, name, _) in
                caches.iter().filter(|(_, name, _)| self.caches.iter().all(|cache| cache.name != *name))
            {
                let problem = place.error("unknown-cache", format!("unknown cache `{name}`"));
                problems.push(problem.suggest(name, self.caches.iter().map(|cache| cache.name.as_str())));
            }
        }
    }

    /// What these rules make stale in one cache, for tables that are `published`, and where a sweep finds its keys: the tag
    /// keys of a library, or where the tag is the key, what the template can render. `known` are the tables of the database.
    pub fn coverage<'a>(
        &self,
        cache: usize,
        known: impl Iterator<Item = &'a TableName> + Clone,
        type_of: impl Fn(&TableName, &str) -> Option<u32>,
        published: impl Fn(&TableName) -> Option<Fingerprint>,
    ) -> Coverage {
        let Some(of) = self.caches.get(cache) else { return Coverage::default() };
        let mut coverage = Coverage { options: of.options_id(), ..Coverage::default() };
        let mut reached = HashSet::new();
        for rule in &self.rules {
            for table in rule.tables.among(known.clone()) {
                for tag in rule.tags.iter().filter(|tag| tag.caches.contains(&cache)) {
                    let keys = tag.keys(of, &table, |column| type_of(&table, column));
                    let text = tag.template.text.clone();
                    if keys == Keys::default() && !coverage.unreachable.contains(&text) {
                        coverage.unreachable.push(text.clone());
                    }
                    // Ten thousand rules are compared with each other otherwise.
                    if reached.insert(keys.clone()) {
                        coverage.reach.patterns.extend(keys.patterns.iter().cloned());
                        coverage.reach.tags.extend(keys.tags.iter().cloned());
                    }
                    if let Some(found) = published(&table) {
                        let id = coverage::id(&tag.identity(rule, &table));
                        coverage.templates.push(Covered { id, table: found, text, keys });
                    }
                }
            }
        }
        coverage
    }

    /// Where a sweep finds what the rules, or those of one table, make stale in a cache; and the templates that it cannot find.
    pub fn reach<'a>(
        &self,
        cache: usize,
        table: Option<&TableName>,
        known: impl Iterator<Item = &'a TableName> + Clone,
        type_of: impl Fn(&TableName, &str) -> Option<u32>,
    ) -> (Keys, Vec<String>) {
        let (mut reach, mut unreachable) = (Keys::default(), Vec::new());
        let Some(of) = self.caches.get(cache) else { return (reach, unreachable) };
        for rule in &self.rules {
            for name in rule.tables.among(known.clone()).iter().filter(|name| table.is_none_or(|table| table == *name))
            {
                for tag in rule.tags.iter().filter(|tag| tag.caches.contains(&cache)) {
                    let keys = tag.keys(of, name, |column| type_of(name, column));
                    if keys == Keys::default() {
                        unreachable.push(tag.template.text.clone());
                    }
                    reach.extend(&keys);
                }
            }
        }
        unreachable.dedup();
        (reach, unreachable)
    }
}

impl Tag {
    /// Where a sweep finds its keys in a cache; nothing where they could be any, or cannot be found.
    fn keys(&self, cache: &Cache, table: &TableName, type_of: impl Fn(&str) -> Option<u32>) -> Keys {
        if let Some((_, Unknown::Tags(templates))) = &self.unknown {
            let tags = templates.iter().map(|(_, template)| plan::plain(template, table)).collect();
            return Keys { patterns: Vec::new(), tags };
        }
        let mut patterns: Vec<Pattern> = cache.keys.iter().filter_map(Pattern::of_formula).collect();
        if patterns.is_empty() {
            // Where an absent key is valid, a key that was never invalidated is not there to be found.
            let findable = !matches!(cache.operation, Operation::Set { existing: false, .. });
            patterns
                .extend(Pattern::of_template(&self.template, cache, self.style, table, type_of).filter(|_| findable));
        }
        Keys { patterns, tags: Vec::new() }
    }

    /// All that decides which changes make which tags stale.
    pub(super) fn identity(&self, rule: &Rule, table: &impl std::fmt::Display) -> String {
        let names = |changes: &Changes| changes.columns.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
        let changes: Vec<_> = self.changes.iter().map(|changes| (changes.only, names(changes))).collect();
        let when: Vec<&str> = self.when.iter().map(|(_, condition)| condition.text.as_str()).collect();
        let collapse = rule.collapse.as_ref().map(|collapse| (collapse.over, &collapse.to.text));
        let Tag { template, events, style, .. } = self;
        format!("{table}\0{}\0{events:?}{changes:?}{when:?}{collapse:?}{style:?}{:?}", template.text, rule.old)
    }
}
