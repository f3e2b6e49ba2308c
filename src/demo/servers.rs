//! Private PostgreSQL and Redis servers in temporary directories on free ports: for the demo, and for the tests.
//!
//! initdb refuses to run as root, so under root both run as `postgres`.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::NoTls;

pub use super::redis_server::Redis;

/// A server must answer within this.
pub(super) const START_LIMIT: Duration = Duration::from_secs(90);

/// Why a private server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed.
    #[error("{0} is not installed (looked in PATH and /usr/lib/postgresql); `scripts/demo` installs it")]
    Missing(&'static str),
    /// The operating system refused.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// A program failed.
    #[error("{0} failed:\n{1}")]
    Failed(String, String),
}

/// A private PostgreSQL cluster, stopped and removed when dropped.
pub struct Postgres {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    bin: PathBuf,
    directory: TempDir,
    child: Option<Child>,
}

/// Settings that every private cluster has: logical decoding, no waiting for the disk.
const POSTGRES_SETTINGS: &str = "\
wal_level = logical
fsync = off
full_page_writes = off
max_wal_senders = 10
max_replication_slots = 10
max_prepared_transactions = 10
max_connections = 60
shared_buffers = 32MB
autovacuum = off
listen_addresses = '127.0.0.1'
log_min_messages = warning
";

impl Postgres {
    /// Makes a cluster with `settings` (lines of postgresql.conf) after ours, and starts it.
    pub fn start(settings: &str) -> Result<Postgres, Error> {
        Postgres::start_from(None, settings)
    }

    /// The same, from a copy of a data directory that [`Postgres::initialize`] made: much faster than initdb.
    pub fn start_from(template: Option<&Path>, settings: &str) -> Result<Postgres, Error> {
        let bin = postgres_programs()?;
        let directory = private_directory()?;
        let mut server = Postgres { port: free_port()?, bin, directory, child: None };
        match template {
            Some(template) => {
                let mut copy = as_postgres(Path::new("cp"));
                complete(copy.arg("-a").arg(template).arg(server.data()))?;
            }
            None => Postgres::initialize(&server.data())?,
        }
        loop {
            server.configure(settings)?;
            match server.launch() {
                // Another program took the port between our look and the start.
                Err(Error::Failed(_, log)) if log.contains("could not bind") && server.forget_log() => {
                    server.port = free_port()?;
                }
                launched => return launched.map(|()| server),
            }
        }
    }

    fn forget_log(&self) -> bool {
        fs::remove_file(self.log_path()).is_ok()
    }

    /// initdb with superuser `postgres` and trust for local connections.
    pub fn initialize(data: &Path) -> Result<(), Error> {
        let mut initdb = as_postgres(&postgres_programs()?.join("initdb"));
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(data);
        complete(&mut initdb)
    }

