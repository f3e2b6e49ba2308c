//! One pass over a Redis, in slices: it pauses as long as each slice took.

use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, sleep};

use super::super::Cache;
use super::super::command::{commands, new_version, on_key};
use super::super::connection::{self, Error, Kind};
use super::super::gap::Keys;
use super::super::pattern::common_glob;

/// Keys that Redis looks at per SCAN: calls of about a millisecond.
const COUNT: usize = 500;
/// The longest pause between two slices.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How a sweep goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// At most this many keys per second; without it only the pauses.
    pub rate: Option<u32>,
    /// Count, and touch nothing.
    pub dry_run: bool,
}

impl Pace {
    /// The pause after a slice that took `elapsed` and made `count` keys stale.
    fn pause(self, elapsed: Duration, count: u64) -> Duration {
        let by_rate = self.rate.map(|rate| Duration::from_secs_f64(count as f64 / f64::from(rate)));
        elapsed.min(LONGEST_PAUSE).max(by_rate.unwrap_or_default().saturating_sub(elapsed))
    }
}

/// Makes every key stale that one of the patterns matches, and the tags; how many.
pub async fn sweep(cache: &Cache, Keys { patterns, tags }: &Keys, pace: Pace) -> Result<u64, Error> {
    if patterns.is_empty() && tags.is_empty() {
        return Ok(0);
    }
    let failed = |error| Error::new(cache, &error);
    let mut connection = connection::open(cache).await?;
    let mut pipeline = redis::Pipeline::new();
    pipeline.ignore_errors();
    for command in tags.iter().flat_map(|tag| commands(cache, tag, new_version())).filter(|_| !pace.dry_run) {
        pipeline.add_command(command.pack());
    }
    let sent = send(cache, &mut connection, pipeline).await? as u64;
    if patterns.is_empty() {
        return Ok(sent);
    }
    let glob = common_glob(patterns);
    let (mut cursor, mut swept) = (0_u64, sent);
    loop {
        let begin = Instant::now();
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(glob.as_slice()).arg("COUNT").arg(COUNT);
        let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut connection).await.map_err(failed)?;
        let mut pipeline = redis::Pipeline::new();
        pipeline.ignore_errors();
        // No pattern ever touches the markers.
        let owed = |key: &Vec<u8>| !key.starts_with(b"waltag:") && patterns.iter().any(|pattern| pattern.matches(key));
        let before = swept;
        for key in keys.into_iter().filter(owed) {
            if !pace.dry_run {
                on_key(cache, key, new_version()).for_each(|command| {
                    pipeline.add_command(command.pack());
                });
            }
            swept += 1;
        }
        send(cache, &mut connection, pipeline).await?;
        if next == 0 {
            return Ok(swept);
        }
        cursor = next;
        sleep(pace.pause(begin.elapsed(), swept - before)).await;
    }
}

/// Sends a slice; how many commands it had. One key that refuses its command for ever must not hold up all others.
async fn send(
    cache: &Cache,
    connection: &mut redis::aio::MultiplexedConnection,
    pipeline: redis::Pipeline,
) -> Result<usize, Error> {
    if pipeline.is_empty() {
        return Ok(0);
    }
    let replies: redis::RedisResult<Vec<Value>> = pipeline.query_async(connection).await;
    let replies = replies.map_err(|error| Error::new(cache, &error))?;
    let count = replies.len();
    for reply in replies {
        if let Value::ServerError(error) = reply {
            let error = Error::reply(cache, error);
            if error.kind != Kind::Futile {
                return Err(error);
            }
            tracing::error!(cache = cache.name, "{}; passed over by a sweep", error.sentence);
        }
    }
    Ok(count)
}
