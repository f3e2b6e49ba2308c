//! What the daemon has left for itself, in Redis and in its state directory, and what it is asked over HTTP.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::PathBuf;

use axum::body::{Body, to_bytes};
use axum::extract::Query;
use axum::http::{Request, StatusCode, Uri};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;
use waltag::cache::coverage::{Coverage, Covered, Fingerprint, id};
use waltag::cache::gap::Keys;
use waltag::cache::life::Life;
use waltag::cache::marker::{Found, Marker, Origin, Progress, Witness};
use waltag::flow::history::Commit;
use waltag::http::{Board, Reached, Token, Wait, routes};
use waltag::rules::Rules;
use waltag::rules::expand::Surroundings;
use waltag::rules::kept as kept_rules;
use waltag::source::has_survived;
use waltag::source::lsn::Lsn;
use waltag::source::visibility::Snapshot;

use crate::bytes::{columns, lines, names_devices};

/// Where the slot starts, and how long the server's log is, in what the marker is compared with.
const CONFIRMED: Lsn = Lsn(0x20);
const LOG: Lsn = Lsn(0x1000);

fn origin() -> Origin {
    Origin { timeline: "1".into(), crash: "a,b".into(), log: LOG }
}

/// The fields of a marker (a line each, `\N` where there is none, in the order of [`Found`], then INFO): what is taken for whole is whole, and what
/// this version writes is whole.
pub fn marker(data: &[u8]) {
    let lines = lines(data);
    let field =
        |index: usize| lines.get(index).and_then(|line| columns(line).first().copied().flatten()).map(str::to_owned);
    let found = Found {
        owner: field(0),
        seq: field(1),
        format: field(2),
        done: field(3),
        timeline: field(4),
        crash: field(5),
        rules: field(6),
        log: field(7),
        commit: field(8),
        kept: field(9),
        replicas: field(10),
        life: Life::parse(&lines.get(11..).unwrap_or_default().join("\n")),
        witnesses: Vec::new(),
    };
    let lsn = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<Lsn>().ok());
    let coverage = covered(field(6).as_deref().unwrap_or_default());
    let mut marker = Marker::new("7", "waltag", "default", "me", origin());
    let before = marker.write(None, false, None, None, &Witness::default());
    let gap = marker.found(found.clone(), CONFIRMED, Some(&coverage), false);
    match &gap {
        Some(gap) => assert!(!gap.code.is_empty() && !gap.sentence.is_empty()),
        None => {
            assert!(lsn(&found.done).is_some_and(|done| done >= CONFIRMED), "taken for whole, and not that far");
            assert_eq!((found.format.as_deref(), found.timeline.as_deref()), (Some("1"), Some("1")));
            assert!(has_survived(found.crash.as_deref().unwrap_or_default(), "a,b"));
            assert!(lsn(&found.log).is_none_or(|log| log <= LOG));
            assert!(lsn(&found.kept).is_none_or(|kept| kept <= CONFIRMED));
        }
    }
    if let Some(commit) = found.commit.as_deref().and_then(|text| text.parse::<Commit>().ok()) {
        assert_eq!(commit.to_string().parse(), Ok(commit), "a commit that is written and read");
    }
    if let Some(done) = lsn(&found.done) {
        assert_eq!(done.to_string().parse::<Lsn>().ok(), Some(done), "a position that is written and read");
    }
    assert_eq!(coverage.beyond(&coverage.text()), None, "what was covered before is not");
    // What is written next expects what was found; read by the next daemon, it is whole.
    let [command] = marker
        .write(
            Some(Progress { done: CONFIRMED, first: CONFIRMED }),
            false,
            Some(&coverage.text()),
            None,
            &Witness { log: LOG, commit: None, kept: Some(CONFIRMED) },
        )
        .try_into()
        .ok()
        .expect("one hash");
    let sent = arguments(&command.pack());
    let text = |index: usize| sent.get(index).cloned().unwrap_or_default();
    assert_eq!((text(4), text(5)), (found.owner.clone().unwrap_or_default(), found.seq.clone().unwrap_or_default()));
    let fields: HashMap<String, String> = (7..sent.len()).step_by(2).map(|at| (text(at), text(at + 1))).collect();
    let written = |name: &str| fields.get(name).cloned();
    let again = Found {
        owner: written("owner"),
        seq: written("seq"),
        format: written("format"),
        done: written("done"),
        timeline: written("timeline"),
        crash: written("crash"),
        rules: written("rules"),
        log: written("log"),
        commit: written("commit"),
        kept: written("kept"),
        replicas: written("replicas"),
        life: None,
        witnesses: Vec::new(),
    };
    let seq = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    assert!(seq(&again.seq) > seq(&found.seq) || seq(&found.seq) == u64::MAX, "a number that was used before");
    let mut next = Marker::new("7", "waltag", "default", "you", origin());
    assert_eq!(next.found(again, CONFIRMED, Some(&coverage), false), None, "what was written is not whole");
    let bytes: usize = sent.iter().map(String::len).sum();
    assert!(bytes <= 1_024 + 16 * data.len(), "{bytes} bytes for a marker");
    assert_eq!(before.len(), 1);
}

