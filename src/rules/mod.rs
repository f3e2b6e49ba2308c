//! The rule registry: which rows make which tags stale, in which caches.
//!
//! text -> [`yaml`] (a tree with places) -> [`mod@file`] (as written) -> [`Rules`] (as meant: caches by index, files merged)
//! -> [`plan`] (bound to the columns of one relation).

pub mod cases;
pub mod condition;
pub mod diagnostic;
pub mod events;
pub mod expand;
pub mod fields;
pub mod file;
pub mod filter;
pub mod kept;
pub mod options;
pub mod paths;
pub mod plan;
mod python;
mod reach;
pub mod registry;
pub mod style;
pub mod tables;
pub mod template;
pub mod value;
pub mod watch;
pub mod yaml;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use crate::cache::Cache;
use crate::files;
use cases::Case;
use condition::Condition;
use diagnostic::{Diagnostic, Place, Severity, Source};
use events::Events;
use expand::Surroundings;
use file::RuleEntry;
use options::{Changes, Collapse, Old, Unknown};
use style::Style;
use tables::{TableName, TableSet};
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
    /// `tests:` of all files.
    pub tests: Vec<Case>,
    /// Conditions that could not be decided.
    pub undecided: Counter,
    /// Stands for the values of `${...}` and the content of files that the caches name.
    pub fingerprint: u64,
}

/// Rule files as read: path and content.
pub type Files = Vec<(PathBuf, Vec<u8>)>;

/// Tables and their tags.
pub struct Rule {
    /// The tables.
    pub tables: TableSet,
    /// Where they are named.
    pub place: Place,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// What holds for old values that are not sent.
    pub old: Old,
    /// Many tags become few.
    pub collapse: Option<Collapse>,
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
    /// Which columns make an update count.
    pub changes: Vec<Changes>,
    /// Conditions, all of which must hold.
    pub when: Vec<(Place, Condition)>,
    /// What goes stale when its tags cannot be listed.
    pub unknown: Option<(Place, Unknown)>,
    /// How values are written, where the placeholder does not say it.
    pub style: Option<Style>,
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
    #[error("{}", diagnostic::list(.0))]
    Wrong(Vec<Diagnostic>),
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
        let (mut entries, mut tests) = (Vec::new(), Vec::new());
        for file in read {
            entries.extend(file.rules);
            tests.extend(file.tests);
        }
        for entry in entries {
            let rule = rules.resolve(entry, &declared, &mut problems);
            rules.rules.push(rule);
        }
        rules.tests = tests;
        rules.refuse_unfit(&mut problems);
        rules.find_repetitions(&mut problems);
        let (errors, warnings) = problems.into_iter().partition(|problem| problem.severity == Severity::Error);
        rules.warnings = warnings;
        rules.files = files;
        rules.fingerprint = around.fingerprint.get();
        if Vec::is_empty(&errors) { Ok(rules) } else { Err(Error::Wrong(errors)) }
    }

    /// Turns names of caches into indices.
    fn resolve(&self, entry: RuleEntry, declared: &[&str], problems: &mut Vec<Diagnostic>) -> Rule {
        let RuleEntry { tables, place, tags: entries, options, old, collapse, style } = entry;
        let of_rule = options.caches.map(|names| self.indices(&names, declared, problems));
        let events = options.events.unwrap_or(Events::ALL);
        let mut tags = Vec::new();
        for tag in entries {
            let own = tag.options.caches.map(|names| self.indices(&names, declared, problems));
            let caches = own.or_else(|| of_rule.clone()).or_else(|| self.default_cache().map(|cache| vec![cache]));
            if caches.is_none() && (declared.is_empty() || !self.caches.is_empty()) {
                let message = "this tag names no cache, and there is no default";
                let help = "give the rule `caches: [name]`, or name one cache `default`";
                problems.push(tag.place.error("no-cache", message).help(help));
            }
            let caches = caches.unwrap_or_default();
            let made = caches.iter().map(|_| Counter::default()).collect();
            let own_events = tag.options.events.unwrap_or(Events::ALL).and(events);
            if own_events == Events::NONE && tag.options.events != Some(Events::NONE) && events != Events::NONE {
                let message = "no event is left of the rule's and the tag's: this never makes anything stale";
                problems.push(tag.place.warning("no-event", message));
            }
            tags.push(Tag {
                template: tag.template,
                place: tag.place,
                literal: tag.literal,
                events: own_events,
                changes: [options.changes.clone(), tag.options.changes].concat(),
                when: [options.when.clone(), tag.options.when].concat(),
                unknown: tag.options.unknown.or_else(|| options.unknown.clone()),
                style,
                caches,
                made,
            });
        }
        Rule { tables, place, tags, old, collapse }
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

    /// The same template for the same table and cache twice, under the same conditions.
    fn find_repetitions(&self, problems: &mut Vec<Diagnostic>) {
        let mut seen: HashMap<(String, usize), &Place> = HashMap::new();
        for rule in &self.rules {
            for tag in &rule.tags {
                for cache in &tag.caches {
                    let key = (tag.identity(rule, &rule.tables), *cache);
                    if let Some(first) = seen.get(&key) {
                        let message = format!("`{}` of {} stands here again", tag.template.text, rule.tables);
                        problems.push(tag.place.warning("repeated-tag", message).help(format!("first at {first}")));
                    }
                    seen.entry(key).or_insert(&tag.place);
                }
            }
        }
    }

    /// The rules of one table.
    pub fn of_table<'a>(&'a self, table: &'a TableName) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |rule| rule.tables.contains(table))
    }

    /// Every table that a rule names, once, sorted; patterns name none.
    pub fn tables(&self) -> Vec<&TableName> {
        let mut tables: Vec<&TableName> = self.rules.iter().filter_map(|rule| rule.tables.one()).collect();
        tables.sort();
        tables.dedup();
        tables
    }

    /// The patterns by which rules name tables.
    pub fn patterns(&self) -> impl Iterator<Item = &TableName> {
        self.rules.iter().flat_map(|rule| match &rule.tables {
            TableSet::Matching { include, .. } => include.as_slice(),
            TableSet::One(_) => &[],
        })
    }

    /// Does a rule name its tables by a pattern?
    pub fn has_patterns(&self) -> bool {
        self.rules.iter().any(|rule| rule.tables.one().is_none())
    }
}

