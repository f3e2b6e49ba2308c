//! What goes wrong, and how many resyncs each owes: one per cache that may have missed something.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::readers::{connected, marker};
use super::{LIMIT, Lab, OTHER_ROW, dice};
use crate::support::{end_of_stream, signal, until_within};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Kill,
    Stop,
    RedisPaused,
    KilledWhilePaused,
    WalsenderEnded,
    PostgresRestarted,
    Reload,
    ReplicaPaused,
    SlotDropped,
    BackendKilled,
    PublicationRecreated,
    PublicationAltered,
    RedisEmptied,
    RedisRestarted,
    RedisFromACopy,
    Rewritten,
    TooFarBehind,
    Promoted,
    PutBack,
    PutBackWhileAway,
    RenamedInATransaction,
    RenamedForAWhile,
    Partitioned,
    Unpublished,
    PublicationSet,
    KeysWithheld,
}

/// None of these may make anything stale that did not change.
pub const HARMLESS: [Fault; 8] = [
    Fault::Kill,
    Fault::KilledWhilePaused,
    Fault::RedisPaused,
    Fault::WalsenderEnded,
    Fault::PostgresRestarted,
    Fault::Reload,
    Fault::ReplicaPaused,
    Fault::Stop,
];

/// After each of these something may have been missed.
pub const GAPS: [Fault; 9] = [
    Fault::SlotDropped,
    Fault::RedisEmptied,
    Fault::BackendKilled,
    Fault::PublicationRecreated,
    Fault::RedisRestarted,
    Fault::PublicationAltered,
    Fault::RedisFromACopy,
    Fault::Rewritten,
    Fault::TooFarBehind,
];

/// What nobody had thought of, in a world of its own.
pub const HOSTILE: [Fault; 8] = [
    Fault::RenamedInATransaction,
    Fault::PutBack,
    Fault::KeysWithheld,
    Fault::Partitioned,
    Fault::Unpublished,
    Fault::PutBackWhileAway,
    Fault::RenamedForAWhile,
    Fault::PublicationSet,
];

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Stop => "stop",
            Fault::RedisPaused => "redis_paused",
            Fault::KilledWhilePaused => "killed_while_paused",
            Fault::WalsenderEnded => "walsender",
            Fault::PostgresRestarted => "restart",
            Fault::Reload => "reload",
            Fault::ReplicaPaused => "replica_paused",
            Fault::SlotDropped => "slot",
            Fault::BackendKilled => "crash",
            Fault::PublicationRecreated => "publication",
            Fault::PublicationAltered => "alter_publication",
            Fault::RedisEmptied => "flushdb",
            Fault::RedisRestarted => "redis_restarted",
            Fault::RedisFromACopy => "redis_copy",
            Fault::Rewritten => "ddl",
            Fault::TooFarBehind => "max_retained_wal",
            Fault::Promoted => "promoted",
            Fault::PutBack => "put_back",
            Fault::PutBackWhileAway => "put_back_while_away",
            Fault::RenamedInATransaction => "renamed",
            Fault::RenamedForAWhile => "renamed_for_a_while",
            Fault::Partitioned => "partitioned",
            Fault::Unpublished => "unpublished",
            Fault::PublicationSet => "publication_set",
            Fault::KeysWithheld => "noperm",
        }
    }

    /// How many caches owe a resync after it; `None` if nobody can know.
    pub fn owes(self) -> Option<u32> {
        Some(match self {
            // Every cache: nobody knows what was not sent.
            Fault::SlotDropped | Fault::BackendKilled | Fault::PublicationRecreated | Fault::TooFarBehind => 6,
            Fault::Promoted | Fault::PutBackWhileAway => 6,
            // Every cache has templates of the table.
            Fault::PublicationAltered | Fault::Rewritten | Fault::Unpublished | Fault::PublicationSet => 6,
            // For a moment it was another table to its readers.
            Fault::RenamedInATransaction => 6,
            // Those of that Redis.
            Fault::RedisRestarted | Fault::RedisFromACopy => 4,
            Fault::RedisEmptied => 1,
            // Whether the catalog is looked at while the table bears another name is chance.
            Fault::RenamedForAWhile | Fault::Partitioned => return None,
            // Once because of what the daemon knows, and once more because of what the markers know if that is judged later.
            Fault::PutBack => return None,
            _ => 0,
        })
    }
}

