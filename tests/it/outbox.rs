//! The second source: triggers write down, the daemon reads and deletes. (Most tests of the first run on it, too: `TEST_SOURCE=outbox`.)

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Client;
use waltag::demo::monitor::Monitor;
use waltag::demo::servers::Redis;

use crate::support::{Pooler, RULES, SCHEMA, World, fail, fill, is_gone, signal, succeed, until};

/// A world whose source is the outbox.
pub async fn world_with(settings: &str, schema: &str) -> World {
    let mut world = World::with(settings, schema).await;
    world.source = "outbox".into();
    world
}

pub async fn world() -> World {
    world_with("", SCHEMA).await
}

pub async fn count(sql: &Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

/// Waits until the daemons have deleted what they are done with.
pub async fn emptied(sql: &Client) {
    until("all rows are deleted", || async { count(sql, "SELECT count(*) FROM waltag.outbox").await == 0 }).await;
}

/// Names of our triggers that are no clones, each with its table.
async fn triggers(sql: &Client) -> BTreeSet<String> {
    let query =
        "SELECT tgrelid::regclass || ' ' || tgname FROM pg_trigger WHERE tgname LIKE 'waltag%' AND tgparentid = 0";
    sql.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

pub const ONE: &str =
    r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: first_model, tags: ["a:<id>"]}]}"#;

