//! What the rules make stale in one cache: compared with what the marker says that the rules covered when it was written.
//! A template that is new, or whose table is published only now, has missed changes; so has every key of a cache whose
//! options changed.

use super::gap::{Gap, Scope};
use super::pattern::Pattern;

/// The templates of one cache whose tables are published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Stands for the options that decide about keys and values.
    pub options: String,
    /// Everything that a sweep can reach.
    pub reach: Vec<Pattern>,
    /// Each template.
    pub templates: Vec<Covered>,
    /// Templates whose keys could be any, or cannot be found.
    pub unreachable: Vec<String>,
}

/// A template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Stands for table, text and events.
    pub id: String,
    /// The text, for messages.
    pub text: String,
    /// Its keys, as far as they can be found.
    pub patterns: Vec<Pattern>,
}

impl Coverage {
    /// As it stands in the marker: the options, then each template.
    pub fn text(&self) -> String {
        let mut ids: Vec<&str> = self.templates.iter().map(|template| template.id.as_str()).collect();
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
        let known: Vec<&str> = words.collect();
        let new: Vec<&Covered> =
            self.templates.iter().filter(|template| !known.contains(&template.id.as_str())).collect();
        let (first, more) = (new.first()?, new.len() - 1);
        let sentence = match more {
            0 => format!("the rules cover `{}` from now on", first.text),
            _ => format!("the rules cover `{}` and {more} more templates from now on", first.text),
        };
        let patterns = new.iter().flat_map(|template| template.patterns.iter().cloned()).collect();
        Some(Gap { code: "rules", sentence, scope: Scope::Keys(patterns) })
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
        let covered = |text: &&str| Covered { id: id(text), text: (*text).to_owned(), patterns: Vec::new() };
        Coverage { options: options.into(), templates: templates.iter().map(covered).collect(), ..Coverage::default() }
    }

    #[test]
    fn what_is_new() {
        let before = coverage("o", &["a", "b"]).text();
        assert_eq!(coverage("o", &["b", "a"]).beyond(&before), None);
        assert_eq!(coverage("o", &["a"]).beyond(&before), None, "less is no gap");
        let gap = coverage("o", &["a", "c", "d"]).beyond(&before).unwrap();
        assert_eq!(
            (gap.code, gap.sentence.as_str()),
            ("rules", "the rules cover `c` and 1 more templates from now on")
        );
        assert_eq!(coverage("p", &["a"]).beyond(&before).unwrap().scope, Scope::Everything);
        assert_eq!(coverage("o", &[]).beyond(&coverage("o", &[]).text()), None);
    }
}
