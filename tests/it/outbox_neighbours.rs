//! What else lives in the database of an outbox: migrations, other subscribers, other roles and databases, odd encodings, dumps, crashes.

use tokio_postgres::Client;

use crate::outbox::{ONE, count, emptied, world, world_with};
use crate::support::{Pooler, World, fail, fill, is_gone, signal, succeed, until};

/// Behind a pooler nobody's connection breaks when the server crashes, and the outbox is empty afterwards.
#[tokio::test]
async fn a_crash_behind_a_pooler() {
    let world = world().await;
    world.rules(ONE);
    succeed(&mut world.waltag("postgres", &["setup", "--apply", "--no-listen"]));
    let pooler = Pooler::start(&world);
    let url = format!("postgres://waltag@127.0.0.1:{}/shop", pooler.port);
    // The next poll comes too late.
    let mut command = world.waltag("waltag", &["run", "--no-listen", "--poll", "60s"]);
    let daemon = world.start(command.env("WALTAG_DATABASE_URL", &url));
    daemon.wait_until_resynced();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    fill(&mut cache, "a:1").await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    let backend = world.sql().await.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    signal(backend as u32, "KILL");
    daemon.wait_for("PostgreSQL has crashed");
    until("what was lost is made up for", || is_gone(&cache, "a:1")).await;
}

/// Where all tables are published, ours are not: a subscriber has none of that name, and would stop.
#[tokio::test]
async fn nothing_of_it_is_replicated() {
    let world = world().await;
    let sql = world.sql().await;
    sql.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").await.unwrap();
    world.setup(ONE);
    let published = "SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'waltag'";
    assert_eq!(count(&sql, published).await, 0);
}

/// Migrations around partitions: a table with a trigger of its own becomes a partition, the rules go from a leaf to its root, the root gets
/// another owner.
#[tokio::test]
async fn partitions_come_and_go() {
    let schema = "CREATE TABLE ev (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
        CREATE TABLE ev_1 PARTITION OF ev FOR VALUES IN (1); CREATE TABLE ev_2 (id int, k int, PRIMARY KEY (id, k)); CREATE ROLE newowner";
    let world = world_with("", schema).await;
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    world.setup(&ONE.replace("table: first_model", "table: ev_1"));
    world.setup(&ONE.replace("table: first_model", "tables: [\"ev*\"]"));
    assert!(succeed(&mut world.waltag("postgres", &["setup", "--apply"])).contains("Nothing to do"));
    let _daemon = world.daemon();
    for migration in [
        "ALTER TABLE ev ATTACH PARTITION ev_2 FOR VALUES IN (2)",
        "ALTER TABLE ev DETACH PARTITION ev_2",
        "ALTER TABLE ev ATTACH PARTITION ev_2 FOR VALUES IN (2)",
        "ALTER TABLE ev OWNER TO newowner; GRANT CREATE ON SCHEMA public TO newowner; SET ROLE newowner;
         CREATE TABLE ev_3 PARTITION OF ev FOR VALUES IN (3); RESET ROLE",
    ] {
        sql.batch_execute(migration).await.unwrap_or_else(|error| panic!("{migration}: {error:?}"));
        fill(&mut cache, "a:7").await;
        sql.batch_execute("DELETE FROM ev_2; INSERT INTO ev_2 VALUES (7, 2)").await.unwrap();
        until(migration, || is_gone(&cache, "a:7")).await;
    }
    succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
}

/// A deploy that was taken back: for a while the function skipped updates.
#[tokio::test]
async fn a_function_that_was_narrower_is_a_gap() {
    let world = world().await;
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    world.setup(ONE);
    sql.batch_execute("INSERT INTO first_model VALUES (1, 'a')").await.unwrap();
    let daemon = world.daemon();
    world.settled(&sql).await;
    assert_eq!(daemon.stop(), Some(0));
    fill(&mut cache, "a:1").await;
    world.setup(&ONE.replace("tags: [", "ignore: [name], tags: ["));
    sql.batch_execute("UPDATE first_model SET name = 'b'").await.unwrap();
    world.setup(ONE);
    let _daemon = world.daemon();
    until("it is made up for", || is_gone(&cache, "a:1")).await;
}

