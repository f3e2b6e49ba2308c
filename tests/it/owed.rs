//! What is owed is done, whatever else goes on: first passes that keep coming, keys that Redis refuses, rows that nobody can decode, a
//! transaction that waits for its end, a server that hangs.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::support::{World, fill, is_gone, outbox, redis_at, signal, until, until_within};

const RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: first_model, tags: ["row:<id>"]}]}"#;

/// A column whose values cannot be decoded: an integer that is written as the label of an enum, and there is none.
const UNDECODABLE: &str =
    "CREATE TYPE bad; CREATE FUNCTION bad_in(cstring) RETURNS bad LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
     CREATE FUNCTION bad_out(bad) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'enum_out';
     CREATE TYPE bad (input = bad_in, output = bad_out, like = int4);
     ALTER TABLE first_model ADD COLUMN bad bad";

/// Stands between the daemon and Redis and makes each way this much longer.
pub async fn slow(target: u16, delay: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
            let ((asked, told), (answered, ask)) = (client.into_split(), server.into_split());
            tokio::spawn(later(asked, ask, delay));
            tokio::spawn(later(answered, told, delay));
        }
    });
    port
}

async fn later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (late, mut due) = mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((at, bytes)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        if late.send((tokio::time::Instant::now() + delay, bytes[..length].to_vec())).is_err() {
            return;
        }
    }
}

/// With 10 ms to Redis and back and 500 commits a second, what was owed after one second came when the load ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_come_while_first_passes_keep_coming() {
    let world = World::new().await;
    let port = slow(world.redis.port, Duration::from_millis(5)).await;
    world.setup(&format!(
        r#"{{version: 1, caches: {{c: {{url: "redis://127.0.0.1:{port}/0", dialect: keys, repeat: [1s]}}}},
            rules: [{{table: first_model, tags: ["row:<id>"]}}]}}"#
    ));
    let daemon = world.daemon();
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model SELECT n, 'x' FROM generate_series(1, 5000) n").await.unwrap();
    let (mut writers, mut stops) = (Vec::new(), Vec::new());
    for writer in 0..4_i32 {
        let (sql, (stop, mut stopped)) = (world.sql().await, tokio::sync::oneshot::channel::<()>());
        stops.push(stop);
        writers.push(tokio::spawn(async move {
            sql.batch_execute("SET synchronous_commit = off").await.unwrap();
            let mut id = 2 + writer;
            while stopped.try_recv().is_err() {
                sql.batch_execute(&format!("UPDATE first_model SET name = 'y' WHERE id = {id}")).await.unwrap();
                id = 2 + (id + 4) % 4_990;
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        }));
    }
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    let mut latest = Duration::ZERO;
    for _ in 0..3 {
        fill(&mut cache, "row:1").await;
        sql.batch_execute("UPDATE first_model SET name = name || 'z' WHERE id = 1").await.unwrap();
        until("the first pass", || is_gone(&cache, "row:1")).await;
        // A reader that was computing stores what it read before.
        let begin = Instant::now();
        fill(&mut cache, "row:1").await;
        until_within(Duration::from_secs(20), "the repeat, under load", || is_gone(&cache, "row:1")).await;
        latest = latest.max(begin.elapsed());
    }
    println!("latest repeat of those owed after 1000 ms: {} ms", latest.as_millis());
    // The load goes on until here.
    stops.into_iter().for_each(|stop| stop.send(()).unwrap());
    for writer in writers {
        writer.await.unwrap();
    }
    drop(daemon);
}

