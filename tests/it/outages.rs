//! Everything that can go away goes away under write load. Afterwards no row that was committed is cached any more, and what did
//! not change stays cached, unless PostgreSQL crashed or Redis lost its data.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use crate::support::{Daemon, RULES, World, end_of_stream, outbox, signal, succeed, until};

/// A key that the rules reach, and whose row never changes.
const UNCHANGED: &str = "FirstModel.pk:2000000000";

/// Caches a key, then commits its row, again and again.
struct Load {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<i32>,
}

impl Load {
    async fn start(world: &World) -> Load {
        let mut cache = world.cache(1).await;
        redis::cmd("SET").arg(UNCHANGED).arg("kept").exec_async(&mut cache).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, database, url) = (stop.clone(), world.postgres.url("postgres", "shop"), world.redis.url(1));
        Load { stop, writer: tokio::spawn(write(stopped, database, url)) }
    }

    /// Stops it and waits until waltag is done with all of it: what is still cached of the committed rows.
    async fn end(self, world: &World) -> (usize, Vec<String>, bool) {
        let sql = world.sql().await;
        until("there was a load", || async {
            sql.query_one("SELECT count(*) > 50 FROM first_model", &[]).await.unwrap().get(0)
        })
        .await;
        self.stop.store(true, Ordering::Relaxed);
        let tried = self.writer.await.unwrap();
        world.settled(&sql).await;
        let rows = sql.query("SELECT id FROM first_model", &[]).await.unwrap();
        let mut cache = world.cache(1).await;
        let mut left = Vec::new();
        for row in &rows {
            let key = format!("FirstModel.pk:{}", row.get::<_, i32>(0));
            if redis::cmd("EXISTS").arg(&key).query_async(&mut cache).await.unwrap() {
                left.push(key);
            }
        }
        println!("{} of {tried} rows were committed", rows.len());
        let unchanged = redis::cmd("EXISTS").arg(UNCHANGED).query_async(&mut cache).await.unwrap();
        (rows.len(), left, unchanged)
    }

    /// Ends it, and looks that nothing is stale, and that what did not change is cached or not.
    async fn must_end_well(self, world: &World, unchanged_stays: bool) {
        let (rows, left, unchanged) = self.end(world).await;
        assert!(left.is_empty(), "{} of {rows} are still cached: {:?}", left.len(), left.first());
        assert_eq!(unchanged, unchanged_stays, "the key of the row that did not change");
    }
}

async fn write(stop: Arc<AtomicBool>, database: String, redis: String) -> i32 {
    let (mut sql, mut cache): (Option<tokio_postgres::Client>, Option<MultiplexedConnection>) = (None, None);
    let mut id = 0;
    while !stop.load(Ordering::Relaxed) {
        id += 1;
        if cache.is_none() {
            cache = redis::Client::open(redis.as_str()).unwrap().get_multiplexed_async_connection().await.ok();
        }
        if sql.is_none()
            && let Ok((client, connection)) = tokio_postgres::connect(&database, NoTls).await
        {
            tokio::spawn(connection);
            sql = Some(client);
        }
        let (Some(client), Some(connection)) = (&sql, &mut cache) else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // A SET that is answered too late may be done later than the commit: its row is not written.
        if redis::cmd("SET").arg(format!("FirstModel.pk:{id}")).arg("old").exec_async(connection).await.is_err() {
            cache = None;
            continue;
        }
        if client.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.is_err() {
            sql = None;
        }
    }
    id
}

/// A world with a running daemon whose first resync is over, under load.
async fn under_load() -> (World, Daemon, Load) {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    world.settled(&world.sql().await).await;
    let load = Load::start(&world).await;
    until("rows are written", || async {
        let query = "SELECT count(*) > 20 FROM first_model";
        world.sql().await.query_one(query, &[]).await.unwrap().get(0)
    })
    .await;
    (world, daemon, load)
}

