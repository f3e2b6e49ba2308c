//! Figures, not tests: `scripts/bench` prints them. Each is a ratio against what bounds it, taken in the same run.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{RULES, World, until};

const ROWS: u32 = 500_000;

/// `pg_recvlogical` into nothing, and waltag into Redis, over the same WAL.
#[tokio::test]
#[ignore = "a measurement: scripts/bench"]
async fn throughput() {
    let world = World::new().await;
    world.setup(RULES);
    let sql = world.sql().await;
    world.daemon().stop();
    sql.batch_execute("SELECT pg_create_logical_replication_slot('bound', 'pgoutput')").await.unwrap();
    for (load, statement) in [
        ("one transaction of 500,000 rows", format!("INSERT INTO shop.second_model (id, category_id, type_id) SELECT i, i % 1000, 1 FROM generate_series(1, {ROWS}) i")),
        ("50,000 transactions of one row", "DO $$ BEGIN FOR i IN 1..50000 LOOP UPDATE shop.second_model SET name = 'x' WHERE id = i; COMMIT; END LOOP; END $$".to_owned()),
    ] {
        sql.batch_execute(&statement).await.unwrap();
        let end: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        let begin = Instant::now();
        let mut bound = Command::new(world.postgres.program("pg_recvlogical"));
        bound.args(["-h", "127.0.0.1", "-U", "postgres", "-d", "shop", "--slot", "bound", "--start", "-f", "/dev/null", "--endpos", &end]);
        bound.args(["-p", &world.postgres.port.to_string(), "-o", "proto_version=1", "-o", "publication_names=waltag"]);
        assert!(bound.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
        let bound = begin.elapsed();

        let begin = Instant::now();
        let daemon = world.start(world.waltag("waltag", &["run"]).env("RUST_LOG", "warn"));
        until("waltag confirms", || async {
            let query = format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'waltag'");
            sql.query_one(&query, &[]).await.unwrap().get(0)
        })
        .await;
        let ours = begin.elapsed();
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
        println!("{load}: pg_recvlogical {bound:.2?}, waltag {ours:.2?}, ratio {:.2}; {peak}", ours.as_secs_f64() / bound.as_secs_f64());
        daemon.stop();
    }
}

/// From the moment the COMMIT returns until the key is gone from Redis, as a reader polls it; beside one Redis round trip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: scripts/bench"]
async fn latency() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.start(world.waltag("waltag", &["run"]).env("RUST_LOG", "info"));
    daemon.wait_for("ready");
    let (sql, mut cache) = (world.sql().await, world.cache(1).await);
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    let (mut waits, mut trips) = (Vec::new(), Vec::new());
    for number in 0..1_000 {
        redis::cmd("SET").arg("FirstModel.pk:1").arg("x").exec_async(&mut cache).await.unwrap();
        sql.batch_execute(&format!("UPDATE first_model SET name = '{number}' WHERE id = 1")).await.unwrap();
        let committed = Instant::now();
        loop {
            let begin = Instant::now();
            let there: bool = redis::cmd("EXISTS").arg("FirstModel.pk:1").query_async(&mut cache).await.unwrap();
            trips.push(begin.elapsed());
            if !there {
                break;
            }
        }
        waits.push(committed.elapsed());
    }
    let show = |name: &str, values: &mut Vec<Duration>| {
        values.sort();
        let at = |share: usize| values[values.len() * share / 100];
        println!("{name}: p50 {:.2?}, p95 {:.2?}, p99 {:.2?}", at(50), at(95), at(99));
    };
    show("COMMIT to stale", &mut waits);
    show("one Redis round trip", &mut trips);
}

