//! The marker: one hash per cache that says how far this Redis has been told. It lives or dies with the tags, so it is the
//! witness of what Redis lost.
//!
//! It is written by a script that first compares who wrote last: a second daemon, a restored copy or a flushed database
//! answer differently, and waltag never relies on being told of a reconnect.
//!
//! In a Cluster each master may lose writes by itself. Each has a witness of its own, a marker whose hash tag sends it there; the one that
//! clients read is written behind them. A witness goes where its slot goes.

mod found;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use redis::{Script, Value};

use super::command::Command;
use super::coverage::Coverage;
use super::gap::Gap;
use super::life::Life;
use crate::flow::history::Commit;
use crate::source::has_survived;
use crate::source::lsn::Lsn;
use found::witness_key;
pub use found::{Found, read};

/// `KEYS[1]` the hash; `ARGV`: expected owner and seq ('' where the field is missing), whether progress is forgotten, then
/// fields and values. Answers 1, or the owner and seq that are there instead; then nothing was written.
pub const COMPARE_AND_SET: &str = "\
local m = redis.call('HMGET', KEYS[1], 'owner', 'seq') \
if (m[1] or '') ~= ARGV[1] or (m[2] or '') ~= ARGV[2] then return {m[1] or '', m[2] or ''} end \
if ARGV[3] == 'forget' then redis.call('HDEL', KEYS[1], 'lsn', 'done') end \
local at = redis.call('TIME') \
redis.call('HSET', KEYS[1], 'at', at[1], unpack(ARGV, 4)) \
return 1";

/// Code of a refusal by another daemon's claim, or by a copy from before our time.
pub const OTHER_DAEMON: &str = "other_daemon";
/// Nothing explains that it is not there.
const GONE: &str = "the marker is gone: this Redis was emptied or lost writes";
/// Value of `replicas` while a standby is away, or has not caught up.
pub const BEHIND: &str = "behind";
/// Version of the hash's fields.
const FORMAT: &str = "1";

/// The state of the source that is written along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// IDENTIFY_SYSTEM's timeline.
    pub timeline: String,
    /// [`crate::source::CRASH_MARKS`]: they stay over a clean restart, and all change over a crash.
    pub crash: String,
    /// The end of its log when it was opened: what knows of more knows another history.
    pub log: Lsn,
}

/// What a marker remembers of the source's history, so that another one is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// The server's log was at least this long.
    pub log: Lsn,
    /// The last commit that the stream brought.
    pub commit: Option<Commit>,
    /// The position that an outbox has written down.
    pub kept: Option<Lsn>,
}

/// How far one cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress {
    /// Nothing at or below is owed, repeats included: what may be confirmed.
    pub done: Lsn,
    /// The first pass of everything up to here is done: what a reader of its own writes waits for.
    pub first: Lsn,
}

/// The marker of one cache, and what we believe stands in it.
pub struct Marker {
    key: String,
    owner: String,
    origin: Origin,
    /// What stands in the witnesses of a Cluster, and in the marker: the last.
    places: Vec<Place>,
    /// This process has claimed it before.
    claimed: bool,
    /// The highest number of this process: none is used twice, so that an older copy always looks older.
    last: u64,
}

/// One hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Its key: that of a witness is found by trying, thousands of times.
    key: String,
    /// Of a witness.
    slot: Option<u16>,
    held: Held,
    /// Of the Redis where it stood when it was read.
    life: Option<Life>,
}

static SCRIPT_HASH: LazyLock<String> = LazyLock::new(|| Script::new(COMPARE_AND_SET).get_hash().to_owned());

/// Owner and sequence number as Redis has them; empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    owner: String,
    seq: String,
}

/// What Redis answered to a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Written, everywhere.
    Written,
    /// Not answered everywhere: nobody knows.
    Open,
    /// Nothing stands there: it was evicted, or Redis was emptied or lost writes.
    Gone,
    /// Somebody else wrote, or Redis lost writes: what stands there now.
    Refused(Gap),
    /// Redis is full and takes no writes; deletions go through. The position counts all the same: the price is that a
    /// restart finds an older marker.
    Full,
}

