//! The admin server at `--listen`: `/livez`, `/readyz`, `/status`, `/metrics`, `/wait`. It reads what the loop has left for it; all
//! that it leaves for the loop is the position that somebody waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::quantity;
use crate::source::lsn::{Lsn, Xid};
use crate::source::visibility::Snapshot;
use crate::status::Status;

/// A loop that has not turned for this long is stuck: connecting and every query have shorter limits.
const STUCK: Duration = Duration::from_secs(60);

/// Waits that name no time.
const WAIT: Duration = Duration::from_secs(10);
/// Nobody holds a connection for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How far every cache is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Every tag up to here was acknowledged by every cache.
    pub position: Lsn,
    /// A cache that is detached: nobody knows how far it is.
    pub detached: Option<String>,
}

/// `/wait?lsn=0/16B3748&timeout=5s`; where an outbox is read `/wait?xid=734` or `/wait?snapshot=730:734:731`.
#[derive(Deserialize)]
pub struct Wait {
    lsn: Option<String>,
    xid: Option<String>,
    snapshot: Option<String>,
    timeout: Option<String>,
}

/// What somebody waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Token {
    /// A place in the log.
    Position(Lsn),
    /// A transaction that may still run.
    Transaction(u64),
    /// Everything that is visible in it.
    Snapshot(Snapshot),
}

impl Token {
    /// Is all of it visible here?
    pub fn is_in(&self, saw: &Snapshot) -> bool {
        match self {
            Token::Position(_) => false,
            // An old one may be further away than 32 bits can tell.
            Token::Transaction(xid) => *xid < saw.xmin || *xid < saw.xmax && saw.sees(Xid(*xid as u32)),
            Token::Snapshot(snapshot) => saw.sees_all_of(snapshot),
        }
    }
}

impl Wait {
    /// What it waits for, and for how long.
    pub fn read(&self) -> Result<(Token, Duration), String> {
        let token = self.token()?;
        match self.timeout.as_deref().map_or(Ok(WAIT), quantity::duration)? {
            limit if limit > LONGEST_WAIT => Err(format!("the timeout is at most {LONGEST_WAIT:?}")),
            limit => Ok((token, limit)),
        }
    }

    fn token(&self) -> Result<Token, String> {
        match (&self.lsn, &self.xid, &self.snapshot) {
            (Some(lsn), None, None) => {
                lsn.parse().map(Token::Position).map_err(|_| format!("`{lsn}` is not a position such as 0/16B3748"))
            }
            (None, Some(xid), None) => {
                xid.parse().map(Token::Transaction).map_err(|_| format!("`{xid}` is not a transaction such as 734"))
            }
            (None, None, Some(text)) => Snapshot::parse(text)
                .map(Token::Snapshot)
                .ok_or_else(|| format!("`{text}` is not a snapshot such as 730:734:731")),
            _ => Err("one of lsn, xid and snapshot says what is waited for".into()),
        }
    }
}

/// What the loop and the server share.
#[derive(Clone)]
pub struct Board {
    status: Arc<watch::Sender<Status>>,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    begin: Instant,
    reached: Arc<watch::Sender<Reached>>,
    /// What a poll of the outbox saw, and by which position that has arrived.
    saw: Arc<watch::Sender<Option<(Snapshot, Lsn)>>>,
    /// The highest position that somebody waits for.
    wanted: Arc<AtomicU64>,
    /// Somebody has begun to wait.
    knock: Arc<Notify>,
    /// Milliseconds from `begin` to the last turn of the loop.
    turned: Arc<AtomicU64>,
}

impl Default for Board {
    fn default() -> Board {
        Board::new()
    }
}

impl Board {
    /// An empty board.
    pub fn new() -> Board {
        let (status, metrics) = (Arc::new(watch::Sender::new(Status::default())), Arc::new(Metrics::default()));
        let reached = Arc::new(watch::Sender::new(Reached::default()));
        Board {
            status,
            metrics,
            begin: Instant::now(),
            reached,
            saw: Arc::new(watch::Sender::new(None)),
            wanted: Arc::default(),
            knock: Arc::default(),
            turned: Arc::default(),
        }
    }

    /// Every cache is as far as this now.
    pub fn reach(&self, reached: Reached) {
        self.reached.send_if_modified(|known| {
            let news = *known != reached;
            *known = reached;
            news
        });
    }

    /// What was visible when the source was looked at last.
    pub fn saw(&self, polled: Option<&(Snapshot, Lsn)>) {
        let Some((_, position)) = polled else { return };
        self.saw.send_if_modified(|known| {
            let news = known.as_ref().is_none_or(|(_, known)| known != position);
            if news {
                *known = polled.cloned();
            }
            news
        });
    }

    /// Somebody has begun to wait. Cancel-safe.
    pub async fn knocked(&self) {
        self.knock.notified().await;
    }

