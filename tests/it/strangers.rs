//! Objects that the rules name and that are not what they seem, or belong to somebody else: whoever looks at them, often a superuser, runs
//! nothing of theirs.

use crate::mallory::{run, sprung_since, world};
use crate::support::{fail, succeed};

const TABLE: &str =
    "CREATE TABLE shop.bait (id bigint PRIMARY KEY, flag boolean NOT NULL); INSERT INTO shop.bait VALUES (1, true);";

/// What stands under the name of the rule: what the owner does first, and what mallory does. `TABLE` is [`TABLE`]. The planner runs an immutable
/// function of constants, whoever plans.
const BAITS: &[(&str, &str, &str)] = &[
    ("view", "", "CREATE VIEW shop.bait AS SELECT 1::bigint AS id, spy.sprung('view') AS flag"),
    (
        "materialized view",
        "",
        "CREATE MATERIALIZED VIEW shop.bait AS SELECT 1::bigint AS id, true AS flag;
         CREATE INDEX ON shop.bait (id) WHERE spy.fold('materialized view')",
    ),
    (
        "policy",
        "",
        "TABLE ALTER TABLE shop.bait ENABLE ROW LEVEL SECURITY; ALTER TABLE shop.bait FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON shop.bait USING (spy.sprung('policy'))",
    ),
    ("partial index", "", "TABLE CREATE INDEX ON shop.bait (id) WHERE spy.fold('partial index')"),
    ("expression", "", "TABLE CREATE INDEX ON shop.bait ((flag AND spy.fold('expression')))"),
    ("statistics", "", "TABLE CREATE STATISTICS shop.s ON (flag AND spy.fold('statistics')) FROM shop.bait"),
    ("check", "", "TABLE ALTER TABLE shop.bait ADD CHECK (spy.fold('check'))"),
    (
        "check of a child",
        "",
        "TABLE CREATE TABLE shop.child (PRIMARY KEY (id), CHECK (spy.fold('check of a child'))) INHERITS (shop.bait)",
    ),
    (
        "leaf",
        "CREATE TABLE shop.bait (id bigint PRIMARY KEY, flag boolean NOT NULL) PARTITION BY RANGE (id);
         CREATE TABLE shop.leaf PARTITION OF shop.bait DEFAULT; ALTER TABLE shop.leaf OWNER TO mallory",
        "INSERT INTO shop.leaf VALUES (1, true); CREATE INDEX ON shop.leaf (id) WHERE spy.fold('leaf')",
    ),
    (
        "check of a leaf",
        "CREATE TABLE shop.bait (id bigint PRIMARY KEY, flag boolean NOT NULL) PARTITION BY RANGE (id);
         CREATE TABLE shop.leaf PARTITION OF shop.bait DEFAULT; ALTER TABLE shop.leaf OWNER TO mallory",
        "ALTER TABLE shop.leaf ADD CHECK (spy.fold('check of a leaf'))",
    ),
    (
        "generated column",
        "",
        "CREATE TABLE shop.bait (id bigint PRIMARY KEY, flag boolean NOT NULL,
         made boolean GENERATED ALWAYS AS (spy.fold('generated column')) STORED); INSERT INTO shop.bait VALUES (1, true)",
    ),
    (
        "default, trigger and rule",
        "",
        "TABLE ALTER TABLE shop.bait ALTER flag SET DEFAULT spy.sprung('default');
         CREATE RULE r AS ON UPDATE TO shop.bait DO ALSO SELECT spy.sprung('rule')",
    ),
    (
        "domain",
        "",
        "CREATE DOMAIN shop.flag AS boolean CHECK (VALUE AND spy.sprung('domain'));
         CREATE TABLE shop.bait (id bigint PRIMARY KEY, flag shop.flag NOT NULL); INSERT INTO shop.bait VALUES (1, true)",
    ),
];

const RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: shop.bait, tags: ["bait:<flag>"]}],
    tests: [{name: t, table: shop.bait, new: {flag: true}, expect: ["bait:true"]}]}"#;

/// Printed, then applied; each with the way back.
const COMMANDS: &[&str] = &[
    "check --live",
    "init",
    "test --live",
    "setup",
    "setup --prefer wal",
    "setup --source outbox",
    "check --live --source outbox",
    "setup --prefer wal --apply",
    "check --live",
    "setup --remove",
    "setup --remove --apply",
    "setup --apply",
    "setup --prefer wal",
    "setup --remove --apply",
    "setup --source outbox --apply",
    "check --live --source outbox",
    "setup --source outbox --remove --apply",
];

/// Run by a superuser, and by a role that may read everything and replicate.
#[tokio::test]
async fn what_the_rules_name_is_not_run() {
    let world = world("CREATE ROLE watcher LOGIN REPLICATION; GRANT pg_read_all_data TO watcher").await;
    world.rules(RULES);
    let (owner, mallory) = (world.sql().await, world.sql_as("mallory", "shop").await);
    let mut ran = Vec::new();
    for (bait, prepare, make) in BAITS {
        let schema = "DROP SCHEMA IF EXISTS shop CASCADE; CREATE SCHEMA shop; GRANT ALL ON SCHEMA shop TO mallory;";
        owner.batch_execute(&format!("{schema}{prepare}")).await.unwrap_or_else(|error| panic!("{bait}: {error:?}"));
        let make =
            make.replace("TABLE ALTER", &format!("{TABLE} ALTER")).replace("TABLE CREATE", &format!("{TABLE} CREATE"));
        mallory.batch_execute(&make).await.unwrap_or_else(|error| panic!("{bait}: {error:?}"));
        let mut look = |user: &str, command: &str| {
            let known = world.postgres.log().len();
            run(&mut world.waltag(user, &command.split(' ').collect::<Vec<_>>()));
            ran.extend(sprung_since(&world, known).iter().map(|line| format!("`{command}` ran the {line}")));
        };
        look("watcher", "check --live");
        COMMANDS.iter().for_each(|command| look("postgres", command));
    }
    ran.dedup();
    assert!(ran.is_empty(), "{ran:#?}");
}

/// What `check --live` shows of tables is worth having.
#[tokio::test]
async fn values_of_somebody_elses_ordinary_table_are_shown() {
    let world = world(
        "CREATE ROLE app; CREATE SCHEMA shop AUTHORIZATION app; SET ROLE app;
         CREATE TABLE shop.price (id bigint PRIMARY KEY, paid boolean, amount numeric(9, 2), at timestamp, labels text[]);
         CREATE INDEX ON shop.price (at);
         INSERT INTO shop.price SELECT n, true, 12.50, '2026-11-30 10:00:00.5', '{a,b}' FROM generate_series(1, 5) n; RESET ROLE",
    )
    .await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys, style: python}}, rules: [{table: shop.price, tags: ["p:<paid>:<amount>:<at>:<labels>"]}]}"#,
    );
    let said = succeed(&mut world.waltag("postgres", &["check", "--live"]));
    for shown in ["paid bool: `t` -> `True`", "`12.50`", "-> `2026-11-30 10:00:00.500000`", "-> `['a', 'b']`"] {
        assert!(said.contains(shown), "{shown}\n{said}");
    }
}

/// It is said that it is no table, and which.
#[tokio::test]
async fn a_view_is_refused_by_its_name() {
    let world = world("CREATE SCHEMA shop; CREATE VIEW shop.bait AS SELECT 1::bigint AS id, true AS flag").await;
    world.rules(RULES);
    for command in [&["check", "--live"][..], &["setup"], &["setup", "--source", "outbox"]] {
        let said = fail(&mut world.waltag("postgres", command), 65);
        assert!(said.contains("shop.bait") && said.contains("not a table"), "{said}");
    }
}
