//! Applications that read from a standby: made stale again once it has replayed past the commit.

use std::time::Duration;

use waltag::demo::servers::Postgres;

use crate::support::{SCHEMA, World, connect, fill, is_gone, until, until_within};

/// One cache whose application reads from a standby; no repeats, so that nothing else heals.
async fn world() -> (World, Postgres) {
    let world = World::with("", SCHEMA).await;
    let standby = Postgres::standby_of(&world.postgres).unwrap();
    world.setup(&format!(
        r#"{{version: 1, caches: {{c: {{url: "{{redis}}/0", dialect: keys, repeat: [], replicas: ["{}"]}}}},
            rules: [{{table: first_model, tags: ["f:<id>"]}}]}}"#,
        standby.url("waltag", "shop")
    ));
    (world, standby)
}

#[tokio::test]
async fn a_fill_from_a_standby_that_lags_goes_stale_when_it_has_replayed() {
    let (world, standby) = world().await;
    let first = world.watched();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    let lagging = connect(&standby.url("postgres", "shop")).await;
    // Nothing is owed before: it keeps up.
    fill(&mut cache, "f:1").await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    assert!(is_gone(&cache, "f:1").await);
    lagging.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until("it is paused", || async {
        let state: String = lagging.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).await.unwrap().get(0);
        state == "paused"
    })
    .await;
    for (id, daemon) in [(2, Some(first)), (3, None)] {
        let daemon = daemon.unwrap_or_else(|| world.watched());
        let key = format!("f:{id}");
        fill(&mut cache, &key).await;
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
        until("the first pass", || is_gone(&cache, &key)).await;
        // A reader of the standby does not see the row, and stores what it saw.
        let seen = lagging.query(&format!("SELECT FROM first_model WHERE id = {id}"), &[]).await.unwrap();
        assert!(seen.is_empty());
        fill(&mut cache, &key).await;
        // What is owed outlives the process.
        daemon.kill();
    }
    let last = world.watched();
    // What is swept is swept again.
    fill(&mut cache, "f:9").await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    until("the sweep", || is_gone(&cache, "f:9")).await;
    fill(&mut cache, "f:9").await;
    lagging.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    for key in ["f:2", "f:3", "f:9"] {
        until(&format!("{key} is stale again"), || is_gone(&cache, key)).await;
    }
    world.settled(&sql).await;
    assert!(last.get("/metrics").1.contains("waltag_replica_up{cache=\"c\""), "{}", last.log());
}

/// A standby that is away does not hold up the slot for ever; when it is back, and has replayed what it missed, everything goes
/// stale once.
#[tokio::test]
async fn a_standby_that_is_away_is_made_up_for() {
    let (world, mut standby) = world().await;
    let daemon = world.watched();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    standby.stop("fast", Duration::from_secs(20)).unwrap();
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    until("it is told", || async {
        daemon.get("/metrics").1.lines().any(|line| line.starts_with("waltag_replica_up") && line.ends_with(" 0"))
    })
    .await;
    world.settled_within(&sql, Duration::from_secs(90)).await;
    daemon.wait_for("what was made stale for its readers is made up for");
    fill(&mut cache, "f:1").await;
    standby.launch().unwrap();
    until_within(Duration::from_secs(60), "it is stale again", || is_gone(&cache, "f:1")).await;
    daemon.wait_for("a replica has caught up");
}

/// The same over a restart: while the daemon was down the standby came back, and its readers stored what they saw before it had caught up.
#[tokio::test]
async fn a_restart_does_not_forget_that_a_standby_was_away() {
    let (world, mut standby) = world().await;
    let first = world.watched();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    standby.stop("fast", Duration::from_secs(20)).unwrap();
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled_within(&sql, Duration::from_secs(90)).await;
    first.wait_for("what was made stale for its readers is made up for");
    until("the marker says so", || async {
        let mut cache = cache.clone();
        let keys: Vec<String> = redis::cmd("KEYS").arg("waltag:*").query_async(&mut cache).await.unwrap();
        let said: Option<String> =
            redis::cmd("HGET").arg(&keys[0]).arg("replicas").query_async(&mut cache).await.unwrap();
        said.as_deref() == Some("behind")
    })
    .await;
    first.kill();
    fill(&mut cache, "f:1").await;
    standby.launch().unwrap();
    let there = connect(&standby.url("postgres", "shop")).await;
    until("it has caught up", || async {
        !there.query("SELECT FROM first_model WHERE id = 1", &[]).await.unwrap().is_empty()
    })
    .await;
    let second = world.watched();
    until("it is stale again", || is_gone(&cache, "f:1")).await;
    assert!(!second.log().contains(" resync: "), "{}", second.log());
}
