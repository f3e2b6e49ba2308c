//! Commands and their replies: a pipeline for each master, every reply looked at, redirections of a Cluster followed, and scripts that go on
//! from a cursor until they are complete.
//!
//! A master of a Cluster that does not answer holds up its own keys: the others' answers are taken, and what it was asked for is told.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{RedisResult, Value};
use tokio::time::{Instant, sleep_until};

use super::Cache;
use super::command::Command;
use super::connection::{Error, Kind};
use super::marker::is_full;
use super::masters::{HOPS, Masters, nobody, redirection};

/// A master of a Cluster has this long. A slow script or a fork may take longer; then it is connected to anew, beside the others' batches ...
pub const PATIENCE: Duration = Duration::from_secs(1);
/// ... and this long once another one has answered.
const GRACE: Duration = Duration::from_millis(500);

/// What came of an exchange.
#[derive(Default)]
pub struct Replies {
    /// The answers to the markers, in their order; `Nil` where it was not asked.
    pub markers: Vec<Value>,
    /// Commands that are passed over, and the last of their errors.
    pub futile: Option<Box<(u64, Error)>>,
    /// Tags that Redis refuses to touch, by their numbers, and why the last.
    pub refused: BTreeSet<usize>,
    /// Why the last of them was refused.
    pub refusal: Option<Box<Error>>,
    /// Slots of the Cluster are not where they were.
    pub moved: bool,
    /// Masters that did not answer; ...
    pub lost: BTreeSet<usize>,
    /// ... why the last did not; ...
    pub loss: Option<Box<Error>>,
    /// ... and the tags that may not be stale because of it.
    pub unanswered: BTreeSet<usize>,
}

/// A command that was not answered yet.
struct Owed {
    command: Command,
    /// Whom it is for.
    purpose: Purpose,
    /// Whom the Cluster sent it to, and how often; while a slot is on its way it wants to be asked for.
    redirected: Option<usize>,
    hops: u8,
    asking: bool,
}

/// What a command is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// It writes a marker: which.
    Marker(usize),
    /// It makes a tag stale: which.
    Tag(usize),
}

impl Owed {
    fn new(command: Command, purpose: Purpose) -> Owed {
        Owed { command, purpose, redirected: None, hops: 0, asking: false }
    }
}

impl Replies {
    /// Nothing more can be done for it: the tag it belongs to is owed.
    fn leave(&mut self, purpose: Purpose) {
        if let Purpose::Tag(number) = purpose {
            self.unanswered.insert(number);
        }
    }

    /// Is this tag, or are all markers, beyond what can be done now? A later turn must not go on where an earlier one has not been: a link
    /// goes only behind its record.
    fn is_over(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Tag(number) => self.unanswered.contains(&number) || self.refused.contains(&number),
            // The last marker is what readers of their own writes look at: it must not say more than the others.
            Purpose::Marker(_) => {
                self.loss.is_some() || self.markers.iter().any(|answer| !matches!(answer, Value::Nil | Value::Int(1)))
            }
        }
    }

    /// A master of a Cluster does not answer: nothing more is asked of it.
    pub fn lose(&mut self, node: usize, error: Error) {
        self.lost.insert(node);
        self.loss = Some(Box::new(error));
    }

    /// Did everybody answer? Where nothing can be left for later, one who did not is an error for all.
    pub fn all_answered(&mut self) -> Result<(), Error> {
        self.loss.take().map_or(Ok(()), |loss| Err(*loss))
    }
}

