//! TRUNCATE tells of a table and of none of its rows.

use crate::support::{World, fill, is_gone, until};

/// A reader that was computing while the table was swept stores what was true before: the sweep is repeated like a tag, and the slot
/// waits for that.
#[tokio::test]
async fn what_was_computed_before_and_stored_after_goes_stale() {
    let world = World::new().await;
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys, repeat: [5s]}},
            rules: [{table: first_model, tags: ["user:<id>"]}]}"#,
    );
    let daemon = world.daemon();
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    fill(&mut cache, "user:1").await;
    sql.batch_execute("TRUNCATE first_model").await.unwrap();
    until("it is swept", || is_gone(&cache, "user:1")).await;
    fill(&mut cache, "user:1").await;
    world.settled(&sql).await;
    assert!(is_gone(&cache, "user:1").await, "confirmed before the repeat");
    assert_eq!(daemon.log().matches("sweep repeated").count(), 1);
}
