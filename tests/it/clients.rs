//! The real client libraries read the cache: cache-dependencies 0.7.7.48 and cache-tagging 0.7.3 in a Django process, with
//! django-redis and with Django's own Redis backend. `scripts/test clients` installs them.

use std::process::Command;

use md5::{Digest, Md5};
use serde_json::{Value, json};

use crate::reader::{Reader, libraries};
use crate::support::{World, root, until};

fn django(world: &World, library: &str, backend: &str, options: &[&str]) -> Reader {
    let libraries = libraries();
    let mut command = Command::new(libraries.join("venv/bin/python"));
    command.arg(root().join("tests/clients/reader.py")).arg("--libraries").arg(&libraries);
    command.args(["--library", library, "--backend", backend, "--url", &world.redis.url(3)]).args(options);
    Reader::start(&mut command)
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
    let mut reader = django(&world, library, backend, options);
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

/// A reader that read the old row stores it after the invalidation: open without the fence until the repeat, closed with it, by
/// the library's own `set()`.
#[tokio::test]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn a_late_fill_is_refused_by_the_library_itself() {
    for (options, left) in [(", repeat: [8s]", json!("late")), (", mode: set, repeat: [8s], fence: 6s", Value::Null)] {
        let world = World::new().await;
        world.setup(&format!(
            r#"{{version: 1, caches: {{default: {{url: "{{redis}}/3", dialect: cache-dependencies{options}}}}},
                rules: [{{table: first_model, tags: ["FirstModel.pk:<id>"]}}]}}"#
        ));
        let sql = world.sql().await;
        let daemon = world.daemon();
        let mut reader = django(&world, "cache-dependencies", "django-redis", &[]);
        reader.set("page", "old", &["FirstModel.pk:7"]);
        reader.set("other", "other", &["FirstModel.pk:8"]);
        sql.batch_execute("INSERT INTO first_model VALUES (7)").await.unwrap();
        until("the page is stale", || {
            let value = reader.get("page");
            async move { value == Value::Null }
        })
        .await;
        reader.set("page", "late", &["FirstModel.pk:7"]);
        assert_eq!(reader.get("page"), left, "{options}");
        assert_eq!(reader.get("other"), json!("other"));
        // After the fence the page can be cached again.
        until("it is cached again", || {
            reader.set("page", "new", &["FirstModel.pk:7"]);
            let value = reader.get("page");
            async move { value == json!("new") }
        })
        .await;
        drop(daemon);
    }
}

/// Types with a value each.
const KINDS: &[(&str, &str)] = &[
    ("bool", "true"),
    ("int2", "-5"),
    ("int8", "9007199254740993"),
    ("float4", "0.1"),
    ("float8", "1e16"),
    ("float8", "1e-7"),
    ("float8", "'NaN'"),
    ("numeric", "1.50"),
    ("numeric", "0.00000012"),
    ("numeric(10,2)", "1000"),
    ("text", "'it''s \\ \"x\"'"),
    ("varchar", "'å'"),
    ("char(5)", "'ab'"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
    ("date", "'2026-11-22'"),
    ("time", "'03:04:05.6'"),
    ("timestamp", "'2026-11-22 03:04:05'"),
    ("timestamp", "'2026-11-22 03:04:05.25'"),
    ("timestamptz", "'2026-11-22 03:04:05.000001+02'"),
    ("interval", "'1 day 02:03:04.5'"),
    ("interval", "'-1 mons +2 days -00:00:01'"),
    ("interval", "'1 year 2 mons'"),
    ("bytea", "'\\x00ff61275c'"),
    ("jsonb", "'{\"a\": [1, 2.50, true, null, \"b\"]}'"),
    ("jsonb", "'\"text\"'"),
    ("jsonb", "'12.0'"),
    ("int4[]", "'{1,NULL,2}'"),
    ("text[]", "ARRAY['a', 'it''s', 'x\"y', 'back\\slash', NULL]"),
    ("numeric[]", "'{1.50,2}'"),
    ("bool[]", "'{t,f}'"),
    ("float8[]", "'{1,2.5}'"),
    ("date[]", "'{2026-11-22}'"),
    ("timestamp[]", "'{2026-11-22 03:04:05}'"),
    ("uuid[]", "'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"),
    ("int4range", "'[1,5)'"),
    ("numrange", "'(1.50,]'"),
    ("tsrange", "'[2026-01-02 03:04:05.5,2026-01-03)'"),
    ("daterange", "'empty'"),
    ("inet", "'10.0.0.1'"),
    ("cidr", "'10.0.0.0/8'"),
];

/// What Python writes for each type, by psycopg itself, and what waltag writes into the tag.
#[tokio::test]
#[ignore = "needs psycopg: scripts/test clients"]
async fn python_writes_each_type_like_this() {
    let mut python = Command::new(libraries().join("venv/bin/python"));
    writes_each_type("python", KINDS, python.arg(root().join("tests/clients/strings.py"))).await;
}

/// The same for PHP, by PDO.
#[tokio::test]
#[ignore = "needs PHP: scripts/test clients"]
async fn php_writes_each_type_like_this() {
    let kinds: Vec<(&str, &str)> = KINDS.iter().copied().chain([("bool", "false")]).collect();
    writes_each_type("php", &kinds, Command::new("php").arg(root().join("tests/clients/strings.php"))).await;
}

async fn writes_each_type(style: &str, kinds: &[(&str, &str)], reader: &mut Command) {
    let columns: Vec<String> = kinds.iter().enumerate().map(|(at, (kind, _))| format!("k{at} {kind}")).collect();
    let values: Vec<String> = kinds.iter().map(|(kind, value)| format!("{value}::{kind}")).collect();
    let world = World::with("", &format!("CREATE TABLE kinds ({})", columns.join(", "))).await;
    let tags: Vec<String> = (0..kinds.len()).map(|at| format!("\"k{at}=<k{at}|md5>\"")).collect();
    world.setup(&format!(
        "version: 1\ncaches: {{c: {{url: \"{{redis}}/0\", dialect: keys, style: {style}}}}}\nrules: [{{table: kinds, tags: [{}]}}]\n",
        tags.join(", ")
    ));
    let daemon = world.daemon();
    let mut cache = world.cache(0).await;
    let sql = world.sql().await;
    sql.batch_execute(&format!("INSERT INTO kinds VALUES ({})", values.join(", "))).await.unwrap();
    world.settled(&sql).await;
    drop(daemon);
    reader.arg(world.postgres.url("postgres", "shop"));
    let said: Value = serde_json::from_str(&crate::support::succeed(reader)).unwrap();
    // A key as the language would write it is gone after the next change, one that differs is still there.
    for at in 0..kinds.len() {
        let text = said[format!("k{at}")].as_str().unwrap();
        let digest: String = Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("k{at}={digest}");
        redis::cmd("SET").arg(key).arg("x").exec_async(&mut cache).await.unwrap();
    }
    let daemon = world.daemon();
    sql.batch_execute("DELETE FROM kinds").await.unwrap();
    world.settled(&sql).await;
    drop(daemon);
    let mut left: Vec<String> = redis::cmd("KEYS").arg("k*").query_async(&mut cache).await.unwrap();
    left.sort();
    let named = left.iter().map(|key| {
        let at: usize = key[1..key.find('=').unwrap()].parse().unwrap();
        format!("{} {} is {}", kinds[at].0, kinds[at].1, said[format!("k{at}")])
    });
    assert!(left.is_empty(), "written otherwise:\n{}", named.collect::<Vec<_>>().join("\n"));
}