/// Re-running setup adds and drops the difference; the way back takes everything.
#[tokio::test]
async fn triggers_follow_the_rules() {
    let world = world().await;
    let sql = world.sql().await;
    let setup = |arguments: &[&str]| succeed(&mut world.waltag("postgres", &[&["setup"], arguments].concat()));
    world.rules(ONE);
    assert!(fail(&mut world.waltag("postgres", &["run"]), 78).contains("setup --source outbox --apply"));
    assert!(succeed(&mut world.waltag("postgres", &["check", "--live"])).contains("there is no outbox yet"));
    assert!(setup(&[]).contains("CREATE TRIGGER waltag_change AFTER INSERT OR UPDATE OR DELETE"));
    assert!(triggers(&sql).await.is_empty(), "printed, not applied");
    setup(&["--apply"]);
    assert_eq!(
        triggers(&sql).await,
        BTreeSet::from(["first_model waltag_change", "first_model waltag_truncate"].map(String::from))
    );
    assert!(setup(&["--apply"]).contains("Nothing to do"));
    assert!(fail(&mut world.waltag("waltag", &["run", "--dry-run"]), 64).contains("waltag explain"));

    // A rule for another table: uncovered until setup has run again, and then made up for.
    let more = ONE.replace("rules: [", r#"rules: [{table: shop.second_model, events: [delete], tags: ["s:<id>"]}, "#);
    world.rules(&more);
    let daemon = world.watched();
    assert!(daemon.readyz(503).contains("setup --source outbox"));
    let mut cache = world.cache(0).await;
    fill(&mut cache, "s:1").await;
    sql.batch_execute("INSERT INTO shop.second_model (id) VALUES (1)").await.unwrap();
    let said = setup(&["--apply"]);
    assert!(
        said.contains("AFTER DELETE ON \"shop\".\"second_model\"") && !said.contains("ON \"public\".\"first_model\""),
        "{said}"
    );
    daemon.readyz(200);
    until("it is made up for", || is_gone(&cache, "s:1")).await;
    drop(daemon);

    world.rules(&ONE.replace("table: first_model", "table: unrelated"));
    setup(&["--apply"]);
    assert_eq!(
        triggers(&sql).await,
        BTreeSet::from(["unrelated waltag_change", "unrelated waltag_truncate"].map(String::from))
    );
    let functions = "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE nspname = 'waltag' AND proname LIKE 'changed%'";
    assert_eq!(count(&sql, functions).await, 1);

    let other = setup(&["--apply", "--role", "other"]);
    assert!(other.contains("CREATE ROLE \"other\"") && other.contains("GRANT SELECT, DELETE"), "{other}");
    assert!(setup(&["--apply", "--role", "other"]).contains("Nothing to do"));
    sql.batch_execute("DROP OWNED BY other; DROP ROLE other").await.unwrap();

    setup(&["--remove", "--apply"]);
    assert!(triggers(&sql).await.is_empty());
    assert_eq!(count(&sql, "SELECT count(*) FROM pg_namespace WHERE nspname = 'waltag'").await, 0);
    assert_eq!(count(&sql, "SELECT count(*) FROM pg_roles WHERE rolname = 'waltag'").await, 0);
    assert!(setup(&["--remove", "--apply"]).contains("Nothing to do"));
}

/// Only what the rules use is written down, and nothing for an update that changes nothing but what is ignored; whoever writes, and
/// whatever her settings are.
#[tokio::test]
async fn what_is_written_down() {
    let schema = "CREATE TABLE note (id int PRIMARY KEY, at timestamptz, on_day date, raw bytea, every interval, size float8, body text, hits int);
        CREATE ROLE writer LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON note TO writer";
    let world = world_with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys, style: pg}},
        rules: [{table: note, ignore: [hits], tags: ["n:<id>:<at>:<on_day>:<raw>:<every>:<size>"]}]}"#,
    );
    let (owner, writer) = (world.sql().await, world.sql_as("writer", "shop").await);
    let odd = "SET DateStyle = 'SQL, DMY'; SET TimeZone = 'America/New_York'; SET IntervalStyle = 'sql_standard'; SET bytea_output = escape;
        SET extra_float_digits = -5; SET search_path = nowhere";
    writer.batch_execute(odd).await.unwrap();
    writer
        .batch_execute("INSERT INTO public.note VALUES (1, '2026-11-22 10:00:00+00', '2026-11-22', '\\xff00', '1 day 02:00', 0.1234567890123, repeat('x', 100000), 0)")
        .await
        .unwrap();
    let query = "SELECT kind::text || ' ' || array_to_string(names, ',') || ' ' || array_to_string(new, '|', '-') FROM waltag.outbox ORDER BY id";
    let rows: Vec<String> = owner.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(
        rows,
        [
            "i at,every,id,on_day,raw,size,\u{1}hits, 2026-11-22 10:00:00+00|1 day 02:00:00|1|2026-11-22|\\xff00|0.1234567890123"
        ]
    );
    writer.batch_execute("UPDATE public.note SET hits = hits + 1").await.unwrap();
    assert_eq!(count(&owner, "SELECT count(*) FROM waltag.outbox").await, 1, "nothing that counts has changed");
    writer.batch_execute("UPDATE public.note SET body = 'y'").await.unwrap();
    assert_eq!(count(&owner, "SELECT count(*) FROM waltag.outbox").await, 2, "in no template, and not ignored");
    assert!(writer.batch_execute("SELECT * FROM waltag.outbox").await.is_err(), "the writer has no right of its own");
    assert_eq!(count(&owner, "SELECT sum(pg_column_size(o.*))::int8 / 2 FROM waltag.outbox o").await / 1_000, 0);
}

/// Names are names, whatever they are: whoever may make a table that the rules match must not get the owner to run her SQL.
#[tokio::test]
async fn names_that_look_like_sql() {
    let schema = "CREATE TABLE victim (id int); CREATE SCHEMA odd; CREATE TABLE odd.\"t\n; DROP TABLE victim; --\" (id int PRIMARY KEY, \"$waltag$; DROP TABLE victim; --\" text,
        \"{notify}\" text, \"{comment}'); DROP TABLE victim; --\" text, \"o'\"\"x\" text)";
    let world = world_with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{tables: ["odd.*"], tags:
            ['a:<id>:<"$waltag$; DROP TABLE victim; --">:<"{notify}">:<"{comment}''); DROP TABLE victim; --">']}]}"#,
    );
    let daemon = world.daemon();
    let (sql, monitor) = (world.sql().await, Monitor::start(world.redis.port));
    let table = "odd.\"t\n; DROP TABLE victim; --\"";
    sql.batch_execute(&format!("INSERT INTO {table} VALUES (1, 'x', 'y', 'z')")).await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["0 a:1:x:y:z"]);
    assert_eq!(count(&sql, "SELECT count(*) FROM victim").await, 0);
    drop(daemon);
    succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
    assert_eq!(count(&sql, "SELECT count(*) FROM victim").await, 0);
}

