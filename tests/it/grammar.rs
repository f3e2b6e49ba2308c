//! The language of rules against a real database: which change makes which tags stale.

use std::process::Command;

use crate::support::{Monitor, World, fail, outbox, root, succeed};

const SHOP: &str = "
CREATE SCHEMA app;
CREATE TABLE app.posts (id int PRIMARY KEY, tenant_id int, slug text, status text, price numeric, featured bool,
    view_count int DEFAULT 0, labels text[], watchers int8[], payload jsonb, deleted_at timestamptz, updated_at timestamptz DEFAULT now());
ALTER TABLE app.posts REPLICA IDENTITY FULL;
CREATE TABLE app.audit_log (id int PRIMARY KEY);
CREATE SCHEMA tenant_1; CREATE SCHEMA tenant_2;
CREATE TABLE tenant_1.invoices (id int PRIMARY KEY);
CREATE TABLE tenant_2.invoices (id int PRIMARY KEY);
INSERT INTO app.posts VALUES (1, 8, 'a', 'live', 5, true, 0, '{x,\"y z\",NULL}', '{3,4}', '{\"user\": {\"id\": 7}, \"tags\": [\"t1\", \"t2\"]}');
INSERT INTO tenant_1.invoices VALUES (1); INSERT INTO tenant_2.invoices VALUES (2);
";

/// What a change makes stale under these rules (`rules:` as a list in flow style), sorted, without the database's number.
async fn stale(rules: &str, change: &str) -> Vec<String> {
    let world = World::with("", SHOP).await;
    world.setup(&format!("version: 1\ndefaults: {{schema: app}}\ncaches: {{c: {{url: \"{{redis}}/0\", dialect: keys}}}}\nrules: {rules}\n"));
    let stale = world.stale_after(change).await;
    stale.into_iter().map(|tag| tag.trim_start_matches("0 ").to_owned()).collect()
}

#[tokio::test]
async fn a_condition_covers_entering_staying_and_leaving() {
    let rules = r#"[{table: posts, when: "row.status == 'live' && row.price < 10", tags: ["p:<id>:<status>"]}]"#;
    for (change, tags) in [
        ("UPDATE app.posts SET slug = 'b'", &["p:1:live"][..]),
        ("UPDATE app.posts SET status = 'draft'", &["p:1:live"]),
        ("UPDATE app.posts SET price = 9.5", &["p:1:live"]),
        ("UPDATE app.posts SET price = 100", &["p:1:live"]),
        ("INSERT INTO app.posts (id, status) VALUES (2, 'draft')", &[]),
        ("INSERT INTO app.posts (id, status, price) VALUES (2, 'live', 10)", &[]),
        // NULL cannot be compared: doubt invalidates.
        ("INSERT INTO app.posts (id, status) VALUES (2, 'live')", &["p:2:live"]),
        ("DELETE FROM app.posts", &["p:1:live"]),
    ] {
        assert_eq!(stale(rules, change).await, tags, "{change}");
    }
}

#[tokio::test]
async fn columns_that_do_not_count_and_those_that_do() {
    let rules = r#"[{table: posts, ignore: [view_count, updated_at], tags: ["p:<id>", {tag: "s:<slug>", only: [slug, status]}]}]"#;
    for (change, tags) in [
        ("UPDATE app.posts SET view_count = view_count + 1, updated_at = now()", &[][..]),
        ("UPDATE app.posts SET view_count = 5, price = 6", &["p:1"]),
        ("UPDATE app.posts SET status = 'x'", &["p:1", "s:a"]),
        ("UPDATE app.posts SET slug = 'b'", &["p:1", "s:a", "s:b"]),
        ("DELETE FROM app.posts", &["p:1", "s:a"]),
    ] {
        assert_eq!(stale(rules, change).await, tags, "{change}");
    }
}

#[tokio::test]
async fn arrays_json_and_filters() {
    let rules = r#"[{table: posts, tags: ["l:<labels[]|upper>", "w:<tenant_id>:<watchers[]>", "u:<payload.user.id>", "j:<payload.tags[]>",
        "none:<payload.other>", "h:<slug|md5|truncate:4>", "d:<deleted_at|date:%Y-%m|default:never>", "e:<labels[]|urlencode>"]}]"#;
    assert_eq!(
        stale(rules, "DELETE FROM app.posts").await,
        ["d:never", "e:x", "e:y%20z", "h:0cc1", "j:t1", "j:t2", "l:X", "l:Y Z", "u:7", "w:8:3", "w:8:4"]
    );
    // What leaves an array goes stale as well as what stays.
    let moved = "UPDATE app.posts SET watchers = '{4,5}', deleted_at = '2026-11-22 10:00:00+00'";
    let rules = r#"[{table: posts, tags: ["w:<watchers[]>", "d:<deleted_at|date:%d.%m.%y>"]}]"#;
    assert_eq!(stale(rules, moved).await, ["d:22.11.26", "w:3", "w:4", "w:5"]);
}

