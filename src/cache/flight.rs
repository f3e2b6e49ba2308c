//! What is done on a connection: open it and read the marker, claim it, send a batch in slices.

use std::collections::BTreeSet;

use redis::Value;

use super::Cache;
use super::batch::Batch;
use super::command::{Command, Draw, commands};
use super::connection::Error;
use super::exchange::{Replies, exchange};
use super::life::Life;
use super::marker::{self, Found};
use super::masters::{self, Masters};

/// Tags of one pipeline: one round trip each, and a bound on what redis-rs buffers.
const SLICE: usize = 1_000;

/// How a piece of a lane's work ended.
pub(super) enum Outcome {
    /// A connection, and what stands in the marker.
    Connected(Box<(Masters, Found)>),
    /// The claim was answered.
    Claimed(Result<Vec<Value>, Error>),
    /// The batch that was sent, and what was answered; with `wait_replicas`, how many replicas have the marker and all that came before it.
    Landed { batch: Batch, replies: Replies, replicas: Option<u8>, lives: Vec<Option<Life>>, result: Result<(), Error> },
    /// No connection.
    Failed(Error),
    /// A wait is over.
    Rested,
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
    Outcome::Claimed(match result {
        Ok(()) if replies.moved => Err(masters::moved(&cache)),
        result => result.map(|()| replies.markers),
    })
}

/// Sends a marker and a batch in slices, looking at every reply; replicas are waited for behind a marker.
/// `witnesses`: where Redis is asked before what it has evicted.
pub(super) async fn flight(
    cache: Cache,
    mut masters: Masters,
    marker: Vec<Command>,
    batch: Batch,
    witnesses: Vec<String>,
) -> Outcome {
    let (mut replies, mut result, mut lives) = (Replies::default(), Ok(()), Vec::new());
    // Before the marker: what is evicted from here on may be it.
    for key in witnesses {
        let life = match masters.of(key.as_bytes()) {
            Some(node) => Life::read(&mut masters, node).await,
            None => Ok(None),
        };
        match life {
            Ok(life) => lives.push(life),
            Err(error) => {
                result = Err(Error::new(&cache, &error));
                break;
            }
        }
    }
    let mut tags = batch.tags.iter().peekable();
    let (mut head, mut replicas) = (marker, None);
    while result.is_ok() && (!head.is_empty() || tags.peek().is_some()) {
        let slice = tags.by_ref().take(SLICE).flat_map(|tag| commands(&cache, tag, Draw::new(&cache))).collect();
        result = exchange(&cache, &mut masters, std::mem::take(&mut head), slice, &mut replies).await;
    }
    drop(tags);
    // Replicas take everything in one order, whichever connection it came by: sweeps are behind the marker as well.
    if result.is_ok() && cache.wait_replicas > 0 && !replies.markers.is_empty() {
        match masters.replicated(cache.wait_replicas).await {
            Ok(count) => replicas = Some(count),
            Err(error) => result = Err(Error::new(&cache, &error)),
        }
    }
    Outcome::Landed { batch, replies, replicas, lives, result }
}
