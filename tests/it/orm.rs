//! django-cacheops and django-cachalot cache the queries of Django's ORM: the tables are PostgreSQL's own.

use std::time::Duration;

use serde_json::{Value, json};

use crate::libraries::python;
use crate::reader::Reader;
use crate::support::World;

/// The two that cache the queries of Django's ORM. They look the tables up in PostgreSQL themselves.
async fn orm(client: &'static str, options: Value, dialect: &str, rules: &str, by_row: bool) {
    let schema = "CREATE TABLE first_model (id bigint PRIMARY KEY, name text);
        CREATE TABLE second_model (id bigint PRIMARY KEY, category_id bigint, type_id bigint, name text, status text);
        INSERT INTO second_model VALUES (7, 15, 1, 'a', NULL), (8, 99, 1, 'b', 'x'), (9, 123456789012345, 1, 'c', 'x')";
    let world = World::with("", schema).await;
    world.setup(&format!(
        r#"{{version: 1, caches: {{default: {{url: "{{redis}}/2", {dialect}}}}}, rules: [{{table: second_model, {rules}}}]}}"#
    ));
    let (sql, daemon) = (world.sql().await, world.daemon());
    let mut options = options;
    options["database"] = json!(world.postgres.url("postgres", "shop"));
    let mut reader = python(&world, client, &options);
    let filters = [
        json!({"category_id": 15}),
        json!({"category_id": 16}),
        json!({"category_id": 99}),
        json!({"category_id": 123_456_789_012_345_i64}),
        json!({"status": null}),
        json!({"category_id": 15, "status": null}),
        json!({}),
    ];
    let ask = |reader: &mut Reader, filter: &Value| {
        let answer = reader.ask(&json!({"op": "query", "table": "second_model", "filter": filter}));
        (answer["hit"] == json!(true), answer["rows"].as_u64().unwrap())
    };
    let fill = |reader: &mut Reader| {
        for filter in &filters {
            ask(reader, filter);
            assert!(ask(reader, filter).0, "{filter} is cached");
        }
    };
    // Stamps are of a second.
    let settled = async || {
        world.settled(&sql).await;
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    };
    settled().await;
    fill(&mut reader);
    sql.batch_execute("UPDATE second_model SET category_id = 16 WHERE id = 7").await.unwrap();
    settled().await;
    let hits: Vec<bool> = filters.iter().map(|filter| ask(&mut reader, filter).0).collect();
    // By rows, only what the old or the new row meets; by tables, everything.
    assert_eq!(hits, [false, false, by_row, by_row, false, false, false], "{}", daemon.log());
    assert_eq!(ask(&mut reader, &json!({"category_id": 16})).1, 1);
    fill(&mut reader);
    sql.batch_execute("UPDATE second_model SET name = 'n' WHERE id = 9").await.unwrap();
    settled().await;
    assert!(!ask(&mut reader, &json!({"category_id": 123_456_789_012_345_i64})).0, "a large number");
    fill(&mut reader);
    sql.batch_execute("TRUNCATE second_model").await.unwrap();
    settled().await;
    for filter in &filters {
        assert_eq!(ask(&mut reader, filter), (false, 0), "{filter} after TRUNCATE");
    }
    println!("| {client} | {} | {dialect} |", reader.library);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn django_cacheops() {
    for (insideout, prefix) in [(false, ""), (true, "p:")] {
        let options = json!({"insideout": insideout, "prefix": prefix});
        let dialect = format!("dialect: django-cacheops, insideout: {insideout}, prefix: '{prefix}'");
        orm("django-cacheops", options, &dialect, "rows: true", true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the client libraries: scripts/test clients"]
async fn django_cachalot() {
    for backend in ["django-redis", "django"] {
        let options = json!({"backend": backend, "key_prefix": "k"});
        orm("django-cachalot", options, "dialect: django-cachalot, key_prefix: k", "tags: ['<@table>']", false).await;
    }
}