/// Bytes of all rule files together: a hundred thousand rules have 10 MB.
const MOST: usize = 16 << 20;

/// Reads every file behind `paths`.
pub fn read(paths: &[String]) -> Result<Files, paths::Error> {
    let mut room = MOST;
    let read = |path: PathBuf| match files::read(&path) {
        Ok(bytes) if bytes.len() > room => Err(paths::Error::TooMany(path)),
        Ok(bytes) => {
            room -= bytes.len();
            Ok((path, bytes))
        }
        Err(error) => Err(paths::Error::Unreadable(path, error)),
    };
    paths::files(paths)?.into_iter().map(read).collect()
}

/// Does it lead to a file that is not below its own directory? (Kubernetes links within.)
fn is_elsewhere(path: &std::path::Path) -> bool {
    let own = path
        .parent()
        .and_then(|parent| if parent.as_os_str().is_empty() { ".".as_ref() } else { parent }.canonicalize().ok());
    match (own, path.canonicalize()) {
        (Some(own), Ok(target)) => !target.starts_with(own),
        // Kept rules, and texts of tests, stand nowhere.
        _ => false,
    }
}

/// Rule files are UTF-8; a byte order mark is forgiven.
fn source(path: PathBuf, bytes: Vec<u8>) -> Result<Arc<Source>, Box<Diagnostic>> {
    match String::from_utf8(bytes) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned);
            Ok(Arc::new(Source { is_elsewhere: is_elsewhere(&path), path, text }))
        }
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let before = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default()).into_owned();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let place = Place {
                source: Arc::new(Source { is_elsewhere: is_elsewhere(&path), path, text }),
                line,
                column,
                width: 1,
            };
            Err(Box::new(place.error("encoding", "the file is not UTF-8")))
        }
    }
}