#[tokio::test]
async fn patterns_of_tables() {
    let rules = r#"[{tables: ["tenant_*.invoices"], tags: ["<@schema>.invoice.<id>"]}, {tables: ["*", "!audit_*"], tags: ["<@table>:all"]}]"#;
    let change =
        "UPDATE tenant_1.invoices SET id = 9;; INSERT INTO app.audit_log VALUES (1);; UPDATE app.posts SET slug = 'b'";
    assert_eq!(stale(rules, change).await, ["posts:all", "tenant_1.invoice.1", "tenant_1.invoice.9"]);
}

/// A pattern means the root of a partitioned table, never a partition by its own name.
#[tokio::test]
async fn patterns_do_not_match_partitions() {
    let schema = "CREATE TABLE orders (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM (0) TO (10);
        CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM (10) TO (20)";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{tables: ["*"], tags: ["<@table>:<id>"]},
            {tables: ["*", "!orders"], tags: ["other:<id>"]}, {table: orders_2, tags: ["second:<id>"]}]}"#,
    );
    assert_eq!(world.stale_after("INSERT INTO orders VALUES (5)").await, ["0 orders:5"]);
}

#[tokio::test]
async fn many_tags_collapse_within_one_transaction() {
    let rules =
        r#"[{table: posts, collapse: {over: 5, to: "t.<tenant_id>.posts"}, tags: ["t.<tenant_id>.post.<id>"]}]"#;
    let few = "INSERT INTO app.posts (id, tenant_id) SELECT i, 9 FROM generate_series(10, 14) i";
    assert_eq!(stale(rules, few).await, ["t.9.post.10", "t.9.post.11", "t.9.post.12", "t.9.post.13", "t.9.post.14"]);
    let many = "INSERT INTO app.posts (id, tenant_id) SELECT i, i % 2 FROM generate_series(10, 20000) i";
    assert_eq!(stale(rules, many).await, ["t.0.posts", "t.1.posts"]);
}

/// What cannot be listed makes stale what the rule says: its pattern, everything, or a constant tag.
#[tokio::test]
async fn unknown_values_by_pattern_everything_and_constant_tags() {
    let world = World::with("", SHOP).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
            {table: app.posts, tags: ["post:<id>", {tag: "slug:<slug>", unknown: ["slugs"]}]},
            {table: tenant_1.invoices, unknown: everything, tags: ["invoice:<id>"]}]}"#,
    );
    let daemon = world.daemon();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    for (change, left) in [
        ("TRUNCATE app.posts", &["invoice:1", "post:1:x", "slug:a"][..]),
        ("TRUNCATE tenant_1.invoices", &["post:1:x", "slug:a"]),
    ] {
        for key in ["post:1", "post:1:x", "slug:a", "slugs", "invoice:1"] {
            redis::cmd("SET").arg(key).arg("x").exec_async(&mut cache).await.unwrap();
        }
        sql.batch_execute(change).await.unwrap();
        world.settled(&sql).await;
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut cache).await.unwrap();
        keys.retain(|key| !key.starts_with("waltag:"));
        keys.sort();
        assert_eq!(keys, left, "{change}\n{}", daemon.log());
    }
}

