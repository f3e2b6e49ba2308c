//! What is sent for a tag in each format, and what a set of a million members costs.

use std::process::Command;

use redis::aio::MultiplexedConnection;

use crate::support::{World, fail, fill, is_gone, succeed, until};

/// Dialect, options, tag, and the commands: `N` stands for a random number or a time, `S` for a script's hash.
const SENT: &[(&str, &str, &str, &[&str])] = &[
    ("keys", "", "user:<id>", &["UNLINK user:7"]),
    ("counter", "absent: stale", "t:<id>", &["INCR t:7"]),
    ("version", "absent: stale, ttl: 1h", "t:<id>", &["SET t:7 N XX EX 3600"]),
    ("version", "absent: valid, ttl: 1h, sweep: switch, switch: all", "t:<id>", &["SET t:7 N EX 3600"]),
    ("stamp", "absent: stale, ttl: 1h, unit: s", "t:<id>", &["EVALSHA S 1 t:7 N 3601000 0 N"]),
    // Research: clients-php.md, section 2.
    ("drupal", "cache_prefix: d", "CategoryModel.pk:<id>", &["INCR d:cachetags:CategoryModel.pk:7"]),
    (
        "magento",
        "id_prefix: 69d_",
        "CategoryModel.pk:<id>",
        &["EVALSHA S 1 zc:ti:69d_CATEGORYMODEL__PK_7 0 SSCAN 250 keep N \"\" \"\" \"\" zc:k: \"\""],
    ),
    (
        "typo3",
        "",
        "CategoryModel-<id>",
        &["EVALSHA S 1 tagIdents:CategoryModel-7 0 SSCAN 250 drop N \"\" identTags: tagIdents: identData: \"\""],
    ),
    (
        "neos",
        "prefix: 'a:c:'",
        "CategoryModel-<id>",
        &["EVALSHA S 1 a:c:tag:CategoryModel-7 0 SSCAN 250 drop N \"\" a:c:tags: a:c:tag: a:c:entry: \"\""],
    ),
    (
        "nette",
        "",
        "CategoryModel.pk:<id>",
        &["EVALSHA S 1 Contributte.Journal:CategoryModel.pk:7:keys 0 SSCAN 250 gone N \"\" \"\" \"\" \"\" \"\""],
    ),
    ("cakephp", "prefix: cake_app_", "post", &["INCR cake_app_post"]),
    (
        "yii2",
        "keyPrefix: myapp, serializer: igbinary",
        "CategoryModel.pk:<id>",
        &["UNLINK myappf7849c45168814495b3588cd555584b4"],
    ),
    (
        "symfony-tag-aware",
        "namespace: app1, release: '4.4'",
        "category.<id>",
        &["EVALSHA S 1 \"app1:category.7\\x00tags\\x00\""],
    ),
    // Research: clients-python-node-dotnet-go.md, sections 4 and 5.
    (
        "aspnet-output-cache",
        "instance: i",
        "c:<id>",
        &["EVALSHA S 1 i__MSOCT_c:7 0 ZSCAN 250 drop N \"\" \"\" \"\" i__MSOCV_ \"\""],
    ),
    ("gocache", "", "c:<id>", &["EVALSHA S 1 gocache_tag_c:7 0 SSCAN 250 drop N \"\" \"\" \"\" \"\" \"\""]),
    (
        "fusioncache",
        "instance: i, prefix: 'p:', serializer: newtonsoft",
        "c:<id>",
        &[
            "EVALSHA S 1 iv2:p:__fc:t:c:7 N N 0 data \"{\\\"v\\\":N,\\\"t\\\":N,\\\"l\\\":N}\" absexp N sldexp -1",
            "PUBLISH FusionCache.Backplane:v2 B",
        ],
    ),
];

fn offline(arguments: &[&str], text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.yaml");
    std::fs::write(&path, text).unwrap();
    succeed(Command::new(env!("CARGO_BIN_EXE_waltag")).env_clear().args(arguments).arg("--rules").arg(&path))
}

