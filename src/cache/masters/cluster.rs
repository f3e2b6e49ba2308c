//! The masters of a Cluster: who they are, which slots they have, and what redirections say.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::future::join_all;
use redis::{RedisResult, Value};

use super::super::Cache;
use super::super::connection::{Error, Kind, sentence};
use super::super::location;
use super::super::slots::SLOTS;
use super::{Layout, Masters, Share, connect};

/// No node has the slot.
pub(super) const NOBODY: u16 = u16::MAX;

impl Masters {
    /// Asks a node of a Cluster for the others.
    pub(super) async fn discover(&mut self) -> RedisResult<()> {
        let mut connection = connect(self.seed.clone()).await?;
        let answer: Vec<Value> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
        let mut slots = vec![NOBODY; usize::from(SLOTS)];
        for Range { first, last, host, port } in ranges(&answer)? {
            let node = self.sibling(&host, port).await?;
            slots.iter_mut().take(usize::from(last) + 1).skip(first.into()).for_each(|slot| *slot = node);
        }
        // One that was put out of the Cluster knows none; where a part is away, the others say so as well.
        if slots.contains(&NOBODY) {
            let place = self.seed.addr();
            return Err(sentence(format!("{place} does not know who has each slot of the Cluster")));
        }
        self.slots = Some(slots.into());
        Ok(())
    }

    /// The node at a place; one without a host is at that of the node that was asked.
    async fn sibling(&mut self, host: &str, port: u16) -> RedisResult<u16> {
        self.node(&format!("{host}:{port}"), location::moved(&self.seed, host, port)).await
    }

    /// Slots that stand for the masters: those of `known` that have one still stand for the one that has them now; a master that has
    /// none gets the last of its own. None of them without a Cluster.
    pub fn witnesses(&self, known: &BTreeSet<u16>) -> BTreeSet<u16> {
        let Some(slots) = &self.slots else { return BTreeSet::new() };
        let mut witnesses = known.clone();
        for node in 0..self.nodes.len() {
            let mine = |slot: &u16| self.of_slot(slots, *slot) == Some(node);
            if !witnesses.iter().any(mine) {
                witnesses.extend((0..SLOTS).rfind(mine));
            }
        }
        witnesses
    }

    /// The master that a redirection names, `MOVED 3999 127.0.0.1:6381`: it is remembered for the slot, unless the slot is still on its way
    /// (`ASK`).
    pub async fn redirected(&mut self, slot: u16, name: &str, moved: bool) -> RedisResult<usize> {
        let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
        if host == "?" {
            return Err(sentence("a slot has moved to a node without a name; the map is read again".into()));
        }
        let node = self.sibling(host, port.parse().unwrap_or_default()).await?;
        if moved && let Some(slots) = self.slots.as_mut().map(Arc::make_mut) {
            slots.iter_mut().skip(slot.into()).take(1).for_each(|of| *of = node);
        }
        Ok(node.into())
    }

    /// How the slots lie at this moment, as each master says of itself. A master that was not known, because it has none yet and gets its first
    /// or because it took over from another, is one of them from then on.
    pub async fn layout(&mut self) -> RedisResult<Layout> {
        if !self.is_cluster() {
            return Ok(Layout::of_one());
        }
        let (mut layout, mut failure, mut tried) = (Layout::default(), None, BTreeSet::new());
        let mut asked = 0;
        loop {
            let told = join_all((asked..self.nodes.len()).map(|node| self.told(node))).await;
            for (node, told) in (asked..).zip(told) {
                // One that has gone with no slots left is not missed; one that had some is, below.
                match told {
                    Ok(text) => layout.take(node, &text),
                    Err(error) => failure = Some(error),
                }
            }
            asked = self.nodes.len();
            let Some((id, (host, port))) = layout.stranger(&tried) else { break };
            // Those that have slots are known by the name that they announce.
            if let Err(error) = self.sibling(&host, port).await {
                failure = Some(error);
            }
            tried.insert(id);
        }
        let mut slots = vec![NOBODY; usize::from(SLOTS)];
        for (slot, share) in layout.owners() {
            let node = u16::try_from(share.node).unwrap_or(NOBODY);
            slots.iter_mut().skip(slot.into()).take(1).for_each(|of| *of = node);
        }
        // A map that is older than the Cluster leads to some of its masters.
        let count = slots.iter().filter(|node| **node != NOBODY).count();
        if count != usize::from(SLOTS) {
            let known = || sentence(format!("the masters that are known have {count} of {SLOTS} slots"));
            return Err(failure.unwrap_or_else(known));
        }
        // Who still stands in the old one may be gone.
        self.slots = Some(slots.into());
        Ok(layout)
    }

