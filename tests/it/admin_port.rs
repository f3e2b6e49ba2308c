//! Whoever reaches the admin port: connections that do nothing, requests that never end, names and peers that have no
//! business there.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::attacks::{ask, assert_alive, get, goes_stale, limited, mebibytes, raise_file_limit, rest};
use crate::support::{Daemon, RULES, World, end_of_stream, fail, outbox, signal, succeed, until_within};

const PROMPTLY: Duration = Duration::from_secs(2);
/// After this a request that does not come to its end is ended.
const PATIENCE: Duration = Duration::from_secs(15);

/// `GET` with these lines in its head.
fn request(path: &str, head: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n")
}

fn code(address: &str, path: &str, head: &str) -> u16 {
    let answer = ask(address, &request(path, head), PROMPTLY);
    answer.unwrap_or_else(|| panic!("no answer to {path} with {head:?}")).0
}

/// 1,100 connections that say nothing, under the usual limit of 1,024 files: health is answered, both servers are found
/// again after they were away, and rules that were edited meanwhile are taken.
#[tokio::test]
async fn idle_connections_take_nothing_away() {
    raise_file_limit();
    let mut world = World::new().await;
    world.setup(RULES);
    let mut command = limited("-n 1024", &world.waltag("waltag", &["run"]));
    command.env("WALTAG_LISTEN", "127.0.0.1:0").env("STATE_DIRECTORY", world.directory.path());
    let daemon = world.start(&mut command);
    daemon.wait_until_resynced();
    let address = daemon.address();
    let sql = world.sql().await;
    let parsed = address.parse().unwrap();
    let idle: Vec<_> = (0..1100).map(|_| TcpStream::connect_timeout(&parsed, PROMPTLY)).collect();
    println!("{} are connected", idle.iter().filter(|stream| stream.is_ok()).count());
    let mut missing = Vec::new();
    if get(&address, "/livez", PROMPTLY).is_none() {
        missing.push("/livez does not answer");
    }
    let mut cache = world.cache(1).await;
    let limit = Duration::from_secs(20);
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec_async(&mut cache).await.unwrap();
    sql.batch_execute(end_of_stream()).await.unwrap();
    if !goes_stale(&sql, &mut cache, 1, limit).await {
        missing.push("nothing goes stale after both servers cut their connections");
    }
    // What was merely cut takes its own file again; what is away for a while has lost it.
    world.redis.kill();
    sql.batch_execute(end_of_stream()).await.unwrap();
    world.rules(
        &RULES.replace("  - table: first_model", "  - table: unrelated\n    tags: [\"u\"]\n  - table: first_model"),
    );
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.redis.launch().unwrap();
    let mut cache = world.cache(1).await;
    if !goes_stale(&sql, &mut cache, 2, limit).await {
        missing.push("nothing goes stale after both servers were away");
    }
    // Not published, so uncovered; but taken.
    let deadline = Instant::now() + limit;
    while !daemon.log().contains("rules reloaded") {
        if Instant::now() > deadline {
            missing.push("the edited rules are not taken");
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(idle);
    assert!(missing.is_empty(), "{missing:?}");
    assert_alive(&address, PROMPTLY);
}

/// Thousands wait at once: each is answered once it is stale, or refused at once; and their memory is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_who_wait_are_answered_and_forgotten() {
    const MANY: usize = 4000;
    raise_file_limit();
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched();
    let (address, sql, pid) = (daemon.address(), world.sql().await, daemon.child.id());
    daemon.readyz(200);
    let before = mebibytes(pid, "VmRSS");
    signal(world.redis.pid().unwrap(), "STOP");
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    let place = match outbox() {
        true => "SELECT 'snapshot=' || pg_current_snapshot()",
        false => "SELECT 'lsn=' || pg_current_wal_flush_lsn()",
    };
    let place: String = sql.query_one(place, &[]).await.unwrap().get(0);
    let asked = Arc::new(AtomicUsize::new(0));
    let wait = |asked: Arc<AtomicUsize>| {
        let (address, path) = (address.clone(), format!("/wait?{place}&timeout=60s"));
        tokio::spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            let request = request(&path, &format!("Host: {address}\r\n"));
            let _ = stream.write_all(request.as_bytes()).await;
            asked.fetch_add(1, Ordering::Relaxed);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            (String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned(), Instant::now())
        })
    };
    let waits: Vec<_> = (0..MANY).map(|_| wait(asked.clone())).collect();
    until_within(PATIENCE, "all have asked", || async { asked.load(Ordering::Relaxed) == MANY }).await;
    assert_alive(&address, PROMPTLY);
    println!("VmRSS {before} MiB, while all wait {} MiB", mebibytes(pid, "VmRSS"));
    signal(world.redis.pid().unwrap(), "CONT");
    let mut stale = 0;
    for wait in waits {
        let (code, _) = tokio::time::timeout(PATIENCE, wait).await.expect("all are answered").unwrap();
        match code.as_str() {
            "200" => stale += 1,
            // Refused; or, where all have come at once, sent away for those who came behind.
            "503" | "" => {}
            other => panic!("answered {other:?}"),
        }
    }
    assert!(stale > 0, "nobody was let in");
    until_within(Duration::from_secs(10), "memory is given back", || async { mebibytes(pid, "VmRSS") <= before + 16 })
        .await;
}

