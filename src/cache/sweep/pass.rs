//! One pass over a Redis, in slices: it pauses as long as each slice took.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use redis::RedisResult;
use tokio::time::{Instant, sleep};

use super::super::Cache;
use super::super::command::{Command, Draw, act, commands, in_turns, on_key};
use super::super::connection::{Error, Kind};
use super::super::exchange::{Replies, exchange};
use super::super::formula::Fill;
use super::super::gap::Keys;
use super::super::masters::{self, Layout, Masters, Share};
use super::super::pattern::{Matcher, Pattern, common_glob};
use super::super::reach::Way;
use super::super::slots::{SLOTS, slot_of};
use super::super::step::{Action, Step};

/// Keys that Redis looks at per SCAN: calls of about a millisecond.
const COUNT: usize = 500;
/// The longest pause between two slices.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// So many keys of a slot are listed at once, which takes Redis some milliseconds.
const LISTED: usize = 10_000;
/// A master is asked what it has no more often than this: the answer has a line for each node. A slot does not leave, reach another
/// master and come back in that time.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// How a sweep goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// At most this many keys per second; without it only the pauses.
    pub rate: Option<u32>,
    /// Count, and touch nothing.
    pub dry_run: bool,
}

impl Pace {
    /// The pause after a slice that took `elapsed` and made `count` keys stale.
    fn pause(self, elapsed: Duration, count: u64) -> Duration {
        let by_rate = self.rate.map(|rate| Duration::from_secs_f64(count as f64 / f64::from(rate)));
        elapsed.min(LONGEST_PAUSE).max(by_rate.unwrap_or_default().saturating_sub(elapsed))
    }
}

/// Makes every key stale that one of the patterns matches, and the tags; how many.
pub async fn sweep(cache: &Cache, Keys { patterns, tags }: &Keys, pace: Pace) -> Result<u64, Error> {
    // Where tags have no keys of their own, they are looked for as well.
    let mut patterns = patterns.clone();
    patterns.extend(tags.iter().flat_map(|tag| Pattern::of_tag(cache, tag)));
    if patterns.is_empty() && tags.is_empty() {
        return Ok(0);
    }
    let own = cache.steps.iter().filter(|step| step.names_tags());
    let own = own.filter_map(|step| Some((step, Pattern::of_formula(&step.key)?))).collect();
    let mut pass = Pass { cache, own, masters: masters::open(cache, None).await?, pace, swept: 0, lists: true };
    let tags: Vec<&Vec<u8>> = tags.iter().collect();
    for slice in tags.chunks(COUNT) {
        let draw = Draw::new(cache);
        pass.send(slice.iter().flat_map(|tag| commands(cache, tag, draw)).collect(), slice.len()).await?;
    }
    if patterns.is_empty() {
        return Ok(pass.swept);
    }
    let (matcher, glob) = (Matcher::new(&patterns), common_glob(&patterns));
    pass.everywhere(&Search { glob: &glob, matcher: &matcher }).await?;
    let nobody = Draw::new(cache).fill(b"");
    let clear = cache.reach.clear.iter().filter_map(|step| act(&step.action, step.key.render(&nobody), &nobody));
    pass.send(clear.collect(), 0).await?;
    Ok(pass.swept)
}

/// What a sweep looks for.
struct Search<'a> {
    /// For all of it, and more.
    glob: &'a [u8],
    matcher: &'a Matcher<'a>,
}

/// A look at some slots of one master.
struct Look<'a> {
    share: &'a Share,
    /// Those of its slots that were otherwise than when the round began.
    changed: BTreeSet<u16>,
    /// When it was asked last.
    asked: Option<Instant>,
}

impl Look<'_> {
    /// Asks the master what it has. Around each slice, or a slot could leave it and come back unseen.
    async fn ask(&mut self, masters: &mut Masters) -> RedisResult<()> {
        let is_due = self.asked.is_none_or(|asked| asked.elapsed() >= ASK_INTERVAL);
        if masters.is_cluster() && is_due {
            self.changed.extend(self.share.changed(&masters.share(self.share.node).await?));
            self.asked = Some(Instant::now());
        }
        Ok(())
    }
}

