//! Every client library that can be installed reads a cache that a daemon keeps fresh. `scripts/test clients` installs them.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::reader::{Reader, libraries};
use crate::support::{LIMIT, World, root, succeed};

/// Where a library runs.
#[derive(Clone, Copy, PartialEq)]
enum Runtime {
    Node,
    Python,
    /// Debian 12's packages.
    Php,
    /// Those of Debian sid.
    Sid,
    /// The readers of docs/reading.
    Reading,
}

/// A library, and the cache that waltag keeps for it.
struct Case {
    runtime: Runtime,
    client: &'static str,
    /// Of the reader.
    options: &'static str,
    dialect: &'static str,
    /// Of the dialect, in YAML.
    settings: &'static str,
    /// What stands before the number in a tag.
    tag: &'static str,
    /// A reader that is late stores nothing that is taken for fresh.
    closed: bool,
    /// It compares times.
    stamps: bool,
}

const fn case(
    runtime: Runtime,
    client: &'static str,
    options: &'static str,
    dialect: &'static str,
    settings: &'static str,
) -> Case {
    Case { runtime, client, options, dialect, settings, tag: "CategoryModel.pk:", closed: false, stamps: false }
}

use Runtime::{Node, Php, Python, Reading, Sid};

/// docs/reading.md: versions are taken before the computation, so no repeat is needed.
const READ: Case = Case {
    closed: true,
    tag: "tag:CategoryModel.pk:",
    ..case(Reading, "reader.py", "", "version", "absent: stale, ttl: 1d")
};

