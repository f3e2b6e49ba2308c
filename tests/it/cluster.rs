//! A Redis Cluster: three masters, every key where its slot is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use waltag::demo::servers::{Redis, free_port};

use crate::support::{Daemon, World, fail, is_gone, redis_at, signal, succeed, until};

const RULES: &str = r#"{version: 1, caches: {
    c: {url: "{cluster}", dialect: keys}, m: {url: "{cluster}", dialect: set, tag_prefix: "tag:", prefix: "record:"}},
  rules: [{table: first_model, tags: ["user:<id>"], caches: [c, m]}]}"#;

/// Private servers that make up one Cluster.
pub struct Cluster {
    pub nodes: Vec<Redis>,
    buses: Vec<u16>,
}

impl Cluster {
    /// Three masters, and replicas of the first.
    pub async fn new(replicas: usize) -> Cluster {
        let (mut nodes, mut buses) = (Vec::new(), Vec::new());
        for _ in 0..3 + replicas {
            // 10,000 above a port there may be none.
            let bus = free_port().unwrap();
            let settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port"];
            nodes.push(Redis::start(&[settings.as_slice(), &[&bus.to_string()]].concat()).unwrap());
            buses.push(bus);
        }
        let cluster = Cluster { nodes, buses };
        for (index, (first, last)) in [(0, 5_460), (5_461, 10_922), (10_923, 16_383)].into_iter().enumerate() {
            cluster.run(index, &format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
        }
        for (node, bus) in cluster.nodes.iter().zip(&cluster.buses).skip(1) {
            cluster.run(0, &format!("CLUSTER MEET 127.0.0.1 {} {bus}", node.port)).await;
        }
        let all = format!("cluster_known_nodes:{}", cluster.nodes.len());
        for index in 0..cluster.nodes.len() {
            cluster.knows(index, "CLUSTER INFO", &all).await;
        }
        let first = cluster.id(0).await;
        for index in 3..cluster.nodes.len() {
            // A node that is being met has another name.
            cluster.knows(index, "CLUSTER NODES", &first).await;
            cluster.run(index, &format!("CLUSTER REPLICATE {first}")).await;
            cluster.knows(index, "INFO replication", "master_link_status:up").await;
        }
        for index in 0..cluster.nodes.len() {
            cluster.knows(index, "CLUSTER INFO", "cluster_state:ok").await;
        }
        // They find each other fast with a short one. From now on nobody fails but by our hand.
        for index in 0..cluster.nodes.len() {
            cluster.run(index, "CONFIG SET cluster-node-timeout 60000").await;
        }
        cluster
    }

    pub async fn node(&self, index: usize) -> MultiplexedConnection {
        redis_at(&self.nodes[index].url(0)).await.unwrap()
    }

    async fn run(&self, index: usize, command: &str) -> String {
        let mut words = command.split(' ');
        let mut packed = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            packed.arg(word);
        });
        let answer: redis::Value =
            packed.query_async(&mut self.node(index).await).await.unwrap_or_else(|error| panic!("{command}: {error}"));
        redis::from_redis_value_ref(&answer).unwrap_or_default()
    }

    async fn knows(&self, index: usize, command: &str, text: &str) {
        until(text, || async { self.run(index, command).await.contains(text) }).await;
    }

    async fn id(&self, index: usize) -> String {
        self.run(index, "CLUSTER MYID").await
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// The node that has a key's slot.
    pub async fn of(&self, key: &str) -> usize {
        first_owner(self.run(0, &format!("CLUSTER KEYSLOT {key}")).await.parse().unwrap())
    }

    pub async fn set(&self, key: &str) {
        self.run(self.of(key).await, &format!("SET {key} cached")).await;
    }

    /// Keys that are there, without the markers.
    async fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        for index in 0..3 {
            let own: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut self.node(index).await).await.unwrap();
            keys.extend(own.into_iter().filter(|key| !key.starts_with("waltag:")));
        }
        keys.sort();
        keys
    }
}

/// The node that has a slot before any moves.
fn first_owner(slot: usize) -> usize {
    [5_461, 10_923, 16_384].into_iter().position(|end| slot < end).unwrap()
}

