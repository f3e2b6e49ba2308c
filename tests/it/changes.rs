//! Which tags each kind of change makes stale: exactly those that are owed.

use futures_util::SinkExt;

use crate::support::{Monitor, RULES, World, outbox, until};

/// A world with two rows of second_model (categories 1 and 9) and one of first_model.
async fn shop() -> World {
    let world = World::new().await;
    world.setup(RULES);
    let rows = "INSERT INTO shop.second_model VALUES (1, 1, 3, 'a', 'live'), (2, 9, 3, 'b', 'live');
                INSERT INTO first_model VALUES (1, 'x')";
    world.sql().await.batch_execute(rows).await.unwrap();
    world
}

#[tokio::test]
async fn insert() {
    let stale = shop().await.stale_after("INSERT INTO shop.second_model VALUES (7, 1, 3, 'n', 'live')").await;
    assert_eq!(stale, ["0 CategoryModel.pk:1.TypeModel.pk:3", "0 SecondModel", "0 SecondModel.pk:7"]);
}

#[tokio::test]
async fn update_of_a_column_in_no_template() {
    let stale = shop().await.stale_after("UPDATE shop.second_model SET name = 'z' WHERE id = 1").await;
    assert_eq!(stale, ["0 CategoryModel.pk:1.TypeModel.pk:3", "0 SecondModel.pk:1"]);
}

#[tokio::test]
async fn move_from_category_1_to_2() {
    let stale = shop().await.stale_after("UPDATE shop.second_model SET category_id = 2 WHERE id = 1").await;
    let owed = ["0 CategoryModel.pk:1.TypeModel.pk:3", "0 CategoryModel.pk:2.TypeModel.pk:3", "0 SecondModel.pk:1"];
    assert_eq!(stale, owed);
}

#[tokio::test]
async fn update_of_the_primary_key() {
    let stale = shop().await.stale_after("UPDATE shop.second_model SET id = 5 WHERE id = 1").await;
    assert_eq!(stale, ["0 CategoryModel.pk:1.TypeModel.pk:3", "0 SecondModel.pk:1", "0 SecondModel.pk:5"]);
}

#[tokio::test]
async fn delete() {
    let stale = shop().await.stale_after("DELETE FROM shop.second_model WHERE id = 2").await;
    assert_eq!(stale, ["0 CategoryModel.pk:9.TypeModel.pk:3", "0 SecondModel", "0 SecondModel.pk:2"]);
}

#[tokio::test]
async fn several_statements_in_one_transaction() {
    let change = "BEGIN; UPDATE shop.second_model SET name = 'z' WHERE id = 1;
                  UPDATE shop.second_model SET category_id = 4 WHERE id = 1; UPDATE first_model SET name = 'y'; COMMIT";
    let stale = shop().await.stale_after(change).await;
    let owed = [
        "0 CategoryModel.pk:1.TypeModel.pk:3",
        "0 CategoryModel.pk:4.TypeModel.pk:3",
        "0 SecondModel.pk:1",
        "1 FirstModel.pk:1",
    ];
    assert_eq!(stale, owed);
}

#[tokio::test]
async fn rollbacks_send_nothing() {
    let change = "BEGIN; UPDATE shop.second_model SET category_id = 7; ROLLBACK;;
                  BEGIN; UPDATE first_model SET name = 'y'; SAVEPOINT a;
                  UPDATE shop.second_model SET category_id = 8; ROLLBACK TO a; COMMIT";
    assert_eq!(shop().await.stale_after(change).await, ["1 FirstModel.pk:1"]);
}

#[tokio::test]
async fn copy() {
    let world = shop().await;
    let sql = world.sql().await;
    let daemon = world.daemon();
    let monitor = Monitor::start(world.redis.port);
    let sink = sql.copy_in("COPY shop.second_model (id, category_id, type_id) FROM STDIN").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    let rows: String = (10..13).map(|id| format!("{id}\t{}\t3\n", id % 2)).collect();
    sink.send(bytes::Bytes::from(rows)).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 3);
    world.settled(&sql).await;
    let owed = [
        "0 CategoryModel.pk:0.TypeModel.pk:3",
        "0 CategoryModel.pk:1.TypeModel.pk:3",
        "0 SecondModel",
        "0 SecondModel.pk:10",
        "0 SecondModel.pk:11",
        "0 SecondModel.pk:12",
    ];
    assert_eq!(monitor.unlinked(), owed);
    drop(daemon);
}