/// Numbers of 8 digits or more, hashes and binary messages.
fn masked(command: &str) -> String {
    let command = command.split("  # ").next().unwrap();
    let digits = regex::Regex::new(r"\b[0-9a-f]{40}\b").unwrap().replace_all(command, "S");
    let masked = regex::Regex::new(r"\b[0-9]{8,}\b").unwrap().replace_all(&digits, "N");
    regex::Regex::new(r#"(PUBLISH \S+) "\\x00.*"#).unwrap().replace_all(&masked, "$1 B").into_owned()
}

#[test]
fn what_is_sent_for_a_tag() {
    for (dialect, options, tag, expected) in SENT {
        let options = if options.is_empty() { String::new() } else { format!(", {options}") };
        let text = format!(
            "{{version: 1, caches: {{c: {{url: 'redis://h', dialect: {dialect}{options}, accept_unverified: true}}}}, rules: [{{table: t, tags: [\"{tag}\"]}}]}}"
        );
        let said = offline(&["explain", "t", "--new", r#"{"id": 7}"#], &text);
        let commands: Vec<String> = said.lines().filter_map(|line| Some(masked(line.strip_prefix("    ")?))).collect();
        assert_eq!(commands, *expected, "{dialect}{options}\n{said}");
    }
}

async fn add(cache: &mut MultiplexedConnection, command: &[&str]) {
    let (name, arguments) = command.split_first().unwrap();
    redis::cmd(name).arg(arguments).exec_async(cache).await.unwrap();
}

/// The two examples of docs/dialects.md.
#[tokio::test]
async fn custom_formats() {
    let page = std::fs::read_to_string(crate::support::root().join("docs/dialects.md")).unwrap();
    let examples: Vec<String> =
        page.split("```yaml\n").skip(1).map(|part| part.split("```").next().unwrap().to_owned()).collect();
    assert_eq!(examples.len(), 2);
    let world = World::new().await;
    let urls = examples.iter().enumerate().map(|(at, example)| {
        let indented = example.replace("redis://127.0.0.1:6379/3", &format!("'{{redis}}/{at}'\n    repeat: [1s]"));
        indented.lines().skip_while(|line| !line.starts_with("  ")).map(|line| format!("{line}\n")).collect::<String>()
    });
    let caches: String = urls.collect();
    world.setup(&format!(
        "version: 1\ncaches:\n{caches}rules:\n  - {{table: first_model, caches: [pages, fragments], tags: [\"user:<id>\"]}}\n"
    ));
    let sql = world.sql().await;
    let (mut pages, mut fragments) = (world.cache(0).await, world.cache(1).await);
    let daemon = world.daemon();
    add(&mut pages, &["SADD", "app:tag:user:7", "home", "profile"]).await;
    for key in ["app:page:home", "app:page:profile", "app:page:other"] {
        fill(&mut pages, key).await;
    }
    add(&mut fragments, &["SET", "app:counter:user:7", "3"]).await;
    sql.batch_execute("INSERT INTO first_model VALUES (7, 'x')").await.unwrap();
    world.settled(&sql).await;
    assert!(is_gone(&pages, "app:page:home").await && is_gone(&pages, "app:page:profile").await);
    assert!(!is_gone(&pages, "app:page:other").await && is_gone(&pages, "app:tag:user:7").await);
    let count: u64 = redis::cmd("GET").arg("app:counter:user:7").query_async(&mut fragments).await.unwrap();
    assert_eq!(count, 5, "the first pass and its repeat");
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    let all: u64 = redis::cmd("GET").arg("app:counter:all").query_async(&mut fragments).await.unwrap();
    assert!(all >= 2, "{all}\n{}", daemon.log());
}

/// Laravel 10 to 13.2x writes the link before the record: an invalidation in between must leave the link, or the record could never
/// be found again.
#[tokio::test]
async fn a_link_whose_record_is_still_to_come_is_kept() {
    let world = World::new().await;
    world.setup(r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: laravel, option_prefix: "", prefix: "", repeat: []}}, rules: [{table: first_model, tags: ["u:<id>"]}]}"#);
    let (sql, mut cache, daemon) = (world.sql().await, world.cache(0).await, world.daemon());
    let sha1 = "007a3a860a26108b86086bd5b3ef761b8b5eb2f7";
    let (coming, dead, forever) = (format!("{sha1}:coming"), format!("{sha1}:dead"), format!("{sha1}:forever"));
    add(&mut cache, &["ZADD", "tag:u:7:entries", "4102444800", &coming, "1000", &dead, "-1", &forever]).await;
    fill(&mut cache, &forever).await;
    sql.batch_execute("INSERT INTO first_model VALUES (7, 'x')").await.unwrap();
    world.settled(&sql).await;
    let links: Vec<String> =
        redis::cmd("ZRANGE").arg(&["tag:u:7:entries", "0", "-1"]).query_async(&mut cache).await.unwrap();
    assert_eq!(links, std::slice::from_ref(&coming), "expired and dropped ones go");
    fill(&mut cache, &coming).await;
    sql.batch_execute("UPDATE first_model SET name = 'y'").await.unwrap();
    world.settled(&sql).await;
    assert!(is_gone(&cache, &coming).await);
    // What phpredis serialized is not a member as Laravel writes it: nothing may be dropped.
    add(&mut cache, &["ZADD", "tag:u:8:entries", "-1", &format!("s:44:\"{coming}\";")]).await;
    sql.batch_execute("INSERT INTO first_model VALUES (8, 'x')").await.unwrap();
    daemon.wait_for("serializer");
    let left: u64 = redis::cmd("ZCARD").arg("tag:u:8:entries").query_async(&mut cache).await.unwrap();
    assert_eq!(left, 1);
}

/// A stamp is never lowered, whatever stands there: by a later pass, a clock that went back, another daemon.
#[tokio::test]
async fn stamps_never_go_back() {
    let world = World::new().await;
    let mut cache = world.cache(0).await;
    let invalidate = |dialect: &str, tag: &str| {
        let text = format!("{{version: 1, caches: {{c: {{url: \"{}\", dialect: {dialect}}}}}}}", world.redis.url(0));
        offline(&["invalidate", tag], &text);
    };
    let future = "9999999999999";
    for (dialect, key, value) in [
        ("stamp, absent: stale, ttl: 1h", "t:1", future.to_owned()),
        ("bentocache", "bentocache:___bc:t:t:1", format!("{{\"value\":{future},\"tags\":[],\"createdAt\":1}}")),
    ] {
        add(&mut cache, &["SET", key, &value]).await;
        invalidate(dialect, "t:1");
        let left: String = redis::cmd("GET").arg(key).query_async(&mut cache).await.unwrap();
        assert_eq!(left, value, "{dialect}");
        add(&mut cache, &["SET", key, &value.replace(future, "5")]).await;
        invalidate(dialect, "t:1");
        let left: String = redis::cmd("GET").arg(key).query_async(&mut cache).await.unwrap();
        assert!(left.len() >= 13, "{dialect}: {left}");
    }
    add(&mut cache, &["HSET", "n:__revalidated_tags__", "t:1", future, "t:2", "5"]).await;
    invalidate("nextjs, key_prefix: 'n:'", "t:1");
    invalidate("nextjs, key_prefix: 'n:'", "t:2");
    let stamps: Vec<u64> =
        redis::cmd("HMGET").arg(&["n:__revalidated_tags__", "t:1", "t:2"]).query_async(&mut cache).await.unwrap();
    assert!(stamps[0] == future.parse::<u64>().unwrap() && stamps[1] > 1_000_000_000_000, "{stamps:?}");
    // As django-cachalot pickles a float: the year 2100.
    let pickle = [b"\x80\x04\x95\n\0\0\0\0\0\0\0G".as_slice(), &4_102_444_800_f64.to_be_bytes(), b"."].concat();
    let key = ":1:7a3a18b4ed1ce3d1ab3ab8d4c7fcd4e3a0cf1b09";
    let text = format!(
        "{{version: 1, caches: {{c: {{url: \"{}\", dialect: custom, absent: stale, commands: [\"STAMP <tag> <now_s>\"]}}}}}}",
        world.redis.url(0)
    );
    redis::cmd("SET").arg(key).arg(&pickle).exec_async(&mut cache).await.unwrap();
    offline(&["invalidate", key], &text);
    let left: Vec<u8> = redis::cmd("GET").arg(key).query_async(&mut cache).await.unwrap();
    assert_eq!(left, pickle);
}

/// Nobody drops the fields of the Next.js handlers' hash but whoever writes them.
#[tokio::test]
async fn old_stamps_are_dropped_by_and_by() {
    let world = World::new().await;
    let mut cache = world.cache(0).await;
    let fill = "for i = 1, 500 do redis.call('HSET', KEYS[1], 'old:' .. i, 1000 + i) end";
    redis::cmd("EVAL").arg(fill).arg(1).arg("__revalidated_tags__").exec_async(&mut cache).await.unwrap();
    let text =
        format!("{{version: 1, caches: {{c: {{url: \"{}\", dialect: nextjs, max_age: 1d}}}}}}", world.redis.url(0));
    let tags: Vec<String> = (0..500).map(|number| format!("new:{number}")).collect();
    let arguments: Vec<&str> = ["invalidate"].into_iter().chain(tags.iter().map(String::as_str)).collect();
    offline(&arguments, &text);
    let fields: Vec<String> = redis::cmd("HKEYS").arg("__revalidated_tags__").query_async(&mut cache).await.unwrap();
    let (old, new): (Vec<&String>, Vec<&String>) = fields.iter().partition(|field| field.starts_with("old:"));
    assert!(old.len() < 250 && new.len() == 500, "{} old, {} new", old.len(), new.len());
}

/// A prefix stands for every key that begins so, and for none that only looks like it.
#[tokio::test]
async fn a_prefix_is_swept() {
    let world = World::new().await;
    world.setup(r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: prefix, repeat: [4s]}}, rules: [{table: first_model, tags: ["cat[1]::<id>:"]}]}"#);
    let (sql, mut cache, daemon) = (world.sql().await, world.cache(0).await, world.daemon());
    for key in ["cat[1]::7:a", "cat[1]::7:b", "cat[1]::77:a", "cat1::7:a", "waltag:x"] {
        fill(&mut cache, key).await;
    }
    sql.batch_execute("INSERT INTO first_model VALUES (7, 'x')").await.unwrap();
    until("swept", || is_gone(&cache, "cat[1]::7:a")).await;
    assert!(is_gone(&cache, "cat[1]::7:b").await);
    // Stored by a reader that was computing.
    fill(&mut cache, "cat[1]::7:late").await;
    world.settled(&sql).await;
    assert!(is_gone(&cache, "cat[1]::7:late").await, "the repeat\n{}", daemon.log());
    for key in ["cat[1]::77:a", "cat1::7:a", "waltag:x"] {
        assert!(!is_gone(&cache, key).await, "{key}");
    }
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    assert!(is_gone(&cache, "cat[1]::77:a").await && !is_gone(&cache, "cat1::7:a").await);
}

