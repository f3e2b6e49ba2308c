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
    /// Those that hold its rows, with their files.
    pub files: Vec<(u32, u32)>,
}

impl Fingerprint {
    /// The same but for files that a TRUNCATE replaced, which the stream told of.
    fn is_same(&self, before: &Fingerprint, truncated: &HashSet<u32>) -> bool {
        let pairs = self.files.iter().zip(&before.files);
        let same =
            |(new, old): (&(u32, u32), &(u32, u32))| new == old || (new.0 == old.0 && truncated.contains(&new.0));
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

    /// What `before` (the text of a marker) did not cover.
    pub fn beyond(&self, before: &str) -> Option<Gap> {
        let mut words = before.split(' ');
        if words.next() != Some(self.options.as_str()) {
            return Some(Gap::new("options", "the options of this cache have changed"));
        }
        let known: HashSet<&str> = words.collect();
        let ids: HashSet<&str> = known.iter().filter_map(|word| Some(word.split_once('.')?.0)).collect();
        self.gap(|template| match (known.contains(template.word().as_str()), ids.contains(template.id.as_str())) {
            (true, _) => News::None,
            (false, true) => News::Table,
            (false, false) => News::Template,
        })
    }

    /// What `before` did not cover, while running: a TRUNCATE that the stream told of is no news.
    pub fn since(&self, before: &Coverage, truncated: &HashSet<u32>) -> Option<Gap> {
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
        let patterns: HashSet<_> = new.iter().flat_map(|(template, _)| &template.keys.patterns).collect();
        let tags: HashSet<_> = new.iter().flat_map(|(template, _)| &template.keys.tags).collect();
        let (patterns, tags) = (patterns.into_iter().cloned().collect(), tags.into_iter().cloned().collect());
        let keys = Keys { patterns, tags };
        Some(Gap { code, sentence, scope: Scope::Some(keys) })
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
        format!("{}.{}", self.id, id(&format!("{:?}", self.table)))
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

    fn coverage(options: &str, templates: &[&str]) -> Coverage {
        let table = Fingerprint { shape: String::new(), files: vec![(1, 1)] };
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
        assert_eq!(coverage("p", &["a"]).beyond(&before).unwrap().scope, Scope::Everything);
        let (mut rewritten, whole) = (coverage("o", &["a", "b"]), coverage("o", &["a", "b"]));
        rewritten.templates[0].table.files = vec![(1, 2)];
        assert_eq!(rewritten.beyond(&before).unwrap().code, "catalog");
        assert_eq!(rewritten.since(&whole, &HashSet::new()).unwrap().code, "catalog");
        assert_eq!(rewritten.since(&whole, &HashSet::from([1])), None, "a TRUNCATE that the stream told of");
        rewritten.templates[0].table.files = vec![(1, 1), (2, 2)];
        assert!(rewritten.since(&whole, &HashSet::from([1])).is_some(), "a partition that was attached");
        assert_eq!(coverage("o", &[]).beyond(&coverage("o", &[]).text()), None);
    }
}
