//! Sentinels watch a master and its replicas, and say which of them is the master now (Redis manual, "Guidelines for Redis clients with
//! support for Redis Sentinel").
//!
//! All of them are asked, and the answer by the highest configuration epoch counts: a Sentinel that was cut off goes on naming the master of
//! before. A master that was deposed may live on and take writes that nobody will ever read, so they are asked again for as long as the
//! connection is used.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{ConnectionInfo, ErrorKind, RedisError, RedisResult};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::connection::sentence;
use super::location::{self, Service};
use super::masters::connect;

/// A deposed master that is alive takes writes for 8 s and more, until a Sentinel turns it into a replica
/// (`sentinel.c`, "convert-to-slave").
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// One that does not answer for this long is passed over.
const PATIENCE: Duration = Duration::from_secs(2);

/// The Sentinels of one master, with the connections to those that have answered.
struct Sentinels {
    service: String,
    epoch: Arc<AtomicU64>,
    seeds: Vec<(ConnectionInfo, Option<MultiplexedConnection>)>,
}

/// What one of them says; the highest epoch counts.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    epoch: u64,
    host: String,
    port: u16,
}

/// Goes on asking whether the master is the master, until it is dropped.
pub struct Watch {
    deposed: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

/// Where the master of the service is, and a watch over it.
pub async fn find(seeds: &[ConnectionInfo], service: &Service) -> RedisResult<(ConnectionInfo, Watch)> {
    let seeds = seeds.iter().map(|seed| (seed.clone(), None)).collect();
    let mut sentinels = Sentinels { service: service.name.clone(), epoch: service.epoch.clone(), seeds };
    let named = sentinels.master().await?;
    let master = location::moved(&service.master, &named.host, named.port);
    let (told, deposed) = watch::channel(false);
    let task = tokio::spawn(async move {
        loop {
            sleep(ASK_AGAIN).await;
            // While none answers, the master is the one that it was.
            if sentinels.master().await.is_ok_and(|now| (&now.host, now.port) != (&named.host, named.port)) {
                let _ = told.send(true);
                return;
            }
        }
    });
    Ok((master, Watch { deposed, task }))
}

impl Watch {
    /// Fails when the Sentinels name another master.
    pub fn verify(&self) -> RedisResult<()> {
        match *self.deposed.borrow() {
            true => Err(sentence("the Sentinels name another master now".into())),
            false => Ok(()),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sentinels {
    async fn master(&mut self) -> RedisResult<Named> {
        let Sentinels { service, seeds, .. } = self;
        let asked = seeds.iter_mut().map(|(seed, connection)| async {
            let answer = timeout(PATIENCE, ask(seed, connection, service)).await;
            answer.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())).inspect_err(|_| {
                *connection = None;
            })
        });
        let answers = join_all(asked).await;
        let places: Vec<String> = seeds.iter().map(|(seed, _)| seed.addr().to_string()).collect();
        let before = self.epoch.load(Ordering::Relaxed);
        let named = newest(answers, before).map_err(|error| {
            let (who, service) = (places.join(", "), &self.service);
            match error {
                Some(error) if error.detail().is_some_and(|detail| detail.starts_with("No such master")) => {
                    sentence(format!("the Sentinels at {who} watch no master called `{service}`"))
                }
                Some(error) if is_stranger(&error) => sentence(format!(
                    "the Sentinels at {who} do not let us ask ({error}): give `sentinel_password`, and `sentinel_username` where they have users, with +sentinel|master +sentinel|get-master-addr-by-name"
                )),
                Some(error) => sentence(format!("no Sentinel at {who} says who `{service}` is: {error}")),
                None => sentence(format!("of the Sentinels at {who} only those answer that have not heard of the last failover")),
            }
        })?;
        self.epoch.store(named.epoch, Ordering::Relaxed);
        Ok(named)
    }
}

/// They want to know who asks, or it may not.
fn is_stranger(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}

/// The answer that counts, or the last error. One that is older than what was heard `before` counts only if most have answered: without most of them
/// there is no failover, so they know of every one. Nothing, if they have not; and what was heard may have been wrong.
fn newest(answers: Vec<RedisResult<Named>>, before: u64) -> Result<Named, Option<RedisError>> {
    let (mut named, mut failure, total) = (None, None, answers.len());
    let answered = answers.iter().filter(|answer| answer.is_ok()).count();
    for answer in answers {
        match answer {
            Ok(answer) => named = named.max(Some(answer)),
            Err(error) => failure = Some(error),
        }
    }
    match named {
        Some(named) if named.epoch < before && answered * 2 <= total => Err(None),
        named => named.ok_or(failure),
    }
}

/// Asks one. During a failover the address is that of the new master before its entry says so.
async fn ask(
    seed: &ConnectionInfo,
    connection: &mut Option<MultiplexedConnection>,
    service: &str,
) -> RedisResult<Named> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(connect(seed.clone()).await?),
    };
    let question = |what: &str| {
        let mut question = redis::cmd("SENTINEL");
        question.arg(what).arg(service);
        question
    };
    let entry: HashMap<String, String> = question("MASTER").query_async(connection).await?;
    let (host, port) = question("GET-MASTER-ADDR-BY-NAME").query_async(connection).await?;
    let epoch = entry.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
    Ok(Named { epoch, host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_epoch_counts() {
        let named = |epoch, host: &str| Ok(Named { epoch, host: host.into(), port: 6379 });
        let away = || Err(sentence("away".into()));
        let newest = |answers, before| {
            newest(answers, before).map(|named| named.host).map_err(|error| error.map(|e| e.to_string()))
        };
        assert_eq!(newest(vec![named(9, "z"), away(), named(10, "a"), named(2, "y")], 10), Ok("a".into()));
        assert_eq!(newest(vec![away()], 0), Err(Some("away".into())));
        assert_eq!(newest(vec![named(9, "cut off"), away()], 10), Err(None), "the others may know better");
        assert_eq!(newest(vec![named(9, "a"), named(1, "b")], 10), Ok("a".into()), "nobody does");
        let lie = u64::MAX;
        assert_eq!(
            newest(vec![named(9, "a"), named(9, "a"), away()], lie),
            Ok("a".into()),
            "most know of every failover"
        );
    }
}
