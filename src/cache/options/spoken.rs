//! The options of a dialect: what is sent with them, and how the rest is found.

use super::super::choices::{self, Choice};
use super::super::dialect::{Dialect, RECORDS, Verified};
use super::super::dialects;
use super::super::reach::{Reach, Way};
use super::super::step::{Action, Step};
use super::Reader;
use crate::rules::yaml::Key;

impl Reader<'_> {
    /// A format that was only read may be wrong somewhere.
    pub(super) fn verified(&mut self, dialect: &Dialect, key: &Key) {
        let accepted = self.word("accept_unverified", &[("true", true), ("false", false)]).unwrap_or(false);
        if let (Verified::Read(version), false) = (dialect.verified, accepted) {
            let message =
                format!("`{}` was written from the source of {version} and never run against it", dialect.name);
            let help = "try it with the application; then write `accept_unverified: true`";
            self.problems.push(key.place.error("unverified", message).help(help));
        }
    }

    /// The dialect with its options.
    pub(super) fn spoken(&mut self, dialect: &'static Dialect, what: &str) -> Option<(Vec<Step>, Reach)> {
        if dialect.name == dialects::CUSTOM {
            return self.custom();
        }
        if dialect.forgets && self.fields.get(RECORDS.name).is_none() {
            let message =
                format!("{}'s sets expire before their records: TRUNCATE and a resync do not find those", dialect.name);
            let help = "write how the keys of its records begin, `records: \"page:\"`, or `records: []`";
            self.problems.push(self.fields.place.warning("reach", message).help(help));
        }
        let reported = self.problems.len();
        let mut choices = Vec::new();
        for option in dialect.options {
            let mut given = self.texts(option.name);
            if let Some(alias) = option.alias() {
                let others = self.texts(alias);
                if let (Some((place, _)), false) = (others.first(), given.is_empty()) {
                    self.problems
                        .push(place.error("option", format!("`{}` and `{alias}` exclude each other", option.name)));
                }
                given.extend(others);
            }
            if given.is_empty() && self.fields.get(option.name).is_some() && option.name != RECORDS.name {
                let message = format!("`{}` needs a value", option.name);
                self.problems.push(self.fields.place.error("option", message));
            } else if given.is_empty() {
                match option.default {
                    Some(default) => given.push((self.fields.place.clone(), default.to_owned())),
                    None if option.is_needed(&choices) => {
                        self.fields.require(option.name, what, self.problems);
                    }
                    None => {}
                }
            }
            let mut values = Vec::new();
            for (place, text) in given {
                match option.kind.read(option.name, &text) {
                    Ok(value) if values.contains(&value) => {}
                    Ok(value) => values.push(value),
                    Err((sentence, words)) => {
                        self.problems.push(place.error("option", sentence).suggest(&text, words));
                    }
                }
            }
            choices.push(Choice { name: option.name, values });
        }
        if self.problems.len() > reported {
            return None;
        }
        let place = self.fields.place.clone();
        match choices::instantiate(dialect, &choices) {
            Ok((steps, reach)) => self.own_records(&reach, dialect.is_open()).then_some((steps, reach)),
            Err(sentence) => {
                self.problems.push(place.error("option", sentence));
                None
            }
        }
    }

    /// In a Cluster, what one script cannot do on several nodes is done from here.
    pub(super) fn spread(&mut self, (mut steps, reach): (Vec<Step>, Reach)) -> Option<(Vec<Step>, Reach)> {
        for step in &mut steps {
            match &mut step.action {
                // To drop a link apart from its record would orphan a record that is stored between the two.
                Action::Members(members) => members.links = "list",
                Action::Rows { .. } => {
                    let message =
                        "this client's own scripts need all keys on one server: it does not work on a Cluster";
                    self.problems.push(self.fields.place.error("option", message));
                    return None;
                }
                _ => {}
            }
        }
        Some((steps, reach))
    }

    /// A sweep must not drop what is not the cache's.
    fn own_records(&mut self, reach: &Reach, open: bool) -> bool {
        let any = |way: &Way| matches!(way, Way::Records { head, .. } | Way::Entries { head, .. } if head.is_empty());
        if open || !reach.ways.iter().any(any) {
            return true;
        }
        let problem =
            self.fields.place.error("option", "without a prefix of its own a sweep would drop every key of this Redis");
        self.problems.push(problem.help("give the cache a prefix, in the application and here"));
        false
    }

    /// `custom`: the lines of a dialect, in the rule file.
    fn custom(&mut self) -> Option<(Vec<Step>, Reach)> {
        let what = "a cache of dialect custom";
        self.fields.require("commands", what, self.problems)?;
        let absent = self
            .fields
            .require("absent", what, self.problems)
            .and_then(|_| self.word("absent", &[("stale", true), ("valid", false)]))?;
        let (commands, mut sweep) = (self.texts("commands"), self.texts("sweep"));
        let place = self.fields.place.clone();
        if sweep.is_empty() && absent {
            sweep.push((place.clone(), "KEYS".into()));
        }
        if sweep.is_empty() {
            let message = "where an absent tag is valid, its key cannot be found by a sweep: `sweep` says what can";
            self.problems.push(
                place
                    .error("option", message)
                    .help("KEYS, TAGS tag, INDEX hash, RECORDS head, ENTRIES head record, or NONE"),
            );
            return None;
        }
        let (mut steps, mut reach) = (Vec::new(), Reach::default());
        for (place, line) in &commands {
            match Step::parse(line, &|_| None) {
                Ok(step) => steps.push(step),
                Err(sentence) => self.problems.push(place.error("option", sentence)),
            }
        }
        for (place, line) in &sweep {
            if let Err(sentence) = reach.take(line, &|_| None) {
                self.problems.push(place.error("option", sentence));
            }
        }
        let open = steps.iter().any(|step| step.action == Action::Scan);
        self.own_records(&reach, open).then_some((steps, reach))
    }
}
