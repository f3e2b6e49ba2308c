//! A world of its own for each test: PostgreSQL, Redis, rules, the daemon.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio_postgres::{Client, NoTls};
pub use waltag::demo::monitor::Monitor;
use waltag::demo::servers::{Postgres, Redis};

/// Nothing here takes longer unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(90);

pub const SCHEMA: &str = "
CREATE SCHEMA shop;
CREATE TABLE first_model (id int PRIMARY KEY, name text);
CREATE TABLE shop.second_model (
    id int PRIMARY KEY, category_id int, type_id int, name text, status text, updated_at timestamptz DEFAULT now());
CREATE TABLE unrelated (id int PRIMARY KEY, v int);
";

/// The tags of the contract, in a cache where the tag is the key: what is made stale can be read off the commands.
pub const RULES: &str = r#"
version: 1
caches:
  default: { url: "{redis}/0", dialect: keys, style: python }
  my_cache_alias: { url: "{redis}/1", dialect: keys }
rules:
  - table: first_model
    tags: ["FirstModel.pk:<id>"]
    caches: [my_cache_alias]
  - table: shop.second_model
    tags:
      - "SecondModel.pk:<id>"
      - "CategoryModel.pk:<category_id>.TypeModel.pk:<type_id>"
      - { tag: "SecondModel", events: [insert, delete, truncate], caches: [default] }
"#;

pub struct World {
    pub postgres: Postgres,
    pub redis: Redis,
    pub directory: tempfile::TempDir,
    pub database: String,
    /// Where the daemon reads.
    pub source: String,
}

/// A pooler in transaction mode before a world's PostgreSQL; ended when dropped.
pub struct Pooler {
    child: Child,
    pub port: u16,
}

impl Pooler {
    pub fn start(world: &World) -> Pooler {
        let port = waltag::demo::servers::free_port().unwrap();
        let directory = world.directory.path();
        let ini = format!(
            "[databases]\nshop = host=127.0.0.1 port={} dbname=shop\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = trust\nauth_file = {dir}/users\npool_mode = transaction\nunix_socket_dir =\nlogfile = {dir}/pgbouncer.log\npidfile = {dir}/pid\n",
            world.postgres.port,
            dir = directory.display()
        );
        fs::write(directory.join("users"), "\"waltag\" \"\"\n").unwrap();
        fs::write(directory.join("pgbouncer.ini"), ini).unwrap();
        let mut chown = Command::new("chown");
        succeed(chown.args(["-R", "--reference"]).arg(world.postgres.data()).arg(directory));
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("pgbouncer is not installed: scripts/test installs it");
        let mut command = world.postgres.as_owner(Path::new(program));
        let mut child = command.arg("-q").arg(directory.join("pgbouncer.ini")).spawn().unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "pgbouncer ended");
            std::thread::yield_now();
        }
        Pooler { child, port }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every instance has written down that it is done with everything visible now.
pub async fn outbox_settled(sql: &Client, limit: Duration) {
    let now: String = sql.query_one("SELECT pg_current_snapshot()::text", &[]).await.unwrap().get(0);
    until_within(limit, &format!("the outbox is done with {now}"), || async {
        let query = format!(
            "SELECT coalesce(bool_and(pg_snapshot_xmax(done) >= pg_snapshot_xmax('{now}') AND NOT EXISTS \
             (SELECT FROM pg_snapshot_xip(done) x WHERE pg_visible_in_snapshot(x, '{now}'))), false) FROM waltag.progress"
        );
        sql.query_one(&query, &[]).await.unwrap().get(0)
    })
    .await;
}

/// One data directory is made for each PostgreSQL and kept: each world starts from a copy of it.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let programs = waltag::demo::servers::postgres_programs().unwrap();
        let name = programs.display().to_string().replace('/', "-");
        let kept = std::env::temp_dir().join(format!("waltag-tests{name}"));
        if !kept.exists() {
            let made = waltag::demo::servers::private_directory().unwrap().keep();
            Postgres::initialize(&made.join("data")).unwrap();
            // Whoever comes second uses the first one's.
            let _ = fs::rename(&made, &kept);
            let _ = fs::remove_dir_all(&made);
        }
        kept.join("data")
    })
}

impl World {
    /// Servers with the tables of [`SCHEMA`] in the database `shop`.
    pub async fn new() -> World {
        World::with("", SCHEMA).await
    }

