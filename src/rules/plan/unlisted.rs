//! What goes stale in place of tags that cannot be listed.

use super::writing::plain;
use crate::cache::Cache;
use crate::cache::gap::{Keys, Scope};
use crate::cache::pattern::Pattern;
use crate::rules::Tag;
use crate::rules::options::Unknown;
use crate::rules::tables::TableName;

/// `unknown:` of a tag, bound to a cache and a table.
pub(super) enum Bound {
    Sweep(Scope),
    Tags(Vec<Vec<u8>>),
}

impl Bound {
    pub(super) fn of(tag: &Tag, cache: &Cache, table: &TableName, type_of: impl Fn(&str) -> Option<u32>) -> Bound {
        match &tag.unknown {
            Some((_, Unknown::Tags(templates))) => {
                Bound::Tags(templates.iter().map(|(_, template)| plain(template, table)).collect())
            }
            Some((_, Unknown::Everything)) => Bound::Sweep(Scope::Everything),
            Some((_, Unknown::Pattern)) | None => {
                let hashed: Vec<Pattern> = cache.keys.iter().filter_map(Pattern::of_formula).collect();
                let pattern = match hashed.is_empty() {
                    true => Pattern::of_template(&tag.template, cache, tag.style, table, type_of),
                    false => None,
                };
                Bound::Sweep(pattern.map_or(Scope::Everything, |pattern| {
                    Scope::Some(Keys { patterns: vec![pattern], tags: Vec::new() })
                }))
            }
        }
    }
}
