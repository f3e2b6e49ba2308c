//! The same rules, the same tags: what reaches Redis from one source is what reaches it from the other. And tags from SQL, on both.

use waltag::demo::monitor::Monitor;

use crate::support::{World, fill, is_gone, until};

/// What each change makes stale on a source; changes are separated by `;;`.
async fn stale(source: &str, schema: &str, rules: &str, changes: &[&str]) -> Vec<Vec<String>> {
    let mut world = World::with("max_prepared_transactions = 5\n", schema).await;
    world.source = source.into();
    world.setup(&format!("version: 1\ncaches: {{c: {{url: \"{{redis}}/0\", dialect: keys}}}}\nrules: {rules}\n"));
    let _daemon = world.daemon();
    let (sql, monitor) = (world.sql().await, Monitor::start(world.redis.port));
    let mut all = Vec::new();
    for change in changes {
        sql.batch_execute(change).await.unwrap_or_else(|error| panic!("{change}: {error:?}"));
        world.settled(&sql).await;
        all.push(monitor.unlinked());
        monitor.forget();
    }
    all
}

async fn same(schema: &str, rules: &str, changes: &[&str]) {
    let log = stale("replication", schema, rules, changes).await;
    let outbox = stale("outbox", schema, rules, changes).await;
    for ((change, log), outbox) in changes.iter().zip(&log).zip(&outbox) {
        assert_eq!(log, outbox, "{change}");
    }
    assert!(log.iter().any(|tags| !tags.is_empty()));
}

#[tokio::test]
async fn every_type_is_written_the_same() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN cents AS int; CREATE DOMAIN flag AS bool; CREATE DOMAIN strict_flag AS flag; CREATE TYPE pair AS (a int, b text);
        CREATE TABLE t (id int PRIMARY KEY, b bool, i8 int8, n numeric(10,2), f4 float4, f8 float8, c char(5), v varchar(9), x text, y bytea, u uuid,
          d date, ts timestamp, tz timestamptz, ti time, iv interval, ip inet, ci cidr, m mood, ce cents, p pair, j json, jb jsonb, a int[], ta text[], mo money, bi bit(3), sf strict_flag, rc regclass)";
    let columns = "b i8 n f4 f8 c v x y u d ts tz ti iv ip ci m ce p j jb a ta mo bi sf rc";
    let tags: Vec<String> = columns.split(' ').map(|column| format!("\"{column}:<{column}>\"")).collect();
    let rules = format!("[{{table: t, old: require, tags: [{}]}}]", tags.join(", "));
    let row = "INSERT INTO t VALUES (1, true, 9007199254740993, 1.50, 0.1, 1e300, 'ab', 'v', E'tab\\tand \\\\ \"quote\"', '\\xdeadbeef', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2026-11-22',
        '2026-11-22 10:00:00.5', '2026-11-22 10:00:00+02', '10:00', '1 mon 2 days 03:00', '10.0.0.1/32', '10.0.0.0/8', 'glad', 7, ROW(1, 'x y'), '{\"a\" : 1}', '{\"b\": [1, 2]}',
        '{1,2,NULL}', '{\"a b\",\"\",NULL}', '12.34', B'101', true, 't')";
    same(
        schema,
        &rules,
        &[
            row,
            "UPDATE t SET b = false, x = 'ünïcode ☃', tz = 'infinity', f8 = 'NaN', n = -0.01",
            "UPDATE t SET b = NULL, x = '', a = '{}'",
            "DELETE FROM t",
            "INSERT INTO t (id) VALUES (2)",
        ],
    )
    .await;
}

#[tokio::test]
async fn every_statement_is_seen_the_same() {
    let schema = r#"CREATE TABLE parent (id int PRIMARY KEY, name text);
        CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, twice int GENERATED ALWAYS AS (id * 2) STORED);
        CREATE SCHEMA "Odd Schema"; CREATE TABLE "Odd Schema"."Odd ""Table""" ("the id" int PRIMARY KEY, "Größe" text);
        CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE part_a PARTITION OF part FOR VALUES IN (1); CREATE TABLE part_b PARTITION OF part FOR VALUES IN (2);
        CREATE TABLE base (id int PRIMARY KEY); CREATE TABLE derived () INHERITS (base)"#;
    let rules = r#"[{table: parent, tags: ["p:<id>", "name:<name>", {tag: "p", events: [insert, delete]}]}, {table: child, tags: ["c:<id>:<parent_id>"]},
        {table: 'Odd Schema.Odd "Table"', tags: ['o:<"the id">:<"Größe">']}, {table: part, tags: ["part:<id>:<k>"]}, {table: base, tags: ["base:<id>"]},
        {table: parent, when: "row.name == 'live'", tags: ["live:<id>"]}, {table: parent, only: [name], collapse: {over: 3, to: "many"}, tags: ["only:<id>"]}]"#;
    let changes = [
        "INSERT INTO parent VALUES (1, 'a'), (2, 'live')",
        "INSERT INTO child (id, parent_id) VALUES (10, 1), (11, 2)",
        "UPDATE parent SET id = 3 WHERE id = 1",
        "DELETE FROM parent WHERE id = 3",
        "BEGIN; UPDATE parent SET name = 'x'; ROLLBACK",
        "BEGIN; SAVEPOINT s; UPDATE parent SET name = 'x'; ROLLBACK TO s; UPDATE parent SET name = 'y'; COMMIT",
        "INSERT INTO parent VALUES (2, 'z'), (4, 'w') ON CONFLICT (id) DO UPDATE SET name = excluded.name",
        "UPDATE parent SET name = name",
        "INSERT INTO parent SELECT n, 'n' FROM generate_series(100, 110) n",
        "UPDATE parent SET name = 'm' WHERE id >= 100",
        r#"INSERT INTO "Odd Schema"."Odd ""Table""" VALUES (1, 'ß')"#,
        r#"UPDATE "Odd Schema"."Odd ""Table""" SET "Größe" = 'x'"#,
        "INSERT INTO part VALUES (1, 1); INSERT INTO part_b VALUES (2, 2)",
        "UPDATE part SET k = 2 WHERE id = 1",
        "DELETE FROM part_b",
        "INSERT INTO derived VALUES (5)",
        "BEGIN; INSERT INTO base VALUES (6); PREPARE TRANSACTION 'later'",
        "COMMIT PREPARED 'later'",
        "BEGIN; INSERT INTO base VALUES (7); PREPARE TRANSACTION 'never'",
        "ROLLBACK PREPARED 'never'",
        "CREATE TEMP TABLE copied AS SELECT 50 AS id; INSERT INTO base SELECT id FROM copied",
        "DO $$ BEGIN FOR i IN 200..203 LOOP INSERT INTO parent VALUES (i, 'loop'); COMMIT; END LOOP; END $$",
    ];
    same(schema, rules, &changes).await;
}

