//! The admin server at `--listen`: `/livez`, `/readyz`, `/status`, `/metrics`, `/wait`. It reads what the loop has left for it; all
//! that it leaves for the loop is that somebody has begun to wait.

pub mod admission;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;

use self::admission::{Doors, IsTrusted};
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
    /// How many have begun to wait for a position.
    arrived: Arc<AtomicU64>,
    /// For all who had begun by then: the end of the log, which was flushed.
    ends: Arc<watch::Sender<(u64, Lsn)>>,
    /// Somebody has begun to wait.
    knock: Arc<Notify>,
    /// Milliseconds from `begin` to the last turn of the loop.
    turned: Arc<AtomicU64>,
    /// The daemon reads the log: a transaction is nothing to wait for.
    logged: Arc<AtomicBool>,
    /// For those who wait.
    places: Arc<Semaphore>,
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
            arrived: Arc::default(),
            ends: Arc::default(),
            knock: Arc::default(),
            turned: Arc::default(),
            logged: Arc::default(),
            places: Arc::new(Semaphore::new(admission::waiters())),
        }
    }

    /// The daemon reads the log.
    pub fn reads_the_log(&self) {
        self.logged.store(true, Ordering::Relaxed);
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

    /// How many have begun to wait for a position since the daemon started. What each waits for was written before it came: to bring that out once is
    /// enough, for one as for a thousand.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// The log, flushed, ended here when it was looked at behind the arrival of so many.
    pub fn ends(&self, arrived: u64, end: Lsn) {
        self.ends.send_replace((arrived, end));
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

    /// How far every cache is once it is far enough, or one is detached; the end of the log if that lies before what is waited for.
    async fn wait_for(&self, token: Token) -> Option<Result<Reached, Lsn>> {
        let mut reached = self.reached.subscribe();
        let lsn = match token {
            Token::Position(lsn) => lsn,
            token => {
                self.knock.notify_one();
                let mut saw = self.saw.subscribe();
                let sees = |saw: &Option<(Snapshot, Lsn)>| saw.as_ref().is_some_and(|(saw, _)| token.is_in(saw));
                tokio::select! {
                    detached = reached.wait_for(|reached| reached.detached.is_some()) => {
                        return detached.ok().map(|reached| Ok(reached.clone()));
                    }
                    seen = saw.wait_for(sees) => seen.ok()?.as_ref().map(|(_, position)| *position)?,
                }
            }
        };
        let over = |reached: &Reached| reached.detached.is_some() || reached.position >= lsn;
        if over(&reached.borrow()) {
            return Some(Ok(reached.borrow().clone()));
        }
        let mut ends = self.ends.subscribe();
        let number = self.arrived.fetch_add(1, Ordering::Relaxed) + 1;
        self.knock.notify_one();
        let beyond = |(arrived, end): &(u64, Lsn)| *arrived >= number && lsn > *end;
        tokio::select! {
            reached = reached.wait_for(over) => reached.ok().map(|reached| Ok(reached.clone())),
            ends = ends.wait_for(beyond) => ends.ok().map(|ends| Err(ends.1)),
        }
    }

    fn is_alive(&self) -> bool {
        let turned = Duration::from_millis(self.turned.load(Ordering::Relaxed));
        self.begin.elapsed().saturating_sub(turned) < STUCK
    }
}

/// Listens and answers for as long as the process lives; nothing if `address` is empty.
pub async fn serve(address: &str, doors: Doors, board: Board) -> Result<(), Failure> {
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
    tokio::spawn(admission::admit(listener, routes(board), doors));
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

/// Others see whether it is ready, and not why: a reason has names of tables and addresses in it.
async fn readyz(State(board): State<Board>, Extension(IsTrusted(trusted)): Extension<IsTrusted>) -> impl IntoResponse {
    let status = board.status.borrow();
    let body = match trusted {
        true => serde_json::json!({"ready": status.is_ready(), "reasons": status.reasons}),
        false => serde_json::json!({"ready": status.is_ready()}),
    };
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
    if board.logged.load(Ordering::Relaxed) && !matches!(token, Token::Position(_)) {
        return wrong(
            "this daemon reads the log: wait for what pg_current_wal_flush_lsn() says after the commit (lsn)".into(),
        );
    }
    // Whoever asks something else must find a connection that does not wait.
    let Ok(_place) = board.places.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many wait here; come again\n".into());
    };
    match timeout(limit, board.wait_for(token)).await {
        Ok(Some(Err(end))) => wrong(format!("that lies beyond the end of the server's log, which is {end}")),
        Ok(Some(Ok(Reached { detached: Some(cache), .. }))) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the cache {cache} is detached\n"))
        }
        Ok(Some(Ok(reached))) => (StatusCode::OK, format!("{}\n", reached.position)),
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
