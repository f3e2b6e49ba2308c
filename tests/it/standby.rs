//! Two daemons and one slot: the second takes over, and the first, should it wake up, moves nothing back.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;

use crate::support::{Monitor, RULES, World, until};

/// `lsn` of the marker, as a number.
async fn told(cache: &MultiplexedConnection) -> u64 {
    let mut cache = cache.clone();
    let keys: Vec<String> = redis::cmd("KEYS").arg("waltag:*:my_cache_alias").query_async(&mut cache).await.unwrap();
    let lsn: Option<String> = redis::cmd("HGET").arg(&keys[0]).arg("lsn").query_async(&mut cache).await.unwrap();
    let (high, low) =
        lsn.as_deref().unwrap_or("0/0").split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    (u64::from_str_radix(&high, 16).unwrap() << 32) | u64::from_str_radix(&low, 16).unwrap()
}

/// The holder is stopped in the middle of everything: its walsender lingers, and ends by itself, because the stream sets its own
/// `wal_sender_timeout`. When it wakes up it neither writes nor sweeps, and waits for the slot.
#[tokio::test]
async fn a_paused_daemon_is_replaced_and_moves_nothing_back() {
    let world = World::new().await;
    world.setup(RULES);
    let first = world.daemon();
    let second = world.start(&mut world.waltag("waltag", &["run"]));
    second.wait_for("takes over when it is free");
    let (sql, cache, monitor) = (world.sql().await, world.cache(1).await, Monitor::start(world.redis.port));
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    first.signal("STOP");
    let begin = Instant::now();
    sql.batch_execute("INSERT INTO first_model VALUES (2)").await.unwrap();
    second.wait_for("streaming server");
    println!("taken over {:.1?} after the holder was stopped", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(20));
    sql.batch_execute("INSERT INTO first_model VALUES (3)").await.unwrap();
    world.settled(&sql).await;
    let before = told(&cache).await;
    first.signal("CONT");
    first.wait_for("takes over when it is free");
    assert!(told(&cache).await >= before);
    sql.batch_execute("INSERT INTO first_model VALUES (4)").await.unwrap();
    world.settled(&sql).await;
    assert!(told(&cache).await > before);
    // And back again.
    second.kill();
    first.wait_for_count("streaming server", 2);
    sql.batch_execute("INSERT INTO first_model VALUES (5)").await.unwrap();
    world.settled(&sql).await;
    let stale = monitor.unlinked();
    for id in 1..=5 {
        assert!(stale.contains(&format!("1 FirstModel.pk:{id}")), "{stale:?}");
    }
    // None of this was a gap.
    assert_eq!(first.log().matches(" resync: ").count(), 2, "{}", first.log());
    until("nothing is owed", || async { told(&cache).await > before }).await;
}