impl Marker {
    /// The marker `waltag:<system identifier>:<slot>:<cache>`; `owner` is random per process.
    pub fn new(system: &str, slot: &str, cache: &str, owner: &str, origin: Origin) -> Marker {
        let key = format!("waltag:{system}:{slot}:{cache}");
        let places = vec![Place { key: key.clone(), ..Place::default() }];
        Marker { key, owner: owner.to_owned(), origin, places, claimed: false, last: 0 }
    }

    /// What is written along from now on; why that is a gap, if it is.
    pub fn set_origin(&mut self, origin: Origin) -> Option<Gap> {
        let before = std::mem::replace(&mut self.origin, origin);
        self.changed(&before.timeline, &before.crash)
    }

    /// The server's log is at least this long by now: a cache that comes later may know of it.
    pub fn has_grown(&mut self, log: Lsn) {
        self.origin.log = self.origin.log.max(log);
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The slots of its witnesses.
    pub fn witnesses(&self) -> BTreeSet<u16> {
        self.places.iter().filter_map(|place| place.slot).collect()
    }

    /// Keys of the markers, where Redis may be asked what it has evicted: that explains that one is gone only as long as it has just happened.
    pub fn evictable(&self) -> Vec<String> {
        let may_ask = self.places.iter().all(|place| place.life.is_some());
        self.places.iter().filter(|_| may_ask).map(|place| place.key.clone()).collect()
    }

    /// Is one of these another life than the one where its marker was found? Then what was acknowledged there may be lost here.
    pub fn is_elsewhere(&self, lives: &[Option<Life>]) -> bool {
        let other = |(place, now): (&Place, &Option<Life>)| {
            place.life.as_ref().zip(now.as_ref()).is_some_and(|(before, now)| !now.is_life_of(before))
        };
        self.places.iter().zip(lives).any(other)
    }

    /// What their Redis has evicted up to now.
    pub fn lived(&mut self, lives: Vec<Option<Life>>) {
        for (place, life) in self.places.iter_mut().zip(lives) {
            place.life = life.or(place.life.take());
        }
    }

    /// Was everything found in the very processes where it stood before? Then none of what they have acknowledged is lost.
    pub fn is_where_it_was(&self, found: &Found) -> bool {
        let witnesses = found.witnesses.iter().map(|(slot, found)| (Some(*slot), found));
        witnesses.chain([(None, found)]).all(|(slot, found)| {
            let place = self.places.iter().find(|place| place.slot == slot);
            let before = place.and_then(|place| place.life.as_ref());
            before.zip(found.life.as_ref()).is_some_and(|(before, now)| now.is_life_of(before))
        })
    }

    /// Takes what [`read`] has found: does it prove that changes may have been missed, and why? `confirmed` is where
    /// the slot starts; `coverage` what the rules cover, where that can be compared already. A position is confirmed only after the marker said so; a marker behind it has lost writes, or, if the slot
    /// has `jumped`, somebody else moved it.
    pub fn found(
        &mut self,
        mut found: Found,
        confirmed: Lsn,
        coverage: Option<&Coverage>,
        jumped: bool,
    ) -> Option<Gap> {
        let witnesses = std::mem::take(&mut found.witnesses).into_iter().map(|(slot, found)| (Some(slot), found));
        let mut first = None;
        let mut places = Vec::new();
        for (slot, found) in witnesses.chain([(None, found)]) {
            let place = self.places.iter().find(|place| place.slot == slot);
            // What the rules covered stands in the marker alone.
            let coverage = coverage.filter(|_| slot.is_none());
            let gap = match place.filter(|_| self.claimed && !jumped) {
                Some(place) => self.loss(&found, place, confirmed, coverage),
                None => self.gap(&found, confirmed, coverage),
            };
            first = first.or(gap);
            let held = Held { owner: found.owner.unwrap_or_default(), seq: found.seq.unwrap_or_default() };
            let key = match (place, slot) {
                (None, Some(slot)) => witness_key(&self.key, slot),
                (place, _) => place.map_or(&self.key, |place| &place.key).clone(),
            };
            places.push(Place { key, slot, held, life: found.life });
        }
        self.places = places;
        first
    }

    /// Has another daemon written since this process did?
    pub fn is_inherited(&self, found: &Found) -> bool {
        self.claimed && found.owner.as_ref().is_some_and(|owner| *owner != self.owner)
    }

    /// Did this process write what stands there?
    pub fn is_own(&self) -> bool {
        self.claimed && self.places.iter().all(|place| place.held.owner == self.owner)
    }

    /// At the start: what was the state when somebody wrote last?
    fn gap(&self, found: &Found, confirmed: Lsn, coverage: Option<&Coverage>) -> Option<Gap> {
        let done = found.done.as_deref().and_then(|text| text.parse::<Lsn>().ok());
        let done = done.filter(|_| found.format.as_deref() == Some(FORMAT));
        let Some(done) = done else { return Some(Gap::new("no_marker", "this Redis has no marker")) };
        let changed =
            self.changed(found.timeline.as_deref().unwrap_or_default(), found.crash.as_deref().unwrap_or_default());
        // A standby that was promoted may be behind as well.
        if let Some(gap) = changed {
            return Some(gap);
        }
        let known = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<Lsn>().ok()).unwrap_or_default();
        if known(&found.log) > self.origin.log {
            return Some(Gap::rewound(known(&found.log), self.origin.log));
        }
        if known(&found.kept) > confirmed {
            return Some(Gap::taken_back(known(&found.kept), confirmed));
        }
        if done < confirmed {
            let sentence = format!("the marker stands at {done}, before the slot's {confirmed}");
            return Some(Gap::new("behind", sentence));
        }
        coverage?.beyond(found.rules.as_deref().unwrap_or_default())
    }

