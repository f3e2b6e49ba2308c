//! `waltag setup`: what it makes, what it refuses, and the way back.

use crate::support::{RULES, World, fail, succeed, until};

#[tokio::test]
async fn setup_prints_applies_repeats_and_removes() {
    let world = World::new().await;
    world.rules(RULES);
    let sql = world.sql().await;
    let state = async || {
        let query = "SELECT (SELECT relreplident::text FROM pg_class WHERE oid = 'shop.second_model'::regclass)
            || (SELECT relreplident::text FROM pg_class WHERE oid = 'first_model'::regclass)
            || (SELECT count(*) FROM pg_publication) || (SELECT count(*) FROM pg_roles WHERE rolname = 'waltag' AND rolreplication)";
        sql.query_one(query, &[]).await.unwrap().get::<_, String>(0)
    };
    let printed = succeed(&mut world.waltag("postgres", &["setup"]));
    for words in
        ["CREATE ROLE \"waltag\" LOGIN REPLICATION", "\"second_model\" REPLICA IDENTITY FULL", "Nothing was changed"]
    {
        assert!(printed.contains(words), "{printed}");
    }
    // `<id>` alone is the primary key: first_model needs no FULL.
    assert!(!printed.contains("\"first_model\" REPLICA"), "{printed}");
    assert_eq!(state().await, "dd00");
    succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
    assert_eq!(state().await, "fd11");
    for arguments in [&["setup"][..], &["setup", "--apply"]] {
        assert!(succeed(&mut world.waltag("postgres", arguments)).contains("Nothing to do"));
    }
    assert!(succeed(&mut world.waltag("postgres", &["check", "--live"])).contains("0 warnings"));
    world.daemon().stop();
    succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
    assert_eq!(state().await, "dd00");
    let slots = sql.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap();
    assert_eq!(slots.get::<_, i64>(0), 0);
    assert!(succeed(&mut world.waltag("postgres", &["setup", "--remove"])).contains("Nothing to do"));
}

#[tokio::test]
async fn setup_follows_the_rules() {
    let world = World::new().await;
    world.setup(RULES);
    let rules = RULES.replace("table: first_model", "table: unrelated");
    world.rules(&rules);
    let warned = succeed(&mut world.waltag("postgres", &["check", "--live"]));
    assert!(warned.contains("warning[uncovered]") && warned.contains("ADD TABLE \"public\".\"unrelated\""), "{warned}");
    let applied = succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
    assert!(applied.contains("DROP TABLE \"public\".\"first_model\""), "{applied}");
    let sql = world.sql().await;
    let tables: String = sql
        .query_one("SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(tables, "second_model,unrelated");
}

/// What an application's statement says when it fails.
async fn fails(sql: &tokio_postgres::Client, harm: &str) -> String {
    let error = sql.batch_execute(harm).await.unwrap_err();
    error.as_db_error().unwrap().message().to_owned()
}

/// Each refusal prevents a failing UPDATE of the application, which is shown after it.
#[tokio::test]
async fn setup_refuses_what_would_make_writes_fail() {
    let schema = "CREATE TABLE part (id int, c int) PARTITION BY RANGE (id);
        CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
        CREATE TABLE listed (id int PRIMARY KEY, c int)";
    let world = World::with("", schema).await;
    let (sql, version) = (world.sql().await, world.version().await);
    let rules = |table: &str, tag: &str| {
        world.rules(&format!(
            r#"{{version: 1, caches: {{c: {{url: "{{redis}}/0", dialect: keys}}}}, rules: [{{table: {table}, tags: ["{tag}"]}}]}}"#
        ));
        fail(&mut world.waltag("postgres", &["setup", "--apply"]), 65)
    };
    assert!(rules("part", "c:<c>").contains("no primary key"));
    let harm = "ALTER TABLE part_1 REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE part;
        CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20); INSERT INTO part VALUES (11, 1);
        UPDATE part SET c = 2 WHERE id = 11";
    assert!(fails(&sql, harm).await.contains("replica identity"));
    if version < 15 {
        return;
    }
    sql.batch_execute("CREATE PUBLICATION other FOR TABLE listed (id)").await.unwrap();
    assert!(rules("listed", "c:<c>").contains("column list"));
    let harm = "ALTER TABLE listed REPLICA IDENTITY FULL; INSERT INTO listed VALUES (1, 1); UPDATE listed SET c = 2";
    assert!(fails(&sql, harm).await.contains("cannot update table \"listed\""));
    if version < 18 {
        return;
    }
    sql.batch_execute(
        "CREATE PUBLICATION p; CREATE TABLE virt (id int PRIMARY KEY, c int, v int GENERATED ALWAYS AS (c) VIRTUAL);
         CREATE TABLE stored (id int PRIMARY KEY, c int, v int GENERATED ALWAYS AS (c) STORED);
         CREATE TABLE keyed (c int, v int GENERATED ALWAYS AS (c) STORED PRIMARY KEY); INSERT INTO virt VALUES (1, 1);
         INSERT INTO stored VALUES (1, 1); INSERT INTO keyed VALUES (1)",
    )
    .await
    .unwrap();
    assert!(rules("virt", "c:<c>").contains("generated columns that are not published"));
    world.rules(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: stored, tags: ["c:<c>"]}]}"#,
    );
    let said = fail(&mut world.waltag("postgres", &["setup", "--apply", "--publication", "p"]), 65);
    assert!(said.contains("stored has generated columns that are not published"), "{said}");
    world.rules(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: keyed, tags: ["all"], old: same}]}"#,
    );
    assert!(fail(&mut world.waltag("postgres", &["setup", "--apply"]), 65).contains("has a generated column"));
    let harm = "CREATE PUBLICATION g FOR TABLE virt, stored, keyed; ALTER TABLE virt REPLICA IDENTITY FULL;
        ALTER TABLE stored REPLICA IDENTITY FULL";
    sql.batch_execute(harm).await.unwrap();
    for update in ["UPDATE virt SET c = 2", "UPDATE stored SET c = 2", "UPDATE keyed SET c = 2"] {
        assert!(fails(&sql, update).await.contains("cannot update table"), "{update}");
    }
}

