//! Connections to the masters of a cache: one, the one that Sentinels name, or every one of a Cluster.
//!
//! The slot map is ours. A pipeline for each node takes 8 ms for 10,000 commands on three nodes, one for each slot, which is what
//! redis-rs' own connection to a Cluster does, 206 to 246 ms; and it reconnects by itself, but whoever connects has to read the
//! [`super::marker`] first.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ConnectionInfo, ErrorKind, RedisError, RedisResult, Value};

use super::Cache;
use super::connection::{Error, Kind};
use super::location::{self, Location, Service};
use super::sentinel::{self, Watch};
use super::slots::{SLOTS, slot_of};
use super::step::Step;

/// Opening a connection may take this long.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A reply may take this long: a slow Lua script or a fork of a big server stalls Redis for more than a second.
const REPLY_LIMIT: Duration = Duration::from_secs(5);
/// Tags wait behind this; replicas that are not behind answer in a round trip.
const REPLICATION_LIMIT: Duration = Duration::from_millis(100);
/// A command is redirected at most this often: more are nodes that disagree.
pub const HOPS: u8 = 16;
/// No node has the slot.
const NOBODY: u16 = u16::MAX;

/// Connections to all masters.
#[derive(Clone)]
pub struct Masters {
    nodes: Vec<Node>,
    /// The node of each slot; nothing: there is one node.
    slots: Option<Arc<[u16]>>,
    /// What every new node is told.
    scripts: Arc<[String]>,
    seed: ConnectionInfo,
    /// Is the master still the one that Sentinels name?
    watch: Option<Arc<Watch>>,
}

/// One master.
#[derive(Clone)]
struct Node {
    /// `host:port` as the Cluster calls it.
    name: String,
    connection: MultiplexedConnection,
}

/// Which slots the masters of a Cluster have, and which are on their way.
#[derive(PartialEq, Eq)]
pub struct Layout {
    own: BTreeSet<String>,
    /// Slots that move between two masters.
    pub is_moving: bool,
}

/// How long Redis may take for a connection, and for a reply.
fn limits() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_LIMIT)).set_response_timeout(Some(REPLY_LIMIT))
}

/// Opens what a cache needs; errors are sentences.
pub async fn open(cache: &Cache, marker_script: Option<&str>) -> Result<Masters, Error> {
    // A pipeline cannot fall back from EVALSHA; a server that forgets them is a failed command, and so a new connection.
    let scripts: BTreeSet<&str> = cache.steps.iter().chain(cache.reach.steps()).filter_map(Step::script).collect();
    let scripts = scripts.into_iter().chain(marker_script).map(str::to_owned).collect();
    Masters::open(&cache.location, scripts).await.map_err(|error| Error::new(cache, &error))
}

