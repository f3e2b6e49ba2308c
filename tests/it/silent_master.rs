//! One master of a Cluster does not answer, and nobody takes its place: its own keys wait, the others' go stale.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::support::{World, end_of_stream, fill, is_gone, signal, until, until_within};

/// Nothing takes longer that does not wait for the silent one.
const SOON: Duration = Duration::from_secs(20);

const RULES: &str = r#"{version: 1, caches: {c: {url: "{cluster}", dialect: keys}}, rules: [{table: first_model, tags: ["user:<id>"]}]}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_up_its_own_keys_only() {
    let (world, cluster) = (World::new().await, Cluster::new(0).await);
    world.setup(&RULES.replace("{cluster}", &cluster.url()));
    let daemon = world.watched();
    let sql = world.sql().await;
    world.settled(&sql).await;
    let mut ids = Vec::new();
    for id in 1..60 {
        let key = format!("user:{id}");
        cluster.set(&key).await;
        ids.push((cluster.of(&key).await, key));
    }
    let third = cluster.nodes[2].pid().unwrap();
    signal(third, "STOP");
    sql.batch_execute("INSERT INTO first_model SELECT n, 'x' FROM generate_series(1, 59) n").await.unwrap();
    for (master, key) in ids.iter().filter(|(master, _)| *master != 2) {
        let node = cluster.node(*master).await;
        until_within(SOON, &format!("{key} of another master"), || is_gone(&node, key)).await;
    }
    // And what comes later, at once.
    let (master, key) = ids.iter().find(|(master, _)| *master == 0).unwrap();
    let node = cluster.node(*master).await;
    for name in ["y", "z"] {
        fill(&mut node.clone(), key).await;
        sql.batch_execute(&format!("UPDATE first_model SET name = '{name}'")).await.unwrap();
        until_within(SOON, "what comes later", || is_gone(&node, key)).await;
    }
    // Also when the stream breaks meanwhile, and its marker cannot be read again.
    let streams = daemon.log().matches("streaming server").count();
    sql.batch_execute(end_of_stream()).await.unwrap();
    daemon.wait_for_count("streaming server", streams + 1);
    for name in ["v", "w"] {
        fill(&mut node.clone(), key).await;
        sql.batch_execute(&format!("UPDATE first_model SET name = '{name}'")).await.unwrap();
        until_within(SOON, "what comes with another stream", || is_gone(&node, key)).await;
    }
    daemon.readyz(503);
    signal(third, "CONT");
    let node = cluster.node(2).await;
    for (_, key) in ids.iter().filter(|(master, _)| *master == 2) {
        until(&format!("{key}, once its master answers"), || is_gone(&node, key)).await;
    }
    world.settled(&sql).await;
    daemon.readyz(200);
    assert_eq!(daemon.log().matches(" resync: ").count(), 1, "the first start: {}", daemon.log());
}
