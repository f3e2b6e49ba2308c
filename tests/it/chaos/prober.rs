//! How late repeats come: a row, a tag and a record that nobody else touches.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;

use super::readers::connect;
use super::{Lab, session};

/// A pass that has not come within this time while no fault was under way hangs.
pub const HANGS: Duration = Duration::from_secs(30);
/// What the cache says as `repeat`.
const REPEAT: Duration = Duration::from_secs(1);

/// What became of a record.
enum Fate {
    /// It went stale after this time.
    Gone(Duration),
    /// A fault came in between: nothing is known.
    Disturbed,
    ServerIsAway,
}

/// Probes until it is aborted. A server that is away is tried again.
pub async fn probe(lab: Arc<Lab>) {
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let connected = (connect(&lab.urls.sets).await, session(&lab.urls.primary()).await);
        let (Some(mut cache), Some(sql)) = connected else { continue };
        while !matches!(sample(&lab, &mut cache, &sql).await, Fate::ServerIsAway) {}
    }
}

/// One change, its first pass, and its repeat.
async fn sample(lab: &Lab, cache: &mut MultiplexedConnection, sql: &Client) -> Fate {
    let fault = lab.faults.load(Relaxed);
    if fault % 2 == 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        return Fate::Disturbed;
    }
    if fill(cache).await.is_err() || sql.batch_execute("UPDATE probe SET val = val + 1").await.is_err() {
        return Fate::ServerIsAway;
    }
    let first = until_gone(lab, cache, fault).await;
    let Fate::Gone(_) = first else { return first };
    // A reader that was computing stores what it read before.
    if fill(cache).await.is_err() {
        return Fate::ServerIsAway;
    }
    let repeat = until_gone(lab, cache, fault).await;
    if let Fate::Gone(took) = repeat {
        lab.counts.repeats.fetch_add(1, Relaxed);
        lab.counts.latest_repeat.fetch_max(took.saturating_sub(REPEAT).as_millis() as u64, Relaxed);
    }
    repeat
}

/// A record that is linked from the set of its tag.
async fn fill(cache: &mut MultiplexedConnection) -> redis::RedisResult<()> {
    redis::cmd("SET").arg("probe:1").arg("cached").exec_async(cache).await?;
    redis::cmd("SADD").arg("tag:probe:1").arg("probe:1").exec_async(cache).await
}

async fn until_gone(lab: &Lab, cache: &mut MultiplexedConnection, fault: u64) -> Fate {
    let begin = Instant::now();
    loop {
        let found = redis::cmd("EXISTS").arg("probe:1").query_async::<bool>(cache).await;
        let took = begin.elapsed();
        match found {
            _ if lab.faults.load(Relaxed) != fault => return Fate::Disturbed,
            Err(_) => return Fate::ServerIsAway,
            Ok(false) => return Fate::Gone(took),
            Ok(true) if took >= HANGS => {
                lab.counts.hangs.fetch_add(1, Relaxed);
                return Fate::Disturbed;
            }
            Ok(true) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}
