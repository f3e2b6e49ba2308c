//! A table bears another name for a moment, or for good; partitions come and go: a change must find the rules of its table all the same.

use redis::aio::MultiplexedConnection;

use crate::support::{World, fill, is_gone, outbox, redis_at, until};

const SCHEMA: &str = "CREATE SCHEMA shop;
    CREATE TABLE shop.item (id int PRIMARY KEY, name text);
    INSERT INTO shop.item VALUES (1, 'old');
    CREATE TABLE shop.part (id int, k int, name text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
    CREATE TABLE shop.part_1 PARTITION OF shop.part FOR VALUES IN (1);
    INSERT INTO shop.part VALUES (1, 1, 'old');
    CREATE TABLE shop.parent (id int PRIMARY KEY, label text)";

const RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
    {table: shop.item, tags: ["item:<id>"]}, {table: shop.part, tags: ["part:<id>"]}, {table: shop.parent, tags: ["parent:<id>"]}]}"#;

/// A world with everything published, however it comes to be called.
async fn world(rules: &str) -> (World, MultiplexedConnection) {
    let world = World::with("", SCHEMA).await;
    if !outbox() {
        world.sql().await.batch_execute("CREATE PUBLICATION waltag FOR ALL TABLES").await.unwrap();
    }
    world.setup(rules);
    let cache = redis_at(&world.redis.url(0)).await.unwrap();
    (world, cache)
}

