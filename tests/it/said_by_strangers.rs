//! Tags that somebody names in SQL: who was granted `waltag.invalidate` is heard, nobody else is, and nobody names what is not a tag.

use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;
use waltag::demo::monitor::Monitor;

use crate::mallory::{run, world};
use crate::outbox::ONE;
use crate::support::{Daemon, SCHEMA, World, fill, is_gone, until};

const GRANTS: &str = "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA waltag TO app;
    GRANT EXECUTE ON FUNCTION waltag.invalidate, waltag.invalidate_in TO app;";

/// A world of this source, after setup, with a role that may name tags.
async fn granted(source: &str, rules: &str) -> (World, Client) {
    let mut world = world(SCHEMA).await;
    world.source = source.into();
    world.setup(rules);
    world.sql().await.batch_execute(GRANTS).await.unwrap();
    let app = world.sql_as("app", "shop").await;
    (world, app)
}

async fn says(client: &Client, tags: &[&str]) {
    client.query("SELECT waltag.invalidate(VARIADIC $1)", &[&tags]).await.unwrap();
}

/// Keys that were filled and are gone.
async fn gone(cache: &MultiplexedConnection, keys: &[String]) -> Vec<String> {
    let mut gone = Vec::new();
    for key in keys {
        if is_gone(cache, key).await {
            gone.push(key.clone());
        }
    }
    gone
}

/// Everything that was written before has been heard, and the role that may is heard.
async fn heard(world: &World, app: &Client, cache: &mut MultiplexedConnection) {
    fill(cache, "a:1").await;
    says(app, &["a:1"]).await;
    until("who was granted it is heard", || is_gone(cache, "a:1")).await;
    world.settled(&world.sql().await).await;
}

#[tokio::test]
async fn who_was_granted_nothing_is_not_heard() {
    let (world, app) = granted("replication", ONE).await;
    let (daemon, mut cache) = (world.daemon(), world.cache(0).await);
    let mallory = world.sql_as("mallory", "shop").await;
    let mut keys = Vec::new();
    for transactional in [true, false] {
        for prefix in ["waltag", "waltag:", "waltag:guess", "waltag:waltag", "WALTAG", "waltag "] {
            for place in ["null", "\"c\""] {
                let key = format!("a:{}", 100 + keys.len());
                fill(&mut cache, &key).await;
                let content = format!("{{\"tags\":[\"{key}\",\"session:alice\"],\"cache\":{place}}}");
                let send = "SELECT pg_logical_emit_message($1, $2, $3::text)";
                mallory.query(send, &[&transactional, &prefix, &content]).await.unwrap();
                keys.push(key);
            }
        }
    }
    fill(&mut cache, "session:alice").await;
    keys.push("session:alice".into());
    heard(&world, &app, &mut cache).await;
    assert_eq!(gone(&cache, &keys).await, [""; 0], "{}", daemon.log());
    assert!(mallory.batch_execute("SELECT waltag.invalidate('a:1')").await.is_err());
}

/// Everything that a text can be cut into.
fn words(texts: &[String]) -> Vec<String> {
    let mut words: Vec<String> = texts
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && !"_-+/=:".contains(c)))
        .flat_map(|word| word.split(':').chain([word]))
        .filter(|word| (4..200).contains(&word.len()))
        .map(str::to_owned)
        .collect();
    words.sort();
    words.dedup();
    words
}

async fn texts(client: &Client, query: &str) -> Vec<String> {
    client.query(query, &[]).await.unwrap().iter().filter_map(|row| row.get::<_, Option<String>>(0)).collect()
}

/// She reads all that a role can, and sends her message under each word of it.
#[tokio::test]
async fn nothing_that_she_can_read_makes_her_heard() {
    let (world, app) = granted("replication", ONE).await;
    let (daemon, mut cache) = (world.daemon(), world.cache(0).await);
    let mallory = world.sql_as("mallory", "shop").await;
    let readable = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'waltag'
        AND c.relkind NOT IN ('i', 'I', 'S') AND (has_table_privilege('mallory', c.oid, 'SELECT') OR has_any_column_privilege('mallory', c.oid, 'SELECT'))";
    assert_eq!(texts(&mallory, readable).await, [""; 0]);
    let public = "SELECT prosrc FROM pg_proc WHERE oid >= 16384 UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE oid >= 16384
        UNION ALL SELECT description FROM pg_description WHERE objoid >= 16384 UNION ALL SELECT description FROM pg_shdescription
        UNION ALL SELECT setconfig::text FROM pg_db_role_setting UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
        UNION ALL SELECT reloptions::text FROM pg_class UNION ALL SELECT proconfig::text FROM pg_proc UNION ALL SELECT pubname::text FROM pg_publication
        UNION ALL SELECT nspname::text FROM pg_namespace UNION ALL SELECT relname::text FROM pg_class WHERE oid >= 16384
        UNION ALL SELECT pg_get_viewdef(oid) FROM pg_class WHERE relkind = 'v' AND oid >= 16384 UNION ALL SELECT slot_name::text FROM pg_replication_slots
        UNION ALL SELECT query FROM pg_stat_activity UNION ALL SELECT setting FROM pg_settings UNION ALL SELECT oid::text FROM pg_proc WHERE oid >= 16384";
    let known = texts(&mallory, public).await;
    let mut prefixes = words(&known);
    prefixes.extend(prefixes.clone().iter().map(|word| format!("waltag:{word}")));
    prefixes.extend(known.into_iter().filter(|text| text.len() < 1_000));
    fill(&mut cache, "a:7").await;
    let send = "SELECT pg_logical_emit_message(n = 1, prefix, '{\"tags\":[\"a:7\"],\"cache\":null}') FROM unnest($1::text[]) prefix, generate_series(0, 1) n";
    mallory.query(send, &[&prefixes]).await.unwrap();
    heard(&world, &app, &mut cache).await;
    assert!(!is_gone(&cache, "a:7").await, "{} prefixes, and one of them will do\n{}", prefixes.len(), daemon.log());
}

