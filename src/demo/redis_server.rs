//! A private Redis.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::servers::{Error, START_LIMIT, as_postgres, find_in_path, free_port, private_directory, spawn};

/// A private Redis, stopped and removed when dropped.
pub struct Redis {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    directory: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts a Redis without persistence; `arguments` are settings as `--name value`.
    pub fn start(arguments: &[&str]) -> Result<Redis, Error> {
        let directory = private_directory()?;
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Redis { port: free_port()?, directory, arguments, child: None };
        // Another program may take the port between our look and the start.
        for _ in 0..2 {
            match server.launch() {
                Err(Error::Failed(..)) => server.port = free_port()?,
                launched => return launched.map(|()| server),
            }
        }
        server.launch().map(|()| server)
    }

    /// Starts it (again), and waits until it takes connections.
    pub fn launch(&mut self) -> Result<(), Error> {
        let program = find_in_path("redis-server").ok_or(Error::Missing("redis-server"))?;
        let mut server = as_postgres(&program);
        server.args([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
        ]);
        server.arg(self.directory.path()).args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let child = self.child.insert(spawn(server.stderr(Stdio::null()))?);
        let deadline = Instant::now() + START_LIMIT;
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if Instant::now() > deadline || !matches!(child.try_wait(), Ok(None)) {
                return Err(Error::Failed("redis-server".into(), "it does not take connections".into()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its process, for SIGSTOP.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// URL of a database.
    pub fn url(&self, database: u8) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
