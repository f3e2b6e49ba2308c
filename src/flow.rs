//! The path of a row: message -> plan -> tags of the open transaction -> fence -> lanes.
//!
//! Everything here is synchronous; [`crate::daemon`] feeds it and moves what it hands out.

pub mod history;
pub mod said;
pub mod truncations;

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::cache::Cache;
use crate::cache::gap::Gap;
use crate::cache::lane::{self, Lane};
use crate::cache::marker::Witness;
use crate::fence::{Fence, Waiting};
use crate::http::Reached;
use crate::metrics::Metrics;
use crate::rules::Rules;
use crate::rules::events::{EVENTS, Event};
use crate::setup::catalog::Catalog;
use crate::source::clock::Timestamp;
use crate::source::lsn::{Lsn, Xid};
use crate::source::replication::pgoutput::Message;
use crate::source::replication::relations::{Relations, Undescribed};
use crate::source::visibility::{QUERY, QUERY_WITH_NEWEST, Snapshot};
use crate::tags::Stale;
use history::History;
use said::{Ear, Late, Word};
use truncations::Truncations;

/// A transaction of any size passes in pieces of this many bytes: protocol 1 sends it only after its commit, so tags may go
/// out before its Commit message arrives.
const PIECE: usize = 256 << 10;
/// A resync asks this often whether the transactions have ended that it waits for.
const RESYNC_LOOK: Duration = Duration::from_millis(50);

/// Everything between the stream and Redis.
pub struct Flow {
    rules: Rc<Rules>,
    /// Tables that the stream described.
    pub relations: Relations,
    /// Who names tags in SQL, and which.
    pub ear: Ear,
    /// What readers do not see yet.
    pub fence: Fence,
    fenced: bool,
    /// Tables that were emptied.
    pub truncations: Truncations,
    /// Commits by which the server is known again.
    pub history: History,
    /// What the source has written down of its position, where that is not in the log.
    kept: Option<Lsn>,
    /// One per cache of the rules.
    pub lanes: Vec<Lane>,
    open: Option<Open>,
    received: Lsn,
    /// Every commit that has begun to arrive ends before this.
    end: Lsn,
    /// When the last snapshot was looked at.
    looked: Instant,
    metrics: Arc<Metrics>,
    changes: [(Event, Counter); 4],
}

/// The transaction that is being received.
struct Open {
    xid: Xid,
    floor: Lsn,
    committed: Timestamp,
    stale: Vec<Stale>,
}

impl Open {
    fn size(&self) -> usize {
        self.stale.iter().map(Stale::size).sum()
    }
}

/// The server sent a message that does not fit what it sent before.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    /// Changes stand between Begin and Commit.
    #[error("the server sent a change outside of a transaction")]
    OutOfTurn,
    /// A Relation message comes before the first change of each relation.
    #[error(transparent)]
    Undescribed(#[from] Undescribed),
}

impl Flow {
    /// An empty flow.
    pub fn new(rules: Rc<Rules>, lanes: Vec<Lane>, metrics: Arc<Metrics>) -> Flow {
        let (relations, fence, looked) = (Relations::default(), Fence::default(), Instant::now());
        let changes = EVENTS.map(|(event, _)| (event, metrics.changes(event)));
        let truncations = Truncations::default();
        Flow {
            rules,
            relations,
            ear: Ear::default(),
            fence,
            fenced: true,
            truncations,
            history: History::default(),
            kept: None,
            lanes,
            open: None,
            received: Lsn(0),
            end: Lsn(0),
            looked,
            metrics,
            changes,
        }
    }

    /// Takes one message of the stream.
    pub fn take(&mut self, message: &Message) -> Result<(), Misfit> {
        match message {
            Message::Begin { xid, committed, final_lsn } => {
                // The commit record starts there.
                self.ends_before(Lsn(final_lsn.0.saturating_add(1)));
                let stale = self.nothing();
                self.open = Some(Open { xid: *xid, floor: self.received, committed: *committed, stale });
                return Ok(());
            }
            Message::Commit { end_lsn, .. } => {
                self.metrics.transactions.inc();
                self.pass_on(true);
                if let Some(Open { xid, committed, .. }) = self.open.take().filter(|_| self.fenced) {
                    self.history.committed(*end_lsn, xid, committed);
                }
                self.received = self.received.max(*end_lsn);
                self.ends_before(*end_lsn);
                return Ok(());
            }
            Message::Relation(relation) => {
                let open = self.open.as_ref().ok_or(Misfit::OutOfTurn)?;
                self.relations.describe(relation, open.xid, open.floor, &self.rules);
                return Ok(());
            }
            Message::Type { oid, namespace, name } => {
                self.relations.describe_type(*oid, namespace, name);
                return Ok(());
            }
            Message::Message { transactional: true, prefix, content } => {
                let Open { xid, floor, committed, stale } = self.open.as_mut().ok_or(Misfit::OutOfTurn)?;
                self.ear.hear((prefix, content), (*xid, *floor, *committed), &self.rules, stale, &self.metrics);
                self.pass_on_what_is_large();
                return Ok(());
            }
            Message::Other | Message::Message { .. } => return Ok(()),
            _ => {}
        }
        let open = self.open.as_mut().ok_or(Misfit::OutOfTurn)?;
        if let Message::Truncate { relations } = message {
            relations.iter().for_each(|relation| self.truncations.add(relation, open.xid, open.floor));
        }
        let Some((event, unlisted)) = self.relations.change(message, &mut open.stale)? else { return Ok(()) };
        self.metrics.unlisted.inc_by(unlisted);
        if let Some((_, counter)) = self.changes.iter().find(|(counted, _)| *counted == event) {
            counter.inc();
        }
        self.pass_on_what_is_large();
        Ok(())
    }

