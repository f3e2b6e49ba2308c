//! Owed repeats: tags that are made stale again after a while, because a reader that was computing during the first pass
//! may have stored what it read before.
//!
//! One queue per delay, in order of arrival. Delays count from the acknowledgement of the first pass. What exceeds the
//! share of memory is kept in a file that has no name and vanishes with the process: a crash replays it from the slot.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::batch::Batch;
use crate::source::lsn::Lsn;
use crate::tags::Tags;

/// Batches acknowledged within this are repeated together: thousands of small ones a second become twenty.
const GRAIN: Duration = Duration::from_millis(50);
/// Tags of one repeated pass: a first pass that arrives meanwhile waits for no more than this.
pub const PORTION: usize = 1_000;

/// Bytes after which a new file is begun: what is no longer owed frees its disk in steps of this.
const SEGMENT: u64 = 16 << 20;

/// The repeats of one cache.
pub struct Repeats {
    delays: Vec<Duration>,
    queues: Vec<VecDeque<Owed>>,
    share: usize,
    spill: Option<Spill>,
}

/// Tags of passes that are due.
#[derive(Default)]
pub struct Taken {
    /// The tags, in order.
    pub tags: Tags,
    /// How many were taken of which queue, one by one: a tag may stand in several.
    parts: Vec<(usize, usize)>,
}

/// Tags that are owed another pass.
struct Owed {
    opened: Instant,
    acknowledged: Instant,
    floor: Lsn,
    tags: Kept,
    /// Tags that this pass has sent already.
    sent: usize,
}

enum Kept {
    Memory(Tags),
    File { file: Rc<File>, offset: u64, length: usize },
}

/// The nameless file that is written now. It vanishes with the last batch in it; the next one starts at [`SEGMENT`] bytes.
struct Spill {
    file: Rc<File>,
    end: u64,
}

impl Repeats {
    /// Passes after these delays (ascending), within `share` bytes of memory.
    pub fn new(delays: &[Duration], share: usize) -> Repeats {
        let queues = delays.iter().map(|_| VecDeque::new()).collect();
        Repeats { delays: delays.to_vec(), queues, share, spill: None }
    }

    /// Passes after other delays from now on. What is owed a pass that is no longer wanted gets the next longer one, if there is.
    pub fn set_delays(&mut self, delays: &[Duration]) {
        if delays == self.delays {
            return;
        }
        let before = std::mem::replace(&mut self.delays, delays.to_vec());
        let owed = std::mem::take(&mut self.queues);
        self.queues = delays.iter().map(|_| VecDeque::new()).collect();
        for (delay, queue) in before.into_iter().zip(owed) {
            let next = self.delays.iter().position(|new| *new >= delay);
            if let Some(into) = next.and_then(|next| self.queues.get_mut(next)) {
                into.extend(queue);
                into.make_contiguous().sort_by_key(|owed| owed.acknowledged);
            }
        }
    }

    /// Takes a batch whose pass was acknowledged now; hands it back if it is owed no other.
    pub fn owe(&mut self, batch: Batch) -> Option<Batch> {
        let (Some(floor), Some(queue)) = (batch.floor, self.queues.first_mut()) else { return Some(batch) };
        let now = Instant::now();
        if let Some(Owed { opened, acknowledged, floor: own, tags: Kept::Memory(tags), sent: 0 }) = queue.back_mut()
            && now - *opened < GRAIN
        {
            tags.extend(&batch.tags);
            (*acknowledged, *own) = (now, floor.min(*own));
            return Some(batch);
        }
        queue.push_back(Owed { opened: now, acknowledged: now, floor, tags: Kept::Memory(batch.tags), sent: 0 });
        self.keep_to_share(0);
        None
    }

    /// The front of the queue that is due cannot be read back: it is dropped, and what it was for is told.
    pub fn give_up(&mut self, now: Instant) -> Option<Lsn> {
        let (stage, _) = self.fronts().find(|(_, due)| *due <= now)?;
        self.queues.get_mut(stage)?.pop_front().map(|owed| owed.floor)
    }

    /// When the next pass is due.
    pub fn due(&self) -> Option<Instant> {
        self.fronts().map(|(_, due)| due).min()
    }

    /// How late the oldest pass is; nothing while none is due.
    pub fn overdue(&self, now: Instant) -> Option<Duration> {
        self.due().and_then(|due| now.checked_duration_since(due))
    }