/// A migration takes a column away that a trigger writes down: writes go on, and what they change goes stale as a whole.
#[tokio::test]
async fn a_column_that_is_gone_fails_no_write() {
    let world = world().await;
    world.setup(&ONE.replace("a:<id>", "a:<id>:<name>"));
    let daemon = world.watched();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    fill(&mut cache, "a:1:x").await;
    sql.batch_execute("ALTER TABLE first_model DROP COLUMN name; INSERT INTO first_model VALUES (1)").await.unwrap();
    until("everything of the rule is stale", || is_gone(&cache, "a:1:x")).await;
    assert!(daemon.readyz(503).contains("degraded"));
    fill(&mut cache, "a:2:x").await;
    sql.batch_execute("DELETE FROM first_model").await.unwrap();
    until("with each change", || is_gone(&cache, "a:2:x")).await;
}

/// Rows stay until every pass was answered, and no transaction is open meanwhile: VACUUM takes what is dead in other tables.
#[tokio::test]
async fn rows_stay_until_redis_has_answered() {
    let world = world().await;
    world.setup(&ONE.replace("dialect: keys", "dialect: keys, repeat: [5s]"));
    let daemon = world.daemon();
    let sql = world.sql().await;
    world.settled(&sql).await;
    signal(world.redis.pid().unwrap(), "STOP");
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    let rows = "SELECT count(*) FROM waltag.outbox";
    let heard =
        "SELECT count(*) FROM waltag.progress WHERE at > (SELECT max(at) FROM waltag.outbox) + interval '1 second'";
    until("the daemon lives on", || async { count(&sql, heard).await == 1 }).await;
    assert_eq!(count(&sql, rows).await, 1, "Redis has not answered");
    sql.batch_execute("INSERT INTO unrelated SELECT n, 0 FROM generate_series(1, 100) n; DELETE FROM unrelated")
        .await
        .unwrap();
    let dead = "SELECT count(*) FROM pg_stat_all_tables WHERE relname = 'unrelated' AND pg_relation_size(relid) > 0";
    until("VACUUM has emptied the other table", || async {
        // A poll that runs just now may still see the rows.
        sql.batch_execute("VACUUM (INDEX_CLEANUP on) unrelated").await.unwrap();
        count(&sql, dead).await == 0
    })
    .await;
    signal(world.redis.pid().unwrap(), "CONT");
    daemon.wait_for("made stale");
    assert_eq!(count(&sql, rows).await, 1, "the repeat is still owed");
    world.settled(&sql).await;
    emptied(&sql).await;
}

