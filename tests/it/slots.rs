//! The slot: lost, moved, too old, too big, temporary, kept on standbys.

use tokio_postgres::Client;

use crate::support::{RULES, World, fail, fill, is_gone, signal, until};

/// Drops the slot under a running daemon.
async fn drop_slot(sql: &Client) {
    let drop = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active;
        SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
    until("the slot is dropped", || async {
        let _ = sql.batch_execute(drop).await;
        sql.query("SELECT FROM pg_replication_slots WHERE NOT active", &[]).await.unwrap().is_empty()
            && sql.query("SELECT FROM pg_replication_slots", &[]).await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_is_dropped_is_made_anew_and_made_up_for() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    let (sql, mut cache) = (world.sql().await, world.cache(1).await);
    fill(&mut cache, "FirstModel.pk:7").await;
    drop_slot(&sql).await;
    sql.batch_execute("INSERT INTO first_model VALUES (7)").await.unwrap();
    until("what nobody saw is stale", || is_gone(&cache, "FirstModel.pk:7")).await;
    daemon.wait_for_count("created the replication slot", 2);
    fill(&mut cache, "FirstModel.pk:8").await;
    sql.batch_execute("INSERT INTO first_model VALUES (8)").await.unwrap();
    until("the new slot is read", || is_gone(&cache, "FirstModel.pk:8")).await;
}

/// Before 18 the stream breaks, and would break again at the same place for ever: the slot is older than the publication. From 18
/// on the server goes on without it, which is a gap.
#[tokio::test]
async fn a_publication_that_is_younger_than_the_slot() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    let (sql, mut cache) = (world.sql().await, world.cache(1).await);
    fill(&mut cache, "FirstModel.pk:7").await;
    let anew = "DROP PUBLICATION waltag; INSERT INTO first_model VALUES (7);
        CREATE PUBLICATION waltag FOR TABLE first_model, shop.second_model";
    sql.batch_execute(anew).await.unwrap();
    until("what was left out is stale", || is_gone(&cache, "FirstModel.pk:7")).await;
    if world.version().await < 18 {
        daemon.wait_for("the slot is dropped and made anew");
    }
    fill(&mut cache, "FirstModel.pk:8").await;
    sql.batch_execute("INSERT INTO first_model VALUES (8)").await.unwrap();
    until("the stream goes on", || is_gone(&cache, "FirstModel.pk:8")).await;
}

/// A cache never fills a database's disk: while Redis is away, WAL is kept up to a bound, and no further.
#[tokio::test]
async fn no_more_wal_is_kept_than_allowed() {
    let world = World::new().await;
    world.setup(RULES);
    let mut command = world.waltag("waltag", &["run", "--max-retained-wal", "32MiB"]);
    let daemon = world.start(&mut command);
    daemon.wait_until_resynced();
    let sql = world.sql().await;
    fill(&mut world.cache(1).await, "FirstModel.pk:7").await;
    signal(world.redis.pid().unwrap(), "STOP");
    sql.batch_execute("INSERT INTO first_model VALUES (7)").await.unwrap();
    let junk =
        "INSERT INTO unrelated SELECT n, n FROM generate_series(1, 300000) n ON CONFLICT (id) DO UPDATE SET v = 1";
    sql.batch_execute(&format!("{junk}; {junk}")).await.unwrap();
    daemon.wait_for("more than --max-retained-wal allows");
    daemon.wait_for_count("created the replication slot", 2);
    let query =
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) < 32 * 1024 * 1024 FROM pg_replication_slots";
    until("the slot keeps little", || async { sql.query_opt(query, &[]).await.unwrap().is_some_and(|row| row.get(0)) })
        .await;
    signal(world.redis.pid().unwrap(), "CONT");
    let cache = world.cache(1).await;
    until("what was dropped is stale", || is_gone(&cache, "FirstModel.pk:7")).await;
    // The same is found at a start.
    daemon.stop();
    fill(&mut world.cache(1).await, "FirstModel.pk:8").await;
    sql.batch_execute(&format!("INSERT INTO first_model VALUES (8); {junk}; {junk}")).await.unwrap();
    let daemon = world.start(&mut world.waltag("waltag", &["run", "--max-retained-wal", "32MiB"]));
    daemon.wait_for("more than --max-retained-wal allows");
    until("what was dropped is stale", || is_gone(&cache, "FirstModel.pk:8")).await;
}

/// As long as a transaction runs that began before, no slot can be made: waltag says so, is not ready, and makes everything stale
/// again and again.
#[tokio::test]
async fn without_a_slot_it_is_blind_and_says_so() {
    let world = World::new().await;
    world.setup(RULES);
    let mut command = world.waltag("waltag", &["run", "--lock-timeout", "100ms"]);
    let daemon = world.start(command.env("WALTAG_LISTEN", "127.0.0.1:0"));
    daemon.wait_until_resynced();
    let (sql, old, mut cache) = (world.sql().await, world.sql().await, world.cache(1).await);
    old.batch_execute("BEGIN; INSERT INTO unrelated VALUES (1)").await.unwrap();
    fill(&mut cache, "FirstModel.pk:7").await;
    drop_slot(&sql).await;
    sql.batch_execute("INSERT INTO first_model VALUES (7)").await.unwrap();
    daemon.wait_for("resync: there is no slot");
    until("it is stale all the same", || is_gone(&cache, "FirstModel.pk:7")).await;
    until("the holder is named", || async {
        let reasons = daemon.readyz(503);
        reasons.contains("the oldest is of process") && reasons.contains("(postgres)")
    })
    .await;
    old.batch_execute("COMMIT").await.unwrap();
    daemon.wait_for_count("streaming server", 2);
    daemon.readyz(200);
}

