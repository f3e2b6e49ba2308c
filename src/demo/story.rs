//! The scenes of the demo. Each shows the SQL that commits, the tags, the Redis commands as Redis took them, and what a
//! reader finds; each ends with an error if it did not go as told.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

use super::monitor::Monitor;
use super::reader::Reader;
use super::servers::{self, Postgres, Redis};
use crate::command::show;

/// A scene that takes longer than this has failed.
const LIMIT: Duration = Duration::from_secs(30);
/// Django's key prefix and version, and the library's own prefix.
const KEY_HEAD: &str = ":1:tag_07743_";

const SCHEMA: &str = "
CREATE SCHEMA shop;
CREATE TABLE shop.second_model (id int PRIMARY KEY, category_id int, type_id int, name text);
INSERT INTO shop.second_model VALUES (7, 1, 3, 'lamp'), (8, 2, 3, 'chair')";

const RULES: &str = r#"version: 1
caches:
  default: { url: "{redis}", dialect: cache-dependencies, repeat: [] }
rules:
  - table: shop.second_model
    tags:
      - "SecondModel.pk:<id>"
      - "CategoryModel.pk:<category_id>.TypeModel.pk:<type_id>"
"#;

/// Tags that the scenes can meet, to name them again from their hashes.
const TAGS: [&str; 4] =
    ["SecondModel.pk:7", "SecondModel.pk:8", "CategoryModel.pk:1.TypeModel.pk:3", "CategoryModel.pk:2.TypeModel.pk:3"];

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Server(#[from] servers::Error),
    #[error("PostgreSQL: {0}")]
    Sql(#[from] tokio_postgres::Error),
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Scene(String),
}

/// Everything that runs; dropped, it is all gone.
pub(super) struct Stage {
    daemon: Child,
    log: PathBuf,
    sql: Client,
    reader: Reader,
    monitor: Monitor,
    redis: Redis,
    postgres: Postgres,
    directory: tempfile::TempDir,
}

/// Tells all scenes.
pub(super) async fn tell() -> Result<Stage, Error> {
    let begin = Instant::now();
    let mut stage = Stage::build().await?;
    stage.a_row_changes().await?;
    stage.a_row_moves().await?;
    stage.a_rollback().await?;
    stage.a_commit_that_waits().await?;
    stage.kill_9().await?;
    say(
        "",
        &format!("Everything shown above happened in {:.1} s, on servers of its own.", begin.elapsed().as_secs_f32()),
    );
    Ok(stage)
}

fn scene(title: &str) {
    show(format_args!("\n{title}"));
}

fn say(who: &str, what: &str) {
    show(format_args!("  {who:<9} {what}"));
}

/// Polls a fact until it holds; how long that took.
async fn until(fact: &str, mut holds: impl AsyncFnMut() -> Result<bool, Error>) -> Result<Duration, Error> {
    let begin = Instant::now();
    while !holds().await? {
        if begin.elapsed() > LIMIT {
            return Err(Error::Scene(format!("this did not happen within {LIMIT:?}: {fact}")));
        }
        sleep(Duration::from_micros(200)).await;
    }
    Ok(begin.elapsed())
}

impl Stage {
    async fn build() -> Result<Stage, Error> {
        scene("A private PostgreSQL, a private Redis, and waltag");
        let postgres = Postgres::start("")?;
        let redis = Redis::start(&[])?;
        say(
            "servers",
            &format!("PostgreSQL on port {}, Redis on port {}, nothing else is touched", postgres.port, redis.port),
        );
        let (sql, connection) = tokio_postgres::connect(&postgres.url("postgres", "postgres"), NoTls).await?;
        tokio::spawn(connection);
        sql.batch_execute(SCHEMA).await?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("rules.yaml"), RULES.replace("{redis}", &redis.url(0)))?;
        let client = redis::Client::open(redis.url(0))?;
        let reader = Reader::new(client.get_multiplexed_async_connection().await?, KEY_HEAD);
        let monitor = Monitor::start(redis.port);
        let setup = waltag(&postgres, &directory, "postgres").args(["setup", "--apply"]).output()?;
        if !setup.status.success() {
            return Err(Error::Scene(String::from_utf8_lossy(&setup.stderr).into_owned()));
        }
        let log = directory.path().join("waltag.log");
        let daemon = start_daemon(&postgres, &directory, &log)?;
        let mut stage = Stage { daemon, log, sql, reader, monitor, redis, postgres, directory };
        stage.until_ready(1).await?;
        // The first start makes everything stale once; the scenes begin behind it.
        let log = stage.log.clone();
        let over = || std::fs::read_to_string(&log).unwrap_or_default().contains("resync complete");
        until("the first resync is over", async || Ok(over())).await?;
        say("waltag", "`waltag setup --apply` made role and publication, `waltag run` streams");
        Ok(stage)
    }

    async fn until_ready(&mut self, times: usize) -> Result<(), Error> {
        let log = self.log.clone();
        let count = || std::fs::read_to_string(&log).unwrap_or_default().matches(" ready ").count();
        until("waltag is ready", async || Ok(count() >= times)).await.map_err(|_| {
            Error::Scene(format!("waltag did not become ready:\n{}", std::fs::read_to_string(&log).unwrap_or_default()))
        })?;
        Ok(())
    }

    /// What the page of a product shows: from the cache, else computed and stored.
    async fn page(&mut self, id: i32) -> Result<(bool, String), Error> {
        let record = format!("page:{id}");
        if let Some(value) = self.reader.get(&record).await? {
            return Ok((true, value));
        }
        let row = self
            .sql
            .query_one("SELECT name, category_id, type_id FROM shop.second_model WHERE id = $1", &[&id])
            .await?;
        let (value, category, kind): (String, i32, i32) = (row.get(0), row.get(1), row.get(2));
        let tags = [format!("SecondModel.pk:{id}"), format!("CategoryModel.pk:{category}.TypeModel.pk:{kind}")];
        self.reader.set(&record, &value, &tags.each_ref().map(String::as_str)).await?;
        Ok((false, value))
    }

    /// Fills a page and shows the hit.
    async fn fill(&mut self, id: i32) -> Result<(), Error> {
        self.page(id).await?;
        let (hit, value) = self.page(id).await?;
        self.monitor.forget();
        match hit {
            true => say("reader", &format!("page:{id} is a hit: {value}")),
            false => return Err(Error::Scene("the page was not cached".into())),
        }
        Ok(())
    }

    async fn commit(&self, statement: &str) -> Result<(), Error> {
        say("SQL", &format!("{statement}; COMMIT"));
        Ok(self.sql.batch_execute(statement).await?)
    }

    /// Waits until the page is a miss; shows tags, commands, the miss and the fresh value.
    async fn goes_stale(&mut self, id: i32, expected: &str) -> Result<(), Error> {
        let record = format!("page:{id}");
        let reader = &mut self.reader;
        let waited = until("the page goes stale", async || Ok(reader.get(&record).await?.is_none())).await?;
        self.show_commands();
        self.is_fresh(id, expected, &format!("miss {:.1} ms after the commit", waited.as_secs_f32() * 1e3)).await
    }

    /// The page is computed anew, and its new value stays.
    async fn is_fresh(&mut self, id: i32, expected: &str, how: &str) -> Result<(), Error> {
        let (_, fresh) = self.page(id).await?;
        let (hit, value) = self.page(id).await?;
        if !hit || fresh != expected || value != expected {
            return Err(Error::Scene(format!("the reader found {value:?}, not {expected:?}")));
        }
        say("reader", &format!("{how}; computes and stores: {fresh}"));
        Ok(())
    }

    fn show_commands(&self) {
        for line in self.monitor.unlinked() {
            let key = line.split_once(' ').map_or(line.as_str(), |(_, key)| key);
            let tag = TAGS.iter().find(|tag| self.reader.key(tag) == key).unwrap_or(&"?");
            say("tag", tag);
            say("Redis", &format!("UNLINK {key}"));
        }
    }

    async fn a_row_changes(&mut self) -> Result<(), Error> {
        scene("1. A row changes by plain SQL");
        self.fill(7).await?;
        self.commit("UPDATE shop.second_model SET name = 'red lamp' WHERE id = 7").await?;
        self.goes_stale(7, "red lamp").await
    }

    async fn a_row_moves(&mut self) -> Result<(), Error> {
        scene("2. A row moves from category 1 to 2: the old and the new category go stale");
        self.fill(7).await?;
        self.fill(8).await?;
        self.commit("UPDATE shop.second_model SET category_id = 2 WHERE id = 7").await?;
        self.goes_stale(7, "red lamp").await?;
        let (hit, _) = self.page(8).await?;
        say("reader", &format!("page:8 lists category 2: {}", if hit { "still a hit" } else { "a miss too" }));
        if hit { Err(Error::Scene("page:8 stayed cached".into())) } else { Ok(()) }
    }

    async fn a_rollback(&mut self) -> Result<(), Error> {
        scene("3. A rollback sends nothing");
        self.fill(7).await?;
        say("SQL", "BEGIN; UPDATE shop.second_model SET name = 'blue lamp' WHERE id = 7; ROLLBACK");
        self.sql.batch_execute("BEGIN; UPDATE shop.second_model SET name = 'blue lamp' WHERE id = 7; ROLLBACK").await?;
        self.until_confirmed().await?;
        let sent = self.monitor.unlinked().len();
        let (hit, value) = self.page(7).await?;
        say("Redis", &format!("{sent} commands; waltag has confirmed everything up to here"));
        say("reader", &format!("page:7 is {}: {value}", if hit { "still a hit" } else { "a miss" }));
        if hit && sent == 0 { Ok(()) } else { Err(Error::Scene("a rollback made something stale".into())) }
    }

    /// The slot's position is at the end of the WAL: nothing is on its way.
    async fn until_confirmed(&self) -> Result<(), Error> {
        let end = self.sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
        let query =
            format!("SELECT bool_and(confirmed_flush_lsn >= '{}') FROM pg_replication_slots", end.get::<_, String>(0));
        until("waltag confirms", async || {
            Ok(self.sql.query_one(&query, &[]).await?.get::<_, Option<bool>>(0) == Some(true))
        })
        .await?;
        Ok(())
    }

    async fn a_commit_that_waits(&mut self) -> Result<(), Error> {
        scene("4. A commit that waits for a synchronous standby is held: no reader sees it yet");
        self.fill(7).await?;
        self.standby("synchronous_standby_names = 'nobody'").await?;
        let (writer, connection) = tokio_postgres::connect(&self.postgres.url("postgres", "postgres"), NoTls).await?;
        tokio::spawn(connection);
        let statement = "UPDATE shop.second_model SET name = 'green lamp' WHERE id = 7";
        say("SQL", &format!("{statement}; COMMIT (waits for a standby that is not there)"));
        let waiting = tokio::spawn(async move { writer.batch_execute(statement).await });
        let sent = "SELECT bool_and(sent_lsn >= pg_current_wal_flush_lsn()) AND EXISTS \
                    (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep') FROM pg_stat_replication";
        until("the commit reaches waltag", async || {
            Ok(self.sql.query_one(sent, &[]).await?.get::<_, Option<bool>>(0) == Some(true))
        })
        .await?;
        sleep(Duration::from_millis(300)).await;
        let held = self.monitor.unlinked().is_empty() && self.page(7).await?.0;
        say("waltag", "has received the commit 300 ms ago and sent nothing: every reader still sees the old row");
        if !held {
            return Err(Error::Scene("a tag went stale before its row could be seen".into()));
        }
        self.standby("").await?;
        say("SQL", "the standby is no longer waited for: the commit returns");
        waiting.await.map_err(|error| Error::Scene(error.to_string()))??;
        self.goes_stale(7, "green lamp").await
    }

    async fn standby(&self, setting: &str) -> Result<(), Error> {
        self.postgres.configure(setting)?;
        self.postgres.reload()?;
        let query = "SELECT current_setting('synchronous_standby_names') <> ''";
        let wanted = !setting.is_empty();
        until("PostgreSQL reloads", async || Ok(self.sql.query_one(query, &[]).await?.get::<_, bool>(0) == wanted))
            .await?;
        if wanted {
            self.postgres.until_commits_wait("postgres").await?;
        }
        Ok(())
    }

    async fn kill_9(&mut self) -> Result<(), Error> {
        scene("5. kill -9, changes meanwhile, and nothing is lost");
        self.fill(7).await?;
        self.fill(8).await?;
        self.daemon.kill()?;
        self.daemon.wait()?;
        say("waltag", "killed with SIGKILL");
        self.commit("UPDATE shop.second_model SET name = 'last lamp' WHERE id = 7").await?;
        self.commit("DELETE FROM shop.second_model WHERE id = 8").await?;
        self.commit("INSERT INTO shop.second_model VALUES (8, 2, 3, 'stool')").await?;
        self.daemon = start_daemon(&self.postgres, &self.directory, &self.log)?;
        self.until_ready(2).await?;
        say("waltag", "started again; the slot kept what it had not confirmed");
        self.until_confirmed().await?;
        self.show_commands();
        self.is_fresh(7, "last lamp", "page:7 is a miss").await?;
        self.is_fresh(8, "stool", "page:8 is a miss").await
    }

    /// For `--keep`.
    pub(super) fn invite(&self) {
        scene("Everything keeps running until Ctrl-C");
        say("psql", &format!("psql {}", self.postgres.url("postgres", "postgres")));
        say("redis", &format!("redis-cli -p {} monitor", self.redis.port));
        say("rules", &self.directory.path().join("rules.yaml").display().to_string());
        say("log", &self.log.display().to_string());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// This program again, with the demo's settings.
fn waltag(postgres: &Postgres, directory: &tempfile::TempDir, user: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env_clear().env("WALTAG_DATABASE_URL", postgres.url(user, "postgres"));
    command.env("WALTAG_RULES", directory.path().join("rules.yaml")).env("WALTAG_LISTEN", "").stdin(Stdio::null());
    command
}

fn start_daemon(postgres: &Postgres, directory: &tempfile::TempDir, log: &PathBuf) -> Result<Child, Error> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = waltag(postgres, directory, "waltag");
    // Ctrl-C goes to the demo, which stops everything in order.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    Ok(command.arg("run").stdout(Stdio::null()).stderr(log).spawn()?)
}
