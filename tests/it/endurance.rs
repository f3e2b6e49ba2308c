//! Long runs whose figures are printed: `scripts/endurance`. What must hold is asserted.

use std::time::{Duration, Instant};

use crate::support::{Daemon, RULES, World, end_of_stream, signal, until};

/// Fields of /proc/PID/status in KiB, and open file descriptors.
fn usage(daemon: &Daemon) -> (u64, u64, usize) {
    let pid = daemon.child.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmRSS"), field("VmHWM"), std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

fn quiet_daemon(world: &World, arguments: &[&str]) -> Daemon {
    let daemon = world.start_at("info", &mut world.waltag("waltag", arguments));
    daemon.wait_until_resynced();
    daemon
}

/// A transaction of 1,000,000 rows, then five minutes without Redis under load: memory keeps to the budget, nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "eight minutes: scripts/endurance"]
async fn a_million_rows_and_five_minutes_without_redis() {
    const ROWS: i32 = 150_000;
    let world = World::new().await;
    world.setup(RULES);
    let daemon = quiet_daemon(&world, &["run"]);
    let sql = world.sql().await;
    let (idle, _, _) = usage(&daemon);
    let begin = Instant::now();
    sql.batch_execute(
        "INSERT INTO shop.second_model (id, category_id, type_id) SELECT i, i, 1 FROM generate_series(1, 1000000) i",
    )
    .await
    .unwrap();
    let inserted = begin.elapsed();
    world.settled_within(&sql, Duration::from_secs(120)).await;
    let (_, peak, _) = usage(&daemon);
    println!(
        "1,000,000 rows, 2,000,000 tags: inserted in {inserted:.1?}, done {:.1?} after the commit; idle {idle} KiB, peak {peak} KiB",
        begin.elapsed() - inserted
    );
    assert!(peak < (32 + 48) << 10, "peak {peak} KiB");

    let mut cache = world.cache(1).await;
    for chunk in (0..ROWS).collect::<Vec<_>>().chunks(1_000) {
        let mut fill = redis::pipe();
        for id in chunk {
            fill.cmd("SET").arg(format!("FirstModel.pk:{id}")).arg("cached").ignore();
        }
        fill.exec_async(&mut cache).await.unwrap();
    }
    signal(world.redis.pid().unwrap(), "STOP");
    let (begin, outage) =
        (Instant::now(), Duration::from_secs(std::env::var("OUTAGE").map_or(300, |seconds| seconds.parse().unwrap())));
    let mut written = 0;
    while begin.elapsed() < outage {
        if written < ROWS {
            let statement = format!("INSERT INTO first_model SELECT generate_series({written}, {written} + 99)");
            sql.batch_execute(&statement).await.unwrap();
            written += 100;
        }
        // Spread over the outage.
        let due = outage.mul_f64(f64::from(written) / f64::from(ROWS));
        tokio::time::sleep(due.saturating_sub(begin.elapsed()).max(Duration::from_millis(1))).await;
    }
    let (rss, peak, _) = usage(&daemon);
    signal(world.redis.pid().unwrap(), "CONT");
    let back = Instant::now();
    world.settled_within(&sql, Duration::from_secs(60)).await;
    println!("{written} rows without Redis: {rss} KiB, peak {peak} KiB; done {:.1?} after it was back", back.elapsed());
    let left: Vec<String> = redis::cmd("KEYS").arg("FirstModel.pk:*").query_async(&mut cache).await.unwrap();
    assert!(left.is_empty(), "{} of {written} are still cached", left.len());
    assert!(peak < (32 + 48) << 10, "peak {peak} KiB");
}

/// 24 hours in fast motion: 200,000 transactions over a thousand reconnects. Memory and file descriptors stay flat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "some minutes: scripts/endurance"]
async fn a_day_in_fast_motion() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = quiet_daemon(&world, &["run"]);
    let (sql, killer) = (world.sql().await, world.sql().await);
    sql.batch_execute("INSERT INTO first_model SELECT generate_series(0, 999)").await.unwrap();
    let begin = Instant::now();
    let mut early = (0, 0);
    for reconnect in 0..1_000 {
        let body: String =
            (0..200).map(|n| format!("UPDATE first_model SET name = '{reconnect}' WHERE id = {n};")).collect();
        for statement in body.split_inclusive(';') {
            sql.batch_execute(statement).await.unwrap();
        }
        let end = end_of_stream();
        until("a walsender was there", || async { !killer.query(end, &[]).await.unwrap().is_empty() }).await;
        if reconnect % 100 == 99 {
            let (rss, peak, files) = usage(&daemon);
            println!(
                "{} reconnects, {:.0?}: {rss} KiB, peak {peak} KiB, {files} files",
                reconnect + 1,
                begin.elapsed()
            );
            if reconnect == 199 {
                early = (rss, files);
            }
        }
    }
    world.settled_within(&sql, Duration::from_secs(60)).await;
    let (rss, _, files) = usage(&daemon);
    println!(
        "200,000 transactions in {:.0?}: {} KiB and {} files after 200 reconnects, {rss} KiB and {files} files at the end",
        begin.elapsed(),
        early.0,
        early.1
    );
    assert!(rss < early.0 + (4 << 10), "{rss} KiB after {} KiB", early.0);
    assert!(files <= early.1 + 4, "{files} files after {}", early.1);
}
