//! The one-shot commands.

use crate::support::{Monitor, RULES, World, fail, root, succeed, until};

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

/// Each refusal prevents a failing UPDATE of the application.
#[tokio::test]
async fn setup_refuses_what_would_make_writes_fail() {
    let schema = "CREATE TABLE part (id int, c int) PARTITION BY RANGE (id);
        CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
        CREATE TABLE listed (id int PRIMARY KEY, c int);
        CREATE PUBLICATION other FOR TABLE listed (id)";
    let world = World::with("", schema).await;
    let rules = |table: &str| {
        world.rules(&format!(
            r#"{{version: 1, caches: {{c: {{url: "{{redis}}/0", dialect: keys}}}}, rules: [{{table: {table}, tags: ["c:<c>"]}}]}}"#
        ));
        fail(&mut world.waltag("postgres", &["setup", "--apply"]), 65)
    };
    assert!(rules("part").contains("no primary key"));
    assert!(rules("listed").contains("column list"));
    let sql = world.sql().await;
    // What would have happened: the next partition has no identity, and its first UPDATE fails.
    let harm = "ALTER TABLE part_1 REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE part;
        CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20); INSERT INTO part VALUES (11, 1);
        UPDATE part SET c = 2 WHERE id = 11";
    assert!(sql.batch_execute(harm).await.unwrap_err().as_db_error().unwrap().message().contains("replica identity"));
    let harm = "ALTER TABLE listed REPLICA IDENTITY FULL; INSERT INTO listed VALUES (1, 1); UPDATE listed SET c = 2";
    assert!(sql.batch_execute(harm).await.is_err());
}

#[tokio::test]
async fn run_setup_needs_nothing_before() {
    let world = World::new().await;
    world.rules(RULES);
    let daemon = world.start(&mut world.waltag("postgres", &["run", "--setup"]));
    daemon.wait_for("ready");
    let monitor = Monitor::start(world.redis.port);
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:1"]);
}

#[tokio::test]
async fn invalidate_takes_the_daemons_path() {
    let world = World::new().await;
    world.rules(RULES);
    let monitor = Monitor::start(world.redis.port);
    assert_eq!(succeed(&mut world.waltag("postgres", &["invalidate", "a:1", "b"])), "default: 2 tags made stale\n");
    succeed(&mut world.waltag("postgres", &["invalidate", "--cache", "my_cache_alias", "c d"]));
    assert_eq!(monitor.unlinked(), ["0 a:1", "0 b", "1 c d"]);
    let said = fail(&mut world.waltag("postgres", &["invalidate", "--cache", "my_cache_alais", "x"]), 64);
    assert!(said.contains("did you mean my_cache_alias?"), "{said}");
}

#[test]
fn explain_shows_rules_tags_and_commands() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.yaml");
    let text = r#"version: 1
caches:
  default: { url: "redis://:MARKER@10.0.0.1:6379/3", dialect: cache-dependencies, key_prefix: [shop, old], version: 2, releases: ["0.7.7.48", "0.7.3"] }
  set: { url: "redis://h", dialect: cache-tagging, mode: set }
rules:
  - table: shop.second_model
    tags: ["CategoryModel.pk:<category_id>", { tag: "on:<live>", caches: [set] }]
"#;
    std::fs::write(&path, text).unwrap();
    let explain = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_waltag"));
        command.env_clear().arg("explain").args(arguments).arg("--rules").arg(&path);
        command
    };
    let new = r#"{"category_id": 15, "live": true}"#;
    let said = succeed(&mut explain(&["shop.second_model", "--new", new]));
    let hash = "82f87684924ecd4a815ee924449c3fa1";
    for command in [
        format!("UNLINK shop:2:tag_07743_{hash}"),
        format!("UNLINK shop:2:tag_073_{hash}"),
        format!("UNLINK old:2:tag_073_{hash}"),
        "10.0.0.1:6379/3".into(),
        "on:True".into(),
        "XX EX 86400".into(),
    ] {
        assert!(said.contains(&command), "{command}:\n{said}");
    }
    assert!(!said.contains("MARKER"));
    let moved =
        succeed(&mut explain(&["shop.second_model", "--old", r#"{"category_id": 1, "live": null}"#, "--new", new]));
    assert!(
        moved.contains("CategoryModel.pk:1\n") && moved.contains("CategoryModel.pk:15\n") && moved.contains("on:None"),
        "{moved}"
    );
    assert!(fail(&mut explain(&["shop.secnd_model", "--new", "{}"]), 64).contains("did you mean shop.second_model?"));
    assert!(fail(&mut explain(&["shop.second_model", "--new", "{}"]), 64).contains("needs the column `category_id`"));
    assert!(fail(&mut explain(&["shop.second_model", "--new", "[1]"]), 64).contains("an object"));
    assert!(fail(&mut explain(&["shop.second_model"]), 64).contains("--new"));
}

/// The seed's own example, as its README has it.
#[test]
fn the_example_file_loads() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_waltag"));
    command.env_clear().args(["check", "--rules"]).arg(root().join("rules.example.yaml"));
    let said = succeed(&mut command);
    assert!(said.contains("0 warnings"), "{said}");
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
    ] {
        sql.batch_execute(alter).await.unwrap();
        for arguments in [&["check", "--live"][..], &["run"]] {
            let said = fail(&mut world.waltag("waltag", arguments), 65);
            assert!(said.contains(words), "{words}:\n{said}");
        }
    }
}

