//! What Redis has acknowledged since the marker, and nobody else remembers: tags that are owed no other pass, and sweeps. A replica that takes over
//! may lack it and have the marker all the same, so it is done again when the connection ends. A marker behind it is the proof: replicas take
//! everything in one order.

use super::super::batch::Batch;
use super::super::gap::Scope;

/// More bytes than this want a marker: in a large transaction the position stands still for long, and its marker would come once a second only.
const MANY: usize = 1 << 20;
/// More are not kept (Redis is full, and takes no marker): all that the rules reach is swept in their place.
const MOST: usize = 4 << 20;

/// Since the marker that was answered last.
#[derive(Default)]
pub(super) struct Unproven {
    /// Before the marker that is under way, ...
    before: Acknowledged,
    /// ... and since it was sent.
    since: Acknowledged,
}

/// What was acknowledged.
#[derive(Default)]
pub(super) struct Acknowledged {
    /// Tags, and the positions that they hold back if they are owed again.
    pub batches: Vec<Batch>,
    size: usize,
    /// Sweeps.
    pub scope: Option<Scope>,
}

impl Unproven {
    /// Tags that are owed no other pass.
    pub fn keep(&mut self, batch: Batch) {
        let size = batch.tags.size();
        self.since.add(Acknowledged { batches: vec![batch], size, scope: None });
    }

    /// A sweep is complete.
    pub fn swept(&mut self, scope: Scope) {
        let size = scope.size();
        self.since.add(Acknowledged { scope: Some(scope), size, batches: Vec::new() });
    }

    /// Is a marker wanted because of it?
    pub fn is_much(&self) -> bool {
        self.before.size + self.since.size > MANY
    }

    /// A marker is sent behind it.
    pub fn asked(&mut self) {
        self.before.add(std::mem::take(&mut self.since));
    }

    /// Is there something that the marker under way proves?
    pub fn is_asked(&self) -> bool {
        !self.before.batches.is_empty() || self.before.scope.is_some()
    }

    /// The marker was written.
    pub fn proven(&mut self) {
        self.before = Acknowledged::default();
    }

    /// Hands out what has to be done again; nothing, mostly.
    pub fn take(&mut self) -> Option<Acknowledged> {
        self.asked();
        let all = std::mem::take(&mut self.before);
        (!all.batches.is_empty() || all.scope.is_some()).then_some(all)
    }
}

impl Acknowledged {
    fn add(&mut self, more: Acknowledged) {
        self.batches.extend(more.batches);
        self.size += more.size;
        self.scope = match (self.scope.take(), more.scope) {
            (Some(own), Some(scope)) => Some(own.and(scope)),
            (own, scope) => own.or(scope),
        };
        if self.size > MOST {
            *self = Acknowledged { scope: Some(Scope::everything()), ..Acknowledged::default() };
        }
    }
}
