//! Commands and their replies: one pipeline, every reply looked at, and scripts that go on from a cursor until they are complete.

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::Cache;
use super::command::Command;
use super::connection::{Error, Kind};
use super::marker::is_full;

/// What came of an exchange.
#[derive(Default)]
pub struct Replies {
    /// The answer to the marker.
    pub marker: Option<Value>,
    /// Commands that will never work, and the last of their errors.
    pub futile: Option<Box<(u64, Error)>>,
}

/// Sends a marker and commands, and what is left of them until nothing is. An error leaves open which of them were done: all may be
/// sent again.
pub async fn exchange(
    cache: &Cache,
    connection: &mut MultiplexedConnection,
    mut marker: Option<redis::Cmd>,
    mut commands: Vec<Command>,
    replies: &mut Replies,
) -> Result<(), Error> {
    while marker.is_some() || !commands.is_empty() {
        let mut pipeline = redis::Pipeline::with_capacity(commands.len() + 1);
        pipeline.ignore_errors();
        let marked = marker.take().is_some_and(|command| {
            pipeline.add_command(command);
            true
        });
        for command in &commands {
            pipeline.add_command(command.pack());
        }
        let answers =
            pipeline.query_async::<Vec<Value>>(connection).await.map_err(|error| Error::new(cache, &error))?;
        let (mut answers, mut left, mut failed) = (answers.into_iter(), Vec::new(), None);
        if marked {
            match answers.next().unwrap_or_default() {
                // A full Redis refuses the marker and takes the deletions after it. Without its marker nothing is ever done, so any
                // other refusal of it is no trifle.
                Value::ServerError(error) if !is_full(&error) => failed = Some(Error::reply(cache, error)),
                answer => replies.marker = Some(answer),
            }
        }
        for (command, answer) in commands.into_iter().zip(answers) {
            let Value::ServerError(error) = answer else {
                left.extend(command.after(&answer));
                continue;
            };
            let error = Error::reply(cache, error);
            if error.kind == Kind::Futile {
                let count = replies.futile.take().map_or(1, |before| before.0 + 1);
                replies.futile = Some(Box::new((count, error)));
            } else {
                failed = Some(error);
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        commands = left;
    }
    Ok(())
}
