//! What is a gap, and what a refusal says.

use super::*;

fn marker() -> Marker {
    Marker::new("7", "waltag", "default", "me", Origin { timeline: "1".into(), crash: "c".into(), log: Lsn(u64::MAX) })
}

fn found(owner: &str, seq: &str, done: &str) -> Found {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (format, timeline, crash, rules) = (some("1"), some("1"), some("c"), some(" "));
    Found { owner: some(owner), seq: some(seq), format, done: some(done), timeline, crash, rules, ..Found::default() }
}

#[test]
fn each_write_expects_the_one_before() {
    let mut marker = marker();
    marker.found(Found::default(), Lsn(0), Some(&Coverage::default()), false);
    assert_eq!(marker.next(), 1);
    assert_eq!(marker.answered(&[Value::Int(1)], true), Answer::Written);
    assert_eq!(marker.places[0].held, Held { owner: "me".into(), seq: "1".into() });
    assert_eq!(marker.next(), 2);
}

/// A flight that failed, or a node of a Cluster that did not answer: it counted as written, and what was acknowledged before was taken for proven.
#[test]
fn what_was_not_answered_was_not_written() {
    let mut marker = marker();
    marker.found(found("me", "3", "0/10"), Lsn(0), Some(&Coverage::default()), false);
    assert_eq!(marker.answered(&[Value::Nil], false), Answer::Open);
    assert_eq!(marker.places[0].held.seq, "3");
    assert_eq!(marker.next(), 5, "no number is used twice");
    assert_eq!(marker.answered(&[Value::Int(1)], false), Answer::Written);
}

#[test]
fn a_refusal_says_what_happened() {
    let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    for (owner, seq, word) in [("you", "4", "another waltag"), ("me", "1", "went back")] {
        let mut marker = marker();
        marker.found(found("me", "3", "0/10"), Lsn(0), Some(&Coverage::default()), false);
        let Answer::Refused(reason) = marker.answered(&[Value::Array(vec![bulk(owner), bulk(seq)])], true) else {
            panic!()
        };
        assert!(reason.sentence.contains(word), "{reason}");
        assert_eq!(marker.places[0].held, Held { owner: owner.into(), seq: seq.into() });
    }
    let mut marker = marker();
    marker.found(found("me", "3", "0/10"), Lsn(0), Some(&Coverage::default()), false);
    assert_eq!(marker.answered(&[Value::Array(vec![bulk(""), bulk("")])], true), Answer::Gone);
}

#[test]
fn what_is_a_gap_at_the_start() {
    let gap =
        |found: Found| marker().found(found, Lsn(0x20), Some(&Coverage::default()), false).map(|gap| gap.sentence);
    assert_eq!(gap(found("old", "9", "0/20")), None, "an ordinary restart");
    assert_eq!(gap(found("old", "9", "0/21")), None, "the slot goes back over a crash: no gap");
    assert!(gap(found("old", "9", "0/1F")).unwrap().contains("before the slot's 0/20"));
    assert!(gap(found("old", "9", "")).unwrap().contains("no marker"));
    assert!(gap(Found::default()).unwrap().contains("no marker"));
    assert!(gap(Found { format: Some("2".into()), ..found("old", "9", "0/20") }).unwrap().contains("no marker"));
    assert!(gap(Found { timeline: Some("2".into()), ..found("old", "9", "0/20") }).unwrap().contains("timeline"));
    assert!(gap(Found { crash: Some("x".into()), ..found("old", "9", "0/20") }).unwrap().contains("crashed"));
    assert!(gap(Found { rules: Some("x".into()), ..found("old", "9", "0/20") }).unwrap().contains("options"));
}

#[test]
fn what_is_a_loss_while_running() {
    let loss = |again: Found| {
        let mut marker = marker();
        marker.found(found("old", "9", "0/20"), Lsn(0x20), Some(&Coverage::default()), false);
        marker.answered(&[Value::Int(1)], true);
        marker.found(again, Lsn(0x99), Some(&Coverage::default()), false).map(|gap| gap.sentence)
    };
    assert_eq!(loss(found("me", "10", "0/20")), None);
    assert_eq!(loss(found("you", "1", "0/99")), None, "another daemon was here, and is as far as the slot");
    assert!(loss(found("old", "99", "0/20")).unwrap().contains("before the slot's"), "a copy from before our time");
    assert!(loss(found("me", "9", "0/20")).unwrap().contains("went back"));
    assert!(loss(Found::default()).unwrap().contains("gone"));
}
