//! What a rule or an entry of `tags:` says beside its templates: when it counts, and what goes stale when tags cannot be listed.

use super::condition::Condition;
use super::diagnostic::{Diagnostic, Place};
use super::events::{EVENTS, Events};
use super::fields::{self, Fields};
use super::file;
use super::template::{Name, Step, Template};

/// The options of a rule, or of a tag within one.
#[derive(Clone, Default)]
pub struct Options {
    /// Kinds of change.
    pub events: Option<Events>,
    /// `ignore` and `only`: an update that passes none of them sends nothing.
    pub changes: Vec<Changes>,
    /// Conditions, all of which must hold.
    pub when: Vec<(Place, Condition)>,
    /// Names of caches.
    pub caches: Option<Vec<(Place, String)>>,
    /// What goes stale when tags cannot be listed.
    pub unknown: Option<(Place, Unknown)>,
}

/// Which columns make an update count.
#[derive(Clone, Debug)]
pub struct Changes {
    /// `only` these; otherwise all but these.
    pub only: bool,
    /// The columns with their places.
    pub columns: Vec<(Place, String)>,
}

/// What goes stale when tags cannot be listed.
#[derive(Clone, Debug)]
pub enum Unknown {
    /// What the template can render.
    Pattern,
    /// All that the rules can reach in the cache.
    Everything,
    /// These tags.
    Tags(Vec<(Place, Template)>),
}

/// What holds for columns whose old value is not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Old {
    /// The rule is refused.
    #[default]
    Require,
    /// `unknown` applies.
    Unknown,
    /// They never change; on DELETE `unknown` applies.
    Same,
}

/// `collapse: {over: N, to: template}`.
#[derive(Clone)]
pub struct Collapse {
    /// More distinct tags of the rule in one transaction ...
    pub over: usize,
    /// ... become these.
    pub to: Template,
    /// Where the template is written.
    pub place: Place,
}

/// Keys of rules and tags alike.
pub(crate) const KEYS: [&str; 6] = ["events", "ignore", "only", "when", "caches", "unknown"];

impl Options {
    /// Reads them.
    pub(super) fn read(fields: &Fields, problems: &mut Vec<Diagnostic>) -> Options {
        let mut options = Options { events: events(fields, problems), ..Options::default() };
        for (key, only) in [("ignore", false), ("only", true)] {
            if let Some(node) = fields.get(key) {
                let columns = fields::texts(node, "a column", problems);
                let columns = columns.into_iter().map(|(place, name)| (place.clone(), name.to_owned())).collect();
                options.changes.push(Changes { only, columns });
            }
        }
        if let (Some(node), Some(_)) = (fields.get("ignore"), fields.get("only")) {
            problems.push(node.place.error("option", "`ignore` and `only` exclude each other"));
        }
        if let Some((place, text)) = fields.get("when").and_then(|node| fields::text(node, "`when`", problems)) {
            options.when.extend(condition(place, text, problems));
        }
        options.caches = caches(fields, problems);
        options.unknown = fields.get("unknown").and_then(|node| unknown(node, problems));
        options
    }
}

fn condition(place: &Place, text: &str, problems: &mut Vec<Diagnostic>) -> Option<(Place, Condition)> {
    match Condition::parse(text) {
        Ok(condition) => {
            if condition.row.is_empty() && condition.old.is_empty() != condition.new.is_empty() {
                let (one, other) = if condition.old.is_empty() { ("new", "leaves") } else { ("old", "enters") };
                let message =
                    format!("this looks at the {one} row only: a row that {other} the condition makes nothing stale");
                problems.push(place.warning("one-sided", message).help("write `row.` for the image that is rendered"));
            }
            Some((place.clone(), condition))
        }
        Err(error) => {
            let (place, literal) = file::inner(place, text);
            let at = if literal { place.shifted(error.offset, 1) } else { place };
            let problem = at.error(error.code, error.message);
            problems.push(match error.help {
                Some(help) => problem.help(help),
                None => problem,
            });
            None
        }
    }
}

