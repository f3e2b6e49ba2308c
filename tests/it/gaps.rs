//! What may have been missed goes stale, and nothing else does.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use waltag::demo::servers::Redis;

use crate::support::{Daemon, World, outbox, redis_at, succeed, until};

const RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
    {table: first_model, tags: ["user:<id>", "user:name:<name|lower>"]}, {table: unrelated, tags: ["n:<id>"]}]}"#;

async fn set(cache: &mut MultiplexedConnection, keys: &[&str]) {
    for key in keys {
        redis::cmd("SET").arg(key).arg("cached").exec_async(cache).await.unwrap();
    }
}

/// Keys that are there, without the marker.
async fn left(cache: &mut MultiplexedConnection) -> Vec<String> {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(cache).await.unwrap();
    keys.retain(|key| !key.starts_with("waltag:"));
    keys.sort();
    keys
}

/// A world whose first resync is over, with everything that waltag could reach and what it must not.
async fn settled() -> (World, Daemon, MultiplexedConnection) {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    daemon.wait_for("resync complete");
    world.settled(&world.sql().await).await;
    let mut cache = world.cache(0).await;
    set(&mut cache, &["user:15", "user:name:x", "n:1", "user:15:session", "users", "session:1"]).await;
    (world, daemon, cache)
}

const FOREIGN: [&str; 3] = ["session:1", "user:15:session", "users"];
const ALL: [&str; 6] = ["n:1", "session:1", "user:15", "user:15:session", "user:name:x", "users"];

#[tokio::test]
async fn truncate_sweeps_what_the_rules_reach_and_nothing_else() {
    let (world, daemon, mut cache) = settled().await;
    let sql = world.sql().await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    daemon.wait_for("sweep complete");
    world.settled(&sql).await;
    // `n:<id>` belongs to another table.
    assert_eq!(left(&mut cache).await, ["n:1", "session:1", "user:15:session", "users"]);
}

/// A materialized view is not in the log: its file tells of a REFRESH, and its counters of one that is CONCURRENTLY; also of one that
/// came while the daemon was away.
#[tokio::test]
async fn a_refreshed_view_goes_stale() {
    let schema = "CREATE TABLE item (id int PRIMARY KEY, v int);
        CREATE MATERIALIZED VIEW best AS SELECT id, v FROM item; CREATE UNIQUE INDEX best_id ON best (id)";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: best, tags: ["best:<id>"]}, {table: item, tags: ["item:<id>"]}]}"#,
    );
    assert!(succeed(&mut world.waltag("postgres", &["check", "--live"])).contains("0 warnings"));
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    let mut daemon = Some(world.daemon());
    for refresh in ["REFRESH MATERIALIZED VIEW best", "REFRESH MATERIALIZED VIEW CONCURRENTLY best", "away"] {
        let refresh = match refresh {
            "away" => {
                daemon.take().unwrap().stop();
                "REFRESH MATERIALIZED VIEW best"
            }
            other => other,
        };
        set(&mut cache, &["best:1", "item:1", "best:1:more"]).await;
        sql.batch_execute(&format!("INSERT INTO item SELECT coalesce(max(id), 0) + 100, 1 FROM item; {refresh}"))
            .await
            .unwrap();
        if daemon.is_none() {
            daemon = Some(world.start(&mut world.waltag("waltag", &["run"])));
        }
        until(&format!("best:1 is stale after {refresh}"), || async {
            left(&mut cache.clone()).await == ["best:1:more", "item:1"]
        })
        .await;
    }
}

#[tokio::test]
async fn a_restart_is_no_gap() {
    let (mut world, daemon, mut cache) = settled().await;
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.daemon();
    world.settled(&world.sql().await).await;
    daemon.kill();
    let daemon = world.daemon();
    world.postgres.stop("fast", Duration::from_secs(20)).unwrap();
    world.postgres.launch().unwrap();
    daemon.wait_for_count("streaming server", 2);
    world.settled(&world.sql().await).await;
    assert_eq!(left(&mut cache).await, ALL);
    assert!(!daemon.log().contains("resync"), "{}", daemon.log());
}

