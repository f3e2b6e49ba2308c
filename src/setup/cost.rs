//! What an identity costs in WAL, measured on the user's own rows: what is logged of an old row is the row itself with every value that lies
//! outside fetched in (heapam.c, ExtractReplicaIdentity), and `pg_column_size` of a row counts exactly this.

use std::collections::HashMap;
use std::time::Duration;

use super::identity::{Change, Identity};
use crate::rules::tables::TableName;
use crate::source::session::{Error, Sql, identifier};

/// Rows that are looked at per table.
const SAMPLE: u32 = 1_000;
/// Looking must not take longer than this per table.
const LIMIT: Duration = Duration::from_secs(2);
/// A row has 23 bytes of header, of which the log keeps 5 (heapam_xlog.h, SizeOfHeapHeader).
const HEADER: f64 = 18.0;

/// Bytes of WAL per row.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Rows that were looked at.
    pub rows: u64,
    /// The whole old row.
    pub full: f64,
    /// The columns of the index, if there is one.
    pub index: Option<f64>,
}

/// Costs by table; those that cannot be read (no SELECT, too slow, empty) are not in it.
pub type Costs = HashMap<TableName, Cost>;

/// Measures every table whose identity is to change.
pub async fn measure(session: &Sql, changes: &[Change<'_>]) -> Result<Costs, Error> {
    let mut costs = Costs::new();
    for change in changes {
        let table = &change.member.table;
        let query = query(table, change.member.oid, &change.to);
        let Some(measured) = session.rows_within(LIMIT, &query).await? else { continue };
        let number = |index: usize| measured.first()?.get(index)?.parse::<f64>().ok();
        let (Some(rows @ 1.0..), Some(full)) = (number(0), number(1)) else { continue };
        let index = number(2).map(|size| (size - HEADER).max(0.0));
        costs.insert(table.clone(), Cost { rows: rows as u64, full: (full - HEADER).max(0.0), index });
    }
    Ok(costs)
}

/// Some pages from all over the table, or its first rows where it is small.
fn query(table: &TableName, oid: u32, to: &Identity) -> String {
    let index = match to {
        Identity::Full => "NULL".to_owned(),
        Identity::Index { columns, .. } => {
            let columns: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
            format!("avg(pg_column_size(ROW({})))", columns.join(", "))
        }
    };
    format!(
        "SELECT count(*), avg(pg_column_size(t.*)), {index} FROM (SELECT * FROM ONLY {} TABLESAMPLE SYSTEM \
         ((SELECT CASE WHEN reltuples > {SAMPLE} * 10 THEN 100.0 * {SAMPLE} / reltuples ELSE 100 END FROM pg_class WHERE oid = {oid})) \
         LIMIT {SAMPLE} * 2) t",
        table.sql()
    )
}

impl Cost {
    /// For a comment beside the statement.
    pub fn of_full(cost: Option<&Cost>) -> String {
        match cost {
            Some(Cost { rows, full, .. }) => {
                format!(
                    "each UPDATE and DELETE then logs the whole old row, about {full:.0} bytes more (by a sample of {rows})"
                )
            }
            None => "each UPDATE and DELETE then logs the whole old row (nothing to measure it by)".to_owned(),
        }
    }

    /// The same for an index.
    pub fn of_index(cost: Option<&Cost>) -> String {
        match cost {
            Some(Cost { rows, full, index: Some(index) }) => format!(
                "each DELETE, and each UPDATE of one of these columns, then logs about {index:.0} bytes; REPLICA IDENTITY FULL would log {full:.0} with every UPDATE and DELETE (by a sample of {rows})"
            ),
            _ => "each DELETE, and each UPDATE of one of these columns, then logs them (nothing to measure it by)"
                .to_owned(),
        }
    }
}
