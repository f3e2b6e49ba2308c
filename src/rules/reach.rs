//! What the rules reach: which keys a sweep looks for, and what they cover.

use std::collections::HashSet;

use super::cases::Expected;
use super::diagnostic::{Diagnostic, Place};
use super::options::{Changes, Unknown};
use super::tables::TableName;
use super::template::{Piece, Template};
use super::{Rule, Rules, Tag, plan};
use crate::cache::Cache;
use crate::cache::coverage::{self, Coverage, Covered, Fingerprint};
use crate::cache::dialect::Texts;
use crate::cache::formula::Formula;
use crate::cache::gap::Keys;
use crate::cache::pattern::{Pattern, Subject};
use crate::cache::reach::Way;
use crate::cache::step::Action;

impl Rules {
    /// `unknown` where it cannot select, `collapse` that would fan out, tests of caches that are not there.
    pub(super) fn refuse_unfit(&self, problems: &mut Vec<Diagnostic>) {
        for rule in &self.rules {
            for tag in &rule.tags {
                let place = tag.unknown.as_ref().map_or(&tag.place, |(place, _)| place);
                let wanted = matches!(tag.unknown, Some((_, Unknown::Pattern)));
                for cache in tag.caches.iter().filter_map(|index| self.caches.get(*index)) {
                    let hides = cache.fence.map(|_| "fence").or((!cache.guard.is_zero()).then_some("guard"));
                    if let Some(option) =
                        hides.filter(|_| tag.template.is_constant() && cache.dialect.tags != Texts::Table)
                    {
                        let message = format!(
                            "`{}` is the same for every row, and the cache `{}` has a `{option}`",
                            tag.template.text, cache.name
                        );
                        let help = format!(
                            "a tag that changes more often than the {option} would never be cached: use another cache for it"
                        );
                        problems.push(tag.place.error(option, message).help(help));
                    }
                    let unfit = rule.unfit(tag, cache);
                    if !unfit.is_empty() {
                        problems.extend(unfit);
                        continue;
                    }
                    if matches!(tag.unknown, Some((_, Unknown::Tags(_)))) {
                        continue;
                    }
                    let table = TableName { schema: "s".into(), name: "t".into() };
                    let selects = cache.reach.selects() && cache.steps.iter().all(|step| step.is_readable());
                    let any = tag.keys(cache, &table, |_| None) == Keys::default();
                    // Everything is what the templates can render: that could be any key, too.
                    if (!selects && wanted) || any {
                        let message = format!(
                            "`{}` cannot be found by its pattern in the cache `{}`",
                            tag.template.text, cache.name
                        );
                        let help = match (any, cache.reach.ways.as_slice()) {
                            (false, _) => {
                                "this client does not keep tags as they are: write `unknown: everything`, or tags without columns"
                            }
                            (true, [Way::None]) => {
                                "nothing lists what is cached here: name tags without columns as `unknown:`, which every record has"
                            }
                            (true, _) => {
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
                    reach.extend(keys);
                }
            }
        }
        unreachable.dedup();
        (reach, unreachable)
    }
}

impl Rule {
    /// Why a tag of it, or what stands for it, can never be one of the cache.
    fn unfit(&self, tag: &Tag, cache: &Cache) -> Vec<Diagnostic> {
        let unknown = match &tag.unknown {
            Some((_, Unknown::Tags(templates))) => templates.as_slice(),
            _ => &[],
        };
        let collapse = self.collapse.iter().map(|collapse| (&collapse.place, &collapse.to));
        let others = unknown.iter().map(|(place, template)| (place, template)).chain(collapse);
        let all = std::iter::once((&tag.place, &tag.template)).chain(others);
        all.filter_map(|(place, template)| unfit(template, place, cache)).collect()
    }
}

impl Tag {
    /// Where a sweep finds its keys in a cache; nothing where they could be any, or cannot be found.
    pub(super) fn keys(&self, cache: &Cache, table: &TableName, type_of: impl Fn(&str) -> Option<u32>) -> Keys {
        if let Some((_, Unknown::Tags(templates))) = &self.unknown {
            let tags = templates.iter().map(|(_, template)| plan::plain(template, table)).collect();
            return Keys { tags, ..Keys::default() };
        }
        let subject = Subject { template: &self.template, cache, style: self.style, table, type_of };
        let mut keys = Keys::default();
        // A tag without columns is known: nothing has to be looked for.
        let listed = cache.reach.ways.contains(&Way::Keys) || cache.is_scanned();
        if self.template.is_constant() && !listed {
            keys.tags.insert(plan::plain(&self.template, table));
            return keys;
        }
        for way in &cache.reach.ways {
            match way {
                Way::Keys => {
                    let own = cache.steps.iter().filter(|step| step.names_tags());
                    keys.patterns.extend(own.filter_map(|step| Pattern::of_template(&step.key, &subject, false)));
                }
                Way::Tags(tags) => keys.tags.extend(tags.iter().cloned()),
                Way::Index { .. } => keys.patterns.extend(Pattern::of_template(&Formula::tag(), &subject, false)),
                Way::Records { head, .. } if head.is_empty() => {
                    let own = cache.steps.iter().filter(|step| step.action == Action::Scan);
                    keys.patterns.extend(own.filter_map(|step| Pattern::of_template(&step.key, &subject, true)));
                }
                Way::Tables { head, .. } => {
                    keys.patterns.insert(Pattern::starting(&[head, table.name.as_bytes(), b":"].concat()));
                }
                Way::Records { head, .. } | Way::Entries { head, .. } => {
                    keys.patterns.insert(Pattern::starting(head));
                }
                Way::None => {}
            }
        }
        keys
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

/// Why this template can never be a tag of the cache.
fn unfit(template: &Template, place: &Place, cache: &Cache) -> Option<Diagnostic> {
    let text = &template.text;
    let name = cache.dialect.name;
    let foreign = |allowed: &dyn Fn(char) -> bool| {
        let literals = template.pieces.iter().filter_map(|piece| match piece {
            Piece::Literal(literal) => Some(literal.chars()),
            Piece::Placeholder(_) => None,
        });
        literals.flatten().find(|character| !allowed(*character))
    };
    match (template.is_row(), cache.dialect.tags == Texts::Rows) {
        (true, true) => return None,
        (false, false) => {}
        (is_row, _) => {
            let what = if is_row { "`rows` is" } else { "tags are" };
            let message = format!("{what} not for {name}, the dialect of the cache `{}`", cache.name);
            let help = match is_row {
                true => "only django-cacheops finds what is stale by the row itself: write `tags`",
                false => "it has no tags, its sets are found by the row itself: write `rows: true`",
            };
            return Some(place.error("tag-form", message).help(help));
        }
    }
    let (found, help) = match cache.dialect.tags {
        Texts::Any | Texts::Keys | Texts::Rows => return None,
        Texts::Without(reserved) => (
            foreign(&|character| !reserved.contains(character))?,
            format!(
                "the client refuses {reserved} in tags: use those that the application uses, such as with `.` or `-`"
            ),
        ),
        Texts::Only(others) => (
            foreign(&|character| character.is_ascii_alphanumeric() || others.contains(character))?,
            format!(
                "the client takes letters, digits and {others} only: use the tags that the application uses, such as with `-`"
            ),
        ),
        Texts::Constant if template.is_constant() => return None,
        Texts::Table if *text == "<@table>" => return None,
        Texts::Constant | Texts::Table => {
            let help = match cache.dialect.tags {
                Texts::Table => "it knows tables only: write tags: [\"<@table>\"]",
                _ => "its groups stand in the application's configuration: write them without columns",
            };
            let message = format!("`{text}` cannot be a tag of {name}, the dialect of the cache `{}`", cache.name);
            return Some(place.error("tag-form", message).help(help));
        }
    };
    let message =
        format!("`{found}` in `{text}` cannot be in a tag of {name}, the dialect of the cache `{}`", cache.name);
    Some(place.error("tag-form", message).help(help))
}