fn arguments(command: &redis::Cmd) -> Vec<String> {
    let text = |argument| match argument {
        redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    command.args_iter().map(text).collect()
}

/// Rules whose templates and tables are the words of a text.
fn covered(text: &str) -> Coverage {
    let word = |word: &str| {
        let table = Fingerprint { shape: word.to_owned(), named: id(word), granted: id("g"), files: Vec::new() };
        Covered { id: id(&format!("template {word}")), table, text: word.to_owned(), keys: Keys::default() }
    };
    let mut words = text.split(' ');
    let options = id(words.next().unwrap_or_default());
    Coverage { options, templates: words.map(word).collect(), ..Coverage::default() }
}

/// The last good rules of the state directory: what is read is written the same, and rules that cannot be used are told as such.
pub fn kept(data: &[u8]) {
    if names_devices(data) {
        return;
    }
    if let Some(files) = kept_rules::parse(data) {
        let printed = kept_rules::print(&files).expect("what was read can be written");
        assert_eq!(kept_rules::parse(&printed).as_ref(), Some(&files), "kept, read and kept again");
        let around = Surroundings::new(&|_| None, None);
        match Rules::parse(files.clone(), &around) {
            Ok(rules) => assert_eq!(rules.files, files),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    // Any rules can be kept: here the bytes are the file.
    let (path, text) = data.split_at(data.len().min(8));
    let file = (PathBuf::from(String::from_utf8_lossy(path).into_owned()), text.to_vec());
    let printed = kept_rules::print(&vec![file.clone()]).expect("any rules can be written");
    let read = kept_rules::parse(&printed).expect("and read");
    match std::str::from_utf8(text) {
        Ok(_) => assert_eq!(read, [file]),
        Err(_) => assert_eq!(read.len(), 1),
    }
}

/// The query of `/wait`, or any path: what cannot be meant is a 400, and an answer comes in time.
pub fn http(data: &[u8]) {
    thread_local! { static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() }; }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = if text.starts_with('/') { text.to_owned() } else { format!("/wait?{text}") };
    let Ok(uri) = path.parse::<Uri>() else { return };
    let saw = Snapshot::parse("8589934592:8589934600:8589934592,8589934595").expect("a snapshot");
    let is_wait = uri.path() == "/wait";
    let asked = Query::<Wait>::try_from_uri(&uri).ok().map(|Query(wait)| wait.read());
    if let Some(Ok((token, limit))) = &asked {
        assert!(limit.as_secs() <= 300);
        judge(token, &saw);
    }
    for with_outbox in [false, true] {
        let board = Board::new();
        board.reach(Reached { position: Lsn(0x20), detached: None });
        if with_outbox {
            board.saw(Some(&(saw.clone(), Lsn(0x20))));
        }
        let status = RUNTIME.with(|runtime| {
            let build = || Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
            runtime.get_or_init(build).block_on(async {
                let request = Request::get(uri.clone())
                    .extension(waltag::http::admission::IsTrusted(true))
                    .body(Body::empty())
                    .expect("a request");
                let begin = tokio::time::Instant::now();
                let Ok(response) = routes(board).oneshot(request).await;
                assert!(begin.elapsed().as_secs() <= 301, "an answer after {:?}", begin.elapsed());
                let status = response.status();
                let body = to_bytes(response.into_body(), 1 << 20).await.expect("a short answer");
                assert!(!is_wait || body.len() <= 512 + 4 * path.len(), "{} bytes", body.len());
                status
            })
        });
        if !is_wait {
            assert!(status.is_success() || matches!(status.as_u16(), 404 | 503), "{status}");
            continue;
        }
        let expected = match &asked {
            None | Some(Err(_)) => StatusCode::BAD_REQUEST,
            Some(Ok((Token::Position(_), _))) if with_outbox => StatusCode::BAD_REQUEST,
            Some(Ok((Token::Position(lsn), _))) if *lsn <= Lsn(0x20) => StatusCode::OK,
            Some(Ok((Token::Position(_), _))) => StatusCode::GATEWAY_TIMEOUT,
            Some(Ok((token, _))) if with_outbox && token.is_in(&saw) => StatusCode::OK,
            Some(Ok(_)) => StatusCode::GATEWAY_TIMEOUT,
        };
        assert_eq!(status, expected, "{path} {with_outbox}");
    }
}

/// What has ended before everything that runs is visible, however long ago; what has not begun is not.
fn judge(token: &Token, saw: &Snapshot) {
    match token {
        Token::Position(lsn) => assert_eq!(lsn.to_string().parse::<Lsn>().ok(), Some(*lsn)),
        Token::Transaction(xid) => {
            assert!(*xid >= saw.xmin || token.is_in(saw), "{xid} has ended, and is waited for");
            assert!(*xid < saw.xmax || !token.is_in(saw), "{xid} has not begun, and counts as visible");
        }
        Token::Snapshot(snapshot) => {
            assert!(snapshot.xmax > saw.xmin || token.is_in(saw), "all of {snapshot:?} has ended, and is waited for");
            assert!(snapshot.xmax <= saw.xmax || !token.is_in(saw), "{snapshot:?} is newer, and counts as visible");
        }
    }
}
