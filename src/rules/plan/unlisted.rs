//! What goes stale in place of tags that cannot be listed.

use super::writing::plain;
use crate::cache::Cache;
use crate::cache::gap::{Keys, Scope};
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
            Some((_, Unknown::Everything)) => Bound::Sweep(Scope::everything()),
            Some((_, Unknown::Pattern)) | None => {
                let keys = tag.keys(cache, table, type_of);
                Bound::Sweep(if keys == Keys::default() { Scope::everything() } else { Scope::of(keys) })
            }
        }
    }
}