/// The time at which one kind of statistics was reset was the only mark of a crash.
#[tokio::test]
async fn statistics_that_somebody_resets_are_no_crash() {
    let (world, daemon, mut cache) = settled().await;
    assert_eq!(daemon.stop(), Some(0));
    world.sql().await.batch_execute("SELECT pg_stat_reset_shared('bgwriter')").await.unwrap();
    let daemon = world.daemon();
    world.settled(&world.sql().await).await;
    assert_eq!(left(&mut cache).await, ALL);
    assert!(!daemon.log().contains("resync"), "{}", daemon.log());
}

#[tokio::test]
async fn a_crash_of_postgresql_is_a_gap() {
    let (mut world, daemon, mut cache) = settled().await;
    world.postgres.stop("immediate", Duration::from_secs(20)).unwrap();
    world.postgres.launch().unwrap();
    daemon.wait_for("resync complete: PostgreSQL has crashed");
    assert_eq!(left(&mut cache).await, FOREIGN);
    world.settled(&world.sql().await).await;
    // The marker knows: the next start is an ordinary one.
    assert_eq!(daemon.stop(), Some(0));
    set(&mut cache, &["user:15"]).await;
    let daemon = world.daemon();
    world.settled(&world.sql().await).await;
    assert!(!daemon.log().contains("resync"), "{}", daemon.log());
}

#[tokio::test]
async fn a_redis_from_an_older_copy_is_a_gap_at_the_start() {
    let (world, daemon, mut cache) = settled().await;
    let sql = world.sql().await;
    assert_eq!(daemon.stop(), Some(0));
    let keys: Vec<String> = redis::cmd("KEYS").arg("waltag:*").query_async(&mut cache).await.unwrap();
    redis::cmd("HSET").arg(&keys[0]).arg("done").arg("0/10").exec_async(&mut cache).await.unwrap();
    let daemon = world.daemon();
    daemon.wait_for("resync complete: the marker stands at 0/10");
    world.settled(&sql).await;
    assert_eq!(left(&mut cache).await, FOREIGN);
}

/// The marker tells of no progress before the resync is over: one that is cut short starts again.
#[tokio::test]
async fn a_crash_in_the_middle_of_a_resync_starts_it_again() {
    let (world, daemon, mut cache) = settled().await;
    daemon.kill();
    let keys: Vec<String> = redis::cmd("KEYS").arg("waltag:*").query_async(&mut cache).await.unwrap();
    redis::cmd("HDEL").arg(&keys[0]).arg("done").exec_async(&mut cache).await.unwrap();
    // SCAN is refused, so the resync cannot end.
    redis::cmd("ACL").arg("SETUSER").arg("default").arg("-scan").exec_async(&mut cache).await.unwrap();
    let daemon = world.start(&mut world.waltag("waltag", &["run"]));
    daemon.wait_for("'scan' command");
    daemon.kill();
    let there: bool = redis::cmd("HEXISTS").arg(&keys[0]).arg("done").query_async(&mut cache).await.unwrap();
    assert!(!there);
    redis::cmd("ACL").arg("SETUSER").arg("default").arg("+scan").exec_async(&mut cache).await.unwrap();
    let daemon = world.daemon();
    daemon.wait_for("resync complete: this Redis has no marker");
    assert_eq!(left(&mut cache).await, FOREIGN);
}

#[tokio::test]
async fn a_flushed_redis_is_noticed_while_running() {
    let (world, daemon, mut cache) = settled().await;
    // At once: cached before it is noticed.
    let mut flushed = redis::pipe();
    flushed.atomic().cmd("FLUSHDB").cmd("MSET").arg(&["user:15", "cached", "session:1", "cached"]);
    flushed.exec_async(&mut cache).await.unwrap();
    daemon.wait_for("resync complete: the marker is gone");
    assert_eq!(left(&mut cache).await, ["session:1"]);
    world.settled(&world.sql().await).await;
}

