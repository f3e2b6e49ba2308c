//! Why a command failed: a sentence for people and an exit code for scripts.

use crate::cache::connection as cache;
use crate::exit::Exit;
use crate::rules;
use crate::settings;
use crate::source::replication::error::{Error as Source, Kind};

/// The end of a command that did not work.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, where, what to do.
    pub sentence: String,
}

impl Failure {
    /// A failure of our own making.
    pub fn new(exit: Exit, sentence: impl Into<String>) -> Failure {
        Failure { exit, sentence: sentence.into() }
    }
}

impl From<settings::Error> for Failure {
    fn from(error: settings::Error) -> Failure {
        Failure::new(Exit::Config, error.to_string())
    }
}

impl From<rules::Error> for Failure {
    fn from(error: rules::Error) -> Failure {
        let exit = match error {
            rules::Error::Paths(_) => Exit::NoRules,
            rules::Error::Wrong(_) | rules::Error::NoCache => Exit::Rules,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<Source> for Failure {
    fn from(error: Source) -> Failure {
        let exit = match error.kind {
            Kind::Away | Kind::Standby | Kind::Renew | Kind::Undecodable | Kind::Blind => Exit::Unavailable,
            Kind::Permanent(exit) => exit,
        };
        Failure::new(exit, error.sentence)
    }
}

impl From<cache::Error> for Failure {
    fn from(error: cache::Error) -> Failure {
        let exit = match error.kind {
            cache::Kind::Away => Exit::Unavailable,
            cache::Kind::Refused | cache::Kind::Forbidden | cache::Kind::Key | cache::Kind::Futile => Exit::Config,
        };
        Failure::new(exit, error.to_string())
    }
}
