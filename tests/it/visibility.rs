//! A tag goes stale only when every new snapshot sees its transaction.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::Value;
use tokio_postgres::Client;

use crate::support::{Monitor, RULES, World, outbox, succeed, until};

const MISSING_STANDBY: &str = "synchronous_standby_names = 'nobody'";

async fn synchronous() -> World {
    let world = World::new().await;
    world.setup(RULES);
    world.sql().await.batch_execute("INSERT INTO first_model VALUES (1), (2), (3)").await.unwrap();
    world
}

/// Switches the waiting for a standby on or off, and waits until sessions know.
async fn set(world: &World, settings: &str, sql: &Client) {
    world.postgres.configure(settings).unwrap();
    world.postgres.reload().unwrap();
    let wanted = !settings.is_empty();
    until("the setting is reloaded", || async {
        let row = sql.query_one("SELECT current_setting('synchronous_standby_names') <> ''", &[]).await.unwrap();
        row.get::<_, bool>(0) == wanted
    })
    .await;
    if settings == MISSING_STANDBY {
        world.postgres.until_commits_wait("shop").await.unwrap();
    }
}

/// Waits until the walsender has sent the commit of a session that waits for a standby.
async fn sent_while_waiting(sql: &Client) {
    until("a commit waits for the standby", || async {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query NOT LIKE '%probe%'";
        sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    if outbox() {
        // Nothing is sent that is not visible.
        return;
    }
    let end: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    until("the commit is sent to waltag", || async {
        let query = format!("SELECT sent_lsn >= '{end}' FROM pg_stat_replication WHERE application_name = 'waltag'");
        sql.query_one(&query, &[]).await.unwrap().get(0)
    })
    .await;
}

/// While `change` of row 1 waits for a standby, Redis is not touched for it, and a local commit of row 2 passes.
async fn is_held_until_visible(world: &World, prepare: &str, change: &'static str) {
    let (sql, writer) = (world.sql().await, world.sql().await);
    let _daemon = world.daemon();
    writer.batch_execute(prepare).await.unwrap();
    world.settled(&sql).await;
    set(world, MISSING_STANDBY, &sql).await;
    let monitor = Monitor::start(world.redis.port);
    let waiting = tokio::spawn(async move { writer.batch_execute(change).await });
    sent_while_waiting(&sql).await;
    sql.batch_execute("SET synchronous_commit = local; UPDATE first_model SET name = 'l' WHERE id = 2").await.unwrap();
    until("the local commit's tag goes", || async { monitor.unlinked().contains(&"1 FirstModel.pk:2".into()) }).await;
    // The fence looks at least every 20 ms: ten more looks, each of which must say no.
    let looks = Instant::now() + Duration::from_millis(200);
    until("ten more looks", || async { Instant::now() > looks }).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:2"]);
    assert!(!waiting.is_finished());
    set(world, "", &sql).await;
    waiting.await.unwrap().unwrap();
    until("the tag goes", || async { monitor.unlinked().contains(&"1 FirstModel.pk:1".into()) }).await;
    world.settled(&sql).await;
}

#[tokio::test]
async fn a_commit_that_waits_for_a_standby_is_held_and_a_local_one_is_not() {
    let world = synchronous().await;
    is_held_until_visible(&world, "", "UPDATE first_model SET name = 'w' WHERE id = 1").await;
}

#[tokio::test]
async fn commit_prepared_that_waits_for_a_standby_is_held() {
    let world = synchronous().await;
    let prepare = "BEGIN; UPDATE first_model SET name = 'w' WHERE id = 1; PREPARE TRANSACTION 'p'";
    is_held_until_visible(&world, prepare, "COMMIT PREPARED 'p'").await;
}

#[tokio::test]
async fn becoming_a_synchronous_standby_closes_the_stream_and_says_why() {
    if outbox() {
        // Nobody waits for a session.
        return;
    }
    let world = synchronous().await;
    let sql = world.sql().await;
    let daemon = world.daemon();
    set(&world, "synchronous_standby_names = '*'", &sql).await;
    // Without the remedy this commit would wait for ever: our flush waits for the fence, the fence for the commit.
    let writer = world.sql().await;
    let waiting =
        tokio::spawn(async move { writer.batch_execute("UPDATE first_model SET name = 'w' WHERE id = 1").await });
    tokio::task::spawn_blocking(move || {
        daemon.wait_for("would make waltag a synchronous standby");
        daemon
    })
    .await
    .unwrap();
    set(&world, "", &sql).await;
    waiting.await.unwrap().unwrap();
}

/// The same while nothing waits behind the fence and Redis is stopped: nothing but a regular look would notice.
#[tokio::test]
async fn becoming_a_synchronous_standby_is_noticed_in_idleness() {
    if outbox() {
        // Nobody waits for a session.
        return;
    }
    let world = synchronous().await;
    let sql = world.sql().await;
    let daemon = world.daemon();
    world.settled(&sql).await;
    crate::support::signal(world.redis.pid().unwrap(), "STOP");
    set(&world, "synchronous_standby_names = '*'", &sql).await;
    let writer = world.sql().await;
    let waiting = tokio::spawn(async move { writer.batch_execute("INSERT INTO unrelated VALUES (1)").await });
    daemon.wait_for("would make waltag a synchronous standby");
    crate::support::signal(world.redis.pid().unwrap(), "CONT");
    set(&world, "", &sql).await;
    waiting.await.unwrap().unwrap();
}

/// 4 writers, 5,000 commits: when a tag changes in Redis, a fresh snapshot sees its row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_tag_changes_after_its_row_can_be_seen() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: version, ttl: 1h, absent: valid}}, rules: [{table: first_model, unknown: [all], tags: ["row:<id>"]}]}"#,
    );
    let _daemon = world.daemon();
    let client = redis::Client::open(world.redis.url(0)).unwrap();
    let mut events = client.get_async_pubsub().await.unwrap();
    events.subscribe("__keyevent@0__:set").await.unwrap();
    let reader = world.sql().await;
    let seen = reader.prepare("SELECT 1 FROM first_model WHERE id = $1").await.unwrap();
    for writer in 0..4 {
        let sql = world.sql().await;
        tokio::spawn(async move {
            let insert = sql.prepare("INSERT INTO first_model VALUES ($1)").await.unwrap();
            for number in 0..1250 {
                sql.execute(&insert, &[&(writer * 10_000 + number)]).await.unwrap();
            }
        });
    }
    let mut stream = events.on_message();
    let mut tags = HashSet::new();
    while tags.len() < 5_000 {
        let message = tokio::time::timeout(crate::support::LIMIT, stream.next()).await.unwrap().unwrap();
        let id: i32 = message.get_payload::<String>().unwrap().trim_start_matches("row:").parse().unwrap();
        assert!(
            reader.query_opt(&seen, &[&id]).await.unwrap().is_some(),
            "row {id} was invisible when its tag changed"
        );
        tags.insert(id);
    }
}