    pub async fn with(settings: &str, schema: &str) -> World {
        let postgres = Postgres::start_from(Some(template()), settings).unwrap();
        let redis = Redis::start(&["--notify-keyspace-events", "KEA"]).unwrap();
        let world = World {
            postgres,
            redis,
            directory: tempfile::tempdir().unwrap(),
            database: "shop".into(),
            source: source(),
        };
        world.sql_as("postgres", "postgres").await.batch_execute("CREATE DATABASE shop").await.unwrap();
        world.sql().await.batch_execute(schema).await.unwrap();
        world
    }

    /// The owner's session.
    pub async fn sql(&self) -> Client {
        self.sql_as("postgres", &self.database).await
    }

    pub async fn sql_as(&self, user: &str, database: &str) -> Client {
        connect(&self.postgres.url(user, database)).await
    }

    pub async fn cache(&self, database: u8) -> MultiplexedConnection {
        redis_at(&self.redis.url(database)).await.unwrap()
    }

    /// Writes the rules; `{redis}` becomes the URL of this world's Redis.
    pub fn rules(&self, text: &str) -> PathBuf {
        let path = self.directory.path().join("rules.yaml");
        let redis = format!("redis://127.0.0.1:{}", self.redis.port);
        // The default repeat would make each test a second longer: those that look at it say so themselves.
        let text =
            if text.contains("repeat:") { text.to_owned() } else { text.replace("dialect:", "repeat: [], dialect:") };
        // At once: who watches the file never sees half of it.
        let part = path.with_extension("part");
        fs::write(&part, text.replace("{redis}", &redis)).unwrap();
        fs::rename(&part, &path).unwrap();
        path
    }

    /// The program with this world's settings, as `user`.
    pub fn waltag(&self, user: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("WALTAG_DATABASE_URL", self.postgres.url(user, &self.database));
        command.env("WALTAG_RULES", self.directory.path().join("rules.yaml"));
        command.env("WALTAG_SOURCE", &self.source);
        if self.source == "outbox" {
            // What nobody writes down wakes nobody.
            command.env("WALTAG_POLL", "50ms");
        }
        // Tests run side by side; those that ask the daemon say so.
        command.env("WALTAG_LISTEN", "");
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Writes the rules and applies `setup` as the owner.
    pub fn setup(&self, rules: &str) {
        self.rules(rules);
        succeed(&mut self.waltag("postgres", &["setup", "--apply"]));
    }

    /// The daemon under the role that `setup` made, once it is ready.
    pub fn daemon(&self) -> Daemon {
        let daemon = self.start(&mut self.waltag("waltag", &["run"]));
        daemon.wait_until_resynced();
        daemon
    }

    /// The same with an admin server, and a state directory for the last good rules.
    pub fn watched(&self) -> Daemon {
        self.watched_with(&[])
    }

    /// The same with arguments.
    pub fn watched_with(&self, arguments: &[&str]) -> Daemon {
        let mut command = self.waltag("waltag", &[&["run"], arguments].concat());
        command.env("WALTAG_LISTEN", "127.0.0.1:0").env("STATE_DIRECTORY", self.directory.path());
        let daemon = self.start(&mut command);
        daemon.wait_until_resynced();
        daemon
    }

    /// The daemon, without waiting.
    pub fn start(&self, command: &mut Command) -> Daemon {
        self.start_at(&std::env::var("TEST_DAEMON_LOG").unwrap_or("waltag=debug".into()), command)
    }

    /// The same at a level of the log.
    pub fn start_at(&self, level: &str, command: &mut Command) -> Daemon {
        let log = tempfile::Builder::new().tempfile_in(self.directory.path()).unwrap().into_temp_path();
        let file = fs::OpenOptions::new().append(true).open(&log).unwrap();
        command.env("RUST_LOG", level);
        let child = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Daemon { child, log: log.keep().unwrap() }
    }

    /// Runs `change` under a new daemon and returns what it made stale, in both databases of Redis, sorted.
    pub async fn stale_after(&self, change: &str) -> Vec<String> {
        let daemon = self.daemon();
        let monitor = Monitor::start(self.redis.port);
        let sql = self.sql().await;
        for statement in change.split(";;") {
            sql.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        self.settled(&sql).await;
        let stale = monitor.unlinked();
        drop(daemon);
        stale
    }

    /// The server's version: 15, for example.
    pub async fn version(&self) -> u32 {
        let text: String = self.sql().await.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
        text.parse::<u32>().unwrap() / 10_000
    }

    /// Waits until no process of the server serves a daemon that has ended.
    pub async fn is_left(&self, sql: &Client) {
        until("the server has noticed", || async {
            let query = "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE active) AND NOT EXISTS \
                (SELECT FROM pg_stat_activity WHERE application_name = 'waltag')";
            sql.query_one(query, &[]).await.unwrap().get(0)
        })
        .await;
    }

    /// Waits until the daemon has confirmed everything up to now.
    pub async fn settled(&self, sql: &Client) {
        self.settled_within(sql, LIMIT).await;
    }

    /// The same with a limit of its own.
    pub async fn settled_within(&self, sql: &Client, limit: Duration) {
        if self.source == "outbox" {
            return outbox_settled(sql, limit).await;
        }
        let now: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        until_within(limit, &format!("the slot confirms {now}"), || async {
            let query =
                format!("SELECT confirmed_flush_lsn >= '{now}' FROM pg_replication_slots WHERE slot_name = 'waltag'");
            sql.query_one(&query, &[]).await.unwrap().get(0)
        })
        .await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.postgres.log());
        }
    }
}

