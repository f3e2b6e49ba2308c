//! What PostgreSQL sends, and where it is.

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use tokio_postgres::types::Type;
use waltag::cache::Cache;
use waltag::cache::command::{Draw, commands};
use waltag::cache::coverage::Fingerprint;
use waltag::cache::gap::Keys;
use waltag::cache::lane::Lane;
use waltag::cache::marker::{Marker, Origin};
use waltag::flow::{Flow, said as message};
use waltag::rules::Rules;
use waltag::rules::events::Event;
use waltag::rules::expand::Surroundings;
use waltag::rules::plan::{Cell, Change, Column, Plan};
use waltag::rules::style::Style;
use waltag::rules::tables::TableName;
use waltag::rules::value::{array, elements};
use waltag::setup::catalog::{Catalog, Publication};
use waltag::setup::statements::{is_ours, remembered};
use waltag::source::dsn::{self, Dsn};
use waltag::source::lsn::{Lsn, Xid};
use waltag::source::outbox::frames::{Builder, Frame};
use waltag::source::outbox::poll::{Page, Row, WITHIN};
use waltag::source::outbox::shapes::Known;
use waltag::source::replication::pgoutput::{Message, Old, Tuple, Value};
use waltag::source::session::{identifier, literal};
use waltag::source::visibility::{Snapshot, names_synchronous_standby};
use waltag::tags::Stale;

use crate::bytes::{columns, framed, lines, percent_encoded};

fn rules_of(text: &str) -> Rules {
    let around = Surroundings::new(&|_| None, None);
    Rules::parse(vec![("r.yaml".into(), text.into())], &around).unwrap_or_else(|error| panic!("{error}"))
}

fn tuples<'a>(message: &Message<'a>) -> Vec<Tuple<'a>> {
    let old = |old: &Old<'a>| match old {
        Old::Full(tuple) | Old::Key(tuple) => *tuple,
    };
    match message {
        Message::Insert { new, .. } => vec![*new],
        Message::Update { old: before, new, .. } => before.iter().map(old).chain([*new]).collect(),
        Message::Delete { old: before, .. } => vec![old(before)],
        _ => Vec::new(),
    }
}

/// One message of the stream: no part of a message is one, nor is a message with something behind it, and a row has the columns that it counts.
pub fn pgoutput(data: &[u8]) {
    let Ok(message) = Message::parse(data) else { return };
    let held: usize = tuples(&message)
        .iter()
        .flat_map(|tuple| tuple.values())
        .map(|value| match value {
            Value::Text(bytes) | Value::Binary(bytes) => bytes.len() + 5,
            Value::Null | Value::Unchanged | Value::LeftOut => 1,
        })
        .sum();
    assert!(held <= data.len(), "values of {held} bytes in a message of {}", data.len());
    if let Message::Truncate { relations } = message {
        assert_eq!(relations.iter().count() * 4, data.len() - 6);
    }
    // Of what nobody reads nothing is looked at.
    if message != Message::Other {
        let (_, shorter) = data.split_last().expect("a message has a first byte");
        assert!(Message::parse(shorter).is_err(), "a part of a message is a message");
        assert!(Message::parse(&[data, b"\0"].concat()).is_err(), "something stands behind the message");
    }
}

const STREAMED: &str = r#"
version: 1
caches:
  default: { url: "redis://h/1", dialect: keys }
  py: { url: "redis://h/2", dialect: cache-dependencies }
rules:
  - { table: t, tags: ["t:<id>", "n:<name|lower>"] }
  - { table: t, caches: [py], tags: ["M.pk:<id>", { tag: "n:<name>", when: "row.name != 'x'" }], collapse: { over: 2, to: "M" } }
"#;