impl Masters {
    /// Connects to all masters.
    pub async fn open(location: &Location, scripts: Arc<[String]>) -> RedisResult<Masters> {
        if let Some(service) = location.service() {
            return Masters::named(location.seeds(), service, scripts).await;
        }
        let mut failure = RedisError::from((ErrorKind::InvalidClientConfig, "no server is named"));
        for seed in location.seeds() {
            let mut masters = Masters::at(seed.clone(), scripts.clone());
            let opened = match location.is_cluster() {
                true => masters.discover().await,
                false => masters.alone(seed).await.map(drop),
            };
            match opened {
                Ok(()) => return Ok(masters),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn at(seed: ConnectionInfo, scripts: Arc<[String]>) -> Masters {
        Masters { nodes: Vec::new(), slots: None, scripts, seed, watch: None }
    }

    /// Connects to the master that the Sentinels name. It may not know yet, or not any more, that it is one.
    async fn named(sentinels: &[ConnectionInfo], service: &Service, scripts: Arc<[String]>) -> RedisResult<Masters> {
        let (seed, watch) = sentinel::find(sentinels, service).await?;
        let place = seed.addr().to_string();
        let away = |error: RedisError| match error.is_io_error() {
            true => sentinel::sentence(format!("{place}, whom the Sentinels name, is away: {error}")),
            false => error,
        };
        let mut masters = Masters::at(seed.clone(), scripts);
        let role = masters.alone(&seed).await.map_err(away)?;
        if role != "master" {
            return Err(sentinel::sentence(format!(
                "{place}, whom the Sentinels name, is a {role}: a failover is under way"
            )));
        }
        masters.watch = Some(Arc::new(watch));
        Ok(masters)
    }

    /// The only server; its role. One of a Cluster has some of the keys, and a Sentinel none: both would half work.
    async fn alone(&mut self, seed: &ConnectionInfo) -> RedisResult<String> {
        self.node(&seed.addr().to_string(), seed.clone()).await?;
        let hello: RedisResult<HashMap<String, Value>> = self.ask(0, redis::cmd("HELLO").arg(2)).await;
        let hello = match hello {
            Err(error) if error.code() == Some("NOPERM") => HashMap::new(),
            hello => hello?,
        };
        let word = |name: &str| redis::from_redis_value_ref::<String>(hello.get(name).unwrap_or(&Value::Nil));
        let scheme = match word("mode").as_deref() {
            Ok("cluster") => "redis+cluster",
            Ok("sentinel") => "redis+sentinel",
            _ => return Ok(word("role").unwrap_or_default()),
        };
        let sentence = format!("this server belongs to others: write the cache's `url` as {scheme}://");
        Err((ErrorKind::InvalidClientConfig, "the wrong server", sentence).into())
    }

    /// Asks a node of a Cluster for the others.
    async fn discover(&mut self) -> RedisResult<()> {
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
            return Err(sentinel::sentence(format!("{place} does not know who has each slot of the Cluster")));
        }
        self.slots = Some(slots.into());
        Ok(())
    }

    /// The node at a place; one without a host is at that of the node that was asked.
    async fn sibling(&mut self, host: &str, port: u16) -> RedisResult<u16> {
        self.node(&format!("{host}:{port}"), location::moved(&self.seed, host, port)).await
    }

    /// The node of this name, connected if it is new.
    async fn node(&mut self, name: &str, info: ConnectionInfo) -> RedisResult<u16> {
        let index = match self.nodes.iter().position(|node| node.name == name) {
            Some(index) => index,
            None => {
                let mut connection = connect(info).await?;
                load(&mut connection, &self.scripts).await?;
                self.nodes.push(Node { name: name.to_owned(), connection });
                self.nodes.len() - 1
            }
        };
        u16::try_from(index).map_err(|_| (ErrorKind::InvalidClientConfig, "too many nodes").into())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Are keys spread over several?
    pub fn is_cluster(&self) -> bool {
        self.slots.is_some()
    }

    /// The master of a key, if there is one.
    pub fn of(&self, key: &[u8]) -> Option<usize> {
        match &self.slots {
            None => Some(0),
            Some(slots) => self.of_slot(slots, slot_of(key)),
        }
    }

    fn of_slot(&self, slots: &[u16], slot: u16) -> Option<usize> {
        slots.get(usize::from(slot)).filter(|node| **node != NOBODY).map(|node| usize::from(*node))
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
            return Err(sentinel::sentence("a slot has moved to a node without a name; the map is read again".into()));
        }
        let node = self.sibling(host, port.parse().unwrap_or_default()).await?;
        if moved && let Some(slots) = self.slots.as_mut().map(Arc::make_mut) {
            slots.iter_mut().skip(slot.into()).take(1).for_each(|of| *of = node);
        }
        Ok(node.into())
    }

    /// One command for one master.
    pub async fn ask<T: redis::FromRedisValue>(&mut self, node: usize, command: &redis::Cmd) -> RedisResult<T> {
        command.query_async(&mut self.connection(node)?).await
    }

    /// A command that only reads a key, and the master that answered: redirections are followed.
    pub async fn read<T: redis::FromRedisValue>(
        &mut self,
        key: &[u8],
        command: &redis::Cmd,
    ) -> RedisResult<(usize, T)> {
        let (mut node, mut asking) = (self.of(key).unwrap_or(usize::MAX), false);
        for _ in 0..HOPS {
            let mut questions = redis::pipe();
            if asking {
                questions.cmd("ASKING").ignore();
            }
            questions.ignore_errors().add_command(command.clone());
            let mut answers: Vec<Value> = questions.query_async(&mut self.connection(node)?).await?;
            let error = match answers.pop() {
                Some(Value::ServerError(error)) => error,
                answer => return Ok((node, redis::from_redis_value(answer.unwrap_or(Value::Nil))?)),
            };
            let Some((slot, name, moved)) = redirection(&error).filter(|_| self.is_cluster()) else {
                return Err(error.into());
            };
            node = self.redirected(slot, &name, moved).await?;
            asking = !moved;
        }
        Err(sentinel::sentence("the nodes of the Cluster send us to and fro".into()))
    }

    /// The connection to one master.
    pub fn connection(&self, node: usize) -> RedisResult<impl ConnectionLike + use<>> {
        self.watch.as_ref().map_or(Ok(()), |watch| watch.verify())?;
        let node = self.nodes.get(node).ok_or((ErrorKind::Io, "no master of the Cluster has this slot"))?;
        Ok(node.connection.clone())
    }

    /// Waits for `replicas` of each master to take what was written so far (WAIT); how many have, of the master where they are fewest.
    pub async fn replicated(&self, replicas: u8) -> RedisResult<u8> {
        let mut wait = redis::cmd("WAIT");
        wait.arg(replicas).arg(u64::try_from(REPLICATION_LIMIT.as_millis()).unwrap_or(u64::MAX));
        let asked = (0..self.count()).map(async |node| wait.query_async::<u8>(&mut self.connection(node)?).await);
        let counts = join_all(asked).await.into_iter().collect::<RedisResult<Vec<u8>>>()?;
        Ok(counts.into_iter().min().unwrap_or(replicas))
    }

    /// How the slots lie at this moment, as each master says of itself; nothing where there is one. A master that has none yet, and gets its first,
    /// is one of them from then on.
    pub async fn layout(&mut self) -> RedisResult<Layout> {
        let mut layout = Layout { own: BTreeSet::new(), is_moving: false };
        if !self.is_cluster() {
            return Ok(layout);
        }
        let (mut owned, mut node) = (BTreeSet::new(), 0);
        while node < self.nodes.len() {
            let text: String = self.ask(node, redis::cmd("CLUSTER").arg("NODES")).await?;
            let line = text.lines().find(|line| line.contains("myself")).unwrap_or_default();
            // id, address, flags, master, two times, epoch, link, and slots: `0-5460`, `[93->-<id>]` leaves, `[77-<-<id>]` comes.
            let words: Vec<&str> = line.split(' ').collect();
            let (id, slots) = (words.first().copied().unwrap_or_default(), words.get(8..).unwrap_or_default());
            owned.extend(slots.iter().filter_map(|range| slots_of(range)).flatten());
            layout.is_moving |= slots.iter().any(|slot| slot.starts_with('['));
            let targets = slots.iter().filter_map(|slot| Some(slot.split_once("->-")?.1.trim_end_matches(']')));
            for target in targets.collect::<BTreeSet<_>>() {
                // `<id> 10.0.0.1:6379@16379,name ...`; one that is not listed was put out, and has no keys.
                let line = text.lines().find(|line| line.starts_with(target));
                let place = line.and_then(|line| line.split(' ').nth(1)?.split('@').next());
                if let Some((host, port)) = place.and_then(|place| place.rsplit_once(':')) {
                    self.sibling(host, port.parse().unwrap_or_default()).await?;
                }
            }
            layout.own.insert(format!("{id} {}", slots.join(" ")));
            node += 1;
        }
        // A map that is older than the Cluster leads to some of its masters.
        if owned.len() != usize::from(SLOTS) {
            let count = owned.len();
            return Err(sentinel::sentence(format!("the masters that are known have {count} of {SLOTS} slots")));
        }
        Ok(layout)
    }
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

/// Connects to one server.
pub(super) async fn connect(info: ConnectionInfo) -> RedisResult<MultiplexedConnection> {
    redis::Client::open(info)?.get_multiplexed_async_connection_with_config(&limits()).await
}

async fn load(connection: &mut MultiplexedConnection, scripts: &[String]) -> RedisResult<()> {
    for script in scripts {
        redis::cmd("SCRIPT").arg("LOAD").arg(script).exec_async(connection).await?;
    }
    Ok(())
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
