//! The masters of a Cluster: who they are, which slots they have, and what redirections say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use redis::{RedisResult, Value};

use super::super::Cache;
use super::super::connection::{Error, Kind, sentence};
use super::super::location;
use super::super::slots::SLOTS;
use super::{Masters, connect};

/// No node has the slot.
pub(super) const NOBODY: u16 = u16::MAX;

/// Which slots the masters of a Cluster have, and which are on their way.
#[derive(PartialEq, Eq)]
pub struct Layout {
    own: BTreeSet<String>,
    /// Slots that move between two masters.
    pub is_moving: bool,
}

impl Masters {
    /// Asks a node of a Cluster for the others.
    pub(super) async fn discover(&mut self) -> RedisResult<()> {
        let mut connection = connect(self.seed.clone()).await?;
        let ranges: Vec<Value> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
        let mut slots = vec![NOBODY; usize::from(SLOTS)];
        for range in &ranges {
            // First and last slot; then the nodes, the master first, each with host, port and more.
            let Value::Array(fields) = range else { continue };
            let number = |field: Option<&Value>| redis::from_redis_value_ref::<u16>(field.unwrap_or(&Value::Nil));
            let (first, last) = (number(fields.first())?, number(fields.get(1))?);
            let Some(Value::Array(master)) = fields.get(2) else { continue };
            let host = host_of(master)?;
            let node = self.sibling(&host, number(master.get(1))?).await?;
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

    /// How the slots lie at this moment, as each master says of itself; nothing where there is one. A master that has none yet, and gets its first,
    /// is one of them from then on.
    pub async fn layout(&mut self) -> RedisResult<Layout> {
        let mut layout = Layout { own: BTreeSet::new(), is_moving: false };
        if !self.is_cluster() {
            return Ok(layout);
        }
        let (mut owned, mut node) = (BTreeSet::new(), 0);
        let (mut ids, mut targets) = (BTreeSet::new(), BTreeMap::new());
        while node < self.nodes.len() {
            let text: String = self.ask(node, redis::cmd("CLUSTER").arg("NODES")).await?;
            let line = text.lines().find(|line| line.contains("myself")).unwrap_or_default();
            // id, address, flags, master, two times, epoch, link, and slots: `0-5460`, `[93->-<id>]` leaves, `[77-<-<id>]` comes.
            let words: Vec<&str> = line.split(' ').collect();
            let (id, slots) = (words.first().copied().unwrap_or_default(), words.get(8..).unwrap_or_default());
            owned.extend(slots.iter().filter_map(|range| slots_of(range)).flatten());
            layout.is_moving |= slots.iter().any(|slot| slot.starts_with('['));
            ids.insert(id.to_owned());
            for target in slots.iter().filter_map(|slot| Some(slot.split_once("->-")?.1.trim_end_matches(']'))) {
                // One that is not listed was put out, and has no keys.
                let line = text.lines().find(|line| line.starts_with(target));
                targets.extend(line.and_then(place_of).map(|place| (target.to_owned(), place)));
            }
            layout.own.insert(format!("{id} {}", slots.join(" ")));
            node += 1;
            // Those that have slots are known by the name that they announce.
            if node == self.nodes.len()
                && let Some((id, (host, port))) = targets.iter().find(|(id, _)| !ids.contains(*id))
            {
                self.sibling(host, *port).await?;
                ids.insert(id.clone());
            }
        }
        // A map that is older than the Cluster leads to some of its masters.
        if owned.len() != usize::from(SLOTS) {
            let count = owned.len();
            return Err(sentence(format!("the masters that are known have {count} of {SLOTS} slots")));
        }
        Ok(layout)
    }
}

/// Host and port of a line of CLUSTER NODES, `<id> 10.0.0.1:6379@16379,name,... ...`: the name, if it announces one.
fn place_of(line: &str) -> Option<(String, u16)> {
    let (place, more) = line.split(' ').nth(1)?.split_once('@')?;
    let (host, port) = place.rsplit_once(':')?;
    let name = more.split(',').nth(1).filter(|name| !name.is_empty() && !name.contains('='));
    Some((name.unwrap_or(host).to_owned(), port.parse().ok()?))
}

/// `0-5460`, or `77`.
fn slots_of(range: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some(first.parse().ok()?..=last.parse().ok()?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_nodes() {
        let place = |text: &str| place_of(&format!("07c37df {text} master - 0 1 4 connected 0-5460"));
        assert_eq!(place("127.0.0.1:30004@31004"), Some(("127.0.0.1".into(), 30_004)));
        assert_eq!(place("127.0.0.1:30004@31004,node4.example"), Some(("node4.example".into(), 30_004)));
        assert_eq!(place("[::1]:30004@31004,,shard-id=69bc"), Some(("[::1]".into(), 30_004)));
        assert_eq!(place(":0@0"), Some((String::new(), 0)));
    }
}
