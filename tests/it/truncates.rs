//! TRUNCATE tells of a table and of none of its rows.

use crate::support::{World, fill, is_gone, outbox, until};

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

/// Each of these was taken for a table that was rewritten, and cost the whole cache: another file with another writer than the TRUNCATE.
#[tokio::test]
async fn what_stands_beside_a_truncate_is_no_rewrite() {
    for published in ["FOR TABLE first_model, unrelated", "FOR ALL TABLES"] {
        let world = World::new().await;
        let sql = world.sql().await;
        if !outbox() {
            sql.batch_execute(&format!("CREATE PUBLICATION waltag {published}")).await.unwrap();
        }
        world.setup(
            r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [
                {table: first_model, tags: ["user:<id>"]}, {table: unrelated, tags: ["n:<id>"]}]}"#,
        );
        let daemon = world.daemon();
        world.settled(&sql).await;
        for (count, change) in [
            "TRUNCATE first_model",
            "BEGIN; SAVEPOINT a; TRUNCATE first_model; COMMIT",
            "DO $$ BEGIN TRUNCATE first_model; EXCEPTION WHEN OTHERS THEN NULL; END $$",
            "TRUNCATE first_model;;GRANT SELECT ON first_model TO PUBLIC",
            "TRUNCATE first_model;;VACUUM FULL first_model",
            // It has a column whose values may be large, hence a table for them that a rewrite would replace.
            "VACUUM FULL first_model;;TRUNCATE first_model",
            "CLUSTER first_model USING first_model_pkey;;TRUNCATE first_model",
        ]
        .into_iter()
        .enumerate()
        {
            for statement in change.split(";;") {
                sql.batch_execute(statement).await.unwrap();
            }
            daemon.wait_for_count("sweep complete", count + 1);
            // Nothing behind a TRUNCATE is done before a catalog was judged that shows it.
            world.settled(&sql).await;
            assert_eq!(daemon.log().matches(" resync: ").count(), 1, "{published}: {change}\n{}", daemon.log());
        }
        // A rewrite right behind one is seen.
        sql.batch_execute("TRUNCATE first_model; ALTER TABLE first_model ALTER name TYPE varchar USING name || '!'")
            .await
            .unwrap();
        daemon.wait_for("was replaced, rewritten or published anew");
    }
}

/// The catalog was read while the commit waited: it did not show the TRUNCATE yet, which was forgotten, and its file was a gap later.
#[tokio::test]
async fn a_truncate_that_waits_for_a_standby_is_no_rewrite() {
    if outbox() {
        return;
    }
    let world = World::new().await;
    let sql = world.sql().await;
    sql.batch_execute("CREATE TABLE plain (id int PRIMARY KEY); CREATE PUBLICATION waltag FOR ALL TABLES")
        .await
        .unwrap();
    world.setup(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: plain, tags: ["p:<id>"]}]}"#,
    );
    let daemon = world.daemon();
    world.settled(&sql).await;
    sql.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'missing'; ").await.unwrap();
    world.postgres.reload().unwrap();
    until("commits wait", || async {
        sql.query_one("SELECT current_setting('synchronous_standby_names')", &[]).await.unwrap().get::<_, String>(0)
            == "missing"
    })
    .await;
    let waiting = world.sql().await;
    let truncate = tokio::spawn(async move { waiting.batch_execute("TRUNCATE plain").await });
    let looks = daemon.log().matches("looked at the catalog").count();
    daemon.wait_for_count("looked at the catalog", looks + 2);
    let local = world.sql().await;
    local.batch_execute("SET synchronous_commit = local").await.unwrap();
    local.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    world.postgres.reload().unwrap();
    truncate.await.unwrap().unwrap();
    daemon.wait_for("sweep complete");
    world.settled(&sql).await;
    assert_eq!(daemon.log().matches(" resync: ").count(), 1, "{}", daemon.log());
}