/// 10,000 rules in 200 files: how long they take to load, and a reload while changes stream.
#[tokio::test]
#[ignore = "a measurement: scripts/bench"]
async fn rules() {
    let world = World::new().await;
    let directory = world.directory.path().join("rules.d");
    std::fs::create_dir(&directory).unwrap();
    let redis = world.redis.url(0);
    let write = |head: &str| {
        for file in 0..200 {
            let caches = if file == 0 {
                format!("caches: {{c: {{url: \"{redis}\", dialect: keys, repeat: []}}}}\n")
            } else {
                String::new()
            };
            let rule = |rule: u32| {
                format!(
                    "  - {{table: first_model, when: \"row.id > {rule}\", tags: [\"{head}{file}:{rule}:<id>\", \"{head}{file}:{rule}:<name|lower>\"]}}\n"
                )
            };
            let rules: String = (0..50).map(rule).collect();
            std::fs::write(directory.join(format!("{file:03}.yaml")), format!("version: 1\n{caches}rules:\n{rules}"))
                .unwrap();
        }
    };
    write("a");
    let path = directory.display().to_string();
    let begin = Instant::now();
    let text = crate::support::succeed(&mut world.waltag("waltag", &["check", "--rules", &path]));
    println!("check: {:.2?} for {}", begin.elapsed(), text.lines().last().unwrap_or_default());
    let small = directory.join("200.yaml");
    let sql = world.sql().await;
    crate::support::succeed(&mut world.waltag("postgres", &["setup", "--apply", "--rules", &path]));
    let daemon = world.start_at("info", &mut world.waltag("waltag", &["run", "--rules", &path]));
    daemon.wait_for(" ready ");
    let begin = Instant::now();
    sql.batch_execute("INSERT INTO first_model VALUES (100)").await.unwrap();
    world.settled_within(&sql, Duration::from_secs(60)).await;
    println!("one row, 10,000 rules: {:.2?}", begin.elapsed());
    std::fs::write(small, "version: 1\n").unwrap();
    let begin = Instant::now();
    daemon.signal("HUP");
    daemon.wait_for("rules reloaded");
    println!("reload: {:.2?}", begin.elapsed());
}

/// What writers pay: pgbench without anything, with the outbox (listening, and only polled), with logical replication, each with a daemon at
/// work; few writers, and as many as make NOTIFY's lock bite (it is taken from the commit record to the end of the commit, one at a time).
#[tokio::test]
#[ignore = "a measurement: scripts/bench"]
async fn writers() {
    let schema = format!(
        "{}; INSERT INTO shop.second_model (id, category_id, type_id, name, status) SELECT n, n % 1000, 1, 'n', 'live' FROM generate_series(1, 100000) n",
        crate::support::SCHEMA
    );
    for clients in [1, 16] {
        // Commits that wait for a disk hide what else they wait for: these are the worst ratios.
        let settings = "max_prepared_transactions = 0\nautovacuum = on\nshared_buffers = 128MB\n";
        let mut world = World::with(settings, &schema).await;
        world.rules(RULES);
        let mut figures: Vec<(&str, Vec<(f64, f64)>)> =
            vec![("nothing", vec![]), ("outbox", vec![]), ("outbox, polled", vec![]), ("replication", vec![])];
        for _ in 0..3 {
            for (name, measured) in &mut figures {
                world.source = if name.starts_with("outbox") { "outbox" } else { "replication" }.into();
                let quiet: &[&str] = if name.ends_with("polled") { &["--no-listen"] } else { &[] };
                let setup = |arguments: &[&str]| {
                    crate::support::succeed(
                        &mut world.waltag("postgres", &[&["setup", "--apply"], arguments, quiet].concat()),
                    )
                };
                let mut daemon = None;
                if *name != "nothing" {
                    setup(&[]);
                    let mut command = world.waltag("waltag", &[&["run"], quiet].concat());
                    let started = world.start(command.env("RUST_LOG", "info").env("WALTAG_POLL", "100ms"));
                    started.wait_until_resynced();
                    daemon = Some(started);
                }
                measured.push(pgbench(&world, clients));
                if let Some(daemon) = daemon {
                    daemon.stop();
                    setup(&["--remove"]);
                }
            }
        }
        println!("{clients} writers: transactions per second, p95");
        let median = |of: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| {
            let mut sorted: Vec<f64> = of.iter().map(which).collect();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        };
        let (plain, slow) = (median(&figures[0].1, |one| one.0), median(&figures[0].1, |one| one.1));
        for (name, of) in &figures {
            let (rate, p95) = (median(of, |one| one.0), median(of, |one| one.1));
            println!("  {name:15} {rate:7.0}/s ({:.2}), p95 {p95:.2} ms ({:.2})", rate / plain, p95 / slow);
        }
    }
}

