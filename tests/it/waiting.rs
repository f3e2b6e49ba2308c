//! `waltag wait` and `/wait`: a reader of its own writes; commits that nobody has flushed; the canary. And `waltag resync`.

use std::time::{Duration, Instant};

use crate::support::{RULES, World, fail, outbox, signal, succeed, until};

/// What a position is called.
fn kind() -> &'static str {
    if outbox() { "snapshot" } else { "lsn" }
}

/// One that is not reached.
fn later() -> &'static str {
    if outbox() { "9999999:9999999:" } else { "FF/0" }
}

/// Where the server is.
async fn place(sql: &tokio_postgres::Client) -> String {
    let query = if outbox() { "SELECT pg_current_snapshot()::text" } else { "SELECT pg_current_wal_flush_lsn()::text" };
    format!("{}={}", kind(), sql.query_one(query, &[]).await.unwrap().get::<_, String>(0))
}

#[tokio::test]
async fn a_reader_of_its_own_writes_waits_for_them() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched_with(&[]);
    let (sql, mut cache) = (world.sql().await, world.cache(1).await);
    for id in 0..50 {
        redis::cmd("SET").arg(format!("FirstModel.pk:{id}")).arg("x").exec_async(&mut cache).await.unwrap();
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
        let now = place(&sql).await;
        assert_eq!(daemon.get(&format!("/wait?{now}&timeout=20s")).0, 200);
        let left: bool = redis::cmd("EXISTS").arg(format!("FirstModel.pk:{id}")).query_async(&mut cache).await.unwrap();
        assert!(!left, "the row {id} was waited for");
    }
    let now = place(&sql).await;
    let listen = daemon.address();
    let wait_for =
        |lsn: &str, limit: &str| world.waltag("waltag", &["wait", lsn, "--timeout", limit, "--listen", &listen]);
    let wait = |lsn: &str| wait_for(lsn, "200ms");
    let token = now.split_once('=').unwrap().1.to_owned();
    succeed(&mut wait_for(&token, "20s"));
    let (code, words) = if outbox() { (75, "not yet") } else { (64, "beyond the end of the server's log") };
    assert!(fail(&mut wait(later()), code).contains(words));
    assert!(fail(&mut wait("x"), 64).contains("is neither a position"));
    assert_eq!(daemon.get("/wait?xid=nonsense").0, 400);
    // Redis is away: not yet.
    signal(world.redis.pid().unwrap(), "STOP");
    sql.batch_execute("INSERT INTO first_model VALUES (1000)").await.unwrap();
    let now = place(&sql).await;
    assert_eq!(daemon.get(&format!("/wait?{now}&timeout=300ms")).0, 504);
    signal(world.redis.pid().unwrap(), "CONT");
    assert_eq!(daemon.get(&format!("/wait?{now}&timeout=20s")).0, 200);
    drop(daemon);
    assert!(fail(&mut wait(&token), 69).contains("no waltag answers"));
}

/// A TRUNCATE is answered by a sweep: whoever waits for it waits for the sweep.
#[tokio::test]
async fn a_truncate_is_waited_for_with_its_sweep() {
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched_with(&[]);
    let (sql, mut cache) = (world.sql().await, world.cache(1).await);
    let fill = "for i = 1, 20000 do redis.call('SET', 'FirstModel.pk:' .. i, 'x') end";
    redis::cmd("EVAL").arg(fill).arg(0).exec_async(&mut cache).await.unwrap();
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    let now = place(&sql).await;
    assert_eq!(daemon.get(&format!("/wait?{now}&timeout=20s")).0, 200);
    let left: Vec<String> = redis::cmd("KEYS").arg("FirstModel*").query_async(&mut cache).await.unwrap();
    assert_eq!(left.len(), 0);
}

#[tokio::test]
async fn a_detached_cache_is_named_at_once() {
    let world = World::new().await;
    let other = waltag::demo::servers::Redis::start(&[]).unwrap();
    world.setup(&format!(
        r#"{{version: 1, caches: {{default: {{url: "{{redis}}/0", dialect: keys}}, gone: {{url: "{}", dialect: keys, detach_after: 1s}}}},
            defaults: {{caches: [default, gone]}}, rules: [{{table: first_model, tags: ["f:<id>"]}}]}}"#,
        other.url(0)
    ));
    let daemon = world.watched_with(&[]);
    drop(other);
    world.sql().await.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    daemon.wait_for("detached:");
    until("503", || async {
        daemon.get(&format!("/wait?{}={}&timeout=5s", kind(), later())) == (503, "the cache gone is detached\n".into())
    })
    .await;
}

