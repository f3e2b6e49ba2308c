//! `waltag invalidate`: tags made stale by hand, by the commands that the daemon sends.

use super::{cache_named, load, show};
use crate::cache::Cache;
use crate::cache::command::{Draw, commands};
use crate::cache::connection::Error;
use crate::cache::exchange::{Replies, exchange};
use crate::cache::gap::Keys;
use crate::cache::masters;
use crate::cache::pattern::Pattern;
use crate::cache::sweep::{Pace, sweep};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Environment, Settings};

/// Makes `tags` stale in the named cache, else the default cache, else all.
pub async fn invalidate(
    settings: &Settings,
    environment: &Environment,
    cache: Option<&str>,
    tags: &[String],
) -> Result<(), Failure> {
    // Often a variable that was not set; as a prefix it would be every key.
    if tags.iter().any(String::is_empty) {
        return Err(Failure::new(Exit::Usage, "a tag must not be empty"));
    }
    let rules = load(settings, environment)?;
    let chosen: Vec<_> = match (cache, rules.default_cache()) {
        (Some(name), _) => rules.caches.get(cache_named(&rules, name)?).into_iter().collect(),
        (None, Some(index)) => rules.caches.get(index).into_iter().collect(),
        (None, None) => rules.caches.iter().collect(),
    };
    let mut failure = None;
    for cache in chosen {
        match send(cache, tags).await {
            Ok(()) => {
                let count = if tags.len() == 1 { "1 tag".into() } else { format!("{} tags", tags.len()) };
                show(format_args!("{}: {count} made stale", cache.name));
            }
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

async fn send(cache: &Cache, tags: &[String]) -> Result<(), Error> {
    let mut masters = masters::open(cache, None).await?;
    let list = tags.iter().enumerate().flat_map(|(number, tag)| {
        commands(cache, tag.as_bytes(), Draw::new(cache)).map(move |command| (number, command))
    });
    let mut replies = Replies::default();
    exchange(cache, &mut masters, Vec::new(), list.collect(), &mut replies).await?;
    replies.all_answered()?;
    let passed_over = replies.futile.map(|futile| futile.1);
    if let Some(error) = replies.refusal.map(|refusal| *refusal).or(passed_over) {
        return Err(error);
    }
    let patterns = tags.iter().flat_map(|tag| Pattern::of_tag(cache, tag.as_bytes())).collect();
    sweep(cache, &Keys { patterns, ..Keys::default() }, Pace::default()).await.map(|_| ())
}