/// Under a running daemon: `sql`, in one session; then `key` must be stale when `/wait`, or the confirmed position, says that everything is done.
async fn goes_stale(rules: &str, sql: &str, key: &str) {
    let (world, mut cache) = world(rules).await;
    let daemon = world.daemon();
    fill(&mut cache, key).await;
    let session = world.sql().await;
    for statement in sql.split(";;") {
        session.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    world.settled(&session).await;
    until(&format!("{key} is stale after {sql}"), || is_gone(&cache, key)).await;
    drop(daemon);
}

/// The same while the daemon is away.
async fn goes_stale_later(sql: &str, key: &str) {
    let (world, mut cache) = world(RULES).await;
    let daemon = world.daemon();
    world.settled(&world.sql().await).await;
    assert_eq!(daemon.stop(), Some(0));
    fill(&mut cache, key).await;
    let session = world.sql().await;
    for statement in sql.split(";;") {
        session.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    let _daemon = world.daemon();
    world.settled(&session).await;
    until(&format!("{key} is stale after {sql}"), || is_gone(&cache, key)).await;
}

const RENAMED: &str =
    "ALTER TABLE shop.item RENAME TO other; UPDATE shop.other SET name = 'new'; ALTER TABLE shop.other RENAME TO item";

#[tokio::test]
async fn rows_that_change_under_another_name() {
    goes_stale(RULES, &format!("BEGIN; {RENAMED}; COMMIT"), "item:1").await;
    goes_stale(RULES, &RENAMED.replace("; ", ";;"), "item:1").await;
    goes_stale_later(&RENAMED.replace("; ", ";;"), "item:1").await;
}

#[tokio::test]
async fn rows_that_change_under_another_schema() {
    let moved =
        "ALTER SCHEMA shop RENAME TO other; UPDATE other.item SET name = 'new'; ALTER SCHEMA other RENAME TO shop";
    goes_stale(RULES, &format!("BEGIN; {moved}; COMMIT"), "item:1").await;
    goes_stale_later(&moved.replace("; ", ";;"), "item:1").await;
    let moved = "CREATE SCHEMA other; ALTER TABLE shop.item SET SCHEMA other; UPDATE other.item SET name = 'new'; ALTER TABLE other.item SET SCHEMA shop";
    goes_stale(RULES, &format!("BEGIN; {moved}; COMMIT"), "item:1").await;
}

#[tokio::test]
async fn a_partition_that_is_made_and_filled_in_one_transaction() {
    let made =
        "CREATE TABLE shop.part_2 PARTITION OF shop.part FOR VALUES IN (2); INSERT INTO shop.part VALUES (7, 2, 'new')";
    if outbox() {
        // Its triggers come with it.
        return goes_stale(RULES, &format!("BEGIN; {made}; COMMIT"), "part:7").await;
    }
    goes_stale(RULES, &format!("BEGIN; {made}; COMMIT"), "part:7").await;
    goes_stale(RULES, &format!("BEGIN; {made}; DROP TABLE shop.part_2; COMMIT"), "part:7").await;
    let attached = "CREATE TABLE shop.part_2 (LIKE shop.part); ALTER TABLE shop.part ATTACH PARTITION shop.part_2 FOR VALUES IN (2);
        INSERT INTO shop.part VALUES (7, 2, 'new')";
    goes_stale(RULES, &format!("BEGIN; {attached}; COMMIT"), "part:7").await;
}

#[tokio::test]
async fn a_partition_that_came_and_went_while_nobody_looked() {
    let gone = "CREATE TABLE shop.part_2 PARTITION OF shop.part FOR VALUES IN (2);;INSERT INTO shop.part VALUES (7, 2, 'new');;DROP TABLE shop.part_2";
    goes_stale_later(gone, "part:7").await;
    let detached = "ALTER TABLE shop.part DETACH PARTITION shop.part_1;;UPDATE shop.part_1 SET name = 'new';;
        ALTER TABLE shop.part ATTACH PARTITION shop.part_1 FOR VALUES IN (1)";
    goes_stale_later(detached, "part:1").await;
    goes_stale(RULES, detached, "part:1").await;
    if !outbox() {
        let child = "CREATE TABLE shop.child () INHERITS (shop.parent);;INSERT INTO shop.child VALUES (9, 'new');;DROP TABLE shop.child";
        goes_stale_later(child, "parent:9").await;
        let moved = "ALTER TABLE shop.part_1 SET SCHEMA public;;UPDATE shop.part SET name = 'new';;ALTER TABLE part_1 SET SCHEMA shop";
        goes_stale_later(moved, "part:1").await;
        goes_stale(RULES, child, "parent:9").await;
    }
}

/// One resync at the swap, then all changes were lost until the stream was opened anew: nothing describes the leaves again.
#[tokio::test]
async fn a_table_that_is_swapped_for_a_partitioned_one() {
    let (world, mut cache) = world(RULES).await;
    let daemon = world.daemon();
    let sql = world.sql().await;
    sql.batch_execute(
        "CREATE TABLE shop.item_new (id int, name text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE shop.item_1 PARTITION OF shop.item_new FOR VALUES FROM (0) TO (1000);
         INSERT INTO shop.item_new SELECT * FROM shop.item",
    )
    .await
    .unwrap();
    world.settled(&sql).await;
    fill(&mut cache, "item:1").await;
    sql.batch_execute(
        "BEGIN; ALTER TABLE shop.item RENAME TO item_old; ALTER TABLE shop.item_new RENAME TO item; COMMIT",
    )
    .await
    .unwrap();
    if outbox() {
        // The triggers are the other table's.
        world.setup(RULES);
    }
    until("the swap is seen", || is_gone(&cache, "item:1")).await;
    for name in ["a", "b"] {
        fill(&mut cache, "item:1").await;
        sql.batch_execute(&format!("UPDATE shop.item SET name = '{name}'")).await.unwrap();
        until("what changes behind the swap", || is_gone(&cache, "item:1")).await;
        // What went stale with the first may have been a sweep.
        daemon.wait_until_resynced();
        world.settled(&sql).await;
    }
}

/// Leaves were known by the names that their ancestors had when the stream began.
#[tokio::test]
async fn a_root_that_is_renamed_and_the_rules_follow() {
    for (rename, table) in [
        ("ALTER TABLE shop.part RENAME TO other", "shop.other"),
        ("ALTER SCHEMA shop RENAME TO store", "store.part"),
        ("CREATE SCHEMA store; ALTER TABLE shop.part SET SCHEMA store", "store.part"),
    ] {
        let rules = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: shop.part, tags: ["part:<id>"]}]}"#;
        let (world, mut cache) = world(rules).await;
        let daemon = world.daemon();
        let sql = world.sql().await;
        sql.batch_execute("UPDATE shop.part SET name = 'known'").await.unwrap();
        world.settled(&sql).await;
        sql.batch_execute(rename).await.unwrap();
        world.rules(&rules.replace("shop.part", table));
        daemon.wait_for("rules reloaded");
        daemon.wait_until_resynced();
        for name in ["a", "b"] {
            fill(&mut cache, "part:1").await;
            sql.batch_execute(&format!("UPDATE {table} SET name = '{name}'")).await.unwrap();
            until(&format!("what changes behind {rename}"), || is_gone(&cache, "part:1")).await;
        }
    }
}