/// A stream of messages (each with its length before it; before all of them a byte, which is odd where nothing has to be waited for): what may be
/// confirmed never goes back and is never more than what was received, and memory is bounded by what came.
pub fn stream(data: &[u8]) {
    thread_local! { static RULES: OnceCell<Rc<Rules>> = const { OnceCell::new() }; }
    let Some((fenced, data)) = data.split_first() else { return };
    let rules = RULES.with(|rules| rules.get_or_init(|| Rc::new(rules_of(STREAMED))).clone());
    let lane = |cache: &Cache| {
        let marker = Marker::new("1", "waltag", &cache.name, "me", Origin::default());
        Lane::new(cache.clone(), marker, 1 << 20, false, None, "waltag")
    };
    let mut flow = Flow::new(rules.clone(), rules.caches.iter().map(lane).collect(), Arc::default());
    flow.resume_at(Lsn(1), fenced % 2 == 0, false);
    let empty = flow.size();
    let (mut floor, mut came) = (flow.floor(), 0);
    for frame in framed(data) {
        came += frame.len();
        let Ok(message) = Message::parse(frame) else { break };
        if flow.take(&message).is_err() {
            break;
        }
        assert!(flow.floor() >= floor, "what may be confirmed went back from {floor} to {}", flow.floor());
        assert!(flow.floor() <= flow.received());
        floor = flow.floor();
        let (size, bound) = (flow.size() - empty, (64 << 10) + 256 * came);
        assert!(size <= bound, "{size} bytes wait after {came} have come");
    }
    flow.make_room(64);
    flow.release(&Snapshot::parse("4294967296:4294967296:").expect("a snapshot"));
    flow.disconnect();
    assert!(!flow.is_within_transaction() && flow.floor() == flow.received());
    assert!(flow.received() >= Lsn(1));
}

const VALUED: &str = r#"
version: 1
caches:
  raw: { url: "redis://h/1", dialect: keys }
  py: { url: "redis://h/2", dialect: cache-dependencies }
  version: { url: "redis://h/3", dialect: version, absent: stale, ttl: 1d }
  set: { url: "redis://h/4", dialect: set }
rules:
  - table: t
    caches: [raw, py, version, set]
    tags:
      - "a:<v>"
      - "b:<v|python>:<k|urlencode>"
      - "c:<v|lower|default:none>:<k>"
      - "d:<v[]>"
      - "e:<v|slug|truncate:5>"
      - "f:<v|md5>:<k|sha1>"
      - "g:<v|date:%Y-%j>"
      - { tag: "h:<v.a.b>", only: [k] }
      - { tag: "i:<@table>.<v|plain>", when: "row.k != 'x'" }
      - { tag: "j:<v|php|upper>", events: [update] }
"#;

