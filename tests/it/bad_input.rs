//! What is wrong is told in one sentence with its remedy, and by the exit code.

use std::process::Command;
use std::time::Duration;

use crate::support::{Monitor, Pooler, RULES, World, fail, outbox, succeed};

async fn shop() -> World {
    let world = World::new().await;
    world.setup(RULES);
    world
}

/// `waltag run` ends with `code` and says all of `words`, but never a password.
fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let said = fail(command, code);
    for word in words {
        assert!(said.contains(word), "`{word}` is not in:\n{said}");
    }
    assert!(!said.contains("MARKER"), "{said}");
}

/// Replaces pg_hba.conf: TCP asks by `method`, the socket trusts.
fn authenticate_by(world: &World, method: &str) {
    let hba =
        format!("local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 {method}\n");
    std::fs::write(world.postgres.data().join("pg_hba.conf"), hba).unwrap();
    world.postgres.reload().unwrap();
}

#[tokio::test]
async fn passwords_by_every_method_and_a_wrong_one() {
    let world = shop().await;
    let sql = world.sql().await;
    for (method, encryption) in [("scram-sha-256", "scram-sha-256"), ("md5", "md5"), ("password", "scram-sha-256")] {
        let set = format!("SET password_encryption = '{encryption}'; ALTER ROLE waltag PASSWORD 'rïght MARKER'");
        sql.batch_execute(&set).await.unwrap();
        authenticate_by(&world, method);
        let mut wrong = world.waltag("waltag", &["run"]);
        wrong.env("PGPASSWORD", "wrong-MARKER");
        refused(&mut wrong, 78, &["password authentication failed", "WALTAG_DATABASE_URL"]);
        let mut none = world.waltag("waltag", &["run"]);
        refused(&mut none, 78, &["none was given", "PGPASSWORD"]);
        let right = world.start(world.waltag("waltag", &["run"]).env("PGPASSWORD", "rïght MARKER"));
        right.wait_for("ready");
        assert!(!right.log().contains("MARKER"), "{}", right.log());
        assert_eq!(right.stop(), Some(0));
    }
}

#[tokio::test]
async fn a_unix_socket_works_too() {
    let world = shop().await;
    let url = format!(
        "host={} port={} user=waltag dbname=shop",
        world.postgres.socket_directory().display(),
        world.postgres.port
    );
    let daemon = world.start(world.waltag("waltag", &["run"]).env("WALTAG_DATABASE_URL", url));
    daemon.wait_for("ready");
    assert_eq!(daemon.stop(), Some(0));
}

#[tokio::test]
async fn role_publication_and_server() {
    if outbox() {
        // `outbox::mistakes`.
        return;
    }
    let world = shop().await;
    let sql = world.sql().await;
    sql.batch_execute("CREATE ROLE plain LOGIN").await.unwrap();
    refused(&mut world.waltag("plain", &["run"]), 77, &["LOGIN REPLICATION", "waltag setup --apply"]);
    refused(&mut world.waltag("plain", &["setup", "--apply", "--role", "plain"]), 77, &["owner"]);

    let mut other = world.waltag("waltag", &["run", "--publication", "none"]);
    refused(&mut other, 78, &["publication \"none\" does not exist", "waltag setup --apply"]);

    let missing = world.postgres.url("waltag", "nowhere");
    let mut nowhere = world.waltag("waltag", &["run"]);
    refused(nowhere.env("WALTAG_DATABASE_URL", missing), 78, &["\"nowhere\" does not exist"]);

    world.postgres.configure("synchronous_standby_names = '*'").unwrap();
    world.postgres.reload().unwrap();
    let reloaded = || async {
        sql.query_one("SELECT current_setting('synchronous_standby_names') = '*'", &[]).await.unwrap().get(0)
    };
    crate::support::until("the setting is reloaded", reloaded).await;
    refused(&mut world.waltag("waltag", &["run"]), 78, &["synchronous standby", "application_name"]);
}