    /// Goes by another catalog: who may name tags in SQL, and which. What waited for it goes, or is passed over.
    pub fn hear_by(&mut self, word: Word, catalog: &Catalog) {
        for Late { xid, floor, committed, stale } in self.ear.learn(word, &self.rules, catalog, &self.metrics) {
            let waiting = Waiting { xid, floor, stale, committed, since: Instant::now() };
            if !self.fenced || self.fence.has_seen(xid) {
                self.send(&waiting);
            } else {
                self.fence.add(waiting);
            }
        }
    }

    fn pass_on_what_is_large(&mut self) {
        let ready = self.open.iter().flat_map(|open| &open.stale).map(Stale::ready).sum::<usize>();
        if ready > PIECE {
            self.pass_on(false);
        }
    }

    /// In the log, everything that was handed over ends before this; positions of a source that is not the log say nothing of it.
    fn ends_before(&mut self, log: Lsn) {
        if self.fenced {
            self.logged_before(log);
        }
    }

    /// The same where it has to be asked for.
    pub fn logged_before(&mut self, log: Lsn) {
        self.end = self.end.max(log);
    }

    /// The end of the log as far as it is known.
    pub fn log(&self) -> Lsn {
        // Where positions are those of the log, it has all of them.
        if self.fenced { self.end.max(self.received) } else { self.end }
    }

    /// The same, as far as any cache knows it.
    pub fn known_log(&self) -> Lsn {
        self.lanes.iter().map(Lane::log).fold(self.log(), Lsn::max)
    }

    /// What the source has written down of its position, where that is not in the log.
    pub fn kept(&self) -> Option<Lsn> {
        self.kept
    }

    /// The source has written down that everything up to here is done.
    pub fn keep(&mut self, position: Option<Lsn>) {
        self.kept = position;
    }

    /// The stream starts behind `position`: everything up to there was confirmed once. `fenced`: what it brings may not be visible yet.
    pub fn resume_at(&mut self, position: Lsn, fenced: bool, with_inserts: bool) {
        self.received = self.received.max(position);
        self.fenced = fenced;
        self.history.begin(position, with_inserts);
    }

    /// Changes may have been missed on the way here: everything that the rules can reach goes stale in every cache.
    pub fn resync(&mut self, gap: &Gap) {
        self.resync_those(gap, |_| true);
    }

    /// One cache has found that the server has another history: what the others know of the old one is as wrong, whatever their markers say.
    pub fn resync_all(&mut self, gap: &Gap) {
        let others = |lane: &Lane| lane.resyncing().is_none_or(|(known, _)| known.code != gap.code);
        self.resync_those(gap, others);
    }

    fn resync_those(&mut self, gap: &Gap, concerned: impl Fn(&Lane) -> bool) {
        let floor = self.floor();
        for lane in self.lanes.iter_mut().filter(|lane| concerned(lane)) {
            let name = lane.cache().name.clone();
            if lane.resyncing().is_none_or(|(known, _)| known.code != gap.code) {
                tracing::warn!(cache = name, "resync: {gap}");
            }
            self.metrics.gap(&name, gap.code);
            lane.resync(gap.clone(), floor);
        }
    }

    /// Is a transaction half received? Rules are replaced between two.
    pub fn is_within_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Takes other rules. A lane whose cache is the same goes on with what it has; `open` makes the others. Must not be called
    /// [within a transaction](Flow::is_within_transaction).
    pub fn adopt(&mut self, rules: Rc<Rules>, share: usize, open: impl Fn(&Cache) -> Lane) {
        let mut lanes: Vec<Option<Lane>> = self.lanes.drain(..).map(Some).collect();
        let mut origins = Vec::new();
        for cache in &rules.caches {
            let same = |lane: &Option<Lane>| lane.as_ref().is_some_and(|lane| lane.cache().is_same(cache));
            let origin = lanes.iter().position(same);
            let kept = origin.and_then(|index| lanes.get_mut(index)?.take());
            self.lanes.push(match kept {
                Some(mut lane) => {
                    lane.set_cache(cache.clone(), share, rules.caches.len() == 1);
                    lane
                }
                None => open(cache),
            });
            origins.push(origin);
        }
        self.fence.rearrange(&origins);
        self.relations.compile(&rules);
        self.rules = rules;
    }

    /// The stream was received up to here.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// A keepalive: everything up to `position` was decoded, and nothing of it was for us but what has arrived.
    pub fn keepalive(&mut self, position: Lsn) {
        if self.open.is_none() {
            self.history.passes(position);
            self.received = self.received.max(position);
        }
    }