    /// While running: is it as we left it, unless Redis has evicted it?
    fn loss(&self, found: &Found, place: &Place, confirmed: Lsn, coverage: Option<&Coverage>) -> Option<Gap> {
        let Place { held, life, .. } = place;
        let was_evicted =
            || found.life.as_ref().zip(life.as_ref()).is_some_and(|(now, before)| now.has_evicted_since(before));
        let number = |text: &str| text.parse::<u64>().unwrap_or_default();
        match (&found.owner, &found.seq) {
            // Another daemon, or a copy from before our time: what it says of its progress decides.
            (Some(owner), _) if *owner != self.owner => self.gap(found, confirmed, coverage),
            (Some(_), Some(seq)) if number(seq) >= number(&held.seq) => None,
            (Some(_), _) => Some(Gap::new("lost_writes", "the marker went back: this Redis lost writes")),
            (None, _) if was_evicted() => None,
            (None, _) => Some(Gap::new("lost_writes", GONE)),
        }
    }

    /// Did the server lose commits that readers have seen?
    fn changed(&self, timeline: &str, crash: &str) -> Option<Gap> {
        if timeline != self.origin.timeline {
            let sentence = format!("PostgreSQL went from timeline {timeline} to {}", self.origin.timeline);
            return Some(Gap::new("timeline", sentence));
        }
        (!has_survived(crash, &self.origin.crash)).then(Gap::crash)
    }