/// A clean stop, kill -9, a second daemon that stands by, and another instance with a Redis of its own.
#[tokio::test]
async fn several_daemons_share_one_outbox() {
    let world = world().await;
    world.setup(ONE);
    let other_redis = Redis::start(&[]).unwrap();
    let sql = world.sql().await;
    let first = world.daemon();
    let second = world.start(&mut world.waltag("waltag", &["run"]));
    second.wait_for("another daemon works on the outbox");
    let text = std::fs::read_to_string(world.directory.path().join("rules.yaml")).unwrap();
    let path = world.directory.path().join("other.yaml");
    std::fs::write(&path, text.replace(&world.redis.url(0), &other_redis.url(0))).unwrap();
    let other =
        world.start(&mut world.waltag("waltag", &["run", "--slot", "other", "--rules", path.to_str().unwrap()]));
    other.wait_for(" ready ");
    let monitors = [Monitor::start(world.redis.port), Monitor::start(other_redis.port)];
    let check = async |id: u32| {
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
        world.settled(&sql).await;
        for monitor in &monitors {
            assert_eq!(monitor.unlinked(), [format!("0 a:{id}")]);
            monitor.forget();
        }
    };
    check(1).await;
    first.kill();
    second.wait_for(" ready ");
    assert!(!second.log().contains("resync:"), "a crash is no gap: {}", second.log());
    check(2).await;
    // What one has done is kept for the other.
    emptied(&sql).await;
    signal(other.child.id(), "STOP");
    sql.batch_execute("INSERT INTO first_model VALUES (3)").await.unwrap();
    until("the first is done", || async { monitors[0].unlinked() == ["0 a:3"] }).await;
    let signs = "SELECT count(*) FROM waltag.progress WHERE instance = 'waltag' AND at > (SELECT max(at) FROM waltag.outbox) + interval '1500 ms'";
    until("it has had the time to delete", || async { count(&sql, signs).await == 1 }).await;
    assert_eq!(count(&sql, "SELECT count(*) FROM waltag.outbox").await, 1);
    assert_eq!(second.stop(), Some(0));
    signal(other.child.id(), "CONT");
    until("the other is, too", || async { monitors[1].unlinked() == ["0 a:3"] }).await;
}

/// Leaves that are written directly, a partition that is made meanwhile, rows that move, children by inheritance; TRUNCATE of a leaf that
/// has no trigger for it yet.
#[tokio::test]
async fn partitions_and_children() {
    let schema = "CREATE TABLE event (id int, day int, kind text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (10);
        CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (10) TO (20);
        CREATE TABLE animal (id int PRIMARY KEY, name text); CREATE TABLE dog (breed text) INHERITS (animal)";
    let world = world_with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}},
        rules: [{table: event, tags: ["e:<id>:<day>"]}, {table: animal, tags: ["animal:<id>"]}]}"#,
    );
    let daemon = world.daemon();
    let (sql, monitor) = (world.sql().await, Monitor::start(world.redis.port));
    for (change, tags) in [
        ("INSERT INTO event_1 VALUES (1, 1, 'a')", &["0 e:1:1"][..]),
        ("UPDATE event SET day = 11", &["0 e:1:1", "0 e:1:11"]),
        (
            "CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM (20) TO (30); INSERT INTO event_3 VALUES (2, 21)",
            &["0 e:2:21"],
        ),
        ("INSERT INTO event VALUES (2, 21) ON CONFLICT (id, day) DO UPDATE SET kind = 'b'", &["0 e:2:21"]),
        ("INSERT INTO dog VALUES (7, 'rex')", &["0 animal:7"]),
        ("ALTER TABLE event DETACH PARTITION event_2; UPDATE event_3 SET kind = 'c'", &["0 e:2:21"]),
    ] {
        sql.batch_execute(change).await.unwrap();
        world.settled(&sql).await;
        assert_eq!(monitor.unlinked(), tags, "{change}");
        monitor.forget();
    }
    let mut cache = world.cache(0).await;
    fill(&mut cache, "e:2:21").await;
    sql.batch_execute("TRUNCATE event_3").await.unwrap();
    until("the leaf's records are stale", || is_gone(&cache, "e:2:21")).await;
    drop(daemon);
}

/// Row triggers fire for the apply worker: ALWAYS. (Those for statements never do.)
#[tokio::test]
async fn a_logical_subscriber_as_the_source() {
    let publisher = World::new().await;
    publisher.sql().await.batch_execute("CREATE PUBLICATION p FOR TABLE first_model").await.unwrap();
    let world = world().await;
    world.setup(ONE);
    let daemon = world.daemon();
    let sql = world.sql().await;
    let subscribe = format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=shop' PUBLICATION p",
        publisher.postgres.port
    );
    sql.batch_execute(&subscribe).await.unwrap();
    let mut cache = world.cache(0).await;
    fill(&mut cache, "a:5").await;
    publisher.sql().await.batch_execute("INSERT INTO first_model VALUES (5)").await.unwrap();
    until("it is stale", || is_gone(&cache, "a:5")).await;
    fill(&mut cache, "a:5").await;
    publisher.sql().await.batch_execute("TRUNCATE first_model").await.unwrap();
    until("it is stale again", || is_gone(&cache, "a:5")).await;
    sql.batch_execute("DROP SUBSCRIPTION s").await.unwrap();
    drop(daemon);
}