const LOG: &str = "CREATE TABLE log (kind text, at timestamptz DEFAULT now());
    CREATE TABLE days (day date NOT NULL, kind text) PARTITION BY RANGE (day);
    CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE item (id int PRIMARY KEY, kind text);";
const LOG_RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
    {table: log, tags: ["log:<kind>"], events: [insert, truncate]},
    {table: days, tags: ["day:<kind>"], events: [insert]}, {table: item, tags: ["item:<id>"]}]}"#;

async fn published(sql: &tokio_postgres::Client) -> String {
    let query =
        "SELECT string_agg(pubname || '.' || tablename, ' ' ORDER BY pubname, tablename) FROM pg_publication_tables";
    sql.query_one(query, &[]).await.unwrap().get(0)
}

/// A table whose rows nothing identifies goes to the publication of inserts, and the application goes on changing its rows.
#[tokio::test]
async fn a_table_without_identity_is_published_for_inserts() {
    let world = World::with("", LOG).await;
    world.setup(LOG_RULES);
    let sql = world.sql().await;
    assert_eq!(published(&sql).await, "waltag.item waltag_insert.days_1 waltag_insert.log");
    for arguments in [&["setup"][..], &["setup", "--apply"]] {
        assert!(succeed(&mut world.waltag("postgres", arguments)).contains("Nothing to do"));
    }
    assert!(succeed(&mut world.waltag("postgres", &["check", "--live"])).contains("0 warnings"));
    let changes = "INSERT INTO log VALUES ('a');; UPDATE log SET kind = 'b';; DELETE FROM log;; TRUNCATE log;;
        CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');;
        INSERT INTO days VALUES ('2026-02-02', 'x');; UPDATE days SET kind = 'y';; INSERT INTO item VALUES (1, 'i')";
    assert_eq!(world.stale_after(changes).await, ["0 day:x", "0 item:1", "0 log:a"]);
    // Published with its updates, it would have failed.
    sql.batch_execute("INSERT INTO log VALUES ('a'); CREATE PUBLICATION harm FOR TABLE log").await.unwrap();
    assert!(fails(&sql, "UPDATE log SET kind = 'b'").await.contains("does not have a replica identity"));
    sql.batch_execute("DROP PUBLICATION harm").await.unwrap();
    succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
    let left: i64 = sql.query_one("SELECT count(*) FROM pg_publication", &[]).await.unwrap().get(0);
    assert_eq!(left, 0);
}

