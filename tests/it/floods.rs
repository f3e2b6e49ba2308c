//! Too much of everything: messages that any role may write, a log that nobody reads, rows and answers of any size.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;
use waltag::demo::servers::{Redis, free_port};

use crate::attacks::{SOON, assert_alive, assert_goes_stale, forget_peak, get, limited, mebibytes};
use crate::support::{Daemon, LIMIT, RULES, World, fill, is_gone, outbox, redis_at, until, until_within};

/// Somebody who may do nothing but log in.
async fn mallory(world: &World) -> Client {
    world.sql().await.batch_execute("CREATE ROLE mallory LOGIN").await.unwrap();
    world.sql_as("mallory", "shop").await
}

/// 20,000 messages of a byte and 500 of 60 kB, none of which means anything; every role may write them. Commits made
/// meanwhile go stale.
async fn flood(world: &World, address: &str) {
    let (mallory, sql, mut cache) = (mallory(world).await, world.sql().await, world.cache(1).await);
    for round in 0..20 {
        let messages = "SELECT count(pg_logical_emit_message(true, 'waltag', 'x')) FROM generate_series(1, 1000); \
            SELECT count(pg_logical_emit_message(true, 'waltag', \
                '{\"tags\": [], \"cache\": \"' || n || repeat('y', 60000) || '\"}')) FROM generate_series(1, 25) n";
        mallory.batch_execute(messages).await.unwrap();
        assert_goes_stale(&sql, &mut cache, round, SOON).await;
        assert_alive(address, SOON);
    }
    world.settled(&sql).await;
}

/// What an info log says after `before` bytes of it.
fn said_since(daemon: &Daemon, before: usize) -> String {
    daemon.log().split_off(before)
}

async fn shop() -> World {
    let world = World::new().await;
    world.setup(RULES);
    world
}

fn at_info(world: &World) -> Daemon {
    let mut command = world.waltag("waltag", &["run", "--listen", "127.0.0.1:0"]);
    let daemon = world.start_at("info", &mut command);
    daemon.wait_until_resynced();
    daemon
}

#[tokio::test]
async fn messages_do_not_fill_the_log() {
    if outbox() {
        // There are no messages.
        return;
    }
    let world = shop().await;
    let daemon = at_info(&world);
    let before = daemon.log().len();
    flood(&world, &daemon.address()).await;
    let said = said_since(&daemon, before);
    let (lines, bytes) = (said.lines().count(), said.len());
    assert!(lines < 200 && bytes < 200_000, "20,500 messages made {lines} lines, {bytes} bytes of log");
    assert!(said.contains("prefix `waltag`"), "nobody is told: {said}");
}

/// Ended when dropped.
struct Deaf(Child);

impl Drop for Deaf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whoever reads the log has hung: that is no reason to hang, too.
#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    if outbox() {
        return;
    }
    let world = shop().await;
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let mut command = world.waltag("waltag", &["run", "--listen", &address]);
    let _deaf = Deaf(command.env("RUST_LOG", "info").stderr(Stdio::piped()).spawn().unwrap());
    until("it is ready", || async { get(&address, "/readyz", SOON).is_some_and(|(code, _)| code == 200) }).await;
    flood(&world, &address).await;
}

