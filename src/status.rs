//! How the daemon is: one value, made by the loop, read by `/readyz`, `/status` and `waltag status`.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::plain::plain;
use crate::source::replication::slot::Feed;

/// Everything that can be asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Streaming, waiting, or why not.
    pub state: State,
    /// Why it is not ready; empty if it is.
    pub reasons: Vec<Reason>,
    /// Where changes come from.
    pub source: Source,
    /// The rules.
    pub rules: Rules,
    /// Where tags go.
    pub caches: Vec<Cache>,
    /// Bytes on their way to Redis.
    pub memory_used: usize,
    /// The budget.
    pub memory_limit: usize,
}

/// What the loop is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Before the first stream.
    #[default]
    Starting,
    /// The stream runs.
    Streaming,
    /// Another daemon holds the slot; this one takes over when it is free.
    Standby,
    /// The stream broke; it is opened anew.
    Reconnecting,
}

/// Why the daemon is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// The source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// A slot, or an outbox.
    pub kind: Feed,
    /// Host and port.
    pub server: String,
    /// The slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The stream was received up to here.
    pub received: String,
    /// Nothing is owed up to here.
    pub confirmed: String,
    /// `wal_status` of the slot.
    pub wal_status: String,
    /// WAL between the confirmed position and the server's end.
    pub unconfirmed_wal_bytes: i64,
    /// WAL that the slot makes the server keep.
    pub retained_wal_bytes: i64,
    /// What may still be written before the server takes the slot's WAL away; none where it never does.
    pub safe_wal_bytes: Option<i64>,
    /// Of an outbox: bytes of the table, those that wait to be vacuumed included.
    pub outbox_bytes: Option<i64>,
    /// Bytes that it may have; 0 for no bound.
    pub outbox_limit_bytes: Option<i64>,
    /// Why the server has invalidated the slot.
    pub invalidation_reason: Option<String>,
    /// The transaction that makes the server keep more than is unconfirmed.
    pub wal_holder: Option<String>,
}

/// The rule set in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Sets so far.
    pub generation: u64,
    /// Its files.
    pub files: Vec<String>,
    /// How many rules.
    pub rules: usize,
    /// Why the files as they are now are not in force.
    pub refused: Option<String>,
    /// Rules whose table is not published.
    pub uncovered: Vec<String>,
    /// Rules that do not fit their table any more.
    pub degraded: Vec<String>,
}

/// A cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Its name.
    pub name: String,
    /// Host and database.
    pub address: String,
    /// The client library.
    pub dialect: String,
    /// `up`, `away` or `detached`.
    pub state: String,
    /// Why it is not up.
    pub error: Option<String>,
    /// Why everything in it is being made stale.
    pub resync: Option<String>,
    /// Nothing is owed up to here.
    pub done: Option<String>,
}

impl Status {
    /// Nothing is wrong.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { version, state, reasons, source, rules, caches, memory_used, memory_limit } = self;
        let word = if self.is_ready() { "ready" } else { "not ready" };
        writeln!(f, "waltag {version}: {word}, {}", format!("{state:?}").to_lowercase())?;
        for Reason { code, message } in reasons {
            writeln!(f, "  {code}: {}", message.replace('\n', "\n    "))?;
        }
        let Source { kind, server, slot, publication, received, .. } = source;
        let confirmed = if source.confirmed.is_empty() { "nothing yet" } else { &source.confirmed };
        match kind {
            Feed::Outbox => {
                let limit = source.outbox_limit_bytes.filter(|limit| *limit > 0);
                let limit = limit.map_or(String::new(), |limit| format!(" of at most {}", size(limit)));
                let bytes = source.outbox_bytes.map(|bytes| format!(", the table has {}{limit}", size(bytes)));
                let bytes = bytes.unwrap_or_default();
                writeln!(f, "source  {server}, outbox, instance {slot}")?;
                writeln!(f, "        received {received}, confirmed {confirmed}{bytes}")?;
            }
            Feed::Replication => {
                writeln!(f, "source  {server}, slot {slot}, publication {}", plain(publication))?;
                writeln!(f, "        received {received}, confirmed {confirmed}")?;
                let (behind, kept) = (size(source.unconfirmed_wal_bytes), size(source.retained_wal_bytes));
                let safe =
                    source.safe_wal_bytes.map_or(String::new(), |bytes| format!(", lost after {} more", size(bytes)));
                writeln!(f, "        {behind} behind, the slot keeps {kept} of WAL ({}{safe})", source.wal_status)?;
            }
        }
        if let Some(holder) = &source.wal_holder {
            writeln!(f, "        because of the oldest transaction, {holder}")?;
        }
        if let Some(reason) = &source.invalidation_reason {
            writeln!(f, "        the server has invalidated the slot: {reason}")?;
        }
        writeln!(f, "rules   generation {}, {} rules from {}", rules.generation, rules.rules, rules.files.join(", "))?;
        for Cache { name, address, dialect, state, error, resync, done } in caches {
            let done = done.as_deref().map_or(String::new(), |done| format!(", done {done}"));
            writeln!(f, "cache   {name}: {state}, {dialect} at {address}{done}")?;
            for (word, sentence) in [("error", error), ("resync", resync)] {
                if let Some(sentence) = sentence {
                    writeln!(f, "        {word}: {sentence}")?;
                }
            }
        }
        write!(f, "memory  {} of {}", size(*memory_used as i64), size(*memory_limit as i64))
    }
}

/// Bytes for people.
fn size(bytes: i64) -> String {
    let mut size = bytes.max(0) as f64;
    for unit in ["B", "KiB", "MiB"] {
        if size < 1024.0 {
            return format!("{size:.0} {unit}");
        }
        size /= 1024.0;
    }
    format!("{size:.1} GiB")
}
