//! Applications that read from standbys: what was made stale is made stale again once each standby has replayed past the commit, or a
//! reader there would store the old row for good.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::Notify;

use super::batch::Batch;
use super::gap::Scope;
use crate::source::endpoint::Endpoint;
use crate::source::lsn::Lsn;
use crate::source::replica::{Replayed, Replica};
use crate::tags::Tags;

/// The standbys of one cache, and what is owed to their readers.
pub struct Followers {
    replicas: Vec<Follower>,
    held: VecDeque<Held>,
    size: usize,
    share: usize,
    /// A sweep, or more than may be kept: it goes stale once this was replayed, and holds back the second position. What comes meanwhile
    /// waits for its turn, or the position to be replayed would move away for ever.
    sweep: Option<Owed>,
    next_sweep: Option<Owed>,
    moved: Arc<Notify>,
    moving: Pin<Box<dyn Future<Output = ()>>>,
}

struct Follower {
    replica: Replica,
    /// It has answered at least once.
    seen: bool,
    /// It was away for too long, or is behind where this process began: everything goes stale once it has replayed this.
    catch_up: Option<Lsn>,
    away: bool,
    /// The marker says that one was away when it was written last.
    suspect: bool,
}

/// What is swept once it was replayed up to a position, and the position that it holds back.
type Owed = (Scope, Lsn, Lsn);

/// Tags that their replicas have not replayed yet.
struct Held {
    until: Lsn,
    floor: Lsn,
    tags: Tags,
}

impl Followers {
    /// Begins to watch the standbys. What is owed to their readers gets `share` bytes.
    pub fn watch(endpoints: &[Endpoint], name: &str, share: usize) -> Followers {
        let moved = Arc::new(Notify::new());
        let follower = |endpoint: &Endpoint| Follower {
            replica: Replica::watch(endpoint.clone(), name.to_owned(), moved.clone()),
            seen: false,
            catch_up: None,
            away: false,
            suspect: false,
        };
        let replicas = endpoints.iter().map(follower).collect();
        let moving = wait(&moved);
        Followers { replicas, held: VecDeque::new(), size: 0, share, sweep: None, next_sweep: None, moved, moving }
    }

