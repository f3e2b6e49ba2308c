//! Which transactions every new snapshot sees (manual: "pg_snapshot Components").
//!
//! The commit record reaches a walsender before other sessions see the rows: the committer still has to wait for a
//! synchronous standby and for the process-array lock. One `pg_current_snapshot()` taken after the rows arrived answers
//! for all waiting transactions.

use super::lsn::Xid;

/// The query that [`Snapshot::parse`] reads, and the standby list of [`names_synchronous_standby`] with it: a setting
/// that turns waltag into a synchronous standby is then noticed by the very poll that would wait for ever.
pub const QUERY: &str = "SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text, \
    pg_catalog.current_setting('synchronous_standby_names')";

/// The same, and the highest number that a running transaction has. `xmax` is one more than the last transaction that has *ended*: the newest
/// ones that run may stand above it, and on a quiet server do. Locks are visible to every role, those of prepared transactions
/// included. Asked for only where a resync begins: reading the table of locks takes each of its partitions' locks.
pub const QUERY_WITH_NEWEST: &str = "SELECT pg_current_snapshot()::text, current_setting('synchronous_standby_names'), \
    (SELECT transactionid FROM pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted \
     ORDER BY age(transactionid) LIMIT 1)";

/// What `pg_current_snapshot()` said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below has ended.
    pub xmin: u64,
    /// One more than the last that has ended: those from here on are running, or have not begun.
    pub xmax: u64,
    /// Every transaction that has a number is below this one, if that was asked for ([`QUERY_WITH_NEWEST`]).
    pub next: Option<u64>,
    /// Those between that were running, cut to the 32 bits that pgoutput's Begin carries.
    running: Vec<u32>,
}

impl Snapshot {
    /// From `xmin:xmax:xip,...` in 64-bit numbers.
    pub fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.splitn(3, ':');
        let xmin: u64 = parts.next()?.parse().ok()?;
        let xmax: u64 = parts.next()?.parse().ok()?;
        let list = parts.next()?;
        let running: Result<Vec<u64>, _> = list.split(',').filter(|xid| !xid.is_empty()).map(str::parse).collect();
        Some(Snapshot { xmin, xmax, next: None, running: running.ok()?.into_iter().map(|xid| xid as u32).collect() })
    }

    /// Says which running transaction is the newest; empty if none has a number. Its 32 bits lie within 2^31 of `xmax`.
    #[must_use]
    pub fn with_newest(self, newest: &str) -> Snapshot {
        let above = newest.parse::<u32>().map_or(0, |newest| newest.wrapping_sub(self.xmax as u32) as i32);
        let next = match newest.is_empty() || above < 0 {
            true => self.xmax,
            false => self.xmax.saturating_add(u64::from(above.unsigned_abs()) + 1),
        };
        Snapshot { next: Some(next), ..self }
    }

    /// Is everything visible here that is in `other`? What had not begun there when it was taken does not matter.
    pub fn sees_all_of(&self, other: &Snapshot) -> bool {
        let is_in = |xid: u32| (xid.wrapping_sub(other.xmax as u32) as i32) < 0 && !other.running.contains(&xid);
        // What is older than everything that runs may be further away than 32 bits can tell.
        self.xmin >= other.xmax || self.xmax >= other.xmax && !self.running.iter().any(|xid| is_in(*xid))
    }

    /// Has this transaction ended, and does every snapshot from now on show it? The difference is taken modulo 2^32, which
    /// is right as long as both lie within 2^31 of each other: the slot's catalog_xmin guarantees that.
    pub fn sees(&self, xid: Xid) -> bool {
        (xid.0.wrapping_sub(self.xmax as u32) as i32) < 0 && !self.running.contains(&xid.0)
    }
}

