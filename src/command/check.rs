//! `waltag check`: are the rules right?

use super::{load, session, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Environment, Settings};
use crate::setup::{catalog, verify};
use crate::source::replication::error::Error;

/// Validates the rule files, and with `live` what the database makes of them.
pub async fn check(settings: &Settings, environment: &Environment, live: bool) -> Result<(), Failure> {
    let rules = load(settings, environment)?;
    for warning in &rules.warnings {
        show(format_args!("{warning}\n"));
    }
    let mut told = rules.warnings.len();
    if live {
        let (session, endpoint) = session(settings).await?;
        let read = catalog::read(&session, &rules, &settings.names.publication).await;
        let catalog = read.map_err(|error| Error::session("reading the catalog", &endpoint.to_string(), &error))?;
        let (refused, warnings) = verify::tables(&rules, &catalog, &settings.names.publication);
        for warning in &warnings {
            show(format_args!("{warning}\n"));
        }
        told += warnings.len();
        if !catalog.publication {
            show(format_args!(
                "the publication \"{}\" does not exist yet: `waltag setup` prints the SQL\n",
                settings.names.publication
            ));
        }
        if !refused.is_empty() {
            let list: Vec<String> = refused.iter().map(ToString::to_string).collect();
            return Err(Failure::new(Exit::Rules, list.join("\n\n")));
        }
    }
    let count = |number: usize, word: &str| match number {
        1 => format!("1 {word}"),
        _ => format!("{number} {word}s"),
    };
    show(format_args!(
        "{}, {}, {}, {}",
        count(rules.rules.len(), "rule"),
        count(rules.tables().len(), "table"),
        count(rules.caches.len(), "cache"),
        count(told, "warning")
    ));
    Ok(())
}
