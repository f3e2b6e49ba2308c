//! Nothing is lost when the daemon is killed, Redis is away, or PostgreSQL crashes.

use std::time::Duration;

use crate::support::{Monitor, RULES, World, end_of_stream, outbox, signal, unconfirmed, until};

/// Keys whose rows are committed while the daemon dies again and again: each must be gone at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_nothing() {
    let world = World::new().await;
    world.setup(RULES);
    let (sql, writer) = (world.sql().await, world.sql().await);
    let mut cache = world.cache(1).await;
    let mut daemon = world.daemon();
    let mut next = 0;
    for _ in 0..5 {
        let first = next;
        next += 400;
        let mut fill = redis::pipe();
        for id in first..next {
            fill.cmd("SET").arg(format!("FirstModel.pk:{id}")).arg("cached").ignore();
        }
        fill.exec_async(&mut cache).await.unwrap();
        let load = async {
            for id in first..next {
                writer.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
            }
        };
        let (monitor, target) = (Monitor::start(world.redis.port), (first % 300) as usize + 20);
        let kill = async {
            until("some tags are gone", || async { monitor.unlinked().len() > target }).await;
            daemon.kill();
        };
        tokio::join!(load, kill);
        daemon = world.daemon();
    }
    world.settled(&sql).await;
    let left: Vec<String> = redis::cmd("KEYS").arg("FirstModel.pk:*").query_async(&mut cache).await.unwrap();
    assert!(left.is_empty(), "{} of {next} are still cached: {:?}", left.len(), left.first());
}

#[tokio::test]
async fn redis_away_and_back() {
    let mut world = World::new().await;
    world.setup(RULES);
    let sql = world.sql().await;
    let daemon = world.daemon();
    world.redis.kill();
    sql.batch_execute("INSERT INTO first_model VALUES (1), (2)").await.unwrap();
    daemon.wait_for("its tags are kept and sent again");
    world.redis.launch().unwrap();
    let monitor = Monitor::start(world.redis.port);
    world.settled(&sql).await;
    // What was sent between the start of Redis and that of the monitor is not seen, so a change of now must be.
    sql.batch_execute("UPDATE first_model SET name = 'x'").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:1", "1 FirstModel.pk:2"]);
}

/// Redis refuses the commands of a batch: its tags are kept, nothing is confirmed, and they go when it takes them.
#[tokio::test]
async fn a_refused_batch_is_sent_again() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/1", dialect: keys}}, rules: [{table: first_model, tags: ["FirstModel.pk:<id>"]}]}"#,
    );
    let sql = world.sql().await;
    let daemon = world.daemon();
    world.settled(&sql).await;
    let mut cache = world.cache(1).await;
    let _: () = redis::cmd("SET").arg("FirstModel.pk:1").arg("cached").query_async(&mut cache).await.unwrap();
    let acl = async |rule: &str| {
        let mut cache = cache.clone();
        redis::cmd("ACL").arg("SETUSER").arg("default").arg(rule).exec_async(&mut cache).await.unwrap();
    };
    acl("-unlink").await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    daemon.wait_for_count("its tags are kept and sent again", 2);
    assert!(daemon.log().contains("+unlink"), "the missing permission is named:\n{}", daemon.log());
    assert!(sql.query_one(unconfirmed(), &[]).await.unwrap().get::<_, bool>(0));
    acl("+unlink").await;
    world.settled(&sql).await;
    assert!(!redis::cmd("EXISTS").arg("FirstModel.pk:1").query_async::<bool>(&mut cache.clone()).await.unwrap());
}

#[tokio::test]
async fn tags_of_an_outage_are_sent_when_redis_answers_again() {
    let world = World::new().await;
    world.setup(RULES);
    let sql = world.sql().await;
    let _daemon = world.daemon();
    world.settled(&sql).await;
    let monitor = Monitor::start(world.redis.port);
    signal(world.redis.pid().unwrap(), "STOP");
    for id in 0..50 {
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
    }
    signal(world.redis.pid().unwrap(), "CONT");
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked().len(), 50);
}

#[tokio::test]
async fn postgresql_crashes_and_its_walsender_is_ended() {
    let mut world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    let monitor = Monitor::start(world.redis.port);
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    let end = end_of_stream();
    sql.execute(end, &[]).await.unwrap();
    daemon.wait_for_count("streaming server", 2);
    sql.batch_execute("INSERT INTO first_model VALUES (2)").await.unwrap();
    world.settled(&sql).await;
    drop(sql);
    world.postgres.stop("immediate", Duration::from_secs(20)).unwrap();
    world.postgres.launch().unwrap();
    daemon.wait_for_count("streaming server", 3);
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (3)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:1", "1 FirstModel.pk:2", "1 FirstModel.pk:3"]);
}

#[tokio::test]
async fn an_idle_publication_on_a_busy_server_does_not_pin_its_wal() {
    let world = World::new().await;
    world.setup(RULES);
    let sql = world.sql().await;
    let _daemon = world.daemon();
    for _ in 0..3 {
        let load = "INSERT INTO unrelated SELECT i + (SELECT coalesce(max(id), 0) FROM unrelated), 0 FROM generate_series(1, 20000) i";
        sql.batch_execute(load).await.unwrap();
    }
    world.settled(&sql).await;
}

