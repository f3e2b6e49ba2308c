//! No secret is shown, whatever is wrong with the place where it was written; and none is sent to a server that must not have it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use waltag::demo::servers::{Redis, free_port};

use crate::attacks::{SOON, bounded, get};
use crate::support::{RULES, World, fail, outbox, succeed};

/// The password of URLs, the value of a variable, the content of a file.
const MARKERS: [&str; 3] = ["hunter2marker", "marker-of-env", "marker-of-file"];

/// What shows a secret: each line once, with the place that showed it first.
#[derive(Default)]
struct Leaks(BTreeMap<String, (String, usize)>);

impl Leaks {
    fn look(&mut self, place: &str, text: &str) {
        for line in text.lines() {
            let Some(at) = MARKERS.iter().filter_map(|marker| line.find(marker)).min() else { continue };
            let before = line[..at].chars().rev().take(60).collect::<Vec<_>>().into_iter().rev();
            let part: String = before.chain(line[at..].chars().take(60)).collect();
            self.0.entry(part).or_insert((place.to_owned(), 0)).1 += 1;
        }
    }

    /// Runs it to its end, and returns all that it said.
    fn run(&mut self, place: &str, command: &mut Command) -> (Option<i32>, String) {
        self.run_for(20, place, command)
    }

    fn run_for(&mut self, seconds: u32, place: &str, command: &mut Command) -> (Option<i32>, String) {
        let output = bounded(seconds, command).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!said.contains("panicked"), "{place}: {said}");
        let name = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
        self.look(&format!("`waltag {name}` of {place}"), &said);
        (output.status.code(), said)
    }

    fn none(self) {
        let all: Vec<_> =
            self.0.into_iter().map(|(line, (place, times))| format!("{line}\n   {place} ({times})")).collect();
        assert!(all.is_empty(), "{} lines show a secret:\n{}", all.len(), all.join("\n"));
    }
}

fn waltag(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
    command.env_clear().env("WALTAG_LISTEN", "").env("RUST_LOG", "debug").args(arguments);
    command
}

/// The secrets' places around a command that reads `rules`.
fn with_secrets(mut command: Command, directory: &Path, rules: &Path, port: u16) -> Command {
    fs::write(directory.join("credential"), "marker-of-file\n").unwrap();
    command.env("WALTAG_DATABASE_URL", format!("postgres://waltag:hunter2marker@127.0.0.1:{port}/shop"));
    command.env("SECRET", "marker-of-env").env("RUST_LOG", "debug").env("WALTAG_RULES", rules);
    command
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(&mut waltag(arguments))).unwrap()
}

fn keys(object: &Value) -> Vec<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

/// Each option of each dialect.
fn options() -> Vec<(String, String)> {
    let common = |name: &str| waltag::cache::options::COMMON.map(|(option, _)| (name.to_owned(), option.to_owned()));
    let mut all = common("keys").to_vec();
    all.extend(common("cache-dependencies"));
    for dialect in json(&["dialects", "--json"]).as_array().unwrap() {
        let name = dialect["name"].as_str().unwrap();
        let own = dialect["options"].as_array().unwrap().iter();
        all.extend(own.map(|option| (name.to_owned(), option["name"].as_str().unwrap().to_owned())));
    }
    all
}

/// Rules that name a secret where options of one cache are read, one line for each.
fn cache(name: &str, url: &str, dialect: &str, option: &str, value: &str) -> String {
    let mut text = format!("  {name}:\n");
    for (key, own) in [("url", url), ("dialect", dialect), ("accept_unverified", "true")] {
        if key != option {
            text += &format!("    {key}: {own}\n");
        }
    }
    text + &format!("    {option}: {value}\n")
}

