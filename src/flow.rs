//! The path of a row: message -> plan -> tags of the open transaction -> fence -> lanes.
//!
//! Everything here is synchronous; [`crate::daemon`] feeds it and moves what it hands out.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use tokio::time::Instant;

use crate::cache::lane::{self, Lane};
use crate::fence::{Fence, Waiting};
use crate::rules::Rules;
use crate::rules::events::Event;
use crate::source::lsn::{Lsn, Xid};
use crate::source::replication::pgoutput::Message;
use crate::source::replication::relations::Relations;
use crate::source::visibility::Snapshot;
use crate::tags::Stale;

/// A transaction of any size passes in pieces of this many bytes: protocol 1 sends it only after its commit, so tags may go
/// out before its Commit message arrives.
const PIECE: usize = 256 << 10;

/// Everything between the stream and Redis.
pub struct Flow {
    rules: Rc<Rules>,
    /// Tables that the stream described.
    pub relations: Relations,
    /// What readers do not see yet.
    pub fence: Fence,
    /// One per cache of the rules.
    pub lanes: Vec<Lane>,
    open: Option<Open>,
    received: Lsn,
}

/// The transaction that is being received.
struct Open {
    xid: Xid,
    floor: Lsn,
    stale: Vec<Stale>,
}

impl Open {
    fn size(&self) -> usize {
        self.stale.iter().map(|stale| stale.tags.size()).sum()
    }
}

/// The server sent a message out of turn.
#[derive(Debug, thiserror::Error)]
#[error("the server sent a change outside of a transaction")]
pub struct OutOfTurn;

impl Flow {
    /// An empty flow.
    pub fn new(rules: Rc<Rules>, lanes: Vec<Lane>) -> Flow {
        Flow { rules, relations: Relations::default(), fence: Fence::default(), lanes, open: None, received: Lsn(0) }
    }

    /// Takes one message of the stream.
    pub fn take(&mut self, message: &Message) -> Result<(), OutOfTurn> {
        match message {
            Message::Begin { xid, .. } => {
                let stale = self.nothing();
                self.open = Some(Open { xid: *xid, floor: self.received, stale });
                return Ok(());
            }
            Message::Commit { end_lsn, .. } => {
                self.pass_on();
                self.open = None;
                self.received = self.received.max(*end_lsn);
                return Ok(());
            }
            Message::Relation(relation) => {
                self.relations.describe(relation, &self.rules);
                return Ok(());
            }
            Message::Type { oid, namespace, name } => {
                self.relations.describe_type(*oid, namespace, name);
                return Ok(());
            }
            Message::Other => return Ok(()),
            _ => {}
        }
        let open = self.open.as_mut().ok_or(OutOfTurn)?;
        let stale = &mut open.stale;
        match message {
            Message::Insert { relation, new } => {
                self.relations.render(*relation, Event::Insert, None, Some(*new), stale)
            }
            Message::Update { relation, old, new } => {
                self.relations.render(*relation, Event::Update, *old, Some(*new), stale);
            }
            Message::Delete { relation, old } => {
                self.relations.render(*relation, Event::Delete, Some(*old), None, stale)
            }
            Message::Truncate { relations } => relations.iter().for_each(|oid| self.relations.truncate(oid, stale)),
            _ => {}
        }
        if open.size() > PIECE {
            self.pass_on();
        }
        Ok(())
    }

    /// The stream starts behind `position`: everything up to there was confirmed once.
    pub fn resume_at(&mut self, position: Lsn) {
        self.received = self.received.max(position);
    }

    /// Changes may have been missed on the way here: everything that the rules can reach goes stale in every cache.
    pub fn resync(&mut self, reason: &str) {
        let floor = self.floor();
        for lane in &mut self.lanes {
            lane.resync(reason, floor);
        }
    }

    /// A keepalive: everything up to `position` was decoded, and nothing of it was for us but what has arrived.
    pub fn keepalive(&mut self, position: Lsn) {
        if self.open.is_none() {
            self.received = self.received.max(position);
        }
    }

    /// Hands the tags of the open transaction to the fence, or past it if readers see the transaction already.
    fn pass_on(&mut self) {
        let empty = self.nothing();
        let Some(open) = &mut self.open else { return };
        if open.stale.iter().all(Stale::is_empty) {
            return;
        }
        let stale = std::mem::replace(&mut open.stale, empty);
        let waiting = Waiting { xid: open.xid, floor: open.floor, stale, since: Instant::now() };
        if self.fence.has_seen(open.xid) {
            self.send(&waiting);
        } else {
            self.fence.add(waiting);
        }
    }

    /// Sends what the snapshot shows as finished.
    pub fn release(&mut self, snapshot: &Snapshot) {
        for waiting in self.fence.release(snapshot) {
            tracing::debug!(xid = waiting.xid.0, waited = ?waiting.since.elapsed(), "visible");
            self.send(&waiting);
        }
    }

    fn send(&mut self, visible: &Waiting) {
        for (lane, stale) in self.lanes.iter_mut().zip(&visible.stale) {
            lane.add(&stale.tags, visible.floor);
            if stale.sweep {
                lane.sweep(visible.floor);
            }
        }
    }

    fn nothing(&self) -> Vec<Stale> {
        self.lanes.iter().map(|_| Stale::default()).collect()
    }

    /// Everything up to here was handed to the lanes.
    pub fn floor(&self) -> Lsn {
        let open = self.open.as_ref().map(|open| open.floor);
        [Some(self.received), open, self.fence.floor()].into_iter().flatten().min().unwrap_or_default()
    }

    /// Tells the lanes how far they may go, and returns what all of them have acknowledged.
    pub fn advance(&mut self) -> Option<Lsn> {
        let floor = self.floor();
        for lane in &mut self.lanes {
            lane.advance(floor);
            lane.wake();
        }
        self.marked()
    }

    /// The position that every attached lane has acknowledged; none while none is attached.
    pub fn marked(&self) -> Option<Lsn> {
        self.lanes.iter().filter(|lane| lane.is_attached()).map(Lane::marked).min().flatten()
    }

    /// The stream broke: what was not done comes again, so it is forgotten here.
    pub fn disconnect(&mut self) {
        self.received = self.floor();
        self.open = None;
        self.fence.clear();
        self.lanes.iter_mut().for_each(Lane::pause);
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