const CASES: [Case; 28] = [
    case(Python, "cashews", "{}", "cashews", ""),
    Case {
        tag: "CategoryModel.pk:",
        ..case(
            Python,
            "cashews",
            r#"{"client_side": true, "protocol": 2}"#,
            "cashews",
            "client_side_prefix: 'cashews:'",
        )
    },
    case(Python, "redis-tagged-cache", r#"{"namespace": "foo"}"#, "redis-tagged-cache", "namespace: foo"),
    Case {
        stamps: true,
        ..case(Node, "nextjs-neshca", r#"{"keyPrefix": "nxt:"}"#, "nextjs", "key_prefix: ['nxt:', 'old:']")
    },
    Case {
        stamps: true,
        ..case(Node, "nextjs-neshca", r#"{"keyPrefix": "nxt:", "kind": "APP_PAGE"}"#, "nextjs", "key_prefix: 'nxt:'")
    },
    Case {
        stamps: true,
        ..case(
            Node,
            "nextjs-fortedigital",
            r#"{"keyPrefix": "nxt:"}"#,
            "nextjs",
            "key_prefix: 'nxt:', handler: fortedigital",
        )
    },
    case(
        Node,
        "nextjs-turbo",
        r#"{"keyPrefix": "t:", "redisGetDeduplication": false}"#,
        "nextjs-turbo",
        "key_prefix: 't:'",
    ),
    Case {
        closed: true,
        ..case(Node, "nextjs-turbo-use-cache", r#"{"keyPrefix": "t:"}"#, "nextjs-turbo", "key_prefix: 't:'")
    },
    Case { closed: true, ..case(Node, "nextjs-cache-components", "{}", "nextjs-cache-components", "") },
    Case { stamps: true, ..case(Node, "bentocache", "{}", "bentocache", "") },
    Case {
        stamps: true,
        ..case(
            Node,
            "bentocache",
            r#"{"l1": true, "prefix": "p", "namespace": "users"}"#,
            "bentocache",
            "prefix: p, namespace: users, bus: redis",
        )
    },
    case(Node, "async-cache-dedupe", r#"{"referencesTTL": 3600}"#, "async-cache-dedupe", ""),
    case(Node, "cacheable", r#"{"l1": false}"#, "cacheable", ""),
    Case {
        tag: "",
        ..case(
            Node,
            "layered-loader",
            r#"{"l1": true, "prefix": "cat", "channel": "cat-channel"}"#,
            "layered-loader",
            "prefix: cat, channel: cat-channel",
        )
    },
    case(Node, "envelop-response-cache", "{}", "envelop-response-cache", ""),
    case(Node, "medusa", "{}", "medusa", ""),
    case(Node, "vendure", "{}", "vendure", ""),
    case(Node, "redis-tag-cache", "{}", "set", "tag_prefix: 'tags:', prefix: 'data:'"),
    Case {
        tag: "category.",
        ..case(
            Php,
            "symfony-redis-tag-aware",
            r#"{"namespace": "app1"}"#,
            "symfony-redis-tag-aware",
            "namespace: app1, release: '5.4'",
        )
    },
    Case {
        tag: "category.",
        ..case(
            Sid,
            "symfony-redis-tag-aware",
            r#"{"namespace": "app1", "option_prefix": "P_"}"#,
            "symfony-redis-tag-aware",
            "namespace: app1, option_prefix: P_",
        )
    },
    Case {
        tag: "category.",
        ..case(
            Php,
            "symfony-tag-aware",
            r#"{"namespace": "app1"}"#,
            "symfony-tag-aware",
            "namespace: app1, release: '5.4'",
        )
    },
    Case {
        tag: "category.",
        ..case(Sid, "symfony-tag-aware", r#"{"namespace": "app1"}"#, "symfony-tag-aware", "namespace: app1")
    },
    case(Php, "laravel", r#"{"prefix": "laravel_cache_", "option_prefix": "laravel_database_"}"#, "laravel-9", ""),
    case(Sid, "laravel", r#"{"prefix": "laravel-cache-", "option_prefix": "laravel-database-"}"#, "laravel", ""),
    READ,
    Case { client: "reader.php", ..READ },
    Case { client: "reader.mjs", ..READ },
    Case { client: "reader", ..READ },
];

impl Case {
    fn reader(&self, world: &World, options: &str) -> Reader {
        self.reader_at(&world.redis.url(2), options)
    }

    fn reader_at(&self, url: &str, options: &str) -> Reader {
        let (libraries, clients) = (libraries(), root().join("tests/clients"));
        let mut command = match self.runtime {
            Node => {
                let mut command = Command::new(libraries.join("node/node_modules/.bin/node"));
                command.arg(clients.join("node/reader.mjs")).arg("--modules").arg(libraries.join("node"));
                command
            }
            Python => {
                let own = libraries.join(format!("python/venv-{}/bin/python", self.client));
                let mut command =
                    Command::new(if own.exists() { own } else { libraries.join("python/venv/bin/python") });
                command.arg(clients.join("python/reader.py"));
                command
            }
            Php => {
                let mut command = Command::new("php");
                command.arg(clients.join("php/reader.php"));
                command
            }
            Sid => {
                let mut command = Command::new(clients.join("php/sid"));
                command.arg(libraries.join("php"));
                command
            }
            Reading => {
                let program = clients.join("reading").join(self.client);
                let mut command = match self.client {
                    "reader.py" => Command::new(libraries.join("python/venv/bin/python")),
                    "reader.php" => Command::new("php"),
                    "reader.mjs" => Command::new(libraries.join("node/node_modules/.bin/node")),
                    _ => Command::new(libraries.join("reading/reader")),
                };
                if self.client.contains('.') {
                    command.arg(program);
                }
                return Reader::start(command.arg(url).arg(libraries.join("node")));
            }
        };
        Reader::start(command.args(["--client", self.client, "--url", url, "--options", options]))
    }

    /// Who reads what it has stored: the readers of docs/reading each other's records.
    fn peer(&self) -> &'static str {
        const LANGUAGES: [&str; 5] = ["reader.py", "reader.php", "reader.mjs", "reader", "reader.py"];
        let next = LANGUAGES.windows(2).find(|pair| pair[0] == self.client).map(|pair| pair[1]);
        next.unwrap_or(self.client)
    }

    fn setup(&self, world: &World, more: &str) {
        let Case { dialect, settings, tag, .. } = self;
        let settings = if settings.is_empty() { String::new() } else { format!(", {settings}") };
        world.setup(&format!(
            r#"{{version: 1, caches: {{default: {{url: "{{redis}}/2", dialect: {dialect}{settings}{more}}}}},
                rules: [{{table: shop.second_model, tags: ["{tag}<category_id>"]}}]}}"#
        ));
    }

    fn tag(&self, number: u32) -> String {
        format!("{}{number}", self.tag)
    }

    /// What a reader has, which shall be `wanted`: an in-process layer, which remembers misses too, is told by Redis, a moment after Redis
    /// itself has it.
    fn read(&self, reader: &mut Reader, key: &str, tag: &str, wanted: &Value) -> Value {
        let layered = self.options.contains("client_side") || self.options.contains("l1\": true");
        let deadline = Instant::now() + LIMIT;
        loop {
            let value = reader.get_with(key, &[tag]);
            if value == *wanted || !layered || Instant::now() > deadline {
                return value;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Which library it was.
    async fn run(&self) -> String {
        let world = World::new().await;
        self.setup(&world, "");
        let sql = world.sql().await;
        let rows = "INSERT INTO shop.second_model VALUES (7, 15, 1, 'a', 'x'), (8, 99, 1, 'b', 'x')";
        sql.batch_execute(rows).await.unwrap();
        let daemon = world.daemon();
        world.settled(&sql).await;
        // A second process has what the first one stored.
        let mut writer = self.reader(&world, self.options);
        let mut reader = Case { client: self.peer(), ..*self }.reader(&world, self.options);
        let [old, new, other, never, later] = [15, 16, 99, 77, 78].map(|number| self.tag(number));
        let fill = |writer: &mut Reader, reader: &mut Reader, key: &str, value: &str, tag: &str| {
            writer.set(key, value, &[tag]);
            assert_eq!(self.read(reader, key, tag, &json!(value)), json!(value), "{key} was set");
        };
        for key in ["a", "b", "c"] {
            fill(&mut writer, &mut reader, key, "old", &old);
        }
        fill(&mut writer, &mut reader, "moved", "old", &new);
        fill(&mut writer, &mut reader, "other", "other", &other);
        sql.batch_execute("UPDATE shop.second_model SET category_id = 16 WHERE id = 7").await.unwrap();
        world.settled(&sql).await;
        let gone = |reader: &mut Reader, key: &str, tag: &str, why: &str| {
            assert_eq!(self.read(reader, key, tag, &Value::Null), Value::Null, "{key}: {why}\n{}", daemon.log());
        };
        for reader in [&mut reader, &mut writer] {
            for key in ["a", "b", "c"] {
                gone(reader, key, &old, "its row changed");
            }
            gone(reader, "moved", &new, "a row moved to it");
            assert_eq!(reader.get_with("other", &[&other]), json!("other"), "an unrelated record was lost");
        }
        fill(&mut writer, &mut reader, "a", "new", &old);
        // Nothing that its tag touches: it stays.
        sql.batch_execute("UPDATE shop.second_model SET name = 'z' WHERE id = 8").await.unwrap();
        world.settled(&sql).await;
        assert_eq!(reader.get_with("a", &[&old]), json!("new"), "lost by an unrelated change");

        fill(&mut writer, &mut reader, "never", "old", &never);
        sql.batch_execute("TRUNCATE shop.second_model").await.unwrap();
        world.settled(&sql).await;
        gone(&mut reader, "never", &never, "TRUNCATE");
        gone(&mut reader, "a", &old, "TRUNCATE");
        fill(&mut writer, &mut reader, "later", "old", &later);
        succeed(&mut world.waltag("waltag", &["resync"]));
        gone(&mut reader, "later", &later, "a resync");
        for (key, tag) in [("b", &old), ("never", &never), ("moved", &new)] {
            gone(&mut reader, key, tag, "it came back");
        }
        fill(&mut writer, &mut reader, "a", "newest", &old);
        drop(daemon);
        let repeat = if self.runtime == Reading { ", repeat: []" } else { ", repeat: [6s]" };
        self.late(&world, repeat, self.closed).await;
        if self.stamps {
            self.late(&world, ", repeat: [6s], guard: 5s", true).await;
        }
        writer.library.clone()
    }

    /// A reader computes over the commit, and stores what was true before: taken for fresh, unless it is `closed`; and healed by the
    /// repeat.
    async fn late(&self, world: &World, more: &str, closed: bool) {
        self.setup(world, more);
        let (sql, tag) = (world.sql().await, self.tag(30));
        sql.batch_execute("DELETE FROM shop.second_model; INSERT INTO shop.second_model VALUES (9, 30, 1, 'a', 'x')")
            .await
            .unwrap();
        let daemon = world.watched();
        world.settled(&sql).await;
        let mut reader = self.reader(world, self.options);
        reader.set("witness", "old", &[&tag]);
        reader.ask(&json!({"op": "begin", "key": "late", "tags": [tag], "timeout": 3600}));
        sql.batch_execute("UPDATE shop.second_model SET name = 'b' WHERE id = 9").await.unwrap();
        // The first pass, and no repeat. Not by the reader: a read beside the pass lets bentocache put the stamp before it into its memory
        // behind the message that drops it, and then only the repeat is seen.
        let now: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        assert_eq!(daemon.get(&format!("/wait?lsn={now}&timeout=60s")).0, 200);
        assert_eq!(self.read(&mut reader, "witness", &tag, &Value::Null), Value::Null, "the first pass");
        reader.ask(&json!({"op": "finish", "key": "late", "value": "late"}));
        let left = reader.get_with("late", &[&tag]);
        assert_eq!(left, if closed { Value::Null } else { json!("late") }, "{more}");
        world.settled_within(&sql, Duration::from_secs(20)).await;
        assert_eq!(self.read(&mut reader, "late", &tag, &Value::Null), Value::Null, "the repeat heals it");
        drop(daemon);
    }
}

/// TEST_CLIENT names one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn every_library() {
    let only = std::env::var("TEST_CLIENT").unwrap_or_default();
    let chosen: Vec<&'static Case> = CASES.iter().filter(|case| case.client.starts_with(&only)).collect();
    let (mut table, mut failed) = (String::new(), Vec::new());
    // Each has servers of its own.
    for pair in chosen.chunks(2) {
        let running: Vec<_> = pair.iter().map(|case| (*case, tokio::spawn(case.run()))).collect();
        for (case, running) in running {
            let name = format!("{} {} {}", case.client, case.options, case.settings);
            match running.await {
                Ok(library) => table += &format!("| {} | {library} | {name} |\n", case.dialect),
                Err(_) => failed.push(name),
            }
        }
    }
    println!("| dialect | library | reader |\n|---|---|---|\n{table}");
    assert!(failed.is_empty(), "{failed:#?}");
}

/// On a Redis Cluster: a record, its tag's key and the marker are on any of three masters.
#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn on_a_cluster() {
    let cases = CASES.iter().filter(|case| {
        matches!((case.runtime, case.client), (Php | Sid, "symfony-redis-tag-aware" | "symfony-tag-aware"))
            || (case.client == "bentocache" && case.options == "{}")
    });
    for case in cases {
        let (cluster, world) = (Cluster::new(0).await, World::new().await);
        let Case { dialect, settings, tag, .. } = case;
        let settings = if settings.is_empty() { String::new() } else { format!(", {settings}") };
        world.setup(&format!(
            r#"{{version: 1, caches: {{default: {{url: "{}", dialect: {dialect}{settings}}}}},
                rules: [{{table: shop.second_model, tags: ["{tag}<category_id>"]}}]}}"#,
            cluster.url()
        ));
        let sql = world.sql().await;
        let rows = "INSERT INTO shop.second_model SELECT n, n, 1, 'a', 'x' FROM generate_series(1, 30) n";
        sql.batch_execute(rows).await.unwrap();
        let daemon = world.daemon();
        world.settled(&sql).await;
        let [mut writer, mut reader] = [(); 2].map(|()| case.reader_at(&cluster.url(), case.options));
        let fill = |writer: &mut Reader, reader: &mut Reader| {
            for number in 1..=30 {
                let (key, tag) = (format!("record{number}"), case.tag(number));
                writer.set(&key, "old", &[&tag]);
                assert_eq!(reader.get_with(&key, &[&tag]), json!("old"), "{}: {key}", case.client);
            }
        };
        fill(&mut writer, &mut reader);
        for change in ["UPDATE shop.second_model SET name = 'y' WHERE id <= 20", "TRUNCATE shop.second_model"] {
            sql.batch_execute(change).await.unwrap();
            world.settled(&sql).await;
            let last = if change.starts_with("UPDATE") { 20 } else { 30 };
            for number in 1..=30 {
                let value = reader.get_with(&format!("record{number}"), &[&case.tag(number)]);
                let wanted = if number <= last { Value::Null } else { json!("old") };
                assert_eq!(value, wanted, "{}: record{number} after {change}\n{}", case.client, daemon.log());
            }
            fill(&mut writer, &mut reader);
        }
        println!("on a Cluster: {} {}", case.dialect, writer.library);
    }
}

/// A Python client with these options.
pub fn python(world: &World, client: &'static str, options: &Value) -> Reader {
    case(Python, client, "", "", "").reader(world, &options.to_string())
}

/// fastapi-cache2 has no tags: the tag is the namespace of an endpoint, and its keys begin with it.
#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn fastapi_cache() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {default: {url: "{redis}/2", dialect: fastapi-cache, prefix: app}},
            rules: [{table: shop.second_model, tags: ["category-<category_id>"]}]}"#,
    );
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO shop.second_model VALUES (7, 15, 1, 'a', 'x')").await.unwrap();
    let daemon = world.daemon();
    let reader = |namespace: &str| {
        python(&world, "fastapi-cache", &json!({"prefix": "app", "namespace": namespace, "key_builder": "default"}))
    };
    let (mut own, mut other) = (reader("category-15"), reader("category-151"));
    for reader in [&mut own, &mut other] {
        reader.set("a", "old", &[]);
        reader.set("b", "old", &[]);
    }
    sql.batch_execute("UPDATE shop.second_model SET name = 'b'").await.unwrap();
    world.settled(&sql).await;
    assert_eq!((own.get("a"), own.get("b")), (Value::Null, Value::Null));
    assert_eq!((other.get("a"), other.get("b")), (json!("old"), json!("old")), "its name only begins so");
    own.set("a", "new", &[]);
    assert_eq!(own.get("a"), json!("new"));
    sql.batch_execute("TRUNCATE shop.second_model").await.unwrap();
    world.settled(&sql).await;
    assert_eq!((own.get("a"), other.get("a")), (Value::Null, Value::Null));
    println!("| fastapi-cache | {} |", own.library);
    drop(daemon);
}
