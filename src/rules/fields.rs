//! Reading a mapping strictly: every key known, every value of the right kind, every problem reported.

use super::diagnostic::{Diagnostic, Place};
use super::yaml::{Key, Node, Value};

/// The entries of one mapping whose keys were checked.
pub struct Fields<'a> {
    /// Where the mapping begins.
    pub place: &'a Place,
    entries: &'a [(Key, Node)],
}

impl<'a> Fields<'a> {
    /// The mapping in `node`; `what` names it in messages ("a rule"). Unknown keys are reported.
    pub fn of(node: &'a Node, what: &str, known: &[&str], problems: &mut Vec<Diagnostic>) -> Option<Fields<'a>> {
        let Value::Map(entries) = &node.value else {
            problems.push(node.place.error("type", format!("{what} is a mapping, not {}", node.value.kind())));
            return None;
        };
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            let message = format!("unknown key `{}` in {what}", key.name);
            problems.push(key.place.error("unknown-key", message).suggest(&key.name, known.iter().copied()));
        }
        Some(Fields { place: &node.place, entries })
    }

    /// The value of a key.
    pub fn get(&self, name: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// The value of a key that must be there.
    pub fn require(&self, name: &str, what: &str, problems: &mut Vec<Diagnostic>) -> Option<&'a Node> {
        let found = self.get(name);
        if found.is_none() {
            problems.push(self.place.error("missing-key", format!("{what} has no `{name}`")));
        }
        found
    }
}

/// A text with its place.
pub type Text<'a> = (&'a Place, &'a str);

/// `node` as one text.
pub fn text<'a>(node: &'a Node, what: &str, problems: &mut Vec<Diagnostic>) -> Option<Text<'a>> {
    match &node.value {
        Value::Scalar(text) => Some((&node.place, text)),
        other => {
            problems.push(node.place.error("type", format!("{what} is a text, not {}", other.kind())));
            None
        }
    }
}

/// `node` as a list, each of whose items `what` names.
pub fn list<'a>(node: &'a Node, what: &str, problems: &mut Vec<Diagnostic>) -> &'a [Node] {
    match &node.value {
        Value::List(items) => items,
        other => {
            problems.push(node.place.error("type", format!("{what} is a list, not {}", other.kind())));
            &[]
        }
    }
}

/// `node` as one text or a list of texts.
pub fn texts<'a>(node: &'a Node, what: &str, problems: &mut Vec<Diagnostic>) -> Vec<Text<'a>> {
    match &node.value {
        Value::List(items) => items.iter().filter_map(|item| text(item, what, problems)).collect(),
        _ => text(node, what, problems).into_iter().collect(),
    }
}