/// What a live Redis says of its clients is a rule file's `caches:`.
#[tokio::test]
async fn detect_proposes_what_check_accepts() {
    let world = World::new().await;
    let mut cache = world.cache(0).await;
    let url = world.redis.url(0);
    let detect = || succeed(Command::new(env!("CARGO_BIN_EXE_waltag")).env_clear().args(["detect", &url]));
    assert!(detect().contains("none of the known clients"));
    for number in 0..300 {
        add(&mut cache, &["SADD", &format!("app1:\u{1}tags\u{1}category.{number}"), "app1:x"]).await;
        add(&mut cache, &["SET", &format!("app:2:tag_07743_{number:032x}"), "1"]).await;
    }
    fill(&mut cache, "session:1").await;
    let said = detect();
    assert!(said.contains("dialect: symfony-redis-tag-aware\n    namespace: \"app1\""), "{said}");
    assert!(said.contains("dialect: cache-dependencies\n    key_prefix: \"app\"\n    version: \"2\""), "{said}");
    assert!(said.contains("300 keys look like"), "{said}");
    offline(&["check"], &format!("version: 1\n{said}"));
    let size: u64 = redis::cmd("DBSIZE").query_async(&mut cache).await.unwrap();
    assert_eq!(size, 601, "nothing was written");
    let secret = fail(Command::new(env!("CARGO_BIN_EXE_waltag")).args(["detect", "redis://:hidden@127.0.0.1:1/0"]), 69);
    assert!(!secret.contains("hidden"), "{secret}");
}