/// A trigger that was off missed something, be it for a moment: PostgreSQL writes its row anew.
#[tokio::test]
async fn a_trigger_that_was_off_is_a_gap() {
    let world = world().await;
    world.setup(ONE);
    let daemon = world.watched();
    daemon.readyz(200);
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    fill(&mut cache, "a:1").await;
    sql.batch_execute("ALTER TABLE first_model DISABLE TRIGGER waltag_change; INSERT INTO first_model VALUES (1); ALTER TABLE first_model ENABLE ALWAYS TRIGGER waltag_change")
        .await
        .unwrap();
    until("it is made up for", || is_gone(&cache, "a:1")).await;
    sql.batch_execute("ALTER TABLE first_model DISABLE TRIGGER ALL").await.unwrap();
    assert!(daemon.readyz(503).contains("has not the triggers"));
    fill(&mut cache, "a:2").await;
    sql.batch_execute("INSERT INTO first_model VALUES (2)").await.unwrap();
    succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
    daemon.readyz(200);
    until("so is this", || is_gone(&cache, "a:2")).await;
    // Whoever takes the outbox away takes what is in it.
    fill(&mut cache, "a:3").await;
    sql.batch_execute("INSERT INTO first_model VALUES (3)").await.unwrap();
}

/// Through a pooler in transaction mode: nothing is set in a session, and nobody listens or notifies.
#[tokio::test]
async fn through_a_pooler_without_listening() {
    let world = world().await;
    world.rules(RULES);
    succeed(&mut world.waltag("postgres", &["setup", "--apply", "--no-listen"]));
    let pooler = Pooler::start(&world);
    let url = format!("postgres://waltag@127.0.0.1:{}/shop", pooler.port);
    let mut command = world.waltag("waltag", &["run", "--no-listen", "--poll", "20ms"]);
    let daemon = world.start(command.env("WALTAG_DATABASE_URL", &url));
    daemon.wait_until_resynced();
    let (sql, monitor) = (world.sql().await, Monitor::start(world.redis.port));
    for id in 1..=20 {
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
    }
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked().len(), 20);
    let notifies = "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE nspname = 'waltag' AND prosrc LIKE '%pg_notify%'";
    assert_eq!(count(&sql, notifies).await, 0);
    assert_eq!(daemon.stop(), Some(0));
}

/// One NOTIFY for each transaction wakes the daemon; what is lost with a connection is found by the next poll.
#[tokio::test]
async fn a_notification_wakes() {
    let world = world_with("max_prepared_transactions = 0\n", SCHEMA).await;
    world.setup(ONE);
    let daemon = world.start(&mut world.waltag("waltag", &["run", "--poll", "60s"]));
    daemon.wait_until_resynced();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    for id in 1..=20 {
        let key = format!("a:{id}");
        fill(&mut cache, &key).await;
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
        until("it is stale long before the poll", || is_gone(&cache, &key)).await;
    }
    // The connection that listens ends: everything is opened anew, and read.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    fill(&mut cache, "a:21").await;
    sql.batch_execute(&format!("{end}; INSERT INTO first_model VALUES (21)")).await.unwrap();
    until("it is stale all the same", || is_gone(&cache, "a:21")).await;
    assert!(!daemon.log().contains("resync: ") || daemon.log().matches("resync: ").count() == 1, "{}", daemon.log());
}