impl Lab {
    /// Lets it happen; how many resyncs it owes.
    pub(super) async fn suffer(self: &Arc<Lab>, fault: Fault) -> u32 {
        self.faults.fetch_add(1, Relaxed);
        let owed = self.happens(fault).await;
        self.faults.fetch_add(1, Relaxed);
        owed
    }

    async fn happens(self: &Arc<Lab>, fault: Fault) -> u32 {
        let (sql, before) = (self.sql().await, self.resyncs().await);
        let execute =
            async |text: &str| sql.batch_execute(text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
        match fault {
            Fault::Kill => {
                self.take_daemon().await.kill();
                self.start_daemon().await;
            }
            Fault::Stop => {
                assert_eq!(self.take_daemon().await.stop(), Some(0));
                self.start_daemon().await;
            }
            Fault::RedisPaused => {
                let pid = self.world.lock().await.redis.pid().unwrap();
                signal(pid, "STOP");
                tokio::time::sleep(Duration::from_millis(dice(200..2_000))).await;
                signal(pid, "CONT");
            }
            Fault::KilledWhilePaused => {
                // What Redis never answered for must come again.
                let pid = self.world.lock().await.redis.pid().unwrap();
                signal(pid, "STOP");
                tokio::time::sleep(Duration::from_millis(700)).await;
                self.take_daemon().await.kill();
                signal(pid, "CONT");
                self.start_daemon().await;
            }
            Fault::WalsenderEnded => execute(end_of_stream()).await,
            Fault::PostgresRestarted => {
                let mut world = self.world.lock().await;
                world.postgres.stop("fast", LIMIT).unwrap();
                world.postgres.launch().unwrap();
            }
            Fault::Reload => self.daemon.lock().await.as_ref().unwrap().signal("HUP"),
            Fault::ReplicaPaused => {
                let Some(standby) = super::session(&self.urls.standby).await else { return 0 };
                standby.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
                tokio::time::sleep(Duration::from_millis(dice(200..1_000))).await;
                // Until every repeat is over: what is cached now is what the standby has, and nothing else makes it stale.
                self.quiet.store(true, Relaxed);
                tokio::time::sleep(Duration::from_millis(1_500)).await;
                standby.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
            }
            Fault::SlotDropped => {
                let drop = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active;
                    SELECT pg_drop_replication_slot('waltag')";
                until_within(LIMIT, "the slot is dropped", || async { sql.batch_execute(drop).await.is_ok() }).await;
            }
            Fault::BackendKilled => self.crash().await,
            Fault::PublicationRecreated => {
                // Writers go on in between.
                let tables: String = sql
                    .query_one(
                        "SELECT string_agg(tablename, ', ') FROM pg_publication_tables WHERE pubname = 'waltag'",
                        &[],
                    )
                    .await
                    .unwrap()
                    .get(0);
                execute("DROP PUBLICATION waltag").await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                execute(&format!("CREATE PUBLICATION waltag FOR TABLE {tables}")).await;
            }
            Fault::PublicationAltered => {
                // A writer that is open over it: what it wrote before is never sent, and everything has gone stale, and was cached
                // again, when it commits.
                let (id, stale) = (OTHER_ROW, self.said("everything is stale").await);
                let row = format!("INSERT INTO item VALUES ({id}, 8, 0) ON CONFLICT (id) DO UPDATE SET cat = 8");
                execute(&row).await;
                let open = self.sql().await;
                open.batch_execute(&format!("BEGIN; UPDATE item SET cat = 9 WHERE id = {id}")).await.unwrap();
                execute("ALTER PUBLICATION waltag DROP TABLE item, bulk").await;
                open.batch_execute(&format!("UPDATE item SET cat = 10 WHERE id = {id}")).await.unwrap();
                execute("ALTER PUBLICATION waltag ADD TABLE item, bulk").await;
                until_within(LIMIT, "the first pass", || async { self.said("everything is stale").await >= stale + 6 })
                    .await;
                tokio::time::sleep(Duration::from_secs(2)).await;
                open.batch_execute("COMMIT").await.unwrap();
            }
            Fault::RedisEmptied => {
                let mut cache = connected(&self.urls.library).await;
                redis::cmd("FLUSHDB").exec_async(&mut cache).await.unwrap();
            }
            Fault::RedisRestarted => {
                let mut world = self.world.lock().await;
                world.redis.kill();
                world.redis.launch().unwrap();
            }
            Fault::RedisFromACopy => {
                let mut cache = connected(&self.urls.library).await;
                redis::cmd("SAVE").exec_async(&mut cache).await.unwrap();
                // The copy is older than what the daemon knows.
                let markers = async || {
                    let mut markers = Vec::new();
                    for url in [&self.urls.library, &self.urls.plain, &self.urls.stamps, &self.urls.sets] {
                        // How often it was written.
                        markers.push(marker(url, "seq").await);
                    }
                    markers
                };
                let saved = markers().await;
                until_within(LIMIT, "the markers have moved", || async {
                    markers().await.iter().zip(&saved).all(|(now, then)| now != then)
                })
                .await;
                let mut world = self.world.lock().await;
                world.redis.kill();
                world.redis.launch().unwrap();
                drop(world);
                let mut cache = connected(&self.urls.library).await;
                let size: u64 = redis::cmd("DBSIZE").query_async(&mut cache).await.unwrap();
                assert!(size > 0, "the copy was loaded");
            }
            Fault::Promoted => {
                // It does not wait for the standby any more, which is 20 ms behind: what was committed last is lost, and was read.
                execute("ALTER SYSTEM SET synchronous_standby_names = ''").await;
                let mut world = self.world.lock().await;
                world.postgres.reload().unwrap();
                tokio::time::sleep(Duration::from_millis(500)).await;
                self.promoted.store(true, Relaxed);
                world.postgres.stop("immediate", LIMIT).unwrap();
                drop(world);
                let standby = super::session(&self.urls.standby).await.unwrap();
                standby.batch_execute("SELECT pg_promote()").await.unwrap();
                *self.urls.primary.write().unwrap() = self.urls.standby.clone();
            }
            Fault::TooFarBehind => {
                // Four caches do not answer, and 100 MB of somebody else's pass by.
                let pid = self.world.lock().await.redis.pid().unwrap();
                let said = self.said("more than --max-retained-wal allows").await;
                signal(pid, "STOP");
                execute("SELECT count(pg_logical_emit_message(false, 'chaos', repeat('x', 1000000))) FROM generate_series(1, 100)").await;
                until_within(LIMIT, "it lets go of the slot", || async {
                    self.said("more than --max-retained-wal allows").await > said
                })
                .await;
                signal(pid, "CONT");
            }
            Fault::Rewritten => {
                // A TRUNCATE before the catalog is looked at would sweep what the resync is for.
                let rest = self.rest.write().await;
                execute("ALTER TABLE item ALTER val TYPE numeric USING val + 0; ALTER TABLE item ALTER val TYPE bigint USING val::bigint").await;
                self.wait_for_resyncs(before + 6).await;
                drop(rest);
            }
            Fault::PutBack => self.is_put_back(false).await,
            Fault::PutBackWhileAway => self.is_put_back(true).await,
            Fault::RenamedInATransaction => self.is_renamed_in_a_transaction().await,
            Fault::RenamedForAWhile => self.is_renamed_for_a_while().await,
            Fault::Partitioned => self.is_partitioned(before).await,
            Fault::Unpublished => {
                // Writers go on in between.
                execute("ALTER PUBLICATION waltag DROP TABLE item").await;
                self.some_commits().await;
                execute("ALTER PUBLICATION waltag ADD TABLE item").await;
            }
            Fault::PublicationSet => {
                execute("ALTER PUBLICATION waltag SET TABLE bulk, probe, noise").await;
                self.some_commits().await;
                execute("ALTER PUBLICATION waltag SET TABLE noise, probe, item, bulk").await;
            }
            Fault::KeysWithheld => self.keys_are_withheld().await,
        }
        let Some(owes) = fault.owes() else { return self.what_came_of_it(fault, before).await };
        if owes > 0 && !matches!(fault, Fault::RedisEmptied | Fault::RedisRestarted | Fault::RedisFromACopy) {
            self.forgive(before + owes).await;
        }
        owes
    }

    /// What was committed before the resync began may not be in the ledger.
    pub(super) async fn forgive(&self, resyncs: u32) {
        self.wait_for_resyncs(resyncs).await;
        *self.forgiven.lock().await = Instant::now();
    }

    /// One backend is killed while others commit asynchronously: the server ends all of them and forgets what was not flushed.
    async fn crash(&self) {
        let victim = self.sql().await;
        victim.batch_execute("SET synchronous_commit = off").await.unwrap();
        for _ in 0..20 {
            let _ = victim.batch_execute("UPDATE item SET cat = (cat + 1) % 8 WHERE id <= 20").await;
        }
        let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        signal(pid as u32, "KILL");
        until_within(LIMIT, "the server is back", || async { super::session(&self.urls.primary()).await.is_some() })
            .await;
    }
}