/// Requests that never come to an end are ended or refused, and health is answered beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_an_end_are_ended() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched();
    let address = daemon.address();
    type Attack = fn(&mut TcpStream) -> std::io::Result<()>;
    let pause = || std::thread::sleep(Duration::from_millis(100));
    let attacks: [(&str, Attack); 6] = [
        ("half a header", |stream| stream.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")),
        ("a header byte by byte", |stream| {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")?;
            (0..200).try_for_each(|_| {
                std::thread::sleep(Duration::from_millis(100));
                stream.write_all(b"x")
            })
        }),
        ("a header of a megabyte", |stream| {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")?;
            stream.write_all(&vec![b'x'; 1 << 20])
        }),
        ("a body of ten megabytes", |stream| {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000000\r\n\r\n")?;
            stream.write_all(&vec![b'x'; 9_999_999])
        }),
        ("a body without an end", |stream| {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            (0..200).try_for_each(|_| {
                std::thread::sleep(Duration::from_millis(100));
                stream.write_all(b"5\r\nhello\r\n")
            })
        }),
        ("half a body", |stream| {
            stream.write_all(b"POST /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nx")
        }),
    ];
    let running: Vec<_> = attacks
        .into_iter()
        .map(|(name, attack)| {
            let mut stream = TcpStream::connect(&address).unwrap();
            std::thread::spawn(move || {
                let begin = Instant::now();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                // It may be ended while it still talks; what counts is that nobody holds a connection.
                let _ = attack(&mut stream);
                let answer = rest(&mut stream, PATIENCE.saturating_sub(begin.elapsed()) + Duration::from_millis(1));
                (name, answer.map(|text| (text.lines().next().unwrap_or_default().to_owned(), begin.elapsed())))
            })
        })
        .collect();
    while running.iter().any(|attack| !attack.is_finished()) {
        assert_alive(&address, PROMPTLY);
        pause();
    }
    let outcomes: Vec<_> = running.into_iter().map(|attack| attack.join().unwrap()).collect();
    println!("{outcomes:?}");
    let held: Vec<&str> = outcomes
        .iter()
        .filter(|(_, end)| end.as_ref().is_none_or(|(_, at)| *at > PATIENCE))
        .map(|(name, _)| *name)
        .collect();
    assert!(held.is_empty(), "still open after {PATIENCE:?}: {held:?}");
}

const PATHS: [&str; 5] = ["/status", "/metrics", "/readyz", "/livez", "/wait?lsn=0/1"];

/// A page that names this machine by a name of its own (DNS rebinding) is told nothing.
#[tokio::test]
async fn only_names_of_this_machine_are_answered() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched();
    let address = daemon.address();
    let port = address.rsplit_once(':').unwrap().1;
    daemon.readyz(200);
    // An outbox has no positions: that is said, and nothing else.
    let fine = |code: u16| code == 200 || (outbox() && code == 400);
    for path in PATHS {
        for host in ["127.0.0.1", "[::1]", "localhost", "LocalHost", "10.1.2.3", "192.0.2.7", "[2001:db8::1]"] {
            for host in [host.to_owned(), format!("{host}:{port}")] {
                let code = code(&address, path, &format!("Host: {host}\r\n"));
                assert!(fine(code), "{path} of {host}: {code}");
            }
        }
    }
    assert_eq!(daemon.get("/livez").0, 200, "HTTP/1.0 names no host");
    for path in PATHS {
        for host in [
            "attacker.example",
            "localhost.attacker.example",
            "127.0.0.1.attacker.example",
            "a.example",
            "attacker.example:80@127.0.0.1",
            "127.0.0.1 attacker.example",
        ] {
            let (code, answer) = ask(&address, &request(path, &format!("Host: {host}\r\n")), PROMPTLY).unwrap();
            let refused = code == 403 || (code == 400 && host.contains([' ', '@']));
            assert!(refused && !answer.contains("ready"), "{path} of {host}: {answer}");
        }
        let code = code(&address, path, "");
        assert_eq!(code, 400, "{path} without a host");
        // By other ways to say it.
        for odd in [
            format!("GET {path} HTTP/1.0\r\nHost: attacker.example\r\n\r\n"),
            format!("GET http://attacker.example{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
            request(path, "Host: attacker.example\r\nHost: localhost\r\n"),
            request(path, "Host: localhost\r\nHost: attacker.example\r\n"),
        ] {
            let (code, answer) = ask(&address, &odd, PROMPTLY).unwrap();
            assert!(matches!(code, 400 | 403), "{odd:?}: {answer}");
        }
    }
    drop(daemon);
    for by_flag in [true, false] {
        let mut command =
            world.waltag("waltag", if by_flag { &["--listen-hosts", "a.example,b.example"] } else { &[] });
        command.env("WALTAG_LISTEN", "127.0.0.1:0");
        if !by_flag {
            command.env("WALTAG_LISTEN_HOSTS", "a.example,b.example");
        }
        let daemon = world.start(command.arg("run"));
        daemon.wait_until_resynced();
        let address = daemon.address();
        for (host, expected) in [("a.example", 200), ("B.example:1", 200), ("localhost", 200), ("c.a.example", 403)] {
            assert_eq!(code(&address, "/livez", &format!("Host: {host}\r\n")), expected, "{host}");
        }
    }
}

