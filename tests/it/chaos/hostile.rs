//! What nobody had thought of: a history that is undone, tables that bear other names, publications that are set anew, keys that are withheld.

use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::faults::Fault;
use super::readers::{connected, marker};
use super::writers::{changed, take};
use super::{LIMIT, Lab, Urls, dice};
use crate::support::{World, succeed, until_within};

/// Rules that hold the tags of a transaction back until its end. With all rows of `bulk` they are more than the budget.
pub const COLLAPSING: i32 = 8;
/// The way to Redis takes so long that first passes wait all the time.
const WAY: Duration = Duration::from_millis(3);
/// The daemon's user.
const USER: &str = "waltag";

/// The tags of a row of `bulk` by one of the rules.
pub fn bulk_tags(rule: i32, id: &str) -> [String; 2] {
    [format!("a.name.of.some.forty.letters.for.rule.{rule}:{id}"), format!("bulk.{rule}")]
}

/// The rules of the world, whose daemon has a user and a way of its own.
pub async fn rules(world: &World, urls: &Urls) -> String {
    acl(&urls.library, &["on", ">pw", "resetkeys", "~*", "&*", "+@all"]).await;
    let port = crate::owed::slow(world.redis.port, WAY).await;
    let mut rules = super::rules(&format!("redis://{USER}:pw@127.0.0.1:{port}"), urls, None);
    rules += "  - { table: noise, caches: [library, plain, stamps, sets], tags: [\"noise:<id>\"] }\n";
    for rule in 0..COLLAPSING {
        let [tag, all] = bulk_tags(rule, "<id>");
        rules += &format!(
            "  - {{ table: bulk, caches: [library], tags: [\"{tag}\"], collapse: {{ over: 100000, to: \"{all}\" }} }}\n"
        );
    }
    rules
}

/// Gives the daemon's user these rules, too.
async fn acl(url: &str, rules: &[&str]) {
    let mut administrator = connected(url).await;
    redis::cmd("ACL").arg("SETUSER").arg(USER).arg(rules).exec_async(&mut administrator).await.unwrap();
}

impl Lab {
    /// Writers and readers go on for a while.
    pub(super) async fn some_commits(&self) {
        let before = self.counts.commits.load(Relaxed);
        until_within(LIMIT, "writers go on", || async { self.counts.commits.load(Relaxed) > before + 100 }).await;
        tokio::time::sleep(Duration::from_millis(dice(0..500))).await;
    }

    /// PostgreSQL is put back to a copy that was made while it was stopped; everybody has read, and cached, what was committed since.
    pub(super) async fn is_put_back(&self, while_away: bool) {
        let data = self.world.lock().await.postgres.data();
        let copy = data.with_extension("copy");
        {
            let mut world = self.world.lock().await;
            world.postgres.stop("fast", LIMIT).unwrap();
            succeed(Command::new("cp").arg("-a").arg(&data).arg(&copy));
            world.postgres.launch().unwrap();
        }
        self.some_commits().await;
        // A daemon that never saw anything of that history cannot know that there was one.
        self.every_marker_knows_the_log().await;
        let longer = dice(0..2) == 0;
        if while_away {
            assert_eq!(self.take_daemon().await.stop(), Some(0));
            self.some_commits().await;
        }
        let end: String =
            self.sql().await.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
        self.undone.store(true, Relaxed);
        let mut world = self.world.lock().await;
        world.postgres.stop("fast", LIMIT).unwrap();
        // Whoever was at work knows that nothing came of it.
        let rest = self.rest.write().await;
        self.undone.store(false, Relaxed);
        succeed(Command::new("rm").arg("-rf").arg(&data));
        succeed(Command::new("mv").arg(&copy).arg(&data));
        let signal = async |name| {
            if !while_away {
                self.daemon.lock().await.as_ref().unwrap().signal(name);
            }
        };
        if longer {
            // Nobody but us reaches it meanwhile.
            signal("STOP").await;
        }
        world.postgres.launch().unwrap();
        drop(world);
        let sql = self.sql().await;
        // Row versions are told apart by their numbers, also from those that are undone.
        sql.batch_execute("SELECT setval('nonce', nextval('nonce') + 10000000)").await.unwrap();
        if longer {
            write_past(&sql, &end).await;
            signal("CONT").await;
        }
        drop(rest);
        if while_away {
            self.start_daemon().await;
        }
    }

    async fn every_marker_knows_the_log(&self) {
        let now: String =
            self.sql().await.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        let number = |text: &str| text.parse::<waltag::source::lsn::Lsn>().unwrap().0;
        let Urls { library, plain, versions, stamps, sets, ledger, .. } = &self.urls;
        for url in [library, plain, versions, stamps, sets, ledger] {
            until_within(LIMIT, "the marker knows the log", || async {
                marker(url, "log").await.is_some_and(|log| number(&log) >= number(&now))
            })
            .await;
        }
    }

    /// Rows change under another name, within one transaction.
    pub(super) async fn is_renamed_in_a_transaction(&self) {
        let (sql, mut versions) = (self.sql().await, Vec::new());
        sql.batch_execute("BEGIN; ALTER TABLE item RENAME TO other").await.unwrap();
        let id = dice(1..=super::ROWS / 2);
        let rows = format!("WHERE id >= {id} ORDER BY id LIMIT 20 FOR UPDATE");
        take(&sql, &changed("other", "val = nextval('nonce')", &rows), &mut versions).await.unwrap();
        sql.batch_execute("ALTER TABLE other RENAME TO item; COMMIT").await.unwrap();
        self.are_owed(versions).await;
    }