    /// Ready when a standby has moved.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.moving.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.moving = wait(&self.moved);
        Poll::Ready(())
    }

    /// A batch whose first pass was acknowledged; nothing after `until` is in it.
    pub fn hold(&mut self, batch: &Batch, until: Lsn) {
        let (false, Some(floor)) = (self.replicas.is_empty(), batch.floor) else { return };
        match self.held.back_mut() {
            Some(last) if last.until == until => {
                self.size -= last.tags.size();
                last.tags.extend(&batch.tags);
                last.floor = last.floor.min(floor);
                self.size += last.tags.size();
            }
            _ => {
                let mut tags = Tags::default();
                tags.extend(&batch.tags);
                self.size += tags.size();
                self.held.push_back(Held { until, floor, tags });
            }
        }
        if self.size > self.share {
            let floor = self.floor().unwrap_or(floor);
            self.held.clear();
            self.size = 0;
            self.sweep(Scope::everything(), until, floor);
        }
        self.replicas.iter().for_each(|follower| follower.replica.want(true));
    }

    /// What a sweep makes stale now goes stale again once everything up to `until` was replayed.
    pub fn sweep(&mut self, scope: Scope, until: Lsn, floor: Lsn) {
        if self.replicas.is_empty() {
            return;
        }
        if self.sweep.is_none() {
            self.sweep = Some((scope, until, floor));
        } else {
            self.next_sweep = Some(match self.next_sweep.take() {
                None => (scope, until, floor),
                Some((own, before, held)) => (own.and(scope), before.max(until), held.min(floor)),
            });
        }
        self.replicas.iter().for_each(|follower| follower.replica.want(true));
        // It may have been replayed already, by those that are there.
        self.moved.notify_one();
    }

    /// Has one been away, and not yet replayed what was written meanwhile? Until it has, the marker must say so: a restart would not
    /// know. Nothing without standbys.
    pub fn is_behind(&self) -> Option<bool> {
        let behind = |follower: &Follower| follower.away || follower.catch_up.is_some();
        (!self.replicas.is_empty()).then(|| self.replicas.iter().any(behind))
    }

    /// The process before left one behind: everything goes stale once each has replayed up to `began`.
    pub fn suspect(&mut self, began: Lsn) {
        for follower in &mut self.replicas {
            follower.suspect = true;
            follower.catch_up = follower.seen.then_some(began).filter(|_| !follower.away).or(follower.catch_up);
        }
        self.moved.notify_one();
    }

    /// Everything up to here is visible on every standby that is there.
    fn replayed(&self) -> Option<Lsn> {
        let there = self.replicas.iter().filter(|follower| !follower.away);
        there
            .map(|follower| follower.seen.then(|| follower.replica.replayed()).and_then(position))
            .min()
            .unwrap_or(Some(Lsn(u64::MAX)))
    }

    /// Looks at the standbys. In the log, `began` is where this process began, `end` behind all that was handed over. What has to go stale
    /// by a sweep, with the position that it holds back: `position` for what was missed.
    pub fn look(&mut self, began: Lsn, end: Lsn, position: Lsn) -> Option<(Scope, Lsn)> {
        let mut stale = None;
        for follower in &mut self.replicas {
            match follower.replica.replayed() {
                Replayed::Away => (follower.away, follower.seen) = (true, true),
                Replayed::Up(replayed) => {
                    if std::mem::replace(&mut follower.away, false) {
                        follower.catch_up = Some(end);
                    } else if !follower.seen && (follower.suspect || replayed < began) {
                        follower.catch_up = Some(began);
                    }
                    follower.seen = true;
                    if follower.catch_up.is_some_and(|wanted| replayed >= wanted) {
                        follower.catch_up = None;
                        stale = Some((Scope::everything(), position));
                    }
                }
                Replayed::Unknown => {}
            }
        }
        if self.sweep.as_ref().is_some_and(|(_, until, _)| self.replayed() >= Some(*until))
            && let Some((scope, _, floor)) = self.sweep.take()
        {
            self.sweep = self.next_sweep.take();
            stale = Some(match stale {
                None => (scope, floor),
                Some((own, before)) => (own.and(scope), floor.min(before)),
            });
            self.rest();
        }
        stale
    }

    /// With nothing owed the standbys are looked at seldom.
    fn rest(&self) {
        if self.held.is_empty() && self.sweep.is_none() {
            self.replicas.iter().for_each(|follower| follower.replica.want(false));
        }
    }

    /// The tags of the front, if every standby has replayed past them; they stay until [`Followers::done`].
    pub fn ready(&self) -> Option<&Tags> {
        let replayed = self.replayed();
        self.held.front().filter(|held| replayed >= Some(held.until)).map(|held| &held.tags)
    }

    /// The front was acknowledged: it goes on to the repeats.
    pub fn done(&mut self) -> Option<Batch> {
        let Held { floor, tags, .. } = self.held.pop_front()?;
        self.size -= tags.size();
        self.rest();
        Some(Batch { tags, floor: Some(floor), committed: None })
    }

    /// Bytes that wait and cannot be bounded otherwise.
    pub fn scope_size(&self) -> usize {
        self.sweep.iter().chain(&self.next_sweep).map(|(scope, ..)| scope.size()).sum()
    }

    /// The position that they hold back.
    pub fn floor(&self) -> Option<Lsn> {
        let sweeps = self.sweep.iter().chain(&self.next_sweep).map(|(_, _, floor)| *floor);
        self.held.iter().map(|held| held.floor).chain(sweeps).min()
    }

    /// Nothing is owed any more: the cache is detached.
    pub fn forget(&mut self) {
        self.held.clear();
        (self.size, self.sweep, self.next_sweep) = (0, None, None);
        self.rest();
    }

    /// Host and port of each, and whether it is there.
    pub fn places(&self) -> impl Iterator<Item = (&str, bool)> {
        self.replicas
            .iter()
            .map(|follower| (follower.replica.place.as_str(), matches!(follower.replica.replayed(), Replayed::Up(_))))
    }
}

fn position(replayed: Replayed) -> Option<Lsn> {
    match replayed {
        Replayed::Up(position) => Some(position),
        Replayed::Unknown | Replayed::Away => None,
    }
}

fn wait(moved: &Arc<Notify>) -> Pin<Box<dyn Future<Output = ()>>> {
    let moved = moved.clone();
    Box::pin(async move { moved.notified().await })
}
