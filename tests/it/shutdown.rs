//! A server that shuts down waits for its walsenders: waltag must never hold it up, and must lose nothing by letting go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use crate::support::{Monitor, RULES, World, connect, signal, until};

const STOP_LIMIT: Duration = Duration::from_secs(5);

async fn shop() -> World {
    let world = World::new().await;
    world.setup(RULES);
    world.sql().await.batch_execute("INSERT INTO first_model SELECT generate_series(1, 100)").await.unwrap();
    world
}

/// Stops and starts PostgreSQL; afterwards the daemon goes on.
fn restart(world: &mut World) {
    let took = world.postgres.stop("fast", Duration::from_secs(30)).unwrap();
    println!("pg_ctl stop -m fast: {took:?}");
    assert!(took < STOP_LIMIT, "{took:?}");
    world.postgres.launch().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fast_stop_under_write_load() {
    let mut world = shop().await;
    let daemon = world.daemon();
    let monitor = Monitor::start(world.redis.port);
    let (stop, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI32::new(0)));
    let mut writers = Vec::new();
    for writer in 0..4 {
        let (url, stop, last) = (world.postgres.url("postgres", "shop"), stop.clone(), last.clone());
        writers.push(tokio::spawn(async move {
            let sql = connect(&url).await;
            let mut committed = Vec::new();
            for number in 0.. {
                let id = 1_000_000 * (writer + 1) + number;
                if stop.load(Ordering::Relaxed)
                    || sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.is_err()
                {
                    break;
                }
                committed.push(format!("1 FirstModel.pk:{id}"));
                last.fetch_add(1, Ordering::Relaxed);
            }
            committed
        }));
    }
    until("some hundred commits", || async { last.load(Ordering::Relaxed) > 500 }).await;
    restart(&mut world);
    stop.store(true, Ordering::Relaxed);
    let mut committed = Vec::new();
    for writer in writers {
        committed.extend(writer.await.unwrap());
    }
    daemon.wait_for_count("streaming", 2);
    world.settled(&world.sql().await).await;
    let stale = monitor.unlinked();
    let lost: Vec<_> = committed.iter().filter(|tag| stale.binary_search(tag).is_err()).collect();
    assert!(lost.is_empty(), "{} of {} lost: {:?}", lost.len(), committed.len(), lost.first());
}

#[tokio::test]
async fn fast_stop_while_redis_is_stopped() {
    let mut world = shop().await;
    let daemon = world.daemon();
    let sql = world.sql().await;
    world.settled(&sql).await;
    let monitor = Monitor::start(world.redis.port);
    signal(world.redis.pid().unwrap(), "STOP");
    sql.batch_execute("UPDATE first_model SET name = 'x'").await.unwrap();
    // Past the fence and on its way to Redis: from here on nothing but the end of the session tells of the shutdown.
    daemon.wait_for("visible");
    drop(sql);
    restart(&mut world);
    signal(world.redis.pid().unwrap(), "CONT");
    daemon.wait_for_count("streaming", 2);
    world.settled(&world.sql().await).await;
    assert_eq!(monitor.unlinked().len(), 100);
}

/// Nothing is read any more, because the budget is full; and a repeat is owed. Neither holds up the server.
#[tokio::test]
async fn fast_stop_with_a_full_budget_and_within_a_repeat() {
    let mut world = shop().await;
    world.rules(&RULES.replace("dialect:", "repeat: [60s], dialect:"));
    let daemon = world.start(&mut world.waltag("waltag", &["run", "--tag-memory", "1MiB"]));
    daemon.wait_for("ready");
    let sql = world.sql().await;
    sql.batch_execute("UPDATE first_model SET name = 'x'").await.unwrap();
    daemon.wait_for("made stale");
    drop(sql);
    restart(&mut world);
    daemon.wait_for_count("streaming server", 2);
    signal(world.redis.pid().unwrap(), "STOP");
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model SELECT generate_series(1000, 200000)").await.unwrap();
    let sent = "SELECT sent_lsn < pg_current_wal_lsn() FROM pg_stat_replication";
    until("the reader has stopped", || async {
        let before = sql.query_opt(sent, &[]).await.unwrap().is_some_and(|row| row.get(0));
        before && daemon.log().contains("visible")
    })
    .await;
    drop(sql);
    restart(&mut world);
    signal(world.redis.pid().unwrap(), "CONT");
}

#[tokio::test]
async fn fast_stop_while_a_commit_waits_for_the_fence() {
    let mut world = shop().await;
    let daemon = world.daemon();
    let sql = world.sql().await;
    world.settled(&sql).await;
    let monitor = Monitor::start(world.redis.port);
    world.postgres.configure("synchronous_standby_names = 'nobody'").unwrap();
    world.postgres.reload().unwrap();
    world.postgres.until_commits_wait("shop").await.unwrap();
    let writer = world.sql().await;
    let waiting =
        tokio::spawn(async move { writer.batch_execute("UPDATE first_model SET name = 'x' WHERE id = 1").await });
    until("the commit waits", || async {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'UPDATE%'";
        sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    assert!(monitor.unlinked().is_empty());
    world.postgres.configure("").unwrap();
    drop(sql);
    restart(&mut world);
    let _ = waiting.await.unwrap();
    daemon.wait_for_count("streaming", 2);
    world.settled(&world.sql().await).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:1"]);
}

#[tokio::test]
async fn a_clean_stop_confirms_what_is_done_and_the_next_start_repeats_nothing() {
    let world = shop().await;
    let sql = world.sql().await;
    let daemon = world.daemon();
    sql.batch_execute("UPDATE first_model SET name = 'x' WHERE id = 1").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(daemon.stop(), Some(0));
    let monitor = Monitor::start(world.redis.port);
    let _daemon = world.daemon();
    sql.batch_execute("UPDATE first_model SET name = 'x' WHERE id = 2").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:2"]);
}