/// A row: the first line has the type of the column `v`, the others old and new values of `v` and `k` (a tab between them). The same change gives
/// the same tags, of a bounded length; an update makes stale what its two rows would by themselves; and what a sweep looks for reaches each of the keys.
pub fn values(data: &[u8]) {
    thread_local! {
        static RULES: OnceCell<Rules> = const { OnceCell::new() };
        /// What sweeps of the caches look for, by the type of the column: it takes longer than all the rest.
        static REACHED: RefCell<HashMap<u32, Vec<Keys>>> = RefCell::default();
    }
    let lines = lines(data);
    let (Some(kind), rows) = (lines.first().and_then(|kind| kind.parse::<u32>().ok()), lines.get(1..).unwrap_or(&[]))
    else {
        return;
    };
    let texts = rows.first().map(|line| columns(line)).unwrap_or_default();
    let others = rows.get(1).map(|line| columns(line)).unwrap_or_default();
    for style in [Style::Plain, Style::Python, Style::Php, Style::Pg] {
        for text in texts.iter().flatten() {
            let written = style.write(kind, text);
            assert!(
                written.len() <= 64 + 32 * text.len(),
                "{style:?} writes {} bytes for {}",
                written.len(),
                text.len()
            );
        }
    }
    let list: Vec<Option<String>> = texts.iter().map(|text| text.map(str::to_owned)).collect();
    assert_eq!(elements(&array(list.iter().cloned())), list, "an array that is written and read");
    RULES.with(|rules| {
        let rules = rules.get_or_init(|| rules_of(VALUED));
        let table = TableName { schema: "public".into(), name: "t".into() };
        let column = |name: &str, type_oid| Column { name: name.into(), type_oid, key: true };
        let shape = [column("v", kind), column("k", Type::TEXT.oid())];
        let plan = Plan::compile(rules, std::slice::from_ref(&table), &shape);
        let cell = |row: &[Option<&'_ str>], at: usize| -> Option<String> {
            row.get(at).copied().flatten().map(str::to_owned)
        };
        let (old, new) = ([cell(&others, 0), cell(&others, 1)], [cell(&texts, 0), cell(&texts, 1)]);
        let (old, new) = (row(&old), row(&new));
        let render = |event, old: Option<&[Cell]>, new: Option<&[Cell]>| {
            let mut stale: Vec<Stale> = rules.caches.iter().map(|_| Stale::default()).collect();
            let mut unlisted = 0;
            plan.render(Change { event, old, new }, &mut stale, |_| unlisted += 1);
            assert_eq!(unlisted > 0, stale.iter().any(|stale| stale.sweep.is_some()));
            let tags = |stale: &Stale| stale.tags.iter().map(<[u8]>::to_vec).collect::<Vec<_>>();
            (stale.iter().map(tags).collect::<Vec<_>>(), unlisted)
        };
        let reached = REACHED.with_borrow_mut(|known| {
            // Any number may be a type.
            if known.len() > 100 {
                known.clear();
            }
            let type_of = |_: &TableName, name: &str| Some(if name == "v" { kind } else { Type::TEXT.oid() });
            let published = |_: &TableName| Some(Fingerprint::default());
            let reach = |cache| rules.coverage(cache, [&table].into_iter(), type_of, published).reach;
            known.entry(kind).or_insert_with(|| (0..rules.caches.len()).map(reach).collect()).clone()
        });
        let both = render(Event::Update, Some(&old), Some(&new));
        assert_eq!(both, render(Event::Update, Some(&old), Some(&new)), "the same change has other tags");
        let (inserted, deleted) = (render(Event::Insert, None, Some(&new)), render(Event::Delete, Some(&old), None));
        for (cache, (update, singles)) in both.0.iter().zip(inserted.0.iter().zip(&deleted.0)).enumerate() {
            let changed = old != new;
            // What is unlisted went by a sweep.
            let by_listing = both.1 + inserted.1 + deleted.1 == 0;
            for tag in singles.0.iter().chain(singles.1).filter(|tag| changed && by_listing && !tag.starts_with(b"h:"))
            {
                assert!(update.contains(tag), "the update does not make {} stale", tag.escape_ascii());
            }
            let of = rules.caches.get(cache).expect("a cache of the rules");
            let reach = reached.get(cache).expect("a cache of the rules");
            let fits = others.iter().chain(&texts).flatten().all(|text| is_of_type(text, kind));
            for tag in singles.0.iter().chain(singles.1).chain(update).filter(|_| fits) {
                assert!(tag.len() <= 1_024, "a tag of {} bytes", tag.len());
                for command in commands(of, tag, Draw::new(of)) {
                    let key = command.key();
                    assert!(
                        reach.tags.contains(tag) || reach.patterns.iter().any(|pattern| pattern.matches(key)),
                        "no sweep of {} looks for {}",
                        of.name,
                        key.escape_ascii()
                    );
                }
            }
        }
    });
}

/// Types whose values a pattern knows more of.
fn is_of_type(text: &str, kind: u32) -> bool {
    match Type::from_oid(kind) {
        Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID) => {
            text.parse::<i64>().is_ok_and(|n| n.to_string() == text)
        }
        Some(Type::UUID) => text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'),
        Some(_) | None => true,
    }
}

fn row(texts: &[Option<String>; 2]) -> [Cell<'_>; 2] {
    texts.each_ref().map(|text| text.as_deref().map_or(Cell::Null, Cell::Text))
}

