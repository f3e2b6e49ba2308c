//! The rule registry: which rows make which tags stale, in which caches.
//!
//! text -> [`yaml`] (a tree with places) -> [`mod@file`] (as written) -> [`Rules`] (as meant: caches by index, files merged)
//! -> [`plan`] (bound to the columns of one relation).

pub mod diagnostic;
pub mod events;
pub mod expand;
pub mod fields;
pub mod file;
pub mod filter;
pub mod kept;
pub mod paths;
pub mod plan;
pub mod registry;
pub mod style;
pub mod template;
pub mod watch;
pub mod yaml;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use crate::cache::Cache;
use crate::cache::command::Operation;
use crate::cache::coverage::{self, Coverage, Covered, Fingerprint};
use crate::cache::pattern::Pattern;
use diagnostic::{Diagnostic, Place, Severity, Source};
use events::Events;
use expand::Surroundings;
use file::{RuleEntry, TableName};
use template::{Placeholder, Template};

/// A whole rule set. It is replaced whole or not at all.
#[derive(Default)]
pub struct Rules {
    /// The caches; rules name them by index.
    pub caches: Vec<Cache>,
    /// The rules in the order of files and lines.
    pub rules: Vec<Rule>,
    /// What people should know although the set can be used.
    pub warnings: Vec<Diagnostic>,
    /// What it was read from: `${...}` as written, because what it stands for may be secret.
    pub files: Files,
    /// Stands for the values of `${...}` and the content of files that the caches name.
    pub fingerprint: u64,
}

/// Rule files as read: path and content.
pub type Files = Vec<(PathBuf, Vec<u8>)>;

/// One table and its tags.
pub struct Rule {
    /// The table.
    pub table: TableName,
    /// Where it is named.
    pub place: Place,
    /// Its tags.
    pub tags: Vec<Tag>,
}

/// One template of a rule.
pub struct Tag {
    /// The template.
    pub template: Template,
    /// Where it is written.
    pub place: Place,
    /// Its text stands in the file as it is read.
    pub literal: bool,
    /// What it listens to.
    pub events: Events,
    /// Indices into [`Rules::caches`].
    pub caches: Vec<usize>,
    /// How many tags it made, for each of `caches`.
    pub made: Vec<Counter>,
}

impl Tag {
    /// Where one of its placeholders is written.
    pub fn place_of(&self, placeholder: &Placeholder) -> Place {
        if self.literal { self.place.shifted(placeholder.offset, placeholder.width) } else { self.place.clone() }
    }
}

/// Why there is no rule set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No files (exit 66).
    #[error(transparent)]
    Paths(#[from] paths::Error),
    /// Nothing can be made stale (exit 65).
    #[error("the rules define no cache; add one under `caches:`")]
    NoCache,
    /// The files are wrong (exit 65). One paragraph per problem.
    #[error("{}", list(.0))]
    Wrong(Vec<Diagnostic>),
}