    /// Writes of the marker and its witnesses; without progress they only claim, and with `forget` they take back what they told before.
    /// `rules` is written when it has changed; `behind` says whether a standby of the application's was away and
    /// has not caught up, if it has any.
    pub fn write(
        &self,
        progress: Option<Progress>,
        forget: bool,
        rules: Option<&str>,
        behind: Option<bool>,
        witness: &Witness,
    ) -> Vec<Command> {
        let write = |place: &Place| {
            let mut fields: Vec<(&str, String)> = vec![
                ("format", FORMAT.into()),
                ("owner", self.owner.clone()),
                ("seq", self.next().to_string()),
                ("timeline", self.origin.timeline.clone()),
                ("crash", self.origin.crash.clone()),
                ("log", witness.log.to_string()),
            ];
            // Nothing of another history stays.
            fields.push(("commit", witness.commit.map(|commit| commit.to_string()).unwrap_or_default()));
            fields.extend(witness.kept.map(|position| ("kept", position.to_string())));
            if let Some(Progress { first, done }) = progress {
                fields.extend([("lsn", first.to_string()), ("done", done.to_string())]);
            }
            if place.slot.is_none() {
                fields.extend(behind.map(|behind| ("replicas", if behind { BEHIND } else { "" }.to_owned())));
                fields.extend(rules.map(|rules| ("rules", rules.to_owned())));
                let witnesses: Vec<String> = self.witnesses().iter().map(u16::to_string).collect();
                fields.extend((!witnesses.is_empty()).then(|| ("witnesses", witnesses.join(" "))));
            }
            let forget = if forget { "forget" } else { "keep" };
            let head = ["EVALSHA", &SCRIPT_HASH, "1", &place.key, &place.held.owner, &place.held.seq, forget];
            let mut arguments: Vec<Vec<u8>> = head.map(|text| text.as_bytes().to_vec()).into();
            arguments.extend(fields.into_iter().flat_map(|(name, value)| [name.into(), value.into_bytes()]));
            // Behind the witnesses.
            Command::new(arguments).at(if place.slot.is_some() { 0 } else { usize::MAX })
        };
        self.places.iter().map(write).collect()
    }

    /// Takes the answers to [`Marker::write`], `Nil` where none came: unless they are `complete`, nobody knows why.
    pub fn answered(&mut self, values: &[Value], complete: bool) -> Answer {
        let next = self.next();
        let mut answer = Answer::Written;
        for (place, value) in self.places.iter_mut().zip(values) {
            match value {
                Value::Nil if !complete && matches!(answer, Answer::Written | Answer::Full) => answer = Answer::Open,
                Value::Nil => {}
                Value::Int(1) => place.held = Held { owner: self.owner.clone(), seq: next.to_string() },
                Value::ServerError(error) if is_full(error) => {
                    if answer == Answer::Written {
                        answer = Answer::Full;
                    }
                }
                _ => match refusal(&self.key, &self.owner, value) {
                    Some((held, gap)) => {
                        place.held = held;
                        answer = Answer::Refused(gap);
                    }
                    None if matches!(answer, Answer::Refused(_)) => {}
                    None => answer = Answer::Gone,
                },
            }
        }
        self.last = next;
        self.claimed |= answer == Answer::Written;
        answer
    }

    fn next(&self) -> u64 {
        let held = self.places.iter().map(|place| place.held.seq.parse::<u64>().unwrap_or_default());
        held.fold(self.last, u64::max).saturating_add(1)
    }
}

/// What stands there instead, and why; nothing if nothing does.
fn refusal(key: &str, own: &str, value: &Value) -> Option<(Held, Gap)> {
    let Value::Array(fields) = value else { return None };
    let text = |index: usize| fields.get(index).and_then(|value| redis::from_redis_value_ref::<String>(value).ok());
    let (owner, seq) = (text(0).filter(|owner| !owner.is_empty())?, text(1).unwrap_or_default());
    let (code, there) = match owner == own {
        true => ("lost_writes", format!("the marker went back to seq {seq}: this Redis lost writes")),
        false => (OTHER_DAEMON, format!("another waltag ({owner}) has taken over {key}")),
    };
    Some((Held { owner, seq }, Gap::new(code, there)))
}

/// Redis is full and may evict nothing. 6.2 wraps the error of a script's command into one of its own.
pub(super) fn is_full(error: &redis::ServerError) -> bool {
    error.code() == "OOM" || error.details().is_some_and(|details| details.contains("-OOM"))
}

#[cfg(test)]
mod tests;
