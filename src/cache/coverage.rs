//! What the rules make stale in one cache: compared with what the marker says that the rules covered when it was written.
//! A template that is new, or whose table is published only now, has missed changes; so has every key of a cache whose
//! options changed.

use std::collections::{HashMap, HashSet};

use super::gap::{CATALOG, Gap, Keys, RULES, Scope};

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
    /// Stands for what changes when it bore another name for a moment, or another table its own, ...
    pub named: String,
    /// ... and for what explains that harmlessly, because it changes as well: another owner, other grants, a column more or less.
    pub granted: String,
    /// Those that hold its rows, sorted.
    pub files: Vec<Held>,
}

/// A relation that holds rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Its number.
    pub relation: u32,
    /// That of its file: another one after a rewrite, after a TRUNCATE, and after VACUUM FULL.
    pub file: u32,
    /// Stands for what a rewrite changes besides, and the others do not.
    pub columns: String,
    /// Nothing else can have changed its rows without a word.
    pub kept: bool,
}

/// Relations that were emptied.
pub type Truncated = HashSet<u32>;

impl Held {
    /// Does it have the rows that it had before, as far as the stream has not told? A TRUNCATE that it told of explains another file.
    fn is_same(&self, before: &Held, truncated: &Truncated) -> bool {
        let explained = || self.columns == before.columns && (self.kept || truncated.contains(&self.relation));
        self.relation == before.relation && (self.file == before.file || explained())
    }
}

impl Fingerprint {
    /// Those that hold the rows belong to it: one that was attached brings rows that nobody was told of.
    fn shape_id(&self) -> String {
        let members: Vec<u32> = self.files.iter().map(|held| held.relation).collect();
        id(&format!("{} {members:?}", self.shape))
    }

    fn columns_id(&self) -> String {
        let columns: Vec<&str> = self.files.iter().map(|held| held.columns.as_str()).collect();
        id(&columns.join(" "))
    }

    fn files_id(&self) -> String {
        let files: Vec<(u32, u32)> = self.files.iter().map(|held| (held.relation, held.file)).collect();
        id(&format!("{files:?}"))
    }

    /// Did everybody who read it by its name read this one?
    fn is_named_so(&self, named: &str, granted: &str) -> bool {
        self.named == named || self.granted != granted
    }

    fn is_same(&self, before: &Fingerprint, truncated: &Truncated) -> bool {
        let pairs = self.files.iter().zip(&before.files);
        let same = |(new, old): (&Held, &Held)| new.is_same(old, truncated);
        let named = self.is_named_so(&before.named, &before.granted);
        named && self.shape == before.shape && self.files.len() == before.files.len() && pairs.into_iter().all(same)
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
        let known = known(words);
        self.gap(|template| match known.get(template.id.as_str()) {
            Some([shape, named, granted, columns, files]) => {
                let table = &template.table;
                let kept = *files == table.files_id() || *columns == table.columns_id();
                let same = *shape == table.shape_id() && table.is_named_so(named, granted);
                if same && kept { News::None } else { News::Table }
            }
            None => News::Template,
        })
    }

    /// The templates whose tables have other files than `before` says and are the same otherwise: emptied by a TRUNCATE that is still to come
    /// in the stream, or changed while nobody looked.
    pub fn doubts(&self, before: &str) -> Coverage {
        let known = known(before.split(' '));
        let differs = |template: &&Covered| {
            let table = &template.table;
            let sure = table.files.iter().all(|held| held.kept);
            !sure && known.get(template.id.as_str()).is_some_and(|[.., files]| *files != table.files_id())
        };
        Coverage { templates: self.templates.iter().filter(differs).cloned().collect(), ..Coverage::default() }
    }