/// Rules with this value in each option of each object that the schema knows; tags and names of tests are no secrets.
fn everywhere(value: &str, literal: bool) -> String {
    let caches = options()
        .into_iter()
        .enumerate()
        .map(|(index, (dialect, option))| cache(&format!("c{index}"), "redis://127.0.0.1:1", &dialect, &option, value));
    let schema = json(&["schema"]);
    let skipped = |key: &str| matches!(key, "tag" | "tags" | "name") || literal && matches!(key, "expect" | "unknown");
    let of = |object: &Value| keys(&object["properties"]).into_iter().filter(|key| !skipped(key)).collect::<Vec<_>>();
    let (defaults, rule) = (&schema["properties"]["defaults"], &schema["properties"]["rules"]["items"]);
    let tag = rule["properties"]["tags"]["items"]["anyOf"].as_array().unwrap().last().unwrap();
    let (test, collapse) = (&schema["properties"]["tests"]["items"], &rule["properties"]["collapse"]);
    let mut text = format!("version: 1\ncaches:\n{}defaults:\n", caches.collect::<String>());
    of(defaults).iter().for_each(|key| text += &format!("  {key}: {value}\n"));
    text += "rules:\n";
    for key in of(rule) {
        let table = if key.starts_with("table") { "" } else { "    table: first_model\n" };
        text += &format!("  - tags: [\"a:<id>\"]\n{table}    {key}: {value}\n");
    }
    for key in of(tag) {
        text += &format!("  - table: first_model\n    tags:\n      - tag: \"a:<id>\"\n        {key}: {value}\n");
    }
    for key in keys(&collapse["properties"]).iter().filter(|key| !literal || *key != "to") {
        text += &format!("  - table: first_model\n    tags: [\"a:<id>\"]\n    collapse:\n      {key}: {value}\n");
    }
    text += "tests:\n";
    of(test).iter().for_each(|key| text += &format!("  - name: t\n    {key}: {value}\n"));
    text
}

/// As they are written: expanded, or with a password in them.
const EXPANDED: [&str; 4] =
    ["\"${SECRET}\"", "\"x ${SECRET} y\"", "\"${file:credential}\"", "\"${WALTAG_DATABASE_URL}\""];
const LITERAL: [&str; 4] = [
    "\"postgres://u:hunter2marker@h/d\"",
    "redis://:hunter2marker@h:x/1",
    "u:hunter2marker@h:6379",
    "\"u:${SECRET}hunter2marker@h\"",
];

const COMMANDS: [&[&str]; 14] = [
    &["check"],
    &["check", "--json"],
    &["check", "--live"],
    &["explain", "first_model", "--new", "{\"id\": 1}"],
    &["test"],
    &["test", "--live"],
    &["setup"],
    &["setup", "--remove"],
    &["invalidate", "x"],
    &["resync", "--dry-run"],
    &["run", "--once"],
    &["run", "--dry-run", "--once"],
    &["detect", "redis://u:hunter2marker@127.0.0.1:1"],
    &["status"],
];

/// Each option, with each kind of secret in it, and each command that reads it: all is wrong with these rules, and all is told.
#[tokio::test]
async fn no_option_shows_what_it_expands_to() {
    let world = World::new().await;
    world.setup(RULES);
    let (mut leaks, directory, rules) =
        (Leaks::default(), world.directory.path(), world.directory.path().join("odd.yaml"));
    for value in EXPANDED.iter().chain(&LITERAL) {
        let literal = LITERAL.contains(value);
        fs::write(&rules, everywhere(value, literal)).unwrap();
        for arguments in COMMANDS {
            let mut command = with_secrets(waltag(arguments), directory, &rules, world.postgres.port);
            let (code, said) = leaks.run(value, command.env("CREDENTIALS_DIRECTORY", directory));
            if !matches!(arguments, ["detect" | "status", ..] | ["setup", "--remove"]) {
                assert_eq!(code, Some(65), "{arguments:?}: {said}");
                let written = value.trim_matches('"');
                assert!(literal || said.contains(written), "{arguments:?} does not say that it was {written}: {said}");
            }
        }
    }
    leaks.none();
}

/// The options that take any text, of dialects that take any tag.
fn options_of_any_text(directory: &Path, rules: &Path) -> Vec<(String, String)> {
    let valid = |(dialect, option): &(String, String)| {
        fs::write(
            rules,
            format!(
                "version: 1\ncaches:\n{}rules: [{{table: first_model, tags: [\"a:<id>\"]}}]\n",
                cache("c", "redis://h", dialect, option, "any_text")
            ),
        )
        .unwrap();
        let mut check = with_secrets(waltag(&["check"]), directory, rules, 1);
        check.output().unwrap().status.success()
    };
    options().into_iter().filter(valid).collect()
}