/// A full Redis refuses the marker and takes deletions: exactly those would free its memory.
#[tokio::test]
async fn a_full_redis_still_gets_its_invalidations() {
    let world = World::new().await;
    world.setup(RULES);
    let sql = world.sql().await;
    let mut cache = world.cache(1).await;
    redis::cmd("SET").arg("FirstModel.pk:1").arg("cached").exec_async(&mut cache).await.unwrap();
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").exec_async(&mut cache).await.unwrap();
    let daemon = world.daemon();
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    assert!(!redis::cmd("EXISTS").arg("FirstModel.pk:1").query_async::<bool>(&mut cache).await.unwrap());
    daemon.wait_for("Redis is full");
}

/// A firewall that forgets a connection, or a frozen backend: the stream is healthy and the fence never answers.
#[tokio::test]
async fn a_mute_sql_session_is_replaced() {
    let world = World::new().await;
    world.setup(RULES);
    let sql = world.sql().await;
    let daemon = world.daemon();
    world.settled(&sql).await;
    let query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'waltag' AND backend_type = 'client backend' \
         AND query NOT LIKE 'LISTEN%' \
         ORDER BY backend_start LIMIT 1";
    let pid: i32 = sql.query_one(query, &[]).await.unwrap().get(0);
    signal(pid as u32, "STOP");
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    daemon.wait_for("no answer within");
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:1"]);
    signal(pid as u32, "CONT");
}

/// A migration holds a lock on a table: a new slot waits in small steps, says so, and a signal still ends it.
#[tokio::test]
async fn a_locked_table_does_not_hold_up_a_stop() {
    if outbox() {
        // There is no slot that waits.
        return;
    }
    let world = World::new().await;
    world.setup(RULES);
    let locker = world.sql().await;
    locker.batch_execute("BEGIN; LOCK first_model IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // A new slot waits for writers; the one that it waits for is named.
    let daemon = world.start(&mut world.waltag("waltag", &["run", "--lock-timeout", "100ms"]));
    daemon.wait_for("the oldest is of process");
    assert_eq!(daemon.stop(), Some(0));
    locker.batch_execute("ROLLBACK").await.unwrap();
    world.daemon().stop();
    locker.batch_execute("BEGIN; LOCK first_model IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // With a slot there is nothing to wait for: reading the catalog takes no lock.
    let daemon = world.start(&mut world.waltag("waltag", &["run", "--lock-timeout", "100ms"]));
    daemon.wait_for("ready");
    world.sql().await.batch_execute("UPDATE shop.second_model SET name = 'x'").await.unwrap();
    assert_eq!(daemon.stop(), Some(0));
}

const REPEATING: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys, repeat: [300ms, 4s]}},
    rules: [{table: first_model, tags: ["t:<id>"]}]}"#;

/// How often a key was unlinked, per UNLINK in the monitor.
fn passes(monitor: &Monitor, key: &str) -> usize {
    monitor.lines().iter().filter(|line| line.contains("\"UNLINK\"") && line.contains(&format!("\"{key}\""))).count()
}

/// A reader that was computing stores the old value after the first pass; the repeat takes it away, and only then is the
/// position confirmed.
#[tokio::test]
async fn a_late_fill_is_made_stale_by_the_repeat() {
    let world = World::new().await;
    world.setup(REPEATING);
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    let _daemon = world.daemon();
    world.settled(&sql).await;
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    until("the first pass", || async { passes(&monitor, "t:1") >= 1 }).await;
    redis::cmd("SET").arg("t:1").arg("late").exec_async(&mut cache).await.unwrap();
    assert!(sql.query_one(unconfirmed(), &[]).await.unwrap().get::<_, bool>(0), "confirmed before its last pass");
    world.settled(&sql).await;
    assert_eq!(passes(&monitor, "t:1"), 3);
    assert!(!redis::cmd("EXISTS").arg("t:1").query_async::<bool>(&mut cache).await.unwrap());
}

/// Repeats are durable: what was owed when the daemon died is owed again; a clean stop does not wait for them either.
#[tokio::test]
async fn repeats_survive_kill_9_and_a_clean_stop() {
    let world = World::new().await;
    world.setup(&REPEATING.replace("300ms, 4s", "20s"));
    let sql = world.sql().await;
    for clean in [false, true] {
        let daemon = world.daemon();
        let monitor = Monitor::start(world.redis.port);
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({})", i32::from(clean))).await.unwrap();
        let key = format!("t:{}", i32::from(clean));
        until("the first pass", || async { passes(&monitor, &key) >= 1 }).await;
        if clean {
            let begin = std::time::Instant::now();
            assert_eq!(daemon.stop(), Some(0));
            assert!(begin.elapsed() < Duration::from_secs(15));
        } else {
            daemon.kill();
        }
        let before = passes(&monitor, &key);
        let next = world.daemon();
        until("it comes again", || async { passes(&monitor, &key) > before }).await;
        next.kill();
    }
}