/// The publication of inserts may come while the daemon runs, and a table may move from one to the other.
#[tokio::test]
async fn tables_move_between_the_publications_under_a_running_daemon() {
    let world = World::with("", LOG).await;
    let item =
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: item, tags: ["item:<id>"]}]}"#;
    world.setup(item);
    let daemon = world.watched();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    let mut stale = async |change: &str, key: &str| {
        redis::cmd("SET").arg(key).arg("x").exec_async(&mut cache).await.unwrap();
        sql.batch_execute(change).await.unwrap();
        let cache = cache.clone();
        until(&format!("{key} is stale after {change}"), || {
            let mut cache = cache.clone();
            async move { !redis::cmd("EXISTS").arg(key).query_async::<bool>(&mut cache).await.unwrap() }
        })
        .await;
    };
    world.rules(LOG_RULES);
    daemon.wait_for("is not in the publication");
    succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
    daemon.wait_for("every rule fits its table");
    assert!(daemon.log().contains("opening the stream anew"), "{}", daemon.log());
    stale("INSERT INTO log VALUES ('a')", "log:a").await;
    // Now somebody wants its updates.
    world.rules(&LOG_RULES.replace(", events: [insert, truncate]", ""));
    daemon.wait_for("the replica identity of public.log");
    let applied = succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
    assert!(applied.contains("ALTER PUBLICATION \"waltag_insert\" DROP TABLE \"public\".\"log\""), "{applied}");
    assert_eq!(published(&sql).await, "waltag.item waltag.log waltag_insert.days_1");
    daemon.wait_for_count("rules reloaded", 2);
    stale("UPDATE log SET kind = 'b'", "log:a").await;
    // And the second publication goes.
    sql.batch_execute("DROP PUBLICATION waltag_insert").await.unwrap();
    daemon.wait_for_count("opening the stream anew", 2);
    stale("UPDATE log SET kind = 'c'", "log:b").await;
    assert!(daemon.readyz(503).contains("public.days is not in the publication"));
}

/// Where the server gives REPLICATION by membership, as Amazon's does, the role becomes a member.
#[tokio::test]
async fn the_role_of_a_managed_server() {
    let world = World::new().await;
    world.rules(RULES);
    let sql = world.sql().await;
    sql.batch_execute("CREATE ROLE rds_replication").await.unwrap();
    let applied = succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
    assert!(applied.contains("GRANT rds_replication TO \"waltag\""), "{applied}");
    assert!(succeed(&mut world.waltag("postgres", &["setup"])).contains("Nothing to do"));
    let query = "SELECT rolreplication::text || pg_has_role('waltag', 'rds_replication', 'MEMBER') FROM pg_roles WHERE rolname = 'waltag'";
    assert_eq!(sql.query_one(query, &[]).await.unwrap().get::<_, String>(0), "falsetrue");
}

/// The way back must not make an UPDATE fail that another publication sends.
#[tokio::test]
async fn remove_leaves_the_identity_that_another_publication_needs() {
    let world = World::with("", "CREATE TABLE bare (v int)").await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: bare, tags: ["v:<v>"]}]}"#,
    );
    let sql = world.sql().await;
    sql.batch_execute("CREATE PUBLICATION other FOR TABLE bare; INSERT INTO bare VALUES (1)").await.unwrap();
    let removed = succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
    assert!(removed.contains("keeps its identity"), "{removed}");
    sql.batch_execute("UPDATE bare SET v = 2").await.unwrap();
    // Otherwise:
    sql.batch_execute("ALTER TABLE bare REPLICA IDENTITY DEFAULT").await.unwrap();
    assert!(fails(&sql, "UPDATE bare SET v = 3").await.contains("does not have a replica identity"));
}

/// What setup made is taken away; what was there before is as it was, index identities and odd names included.
#[tokio::test]
async fn remove_restores_every_identity() {
    let schema = "CREATE TABLE ix (a int NOT NULL, b int); CREATE UNIQUE INDEX ix_a ON ix (a);
        ALTER TABLE ix REPLICA IDENTITY USING INDEX ix_a; CREATE TABLE nothing (id int PRIMARY KEY, b int);
        ALTER TABLE nothing REPLICA IDENTITY NOTHING; CREATE TABLE \"dot.ted\" (id int PRIMARY KEY, b int);
        CREATE PUBLICATION other FOR TABLE ix";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: ix, tags: ["b:<b>"]},
            {table: nothing, tags: ["b:<b>"]}, {table: '"dot.ted"', tags: ["b:<b>"]}]}"#,
    );
    let sql = world.sql().await;
    let identities = async || {
        let query = "SELECT string_agg(relreplident::text, '' ORDER BY relname) FROM pg_class
            WHERE relname IN ('ix', 'nothing', 'dot.ted')";
        sql.query_one(query, &[]).await.unwrap().get::<_, String>(0)
    };
    assert_eq!(identities().await, "fff");
    // Removed while a table is locked: nothing is forgotten, and the next attempt finishes.
    let locker = world.sql().await;
    locker.batch_execute("BEGIN; LOCK nothing IN ACCESS SHARE MODE").await.unwrap();
    fail(&mut world.waltag("postgres", &["setup", "--remove", "--apply", "--lock-timeout", "50ms"]), 69);
    assert_eq!(identities().await, "fff");
    locker.batch_execute("ROLLBACK").await.unwrap();
    succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
    assert_eq!(identities().await, "din");
    sql.batch_execute("INSERT INTO ix VALUES (1, 1); UPDATE ix SET b = 2").await.unwrap();
}

