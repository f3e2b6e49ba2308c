use super::*;
use crate::cache::marker::{Marker, Origin};
use crate::rules::expand::Surroundings;

/// A flow with one cache and the rule `t:<id>` for the table `t`.
fn flow() -> Flow {
    with_rules(r#"{version: 1, caches: {c: {url: "redis://h", dialect: keys}}, rules: [{table: t, tags: ["t:<id>"]}]}"#)
}

fn with_rules(text: &str) -> Flow {
    let around = Surroundings::new(&|_| None, None);
    let rules = Rules::parse(vec![("r.yaml".into(), text.into())], &around).unwrap();
    let lane = |cache: &crate::cache::Cache| {
        Lane::new(
            cache.clone(),
            Marker::new("1", "waltag", &cache.name, "me", Origin::default()),
            1 << 20,
            true,
            None,
            "waltag",
        )
    };
    let lanes = rules.caches.iter().map(lane).collect();
    let mut flow = Flow::new(Rc::new(rules), lanes, Arc::default());
    let relation = b"R\0\0\0\x01public\0t\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff";
    begin(&mut flow, 9);
    flow.take(&Message::parse(relation).unwrap()).unwrap();
    commit(&mut flow, 100);
    flow
}

/// A transaction of many rows under a rule with `collapse` held its tags until its end, and with them the budget that its end needed.
#[tokio::test]
async fn what_waits_for_the_end_of_a_transaction_never_fills_the_budget() {
    let text = r#"{version: 1, caches: {c: {url: "redis://h", dialect: keys}}, rules: [
        {table: t, tags: ["t:<id>"], collapse: {over: 100000, to: "t"}},
        {table: t, tags: ["u:<id>"], collapse: {over: 100000, to: "u"}}]}"#;
    let mut flow = with_rules(text);
    begin(&mut flow, 10);
    let budget = 100_000;
    for number in 0..20_000_u32 {
        let text = format!("{number:09}");
        let row = [b"I\0\0\0\x01N\0\x01t\0\0\0\x09".as_slice(), text.as_bytes()].concat();
        flow.take(&Message::parse(&row).unwrap()).unwrap();
        flow.make_room(budget);
        flow.release(&Snapshot::parse("11:11:").unwrap());
        let open = flow.open.as_ref().map_or(0, Open::size);
        assert!(open < budget / 2 + (2 << 10), "{open} bytes at {number}");
    }
    commit(&mut flow, 200);
}

fn begin(flow: &mut Flow, xid: u32) {
    flow.take(&Message::Begin { final_lsn: Lsn(0), committed: Timestamp(0), xid: Xid(xid) }).unwrap();
}

fn insert(flow: &mut Flow) {
    flow.take(&Message::parse(b"I\0\0\0\x01N\0\x01t\0\0\0\x017").unwrap()).unwrap();
}

fn commit(flow: &mut Flow, end: u64) {
    flow.take(&Message::Commit { commit_lsn: Lsn(end - 1), end_lsn: Lsn(end) }).unwrap();
}

#[tokio::test]
async fn a_transaction_holds_the_floor_from_its_begin_until_readers_see_it() {
    let mut flow = flow();
    assert_eq!(flow.floor(), Lsn(100));
    begin(&mut flow, 10);
    insert(&mut flow);
    flow.keepalive(Lsn(150));
    assert_eq!(flow.floor(), Lsn(100), "a keepalive within a transaction says nothing about it");
    commit(&mut flow, 200);
    begin(&mut flow, 11);
    insert(&mut flow);
    commit(&mut flow, 300);
    assert_eq!((flow.floor(), flow.fence.len()), (Lsn(100), 2));
    flow.release(&Snapshot::parse("10:12:10").unwrap());
    assert_eq!((flow.floor(), flow.fence.len()), (Lsn(100), 1), "the oldest holds it, released or not");
    flow.release(&Snapshot::parse("12:12:").unwrap());
    assert_eq!((flow.floor(), flow.fence.len()), (Lsn(300), 0));
}

/// Otherwise a transaction that was forgotten here would be confirmed before it comes again.
#[tokio::test]
async fn a_disconnect_goes_back_to_the_floor() {
    let mut flow = flow();
    begin(&mut flow, 10);
    insert(&mut flow);
    commit(&mut flow, 200);
    flow.disconnect();
    assert_eq!(flow.floor(), Lsn(100));
    assert!(flow.fence.is_empty());
    begin(&mut flow, 10);
    flow.disconnect();
    assert_eq!(flow.floor(), Lsn(100));
}

#[tokio::test]
async fn a_transaction_without_tags_does_not_wait() {
    let mut flow = flow();
    begin(&mut flow, 10);
    commit(&mut flow, 200);
    assert_eq!((flow.floor(), flow.fence.len()), (Lsn(200), 0));
}

#[tokio::test]
async fn a_change_outside_of_a_transaction_is_refused() {
    let insert = Message::parse(b"I\0\0\0\x01N\0\x01t\0\0\0\x017").unwrap();
    assert!(flow().take(&insert).is_err());
}
