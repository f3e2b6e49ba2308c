//! Tags that Redis refuses to touch, because of an ACL or of what stands under their keys. They are not stale, so nothing behind them is
//! called done; the others go on, and they are tried again.

use std::time::Duration;

use tokio::time::Instant;

use super::super::batch::Batch;
use super::super::repeats::PORTION;
use crate::source::lsn::Lsn;
use crate::tags::Tags;

/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(5);

/// What was refused, and when it is tried again.
#[derive(Default)]
pub(super) struct Refused {
    /// What is tried, how many of its tags were, and what is refused again meanwhile.
    batch: Batch,
    tried: usize,
    again_refused: Batch,
    /// More than may be kept: everything that the rules reach stands for what came behind this position.
    overflow: Option<Lsn>,
    again: Option<Instant>,
}

impl Refused {
    /// A tag of a transaction behind `floor`; `most` bytes are kept.
    pub fn add(&mut self, tag: &[u8], floor: Lsn, most: usize) {
        match self.size() < most {
            true => self.again_refused.insert(tag, floor),
            false => self.overflow = Some(self.overflow.map_or(floor, |own| own.min(floor))),
        }
        self.again.get_or_insert_with(|| Instant::now() + AGAIN);
    }

    /// When they are tried again.
    pub fn due(&self) -> Option<Instant> {
        self.again
    }

    /// Hands out a portion, if the time has come, with the position that it holds back: others must not wait behind all of it.
    pub fn take(&mut self, now: Instant) -> Option<(Tags, Lsn)> {
        self.again.take_if(|again| *again <= now)?;
        if self.tried >= self.batch.tags.len() {
            (self.batch, self.tried) = (std::mem::take(&mut self.again_refused), 0);
        }
        let floor = self.batch.floor?;
        let mut portion = Tags::default();
        for tag in self.batch.tags.iter().skip(self.tried).take(PORTION) {
            portion.insert(tag);
        }
        self.tried += portion.len();
        if self.tried >= self.batch.tags.len() {
            (self.batch, self.tried) = (Batch::default(), 0);
        }
        // In case nobody ever says what became of this one.
        self.again = (self.len() > 0).then(|| now + AGAIN);
        Some((portion, floor))
    }

    /// A portion was taken by Redis: the next follows at once.
    pub fn go_on(&mut self) {
        if self.len() > 0 {
            self.again = Some(Instant::now());
        }
    }

    /// Everything that was kept has been taken: what could not be kept is owed a sweep, behind this position.
    pub fn overflow(&mut self) -> Option<Lsn> {
        let is_empty = self.len() == 0;
        self.overflow.take_if(|_| is_empty)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.batch.tags.len() - self.tried + self.again_refused.tags.len()
    }

    /// The position that they hold back.
    pub fn floor(&self) -> Option<Lsn> {
        [self.batch.floor, self.again_refused.floor, self.overflow].into_iter().flatten().min()
    }

    /// Bytes that they hold.
    pub fn size(&self) -> usize {
        self.batch.tags.size() + self.again_refused.tags.size()
    }
}
