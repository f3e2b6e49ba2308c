//! What the rules make stale in one cache: compared with what the marker says that the rules covered when it was written.
//! A template that is new, or whose table is published only now, has missed changes; so has every key of a cache whose
//! options changed.

use std::collections::{HashMap, HashSet};

use super::gap::{Gap, Keys, Scope};

/// The templates of one cache whose tables are published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Stands for the options that decide about keys and values.
    pub options: String,
    /// Everything that a sweep can reach.
    pub reach: Keys,
    /// Each template.
    pub templates: Vec<Covered>,
    /// Templates whose keys could be any, or cannot be found.
    pub unreachable: Vec<String>,
}

/// A table as the catalog has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Its number, its columns, how it is published.
    pub shape: String,
    /// Those that hold its rows, sorted.
    pub files: Vec<Held>,
}

/// A relation that holds rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Its number.
    pub relation: u32,
    /// That of its file: another one after a rewrite, and after a TRUNCATE.
    pub file: u32,
    /// The transaction that wrote this into the catalog.
    pub writer: u32,
}

/// Relations that were emptied, each with the transaction.
pub type Truncated = HashSet<(u32, u32)>;

impl Held {
    /// Did a TRUNCATE that the stream told of give it this file, and nothing after it another?
    fn was_emptied(&self, truncated: &Truncated) -> bool {
        truncated.contains(&(self.relation, self.writer))
    }
}

impl Fingerprint {
    /// Those that hold the rows belong to it: one that was attached brings rows that nobody was told of.
    fn shape_id(&self) -> String {
        let members: Vec<u32> = self.files.iter().map(|held| held.relation).collect();
        id(&format!("{} {members:?}", self.shape))
    }

    fn files_id(&self) -> String {
        let files: Vec<(u32, u32)> = self.files.iter().map(|held| (held.relation, held.file)).collect();
        id(&format!("{files:?}"))
    }

    /// The same but for files that a TRUNCATE replaced, which the stream told of.
    fn is_same(&self, before: &Fingerprint, truncated: &Truncated) -> bool {
        let pairs = self.files.iter().zip(&before.files);
        let same = |(new, old): (&Held, &Held)| {
            new.relation == old.relation && (new.file == old.file || new.was_emptied(truncated))
        };
        self.shape == before.shape && self.files.len() == before.files.len() && pairs.into_iter().all(same)
    }
}

/// A template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Stands for table, text and events.
    pub id: String,
    /// The table behind it.
    pub table: Fingerprint,
    /// The text, for messages.
    pub text: String,
    /// Its keys, as far as they can be found.
    pub keys: Keys,
}

impl Coverage {
    /// As it stands in the marker: the options, then each template.
    pub fn text(&self) -> String {
        let mut ids: Vec<String> = self.templates.iter().map(Covered::word).collect();
        ids.sort_unstable();
        ids.dedup();
        format!("{} {}", self.options, ids.join(" "))
    }

    /// What `before` (the text of a marker) did not cover. Of tables that have other files and are the same otherwise nothing is said:
    /// see [`Coverage::doubts`].
    pub fn beyond(&self, before: &str) -> Option<Gap> {
        let mut words = before.split(' ');
        if words.next() != Some(self.options.as_str()) {
            return Some(Gap::new("options", "the options of this cache have changed"));
        }
        let known: HashMap<&str, &str> = words.filter_map(|word| word.split_once('.')).collect();
        self.gap(|template| match known.get(template.id.as_str()).and_then(|table| table.split_once('.')) {
            Some((shape, _)) if shape == template.table.shape_id() => News::None,
            Some(_) => News::Table,
            None => News::Template,
        })
    }

    /// The templates whose tables have other files than `before` says: rewritten, or emptied by a TRUNCATE that is still to come in the
    /// stream.
    pub fn doubts(&self, before: &str) -> Coverage {
        let known: HashMap<&str, &str> = before.split(' ').filter_map(|word| word.split_once('.')).collect();
        let differs = |template: &&Covered| {
            let table = known.get(template.id.as_str()).and_then(|table| table.split_once('.'));
            table.is_some_and(|(shape, files)| shape == template.table.shape_id() && files != template.table.files_id())
        };
        Coverage { templates: self.templates.iter().filter(differs).cloned().collect(), ..Coverage::default() }
    }

    /// What no TRUNCATE explains. Which of several files changed is not known, so each of them must have been emptied.
    pub fn unexplained(&self, truncated: &Truncated) -> Option<Gap> {
        self.gap(|template| match template.table.files.iter().all(|held| held.was_emptied(truncated)) {
            true => News::None,
            false => News::Table,
        })
    }

