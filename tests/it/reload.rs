//! Rule files that change while the daemon runs.

use std::os::unix::fs::symlink;

use redis::aio::MultiplexedConnection;

use crate::support::{Monitor, World, fail, outbox, until};

/// One cache where the tag is the key; `rules` is the list.
fn file(rules: &str) -> String {
    format!("version: 1\ncaches:\n  c: {{ url: \"{{redis}}/0\", dialect: keys }}\nrules: [{rules}]\n")
}

const FIRST: &str = "{table: first_model, tags: [\"a:<id>\"]}";
const SECOND: &str = "{table: shop.second_model, tags: [\"s:<id>\"]}";

async fn fill(cache: &mut MultiplexedConnection, keys: &[&str]) {
    for key in keys {
        redis::cmd("SET").arg(*key).arg("cached").exec_async(cache).await.unwrap();
    }
}

async fn left(cache: &mut MultiplexedConnection) -> Vec<String> {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(cache).await.unwrap();
    keys.retain(|key| !key.starts_with("waltag:"));
    keys.sort();
    keys
}

/// Fifty edits under write load, a valid and a broken one in turn: no change is lost, and each row has the tags of the rules
/// that were in force, old or new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_edits_under_load_lose_nothing() {
    let world = World::new().await;
    let rule = |head: &str| file(&format!("{{table: first_model, tags: [\"{head}:<id>\", \"{head}\"]}}"));
    world.setup(&rule("r0"));
    let daemon = world.watched();
    let (sql, writer) = (world.sql().await, world.sql().await);
    let monitor = Monitor::start(world.redis.port);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let load = tokio::spawn(async move {
        let mut id = 0;
        while stopped.try_recv().is_err() {
            writer.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
            id += 1;
            // Faster than the daemon is without optimization, each edit would wait for minutes of backlog.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        id
    });
    for edit in 1..=25 {
        world.rules(&rule(&format!("r{edit}")));
        daemon.signal("HUP");
        daemon.wait_for_count("rules reloaded", edit);
        // From the acknowledged reload on the new rules are in force.
        let marker = 1_000_000 + edit;
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({marker})")).await.unwrap();
        until("the new rule fires", || async { monitor.unlinked().contains(&format!("0 r{edit}:{marker}")) }).await;
        world.rules("version: 1\nrules: [{table: first_model, tgas: []}]");
        daemon.signal("HUP");
        daemon.wait_for_count("the new rules are refused", edit);
    }
    stop.send(()).unwrap();
    let last = load.await.unwrap();
    world.settled(&sql).await;
    let sent = monitor.unlinked();
    let sent: std::collections::HashSet<&str> = sent.iter().filter_map(|tag| tag.split(':').nth(1)).collect();
    let lost: Vec<i32> = (0..last).filter(|id| !sent.contains(id.to_string().as_str())).collect();
    assert!(lost.is_empty(), "{} of {last} rows are lost: {:?}", lost.len(), lost.first());
    println!("{last} rows were written meanwhile");
    let (code, body) = daemon.get("/status");
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("unknown key `tgas`") && body.contains("\"generation\":26"), "{body}");
}