/// A detached partition stayed "a partition" for as long as the process lived, and a pattern means tables.
#[tokio::test]
async fn a_partition_that_is_detached_is_a_table_of_its_own() {
    let rules = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{tables: ["shop.*"], tags: ["<@table>:<id>"]}]}"#;
    let (world, mut cache) = world(rules).await;
    let daemon = world.daemon();
    let sql = world.sql().await;
    sql.batch_execute("UPDATE shop.part SET name = 'known'; ALTER TABLE shop.part DETACH PARTITION shop.part_1")
        .await
        .unwrap();
    if outbox() {
        world.setup(rules);
    }
    daemon.wait_for("`<@table>:<id>`");
    daemon.wait_until_resynced();
    for name in ["a", "b"] {
        fill(&mut cache, "part_1:1").await;
        sql.batch_execute(&format!("UPDATE shop.part_1 SET name = '{name}'")).await.unwrap();
        until("what changes in a table of its own", || is_gone(&cache, "part_1:1")).await;
    }
}

/// What publishes a leaf stands at its root, and the fingerprint of a rule for the leaf did not have it.
#[tokio::test]
async fn a_table_that_is_not_published_for_a_moment() {
    if outbox() {
        return;
    }
    let world = World::with("", SCHEMA).await;
    let sql = world.sql().await;
    sql.batch_execute("CREATE PUBLICATION waltag FOR TABLE shop.part, shop.item").await.unwrap();
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
        {table: shop.part_1, tags: ["leaf:<id>"]}, {table: shop.item, tags: ["item:<id>"]}]}"#,
    );
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    let daemon = world.daemon();
    for (unpublished, key) in [
        (
            "ALTER PUBLICATION waltag DROP TABLE shop.part; UPDATE shop.part SET name = 'x'; ALTER PUBLICATION waltag ADD TABLE shop.part",
            "leaf:1",
        ),
        (
            "ALTER PUBLICATION waltag SET TABLE shop.part; UPDATE shop.item SET name = 'x'; ALTER PUBLICATION waltag ADD TABLE shop.item",
            "item:1",
        ),
    ] {
        world.settled(&sql).await;
        fill(&mut cache, key).await;
        for statement in unpublished.split("; ") {
            sql.batch_execute(statement).await.unwrap();
        }
        until(&format!("{key} is stale after {unpublished}"), || is_gone(&cache, key)).await;
        daemon.wait_until_resynced();
    }
}

/// What is the same before and after may have been something else in between: a reader that computed then has cached that.
#[tokio::test]
async fn what_was_something_else_for_a_moment() {
    let green = "CREATE SCHEMA green; CREATE TABLE green.item (id int PRIMARY KEY, name text); INSERT INTO green.item VALUES (1, 'green')";
    let swapped = "BEGIN; ALTER SCHEMA shop RENAME TO blue; ALTER SCHEMA green RENAME TO shop; COMMIT";
    let back = "BEGIN; ALTER SCHEMA shop RENAME TO green; ALTER SCHEMA blue RENAME TO shop; COMMIT";
    for (between, key) in [
        ("ALTER TABLE shop.part DETACH PARTITION shop.part_1;;ALTER TABLE shop.part ATTACH PARTITION shop.part_1 FOR VALUES IN (1)".to_owned(), "part:1"),
        (format!("{green};;{swapped};;{back}"), "item:1"),
        ("ALTER TABLE shop.item RENAME name TO was;;ALTER TABLE shop.item ADD name text;;ALTER TABLE shop.item DROP name;;ALTER TABLE shop.item RENAME was TO name".to_owned(), "item:1"),
        ("CREATE TABLE shop.child (id int PRIMARY KEY, label text);;ALTER TABLE shop.child INHERIT shop.parent;;INSERT INTO shop.child VALUES (1, 'x');;ALTER TABLE shop.child NO INHERIT shop.parent".to_owned(), "parent:1"),
    ] {
        if outbox() && key == "parent:1" {
            // A child by inheritance has no triggers before `setup` makes them.
            continue;
        }
        goes_stale(RULES, &between, key).await;
        goes_stale_later(&between, key).await;
    }
}

