//! Is the server's history the one that we know? A data directory that was put back to an older copy, and has written its log anew past
//! everything that we remember, has the same identity and looks like the server of before. What it cannot have is the last commit that arrived here, at
//! its place: a stream that starts before it must bring it again.

use std::fmt;
use std::str::FromStr;

use crate::source::clock::Timestamp;
use crate::source::lsn::{Lsn, Xid};

/// Commits that are remembered for caches that were not asked yet what they know: 2 MiB.
const MOST: usize = 65_536;

/// A commit, told from every other one at its place by number and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The position behind it.
    pub end: Lsn,
    /// Its transaction.
    pub xid: Xid,
    /// When, by the server's clock.
    pub at: Timestamp,
    /// The publication of inserts was streamed: without it a commit may not come again that came with it.
    pub with_inserts: bool,
}

/// As it stands in a marker: `0/16B3748 734 815216553000000`.
impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inserts = if self.with_inserts { " inserts" } else { "" };
        write!(f, "{} {} {}{inserts}", self.end, self.xid.0, self.at.0)
    }
}

impl FromStr for Commit {
    type Err = ();

    fn from_str(text: &str) -> Result<Commit, ()> {
        let mut words = text.split(' ');
        let (end, xid, at) = (words.next().ok_or(())?, words.next().ok_or(())?, words.next().ok_or(())?);
        Ok(Commit {
            end: end.parse().map_err(|_| ())?,
            xid: Xid(xid.parse().map_err(|_| ())?),
            at: Timestamp(at.parse().map_err(|_| ())?),
            with_inserts: words.next() == Some("inserts"),
        })
    }
}

/// Has a commit that is known come again?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has, or the stream starts behind it.
    Same,
    /// It is still to come.
    Open,
    /// Its place was passed without it, or too many have passed to remember whether it was among them.
    Another,
}

/// The commits of this stream.
#[derive(Default)]
pub struct History {
    /// Behind which this stream has begun, and what it has brought: of what comes again, this process has received more before.
    began: Lsn,
    reached: Lsn,
    /// The last that ever arrived here.
    last: Option<Commit>,
    /// The last of the streams before, until it has come again.
    expected: Option<Commit>,
    /// Those of this stream, for as long as somebody may ask.
    seen: Vec<Commit>,
    collects: bool,
    with_inserts: bool,
}

impl History {
    /// A stream begins behind this position.
    pub fn begin(&mut self, position: Lsn, with_inserts: bool) {
        self.with_inserts = with_inserts;
        (self.began, self.reached) = (position, position);
        self.expected = self.last.filter(|last| last.end > position && last.with_inserts == with_inserts);
        (self.seen, self.collects) = (Vec::new(), true);
    }

    /// A transaction has arrived as a whole.
    pub fn committed(&mut self, end: Lsn, xid: Xid, at: Timestamp) {
        let commit = Commit { end, xid, at, with_inserts: self.with_inserts };
        self.passes(commit.end);
        if self.expected == Some(commit) {
            self.expected = None;
        }
        // What comes again is no news.
        if self.last.is_none_or(|last| last.end < commit.end) {
            self.last = Some(commit);
        }
        if self.collects && self.seen.len() < MOST {
            self.seen.push(commit);
        }
    }

    /// Everything up to here has arrived with this stream.
    pub fn passes(&mut self, position: Lsn) {
        self.reached = self.reached.max(position);
    }

    /// Nobody has to be asked any more what it knows.
    pub fn forget(&mut self) {
        (self.seen, self.collects) = (Vec::new(), false);
    }

    /// The last commit that arrived.
    pub fn last(&self) -> Option<Commit> {
        self.last
    }

    /// Is it the history of the streams before?
    pub fn verdict(&self) -> Verdict {
        match self.expected {
            None => Verdict::Same,
            Some(expected) if self.reached < expected.end => Verdict::Open,
            Some(_) => Verdict::Another,
        }
    }

    /// The same for a commit that a cache knows.
    pub fn verdict_of(&self, known: &Commit) -> Verdict {
        if known.end <= self.began
            || known.with_inserts != self.with_inserts
            || self.seen.contains(known)
            || self.last == Some(*known)
        {
            return Verdict::Same;
        }
        match self.reached >= known.end {
            false => Verdict::Open,
            // Every cache has told what it knows, and this process has written the markers since.
            true if !self.collects => Verdict::Same,
            true => Verdict::Another,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(end: u64, xid: u32) -> Commit {
        Commit { end: Lsn(end), xid: Xid(xid), at: Timestamp(7), with_inserts: false }
    }

    fn committed(history: &mut History, end: u64, xid: u32) {
        history.committed(Lsn(end), Xid(xid), Timestamp(7));
    }

    #[test]
    fn a_commit_that_does_not_come_again_is_of_another_history() {
        let mut history = History::default();
        history.begin(Lsn(100), false);
        assert_eq!(history.verdict(), Verdict::Same, "nothing is known");
        committed(&mut history, 200, 1);
        committed(&mut history, 300, 2);
        history.begin(Lsn(300), false);
        history.passes(Lsn(900));
        assert_eq!(history.verdict(), Verdict::Same, "the stream starts behind it");
        history.begin(Lsn(100), false);
        assert_eq!(history.verdict(), Verdict::Open, "it was received before, and not with this stream");
        history.passes(Lsn(299));
        assert_eq!(history.verdict(), Verdict::Open);
        committed(&mut history, 300, 9);
        assert_eq!(history.verdict(), Verdict::Another, "at its place, but another one");
        history.begin(Lsn(100), false);
        committed(&mut history, 300, 2);
        assert_eq!(history.verdict(), Verdict::Same);
        history.begin(Lsn(100), false);
        history.passes(Lsn(300));
        assert_eq!(history.verdict(), Verdict::Another, "nothing at its place");
    }

    #[test]
    fn what_a_cache_knows() {
        let mut history = History::default();
        history.begin(Lsn(100), false);
        committed(&mut history, 200, 1);
        committed(&mut history, 300, 2);
        let verdict = |known: Commit| history.verdict_of(&known);
        assert_eq!(verdict(commit(100, 5)), Verdict::Same, "the stream starts behind it");
        assert_eq!(verdict(commit(200, 1)), Verdict::Same);
        assert_eq!(verdict(commit(200, 2)), Verdict::Another);
        assert_eq!(verdict(commit(250, 2)), Verdict::Another);
        assert_eq!(verdict(commit(400, 3)), Verdict::Open);
        assert_eq!(verdict(Commit { with_inserts: true, ..commit(250, 2) }), Verdict::Same, "of another publication");
        let text = commit(0x1_0000_00ff, 7).to_string();
        assert_eq!((text.as_str(), text.parse()), ("1/FF 7 7", Ok(commit(0x1_0000_00ff, 7))));
        assert!("".parse::<Commit>().is_err() && "0/1 2".parse::<Commit>().is_err());
    }
}
