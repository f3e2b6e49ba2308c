//! Tags that somebody names in SQL, within a transaction: `select waltag.invalidate('Report.all')`.
//!
//! Any role can put a message of any prefix into the log (manual: `pg_logical_emit_message`). So only those are heard whose prefix ends in the
//! installation's own word, which stands in a table that its functions read and nobody else may; and of those nothing is believed but texts: they
//! become tags, if the cache lets SQL name such tags.

use serde::Deserialize;

use crate::cache::Cache;
use crate::cache::formula::Formula;
use crate::cache::pattern::{Pattern, Subject};
use crate::metrics::Metrics;
use crate::plain::plain;
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::setup::catalog::Catalog;
use crate::source::PREFIX;
use crate::source::clock::Timestamp;
use crate::source::lsn::{Lsn, Xid};
use crate::source::visibility::Snapshot;
use crate::tags::Stale;

/// More than this is refused by `waltag.invalidate`, and passed over if it comes all the same.
const LONGEST: usize = 64 << 10;
/// Bytes of messages that wait until it is known whose they are. What exceeds them is a stranger's, who guesses.
const WAITING: usize = 1 << 20;

/// What `waltag.invalidate` and `waltag.invalidate_in` write.
#[derive(Deserialize)]
struct Said {
    tags: Vec<String>,
    /// Where; otherwise in the default cache, or in all.
    cache: Option<String>,
}

/// Who is heard, and what they may name.
#[derive(Default)]
pub struct Ear {
    word: Word,
    /// Per cache of the rules.
    allowed: Vec<Allowed>,
    /// Spoken with a word that no catalog has shown: it may have been made a moment ago.
    waiting: Vec<Spoken>,
    /// Bytes of those.
    held: usize,
}

/// By which a message is known as ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Word {
    /// There is none that we know.
    #[default]
    Unknown,
    /// The source is an outbox: only its functions can write into it.
    Unneeded,
    /// It ends the prefix.
    Known(String),
}

/// Which tags SQL may name in a cache.
#[derive(Debug, PartialEq, Eq)]
enum Allowed {
    /// The client's own prefix, or its hash, keeps them among tags.
    Any,
    /// The tag is the key, or the cache says so: those that begin so, or that a template of the rules can render.
    Only { prefixes: Vec<String>, patterns: Vec<Pattern> },
}

/// A message that waits.
struct Spoken {
    xid: Xid,
    floor: Lsn,
    committed: Timestamp,
    prefix: String,
    content: Vec<u8>,
}

impl Spoken {
    fn size(&self) -> usize {
        self.content.len() + self.prefix.len() + std::mem::size_of::<Spoken>()
    }
}

