//! Redis's MONITOR: every command that a private Redis takes, as it takes it. What is shown is what happened, not what was
//! meant.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A command of our own must come back within this.
const LIMIT: Duration = Duration::from_secs(90);

/// A running MONITOR.
pub struct Monitor {
    lines: Arc<Mutex<Vec<String>>>,
    port: u16,
}

impl Monitor {
    /// Listens to the Redis on this port of 127.0.0.1.
    ///
    /// # Panics
    /// If there is no Redis: it is our own.
    pub fn start(port: u16) -> Monitor {
        let mut reader = BufReader::new(connect(port));
        send(reader.get_mut(), b"MONITOR\r\n");
        let mut first = String::new();
        let answered = reader.read_line(&mut first);
        assert!(answered.is_ok() && first == "+OK\r\n", "MONITOR answered {first:?}");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Monitor { lines, port }
    }

    /// Everything up to now; a command of our own marks the end.
    ///
    /// # Panics
    /// If Redis does not answer for half a minute.
    pub fn lines(&self) -> Vec<String> {
        let mark = format!("mark-{:032x}", rand::random::<u128>());
        let command = format!("*2\r\n$4\r\nECHO\r\n${}\r\n{mark}\r\n", mark.len());
        send(&mut connect(self.port), command.as_bytes());
        let deadline = Instant::now() + LIMIT;
        loop {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if lines.iter().any(|line| line.contains(&mark)) {
                return lines;
            }
            assert!(Instant::now() < deadline, "Redis does not answer");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Distinct keys of UNLINK, as `database key`, sorted; bytes above ASCII as MONITOR escapes them.
    pub fn unlinked(&self) -> Vec<String> {
        let key = |line: String| {
            let (head, tail) = line.split_once("\"UNLINK\" ")?;
            let database = head.split('[').nth(1)?.split(' ').next()?;
            Some(format!("{database} {}", tail.trim().trim_matches('"')))
        };
        self.lines().into_iter().filter_map(key).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Forgets what came up to now.
    pub fn forget(&self) {
        self.lines();
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap_or_else(|error| panic!("no Redis on port {port}: {error}"))
}

fn send(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap_or_else(|error| panic!("Redis went away: {error}"));
}