#[tokio::test]
async fn a_server_without_logical_decoding() {
    if outbox() {
        // Nothing is decoded.
        return;
    }
    let mut world = shop().await;
    world.postgres.stop("fast", Duration::from_secs(20)).unwrap();
    world.postgres.configure("wal_level = replica").unwrap();
    world.postgres.launch().unwrap();
    refused(&mut world.waltag("waltag", &["run"]), 78, &["wal_level = logical"]);
}

#[tokio::test]
async fn a_standby_as_source() {
    let world = shop().await;
    let standby = waltag::demo::servers::Postgres::standby_of(&world.postgres).unwrap();
    let mut command = world.waltag("waltag", &["run"]);
    command.env("WALTAG_DATABASE_URL", standby.url("waltag", "shop"));
    refused(&mut command, 78, &["hot standby", "the primary"]);
    // Named beside the primary, it is passed over.
    let both = format!("postgres://waltag@127.0.0.1:{},127.0.0.1:{}/shop", standby.port, world.postgres.port);
    let daemon = world.start(world.waltag("waltag", &["run"]).env("WALTAG_DATABASE_URL", both));
    daemon.wait_for("ready");
}

#[tokio::test]
async fn a_pooler_that_refuses_replication() {
    if outbox() {
        // Nothing is replicated.
        return;
    }
    let world = shop().await;
    let pooler = Pooler::start(&world);
    let url = format!("postgres://waltag@127.0.0.1:{}/shop", pooler.port);
    let said = fail(world.waltag("waltag", &["run"]).env("WALTAG_DATABASE_URL", &url), 78);
    let noted = succeed(world.waltag("waltag", &["check", "--live"]).env("WALTAG_DATABASE_URL", &url));
    assert!(
        noted.contains("note: with these settings `run` would get no stream") && noted.contains("connection pooler")
    );
    assert!(said.contains("connection pooler") && said.contains("PostgreSQL itself"), "{said}");
}

#[tokio::test]
async fn redis_with_a_wrong_password() {
    let world = shop().await;
    let locked = waltag::demo::servers::Redis::start(&["--requirepass", "MARKER-right"]).unwrap();
    for (url, words) in [
        (format!("redis://:MARKER-wrong@127.0.0.1:{}/0", locked.port), ["refuses the user or password", "`url`"]),
        (format!("redis://127.0.0.1:{}/0", locked.port), ["NOAUTH", "`url`"]),
    ] {
        world.rules(&format!(
            r#"{{version: 1, caches: {{c: {{url: "{url}", dialect: keys}}}}, rules: [{{table: first_model, tags: ["a:<id>"]}}]}}"#
        ));
        refused(&mut world.waltag("waltag", &["run"]), 78, &words);
        refused(&mut world.waltag("waltag", &["invalidate", "x"]), 78, &words);
    }
}

#[tokio::test]
async fn an_identity_that_does_not_send_the_old_value() {
    if outbox() {
        // Triggers see whole old rows.
        return;
    }
    let world = World::new().await;
    world.rules(RULES);
    world
        .sql()
        .await
        .batch_execute(
            "CREATE ROLE waltag LOGIN REPLICATION; CREATE PUBLICATION waltag FOR TABLE shop.second_model, first_model",
        )
        .await
        .unwrap();
    let words = ["rules.yaml:13:", "category_id", "ALTER TABLE \"shop\".\"second_model\" REPLICA IDENTITY FULL"];
    refused(&mut world.waltag("waltag", &["run"]), 65, &words);
    refused(&mut world.waltag("waltag", &["check", "--live"]), 65, &words);
}