/// The watch notices a change by itself, without a signal, and a file that only was touched changes nothing.
#[tokio::test]
async fn a_change_is_noticed_without_a_signal() {
    let world = World::new().await;
    world.setup(&file(&format!("{FIRST}, {SECOND}")));
    let daemon = world.watched();
    let path = world.rules(&file(SECOND));
    daemon.wait_for("rules reloaded");
    // As editors do: a new file takes the name.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path.with_extension("new"), text.replace("s:<id>", "t:<id>")).unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    daemon.wait_for_count("rules reloaded", 2);
    let sql = world.sql().await;
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("INSERT INTO first_model VALUES (1); INSERT INTO shop.second_model VALUES (2)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["0 t:2"]);
    daemon.signal("HUP");
    daemon.wait_for("the rules are those in force");
    assert_eq!(daemon.log().matches("rules reloaded").count(), 2);
}

/// What a template that is new would have made stale before is made stale once, and nothing else; also when the rules were
/// changed while the daemon was down.
#[tokio::test]
async fn new_templates_are_made_stale_once() {
    let world = World::new().await;
    world.setup(&file(&format!("{FIRST}, {SECOND}")));
    world.rules(&file(FIRST));
    let daemon = world.watched();
    let mut cache = world.cache(0).await;
    let all = ["a:1", "s:1", "session:1", "u:1"];
    fill(&mut cache, &all).await;
    world.rules(&file(&format!("{FIRST}, {SECOND}")));
    daemon.signal("HUP");
    daemon.wait_for("resync complete: the rules cover `s:<id>` from now on");
    assert_eq!(left(&mut cache).await, ["a:1", "session:1", "u:1"]);
    assert_eq!(daemon.stop(), Some(0));
    fill(&mut cache, &all).await;
    world.rules(&file(&format!("{FIRST}, {SECOND}, {{table: first_model, tags: [\"u:<id>\"]}}")));
    let daemon = world.watched();
    assert!(daemon.log().contains("resync complete: the rules cover `u:<id>` from now on"), "{}", daemon.log());
    assert_eq!(left(&mut cache).await, ["a:1", "s:1", "session:1"]);
    // Rules that are gone, and a restart with the same: no gap.
    world.rules(&file(FIRST));
    daemon.signal("HUP");
    daemon.wait_for("rules reloaded");
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.watched();
    assert!(!daemon.log().contains("resync"), "{}", daemon.log());
    assert_eq!(left(&mut cache).await, ["a:1", "s:1", "session:1"]);
}

/// Another prefix, another cache: what was made stale under the old one says nothing of the new. The others stay as they are.
#[tokio::test]
async fn a_cache_with_new_options_is_made_stale_and_the_others_are_not() {
    let world = World::new().await;
    let text = |prefix: &str| {
        format!(
            "version: 1\ncaches:\n  a: {{ url: \"{{redis}}/0\", dialect: keys }}\n  b: {{ url: \"{{redis}}/1\", dialect: \
             cache-tagging, key_prefix: {prefix} }}\nrules: [{{table: first_model, caches: [a, b], tags: [\"a:<id>\"]}}]\n"
        )
    };
    world.setup(&text("x"));
    let daemon = world.watched();
    let (mut a, mut b) = (world.cache(0).await, world.cache(1).await);
    fill(&mut a, &["a:1"]).await;
    let key = "y:1:tag_073_82f87684924ecd4a815ee924449c3fa1";
    fill(&mut b, &[key, "page"]).await;
    world.rules(&text("y"));
    daemon.signal("HUP");
    daemon.wait_for_count("resync complete", 3);
    let found = (left(&mut a).await, left(&mut b).await);
    assert_eq!(found, (vec!["a:1".to_owned()], vec!["page".to_owned()]), "{}", daemon.log());
    // `repeat` may change without any of that, and what is owed moves along.
    world.rules(&text("y").replace("dialect: keys", "repeat: [200ms], dialect: keys"));
    daemon.signal("HUP");
    daemon.wait_for_count("rules reloaded", 2);
    let sql = world.sql().await;
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    let passes = monitor.lines().iter().filter(|line| line.contains("\"UNLINK\" \"a:1\"")).count();
    assert_eq!(passes, 2, "{:?}", monitor.lines());
    assert_eq!(daemon.log().matches("resync complete").count(), 3);
}

/// A rule whose table is not published is named everywhere; the rest runs. Once published it is picked up by itself, and what
/// it missed goes stale.
#[tokio::test]
async fn an_uncovered_rule_is_picked_up_when_its_table_is_published() {
    if outbox() {
        // `outbox::triggers_follow_the_rules`.
        return;
    }
    let world = World::new().await;
    world.setup(&file(FIRST));
    world.rules(&file(&format!("{FIRST}, {SECOND}")));
    let daemon = world.watched();
    let body = daemon.readyz(503);
    assert!(body.contains("uncovered") && body.contains("ADD TABLE \\\"shop\\\".\\\"second_model\\\""), "{body}");
    let mut cache = world.cache(0).await;
    fill(&mut cache, &["a:1", "s:1"]).await;
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO shop.second_model VALUES (1)").await.unwrap();
    sql.batch_execute("ALTER TABLE shop.second_model REPLICA IDENTITY FULL").await.unwrap();
    sql.batch_execute("ALTER PUBLICATION waltag ADD TABLE shop.second_model").await.unwrap();
    daemon.wait_for("resync complete: the rules cover `s:<id>` from now on");
    assert_eq!(left(&mut cache).await, ["a:1"]);
    daemon.readyz(200);
    fill(&mut cache, &["s:1"]).await;
    sql.batch_execute("DELETE FROM shop.second_model").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(left(&mut cache).await, ["a:1"]);
}

/// A column disappears while the daemon runs: each change of the table makes everything stale that the rules reach, loudly,
/// over a restart too, until rule or table fits again.
#[tokio::test]
async fn a_rule_whose_column_is_gone_is_degraded_until_it_fits_again() {
    let world = World::new().await;
    let rules = file("{table: first_model, tags: [\"n:<name>\"]}");
    world.setup(&rules);
    let mut daemon = world.watched();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    sql.batch_execute("ALTER TABLE first_model RENAME name TO title").await.unwrap();
    for start in 0..2 {
        fill(&mut cache, &["n:x", "session:1"]).await;
        sql.batch_execute(&format!("INSERT INTO first_model VALUES ({start})")).await.unwrap();
        world.settled(&sql).await;
        assert_eq!(left(&mut cache).await, ["session:1"]);
        let body = daemon.readyz(503);
        assert!(body.contains("degraded") && body.contains("has no column `name`"), "{body}");
        assert_eq!(daemon.stop(), Some(0));
        daemon = world.watched();
    }
    sql.batch_execute("ALTER TABLE first_model RENAME title TO name").await.unwrap();
    daemon.readyz(200);
    // Until then the rows may have been read by another name.
    daemon.wait_until_resynced();
    fill(&mut cache, &["n:x", "n:y"]).await;
    sql.batch_execute("INSERT INTO first_model VALUES (9, 'x')").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(left(&mut cache).await, ["n:y", "session:1"]);
}

/// Rules that do not fit the database are refused at a reload as at a start; mended there, they come into force by themselves.
#[tokio::test]
async fn rules_that_do_not_fit_the_database_wait_until_they_do() {
    if outbox() {
        // There is no publication.
        return;
    }
    let world = World::new().await;
    world.setup(&file(FIRST));
    let sql = world.sql().await;
    sql.batch_execute("ALTER PUBLICATION waltag ADD TABLE shop.second_model").await.unwrap();
    let daemon = world.watched();
    world.rules(&file("{table: shop.second_model, tags: [\"c:<category_id>\"]}"));
    daemon.wait_for("the new rules are refused");
    assert!(daemon.readyz(503).contains("REPLICA IDENTITY FULL"));
    let monitor = Monitor::start(world.redis.port);
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["0 a:1"]);
    // A restart with such rules goes on with the last good ones.
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.watched();
    assert!(daemon.readyz(503).contains("REPLICA IDENTITY FULL"));
    sql.batch_execute("ALTER TABLE shop.second_model REPLICA IDENTITY FULL").await.unwrap();
    daemon.wait_for("rules reloaded");
    daemon.readyz(200);
}

