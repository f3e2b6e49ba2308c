//! `waltag run`: the daemon.

use crate::backoff::Backoff;
use crate::daemon::{self, Start};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::rules::Rules;
use crate::rules::registry::Registry;
use crate::settings::{Environment, Settings};

/// Loads the rules, applies `setup` if asked, and runs until a signal; with `once` until it has caught up with its start.
pub async fn run(settings: Settings, environment: &Environment, setup: bool, once: bool) -> Result<(), Failure> {
    if !settings.dsn.ignored.is_empty() {
        tracing::warn!("ignored in the database URL (other drivers' parameters): {}", settings.dsn.ignored.join(", "));
    }
    let signals = |error| Failure::new(Exit::Bug, format!("cannot handle signals: {error}"));
    let mut registry = Registry::new(&settings, environment).map_err(signals)?;
    let (rules, refused) = load(&mut registry)?;
    rules.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if setup {
        let mut backoff = Backoff::default();
        // In a container PostgreSQL is often still starting.
        while let Err(failure) = super::setup::apply_first(&settings, &rules).await {
            if failure.exit != Exit::Unavailable {
                return Err(failure);
            }
            tracing::warn!("{failure}; trying again");
            tokio::time::sleep(backoff.next()).await;
        }
    }
    daemon::run(settings, Start { registry, rules, refused, once }).await
}

/// The same rules and stream, and nothing but words.
pub async fn dry_run(settings: &Settings, environment: &Environment, once: bool) -> Result<(), Failure> {
    let rules = super::load(settings, environment)?;
    super::dry_run::dry_run(settings, &rules, once).await
}

/// The rules as they are, or the last good ones and why.
fn load(registry: &mut Registry) -> Result<(Rules, Option<String>), Failure> {
    let error = match registry.load() {
        Ok(rules) => return Ok((rules, None)),
        Err(error) => error,
    };
    match registry.last_good() {
        Some(Ok(rules)) => {
            tracing::error!("the rules cannot be used; running the last good ones until they can:\n{error}");
            Ok((rules, Some(error.to_string())))
        }
        // Not even the last good ones work, for example without a variable that they need: the first error says more.
        Some(Err(_)) | None => Err(error.into()),
    }
}
