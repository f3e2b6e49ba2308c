//! Readers with the real protocols, and the comparison of what they would take for fresh with the database.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::{BULK, Lab, OTHER_CATEGORIES, OTHER_ROW, dice, session};

/// The longest that a computation takes: within the repeat.
pub const SLOWEST: Duration = Duration::from_millis(400);

/// How records are read and written.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    /// cache-dependencies: versions of the tags are read, or made, when a record is stored; a tag without a key is stale.
    Library,
    /// Versions are taken before the row is read; a tag without a key has version 0.
    Versions,
    /// A key and nothing else; rows are read from the standby.
    Plain,
    /// The Next.js handlers: a record has the time at which it was stored, and is stale if a tag's time is later.
    Stamps,
    /// A record is linked from the sets of its tags, after it was stored.
    Sets,
}

/// A record with the versions of its tags.
#[derive(Serialize, Deserialize)]
struct Record {
    value: String,
    tags: BTreeMap<String, String>,
}

pub fn all(lab: &Arc<Lab>) -> Vec<JoinHandle<()>> {
    [Protocol::Library, Protocol::Versions, Protocol::Plain, Protocol::Stamps, Protocol::Sets]
        .map(|protocol| tokio::spawn(read(lab.clone(), protocol)))
        .into()
}

/// Reads until it is aborted. A server that is away is tried again.
async fn read(lab: Arc<Lab>, protocol: Protocol) {
    let url = match protocol {
        Protocol::Library => &lab.urls.library,
        Protocol::Versions => &lab.urls.versions,
        Protocol::Plain => &lab.urls.plain,
        Protocol::Stamps => &lab.urls.stamps,
        Protocol::Sets => &lab.urls.sets,
    };
    loop {
        let database = if protocol == Protocol::Plain { lab.urls.standby.clone() } else { lab.urls.primary() };
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (Some(mut cache), Some(sql)) = (connect(url).await, session(&database).await) else { continue };
        while let Ok(Some(hit)) = look(&lab, protocol, &mut cache, &sql).await {
            lab.counts.reads.fetch_add(1, Relaxed);
            lab.counts.hits.fetch_add(u64::from(hit), Relaxed);
        }
    }
}

