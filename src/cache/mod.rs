//! Where tags go: a named Redis, read by one client library.
//!
//! [`Cache`] (settings) -> [`dialects`] (what is sent, as data) -> [`step`] and [`formula`] (as meant) -> [`command`] (as sent) -> [`lane`]
//! (connection, batch in flight, [`marker`]).

pub mod batch;
mod bounded;
mod choices;
pub mod command;
pub mod connection;
pub mod coverage;
pub mod detect;
pub mod dialect;
pub mod dialects;
pub mod encoding;
pub mod exchange;
mod flight;
mod followers;
pub mod formula;
pub mod gap;
pub mod lane;
pub mod life;
pub mod location;
pub mod marker;
pub mod masters;
pub mod options;
pub mod pattern;
pub mod reach;
mod released;
mod releases;
pub mod repeats;
mod sentinel;
pub mod slots;
pub mod step;
pub mod sweep;

use std::time::Duration;

use crate::rules::diagnostic::Place;
use crate::rules::style::Style;
use crate::source::endpoint::Endpoint;
use dialect::Dialect;
use location::Location;
use reach::Reach;
use step::{Action, Step};

/// A cache of the rule set.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Its alias.
    pub name: String,
    /// Where it is defined.
    pub place: Place,
    /// Where Redis is.
    pub location: Location,
    /// The client library.
    pub dialect: &'static Dialect,
    /// How values become text.
    pub style: Style,
    /// What is sent for a stale tag, under each of its prefixes and releases.
    pub steps: Vec<Step>,
    /// How what cannot be listed is found.
    pub reach: Reach,
    /// The client's own `set()` stores nothing under a stale tag for this long.
    pub fence: Option<Duration>,
    /// Stamps are this far in the future: what is stored meanwhile is older, and a miss.
    pub guard: Duration,
    /// Made stale again after these delays, ascending.
    pub repeat: Vec<Duration>,
    /// Standbys that the application reads from.
    pub replicas: Vec<Endpoint>,
    /// What was sent counts when so many replicas of each master have it.
    pub wait_replicas: u8,
    /// SQL may name tags that begin with one of these, or that a template can render, and no others; empty where the dialect says which.
    pub prefix_only: Vec<String>,
    /// Beside other caches, one that is away for this long no longer holds them up.
    pub detach_after: Duration,
}

impl Cache {
    /// Stands for the options that decide which keys are written, and how: with others, what was made stale under the old
    /// ones says nothing of the new.
    pub fn options_id(&self) -> String {
        let Cache { dialect, style, steps, .. } = self;
        coverage::id(&format!("{} {style:?} {steps:?}", dialect.name))
    }

    /// Is the tag the key, or what keys start with? Then whoever names a tag names a key, a stranger's as well.
    pub fn has_bare_tags(&self) -> bool {
        let names = |step: &&Step| step.names_tags() || step.action == Action::Scan;
        self.steps.iter().filter(names).any(|step| {
            let (head, encoding, _) = step.key.around();
            head.is_empty() && encoding.is_some_and(|encoding| *encoding == encoding::Encoding::Verbatim)
        })
    }

    /// Is it the same Redis, under the same options? Credentials may differ, and what is no matter of keys and values: `repeat`, `guard`, `fence`,
    /// `wait_replicas`, `detach_after`, how a sweep goes.
    pub fn is_same(&self, other: &Cache) -> bool {
        let kind = |cache: &Cache| (cache.address(), cache.location.is_encrypted(), cache.location.is_cluster());
        let place = kind(self) == kind(other);
        place && self.replicas == other.replicas && self.name == other.name && self.options_id() == other.options_id()
    }

    /// Are tags found by a sweep, not by their keys?
    pub fn is_scanned(&self) -> bool {
        self.steps.iter().any(|step| step.action == Action::Scan)
    }

    /// Are all values of a whole row texts?
    pub fn takes_texts(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.action, Action::Rows { texts: true }))
    }

    /// Host and database without credentials.
    pub fn address(&self) -> String {
        self.location.address()
    }
}