    /// Does somebody wait for a position that is not reached yet?
    pub fn is_awaited(&self) -> bool {
        if self.reached.receiver_count() == 0 {
            self.wanted.store(0, Ordering::Relaxed);
        }
        self.wanted.load(Ordering::Relaxed) > self.reached.borrow().position.0
    }

    /// The loop has turned.
    pub fn turn(&self) {
        self.turned.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Shows how things are now.
    pub fn show(&self, status: Status) {
        self.metrics.ready.set(i64::from(status.is_ready()));
        self.status.send_replace(status);
    }

    /// How far every cache is once it is far enough, or one is detached.
    async fn wait_for(&self, token: Token) -> Option<Reached> {
        let mut reached = self.reached.subscribe();
        let lsn = match token {
            Token::Position(lsn) => lsn,
            token => {
                self.knock.notify_one();
                let mut saw = self.saw.subscribe();
                let sees = |saw: &Option<(Snapshot, Lsn)>| saw.as_ref().is_some_and(|(saw, _)| token.is_in(saw));
                tokio::select! {
                    detached = reached.wait_for(|reached| reached.detached.is_some()) => {
                        return detached.ok().map(|reached| reached.clone());
                    }
                    seen = saw.wait_for(sees) => seen.ok()?.as_ref().map(|(_, position)| *position)?,
                }
            }
        };
        self.wanted.fetch_max(lsn.0, Ordering::Relaxed);
        self.knock.notify_one();
        let over = |reached: &Reached| reached.detached.is_some() || reached.position >= lsn;
        reached.wait_for(over).await.ok().map(|reached| reached.clone())
    }

    fn is_alive(&self) -> bool {
        let turned = Duration::from_millis(self.turned.load(Ordering::Relaxed));
        self.begin.elapsed().saturating_sub(turned) < STUCK
    }
}

/// Listens and answers for as long as the process lives; nothing if `address` is empty.
pub async fn serve(address: &str, board: Board) -> Result<(), Failure> {
    if address.is_empty() {
        return Ok(());
    }
    let refused = |error| {
        let help = "choose another with --listen, or none with --listen ''";
        Failure::new(Exit::Config, format!("cannot listen at {address}: {error}; {help}"))
    };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "listening");
    }
    tokio::spawn(async move { axum::serve(listener, routes(board)).await });
    Ok(())
}

/// What is answered where.
pub fn routes(board: Board) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/wait", get(wait))
        .with_state(board)
}

async fn livez(State(board): State<Board>) -> impl IntoResponse {
    match board.is_alive() {
        true => (StatusCode::OK, "alive\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the loop is stuck\n"),
    }
}

async fn readyz(State(board): State<Board>) -> impl IntoResponse {
    let status = board.status.borrow();
    let body = serde_json::json!({"ready": status.is_ready(), "reasons": status.reasons});
    (code(&status), [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

async fn status(State(board): State<Board>) -> impl IntoResponse {
    let status = board.status.borrow();
    let body = serde_json::to_string(&*status).unwrap_or_default();
    (code(&status), [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

async fn metrics(State(board): State<Board>) -> impl IntoResponse {
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], board.metrics.text())
}

/// 200 once every cache is as far; 503 if one is detached, 504 after the timeout.
async fn wait(State(board): State<Board>, Query(wait): Query<Wait>) -> (StatusCode, String) {
    let wrong = |sentence: String| (StatusCode::BAD_REQUEST, format!("{sentence}\n"));
    let (token, limit) = match wait.read() {
        Ok(both) => both,
        Err(sentence) => return wrong(sentence),
    };
    let outbox = board.saw.borrow().is_some();
    if outbox && matches!(token, Token::Position(_)) {
        return wrong("this daemon reads an outbox: wait for an xid or a snapshot, not for an LSN".into());
    }
    match timeout(limit, board.wait_for(token)).await {
        Ok(Some(Reached { detached: Some(cache), .. })) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the cache {cache} is detached\n"))
        }
        Ok(Some(reached)) => (StatusCode::OK, format!("{}\n", reached.position)),
        _ => (StatusCode::GATEWAY_TIMEOUT, format!("not yet: {}\n", board.reached.borrow().position)),
    }
}

fn code(status: &Status) -> StatusCode {
    if status.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After 2^31 more transactions nobody would ever have been told that one had ended.
    #[test]
    fn what_ended_long_ago_is_not_waited_for() {
        let saw = Snapshot::parse("8589934592:8589934600:8589934592,8589934595").unwrap();
        for (xid, is_in) in [(734, true), (8_589_934_591, true), (8_589_934_595, false), (8_589_934_596, true)] {
            assert_eq!(Token::Transaction(xid).is_in(&saw), is_in, "{xid}");
        }
        assert!(!Token::Transaction(8_589_934_600).is_in(&saw));
    }
}
