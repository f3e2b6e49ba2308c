//! Inserts, updates, moves, deletes, truncates, rollbacks, savepoints and transactions of 10,000 rows, and the row versions that each of
//! them made and ended.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Error};

use super::{BULK, CATEGORIES, Lab, ROWS, dice, session};

/// Writes until it is aborted.
pub async fn write(lab: Arc<Lab>, number: u32) {
    let mut client = None;
    loop {
        if lab.quiet.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let _at_work = lab.rest.read().await;
        let Some(sql) = &client else {
            client = session(&lab.urls.primary()).await;
            if client.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            continue;
        };
        // What one of them commits is visible only when the standby has replayed it.
        let waits = if number == 2 { "remote_apply" } else { "on" };
        if sql.batch_execute(&format!("SET synchronous_commit = {waits}")).await.is_err() {
            client = None;
            continue;
        }
        if transaction(&lab, sql, number).await.is_err() {
            client = None;
        }
        let pause = dice(1..8);
        drop(_at_work);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Commits without a pause until it is aborted, also while others rest. Each transaction takes half as long as the way to Redis and back, so there is
/// always one that runs, and always a first pass that waits.
pub async fn never_pause(lab: Arc<Lab>) {
    loop {
        let Some(sql) = session(&lab.urls.primary()).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let update = || {
            let id = dice(1..=5_000);
            format!("BEGIN; UPDATE noise SET val = val + 1 WHERE id = {id}; SELECT pg_sleep(0.002); COMMIT")
        };
        while sql.batch_execute(&update()).await.is_ok() {
            lab.counts.commits.fetch_add(1, Relaxed);
        }
    }
}

/// One transaction. What became of a commit whose answer did not come is asked of the server.
async fn transaction(lab: &Lab, sql: &Client, number: u32) -> Result<(), Error> {
    let kind = dice(0..1_000);
    sql.batch_execute("BEGIN").await?;
    let mut versions = Vec::new();
    let xid: String = sql.query_one("SELECT pg_current_xact_id()::text", &[]).await?.get(0);
    let done = match kind {
        // One of the writers does the big things.
        0..4 if number == 0 => bulk(sql, &mut versions).await,
        4..8 if number == 0 => sql.batch_execute("TRUNCATE item").await,
        8..100 => savepoint(sql, &mut versions).await,
        // Too few to collapse.
        100..130 if lab.hostile => some_of_bulk(sql, &mut versions).await,
        _ => few(sql, &mut versions).await,
    };
    match done {
        Ok(()) if dice(0..10) > 0 => {
            let answer = sql.batch_execute("COMMIT").await;
            if answer.is_ok() || committed(lab, &xid).await {
                let now = Instant::now();
                lab.counts.commits.fetch_add(1, Relaxed);
                lab.owed.lock().await.extend(versions.into_iter().map(|version| (version, now)));
            }
            answer
        }
        // A deadlock, a duplicate, or the tenth that changes its mind.
        Ok(()) => sql.batch_execute("ROLLBACK").await,
        Err(error) if error.as_db_error().is_some() && !sql.is_closed() => sql.batch_execute("ROLLBACK").await,
        Err(error) => Err(error),
    }
}

async fn committed(lab: &Lab, xid: &str) -> bool {
    let query = format!("SELECT coalesce(pg_xact_status('{xid}'), '') = 'committed'");
    loop {
        // It may be lost, and readers may have seen it: what was committed before a promotion is forgiven, and so is what is undone.
        if lab.promoted.load(Relaxed) || lab.undone.load(Relaxed) {
            return true;
        }
        if let Some(sql) = session(&lab.urls.primary()).await
            && let Ok(row) = sql.query_one(&query, &[]).await
        {
            return row.get(0);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn few(sql: &Client, versions: &mut Vec<u64>) -> Result<(), Error> {
    for _ in 0..dice(1..4) {
        one(sql, versions).await?;
    }
    Ok(())
}

/// What happens between a savepoint and its rollback is owed to nobody.
async fn savepoint(sql: &Client, versions: &mut Vec<u64>) -> Result<(), Error> {
    one(sql, versions).await?;
    sql.batch_execute("SAVEPOINT s").await?;
    one(sql, &mut Vec::new()).await?;
    sql.batch_execute("ROLLBACK TO s").await?;
    one(sql, versions).await
}

/// One row: the versions that began and ended.
async fn one(sql: &Client, versions: &mut Vec<u64>) -> Result<(), Error> {
    let (id, cat) = (dice(1..=ROWS), dice(0..CATEGORIES));
    let statement = match dice(0..10) {
        0..3 => format!(
            "INSERT INTO item VALUES ({id}, {cat}, nextval('nonce')) ON CONFLICT DO NOTHING RETURNING NULL::bigint, val"
        ),
        3 => format!("DELETE FROM item WHERE id = {id} RETURNING val, NULL::bigint"),
        4..7 => {
            changed("item", &format!("val = nextval('nonce'), cat = {cat}"), &format!("WHERE id = {id} FOR UPDATE"))
        }
        _ => changed("item", "val = nextval('nonce')", &format!("WHERE id = {id} FOR UPDATE")),
    };
    take(sql, &statement, versions).await
}

async fn bulk(sql: &Client, versions: &mut Vec<u64>) -> Result<(), Error> {
    take(sql, &changed("bulk", "val = nextval('nonce')", "ORDER BY id FOR UPDATE"), versions).await
}

async fn some_of_bulk(sql: &Client, versions: &mut Vec<u64>) -> Result<(), Error> {
    let rows = format!("WHERE id <= {BULK} AND id % 10 = {} ORDER BY id FOR UPDATE", dice(0..10));
    take(sql, &changed("bulk", "val = nextval('nonce')", &rows), versions).await
}

/// An UPDATE that tells old and new versions.
pub fn changed(table: &str, set: &str, which: &str) -> String {
    format!(
        "WITH o AS (SELECT id, val FROM {table} {which}) \
         UPDATE {table} t SET {set} FROM o WHERE o.id = t.id RETURNING o.val, t.val"
    )
}

pub async fn take(sql: &Client, statement: &str, versions: &mut Vec<u64>) -> Result<(), Error> {
    for row in sql.query(statement, &[]).await? {
        let both: [Option<i64>; 2] = [row.get(0), row.get(1)];
        versions.extend(both.into_iter().flatten().map(|version| version as u64));
    }
    Ok(())
}