/// What is deleted is vacuumed: under load the table stays small. (Autovacuum looks every second here, every minute by default.)
#[tokio::test]
async fn the_table_does_not_grow_under_load() {
    let world = world_with("autovacuum = on\nautovacuum_naptime = 1s\n", SCHEMA).await;
    world.setup(ONE);
    let _daemon = world.daemon();
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model SELECT n, '' FROM generate_series(1, 100) n").await.unwrap();
    let (mut largest, rounds) = (0, 60);
    for round in 0..rounds {
        sql.batch_execute(&format!(
            "DO $$ BEGIN FOR i IN 1..10 LOOP UPDATE first_model SET name = '{round}'; COMMIT; END LOOP; END $$"
        ))
        .await
        .unwrap();
        world.settled(&sql).await;
        largest = largest.max(count(&sql, "SELECT pg_total_relation_size('waltag.outbox')").await);
    }
    let written = count(&sql, "SELECT last_value FROM waltag.outbox_id_seq").await;
    println!("{written} rows were written, the table was at most {} kB large", largest / 1024);
    assert!(written >= rounds * 1_000 && largest < 8 << 20, "{written} rows, {largest} bytes");
}

/// Whoever has begun a transaction knows its number before it commits.
#[tokio::test]
async fn a_transaction_is_waited_for() {
    let world = world().await;
    world.setup(ONE);
    let daemon = world.watched();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    fill(&mut cache, "a:1").await;
    sql.batch_execute("BEGIN; INSERT INTO first_model VALUES (1)").await.unwrap();
    let xid: String = sql.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    let listen = daemon.address();
    let wait = |limit: &str| world.waltag("waltag", &["wait", &xid, "--timeout", limit, "--listen", &listen]);
    assert!(fail(&mut wait("300ms"), 75).contains("not yet"));
    sql.batch_execute("COMMIT").await.unwrap();
    succeed(&mut wait("20s"));
    assert!(is_gone(&cache, "a:1").await);
    assert_eq!(daemon.get("/wait?lsn=0/1").0, 400);
    let status = || succeed(&mut world.waltag("waltag", &["status", "--listen", &listen]));
    until("the status says how large the table is", || async { status().contains("outbox, instance waltag") }).await;
    assert!(
        daemon.get("/metrics").1.lines().any(|line| line.starts_with("waltag_outbox_bytes ") && !line.ends_with(" 0"))
    );
}

/// A day without a daemon: nobody waits for it, and what was written down is made up for when it comes.
#[tokio::test]
async fn writers_do_not_need_the_daemon() {
    let world = world().await;
    world.setup(ONE);
    assert_eq!(world.daemon().stop(), Some(0));
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    fill(&mut cache, "a:7").await;
    fill(&mut cache, "a:70000").await;
    sql.batch_execute(
        "INSERT INTO first_model SELECT n, '' FROM generate_series(1, 20000) n; UPDATE first_model SET name = 'x'",
    )
    .await
    .unwrap();
    let daemon = world.daemon();
    world.settled_within(&sql, Duration::from_secs(60)).await;
    assert!(is_gone(&cache, "a:7").await && !is_gone(&cache, "a:70000").await);
    assert!(!daemon.log().contains("resync:"), "an ordinary restart: {}", daemon.log());
}

