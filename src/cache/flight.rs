//! What is done on a connection: open it and read the marker, claim it, send a batch in slices.

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::Cache;
use super::batch::Batch;
use super::command::{Draw, commands};
use super::connection::{self, Error};
use super::exchange::{Replies, exchange};
use super::marker::{Found, is_full};

/// Tags of one pipeline: one round trip each, and a bound on what redis-rs buffers.
const SLICE: usize = 1_000;

/// How a piece of a lane's work ended.
pub(super) enum Outcome {
    /// A connection, and what stands in the marker.
    Connected(Box<(MultiplexedConnection, Found)>),
    /// The claim was answered.
    Claimed(Result<Value, Error>),
    /// The batch that was sent, the answer to its marker.
    Landed { batch: Batch, marker: Option<Value>, result: Result<(), Error>, futile: Option<Box<(u64, Error)>> },
    /// No connection.
    Failed(Error),
    /// A wait is over.
    Rested,
}

/// Opens a connection and reads the marker: before anything is written.
pub(super) async fn connect(cache: Cache, load: redis::Cmd, read: redis::Cmd) -> Outcome {
    let mut connection = match connection::open(&cache).await {
        Ok(connection) => connection,
        Err(error) => return Outcome::Failed(error),
    };
    let fields: redis::RedisResult<[Option<String>; 8]> = read.query_async(&mut connection).await;
    match (fields, load.exec_async(&mut connection).await) {
        (Ok([owner, seq, format, done, timeline, crash, rules, replicas]), Ok(())) => Outcome::Connected(Box::new((
            connection,
            Found { owner, seq, format, done, timeline, crash, rules, replicas },
        ))),
        (Err(error), _) | (_, Err(error)) => Outcome::Failed(Error::new(&cache, &error)),
    }
}

/// Writes the marker alone.
pub(super) async fn claim(cache: Cache, mut connection: MultiplexedConnection, write: redis::Cmd) -> Outcome {
    let mut pipeline = redis::Pipeline::new();
    pipeline.ignore_errors().add_command(write);
    Outcome::Claimed(match pipeline.query_async::<Vec<Value>>(&mut connection).await {
        Ok(mut replies) => match replies.pop().unwrap_or_default() {
            Value::ServerError(error) if !is_full(&error) => Err(Error::reply(&cache, error)),
            answer => Ok(answer),
        },
        Err(error) => Err(Error::new(&cache, &error)),
    })
}

/// Sends a marker and a batch in slices, looking at every reply.
pub(super) async fn flight(
    cache: Cache,
    mut connection: MultiplexedConnection,
    marker: Option<redis::Cmd>,
    batch: Batch,
) -> Outcome {
    let mut head = marker;
    let (mut replies, mut result) = (Replies::default(), Ok(()));
    let mut tags = batch.tags.iter().peekable();
    while result.is_ok() && (head.is_some() || tags.peek().is_some()) {
        let slice = tags.by_ref().take(SLICE).flat_map(|tag| commands(&cache, tag, Draw::new(&cache))).collect();
        result = exchange(&cache, &mut connection, head.take(), slice, &mut replies).await;
    }
    drop(tags);
    Outcome::Landed { batch, marker: replies.marker, result, futile: replies.futile }
}