/// A daemon that is given all of that, and rules that are right: nothing is seen in its log, nor at its port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_shows_no_secret() {
    let world = World::new().await;
    let path = world.rules(RULES);
    world.setup(RULES);
    let directory: PathBuf = world.directory.path().into();
    let redis = format!("\"redis://u:${{SECRET}}@127.0.0.1:{}/1\"", world.redis.port);
    let mut cache_1 = world.cache(1).await;
    redis::cmd("ACL")
        .arg(&["SETUSER", "u", "on", ">marker-of-env", "~*", "&*", "+@all"])
        .exec_async(&mut cache_1)
        .await
        .unwrap();
    let free = options_of_any_text(&directory, &directory.join("one"));
    assert!(free.len() > 10, "{free:?}");
    let caches = free.iter().enumerate().map(|(index, (dialect, option))| {
        let value = ["\"${SECRET}\"", "\"${file:credential}\""][index % 2];
        cache(&format!("c{index}"), &redis, dialect, option, value)
    });
    let names: Vec<String> = (0..free.len()).map(|index| format!("c{index}")).collect();
    let right = format!(
        "version: 1\ncaches:\n{}rules:\n  - {{table: first_model, caches: [{}], tags: [\"a:<id>\"]}}\n",
        caches.collect::<String>(),
        names.join(", ")
    );
    let mut leaks = Leaks::default();
    let start = |arguments: &[&str]| {
        let mut command = with_secrets(world.waltag("waltag", arguments), &directory, &path, world.postgres.port);
        command.env("CREDENTIALS_DIRECTORY", &directory).env("STATE_DIRECTORY", &directory);
        command
    };
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let daemon = world.start_at("debug", &mut start(&["run", "--listen", &address, "--log-format", "json"]));
    daemon.wait_for("\"ready\"");
    let sets = EXPANDED.iter().chain(&LITERAL).map(|value| everywhere(value, LITERAL.contains(value)));
    for (round, text) in sets.chain([right]).enumerate() {
        fs::write(&path, &text).unwrap();
        daemon.signal("HUP");
        let last = round == EXPANDED.len() + LITERAL.len();
        match last {
            true => daemon.wait_for("rules reloaded"),
            false => daemon.wait_for_count("the new rules are refused", round + 1),
        }
        for page in ["/readyz", "/status", "/metrics"] {
            // They are shown a moment later.
            std::thread::sleep(std::time::Duration::from_millis(100));
            leaks.look(&format!("{page} in round {round}"), &get(&address, page, SOON).unwrap().1);
        }
    }
    let sql = world.sql().await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    world.settled(&sql).await;
    // What they are for is to stand in Redis, and in what `explain` shows of it.
    let mut wrong = start(&[]);
    wrong.env("SECRET", "another");
    redis::cmd("ACL").arg(&["SETUSER", "u", "resetpass", ">other"]).exec_async(&mut cache_1).await.unwrap();
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec_async(&mut cache_1).await.unwrap();
    daemon.wait_for("refuses the user or password");
    for page in ["/readyz", "/status", "/metrics"] {
        leaks.look(&format!("{page} while it is refused"), &get(&address, page, SOON).unwrap().1);
    }
    leaks.look("status", &succeed_or_not(&mut start(&["status", "--listen", &address])));
    leaks.look("log", &daemon.log());
    let reads_rules = |arguments: &&&[&str]| !matches!(arguments[0], "explain" | "detect" | "status");
    for arguments in COMMANDS.iter().filter(reads_rules) {
        leaks.run("rules that are right", &mut start(arguments));
    }
    leaks.none();
}

