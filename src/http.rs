//! The admin server at `--listen`: `/livez`, `/readyz`, `/status`, `/metrics`. It reads what the loop has left for it, and never
//! asks the loop for anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::status::Status;

/// A loop that has not turned for this long is stuck: connecting and every query have shorter limits.
const STUCK: Duration = Duration::from_secs(60);

/// What the loop and the server share.
#[derive(Clone)]
pub struct Board {
    status: Arc<watch::Sender<Status>>,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    begin: Instant,
    /// Milliseconds from `begin` to the last turn of the loop.
    turned: Arc<AtomicU64>,
}

impl Board {
    /// An empty board.
    pub fn new() -> Board {
        let (status, metrics) = (Arc::new(watch::Sender::new(Status::default())), Arc::new(Metrics::default()));
        Board { status, metrics, begin: Instant::now(), turned: Arc::default() }
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
    let routes = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(board);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(())
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

fn code(status: &Status) -> StatusCode {
    if status.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