/// Does `synchronous_standby_names` name us, by `*` or by `application_name`? Then a commit would wait for our flush, and
/// our fence for the commit, for ever (syncrep.c compares without regard to case).
pub fn names_synchronous_standby(setting: &str, application_name: &str) -> bool {
    let mut names = Vec::new();
    let mut rest = setting;
    while let Some(character) = rest.chars().next() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').unwrap_or(quoted.len());
            names.push(quoted.get(..end).unwrap_or_default());
            rest = quoted.get(end + 1..).unwrap_or_default();
        } else if matches!(character, ',' | '(' | ')') || character.is_whitespace() {
            rest = rest.get(character.len_utf8()..).unwrap_or_default();
        } else {
            let ends = |c: char| matches!(c, ',' | '(' | ')' | '"') || c.is_whitespace();
            let end = rest.find(ends).unwrap_or(rest.len());
            names.push(rest.get(..end).unwrap_or_default());
            rest = rest.get(end..).unwrap_or_default();
        }
    }
    names.iter().any(|name| *name == "*" || name.eq_ignore_ascii_case(application_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_snapshot_sees_of_another() {
        let snapshot = |text: &str| Snapshot::parse(text).unwrap();
        let wanted = snapshot("100:105:101,103");
        for (text, all) in [
            ("105:105:", true),
            ("100:104:", false),
            ("103:110:103,107", true),
            ("102:110:102", false),
            ("107:110:107", true),
        ] {
            assert_eq!(snapshot(text).sees_all_of(&wanted), all, "{text}");
        }
        let much_later = snapshot("8589934592:8589934600:8589934592");
        assert!(much_later.sees_all_of(&wanted), "more than 2^32 transactions ago");
    }

    #[test]
    fn running_and_future_transactions_are_not_seen() {
        let snapshot = Snapshot::parse("100:105:100,103").unwrap();
        let seen: Vec<u32> = (98..108).filter(|xid| snapshot.sees(Xid(*xid))).collect();
        assert_eq!(seen, [98, 99, 101, 102, 104]);
        assert!(Snapshot::parse("1:2:").is_some());
        for bad in ["", "1:2", "a:b:", "1:2:x"] {
            assert!(Snapshot::parse(bad).is_none(), "{bad}");
        }
    }

    /// A quiet server with one writer shows `732:732:`, and 732 was not waited for.
    #[test]
    fn the_newest_that_runs_may_stand_above_xmax() {
        let next = |text: &str, newest: &str| Snapshot::parse(text).unwrap().with_newest(newest).next;
        assert_eq!(next("732:732:", "732"), Some(733));
        assert_eq!(next("732:732:", "740"), Some(741));
        assert_eq!(next("730:732:730", "730"), Some(732), "below xmax");
        assert_eq!(next("732:732:", ""), Some(732), "nobody runs");
        assert_eq!(next("1:18446744073709551615:", "0"), Some(u64::MAX), "no such number: it ended the daemon");
        assert_eq!(next("4294967290:4294967295:4294967290", "3"), Some(4_294_967_300), "behind the wrap of 32 bits");
    }

    #[test]
    fn comparison_across_the_wrap_of_32_bits() {
        // Epoch 1 has begun: xmax 2^32 + 5, and 4294967290 of epoch 0 is still running.
        let snapshot = Snapshot::parse("4294967290:4294967301:4294967290,4294967299").unwrap();
        for done in [4_294_967_280, 4_294_967_295, 3_u32, 4] {
            assert_eq!(snapshot.sees(Xid(done)), done != 3, "{done}");
        }
        assert!(!snapshot.sees(Xid(4_294_967_290)));
        assert!(!snapshot.sees(Xid(5)));
        assert!(!snapshot.sees(Xid(900)));
    }

    #[test]
    fn synchronous_standby_names() {
        for ours in ["*", "a, *", "FIRST 1 (a, waltag)", "ANY 1 (*)", "\"*\"", "2 (\"WalTag\", b)", "waltag"] {
            assert!(names_synchronous_standby(ours, "waltag"), "{ours}");
        }
        for others in ["", "a", "FIRST 1 (a, b)", "waltag2", "\"waltag 2\"", "my-waltag"] {
            assert!(!names_synchronous_standby(others, "waltag"), "{others}");
        }
    }
}