/// Redis is never held up for long, and members that a writer adds meanwhile are not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute: scripts/test clients"]
async fn a_million_members() {
    const MEMBERS: u64 = 1_000_000;
    let world = World::new().await;
    world.setup(r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: gocache, accept_unverified: true, repeat: []}}, rules: [{table: first_model, tags: ["c:<id>"]}]}"#);
    let (sql, mut cache, daemon) = (world.sql().await, world.cache(0).await, world.daemon());
    let fill = "for i = tonumber(ARGV[1]), ARGV[1] + 9999 do redis.call('SET', 'r:' .. i, 'x') redis.call('SADD', KEYS[1], 'r:' .. i) end";
    for start in (0..MEMBERS).step_by(10_000) {
        redis::cmd("EVAL").arg(fill).arg(1).arg("gocache_tag_c:7").arg(start).exec_async(&mut cache).await.unwrap();
    }
    add(&mut cache, &["CONFIG", "SET", "slowlog-log-slower-than", "500"]).await;
    add(&mut cache, &["SLOWLOG", "RESET"]).await;
    let mut writer = world.cache(0).await;
    let adding = tokio::spawn(async move {
        for number in 0..2_000 {
            let key = format!("late:{number}");
            add(&mut writer, &["SET", &key, "x"]).await;
            add(&mut writer, &["SADD", "gocache_tag_c:7", &key]).await;
        }
    });
    let begin = std::time::Instant::now();
    sql.batch_execute("INSERT INTO first_model VALUES (7, 'x')").await.unwrap();
    world.settled_within(&sql, std::time::Duration::from_secs(120)).await;
    let took = begin.elapsed();
    adding.await.unwrap();
    let slow: Vec<redis::Value> = redis::cmd("SLOWLOG").arg("GET").arg("-1").query_async(&mut cache).await.unwrap();
    let longest = slow.iter().filter_map(|entry| match entry {
        redis::Value::Array(fields) => redis::from_redis_value_ref::<u64>(fields.get(2)?).ok(),
        _ => None,
    });
    println!("{MEMBERS} members took {took:.1?}; the longest command {} µs", longest.max().unwrap_or_default());
    // Each record is gone or linked.
    let keys: Vec<String> = redis::cmd("KEYS").arg("*:*").query_async(&mut cache).await.unwrap();
    let linked: std::collections::HashSet<String> =
        redis::cmd("SMEMBERS").arg("gocache_tag_c:7").query_async(&mut cache).await.unwrap();
    let records: Vec<&String> = keys.iter().filter(|key| key.starts_with("r:") || key.starts_with("late:")).collect();
    assert!(records.iter().all(|key| linked.contains(*key)), "{} records", records.len());
    assert!(!records.iter().any(|key| key.starts_with("r:")), "those that were there before");
    sql.batch_execute("UPDATE first_model SET name = 'y'").await.unwrap();
    world.settled(&sql).await;
    let left: Vec<String> = redis::cmd("KEYS").arg("late:*").query_async(&mut cache).await.unwrap();
    assert_eq!(left.len(), 0, "{}", daemon.log());
}