#[tokio::test]
async fn a_prepared_transaction_goes_stale_only_with_commit_prepared() {
    let world = shop().await;
    let sql = world.sql().await;
    let daemon = world.daemon();
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("BEGIN; UPDATE shop.second_model SET name = 'p' WHERE id = 1; PREPARE TRANSACTION 'p'")
        .await
        .unwrap();
    sql.batch_execute("BEGIN; UPDATE shop.second_model SET name = 'q' WHERE id = 2; PREPARE TRANSACTION 'q'")
        .await
        .unwrap();
    sql.batch_execute("UPDATE first_model SET name = 'y'").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:1"]);
    sql.batch_execute("ROLLBACK PREPARED 'q'").await.unwrap();
    sql.batch_execute("COMMIT PREPARED 'p'").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["0 CategoryModel.pk:1.TypeModel.pk:3", "0 SecondModel.pk:1", "1 FirstModel.pk:1"]);
    drop(daemon);
}

#[tokio::test]
async fn on_delete_cascade() {
    let schema = "CREATE TABLE parent (id int PRIMARY KEY);
                  CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE)";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}},
            rules: [{table: child, tags: ["child:<id>", "children-of:<parent_id>"]}]}"#,
    );
    let rows = "INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (10, 1), (11, 1), (12, 2)";
    world.sql().await.batch_execute(rows).await.unwrap();
    let stale = world.stale_after("DELETE FROM parent WHERE id = 1").await;
    assert_eq!(stale, ["0 child:10", "0 child:11", "0 children-of:1"]);
}

#[tokio::test]
async fn partitions_their_moves_and_detached_ones() {
    let schema = "CREATE TABLE events (id int, day date, kind text, PRIMARY KEY (id, day, kind)) PARTITION BY RANGE (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
        CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY LIST (kind);
        CREATE TABLE events_2a PARTITION OF events_2 DEFAULT";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}},
            rules: [{table: events, tags: ["<@table>:<id>", "kind:<kind>", {tag: "events", events: [truncate]}]}]}"#,
    );
    let rows = "INSERT INTO events VALUES (1, '2026-01-05', 'a'), (2, '2026-02-05', 'b'), (3, '2026-01-06', 'c')";
    world.sql().await.batch_execute(rows).await.unwrap();
    let change = "UPDATE events SET day = '2026-02-06', kind = 'x' WHERE id = 1;;
                  UPDATE events_2a SET kind = 'y' WHERE id = 2;;
                  BEGIN; ALTER TABLE events DETACH PARTITION events_1; COMMIT;;
                  INSERT INTO events_1 VALUES (4, '2026-01-09', 'd');;
                  CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');;
                  INSERT INTO events VALUES (5, '2026-03-05', 'e');;
                  TRUNCATE events_2";
    let stale = world.stale_after(change).await;
    let mut owed = vec!["0 events", "0 events:1", "0 events:2", "0 events:5"];
    owed.extend(["0 kind:a", "0 kind:b", "0 kind:e", "0 kind:x", "0 kind:y"]);
    if world.version().await < 15 {
        // 14 goes on sending what was detached, as long as the stream lasts.
        owed.extend(["0 events:4", "0 kind:d"]);
        owed.sort_unstable();
    }
    assert_eq!(stale, owed);
}

#[tokio::test]
async fn quoted_names_and_values_beyond_ascii() {
    let schema = "CREATE SCHEMA \"Odd.Schema\";
        CREATE TABLE \"Odd.Schema\".\"My \"\"Table\"\"\" (\"Id <x>\" int PRIMARY KEY, \"naïve\" text)";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
            {table: '"Odd.Schema"."My ""Table"""', tags: ['id:<"Id <x>">', 'ü:<naïve|upper>']}]}"#,
    );
    let stale = world.stale_after(r#"INSERT INTO "Odd.Schema"."My ""Table""" VALUES (1, 'blå 日本')"#).await;
    // MONITOR shows bytes above ASCII in hexadecimal.
    let escaped = |text: &str| {
        text.bytes()
            .map(|b| if b < 128 { char::from(b).to_string() } else { format!("\\x{b:02x}") })
            .collect::<String>()
    };
    assert_eq!(stale, [format!("0 {}", escaped("ü:BLÅ 日本")), "0 id:1".into()]);
}

