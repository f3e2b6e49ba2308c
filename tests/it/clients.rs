//! The real client libraries read the cache: cache-dependencies 0.7.7.48 and cache-tagging 0.7.3 in a Django process, with
//! django-redis and with Django's own Redis backend. `scripts/test clients` installs them.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{World, root};

/// A Django process that answers one JSON line per request.
struct Reader {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Where the libraries are unpacked.
fn libraries() -> PathBuf {
    std::env::var_os("TEST_CLIENTS")
        .map(PathBuf::from)
        .expect("TEST_CLIENTS names no directory: run scripts/test clients")
}

impl Reader {
    fn start(world: &World, library: &str, backend: &str, options: &[&str]) -> Reader {
        let libraries = libraries();
        let mut command = Command::new(libraries.join("venv/bin/python"));
        command.arg(root().join("tests/clients/reader.py")).arg("--libraries").arg(&libraries);
        command.args(["--library", library, "--backend", backend, "--url", &world.redis.url(3)]).args(options);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (requests, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut reader = Reader { child, requests, answers };
        assert_eq!(reader.answer()["ready"], json!(true));
        reader
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not an answer: {line}"))
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.requests, "{request}").unwrap();
        let answer = self.answer();
        assert_eq!(answer["ok"], json!(true), "{request} gave {answer}");
        answer
    }

    fn set(&mut self, key: &str, value: &str, tags: &[&str]) {
        self.ask(&json!({"op": "set", "key": key, "value": value, "tags": tags, "timeout": 3600}));
    }

    fn get(&mut self, key: &str) -> Value {
        self.ask(&json!({"op": "get", "key": key}))["value"].clone()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A page is cached under its category's tag; a row changes by plain SQL; the page is a miss, and its new value stays.
async fn reads_fresh(library: &str, backend: &str, options: &[&str], cache_options: &str) {
    let world = World::new().await;
    world.setup(&format!(
        r#"{{version: 1, caches: {{default: {{url: "{{redis}}/3", dialect: {library}{cache_options}}}}},
            rules: [{{table: shop.second_model, tags: ["SecondModel.pk:<id>", "CategoryModel.pk:<category_id>", "Live:<status|lower>", "SecondModel"]}}]}}"#
    ));
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO shop.second_model VALUES (7, 15, 1, 'a', 'LÏVE'), (8, 99, 1, 'b', 'x')")
        .await
        .unwrap();
    let _daemon = world.daemon();
    world.settled(&sql).await;
    let mut reader = Reader::start(&world, library, backend, options);
    let fill = |reader: &mut Reader, value: &str| {
        reader.set("page", value, &["CategoryModel.pk:15", "FirstModel"]);
        reader.set("moved-to", value, &["CategoryModel.pk:16"]);
        reader.set("word", value, &["Live:lïve"]);
        reader.set("class", value, &["SecondModel"]);
        reader.set("other", "other", &["CategoryModel.pk:99", "FirstModel"]);
        for key in ["page", "moved-to", "word", "class"] {
            assert_eq!(reader.get(key), json!(value), "{key}");
        }
    };
    fill(&mut reader, "old");
    sql.batch_execute("UPDATE shop.second_model SET category_id = 16 WHERE id = 7").await.unwrap();
    world.settled(&sql).await;
    for key in ["page", "moved-to", "word", "class"] {
        assert_eq!(reader.get(key), Value::Null, "{key} is stale");
    }
    assert_eq!(reader.get("other"), json!("other"), "an unrelated record was lost");
    fill(&mut reader, "new");
    // A change that touches none of their tags leaves them alone.
    sql.batch_execute("UPDATE first_model SET name = 'z'; ROLLBACK").await.unwrap();
    sql.batch_execute("BEGIN; UPDATE shop.second_model SET name = 'r'; ROLLBACK").await.unwrap();
    world.settled(&sql).await;
    for key in ["page", "moved-to", "word", "class"] {
        assert_eq!(reader.get(key), json!("new"), "{key} was lost");
    }
}

#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn cache_dependencies_on_django_redis() {
    reads_fresh("cache-dependencies", "django-redis", &[], "").await;
}

#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn cache_dependencies_on_djangos_own_backend_with_prefix_and_version() {
    let options = ["--key-prefix", "shop", "--version", "2"];
    reads_fresh("cache-dependencies", "django", &options, ", key_prefix: shop, version: 2").await;
}

#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn cache_dependencies_by_overwriting_versions() {
    reads_fresh("cache-dependencies", "django", &[], ", mode: set").await;
}

#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn cache_tagging_on_django_redis_during_a_rolling_upgrade() {
    reads_fresh("cache-tagging", "django-redis", &[], ", releases: [0.7.3, 0.7.7.48]").await;
}

#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn cache_tagging_on_djangos_own_backend() {
    reads_fresh("cache-tagging", "django", &[], "").await;
}

#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn cache_tagging_by_overwriting_versions() {
    reads_fresh("cache-tagging", "django-redis", &[], ", mode: set").await;
}