/// Whoever reads the log itself sees a word in a valid message that nobody else can find out.
#[tokio::test]
async fn a_message_has_a_secret() {
    let (world, app) = granted("replication", ONE).await;
    let (owner, mallory) = (world.sql().await, world.sql_as("mallory", "shop").await);
    owner.batch_execute("SELECT pg_create_logical_replication_slot('reader', 'pgoutput')").await.unwrap();
    says(&app, &["a:1"]).await;
    let read = "SELECT data FROM pg_logical_slot_peek_binary_changes('reader', NULL, NULL, 'proto_version', '1', 'publication_names', 'waltag',
        'messages', 'true') WHERE get_byte(data, 0) = ascii('M') AND position('a:1'::bytea in data) > 0";
    let message: Vec<u8> = owner.query_one(read, &[]).await.unwrap().get(0);
    let message = String::from_utf8_lossy(&message).into_owned();
    let relations = "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'v', 'm', 'S') AND has_table_privilege(c.oid, 'SELECT')
        AND relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'public'::regnamespace)";
    let relations = texts(&mallory, relations).await;
    let mut secrets = Vec::new();
    for word in words(std::slice::from_ref(&message)) {
        let mut shown = false;
        for relation in &relations {
            let look = format!("SELECT EXISTS (SELECT FROM {relation} t WHERE strpos(t::text, $1) > 0)");
            // Some views ask for more than SELECT.
            shown = shown || mallory.query_one(&look, &[&word]).await.is_ok_and(|row| row.get(0));
        }
        let source =
            "SELECT EXISTS (SELECT FROM pg_proc WHERE oid >= 16384 AND strpos(pg_get_functiondef(oid), $1) > 0)";
        if !shown && !mallory.query_one(source, &[&word]).await.unwrap().get::<_, bool>(0) {
            secrets.push(word);
        }
    }
    assert!(secrets.iter().any(|word| word.len() >= 16), "all of {message:?} can be known");
}

/// Keys of Redis that begin with `waltag:`.
async fn markers(cache: &MultiplexedConnection) -> Vec<String> {
    redis::cmd("KEYS").arg("waltag:*").query_async(&mut cache.clone()).await.unwrap()
}

fn resyncs(daemon: &Daemon) -> usize {
    daemon.log().matches(" resync: ").count()
}

/// A tag that is called like the marker, or like anything of ours, from wherever it comes.
#[tokio::test]
async fn a_marker_is_no_tag() {
    let rules = ONE.replace(
        "rules: [",
        r#"rules: [{table: unrelated, tags: ["b:<id>"]}, {table: shop.second_model, tags: [{tag: "<name>", unknown: ["all"]}]}, "#,
    );
    let mut done = Vec::new();
    for source in ["replication", "outbox"] {
        let (world, app) = granted(source, &rules).await;
        let (daemon, mut cache, sql) = (world.daemon(), world.cache(0).await, world.sql().await);
        world.settled(&sql).await;
        fill(&mut cache, "waltag:other:slot:cache").await;
        let keys = markers(&cache).await;
        assert!(keys.len() >= 2, "{keys:?}");
        let names: Vec<&str> = keys.iter().map(String::as_str).collect();
        for (number, way) in
            ["waltag.invalidate", "waltag.invalidate_in", "a row", "waltag invalidate"].iter().enumerate()
        {
            let (before, monitor) = (resyncs(&daemon), Monitor::start(world.redis.port));
            match number {
                0 => says(&app, &names).await,
                1 => {
                    app.query("SELECT waltag.invalidate_in('c', VARIADIC $1)", &[&names]).await.unwrap();
                }
                2 => {
                    let insert = "INSERT INTO shop.second_model (id, name) SELECT row_number() OVER (), n FROM unnest($1::text[]) n";
                    sql.execute(insert, &[&keys]).await.unwrap();
                }
                _ => {
                    run(&mut world.waltag("waltag", &[&["invalidate"], names.as_slice()].concat()));
                }
            }
            // Two rounds: whoever finds the marker gone has said so by then.
            for round in 0..2 {
                let key = format!("b:{}", number * 2 + round);
                fill(&mut cache, &key).await;
                sql.execute("INSERT INTO unrelated VALUES ($1)", &[&((number * 2 + round) as i32)]).await.unwrap();
                until("a change is stale", || is_gone(&cache, &key)).await;
                world.settled(&sql).await;
            }
            let touched =
                monitor.unlinked().into_iter().filter(|key| key.contains(" waltag:") || key.contains("\"waltag:"));
            done.extend(touched.map(|key| format!("{source}: {way} unlinks {key}")));
            if resyncs(&daemon) > before {
                done.push(format!("{source}: {way} makes a resync"));
            }
            fill(&mut cache, "waltag:other:slot:cache").await;
        }
    }
    assert!(done.is_empty(), "{done:#?}");
}

