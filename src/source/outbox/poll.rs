//! One statement reads what became visible since the snapshot before, and the snapshot of now; pages follow where there is much.

use std::collections::BTreeSet;

use super::progress::Progress;
use crate::source::clock::Timestamp;
use crate::source::lsn::Lsn;
use crate::source::session::{Answer, Error, Sql};
use serde_json::from_str;

/// Rows of one page, ...
const PAGE: usize = 1_000;
/// ... and bytes of their values.
const PAGE_SIZE: usize = 4 << 20;
/// Bits of a position for the transactions of one poll; more share the last.
pub const WITHIN: u32 = 20;

/// The table is never analyzed when it is full: the planner must not sort all of it for each page.
pub const BY_INDEX: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; SET LOCAL jit = off;";

/// A provider may have set `default_transaction_read_only` for everybody, because a disk is full: who empties the outbox must write. Said with
/// each statement, because behind a pooler there is no session to say it once.
pub const WRITES: &str = "SET LOCAL transaction_read_only = off;";

/// What is read of a row.
pub struct Row {
    /// Its transaction, all 64 bits.
    pub xid: u64,
    /// Its number.
    id: i64,
    /// When it was written, by the server's clock.
    pub at: Timestamp,
    /// The table.
    pub relation: u32,
    /// The relation whose trigger it was.
    pub root: u32,
    /// `i`, `u`, `d`, `t`, `m` (tags from SQL), or `x`: something changed.
    pub kind: u8,
    /// Names of the columns.
    pub names: Vec<String>,
    /// Their values before, ...
    pub old: Option<Vec<Option<String>>>,
    /// ... and after.
    pub new: Option<Vec<Option<String>>>,
}

/// Rows in the order of their transactions.
pub struct Page {
    /// The rows.
    pub rows: Vec<Row>,
    /// What the poll saw, if this is its last page.
    pub complete: Option<String>,
    /// It is the first of its poll; the end of the server's log.
    pub first: Option<Lsn>,
    /// How often writers had found the outbox full when the poll began.
    pub skipped: i64,
    /// More often than at the poll before.
    pub full: bool,
}

/// The poll under way, and where it goes on.
pub struct Poll {
    sql: Sql,
    /// What was visible to the poll before ...
    before: String,
    /// ... and is to this one.
    now: String,
    /// Polls so far.
    number: u64,
    /// How often writers have found the outbox full.
    skipped: i64,
    running: Option<Answer>,
    page: Option<Page>,
    /// The last row of the page before.
    last: Option<(u64, i64)>,
    complete: bool,
}

impl Poll {
    /// Behind what was done.
    pub fn new(sql: &Sql, progress: &Progress) -> Poll {
        Poll {
            sql: sql.clone(),
            before: progress.snapshot().to_owned(),
            now: String::new(),
            number: progress.first_poll(),
            skipped: progress.skipped(),
            running: None,
            page: None,
            last: None,
            complete: true,
        }
    }

    /// Is a statement under way?
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Has a page come that nobody has taken?
    pub fn has_rows(&self) -> bool {
        self.page.is_some()
    }

    /// Is there a next page to be asked for?
    pub fn wants_more(&self) -> bool {
        !self.complete && !self.is_running() && !self.has_rows()
    }

    /// Were all its pages taken?
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The position of this poll's first transaction.
    pub fn position(&self) -> Lsn {
        Lsn(self.number << WITHIN)
    }

    /// Everything that is visible at this moment has arrived with this position: a poll that has begun may have looked before.
    pub fn horizon(&self) -> Lsn {
        let begun = !self.complete || self.is_running() || self.has_rows();
        Lsn(((self.number + 1 + u64::from(begun)) << WITHIN) - 1)
    }

    /// Positions go on behind this one: it was received before the connection was lost.
    pub fn goes_on_behind(&mut self, received: Lsn) {
        self.number = self.number.max((received.0 >> WITHIN) + 1);
    }

    /// This daemon has emptied the outbox, and moved the sequence to `number`: if nobody else has moved it since the last look, that says nothing new.
    pub fn has_emptied(&mut self, number: i64) {
        if number == self.skipped + 1 {
            self.skipped = number;
        }
    }

    /// Asks no more.
    pub fn forget(&mut self) {
        (self.running, self.page) = (None, None);
    }

    /// Begins one.
    pub fn begin(&mut self) {
        let before = &self.before;
        let rows = format!(
            "xid >= ({}) AND NOT pg_visible_in_snapshot(xid, '{before}') AND pg_visible_in_snapshot(xid, s.snapshot)",
            least_since(before)
        );
        let query = format!(
            "{BY_INDEX} WITH s AS MATERIALIZED (SELECT pg_current_snapshot() AS snapshot) SELECT s.snapshot::text, {COLUMNS}, \
             pg_current_wal_insert_lsn(), {SKIPPED} FROM s LEFT JOIN LATERAL ({}) o ON true",
            page(&rows)
        );
        (self.last, self.complete) = (None, false);
        self.running = Some(self.sql.ask(query));
    }

