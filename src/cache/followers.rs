//! Applications that read from standbys: what was made stale is made stale again once each standby has replayed past the commit, or a
//! reader there would store the old row for good.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::Notify;

use super::batch::Batch;
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
    /// More was owed than may be kept: everything goes stale once this was replayed; it holds back the second position.
    overflow: Option<(Lsn, Lsn)>,
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
}

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
        };
        let replicas = endpoints.iter().map(follower).collect();
        let moving = wait(&moved);
        Followers { replicas, held: VecDeque::new(), size: 0, share, overflow: None, moved, moving }
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
            self.overflow = Some((until, floor));
            self.held.clear();
            self.size = 0;
        }
        self.replicas.iter().for_each(|follower| follower.replica.want(true));
    }

    /// Everything up to here is visible on every standby that is there.
    fn replayed(&self) -> Option<Lsn> {
        let there = self.replicas.iter().filter(|follower| !follower.away);
        there
            .map(|follower| follower.seen.then(|| follower.replica.replayed()).and_then(position))
            .min()
            .unwrap_or(Some(Lsn(u64::MAX)))
    }

    /// Looks at the standbys. `began` is where this process began, `end` what was received. True if everything has to go stale, with the
    /// position that the sweep holds back.
    pub fn look(&mut self, began: Lsn, end: Lsn) -> Option<Lsn> {
        let mut everything = None;
        for follower in &mut self.replicas {
            match follower.replica.replayed() {
                Replayed::Away => (follower.away, follower.seen) = (true, true),
                Replayed::Up(replayed) => {
                    if std::mem::replace(&mut follower.away, false) {
                        follower.catch_up = Some(end);
                    } else if !follower.seen && replayed < began {
                        follower.catch_up = Some(began);
                    }
                    follower.seen = true;
                    if follower.catch_up.is_some_and(|wanted| replayed >= wanted) {
                        follower.catch_up = None;
                        everything = Some(end);
                    }
                }
                Replayed::Unknown => {}
            }
        }
        if let Some((until, floor)) = self.overflow
            && self.replayed() >= Some(until)
        {
            self.overflow = None;
            everything = Some(floor);
        }
        everything
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
        if self.held.is_empty() && self.overflow.is_none() {
            self.replicas.iter().for_each(|follower| follower.replica.want(false));
        }
        Some(Batch { tags, floor: Some(floor), committed: None })
    }

    /// The position that they hold back.
    pub fn floor(&self) -> Option<Lsn> {
        let overflow = self.overflow.map(|(_, floor)| floor);
        self.held.iter().map(|held| held.floor).chain(overflow).min()
    }

    /// Nothing is owed any more: the cache is detached.
    pub fn forget(&mut self) {
        self.held.clear();
        (self.size, self.overflow) = (0, None);
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