/// An identity that does not send old values: accepted where the rule says what that means.
#[tokio::test]
async fn old_values_that_are_not_sent() {
    if outbox() {
        // Triggers see whole old rows.
        return;
    }
    let world = World::new().await;
    let sql = world.sql().await;
    let rule = |old: &str| {
        format!(
            r#"{{version: 1, caches: {{c: {{url: "{{redis}}/0", dialect: keys}}}}, rules: [{{table: first_model, old: {old}, tags: ["n:<name>"]}}]}}"#
        )
    };
    sql.batch_execute("CREATE PUBLICATION waltag FOR TABLE first_model; CREATE ROLE waltag LOGIN REPLICATION")
        .await
        .unwrap();
    sql.batch_execute("INSERT INTO first_model VALUES (1, 'a')").await.unwrap();
    world.rules(&rule("require"));
    assert!(fail(&mut world.waltag("waltag", &["run"]), 65).contains("REPLICA IDENTITY FULL"));
    world.rules(&rule("same"));
    let daemon = world.daemon();
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("UPDATE first_model SET name = 'b'").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["0 n:b"], "promised not to change");
    assert_eq!(daemon.log().matches("sweep complete").count(), 0);
    sql.batch_execute("DELETE FROM first_model").await.unwrap();
    world.settled(&sql).await;
    daemon.wait_for("sweep complete");
    daemon.stop();
    sql.batch_execute("INSERT INTO first_model VALUES (1, 'a')").await.unwrap();
    world.rules(&rule("unknown"));
    let daemon = world.daemon();
    let mut cache = world.cache(0).await;
    redis::cmd("SET").arg("n:a").arg("x").exec_async(&mut cache).await.unwrap();
    sql.batch_execute("UPDATE first_model SET name = 'b'").await.unwrap();
    world.settled(&sql).await;
    daemon.wait_for("sweep complete");
    assert!(!redis::cmd("EXISTS").arg("n:a").query_async::<bool>(&mut cache).await.unwrap());
}

fn offline(arguments: &[&str], text: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
    let path = std::env::temp_dir().join(format!("waltag-{}-{:x}.yaml", std::process::id(), rand::random::<u32>()));
    std::fs::write(&path, text).unwrap();
    command.env_clear().args(arguments).arg("--rules").arg(path);
    command
}

/// The tests of a rule file: values as written, a diff, and the exit code.
#[test]
fn rule_tests() {
    let text = r#"
version: 1
caches:
  a: { url: "redis://h/0", dialect: keys, style: python }
  b: { url: "redis://h/1", dialect: cache-tagging }
rules:
  - { table: t, caches: [a, b], when: "row.n > 5", tags: ["t:<id>:<ok>"] }
  - { table: t, caches: [b], tags: ["l:<labels[]>", "j:<data.k>"] }
tests:
  - name: good
    table: t
    columns: { ok: bool, n: int }
    old: { id: 007, ok: true, n: 6, labels: [x, "y, z"], data: { k: 1.50 } }
    new: { id: 007, ok: false, n: 5, labels: [], data: null }
    expect: { a: ["t:007:True"], b: ["t:007:True", "l:x", "l:y, z", "j:1.5", "j:None"] }
  - name: bad
    table: t
    columns: { n: int }
    new: { id: 1, ok: x, n: 1, labels: [q], data: {} }
    expect: ["l:q", "l:r"]
"#;
    let said = fail(&mut offline(&["test"], text), 65);
    for line in [
        "ok      good",
        "FAILED  bad",
        "- l:r    (expected, not made)",
        "+ j:None    (made, not expected)",
        "2 tests, 1 failed",
    ] {
        assert!(said.contains(line), "{line}:\n{said}");
    }
}

/// PostgreSQL itself casts the values, and objects to what it could not hold.
#[tokio::test]
async fn rule_tests_against_the_database() {
    let world = World::with("", SHOP).await;
    let text = |id: &str| {
        format!(
            r#"{{version: 1, defaults: {{schema: app}}, caches: {{c: {{url: "{{redis}}/0", dialect: keys, style: python}}}},
            rules: [{{table: posts, tags: ["p:<id>:<price>:<featured>", "w:<watchers[]>", "d:<deleted_at>"]}}],
            tests: [{{name: n, table: posts, new: {{id: {id}, price: "01.50", featured: yes, watchers: [4, 3], deleted_at: "2026-01-02 03:04"}},
              expect: ["p:7:1.50:True", "w:3", "w:4", "d:2026-01-02 03:04:00+00:00"]}}]}}"#
        )
    };
    world.rules(&text("007"));
    let said = succeed(&mut world.waltag("postgres", &["test", "--live"]));
    assert!(said.contains("1 tests, 0 failed"), "{said}");
    world.rules(&text("seven"));
    let said = fail(&mut world.waltag("postgres", &["test", "--live"]), 65);
    assert!(said.contains("invalid input syntax for type integer"), "{said}");
}