/// Writers with `synchronous_commit = off`: readers see their rows before the log is flushed, 200 to 400 ms later. With the nudge it
/// is flushed at once; and somebody who waits for a position that is not flushed yet nudges, too.
#[tokio::test]
async fn asynchronous_commits_are_brought_out() {
    if outbox() {
        // A poll reads what is visible, flushed or not.
        return;
    }
    // Without the nudge a commit is flushed within a third of the delay on average.
    for (nudge, delay) in [("off", "2s"), ("on", "10s")] {
        let world = World::with(&format!("fsync = on\nwal_writer_delay = {delay}\n"), crate::support::SCHEMA).await;
        world.setup(RULES);
        let daemon = world.watched_with(&["--flush-nudge", nudge, "--canary", "off"]);
        let (sql, cache) = (world.sql().await, world.cache(1).await);
        sql.batch_execute("SET synchronous_commit = off").await.unwrap();
        let mut took = Vec::new();
        for id in 0..10 {
            let key = format!("FirstModel.pk:{id}");
            redis::cmd("SET").arg(&key).arg("x").exec_async(&mut cache.clone()).await.unwrap();
            let begin = Instant::now();
            sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
            if nudge == "off" && id % 2 == 1 {
                // By waiting for it.
                let lsn: String = sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
                assert_eq!(daemon.get(&format!("/wait?lsn={lsn}&timeout=20s")).0, 200);
            }
            until("it is stale", || async {
                !redis::cmd("EXISTS").arg(&key).query_async::<bool>(&mut cache.clone()).await.unwrap()
            })
            .await;
            took.push(begin.elapsed());
        }
        if nudge == "off" {
            let (alone, waited): (Vec<_>, Vec<_>) = took.iter().enumerate().partition(|(id, _)| id % 2 == 0);
            println!("nudge off: {alone:.1?}; waited for: {waited:.1?}");
        } else {
            println!("nudge on: {took:.1?}");
            took.sort();
            assert!(took[5] < Duration::from_secs(4), "half of them within {:?}", took[5]);
        }
    }
}

#[tokio::test]
async fn the_canary_comes_through() {
    if outbox() {
        // There is no log to measure.
        return;
    }
    let world = World::new().await;
    world.setup(RULES);
    let daemon = world.watched_with(&["--canary", "100ms"]);
    // Anybody can send such a message; what is in it is not believed.
    let forged = "SELECT pg_logical_emit_message(false, 'waltag', 'canary x 1'), pg_logical_emit_message(true, 'waltag', repeat('x', 100000))";
    world.sql().await.batch_execute(forged).await.unwrap();
    until("three canaries", || async {
        let metrics = daemon.get("/metrics").1;
        let count = metrics.lines().find_map(|line| line.strip_prefix("waltag_canary_delay_seconds_count "));
        count.is_some_and(|count| count.parse::<u32>().unwrap() >= 3)
    })
    .await;
    assert_eq!(daemon.stop(), Some(0));
}

/// On request, beside the daemon or without it: what the rules reach, of one cache or one table, and nothing else.
#[tokio::test]
async fn resync_on_request() {
    let world = World::new().await;
    world.setup(RULES);
    let (mut default, mut alias) = (world.cache(0).await, world.cache(1).await);
    let fill = async |default: &mut redis::aio::MultiplexedConnection,
                      alias: &mut redis::aio::MultiplexedConnection| {
        for key in ["SecondModel.pk:1", "SecondModel", "CategoryModel.pk:1.TypeModel.pk:2", "session:5"] {
            redis::cmd("SET").arg(key).arg("x").exec_async(default).await.unwrap();
        }
        for key in ["FirstModel.pk:1", "FirstModel.pk:1:session", "FirstModel.pk:x"] {
            redis::cmd("SET").arg(key).arg("x").exec_async(alias).await.unwrap();
        }
    };
    let left = async |cache: &mut redis::aio::MultiplexedConnection| {
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(cache).await.unwrap();
        keys.retain(|key| !key.starts_with("waltag:"));
        keys.sort();
        keys
    };
    fill(&mut default, &mut alias).await;
    let said = succeed(&mut world.waltag("waltag", &["resync", "--dry-run"]));
    assert!(said.contains("default: 3 keys would be") && said.contains("my_cache_alias: 1 keys would be"), "{said}");
    assert_eq!(left(&mut default).await.len() + left(&mut alias).await.len(), 7);
    succeed(&mut world.waltag("waltag", &["resync", "--table", "first_model"]));
    assert_eq!(left(&mut default).await.len(), 4);
    assert_eq!(left(&mut alias).await, ["FirstModel.pk:1:session", "FirstModel.pk:x"]);
    fill(&mut default, &mut alias).await;
    succeed(&mut world.waltag("waltag", &["resync", "--cache", "default", "--resync-rate", "100"]));
    assert_eq!(left(&mut default).await, ["session:5"]);
    assert_eq!(left(&mut alias).await.len(), 3);
    let said = fail(&mut world.waltag("waltag", &["resync", "--cache", "defualt"]), 64);
    assert!(said.contains("did you mean default?"), "{said}");
    let said = fail(&mut world.waltag("waltag", &["resync", "--table", "frist_model"]), 64);
    assert!(said.contains("did you mean public.first_model?"), "{said}");
}
