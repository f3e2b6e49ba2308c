//! Who is at work on an outbox, where only time tells: without sessions of one's own.

use crate::outbox::{ONE, emptied, world};
use crate::support::succeed;

/// However long it takes to delete what is done, the sign of life comes in between: nobody takes over meanwhile.
#[tokio::test]
async fn much_is_deleted() {
    let world = world().await;
    world.rules(ONE);
    succeed(&mut world.waltag("postgres", &["setup", "--apply", "--no-listen"]));
    let sql = world.sql().await;
    // Each statement deletes 10,000 rows.
    sql.batch_execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END';
         CREATE TRIGGER slow AFTER DELETE ON waltag.outbox REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION slow()",
    )
    .await
    .unwrap();
    let run = ["run", "--no-listen"];
    let daemon = world.start(&mut world.waltag("waltag", &run));
    daemon.wait_until_resynced();
    let second = world.start(&mut world.waltag("waltag", &run));
    second.wait_for("another daemon works on the outbox");
    sql.batch_execute("INSERT INTO first_model SELECT n, '' FROM generate_series(1, 100000) n").await.unwrap();
    emptied(&sql).await;
    assert!(!daemon.log().contains("has taken over") && !second.log().contains(" ready "), "{}", second.log());
    assert_eq!(daemon.stop(), Some(0));
    second.wait_for(" ready ");
}
