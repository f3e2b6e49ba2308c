//! What Redis answers, and where it is.

use std::cell::OnceCell;

use redis::{ConnectionAddr, Value};
use waltag::cache::command::{Command, Draw, commands};
use waltag::cache::connection::{Error, Kind};
use waltag::cache::dialects;
use waltag::cache::life::Life;
use waltag::cache::location::{Location, moved};
use waltag::cache::marker::{Answer, Marker, Origin};
use waltag::cache::masters::{Layout, Share, ranges, redirection};
use waltag::cache::slots::{SLOTS, slot_of, text_of};
use waltag::rules::Rules;
use waltag::rules::expand::Surroundings;
use waltag::source::lsn::Lsn;

use crate::bytes::{lines, names_devices, percent_encoded};

/// A cache of each dialect that can do without more options.
fn all_caches() -> Rules {
    let entry = |name: &str| format!("  {name}: {{ url: \"redis://h\", dialect: {name}, accept_unverified: true }}\n");
    let around = Surroundings::new(&|_| None, None);
    let alone = |name: &&str| {
        let text = format!("version: 1\ncaches:\n{}", entry(name));
        Rules::parse(vec![("r.yaml".into(), text.into())], &around).is_ok()
    };
    let names: Vec<&str> = dialects::all().map(|dialect| dialect.name).filter(alone).collect();
    assert!(names.len() > 10, "{names:?}");
    let text = format!("version: 1\ncaches:\n{}", names.iter().map(|name| entry(name)).collect::<String>());
    Rules::parse(vec![("r.yaml".into(), text.into())], &around).unwrap_or_else(|error| panic!("{error}"))
}

/// Replies, one behind the other, through the parser of the redis crate and then to everything that judges one.
pub fn resp(data: &[u8]) {
    thread_local! { static CACHES: OnceCell<Rules> = const { OnceCell::new() }; }
    let values: Vec<Value> = match redis::parse_redis_value(data) {
        Ok(Value::Array(values)) => values,
        Ok(value) => vec![value],
        Err(_) => return,
    };
    CACHES.with(|caches| {
        let caches = &caches.get_or_init(all_caches).caches;
        for value in &values {
            judge(value, data.len(), caches);
        }
    });
    // A Cluster: what CLUSTER SLOTS says, and CLUSTER NODES.
    if let Ok(ranges) = ranges(&values) {
        assert!(ranges.len() <= values.len());
    }
}

fn judge(value: &Value, size: usize, caches: &[waltag::cache::Cache]) {
    // A marker is written where Redis says 1, and nowhere else.
    let mut marker = Marker::new("1", "waltag", "c", "me", Origin::default());
    marker.found(Default::default(), Lsn(0), None, false);
    let answer = marker.answered(std::slice::from_ref(value), false);
    assert_eq!(answer == Answer::Written, *value == Value::Int(1), "{value:?} is {answer:?}");
    match value {
        Value::ServerError(error) => {
            let cache = caches.first().expect("a cache");
            let judged = Error::reply(cache, error.clone());
            assert!(!judged.sentence.is_empty());
            // What is not stale must not be called done: only a key of another type is passed over.
            let said = format!("{} {}", error.code(), error.details().unwrap_or_default());
            assert!(judged.kind != Kind::Futile || said.contains("WRONGTYPE"), "passed over: {said}");
            if let Some((_, node, _)) = redirection(error) {
                assert!(matches!(error.code(), "MOVED" | "ASK") && said.ends_with(&node));
            }
        }
        Value::BulkString(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            layout(&text);
            if let Some(life) = Life::parse(&text) {
                assert!(life.is_life_of(&life) && !life.has_evicted_since(&life));
            }
            let slot = slot_of(bytes);
            assert!(slot < SLOTS && slot_of(&[b"{", text_of(slot).as_bytes(), b"}", bytes].concat()) == slot);
        }
        _ => {}
    }
    // What is left to do after it is no more than what it lists, and in the same turn.
    for cache in caches {
        for command in commands(cache, b"tag:1", Draw::new(cache)) {
            let (walks, key) = (format!("{command}").contains("members.lua"), command.key().to_vec());
            let left: Vec<Command> = command.after(value);
            let bytes: usize = left.iter().map(|command| command.pack().get_packed_command().len()).sum();
            let bound = 4_096 * (1 + size);
            assert!(left.len() <= 1 + 8 * size && bytes <= bound, "{} commands, {bytes} bytes", left.len());
            let goes_on =
                left.iter().filter(|command| format!("{command}").contains("members.lua") && command.key() == key);
            assert!(!walks || goes_on.count() <= 1, "a walk goes on in two places");
        }
    }
}