/// A field of a hash, and its value.
type Field = (Vec<u8>, Vec<u8>);

/// A pass under way.
struct Pass<'a> {
    cache: &'a Cache,
    /// The steps whose keys are the tags' own, and what such a key looks like.
    own: Vec<(&'a Step, Pattern)>,
    masters: Masters,
    pace: Pace,
    swept: u64,
    /// May a master be asked for the keys of a slot?
    lists: bool,
}

impl Pass<'_> {
    async fn layout(&mut self) -> Result<Layout, Error> {
        self.masters.layout().await.map_err(|error| Error::new(self.cache, &error))
    }

    /// Every way, for every slot: what moved under a round is looked at again, and nothing else.
    async fn everywhere(&mut self, search: &Search<'_>) -> Result<(), Error> {
        let cache = self.cache;
        let scans = cache.reach.ways.iter().any(|way| !matches!(way, Way::Index { .. }));
        let all = || if scans { (0..SLOTS).collect() } else { BTreeSet::new() };
        let (mut owed, mut indices, mut before): (BTreeSet<u16>, _, _) = (all(), true, self.layout().await?);
        loop {
            let begin = Instant::now();
            for way in &cache.reach.ways {
                if let (Way::Index { hash, entry }, true) = (way, indices) {
                    self.index(hash, entry, search.matcher).await?;
                }
            }
            let mut unsteady = BTreeSet::new();
            for (share, slots) in before.looks(&owed) {
                unsteady.extend(self.look(share, &slots, search).await?);
            }
            let now = self.layout().await?;
            (owed, indices) = match now.has_replaced(&before) {
                // What the one before was told may be lost, of records anywhere.
                true => (all(), true),
                false => (before.still_owed(&now, &owed, &unsteady), false),
            };
            if owed.is_empty() && !indices {
                return Ok(());
            }
            tracing::debug!(cache = cache.name, slots = owed.len(), "slots of the Cluster moved under a sweep");
            before = now;
            sleep(self.pace.pause(begin.elapsed(), 0)).await;
        }
    }

    /// Looks at slots of one master; which of them were not all the time as it says that it has them.
    async fn look(
        &mut self,
        share: &Share,
        slots: &BTreeSet<u16>,
        search: &Search<'_>,
    ) -> Result<BTreeSet<u16>, Error> {
        let mut look = Look { share, changed: BTreeSet::new(), asked: None };
        // Most of it is faster done as a whole, and what does not match never leaves the server.
        let left = match self.lists && 2 * slots.len() < share.count() {
            true => Cow::Owned(self.listed(&mut look, slots, search).await?),
            false => Cow::Borrowed(slots),
        };
        if !left.is_empty() {
            self.scanned(&mut look, &left, search).await?;
        }
        look.asked = None;
        self.ask(&mut look).await?;
        Ok(look.changed.intersection(slots).copied().collect())
    }

    async fn ask(&mut self, look: &mut Look<'_>) -> Result<(), Error> {
        look.ask(&mut self.masters).await.map_err(|error| Error::new(self.cache, &error))
    }

    /// SCAN, for keys of these slots that match.
    async fn scanned(&mut self, look: &mut Look<'_>, slots: &BTreeSet<u16>, search: &Search<'_>) -> Result<(), Error> {
        let mut cursor = 0_u64;
        loop {
            self.ask(look).await?;
            let begin = Instant::now();
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(search.glob).arg("COUNT").arg(COUNT);
            let scanned = self.masters.ask(look.share.node, &scan).await;
            let (next, mut keys): (u64, Vec<Vec<u8>>) = scanned.map_err(|error| Error::new(self.cache, &error))?;
            // Of one server or a whole master every key is looked for.
            if slots.len() < look.share.count() {
                keys.retain(|key| slots.contains(&slot_of(key)));
            }
            let before = self.swept;
            self.found(&keys, search).await?;
            if next == 0 {
                return Ok(());
            }
            cursor = next;
            self.ask(look).await?;
            sleep(self.pace.pause(begin.elapsed(), self.swept - before)).await;
        }
    }

    /// The keys of some slots, as the master lists them; which slots have too many for that. Where it may not be asked for them, all.
    async fn listed(
        &mut self,
        look: &mut Look<'_>,
        slots: &BTreeSet<u16>,
        search: &Search<'_>,
    ) -> Result<BTreeSet<u16>, Error> {
        let (node, mut left, slots) = (look.share.node, BTreeSet::new(), slots.iter().copied().collect::<Vec<_>>());
        for chunk in slots.chunks(COUNT) {
            self.ask(look).await?;
            let counted = self.masters.count_in(node, chunk).await;
            let Some(counts) = self.if_allowed(counted)? else { return Ok(slots.into_iter().collect()) };
            let (few, many): (Vec<_>, Vec<_>) = chunk.iter().zip(counts).partition(|(_, count)| *count <= LISTED);
            left.extend(many.into_iter().map(|(slot, _)| *slot));
            let mut few = few.into_iter().filter(|(_, count)| *count > 0).peekable();
            while few.peek().is_some() {
                let (begin, before) = (Instant::now(), self.swept);
                let (mut slice, mut sum) = (Vec::new(), 0);
                while sum < COUNT
                    && let Some((slot, count)) = few.next()
                {
                    slice.push(*slot);
                    sum += count;
                }
                // New ones could push old ones out of a list that ends where they were counted.
                let listed = self.masters.keys_in(node, &slice, LISTED + 1).await;
                let Some(lists) = self.if_allowed(listed)? else { return Ok(slots.into_iter().collect()) };
                for (slot, keys) in slice.iter().zip(lists) {
                    if keys.len() > LISTED {
                        left.insert(*slot);
                    }
                    for keys in keys.chunks(COUNT) {
                        self.found(keys, search).await?;
                    }
                }
                self.ask(look).await?;
                sleep(self.pace.pause(begin.elapsed(), self.swept - before)).await;
            }
        }
        Ok(left)
    }

    /// What was asked for, unless the ACL withholds it or a proxy does not know it: then it is not asked for again.
    fn if_allowed<T>(&mut self, answer: RedisResult<T>) -> Result<Option<T>, Error> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => {
                tracing::info!(
                    cache = self.cache.name,
                    "Redis does not list the keys of a slot ({}): where slots of the Cluster moved a sweep looks through all keys again",
                    error.code().unwrap_or_default()
                );
                self.lists = false;
                Ok(None)
            }
            Err(error) => Err(Error::new(self.cache, &error)),
        }
    }

    /// Makes stale what matches of some keys.
    async fn found(&mut self, keys: &[Vec<u8>], search: &Search<'_>) -> Result<(), Error> {
        // No pattern ever touches the markers.
        let owed = |key: &&Vec<u8>| !key.starts_with(b"waltag:") && search.matcher.matches(key);
        let (draw, mut commands, mut found) = (Draw::new(self.cache), Vec::new(), 0);
        for key in keys.iter().filter(owed) {
            let more = self.on_found(key, draw);
            found += usize::from(!more.is_empty());
            commands.extend(more);
        }
        self.send(commands, found).await
    }

    /// HSCAN, for records one of whose tags matches.
    async fn index(&mut self, hash: &[u8], entry: &[Step], matcher: &Matcher<'_>) -> Result<(), Error> {
        let (mut cursor, mut asked) = (0_u64, None);
        loop {
            let begin = Instant::now();
            let mut scan = redis::cmd("HSCAN");
            scan.arg(hash).arg(cursor).arg("COUNT").arg(COUNT);
            let scanned = self.masters.read(hash, &scan).await;
            let (master, (next, fields)): (usize, (u64, Vec<Field>)) =
                match scanned.map_err(|error| Error::new(self.cache, &error)) {
                    Ok(scanned) => scanned,
                    // It is no hash: no client of this dialect has written it.
                    Err(error) if error.kind == Kind::Futile => {
                        tracing::error!(cache = self.cache.name, "{}; passed over by a sweep", error.sentence);
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                };
            // A cursor says nothing on another server.
            if asked.replace(master).is_some_and(|before| before != master) && cursor != 0 {
                cursor = 0;
                continue;
            }
            let (before, draw) = (self.swept, Draw::new(self.cache));
            let (mut owed, mut stale) = (Vec::new(), BTreeSet::new());
            let mut found = 0;
            for (record, tags) in &fields {
                let tags = serde_json::from_slice::<Vec<serde_json::Value>>(tags);
                // What cannot be read could have any tag.
                let unreadable = tags.is_err();
                let texts = tags.iter().flatten().filter_map(|tag| tag.as_str());
                let matching: Vec<&str> = texts.filter(|tag| matcher.matches(tag.as_bytes())).collect();
                if !entry.is_empty() && (unreadable || !matching.is_empty()) {
                    found += 1;
                    let fill = Fill { member: record, ..draw.fill(b"") };
                    let steps = entry.iter().filter_map(|step| act(&step.action, step.key.render(&fill), &fill));
                    owed.extend(in_turns(steps));
                } else {
                    stale.extend(matching.into_iter().map(str::to_owned));
                }
            }
            found += stale.len();
            owed.extend(stale.iter().flat_map(|tag| commands(self.cache, tag.as_bytes(), draw)));
            self.send(owed, found).await?;
            if next == 0 {
                return Ok(());
            }
            cursor = next;
            sleep(self.pace.pause(begin.elapsed(), self.swept - before)).await;
        }
    }

    /// Sends a slice for `found` keys. One key that refuses its command for ever must not hold up all others.
    async fn send(&mut self, commands: Vec<Command>, found: usize) -> Result<(), Error> {
        self.swept += found as u64;
        if self.pace.dry_run {
            return Ok(());
        }
        let mut replies = Replies::default();
        let commands = commands.into_iter().map(|command| (0, command)).collect();
        exchange(self.cache, &mut self.masters, Vec::new(), commands, &mut replies).await?;
        replies.all_answered()?;
        match replies.refusal {
            // The ACL is mended some day, and the sweep done again; a key that refuses its command is not, and a sweep that never ends would make all others
            // stale all the time.
            Some(refusal) if refusal.kind == Kind::Forbidden => return Err(*refusal),
            Some(refusal) => self.tell(1, &refusal),
            None => {}
        }
        replies.futile.iter().for_each(|futile| self.tell(futile.0, &futile.1));
        Ok(())
    }

    fn tell(&self, commands: u64, error: &Error) {
        tracing::error!(cache = self.cache.name, commands, "{}; passed over by a sweep", error.sentence);
    }

    /// What is done to a key that was found.
    fn on_found(&self, key: &[u8], draw: Draw) -> Vec<Command> {
        let cache = self.cache;
        let starts = |head: &[u8]| key.starts_with(head);
        let drop = |key: Vec<u8>| act(&Action::Unlink, key, &draw.fill(b""));
        for way in &cache.reach.ways {
            match way {
                Way::Records { head, except } if starts(head) => {
                    let is_record = except.is_empty() || !key.windows(except.len()).any(|window| window == except);
                    return if is_record { drop(key.to_vec()).into_iter().collect() } else { Vec::new() };
                }
                Way::Entries { head, record } if starts(head) => {
                    let fill = Fill { member: key.get(head.len()..).unwrap_or_default(), ..draw.fill(b"") };
                    return in_turns([record.render(&fill), key.to_vec()].into_iter().filter_map(drop)).collect();
                }
                Way::Tables { head, step } if starts(head) => {
                    return act(&step.action, key.to_vec(), &draw.fill(b"")).into_iter().collect();
                }
                _ => {}
            }
        }
        // Where the tag can be read off the key, everything that is sent for it: buses are told as well.
        if let Some(tag) = self.own.iter().find_map(|(step, _)| step.key.tag_of(key)) {
            return commands(cache, tag, draw).collect();
        }
        let fill = draw.fill(b"");
        let own = self.own.iter().filter(|(_, known)| known.matches(key));
        own.flat_map(|(step, _)| on_key(cache, step, key.to_vec(), &fill)).collect()
    }
}