    /// Hands the tags of the open transaction to the fence, or past it if readers see the transaction already. `whole`: it is
    /// complete.
    fn pass_on(&mut self, whole: bool) {
        let Some(open) = &mut self.open else { return };
        let stale: Vec<Stale> = open.stale.iter_mut().map(|stale| stale.take(whole)).collect();
        if stale.iter().all(Stale::is_empty) {
            return;
        }
        let Open { xid, floor, committed, .. } = *open;
        let waiting = Waiting { xid, floor, stale, committed, since: Instant::now() };
        if !self.fenced || self.fence.has_seen(xid) {
            self.send(&waiting);
        } else {
            self.fence.add(waiting);
        }
    }

    /// Sends what the snapshot shows as finished.
    pub fn release(&mut self, snapshot: &Snapshot) {
        self.looked = Instant::now();
        self.lanes.iter_mut().for_each(|lane| lane.observe(snapshot));
        for waiting in self.fence.release(snapshot) {
            let waited = waiting.since.elapsed();
            self.metrics.visibility_wait.observe(waited.as_secs_f64());
            tracing::debug!(xid = waiting.xid.0, ?waited, "visible");
            self.send(&waiting);
        }
    }

    fn send(&mut self, visible: &Waiting) {
        for (lane, stale) in self.lanes.iter_mut().zip(&visible.stale) {
            lane.add(&stale.tags, visible.floor, Some(visible.committed));
            if let Some(scope) = &stale.sweep {
                lane.sweep(scope.clone(), visible.floor);
            }
        }
    }

    fn nothing(&self) -> Vec<Stale> {
        self.lanes.iter().map(|_| Stale::default()).collect()
    }

    /// Everything up to here was handed to the lanes.
    pub fn floor(&self) -> Lsn {
        let open = self.open.as_ref().map(|open| open.floor);
        [
            Some(self.received),
            open,
            self.fence.floor(),
            self.truncations.floor(),
            self.relations.floor(),
            self.ear.floor(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or_default()
    }

    /// Tells the lanes how far they may go, and returns what all of them have acknowledged.
    pub fn advance(&mut self) -> Option<Lsn> {
        let floor = self.floor();
        let witness = Witness { log: self.known_log(), commit: self.history.last(), kept: self.kept };
        for lane in &mut self.lanes {
            lane.advance(floor, self.end, witness);
            lane.wake();
        }
        self.marked()
    }

    /// The position that every attached lane has acknowledged; none while none is attached.
    pub fn marked(&self) -> Option<Lsn> {
        self.lanes.iter().filter(|lane| lane.is_attached()).map(Lane::marked).min().flatten()
    }

    /// How far every cache is with its first passes.
    pub fn reached(&self) -> Reached {
        let detached = self.lanes.iter().find(|lane| !lane.is_attached()).map(|lane| lane.cache().name.clone());
        let position = self.lanes.iter().map(Lane::reached).min().flatten().unwrap_or_default();
        Reached { position, detached }
    }

    /// When the next snapshot is wanted; `None` while nothing waits for one.
    pub fn next_look(&self) -> Option<Instant> {
        let resync = self.lanes.iter().any(Lane::needs_snapshot).then(|| self.looked + RESYNC_LOOK);
        [self.fence.next_look(), resync].into_iter().flatten().min()
    }

    /// What the next snapshot is asked for with.
    pub fn snapshot_query(&self) -> &'static str {
        match self.lanes.iter().any(Lane::needs_newest) {
            true => QUERY_WITH_NEWEST,
            false => QUERY,
        }
    }

    /// The stream broke: what was not done comes again, so it is forgotten here.
    pub fn disconnect(&mut self) {
        self.received = self.floor();
        self.open = None;
        self.ear.forget();
        self.fence.clear();
        self.lanes.iter_mut().for_each(Lane::pause);
    }

    /// Hands over what it can of the open transaction, however little, and lets go of what waits for its end: the tags of rules with `collapse`
    /// become the few that stand for them, the largest first, until it holds less than half of `limit`. Otherwise what fills the budget could wait
    /// for what the budget keeps from arriving; everything else that waits goes without anything that has to arrive.
    pub fn make_room(&mut self, limit: usize) {
        self.pass_on(false);
        while self
            .open
            .as_mut()
            .is_some_and(|open| open.size() >= limit / 2 && Stale::collapse_largest(&mut open.stale))
        {
            self.pass_on(false);
        }
    }

    /// Bytes that wait anywhere.
    pub fn size(&self) -> usize {
        let open = self.open.as_ref().map_or(0, Open::size);
        open + self.fence.size() + self.lanes.iter().map(Lane::size).sum::<usize>()
    }

    /// The next event of any lane. Cancel-safe.
    pub async fn next_lane_event(&mut self) -> (usize, lane::Event) {
        poll_fn(|context| {
            for (index, lane) in self.lanes.iter_mut().enumerate() {
                if let Poll::Ready(event) = lane.poll(context) {
                    return Poll::Ready((index, event));
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests;