fn succeed_or_not(command: &mut Command) -> String {
    let output = command.output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// URLs of Redis as people mistype them.
#[test]
fn urls_of_redis_that_are_refused() {
    let (mut leaks, directory) = (Leaks::default(), tempfile::tempdir().unwrap());
    let rules = directory.path().join("r.yaml");
    let urls = [
        "u:hunter2marker@h:6379",
        ":hunter2marker@h:6379",
        "//u:hunter2marker@h:6379",
        "redis:u:hunter2marker@h:6379",
        "redis:/u:hunter2marker@h:6379",
        "redis//u:hunter2marker@h:6379",
        "http://u:hunter2marker@h:6379",
        "redis://u:hunter2marker@h:port",
        "redis://u:hunter2marker@h/database",
        "redis://u:hunter2marker",
        "redis://:hunter2marker",
        "redis://u:hunter2marker%40h:6379",
        "redis://u:hunter2marker h:6379",
        "redis://u:a/hunter2marker@h:6379",
        "redis://u:a@hunter2marker:x@h:x",
        "redis://u:a#hunter2marker@h:6379/x",
        "rediss://u:hunter2marker@h:6379#insecure",
        "rediss://u:hunter2marker@h:x",
        "redis+unix://u:hunter2marker@h",
        "redis+unix://h?user=u&pass=hunter2marker",
        "unix:/run/r.sock?pass=hunter2marker",
        "redis+cluster://u:hunter2marker@h:1,i:2/3",
        "redis+cluster://u:hunter2marker@h:1,i:x",
        "redis+cluster://h:1,u:hunter2marker@i:x",
        "rediss+cluster://u:hunter2marker@",
        "redis+sentinel://u:hunter2marker@h:1,i:2",
        "redis+sentinel://u:hunter2marker@h:x/name",
        "redis+sentinel://u:hunter2marker@h/name/x",
        "redis+other://u:hunter2marker@h",
        "redis://u:${SECRET}@h:x",
        "redis://${SECRET}@h:x",
        "u:${file:credential}@h",
        "${SECRET}",
        "${file:credential}",
        "redis://u:${SECRET@h",
    ];
    for url in urls {
        let quoted = Value::from(url).to_string();
        let seen = url.contains('@') || url.contains("pass=");
        for (anywhere, caches) in [
            (false, format!("caches:\n  c:\n    dialect: keys\n    url: {quoted}\n")),
            (false, format!("caches: {{c: {{url: {quoted}, dialect: keys}}}}\n")),
            (false, format!("caches:\n  c: {{dialect: kyes, url: {quoted}}}\n")),
            (false, format!("caches:\n  c:\n    dialect: keys\n    url: redis://h\n    replicas: {quoted}\n")),
            (false, format!("caches:\n  c:\n    dialect: keys\n    url: {quoted}\n    url: {quoted}\n")),
            (true, format!("caches:\n  c:\n    dialect: keys\n    url: >\n      {url}\n")),
            (true, format!("caches:\n  c: {quoted}\n")),
            (true, format!("caches:\n  {quoted}: {{dialect: keys}}\n")),
            (true, format!("caches:\n  c:\n    dialect: keys\n    urll: {quoted}\n")),
            (true, format!("caches:\n  c:\n    dialect: keys\n    url: [redis://h, {quoted}]\n")),
        ] {
            // What is no URL by its looks is one only where one is wanted.
            if anywhere && !seen {
                continue;
            }
            fs::write(&rules, format!("version: 1\n{caches}")).unwrap();
            for arguments in [&["check"][..], &["check", "--json"]] {
                let mut command = with_secrets(waltag(arguments), directory.path(), &rules, 1);
                leaks.run(&caches.replace('\n', "⏎"), command.env("CREDENTIALS_DIRECTORY", directory.path()));
            }
        }
        if !url.contains('$') {
            leaks.run(url, &mut waltag(&["detect", url]));
            leaks.run(url, &mut waltag(&["init", "--redis", url]));
        }
    }
    // A broken file is quoted where it is broken.
    for text in [
        "caches:\n  c: {url: redis://u:hunter2marker@h, dialect: keys\n",
        "caches:\n  c:\n    url: \"redis://u:hunter2marker@h\n",
        "caches:\n  c:\n    url: 'u:hunter2marker@h'x\n",
        "caches:\n  c:\n   url: redis://u:hunter2marker@h\n  dialect: keys\n",
        "caches:\n  c:\n    url: *redis://u:hunter2marker@h\n",
    ] {
        fs::write(&rules, format!("version: 1\n{text}")).unwrap();
        leaks.run(text, &mut with_secrets(waltag(&["check"]), directory.path(), &rules, 1));
    }
    leaks.none();
}

/// Those of databases, by every way in which they come.
#[test]
fn urls_of_databases_that_are_refused() {
    let (mut leaks, directory) = (Leaks::default(), tempfile::tempdir().unwrap());
    let (rules, file) = (directory.path().join("r.yaml"), directory.path().join("url"));
    fs::write(&rules, "version: 1\ncaches: {c: {url: 'redis://h', dialect: keys}}\n").unwrap();
    let command = |arguments: &[&str]| {
        let mut command = waltag(arguments);
        command.args(["--rules", rules.to_str().unwrap()]);
        command
    };
    for url in [
        "mysql://u:hunter2marker@h/d",
        "u:hunter2marker@h/d",
        "postgres:u:hunter2marker@h/d",
        "postgres:/u:hunter2marker@127.0.0.1:1/d",
        "postgres//u:hunter2marker@h/d",
        "'postgres://u:hunter2marker@h/d'",
        "DATABASE_URL=postgres://u:hunter2marker@h/d",
        "postgres://u:hunter2marker@127.0.0.1:port/d",
        "postgres://u:hunter2marker@127.0.0.1:1/d",
        "postgres://u:a?hunter2marker@127.0.0.1:1/d",
        "postgres://u:1/hunter2marker@127.0.0.1:1/d",
        "postgres://u:a/hunter2marker@127.0.0.1:1/d",
        "postgres://u:a#hunter2marker@127.0.0.1:1/d",
        "postgres://u:hunter2marker@127.0.0.1:1/d?sslmode=some",
        "postgres://u@127.0.0.1:1/d?sslmode=some&password=hunter2marker",
        "postgres://u@127.0.0.1:1/d?passwrod=hunter2marker",
        "postgres://127.0.0.1:1/d?hunter2marker",
        "host=127.0.0.1 port=1 password hunter2marker",
        "host=127.0.0.1 port=1 user=u password='hunter2marker",
        "host=127.0.0.1 port=1 user=u password=my hunter2marker",
        "host=127.0.0.1 port=1 user=u password=my hunter2marker=1",
        "host=127.0.0.1 port=1 user=u passwrod=hunter2marker",
        "host=127.0.0.1 port=1 user=u password:hunter2marker",
        "host=127.0.0.1 port=1 user=u password=\"my hunter2marker\"",
        "host=127.0.0.1 port=1 user=u password=hunter2marker require_auth=x",
        "host=127.0.0.1 port=1 user=u password=hunter2marker channel_binding=x connect_timeout=x",
    ] {
        fs::write(&file, url).unwrap();
        for arguments in [&["check"][..], &["check", "--live"], &["run", "--once", "--setup"], &["status"]] {
            // A daemon goes on trying where a server may come, and has said by then what it ignores.
            if arguments[0] == "run" && is_accepted(&rules, url) {
                leaks.run_for(1, url, command(arguments).env("WALTAG_DATABASE_URL", url));
                continue;
            }
            leaks.run(url, command(arguments).arg("--database-url").arg(url));
            leaks.run(url, command(arguments).env("WALTAG_DATABASE_URL", url));
            leaks.run(url, command(arguments).env("DATABASE_URL", url));
            leaks.run(url, command(arguments).env("WALTAG_DATABASE_URL_FILE", &file));
        }
        // As if it were an argument.
        if url.contains("://") || url.contains("password=") {
            leaks.run(url, &mut command(&["check", url]));
        }
    }
    let passwords = directory.path().join("pgpass");
    fs::write(&passwords, "*:*:*:*:hunter2marker\n127.0.0.1:1:hunter2marker\n").unwrap();
    for (name, value) in [
        ("PGSSLMODE", "some"),
        ("PGPORT", "x"),
        ("PGCONNECT_TIMEOUT", "x"),
        ("PGCHANNELBINDING", "x"),
        ("PGHOST", "127.0.0.1"),
    ] {
        for arguments in [&["check"][..], &["check", "--live"], &["setup"]] {
            let mut command = command(arguments);
            command.env("PGHOST", "127.0.0.1").env("PGPORT", "1").env("PGUSER", "u").env(name, value);
            leaks.run(name, command.env("PGPASSWORD", "hunter2marker"));
            leaks.run(name, command.env_remove("PGPASSWORD").env("PGPASSFILE", &passwords));
        }
    }
    leaks.none();
}

/// Is there nothing wrong with it but that nobody answers?
fn is_accepted(rules: &Path, url: &str) -> bool {
    waltag(&["check", "--rules", rules.to_str().unwrap()])
        .env("WALTAG_DATABASE_URL", url)
        .output()
        .unwrap()
        .status
        .success()
}

/// Servers that refuse what they are sent.
#[tokio::test]
async fn passwords_that_are_wrong_are_not_repeated() {
    let world = World::new().await;
    world.setup(RULES);
    let mut leaks = Leaks::default();
    let locked = Redis::start(&["--requirepass", "right"]).unwrap();
    let hba = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    world.sql().await.batch_execute("ALTER ROLE waltag PASSWORD 'right'").await.unwrap();
    let url = format!("postgres://waltag:hunter2marker@127.0.0.1:{}/shop", world.postgres.port);
    let commands: [&[&str]; 5] =
        [&["run"], &["check", "--live"], &["setup"], &["invalidate", "x"], &["resync", "--dry-run"]];
    for (wrong, redis) in [
        ("PostgreSQL", format!("redis://127.0.0.1:{}", world.redis.port)),
        ("Redis", format!("redis://u:hunter2marker@127.0.0.1:{}", locked.port)),
    ] {
        world.rules(&RULES.replace("{redis}", &redis));
        let trusted = hba.replace("scram-sha-256", "trust");
        fs::write(world.postgres.data().join("pg_hba.conf"), if wrong == "Redis" { &trusted } else { hba }).unwrap();
        world.postgres.reload().unwrap();
        for arguments in commands {
            // Redis is not asked by those, nor PostgreSQL by these.
            let asks = match arguments[0] {
                "invalidate" | "resync" => wrong == "Redis",
                "check" | "setup" => wrong == "PostgreSQL",
                _ => true,
            };
            let mut command = world.waltag("waltag", arguments);
            command.env("WALTAG_DATABASE_URL", &url).env("RUST_LOG", "debug");
            if asks {
                leaks.look(wrong, &fail(&mut command, 78));
            }
        }
    }
    leaks.none();
}

/// Whoever is on the machine can read what was typed.
#[test]
fn a_password_on_the_command_line_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let rules = directory.path().join("r.yaml");
    fs::write(&rules, "version: 1\ncaches: {c: {url: 'redis://h', dialect: keys}}\n").unwrap();
    let check = |url: &str, typed: bool| {
        let mut command = waltag(&["check", "--rules", rules.to_str().unwrap()]);
        if typed {
            command.args(["--database-url", url])
        } else {
            command.env("WALTAG_DATABASE_URL", url)
        };
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for url in [
        "postgres://u:hunter2marker@h/d",
        "postgres://h/d?user=u&password=hunter2marker",
        "host=h user=u password=hunter2marker",
        "host=h user=u password = 'hunter2marker'",
    ] {
        let said = check(url, true);
        assert!(said.contains("process list") && !said.contains("hunter2marker"), "{url}: {said:?}");
        assert!(!check(url, false).contains("process list"), "{url}");
    }
    for url in ["postgres://u@h/d", "postgres://u:@h/d", "host=h user=u"] {
        assert!(!check(url, true).contains("process list"), "{url}");
    }
}

/// What a server asks for, as the first of its messages.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Asks {
    Password,
    Md5,
    Scram,
    /// It lets in at once.
    Nothing,
}