/// The application's own role makes partitions, which get clones of the trigger; one that was detached for a while has missed something.
#[tokio::test]
async fn the_application_makes_partitions() {
    let schema = "CREATE ROLE app LOGIN; CREATE SCHEMA own AUTHORIZATION app; SET ROLE app;
        CREATE TABLE own.t (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE own.t1 PARTITION OF own.t FOR VALUES IN (1); RESET ROLE";
    let world = world_with("", schema).await;
    world.setup(&ONE.replace("table: first_model", "table: own.t"));
    let daemon = world.watched();
    daemon.readyz(200);
    let (app, mut cache) = (world.sql_as("app", "shop").await, world.cache(0).await);
    app.batch_execute("CREATE TABLE own.t2 PARTITION OF own.t FOR VALUES IN (2); CREATE TABLE own.t3 (id int, k int, PRIMARY KEY (id, k));
        ALTER TABLE own.t ATTACH PARTITION own.t3 FOR VALUES IN (3); INSERT INTO own.t VALUES (1, 1), (2, 2), (3, 3)")
        .await
        .unwrap();
    let sql = world.sql().await;
    world.settled(&sql).await;
    // That of the root, by its number.
    let name = format!("waltag_change_{}", count(&sql, "SELECT 'own.t'::regclass::oid::int8").await);
    let off_and_on = format!(
        "ALTER TABLE own.t1 DISABLE TRIGGER {name}; UPDATE own.t1 SET id = 10; ALTER TABLE own.t1 ENABLE ALWAYS TRIGGER {name}"
    );
    for change in [
        "BEGIN; ALTER TABLE own.t DETACH PARTITION own.t1; UPDATE own.t1 SET id = 10; ALTER TABLE own.t ATTACH PARTITION own.t1 FOR VALUES IN (1); COMMIT",
        &off_and_on,
    ] {
        fill(&mut cache, "a:10").await;
        app.batch_execute(change).await.unwrap();
        until(change, || is_gone(&cache, "a:10")).await;
    }
}

/// Letters that are not what they seem: `lower('INSERT')` in Turkish, and a collation by which another writing is the same.
#[tokio::test]
async fn collations_of_the_database() {
    let schema = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE person (id int PRIMARY KEY, email text COLLATE ci)";
    let mut world = world_with("", "").await;
    let admin = world.sql_as("postgres", "postgres").await;
    let turkish = match world.version().await {
        15.. => "CREATE DATABASE turkish TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR' LOCALE 'C.UTF-8'",
        _ => "CREATE DATABASE turkish TEMPLATE template0",
    };
    admin.batch_execute(turkish).await.unwrap();
    world.database = "turkish".into();
    let sql = world.sql().await;
    sql.batch_execute(schema).await.unwrap();
    world.setup(r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: person, only: [email], tags: ["p:<id>"]}]}"#);
    let (_daemon, monitor) = (world.daemon(), Monitor::start(world.redis.port));
    for change in ["INSERT INTO person VALUES (1, 'bob@x')", "UPDATE person SET email = 'Bob@x'", "DELETE FROM person"]
    {
        sql.batch_execute(change).await.unwrap();
        world.settled(&sql).await;
        assert_eq!(monitor.unlinked(), ["0 p:1"], "{change}");
        monitor.forget();
    }
}

/// The rules are newer than the triggers: a column of which only is known that it changed makes no tag, but a sweep.
#[tokio::test]
async fn rules_that_are_newer_than_the_triggers() {
    let world = world().await;
    let text = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: unrelated, ignore: [v], tags: ["a:<id>"]}]}"#;
    world.setup(text);
    let daemon = world.watched();
    world.rules(&text.replace(r#"["a:<id>"]"#, r#"["a:<id>"]}, {table: unrelated, tags: ["v:<v>:<id>"]"#));
    daemon.signal("HUP");
    daemon.wait_for("rules reloaded");
    assert!(daemon.readyz(503).contains("uncovered"));
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    fill(&mut cache, "v:3:5").await;
    sql.batch_execute("INSERT INTO unrelated VALUES (5, 3)").await.unwrap();
    until("it is swept for", || is_gone(&cache, "v:3:5")).await;
}

/// A session that has written before a column got another type goes on, with the tags of its rows; and what is too large says only that it
/// changed.
#[tokio::test]
async fn other_types_and_large_values() {
    let world = world_with("", "CREATE TABLE doc (id int PRIMARY KEY, body text)").await;
    world.setup(r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: doc, tags: ["d:<id>", "b:<id>:<body|md5>"]}]}"#);
    let daemon = world.daemon();
    let (sql, mut cache, monitor) = (world.sql().await, world.cache(0).await, Monitor::start(world.redis.port));
    sql.batch_execute("INSERT INTO doc VALUES (1, 'x'); ALTER TABLE doc ALTER id TYPE bigint").await.unwrap();
    // The table is another one now.
    daemon.wait_for_count(" resync: ", 2);
    daemon.wait_until_resynced();
    world.settled(&sql).await;
    fill(&mut cache, "d:77").await;
    monitor.forget();
    sql.batch_execute("INSERT INTO doc VALUES (2, 'x'); UPDATE doc SET body = 'y' WHERE id = 2").await.unwrap();
    world.settled(&sql).await;
    assert!(monitor.unlinked().contains(&"0 d:2".to_owned()), "{:?}", monitor.unlinked());
    assert!(!is_gone(&cache, "d:77").await, "its tags are known: nothing is swept");
    fill(&mut cache, "d:3").await;
    let large = "INSERT INTO doc SELECT 3, string_agg(md5(n::text), '') FROM generate_series(1, 100000) n";
    sql.batch_execute(large).await.unwrap();
    until("what is too large is swept for", || is_gone(&cache, "d:3")).await;
}