/// A transaction that began before the gap was noticed, and whose changes the stream never brings, may commit after the first
/// pass: the second one waits for it.
#[tokio::test]
async fn a_resync_has_a_second_pass_when_the_running_transactions_have_ended() {
    if outbox() {
        // CREATE TRIGGER waits for writers.
        return;
    }
    let (world, daemon, mut cache) = settled().await;
    let (writer, sql) = (world.sql().await, world.sql().await);
    writer.batch_execute("BEGIN; INSERT INTO unrelated VALUES (1, 1)").await.unwrap();
    redis::cmd("FLUSHDB").exec_async(&mut cache).await.unwrap();
    daemon.wait_for_count("everything is stale", 2);
    set(&mut cache, &["user:15", "session:1"]).await;
    sql.batch_execute("INSERT INTO unrelated VALUES (2, 2)").await.unwrap();
    let written: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    let confirmed = async || -> bool {
        let query = format!("SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots");
        sql.query_one(&query, &[]).await.unwrap().get(0)
    };
    // What was filled between the passes may be stale, and nothing is confirmed.
    let keepalive = daemon.log().matches("resync complete").count();
    assert_eq!(
        (left(&mut cache).await, confirmed().await, keepalive),
        (vec!["session:1".to_owned(), "user:15".to_owned()], false, 1)
    );
    writer.batch_execute("COMMIT").await.unwrap();
    daemon.wait_for_count("resync complete", 2);
    assert_eq!(left(&mut cache).await, ["session:1"]);
    world.settled(&sql).await;
}

/// Two caches: one is away for longer than `detach_after`. The other goes on, the slot moves, and the one that was away is
/// made stale as a whole when it answers again.
#[tokio::test]
async fn a_cache_that_is_away_does_not_hold_up_the_others() {
    let world = World::new().await;
    let mut far = Redis::start(&[]).unwrap();
    world.setup(&format!(
        r#"{{version: 1, caches: {{near: {{url: "{{redis}}/0", dialect: keys}}, far: {{url: "{}", dialect: keys, detach_after: 1s}}}},
            rules: [{{table: first_model, caches: [near, far], tags: ["user:<id>"]}}]}}"#,
        far.url(0)
    ));
    let (sql, mut near) = (world.sql().await, world.cache(0).await);
    let daemon = world.daemon();
    daemon.wait_for_count("resync complete", 2);
    set(&mut near, &["user:1", "user:2"]).await;
    far.kill();
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    until("the near cache is told", || async {
        let mut near = near.clone();
        left(&mut near).await == ["user:2"]
    })
    .await;
    daemon.wait_for("detached");
    world.settled(&sql).await;
    // It shall not be there before they are cached.
    daemon.signal("STOP");
    far.launch().unwrap();
    let mut far_cache = redis_at(&far.url(0)).await.unwrap();
    set(&mut far_cache, &["user:1", "user:9", "other"]).await;
    daemon.signal("CONT");
    daemon.wait_for("resync complete: it was away for too long");
    assert_eq!(left(&mut far_cache).await, ["other"]);
    assert_eq!(left(&mut near).await, ["user:2"]);
    set(&mut far_cache, &["user:3"]).await;
    sql.batch_execute("INSERT INTO first_model VALUES (3)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(left(&mut far_cache).await, ["other"]);
}

/// A key of another type refuses its command for ever, and the client library cannot read it either; it is counted, and the others go on.
#[tokio::test]
async fn a_key_of_another_type_is_passed_over() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: set, tag_prefix: "tag:", prefix: "record:"}}, rules: [
            {table: first_model, tags: ["user:<id>"]}]}"#,
    );
    let (daemon, sql, mut cache) = (world.watched(), world.sql().await, world.cache(0).await);
    set(&mut cache, &["tag:user:15", "record:a"]).await;
    redis::cmd("SADD").arg("tag:user:16").arg("a").exec_async(&mut cache).await.unwrap();
    sql.batch_execute("INSERT INTO first_model VALUES (15, 'x'), (16, 'x')").await.unwrap();
    world.settled(&sql).await;
    daemon.wait_for("passed over");
    daemon.readyz(200);
    assert_eq!(left(&mut cache).await, ["tag:user:15"]);
}