    /// Asks for the next page: of the same snapshot, whatever came meanwhile.
    pub fn go_on(&mut self) {
        let (before, now) = (&self.before, &self.now);
        let (xid, id) = self.last.unwrap_or_default();
        let rows = format!(
            "(xid, id) > ('{xid}'::xid8, {id}) AND xid < pg_snapshot_xmax('{now}') \
             AND NOT pg_visible_in_snapshot(xid, '{before}') AND pg_visible_in_snapshot(xid, '{now}')"
        );
        self.running = Some(self.sql.ask(format!("{BY_INDEX} SELECT '{now}', {COLUMNS} FROM ({}) o", page(&rows))));
    }

    /// Waits for the statement. Cancel-safe.
    pub async fn answer(&mut self) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let answer = running.await;
        self.running = None;
        let answer = answer?;
        let first = self.last.is_none().then(|| {
            let log = answer.first().and_then(|row| row.get(11)?.parse().ok());
            log.unwrap_or_default()
        });
        if first.is_some() {
            self.now = answer.first().and_then(|row| row.get(0)).unwrap_or_default().to_owned();
        }
        // Without a row there is one that has nothing but the snapshot.
        let there = answer.iter().filter(|row| row.get(1).is_some());
        let rows: Vec<Row> =
            there.map(|found| Row::read(|index| found.get(index)).ok_or_else(unreadable)).collect::<Result<_, _>>()?;
        self.last = rows.last().map(|row| (row.xid, row.id)).or(self.last);
        let found = answer.first().and_then(|row| row.get(10)?.parse::<usize>().ok()).unwrap_or_default();
        self.complete = rows.len() == found && found < PAGE;
        let complete = self.complete.then(|| self.now.clone());
        // The sequence is read behind the snapshot: whose commit is in it has found the outbox full before.
        let skipped = first.and_then(|_| answer.first()?.get(12)?.parse().ok()).unwrap_or(self.skipped);
        let full = std::mem::replace(&mut self.skipped, skipped) != skipped;
        self.page = Some(Page { rows, complete, first, skipped, full });
        Ok(())
    }

    /// Relations of the page, and those whose triggers wrote it.
    pub fn relations(&self) -> BTreeSet<u32> {
        let rows = self.page.iter().flat_map(|page| &page.rows);
        rows.filter(|row| row.kind != b'm').flat_map(|row| [row.relation, row.root]).collect()
    }

    /// Hands the page out.
    pub fn take_page(&mut self) -> Page {
        if self.complete {
            self.before.clone_from(&self.now);
            self.number += 1;
        }
        let skipped = self.skipped;
        self.page.take().unwrap_or(Page { rows: Vec::new(), complete: None, first: None, skipped, full: false })
    }
}

/// How often writers have found the outbox full: beside the transactions, so that none can hide it.
pub const SKIPPED: &str = "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM waltag.skipped)";

const COLUMNS: &str = "o.xid::text, o.id, ((extract(epoch FROM o.at) - 946684800) * 1000000)::int8, o.relation, o.root, o.kind, \
     array_to_json(o.names), array_to_json(o.old), array_to_json(o.new), o.found";

/// At most so many rows, and bytes unless it is one row; `found` is how many there would be by their number alone.
fn page(rows: &str) -> String {
    format!(
        "SELECT * FROM (SELECT *, sum(size) OVER (ORDER BY xid, id) - size AS above, count(*) OVER () AS found FROM \
         (SELECT * FROM waltag.outbox WHERE {rows} ORDER BY xid, id LIMIT {PAGE}) first) page WHERE above < {PAGE_SIZE} ORDER BY page.xid, page.id"
    )
}

/// The lowest transaction that can have become visible since this snapshot: one that runs on for long does not count.
pub fn least_since(snapshot: &str) -> String {
    format!(
        "SELECT coalesce((SELECT xip FROM pg_snapshot_xip('{snapshot}') xip WHERE pg_visible_in_snapshot(xip, pg_current_snapshot()) \
         ORDER BY xip LIMIT 1), pg_snapshot_xmax('{snapshot}'))"
    )
}

fn unreadable() -> Error {
    Error::Away("a row of waltag.outbox cannot be read".into())
}

impl Row {
    /// From the texts of the columns.
    pub fn read<'a>(get: impl Fn(usize) -> Option<&'a str>) -> Option<Row> {
        let list = |index: usize| get(index).and_then(|json| from_str(json).ok());
        Some(Row {
            xid: get(1)?.parse().ok()?,
            id: get(2)?.parse().ok()?,
            at: Timestamp(get(3)?.parse().ok()?),
            relation: get(4)?.parse().ok()?,
            root: get(5)?.parse().ok()?,
            kind: *get(6)?.as_bytes().first()?,
            names: get(7).and_then(|json| from_str(json).ok()).unwrap_or_default(),
            old: list(8),
            new: list(9),
        })
    }
}