/// Whoever owns the schema before setup could make the functions' owner run her trigger.
#[tokio::test]
async fn a_schema_of_somebody_else() {
    let world = world_with("", "CREATE ROLE mallory; CREATE SCHEMA waltag AUTHORIZATION mallory; CREATE TABLE first_model (id int PRIMARY KEY)").await;
    world.rules(ONE);
    let said = fail(&mut world.waltag("postgres", &["setup", "--apply"]), 77);
    assert!(said.contains("belongs to mallory"), "{said}");
}

/// Redis is away and much is written: the daemon lives on, and a stop is heard.
#[tokio::test]
async fn a_stop_while_much_is_under_way() {
    let world = world().await;
    world.setup(ONE);
    let daemon = world.start(&mut world.waltag("waltag", &["run", "--tag-memory", "1MiB"]));
    daemon.wait_until_resynced();
    let sql = world.sql().await;
    signal(world.redis.pid().unwrap(), "STOP");
    sql.batch_execute("INSERT INTO first_model SELECT n, '' FROM generate_series(1, 300000) n").await.unwrap();
    let alive =
        "SELECT count(*) FROM waltag.progress WHERE at > (SELECT max(at) FROM waltag.outbox) + interval '3 seconds'";
    until("the daemon lives on", || async { count(&sql, alive).await == 1 }).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim_end_matches(" kB").trim();
    println!("{peak} kB");
    assert!(peak.parse::<u32>().unwrap() < 96 << 10, "{peak} kB: what waits stays in the table");
    assert_eq!(daemon.stop(), Some(0));
    signal(world.redis.pid().unwrap(), "CONT");
    assert_eq!(
        count(&sql, "SELECT count(*) FROM waltag.progress WHERE owner = ''").await,
        1,
        "nobody is at work any more"
    );
}

/// Publications of the same name are no matter of an outbox, whatever they leave out.
#[tokio::test]
async fn publications_beside_it() {
    let world = world().await;
    let publications = "CREATE PUBLICATION waltag FOR TABLE unrelated WITH (publish = 'insert'); CREATE PUBLICATION waltag_insert FOR TABLE unrelated";
    world.sql().await.batch_execute(publications).await.unwrap();
    world.setup(ONE);
    let daemon = world.watched();
    daemon.readyz(200);
    let sql = world.sql().await;
    let mut cache = world.cache(0).await;
    fill(&mut cache, "a:1").await;
    // Everything that a check would find has been found when the catalog is in force that shows another trigger.
    sql.batch_execute("ALTER TABLE first_model DISABLE TRIGGER waltag_change; ALTER TABLE first_model ENABLE ALWAYS TRIGGER waltag_change")
        .await
        .unwrap();
    until("the catalog was read again", || is_gone(&cache, "a:1")).await;
    world.settled(&sql).await;
    assert_eq!(daemon.log().matches("streaming").count(), 1, "{}", daemon.log());
}