/// A wrong ACL let the marker through and refused each tag: counted, passed over, confirmed, and never made up for.
#[tokio::test]
async fn keys_that_an_acl_withholds_are_owed() {
    let world = World::new().await;
    let mut redis = redis_at(&world.redis.url(0)).await.unwrap();
    let administrator = redis.clone();
    let acl = async |rules: &str| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("w").arg("on").arg(">pw");
        for rule in rules.split(' ') {
            command.arg(rule);
        }
        command.exec_async(&mut administrator.clone()).await.unwrap();
    };
    acl("resetkeys ~* &* +@all").await;
    let port = world.redis.port;
    world.setup(&RULES.replace("{redis}", &format!("redis://w:pw@127.0.0.1:{port}")));
    let daemon = world.watched();
    let sql = world.sql().await;
    acl("resetkeys ~waltag:*").await;
    fill(&mut redis, "row:1").await;
    sql.batch_execute("INSERT INTO first_model VALUES (1, 'x')").await.unwrap();
    daemon.wait_for("they are owed");
    assert!(daemon.readyz(503).contains("key"), "{}", daemon.log());
    let unconfirmed: bool = sql.query_one(crate::support::unconfirmed(), &[]).await.unwrap().get(0);
    assert!(unconfirmed);
    if !outbox() {
        let now: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        assert_eq!(daemon.get(&format!("/wait?lsn={now}&timeout=100ms")).0, 504);
    }
    acl("~*").await;
    until("it is made up for", || is_gone(&redis, "row:1")).await;
    daemon.readyz(200);
    world.settled(&sql).await;
}

/// The position jumped to the new slot's before anybody knew that something was missed.
#[tokio::test]
async fn nobody_is_told_that_all_is_done_before_a_gap_is_made_up_for() {
    if outbox() {
        return;
    }
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    let sql = world.sql().await;
    world.settled(&sql).await;
    assert_eq!(daemon.stop(), Some(0));
    world.is_left(&sql).await;
    sql.batch_execute("SELECT pg_drop_replication_slot('waltag'); INSERT INTO first_model VALUES (1, 'missed')")
        .await
        .unwrap();
    let now: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    for key in 0..3_000 {
        fill(&mut cache, &format!("row:{key}")).await;
    }
    let mut command = world.waltag("waltag", &["run", "--resync-rate", "1000"]);
    let daemon = world.start(command.env("WALTAG_LISTEN", "127.0.0.1:0"));
    let (code, body) = daemon.get(&format!("/wait?lsn={now}&timeout=60s"));
    assert_eq!(code, 200, "{body}");
    let left: u64 =
        redis::cmd("EVAL").arg("return #redis.call('KEYS', 'row:*')").arg(0).query_async(&mut cache).await.unwrap();
    assert_eq!(left, 0, "it was said to be done");
}

/// A process that starts without a slot had no lanes, and so nothing to make stale.
#[tokio::test]
async fn a_process_that_starts_without_a_slot_makes_everything_stale() {
    if outbox() {
        return;
    }
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.daemon();
    let sql = world.sql().await;
    world.settled(&sql).await;
    assert_eq!(daemon.stop(), Some(0));
    world.is_left(&sql).await;
    sql.batch_execute("SELECT pg_drop_replication_slot('waltag')").await.unwrap();
    let old = world.sql().await;
    old.batch_execute("BEGIN; INSERT INTO unrelated VALUES (1, 1)").await.unwrap();
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    fill(&mut cache, "row:1").await;
    let mut command = world.waltag("waltag", &["run", "--lock-timeout", "300ms"]);
    let daemon = world.start(command.env("WALTAG_LISTEN", "127.0.0.1:0"));
    until("what may have been missed is stale", || is_gone(&cache, "row:1")).await;
    daemon.readyz(503);
    old.batch_execute("COMMIT").await.unwrap();
    daemon.wait_for("resync complete");
    fill(&mut cache, "row:2").await;
    sql.batch_execute("INSERT INTO first_model VALUES (2, 'seen')").await.unwrap();
    until("the slot is made", || is_gone(&cache, "row:2")).await;
}