/// A server without TLS that asks who is there, and writes down all that it is told; sessions of the other kind go to a real one.
struct Asking {
    port: u16,
    told: Arc<Mutex<Vec<u8>>>,
}

impl Asking {
    fn start(asks: Asks, replication: bool, real: u16) -> Asking {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, told) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let sink = told.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let sink = sink.clone();
                std::thread::spawn(move || serve(client, asks, replication, real, &sink));
            }
        });
        Asking { port, told }
    }

    /// Was it sent an answer: a password, a hash of one, a proof; or, let in at once, a query?
    fn was_answered(&self) -> bool {
        !self.told.lock().unwrap().is_empty()
    }
}

fn serve(mut client: TcpStream, asks: Asks, replication: bool, real: u16, sink: &Mutex<Vec<u8>>) -> Option<()> {
    client.set_read_timeout(Some(SOON * 4)).unwrap();
    let startup = loop {
        let mut length = [0; 4];
        client.read_exact(&mut length).ok()?;
        let mut body = vec![0; (u32::from_be_bytes(length) as usize).checked_sub(4)?];
        client.read_exact(&mut body).ok()?;
        // SSLRequest.
        if body != [4, 210, 22, 47] {
            break [&length[..], &body].concat();
        }
        client.write_all(b"N").ok()?;
    };
    let is_replication = startup.windows(12).any(|part| part == b"replication\0");
    if is_replication != replication {
        let mut server = TcpStream::connect(("127.0.0.1", real)).ok()?;
        server.write_all(&startup).ok()?;
        let (mut from, mut to) = (server.try_clone().ok()?, client.try_clone().ok()?);
        client.set_read_timeout(None).unwrap();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
        let _ = std::io::copy(&mut client, &mut server);
        let _ = server.shutdown(std::net::Shutdown::Both);
        return None;
    }
    let message: &[u8] = match asks {
        Asks::Password => b"R\0\0\0\x08\0\0\0\x03",
        Asks::Md5 => b"R\0\0\0\x0c\0\0\0\x05salt",
        Asks::Scram => b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0",
        Asks::Nothing => b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x01Z\0\0\0\x05I",
    };
    client.write_all(message).ok()?;
    let mut answer = [0; 1024];
    let length = client.read(&mut answer).ok()?;
    // Terminate says nothing.
    if answer.first() != Some(&b'X') {
        sink.lock().unwrap().extend_from_slice(&answer[..length]);
    }
    client.write_all(b"E\0\0\0\x21SFATAL\0C28P01\0Mrefused here\0\0").ok()
}

