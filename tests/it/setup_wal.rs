//! `waltag setup --prefer wal`: indexes and column lists, what they cost, and what can fail because of them. Column lists came with
//! PostgreSQL 15.

use tokio_postgres::Client;

use crate::support::{World, fail, succeed};

const SCHEMA: &str = "
    CREATE TABLE item (id int PRIMARY KEY, category_id int NOT NULL, kind varchar(20) NOT NULL, name text, body text);
    INSERT INTO item SELECT n, n % 10, 'kind', 'name', repeat(md5(n::text), 20) FROM generate_series(1, 3000) n;
    CREATE TABLE plain (id int PRIMARY KEY, name text, body text)";

const RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
    {table: item, tags: ["item:<id>", "category:<category_id>"]}, {table: plain, tags: ["plain:<id>"]}]}"#;

const WAL: [&str; 4] = ["setup", "--apply", "--prefer", "wal"];

async fn text(sql: &Client, query: &str) -> String {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

/// Identity and published columns.
async fn state(sql: &Client) -> String {
    let query = "SELECT string_agg(c.relreplident::text || ' ' || coalesce(array_to_string(p.attnames, ','), '-'), '; ' ORDER BY relname)
        FROM pg_class c LEFT JOIN pg_publication_tables p ON p.tablename = c.relname WHERE c.relname IN ('item', 'plain')";
    text(sql, query).await
}

/// Bytes of WAL of a statement, without images of whole pages.
async fn wal(sql: &Client, statement: &str) -> f64 {
    let query = format!("EXPLAIN (ANALYZE, WAL, FORMAT JSON) {statement}");
    let plan: String = sql
        .simple_query(&query)
        .await
        .unwrap()
        .iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .unwrap();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    plan[0]["Plan"]["WAL Bytes"].as_f64().unwrap()
}

/// The number before a word.
fn figure(text: &str, after: &str) -> f64 {
    text.split(after).nth(1).unwrap().trim_start().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_index_and_lists_do_what_full_does_for_less() {
    let world = World::with("", SCHEMA).await;
    if world.version().await < 15 {
        return;
    }
    world.setup(RULES);
    let sql = world.sql().await;
    assert_eq!(state(&sql).await, "f id,category_id,kind,name,body; d id,name,body");
    let update = "UPDATE item SET name = name || 'x'";
    let full = wal(&sql, update).await / 3000.0;
    sql.batch_execute("ANALYZE item").await.unwrap();
    let said = succeed(&mut world.waltag("postgres", &WAL));
    for words in ["CREATE UNIQUE INDEX CONCURRENTLY", "What fails later", "by the statistics of 3000 rows"] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    assert_eq!(state(&sql).await, "i id,category_id; d id");
    let index = wal(&sql, update).await / 3000.0;
    // What was said is what is saved: the old row, but for the names that have grown by a letter.
    let told = figure(&said, "REPLICA IDENTITY FULL would log");
    println!(
        "per UPDATE: {full:.0} bytes with FULL, {index:.0} with the index, a difference of {:.0}; told {told:.0}",
        full - index
    );
    assert!((full - index - told).abs() < 0.1 * told, "{full} - {index} is not {told}");
    for arguments in [&WAL[..], &["setup", "--apply"], &["setup"]] {
        assert!(succeed(&mut world.waltag("postgres", arguments)).contains("Nothing to do"), "{arguments:?}");
    }
    assert!(succeed(&mut world.waltag("postgres", &["check", "--live"])).contains("0 warnings"));
    let changes = "UPDATE item SET category_id = 77 WHERE id = 5;; DELETE FROM item WHERE id = 6;;
        INSERT INTO plain VALUES (1, 'n', 'b');; UPDATE plain SET name = 'm'";
    assert_eq!(
        world.stale_after(changes).await,
        ["0 category:5", "0 category:6", "0 category:77", "0 item:5", "0 item:6", "0 plain:1"]
    );
    // The rules need another column: another index takes over, and the list is wider.
    world.rules(&RULES.replace("category:<category_id>", "category:<category_id>.<kind>"));
    let said = fail(&mut world.waltag("postgres", &["check", "--live"]), 65);
    assert!(said.contains("sends only some columns of public.item, and not `kind`"), "{said}");
    succeed(&mut world.waltag("postgres", &WAL));
    assert_eq!(state(&sql).await, "i id,category_id,kind; d id");
    let indexes = "SELECT count(*)::text FROM pg_class WHERE relname LIKE 'waltag_identity_%'";
    assert_eq!(text(&sql, indexes).await, "1");
    // One that cannot be in an index: back to the whole row, without the list.
    world.rules(&RULES.replace("category:<category_id>", "category:<category_id>.<name>"));
    let said = succeed(&mut world.waltag("postgres", &WAL));
    assert!(said.contains("No index can do: `name` can be NULL"), "{said}");
    assert_eq!(state(&sql).await, "f id,category_id,kind,name,body; d id");
    sql.batch_execute("UPDATE item SET name = 'z'").await.unwrap();
    succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
    assert_eq!(state(&sql).await, "d -; d -");
    assert_eq!(text(&sql, indexes).await, "0");
}

/// What makes it fall back to the whole row, and the statement of the application that would fail otherwise.
#[tokio::test]
async fn what_cannot_be_in_an_index() {
    let schema =
        "CREATE TABLE nullable (id int PRIMARY KEY, c int); CREATE TABLE endless (id int PRIMARY KEY, c text NOT NULL);
        CREATE TABLE bare (c int NOT NULL); CREATE TABLE wide (id int PRIMARY KEY, c varchar(2000) NOT NULL);
        CREATE TABLE shapeless (id int PRIMARY KEY, c point NOT NULL);
        CREATE TABLE computed (id int PRIMARY KEY, n int NOT NULL, c int NOT NULL GENERATED ALWAYS AS (n) STORED)";
    let world = World::with("", schema).await;
    for (table, reason) in [
        ("nullable", "`c` can be NULL"),
        ("endless", "values of `c` can be too long"),
        ("bare", "it has no primary key"),
        ("wide", "an index row has at most"),
        ("shapeless", "have no order"),
    ] {
        world.rules(&format!(
            r#"{{version: 1, caches: {{c: {{url: "{{redis}}/0", dialect: keys}}}}, rules: [{{table: {table}, tags: ["c:<c>"]}}]}}"#
        ));
        let said = succeed(&mut world.waltag("postgres", &["setup", "--prefer", "wal"]));
        assert!(said.contains(reason) && said.contains("REPLICA IDENTITY FULL"), "{table}\n{said}");
    }
    let sql = world.sql().await;
    for (harm, message) in [
        ("CREATE UNIQUE INDEX n ON nullable (id, c); ALTER TABLE nullable REPLICA IDENTITY USING INDEX n", "nullable"),
        (
            "CREATE UNIQUE INDEX e ON endless (id, c); INSERT INTO endless SELECT 1, string_agg(md5(n::text), '') FROM generate_series(1, 900) n",
            "index row requires",
        ),
        ("CREATE UNIQUE INDEX b ON bare (c); INSERT INTO bare VALUES (1), (1)", "duplicate key"),
        (
            "CREATE UNIQUE INDEX w ON wide (id, c); INSERT INTO wide SELECT 1, string_agg(chr(8000 + (n * 7919) % 12000), '') FROM generate_series(1, 2000) n",
            "exceeds btree",
        ),
    ] {
        let error = sql.batch_execute(harm).await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains(message), "{harm}: {error:?}");
    }
}

/// What `setup --prefer wal` says that can fail later does fail, and nothing else of the application's does.
#[tokio::test]
async fn what_fails_later_is_what_was_said() {
    let world = World::with("", SCHEMA).await;
    if world.version().await < 15 {
        return;
    }
    world.rules(RULES);
    succeed(&mut world.waltag("postgres", &WAL));
    let sql = world.sql().await;
    let index = text(&sql, "SELECT relname::text FROM pg_class WHERE relname LIKE 'waltag_identity_%'").await;
    for (statement, message) in [
        ("ALTER TABLE item ALTER category_id DROP NOT NULL; UPDATE item SET kind = 'k'", "identity"),
        ("ALTER TABLE item ALTER category_id TYPE bigint", "publication"),
        ("ALTER TABLE item DROP category_id", "publication"),
        (&format!("DROP INDEX {index}; UPDATE item SET kind = 'k'"), "does not have a replica identity"),
        (
            "ALTER TABLE plain REPLICA IDENTITY FULL; INSERT INTO plain VALUES (1); UPDATE plain SET name = 'k'",
            "cannot update",
        ),
    ] {
        let error = sql.batch_execute(&format!("BEGIN; {statement}")).await.expect_err(statement);
        let said = format!("{:?}", error.as_db_error().unwrap());
        assert!(said.contains(message), "{statement}: {said}");
        sql.batch_execute("ROLLBACK").await.unwrap();
    }
    for statement in [
        "ALTER TABLE item ADD extra int DEFAULT 5",
        "ALTER TABLE item DROP name",
        "ALTER TABLE item ALTER kind TYPE varchar(30)",
        "ALTER TABLE item RENAME category_id TO cat",
        "UPDATE item SET kind = 'k'",
        "DELETE FROM item WHERE id = 9",
        "ALTER TABLE plain ADD g int GENERATED ALWAYS AS (id) STORED",
        "UPDATE plain SET name = 'x'",
        "TRUNCATE item",
    ] {
        sql.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

/// An index that could not be finished, because a transaction ran for longer than `--lock-timeout`, is begun anew by the next run.
#[tokio::test]
async fn an_index_that_was_interrupted_is_begun_anew() {
    let world = World::with("", SCHEMA).await;
    if world.version().await < 15 {
        return;
    }
    world.rules(RULES);
    let (sql, open) = (world.sql().await, world.sql().await);
    open.batch_execute("BEGIN; UPDATE item SET name = 'open' WHERE id = 1").await.unwrap();
    let mut hasty = world.waltag("postgres", &["setup", "--apply", "--prefer", "wal", "--lock-timeout", "50ms"]);
    fail(&mut hasty, 69);
    let valid = "SELECT indisvalid::text FROM pg_index WHERE indexrelid = \
        (SELECT oid FROM pg_class WHERE relname LIKE 'waltag_identity_%')";
    assert_eq!(text(&sql, valid).await, "false");
    open.batch_execute("ROLLBACK").await.unwrap();
    let said = succeed(&mut world.waltag("postgres", &WAL));
    assert!(said.contains("begun and not finished"), "{said}");
    assert_eq!(text(&sql, valid).await, "true");
    assert_eq!(state(&sql).await, "i id,category_id; d id");
}

/// The application writes between any two statements, whatever the rules need next.
#[tokio::test]
async fn no_statement_makes_a_write_fail() {
    let world = World::with("", SCHEMA).await;
    let sql = world.sql().await;
    for (rules, wal) in [
        (RULES.to_owned(), false),
        (RULES.to_owned(), true),
        (RULES.replace("category:<category_id>", "category:<category_id>.<kind>"), true),
        (RULES.replace("category:<category_id>", "kind:<kind>"), true),
        (RULES.replace("category:<category_id>", "name:<name>"), true),
        (RULES.to_owned(), true),
    ] {
        world.rules(&rules);
        let arguments = if wal { &["setup", "--prefer", "wal"][..] } else { &["setup"] };
        let printed = succeed(&mut world.waltag("postgres", arguments));
        for statement in printed.split("\n\n").filter(|text| !text.starts_with("-- Nothing")) {
            sql.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
            for write in [
                "UPDATE item SET category_id = category_id + 1, kind = 'w' WHERE id = 1",
                "UPDATE plain SET name = 'w'",
            ] {
                // What is printed sets it.
                sql.batch_execute("RESET search_path").await.unwrap();
                sql.batch_execute(write).await.unwrap_or_else(|error| panic!("{write} after {statement}: {error:?}"));
            }
        }
        assert!(succeed(&mut world.waltag("postgres", arguments)).contains("Nothing to do"), "{rules}");
    }
}

/// An index that identifies rows goes only with the removal that gives its table another identity.
#[tokio::test]
async fn remove_leaves_indexes_of_others() {
    let world = World::with("", SCHEMA).await;
    world.rules(RULES);
    let sql = world.sql().await;
    sql.batch_execute("CREATE PUBLICATION app FOR TABLE item; COMMENT ON PUBLICATION app IS 'somebody else'")
        .await
        .unwrap();
    let lists = "SELECT coalesce(string_agg(prattrs::text, ','), 'none') FROM pg_publication_rel";
    let foreign = ["setup", "--apply", "--prefer", "wal", "--publication", "app"];
    succeed(&mut world.waltag("postgres", &foreign));
    if world.version().await >= 15 {
        assert_eq!(text(&sql, lists).await, "none", "what somebody else publishes is not narrowed");
    }
    // Another installation, in the same database, comes and goes.
    succeed(&mut world.waltag("postgres", &WAL));
    for publication in ["waltag", "app"] {
        succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply", "--publication", publication]));
        sql.batch_execute("UPDATE item SET name = 'n'; UPDATE plain SET name = 'n'").await.unwrap();
    }
}