/// Sends markers and the commands of tags (each with the number of its tag), and what is left of them until nothing is. An error leaves open
/// which of them were done: all may be sent again.
pub async fn exchange(
    cache: &Cache,
    masters: &mut Masters,
    markers: Vec<Command>,
    commands: Vec<(usize, Command)>,
    replies: &mut Replies,
) -> Result<(), Error> {
    if !markers.is_empty() {
        replies.markers = vec![Value::Nil; markers.len()];
    }
    let markers = markers.into_iter().enumerate().map(|(index, marker)| Owed::new(marker, Purpose::Marker(index)));
    let tags = commands.into_iter().map(|(number, command)| Owed::new(command, Purpose::Tag(number)));
    let mut owed: Vec<Owed> = markers.chain(tags).collect();
    while !owed.is_empty() {
        let later = after_this_turn(masters, &mut owed);
        let mut lists: Vec<Vec<Owed>> = Vec::new();
        for one in owed {
            let node = one.redirected.or_else(|| masters.of(one.command.key())).ok_or_else(|| nobody(cache))?;
            if replies.lost.contains(&node) {
                replies.leave(one.purpose);
                continue;
            }
            lists.resize_with(lists.len().max(node + 1), Vec::new);
            if let Some(list) = lists.get_mut(node) {
                list.push(one);
            }
        }
        owed = Vec::new();
        let mut failed = None;
        for (list, answers) in ask_all(cache, masters, lists, replies).await? {
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
        owed.retain(|one| !replies.is_over(one.purpose));
    }
    Ok(())
}

/// Asks each master for its list; in a Cluster those that do not answer are told in `replies`, unless none does.
async fn ask_all(
    cache: &Cache,
    masters: &Masters,
    lists: Vec<Vec<Owed>>,
    replies: &mut Replies,
) -> Result<Vec<(Vec<Owed>, Vec<Value>)>, Error> {
    let mut asked: FuturesUnordered<_> = lists
        .iter()
        .enumerate()
        .filter(|(_, list)| !list.is_empty())
        .map(async |(node, list)| (node, ask(masters, node, list).await))
        .collect();
    let mut answered: Vec<(usize, Vec<Value>)> = Vec::new();
    let mut until = masters.is_cluster().then(|| Instant::now() + PATIENCE);
    let there = lists.iter().enumerate().filter(|(_, list)| !list.is_empty());
    let mut silent: BTreeSet<usize> = there.map(|(node, _)| node).collect();
    let mut loss = None;
    while !asked.is_empty() {
        let next = tokio::select! {
            next = asked.next() => next,
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
        };
        match next {
            Some((node, Ok(values))) => {
                silent.remove(&node);
                answered.push((node, values));
                until = until.map(|until| until.min(Instant::now() + GRACE));
            }
            Some((_, Err(error))) if masters.is_cluster() => loss = Some(Error::new(cache, &error)),
            Some((_, Err(error))) => return Err(Error::new(cache, &error)),
            None => break,
        }
    }
    drop(asked);
    if !silent.is_empty() {
        let sentence = || "a master of the Cluster does not answer".into();
        let mute =
            || Error { cache: cache.name.clone(), address: cache.address(), sentence: sentence(), kind: Kind::Away };
        let loss = loss.unwrap_or_else(mute);
        if replies.lost.len() + silent.len() >= masters.count() {
            return Err(loss);
        }
        replies.loss = Some(Box::new(loss));
    }
    let mut lists: Vec<Option<Vec<Owed>>> = lists.into_iter().map(Some).collect();
    for node in silent {
        let list = lists.get_mut(node).and_then(Option::take).unwrap_or_default();
        list.iter().for_each(|one| replies.leave(one.purpose));
        replies.lost.insert(node);
    }
    Ok(answered.into_iter().filter_map(|(node, values)| Some((lists.get_mut(node)?.take()?, values))).collect())
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
    let answer = match (answer, one.purpose) {
        // A full Redis refuses the marker and takes the deletions after it. Without its marker nothing is ever done, so any other refusal
        // of it is no trifle.
        (Value::ServerError(error), Purpose::Marker(_)) if !is_full(&error) && redirection(&error).is_none() => {
            return Err(Error::reply(cache, error));
        }
        (Value::ServerError(error), purpose) if matches!(purpose, Purpose::Tag(_)) || !is_full(&error) => error,
        (answer, Purpose::Marker(marker)) => {
            replies.markers.get_mut(marker).into_iter().for_each(|place| *place = answer.clone());
            return Ok(Vec::new());
        }
        (answer, purpose @ Purpose::Tag(_)) => {
            let (redirected, hops, asking) = (one.redirected, one.hops, one.asking);
            let left = one.command.after(&answer).into_iter().map(|command| match command.is_walk() {
                // It goes on where it is: the node before would send it here again, and to its beginning.
                true => Owed { command, purpose, redirected, hops, asking },
                false => Owed::new(command, purpose),
            });
            return Ok(left.collect());
        }
    };
    if let (Some((slot, name, moved)), true, true) = (redirection(&answer), one.hops < HOPS, masters.is_cluster()) {
        replies.moved |= moved;
        let node = match masters.redirected(slot, &name, moved).await {
            Ok(node) => node,
            // The one that it is sent to does not answer.
            Err(error) => {
                replies.leave(one.purpose);
                replies.loss = Some(Box::new(Error::new(cache, &error)));
                return Ok(Vec::new());
            }
        };
        let command = one.command.restarted();
        return Ok(vec![Owed { command, redirected: Some(node), hops: one.hops + 1, asking: !moved, ..one }]);
    }
    let error = Error::reply(cache, answer);
    match (error.kind, one.purpose) {
        (Kind::Futile, _) => {
            let count = replies.futile.take().map_or(1, |before| before.0 + 1);
            replies.futile = Some(Box::new((count, error)));
        }
        (Kind::Forbidden | Kind::Key, Purpose::Tag(number)) => {
            replies.refused.insert(number);
            replies.refusal = Some(Box::new(error));
        }
        _ => return Err(error),
    }
    Ok(Vec::new())
}
