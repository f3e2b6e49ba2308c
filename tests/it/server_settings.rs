//! The same row gives the same tags, whatever role, database and writer have set.

use crate::support::World;

const TABLE: &str = "CREATE TABLE v (id int PRIMARY KEY, stamp timestamptz, day date, raw bytea, number float8, span interval, word text)";
const RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys, style: pg}},
    rules: [{table: v, tags: ["v:<id>:<stamp>:<day>:<raw>:<number>:<span>:<word>"]}]}"#;
const INSERT: &str = "INSERT INTO v VALUES (1, '2026-03-04 05:06:07.5+00', '2026-12-31', '\\xc3a9', 0.1::float8 + 0.2, '1 day 02:00:00', U&'\\00e9t\\00e9')";
const EXPECTED: &str =
    r#"0 v:1:2026-03-04 05:06:07.5+00:2026-12-31:\\xc3a9:0.30000000000000004:1 day 02:00:00:\xc3\xa9t\xc3\xa9"#;

const ODD: [&str; 6] = [
    "datestyle = 'SQL, DMY'",
    "timezone = 'Asia/Kathmandu'",
    "bytea_output = 'escape'",
    "intervalstyle = 'iso_8601'",
    "extra_float_digits = -5",
    "client_encoding = 'LATIN1'",
];

#[tokio::test]
async fn plain_settings() {
    let world = World::with("", TABLE).await;
    world.setup(RULES);
    assert_eq!(world.stale_after(INSERT).await, [EXPECTED]);
}

#[tokio::test]
async fn odd_settings_of_role_database_and_writer() {
    let world = World::with("", TABLE).await;
    world.setup(RULES);
    let sql = world.sql().await;
    for setting in ODD {
        sql.batch_execute(&format!("ALTER ROLE waltag SET {setting}; ALTER DATABASE shop SET {setting}"))
            .await
            .unwrap();
    }
    sql.batch_execute("ALTER ROLE waltag SET statement_timeout = 1; ALTER ROLE waltag SET idle_session_timeout = 20")
        .await
        .unwrap();
    let writer: String = ODD.iter().map(|setting| format!("SET {setting};")).collect();
    let stale = world.stale_after(&format!("{}{INSERT}", writer.replace("SET client_encoding = 'LATIN1';", ""))).await;
    assert_eq!(stale, [EXPECTED]);
}

#[tokio::test]
async fn a_latin1_database() {
    let mut world = World::with("", "").await;
    let create = "CREATE DATABASE old ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0";
    world.sql().await.batch_execute(create).await.unwrap();
    world.database = "old".into();
    world.sql().await.batch_execute(TABLE).await.unwrap();
    world.setup(RULES);
    assert_eq!(world.stale_after(INSERT).await, [EXPECTED]);
}