/// The 32 bits of a transaction number wrap while the daemon runs; an old transaction stays open across the wrap.
#[tokio::test]
async fn transaction_numbers_wrap_around() {
    let mut world = World::new().await;
    let sql = world.sql_as("postgres", "postgres").await;
    sql.batch_execute("ALTER DATABASE template0 ALLOW_CONNECTIONS true").await.unwrap();
    for database in ["postgres", "template0", "template1", "shop"] {
        world.sql_as("postgres", database).await.batch_execute("VACUUM FREEZE").await.unwrap();
    }
    drop(sql);
    world.postgres.stop("fast", Duration::from_secs(20)).unwrap();
    let data = world.postgres.data();
    let next = 4_294_967_200_u32;
    let mut reset = world.postgres.as_owner(&world.postgres.program("pg_resetwal"));
    succeed(reset.args(["-e", "0", "-x", &next.to_string(), "-u", "4294960000", "-D"]).arg(&data));
    let log = data.join("pg_xact/0FFF");
    std::fs::write(&log, vec![0; 256 << 10]).unwrap();
    let mut own = Command::new("chown");
    own.arg("--reference").arg(&data).arg(&log);
    assert!(own.status().unwrap().success());
    world.postgres.launch().unwrap();

    world.setup(RULES);
    let sql = world.sql().await;
    let number = async || sql.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get::<_, String>(0);
    let _daemon = world.daemon();
    let monitor = Monitor::start(world.redis.port);
    let old = world.sql().await;
    old.batch_execute("BEGIN; INSERT INTO first_model VALUES (1000)").await.unwrap();
    assert!(number().await.parse::<u64>().unwrap() <= u64::from(u32::MAX), "the wrap lies ahead");
    for id in 0..120 {
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
    }
    assert!(number().await.parse::<u64>().unwrap() > u64::from(u32::MAX), "the wrap lies behind");
    world.settled(&sql).await;
    let mut owed: Vec<String> = (0..120).map(|id| format!("1 FirstModel.pk:{id}")).collect();
    owed.sort();
    assert_eq!(monitor.unlinked(), owed);
    old.batch_execute("COMMIT").await.unwrap();
    world.settled(&sql).await;
    owed.push("1 FirstModel.pk:1000".into());
    owed.sort();
    assert_eq!(monitor.unlinked(), owed);
}