fn layout(text: &str) {
    let mut layout = Layout::default();
    layout.take(0, text);
    let owners = layout.owners();
    assert!(owners.keys().all(|slot| *slot < SLOTS), "a slot that there is not");
    if let Some((_, share)) = Share::parse(0, text) {
        assert!(share.count() <= usize::from(SLOTS), "{} slots", share.count());
        assert!(share.changed(&share).is_empty(), "it differs from itself");
    }
    let owed = owners.keys().copied().collect();
    let nothing = std::collections::BTreeSet::new();
    let left = layout.still_owed(&layout, &owed, &nothing);
    assert!(left.is_empty(), "what stays as it is, is owed another round: {left:?}");
    assert!(!layout.has_replaced(&layout));
    let looked: std::collections::BTreeSet<u16> =
        layout.looks(&owed).into_iter().flat_map(|(_, slots)| slots).collect();
    assert_eq!(looked, owed, "a sweep looks at other slots than it owes");
}

/// A URL of Redis (the first line), and its parts (user, password, host, port, database; a line each): no message and no address shows a
/// password, and the parts mean what they say.
pub fn location(data: &[u8]) {
    const SECRET: &str = "s3cretMARKER";
    if names_devices(data) {
        return;
    }
    let lines = lines(data);
    let line = |index: usize| lines.get(index).map(String::as_str).unwrap_or_default();
    let raw = line(0);
    let (_, rest) = raw.split_once("://").unwrap_or(("", raw));
    let schemes = ["redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "redis+unix"];
    let secrets = schemes.map(|scheme| format!("{scheme}://u:{SECRET}@{rest}"));
    for text in std::iter::once(raw.to_owned()).chain(secrets) {
        match Location::parse(&text) {
            Err(message) => assert!(!message.is_empty()),
            Ok(location) => {
                assert!(!location.seeds().is_empty() && !location.address().is_empty());
                assert!(!location.address().contains(SECRET), "{text:?} is shown as {}", location.address());
                let of_tls = |info: &redis::ConnectionInfo| matches!(info.addr(), ConnectionAddr::TcpTls { .. });
                assert_eq!(
                    location.is_encrypted(),
                    location.seeds().iter().all(of_tls),
                    "half of {text:?} is encrypted"
                );
                for seed in location.seeds().iter().chain(location.service().map(|service| &service.master)) {
                    let there = moved(seed, "other", 7);
                    let (before, after) = (seed.redis_settings(), there.redis_settings());
                    assert_eq!((before.db(), before.password()), (after.db(), after.password()));
                    assert_eq!(of_tls(seed), of_tls(&there), "moved out of TLS");
                }
            }
        }
    }
    let (user, password, host) = (line(1), line(2), line(3));
    let is_name = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let (true, Ok(port), Ok(database)) = (is_name, line(4).parse::<u16>(), line(5).parse::<u16>()) else { return };
    if user.is_empty() || password.is_empty() {
        return;
    }
    let who = format!("{}:{}@", percent_encoded(user), percent_encoded(password));
    let server = Location::parse(&format!("redis://{who}{host}:{port}/{database}"));
    let sentinel = Location::parse(&format!("redis+sentinel://{who}{host}:{port}/name/{database}"));
    // Names that look like numbers are none for a URL.
    let (Ok(server), Ok(sentinel)) = (server, sentinel) else { return };
    let master = &sentinel.service().expect("a service").master;
    for info in [server.seeds().first().expect("a server"), master] {
        let settings = info.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some(user), Some(password)));
        assert_eq!(settings.db(), i64::from(database));
    }
    let place = if database == 0 { format!("{host}:{port}") } else { format!("{host}:{port}/{database}") };
    assert_eq!(server.address().to_lowercase(), place.to_lowercase());
}
