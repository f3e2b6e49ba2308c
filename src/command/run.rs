//! `waltag run`: the daemon.

use super::load;
use crate::backoff::Backoff;
use crate::daemon;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Environment, Settings};

/// Loads the rules, applies `setup` if asked, and runs until a signal.
pub async fn run(settings: Settings, environment: &Environment, setup: bool) -> Result<(), Failure> {
    if !settings.dsn.ignored.is_empty() {
        tracing::warn!("ignored in the database URL (other drivers' parameters): {}", settings.dsn.ignored.join(", "));
    }
    let rules = load(&settings, environment)?;
    rules.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if rules.caches.is_empty() {
        let sentence = "the rules define no cache; add one under `caches:`";
        return Err(Failure::new(Exit::Rules, sentence));
    }
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
    daemon::run(settings, rules).await
}