/// Rows of an outbox, as text with tabs: `S` and the shape of a table, `R` and a row as it is read, `P` (the end of the log, and the snapshot of a poll
/// that is complete) behind each page. What comes of them is a stream of messages: it can be read, transactions do not overlap, rows have the columns
/// that were described, with their values, and positions stay within the poll.
pub fn frames(data: &[u8]) {
    let begin = Lsn(7 << WITHIN);
    let (mut known, mut builder) = (Known::default(), Builder::default());
    let (mut rows, mut described, mut open) = (Vec::new(), HashMap::new(), None);
    let mut last = begin;
    for line in lines(data) {
        let line = line.replace('\0', " ");
        let fields = columns(&line);
        let get = |index: usize| fields.get(index).copied().flatten();
        // No name holds a zero byte, in JSON neither.
        if line.contains("\\u0000") {
            continue;
        }
        match get(0) {
            Some("S") => known.learn(|index| get(index + 1)),
            Some("R") => rows.extend(Row::read(get)),
            Some("P") => {
                let is_known = |row: &&Row| known.of(row.relation, row.root).is_some();
                let inserted = rows.iter().filter(is_known).filter(|row| row.kind == b'i');
                let texts: Vec<_> = inserted.map(|row| row.new.clone().unwrap_or_default()).collect();
                let mut inserted = texts.into_iter();
                let unknown = rows.iter().filter(|row| row.kind != b'm' && !is_known(row)).count();
                let page = Page {
                    first: get(1).and_then(|log| log.parse().ok()),
                    complete: get(2).map(str::to_owned),
                    rows: std::mem::take(&mut rows),
                    skipped: 0,
                    full: false,
                };
                // A poll begins where the one before was complete.
                if page.first.is_some() && open.is_some() {
                    open = None;
                }
                let (complete, asked) = (page.complete.is_some(), page.rows.len());
                let bytes: usize = page.rows.iter().map(weight).sum();
                if page.first.is_some() {
                    last = begin;
                }
                let mut out = VecDeque::new();
                builder.build(page, &known, begin, &mut out);
                assert!(out.len() <= 8 * asked + 4, "{} frames for {asked} rows", out.len());
                let sent: usize =
                    out.iter().map(|frame| if let Frame::Data(data) = frame { data.len() } else { 0 }).sum();
                let shapes = line.len().max(data.len()) * asked * 64;
                assert!(sent <= 256 * (asked + 1) + 8 * bytes + shapes, "{sent} bytes for {bytes}");
                let mut lost = 0;
                for frame in &out {
                    match frame {
                        Frame::Data(data) => follow(data, &mut open, &mut described, &mut last, &mut inserted),
                        Frame::Complete(seen) => {
                            assert!(open.is_none() && complete, "a poll that is complete leaves a transaction open");
                            assert!(seen.position > last && seen.position.0 >> WITHIN == begin.0 >> WITHIN);
                        }
                        Frame::Lost => lost += 1,
                        Frame::Skipped | Frame::Logged(_) | Frame::Root(..) => {}
                    }
                }
                assert_eq!(lost, unknown, "rows of tables that nobody knows");
            }
            _ => {}
        }
    }
}

fn weight(row: &Row) -> usize {
    let images = row.old.iter().chain(&row.new).flatten().map(|value| 8 + value.as_ref().map_or(0, String::len));
    images.sum::<usize>() + row.names.iter().map(|name| 16 + name.len()).sum::<usize>()
}

/// One message of an outbox.
fn follow(
    data: &[u8],
    open: &mut Option<Lsn>,
    described: &mut HashMap<u32, usize>,
    last: &mut Lsn,
    inserted: &mut impl Iterator<Item = Vec<Option<String>>>,
) {
    let message = Message::parse(data).unwrap_or_else(|error| panic!("{error}: {}", data.escape_ascii()));
    let columns_of = |relation: &u32| described.get(relation).copied().expect("a relation that was described");
    match &message {
        Message::Begin { final_lsn, .. } => {
            assert!(open.is_none(), "a transaction within another");
            assert!(*final_lsn >= *last && final_lsn.0 >> WITHIN == last.0 >> WITHIN, "positions go back");
            (*open, *last) = (Some(*final_lsn), *final_lsn);
        }
        Message::Commit { end_lsn, .. } => assert_eq!(open.take(), Some(*end_lsn)),
        _ => assert!(open.is_some(), "a change outside of a transaction"),
    }
    match &message {
        Message::Relation(relation) => drop(described.insert(relation.oid, relation.columns.len())),
        Message::Insert { relation, new } => {
            let values: Vec<Value> = new.values().collect();
            assert_eq!(values.len(), columns_of(relation));
            // One of which only is known that it happened has no values.
            if !values.is_empty() {
                let texts = inserted.next().expect("a row for each message");
                let is_same = |(text, value): (&Option<String>, &Value)| match (text, value) {
                    (Some(text), Value::Text(bytes)) => text.as_bytes() == *bytes,
                    (None, Value::Null) => true,
                    _ => false,
                };
                assert!(texts.iter().zip(&values).all(is_same), "other values than the row's");
            }
        }
        Message::Update { relation, old, new } => {
            assert_eq!(new.values().count(), columns_of(relation));
            if let Some(Old::Full(old)) = old {
                assert_eq!(old.values().count(), columns_of(relation));
            }
        }
        Message::Delete { relation, old: Old::Full(old) } => assert_eq!(old.values().count(), columns_of(relation)),
        Message::Truncate { relations } => assert!(relations.iter().all(|relation| described.contains_key(&relation))),
        _ => {}
    }
}