#[tokio::test]
async fn two_hundred_columns() {
    let columns: Vec<String> = (1..=200).map(|n| format!("c{n} text")).collect();
    let schema = format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", "));
    let rules = r#"[{table: wide, ignore: [c7], tags: ["w:<c1>:<c200>"]}]"#;
    let changes = [
        "INSERT INTO wide (id, c1, c200) VALUES (1, 'a', 'z')",
        "UPDATE wide SET c7 = 'ignored'",
        "UPDATE wide SET c150 = 'counts'",
        "UPDATE wide SET c200 = 'y'",
    ];
    same(&schema, rules, &changes).await;
}

/// `select waltag.invalidate(...)`: with the transaction or not at all; granted, not public; content is believed only as texts.
#[tokio::test]
async fn tags_from_sql() {
    for source in ["replication", "outbox"] {
        let mut world =
            World::with("", "CREATE TABLE report (id int PRIMARY KEY); CREATE ROLE app LOGIN; CREATE ROLE guest LOGIN")
                .await;
        world.source = source.into();
        world.setup(
            r#"{version: 1, caches: {default: {url: "{redis}/0", dialect: keys, prefix_only: ['']},
            pages: {url: "{redis}/1", dialect: keys, prefix_only: ['']}}, rules: [{table: report, tags: ["r:<id>"]}]}"#,
        );
        let daemon = world.watched();
        let (sql, app, guest) =
            (world.sql().await, world.sql_as("app", "shop").await, world.sql_as("guest", "shop").await);
        let grant = "GRANT USAGE ON SCHEMA waltag TO app; GRANT EXECUTE ON FUNCTION waltag.invalidate, waltag.invalidate_in TO app";
        sql.batch_execute(grant).await.unwrap();
        let monitor = Monitor::start(world.redis.port);
        assert!(guest.batch_execute("SELECT waltag.invalidate('x')").await.is_err(), "granted, not public");
        for (change, tags) in [
            (
                "SELECT waltag.invalidate('Report.all', 'CategoryModel.pk:15')",
                &["0 CategoryModel.pk:15", "0 Report.all"][..],
            ),
            ("BEGIN; SELECT waltag.invalidate('never'); ROLLBACK", &[]),
            (
                "BEGIN; SAVEPOINT s; SELECT waltag.invalidate('never'); ROLLBACK TO s; SELECT waltag.invalidate('kept'); COMMIT",
                &["0 kept"],
            ),
            ("SELECT waltag.invalidate_in('pages', 'a', NULL, 'it''s \"b\"')", &["1 a", "1 it's \\\"b\\"]),
            ("SELECT waltag.invalidate_in('nowhere', 'a')", &[]),
            ("SELECT waltag.invalidate(VARIADIC ARRAY[]::text[])", &[]),
            ("SELECT waltag.invalidate(NULL)", &[]),
        ] {
            app.batch_execute(change).await.unwrap_or_else(|error| panic!("{change}: {error:?}"));
            world.settled(&sql).await;
            assert_eq!(monitor.unlinked(), tags, "{source}: {change}");
            monitor.forget();
        }
        assert!(daemon.log().contains("there is no cache `nowhere`"));
        assert!(daemon.get("/metrics").1.contains("waltag_spurned_messages_total 1"));
        let long = app.batch_execute("SELECT waltag.invalidate(repeat('x', 70000))").await.unwrap_err();
        assert!(long.as_db_error().unwrap().message().contains("64 kB"), "{long:?}");
        // Behind the fence: while the transaction is open it is cached.
        let mut cache = world.cache(0).await;
        fill(&mut cache, "open").await;
        app.batch_execute("BEGIN; SELECT waltag.invalidate('open')").await.unwrap();
        sql.batch_execute("INSERT INTO report VALUES (1)").await.unwrap();
        until("another transaction was sent", || async { monitor.unlinked() == ["0 r:1"] }).await;
        assert!(!is_gone(&cache, "open").await);
        app.batch_execute("COMMIT").await.unwrap();
        until("it is stale", || is_gone(&cache, "open")).await;
        if source == "replication" {
            // Anybody can put anything into the log.
            for forged in ["'x'", "'{\"tags\": 7}'", "repeat('x', 100000)", "'{\"tags\": [\"forged\"], \"more\": 1}'"] {
                guest
                    .batch_execute(&format!("SELECT pg_logical_emit_message(true, 'waltag', {forged})"))
                    .await
                    .unwrap();
            }
            world.settled(&sql).await;
            assert!(
                daemon.get("/metrics").1.contains("waltag_spurned_messages_total 5"),
                "{}",
                daemon.get("/metrics").1
            );
        }
    }
}