/// The source that the tests run on.
pub fn source() -> String {
    std::env::var("TEST_SOURCE").unwrap_or("replication".into())
}

/// Do they run on the outbox?
pub fn outbox() -> bool {
    source() == "outbox"
}

/// Is something written down that was not confirmed?
pub fn unconfirmed() -> &'static str {
    match outbox() {
        true => "SELECT EXISTS (SELECT FROM waltag.outbox)",
        false => "SELECT confirmed_flush_lsn < pg_current_wal_flush_lsn() FROM pg_replication_slots",
    }
}

/// Ends what brings the changes.
pub fn end_of_stream() -> &'static str {
    match outbox() {
        true => "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waltag'",
        false => "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'waltag'",
    }
}

/// A record that somebody cached.
pub async fn fill(cache: &mut MultiplexedConnection, key: &str) {
    redis::cmd("SET").arg(key).arg("cached").exec_async(cache).await.unwrap();
}

pub async fn is_gone(cache: &MultiplexedConnection, key: &str) -> bool {
    !redis::cmd("EXISTS").arg(key).query_async::<bool>(&mut cache.clone()).await.unwrap()
}

/// The client's own limit for an answer is half a second, which a machine that is busy takes now and then.
pub async fn redis_at(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    let limit = Some(Duration::from_secs(30));
    let limits = redis::AsyncConnectionConfig::new().set_response_timeout(limit).set_connection_timeout(limit);
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&limits).await
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Polls a fact until it holds.
pub async fn until<F: Future<Output = bool>>(fact: &str, holds: impl FnMut() -> F) {
    until_within(LIMIT, fact, holds).await;
}

pub async fn until_within<F: Future<Output = bool>>(limit: Duration, fact: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + limit;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {fact}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs a command that must work; its stdout.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} failed:\n{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must end with this exit code; everything that it said.
pub fn fail(command: &mut Command, code: i32) -> String {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?} said:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    pub child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Where its log is.
    pub fn log_file(&self) -> PathBuf {
        self.log.clone()
    }

    /// Waits until the log has `text`.
    pub fn wait_for(&self, text: &str) {
        self.wait_for_count(text, 1);
    }

    /// The first start and each gap make everything stale: waits until it has its caches, and that is over.
    pub fn wait_until_resynced(&self) {
        self.wait_for(" ready caches=");
        let log = self.log();
        let (_, after) = log.split_once(" ready caches=").unwrap();
        let caches: usize = after.split(' ').next().unwrap().parse().unwrap();
        // It is ready, too, when each was tried: on a busy machine the first try may take too long.
        let claimed =
            |log: &str| log.matches("cache claimed").count() + log.matches("Redis is full and refuses").count();
        self.wait_while("has its caches", |log| claimed(log) < caches);
        self.wait_while("has made everything stale", |log| {
            log.matches("resync complete").count() < log.matches(" resync: ").count()
        });
    }

    fn wait_while(&self, fact: &str, holds: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while holds(&self.log()) {
            assert!(Instant::now() < deadline, "the daemon never {fact}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_for_count(&self, text: &str, count: usize) {
        self.wait_while(&format!("said `{text}` {count} times"), |log| log.matches(text).count() < count);
    }

    /// Where its admin server listens. It must have been started with `WALTAG_LISTEN=127.0.0.1:0`.
    pub fn address(&self) -> String {
        self.wait_for("listening");
        self.log().split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
    }

    /// Asks its admin server: status code and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = std::net::TcpStream::connect(self.address()).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Waits until `/readyz` answers this code, and returns its body.
    pub fn readyz(&self, code: u16) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let (answered, body) = self.get("/readyz");
            if answered == code {
                return body;
            }
            assert!(Instant::now() < deadline, "/readyz never answered {code}: {answered} {body}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
    }
}

pub fn signal(pid: u32, name: &str) {
    // The shell's own kill: a minimal Debian has no other.
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
    assert!(status.success());
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
