//! `waltag status`: asks the daemon at `--listen`.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::show;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::status::Status;

/// The daemon answers from memory.
const LIMIT: Duration = Duration::from_secs(5);

/// Prints how the daemon is; 75 if it is not ready.
pub async fn status(settings: &Settings, json: bool) -> Result<(), Failure> {
    let address = &settings.listen;
    let away =
        |sentence: String| Failure::new(Exit::Unavailable, format!("no waltag answers at {address}: {sentence}"));
    let answer = timeout(LIMIT, ask(address, "/status")).await;
    let body = answer.map_err(|_| away("no answer".into()))?.map_err(|error| away(error.to_string()))?;
    let status: Status = serde_json::from_str(&body).map_err(|_| away("what answers is not waltag".into()))?;
    match json {
        true => show(body.trim_end()),
        false => show(&status),
    }
    match status.reasons.first() {
        None => Ok(()),
        Some(_) => Err(Failure::new(Exit::NotYet, "not ready")),
    }
}

/// The body of one answer. HTTP/1.0: it ends with the connection.
async fn ask(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
