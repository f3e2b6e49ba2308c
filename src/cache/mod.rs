//! Where tags go: a named Redis, read by one client library.
//!
//! [`Cache`] (settings) -> [`dialect`] (keys and operation) -> [`command`] (what is sent) -> [`lane`] (connection, batch
//! in flight, [`marker`]).

pub mod batch;
pub mod command;
pub mod connection;
pub mod coverage;
pub mod dialect;
mod flight;
mod followers;
pub mod gap;
pub mod lane;
pub mod marker;
mod options;
pub mod pattern;
mod released;
mod releases;
pub mod repeats;
pub mod sweep;

use std::time::Duration;

use crate::rules::diagnostic::Place;
use crate::rules::style::Style;
use crate::source::endpoint::Endpoint;
use command::Operation;
use dialect::{Dialect, KeyFormula};

/// A cache of the rule set.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Its alias.
    pub name: String,
    /// Where it is defined.
    pub place: Place,
    /// Where Redis is, with credentials: never printed; [`Cache::address`] is for people.
    pub url: redis::ConnectionInfo,
    /// The client library.
    pub dialect: &'static Dialect,
    /// How values become text.
    pub style: Style,
    /// One per key prefix and release: a tag goes stale under each.
    pub keys: Vec<KeyFormula>,
    /// What is done to a key.
    pub operation: Operation,
    /// The client's own `set()` stores nothing under a stale tag for this long.
    pub fence: Option<Duration>,
    /// Made stale again after these delays, ascending.
    pub repeat: Vec<Duration>,
    /// Standbys that the application reads from.
    pub replicas: Vec<Endpoint>,
    /// Beside other caches, one that is away for this long no longer holds them up.
    pub detach_after: Duration,
}

impl Cache {
    /// Stands for the options that decide which keys are written, and how: with others, what was made stale under the old
    /// ones says nothing of the new.
    pub fn options_id(&self) -> String {
        let Cache { dialect, style, keys, operation, .. } = self;
        coverage::id(&format!("{} {style:?} {keys:?} {operation:?}", dialect.name))
    }

    /// Is it the same Redis, under the same options? Credentials, `repeat` and `detach_after` may differ.
    pub fn is_same(&self, other: &Cache) -> bool {
        let encrypted = |cache: &Cache| matches!(cache.url.addr(), redis::ConnectionAddr::TcpTls { .. });
        let place = self.address() == other.address() && encrypted(self) == encrypted(other);
        place && self.replicas == other.replicas && self.name == other.name && self.options_id() == other.options_id()
    }

    /// Host and database without credentials.
    pub fn address(&self) -> String {
        match self.url.redis_settings().db() {
            0 => self.url.addr().to_string(),
            database => format!("{}/{database}", self.url.addr()),
        }
    }
}
