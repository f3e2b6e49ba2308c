//! What is done on a connection: open it and read the marker, claim it, send a batch in slices.

use std::collections::BTreeSet;

use redis::Value;
use tokio::time::timeout;

use super::Cache;
use super::batch::Batch;
use super::command::{Command, Draw, commands};
use super::connection::{Error, sentence};
use super::exchange::{PATIENCE, Replies, exchange};
use super::life::Life;
use super::marker::{self, Found};
use super::masters::{self, Masters};
use super::repeats::Taken;
use crate::tags::Tags;

/// Tags of one pipeline: one round trip each, and a bound on what redis-rs buffers.
const SLICE: usize = 1_000;

/// What one flight carries: first passes before what is owed once more, in this order.
#[derive(Default)]
pub(super) struct Load {
    /// First passes.
    pub first: Batch,
    /// For the readers of standbys.
    pub followers: Tags,
    /// Repeats that are due.
    pub repeats: Taken,
}

impl Load {
    /// The tags, in the order in which they are numbered.
    pub fn tags(&self) -> impl Iterator<Item = &[u8]> {
        self.first.tags.iter().chain(self.followers.iter()).chain(self.repeats.tags.iter())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.first.tags.len() + self.followers.len() + self.repeats.tags.len()
    }
}

/// How a piece of a lane's work ended.
pub(super) enum Outcome {
    /// A connection, and what stands in the marker.
    Connected(Box<(Masters, Found)>),
    /// The claim was answered.
    Claimed(Result<Vec<Value>, Error>),
    /// A flight was answered, or was not.
    Landed(Box<Landing>),
    /// No connection.
    Failed(Error),
    /// A wait is over.
    Rested,
}

/// How a flight ended.
pub(super) struct Landing {
    /// What was sent.
    pub load: Load,
    /// What was answered.
    pub replies: Replies,
    /// With `wait_replicas`, how many replicas have the marker and all that came before it.
    pub replicas: Option<u8>,
    /// Who answered.
    pub lives: Lives,
    /// Why the rest was not.
    pub result: Result<(), Error>,
}

/// Which Redis it was, of each marker; empty where nobody asked.
#[derive(Default)]
pub(super) struct Lives {
    /// Before the marker was written, ...
    pub before: Vec<Option<Life>>,
    /// ... and behind everything.
    pub after: Vec<Option<Life>>,
}

/// What is asked of Redis about itself.
#[derive(Default)]
pub(super) struct Asked {
    /// The markers' keys.
    pub keys: Vec<String>,
    /// Before the marker is written: what it has evicted.
    pub before: bool,
    /// Behind it: whether it is still the one that took what was sent before.
    pub after: bool,
}

/// Connects and reads the marker, `witnesses` of a Cluster included: before anything is written.
pub(super) async fn connect(cache: Cache, marker: String, witnesses: BTreeSet<u16>) -> Outcome {
    let mut masters = match masters::open(&cache, Some(marker::COMPARE_AND_SET)).await {
        Ok(masters) => masters,
        Err(error) => return Outcome::Failed(error),
    };
    match marker::read(&mut masters, &marker, witnesses).await {
        Ok(found) => Outcome::Connected(Box::new((masters, found))),
        Err(error) => Outcome::Failed(Error::new(&cache, &error)),
    }
}

/// Writes the marker alone.
pub(super) async fn claim(cache: Cache, mut masters: Masters, write: Vec<Command>) -> Outcome {
    let mut replies = Replies::default();
    let result = exchange(&cache, &mut masters, write, Vec::new(), &mut replies).await;
    Outcome::Claimed(match result.and_then(|()| replies.all_answered()) {
        Ok(()) if replies.moved => Err(masters::moved(&cache)),
        result => result.map(|()| replies.markers),
    })
}

/// Sends a marker and a load in slices, looking at every reply; replicas are waited for behind a marker. `aside` are masters of a Cluster that are
/// known not to answer: what is for them is not sent.
pub(super) async fn flight(
    cache: Cache,
    mut masters: Masters,
    marker: Vec<Command>,
    load: Load,
    asked: Asked,
    aside: BTreeSet<usize>,
) -> Outcome {
    let (mut replies, mut lives) = (Replies { lost: aside, ..Replies::default() }, Lives::default());
    let mut result = Ok(());
    if asked.before {
        // Before the marker: what is evicted from here on may be it.
        match read_lives(&cache, &mut masters, &asked.keys, &mut replies).await {
            Ok(found) => lives.before = found,
            Err(error) => result = Err(error),
        }
    }
    // Nothing is proven while one of them is silent.
    let marker = if replies.loss.is_some() { Vec::new() } else { marker };
    let marked = !marker.is_empty();
    let mut tags = load.tags().enumerate().peekable();
    let (mut head, mut replicas) = (marker, None);
    while result.is_ok() && (!head.is_empty() || tags.peek().is_some()) {
        let of_tag = |(number, tag)| commands(&cache, tag, Draw::new(&cache)).map(move |command| (number, command));
        let slice = tags.by_ref().take(SLICE).flat_map(of_tag).collect();
        result = exchange(&cache, &mut masters, std::mem::take(&mut head), slice, &mut replies).await;
    }
    drop(tags);
    // Replicas take everything in one order, whichever connection it came by: sweeps are behind the marker as well.
    if result.is_ok() && cache.wait_replicas > 0 && marked && replies.loss.is_none() {
        match masters.replicated(cache.wait_replicas).await {
            Ok(count) => replicas = Some(count),
            Err(error) => result = Err(Error::new(&cache, &error)),
        }
    }
    if result.is_ok() && asked.after && marked && replies.loss.is_none() {
        match read_lives(&cache, &mut masters, &asked.keys, &mut replies).await {
            Ok(found) => lives.after = found,
            Err(error) => result = Err(error),
        }
    }
    Outcome::Landed(Box::new(Landing { load, replies, replicas, lives, result }))
}

/// The lives of those that have these keys. In a Cluster one that does not answer is told in `replies`.
async fn read_lives(
    cache: &Cache,
    masters: &mut Masters,
    keys: &[String],
    replies: &mut Replies,
) -> Result<Vec<Option<Life>>, Error> {
    let mut lives = Vec::new();
    for key in keys {
        let Some(node) = masters.of(key.as_bytes()) else {
            lives.push(None);
            continue;
        };
        let read = timeout(PATIENCE, Life::read(masters, node)).await;
        let read = read.unwrap_or_else(|_| Err(sentence("Redis does not answer in time".into())));
        match read.map_err(|error| Error::new(cache, &error)) {
            Ok(life) => lives.push(life),
            Err(error) if masters.is_cluster() => {
                replies.lose(node, error);
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(lives)
}