/// Somebody moves the slot while the stream is broken: what lies between never arrives.
#[tokio::test]
async fn a_slot_that_was_moved_is_a_gap() {
    if outbox() {
        // There is no slot.
        return;
    }
    let (world, daemon, mut cache) = settled().await;
    let sql = world.sql().await;
    daemon.signal("STOP");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'waltag'";
    sql.execute(end, &[]).await.unwrap();
    sql.batch_execute("INSERT INTO first_model VALUES (15, 'x')").await.unwrap();
    until("the slot is free", || async {
        sql.query_one("SELECT NOT active FROM pg_replication_slots", &[]).await.unwrap().get(0)
    })
    .await;
    sql.batch_execute("SELECT pg_replication_slot_advance('waltag', pg_current_wal_flush_lsn())").await.unwrap();
    daemon.signal("CONT");
    daemon.wait_for("resync complete: the marker stands at");
    assert_eq!(left(&mut cache).await, FOREIGN);
    world.settled(&sql).await;
}

/// Redis comes back with a copy from before this process: its marker is another's, and too old.
#[tokio::test]
async fn a_copy_from_before_our_time_is_a_gap_while_running() {
    let (world, daemon, mut cache) = settled().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("waltag:*").query_async(&mut cache).await.unwrap();
    let mut pipeline = redis::pipe();
    pipeline.atomic().cmd("HSET").arg(&keys[0]).arg(&["owner", "before", "seq", "7", "done", "0/10"]);
    pipeline.cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
    pipeline.exec_async(&mut cache).await.unwrap();
    daemon.wait_for("resync complete");
    until("what the rules reach is gone", || {
        let mut cache = cache.clone();
        async move { left(&mut cache).await == FOREIGN }
    })
    .await;
    world.settled(&world.sql().await).await;
}

/// What changes rows without a word in the stream: a rewrite, a swap of tables by rename, a partition with rows that is attached,
/// a table that was out of the publication for a moment, while the daemon runs and while it is down. TRUNCATE, which the
/// stream tells of, is none of these.
#[tokio::test]
async fn what_never_reaches_the_stream_is_noticed() {
    if outbox() {
        // There is no publication.
        return;
    }
    let world = World::new().await;
    let sql = world.sql().await;
    sql.batch_execute(
        "CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (9)",
    )
    .await
    .unwrap();
    let rules = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}},
        rules: [{table: first_model, tags: ["a:<id>"]}, {table: part, tags: ["p:<id>"]}]}"#;
    world.setup(rules);
    let mut daemon = world.daemon();
    let mut cache = world.cache(0).await;
    let mut resyncs = 1;
    for (statement, stale, running) in [
        ("ALTER TABLE first_model ALTER name TYPE varchar(9) USING upper(name)", "a:1", true),
        ("ALTER TABLE first_model ADD extra int DEFAULT 7", "a:1", true),
        (
            "CREATE TABLE part_2 (id int PRIMARY KEY); INSERT INTO part_2 VALUES (15); ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (10) TO (19)",
            "p:15",
            true,
        ),
        ("ALTER TABLE part DETACH PARTITION part_2", "p:15", true),
        (
            "ALTER PUBLICATION waltag DROP TABLE first_model; UPDATE first_model SET name = 'b'; ALTER PUBLICATION waltag ADD TABLE first_model",
            "a:1",
            false,
        ),
        (
            "CREATE TABLE other (LIKE first_model INCLUDING ALL); ALTER TABLE first_model RENAME TO old; ALTER TABLE other RENAME TO first_model; ALTER PUBLICATION waltag ADD TABLE first_model",
            "a:1",
            true,
        ),
    ] {
        set(&mut cache, &["a:1", "p:15", "session:1"]).await;
        if running {
            sql.batch_execute(statement).await.unwrap();
        } else {
            daemon.stop();
            sql.batch_execute(statement).await.unwrap();
            (daemon, resyncs) = (world.daemon(), 0);
        }
        resyncs += 1;
        daemon.wait_for_count("resync complete", resyncs);
        assert_eq!(
            left(&mut cache).await.iter().filter(|key| *key == stale).count(),
            0,
            "{statement}\n{}",
            daemon.log()
        );
        assert_eq!(left(&mut cache).await.len(), 2, "{statement}: the others stay");
    }
    sql.batch_execute("TRUNCATE first_model; TRUNCATE part").await.unwrap();
    world.settled(&sql).await;
    daemon.wait_for("sweep complete");
    // The next look at the catalog finds other files.
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!(daemon.log().matches("resync complete").count(), resyncs, "{}", daemon.log());
}