#[tokio::test]
async fn null_is_none_in_python_and_skips_in_plain() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {py: {url: "{redis}/0", dialect: keys, style: python}, plain: {url: "{redis}/1", dialect: keys}},
            rules: [{table: shop.second_model, caches: [py, plain], tags: ["c:<category_id>", "d:<category_id|default:none>"]}]}"#,
    );
    let stale = world.stale_after("INSERT INTO shop.second_model (id) VALUES (1)").await;
    assert_eq!(stale, ["0 c:None", "0 d:none", "1 d:none"]);
}

#[tokio::test]
async fn one_model_in_two_rules_for_two_caches() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {a: {url: "{redis}/0", dialect: keys}, b: {url: "{redis}/1", dialect: keys}}, rules: [
            {table: first_model, caches: [a], tags: ["x:<id>"]},
            {table: first_model, caches: [b], tags: ["y:<id>", {tag: "z:<id>", caches: [a, b]}]}]}"#,
    );
    let stale = world.stale_after("INSERT INTO first_model VALUES (1)").await;
    assert_eq!(stale, ["0 x:1", "0 z:1", "1 y:1", "1 z:1"]);
}

#[tokio::test]
async fn truncate_of_several_tables_sends_constant_tags_and_logs_the_others() {
    let world = shop().await;
    let daemon = world.daemon();
    let monitor = Monitor::start(world.redis.port);
    let sql = world.sql().await;
    sql.batch_execute("TRUNCATE shop.second_model, first_model, unrelated").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["0 SecondModel"]);
    daemon.wait_for("TRUNCATE does not say which rows there were");
    daemon.wait_for("FirstModel.pk:<id>");
}

#[tokio::test]
async fn unchanged_toast_is_neither_null_nor_empty() {
    let world = World::with("", "CREATE TABLE doc (id int PRIMARY KEY, body text, n int)").await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: doc, tags: ["d:<id>", "b:<body|lower|md5>"]}]}"#,
    );
    let sql = world.sql().await;
    sql.batch_execute(
        "ALTER TABLE doc ALTER body SET STORAGE EXTERNAL; INSERT INTO doc VALUES (1, repeat('X', 9000), 1)",
    )
    .await
    .unwrap();
    let digest: String = sql.query_one("SELECT md5(repeat('x', 9000))", &[]).await.unwrap().get(0);
    let stale = world.stale_after("UPDATE doc SET n = 2").await;
    assert_eq!(stale, [format!("0 b:{digest}"), "0 d:1".into()]);
}

#[tokio::test]
async fn a_column_added_while_running_is_followed() {
    let world = shop().await;
    let change = "ALTER TABLE first_model ADD COLUMN extra int; UPDATE first_model SET extra = 1;;
                  ALTER TABLE first_model DROP COLUMN name; UPDATE first_model SET extra = 2";
    assert_eq!(world.stale_after(change).await, ["1 FirstModel.pk:1"]);
}

#[tokio::test]
async fn records_that_are_not_owed_survive() {
    let world = shop().await;
    // The first start makes everything stale once: what was changed before it was not seen.
    let daemon = world.daemon();
    world.settled(&world.sql().await).await;
    daemon.stop();
    let mut cache = world.cache(0).await;
    let all = [
        "SecondModel.pk:1",
        "SecondModel.pk:2",
        "SecondModel.pk:11",
        "CategoryModel.pk:1.TypeModel.pk:3",
        "SecondModel",
        "session:1",
    ];
    for key in all {
        let _: () = redis::cmd("SET").arg(key).arg("kept").query_async(&mut cache).await.unwrap();
    }
    world.stale_after("UPDATE shop.second_model SET name = 'z' WHERE id = 1").await;
    let mut left = Vec::new();
    for key in all {
        if redis::cmd("EXISTS").arg(key).query_async::<bool>(&mut cache).await.unwrap() {
            left.push(key);
        }
    }
    assert_eq!(left, ["SecondModel.pk:2", "SecondModel.pk:11", "SecondModel", "session:1"]);
}