/// A broken file and a restart: the last good set runs, says so, and takes the repaired file by itself. Without a place to keep
/// it, the start is refused.
#[tokio::test]
async fn a_start_with_broken_rules_goes_on_with_the_last_good_ones() {
    let world = World::new().await;
    let good = file(FIRST);
    world.setup(&good);
    assert_eq!(world.watched().stop(), Some(0));
    world.rules("rules: [");
    crate::support::fail(&mut world.waltag("waltag", &["run"]), 65);
    let daemon = world.watched();
    let body = daemon.readyz(503);
    assert!(body.contains("\"code\":\"rules\"") && body.contains("rules.yaml:1"), "{body}");
    let (sql, monitor) = (world.sql().await, Monitor::start(world.redis.port));
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["0 a:1"]);
    world.rules(&good);
    daemon.wait_for("the rules are those in force");
    daemon.readyz(200);
    world.rules(&file(&FIRST.replace("a:", "b:")));
    daemon.wait_for("rules reloaded");
    assert!(!daemon.log().contains("ERROR the new rules"), "{}", daemon.log());
}

/// A secret file is watched like the rules: a new password is used without a restart, and nothing goes stale for it.
#[tokio::test]
async fn a_new_password_in_a_file_is_taken_up() {
    let world = World::new().await;
    let secrets = tempfile::tempdir().unwrap();
    let secret = secrets.path().join("redis-url");
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}/0", world.redis.port);
    std::fs::write(&secret, url("one")).unwrap();
    let mut cache = world.cache(0).await;
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "one"]).exec_async(&mut cache).await.unwrap();
    let rules = file(FIRST).replace("{redis}/0", &format!("${{file:{}}}", secret.display()));
    world.setup(&rules);
    let daemon = world.watched();
    fill(&mut cache, &["a:1", "a:2"]).await;
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "two"]).exec_async(&mut cache).await.unwrap();
    std::fs::write(&secret, url("two")).unwrap();
    daemon.wait_for("rules reloaded");
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec_async(&mut cache).await.unwrap();
    daemon.wait_for_count("cache claimed", 2);
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(left(&mut cache).await, ["a:2"]);
}