/// A world with a Cluster, its rules and a daemon whose first resync is over.
async fn settled(rules: &str, replicas: usize) -> (World, Cluster, Daemon) {
    let (world, cluster) = (World::new().await, Cluster::new(replicas).await);
    world.setup(&rules.replace("{cluster}", &cluster.url()));
    world
        .sql()
        .await
        .batch_execute("INSERT INTO first_model SELECT n, '' FROM generate_series(1, 300) n")
        .await
        .unwrap();
    let daemon = world.watched();
    daemon.readyz(200);
    (world, cluster, daemon)
}

#[tokio::test]
async fn tags_go_stale_on_every_master() {
    let (world, cluster, _daemon) = settled(RULES, 0).await;
    let sql = world.sql().await;
    for id in 1..=300 {
        cluster.set(&format!("user:{id}")).await;
    }
    cluster.set("other").await;
    // The set of a tag and its records are on different nodes.
    for record in ["a", "b", "c", "d"] {
        cluster.set(&format!("record:{record}")).await;
        cluster.run(cluster.of("tag:user:7").await, &format!("SADD tag:user:7 {record}")).await;
    }
    sql.batch_execute("UPDATE first_model SET name = 'x'").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(
        cluster.keys().await,
        ["other", "tag:user:7"],
        "the links stay: one that goes by itself could orphan a record"
    );

    for id in 1..=300 {
        cluster.set(&format!("user:{id}")).await;
    }
    for record in ["a", "b", "c", "d"] {
        cluster.set(&format!("record:{record}")).await;
    }
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(cluster.keys().await, ["other", "tag:user:7"], "a sweep looks at every master");
    let output = succeed(&mut world.waltag("waltag", &["invalidate", "--cache", "c", "other"]));
    assert!(output.contains("1 tag"), "{output}");
    assert_eq!(cluster.keys().await, ["tag:user:7"]);
    let detected = succeed(&mut world.waltag("waltag", &["detect", &cluster.url()]));
    assert!(detected.contains("caches:"), "{detected}");
}

/// Each master has a witness of its own: what stands on another says nothing of it.
#[tokio::test]
async fn a_master_that_lost_writes_is_a_gap() {
    for emptied in 0..3 {
        let (_world, cluster, daemon) = settled(RULES, 0).await;
        cluster.run(emptied, "FLUSHALL").await;
        daemon.wait_for("this Redis was emptied or lost writes");
        // Both caches, and before that the first start of each.
        daemon.wait_for_count("resync complete", 4);
    }
}

/// An ordinary restart is none, and what did not change stays cached.
#[tokio::test]
async fn a_restart_is_no_gap() {
    let (world, cluster, daemon) = settled(RULES, 0).await;
    for id in 1..=50 {
        cluster.set(&format!("user:{id}")).await;
    }
    world.settled(&world.sql().await).await;
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.watched();
    daemon.readyz(200);
    assert!(!daemon.log().contains("resync"), "{}", daemon.log());
    assert_eq!(cluster.keys().await.len(), 50);
}