/// A template that begins like the marker is refused, or its sweep passes over what is ours.
#[tokio::test]
async fn a_sweep_passes_over_markers() {
    let world = World::new().await;
    let rules = ONE.replace("a:<id>", "waltag:<name>");
    world.rules(&rules);
    if !world.waltag("postgres", &["check"]).output().unwrap().status.success() {
        return;
    }
    world.setup(&rules);
    let (daemon, mut cache, sql) = (world.daemon(), world.cache(0).await, world.sql().await);
    world.settled(&sql).await;
    fill(&mut cache, "waltag:other:slot:cache").await;
    let (keys, before) = (markers(&cache).await, resyncs(&daemon));
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(gone(&cache, &keys).await, [""; 0]);
    assert_eq!(resyncs(&daemon), before, "{}", daemon.log());
}

/// The number of messages that were passed over.
fn spurned(daemon: &Daemon) -> u64 {
    let metrics = daemon.get("/metrics").1;
    let line = metrics.lines().find_map(|line| line.strip_prefix("waltag_spurned_messages_total "));
    line.unwrap().parse().unwrap()
}

/// Where the tag is the key, other things have keys, too.
#[tokio::test]
async fn a_tag_is_what_the_rules_could_make() {
    for source in ["replication", "outbox"] {
        let (world, app) = granted(source, ONE).await;
        let (daemon, mut cache) = (world.watched(), world.cache(0).await);
        let others = ["celery", "_kombu.binding.celery", "a:x", "a:15:session", "a:", "ba:15", "A:15", "page:1"]
            .map(String::from);
        for key in others.iter().map(String::as_str).chain(["a:15", "a:-3"]) {
            fill(&mut cache, key).await;
        }
        let before = spurned(&daemon);
        for other in &others {
            says(&app, &[other]).await;
        }
        let all: Vec<&str> = others.iter().map(String::as_str).chain(["a:15", "a:-3"]).collect();
        says(&app, &all).await;
        until("what a template makes is stale", || async {
            is_gone(&cache, "a:15").await && is_gone(&cache, "a:-3").await
        })
        .await;
        heard(&world, &app, &mut cache).await;
        assert_eq!(gone(&cache, &others).await, [""; 0], "{source}: no rule makes them");
        assert!(spurned(&daemon) > before, "{source}: nobody has counted them");
        assert!(daemon.get("/readyz").0 == 200);
    }
}

/// Code that knows more than the rows may name what begins so.
#[tokio::test]
async fn a_tag_may_begin_as_the_cache_allows() {
    let rules = ONE.replace("dialect: keys", "dialect: keys, prefix_only: ['page:', 'wal']");
    for source in ["replication", "outbox"] {
        let (world, app) = granted(source, &rules).await;
        let (daemon, mut cache, sql) = (world.watched(), world.cache(0).await, world.sql().await);
        world.settled(&sql).await;
        let (mut others, before) = (markers(&cache).await, resyncs(&daemon));
        others.extend(["celery", "pages", "a:x", " page:1", "Page:1"].map(String::from));
        for key in others.iter().skip(1).map(String::as_str).chain(["page:1", "wallet", "a:15"]) {
            fill(&mut cache, key).await;
        }
        let all: Vec<&str> = others.iter().map(String::as_str).chain(["page:1", "wallet", "a:15"]).collect();
        says(&app, &all).await;
        for key in ["page:1", "wallet", "a:15"] {
            until(&format!("{source}: {key} is stale"), || is_gone(&cache, key)).await;
        }
        heard(&world, &app, &mut cache).await;
        assert_eq!(gone(&cache, &others).await, [""; 0], "{source}");
        assert_eq!(resyncs(&daemon), before, "{source}: {}", daemon.log());
        assert!(spurned(&daemon) > 0);
    }
}