/// Transactions per second, and the 95th percentile of their times in milliseconds.
fn pgbench(world: &World, clients: u32) -> (f64, f64) {
    let directory = tempfile::tempdir_in(world.directory.path()).unwrap();
    let script = directory.path().join("script");
    std::fs::write(
        &script,
        "\\set id random(1, 100000)\nUPDATE shop.second_model SET category_id = category_id + 1 WHERE id = :id;\n",
    )
    .unwrap();
    let mut pgbench = Command::new(world.postgres.program("pgbench"));
    let (port, clients) = (world.postgres.port.to_string(), clients.to_string());
    pgbench.args([
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-p",
        &port,
        "-n",
        "-T",
        "5",
        "-c",
        &clients,
        "-j",
        "2",
        "-M",
        "prepared",
        "-l",
        "-f",
    ]);
    let said = crate::support::succeed(pgbench.arg(&script).arg("shop").current_dir(directory.path()));
    let rate =
        said.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap().split(' ').next().unwrap().parse().unwrap();
    let mut times: Vec<u64> = Vec::new();
    for file in std::fs::read_dir(directory.path()).unwrap().filter_map(|file| file.ok()) {
        if file.file_name().to_string_lossy().starts_with("pgbench_log") {
            // Client, transaction, microseconds, ...
            let log = std::fs::read_to_string(file.path()).unwrap();
            times.extend(log.lines().map(|line| line.split(' ').nth(2).unwrap().parse::<u64>().unwrap()));
        }
    }
    times.sort_unstable();
    (rate, times[times.len() * 95 / 100] as f64 / 1_000.0)
}

/// A bulk UPDATE of a million rows: how long the statement takes without and with triggers, and until all of it is stale.
#[tokio::test]
#[ignore = "a measurement: scripts/bench"]
async fn bulk() {
    let schema = format!(
        "{}; INSERT INTO shop.second_model (id, category_id, type_id) SELECT n, n % 1000, 1 FROM generate_series(1, 1000000) n",
        crate::support::SCHEMA
    );
    let mut world = World::with("", &schema).await;
    world.rules(RULES);
    let sql = world.sql().await;
    let update = "UPDATE shop.second_model SET status = 'x'";
    let begin = Instant::now();
    sql.batch_execute(update).await.unwrap();
    let plain = begin.elapsed();
    println!("without anything: {plain:.2?}");
    for source in ["replication", "outbox"] {
        world.source = source.into();
        crate::support::succeed(&mut world.waltag("postgres", &["setup", "--apply"]));
        let daemon = world.start_at("info", &mut world.waltag("waltag", &["run"]));
        daemon.wait_until_resynced();
        let begin = Instant::now();
        sql.batch_execute(update).await.unwrap();
        let (written, begun) = (begin.elapsed(), Instant::now());
        world.settled_within(&sql, Duration::from_secs(300)).await;
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
        println!(
            "{source}: written in {written:.2?} ({:.1}), all stale {:.2?} after the commit; {peak}",
            written.as_secs_f64() / plain.as_secs_f64(),
            begun.elapsed()
        );
        daemon.stop();
        crate::support::succeed(&mut world.waltag("postgres", &["setup", "--apply", "--remove"]));
    }
}