/// An address of this machine by which it is a stranger to itself.
fn other_address() -> Option<String> {
    let all = Command::new("hostname").arg("-I").output().ok()?.stdout;
    String::from_utf8(all).ok()?.split_whitespace().find(|address| address.contains('.')).map(str::to_owned)
}

fn at(address: &str, daemon: &Daemon) -> String {
    format!("{address}:{}", daemon.address().rsplit_once(':').unwrap().1)
}

/// Who is not on this machine learns whether it lives and is ready, and not why.
#[tokio::test]
async fn strangers_are_told_no_details() {
    let Some(other) = other_address() else { return };
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched_with(&["--listen", "0.0.0.0:0"]);
    daemon.readyz(200);
    let (far, near) = (at(&other, &daemon), at("127.0.0.1", &daemon));
    let (code, body) = get(&far, "/readyz", PROMPTLY).unwrap();
    assert!(code == 200 && !body.contains("reasons"), "{body}");
    assert_alive(&far, PROMPTLY);
    for path in ["/status", "/metrics", "/wait?lsn=0/1"] {
        let (code, body) = get(&far, path, PROMPTLY).unwrap();
        assert!(code == 403 && body.contains("listen-token"), "{path}: {body}");
        assert_ne!(get(&near, path, PROMPTLY).unwrap().0, 403, "{path}");
    }
    world.rules("version: 1\nrules: [{table: a-secret-name, tgas: []}]");
    let near_body = daemon.readyz(503);
    assert!(near_body.contains("tgas"), "{near_body}");
    let (code, body) = get(&far, "/readyz", PROMPTLY).unwrap();
    assert!(code == 503 && !body.contains("reasons") && !body.contains("tgas"), "{body}");
}

/// With the token they are told everything.
#[tokio::test]
async fn strangers_with_the_token_are_told() {
    let Some(other) = other_address() else { return };
    let world = World::new().await;
    world.setup(RULES);
    let file = world.directory.path().join("token");
    std::fs::write(&file, "tok-marker\n").unwrap();
    let path = file.display().to_string();
    let flag = ["--listen-token-file", &path];
    for (arguments, variable, value) in [
        (&flag[..], "NONE", ""),
        (&[], "WALTAG_LISTEN_TOKEN_FILE", path.as_str()),
        (&[], "WALTAG_LISTEN_TOKEN", "tok-marker"),
    ] {
        succeed(world.waltag("waltag", &[&["check"], arguments].concat()).env(variable, value));
        let mut command = world.waltag("waltag", &[&["run"], arguments].concat());
        let daemon = world.start(command.env("WALTAG_LISTEN", "0.0.0.0:0").env(variable, value));
        daemon.wait_until_resynced();
        let (far, near) = (at(&other, &daemon), at("127.0.0.1", &daemon));
        for path in ["/status", "/metrics"] {
            let code = |head: &str| code(&far, path, &format!("Host: {far}\r\n{head}"));
            for wrong in
                ["", "Bearer", "Bearer ", "Bearer tok-marke", "Bearer tok-marker2", "Basic tok-marker", "tok-marker"]
            {
                let head = if wrong.is_empty() { String::new() } else { format!("Authorization: {wrong}\r\n") };
                assert_eq!(code(&head), 401, "{path} with {wrong:?}");
            }
            assert_eq!(code("Authorization: Bearer tok-marker\r\n"), 200, "{path}");
            assert_eq!(get(&near, path, PROMPTLY).unwrap().0, 200, "{path} from this machine");
        }
        let (_, ready) =
            ask(&far, &request("/readyz", &format!("Host: {far}\r\nAuthorization: Bearer tok-marker\r\n")), PROMPTLY)
                .unwrap();
        assert!(ready.contains("\"reasons\":[]"), "{ready}");
        let said = [daemon.log(), get(&near, "/status", PROMPTLY).unwrap().1].concat();
        assert!(!said.contains("tok-marker"), "{said}");
    }
    // None is no token.
    std::fs::write(&file, "\n").unwrap();
    let said = fail(&mut world.waltag("waltag", &["check", "--listen-token-file", &path]), 78);
    assert!(said.contains("token"), "{said}");
}

/// Nothing can be changed by a request.
#[tokio::test]
async fn nothing_but_get() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched();
    for path in PATHS {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            assert_eq!(ask(&daemon.address(), &request, PROMPTLY).unwrap().0, 405, "{method} {path}");
        }
    }
}