/// Two numbers of up to 19 digits: what else comes is a guess, and not even a good one.
fn is_word(text: &str) -> bool {
    text.split_once('.').is_some_and(|(one, other)| {
        [one, other].iter().all(|part| (1..=19).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Tags of a message that has waited.
pub struct Late {
    /// Its transaction.
    pub xid: Xid,
    /// The position before it.
    pub floor: Lsn,
    /// When it was committed.
    pub committed: Timestamp,
    /// Per cache.
    pub stale: Vec<Stale>,
}

impl Ear {
    /// Goes by what the catalog shows. What waits and is visible there is judged: the tags of what is ours.
    pub fn learn(&mut self, word: Word, rules: &Rules, catalog: &Catalog, metrics: &Metrics) -> Vec<Late> {
        self.word = word;
        self.allowed =
            rules.caches.iter().enumerate().map(|(index, cache)| allowed(index, cache, rules, catalog)).collect();
        let seen =
            |spoken: &Spoken| catalog.snapshot.as_ref().is_none_or(|snapshot: &Snapshot| snapshot.sees(spoken.xid));
        let (judged, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(seen);
        self.waiting = waiting;
        self.held = self.waiting.iter().map(Spoken::size).sum();
        let mut late = Vec::new();
        for Spoken { xid, floor, committed, prefix, content } in judged {
            let mut stale: Vec<Stale> = rules.caches.iter().map(|_| Stale::default()).collect();
            match self.knows(&prefix) {
                true => self.take(&content, rules, &mut stale, metrics),
                // What it says may be the word, read from here when it cannot be read elsewhere.
                false => spurn(metrics, "its word is not this installation's"),
            }
            late.push(Late { xid, floor, committed, stale });
        }
        late
    }

    /// Takes a message of a transaction; what is not for us is passed over.
    pub(super) fn hear(
        &mut self,
        (prefix, content): (&str, &[u8]),
        (xid, floor, committed): (Xid, Lsn, Timestamp),
        rules: &Rules,
        stale: &mut [Stale],
        metrics: &Metrics,
    ) {
        if self.knows(prefix) {
            return self.take(content, rules, stale, metrics);
        }
        let Some(word) = prefix.strip_prefix(PREFIX) else { return };
        // Our own nudge and canary: nothing is believed of them.
        if word.is_empty() && (content == b"nudge" || content.starts_with(b"canary ")) {
            return;
        }
        if word.strip_prefix(':').is_some_and(is_word) && content.len() <= LONGEST {
            let spoken = Spoken { xid, floor, committed, prefix: prefix.to_owned(), content: content.to_vec() };
            if self.held + spoken.size() <= WAITING {
                self.held += spoken.size();
                self.waiting.push(spoken);
                return;
            }
        }
        spurn(
            metrics,
            "it does not have this installation's word: whoever may log in can send such, and `waltag.invalidate` of an earlier setup does (`waltag setup --apply` mends that)",
        );
    }

    /// Does the catalog have to be read, because of what waits?
    pub fn is_in_doubt(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Nothing behind this may be called done.
    pub(super) fn floor(&self) -> Option<Lsn> {
        self.waiting.iter().map(|spoken| spoken.floor).min()
    }

    /// The stream broke: what waited comes again.
    pub(super) fn forget(&mut self) {
        (self.waiting, self.held) = (Vec::new(), 0);
    }

    fn knows(&self, prefix: &str) -> bool {
        match &self.word {
            Word::Unknown => false,
            Word::Unneeded => prefix == PREFIX,
            // Whoever can measure how long a comparison takes can also read the log.
            Word::Known(word) => {
                prefix.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(':')).is_some_and(|said| said == word)
            }
        }
    }

    /// Adds the tags. Bad content is counted and passed over: it must not stop the stream.
    fn take(&self, content: &[u8], rules: &Rules, stale: &mut [Stale], metrics: &Metrics) {
        if let Err(reason) = self.add(content, rules, stale) {
            spurn(metrics, &reason);
        }
    }

    /// One that lets SQL name any tag.
    pub fn for_any_tag(rules: &Rules) -> Ear {
        let allowed = rules.caches.iter().map(|_| Allowed::Any).collect();
        Ear { word: Word::Unneeded, allowed, ..Ear::default() }
    }

    /// Adds the tags of one message; or says why not all of them.
    pub fn add(&self, content: &[u8], rules: &Rules, stale: &mut [Stale]) -> Result<(), String> {
        if content.len() > LONGEST {
            return Err(format!("{} bytes are more than {LONGEST}", content.len()));
        }
        let Said { tags, cache } = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        let cache = match cache {
            Some(name) => {
                let index = rules.caches.iter().position(|cache| cache.name == name);
                Some(index.ok_or_else(|| format!("there is no cache `{}`", plain(&name)))?)
            }
            None => rules.default_cache(),
        };
        let (mut refused, mut count) = (None, 0);
        for (index, (stale, allowed)) in stale.iter_mut().zip(&self.allowed).enumerate() {
            if cache.is_some_and(|cache| cache != index) {
                continue;
            }
            for tag in tags.iter().filter(|tag| !tag.is_empty()) {
                match allowed.lets(tag) {
                    true => {
                        stale.tags.insert(tag.as_bytes());
                    }
                    false => {
                        refused.get_or_insert((index, tag));
                        count += 1;
                    }
                }
            }
        }
        let Some((index, tag)) = refused else { return Ok(()) };
        let cache = rules.caches.get(index).map_or("", |cache| cache.name.as_str());
        Err(format!(
            "waltag.invalidate names {count} tags that it may not, the others go: in the cache `{cache}` neither a template of the rules nor `prefix_only` lets SQL name `{}`",
            plain(tag)
        ))
    }
}

fn spurn(metrics: &Metrics, reason: &str) {
    metrics.spurned.inc();
    tracing::warn!("a message of the prefix `{PREFIX}` is passed over: {reason}");
}

impl Allowed {
    fn lets(&self, tag: &str) -> bool {
        match self {
            Allowed::Any => true,
            Allowed::Only { prefixes, patterns } => {
                prefixes.iter().any(|prefix| tag.starts_with(prefix))
                    || patterns.iter().any(|pattern| pattern.matches(tag.as_bytes()))
            }
        }
    }
}

fn allowed(index: usize, cache: &Cache, rules: &Rules, catalog: &Catalog) -> Allowed {
    if cache.prefix_only.is_empty() && !cache.has_bare_tags() {
        return Allowed::Any;
    }
    let mut patterns = Vec::new();
    for rule in &rules.rules {
        for table in rule.tables.among(catalog.tables.keys()) {
            for tag in rule.tags.iter().filter(|tag| tag.caches.contains(&index)) {
                let type_of = |column: &str| catalog.type_of(&table, column);
                let table: &TableName = &table;
                let subject = Subject { template: &tag.template, cache, style: tag.style, table, type_of };
                // What could be any key is what SQL may not name.
                patterns.extend(Pattern::of_template(&Formula::tag(), &subject, false));
            }
        }
    }
    patterns.sort();
    patterns.dedup();
    Allowed::Only { prefixes: cache.prefix_only.clone(), patterns }
}
