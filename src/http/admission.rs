//! Who is let in at the admin port, and for how long.
//!
//! A connection costs a file descriptor, of which PostgreSQL and Redis need some at the worst moment, and about 20 kB. So there are at most
//! [`MOST`], or what the process's limit leaves; when all are taken, the one that has done nothing for the longest makes way. `Host` is compared
//! with what this server is called: a page in a browser can make any name lead here (DNS rebinding), but not write another name into `Host`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tower_service::Service;

/// Connections at a time: a thousand may wait for a position.
const MOST: u64 = 1_100;
/// File descriptors that are kept back for PostgreSQL, Redis, rule files and the log.
const KEPT_BACK: u64 = 256;
/// A request's head must be there within this, and a connection without a request may stay as long.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a head.
const HEAD_SIZE: usize = 16 << 10;
/// An answer must be taken within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The longest that a request may take before it is answered: `/wait`, and a bit.
const REQUEST_LIMIT: Duration = Duration::from_secs(310);
/// A new connection may say what it wants within this, and take an answer, before it counts as one that does nothing.
const GRACE: Duration = Duration::from_millis(500);
/// Who is to make way is looked for this often, ...
const LOOK: Duration = Duration::from_millis(20);
/// ... and so many times.
const LOOKS: u32 = 50;
/// After `accept` has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Whom the server answers.
pub struct Doors {
    /// Names that it is called by, beside its addresses and `localhost`.
    pub hosts: Vec<String>,
    /// What those from another machine must bring, but for `/livez` and `/readyz`.
    pub token: Option<String>,
}

/// Who asks may know everything: from this machine, or with the token.
#[derive(Clone, Copy)]
pub struct IsTrusted(pub bool);

impl Doors {
    /// Answers in the place of a request that must not come in.
    fn refusal(&self, request: &Request<Incoming>, near: bool) -> Option<Response> {
        let say = |code: StatusCode, sentence: &str| Some((code, format!("{sentence}\n")).into_response());
        let named = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
        let mut names = named.chain(request.uri().authority().map(|authority| authority.as_str())).peekable();
        // A browser says it in each request, and HTTP/1.1 demands it; HTTP/1.0 does not know it.
        if names.peek().is_none() && request.version() > Version::HTTP_10 {
            return say(StatusCode::BAD_REQUEST, "Host is missing");
        }
        if !names.all(|name| self.is_called(name)) {
            let sentence = "this server is not called so: name it in --listen-hosts if it is";
            return say(StatusCode::FORBIDDEN, sentence);
        }
        if self.trusts(request, near) || matches!(request.uri().path(), "/livez" | "/readyz") {
            return None;
        }
        match self.token {
            Some(_) => {
                say(StatusCode::UNAUTHORIZED, "bring the token of --listen-token-file as `Authorization: Bearer`")
            }
            None => say(
                StatusCode::FORBIDDEN,
                "only this machine may ask for that: set --listen-token-file (WALTAG_LISTEN_TOKEN) to let others, who bring it as `Authorization: Bearer`",
            ),
        }
    }

    /// From this machine, or with the token.
    fn trusts(&self, request: &Request<Incoming>, near: bool) -> bool {
        let brought =
            request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let known = |token: &String| brought.is_some_and(|brought| is_equal(brought, token.as_bytes()));
        near || self.token.as_ref().is_some_and(known)
    }

    /// Is this what the server is called? An address cannot be rebound.
    fn is_called(&self, authority: &str) -> bool {
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        if let Some((address, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return address.parse::<std::net::Ipv6Addr>().is_ok()
                && rest.strip_prefix(':').map_or(rest.is_empty(), is_port);
        }
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        if !is_port(port) {
            return false;
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        host.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Without a hint, by how long it takes, at which byte they differ.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// A connection that is open.
struct Guest {
    abort: AbortHandle,
    /// Milliseconds from `begin` until which a request may take; before that it is not sent away.
    busy: Arc<AtomicU64>,
}

/// The connections that are open.
#[derive(Default)]
struct Guests {
    next: u64,
    open: HashMap<u64, Guest>,
}

/// How many connections the process's limit of file descriptors leaves room for.
pub fn most() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    (limit.saturating_sub(KEPT_BACK) / 2).clamp(16, MOST) as usize
}

/// How many may wait at a time: some connections are left for those who ask something else.
pub fn waiters() -> usize {
    most() - most() / 10
}

/// Raises the limit of open files as far as this process may: the usual one, of 1,024, is for programs that use select().
pub fn raise_limit() {
    const WANTED: u64 = 16_384;
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX).min(WANTED);
    if limit.current.is_some_and(|current| current < most) {
        limit.current = Some(most);
        if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
            tracing::debug!("the limit of open files stays as it is: {error}");
        }
    }
}

/// Answers whoever comes, for as long as the process lives.
pub async fn admit(listener: TcpListener, router: Router, doors: Doors) {
    let (doors, guests, most, begin) =
        (Arc::new(doors), Arc::new(Mutex::new(Guests::default())), most(), Instant::now());
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("nobody can be let in at --listen: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if !find_room(&guests, most, begin).await {
            turn_away(stream);
            continue;
        }
        let mut open = guests.lock().unwrap_or_else(PoisonError::into_inner);
        open.next += 1;
        let (number, busy) = (open.next, Arc::new(AtomicU64::new((begin.elapsed() + GRACE).as_millis() as u64)));
        let serving = serve(stream, peer, router.clone(), doors.clone(), busy.clone(), begin);
        let leaving = Leaving(guests.clone(), number);
        let task = tokio::spawn(async move {
            let _leaving = leaving;
            serving.await;
        });
        open.open.insert(number, Guest { abort: task.abort_handle(), busy });
    }
}