/// A new column takes the name of the old one, and with it every row reads otherwise.
#[tokio::test]
async fn a_column_that_takes_the_name_of_another() {
    let (world, mut cache) = world(RULES).await;
    let sql = world.sql().await;
    sql.batch_execute("ALTER TABLE shop.item ADD next text; UPDATE shop.item SET next = 'new'").await.unwrap();
    if outbox() {
        world.setup(RULES);
    }
    let _daemon = world.daemon();
    world.settled(&sql).await;
    fill(&mut cache, "item:1").await;
    sql.batch_execute(
        "BEGIN; ALTER TABLE shop.item RENAME name TO was; ALTER TABLE shop.item RENAME next TO name; COMMIT",
    )
    .await
    .unwrap();
    until("it reads otherwise", || is_gone(&cache, "item:1")).await;
}

/// A table of the same shape that is emptied, filled, indexed and analyzed every night was taken for a partition each time.
#[tokio::test]
async fn a_table_that_looks_like_one_of_the_rules() {
    if outbox() {
        return;
    }
    let (world, mut cache) = world(RULES).await;
    let sql = world.sql().await;
    sql.batch_execute("CREATE TABLE shop.load (LIKE shop.item INCLUDING ALL); CREATE TABLE shop.queue (id int PRIMARY KEY, k int, name text)").await.unwrap();
    let daemon = world.daemon();
    sql.batch_execute("INSERT INTO shop.load VALUES (1, 'x'); INSERT INTO shop.queue VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    let looks = daemon.log().matches("looked at the catalog").count();
    daemon.wait_for_count("looked at the catalog", looks + 2);
    for table in ["load", "queue"] {
        for change in [
            format!("BEGIN; TRUNCATE shop.{table}; INSERT INTO shop.{table} (id, name) VALUES (1, 'y'); COMMIT"),
            format!("CREATE INDEX ON shop.{table} (name); UPDATE shop.{table} SET name = 'z'"),
            format!("ANALYZE shop.{table}; UPDATE shop.{table} SET name = 'a'"),
        ] {
            fill(&mut cache, "item:1").await;
            fill(&mut cache, "part:1").await;
            sql.batch_execute(&change).await.unwrap();
            world.settled(&sql).await;
            assert!(!is_gone(&cache, "item:1").await && !is_gone(&cache, "part:1").await, "{change}");
        }
    }
}

/// A table that existed is attached and changed in one transaction: nobody may say that this is done before its tags are stale.
#[tokio::test]
async fn a_table_that_is_attached_and_changed_in_one_transaction() {
    if outbox() {
        return;
    }
    let (world, mut cache) = world(RULES).await;
    let sql = world.sql().await;
    sql.batch_execute(
        "CREATE TABLE shop.part_2 (LIKE shop.part INCLUDING ALL); INSERT INTO shop.part_2 VALUES (7, 2, 'x')",
    )
    .await
    .unwrap();
    let daemon = world.watched();
    world.settled(&sql).await;
    fill(&mut cache, "part:7").await;
    sql.batch_execute("BEGIN; ALTER TABLE shop.part ATTACH PARTITION shop.part_2 FOR VALUES IN (2); UPDATE shop.part SET name = 'y' WHERE id = 7; COMMIT")
        .await
        .unwrap();
    let now: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    assert_eq!(daemon.get(&format!("/wait?lsn={now}&timeout=60s")).0, 200);
    assert!(is_gone(&cache, "part:7").await);
}
