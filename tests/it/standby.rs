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

/// What another daemon has found and made up for while it had the slot is no news to the one that takes over again, though that one remembers another
/// catalog; and a slot that the other has made anew is not dropped because of what was wrong with the one before.
#[tokio::test]
async fn what_the_other_daemon_has_seen_to_is_no_gap() {
    let world = World::new().await;
    world.setup(RULES);
    let start = || world.start(&mut world.waltag("waltag", &["run", "--max-retained-wal", "32MiB"]));
    let first = start();
    first.wait_until_resynced();
    let second = start();
    second.wait_for("takes over when it is free");
    let sql = world.sql().await;
    world.settled(&sql).await;
    first.signal("STOP");
    // Too much for the first one's slot, which it will find when it wakes up.
    let junk = "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))) FROM generate_series(1, 50)";
    sql.batch_execute(junk).await.unwrap();
    second.wait_for("streaming server");
    second.wait_until_resynced();
    sql.batch_execute("ALTER TABLE first_model ALTER id TYPE bigint").await.unwrap();
    second.wait_for("was replaced, rewritten or published anew");
    second.wait_until_resynced();
    world.settled(&sql).await;
    first.signal("CONT");
    first.wait_for("takes over when it is free");
    let (slots, gaps) =
        (first.log().matches("created the replication slot").count(), first.log().matches(" resync: ").count());
    assert_eq!(second.stop(), Some(0));
    first.wait_for_count("streaming server", 2);
    let looks = first.log().matches("looked at the catalog").count();
    sql.batch_execute("INSERT INTO first_model VALUES (5)").await.unwrap();
    world.settled(&sql).await;
    first.wait_for_count("looked at the catalog", looks + 2);
    let log = first.log();
    assert_eq!(log.matches("created the replication slot").count(), slots, "{log}");
    assert_eq!(log.matches(" resync: ").count(), gaps, "{log}");
}