/// Tags that somebody names in SQL: all of them and nothing else in the cache that is meant, or nothing and a reason.
pub fn said(data: &[u8]) {
    const TWO: &str = r#"{version: 1, caches: {default: {url: "redis://h", dialect: keys}, pages: {url: "redis://h/1", dialect: keys}}}"#;
    const NONE_IS_DEFAULT: &str =
        r#"{version: 1, caches: {one: {url: "redis://h", dialect: keys}, pages: {url: "redis://h/1", dialect: keys}}}"#;
    thread_local! { static RULES: [Rules; 2] = [TWO, NONE_IS_DEFAULT].map(rules_of); }
    RULES.with(|both| {
        for rules in both {
            let mut stale = [Stale::default(), Stale::default()];
            let result = message::Ear::for_any_tag(rules).add(data, rules, &mut stale);
            let tags = |stale: &Stale| stale.tags.iter().map(<[u8]>::to_vec).collect::<Vec<_>>();
            let [first, second] = stale.each_ref().map(tags);
            if let Err(reason) = result {
                assert!(!reason.is_empty() && stale.iter().all(Stale::is_empty), "added although {reason}");
                continue;
            }
            // Of what nobody reads it does not matter whether it is UTF-8.
            let Ok(said) = serde_json::from_slice::<serde_json::Value>(data) else { continue };
            let named: Vec<&str> = said
                .get("tags")
                .and_then(|tags| tags.as_array())
                .into_iter()
                .flatten()
                .filter_map(|tag| tag.as_str())
                .collect();
            let (wanted, cache) = (
                |tags: &[Vec<u8>]| {
                    named.iter().filter(|tag| !tag.is_empty()).all(|tag| tags.iter().any(|own| own == tag.as_bytes()))
                },
                said.get("cache").and_then(|cache| cache.as_str()),
            );
            let has_default = rules.default_cache().is_some();
            let (in_first, in_second) = match cache {
                Some("pages") => (false, true),
                Some(_) => (true, false),
                None => (true, !has_default),
            };
            for (tags, is_meant) in [(&first, in_first), (&second, in_second)] {
                assert!(if is_meant { wanted(tags) } else { tags.is_empty() });
                assert!(tags.iter().map(Vec::len).sum::<usize>() <= data.len());
                assert!(
                    tags.iter().all(|tag| named.iter().any(|own| own.as_bytes() == tag)),
                    "a tag that nobody named"
                );
            }
        }
    });
}

/// A DSN (the first line), and its parts (user, password, host, port, database; a line each): no message shows a password, and the parts mean the
/// same as a URL and as keywords.
pub fn dsn(data: &[u8]) {
    const SECRET: &str = "s3cretMARKER";
    let environment = |name: &str| (name == "USER").then(|| "somebody".to_owned());
    let lines = lines(data);
    let line = |index: usize| lines.get(index).map(String::as_str).unwrap_or_default();
    let raw = line(0).replace('\0', " ");
    let with_password = [
        raw.clone(),
        format!("postgres://u:{SECRET}@{raw}"),
        format!("postgres://u:{SECRET}{raw}@h/d"),
        format!("postgres://u:{raw}{SECRET}@h/d"),
        format!("password={SECRET} {raw}"),
        format!("host=h password={SECRET}{raw}"),
        format!("{raw} password={SECRET}"),
    ];
    // Behind a URL the last of them would be a part of it.
    let count = with_password.len() - usize::from(raw.contains("://"));
    for text in with_password.into_iter().take(count) {
        let parameters = dsn::parameters(&text);
        // What names files is another matter, and they may be devices.
        let files = ["passfile", "service", "servicefile", "sslrootcert", "sslcert", "sslkey"];
        if parameters.as_ref().is_ok_and(|known| files.iter().any(|file| known.contains_key(*file))) {
            continue;
        }
        let shown = match Dsn::parse(Some(&text), &environment) {
            Err(error) => error.to_string(),
            Ok(dsn) => {
                assert!(!dsn.endpoints().is_empty());
                // Whoever writes the password into a parameter that is shown has shown it herself.
                let database = if raw.contains('=') { "" } else { dsn.database() };
                format!("{} {database}", dsn.ignored.join(" "))
            }
        };
        assert!(text == raw || !shown.contains(SECRET), "{text:?} shows its password: {shown}");
    }
    let part = |index: usize, without: &[char]| line(index).replace('\0', " ").replace(without, "");
    let (user, password, database) = (part(1, &[]), part(2, &[]), part(5, &[]));
    // A list of hosts is another matter, as is one that is a directory or an address of version 6.
    let host: String = part(3, &[',', '/', '[', ']', ':', '@', '?', '%', '\'', '\\']);
    let (host, Ok(port)) = (host.trim(), line(4).parse::<u16>()) else { return };
    if [user.as_str(), &password, host, &database].contains(&"") {
        return;
    }
    let encoded = percent_encoded;
    let url =
        format!("postgres://{}:{}@{}:{port}/{}", encoded(&user), encoded(&password), encoded(host), encoded(&database));
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let (name, secret, place, base) = (quoted(&user), quoted(&password), quoted(host), quoted(&database));
    let keywords = format!("user={name} password={secret} host={place} port={port} dbname = {base}");
    let parse = |text: &str| {
        Dsn::parse(Some(text), &environment).unwrap_or_else(|error| panic!("{text:?}: {error}")).endpoints().to_vec()
    };
    let (by_url, by_keywords) = (parse(&url), parse(&keywords));
    assert!(by_url == by_keywords, "{url:?} and {keywords:?} mean different servers");
    let [endpoint] = by_url.as_slice() else { panic!("{url:?} means {} servers", by_url.len()) };
    let config = endpoint.config();
    assert_eq!((config.get_user(), config.get_dbname()), (Some(user.as_str()), Some(database.as_str())));
    assert_eq!(config.get_password(), Some(password.as_bytes()));
    assert_eq!(endpoint.to_string(), format!("{host}:{port}"));
}