/// Once it answers.
pub async fn connected(url: &str) -> MultiplexedConnection {
    loop {
        if let Some(connection) = connect(url).await {
            return connection;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `None` if there is no such server.
pub async fn connect(url: &str) -> Option<MultiplexedConnection> {
    let limits = redis::AsyncConnectionConfig::new()
        .set_response_timeout(Some(Duration::from_secs(5)))
        .set_connection_timeout(Some(Duration::from_secs(2)));
    redis::Client::open(url).unwrap().get_multiplexed_async_connection_with_config(&limits).await.ok()
}

/// Looks a record up, and computes it after a miss. Was it a hit? `None` if the database is away.
async fn look(
    lab: &Lab,
    protocol: Protocol,
    cache: &mut MultiplexedConnection,
    sql: &Client,
) -> RedisResult<Option<bool>> {
    tokio::time::sleep(Duration::from_millis(dice(0..4))).await;
    let name = match dice(0..3) {
        0 => format!("cat:{}", dice(0..OTHER_CATEGORIES.end)),
        1 if lab.hostile && protocol == Protocol::Library => format!("bulk:{}", dice(1..=BULK)),
        _ => format!("item:{}", dice(1..=OTHER_ROW)),
    };
    if fresh(protocol, cache, &name).await?.is_some() {
        return Ok(Some(true));
    }
    let tags = [name.clone(), "all".into()];
    let before = if protocol == Protocol::Versions { versions(cache, &tags).await? } else { BTreeMap::new() };
    let begin = Instant::now();
    let Some(value) = compute(sql, &name).await else { return Ok(None) };
    if dice(0..10) == 0 {
        tokio::time::sleep(SLOWEST.mul_f64(dice(0.1..0.95))).await;
    }
    // Whoever is later than the repeats is not healed by them: that is this machine's fault, not the daemon's.
    if protocol != Protocol::Versions && begin.elapsed() > 2 * SLOWEST {
        return Ok(Some(false));
    }
    match protocol {
        Protocol::Plain => redis::cmd("SET").arg(&name).arg(value).exec_async(cache).await?,
        Protocol::Versions => store(cache, &name, Record { value, tags: before }).await?,
        Protocol::Stamps => {
            let at = BTreeMap::from([("at".to_owned(), now().to_string())]);
            store(cache, &name, Record { value, tags: at }).await?;
            let tags = serde_json::to_string(&tags).unwrap();
            redis::cmd("HSET").arg("__sharedTags__").arg(&name).arg(tags).exec_async(cache).await?;
        }
        Protocol::Sets => {
            redis::cmd("SET").arg(&name).arg(value).exec_async(cache).await?;
            redis::cmd("SADD").arg(format!("tag:{name}")).arg(&name).exec_async(cache).await?;
        }
        Protocol::Library => {
            let mut tags = BTreeMap::new();
            for key in library_tags(&name).iter().map(|tag| tag_key(tag)) {
                let found: Option<String> = redis::cmd("GET").arg(&key).query_async(cache).await?;
                let version = match found {
                    Some(version) => version,
                    None => {
                        let version = rand::random::<u32>().to_string();
                        redis::cmd("SET").arg(&key).arg(&version).arg("EX").arg(86_400).exec_async(cache).await?;
                        version
                    }
                };
                tags.insert(key, version);
            }
            store(cache, &name, Record { value, tags }).await?;
        }
    }
    Ok(Some(false))
}

/// Milliseconds since 1970.
fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_millis()
}

async fn store(cache: &mut MultiplexedConnection, name: &str, record: Record) -> RedisResult<()> {
    let text = serde_json::to_string(&record).unwrap();
    redis::cmd("SET").arg(format!("record:{name}")).arg(text).exec_async(cache).await
}

/// The record, if its protocol takes it for fresh.
async fn fresh(protocol: Protocol, cache: &mut MultiplexedConnection, name: &str) -> RedisResult<Option<String>> {
    if matches!(protocol, Protocol::Plain | Protocol::Sets) {
        return redis::cmd("GET").arg(name).query_async(cache).await;
    }
    let text: Option<String> = redis::cmd("GET").arg(format!("record:{name}")).query_async(cache).await?;
    let Some(record) = text.and_then(|text| serde_json::from_str::<Record>(&text).ok()) else { return Ok(None) };
    if protocol == Protocol::Stamps {
        let stamp: Option<u64> = redis::cmd("HGET").arg("__revalidated_tags__").arg(name).query_async(cache).await?;
        let fresh = stamp.is_none_or(|stamp| record.tags["at"].parse::<u64>().unwrap() >= stamp);
        return Ok(fresh.then_some(record.value));
    }
    let tags: Vec<String> = record.tags.keys().cloned().collect();
    let now = versions(cache, &tags).await?;
    let gone = protocol == Protocol::Library && now.values().any(|version| version == "0");
    Ok((now == record.tags && !gone).then_some(record.value))
}

/// The versions of tags now; 0 for one without a key.
async fn versions(cache: &mut MultiplexedConnection, tags: &[String]) -> RedisResult<BTreeMap<String, String>> {
    let found: Vec<Option<String>> = redis::cmd("MGET").arg(tags).query_async(cache).await?;
    Ok(tags.iter().cloned().zip(found.into_iter().map(|version| version.unwrap_or("0".into()))).collect())
}

fn tag_key(tag: &str) -> String {
    let digest: String = Md5::digest(tag).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(":1:tag_07743_{digest}")
}

/// A record of the table `bulk` has the tag that stands for many, too.
fn library_tags(name: &str) -> Vec<String> {
    match name.strip_prefix("bulk:").and_then(|id| id.parse::<i32>().ok()) {
        Some(id) => super::hostile::bulk_tags(id % super::hostile::COLLAPSING, &id.to_string()).into(),
        None => vec![name.to_owned()],
    }
}

/// What the database says. `None` if it is away.
async fn compute(sql: &Client, name: &str) -> Option<String> {
    let (kind, number) = name.split_once(':').unwrap();
    let query = match kind {
        "item" => format!("SELECT string_agg(cat || '/' || val, ',') FROM item WHERE id = {number}"),
        "bulk" => format!("SELECT string_agg(val::text, ',') FROM bulk WHERE id = {number}"),
        _ => format!("SELECT string_agg(id || '=' || val, ',' ORDER BY id) FROM item WHERE cat = {number}"),
    };
    let row = sql.query_one(&query, &[]).await.ok()?;
    Some(row.get::<_, Option<String>>(0).unwrap_or("nothing".into()))
}

/// Every record of every cache that would be taken for fresh and is not what the database says.
pub async fn compare(lab: &Lab, sql: &Client, with_versions: bool) -> Vec<String> {
    let (mut stale, urls) = (Vec::new(), &lab.urls);
    let mut caches = vec![
        (Protocol::Library, "library", &urls.library),
        (Protocol::Plain, if lab.hostile { "plain" } else { "standby" }, &urls.plain),
        (Protocol::Stamps, "stamps", &urls.stamps),
        (Protocol::Sets, "sets", &urls.sets),
    ];
    if with_versions {
        caches.push((Protocol::Versions, "versions", &urls.versions));
    }
    let names = (1..=OTHER_ROW)
        .map(|id| format!("item:{id}"))
        .chain((0..OTHER_CATEGORIES.end).map(|cat| format!("cat:{cat}")))
        .chain((1..=if lab.hostile { BULK } else { 0 }).map(|id| format!("bulk:{id}")));
    let mut truths = Vec::new();
    for name in names {
        let truth = compute(sql, &name).await.unwrap();
        truths.push((name, truth));
    }
    for (protocol, cache, url) in caches {
        let mut connection = connected(url).await;
        for (name, truth) in &truths {
            match fresh(protocol, &mut connection, name).await.unwrap() {
                Some(cached) if cached != *truth => stale.push(format!("{cache} {name}: {cached}, not {truth}")),
                _ => {}
            }
        }
    }
    stale
}

/// A field of the marker of a cache, as Redis has it.
pub async fn marker(url: &str, field: &str) -> Option<String> {
    let mut connection = connected(url).await;
    let found: Vec<String> = redis::cmd("KEYS").arg("waltag:*").query_async(&mut connection).await.ok()?;
    redis::cmd("HGET").arg(found.first()?).arg(field).query_async(&mut connection).await.ok()?
}