/// An apply that is interrupted is taken up again, and what it changed first is still restored.
#[tokio::test]
async fn apply_is_resumable() {
    let schema = "CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int)";
    let world = World::with("", schema).await;
    world.rules(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: a, tags: ["v:<v>"]}, {table: b, tags: ["v:<v>"]}]}"#,
    );
    let (sql, locker) = (world.sql().await, world.sql().await);
    let state = async || {
        let query =
            "SELECT string_agg(relreplident::text, '' ORDER BY relname) FROM pg_class WHERE relname IN ('a', 'b')";
        sql.query_one(query, &[]).await.unwrap().get::<_, String>(0)
    };
    locker.batch_execute("BEGIN; LOCK b IN ACCESS SHARE MODE").await.unwrap();
    fail(&mut world.waltag("postgres", &["setup", "--apply", "--lock-timeout", "50ms"]), 69);
    assert_eq!(state().await, "fd");
    locker.batch_execute("ROLLBACK").await.unwrap();
    succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
    assert_eq!(state().await, "ff");
    succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
    assert_eq!(state().await, "dd");
}

/// A publication of somebody else's is neither narrowed nor dropped nor commented on.
#[tokio::test]
async fn a_foreign_publication_is_left_alone() {
    let world = World::new().await;
    world.rules(RULES);
    let sql = world.sql().await;
    sql.batch_execute("CREATE PUBLICATION app FOR TABLE unrelated; COMMENT ON PUBLICATION app IS 'ours'")
        .await
        .unwrap();
    for _ in 0..2 {
        succeed(&mut world.waltag("postgres", &["setup", "--apply", "--publication", "app"]));
    }
    let state = async || {
        let query = "SELECT string_agg(tablename, ',' ORDER BY tablename) || ' ' ||
            (SELECT obj_description(oid) FROM pg_publication) FROM pg_publication_tables";
        sql.query_one(query, &[]).await.unwrap().get::<_, String>(0)
    };
    assert_eq!(state().await, "first_model,second_model,unrelated ours");
    succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply", "--publication", "app"]));
    assert_eq!(state().await, "first_model,second_model,unrelated ours");
}

#[tokio::test]
async fn an_inheritance_child_made_later_is_published_by_the_next_setup() {
    let world = World::with(
        "",
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE c1 (PRIMARY KEY (id)) INHERITS (parent)",
    )
    .await;
    world.setup(r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: parent, tags: ["<@table>:<id>"]}]}"#);
    world.sql().await.batch_execute("CREATE TABLE c2 (PRIMARY KEY (id)) INHERITS (parent)").await.unwrap();
    assert!(succeed(&mut world.waltag("postgres", &["check", "--live"])).contains("uncovered"));
    succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
    assert!(succeed(&mut world.waltag("postgres", &["setup", "--apply"])).contains("Nothing to do"));
    assert_eq!(
        world.stale_after("INSERT INTO c2 VALUES (5);; INSERT INTO c1 VALUES (6)").await,
        ["0 parent:5", "0 parent:6"]
    );
}

/// A publication that leaves changes out is a silent stale page.
#[tokio::test]
async fn a_publication_that_leaves_changes_out_is_refused() {
    let world = World::new().await;
    world.setup(RULES);
    let sql = world.sql().await;
    // Row filters came with 15.
    let known = if world.version().await < 15 { 2 } else { 3 };
    for (alter, words) in [
        ("ALTER PUBLICATION waltag SET (publish = 'insert')", "does not publish update, delete, truncate"),
        (
            "ALTER PUBLICATION waltag SET (publish = 'insert, update, delete, truncate', publish_via_partition_root)",
            "through their root",
        ),
        (
            "ALTER PUBLICATION waltag SET (publish_via_partition_root = false);
          ALTER PUBLICATION waltag SET TABLE first_model WHERE (id > 5), shop.second_model",
            "only some rows of public.first_model",
        ),
    ]
    .into_iter()
    .take(known)
    {
        sql.batch_execute(alter).await.unwrap();
        for arguments in [&["check", "--live"][..], &["run"]] {
            let said = fail(&mut world.waltag("waltag", arguments), 65);
            assert!(said.contains(words), "{words}:\n{said}");
        }
    }
}

/// `systemctl stop waltag; waltag setup --remove --apply`: the server may not have noticed yet that the daemon is gone, and the slot counts
/// as used until then.
#[tokio::test]
async fn a_slot_that_is_used_for_a_moment_is_waited_for() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    let mut remove = world.waltag("postgres", &["setup", "--remove", "--apply", "--lock-timeout", "1s"]);
    let removal = world.start(&mut remove);
    removal.wait_for("is active for PID");
    assert_eq!(daemon.stop(), Some(0));
    let sql = world.sql().await;
    until("all is gone", || async {
        let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) = 0";
        sql.query_one(left, &[]).await.unwrap().get(0)
    })
    .await;
}
