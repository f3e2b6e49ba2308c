//! Commands and their replies: a pipeline for each master, every reply looked at, redirections of a Cluster followed, and scripts that go on
//! from a cursor until they are complete.

use futures_util::future::join_all;
use redis::{RedisResult, Value};

use super::Cache;
use super::command::Command;
use super::connection::{Error, Kind};
use super::marker::is_full;
use super::masters::{HOPS, Masters, nobody, redirection};

/// What came of an exchange.
#[derive(Default)]
pub struct Replies {
    /// The answers to the markers, in their order; `Nil` where it was not asked.
    pub markers: Vec<Value>,
    /// Commands that will never work, and the last of their errors.
    pub futile: Option<Box<(u64, Error)>>,
    /// Slots of the Cluster are not where they were.
    pub moved: bool,
}

/// A command that was not answered yet.
struct Owed {
    command: Command,
    /// It writes a marker: which.
    marker: Option<usize>,
    /// Whom the Cluster sent it to, and how often; while a slot is on its way it wants to be asked for.
    redirected: Option<usize>,
    hops: u8,
    asking: bool,
}

impl Owed {
    fn new(command: Command, marker: Option<usize>) -> Owed {
        Owed { command, marker, redirected: None, hops: 0, asking: false }
    }
}

/// Sends markers and commands, and what is left of them until nothing is. An error leaves open which of them were done: all may be
/// sent again.
pub async fn exchange(
    cache: &Cache,
    masters: &mut Masters,
    markers: Vec<Command>,
    commands: Vec<Command>,
    replies: &mut Replies,
) -> Result<(), Error> {
    if !markers.is_empty() {
        replies.markers = vec![Value::Nil; markers.len()];
    }
    let mut owed: Vec<Owed> =
        markers.into_iter().enumerate().map(|(index, marker)| Owed::new(marker, Some(index))).collect();
    owed.extend(commands.into_iter().map(|command| Owed::new(command, None)));
    while !owed.is_empty() {
        let later = after_this_turn(masters, &mut owed);
        let mut lists: Vec<Vec<Owed>> = Vec::new();
        for one in owed {
            let node = one.redirected.or_else(|| masters.of(one.command.key())).ok_or_else(|| nobody(cache))?;
            lists.resize_with(lists.len().max(node + 1), Vec::new);
            if let Some(list) = lists.get_mut(node) {
                list.push(one);
            }
        }
        let asked = lists.iter().enumerate().map(|(node, list)| ask(masters, node, list));
        let answers = join_all(asked).await;
        owed = Vec::new();
        let mut failed = None;
        for (list, answers) in lists.into_iter().zip(answers) {
            let answers = answers.map_err(|error| Error::new(cache, &error))?;
            for (one, answer) in list.into_iter().zip(answers) {
                match take(cache, masters, replies, one, answer).await {
                    Ok(left) => owed.extend(left),
                    Err(error) => failed = Some(error),
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        owed.extend(later);
        // The last marker is what readers of their own writes look at: it must not say more than the others.
        if replies.markers.iter().any(|answer| !matches!(answer, Value::Nil | Value::Int(1))) {
            owed.retain(|one| one.marker.is_none());
        }
    }
    Ok(())
}

/// In a Cluster, what has to wait for the answers of the others.
fn after_this_turn(masters: &Masters, owed: &mut Vec<Owed>) -> Vec<Owed> {
    if !masters.is_cluster() {
        return Vec::new();
    }
    let turn = owed.iter().map(|one| one.command.turn()).min().unwrap_or_default();
    owed.extract_if(.., |one| one.command.turn() > turn).collect()
}

/// One pipeline for one master: an answer for each command.
async fn ask(masters: &Masters, node: usize, list: &[Owed]) -> RedisResult<Vec<Value>> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let mut connection = masters.connection(node)?;
    let mut pipeline = redis::Pipeline::with_capacity(list.len());
    pipeline.ignore_errors();
    for one in list {
        if one.asking {
            pipeline.cmd("ASKING").ignore();
        }
        pipeline.add_command(one.command.pack());
    }
    pipeline.query_async(&mut connection).await
}

/// What an answer means: what is left to do, or why nothing can be done.
async fn take(
    cache: &Cache,
    masters: &mut Masters,
    replies: &mut Replies,
    one: Owed,
    answer: Value,
) -> Result<Vec<Owed>, Error> {
    let answer = match (answer, one.marker) {
        // A full Redis refuses the marker and takes the deletions after it. Without its marker nothing is ever done, so any other refusal
        // of it is no trifle.
        (Value::ServerError(error), Some(_)) if !is_full(&error) && redirection(&error).is_none() => {
            return Err(Error::reply(cache, error));
        }
        (Value::ServerError(error), marker) if marker.is_none() || !is_full(&error) => error,
        (answer, Some(marker)) => {
            replies.markers.get_mut(marker).into_iter().for_each(|place| *place = answer.clone());
            return Ok(Vec::new());
        }
        (answer, None) => {
            let (redirected, hops, asking) = (one.redirected, one.hops, one.asking);
            let left = one.command.after(&answer).into_iter().map(|command| match command.is_walk() {
                // It goes on where it is: the node before would send it here again, and to its beginning.
                true => Owed { command, marker: None, redirected, hops, asking },
                false => Owed::new(command, None),
            });
            return Ok(left.collect());
        }
    };
    if let (Some((slot, name, moved)), true, true) = (redirection(&answer), one.hops < HOPS, masters.is_cluster()) {
        replies.moved |= moved;
        let node = masters.redirected(slot, &name, moved).await.map_err(|error| Error::new(cache, &error))?;
        let command = one.command.restarted();
        return Ok(vec![Owed { command, redirected: Some(node), hops: one.hops + 1, asking: !moved, ..one }]);
    }
    let error = Error::reply(cache, answer);
    if error.kind != Kind::Futile {
        return Err(error);
    }
    let count = replies.futile.take().map_or(1, |before| before.0 + 1);
    replies.futile = Some(Box::new((count, error)));
    Ok(Vec::new())
}