/// On a quiet server the snapshot's xmax is the newest running transaction itself, and nobody waited for it.
#[tokio::test]
async fn a_second_pass_waits_for_the_newest_transaction() {
    if outbox() {
        return;
    }
    let world = World::new().await;
    let sql = world.sql().await;
    sql.batch_execute("CREATE PUBLICATION waltag FOR TABLE unrelated; INSERT INTO first_model VALUES (1, 'old')")
        .await
        .unwrap();
    world.rules(RULES);
    crate::support::succeed(world.waltag("postgres", &["setup", "--apply"]).env("WALTAG_PUBLICATION", "other"));
    let daemon = world.daemon();
    let (migration, writer) = (world.sql().await, world.sql().await);
    migration.batch_execute("BEGIN; ALTER PUBLICATION waltag ADD TABLE first_model").await.unwrap();
    writer.batch_execute("BEGIN; UPDATE first_model SET name = 'new'").await.unwrap();
    migration.batch_execute("COMMIT").await.unwrap();
    daemon.wait_for("resync: the rules cover");
    daemon.wait_for_count("everything is stale; once more", 2);
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    fill(&mut cache, "row:1").await;
    writer.batch_execute("COMMIT").await.unwrap();
    until("what it wrote unseen is stale", || is_gone(&cache, "row:1")).await;
}

/// A row whose type cannot be written as text ended the stream at the same position, for ever, and it was ready most of the time.
#[tokio::test]
async fn what_cannot_be_decoded_is_left_behind() {
    if outbox() {
        return;
    }
    let world = World::new().await;
    let sql = world.sql().await;
    sql.batch_execute(UNDECODABLE).await.unwrap();
    world.setup(RULES);
    let daemon = world.watched();
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    fill(&mut cache, "row:1").await;
    sql.batch_execute("INSERT INTO first_model VALUES (1, 'x', '77')").await.unwrap();
    until("everything is stale", || is_gone(&cache, "row:1")).await;
    daemon.wait_for("What cannot be decoded is left behind");
    daemon.wait_for("the slot is dropped and made anew");
    fill(&mut cache, "row:2").await;
    sql.batch_execute("INSERT INTO first_model VALUES (2, 'x')").await.unwrap();
    until("what comes behind it arrives", || is_gone(&cache, "row:2")).await;
    daemon.readyz(200);
}

/// A TRUNCATE before it held the position back, and each new stream seemed to have come further than the one before.
#[tokio::test]
async fn what_cannot_be_decoded_behind_a_truncate_is_left_behind() {
    if outbox() {
        return;
    }
    let world = World::new().await;
    let sql = world.sql().await;
    sql.batch_execute(&format!("{UNDECODABLE}; CREATE TABLE junk (x text)")).await.unwrap();
    world.setup(RULES);
    let daemon = world.daemon();
    world.settled(&sql).await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    sql.batch_execute("INSERT INTO junk SELECT repeat('x', 1000) FROM generate_series(1, 5000)").await.unwrap();
    sql.batch_execute("INSERT INTO first_model VALUES (1, 'x', '77')").await.unwrap();
    daemon.wait_for("What cannot be decoded is left behind");
    daemon.wait_for_count("created the replication slot", 2);
    world.settled(&sql).await;
}

/// A backlog of what the ACL withholds must not keep others from coming, nor be forgotten.
#[tokio::test]
async fn more_keys_are_withheld_than_may_be_kept() {
    let world = World::new().await;
    let redis = redis_at(&world.redis.url(0)).await.unwrap();
    let acl = async |rules: &str| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("w").arg("on").arg(">pw");
        for rule in rules.split(' ') {
            command.arg(rule);
        }
        command.exec_async(&mut redis.clone()).await.unwrap();
    };
    acl("resetkeys ~* &* +@all").await;
    let port = world.redis.port;
    world.setup(&format!(
        r#"{{version: 1, caches: {{c: {{url: "redis://w:pw@127.0.0.1:{port}/0", dialect: keys}}}},
            rules: [{{table: first_model, tags: ["row:<id>"]}}, {{table: unrelated, tags: ["n:<id>"]}}]}}"#
    ));
    let mut command = world.waltag("waltag", &["run", "--tag-memory", "1MiB"]);
    let daemon = world.start(&mut command);
    daemon.wait_until_resynced();
    acl("resetkeys ~waltag:* ~n:*").await;
    let sql = world.sql().await;
    for key in ["row:1", "row:99999", "n:1"] {
        fill(&mut redis.clone(), key).await;
    }
    sql.batch_execute(
        "INSERT INTO first_model SELECT n, 'x' FROM generate_series(1, 100000) n; INSERT INTO unrelated VALUES (1, 1)",
    )
    .await
    .unwrap();
    until("others go stale beside it", || is_gone(&redis, "n:1")).await;
    acl("~*").await;
    for key in ["row:1", "row:99999"] {
        until("what was withheld", || is_gone(&redis, key)).await;
    }
    world.settled(&sql).await;
}