/// Five of six files that users would write load, check and pass their tests; the sixth wants what is not there yet, and says so
/// once for each use.
#[test]
fn files_as_users_write_them() {
    for name in ["django-shop", "go-cache-aside", "laravel-blog", "nextjs-storefront", "saas-multi-tenant"] {
        let path = root().join(format!("tests/it/examples/{name}.yaml"));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("redis-url"), "redis://127.0.0.1:1/0").unwrap();
        let text = std::fs::read_to_string(&path).unwrap().replace("/run/shop/", "");
        for file in ["build_id", "last_build_id"] {
            std::fs::write(directory.path().join(file), "b1").unwrap();
        }
        let run = |arguments: &[&str]| {
            let mut command = offline(arguments, &text);
            command.env("CREDENTIALS_DIRECTORY", directory.path());
            succeed(&mut command)
        };
        run(&["check"]);
        let said = run(&["test"]);
        assert!(said.contains(" 0 failed") && said.contains("ok "), "{name}: {said}");
    }
    let path = root().join("tests/it/examples/join-heavy.yaml");
    let text = std::fs::read_to_string(path).unwrap().replace("${file:redis-url}", "redis://h/0");
    let said = fail(&mut offline(&["check"], &text), 65);
    assert_eq!(said.matches("error[").count(), 3, "{said}");
    assert_eq!(said.matches("error[not-yet]: `via`").count(), 3, "{said}");
}

/// A format that was only read is run when the operator says so.
#[test]
fn a_dialect_that_was_never_run_is_accepted_by_name() {
    let text = |more: &str| {
        format!(
            "{{version: 1, caches: {{c: {{url: \"redis://h\", dialect: drupal, cache_prefix: x{more}}}}}, rules: [{{table: t, tags: [a]}}]}}"
        )
    };
    assert!(fail(&mut offline(&["check"], &text("")), 65).contains("error[unverified]"));
    succeed(&mut offline(&["check"], &text(", accept_unverified: true")));
}

/// Migrations under what `setup --apply` made run without an error, and nothing stays stale over them.
#[tokio::test]
async fn migrations_run_and_nothing_stays_stale() {
    let schema = "
        CREATE TABLE item (id int PRIMARY KEY, a text NOT NULL, b int, c text);
        CREATE UNIQUE INDEX item_b ON item (b);
        CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100)";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
            {table: item, tags: ["a:<a>", "b:<b>", "i:<id>"]}, {table: part, tags: ["p:<id>:<v>"]}]}"#,
    );
    let daemon = world.daemon();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    sql.batch_execute("INSERT INTO item VALUES (1, 'x', 5, 'c'); INSERT INTO part VALUES (1, 'v')").await.unwrap();
    for migration in [
        "ALTER TABLE item ALTER a DROP NOT NULL",
        "DROP INDEX item_b",
        "ALTER TABLE item ALTER b TYPE bigint",
        "ALTER TABLE item ADD d int GENERATED ALWAYS AS (id * 2) STORED",
        "ALTER TABLE item RENAME b TO bb",
        "ALTER TABLE item DROP bb",
        "CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200)",
    ] {
        sql.batch_execute(migration).await.unwrap_or_else(|error| panic!("{migration}: {error:?}"));
        for key in ["a:x", "b:5", "i:1", "p:1:v"] {
            redis::cmd("SET").arg(key).arg("x").exec_async(&mut cache).await.unwrap();
        }
        // The application goes on writing.
        for write in ["UPDATE item SET c = c || 'c' WHERE id = 1", "UPDATE part SET v = v WHERE id = 1"] {
            sql.batch_execute(write).await.unwrap_or_else(|error| panic!("{write} after {migration}: {error:?}"));
        }
        world.settled(&sql).await;
        for key in ["a:x", "b:5", "i:1", "p:1:v"] {
            let there: bool = redis::cmd("EXISTS").arg(key).query_async(&mut cache).await.unwrap();
            assert!(!there, "{key} after {migration}\n{}", daemon.log());
        }
    }
    // A partition that `setup` did not know identifies its rows by the primary key: what the rule needs of old rows is not sent,
    // which is told, and swept for.
    redis::cmd("SET").arg("p:150:old").arg("x").exec_async(&mut cache).await.unwrap();
    sql.batch_execute("INSERT INTO part VALUES (150, 'old')").await.unwrap();
    sql.batch_execute("UPDATE part SET v = 'new' WHERE id = 150").await.unwrap();
    world.settled(&sql).await;
    assert!(!redis::cmd("EXISTS").arg("p:150:old").query_async::<bool>(&mut cache).await.unwrap());
}

