//! The daemon as it is seen from outside: one [`Status`] for `/readyz`, `/status` and the metrics.

use super::{Daemon, TRIES, Undecodable};
use crate::cache::lane::Lane;
use crate::flow::Flow;
use crate::log;
use crate::source::replication::slot;
use crate::status::{Cache, Reason, Rules, Source, State, Status};

/// What only the loop knows.
#[derive(Default)]
pub(super) struct View {
    state: State,
    /// Why there is no stream.
    trouble: Option<String>,
    place: String,
    /// As it was read last.
    pub(super) slot: slot::State,
}

impl View {
    /// The stream runs.
    pub(super) fn streaming(&mut self, place: &str) {
        (self.state, self.trouble, self.place) = (State::Streaming, None, place.to_owned());
        self.slot = slot::State::default();
    }

    /// The stream broke.
    pub(super) fn broken(&mut self) {
        self.state = State::Reconnecting;
    }

    /// There is no stream, because of this.
    pub(super) fn waiting(&mut self, state: State, trouble: &str) {
        (self.state, self.trouble) = (state, Some(trouble.to_owned()));
    }

    pub(super) fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }
}

impl Daemon {
    /// Shows how things are.
    pub(super) fn show(&self, flow: &Flow) {
        let (rules, view, metrics) = (&self.reload, &self.view, &self.board.metrics);
        metrics.rules_generation.set(rules.generation as i64);
        metrics.uncovered.set(rules.uncovered.len() as i64);
        metrics.degraded.set(rules.degraded.len() as i64);
        metrics.received_lsn.set(flow.received().0 as i64);
        metrics.confirmed_lsn.set(flow.marked().unwrap_or_default().0 as i64);
        metrics.unconfirmed_wal.set(view.slot.unconfirmed);
        metrics.retained_wal.set(view.slot.retained);
        metrics.outbox.set(view.slot.outbox.unwrap_or_default());
        metrics.slot_status(&view.slot.wal_status);
        metrics.memory_used.set(flow.size() as i64);
        metrics.memory_limit.set(self.settings.tag_memory as i64);
        metrics.fence_waiting.set(flow.fence.len() as i64);
        metrics.log_lost.set(log::lost() as i64);
        log::tell_lost();
        let of_lane = |lane: &'_ Lane| -> Vec<(String, String, bool)> {
            let name = &lane.cache().name;
            lane.replicas().map(|(place, up)| (name.clone(), place.to_owned(), up)).collect()
        };
        let replicas: Vec<_> = flow.lanes.iter().flat_map(of_lane).collect();
        metrics.replicas(replicas.iter().map(|(cache, place, up)| (cache.as_str(), place.as_str(), *up)));
        metrics.caches(flow.lanes.iter().map(|lane| (lane.cache().name.as_str(), lane.is_up())));
        self.board.show(self.status(flow.lanes.iter(), flow.received().to_string(), flow.marked(), flow.size()));
    }

    /// The same while no stream runs.
    pub(super) fn show_at_rest(&self) {
        match &self.flow {
            Some((_, flow)) => self.show(flow),
            None => self.board.show(self.status(std::iter::empty(), String::new(), None, 0)),
        }
    }

    fn status<'a>(
        &self,
        lanes: impl Iterator<Item = &'a Lane>,
        received: String,
        confirmed: Option<crate::source::lsn::Lsn>,
        memory_used: usize,
    ) -> Status {
        let (reload, names) = (&self.reload, &self.settings.names);
        let caches: Vec<Cache> = lanes.map(cache).collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.view.state,
            reasons: self.reasons(&caches),
            source: Source {
                kind: names.feed,
                server: self.view.place.clone(),
                slot: names.slot.clone(),
                publication: names.publication.clone(),
                received,
                confirmed: confirmed.map(|position| position.to_string()).unwrap_or_default(),
                wal_status: self.view.slot.wal_status.clone(),
                unconfirmed_wal_bytes: self.view.slot.unconfirmed,
                retained_wal_bytes: self.view.slot.retained,
                outbox_bytes: self.view.slot.outbox,
                outbox_limit_bytes: self.view.slot.outbox_limit,
                safe_wal_bytes: self.view.slot.safe,
                invalidation_reason: self.view.slot.invalidated.clone(),
                wal_holder: self.view.slot.holder.clone(),
            },
            rules: Rules {
                generation: reload.generation,
                files: self.rules.files.iter().map(|(path, _)| path.display().to_string()).collect(),
                rules: self.rules.rules.len(),
                refused: reload.refused.clone(),
                uncovered: reload.uncovered.clone(),
                degraded: reload.degraded.clone(),
            },
            caches,
            memory_used,
            memory_limit: self.settings.tag_memory,
        }
    }

    fn reasons(&self, caches: &[Cache]) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut reason =
            |code: &str, message: &str| reasons.push(Reason { code: code.into(), message: message.into() });
        match (self.view.state, self.view.trouble.as_deref()) {
            (State::Streaming, _) => {}
            (State::Standby, _) => {
                reason("standby", "another daemon holds the slot; this one takes over when it is free")
            }
            (_, trouble) => reason("source", trouble.unwrap_or("the stream does not run yet")),
        }
        if let Some(Undecodable { received: position, times, .. }) = self.undecodable.as_ref().filter(|it| it.times > 1)
        {
            let message = format!(
                "what comes behind {position} could not be decoded {times} times; after {TRIES} it is left behind, and everything goes stale"
            );
            reason("undecodable", &message);
        }
        if let Some(refused) = &self.reload.refused {
            reason("rules", refused);
        }
        self.reload.uncovered.iter().for_each(|problem| reason("uncovered", problem));
        self.reload.degraded.iter().for_each(|problem| reason("degraded", problem));
        for cache in caches {
            let Cache { name, state, error, resync, .. } = cache;
            if state != "up" {
                reason("cache", &format!("{name} is {state}: {}", error.as_deref().unwrap_or("connecting")));
            } else if let Some(error) = error {
                reason("cache", &format!("{name}: {error}"));
            }
            if let Some(gap) = resync.as_deref().filter(|_| state == "up") {
                reason("resync", &format!("{name} is being made stale: {gap}"));
            }
        }
        reasons
    }
}

fn cache(lane: &Lane) -> Cache {
    let state = match (lane.is_up(), lane.is_attached()) {
        (true, _) => "up",
        (false, true) => "away",
        (false, false) => "detached",
    };
    let full = lane.is_full().then(|| "Redis is full and takes no writes; deletions go through".to_owned());
    let wanted = lane.cache().wait_replicas;
    let behind = lane.replicas_behind().map(|count| {
        format!("{count} of the {wanted} replicas of Redis in `wait_replicas` have what was sent; tags go stale all the same")
    });
    Cache {
        name: lane.cache().name.clone(),
        address: lane.cache().address(),
        dialect: lane.cache().dialect.name.to_owned(),
        state: state.to_owned(),
        error: lane.trouble().map(str::to_owned).or(full).or(behind),
        // The second pass is for what late transactions changed: until then nothing is known to be stale.
        resync: lane.resyncing().filter(|(_, stale)| *stale).map(|(gap, _)| gap.to_string()),
        done: lane.marked().map(|position| position.to_string()),
    }
}