/// A slot on its way: keys that have left answer ASK, after it has arrived MOVED. Nothing is missed, nothing is swept.
#[tokio::test]
async fn slots_move_under_the_daemon() {
    let (world, cluster, daemon) = settled(RULES, 0).await;
    let sql = world.sql().await;
    let key = "user:42";
    let slot = cluster.run(0, &format!("CLUSTER KEYSLOT {key}")).await;
    let from = cluster.of(key).await;
    let to = (from + 1) % 3;
    let (source, target) = (cluster.id(from).await, cluster.id(to).await);
    cluster.set(key).await;
    cluster.run(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {source}")).await;
    cluster.run(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {target}")).await;
    cluster.run(from, &format!("MIGRATE 127.0.0.1 {} {key} 0 5000", cluster.nodes[to].port)).await;
    assert_eq!(cluster.keys().await, [key]);
    sql.batch_execute("UPDATE first_model SET name = 'asked' WHERE id = 42").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(cluster.keys().await, [""; 0], "while it moves");

    for index in [to, from, 3 - to - from] {
        cluster.run(index, &format!("CLUSTER SETSLOT {slot} NODE {target}")).await;
    }
    cluster.run(to, &format!("SET {key} cached")).await;
    sql.batch_execute("UPDATE first_model SET name = 'moved' WHERE id = 42").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(cluster.keys().await, [""; 0], "after it has moved");
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(daemon.log().matches("resync complete").count(), 2, "those of the start\n{}", daemon.log());
}

/// A key that leaves a master before the sweep comes there, for one that it has done: the slot is looked at on both, and only the slot.
#[tokio::test]
async fn a_slot_on_its_way_is_looked_at_on_both_masters() {
    let (world, cluster, _daemon) = settled(RULES, 0).await;
    let sql = world.sql().await;
    let slot = cluster.run(0, "CLUSTER KEYSLOT user:42").await;
    let from = cluster.of("user:42").await;
    let to = (from + 1) % 3;
    let (source, target) = (cluster.id(from).await, cluster.id(to).await);
    let keys = ["user:42", "{user:42}"];
    for key in keys {
        cluster.run(from, &format!("SET {key} cached")).await;
    }
    cluster.run(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {source}")).await;
    cluster.run(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {target}")).await;
    cluster.run(from, &format!("MIGRATE 127.0.0.1 {} {} 0 5000", cluster.nodes[to].port, keys[0])).await;
    let calls = async |node: usize, command: &str| -> u64 {
        let info = cluster.run(node, "INFO commandstats").await;
        let calls = info.split(&format!("cmdstat_{command}:calls=")).nth(1);
        calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    };
    let mut before = Vec::new();
    for node in [from, to] {
        before.push((calls(node, "scan").await, calls(node, "cluster|countkeysinslot").await));
    }
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(cluster.keys().await, [keys[1]], "no rule makes this one");
    for (node, (scans, counts)) in [from, to].into_iter().zip(before) {
        // A sweep whose connection broke begins anew.
        let scans = calls(node, "scan").await - scans;
        let counts = calls(node, "cluster|countkeysinslot").await - counts;
        assert!(scans >= 2, "two caches: {scans}");
        assert!(counts >= 2, "{counts}");
        if node == from {
            assert!(counts <= scans, "a pass over everything, and one more over the slot: {scans}, {counts}");
        }
    }
}

/// Moves slots to the first master, which a sweep looks at first, as long as there are any. (To and fro, as fast as this, nodes come to believe
/// what others said a moment ago, and slots get lost.)
struct Mover {
    moved: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Mover {
    async fn start(cluster: &Cluster) -> Mover {
        let (mut ids, mut nodes) = (Vec::new(), Vec::new());
        for index in 0..3 {
            ids.push(cluster.id(index).await);
            nodes.push(cluster.node(index).await);
        }
        let (port, moved) = (cluster.nodes[0].port, Arc::new(AtomicUsize::new(0)));
        let count = moved.clone();
        let task = tokio::spawn(async move {
            // Every slot, in turn of the one and the other master.
            for slot in (0..16_384).map(|number| number * 7_919 % 16_384).filter(|slot| first_owner(*slot) != 0) {
                Mover::fetch(&ids, &mut nodes, port, slot).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Mover { moved, task }
    }

    fn moved(&self) -> usize {
        assert!(!self.task.is_finished(), "slots do not move any more");
        self.moved.load(Ordering::Relaxed)
    }

    async fn fetch(
        ids: &[String],
        nodes: &mut [MultiplexedConnection],
        port: u16,
        slot: usize,
    ) -> redis::RedisResult<()> {
        let from = first_owner(slot);
        let set = |state: &str, id: &str| {
            let mut set = redis::cmd("CLUSTER");
            set.arg("SETSLOT").arg(slot).arg(state).arg(id);
            set
        };
        set("IMPORTING", &ids[from]).exec_async(&mut nodes[0]).await?;
        set("MIGRATING", &ids[0]).exec_async(&mut nodes[from]).await?;
        loop {
            let mut list = redis::cmd("CLUSTER");
            list.arg("GETKEYSINSLOT").arg(slot).arg(2);
            let keys: Vec<String> = list.query_async(&mut nodes[from]).await?;
            if keys.is_empty() {
                break;
            }
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(port).arg("").arg(0).arg(5_000).arg("KEYS").arg(keys);
            migrate.exec_async(&mut nodes[from]).await?;
        }
        for node in [0, from, 3 - from] {
            set("NODE", &ids[0]).exec_async(&mut nodes[node]).await?;
        }
        Ok(())
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How many records there are under sweeps of some seconds.
const RECORDS: usize = 12_000;

/// A world where a sweep takes seconds, by a user of the Cluster. Its keys stay where they are, so that each pass takes as long as the first.
async fn slow_sweeps(cluster: &Cluster, user: &str) -> (World, Daemon) {
    let world = World::new().await;
    for index in 0..3 {
        cluster.run(index, "ACL SETUSER few on >x ~* &* +@all -cluster +cluster|slots +cluster|nodes").await;
    }
    let url = cluster.url().replace("//", &format!("//{user}"));
    world.setup(&format!(
        r#"{{version: 1, caches: {{c: {{url: "{url}", dialect: version, ttl: 1h, absent: stale}}}},
          rules: [{{table: first_model, tags: ["user:<id>"]}}]}}"#
    ));
    let daemon = world.watched_with(&["--resync-rate", "6000"]);
    daemon.readyz(200);
    let keys: Vec<String> = (0..RECORDS).map(|id| format!("user:{id}")).collect();
    let (mut slots, mut fills) = (redis::pipe(), vec![redis::pipe(); 3]);
    for key in &keys {
        slots.cmd("CLUSTER").arg("KEYSLOT").arg(key);
    }
    let slots: Vec<usize> = slots.query_async(&mut cluster.node(0).await).await.unwrap();
    for (key, slot) in keys.iter().zip(slots) {
        fills[first_owner(slot)].cmd("SET").arg(key).arg("cached").ignore();
    }
    for (index, fill) in fills.iter().enumerate() {
        fill.exec_async(&mut cluster.node(index).await).await.unwrap();
    }
    (world, daemon)
}

/// Of a node: keys that no sweep has found, and how many there are.
async fn missed(cluster: &Cluster, index: usize) -> (Vec<String>, usize) {
    let mut node = cluster.node(index).await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("user:*").query_async(&mut node).await.unwrap();
    let of_id = |key: &&String| key["user:".len()..].parse::<usize>().unwrap() < RECORDS;
    let keys: Vec<String> = keys.iter().filter(of_id).cloned().collect();
    let mut gets = redis::pipe();
    for key in &keys {
        // The mover may have been stopped in the middle of a slot.
        gets.cmd("ASKING").ignore().cmd("GET").arg(key);
    }
    let values: Vec<Option<String>> = gets.query_async(&mut node).await.unwrap();
    let count = keys.len();
    let missed = keys.into_iter().zip(values).filter(|(_, value)| value.as_deref() == Some("cached"));
    (missed.map(|(key, _)| key).collect(), count)
}

async fn sweep_under_moving_slots(user: &str) {
    let cluster = Cluster::new(0).await;
    let (world, daemon) = slow_sweeps(&cluster, user).await;
    let mover = Mover::start(&cluster).await;
    until("slots move", || async { mover.moved() > 10 }).await;
    let sql = world.sql().await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    let (before, writer) = (mover.moved(), world.sql().await);
    let traffic = tokio::spawn(async move {
        for id in (13_000..).step_by(50) {
            let insert = format!("INSERT INTO first_model SELECT n, '' FROM generate_series({id}, {id} + 49) n");
            writer.batch_execute(&insert).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    world.settled_within(&sql, Duration::from_secs(40)).await;
    traffic.abort();
    assert!(mover.moved() > before + 10);
    drop(mover);

    let mut records = 0;
    for index in 0..3 {
        let (missed, count) = missed(&cluster, index).await;
        assert_eq!(missed, [""; 0], "on node {index}");
        records += count;
    }
    assert_eq!(records, RECORDS);
    assert_eq!(daemon.log().matches("resync complete").count(), 1, "that of the start\n{}", daemon.log());
}

/// It began anew as long as slots moved, and held the position back for ever. Now only what moved under it is looked at again, and nothing
/// that moved is missed.
#[tokio::test]
async fn a_sweep_completes_while_slots_keep_moving() {
    sweep_under_moving_slots("").await;
}

/// The same where the ACL withholds the keys of a slot.
#[tokio::test]
async fn a_sweep_that_may_not_list_slots_completes_while_they_move() {
    sweep_under_moving_slots("few:x@").await;
}

/// Its replica takes over from a master that the sweep has looked at: what is there is swept all the same, and nothing fails.
#[tokio::test]
async fn a_replica_takes_over_under_a_sweep() {
    let cluster = Cluster::new(1).await;
    let (world, daemon) = slow_sweeps(&cluster, "").await;
    let sql = world.sql().await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    until("the first master is done", || async { missed(&cluster, 0).await.0.is_empty() }).await;
    cluster.run(3, "CLUSTER FAILOVER").await;
    cluster.knows(3, "INFO replication", "role:master").await;
    world.settled_within(&sql, Duration::from_secs(40)).await;
    let mut records = 0;
    for index in [3, 1, 2] {
        let (missed, count) = missed(&cluster, index).await;
        assert_eq!(missed, [""; 0], "on node {index}");
        records += count;
    }
    assert_eq!(records, RECORDS);
    assert!(!daemon.log().contains("its tags are kept"), "nothing failed\n{}", daemon.log());
}

/// A master fails and its replica, which has not heard of the last invalidations, takes over.
#[tokio::test]
async fn a_replica_that_is_behind_takes_over() {
    let (world, cluster, daemon) = settled(RULES, 1).await;
    let sql = world.sql().await;
    let mut of_first = Vec::new();
    for id in 1..=300 {
        let key = format!("user:{id}");
        if cluster.of(&key).await == 0 {
            of_first.push(key);
        }
    }
    for key in &of_first {
        cluster.run(0, &format!("SET {key} cached")).await;
    }
    for key in &of_first {
        until("the replica has it", || async {
            let mut replica = cluster.node(3).await;
            redis::cmd("READONLY").exec_async(&mut replica).await.unwrap();
            !is_gone(&replica, key).await
        })
        .await;
    }
    // It hears nothing from now on.
    signal(cluster.nodes[3].pid().unwrap(), "STOP");
    cluster.run(0, "CLIENT KILL TYPE replica").await;
    sql.batch_execute("UPDATE first_model SET name = 'x'").await.unwrap();
    world.settled(&sql).await;
    assert!(cluster.keys().await.is_empty());
    signal(cluster.nodes[0].pid().unwrap(), "KILL");
    signal(cluster.nodes[3].pid().unwrap(), "CONT");
    cluster.run(3, "CLUSTER FAILOVER TAKEOVER").await;
    daemon.wait_for("lost writes");
    daemon.readyz(200);
    until("what came back is stale", || async {
        let left: Vec<String> = redis::cmd("KEYS").arg("user:*").query_async(&mut cluster.node(3).await).await.unwrap();
        left.is_empty()
    })
    .await;
}

/// What a client's own scripts cannot do there, waltag cannot either.
#[tokio::test]
async fn what_needs_one_server_is_refused() {
    let world = World::new().await;
    world.rules(
        r#"{version: 1, caches: {c: {url: "redis+cluster://a:1", dialect: django-cacheops}}, rules: [{table: first_model, rows: true}]}"#,
    );
    let said = fail(&mut world.waltag("postgres", &["check"]), 65);
    assert!(said.contains("does not work on a Cluster"), "{said}");
}

/// A node that was put out of the Cluster lives on and knows nobody: a sweep that asked it first looked at no master, and called it done.
#[tokio::test]
async fn a_node_that_was_put_out_is_passed_over() {
    let cluster = Cluster::new(0).await;
    let bus = free_port().unwrap();
    let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()];
    let outsider = Redis::start(&settings).unwrap();
    let world = World::new().await;
    let url = cluster.url().replace("redis+cluster://", &format!("redis+cluster://127.0.0.1:{},", outsider.port));
    world.setup(&RULES.replace("{cluster}", &url));
    let daemon = world.watched();
    daemon.readyz(200);
    for id in 1..=30 {
        cluster.set(&format!("user:{id}")).await;
    }
    let sql = world.sql().await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(cluster.keys().await, [""; 0]);
}

/// One node by itself has a third of the keys.
#[tokio::test]
async fn a_node_is_no_server_of_its_own() {
    let (cluster, world) = (Cluster::new(0).await, World::new().await);
    world.setup(&RULES.replace("{cluster}", &cluster.nodes[0].url(0)));
    let said = fail(&mut world.waltag("waltag", &["run"]), 78);
    assert!(said.contains("write the cache's `url` as redis+cluster://"), "{said}");
    let said = fail(&mut world.waltag("waltag", &["invalidate", "--cache", "c", "x"]), 78);
    assert!(said.contains("redis+cluster://"), "{said}");
}

/// A cursor says nothing on another server: a set that moves while it is walked is begun anew.
#[tokio::test]
async fn a_set_moves_while_it_is_walked() {
    let (world, cluster, _daemon) = settled(RULES, 0).await;
    let (key, members) = ("tag:user:7", 20_000);
    let from = cluster.of(key).await;
    let to = (from + 1) % 3;
    for chunk in 0..20 {
        let mut add = redis::cmd("SADD");
        add.arg(key).arg((0..members / 20).map(|n| format!("{}", chunk * (members / 20) + n)).collect::<Vec<_>>());
        add.exec_async(&mut cluster.node(from).await).await.unwrap();
    }
    for record in 0..members {
        if record % 100 == 0 {
            cluster.set(&format!("record:{record}")).await;
        }
    }
    let slot = cluster.run(0, &format!("CLUSTER KEYSLOT {key}")).await;
    let (source, target) = (cluster.id(from).await, cluster.id(to).await);
    cluster.run(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {source}")).await;
    cluster.run(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {target}")).await;
    let sql = world.sql().await;
    let before = cluster.run(from, "INFO commandstats").await;
    sql.batch_execute("UPDATE first_model SET name = 'x' WHERE id = 7").await.unwrap();
    // The walk has begun: `members.lua` has run a few times.
    let calls = |info: &str| -> u64 {
        info.split("cmdstat_sscan:calls=").nth(1).map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    };
    until("the set is being walked", || async {
        calls(&cluster.run(from, "INFO commandstats").await) > calls(&before) + 3
    })
    .await;
    cluster.run(from, &format!("MIGRATE 127.0.0.1 {} {key} 0 5000", cluster.nodes[to].port)).await;
    world.settled(&sql).await;
    assert_eq!(cluster.keys().await, [key], "every record is gone");
}

/// The slot of the marker is on its way: reading it follows the redirection, too.
#[tokio::test]
async fn a_start_while_the_marker_moves() {
    let (world, cluster, daemon) = settled(RULES, 0).await;
    world.settled(&world.sql().await).await;
    assert_eq!(daemon.stop(), Some(0));
    let mut all: Vec<String> = Vec::new();
    for index in 0..3 {
        let own: Vec<String> =
            redis::cmd("KEYS").arg("waltag:*").query_async(&mut cluster.node(index).await).await.unwrap();
        all.extend(own);
    }
    let key = all.iter().find(|key| !key.contains('{') && key.ends_with(":c")).unwrap();
    let (slot, from) = (cluster.run(0, &format!("CLUSTER KEYSLOT {key}")).await, cluster.of(key).await);
    let to = (from + 1) % 3;
    let (source, target) = (cluster.id(from).await, cluster.id(to).await);
    cluster.run(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {source}")).await;
    cluster.run(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {target}")).await;
    cluster.run(from, &format!("MIGRATE 127.0.0.1 {} {key} 0 5000", cluster.nodes[to].port)).await;
    let daemon = world.watched();
    daemon.readyz(200);
    assert!(!daemon.log().contains("resync"), "{}", daemon.log());
}

/// A master that has no slot yet gets its first: what has arrived there is swept as well, even if it stays half done for ever.
#[tokio::test]
async fn a_slot_moves_to_an_empty_master() {
    let (world, cluster, _daemon) = settled(RULES, 0).await;
    let bus = free_port().unwrap();
    let settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &bus.to_string()];
    let fourth = Redis::start(&settings).unwrap();
    cluster.run(0, &format!("CLUSTER MEET 127.0.0.1 {} {bus}", fourth.port)).await;
    for index in 0..3 {
        cluster.knows(index, "CLUSTER INFO", "cluster_known_nodes:4").await;
    }
    let mut connection = redis_at(&fourth.url(0)).await.unwrap();
    until("the fourth knows the others", || async {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection.clone()).await.unwrap();
        info.contains("cluster_known_nodes:4") && info.contains("cluster_state:ok")
    })
    .await;
    let target: String = redis::cmd("CLUSTER").arg("MYID").query_async(&mut connection).await.unwrap();
    let (slot, from) = (cluster.run(0, "CLUSTER KEYSLOT user:42").await, cluster.of("user:42").await);
    cluster.set("user:42").await;
    let source = cluster.id(from).await;
    let importing = ["SETSLOT", &slot, "IMPORTING", &source];
    redis::cmd("CLUSTER").arg(&importing).exec_async(&mut connection).await.unwrap();
    cluster.run(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {target}")).await;
    cluster.run(from, &format!("MIGRATE 127.0.0.1 {} user:42 0 5000", fourth.port)).await;
    let keys = async || -> i64 { redis::cmd("DBSIZE").query_async(&mut connection.clone()).await.unwrap() };
    assert_eq!(keys().await, 1);
    let sql = world.sql().await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(keys().await, 0);
}