#[tokio::test]
async fn the_version_dialect_draws_a_new_number_each_time() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {stale: {url: "{redis}/0", dialect: version, ttl: 1h, absent: stale}, valid: {url: "{redis}/1", dialect: version, ttl: 1h, absent: valid}},
            rules: [{table: first_model, caches: [stale, valid], unknown: [all], tags: ["v:<id>"]}]}"#,
    );
    let _daemon = world.daemon();
    let (sql, mut stale, mut valid) = (world.sql().await, world.cache(0).await, world.cache(1).await);
    let _: () = redis::cmd("SET").arg("v:1").arg("7").query_async(&mut stale).await.unwrap();
    let mut seen = vec!["7".to_owned()];
    for change in ["INSERT INTO first_model VALUES (1)", "UPDATE first_model SET name = 'a'", "DELETE FROM first_model"]
    {
        sql.batch_execute(change).await.unwrap();
        world.settled(&sql).await;
        for cache in [&mut stale, &mut valid] {
            let version: String = redis::cmd("GET").arg("v:1").query_async(cache).await.unwrap();
            assert!(version.parse::<i64>().unwrap() > 0);
            seen.push(version);
            let life: i64 = redis::cmd("TTL").arg("v:1").query_async(cache).await.unwrap();
            assert!((1..=3600).contains(&life), "{life}");
        }
    }
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), 7, "{seen:?}");
    // Where absent is stale, a key that is not there is not made.
    sql.batch_execute("INSERT INTO first_model VALUES (2)").await.unwrap();
    world.settled(&sql).await;
    assert!(!redis::cmd("EXISTS").arg("v:2").query_async::<bool>(&mut stale).await.unwrap());
    assert!(redis::cmd("EXISTS").arg("v:2").query_async::<bool>(&mut valid).await.unwrap());
}

#[tokio::test]
async fn a_transaction_larger_than_the_memory_budget_passes() {
    let world = shop().await;
    world.sql().await.batch_execute("TRUNCATE shop.second_model").await.unwrap();
    let daemon = world.start(&mut world.waltag("waltag", &["run", "--tag-memory", "1MiB"]));
    daemon.wait_for("ready");
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    let _: () = redis::cmd("SET").arg("SecondModel.pk:299999").arg("1").query_async(&mut cache).await.unwrap();
    sql.batch_execute(
        "INSERT INTO shop.second_model (id, category_id, type_id) SELECT i, i, 1 FROM generate_series(1, 300000) i",
    )
    .await
    .unwrap();
    until("the last row's tag goes", || {
        let mut cache = cache.clone();
        async move { !redis::cmd("EXISTS").arg("SecondModel.pk:299999").query_async::<bool>(&mut cache).await.unwrap() }
    })
    .await;
    world.settled(&sql).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
    assert_eq!(daemon.stop(), Some(0));
}

/// The key tuple carries NULL for the columns outside the identity; in Python's style that would be a tag `None`.
#[tokio::test]
async fn an_identity_lost_while_running_is_told_and_renders_no_null() {
    if outbox() {
        // Triggers see whole old rows.
        return;
    }
    let world = shop().await;
    let daemon = world.daemon();
    let monitor = Monitor::start(world.redis.port);
    let sql = world.sql().await;
    sql.batch_execute(
        "ALTER TABLE shop.second_model REPLICA IDENTITY DEFAULT; DELETE FROM shop.second_model WHERE id = 1",
    )
    .await
    .unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["0 SecondModel", "0 SecondModel.pk:1"]);
    daemon.wait_for("the replica identity does not send the old value");
}

#[tokio::test]
async fn a_domain_is_written_like_its_base_type() {
    let world = World::with("", "CREATE DOMAIN flag AS boolean; CREATE TABLE t (id int PRIMARY KEY, f flag)").await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys, style: python}}, rules: [{table: t, tags: ["f:<f>", "g:<f|plain|upper>"]}]}"#,
    );
    assert_eq!(world.stale_after("INSERT INTO t VALUES (1, true)").await, ["0 f:True", "0 g:TRUE"]);
}