/// What stands in a message cannot pass for a line of the log, nor steer the terminal that shows it.
#[tokio::test]
async fn a_message_forges_no_line() {
    if outbox() {
        return;
    }
    let world = shop().await;
    let daemon = at_info(&world);
    let before = daemon.log().len();
    let mallory = mallory(&world).await;
    let message = |content: serde_json::Value| format!("SELECT pg_logical_emit_message(true, 'waltag', '{content}')");
    let odd = "no\nFORGED 2026-01-01T00:00:00Z  INFO ready\u{1b}[2J\r\u{9b}31m\u{202e}";
    for content in [
        serde_json::json!({"tags": ["x"], "cache": odd}),
        serde_json::json!({"tags": odd}),
        serde_json::json!({"tags": ["x"], "cache": [odd]}),
        serde_json::json!({odd: 1}),
    ] {
        mallory.batch_execute(&message(content)).await.unwrap();
        // One warning may stand for many.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    mallory.batch_execute("SELECT pg_logical_emit_message(true, 'waltag', E'\\nFORGED\\x1b[2J')").await.unwrap();
    world.settled(&world.sql().await).await;
    let said = said_since(&daemon, before);
    assert!(said.contains("prefix `waltag`"), "{said}");
    assert!(!said.lines().any(|line| line.starts_with("FORGED")), "a line is forged:\n{said}");
    let raw: Vec<char> = said.chars().filter(|&c| (c.is_control() && c != '\n') || c == '\u{202e}').collect();
    assert!(raw.is_empty(), "{raw:?} stand raw in {said:?}");
}

const BIG: &str = "CREATE TABLE big (id int PRIMARY KEY, n int, used text, spare text); \
    ALTER TABLE big REPLICA IDENTITY FULL; CREATE TABLE first_model (id int PRIMARY KEY, name text)";
const BIG_RULES: &str = r#"
version: 1
caches: { c: { url: "{redis}/1", dialect: keys } }
rules:
  - table: big
    tags: ["n:<n>", "used:<used>"]
  - table: first_model
    tags: ["FirstModel.pk:<id>"]
"#;

/// The change makes these records stale.
async fn makes_stale(sql: &Client, cache: &mut MultiplexedConnection, change: &str, keys: &[&str]) {
    for key in keys {
        fill(cache, key).await;
    }
    sql.batch_execute(change).await.unwrap();
    for key in keys {
        let fact = format!("{key} goes stale by {change}");
        until_within(Duration::from_secs(60), &fact, || is_gone(cache, key)).await;
    }
}

/// INSERT, UPDATE and DELETE of a row with 300 MB in it, old values included: it goes stale, and so does what follows. A value that
/// is too long for a tag goes by `unknown:`, which is the pattern.
async fn survives_big_rows(world: &World, daemon: &mut Daemon, column: &str) {
    let (sql, mut cache) = (world.sql().await, world.cache(1).await);
    let value = "repeat('x', 300000000)";
    let any = if column == "used" { &["used:7"][..] } else { &[] };
    for (change, keys) in [
        (format!("INSERT INTO big (id, n, {column}) VALUES (1, 1, {value})"), &["n:1"][..]),
        ("UPDATE big SET n = 2".into(), &["n:1", "n:2"]),
        (format!("UPDATE big SET n = 3, {column} = 'short'"), &["n:2", "n:3"]),
        (format!("UPDATE big SET {column} = {value}"), &["n:3"]),
        ("DELETE FROM big".into(), &["n:3"]),
    ] {
        makes_stale(&sql, &mut cache, &change, &[keys, any].concat()).await;
        assert!(daemon.child.try_wait().unwrap().is_none(), "it ended by {change}");
        println!("{column}: VmHWM {} MiB after {change}", mebibytes(daemon.child.id(), "VmHWM"));
    }
    makes_stale(&sql, &mut cache, "INSERT INTO big VALUES (2, 9, 'z')", &["n:9", "used:z"]).await;
    sql.batch_execute("DELETE FROM big").await.unwrap();
    assert_goes_stale(&sql, &mut cache, if column == "used" { 1 } else { 2 }, SOON).await;
    world.settled_within(&sql, Duration::from_secs(20)).await;
    assert_eq!(daemon.log().matches("streaming server").count(), 1, "{}", daemon.log());
}

/// With 64 MiB of memory beyond what it takes to start.
async fn with_little_memory() -> (World, Daemon) {
    let world = World::with("", BIG).await;
    world.setup(BIG_RULES);
    let daemon = world.daemon();
    let limit = mebibytes(daemon.child.id(), "VmPeak") + 64;
    println!("RLIMIT_AS {limit} MiB");
    daemon.stop();
    let daemon = world.start(&mut limited(&format!("-v {}", limit << 10), &world.waltag("waltag", &["run"])));
    daemon.wait_until_resynced();
    (world, daemon)
}

#[tokio::test]
async fn a_row_that_is_larger_than_memory_is_survived() {
    if outbox() {
        // Triggers write no such values down: `outbox.rs`.
        return;
    }
    let (world, mut daemon) = with_little_memory().await;
    for column in ["spare", "used"] {
        survives_big_rows(&world, &mut daemon, column).await;
    }
}

/// Any role can write them, without any table.
async fn survives_big_messages(world: &World, daemon: &mut Daemon) {
    let (mallory, sql, mut cache) = (mallory(world).await, world.sql().await, world.cache(1).await);
    for (id, kind) in ["true, 'waltag'", "false, 'waltag'", "true, 'other'", "false, 'other'"].into_iter().enumerate() {
        mallory
            .batch_execute(&format!("SELECT pg_logical_emit_message({kind}, repeat('x', 300000000))"))
            .await
            .unwrap();
        assert_goes_stale(&sql, &mut cache, 10 + id as i32, Duration::from_secs(60)).await;
        assert!(daemon.child.try_wait().unwrap().is_none(), "it ended by a message ({kind})");
        println!("VmHWM {} MiB after a message ({kind})", mebibytes(daemon.child.id(), "VmHWM"));
    }
    assert_eq!(daemon.log().matches("streaming server").count(), 1, "{}", daemon.log());
}

/// The same for messages.
#[tokio::test]
async fn a_message_that_is_larger_than_memory_is_survived() {
    if outbox() {
        return;
    }
    let (world, mut daemon) = with_little_memory().await;
    survives_big_messages(&world, &mut daemon).await;
    let peak = mebibytes(daemon.child.id(), "VmHWM");
    assert!(peak < 120, "VmHWM {peak} MiB");
}

#[tokio::test]
async fn a_big_row_takes_no_memory() {
    if outbox() {
        return;
    }
    let world = World::with("", BIG).await;
    world.setup(BIG_RULES);
    let mut daemon = world.daemon();
    for column in ["spare", "used"] {
        survives_big_rows(&world, &mut daemon, column).await;
    }
    let peak = mebibytes(daemon.child.id(), "VmHWM");
    assert!(peak < 120, "VmHWM {peak} MiB");
}

/// A Redis behind which a real one stands, until it is armed: the next command is answered by what `answer` writes.
struct Fake {
    port: u16,
    armed: Arc<AtomicBool>,
}

impl Fake {
    fn before(real: u16, answer: fn(&mut TcpStream) -> std::io::Result<()>) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, armed) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let arm = armed.clone();
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", real)) else { continue };
                let (mut back, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut back, &mut to));
                let arm = arm.clone();
                std::thread::spawn(move || {
                    let mut piece = [0; 65536];
                    while let Ok(length @ 1..) = client.read(&mut piece) {
                        if arm.swap(false, Ordering::Relaxed) {
                            let _ = answer(&mut client);
                            break;
                        }
                        if server.write_all(&piece[..length]).is_err() {
                            break;
                        }
                    }
                    let _ = (client.shutdown(std::net::Shutdown::Both), server.shutdown(std::net::Shutdown::Both));
                });
            }
        });
        Fake { port, armed }
    }
}