    /// The next tags of passes that are due, about `most`. They are owed until [`Repeats::done`].
    pub fn take(&mut self, now: Instant, most: usize) -> io::Result<Taken> {
        let mut taken = Taken::default();
        let mut room = most;
        // The one that is latest comes first, or the second repeats would wait for all first ones.
        let mut stages: Vec<(usize, Instant)> = self.fronts().collect();
        stages.sort_by_key(|(_, due)| *due);
        for (stage, _) in stages {
            let (Some(queue), Some(delay)) = (self.queues.get_mut(stage), self.delays.get(stage)) else { continue };
            for owed in queue.iter_mut().take_while(|owed| owed.acknowledged + *delay <= now) {
                if room == 0 {
                    return Ok(taken);
                }
                if let Kept::File { file, offset, length } = &owed.tags {
                    match read_back(file, *offset, *length) {
                        Ok(tags) => owed.tags = Kept::Memory(tags),
                        // It is given up when it is the front.
                        Err(_) if !taken.parts.is_empty() => return Ok(taken),
                        Err(error) => return Err(error),
                    }
                }
                let Kept::Memory(tags) = &owed.tags else { continue };
                let count = (tags.len() - owed.sent).min(room);
                tags.iter().skip(owed.sent).take(count).for_each(|tag| {
                    taken.tags.insert(tag);
                });
                taken.parts.push((stage, count));
                room -= count;
            }
        }
        Ok(taken)
    }

    /// What was taken was acknowledged. A finished pass moves on to the next delay; the position before the oldest that had its last one.
    pub fn done(&mut self, taken: &Taken) -> Option<Lsn> {
        let last = self.queues.len().checked_sub(1);
        let mut floor: Option<Lsn> = None;
        for (stage, count) in &taken.parts {
            // Other delays came meanwhile.
            let Some(owed) = self.queues.get_mut(*stage).and_then(VecDeque::front_mut) else { continue };
            owed.sent += count;
            if Some(*stage) == last {
                floor = Some(floor.map_or(owed.floor, |floor| floor.min(owed.floor)));
            }
            let left = match &owed.tags {
                Kept::Memory(tags) => tags.len().saturating_sub(owed.sent),
                Kept::File { .. } => 0,
            };
            if left > 0 {
                continue;
            }
            let finished = self.queues.get_mut(*stage).and_then(VecDeque::pop_front);
            if let (Some(owed), Some(next)) = (finished, self.queues.get_mut(stage + 1)) {
                next.push_back(Owed { sent: 0, ..owed });
                self.keep_to_share(stage + 1);
            }
        }
        floor
    }

    /// The position before the oldest transaction that is owed a repeat.
    pub fn floor(&self) -> Option<Lsn> {
        self.queues.iter().flatten().map(|owed| owed.floor).min()
    }

    /// Bytes in memory.
    pub fn size(&self) -> usize {
        let sizes = self.queues.iter().flatten().map(|owed| match &owed.tags {
            Kept::Memory(tags) => tags.size(),
            Kept::File { .. } => 0,
        });
        sizes.sum()
    }

    /// Is nothing owed?
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    fn fronts(&self) -> impl Iterator<Item = (usize, Instant)> {
        let fronts = self.queues.iter().zip(&self.delays).enumerate();
        fronts.filter_map(|(stage, (queue, delay))| Some((stage, queue.front()?.acknowledged + *delay)))
    }

    /// Beyond the share, the newest of a queue goes to the file: it is needed last.
    fn keep_to_share(&mut self, stage: usize) {
        if self.size() <= self.share {
            return;
        }
        let Some(owed) = self.queues.get_mut(stage).and_then(VecDeque::back_mut) else { return };
        let Kept::Memory(tags) = &owed.tags else { return };
        match write_away(&mut self.spill, tags) {
            Ok(kept) => owed.tags = kept,
            Err(error) => tracing::warn!("owed repeats stay in memory: no temporary file ({error})"),
        }
    }
}

