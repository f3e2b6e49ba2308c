//! One rule file as written: its caches, defaults, rules and tests, with every problem reported at its place.

use super::cases::Case;
use super::diagnostic::{Diagnostic, Place};
use super::events::Events;
use super::fields::{self, Fields};
use super::options::{self, Collapse, KEYS, Old, Options};
use super::style::{self, Style};
use super::tables::{TableName, TableSet};
use super::template::Template;
use super::yaml::{Node, Value};

/// Keys of a file, ...
pub(crate) const FILE_KEYS: [&str; 5] = ["version", "caches", "defaults", "rules", "tests"];
/// ... of its `defaults`, ...
pub(crate) const DEFAULT_KEYS: [&str; 5] = ["caches", "schema", "events", "old", "style"];
/// ... of a rule, beside its options, ...
pub(crate) const RULE_KEYS: &[&str] = &["table", "tables", "tags", "rows", "old", "collapse"];
/// ... and of a tag.
pub(crate) const TAG_KEYS: &[&str] = &["tag", "via"];

/// The content of one file.
#[derive(Default)]
pub struct RuleFile<'a> {
    /// `caches:`: name and options; the dialect reads them.
    pub caches: Vec<(&'a super::yaml::Key, &'a Node)>,
    /// `rules:`.
    pub rules: Vec<RuleEntry>,
    /// `tests:`.
    pub tests: Vec<Case>,
}

/// `defaults:` of a file.
#[derive(Clone)]
struct Defaults {
    schema: String,
    caches: Option<Vec<(Place, String)>>,
    events: Events,
    old: Old,
    style: Option<Style>,
}

/// An entry of `rules:`.
pub struct RuleEntry {
    /// The tables.
    pub tables: TableSet,
    /// Where they are named.
    pub place: Place,
    /// Its tags.
    pub tags: Vec<TagEntry>,
    /// Its options.
    pub options: Options,
    /// Old values that are not sent.
    pub old: Old,
    /// Many tags become few.
    pub collapse: Option<Collapse>,
    /// How values are written, where the placeholder does not say it.
    pub style: Option<Style>,
}

/// An entry of `tags:`.
pub struct TagEntry {
    /// The template.
    pub template: Template,
    /// Where its text begins.
    pub place: Place,
    /// The text stands in the file as it is read: without escapes or folding.
    pub literal: bool,
    /// Its own options: `caches` and `unknown` replace the rule's, the rest applies in addition.
    pub options: Options,
}

/// Reads the tree of one file.
pub fn read<'a>(root: &'a Node, problems: &mut Vec<Diagnostic>) -> RuleFile<'a> {
    let mut file = RuleFile::default();
    let Some(top) = Fields::of(root, "a rule file", &FILE_KEYS, problems) else { return file };
    if let Some((place, version)) =
        top.require("version", "the rule file", problems).and_then(|node| fields::text(node, "`version`", problems))
        && version != "1"
    {
        problems.push(place.error("version", format!("version {version} is not known")).help("write `version: 1`"));
    }
    if let Some(node) = top.get("caches") {
        match &node.value {
            Value::Map(entries) => file.caches = entries.iter().map(|(key, node)| (key, node)).collect(),
            other => problems.push(node.place.error("type", format!("`caches` is a mapping, not {}", other.kind()))),
        }
    }
    let defaults = defaults(&top, problems);
    if let Some(node) = top.get("rules") {
        let entries = fields::list(node, "`rules`", problems);
        file.rules = entries.iter().filter_map(|entry| rule(entry, &defaults, problems)).collect();
    }
    if let Some(node) = top.get("tests") {
        let entries = fields::list(node, "`tests`", problems);
        file.tests = entries.iter().filter_map(|entry| Case::read(entry, &defaults.schema, problems)).collect();
    }
    file
}

fn defaults(top: &Fields, problems: &mut Vec<Diagnostic>) -> Defaults {
    let mut defaults =
        Defaults { schema: "public".into(), caches: None, events: Events::ALL, old: Old::Require, style: None };
    let Some(fields) = top.get("defaults").and_then(|node| Fields::of(node, "`defaults`", &DEFAULT_KEYS, problems))
    else {
        return defaults;
    };
    if let Some((_, schema)) = fields.get("schema").and_then(|node| fields::text(node, "`schema`", problems)) {
        defaults.schema = schema.to_owned();
    }
    if let Some((place, name)) = fields.get("style").and_then(|node| fields::text(node, "`style`", problems)) {
        defaults.style = Style::named(name);
        if defaults.style.is_none() {
            let problem = place.error("option", format!("`style` cannot be `{name}`"));
            problems.push(problem.suggest(name, style::NAMES.iter().copied()));
        }
    }
    defaults.caches = options::caches(&fields, problems);
    defaults.events = options::events(&fields, problems).unwrap_or(Events::ALL);
    defaults.old = options::old(&fields, problems).unwrap_or_default();
    defaults
}