    /// What no TRUNCATE explains. Which of several files changed is not known, so each of them must have been emptied, or be one that
    /// nothing else changes without a word.
    pub fn unexplained(&self, truncated: &Truncated) -> Option<Gap> {
        let explained = |held: &Held| held.kept || truncated.contains(&held.relation);
        self.gap(|template| match template.table.files.iter().all(explained) {
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
            News::Table => (CATALOG, format!("the table behind {list} was replaced, rewritten or published anew")),
            _ => (RULES, format!("the rules cover {list} from now on")),
        };
        let patterns = new.iter().flat_map(|(template, _)| template.keys.patterns.iter().cloned()).collect();
        let tags = new.iter().flat_map(|(template, _)| template.keys.tags.iter().cloned()).collect();
        let keys = Keys { patterns, tags };
        Some(Gap { code, sentence, scope: Scope::of(keys) })
    }
}

/// The templates of a marker's text: shape, names, grants, columns and files of the table behind each.
fn known<'a>(words: impl Iterator<Item = &'a str>) -> HashMap<&'a str, [&'a str; 5]> {
    let word = |word: &'a str| {
        let mut parts = word.split('.');
        let id = parts.next()?;
        let mut part = || parts.next();
        Some((id, [part()?, part()?, part()?, part()?, part()?]))
    };
    words.filter_map(word).collect()
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
        let table = &self.table;
        let (shape, columns, files) = (table.shape_id(), table.columns_id(), table.files_id());
        format!("{}.{shape}.{}.{}.{columns}.{files}", self.id, table.named, table.granted)
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

    fn held() -> Held {
        Held { relation: 1, file: 1, columns: "a".into(), kept: false }
    }

    fn coverage(options: &str, templates: &[&str]) -> Coverage {
        let table =
            Fingerprint { named: "n".into(), granted: "g".into(), files: vec![held()], ..Fingerprint::default() };
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
        assert_eq!(coverage("o", &[]).beyond(&coverage("o", &[]).text()), None);
        assert_eq!(
            coverage("o", &["a"]).beyond(&format!("o {}.1.2", id("a"))).unwrap().code,
            "rules",
            "an older format"
        );
    }

    /// What the catalog shows of one relation, whether a TRUNCATE was told, and whether that is a gap while running, at the start, and at the
    /// start once everything has arrived.
    #[test]
    fn what_another_file_means() {
        let (whole, emptied) = (coverage("o", &["a"]), HashSet::from([1]));
        let nothing = HashSet::new();
        let kept = Held { kept: true, ..held() };
        let cases = [
            ("TRUNCATE", Held { file: 2, ..held() }, &emptied, false, false, false),
            ("a file that nothing explains", Held { file: 2, ..held() }, &nothing, true, false, true),
            (
                "VACUUM FULL, and nothing else can be it",
                Held { file: 2, ..kept.clone() },
                &nothing,
                false,
                false,
                false,
            ),
            ("a rewrite", Held { file: 2, columns: "b".into(), ..kept.clone() }, &nothing, true, true, false),
            (
                "a rewrite behind a TRUNCATE",
                Held { file: 2, columns: "b".into(), ..held() },
                &emptied,
                true,
                true,
                false,
            ),
            ("a new default", Held { columns: "b".into(), ..kept }, &nothing, false, false, false),
        ];
        for (name, held, truncated, running, at_once, later) in cases {
            let mut now = coverage("o", &["a"]);
            now.templates[0].table.files = vec![held];
            assert_eq!(now.since(&whole, truncated).is_some(), running, "{name}");
            assert_eq!(now.beyond(&whole.text()).is_some(), at_once, "{name}");
            assert_eq!(now.doubts(&whole.text()).unexplained(truncated).is_some() && !at_once, later, "{name}");
        }
        // Another name for a moment, and other grants.
        for (named, granted, gap) in [("m", "g", true), ("m", "h", false), ("n", "h", false)] {
            let mut now = coverage("o", &["a"]);
            (now.templates[0].table.named, now.templates[0].table.granted) = (named.into(), granted.into());
            assert_eq!(now.since(&whole, &emptied).is_some(), gap, "{named} {granted}");
            assert_eq!(now.beyond(&whole.text()).is_some(), gap, "{named} {granted}");
        }
        let mut attached = coverage("o", &["a"]);
        attached.templates[0].table.files.push(Held { relation: 2, ..held() });
        assert!(attached.since(&whole, &emptied).is_some() && attached.beyond(&whole.text()).is_some());
    }
}
