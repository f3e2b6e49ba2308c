//! What attackers do, and what is left of the daemon.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;

use crate::support::{fill, is_gone};

/// Nobody waits longer for a commit to go stale, whatever is attacked.
pub const SOON: Duration = Duration::from_secs(5);

/// The command under limits of the shell: `-n 1024` for both limits of open files. Its process id stays its own.
pub fn limited(limits: &str, command: &Command) -> Command {
    through(&format!("ulimit {limits}; exec \"$0\" \"$@\""), command)
}

/// The command, killed after so many seconds.
pub fn bounded(seconds: u32, command: &Command) -> Command {
    through(&format!("exec timeout -s KILL {seconds} \"$0\" \"$@\""), command)
}

fn through(script: &str, command: &Command) -> Command {
    let mut bash = Command::new("bash");
    bash.args(["-c", script]).arg(command.get_program());
    bash.args(command.get_args()).env_clear().stdin(std::process::Stdio::null());
    bash.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bash
}

/// This process may open as many files as anybody lets it.
pub fn raise_file_limit() {
    let raise = format!("prlimit --pid {} --nofile=$(ulimit -Hn):", std::process::id());
    assert!(Command::new("bash").args(["-c", &raise]).status().unwrap().success());
}

/// A line of `/proc/PID/status`, in MiB: `VmRSS`, `VmHWM` (the peak), `VmPeak`.
pub fn mebibytes(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("it ended: {status}"));
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

/// Begins the peak anew.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// What comes until the other side ends the connection; nothing if it does not within `limit`.
pub fn rest(stream: &mut TcpStream, limit: Duration) -> Option<String> {
    let (mut all, mut piece, deadline) = (Vec::new(), [0; 4096], Instant::now() + limit);
    loop {
        stream.set_read_timeout(Some(deadline.checked_duration_since(Instant::now())?)).unwrap();
        match stream.read(&mut piece) {
            Ok(0) => return Some(String::from_utf8_lossy(&all).into_owned()),
            Ok(length) => all.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
            Err(_) => return Some(String::from_utf8_lossy(&all).into_owned()),
        }
    }
}

/// Status code and answer to a request, which must ask to be the only one on its connection.
pub fn ask(address: &str, request: &str, limit: Duration) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), limit).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let answer = rest(&mut stream, limit)?;
    Some((answer.split(' ').nth(1)?.parse().ok()?, answer))
}

/// GET of an address that is named by its number.
pub fn get(address: &str, path: &str, limit: Duration) -> Option<(u16, String)> {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"), limit)
}

/// Its loop turns, and says so.
pub fn assert_alive(address: &str, limit: Duration) {
    let answered = get(address, "/livez", limit).map(|(code, _)| code);
    assert_eq!(answered, Some(200), "/livez within {limit:?}");
}

/// Does a new row of `first_model` make its tag stale in time?
pub async fn goes_stale(sql: &Client, cache: &mut MultiplexedConnection, id: i32, limit: Duration) -> bool {
    let key = format!("FirstModel.pk:{id}");
    fill(cache, &key).await;
    let deadline = Instant::now() + limit;
    sql.batch_execute(&format!("INSERT INTO first_model VALUES ({id})")).await.unwrap();
    while !is_gone(cache, &key).await {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// It must.
pub async fn assert_goes_stale(sql: &Client, cache: &mut MultiplexedConnection, id: i32, limit: Duration) {
    assert!(goes_stale(sql, cache, id, limit).await, "the row {id} is not stale within {limit:?}");
}

/// What a page says once its code is this one; nothing if that takes longer.
pub async fn answered(address: &str, path: &str, code: u16, limit: Duration) -> Option<String> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        match get(address, path, SOON) {
            Some((found, body)) if found == code => return Some(body),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    None
}
