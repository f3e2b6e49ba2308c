//! Tags that somebody names in SQL, within a transaction: `select waltag.invalidate('Report.all')`. Any role can put such a message into the
//! log, so nothing in it is believed but texts: they become tags, whatever they are.

use serde::Deserialize;

use crate::metrics::Metrics;
use crate::rules::Rules;
use crate::tags::Stale;

/// More than this is refused by `waltag.invalidate`, and passed over if it comes all the same.
const LONGEST: usize = 64 << 10;

/// What `waltag.invalidate` and `waltag.invalidate_in` write.
#[derive(Deserialize)]
struct Said {
    tags: Vec<String>,
    /// Where; otherwise in the default cache, or in all.
    cache: Option<String>,
}

/// Adds the tags. Bad content is counted and passed over: it must not stop the stream.
pub(super) fn take(content: &[u8], rules: &Rules, stale: &mut [Stale], metrics: &Metrics) {
    // The nudge of an older server is one, too.
    if content == b"nudge" {
        return;
    }
    if let Err(reason) = add(content, rules, stale) {
        metrics.spurned.inc();
        tracing::warn!("a message of the prefix `waltag` is passed over: {reason}");
    }
}

/// The same; nothing is added if it says why not.
pub fn add(content: &[u8], rules: &Rules, stale: &mut [Stale]) -> Result<(), String> {
    if content.len() > LONGEST {
        return Err(format!("{} bytes are more than {LONGEST}", content.len()));
    }
    let Said { tags, cache } = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    let cache = match cache {
        Some(name) => {
            let index = rules.caches.iter().position(|cache| cache.name == name);
            Some(index.ok_or_else(|| format!("there is no cache `{name}`"))?)
        }
        None => rules.default_cache(),
    };
    for (index, stale) in stale.iter_mut().enumerate() {
        if cache.is_none_or(|cache| cache == index) {
            for tag in tags.iter().filter(|tag| !tag.is_empty()) {
                stale.tags.insert(tag.as_bytes());
            }
        }
    }
    Ok(())
}
