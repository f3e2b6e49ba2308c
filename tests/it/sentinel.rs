//! A Redis that fails over: its Sentinels say who the master is, and replicas may be waited for.

use std::fmt::Write;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use waltag::demo::servers::{Redis, free_port, private_directory};

use crate::support::{Daemon, World, fail, fill, is_gone, redis_at, signal, succeed, unconfirmed, until};

const RULES: &str = r#"{version: 1, caches: {c: {url: "{sentinels}", dialect: keys}},
  rules: [{table: first_model, tags: ["user:<id>"]}]}"#;

/// One Sentinel; ended when dropped.
struct Sentinel {
    port: u16,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Sentinel {
    fn start(master: u16, quorum: usize, settings: &str) -> Sentinel {
        let (directory, port) = (private_directory().unwrap(), free_port().unwrap());
        let file = directory.path().join("sentinel.conf");
        let mut text = format!("port {port}\nbind 127.0.0.1\ndir {}\n", directory.path().display());
        writeln!(text, "sentinel monitor main 127.0.0.1 {master} {quorum}").unwrap();
        writeln!(text, "sentinel down-after-milliseconds main 60000\nsentinel failover-timeout main 5000").unwrap();
        std::fs::write(&file, text + settings).unwrap();
        let mut server = Command::new("redis-server");
        let child = server.arg(file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Sentinel { port, child, _directory: directory }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A master, its replica, and who watches them.
struct Watched {
    nodes: [Redis; 2],
    sentinels: Vec<Sentinel>,
}

/// The database of the cache.
async fn cache(port: u16) -> MultiplexedConnection {
    redis_at(&format!("redis://127.0.0.1:{port}/1")).await.unwrap()
}

async fn ask<T: redis::FromRedisValue>(port: u16, command: &str) -> Option<T> {
    let mut words = command.split(' ');
    let mut packed = redis::cmd(words.next()?);
    words.for_each(|word| {
        packed.arg(word);
    });
    packed.query_async(&mut redis_at(&format!("redis://127.0.0.1:{port}")).await.ok()?).await.ok()
}

impl Watched {
    async fn new(sentinels: usize) -> Watched {
        let master = Redis::start(&["--repl-diskless-sync-delay", "0"]).unwrap();
        let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]).unwrap();
        let up = async || {
            let info: Option<String> = ask(replica.port, "INFO replication").await;
            info.is_some_and(|info| info.contains("master_link_status:up"))
        };
        until("the replica follows", up).await;
        let sentinels: Vec<_> =
            (0..sentinels).map(|_| Sentinel::start(master.port, sentinels.div_ceil(2), "")).collect();
        for sentinel in &sentinels {
            until("the Sentinels know each other, and the replica", || async {
                let quorum: Option<String> = ask(sentinel.port, "SENTINEL CKQUORUM main").await;
                let entry: Option<Vec<String>> = ask(sentinel.port, "SENTINEL MASTER main").await;
                let count = |name: &str| {
                    let entry = entry.as_ref()?;
                    entry.iter().skip_while(|field| *field != name).nth(1)?.parse::<usize>().ok()
                };
                let known = (count("num-slaves"), count("num-other-sentinels"));
                quorum.is_some() && known == (Some(1), Some(sentinels.len() - 1))
            })
            .await;
        }
        Watched { nodes: [master, replica], sentinels }
    }

    fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis+sentinel://{}/main/1", hosts.join(","))
    }

    /// A world whose cache this is.
    async fn world(&self) -> (World, Daemon) {
        let world = World::new().await;
        world.setup(&RULES.replace("{sentinels}", &self.url()));
        world.sql().await.batch_execute("INSERT INTO first_model VALUES (1, ''), (2, '')").await.unwrap();
        let daemon = world.watched();
        daemon.readyz(200);
        world.settled(&world.sql().await).await;
        (world, daemon)
    }

    /// Waits until every Sentinel names the replica.
    async fn failed_over(&self) {
        let port = self.nodes[1].port.to_string();
        // Until now a master that is late was not to be left.
        for sentinel in &self.sentinels {
            let _: Option<String> = ask(sentinel.port, "SENTINEL SET main down-after-milliseconds 500").await;
        }
        for sentinel in &self.sentinels {
            // One that was stalled for 2 s itself trusts nothing for 30 s (TILT).
            until("the Sentinel names the other one", || async {
                let named: Option<Vec<String>> = ask(sentinel.port, "SENTINEL GET-MASTER-ADDR-BY-NAME main").await;
                named.is_some_and(|named| named.get(1) == Some(&port))
            })
            .await;
        }
        until("it is the master", || async {
            let role: Option<String> = ask(self.nodes[1].port, "INFO replication").await;
            role.is_some_and(|role| role.contains("role:master"))
        })
        .await;
    }
}

async fn goes_stale(world: &World, server: u16, id: u8) {
    let (sql, mut cache) = (world.sql().await, cache(server).await);
    let key = format!("user:{id}");
    fill(&mut cache, &key).await;
    fill(&mut cache, "other").await;
    sql.batch_execute(&format!("UPDATE first_model SET name = name || 'x' WHERE id = {id}")).await.unwrap();
    until("it is stale", || is_gone(&cache, &key)).await;
    assert!(!is_gone(&cache, "other").await);
}

#[tokio::test]
async fn the_master_is_killed() {
    let mut watched = Watched::new(3).await;
    let (world, daemon) = watched.world().await;
    goes_stale(&world, watched.nodes[0].port, 1).await;
    world.settled(&world.sql().await).await;
    watched.nodes[0].kill();
    watched.failed_over().await;
    daemon.wait_for_count("cache claimed", 2);
    goes_stale(&world, watched.nodes[1].port, 1).await;
    world.settled(&world.sql().await).await;
    assert!(succeed(&mut world.waltag("waltag", &["invalidate", "other"])).contains("1 tag"));
    assert!(is_gone(&cache(watched.nodes[1].port).await, "other").await);
}

/// A master that was taken for dead lives on and takes writes, but no reader asks it any more.
#[tokio::test]
async fn a_deposed_master_is_left() {
    let watched = Watched::new(3).await;
    let (world, daemon) = watched.world().await;
    // No Sentinel can make it a replica.
    let master = watched.nodes[0].port;
    let _: String = ask(master, "ACL SETUSER default -slaveof -replicaof").await.unwrap();
    signal(watched.nodes[0].pid().unwrap(), "STOP");
    watched.failed_over().await;
    signal(watched.nodes[0].pid().unwrap(), "CONT");
    goes_stale(&world, watched.nodes[1].port, 1).await;
    daemon.wait_for_count("cache claimed", 2);
    let role: String = ask(master, "INFO replication").await.unwrap();
    assert!(role.contains("role:master"), "{role}");
}

/// The replica that takes over has not heard of the last invalidations.
#[tokio::test]
async fn a_replica_that_is_behind_takes_over() {
    let mut watched = Watched::new(1).await;
    let (world, daemon) = watched.world().await;
    let (master, replica) = (watched.nodes[0].port, watched.nodes[1].port);
    fill(&mut cache(master).await, "user:1").await;
    until("it is on the replica", || async { !is_gone(&cache(replica).await, "user:1").await }).await;
    signal(watched.nodes[1].pid().unwrap(), "STOP");
    let _: Option<i64> = ask(master, "CLIENT KILL TYPE replica").await;
    let sql = world.sql().await;
    sql.batch_execute("UPDATE first_model SET name = 'x' WHERE id = 1").await.unwrap();
    world.settled(&sql).await;
    watched.nodes[0].kill();
    signal(watched.nodes[1].pid().unwrap(), "CONT");
    watched.failed_over().await;
    daemon.wait_for("lost writes");
    until("what came back is stale", || async { is_gone(&cache(replica).await, "user:1").await }).await;
}

#[tokio::test]
async fn what_sentinels_refuse_is_told() {
    let redis = Redis::start(&[]).unwrap();
    let sentinel = Sentinel::start(redis.port, 1, "requirepass s3cret\n");
    let world = World::new().await;
    let invalidate = |name: &str, options: &str| {
        let url = format!("redis+sentinel://127.0.0.1:{}/{name}", sentinel.port);
        world.rules(&RULES.replace("\"{sentinels}\"", &format!("\"{url}\"{options}")));
        world.waltag("waltag", &["invalidate", "x"])
    };
    until("the Sentinel listens", || async { TcpStream::connect(("127.0.0.1", sentinel.port)).is_ok() }).await;
    let said = fail(&mut invalidate("main", ""), 69);
    assert!(said.contains("do not let us ask") && said.contains("`sentinel_password`"), "{said}");
    let said = fail(&mut invalidate("other", ", sentinel_password: s3cret"), 69);
    assert!(said.contains("watch no master called `other`") && !said.contains("s3cret"), "{said}");
    succeed(&mut invalidate("main", ", sentinel_password: s3cret"));
    let _: String = ask(redis.port, "REPLICAOF 127.0.0.1 1").await.unwrap();
    let said = fail(&mut invalidate("main", ", sentinel_password: s3cret"), 69);
    assert!(said.contains("is a replica: a failover is under way"), "{said}");
    world.rules(&RULES.replace("\"{sentinels}\"", "'redis://h', sentinel_username: u"));
    let said = fail(&mut world.waltag("waltag", &["check"]), 65);
    assert!(said.contains("no Sentinels in this `url`"), "{said}");
}

/// `wait_replicas`: what no replica has is not confirmed, and goes stale on the master all the same.
#[tokio::test]
async fn replicas_are_waited_for() {
    let watched = Watched::new(0).await;
    let [master, replica] = &watched.nodes;
    let world = World::new().await;
    let rules = |rest: &str| {
        RULES.replace("\"{sentinels}\"", &format!("'{}', wait_replicas: 1, repeat: []{rest}", master.url(1)))
    };
    world.setup(&rules(""));
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (1, ''), (2, '')").await.unwrap();
    let daemon = world.watched();
    goes_stale(&world, master.port, 1).await;
    world.settled(&sql).await;
    signal(replica.pid().unwrap(), "STOP");
    goes_stale(&world, master.port, 1).await;
    goes_stale(&world, master.port, 2).await;
    let body = daemon.readyz(503);
    assert!(body.contains("0 of the 1 replicas of Redis in `wait_replicas`"), "{body}");
    daemon.wait_for("too few replicas of Redis");
    assert!(sql.query_one(unconfirmed(), &[]).await.unwrap().get::<_, bool>(0));
    signal(replica.pid().unwrap(), "CONT");
    daemon.readyz(200);
    world.settled(&sql).await;
    assert_eq!(daemon.stop(), Some(0));

    // For as long as an absent cache may hold up the others; then it goes on, loudly.
    world.rules(&rules(", detach_after: 1s"));
    let daemon = world.watched();
    daemon.readyz(200);
    world.settled(&sql).await;
    signal(replica.pid().unwrap(), "STOP");
    goes_stale(&world, master.port, 1).await;
    world.settled(&sql).await;
    daemon.readyz(503);
    // Whoever no longer wants to wait is ready at once.
    world.rules(&rules("").replace("wait_replicas: 1", "wait_replicas: 0"));
    daemon.readyz(200);
    signal(replica.pid().unwrap(), "CONT");
    assert!(!daemon.log().contains("resync"), "{}", daemon.log());
}