/// What the catalog and the server say: a comment, a snapshot, the newest transaction, a setting, names (a line each).
pub fn catalog(data: &[u8]) {
    let lines = lines(data);
    let line = |index: usize| lines.get(index).map(String::as_str).unwrap_or_default();
    let publication = Publication { exists: true, comment: Some(line(0).to_owned()), ..Publication::default() };
    let catalog = Catalog { publication, ..Catalog::default() };
    let identities = remembered(&catalog);
    assert!(identities.is_empty() || is_ours(Some(line(0))));
    assert!(identities.iter().map(|(table, identity)| table.len() + identity.len()).sum::<usize>() <= line(0).len());
    if let Some(snapshot) = Snapshot::parse(line(1)) {
        let next = snapshot.clone().with_newest(line(2)).next.expect("it was asked for");
        assert!(next >= snapshot.xmax, "the newest transaction is older than those that have ended");
        assert!(snapshot.sees_all_of(&snapshot), "it does not show what it shows");
        assert!(!snapshot.sees(Xid(snapshot.xmax as u32)), "it shows what has not ended");
    }
    // Quoted as in the setting, a name is found; as a part of another one it is not.
    let setting = line(3);
    let name = line(4).replace(['"', ',', '(', ')', '*'], "");
    let is_number = name.bytes().any(|byte| byte.is_ascii_digit());
    let is_word = ["first", "any"].iter().any(|word| name.eq_ignore_ascii_case(word));
    if !name.is_empty() && !name.contains(char::is_whitespace) && !is_number && !is_word {
        assert!(names_synchronous_standby(&format!("FIRST 1 (\"{name}\", x{name})"), &name));
        assert!(!names_synchronous_standby(&format!("ANY 1 (x{name}, \"{name} y\")"), &name));
        assert_eq!(
            names_synchronous_standby(setting, &name),
            names_synchronous_standby(setting, &name.to_ascii_uppercase())
        );
    }
    // One literal, one identifier, whatever is in them.
    let text = line(5).replace('\0', "");
    assert!(![identifier(&text), literal(&text)].concat().contains(waltag::plain::is_hidden), "something is hidden");
    if TableName::parse_sql(&format!("{}.{}", identifier(&text), identifier(&text))).is_none() {
        assert!(text.is_empty(), "what was written is not read");
    }
    // What is escaped otherwise is read back above.
    let text = text.replace(waltag::plain::is_hidden, "");
    let quoted = identifier(&text);
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).expect("quoted");
    assert_eq!(inner.replace("\"\"", "").matches('"').count(), 0);
    assert_eq!(inner.replace("\"\"", "\""), text);
    let quoted = literal(&text);
    let quoted = quoted.trim();
    let (escapes, body) = quoted.strip_prefix('E').map_or((false, quoted), |body| (true, body));
    let inner = body.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).expect("quoted");
    let plain = if escapes { inner.replace("\\\\", "\\") } else { inner.to_owned() };
    assert_eq!(escapes, text.contains('\\'));
    assert_eq!(plain.replace("''", "'"), text);
}