/// Redis is gone and the budget is full in the middle of a transaction; new rules that name another Redis must not wait for its
/// end, which cannot come.
#[tokio::test]
async fn a_full_budget_does_not_hold_up_new_rules() {
    let mut world = World::new().await;
    let rules = file("{table: first_model, tags: [\"a:<id>\"]}");
    world.setup(&rules);
    let mut command = world.waltag("waltag", &["run", "--tag-memory", "1MiB"]);
    let daemon = world.start(command.env("WALTAG_LISTEN", "127.0.0.1:0"));
    daemon.wait_until_resynced();
    world.redis.kill();
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model SELECT generate_series(1, 200000)").await.unwrap();
    until("the budget is full", || async {
        let metrics = daemon.get("/metrics").1;
        let used = metrics.lines().find_map(|line| line.strip_prefix("waltag_memory_used_bytes ")).unwrap();
        used.parse::<u64>().unwrap() >= 1 << 20
    })
    .await;
    world.redis = waltag::demo::servers::Redis::start(&[]).unwrap();
    world.rules(&rules);
    daemon.wait_for("rules reloaded");
    world.settled(&sql).await;
    daemon.readyz(200);
}

/// A publication that leaves changes out for a while: what did not arrive is made up for when it is whole again, also while
/// other rules wait for something else.
#[tokio::test]
async fn an_incomplete_publication_is_made_up_for() {
    if outbox() {
        // There is no publication.
        return;
    }
    let world = World::new().await;
    world.setup(&file(FIRST));
    let daemon = world.watched();
    world.rules(&file("{table: nowhere, tags: [\"n\"]}"));
    daemon.wait_for("the new rules are refused");
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    sql.batch_execute("ALTER PUBLICATION waltag SET (publish = 'insert')").await.unwrap();
    daemon.wait_for("it does not publish update, delete, truncate");
    fill(&mut cache, &["a:1", "session:1"]).await;
    sql.batch_execute("UPDATE first_model SET name = 'x'").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(left(&mut cache).await, ["a:1", "session:1"]);
    sql.batch_execute("ALTER PUBLICATION waltag SET (publish = 'insert, update, delete, truncate')").await.unwrap();
    daemon.wait_for_count("resync complete", 2);
    assert_eq!(left(&mut cache).await, ["session:1"]);
}

/// A volume as Kubernetes mounts it, met in the middle of a swap: the link leads nowhere for a while. The rules before stay, and the
/// new ones are taken once the link is there.
#[tokio::test]
async fn a_volume_that_is_half_swapped() {
    let world = World::new().await;
    world.setup(&file(&format!("{FIRST}, {SECOND}")));
    let volume = world.directory.path().join("volume");
    let version = |name: &str, rules: &str| {
        std::fs::create_dir_all(volume.join(name)).unwrap();
        let redis = format!("redis://127.0.0.1:{}", world.redis.port);
        let text = file(rules).replace("dialect:", "repeat: [], dialect:").replace("{redis}", &redis);
        std::fs::write(volume.join(name).join("r.yaml"), text).unwrap();
    };
    let swap = |name: &str| {
        symlink(name, volume.join("..next")).unwrap();
        std::fs::rename(volume.join("..next"), volume.join("..data")).unwrap();
    };
    version("..1", FIRST);
    swap("..1");
    symlink("..data/r.yaml", volume.join("r.yaml")).unwrap();
    let path = volume.display().to_string();
    let mut command = world.waltag("waltag", &["run", "--rules", &path]);
    let daemon = world.start(command.env("STATE_DIRECTORY", world.directory.path()));
    daemon.wait_until_resynced();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    std::fs::remove_file(volume.join("..data")).unwrap();
    let said = fail(&mut world.waltag("waltag", &["check", "--rules", &path]), 66);
    assert!(said.contains("volume/r.yaml"), "{said}");
    daemon.signal("HUP");
    daemon.wait_for("the new rules are refused");
    fill(&mut cache, &["a:1", "s:1"]).await;
    sql.batch_execute("INSERT INTO first_model VALUES (1); INSERT INTO shop.second_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(left(&mut cache).await, ["s:1"]);
    version("..2", SECOND);
    swap("..2");
    daemon.wait_for("rules reloaded");
    // The new template has missed changes.
    until("s:1 is stale", || async { left(&mut cache.clone()).await.is_empty() }).await;
}