/// libpq's `require_auth`: what a server asks for and may not, it is not told, neither by the session nor by the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn require_auth_is_honoured() {
    use Asks::{Md5, Nothing, Password, Scram};
    if outbox() {
        // It has no stream.
        return;
    }
    let world = World::new().await;
    world.setup(RULES);
    let mut wrong = Vec::new();
    for (required, allowed) in [
        ("", &[Password, Md5, Scram, Nothing][..]),
        ("scram-sha-256", &[Scram]),
        ("password", &[Password]),
        ("md5", &[Md5]),
        ("none", &[Nothing]),
        ("md5,scram-sha-256", &[Md5, Scram]),
        ("none,scram-sha-256", &[Nothing, Scram]),
        ("!password", &[Md5, Scram, Nothing]),
        ("!password,!md5", &[Scram, Nothing]),
        ("!none", &[Password, Md5, Scram]),
        ("!scram-sha-256", &[Password, Md5, Nothing]),
        ("gss,sspi", &[]),
    ] {
        for asks in [Password, Md5, Scram, Nothing] {
            for (replication, arguments) in
                [(false, &["check", "--live"][..]), (false, &["run"]), (true, &["run"]), (true, &["check", "--live"])]
            {
                // A session that gets in asks things that this server does not know; and the session beside the stream is let in without a question.
                let let_in = allowed.contains(&Nothing);
                if asks == Nothing && let_in || replication && !let_in {
                    continue;
                }
                let server = Asking::start(asks, replication, world.postgres.port);
                let mut url = format!("postgres://waltag:hunter2marker@127.0.0.1:{}/shop", server.port);
                if !required.is_empty() {
                    url += &format!("?require_auth={required}");
                }
                let mut command = world.waltag("waltag", arguments);
                command.env("WALTAG_DATABASE_URL", url);
                let code = if arguments[0] == "run" || !replication { 78 } else { 0 };
                let (command_code, said) = Leaks::default().run("", &mut command);
                let expected = allowed.contains(&asks);
                if server.was_answered() != expected {
                    wrong.push(format!(
                        "require_auth={required}, {arguments:?}, {asks:?}, replication {replication}: told {}; {said}",
                        !expected
                    ));
                } else if command_code != Some(code) || !expected && !said.contains("require_auth") {
                    wrong.push(format!("require_auth={required}, {arguments:?}, {asks:?}, replication {replication}: ended with {command_code:?}, said {said}"));
                }
                if said.contains("hunter2marker") {
                    wrong.push(format!("shown: {said}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}

/// What libpq refuses is refused, the variable counts, and a real server is reached by what it asks for.
#[tokio::test]
async fn require_auth_as_it_is_written() {
    let world = World::new().await;
    world.setup(RULES);
    world.sql().await.batch_execute("ALTER ROLE waltag PASSWORD 'right'").await.unwrap();
    let hba = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    fs::write(world.postgres.data().join("pg_hba.conf"), hba).unwrap();
    world.postgres.reload().unwrap();
    let check = || {
        let mut command = world.waltag("waltag", &["check", "--live"]);
        command.env("PGPASSWORD", "right");
        command
    };
    for right in ["scram-sha-256", "password,scram-sha-256", "!password,!md5", "!none"] {
        succeed(check().env("PGREQUIREAUTH", right));
    }
    for (refused, word) in [
        ("password", "scram-sha-256"),
        ("!scram-sha-256", "scram-sha-256"),
        ("none", "none"),
        ("md4", "md4"),
        ("password,!md5", "!md5"),
        ("!md5,password", "password"),
        ("md5,md5", "md5"),
        ("!", "require_auth"),
    ] {
        let said = fail(check().env("PGREQUIREAUTH", refused), 78);
        assert!(said.contains("require_auth") && said.contains(word), "{refused}: {said}");
    }
}
