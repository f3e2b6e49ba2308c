//! `waltag status` and `waltag wait`: the daemon at `--listen` is asked.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::show;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::quantity;
use crate::settings::Settings;
use crate::status::Status;

/// The daemon answers from memory.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const MOST: u64 = 16 << 20;

/// Prints how the daemon is; 75 if it is not ready.
pub async fn status(settings: &Settings, json: bool) -> Result<(), Failure> {
    let (_, body) = ask(settings, "/status", LIMIT).await?;
    let not_ours = |_| away(&settings.listen, "what answers is not waltag");
    let status: Status = serde_json::from_str(&body).map_err(not_ours)?;
    match json {
        true => show(body.trim_end()),
        false => show(&status),
    }
    match status.reasons.first() {
        None => Ok(()),
        Some(_) => Err(Failure::new(Exit::NotYet, "not ready")),
    }
}

/// Waits until every cache is as far as `token`, an LSN, a transaction or a snapshot; 75 if that takes longer than `limit`, or if a cache is detached.
pub async fn wait(settings: &Settings, token: &str, limit: &str) -> Result<(), Failure> {
    let usage = |sentence: String| Failure::new(Exit::Usage, sentence);
    let kind = match token {
        _ if token.contains('/') => "lsn",
        _ if token.contains(':') => "snapshot",
        _ => "xid",
    };
    if !token.chars().all(|c| c.is_ascii_hexdigit() || "/:,".contains(c)) {
        return Err(usage(format!(
            "`{token}` is neither a position (0/16B3748) nor a transaction (734) nor a snapshot (730:734:731)"
        )));
    }
    let patience = quantity::duration(limit).map_err(|sentence| usage(format!("--timeout: {sentence}")))?;
    let path = format!("/wait?{kind}={token}&timeout={limit}");
    let (code, body) = ask(settings, &path, patience + LIMIT).await?;
    match code.as_str() {
        "200" => {
            show(body.trim_end());
            Ok(())
        }
        "400" => Err(usage(body.trim_end().to_owned())),
        "503" | "504" => Err(Failure::new(Exit::NotYet, body.trim_end())),
        _ => Err(away(&settings.listen, "what answers is not waltag")),
    }
}

fn away(address: &str, sentence: &str) -> Failure {
    Failure::new(Exit::Unavailable, format!("no waltag answers at {address}: {sentence}"))
}

/// Code and body of one answer; who is not let in gets the daemon's sentence as an error. HTTP/1.0: it ends with the connection.
async fn ask(settings: &Settings, path: &str, limit: Duration) -> Result<(String, String), Failure> {
    let address = settings.listen.as_str();
    let token = settings.listen_token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{token}\r\n").as_bytes()).await?;
        let mut answer = String::new();
        // A status of a thousand caches has 1 MB; what never ends is not waltag.
        stream.take(MOST).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(limit, asking).await.map_err(|_| away(address, "no answer"))?;
    let answer = answer.map_err(|error| away(address, &error.to_string()))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    match head.split(' ').nth(1).unwrap_or_default() {
        "401" | "403" => Err(away(address, body.trim_end())),
        code => Ok((code.to_owned(), body.to_owned())),
    }
}