/// Confirmed only after Redis answered: with a frozen Redis the slot stays where it is.
#[tokio::test]
async fn nothing_is_confirmed_before_redis_answers() {
    if outbox() {
        // `outbox::rows_stay_until_redis_has_answered`.
        return;
    }
    let world = synchronous().await;
    let sql = world.sql().await;
    let _daemon = world.daemon();
    world.settled(&sql).await;
    crate::support::signal(world.redis.pid().unwrap(), "STOP");
    let before: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    sql.batch_execute("UPDATE first_model SET name = 'w' WHERE id = 1").await.unwrap();
    let end: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    until("the change was sent", || async {
        let query = format!("SELECT sent_lsn >= '{end}' FROM pg_stat_replication WHERE application_name = 'waltag'");
        sql.query_one(&query, &[]).await.unwrap().get(0)
    })
    .await;
    // Two status updates that the server has taken: neither confirms the change.
    for _ in 0..2 {
        let last = reply_time(&sql).await;
        until("a status update arrives", || async { reply_time(&sql).await > last }).await;
    }
    let query = format!("SELECT confirmed_flush_lsn <= '{before}' FROM pg_replication_slots");
    assert!(sql.query_one(&query, &[]).await.unwrap().get::<_, bool>(0));
    crate::support::signal(world.redis.pid().unwrap(), "CONT");
    world.settled(&sql).await;
}

async fn reply_time(sql: &Client) -> Option<std::time::SystemTime> {
    let query = "SELECT reply_time FROM pg_stat_replication WHERE application_name = 'waltag'";
    sql.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn the_marker_tells_how_far_this_redis_was_told() {
    if outbox() {
        // Positions are no LSNs.
        return;
    }
    let world = synchronous().await;
    let sql = world.sql().await;
    let daemon = world.daemon();
    sql.batch_execute("UPDATE first_model SET name = 'w' WHERE id = 1").await.unwrap();
    world.settled(&sql).await;
    let system: String =
        sql.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await.unwrap().get(0);
    let confirmed: String =
        sql.query_one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots", &[]).await.unwrap().get(0);
    for (database, cache) in [(0, "default"), (1, "my_cache_alias")] {
        let mut redis = world.cache(database).await;
        let key = format!("waltag:{system}:waltag:{cache}");
        let mut fields: Vec<String> = redis::cmd("HKEYS").arg(&key).query_async(&mut redis).await.unwrap();
        fields.sort();
        let known = ["at", "commit", "crash", "done", "format", "log", "lsn", "owner", "rules", "seq", "timeline"];
        assert_eq!(fields, known);
        let done: String = redis::cmd("HGET").arg(&key).arg("done").query_async(&mut redis).await.unwrap();
        let query = format!("SELECT '{done}'::pg_lsn >= '{confirmed}'::pg_lsn");
        assert!(sql.query_one(&query, &[]).await.unwrap().get::<_, bool>(0), "done {done} < confirmed {confirmed}");
        // A Redis that lost its data refuses the next marker; that is told, and the marker is claimed again.
        let _: Value = redis::cmd("FLUSHDB").query_async(&mut redis).await.unwrap();
    }
    daemon.wait_for_count("the marker is gone", 2);
    let mut redis = world.cache(0).await;
    until("the marker is back", || {
        let (mut redis, key) = (redis.clone(), format!("waltag:{system}:waltag:default"));
        async move { redis::cmd("HEXISTS").arg(key).arg("done").query_async(&mut redis).await.unwrap() }
    })
    .await;
    let _: Value = redis::cmd("PING").query_async(&mut redis).await.unwrap();
}