fn list(problems: &[Diagnostic]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

impl Rules {
    /// Reads and merges every file behind `paths`.
    pub fn load(paths: &[String], around: &Surroundings) -> Result<Rules, Error> {
        Rules::parse(read(paths)?, around)
    }

    /// Compiles files that were read.
    pub fn parse(files: Files, around: &Surroundings) -> Result<Rules, Error> {
        let mut problems = Vec::new();
        let mut roots = Vec::new();
        for (path, bytes) in files.iter().cloned() {
            match source(path, bytes) {
                Ok(source) => match yaml::parse(&source, &mut problems) {
                    Ok(root) => roots.push(root),
                    Err(problem) => problems.push(*problem),
                },
                Err(problem) => problems.push(*problem),
            }
        }
        let mut rules = Rules::default();
        let read: Vec<_> = roots.iter().map(|root| file::read(root, &mut problems)).collect();
        for (key, node) in read.iter().flat_map(|file| &file.caches) {
            match rules.caches.iter().find(|cache| cache.name == key.name) {
                Some(first) => {
                    let message = format!("cache `{}` is defined twice", key.name);
                    problems
                        .push(key.place.error("duplicate-cache", message).help(format!("first at {}", first.place)));
                }
                None => rules.caches.extend(Cache::read(key, node, around, &mut problems)),
            }
        }
        let declared: Vec<&str> = read.iter().flat_map(|file| &file.caches).map(|(key, _)| key.name.as_str()).collect();
        for entry in read.into_iter().flat_map(|file| file.rules) {
            let rule = rules.resolve(entry, &declared, &mut problems);
            rules.rules.push(rule);
        }
        rules.find_repetitions(&mut problems);
        let (errors, warnings) = problems.into_iter().partition(|problem| problem.severity == Severity::Error);
        rules.warnings = warnings;
        rules.files = files;
        rules.fingerprint = around.fingerprint.get();
        if Vec::is_empty(&errors) { Ok(rules) } else { Err(Error::Wrong(errors)) }
    }

    /// Turns names of caches into indices.
    fn resolve(&self, entry: RuleEntry, declared: &[&str], problems: &mut Vec<Diagnostic>) -> Rule {
        let of_rule = entry.caches.map(|names| self.indices(&names, declared, problems));
        let mut tags = Vec::new();
        for tag in entry.tags {
            let own = tag.caches.map(|names| self.indices(&names, declared, problems));
            let caches = own.or_else(|| of_rule.clone()).or_else(|| self.default_cache().map(|cache| vec![cache]));
            if caches.is_none() && (declared.is_empty() || !self.caches.is_empty()) {
                let message = "this tag names no cache, and there is no default";
                let help = "give the rule `caches: [name]`, or name one cache `default`";
                problems.push(tag.place.error("no-cache", message).help(help));
            }
            let caches = caches.unwrap_or_default();
            let made = caches.iter().map(|_| Counter::default()).collect();
            tags.push(Tag {
                template: tag.template,
                place: tag.place,
                literal: tag.literal,
                events: tag.events,
                caches,
                made,
            });
        }
        Rule { table: entry.table, place: entry.place, tags }
    }

    fn indices(&self, names: &[(Place, String)], declared: &[&str], problems: &mut Vec<Diagnostic>) -> Vec<usize> {
        let mut indices = Vec::new();
        for (place, name) in names {
            match self.caches.iter().position(|cache| cache.name == *name) {
                Some(index) if indices.contains(&index) => {}
                Some(index) => indices.push(index),
                // A cache that is declared but wrong has its own message.
                None if declared.contains(&name.as_str()) => {}
                None => {
                    let problem = place.error("unknown-cache", format!("unknown cache `{name}`"));
                    problems.push(problem.suggest(name, declared.iter().copied()));
                }
            }
        }
        indices
    }

    /// `default`, else the only cache.
    pub fn default_cache(&self) -> Option<usize> {
        let named = self.caches.iter().position(|cache| cache.name == "default");
        named.or((self.caches.len() == 1).then_some(0))
    }

    /// The same template for the same table and cache twice.
    fn find_repetitions(&self, problems: &mut Vec<Diagnostic>) {
        let mut seen: HashMap<(&TableName, usize, &str), &Place> = HashMap::new();
        for rule in &self.rules {
            for tag in &rule.tags {
                for cache in &tag.caches {
                    let key = (&rule.table, *cache, tag.template.text.as_str());
                    if let Some(first) = seen.get(&key) {
                        let message = format!("`{}` of {} stands here again", tag.template.text, rule.table);
                        problems.push(tag.place.warning("repeated-tag", message).help(format!("first at {first}")));
                    }
                    seen.entry(key).or_insert(&tag.place);
                }
            }
        }
    }

    /// What these rules make stale in one cache, for tables that are `published`, and where a sweep finds its keys: the tag
    /// keys of a library, or where the tag is the key, what the template can render.
    pub fn coverage(
        &self,
        cache: usize,
        type_of: impl Fn(&TableName, &str) -> Option<u32>,
        published: impl Fn(&TableName) -> Option<Fingerprint>,
    ) -> Coverage {
        let Some(of) = self.caches.get(cache) else { return Coverage::default() };
        let mut coverage = Coverage { options: of.options_id(), ..Coverage::default() };
        let formulas: Vec<Pattern> = of.keys.iter().filter_map(Pattern::of_formula).collect();
        // Where an absent key is valid, a key that was never invalidated is not there to be found.
        let findable = !matches!(of.operation, Operation::Set { existing: false, .. });
        for rule in &self.rules {
            for tag in rule.tags.iter().filter(|tag| tag.caches.contains(&cache)) {
                let mut patterns = formulas.clone();
                if patterns.is_empty() {
                    let type_of = |column: &str| type_of(&rule.table, column);
                    let pattern = Pattern::of_template(&tag.template, of, &rule.table, type_of);
                    patterns.extend(pattern.filter(|_| findable));
                }
                let text = tag.template.text.clone();
                if patterns.is_empty() {
                    coverage.unreachable.push(text.clone());
                }
                for pattern in &patterns {
                    if !coverage.reach.contains(pattern) {
                        coverage.reach.push(pattern.clone());
                    }
                }
                if let Some(table) = published(&rule.table) {
                    let id = coverage::id(&format!("{}\0{text}\0{:?}", rule.table, tag.events));
                    coverage.templates.push(Covered { id, table, text, patterns });
                }
            }
        }
        coverage
    }

    /// The rules of one table.
    pub fn of_table<'a>(&'a self, table: &'a TableName) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |rule| rule.table == *table)
    }

    /// Every table that a rule names, once, sorted.
    pub fn tables(&self) -> Vec<&TableName> {
        let mut tables: Vec<&TableName> = self.rules.iter().map(|rule| &rule.table).collect();
        tables.sort();
        tables.dedup();
        tables
    }
}

/// Reads every file behind `paths`.
pub fn read(paths: &[String]) -> Result<Files, paths::Error> {
    let read = |path: PathBuf| match std::fs::read(&path) {
        Ok(bytes) => Ok((path, bytes)),
        Err(error) => Err(paths::Error::Unreadable(path, error)),
    };
    paths::files(paths)?.into_iter().map(read).collect()
}

/// Rule files are UTF-8; a byte order mark is forgiven.
fn source(path: PathBuf, bytes: Vec<u8>) -> Result<Arc<Source>, Box<Diagnostic>> {
    match String::from_utf8(bytes) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned);
            Ok(Arc::new(Source { path, text }))
        }
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let before = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default()).into_owned();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let place = Place { source: Arc::new(Source { path, text }), line, column, width: 1 };
            Err(Box::new(place.error("encoding", "the file is not UTF-8")))
        }
    }
}
