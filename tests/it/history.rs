//! A data directory is put back to an older copy of itself: the server has the identity of before, and another history. What was cached of
//! commits that never were must go stale, and what is committed from now on must arrive.

use std::path::PathBuf;
use std::process::Command;

use redis::aio::MultiplexedConnection;

use crate::support::{Daemon, LIMIT, World, fill, is_gone, outbox, redis_at, succeed, until};

const RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: first_model, tags: ["row:<id>"]}]}"#;

/// A copy of the data directory of a server that is stopped.
fn copy(world: &World) -> PathBuf {
    let (data, copy) = (world.postgres.data(), world.postgres.data().with_extension("copy"));
    succeed(Command::new("cp").arg("-a").arg(&data).arg(&copy));
    copy
}

fn put_back(world: &World, copy: &PathBuf) {
    let data = world.postgres.data();
    succeed(Command::new("rm").arg("-rf").arg(&data));
    succeed(Command::new("mv").arg(copy).arg(&data));
}

/// Everything up to now is done, and the marker says so.
async fn told(world: &World, cache: &MultiplexedConnection) {
    world.settled(&world.sql().await).await;
    let mut cache = cache.clone();
    let marker: Vec<String> = redis::cmd("KEYS").arg("waltag:*").query_async(&mut cache).await.unwrap();
    let now: String = world.sql().await.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    until("the marker knows the log", || {
        let (marker, now, mut cache) = (marker[0].clone(), now.clone(), cache.clone());
        async move {
            let log: Option<String> = redis::cmd("HGET").arg(marker).arg("log").query_async(&mut cache).await.unwrap();
            let number = |text: &str| text.parse::<waltag::source::lsn::Lsn>().unwrap();
            // An outbox is polled now and then, and what writes its progress is in the log as well.
            log.is_some_and(|log| number(&log).0 + if outbox() { 1 << 16 } else { 0 } >= number(&now).0)
        }
    })
    .await;
}

/// A world whose row 1 has been changed by a commit that is not in the copy; the row that nobody has is cached.
async fn world() -> (World, MultiplexedConnection) {
    let world = World::new().await;
    world.setup(RULES);
    world.sql().await.batch_execute("INSERT INTO first_model VALUES (1, 'old')").await.unwrap();
    let cache = redis_at(&world.redis.url(0)).await.unwrap();
    (world, cache)
}

/// What the new history brings arrives, over a break of the stream, too.
async fn goes_on(world: &World, cache: &mut MultiplexedConnection) {
    for name in ["later", "latest"] {
        fill(cache, "row:1").await;
        let sql = world.sql().await;
        sql.batch_execute(&format!("UPDATE first_model SET name = '{name}' WHERE id = 1")).await.unwrap();
        until("what is committed from now on arrives", || is_gone(cache, "row:1")).await;
        sql.batch_execute(crate::support::end_of_stream()).await.unwrap();
    }
}

async fn change(world: &World) {
    world.sql().await.batch_execute("UPDATE first_model SET name = 'new' WHERE id = 1").await.unwrap();
}

/// The log is written anew past where it was. What stands there now is of another history: other commits at other places.
async fn write_past(world: &World, end: &str) {
    let sql = world.sql().await;
    sql.batch_execute("CREATE TABLE filler (x text)").await.unwrap();
    until("the log is longer than before", || async {
        sql.batch_execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 2000)").await.unwrap();
        sql.query_one(&format!("SELECT pg_current_wal_flush_lsn() > '{end}'::pg_lsn + 65536"), &[])
            .await
            .unwrap()
            .get(0)
    })
    .await;
}

async fn end(world: &World) -> String {
    world.sql().await.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0)
}

async fn restored_while_away(grown: bool) {
    let (mut world, mut cache) = world().await;
    let daemon = world.daemon();
    told(&world, &cache).await;
    assert_eq!(daemon.stop(), Some(0));
    world.postgres.stop("fast", LIMIT).unwrap();
    let copy = copy(&world);
    world.postgres.launch().unwrap();
    let daemon = world.daemon();
    change(&world).await;
    told(&world, &cache).await;
    assert_eq!(daemon.stop(), Some(0));
    let end = end(&world).await;
    fill(&mut cache, "row:1").await;
    world.postgres.stop("fast", LIMIT).unwrap();
    put_back(&world, &copy);
    world.postgres.launch().unwrap();
    if grown {
        write_past(&world, &end).await;
    }
    let _daemon = world.daemon();
    until("what was cached of a commit that never was is stale", || is_gone(&cache, "row:1")).await;
    goes_on(&world, &mut cache).await;
}

/// The slot and the marker agreed, and nobody compared them with the server's log.
#[tokio::test]
async fn a_cold_copy_that_was_put_back_while_waltag_was_away() {
    restored_while_away(false).await;
}

/// By then the log was longer than everything that was remembered.
#[tokio::test]
async fn a_cold_copy_that_has_grown_past_what_is_remembered() {
    restored_while_away(true).await;
}