/// The tags of rules with `collapse` filled the budget, and what would have freed it could not arrive.
#[tokio::test]
async fn rules_that_collapse_under_a_small_budget() {
    let world = World::new().await;
    let rules: String = (0..8)
        .map(|number| format!(r#"{{table: first_model, tags: ["a.name.of.some.forty.letters.for.rule{number}:<id>"], collapse: {{over: 100000, to: "all:{number}"}}}},"#))
        .collect();
    world.setup(&format!(
        r#"{{version: 1, caches: {{c: {{url: "{{redis}}/0", dialect: keys}}}}, rules: [{rules} {{table: unrelated, tags: ["n:<id>"]}}]}}"#
    ));
    let mut command = world.waltag("waltag", &["run", "--tag-memory", "2MiB"]);
    let daemon = world.start(&mut command);
    daemon.wait_until_resynced();
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    fill(&mut cache, "all:7").await;
    fill(&mut cache, "n:1").await;
    let sql = world.sql().await;
    sql.batch_execute(
        "INSERT INTO first_model SELECT n, 'x' FROM generate_series(1, 30000) n; INSERT INTO unrelated VALUES (1, 1)",
    )
    .await
    .unwrap();
    until("it goes on", || is_gone(&cache, "n:1")).await;
    assert!(is_gone(&cache, "all:7").await, "too many to be kept");
}

/// While both connections to PostgreSQL were being opened nobody looked at the lanes.
#[tokio::test]
async fn repeats_come_while_postgresql_does_not_answer() {
    let world = World::new().await;
    world.setup(&RULES.replace("dialect: keys", "dialect: keys, repeat: [1s]"));
    let _daemon = world.daemon();
    let sql = world.sql().await;
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    fill(&mut cache, "row:1").await;
    sql.batch_execute("INSERT INTO first_model VALUES (1, 'x')").await.unwrap();
    until("the first pass", || is_gone(&cache, "row:1")).await;
    fill(&mut cache, "row:1").await;
    let pid = std::fs::read_to_string(world.postgres.data().join("postmaster.pid")).unwrap();
    let pid: u32 = pid.lines().next().unwrap().parse().unwrap();
    signal(pid, "STOP");
    sql.batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waltag'")
        .await
        .unwrap();
    let repeated = async { until_within(Duration::from_secs(6), "the repeat", || is_gone(&cache, "row:1")).await };
    repeated.await;
    signal(pid, "CONT");
}

/// A question that was asked while another's answer was not being read waited for ever. A thousand leaves, each described for the first time.
#[tokio::test]
async fn a_table_with_a_thousand_partitions() {
    let schema = "CREATE TABLE item (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
        DO $$ BEGIN FOR k IN 1..1000 LOOP EXECUTE format('CREATE TABLE item_%s PARTITION OF item FOR VALUES IN (%s)', k, k); END LOOP; END $$;
        CREATE TABLE other (id int PRIMARY KEY)";
    let world = World::with("max_locks_per_transaction = 4096", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
        {table: item, tags: ["item:<id>"]}, {table: other, tags: ["other:<id>"]}]}"#,
    );
    let daemon = world.daemon();
    let sql = world.sql().await;
    let mut cache = redis_at(&world.redis.url(0)).await.unwrap();
    for round in 0..3 {
        fill(&mut cache, "other:1").await;
        fill(&mut cache, "item:5").await;
        sql.batch_execute(
            "INSERT INTO item SELECT n, n FROM generate_series(1, 1000) n; ANALYZE item; TRUNCATE item; INSERT INTO other VALUES (1); DELETE FROM other",
        )
        .await
        .unwrap();
        until("other tables go stale beside it", || is_gone(&cache, "other:1")).await;
        until("what was emptied is stale", || is_gone(&cache, "item:5")).await;
        world.settled(&sql).await;
        assert!(!daemon.log().contains("no answer within"), "round {round}: {}", daemon.log());
    }
}
