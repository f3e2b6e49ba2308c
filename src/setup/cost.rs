//! What an identity costs in WAL: what is logged of an old row is the row itself with every value that lies outside fetched in (heapam.c,
//! ExtractReplicaIdentity). Told by the statistics of ANALYZE: to read the rows would let expressions and policies of whoever made the table run with
//! the rights of whoever runs `setup` (the planner works out the constant parts of a partial index's predicate).

use std::collections::HashMap;

use super::identity::{Change, Identity};
use crate::rules::tables::TableName;
use crate::source::session::{Error, Sql, literal};

/// Of a row's header of 23 bytes the log keeps 5 (heapam_xlog.h, SizeOfHeapHeader).
const HEADER: f64 = 5.0;

/// Bytes of WAL per row.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Rows that the table has.
    pub rows: u64,
    /// The whole old row.
    pub full: f64,
    /// The columns of the index, if there is one.
    pub index: Option<f64>,
}

/// Costs by table; those without statistics (never analyzed, or not ours to see) are not in it.
pub type Costs = HashMap<TableName, Cost>;

/// Measures every table whose identity is to change.
pub async fn measure(session: &Sql, changes: &[Change<'_>]) -> Result<Costs, Error> {
    let mut costs = Costs::new();
    for change in changes {
        let table = &change.member.table;
        let measured = session.rows(&query(table, change.member.oid, &change.to)).await?;
        let number = |index: usize| measured.first()?.get(index)?.parse::<f64>().ok();
        let (Some(rows @ 1.0..), Some(full)) = (number(0), number(1)) else { continue };
        let index = number(2).map(|size| size + HEADER);
        costs.insert(table.clone(), Cost { rows: rows as u64, full: full + HEADER, index });
    }
    Ok(costs)
}

/// Rows; average width of a row with what lies outside of it, which statistics count as a pointer; that of the index's columns.
fn query(table: &TableName, oid: u32, to: &Identity) -> String {
    let index = match to {
        Identity::Full => "NULL".to_owned(),
        Identity::Index { columns, .. } => {
            let columns: Vec<String> = columns.iter().map(|column| literal(column)).collect();
            format!("sum(s.avg_width * (1 - s.null_frac)) FILTER (WHERE s.attname IN ({}))", columns.join(", "))
        }
    };
    format!(
        "SELECT max(c.reltuples)::int8, sum(s.avg_width * (1 - s.null_frac)) + max(coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) \
         / greatest(c.reltuples, 1)), {index} FROM pg_class c JOIN pg_stats s ON s.schemaname = {} AND s.tablename = {} AND NOT s.inherited \
         WHERE c.oid = {oid}",
        literal(&table.schema),
        literal(&table.name)
    )
}

impl Cost {
    /// For a comment beside the statement.
    pub fn of_full(cost: Option<&Cost>) -> String {
        match cost {
            Some(Cost { rows, full, .. }) => {
                format!(
                    "each UPDATE and DELETE then logs the whole old row, about {full:.0} bytes more (by the statistics of {rows} rows)"
                )
            }
            None => {
                "each UPDATE and DELETE then logs the whole old row (how much, nobody knows before ANALYZE)".to_owned()
            }
        }
    }

    /// The same for an index.
    pub fn of_index(cost: Option<&Cost>) -> String {
        match cost {
            Some(Cost { rows, full, index: Some(index) }) => format!(
                "each DELETE, and each UPDATE of one of these columns, then logs about {index:.0} bytes; REPLICA IDENTITY FULL would log {full:.0} with every UPDATE and DELETE (by the statistics of {rows} rows)"
            ),
            _ => "each DELETE, and each UPDATE of one of these columns, then logs them (how much, nobody knows before ANALYZE)"
                .to_owned(),
        }
    }
}