async fn restored_while_running(grown: bool) {
    let (mut world, mut cache) = world().await;
    let daemon: Daemon = world.daemon();
    told(&world, &cache).await;
    world.postgres.stop("fast", LIMIT).unwrap();
    let copy = copy(&world);
    world.postgres.launch().unwrap();
    daemon.wait_for_count(" streaming ", 2);
    change(&world).await;
    told(&world, &cache).await;
    let end = end(&world).await;
    fill(&mut cache, "row:1").await;
    world.postgres.stop("fast", LIMIT).unwrap();
    put_back(&world, &copy);
    if grown {
        // Nobody but us reaches it meanwhile.
        daemon.signal("STOP");
    }
    world.postgres.launch().unwrap();
    if grown {
        write_past(&world, &end).await;
        daemon.signal("CONT");
    }
    until("what was cached of a commit that never was is stale", || is_gone(&cache, "row:1")).await;
    goes_on(&world, &mut cache).await;
}

/// The old position was confirmed beyond the server's end, and every commit was lost until the log had grown past it.
#[tokio::test]
async fn a_cold_copy_that_was_put_back_while_waltag_ran() {
    restored_while_running(false).await;
}

#[tokio::test]
async fn a_cold_copy_that_has_grown_past_what_runs() {
    restored_while_running(true).await;
}

/// None of this is a gap: a restart of either, and of both.
#[tokio::test]
async fn the_same_history_is_no_gap() {
    let (mut world, mut cache) = world().await;
    let daemon = world.daemon();
    told(&world, &cache).await;
    fill(&mut cache, "row:1").await;
    world.postgres.stop("fast", LIMIT).unwrap();
    world.postgres.launch().unwrap();
    daemon.wait_for_count(" streaming ", 2);
    world.sql().await.batch_execute("INSERT INTO first_model VALUES (2, 'x')").await.unwrap();
    told(&world, &cache).await;
    daemon.kill();
    world.postgres.stop("fast", LIMIT).unwrap();
    world.postgres.launch().unwrap();
    let daemon = world.daemon();
    world.sql().await.batch_execute("INSERT INTO first_model VALUES (3, 'x')").await.unwrap();
    told(&world, &cache).await;
    assert!(!is_gone(&cache, "row:1").await, "{}", daemon.log());
    assert!(!daemon.log().contains(" resync: "), "{}", daemon.log());
}

/// One cache was unreachable when the commit came that never was, and its marker knows nothing of it; the other's does.
#[tokio::test]
async fn one_cache_that_knows_is_enough_for_all() {
    let mut world = World::new().await;
    let other = waltag::demo::servers::Redis::start(&[]).unwrap();
    world.setup(&format!(
        r#"{{version: 1, caches: {{a: {{url: "{{redis}}/0", dialect: keys}}, b: {{url: "{}", dialect: keys, detach_after: 60s}}}},
            rules: [{{table: first_model, tags: ["row:<id>"], caches: [a, b]}}]}}"#,
        other.url(0)
    ));
    world.sql().await.batch_execute("INSERT INTO first_model VALUES (1, 'old')").await.unwrap();
    let cache = redis_at(&world.redis.url(0)).await.unwrap();
    let daemon = world.daemon();
    told(&world, &cache).await;
    assert_eq!(daemon.stop(), Some(0));
    world.postgres.stop("fast", LIMIT).unwrap();
    let copy = copy(&world);
    world.postgres.launch().unwrap();
    let daemon = world.daemon();
    let mut second = redis_at(&other.url(0)).await.unwrap();
    crate::support::signal(other.pid().unwrap(), "STOP");
    change(&world).await;
    until("the first is told", || async { daemon.log().contains("made stale cache=\"a\"") }).await;
    let end = end(&world).await;
    until("the first marker knows", || {
        let mut cache = cache.clone();
        async move {
            let keys: Vec<String> = redis::cmd("KEYS").arg("waltag:*:a").query_async(&mut cache).await.unwrap();
            let commit: Option<String> =
                redis::cmd("HGET").arg(&keys[0]).arg("commit").query_async(&mut cache).await.unwrap();
            outbox() || commit.is_some_and(|commit| !commit.is_empty())
        }
    })
    .await;
    daemon.kill();
    crate::support::signal(other.pid().unwrap(), "CONT");
    fill(&mut second, "row:1").await;
    world.postgres.stop("fast", LIMIT).unwrap();
    put_back(&world, &copy);
    world.postgres.launch().unwrap();
    write_past(&world, &end).await;
    let _daemon = world.daemon();
    if !outbox() {
        until("the other one is stale as well", || is_gone(&second, "row:1")).await;
    }
}

/// A process that has seen no commit since its own start goes by what the markers know, also when the copy is put back under it.
#[tokio::test]
async fn a_cold_copy_under_a_process_that_saw_nothing() {
    let (mut world, mut cache) = world().await;
    let daemon = world.daemon();
    told(&world, &cache).await;
    world.postgres.stop("fast", LIMIT).unwrap();
    let copy = copy(&world);
    world.postgres.launch().unwrap();
    daemon.wait_for_count(" streaming ", 2);
    change(&world).await;
    told(&world, &cache).await;
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.daemon();
    world.settled(&world.sql().await).await;
    let end = end(&world).await;
    fill(&mut cache, "row:1").await;
    world.postgres.stop("fast", LIMIT).unwrap();
    put_back(&world, &copy);
    daemon.signal("STOP");
    world.postgres.launch().unwrap();
    write_past(&world, &end).await;
    daemon.signal("CONT");
    until("what was cached of a commit that never was is stale", || is_gone(&cache, "row:1")).await;
    goes_on(&world, &mut cache).await;
    // The marker knows nothing of the old history any more: an ordinary restart is none.
    told(&world, &cache).await;
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.daemon();
    world.settled(&world.sql().await).await;
    assert!(!daemon.log().contains(" resync: "), "{}", daemon.log());
}
