//! A Redis dies between an answer and the marker behind it, and a replica takes over that has the marker of before, but not what was answered: nobody
//! can tell by looking, so it is done again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use waltag::demo::servers::Redis;

use crate::support::{World, fill, is_gone, redis_at, signal, until};

/// Stands between the daemon and a Redis.
struct Proxy {
    port: u16,
    target: Arc<AtomicU16>,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    /// The next UNLINK is held up.
    Armed,
    /// There it is.
    Held,
    /// It goes through with its answer. What comes now is lost.
    Cut,
}

impl Proxy {
    /// `keeps`: those that are connected to it do not notice a failover; what they say meanwhile goes to the new server.
    async fn start(target: u16, keeps: bool) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, state) = (Arc::new(AtomicU16::new(target)), watch::channel(State::Open).0);
        let (place, states) = (target.clone(), state.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", place.load(Ordering::Relaxed))).await {
                    tokio::spawn(relay(client, server, states.clone(), keeps.then(|| place.clone())));
                }
            }
        });
        Proxy { port, target, state }
    }
}

async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    state: watch::Sender<State>,
    next: Option<Arc<AtomicU16>>,
) {
    let (mut asked, mut told) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let (mut states, mut gone) = (state.subscribe(), false);
    let (mut ours, mut lost, mut late) = (false, false, Vec::new());
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                let now = *state.borrow();
                if matches!(now, State::Held | State::Cut) {
                    match next {
                        Some(_) => late.extend_from_slice(&asked[..length]),
                        None => lost = true,
                    }
                    continue;
                }
                if now == State::Armed && asked[..length].windows(6).any(|window| window == b"UNLINK") {
                    ours = true;
                    state.send_replace(State::Held);
                    while *states.borrow() != State::Cut {
                        states.changed().await.unwrap();
                    }
                }
                if server.write_all(&asked[..length]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut told), if !gone => {
                let Ok(length @ 1..) = read else {
                    if next.is_none() {
                        return;
                    }
                    gone = true;
                    continue;
                };
                // A question that came too late has no answer.
                if (lost && !ours) || client.write_all(&told[..length]).await.is_err() {
                    return;
                }
            }
            // The failover is over: whoever was connected before is not any more.
            _ = states.changed() => {
                if *states.borrow() == State::Open {
                    let Some(next) = &next else { return };
                    server = TcpStream::connect(("127.0.0.1", next.load(Ordering::Relaxed))).await.unwrap();
                    gone = false;
                    server.write_all(&std::mem::take(&mut late)).await.unwrap();
                }
            }
        }
    }
}

/// A master behind a proxy, and its replica.
struct Pair {
    proxy: Proxy,
    nodes: [Redis; 2],
}

impl Pair {
    async fn new(keeps: bool) -> Pair {
        let master = Redis::start(&["--repl-diskless-sync-delay", "0"]).unwrap();
        let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]).unwrap();
        let pair = Pair { proxy: Proxy::start(master.port, keeps).await, nodes: [master, replica] };
        until("the replica follows", || async {
            let info: String = pair.run(1, &["INFO", "replication"]).await;
            info.contains("master_link_status:up")
        })
        .await;
        pair
    }

    async fn run<T: redis::FromRedisValue>(&self, node: usize, command: &[&str]) -> T {
        let mut connection = redis_at(&self.nodes[node].url(0)).await.unwrap();
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await.unwrap()
    }

    async fn is_gone(&self, node: usize, key: &str) -> bool {
        is_gone(&redis_at(&self.nodes[node].url(0)).await.unwrap(), key).await
    }

    /// Caches a record, on the replica as well.
    async fn fill(&self, key: &str) {
        fill(&mut redis_at(&self.nodes[0].url(0)).await.unwrap(), key).await;
        until("the replica has it", || async { !self.is_gone(1, key).await }).await;
    }

    /// Waits for the next UNLINK, which the replica does not hear of, and lets it take over.
    async fn fail_over(&mut self) {
        until("an UNLINK is sent", || async { *self.proxy.state.borrow() == State::Held }).await;
        signal(self.nodes[1].pid().unwrap(), "STOP");
        let _: i64 = self.run(0, &["CLIENT", "KILL", "TYPE", "replica"]).await;
        self.proxy.state.send_replace(State::Cut);
        until("it was done", || async { self.is_gone(0, "user:1").await }).await;
        self.nodes[0].kill();
        signal(self.nodes[1].pid().unwrap(), "CONT");
        let _: String = self.run(1, &["REPLICAOF", "NO", "ONE"]).await;
        assert!(!self.is_gone(1, "user:1").await, "it was lost");
        self.proxy.target.store(self.nodes[1].port, Ordering::Relaxed);
        self.proxy.state.send_replace(State::Open);
    }
}

/// On two threads: the proxy works while the test waits for the daemon.
async fn failover(change: &str, repeat: &str, at_the_repeat: bool, keeps: bool) {
    let mut pair = Pair::new(keeps).await;
    if keeps {
        // It was the master before, and knows the script.
        let _: String = pair.run(1, &["SCRIPT", "LOAD", waltag::cache::marker::COMPARE_AND_SET]).await;
    }
    let world = World::new().await;
    world.setup(&format!(
        r#"{{version: 1, caches: {{c: {{url: "redis://127.0.0.1:{}", dialect: keys, repeat: {repeat}}}}},
            rules: [{{table: first_model, tags: ["user:<id>"]}}]}}"#,
        pair.proxy.port
    ));
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (1, 'a')").await.unwrap();
    let daemon = world.daemon();
    world.settled(&sql).await;
    pair.fill("user:1").await;
    if at_the_repeat {
        sql.batch_execute(change).await.unwrap();
        until("the first pass", || pair.is_gone(1, "user:1")).await;
        pair.fill("user:1").await;
        pair.proxy.state.send_replace(State::Armed);
    } else {
        pair.proxy.state.send_replace(State::Armed);
        sql.batch_execute(change).await.unwrap();
    }
    pair.fail_over().await;
    let gone = async || pair.is_gone(1, "user:1").await;
    until("it is done again", gone).await;
    world.settled(&sql).await;
    // Now and then a marker is on its way together with that UNLINK; then the replica lacks both, and that is a gap.
    println!("the marker told of it: {}", daemon.log().contains("lost writes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_pass_without_repeats() {
    failover("UPDATE first_model SET name = 'b'", "[]", false, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_repeat() {
    failover("UPDATE first_model SET name = 'b'", "[5s]", true, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep() {
    failover("TRUNCATE first_model", "[]", false, false).await;
}

/// A proxy keeps its clients' connections over the failover, and the new master has the marker of before: the next one is written there, and was
/// taken for the proof of what the old one had answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_proxy_that_tells_nobody() {
    failover("UPDATE first_model SET name = 'b'", "[]", false, true).await;
}
