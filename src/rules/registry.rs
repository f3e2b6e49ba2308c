//! Where the rules come from while the daemon runs: the files, when they are read again, and the last good set.

use std::cell::RefCell;
use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::kept::Kept;
use super::watch::Watch;
use super::{Error, Files, Rules, paths, read};
use crate::settings::{Environment, Settings, with_surroundings};

/// The rule files of a running daemon.
pub struct Registry {
    paths: Vec<String>,
    environment: Environment,
    watch: Watch,
    hangup: Signal,
    kept: Option<Kept>,
}

impl Registry {
    /// From here on SIGHUP does not kill the process.
    pub fn new(settings: &Settings, environment: &Environment) -> std::io::Result<Registry> {
        let directory = environment.state_directory();
        Ok(Registry {
            paths: settings.rules.clone(),
            environment: environment.clone(),
            watch: Watch::start(),
            hangup: signal(SignalKind::hangup())?,
            kept: directory.map(|directory| Kept::at(&directory, &settings.names.slot)),
        })
    }

    /// Reads and compiles the files as they are now, and watches what they depend on.
    pub fn load(&mut self) -> Result<Rules, Error> {
        let named = RefCell::default();
        let loaded = match read(&self.paths) {
            Ok(files) => self.compile(files, &named),
            Err(error) => Err(error.into()),
        };
        self.watch.set(paths::directories(&self.paths, named.borrow().iter()));
        self.watch.retry = loaded.is_err();
        loaded
    }

    /// The last good set, with today's values of `${...}`.
    pub fn last_good(&self) -> Option<Result<Rules, Error>> {
        Some(self.compile(self.kept.as_ref()?.read()?, &RefCell::default()))
    }

    /// Was exactly this set in force before?
    pub fn was_good(&self, rules: &Rules) -> bool {
        self.kept.as_ref().and_then(Kept::read).is_some_and(|files| files == rules.files)
    }

    /// This set is in force now.
    pub fn keep(&self, rules: &Rules) {
        if let Some(kept) = &self.kept
            && let Err(error) = kept.write(&rules.files)
        {
            tracing::warn!("the rules cannot be kept in the state directory: {error}");
        }
    }

    /// Ends when the files should be read again: true if a signal asked for it. Cancel-safe.
    pub async fn asked(&mut self) -> bool {
        tokio::select! {
            _ = self.hangup.recv() => true,
            () = self.watch.changed() => false,
        }
    }

    fn compile(&self, files: Files, named: &RefCell<Vec<PathBuf>>) -> Result<Rules, Error> {
        with_surroundings(&self.environment, |around| {
            let rules = Rules::parse(files, around);
            named.replace(around.files.take());
            match rules {
                Ok(rules) if rules.caches.is_empty() => Err(Error::NoCache),
                rules => rules,
            }
        })
    }
}