#[tokio::test]
async fn run_setup_waits_for_a_server_that_is_still_starting() {
    let mut world = World::new().await;
    world.rules(RULES);
    world.postgres.stop("fast", std::time::Duration::from_secs(20)).unwrap();
    let daemon = world.start(&mut world.waltag("postgres", &["run", "--setup"]));
    daemon.wait_for("trying again");
    world.postgres.launch().unwrap();
    daemon.wait_for("ready");
}

/// `run --once` catches up with the position of its start, confirms it, and ends.
#[tokio::test]
async fn run_once_catches_up_and_ends() {
    let world = World::new().await;
    world.setup(RULES);
    world.daemon().stop();
    let sql = world.sql().await;
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("INSERT INTO first_model VALUES (1), (2)").await.unwrap();
    succeed(&mut world.waltag("waltag", &["run", "--once"]));
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:1", "1 FirstModel.pk:2"]);
}

/// `run --dry-run` beside a running daemon says what it does, without consuming or writing, and leaves nothing behind.
#[tokio::test]
async fn a_dry_run_beside_the_daemon() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    let sql = world.sql().await;
    let mut dry = world.waltag("waltag", &["run", "--dry-run"]);
    let out = world.directory.path().join("dry");
    let errors = std::fs::File::create(world.directory.path().join("dry.log")).unwrap();
    let mut dry = dry.stdout(std::fs::File::create(&out).unwrap()).stderr(errors).spawn().unwrap();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE active";
    until("the copy is read", || async { sql.query_one(slots, &[]).await.unwrap().get::<_, i64>(0) == 2 }).await;
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    sql.batch_execute("TRUNCATE shop.second_model").await.unwrap();
    let told = || std::fs::read_to_string(&out).unwrap();
    until("it is told", || async { told().contains("a sweep") }).await;
    world.settled(&sql).await;
    assert!(told().contains("  my_cache_alias  FirstModel.pk:1\n    UNLINK FirstModel.pk:1\n"), "{}", told());
    assert_eq!(monitor.lines().iter().filter(|line| line.contains("FirstModel.pk:1")).count(), 1, "the daemon's own");
    crate::support::signal(dry.id(), "TERM");
    assert!(dry.wait().unwrap().success());
    until("the copy is gone", || async {
        sql.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    drop(daemon);
    // Without any slot it reads from now on, and makes none.
    sql.batch_execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await.unwrap();
    until("the slot is gone", || async {
        sql.batch_execute("SELECT pg_drop_replication_slot('waltag')").await.is_ok()
    })
    .await;
    succeed(&mut world.waltag("waltag", &["run", "--dry-run", "--once"]));
}

/// `init` writes a file that is right for the database it was made of, whatever its tables are called.
#[tokio::test]
async fn init_writes_a_file_that_is_right() {
    let world = World::new().await;
    let sql = world.sql().await;
    sql.batch_execute(
        "CREATE TABLE \"odd.name <x>\" (\"a b\" int, \"c\"\"d\" int, PRIMARY KEY (\"a b\", \"c\"\"d\"));
         CREATE TABLE shop.first_model (id int PRIMARY KEY, parent int REFERENCES first_model);
         CREATE TABLE no_key (v text)",
    )
    .await
    .unwrap();
    let written = succeed(&mut world.waltag("postgres", &["init"]));
    for part in [
        "- \"public.first_model:<id>\"",
        "- \"shop.first_model:<id>\"",
        "# - \"first_model:<parent>:shop.first_model\"",
        "- \"no_key\"",
    ] {
        assert!(written.contains(part), "{part}:\n{written}");
    }
    // With everything that it proposes.
    let whole = written.replace("      # - ", "      - ");
    let path = world.directory.path().join("rules.yaml");
    for text in [written, whole] {
        std::fs::write(&path, text).unwrap();
        succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
        succeed(&mut world.waltag("postgres", &["check", "--live"]));
    }
}
