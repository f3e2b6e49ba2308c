//! An outbox that nobody empties: the disk is not filled, and what was not written down is made up for.

use tokio_postgres::Client;

use crate::outbox::{ONE, world, world_with};
use crate::support::{SCHEMA, World, fill, is_gone, succeed, until};

/// Rows in the outbox, and its bytes.
async fn size(sql: &Client) -> (i64, i64) {
    let query = "SELECT (SELECT count(*) FROM waltag.outbox), pg_total_relation_size('waltag.outbox')";
    let row = sql.query_one(query, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

const BOUNDED: [&str; 4] = ["setup", "--apply", "--max-retained-wal", "1MiB"];

/// A world whose outbox may have 1 MiB, with an instance that is gone for good and 30,000 rows that were changed meanwhile.
async fn full_world() -> (World, Client) {
    let world = world().await;
    world.rules(ONE);
    succeed(&mut world.waltag("postgres", &BOUNDED));
    assert!(succeed(&mut world.waltag("postgres", &BOUNDED)).contains("Nothing to do"));
    let sql = world.sql().await;
    let daemon = world.daemon();
    world.settled(&sql).await;
    assert_eq!(daemon.stop(), Some(0));
    let gone = "INSERT INTO waltag.progress (instance, position, done) VALUES ('gone', 0, pg_current_snapshot())";
    sql.batch_execute(gone).await.unwrap();
    sql.batch_execute("INSERT INTO first_model SELECT n, '' FROM generate_series(1, 30000) n").await.unwrap();
    let (rows, bytes) = size(&sql).await;
    assert!(rows < 20_000 && bytes < 4 << 20, "{rows} rows, {bytes} bytes");
    (world, sql)
}

/// Nobody takes the rows away, and the disk is not filled: what was not written down is made up for, and the instance that is gone holds
/// nothing back.
#[tokio::test]
async fn a_full_outbox_is_a_gap() {
    let (world, sql) = full_world().await;
    let mut cache = world.cache(0).await;
    for key in ["a:1", "a:30000", "b:1"] {
        fill(&mut cache, key).await;
    }
    let daemon = world.watched();
    daemon.wait_for("the outbox was full");
    daemon.readyz(200);
    until("it is empty", || async { size(&sql).await.1 < 1 << 20 }).await;
    sql.batch_execute("DELETE FROM waltag.progress WHERE instance = 'gone'").await.unwrap();
    world.settled(&sql).await;
    assert!(is_gone(&cache, "a:1").await && is_gone(&cache, "a:30000").await && !is_gone(&cache, "b:1").await);
    let gaps = || {
        daemon
            .get("/metrics")
            .1
            .lines()
            .filter(|line| line.contains("outbox_full"))
            .map(str::to_owned)
            .collect::<String>()
    };
    until("it is counted", || async { !gaps().is_empty() }).await;
    assert!(gaps().ends_with(" 1"), "whoever empties it does not take that for another gap: {}", gaps());
    // From then on nothing is swept.
    let resyncs = daemon.log().matches(" resync: ").count();
    fill(&mut cache, "a:2").await;
    fill(&mut cache, "a:3").await;
    sql.batch_execute("UPDATE first_model SET name = 'x' WHERE id = 2").await.unwrap();
    until("it is stale", || is_gone(&cache, "a:2")).await;
    assert!(!is_gone(&cache, "a:3").await);
    assert_eq!(daemon.log().matches(" resync: ").count(), resyncs, "{}", daemon.log());
    let status = daemon.get("/status").1;
    assert!(status.contains("\"outbox_limit_bytes\":1048576"), "{status}");
    // Another limit is another function, and no trigger is made anew.
    let said = succeed(&mut world.waltag("postgres", &["setup", "--apply", "--max-retained-wal", "0"]));
    assert!(said.contains("RETURN 0::bigint") && !said.contains("CREATE TRIGGER"), "{said}");
}

/// Values that are too large for a row's page lie elsewhere.
#[tokio::test]
async fn an_outbox_that_is_full_of_large_values() {
    let (world, sql) = full_world().await;
    world.rules(&ONE.replace("a:<id>", "a:<name>"));
    succeed(&mut world.waltag("postgres", &BOUNDED));
    sql.batch_execute("TRUNCATE waltag.outbox").await.unwrap();
    let text = "(SELECT string_agg(md5(m.id::text || n::text), '') FROM generate_series(1, 1000) n)";
    sql.batch_execute(&format!("UPDATE first_model m SET name = {text} WHERE id <= 200")).await.unwrap();
    let (rows, bytes) = size(&sql).await;
    assert!(rows < 100 && bytes < 2 << 20, "{rows} rows, {bytes} bytes");
}

/// A crash within the resync starts it again, and a transaction that found the outbox full may commit after the first pass.
#[tokio::test]
async fn a_full_outbox_over_a_crash_and_an_open_transaction() {
    let (world, sql) = full_world().await;
    let mut cache = world.cache(0).await;
    for key in ["a:1", "a:30000"] {
        fill(&mut cache, key).await;
    }
    let mut writer = world.sql().await;
    let open = writer.transaction().await.unwrap();
    open.batch_execute("UPDATE first_model SET name = 'open' WHERE id = 30000").await.unwrap();
    let start = || world.start(&mut world.waltag("waltag", &["run"]));
    let daemon = start();
    daemon.wait_for("the outbox was full");
    daemon.kill();
    let daemon = start();
    daemon.wait_for("the outbox was full");
    daemon.wait_for("everything is stale; once more");
    fill(&mut cache, "a:30000").await;
    open.commit().await.unwrap();
    sql.batch_execute("DELETE FROM waltag.progress WHERE instance = 'gone'").await.unwrap();
    world.settled(&sql).await;
    assert!(is_gone(&cache, "a:1").await && is_gone(&cache, "a:30000").await, "{}", daemon.log());
    until("it is empty", || async { size(&sql).await.1 < 1 << 20 }).await;
}

/// Whoever reads an old snapshot keeps what is deleted from being vacuumed: the table grows, and nothing is owed.
#[tokio::test]
async fn bloat_is_no_backlog() {
    let world = world_with("autovacuum = off\n", SCHEMA).await;
    world.rules(ONE);
    succeed(&mut world.waltag("postgres", &BOUNDED));
    let sql = world.sql().await;
    let daemon = world.watched();
    daemon.readyz(200);
    // A dump: it has the table locked, too.
    let mut dump = world.sql().await;
    let dump =
        dump.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead).start().await.unwrap();
    dump.batch_execute("SELECT FROM waltag.outbox LIMIT 1").await.unwrap();
    let status = async || {
        let all: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
        all["source"]["outbox_bytes"].as_i64().unwrap_or_default()
    };
    let skipped = "SELECT count(*) FROM waltag.skipped WHERE is_called";
    let (mut bytes, mut from) = (0, 1);
    while bytes < 5 << 19 {
        for _ in 0..2 {
            let to = from + 2_000;
            sql.batch_execute(&format!("INSERT INTO first_model SELECT n, '' FROM generate_series({from}, {to}) n"))
                .await
                .unwrap();
            from = to + 1;
            world.settled(&sql).await;
        }
        bytes = size(&sql).await.1;
        assert_eq!(crate::outbox::count(&sql, skipped).await, 0, "at {bytes} bytes\n{}", daemon.log());
        // It is measured every five seconds.
        until("it was measured, as bloat", || async {
            status().await >= bytes
                && crate::outbox::count(&sql, &format!("SELECT count(*) FROM waltag.bloat WHERE last_value >= {bytes}"))
                    .await
                    == 1
        })
        .await;
    }
    assert!(!daemon.log().contains("the outbox was full"), "{}", daemon.log());
    dump.commit().await.unwrap();
    // What is owed on top of it is bounded all the same.
    assert_eq!(daemon.stop(), Some(0));
    sql.batch_execute("UPDATE first_model SET name = 'x'; INSERT INTO first_model SELECT n, '' FROM generate_series(100001, 130000) n").await.unwrap();
    assert_eq!(crate::outbox::count(&sql, skipped).await, 1);
}

/// Tags from SQL lie in the same table.
#[tokio::test]
async fn an_outbox_that_is_full_of_tags_from_sql() {
    let world = world().await;
    world.rules(ONE);
    succeed(&mut world.waltag("postgres", &BOUNDED));
    let sql = world.sql().await;
    let call = "DO $$ BEGIN FOR n IN 1..100 LOOP PERFORM waltag.invalidate((SELECT string_agg(md5(n::text || g::text), '') FROM generate_series(1, 1900) g)); END LOOP; END $$";
    sql.batch_execute(call).await.unwrap();
    let (rows, bytes) = size(&sql).await;
    assert!(rows < 60 && bytes < 2 << 20, "{rows} rows, {bytes} bytes");
}
