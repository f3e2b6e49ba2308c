//! One rule file as meant: its caches and rules, with every problem reported at its place.

use super::diagnostic::{Diagnostic, Place};
use super::events::{EVENTS, Events};
use super::fields::{self, Fields};
use super::template::Template;
use super::yaml::{Node, Value};

/// The content of one file.
#[derive(Default)]
pub struct RuleFile<'a> {
    /// `caches:`: name and options; the dialect reads them.
    pub caches: Vec<(&'a super::yaml::Key, &'a Node)>,
    /// `rules:`.
    pub rules: Vec<RuleEntry>,
}

/// An entry of `rules:`.
pub struct RuleEntry {
    /// The table.
    pub table: TableName,
    /// Where it is named.
    pub place: Place,
    /// Its tags.
    pub tags: Vec<TagEntry>,
    /// `caches:` of the rule.
    pub caches: Option<Vec<(Place, String)>>,
}

/// An entry of `tags:`.
pub struct TagEntry {
    /// The template.
    pub template: Template,
    /// Where its text begins.
    pub place: Place,
    /// The text stands in the file as it is read: without escapes or folding.
    pub literal: bool,
    /// Events of the rule and of the entry.
    pub events: Events,
    /// `caches:` of the entry, in place of the rule's.
    pub caches: Option<Vec<(Place, String)>>,
}

/// Schema and name exactly as in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl TableName {
    /// `name`, `schema.name`, or either part in double quotes; `public` when no schema is given.
    pub fn parse(text: &str) -> Option<TableName> {
        let (first, rest) = part(text)?;
        if rest.is_empty() {
            return Some(TableName { schema: "public".into(), name: first });
        }
        let (second, rest) = part(rest.strip_prefix('.')?)?;
        rest.is_empty().then_some(TableName { schema: first, name: second })
    }

    /// As an SQL identifier.
    pub fn sql(&self) -> String {
        use crate::source::session::identifier;
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

fn part(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let (name, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
        return (!name.is_empty()).then(|| (name.to_owned(), rest));
    };
    let mut name = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(tail) => {
                name.push('"');
                rest = tail;
            }
            None => return (!name.is_empty()).then_some((name, after)),
        }
    }
}

/// Reads the tree of one file.
pub fn read<'a>(root: &'a Node, problems: &mut Vec<Diagnostic>) -> RuleFile<'a> {
    let mut file = RuleFile::default();
    let Some(top) = Fields::of(root, "a rule file", &["version", "caches", "rules"], problems) else { return file };
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
    if let Some(node) = top.get("rules") {
        let entries = fields::list(node, "`rules`", problems);
        file.rules = entries.iter().filter_map(|entry| rule(entry, problems)).collect();
    }
    file
}

fn rule(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<RuleEntry> {
    let fields = Fields::of(node, "a rule", &["table", "tags", "caches", "events"], problems)?;
    let events = events(&fields, Events::ALL, problems);
    let caches = caches(&fields, problems);
    let table = fields.require("table", "the rule", problems);
    let tags = fields.require("tags", "the rule", problems);
    let (place, name) = fields::text(table?, "`table`", problems)?;
    let tags = fields::list(tags?, "`tags`", problems).iter().filter_map(|node| tag(node, events, problems)).collect();
    match TableName::parse(name) {
        Some(table) => Some(RuleEntry { table, place: place.clone(), tags, caches }),
        None => {
            let help = "write `table`, `schema.table`, or quote odd names: '\"My.Schema\".\"Table\"'";
            problems.push(place.error("table", format!("`{name}` is not a table name")).help(help));
            None
        }
    }
}

fn tag(node: &Node, inherited: Events, problems: &mut Vec<Diagnostic>) -> Option<TagEntry> {
    if let Value::Map(_) = node.value {
        let fields = Fields::of(node, "a tag", &["tag", "events", "caches"], problems)?;
        let events = events(&fields, inherited, problems);
        let caches = caches(&fields, problems);
        let node = fields.require("tag", "the entry of `tags`", problems)?;
        let (place, text) = fields::text(node, "`tag`", problems)?;
        let (template, place, literal) = template(place, text, problems)?;
        return Some(TagEntry { template, place, literal, events, caches });
    }
    let (place, text) = fields::text(node, "a tag", problems)?;
    let (template, place, literal) = template(place, text, problems)?;
    Some(TagEntry { template, place, literal, events: inherited, caches: None })
}

/// Parses a template; the place returned is that of its first character, behind the quote if there is one.
fn template(place: &Place, text: &str, problems: &mut Vec<Diagnostic>) -> Option<(Template, Place, bool)> {
    let written: String = place.line_text().chars().skip(place.column - 1).collect();
    let quote = usize::from(written.starts_with(['"', '\'']));
    let first = text.lines().next().unwrap_or_default();
    // With escapes or folding the characters do not stand where they are read: then the whole text is the place.
    let literal = written.chars().skip(quote).collect::<String>().starts_with(first);
    let inner = if literal { place.shifted(quote, text.chars().count()) } else { place.clone() };
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

fn events(fields: &Fields, inherited: Events, problems: &mut Vec<Diagnostic>) -> Events {
    let Some(node) = fields.get("events") else { return inherited };
    let mut events = Events::NONE;
    for (place, name) in fields::texts(node, "an event", problems) {
        match EVENTS.iter().find(|(_, known)| *known == name) {
            Some((event, _)) => events = events.with(*event),
            None => {
                let problem = place.error("unknown-event", format!("unknown event `{name}`"));
                problems.push(problem.suggest(name, EVENTS.iter().map(|(_, known)| *known)));
            }
        }
    }
    let events = inherited.and(events);
    if events == Events::NONE {
        problems.push(node.place.warning("no-event", "no event is left: this never makes anything stale"));
    }
    events
}

fn caches(fields: &Fields, problems: &mut Vec<Diagnostic>) -> Option<Vec<(Place, String)>> {
    let node = fields.get("caches")?;
    let names = fields::texts(node, "a cache's name", problems);
    if names.is_empty() {
        problems.push(node.place.warning("no-cache", "no cache is named: this never makes anything stale"));
    }
    Some(names.into_iter().map(|(place, name)| (place.clone(), name.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names() {
        let name = |schema: &str, name: &str| Some(TableName { schema: schema.into(), name: name.into() });
        assert_eq!(TableName::parse("first_model"), name("public", "first_model"));
        assert_eq!(TableName::parse("shop.Product"), name("shop", "Product"));
        assert_eq!(TableName::parse("\"odd.schema\".\"a \"\"b\"\"\""), name("odd.schema", "a \"b\""));
        for bad in ["", ".", "a.", "a.b.c", "\"a", "\"\"", "a.\"b\"c"] {
            assert_eq!(TableName::parse(bad), None, "{bad}");
        }
    }
}