    /// What `before` did not cover, while running: a TRUNCATE that the stream told of is no news.
    pub fn since(&self, before: &Coverage, truncated: &Truncated) -> Option<Gap> {
        let known: HashMap<&str, &Fingerprint> =
            before.templates.iter().map(|template| (template.id.as_str(), &template.table)).collect();
        self.gap(|template| match known.get(template.id.as_str()) {
            Some(table) if template.table.is_same(table, truncated) => News::None,
            Some(_) => News::Table,
            None => News::Template,
        })
    }

    fn gap(&self, news: impl Fn(&Covered) -> News) -> Option<Gap> {
        let new: Vec<(&Covered, News)> = self
            .templates
            .iter()
            .map(|template| (template, news(template)))
            .filter(|(_, news)| *news != News::None)
            .collect();
        let ((first, kind), more) = (new.first()?, new.len() - 1);
        let list = match more {
            0 => format!("`{}`", first.text),
            1 => format!("`{}` and 1 more template", first.text),
            _ => format!("`{}` and {more} more templates", first.text),
        };
        let (code, sentence) = match kind {
            News::Table => ("catalog", format!("the table behind {list} was replaced, rewritten or published anew")),
            _ => ("rules", format!("the rules cover {list} from now on")),
        };
        let patterns = new.iter().flat_map(|(template, _)| template.keys.patterns.iter().cloned()).collect();
        let tags = new.iter().flat_map(|(template, _)| template.keys.tags.iter().cloned()).collect();
        let keys = Keys { patterns, tags };
        Some(Gap { code, sentence, scope: Scope::of(keys) })
    }
}

/// What is new about a template.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    Template,
    Table,
}

impl Covered {
    /// As it stands in the marker.
    fn word(&self) -> String {
        format!("{}.{}.{}", self.id, self.table.shape_id(), self.table.files_id())
    }
}

/// A short name for what must not change unnoticed: 48 bits.
pub fn id(of: &str) -> String {
    use md5::{Digest, Md5};
    Md5::digest(of.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Held = Held { relation: 1, file: 1, writer: 1 };

    fn coverage(options: &str, templates: &[&str]) -> Coverage {
        let table = Fingerprint { shape: String::new(), files: vec![HELD] };
        let covered = |text: &&str| Covered {
            id: id(text),
            table: table.clone(),
            text: (*text).to_owned(),
            keys: Keys::default(),
        };
        Coverage { options: options.into(), templates: templates.iter().map(covered).collect(), ..Coverage::default() }
    }

    #[test]
    fn what_is_new() {
        let before = coverage("o", &["a", "b"]).text();
        assert_eq!(coverage("o", &["b", "a"]).beyond(&before), None);
        assert_eq!(coverage("o", &["a"]).beyond(&before), None, "less is no gap");
        let gap = coverage("o", &["a", "c", "d"]).beyond(&before).unwrap();
        assert_eq!((gap.code, gap.sentence.as_str()), ("rules", "the rules cover `c` and 1 more template from now on"));
        assert_eq!(coverage("p", &["a"]).beyond(&before).unwrap().scope, Scope::everything());
        let (mut rewritten, whole) = (coverage("o", &["a", "b"]), coverage("o", &["a", "b"]));
        rewritten.templates[0].table.files = vec![Held { file: 2, writer: 9, ..HELD }];
        assert_eq!((rewritten.beyond(&before), whole.doubts(&before).templates.len()), (None, 0));
        let doubts = rewritten.doubts(&before);
        assert_eq!((doubts.templates.len(), doubts.unexplained(&HashSet::from([(1, 9)]))), (1, None));
        assert_eq!(doubts.unexplained(&HashSet::from([(1, 8)])).unwrap().code, "catalog");
        assert_eq!(rewritten.since(&whole, &HashSet::new()).unwrap().code, "catalog");
        assert_eq!(rewritten.since(&whole, &HashSet::from([(1, 9)])), None, "a TRUNCATE that the stream told of");
        rewritten.templates[0].table.files = vec![HELD, Held { relation: 2, ..HELD }];
        assert!(rewritten.since(&whole, &HashSet::from([(1, 9)])).is_some(), "a partition that was attached");
        assert_eq!(rewritten.beyond(&before).unwrap().code, "catalog");
        assert_eq!(coverage("o", &[]).beyond(&coverage("o", &[]).text()), None);
    }
}
