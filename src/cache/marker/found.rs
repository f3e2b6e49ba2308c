//! What stands in a marker and its witnesses: read before anything is written on a new connection.

use std::collections::BTreeSet;

use redis::RedisResult;

use super::super::life::Life;
use super::super::masters::Masters;
use super::super::slots;

/// What stands in the hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Who wrote last.
    pub owner: Option<String>,
    /// How often.
    pub seq: Option<String>,
    /// Version of the fields.
    pub format: Option<String>,
    /// Nothing at or below was owed.
    pub done: Option<String>,
    /// Of the server that was read from.
    pub timeline: Option<String>,
    /// Its crash mark.
    pub crash: Option<String>,
    /// What the rules covered ([`super::super::coverage::Coverage::text`]).
    pub rules: Option<String>,
    /// How long the server's log was at least.
    pub log: Option<String>,
    /// The last commit that the stream had brought ([`crate::flow::history::Commit`]).
    pub commit: Option<String>,
    /// The position that an outbox had written down.
    pub kept: Option<String>,
    /// [`super::BEHIND`] if a standby of the application's was away.
    pub replicas: Option<String>,
    /// Of the Redis where it stands.
    pub life: Option<Life>,
    /// What stands in the witnesses of a Cluster, by slot.
    pub witnesses: Vec<(u16, Found)>,
}

/// Reads who wrote last, in the marker `key` and its witnesses: those that it names, those of `known`, and one for each master that has none.
/// Must come before any other write on a new connection.
pub async fn read(masters: &mut Masters, key: &str, known: BTreeSet<u16>) -> RedisResult<Found> {
    let (mut found, named) = read_one(masters, key).await?;
    let named = named.unwrap_or_default();
    let named = named.split(' ').filter_map(|slot| slot.parse().ok());
    for slot in masters.witnesses(&known.into_iter().chain(named).collect()) {
        found.witnesses.push((slot, read_one(masters, &witness_key(key, slot)).await?.0));
    }
    Ok(found)
}

async fn read_one(masters: &mut Masters, key: &str) -> RedisResult<(Found, Option<String>)> {
    let mut command = redis::cmd("HMGET");
    command.arg(key).arg(&FIELDS);
    let (node, found) = masters.read(key.as_bytes(), &command).await?;
    let found: [Option<String>; FIELDS.len()] = found;
    let [owner, seq, format, done, timeline, crash, log, commit, kept, rules, replicas, named] = found;
    let life = Life::read(masters, node).await?;
    let witnesses = Vec::new();
    let found =
        Found { owner, seq, format, done, timeline, crash, log, commit, kept, rules, replicas, life, witnesses };
    Ok((found, named))
}

/// What is read of a hash.
const FIELDS: [&str; 12] =
    ["owner", "seq", "format", "done", "timeline", "crash", "log", "commit", "kept", "rules", "replicas", "witnesses"];

/// `waltag:{<text that maps to the slot>}:<rest of the key>`.
pub(super) fn witness_key(key: &str, slot: u16) -> String {
    format!("waltag:{{{}}}:{}", slots::text_of(slot), key.trim_start_matches("waltag:"))
}
