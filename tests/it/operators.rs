//! What operators see: health, status, metrics, and no secret anywhere.

use crate::support::{RULES, World, fail, outbox, signal, until};

#[tokio::test]
async fn health_status_and_metrics() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched();
    let body = daemon.readyz(200);
    assert_eq!(body.trim(), r#"{"ready":true,"reasons":[]}"#);
    assert_eq!(daemon.get("/livez"), (200, "alive\n".to_owned()));
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (1), (2); INSERT INTO shop.second_model VALUES (1, 2, 3)")
        .await
        .unwrap();
    world.settled(&sql).await;
    // It is at most a second old.
    until("the metrics tell of it", || async {
        let metrics = daemon.get("/metrics").1;
        metrics.contains("tags_sent_total{cache=\"my_cache_alias\"} 2") && !metrics.contains("waltag_confirmed_lsn 0")
    })
    .await;
    let metrics = daemon.get("/metrics").1;
    for line in [
        "waltag_changes_total{event=\"insert\"} 3",
        "waltag_transactions_total 1",
        "waltag_tags_total{table=\"public.first_model\",tag=\"FirstModel.pk:<id>\",cache=\"my_cache_alias\"} 2",
        "waltag_tags_sent_total{cache=\"my_cache_alias\"} 2",
        "waltag_commit_to_invalidate_seconds_count{cache=\"my_cache_alias\"} 1",
        "waltag_visibility_wait_seconds_count 1",
        "waltag_gaps_total{cache=\"default\",reason=\"no_marker\"} 1",
        "waltag_connections_total{server=\"postgresql\"} 1",
        "waltag_cache_up{cache=\"default\"} 1",
        "waltag_rules_generation 1",
        "waltag_rules_uncovered 0",
        "waltag_rules_degraded 0",
        "waltag_rules_reload_failures_total 0",
        "waltag_memory_limit_bytes 33554432",
        "waltag_ready 1",
        "waltag_slot_status{status=\"reserved\"} 1",
        "# EOF",
    ] {
        if outbox() && (line.contains("visibility") || line.contains("slot")) {
            continue;
        }
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let value = |name: &str| -> u64 {
        let line =
            metrics.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("waltag_confirmed_lsn") > 0 && value("waltag_received_lsn") >= value("waltag_confirmed_lsn"));
    assert_eq!(daemon.get("/nothing").0, 404);
}

/// `waltag status` against a daemon that is well, one whose cache is away, and none.
#[tokio::test]
async fn status_of_a_daemon() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched();
    daemon.readyz(200);
    let address = daemon.log().split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let status = |arguments: &[&str]| {
        let mut command = world.waltag("waltag", arguments);
        command.args(["--listen", &address]);
        command
    };
    let text = crate::support::succeed(&mut status(&["status"]));
    let source = if outbox() { "outbox, instance waltag" } else { "slot waltag, publication waltag" };
    for part in ["ready, streaming", source, "cache   default: up, keys at 127.0.0.1:"] {
        assert!(text.contains(part), "{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&crate::support::succeed(&mut status(&["status", "--json"]))).unwrap();
    assert_eq!(json["source"]["kind"], crate::support::source());
    assert_eq!((&json["state"], &json["caches"][1]["state"]), (&"streaming".into(), &"up".into()));
    signal(world.redis.pid().unwrap(), "STOP");
    world.sql().await.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    until("both caches are away", || async { daemon.readyz(503).contains("my_cache_alias is away") }).await;
    let said = fail(&mut status(&["status"]), 75);
    assert!(said.contains("not ready") && said.contains("my_cache_alias is away"), "{said}");
    signal(world.redis.pid().unwrap(), "CONT");
    daemon.readyz(200);
    assert_eq!(daemon.stop(), Some(0));
    let said = fail(&mut status(&["status"]), 69);
    assert!(said.contains(&format!("no waltag answers at {address}")), "{said}");
}

/// A port that is taken is a wrong setting; a database that is away is told by `/readyz`, while `/livez` is well.
#[tokio::test]
async fn a_taken_port_and_a_database_that_is_away() {
    let mut world = World::new().await;
    world.setup(RULES);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = fail(&mut world.waltag("waltag", &["run", "--listen", &address]), 78);
    assert!(said.contains(&format!("cannot listen at {address}")) && said.contains("--listen"), "{said}");
    let daemon = world.watched();
    daemon.readyz(200);
    world.postgres.stop("immediate", std::time::Duration::from_secs(20)).unwrap();
    let body = daemon.readyz(503);
    assert!(body.contains("\"code\":\"source\""), "{body}");
    assert_eq!(daemon.get("/livez").0, 200);
    world.postgres.launch().unwrap();
    daemon.readyz(200);
}

/// A password must not stand anywhere but where it was written.
#[tokio::test]
async fn no_secret_is_shown_anywhere() {
    const SECRET: &str = "MARKER-s3cret";
    let world = World::new().await;
    let redis = format!("redis://:{SECRET}@127.0.0.1:{}", world.redis.port);
    let mut cache = world.cache(0).await;
    redis::cmd("CONFIG").arg(&["SET", "requirepass", SECRET]).exec_async(&mut cache).await.unwrap();
    world.setup(&RULES.replace("{redis}", &redis));
    let sql = world.sql().await;
    sql.batch_execute(&format!("ALTER ROLE waltag PASSWORD '{SECRET}'")).await.unwrap();
    let url = world.postgres.url("waltag", "shop").replace("waltag@", &format!("waltag:{SECRET}@"));
    assert!(url.contains(SECRET), "{url}");
    let run = |arguments: &[&str]| {
        let mut command = world.waltag("waltag", arguments);
        command.env("WALTAG_DATABASE_URL", &url).env("WALTAG_LISTEN", "127.0.0.1:0").env("RUST_LOG", "trace");
        command
    };
    let mut all = Vec::new();
    let mut command = run(&["run"]);
    command.env("STATE_DIRECTORY", world.directory.path());
    let daemon = world.start(&mut command);
    daemon.wait_for(" ready ");
    let pid = daemon.child.id();
    all.push(("cmdline", std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap()));
    for path in ["/readyz", "/status", "/metrics"] {
        all.push((path, daemon.get(path).1));
    }
    // Errors that name both servers: Redis refuses the password, PostgreSQL ends the session, the rules are broken.
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "other"]).exec_async(&mut cache).await.unwrap();
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec_async(&mut cache).await.unwrap();
    daemon.wait_for("Redis refuses the user or password");
    sql.batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waltag'")
        .await
        .unwrap();
    daemon.wait_for_count("streaming server", 2);
    world.rules(&RULES.replace("{redis}", &format!("redis:/:{SECRET}@x")).replace("rules:", "ruless:"));
    daemon.signal("HUP");
    daemon.wait_for("the new rules are refused");
    all.push(("/status of a broken daemon", daemon.get("/status").1));
    all.push(("log", daemon.log()));
    for arguments in [&["--help"][..], &["run", "--help"], &["check"], &["setup"], &["invalidate", "x"], &["status"]] {
        let output = run(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!said.is_empty());
        all.push(("a command", said));
    }
    let wrong =
        run(&["check", "--live"]).env("WALTAG_DATABASE_URL", format!("mysql://u:{SECRET}@h/d")).output().unwrap();
    all.push(("a wrong URL", String::from_utf8_lossy(&wrong.stderr).into_owned()));
    for (place, text) in all {
        assert!(!text.contains(SECRET), "{place} shows the password:\n{text}");
    }
}