/// A partition that came later identifies its rows by the primary key: a row that leaves the condition, or the tenant that its
/// tags collapse into, is not sent, and swept for.
#[tokio::test]
async fn a_row_that_leaves_a_condition_unseen_is_swept_for() {
    if outbox() {
        // Triggers see whole old rows.
        return;
    }
    let schema = "
        CREATE TABLE part (id int PRIMARY KEY, status text, tenant int) PARTITION BY RANGE (id);
        CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100)";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
            {table: part, when: "row.status == 'live' && table == 'public.part'", tags: ["p:<id>"]},
            {table: part, collapse: {over: 2, to: "t:<tenant>"}, tags: ["c:<id>"]}]}"#,
    );
    let sql = world.sql().await;
    let daemon = world.daemon();
    sql.batch_execute("CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200)").await.unwrap();
    sql.batch_execute("INSERT INTO part SELECT i, 'live', 7 FROM generate_series(150, 159) i").await.unwrap();
    // A new partition is a gap by itself: only what comes after it shows anything.
    daemon.wait_for_count("resync complete", 2);
    let mut cache = world.cache(0).await;
    for key in ["p:150", "c:150", "session:1"] {
        redis::cmd("SET").arg(key).arg("x").exec_async(&mut cache).await.unwrap();
    }
    sql.batch_execute("UPDATE part SET status = 'draft' WHERE id = 150").await.unwrap();
    world.settled(&sql).await;
    let exists = async |cache: &mut redis::aio::MultiplexedConnection, key: &str| -> bool {
        redis::cmd("EXISTS").arg(key).query_async(cache).await.unwrap()
    };
    assert!(!exists(&mut cache, "p:150").await && exists(&mut cache, "session:1").await);
    // Many at once, whose tenants are not known.
    redis::cmd("SET").arg("c:150").arg("x").exec_async(&mut cache).await.unwrap();
    sql.batch_execute("DELETE FROM part").await.unwrap();
    world.settled(&sql).await;
    assert!(!exists(&mut cache, "c:150").await);
}

/// Rows whose `to` has no tag keep their own, however many.
#[tokio::test]
async fn tags_that_cannot_collapse_go_by_themselves() {
    let rules = r#"[{table: posts, collapse: {over: 2, to: "t.<tenant_id>"}, tags: ["p.<id>"]}]"#;
    let change =
        "INSERT INTO app.posts (id, tenant_id) VALUES (10, 1), (11, 1), (12, 1), (13, NULL), (14, NULL), (15, NULL)";
    assert_eq!(stale(rules, change).await, ["p.13", "p.14", "p.15", "t.1"]);
}

/// Domains are what they stand for, char(n) is compared without its padding, json numbers keep their digits.
#[tokio::test]
async fn domains_padding_and_digits() {
    let schema = "
        CREATE DOMAIN amount AS int; CREATE DOMAIN doc AS jsonb; CREATE DOMAIN list AS text[];
        CREATE TABLE odd (id amount PRIMARY KEY, d doc, l list, c char(5));
        ALTER TABLE odd REPLICA IDENTITY FULL";
    let world = World::with("", schema).await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
            {table: odd, when: "row.id == 5 && row.c == 'AB'", tags: ["n:<d.n>", "t:<d.tags[]>", "l:<l[]>"]}]}"#,
    );
    let stale = world
        .stale_after(r#"INSERT INTO odd VALUES (5, '{"n": 12345678901234567890.50, "tags": ["x"]}', '{a}', 'AB'), (6, '{"n": 1}', '{b}', 'AB')"#)
        .await;
    assert_eq!(stale, ["0 l:a", "0 n:12345678901234567890.50", "0 t:x"]);
}

/// What `check --live` knows of columns: conditions that never hold, and values that nobody can descend into.
#[tokio::test]
async fn misfits_between_rules_and_columns() {
    let world = World::with("", SHOP).await;
    for (rule, code) in [
        (r#"when: "row.status == 1", tags: [a]"#, "condition-type"),
        (r#"when: "row.price > 'x'", tags: [a]"#, "condition-type"),
        (r#"when: "row.stutus == 'x'", tags: [a]"#, "unknown-column"),
        (r#"tags: ["a:<slug[]>"]"#, "path"),
        (r#"tags: ["a:<labels.x>"]"#, "path"),
        (r#"ignore: [view_cuont], tags: [a]"#, "unknown-column"),
    ] {
        world.rules(&format!(
            "version: 1\ncaches: {{c: {{url: \"{{redis}}/0\", dialect: keys}}}}\nrules: [{{table: app.posts, {rule}}}]\n"
        ));
        let said = fail(&mut world.waltag("postgres", &["check", "--live"]), 65);
        assert!(said.contains(&format!("error[{code}]")), "{rule}: {said}");
    }
}
