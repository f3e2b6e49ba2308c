//! What a lane concludes from the marker that it finds.

use redis::Value;

use super::super::coverage::{self, Coverage, Covered, Fingerprint, Held, Truncated};
use super::super::gap::Keys;
use super::super::marker::{Found, Marker, Origin};
use super::Lane;
use crate::flow::truncations::Truncations;
use crate::rules::Rules;
use crate::rules::expand::Surroundings;
use crate::source::lsn::Lsn;

fn lane() -> Lane {
    let text = "{version: 1, caches: {c: {url: 'redis://h', dialect: keys}}}";
    let rules = Rules::parse(vec![("r.yaml".into(), text.into())], &Surroundings::new(&|_| None, None)).unwrap();
    let marker =
        Marker::new("7", "waltag", "c", "me", Origin { timeline: "1".into(), crash: "c".into(), log: Lsn(u64::MAX) });
    Lane::new(rules.caches[0].clone(), marker, 1 << 20, true, None, "waltag")
}

/// The rules cover one table, whose rows are in this file.
fn coverage(file: u32) -> Coverage {
    let files = vec![Held { relation: 1, file, ..Held::default() }];
    let table = Fingerprint { files, ..Fingerprint::default() };
    let template = Covered { id: coverage::id("t"), table, text: "t".into(), keys: Keys::default() };
    Coverage { options: "o".into(), templates: vec![template], ..Coverage::default() }
}

fn found(owner: &str, before: &Coverage) -> Found {
    let [format, done, timeline, crash] = ["1", "0/20", "1", "c"].map(|text| Some(text.to_owned()));
    // The claim raises it by one.
    let seq = if owner == "me" { "2" } else { "1" };
    let (owner, seq, rules) = (Some(owner.to_owned()), Some(seq.to_owned()), Some(before.text()));
    Found { owner, seq, format, done, timeline, crash, rules, ..Found::default() }
}

/// A TRUNCATE gave the table another file, the catalog was judged, and the stream broke before the marker could say so: when it is
/// read again, the TRUNCATE is not known any more, and need not be. (One chaos run in twelve resynced here.)
#[tokio::test]
async fn a_file_that_this_process_has_judged_is_in_no_doubt() {
    let mut lane = lane();
    assert_eq!(lane.cover(coverage(1), &Truncated::new(), Lsn(0x20), Lsn(0x20)), None);
    assert_eq!(lane.gap(found("before", &coverage(1))), None);
    assert!(lane.marked_by(&[Value::Int(1)], true).is_none(), "claimed");
    assert_eq!(lane.cover(coverage(2), &Truncated::from([1]), Lsn(0x30), Lsn(0x30)), None);
    assert_eq!(lane.gap(found("me", &coverage(1))), None);
    assert_eq!(lane.settle_doubts(Lsn(0x40), &Truncations::default()), None);
}

/// What another daemon says stood there is compared.
#[tokio::test]
async fn a_file_that_nobody_has_judged_is() {
    let mut lane = lane();
    assert_eq!(lane.cover(coverage(2), &Truncated::new(), Lsn(0x20), Lsn(0x20)), None);
    assert_eq!(lane.gap(found("before", &coverage(1))), None);
    assert_eq!(lane.settle_doubts(Lsn(0x10), &Truncations::default()), None, "a TRUNCATE may still come");
    assert_eq!(lane.settle_doubts(Lsn(0x40), &Truncations::default()).unwrap().code, "catalog");
}