/// A temporary slot keeps nothing while the daemon is away, so each start is a gap.
#[tokio::test]
async fn a_temporary_slot() {
    let world = World::new().await;
    world.setup(RULES);
    let run = &["run", "--slot-mode", "temporary"];
    let daemon = world.start(&mut world.waltag("waltag", run));
    daemon.wait_until_resynced();
    let (sql, mut cache) = (world.sql().await, world.cache(1).await);
    fill(&mut cache, "FirstModel.pk:7").await;
    sql.batch_execute("INSERT INTO first_model VALUES (7)").await.unwrap();
    until("it is stale", || is_gone(&cache, "FirstModel.pk:7")).await;
    // A second one waits.
    let second = world.start(&mut world.waltag("waltag", run));
    second.wait_for("takes over when it is free");
    assert_eq!(daemon.stop(), Some(0));
    second.wait_for(" ready ");
    assert_eq!(second.stop(), Some(0));
    until("the slot is gone", || async {
        sql.query_one("SELECT count(*) = 0 FROM pg_replication_slots", &[]).await.unwrap().get(0)
    })
    .await;
    fill(&mut cache, "FirstModel.pk:8").await;
    sql.batch_execute("INSERT INTO first_model VALUES (8)").await.unwrap();
    let _daemon = world.start(&mut world.waltag("waltag", run));
    until("what was missed is stale", || is_gone(&cache, "FirstModel.pk:8")).await;
    // Not beside a permanent one of this name.
    sql.batch_execute("SELECT pg_create_logical_replication_slot('other', 'pgoutput')").await.unwrap();
    let said = fail(&mut world.waltag("waltag", &["run", "--slot-mode", "temporary", "--slot", "other"]), 78);
    assert!(said.contains("there is a permanent slot `other`"), "{said}");
}

#[tokio::test]
async fn a_failover_slot() {
    let world = World::new().await;
    world.setup(RULES);
    let run = &["run", "--slot-mode", "failover"];
    if world.version().await < 17 {
        assert!(fail(&mut world.waltag("waltag", run), 78).contains("needs PostgreSQL 17"));
        return;
    }
    let sql = world.sql().await;
    let failover =
        async || -> bool { sql.query_one("SELECT failover FROM pg_replication_slots", &[]).await.unwrap().get(0) };
    // One that was made before is altered.
    world.daemon().stop();
    assert!(!failover().await);
    let daemon = world.start(&mut world.waltag("waltag", run));
    daemon.wait_for(" ready ");
    assert!(failover().await);
    daemon.stop();
    world.is_left(&sql).await;
    sql.batch_execute("SELECT pg_drop_replication_slot('waltag')").await.unwrap();
    let daemon = world.start(&mut world.waltag("waltag", run));
    daemon.wait_for(" ready ");
    assert!(failover().await);
}

/// WAL that a running transaction holds is not ours to answer for: it is named, and nothing is dropped.
#[tokio::test]
async fn a_transaction_that_holds_wal_is_named() {
    let world = World::new().await;
    world.setup(RULES);
    let mut command = world.waltag("waltag", &["run", "--max-retained-wal", "128MiB"]);
    let daemon = world.start(command.env("WALTAG_LISTEN", "127.0.0.1:0"));
    daemon.wait_until_resynced();
    let (sql, old) = (world.sql().await, world.sql().await);
    old.batch_execute("BEGIN; INSERT INTO unrelated VALUES (-1, 1)").await.unwrap();
    let junk =
        "INSERT INTO unrelated SELECT n, n FROM generate_series(1, 400000) n ON CONFLICT (id) DO UPDATE SET v = 1";
    // In pieces of less than the limit: what is received is confirmed meanwhile.
    for _ in 0..6 {
        sql.batch_execute(junk).await.unwrap();
        world.settled(&sql).await;
    }
    until("the holder of that much is shown", || async {
        let status: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
        let retained = status["source"]["retained_wal_bytes"].as_i64().unwrap_or_default();
        retained > 128 << 20 && status.to_string().contains("of process")
    })
    .await;
    assert!(!daemon.log().contains("--max-retained-wal"), "{}", daemon.log());
    old.batch_execute("ROLLBACK").await.unwrap();
}

/// An asynchronous standby is promoted: it has no slot, and may lack commits that readers have seen. Everything goes stale, and the
/// stream goes on there.
#[tokio::test]
async fn a_promoted_standby_is_a_gap_and_then_the_source() {
    let mut world = World::new().await;
    world.setup(RULES);
    let standby = waltag::demo::servers::Postgres::standby_of(&world.postgres).unwrap();
    let url = format!("postgres://waltag@127.0.0.1:{},127.0.0.1:{}/shop", world.postgres.port, standby.port);
    let daemon = world.start(world.waltag("waltag", &["run"]).env("WALTAG_DATABASE_URL", url));
    daemon.wait_until_resynced();
    let mut cache = world.cache(1).await;
    fill(&mut cache, "FirstModel.pk:7").await;
    world.postgres.stop("immediate", std::time::Duration::from_secs(20)).unwrap();
    let sql = crate::support::connect(&standby.url("postgres", "shop")).await;
    sql.batch_execute("SELECT pg_promote()").await.unwrap();
    until("what may never have been is stale", || is_gone(&cache, "FirstModel.pk:7")).await;
    daemon.wait_for("timeline=\"2\"");
    daemon.wait_until_resynced();
    fill(&mut cache, "FirstModel.pk:8").await;
    sql.batch_execute("INSERT INTO first_model VALUES (8)").await.unwrap();
    until("the new primary is read", || is_gone(&cache, "FirstModel.pk:8")).await;
}
