//! The one-shot commands.

use crate::support::{Monitor, RULES, World, fail, root, succeed, until};

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
    let now: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    succeed(&mut world.waltag("waltag", &["run", "--once"]));
    let confirmed = format!("SELECT confirmed_flush_lsn >= '{now}' FROM pg_replication_slots");
    until("it is confirmed", || async { sql.query_one(&confirmed, &[]).await.unwrap().get(0) }).await;
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

/// What the application must write, too: one value per placeholder and cache. And what stands in the way of a stream.
#[tokio::test]
async fn check_live_shows_values_and_what_is_in_the_way() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, b bool, n numeric, at timestamptz, s text, tags text[]);
        INSERT INTO t VALUES (1, true, 1.50, '2026-11-22 03:04:05.6+00', 's', '{x,y}'); CREATE ROLE plain LOGIN";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {py: {url: "{redis}/0", dialect: keys, style: python}, pl: {url: "{redis}/1", dialect: keys}},
            defaults: {caches: [py, pl]}, rules: [{table: t, tags: ["t:<id>:<s>:<b>:<n>:<at>", "g:<tags[]>"]}]}"#,
    );
    let said = succeed(&mut world.waltag("waltag", &["check", "--live"]));
    assert!(said.contains("public.t.b bool: no value to show"), "the daemon's role may not read the table: {said}");
    let said = succeed(&mut world.waltag("postgres", &["check", "--live"]));
    for words in [
        "py  public.t.b bool: `t` -> `True`",
        "pl  public.t.b bool: `t` -> `true`",
        "py  public.t.n numeric: `1.50` -> `1.50`",
        "py  public.t.at timestamptz: `2026-11-22 03:04:05.6+00` -> `2026-11-22 03:04:05.600000+00:00`",
        "pl  public.t.at timestamptz: `2026-11-22 03:04:05.6+00` -> `2026-11-22T03:04:05.6Z`",
        "pl  public.t.tags _text: `{x,y}` -> `x`",
        "note: max_slot_wal_keep_size is -1",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    assert!(!said.contains("public.t.s") && !said.contains("public.t.id") && !said.contains("no stream"), "{said}");
    let json: serde_json::Value =
        serde_json::from_str(&succeed(&mut world.waltag("plain", &["check", "--live", "--json"]))).unwrap();
    assert_eq!(json["examples"].as_array().unwrap().len(), 8);
    assert!(json["notes"][0].as_str().unwrap().contains("LOGIN REPLICATION"), "{json}");
}