fn unknown(node: &super::yaml::Node, problems: &mut Vec<Diagnostic>) -> Option<(Place, Unknown)> {
    if let super::yaml::Value::List(_) = node.value {
        let mut tags = Vec::new();
        for (place, text) in fields::texts(node, "a tag", problems) {
            let Some((template, place, _)) = file::template(place, text, problems) else { continue };
            match template.is_constant() {
                true => tags.push((place, template)),
                false => problems.push(
                    place.error("option", "a tag of `unknown` is the same for every row: it cannot have a column"),
                ),
            }
        }
        if matches!(&node.value, super::yaml::Value::List(items) if items.is_empty()) {
            problems.push(node.place.error("option", "`unknown` names no tag: what cannot be listed would stay stale"));
        }
        return Some((node.place.clone(), Unknown::Tags(tags)));
    }
    let (place, word) = fields::text(node, "`unknown`", problems)?;
    let found = match word {
        "pattern" => Unknown::Pattern,
        "everything" => Unknown::Everything,
        other => {
            let problem = place.error("option", format!("`unknown` cannot be `{other}`"));
            problems.push(problem.help("pattern, everything, or a list of tags without columns"));
            return None;
        }
    };
    Some((place.clone(), found))
}

/// The words of `old:`.
pub(crate) const OLD: [(&str, Old); 3] = [("require", Old::Require), ("unknown", Old::Unknown), ("same", Old::Same)];

/// `old:`.
pub(super) fn old(fields: &Fields, problems: &mut Vec<Diagnostic>) -> Option<Old> {
    let (place, word) = fields::text(fields.get("old")?, "`old`", problems)?;
    let found = OLD.iter().find(|(known, _)| *known == word).map(|(_, old)| *old);
    if found.is_none() {
        let problem = place.error("option", format!("`old` cannot be `{word}`"));
        problems.push(problem.suggest(word, OLD.iter().map(|(known, _)| *known)));
    }
    found
}

/// `collapse:`.
pub(super) fn collapse(fields: &Fields, problems: &mut Vec<Diagnostic>) -> Option<Collapse> {
    /// The tags of a transaction that might collapse are held back until its end.
    const MOST: usize = 100_000;
    let node = fields.get("collapse")?;
    let fields = Fields::of(node, "`collapse`", &["over", "to"], problems)?;
    let over = fields.require("over", "`collapse`", problems);
    let to = fields.require("to", "`collapse`", problems);
    let (place, number) = fields::text(over?, "`over`", problems)?;
    let (at, text) = fields::text(to?, "`to`", problems)?;
    let (to, to_place, _) = file::template(at, text, problems)?;
    let fans_out = |(_, placeholder): (&str, &super::template::Placeholder)| matches!(&placeholder.name, Name::Column(_, path) if path.contains(&Step::Each));
    if to.columns().any(fans_out) {
        problems.push(to_place.error("option", "`to` stands for many tags: it cannot fan out itself"));
    }
    match number.parse() {
        Ok(over) if (1..=MOST).contains(&over) => Some(Collapse { over, to, place: to_place }),
        _ => {
            problems.push(place.error("option", format!("`over` is a number of tags from 1 to {MOST}")));
            None
        }
    }
}

/// `events:`.
pub(super) fn events(fields: &Fields, problems: &mut Vec<Diagnostic>) -> Option<Events> {
    let node = fields.get("events")?;
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
    if events == Events::NONE {
        problems.push(node.place.warning("no-event", "no event is left: this never makes anything stale"));
    }
    Some(events)
}

/// `caches:`.
pub(super) fn caches(fields: &Fields, problems: &mut Vec<Diagnostic>) -> Option<Vec<(Place, String)>> {
    let node = fields.get("caches")?;
    let names = fields::texts(node, "a cache's name", problems);
    if names.is_empty() {
        problems.push(node.place.warning("no-cache", "no cache is named: this never makes anything stale"));
    }
    Some(names.into_iter().map(|(place, name)| (place.clone(), name.to_owned())).collect())
}
