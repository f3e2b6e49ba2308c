//! What nobody expected to stand in a Redis, a rule file or a row: each of these left something stale, or dropped too much.

use std::process::Command;

use redis::aio::MultiplexedConnection;

use crate::support::{World, fail, fill, is_gone, succeed};

async fn run(cache: &mut MultiplexedConnection, words: &[&str]) -> redis::Value {
    let (name, arguments) = words.split_first().unwrap();
    redis::cmd(name).arg(arguments).query_async(cache).await.unwrap()
}

/// `waltag invalidate` with one cache of this dialect.
fn invalidate(world: &World, dialect: &str, tags: &[&str]) -> Command {
    world.rules(&format!("{{version: 1, caches: {{c: {{url: \"{{redis}}/0\", dialect: {dialect}}}}}}}"));
    let mut command = world.waltag("waltag", &["invalidate"]);
    command.args(tags);
    command
}

/// Before 5.4 Symfony counts, and a counter that is gone is 0; later releases use the same key.
#[tokio::test]
async fn a_counter_beside_a_version_is_never_dropped() {
    let world = World::new().await;
    let mut cache = world.cache(0).await;
    let key = "ns:t\0tags\0";
    for (before, after) in [("i:5;", "i:6;"), ("i:-9223372036854775807;", "i:1"), ("i:9007199254740992;", "i:1")] {
        run(&mut cache, &["SET", key, before]).await;
        succeed(&mut invalidate(&world, "symfony-tag-aware, namespace: ns, release: ['4.4', '5.4']", &["t"]));
        let value: String = redis::cmd("GET").arg(key).query_async(&mut cache).await.unwrap();
        assert!(value.starts_with(after) && value.len() < 16, "{before} became {value}");
    }
}

/// The handler itself stores objects in that field; one that lies in the future would hide ours.
#[tokio::test]
async fn a_stamp_replaces_what_is_none() {
    let world = World::new().await;
    let mut cache = world.cache(0).await;
    let hash = "t:__cacheComponents_revalidated_tags__";
    run(&mut cache, &["HSET", hash, "a", "{\"expired\":9999999999999,\"stale\":1}"]).await;
    succeed(&mut invalidate(&world, "nextjs-turbo, key_prefix: 't:'", &["a"]));
    let value: String = redis::cmd("HGET").arg(&[hash, "a"]).query_async(&mut cache).await.unwrap();
    assert!(value.parse::<u64>().is_ok(), "{value}");
}

/// A list of tags with something else in it, and one that is no list.
#[tokio::test]
async fn an_index_that_is_half_readable() {
    let world = World::new().await;
    let mut cache = world.cache(0).await;
    run(&mut cache, &["HSET", "t:__sharedTags__", "page", "[\"a\",null]", "odd", "no json", "other", "[\"b\"]"]).await;
    for key in ["t:page", "t:odd", "t:other"] {
        fill(&mut cache, key).await;
    }
    succeed(&mut invalidate(&world, "nextjs-turbo, key_prefix: 't:'", &["a"]));
    assert!(is_gone(&cache, "t:page").await && is_gone(&cache, "t:odd").await && !is_gone(&cache, "t:other").await);
    run(&mut cache, &["DEL", "t:__sharedTags__"]).await;
    run(&mut cache, &["SET", "t:__sharedTags__", "no hash"]).await;
    succeed(&mut invalidate(&world, "nextjs-turbo, key_prefix: 't:'", &["a"]));
}

/// One index key of another type must not hold up the other members of the tag.
#[tokio::test]
async fn a_reverse_index_of_another_type() {
    let world = World::new().await;
    let mut cache = world.cache(0).await;
    let fill = "for i = 1, 600 do redis.call('SET', 'm' .. i, 'x') redis.call('SADD', 'r:a', 'm' .. i) redis.call('SADD', 'k:m' .. i, 'a') end
        redis.call('DEL', 'k:m7') redis.call('SET', 'k:m7', 'x')";
    run(&mut cache, &["EVAL", fill, "0"]).await;
    succeed(&mut invalidate(&world, "async-cache-dedupe", &["a"]));
    let left: Vec<String> = redis::cmd("KEYS").arg("*m*").query_async(&mut cache).await.unwrap();
    assert_eq!(left, [""; 0]);
    assert!(is_gone(&cache, "r:a").await);
}

/// `posts:1` under a prefix is reached by its tag in a sweep as well; an empty tag reaches nothing.
#[tokio::test]
async fn a_prefix_in_place_of_what_is_unknown() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: prefix}}, rules: [{table: first_model, tags: [{tag: "<id>", unknown: ["posts"]}]}]}"#,
    );
    let mut cache = world.cache(0).await;
    for key in ["posts:1", "other"] {
        fill(&mut cache, key).await;
    }
    succeed(&mut world.waltag("waltag", &["resync"]));
    assert!(is_gone(&cache, "posts:1").await && !is_gone(&cache, "other").await);
    assert!(fail(&mut world.waltag("waltag", &["invalidate", ""]), 64).contains("empty"));
    assert!(!is_gone(&cache, "other").await);
}