fn rule(node: &Node, defaults: &Defaults, problems: &mut Vec<Diagnostic>) -> Option<RuleEntry> {
    let known = [RULE_KEYS, &KEYS].concat();
    let fields = Fields::of(node, "a rule", &known, problems)?;
    let mut options = Options::read(&fields, problems);
    options.caches = options.caches.or_else(|| defaults.caches.clone());
    options.events = Some(options.events.unwrap_or(defaults.events));
    let old = options::old(&fields, problems).unwrap_or(defaults.old);
    let collapse = options::collapse(&fields, problems);
    let tables = tables(&fields, &defaults.schema, problems);
    let tags = match (fields.get("tags"), fields.get("rows")) {
        (None, Some(node)) => rows(node, problems).into_iter().collect(),
        (Some(_), Some(node)) => {
            problems.push(node.place.error("option", "`rows` and `tags` exclude each other"));
            return None;
        }
        _ => {
            let tags = fields.require("tags", "the rule", problems);
            fields::list(tags?, "`tags`", problems).iter().filter_map(|node| tag(node, problems)).collect()
        }
    };
    let (place, tables) = tables?;
    Some(RuleEntry { tables, place, tags, options, old, collapse, style: defaults.style })
}

/// `rows: true`: what goes stale is found by the row itself.
fn rows(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<TagEntry> {
    let (place, text) = fields::text(node, "`rows`", problems)?;
    if text != "true" {
        problems.push(place.error("option", "`rows` is true, or not there"));
        return None;
    }
    let (place, options) = (place.clone(), Options::default());
    Some(TagEntry { template: Template::row(), place, literal: false, options })
}

fn tables(fields: &Fields, schema: &str, problems: &mut Vec<Diagnostic>) -> Option<(Place, TableSet)> {
    let mut parse = |place: &Place, text: &str| {
        let table = TableName::parse_in(schema, text);
        if table.is_none() {
            let help = "write `table`, `schema.table`, or quote odd names: '\"My.Schema\".\"Table\"'";
            problems.push(place.error("table", format!("`{text}` is not a table name")).help(help));
        }
        table
    };
    match (fields.get("table"), fields.get("tables")) {
        (Some(_), Some(node)) => {
            problems.push(node.place.error("option", "`table` and `tables` exclude each other"));
            None
        }
        (_, Some(node)) => {
            let (mut include, mut exclude) = (Vec::new(), Vec::new());
            let mut others = Vec::new();
            for (place, text) in fields::texts(node, "a pattern", &mut others) {
                match text.strip_prefix('!') {
                    Some(text) => exclude.extend(parse(place, text)),
                    None => include.extend(parse(place, text)),
                }
            }
            problems.extend(others);
            if include.is_empty() {
                problems.push(
                    node.place.error("table", "no table is named").help("tables: [\"shop.*\", \"!shop.audit_*\"]"),
                );
            }
            Some((node.place.clone(), TableSet::Matching { include, exclude }))
        }
        (Some(node), None) => {
            let mut others = Vec::new();
            let found = fields::text(node, "`table`", &mut others);
            let table = found.and_then(|(place, text)| Some((place.clone(), TableSet::One(parse(place, text)?))));
            problems.extend(others);
            table
        }
        (None, None) => {
            fields.require("table", "the rule", problems);
            None
        }
    }
}

fn tag(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<TagEntry> {
    if let Value::Map(_) = node.value {
        let known = [TAG_KEYS, &KEYS].concat();
        let fields = Fields::of(node, "a tag", &known, problems)?;
        let options = Options::read(&fields, problems);
        if let Some(node) = fields.get("via") {
            problems.push(
                node.place
                    .error("not-yet", "`via` (columns of another table's row) is not there yet")
                    .help("keep the column in this table, or name the tag in SQL where the row is written"),
            );
        }
        let node = fields.require("tag", "the entry of `tags`", problems)?;
        let (place, text) = fields::text(node, "`tag`", problems)?;
        let (template, place, literal) = template(place, text, problems)?;
        return Some(TagEntry { template, place, literal, options });
    }
    let (place, text) = fields::text(node, "a tag", problems)?;
    let (template, place, literal) = template(place, text, problems)?;
    Some(TagEntry { template, place, literal, options: Options::default() })
}

/// The place of a text's first character, behind the quote if there is one, and whether it stands there as it is read.
pub(super) fn inner(place: &Place, text: &str) -> (Place, bool) {
    let written: String = place.line_text().chars().skip(place.column - 1).collect();
    let quote = usize::from(written.starts_with(['"', '\'']));
    let first = text.lines().next().unwrap_or_default();
    // With escapes or folding the characters do not stand where they are read: then the whole text is the place.
    let literal = written.chars().skip(quote).collect::<String>().starts_with(first);
    (if literal { place.shifted(quote, text.chars().count()) } else { place.clone() }, literal)
}

/// Parses a template; with the place of its first character.
pub(super) fn template(place: &Place, text: &str, problems: &mut Vec<Diagnostic>) -> Option<(Template, Place, bool)> {
    let (inner, literal) = inner(place, text);
    match Template::parse(text) {
        Ok(template) => Some((template, inner, literal)),
        Err(error) => {
            let at = if literal { inner.shifted(error.offset, error.width) } else { inner };
            let problem = at.error(error.code, error.message);
            problems.push(match error.wrong {
                Some((word, known)) => problem.suggest(&word, known),
                None => problem,
            });
            None
        }
    }
}
