//! Connections to the masters of a cache: one, the one that Sentinels name, or every one of a Cluster.
//!
//! The slot map is ours. A pipeline for each node takes 8 ms for 10,000 commands on three nodes, one for each slot, which is what
//! redis-rs' own connection to a Cluster does, 206 to 246 ms; and it reconnects by itself, but whoever connects has to read the
//! [`super::marker`] first.

mod cluster;
mod layout;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::Cache;
use super::bounded::Bounded;
use super::connection::{Error, sentence};
use super::location::{Location, Service};
use super::sentinel::{self, Watch};
use super::slots::slot_of;
use super::step::Step;
use cluster::NOBODY;
pub use cluster::{moved, nobody, ranges, redirection};
pub use layout::{Layout, Share};

/// Opening a connection may take this long.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A reply may take this long: a slow Lua script or a fork of a big server stalls Redis for more than a second.
const REPLY_LIMIT: Duration = Duration::from_secs(5);
/// A server that acknowledges nothing for this long is gone, for the kernel.
const SILENCE: Duration = Duration::from_secs(30);
/// Tags wait behind this; replicas that are not behind answer in a round trip.
const REPLICATION_LIMIT: Duration = Duration::from_millis(100);
/// A command is redirected at most this often: more are nodes that disagree.
pub const HOPS: u8 = 16;
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
            true => sentence(format!("{place}, whom the Sentinels name, is away: {error}")),
            false => error,
        };
        let mut masters = Masters::at(seed.clone(), scripts);
        let role = masters.alone(&seed).await.map_err(away)?;
        // Where the ACL withholds HELLO, the first write will tell.
        if !matches!(role.as_str(), "master" | "") {
            return Err(sentence(format!("{place}, whom the Sentinels name, is a {role}: a failover is under way")));
        }
        masters.watch = Some(Arc::new(watch));
        Ok(masters)
    }

    /// The only server; its role. One of a Cluster has some of the keys, and a Sentinel none: both would half work.
    async fn alone(&mut self, seed: &ConnectionInfo) -> RedisResult<String> {
        self.node(&seed.addr().to_string(), seed.clone()).await?;
        let hello: RedisResult<HashMap<String, Value>> = self.ask(0, redis::cmd("HELLO").arg(2)).await;
        let hello = match hello {
            // The ACL withholds it, or a proxy does not know it.
            Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => HashMap::new(),
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
        Err(sentence("the nodes of the Cluster send us to and fro".into()))
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
}

/// Connects to one server.
pub(super) async fn connect(info: ConnectionInfo) -> RedisResult<MultiplexedConnection> {
    let connecting = async {
        match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let socket = TcpStream::connect((host.as_str(), *port)).await?;
                socket.set_nodelay(true)?;
                let watched = socket2::SockRef::from(&socket);
                watched.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(SILENCE))?;
                watched.set_tcp_user_timeout(Some(SILENCE))?;
                speak(&info, socket).await
            }
            ConnectionAddr::Unix(path) => speak(&info, UnixStream::connect(path).await?).await,
            // redis-rs makes its own TLS, and its answers have no other bound than time: whoever sends them has a certificate.
            _ => redis::Client::open(info.clone())?.get_multiplexed_async_connection_with_config(&limits()).await,
        }
    };
    timeout(CONNECT_LIMIT, connecting).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

async fn speak<S>(info: &ConnectionInfo, socket: S) -> RedisResult<MultiplexedConnection>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (connection, driver) =
        MultiplexedConnection::new_with_config(info.redis_settings(), Bounded::new(socket), limits()).await?;
    tokio::spawn(driver);
    Ok(connection)
}

async fn load(connection: &mut MultiplexedConnection, scripts: &[String]) -> RedisResult<()> {
    for script in scripts {
        redis::cmd("SCRIPT").arg("LOAD").arg(script).exec_async(connection).await?;
    }
    Ok(())
}