/// What is tested here are outages of this long.
async fn outage(length: Duration) {
    tokio::time::sleep(length).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_is_killed_at_20_random_moments() {
    let (world, mut daemon, load) = under_load().await;
    for _ in 0..20 {
        outage(Duration::from_millis(rand::random_range(0..300))).await;
        daemon.kill();
        daemon = world.start(&mut world.waltag("waltag", &["run"]));
        if rand::random() {
            daemon.wait_for("ready");
        }
    }
    load.must_end_well(&world, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_stopped_for_3_seconds() {
    let (mut world, daemon, load) = under_load().await;
    world.redis.kill();
    outage(Duration::from_secs(3)).await;
    world.redis.launch().unwrap();
    daemon.wait_for("resync complete: the marker is gone");
    load.must_end_well(&world, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_paused_and_frozen() {
    let (world, daemon, load) = under_load().await;
    let mut cache = world.cache(0).await;
    redis::cmd("CLIENT").arg(&["PAUSE", "3000", "ALL"]).exec_async(&mut cache).await.unwrap();
    outage(Duration::from_secs(4)).await;
    signal(world.redis.pid().unwrap(), "STOP");
    daemon.wait_for("Redis does not answer in time");
    signal(world.redis.pid().unwrap(), "CONT");
    load.must_end_well(&world, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_restarted() {
    let (mut world, daemon, load) = under_load().await;
    for restart in 1..=3 {
        let took = world.postgres.stop("fast", Duration::from_secs(20)).unwrap();
        assert!(took < Duration::from_secs(5), "a fast stop took {took:?}");
        world.postgres.launch().unwrap();
        daemon.wait_for_count("streaming server", restart + 1);
    }
    load.must_end_well(&world, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_crashes() {
    let (mut world, daemon, load) = under_load().await;
    world.postgres.stop("immediate", Duration::from_secs(20)).unwrap();
    world.postgres.launch().unwrap();
    daemon.wait_for_count("resync complete: PostgreSQL has crashed", 2);
    load.must_end_well(&world, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_walsender_is_terminated_again_and_again() {
    let (world, daemon, load) = under_load().await;
    let sql = world.sql().await;
    for _ in 0..10 {
        let (end, streams) = (end_of_stream(), daemon.log().matches("streaming server").count());
        // One that was ended before it streamed has said nothing.
        until("a walsender was there", || async { !sql.query(end, &[]).await.unwrap().is_empty() }).await;
        daemon.wait_for_count("streaming server", streams + 1);
    }
    load.must_end_well(&world, true).await;
}

/// While a backlog arrives faster than a connection to Redis is made, the cache is not away: nothing of it is dropped, nothing swept.
#[tokio::test]
async fn a_backlog_detaches_nobody() {
    let world = World::new().await;
    world.setup(RULES);
    let start = || world.start(world.waltag("waltag", &["run"]).env("WALTAG_TAG_MEMORY", "1MiB"));
    let daemon = start();
    daemon.wait_until_resynced();
    let sql = world.sql().await;
    world.settled(&sql).await;
    assert_eq!(daemon.stop(), Some(0));
    // Each row by a transaction of its own; three times what a cache's share of the memory holds.
    let rows = "DO $$ BEGIN FOR n IN 1..30000 LOOP INSERT INTO first_model VALUES (n); COMMIT; END LOOP; END $$";
    sql.batch_execute(rows).await.unwrap();
    let mut cache = world.cache(1).await;
    for key in ["FirstModel.pk:1", "FirstModel.pk:30000", UNCHANGED] {
        redis::cmd("SET").arg(key).arg("cached").exec_async(&mut cache).await.unwrap();
    }
    let daemon = start();
    world.settled(&sql).await;
    let left: Vec<String> = redis::cmd("KEYS").arg("FirstModel*").query_async(&mut cache).await.unwrap();
    assert_eq!((left, daemon.log().matches("detached").count()), (vec![UNCHANGED.to_owned()], 0), "{}", daemon.log());
}

/// A private network for the daemon; the servers keep the side of the host.
struct Network;

impl Network {
    const HOST: &str = "10.213.0.1";
    const INSIDE: &str = "10.213.0.2";

    /// None where this process may not make one.
    fn new() -> Option<Network> {
        let made = Command::new("ip").args(["netns", "add", "waltag-test"]).output().ok()?;
        made.status.success().then_some(())?;
        let network = Network;
        for command in [
            "ip link add wt-host type veth peer name wt-inside netns waltag-test",
            &format!("ip addr add {}/30 dev wt-host", Network::HOST),
            "ip link set wt-host up",
            &format!("ip -n waltag-test addr add {}/30 dev wt-inside", Network::INSIDE),
            "ip -n waltag-test link set wt-inside up",
            "ip -n waltag-test link set lo up",
        ] {
            network.run(command);
        }
        Some(network)
    }

    fn run(&self, command: &str) {
        let mut words = command.split(' ');
        succeed(Command::new(words.next().unwrap()).args(words));
    }

    /// Every packet in both directions vanishes: they go to a card that is not there.
    fn cut(&self) {
        for (inside, other, device) in
            [("", Network::INSIDE, "wt-host"), ("-n waltag-test ", Network::HOST, "wt-inside")]
        {
            self.run(&format!("ip {inside}neigh replace {other} lladdr 02:00:00:00:00:99 dev {device} nud permanent"));
        }
    }

    fn mend(&self) {
        for (inside, other, device) in
            [("", Network::INSIDE, "wt-host"), ("-n waltag-test ", Network::HOST, "wt-inside")]
        {
            self.run(&format!("ip {inside}neigh del {other} dev {device}"));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", "waltag-test"]).status();
        let _ = Command::new("ip").args(["link", "del", "wt-host"]).output();
    }
}

/// The network swallows every packet: for less than any limit, and for longer than a query may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_cut() {
    let Some(network) = Network::new() else {
        println!("not shown: this process may not make a network namespace");
        return;
    };
    let listen = format!("listen_addresses = '127.0.0.1, {}'", Network::HOST);
    let mut world = World::with(&listen, crate::support::SCHEMA).await;
    let address = format!("{} 127.0.0.1", Network::HOST);
    world.redis = waltag::demo::servers::Redis::start(&["--protected-mode", "no", "--bind", &address]).unwrap();
    let hba =
        format!("local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all {}/32 trust\n", Network::INSIDE);
    std::fs::write(world.postgres.data().join("pg_hba.conf"), hba).unwrap();
    world.postgres.reload().unwrap();
    world.setup(RULES);
    let path = world.rules(RULES);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("127.0.0.1", Network::HOST)).unwrap();
    let inside = world.waltag("waltag", &["run"]);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", "waltag-test"]).arg(inside.get_program()).args(inside.get_args());
    command.envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("WALTAG_DATABASE_URL", world.postgres.url("waltag", "shop").replace("127.0.0.1", Network::HOST));
    let daemon = world.start(&mut command);
    daemon.wait_until_resynced();
    let load = Load::start(&world).await;
    for length in [3, 15] {
        outage(Duration::from_secs(1)).await;
        network.cut();
        outage(Duration::from_secs(length)).await;
        network.mend();
    }
    daemon.wait_for_count("streaming server", 2);
    load.must_end_well(&world, true).await;
}

/// WAL that is none of ours does not stay behind our slot.
#[tokio::test]
async fn foreign_wal_is_confirmed_away() {
    if outbox() {
        // There is no slot.
        return;
    }
    let world = World::new().await;
    world.setup(RULES);
    let _daemon = world.daemon();
    let sql = world.sql().await;
    sql.batch_execute("CREATE TABLE bulk (id int, filler text)").await.unwrap();
    for _ in 0..10 {
        let bulk = "INSERT INTO bulk SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i";
        sql.batch_execute(bulk).await.unwrap();
    }
    for _ in 0..50 {
        sql.batch_execute("SELECT pg_logical_emit_message(false, 'x', 'x'), pg_switch_wal()").await.unwrap();
    }
    let written: i64 =
        sql.query_one("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/2000000')::int8", &[]).await.unwrap().get(0);
    assert!(written > 200 << 20, "{written}");
    world.settled(&sql).await;
    sql.batch_execute("CHECKPOINT").await.unwrap();
    let kept = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 FROM pg_replication_slots";
    until("restart_lsn follows within 32 MB", || async {
        // It moves when the server logs which transactions are running.
        sql.batch_execute("SELECT pg_log_standby_snapshot()").await.ok();
        sql.batch_execute("CHECKPOINT").await.unwrap();
        sql.query_one(kept, &[]).await.unwrap().get::<_, i64>(0) < 32 << 20
    })
    .await;
}