    /// Replaces the settings after ours; they hold from the next start or reload.
    pub fn configure(&self, settings: &str) -> Result<(), Error> {
        let file = self.data().join("waltag.conf");
        let sockets = self.directory.path().display();
        let text =
            format!("{POSTGRES_SETTINGS}unix_socket_directories = '{sockets}'\nport = {}\n{settings}\n", self.port);
        fs::write(&file, text).map_err(|error| Error::Io(file.display().to_string(), error))?;
        let main = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&main).map_err(|error| Error::Io(main.display().to_string(), error))?;
        if !text.contains("waltag.conf") {
            fs::write(&main, text + "\ninclude 'waltag.conf'\n")
                .map_err(|error| Error::Io(main.display().to_string(), error))?;
        }
        give_to_postgres(&file)
    }

    /// Starts the postmaster and waits until it answers.
    pub fn launch(&mut self) -> Result<(), Error> {
        let log_path = self.log_path();
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(|error| Error::Io(log_path.display().to_string(), error))?;
        let mut postmaster = as_postgres(&self.bin.join("postgres"));
        postmaster.arg("-D").arg(self.data()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = spawn(&mut postmaster)?;
        self.child = Some(child);
        let deadline = Instant::now() + START_LIMIT;
        loop {
            // What pg_ctl looks at: the eighth line of the lock file.
            let lock_file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            if lock_file.lines().nth(7).is_some_and(|status| status.trim() == "ready") {
                return Ok(());
            }
            let ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > deadline {
                return Err(Error::Failed("postgres".into(), self.log()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `pg_ctl stop -m MODE`; the time that it took. Waits at most `limit`.
    pub fn stop(&mut self, mode: &str, limit: Duration) -> Result<Duration, Error> {
        let begin = Instant::now();
        let mut stop = as_postgres(&self.bin.join("pg_ctl"));
        stop.args(["stop", "-w", "-m", mode, "-t", &limit.as_secs().to_string(), "-D"]).arg(self.data());
        complete(&mut stop)?;
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        Ok(begin.elapsed())
    }

    /// `pg_ctl reload`.
    pub fn reload(&self) -> Result<(), Error> {
        complete(as_postgres(&self.bin.join("pg_ctl")).args(["reload", "-D"]).arg(self.data()))
    }

    /// A streaming standby of `primary`.
    pub fn standby_of(primary: &Postgres) -> Result<Postgres, Error> {
        let mut server =
            Postgres { port: free_port()?, bin: primary.bin.clone(), directory: private_directory()?, child: None };
        let mut copy = as_postgres(&server.bin.join("pg_basebackup"));
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-U", "postgres", "-h", "127.0.0.1", "-p"]);
        complete(copy.arg(primary.port.to_string()).arg("-D").arg(server.data()))?;
        server.configure("hot_standby = on")?;
        server.launch()?;
        Ok(server)
    }

    /// A program that runs as the owner of the cluster.
    pub fn as_owner(&self, program: &Path) -> Command {
        as_postgres(program)
    }

    /// Waits until commits wait for a standby: sessions know a reloaded setting before the checkpointer has put it in
    /// force. A commit of our own shows it, and is cancelled.
    pub async fn until_commits_wait(&self, database: &str) -> Result<(), tokio_postgres::Error> {
        let (watcher, connection) = tokio_postgres::connect(&self.url("postgres", database), NoTls).await?;
        tokio::spawn(connection);
        loop {
            let (probe, connection) = tokio_postgres::connect(&self.url("postgres", database), NoTls).await?;
            tokio::spawn(connection);
            let pid: i32 = probe.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
            let commit =
                tokio::spawn(
                    async move { probe.batch_execute("SELECT pg_logical_emit_message(true, 'probe', '')").await },
                );
            let waits = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
            while !commit.is_finished() {
                if watcher.query_opt(waits, &[&pid]).await?.is_some() {
                    return Ok(());
                }
            }
        }
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The directory of the unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("postgres.log")
    }

    /// What the server has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// One of PostgreSQL's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// URL of a database as `user`.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.stop("immediate", Duration::from_secs(10));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The directory of PostgreSQL's programs: `POSTGRES_BIN`, PATH, Debian's newest.
pub fn postgres_programs() -> Result<PathBuf, Error> {
    if let Some(directory) = std::env::var_os("POSTGRES_BIN") {
        return Ok(directory.into());
    }
    if let Some(directory) =
        find_in_path("initdb").and_then(|found| Some(found.canonicalize().ok()?.parent()?.to_path_buf()))
    {
        return Ok(directory);
    }
    let versions =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    versions.filter(|bin| bin.join("initdb").exists()).max().ok_or(Error::Missing("PostgreSQL (initdb)"))
}

pub(super) fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

/// User and group of `postgres` if we are root.
fn drop_to() -> Option<(u32, u32)> {
    let own = fs::metadata("/proc/self").ok().map(|process| std::os::unix::fs::MetadataExt::uid(&process))?;
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).filter(|_| own == 0)?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

pub(super) fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some((user, group)) = drop_to() {
        command.uid(user).gid(group);
    }
    // A terminal's Ctrl-C goes to the whole group: the servers must outlive it until they are stopped in order.
    command.process_group(0);
    command
}

fn give_to_postgres(path: &Path) -> Result<(), Error> {
    match drop_to() {
        Some((user, group)) => {
            chown(path, Some(user), Some(group)).map_err(|error| Error::Io(path.display().to_string(), error))
        }
        None => Ok(()),
    }
}

/// A temporary directory that the servers' user owns.
pub fn private_directory() -> Result<TempDir, Error> {
    let directory = tempfile::Builder::new().prefix("waltag-").tempdir();
    let directory = directory.map_err(|error| Error::Io("temporary directory".into(), error))?;
    give_to_postgres(directory.path())?;
    Ok(directory)
}

/// A port that nobody listens on now: below those that Linux gives to outgoing connections (32,768 and more), each of which could take it
/// before the server does, and while a server is down.
pub fn free_port() -> Result<u16, Error> {
    let mut refused = None;
    for _ in 0..100 {
        let port = rand::random_range(15_000..32_768);
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => refused = Some(error),
        }
    }
    Err(Error::Io("free port".into(), refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into())))
}

pub(super) fn spawn(command: &mut Command) -> Result<Child, Error> {
    command.spawn().map_err(|error| Error::Io(command.get_program().to_string_lossy().into_owned(), error))
}

fn complete(command: &mut Command) -> Result<(), Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| Error::Io(name.clone(), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Error::Failed(name, String::from_utf8_lossy(&said).into_owned()))
}
