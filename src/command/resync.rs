//! `waltag resync`: everything stale that the rules reach, on request, beside a running daemon or without one.

use std::time::Duration;

use super::{cache_named, load, session, show, table_named};
use crate::cache::connection::Error as CacheError;
use crate::cache::sweep::{Pace, sweep};
use crate::failure::Failure;
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::settings::{Environment, Settings};
use crate::setup::catalog::{self, Catalog};
use crate::source::replication::error::Error;

/// Sweeps the caches; again after the longest `repeat` of each, for readers that were computing.
pub async fn resync(
    settings: &Settings,
    environment: &Environment,
    cache: Option<&str>,
    table: Option<&str>,
    dry_run: bool,
) -> Result<(), Failure> {
    let rules = load(settings, environment)?;
    let table = table.map(|text| table_named(&rules, text)).transpose()?;
    let chosen = chosen(&rules, cache)?;
    // The types of the columns say which keys a template can have rendered.
    let (session, endpoint) = session(settings).await?;
    let read = catalog::read(&session, &rules, &settings.names).await;
    let catalog = read.map_err(|error| Error::session("reading the catalog", &endpoint.to_string(), &error))?;
    let pace = Pace { rate: settings.resync_rate, dry_run };
    let mut failure = None;
    for index in chosen {
        if let Err(error) = one(&rules, index, table.as_ref(), &catalog, pace).await {
            failure = Some(error);
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

async fn one(
    rules: &Rules,
    index: usize,
    table: Option<&TableName>,
    catalog: &Catalog,
    pace: Pace,
) -> Result<(), CacheError> {
    let Some(cache) = rules.caches.get(index) else { return Ok(()) };
    let type_of = |table: &TableName, column: &str| catalog.type_of(table, column);
    let (keys, unreachable) = rules.reach(index, table, catalog.tables.keys(), type_of);
    for template in unreachable {
        tracing::warn!(cache = cache.name, template, "a sweep cannot reach the keys of this template");
    }
    let swept = sweep(cache, &keys, pace).await?;
    if pace.dry_run {
        show(format_args!("{}: {swept} keys would be made stale", cache.name));
        return Ok(());
    }
    show(format_args!("{}: {swept} keys made stale", cache.name));
    let again = cache.repeat.last().copied().unwrap_or(Duration::ZERO);
    if !again.is_zero() {
        tokio::time::sleep(again).await;
        let swept = sweep(cache, &keys, pace).await?;
        show(format_args!("{}: {swept} keys once more, after {again:?}", cache.name));
    }
    Ok(())
}

fn chosen(rules: &Rules, cache: Option<&str>) -> Result<Vec<usize>, Failure> {
    let Some(name) = cache else { return Ok((0..rules.caches.len()).collect()) };
    cache_named(rules, name).map(|index| vec![index])
}
