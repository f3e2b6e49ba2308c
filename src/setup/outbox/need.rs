//! What the rules need of the changes of a relation.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::rules::events::{EVENTS, Event};
use crate::rules::tables::TableName;
use crate::rules::{Rules, Tag};
use crate::setup::catalog::Column;
use crate::setup::verify::columns_of;

/// Goes up when a function is written otherwise: those that are there are replaced.
const FORM: u32 = 3;

/// What a trigger function writes down. It is remembered in the function's comment, to be compared with what is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// [`FORM`] of the function.
    pub form: u32,
    /// Kinds of changes.
    pub events: BTreeSet<String>,
    /// Columns that are written down.
    pub columns: BTreeSet<String>,
    /// Those are all that there are: `rows: true`.
    pub whole: bool,
    /// Columns that `ignore` and `only` name: of those an update says whether they changed.
    pub watched: BTreeSet<String>,
    /// Which changes make an update count; nothing: every update does.
    pub counts: Option<Counts>,
    /// The writers wake the daemon.
    pub notifies: bool,
}

/// Changes that make an update count for some rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Those of columns that are not watched.
    pub rest: bool,
    /// Those of these watched columns.
    pub columns: BTreeSet<String>,
}

impl Need {
    /// Of the rules of `tables`, for a relation with these columns.
    pub fn of(rules: &Rules, tables: &BTreeSet<TableName>, columns: &[Column], notifies: bool) -> Need {
        let mut need = Need { form: FORM, notifies, counts: Some(Counts::default()), ..Need::default() };
        let rules: Vec<_> = tables.iter().flat_map(|table| rules.of_table(table)).collect();
        for (rule, tag) in rules.iter().flat_map(|rule| rule.tags.iter().map(move |tag| (rule, tag))) {
            let events = EVENTS.iter().filter(|(event, _)| tag.events.contains(*event));
            need.events.extend(events.map(|(_, name)| (*name).to_owned()));
            need.whole |= tag.template.is_row();
            need.watched.extend(tag.changes.iter().flat_map(|changes| &changes.columns).map(|(_, name)| name.clone()));
            columns_of(rule, tag, false, |_, column| need.columns.extend([column.to_owned()]));
        }
        if need.whole {
            need.columns =
                columns.iter().filter(|column| !column.generated).map(|column| column.name.clone()).collect();
        }
        for tag in rules.iter().flat_map(|rule| &rule.tags) {
            need.counts = need.counts.take().and_then(|counts| counts.and(tag, &need.watched));
        }
        need
    }

    /// Is everything written down that `other` needs? A column that is gone and that the rules still name is theirs to tell; one that they
    /// do not name would make every change of the table a sweep.
    pub fn covers(&self, other: &Need, columns: &[Column]) -> bool {
        let there = |name: &String| columns.iter().any(|column| column.name == *name && !column.generated);
        let named = |name: &String| other.columns.contains(name) || other.watched.contains(name);
        self.columns.iter().chain(&self.watched).all(|name| there(name) || named(name))
            && self.events.is_superset(&other.events)
            && (!other.whole || self.columns == other.columns)
            && self.columns.is_superset(&other.columns)
            && self.watched.is_superset(&other.watched)
            && self.counts_what_counts(other)
    }

    fn counts_what_counts(&self, other: &Need) -> bool {
        let (own, wanted) = match (&self.counts, &other.counts) {
            (None, _) => return true,
            (Some(_), None) => return false,
            (Some(own), Some(wanted)) => (own, wanted),
        };
        let mut more = self.watched.difference(&other.watched);
        let rest = !wanted.rest || (own.rest && more.all(|name| own.columns.contains(name)));
        rest && own.columns.is_superset(&wanted.columns)
    }
}

impl Counts {
    /// With what counts for one more tag; nothing if every update does. A tag with several lists passes all of them, so one will do.
    fn and(mut self, tag: &Tag, watched: &BTreeSet<String>) -> Option<Counts> {
        if !tag.events.contains(Event::Update) {
            return Some(self);
        }
        let changes = tag.changes.first()?;
        let named: BTreeSet<String> = changes.columns.iter().map(|(_, name)| name.clone()).collect();
        self.rest |= !changes.only;
        self.columns.extend(watched.iter().filter(|name| named.contains(*name) == changes.only).cloned());
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::expand::Surroundings;

    fn need(tags: &str) -> Need {
        let text = format!(
            "{{version: 1, caches: {{c: {{url: 'redis://h', dialect: keys}}}}, rules: [{{table: t, {tags}}}]}}"
        );
        let rules = Rules::parse(vec![("r.yaml".into(), text.into())], &Surroundings::new(&|_| None, None)).unwrap();
        let table = TableName { schema: "public".into(), name: "t".into() };
        let column = |name: &str| Column { name: name.into(), generated: false, type_oid: 25 };
        let columns = ["id", "a", "b", "c"].map(column);
        Need::of(&rules, &BTreeSet::from([table]), &columns, true)
    }

    /// A trigger that was made for other rules will do if it skips no update that these look at.
    #[test]
    fn what_covers_what() {
        let columns = ["id", "a", "b", "c"].map(|name| Column { name: name.into(), generated: false, type_oid: 25 });
        let all = need("tags: ['t:<id>:<a>:<b>:<c>']");
        let ignoring = need("ignore: [a], tags: ['t:<id>']");
        let ignoring_two = need("ignore: [a, b], tags: ['t:<id>']");
        let only = need("only: [a], tags: ['t:<id>']");
        let both = need("tags: ['t:<id>', {tag: 'u:<id>', only: [a]}]");
        assert_eq!(ignoring_two.counts, Some(Counts { rest: true, columns: BTreeSet::new() }));
        assert_eq!(only.counts, Some(Counts { rest: false, columns: BTreeSet::from(["a".into()]) }));
        assert_eq!(both.counts, None, "some rule looks at every update");
        for (there, wanted, will_do) in [
            (&ignoring, &ignoring, true),
            (&ignoring_two, &ignoring, false),
            (&ignoring, &ignoring_two, false),
            (&only, &ignoring, false),
            (&ignoring, &only, false),
            (&both, &only, true),
            (&all, &need("tags: ['t:<a>']"), true),
            (&ignoring, &all, false),
            (&need("events: [insert], tags: ['t:<id>']"), &need("tags: ['t:<id>']"), false),
        ] {
            assert_eq!(there.covers(wanted, &columns), will_do, "{there:?}\n{wanted:?}");
        }
        assert!(!all.covers(&need("tags: ['t:<id>']"), &columns[..3]), "`c` is gone, and no rule says so");
        assert!(all.covers(&all, &columns[..3]), "`c` is gone, which the rules tell");
    }
}
