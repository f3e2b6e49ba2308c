//! One pass over a Redis, in slices: it pauses as long as each slice took.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::Cache;
use super::super::command::{Command, Draw, act, commands, in_turns, on_key};
use super::super::connection::{Error, Kind};
use super::super::exchange::{Replies, exchange};
use super::super::formula::Fill;
use super::super::gap::Keys;
use super::super::masters::{self, Masters};
use super::super::pattern::{Matcher, Pattern, common_glob};
use super::super::reach::Way;
use super::super::step::{Action, Step};

/// Keys that Redis looks at per SCAN: calls of about a millisecond.
const COUNT: usize = 500;
/// The longest pause between two slices.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

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
    let mut pass = Pass { cache, own, masters: masters::open(cache, None).await?, pace, swept: 0 };
    let tags: Vec<&Vec<u8>> = tags.iter().collect();
    for slice in tags.chunks(COUNT) {
        let draw = Draw::new(cache);
        pass.send(slice.iter().flat_map(|tag| commands(cache, tag, draw)).collect(), slice.len()).await?;
    }
    if patterns.is_empty() {
        return Ok(pass.swept);
    }
    let (matcher, glob) = (Matcher::new(&patterns), common_glob(&patterns));
    // A key that moves to another master while both are looked at may be seen on neither. As long as the slots lie and move as they do it
    // goes one way: what a first pass missed has arrived before a second begins.
    let mut last = None;
    loop {
        let before = pass.layout().await?;
        pass.everywhere(&glob, &matcher).await?;
        let after = pass.layout().await?;
        let same = before == after;
        if same && (!after.is_moving || last.as_ref() == Some(&after)) {
            break;
        }
        last = same.then_some(after);
        pass.masters = masters::open(cache, None).await?;
    }
    let nobody = Draw::new(cache).fill(b"");
    let clear = cache.reach.clear.iter().filter_map(|step| act(&step.action, step.key.render(&nobody), &nobody));
    pass.send(clear.collect(), 0).await?;
    Ok(pass.swept)
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
}

impl Pass<'_> {
    async fn layout(&mut self) -> Result<masters::Layout, Error> {
        self.masters.layout().await.map_err(|error| Error::new(self.cache, &error))
    }

    /// Every way, on every master.
    async fn everywhere(&mut self, glob: &[u8], matcher: &Matcher<'_>) -> Result<(), Error> {
        let cache = self.cache;
        for way in &cache.reach.ways {
            if let Way::Index { hash, entry } = way {
                self.index(hash, entry, matcher).await?;
            }
        }
        if cache.reach.ways.iter().all(|way| matches!(way, Way::Index { .. })) {
            return Ok(());
        }
        for master in 0..self.masters.count() {
            self.keys(master, glob, matcher).await?;
        }
        Ok(())
    }

    /// SCAN, for keys that match.
    async fn keys(&mut self, master: usize, glob: &[u8], matcher: &Matcher<'_>) -> Result<(), Error> {
        let mut cursor = 0_u64;
        loop {
            let begin = Instant::now();
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(glob).arg("COUNT").arg(COUNT);
            let scanned = self.masters.ask(master, &scan).await;
            let (next, keys): (u64, Vec<Vec<u8>>) = scanned.map_err(|error| Error::new(self.cache, &error))?;
            // No pattern ever touches the markers.
            let owed = |key: &&Vec<u8>| !key.starts_with(b"waltag:") && matcher.matches(key);
            let (before, draw, mut commands) = (self.swept, Draw::new(self.cache), Vec::new());
            let mut found = 0;
            for key in keys.iter().filter(owed) {
                let more = self.on_found(key, draw);
                found += usize::from(!more.is_empty());
                commands.extend(more);
            }
            self.send(commands, found).await?;
            if next == 0 {
                return Ok(());
            }
            cursor = next;
            sleep(self.pace.pause(begin.elapsed(), self.swept - before)).await;
        }
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
        exchange(self.cache, &mut self.masters, Vec::new(), commands, &mut replies).await?;
        if let Some(futile) = replies.futile {
            tracing::error!(
                cache = self.cache.name,
                commands = futile.0,
                "{}; passed over by a sweep",
                futile.1.sentence
            );
        }
        Ok(())
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
