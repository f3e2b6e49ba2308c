//! What is done on a connection: open it and read the marker, claim it, send a batch in slices.

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::Cache;
use super::batch::Batch;
use super::command::{self, commands};
use super::connection::{self, Error, Kind};
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
    let mut answer = None;
    let mut tags = batch.tags.iter().peekable();
    let (mut result, mut futile) = (Ok(()), None);
    while result.is_ok() && (head.is_some() || tags.peek().is_some()) {
        let mut pipeline = redis::Pipeline::with_capacity(SLICE);
        pipeline.ignore_errors();
        let marked = head.take().is_some_and(|command| {
            pipeline.add_command(command);
            true
        });
        for tag in tags.by_ref().take(SLICE) {
            for command in commands(&cache, tag, command::new_version()) {
                pipeline.add_command(command.pack());
            }
        }
        match pipeline.query_async::<Vec<Value>>(&mut connection).await {
            Err(error) => result = Err(Error::new(&cache, &error)),
            Ok(replies) => {
                for (index, reply) in replies.into_iter().enumerate() {
                    let is_marker = marked && index == 0;
                    match reply {
                        // A full Redis refuses the marker and takes the deletions after it.
                        Value::ServerError(error) if !(is_marker && is_full(&error)) => {
                            let error = Error::reply(&cache, error);
                            // Without its marker nothing is ever done, so that one is no trifle.
                            if error.kind == Kind::Futile && !is_marker {
                                let count = futile.map_or(1, |before: Box<(u64, Error)>| before.0 + 1);
                                futile = Some(Box::new((count, error)));
                            } else {
                                result = Err(error);
                            }
                        }
                        reply if is_marker => answer = Some(reply),
                        _ => {}
                    }
                }
            }
        }
    }
    drop(tags);
    Outcome::Landed { batch, marker: answer, result, futile }
}