/// Waits until there is room for one more; false if that takes too long.
async fn find_room(guests: &Mutex<Guests>, most: usize, begin: Instant) -> bool {
    for _ in 0..LOOKS {
        {
            let mut guests = guests.lock().unwrap_or_else(PoisonError::into_inner);
            if guests.open.len() < most || guests.make_room(begin.elapsed()) {
                return true;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    false
}

/// Takes a connection out of the list, however it ends.
struct Leaving(Arc<Mutex<Guests>>, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.1);
    }
}

impl Guests {
    /// Sends away who has been here for the longest without a request; false if all have one.
    fn make_room(&mut self, now: Duration) -> bool {
        let now = now.as_millis() as u64;
        let idle = self.open.iter().filter(|(_, guest)| guest.busy.load(Ordering::Relaxed) < now);
        let Some(number) = idle.map(|(number, _)| *number).min() else { return false };
        if let Some(guest) = self.open.remove(&number) {
            guest.abort.abort();
        }
        true
    }
}

/// All connections are waiting for an answer.
fn turn_away(stream: TcpStream) {
    tokio::spawn(async move {
        let mut stream = stream;
        let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 31\r\nconnection: close\r\n\r\ntoo many wait here; come again\n";
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(answer)).await;
    });
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    doors: Arc<Doors>,
    busy: Arc<AtomicU64>,
    begin: Instant,
) {
    let near = peer.ip().to_canonical().is_loopback();
    let until = move |limit: Duration| (begin.elapsed() + limit).as_millis() as u64;
    let answered = busy.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        busy.store(until(REQUEST_LIMIT), Ordering::Relaxed);
        let (refusal, trusted) = (doors.refusal(&request, near), doors.trusts(&request, near));
        let (mut router, busy) = (router.clone(), busy.clone());
        async move {
            let response = match refusal {
                Some(refusal) => refusal,
                None => {
                    let mut request = request.map(Body::new);
                    request.extensions_mut().insert(IsTrusted(trusted));
                    match router.call(request).await {
                        Ok(response) => response,
                        Err(never) => match never {},
                    }
                }
            };
            // Small answers are taken at once; who asks again and again must not keep her place by that.
            busy.store(until(GRACE), Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            // Whoever does not take the answer, or sends a body that nobody reads, holds the connection no longer than this.
            () = tokio::time::sleep(ANSWER_LIMIT) => {
                if answered.load(Ordering::Relaxed) + (HEAD_LIMIT.as_millis() as u64) < until(Duration::ZERO) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_is_called() {
        let doors = Doors { hosts: vec!["waltag.example".into()], token: None };
        for (name, called) in [
            ("127.0.0.1:9185", true),
            ("[::1]:9185", true),
            ("10.1.2.3", true),
            ("LOCALHOST.:1", true),
            ("waltag.example:80", true),
            ("[::1]evil.example", false),
            ("[localhost]", false),
            ("localhost:evil.example", false),
            ("attacker.example", false),
            ("127.0.0.1.attacker.example", false),
            ("localhost.attacker.example:9185", false),
            ("", false),
            ("?", false),
        ] {
            assert_eq!(doors.is_called(name), called, "{name}");
        }
    }

    #[test]
    fn who_makes_way() {
        let task = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handle = task.spawn(std::future::pending::<()>()).abort_handle();
        let mut guests = Guests::default();
        for (number, busy) in [(1, 900), (2, 0), (3, 0)] {
            guests.open.insert(number, Guest { abort: handle.clone(), busy: Arc::new(AtomicU64::new(busy)) });
        }
        let now = Duration::from_millis(500);
        assert!(guests.make_room(now) && !guests.open.contains_key(&2), "the older of those that do nothing");
        assert!(guests.make_room(now) && !guests.make_room(now), "whoever waits for an answer stays");
    }
}