fn write_away(spill: &mut Option<Spill>, tags: &Tags) -> io::Result<Kept> {
    let mut bytes = Vec::with_capacity(tags.size());
    for tag in tags.iter() {
        bytes.extend_from_slice(&(tag.len() as u32).to_be_bytes());
        bytes.extend_from_slice(tag);
    }
    let spill = match spill.take().filter(|spill| spill.end < SEGMENT) {
        Some(open) => spill.insert(open),
        None => spill.insert(Spill { file: Rc::new(tempfile::tempfile()?), end: 0 }),
    };
    spill.file.write_all_at(&bytes, spill.end)?;
    let kept = Kept::File { file: spill.file.clone(), offset: spill.end, length: bytes.len() };
    spill.end += bytes.len() as u64;
    Ok(kept)
}

fn read_back(file: &File, offset: u64, length: usize) -> io::Result<Tags> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    let (mut tags, mut rest) = (Tags::default(), bytes.as_slice());
    while let Some((head, after)) = rest.split_first_chunk::<4>() {
        let Some((tag, after)) = after.split_at_checked(u32::from_be_bytes(*head) as usize) else { break };
        tags.insert(tag);
        rest = after;
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(tags: &[&str], floor: u64) -> Batch {
        let mut batch = Batch::default();
        for tag in tags {
            batch.tags.insert(tag.as_bytes());
        }
        batch.floor = Some(Lsn(floor));
        batch
    }

    fn texts(tags: &Tags) -> Vec<String> {
        tags.iter().map(|tag| String::from_utf8(tag.to_vec()).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn each_delay_in_turn_counted_from_the_first_pass() {
        let mut repeats = Repeats::new(&[Duration::from_secs(1), Duration::from_secs(5)], 1 << 20);
        let begin = Instant::now();
        assert!(repeats.owe(batch(&["a"], 100)).is_none());
        assert!(repeats.owe(batch(&["b", "a"], 90)).is_some(), "joined: within the same grain");
        assert_eq!((repeats.due(), repeats.floor()), (Some(begin + Duration::from_secs(1)), Some(Lsn(90))));
        let take = |repeats: &mut Repeats| repeats.take(Instant::now(), PORTION).unwrap();
        assert!(take(&mut repeats).tags.is_empty() && repeats.overdue(Instant::now()).is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        let taken = take(&mut repeats);
        assert_eq!(texts(&taken.tags), ["a", "b"]);
        assert_eq!(repeats.done(&taken), None, "another is owed");
        assert_eq!((repeats.due(), repeats.floor()), (Some(begin + Duration::from_secs(5)), Some(Lsn(90))));
        tokio::time::advance(Duration::from_secs(4)).await;
        let taken = take(&mut repeats);
        assert_eq!(repeats.done(&taken), Some(Lsn(90)));
        assert!(repeats.is_empty() && repeats.floor().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_is_sent_in_portions_and_a_lost_one_again() {
        let mut repeats = Repeats::new(&[Duration::ZERO], 1 << 20);
        let all: Vec<String> = (0..2_500).map(|number| format!("t:{number}")).collect();
        repeats.owe(batch(&all.iter().map(String::as_str).collect::<Vec<_>>(), 1));
        let lost = repeats.take(Instant::now(), PORTION).unwrap();
        let mut seen = Vec::new();
        while !repeats.is_empty() {
            let taken = repeats.take(Instant::now(), PORTION).unwrap();
            seen.extend(texts(&taken.tags));
            repeats.done(&taken);
        }
        assert_eq!((lost.tags.len(), seen), (PORTION, all));
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_share_they_lie_in_a_file() {
        let mut repeats = Repeats::new(&[Duration::from_secs(1)], 100);
        for round in 0..20 {
            let tags: Vec<String> = (0..10).map(|number| format!("tag:{round}:{number}")).collect();
            repeats.owe(batch(&tags.iter().map(String::as_str).collect::<Vec<_>>(), round));
            tokio::time::advance(GRAIN).await;
        }
        assert!(repeats.size() <= 300, "{}", repeats.size());
        tokio::time::advance(Duration::from_secs(1)).await;
        let mut seen = Vec::new();
        while !repeats.is_empty() {
            let taken = repeats.take(Instant::now(), 15).unwrap();
            seen.extend(texts(&taken.tags));
            repeats.done(&taken);
        }
        assert_eq!(seen.len(), 200);
        assert_eq!((seen[0].as_str(), seen[199].as_str()), ("tag:0:0", "tag:19:9"));
        assert_eq!(repeats.spill.as_ref().map(|spill| Rc::strong_count(&spill.file)), Some(1), "nothing in it is owed");
    }
}