#[tokio::test]
async fn tables_and_columns_that_do_not_exist() {
    let world = World::new().await;
    let rules = |table: &str, tag: &str| {
        world.rules(&format!(
            "version: 1\ncaches:\n  c: {{url: \"{{redis}}/0\", dialect: keys}}\nrules:\n  - table: {table}\n    tags: [\"{tag}\"]\n"
        ))
    };
    rules("first_modle", "a:<id>");
    refused(
        &mut world.waltag("postgres", &["check", "--live"]),
        65,
        &["rules.yaml:5:12", "first_modle does not exist"],
    );
    rules("first_model", "aé:<nam>");
    let words = ["rules.yaml:6:16", "no column `nam`", "did you mean `name`?", "   |                ^^^^^"];
    refused(&mut world.waltag("postgres", &["check", "--live"]), 65, &words[..3]);
    refused(&mut world.waltag("postgres", &["setup", "--apply"]), 65, &words[..3]);
    // An escape: what is read does not stand where it is written, so the whole text is the place.
    rules("first_model", "caf\\u00e9:<nam>");
    refused(&mut world.waltag("postgres", &["check", "--live"]), 65, &["rules.yaml:6:12", "no column `nam`"]);
}

#[tokio::test]
async fn a_slot_in_use_is_waited_for() {
    let world = shop().await;
    let first = world.daemon();
    let second = world.start(&mut world.waltag("waltag", &["run"]));
    second.wait_for("waiting for the slot");
    let monitor = Monitor::start(world.redis.port);
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    first.kill();
    second.wait_for("ready");
    sql.batch_execute("INSERT INTO first_model VALUES (2)").await.unwrap();
    world.settled(&sql).await;
    assert_eq!(monitor.unlinked(), ["1 FirstModel.pk:1", "1 FirstModel.pk:2"]);
}

#[tokio::test]
async fn servers_that_are_away_at_the_start() {
    let mut world = shop().await;
    world.postgres.stop("fast", Duration::from_secs(20)).unwrap();
    world.redis.kill();
    let daemon = world.start(&mut world.waltag("waltag", &["run"]));
    daemon.wait_for("trying again");
    refused(&mut world.waltag("waltag", &["check", "--live"]), 69, &["connecting at 127.0.0.1", "refused"]);
    refused(&mut world.waltag("waltag", &["setup"]), 69, &["connecting at 127.0.0.1"]);
    refused(&mut world.waltag("waltag", &["invalidate", "x"]), 69, &["cache `default`", "refused"]);
    world.postgres.launch().unwrap();
    daemon.wait_for("ready");
    world.redis.launch().unwrap();
    daemon.wait_for_count("cache claimed", 2);
}

#[test]
fn settings_and_usage() {
    let waltag = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
        command.env_clear().args(arguments);
        command
    };
    assert!(fail(&mut waltag(&["ruin"]), 64).contains("run"));
    assert!(fail(&mut waltag(&["run", "--slott", "x"]), 64).contains("--slot"));
    assert!(fail(waltag(&["check"]).env("WALTAG_RULE", "x"), 78).contains("did you mean WALTAG_RULES?"));
    assert!(fail(&mut waltag(&["check", "--rules", "/none"]), 66).contains("/none"));
    assert!(fail(waltag(&["check"]).env("WALTAG_DATABASE_URL", "mysql://MARKER@h/d"), 78).contains("postgres://"));
    assert!(
        fail(waltag(&["check"]).env("DATABASE_URL", "postgres://h/d?sslmode=sometimes"), 78).contains("verify-full")
    );
    let help = succeed(waltag(&["run", "--help"]).env("WALTAG_DATABASE_URL", "postgres://u:MARKER@h/d"));
    assert!(help.contains("WALTAG_DATABASE_URL") && !help.contains("MARKER"), "{help}");
}

#[test]
fn every_problem_of_every_file_at_once() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.yaml"), "version: 1\nrules:\n  - table: t\n    tags: [\"<\"]\n    x: 1\n")
        .unwrap();
    std::fs::write(directory.path().join("b.yaml"), b"version: 1\nrules: [\xff]\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
    let said = fail(command.env_clear().args(["check", "--rules"]).arg(directory.path()), 65);
    for place in ["a.yaml:4:13", "a.yaml:5:5", "b.yaml:2:9"] {
        assert!(said.contains(place), "{place}:\n{said}");
    }
}