/// A world whose database is not in UTF-8.
async fn encoded(source: &str, encoding: &str) -> (World, Client) {
    let mut world = world().await;
    world.source = source.into();
    let create = format!("CREATE DATABASE old ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
    world.sql().await.batch_execute(&create).await.unwrap();
    world.database = "old".into();
    let sql = world.sql().await;
    sql.batch_execute("CREATE TABLE first_model (id int PRIMARY KEY, name text)").await.unwrap();
    (world, sql)
}

#[tokio::test]
async fn tags_from_sql_that_are_not_in_utf8() {
    for source in ["replication", "outbox"] {
        let (world, sql) = encoded(source, "LATIN1").await;
        world.setup(&ONE.replace("dialect: keys", "dialect: keys, prefix_only: ['']"));
        let (daemon, mut cache) = (world.daemon(), world.cache(0).await);
        fill(&mut cache, "Café").await;
        fill(&mut cache, "long").await;
        sql.batch_execute("SELECT waltag.invalidate('Café')").await.unwrap();
        until("it is stale", || is_gone(&cache, "Café")).await;
        let long = sql.batch_execute("SELECT waltag.invalidate('long', repeat('é', 40000))").await;
        assert!(long.is_err(), "more than 64 kB as it is sent\n{}", daemon.log());
        assert!(!daemon.log().contains("passed over"), "{}", daemon.log());
    }
}

/// A byte that is no character anywhere else: nobody can be sent that row, and those behind it come all the same.
#[tokio::test]
async fn a_value_that_cannot_be_sent() {
    for source in ["replication", "outbox"] {
        let (world, sql) = encoded(source, "WIN1252").await;
        world.setup(&ONE.replace("a:<id>", "a:<name>"));
        let (_daemon, mut cache) = (world.daemon(), world.cache(0).await);
        fill(&mut cache, "a:x").await;
        fill(&mut cache, "a:y").await;
        sql.batch_execute("INSERT INTO first_model VALUES (1, 'x'); UPDATE first_model SET name = 'x' || chr(129)")
            .await
            .unwrap();
        sql.batch_execute("INSERT INTO first_model VALUES (2, 'y')").await.unwrap();
        until(source, || async { is_gone(&cache, "a:x").await && is_gone(&cache, "a:y").await }).await;
        fill(&mut cache, "a:z").await;
        sql.batch_execute("INSERT INTO first_model VALUES (3, 'z')").await.unwrap();
        until(source, || is_gone(&cache, "a:z")).await;
    }
}

/// A dump brings rows, and a progress, of another server's transactions.
#[tokio::test]
async fn a_dump_that_was_restored() {
    let world = world().await;
    world.setup(ONE);
    let sql = world.sql().await;
    sql.batch_execute(
        "INSERT INTO waltag.outbox (xid, relation, root, kind) VALUES ('99999999', 1, 1, 'i');
         INSERT INTO waltag.progress (instance, position, done) VALUES ('waltag', 7, '99999990:99999990:')",
    )
    .await
    .unwrap();
    let daemon = world.daemon();
    let mut cache = world.cache(0).await;
    fill(&mut cache, "a:1").await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    until("it is stale", || is_gone(&cache, "a:1")).await;
    world.settled(&sql).await;
    emptied(&sql).await;
    assert_eq!(daemon.log().matches(" resync: ").count(), 1, "{}", daemon.log());
}

/// Who may read tables by default may not read, or hide, what passes here.
#[tokio::test]
async fn default_privileges() {
    let world = world().await;
    let sql = world.sql().await;
    sql.batch_execute(
        "CREATE ROLE app; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO app; ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO app;
         ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO app",
    )
    .await
    .unwrap();
    world.setup(ONE);
    let may = "SELECT count(*) FROM (SELECT relacl AS acl FROM pg_class WHERE relnamespace = 'waltag'::regnamespace AND relkind IN ('r', 'S')
        UNION ALL SELECT proacl FROM pg_proc WHERE pronamespace = 'waltag'::regnamespace AND prorettype <> 'trigger'::regtype) t,
        aclexplode(acl) a WHERE a.grantee = 'app'::regrole";
    assert_eq!(count(&sql, may).await, 0);
    // What was granted on purpose stays.
    sql.batch_execute("GRANT EXECUTE ON FUNCTION waltag.invalidate TO app").await.unwrap();
    succeed(&mut world.waltag("postgres", &["setup", "--apply", "--no-listen"]));
    assert_eq!(count(&sql, may).await, 1);
    world.daemon().stop();
}

/// The role belongs to the server, an outbox to its database.
#[tokio::test]
async fn the_role_is_needed_elsewhere() {
    let world = world().await;
    world.setup(ONE);
    let mut other = world;
    other.sql().await.batch_execute("CREATE DATABASE other TEMPLATE template0").await.unwrap();
    other.database = "other".into();
    other.sql().await.batch_execute("CREATE TABLE first_model (id int PRIMARY KEY, name text)").await.unwrap();
    other.setup(ONE);
    let remove = |world: &World| succeed(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
    assert!(!remove(&other).contains("DROP ROLE"));
    assert!(remove(&other).contains("Nothing to do"));
    other.database = "shop".into();
    assert!(remove(&other).contains("DROP ROLE"));
    assert!(fail(&mut other.waltag("waltag", &["run"]), 78).contains("role"));
}