fn endless(client: &mut TcpStream, head: &[u8], piece: &[u8]) -> std::io::Result<()> {
    client.write_all(head)?;
    let (pieces, begin) = (piece.repeat((1 << 20) / piece.len()), Instant::now());
    while begin.elapsed() < Duration::from_secs(30) {
        client.write_all(&pieces)?;
    }
    Ok(())
}

/// What one Redis answers takes a bounded part of memory, and nothing from the other.
async fn answers_are_bounded(answer: fn(&mut TcpStream) -> std::io::Result<()>) {
    let (world, real) = (World::new().await, Redis::start(&[]).unwrap());
    let fake = Fake::before(real.port, answer);
    world.setup(&format!(
        "version: 1\ncaches:\n  good: {{ url: \"{{redis}}/1\", dialect: keys }}\n  bad: {{ url: \"redis://127.0.0.1:{}/0\", \
         dialect: keys, detach_after: 60s }}\nrules: [{{table: first_model, caches: [good, bad], tags: [\"FirstModel.pk:<id>\"]}}]\n",
        fake.port
    ));
    let daemon = world.watched();
    let (sql, mut good, pid) = (world.sql().await, world.cache(1).await, daemon.child.id());
    let mut bad = redis_at(&real.url(0)).await.unwrap();
    assert_goes_stale(&sql, &mut good, 1, SOON).await;
    world.settled(&sql).await;
    forget_peak(pid);
    fill(&mut bad, "FirstModel.pk:2").await;
    fake.armed.store(true, Ordering::Relaxed);
    let (begin, mut id, mut peak) = (Instant::now(), 2, 0);
    // Until the bad one has recovered.
    loop {
        assert_goes_stale(&sql, &mut good, id, SOON).await;
        peak = peak.max(mebibytes(pid, "VmHWM"));
        id += 1;
        let recovered = !fake.armed.load(Ordering::Relaxed) && is_gone(&bad, "FirstModel.pk:2").await;
        if recovered || peak > 2000 {
            break;
        }
        assert!(begin.elapsed() < LIMIT, "the bad cache never comes back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("VmHWM {peak} MiB after {:?}", begin.elapsed());
    assert!(peak < 200, "VmHWM {peak} MiB");
    assert_alive(&daemon.address(), SOON);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_text_from_redis_takes_no_memory() {
    answers_are_bounded(|client| endless(client, b"$2000000000\r\n", b"x")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_list_from_redis_takes_no_memory() {
    answers_are_bounded(|client| endless(client, b"*50000000\r\n", b"$-1\r\n")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_error_from_redis_takes_no_memory() {
    answers_are_bounded(|client| endless(client, b"-ERR ", b"x")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_in_lists_from_redis_take_no_memory() {
    answers_are_bounded(|client| endless(client, b"", b"*1000000000\r\n")).await;
}

/// What waltag asks the server within three seconds.
async fn queries(world: &World) -> usize {
    let count = || {
        world.postgres.log().matches("LOG:  statement:").count()
            + world.postgres.log().matches("LOG:  execute ").count()
    };
    let before = count();
    tokio::time::sleep(Duration::from_secs(3)).await;
    count() - before
}

/// Who waits for a position that no server has is told so, and costs no queries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_beyond_the_log_is_refused() {
    if outbox() {
        return;
    }
    let world = shop().await;
    let sql = world.sql().await;
    sql.batch_execute("ALTER ROLE waltag SET log_statement = 'all'").await.unwrap();
    let daemon = world.watched_with(&["--canary", "off"]);
    let address = daemon.address();
    daemon.readyz(200);
    let before = queries(&world).await;
    let gigabyte: String = sql.query_one("SELECT (pg_current_wal_lsn() + 1073741824)::text", &[]).await.unwrap().get(0);
    let mut wrong = Vec::new();
    for lsn in ["FFFFFFFF/FFFFFFFF", &gigabyte] {
        let (path, address) = (format!("/wait?lsn={lsn}&timeout=5s"), address.clone());
        let asked = std::thread::spawn(move || get(&address, &path, SOON * 2).map(|(code, _)| code));
        let during = queries(&world).await;
        let code = asked.join().unwrap();
        let after = queries(&world).await;
        println!("{lsn}: {code:?}; queries in 3 s: {before} before, {during} during, {after} after");
        if code != Some(400) || during.max(after) > before + 20 {
            wrong.push((lsn, code, during, after));
        }
    }
    // What is written and not flushed is not beyond.
    let now = "SET synchronous_commit = off; INSERT INTO first_model VALUES (1)";
    sql.batch_execute(now).await.unwrap();
    let lsn: String = sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
    assert_eq!(daemon.get(&format!("/wait?lsn={lsn}&timeout=5s")).0, 200);
    assert!(wrong.is_empty(), "{before} queries before; {wrong:?}");
}