    /// What one master has at this moment.
    pub async fn share(&self, node: usize) -> RedisResult<Share> {
        let text = self.told(node).await?;
        Ok(Share::parse(node, &text).map_or_else(Share::default, |(_, share)| share))
    }

    async fn told(&self, node: usize) -> RedisResult<String> {
        redis::cmd("CLUSTER").arg("NODES").query_async(&mut self.connection(node)?).await
    }

    /// How many keys a master has in each slot.
    pub async fn count_in(&self, node: usize, slots: &[u16]) -> RedisResult<Vec<usize>> {
        let mut pipeline = redis::pipe();
        for slot in slots {
            pipeline.cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot);
        }
        pipeline.query_async(&mut self.connection(node)?).await
    }

    /// The keys that a master has in each slot, at most `limit`.
    pub async fn keys_in(&self, node: usize, slots: &[u16], limit: usize) -> RedisResult<Vec<Vec<Vec<u8>>>> {
        let mut pipeline = redis::pipe();
        for slot in slots {
            pipeline.cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(limit);
        }
        pipeline.query_async(&mut self.connection(node)?).await
    }
}

/// Slots in a row, and the master that has them.
#[derive(Debug, PartialEq, Eq)]
pub struct Range {
    /// The first slot.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// Where the master is; empty: where the asked node is.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// The answer to CLUSTER SLOTS: first and last slot; then the nodes, the master first, each with host, port and more.
pub fn ranges(answer: &[Value]) -> RedisResult<Vec<Range>> {
    let mut ranges = Vec::new();
    for range in answer {
        let Value::Array(fields) = range else { continue };
        let number = |field: Option<&Value>| redis::from_redis_value_ref::<u16>(field.unwrap_or(&Value::Nil));
        let (first, last) = (number(fields.first())?, number(fields.get(1))?);
        let Some(Value::Array(master)) = fields.get(2) else { continue };
        ranges.push(Range { first, last, host: host_of(master)?, port: number(master.get(1))? });
    }
    Ok(ranges)
}

/// What a Cluster calls a node: a name that it announces, or `?` if it announces none and should; then its address stands behind (7.0). Empty:
/// where the asked node is.
fn host_of(node: &[Value]) -> RedisResult<String> {
    let host: Option<String> = redis::from_redis_value_ref(node.first().unwrap_or(&Value::Nil))?;
    let host = host.filter(|host| host != "?");
    if let (None, Some(more)) = (&host, node.get(3)) {
        let more: HashMap<String, String> = redis::from_redis_value_ref(more)?;
        return Ok(more.get("ip").cloned().unwrap_or_default());
    }
    Ok(host.unwrap_or_default())
}

/// A redirection of a Cluster: the slot, the node, and whether it is for good.
pub fn redirection(error: &redis::ServerError) -> Option<(u16, String, bool)> {
    let moved = match error.code() {
        "MOVED" => true,
        "ASK" => false,
        _ => return None,
    };
    let (slot, name) = error.details()?.split_once(' ')?;
    Some((slot.parse().ok()?, name.to_owned(), moved))
}

/// What was read before may not be what is there.
pub fn moved(cache: &Cache) -> Error {
    let sentence = "slots of the Cluster have moved; they are looked for again".into();
    Error { cache: cache.name.clone(), address: cache.address(), sentence, kind: Kind::Away }
}

/// Nobody has the slot of a key: a part of the Cluster is away.
pub fn nobody(cache: &Cache) -> Error {
    let sentence = "no master of the Cluster has the slot of a key; `redis-cli --cluster check` says more".into();
    Error { cache: cache.name.clone(), address: cache.address(), sentence, kind: Kind::Away }
}