/// Redis drops what it likes when it is full, the marker as well: it is written anew, and nothing goes stale because of it.
#[tokio::test]
async fn an_evicted_marker_is_no_gap() {
    let (world, daemon, mut cache) = settled().await;
    let run = async |arguments: &[&str]| -> redis::Value {
        redis::cmd(arguments[0]).arg(&arguments[1..]).query_async(&mut world.cache(0).await).await.unwrap()
    };
    let resyncs = daemon.log().matches(" resync: ").count();
    let (text, none) = ("x".repeat(100_000), Vec::<String>::new());
    for key in 0..50 {
        run(&["SET", &format!("ballast:{key}"), &text]).await;
    }
    // It must not look in between.
    daemon.signal("STOP");
    run(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"]).await;
    run(&["CONFIG", "SET", "maxmemory", "4mb"]).await;
    until("keys are evicted", || async {
        let info: String = redis::cmd("INFO").arg("stats").query_async(&mut world.cache(0).await).await.unwrap();
        !info.contains("evicted_keys:0\r")
    })
    .await;
    run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let markers = async || -> Vec<String> {
        redis::cmd("KEYS").arg("waltag:*").query_async(&mut world.cache(0).await).await.unwrap()
    };
    for key in markers().await {
        run(&["DEL", &key]).await;
    }
    daemon.signal("CONT");
    until("it is written anew", || async { markers().await != none }).await;
    set(&mut cache, &["user:1", "user:2"]).await;
    world.sql().await.batch_execute("INSERT INTO first_model VALUES (1, 'y')").await.unwrap();
    world.settled(&world.sql().await).await;
    let left = left(&mut cache).await;
    assert!(left.contains(&"user:2".to_owned()) && !left.contains(&"user:1".to_owned()), "{left:?}");
    assert_eq!(daemon.log().matches(" resync: ").count(), resyncs, "{}", daemon.log());
    // What was evicted before explains nothing later.
    let number = async |section: &str, name: &str| -> u64 {
        let info: String = redis::cmd("INFO").arg(section).query_async(&mut world.cache(0).await).await.unwrap();
        let rest = info.split(name).nth(1).unwrap();
        rest.split(|character: char| !character.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let before = number("stats", "evicted_keys:").await;
    for key in 0..50 {
        run(&["SET", &format!("volatile:{key}"), &text, "EX", "1000"]).await;
    }
    run(&["CONFIG", "SET", "maxmemory-policy", "volatile-random"]).await;
    run(&["CONFIG", "SET", "maxmemory", "7mb"]).await;
    until("others are evicted", || async { number("stats", "evicted_keys:").await > before }).await;
    run(&["CONFIG", "SET", "maxmemory", "1gb"]).await;
    // Each look of ours is one, too.
    let (mut looks, calls) = (0, number("commandstats", "cmdstat_info:calls=").await);
    until("it has been asked since", || {
        looks += 1;
        let wanted = calls + looks + 2;
        async move { number("commandstats", "cmdstat_info:calls=").await >= wanted }
    })
    .await;
    run(&["FLUSHDB"]).await;
    daemon.wait_for("the marker is gone");
}