    /// The table bears another name, for a moment or until that was seen, and somebody writes to it.
    pub(super) async fn is_renamed_for_a_while(&self) {
        let (sql, looks) = (self.sql().await, self.said(LOOKED).await);
        sql.batch_execute("ALTER TABLE item RENAME TO other").await.unwrap();
        let is_seen = dice(0..2) == 0;
        let (begin, mut rounds) = (Instant::now(), 0);
        while rounds < 20 || (is_seen && self.said(LOOKED).await == looks) {
            assert!(begin.elapsed() < LIMIT, "the catalog is never looked at");
            let (id, mut versions) = (dice(1..=super::ROWS), Vec::new());
            let row = format!("WHERE id = {id} FOR UPDATE");
            take(&sql, &changed("other", "val = nextval('nonce')", &row), &mut versions).await.unwrap();
            self.are_owed(versions).await;
            rounds += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sql.batch_execute("ALTER TABLE other RENAME TO item").await.unwrap();
    }

    /// The table is swapped for a partitioned one, and back.
    pub(super) async fn is_partitioned(&self, resyncs: u32) {
        let sql = self.sql().await;
        let schema = "CREATE TABLE item_new (LIKE item) PARTITION BY RANGE (id);
            ALTER TABLE item_new ADD PRIMARY KEY (id);
            CREATE TABLE item_low PARTITION OF item_new FOR VALUES FROM (MINVALUE) TO (60);
            CREATE TABLE item_high PARTITION OF item_new FOR VALUES FROM (60) TO (MAXVALUE);
            ALTER TABLE item_low REPLICA IDENTITY FULL;
            ALTER TABLE item_high REPLICA IDENTITY FULL;
            ALTER PUBLICATION waltag ADD TABLE item_new";
        sql.batch_execute(schema).await.unwrap();
        tokio::time::sleep(Duration::from_millis(dice(0..300))).await;
        sql.batch_execute("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE").await.unwrap();
        self.copies(&sql, "INSERT INTO item_new SELECT * FROM item RETURNING NULL::bigint, val").await;
        sql.batch_execute("ALTER TABLE item RENAME TO item_old; ALTER TABLE item_new RENAME TO item; COMMIT")
            .await
            .unwrap();
        self.some_commits().await;
        // Now and then it is seen only when it is over.
        if dice(0..4) > 0 {
            self.wait_for_resyncs(resyncs + 6).await;
            self.some_commits().await;
        }
        sql.batch_execute("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE").await.unwrap();
        self.copies(&sql, "DELETE FROM item_old RETURNING NULL::bigint, val").await;
        self.copies(&sql, "INSERT INTO item_old SELECT * FROM item RETURNING NULL::bigint, val").await;
        sql.batch_execute("ALTER TABLE item RENAME TO item_gone; ALTER TABLE item_old RENAME TO item; COMMIT")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(dice(0..300))).await;
        sql.batch_execute("DROP TABLE item_gone").await.unwrap();
    }

    /// Row versions that move, and do not change.
    async fn copies(&self, sql: &Client, statement: &str) {
        let mut versions = Vec::new();
        take(sql, statement, &mut versions).await.unwrap();
        self.copied.lock().await.extend(versions);
    }

    async fn are_owed(&self, versions: Vec<u64>) {
        let now = Instant::now();
        self.owed.lock().await.extend(versions.into_iter().map(|version| (version, now)));
    }

    /// The daemon's user loses its keys, and gets them back.
    pub(super) async fn keys_are_withheld(&self) {
        const OWED: &str = "they are owed, and tried again";
        let said = self.said(OWED).await;
        acl(&self.urls.library, &["resetkeys", "~waltag:*"]).await;
        until_within(LIMIT, "the keys are refused", || async { self.said(OWED).await > said }).await;
        tokio::time::sleep(Duration::from_millis(dice(500..1_500))).await;
        acl(&self.urls.library, &["~*"]).await;
    }

    /// How many resyncs came, when everything that arrived, and everything that the catalog shows now, has been judged.
    pub(super) async fn what_came_of_it(&self, fault: Fault, resyncs: u32) -> u32 {
        let sql = self.sql().await;
        if fault == Fault::PutBack {
            // It concerns every cache.
            self.wait_for_resyncs(resyncs + 6).await;
        } else {
            // One look may have begun before the end. The next one comes within 5 s, and at once behind a TRUNCATE.
            let (looks, at_once) = (self.said(LOOKED).await, dice(0..2) == 0);
            until_within(LIMIT, "the catalog is looked at", || async {
                if at_once {
                    sql.batch_execute("TRUNCATE probe; INSERT INTO probe VALUES (1, 0)").await.unwrap();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                self.said(LOOKED).await >= looks + 2
            })
            .await;
        }
        // What is owed a resync is not confirmed.
        self.settled(&sql).await;
        let came = self.resyncs().await - resyncs;
        if came > 0 {
            self.forgive(resyncs + came).await;
        }
        came
    }
}

const LOOKED: &str = "looked at the catalog";

/// The log is written anew past where it was.
async fn write_past(sql: &Client, end: &str) {
    until_within(LIMIT, "the log is longer than before", || async {
        sql.batch_execute("SELECT pg_logical_emit_message(false, 'chaos', repeat('x', 100000))").await.unwrap();
        let query = format!("SELECT pg_current_wal_flush_lsn() > '{end}'::pg_lsn + 65536");
        sql.query_one(&query, &[]).await.unwrap().get(0)
    })
    .await;
}
