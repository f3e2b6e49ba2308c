//! `waltag invalidate`: tags made stale by hand, by the commands that the daemon sends.

use redis::Value;

use super::{cache_named, load, show};
use crate::cache::Cache;
use crate::cache::command::{commands, new_version};
use crate::cache::connection::{self, Error};
use crate::failure::Failure;
use crate::settings::{Environment, Settings};

/// Makes `tags` stale in the named cache, else the default cache, else all.
pub async fn invalidate(
    settings: &Settings,
    environment: &Environment,
    cache: Option<&str>,
    tags: &[String],
) -> Result<(), Failure> {
    let rules = load(settings, environment)?;
    rules.refuse_planned()?;
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
    let mut connection = connection::open(cache).await?;
    let mut pipeline = redis::pipe();
    pipeline.ignore_errors();
    for tag in tags {
        for command in commands(cache, tag.as_bytes(), new_version()) {
            pipeline.add_command(command.pack());
        }
    }
    let replies: Vec<Value> = pipeline.query_async(&mut connection).await.map_err(|error| Error::new(cache, &error))?;
    let refused = replies.into_iter().find_map(|reply| match reply {
        Value::ServerError(error) => Some(Error::reply(cache, error)),
        _ => None,
    });
    refused.map_or(Ok(()), Err)
}