/// A table of two words, a set of conditions that is too large for one script, and one that is another's.
#[tokio::test]
async fn rows_of_an_odd_table() {
    let world = World::with(
        "",
        "CREATE TABLE \"my {table\" (id int PRIMARY KEY, name text); INSERT INTO \"my {table\" VALUES (7, 'a')",
    )
    .await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: django-cacheops}}, rules: [{table: '"my {table"', rows: true}]}"#,
    );
    let (sql, mut cache, daemon) = (world.sql().await, world.cache(0).await, world.daemon());
    let fill = "redis.call('SADD', 'schemes:my {table', 'id', 'name')
        for i = 1, 2000 do redis.call('SET', 'q:' .. i, 'x') redis.call('SADD', 'conj:my {table:id=7', 'q:' .. i) end
        redis.call('SET', 'q:b', 'x') redis.call('SADD', 'conj:my {table:name=b', 'q:b')
        redis.call('SET', 'q:c', 'x') redis.call('SADD', 'conj:my {table:name=c', 'q:c')";
    run(&mut cache, &["EVAL", fill, "0"]).await;
    sql.batch_execute("UPDATE \"my {table\" SET name = 'b'").await.unwrap();
    world.settled(&sql).await;
    let left: Vec<String> = redis::cmd("KEYS").arg("q:*").query_async(&mut cache).await.unwrap();
    assert_eq!(left, ["q:c"], "{}", daemon.log());
}

/// In a cache whose tags are looked for, thousands at once are one pass.
#[tokio::test]
async fn ten_thousand_prefixes() {
    let world = World::new().await;
    world.setup(r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: prefix, prefix_only: ['o:']}}, rules: [{table: first_model, tags: ["u:<id>:"]}]}"#);
    let (sql, mut cache, daemon) = (world.sql().await, world.cache(0).await, world.daemon());
    let fill = "for i = ARGV[1] + 1, ARGV[1] + 2000 do redis.call('SET', 'u:' .. i .. ':x', 'x') redis.call('SET', 'o:' .. i, 'x') end";
    for start in (0..20_000).step_by(2_000) {
        run(&mut cache, &["EVAL", fill, "0", &start.to_string()]).await;
    }
    for (from, to) in [(1, 3_000), (3_001, 13_000)] {
        sql.batch_execute(&format!("INSERT INTO first_model SELECT n FROM generate_series({from}, {to}) n"))
            .await
            .unwrap();
        world.settled(&sql).await;
        assert!(is_gone(&cache, &format!("u:{from}:x")).await && is_gone(&cache, &format!("u:{to}:x")).await);
        // Beyond 4,096 everything of the rules goes.
        assert_eq!(is_gone(&cache, "u:20000:x").await, to > 4_096, "{}", daemon.log());
    }
    assert!(!is_gone(&cache, "o:7").await);
    // Tags that somebody names are none of those: nothing stands for them.
    let named = |from: i32, to: i32| {
        format!("SELECT waltag.invalidate(VARIADIC array_agg('o:' || n)) FROM generate_series({from}, {to}) n")
    };
    sql.batch_execute(&format!("BEGIN; {}; {}; COMMIT", named(1001, 4000), named(4001, 7000))).await.unwrap();
    world.settled(&sql).await;
    assert!(is_gone(&cache, "o:1001").await && is_gone(&cache, "o:7000").await, "{}", daemon.log());
    assert!(!is_gone(&cache, "o:8001").await);
}

/// Each batch is a sweep there, and owes repeats: the position must go on while writes do.
#[tokio::test]
async fn a_cache_that_is_swept_all_the_time_still_confirms() {
    let world = World::new().await;
    world.setup(r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: prefix, repeat: [1s, 2s]}}, rules: [{table: first_model, tags: ["u:<id>:"]}]}"#);
    let (sql, mut cache, daemon) = (world.sql().await, world.cache(0).await, world.daemon());
    let fill = "for i = ARGV[1] + 1, ARGV[1] + 2000 do redis.call('SET', 'o:' .. i, 'x') end";
    for start in (0..60_000).step_by(2_000) {
        run(&mut cache, &["EVAL", fill, "0", &start.to_string()]).await;
    }
    let writer = world.sql().await;
    let load = tokio::spawn(async move {
        loop {
            writer
                .batch_execute("INSERT INTO first_model VALUES (7) ON CONFLICT (id) DO UPDATE SET name = 'x'")
                .await
                .unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        }
    });
    for _ in 0..2 {
        world.settled(&sql).await;
    }
    assert!(!load.is_finished());
    load.abort();
    assert!(!daemon.log().contains("sweep complete"), "one line for each batch");
}

/// The password of a socket's URL stands in its query.
#[tokio::test]
async fn detect_keeps_the_password_of_a_socket() {
    let world = World::new().await;
    let mut cache = world.cache(0).await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis.sock");
    for number in 0..3_000 {
        run(&mut cache, &["SADD", &format!("user{number}:tag:x"), "m"]).await;
        run(&mut cache, &["SADD", &format!("_tag:{number}"), "m"]).await;
    }
    let url = format!("redis+unix://{}?db=0&user=default&pass=hunter2", socket.display());
    let said = fail(Command::new(env!("CARGO_BIN_EXE_waltag")).args(["detect", &url]), 69);
    assert!(!said.contains("hunter2"), "{said}");
    let said = succeed(Command::new(env!("CARGO_BIN_EXE_waltag")).args(["detect", &world.redis.url(0)]));
    assert!(said.contains("dialect: cashews") && !said.contains("vendure"), "somebody's keys are no options\n{said}");
}
