//! What people and the service manager are told, and when.

use super::Daemon;
use crate::cache::connection::Kind as CacheKind;
use crate::cache::gap::Gap;
use crate::cache::lane::{Event as LaneEvent, Lane};
use crate::cache::marker::OTHER_DAEMON;
use crate::cache::sweep::Passed;
use crate::exit::Exit;
use crate::flow::Flow;
use crate::source::replication::error::{Error, Kind};
use crate::status::State;

impl Daemon {
    /// What happened on a lane. Before the first READY, a cache that refuses us is a wrong setting.
    pub(super) fn lane_event(&mut self, flow: &Flow, index: usize, event: LaneEvent) -> Result<(), Error> {
        let Some(lane) = flow.lanes.get(index) else { return Ok(()) };
        let (cache, address, metrics) = (&lane.cache().name, lane.cache().address(), &self.board.metrics);
        match event {
            LaneEvent::Up => {
                metrics.connected(cache);
                tracing::info!(cache, address, "cache claimed");
            }
            LaneEvent::Sent(tags, committed) => {
                metrics.sent(cache, tags, committed.map(|committed| committed.elapsed().as_secs_f64()));
                tracing::debug!(cache, tags, "made stale");
            }
            LaneEvent::Marked => {}
            LaneEvent::Full => {
                metrics.redis_error(cache, "full");
                tracing::error!(
                    cache,
                    address,
                    "Redis is full and refuses the marker; deletions go through. Raise maxmemory"
                );
            }
            LaneEvent::Behind(replicas) => {
                metrics.redis_error(cache, "replicas");
                let wanted = lane.cache().wait_replicas;
                tracing::error!(
                    cache,
                    address,
                    replicas,
                    wanted,
                    "too few replicas of Redis have what was sent; nothing is confirmed until they do, or `detach_after` is over"
                );
            }
            // Whoever loses the marker stops writing: either the slot is lost, too, or it is claimed with the next stream.
            LaneEvent::Refused(gap) if gap.code == OTHER_DAEMON => {
                return Err(Error::away(format!(
                    "{}; the stream is opened anew, if the slot is still ours",
                    gap.sentence
                )));
            }
            LaneEvent::Refused(gap) => {
                metrics.gap(cache, gap.code);
                tracing::error!(
                    cache,
                    address,
                    "the marker was refused: {gap}; it is claimed again, and everything goes stale"
                );
            }
            LaneEvent::Resync(gap) => {
                metrics.gap(cache, gap.code);
                tracing::warn!(cache, address, "resync: {gap}");
            }
            // There each batch is a sweep.
            LaneEvent::Swept(keys, Passed::Sweep | Passed::Repeat) if lane.cache().is_scanned() => {
                tracing::debug!(cache, keys, "looked for");
            }
            LaneEvent::Swept(keys, Passed::Sweep) => tracing::info!(cache, keys, "sweep complete"),
            LaneEvent::Swept(keys, Passed::Repeat) => tracing::info!(cache, keys, "sweep repeated"),
            LaneEvent::Swept(keys, Passed::First) => {
                tracing::info!(cache, keys, "everything is stale; once more when the running transactions have ended");
            }
            LaneEvent::Swept(keys, Passed::Second(gap)) => tracing::info!(cache, keys, "resync complete: {gap}"),
            LaneEvent::Futile(commands, error) => {
                metrics.redis_error(cache, "futile");
                tracing::error!(cache, address, commands, "{}; passed over", error.sentence);
            }
            LaneEvent::Withheld(tags, error) => {
                metrics.redis_error(cache, "withheld");
                tracing::error!(cache, address, tags, "{}; they are owed, and tried again every 5 s", error.sentence);
            }
            LaneEvent::Lost(error) => {
                metrics.redis_error(cache, "away");
                tracing::warn!(cache, address, "{}; its keys wait, the others go on", error.sentence);
            }
            LaneEvent::Detached(error) => {
                metrics.redis_error(cache, "detached");
                tracing::error!(
                    cache,
                    address,
                    "detached: {}; it is made stale as a whole when it answers",
                    error.sentence
                );
            }
            LaneEvent::Down(error) if error.kind == CacheKind::Refused && !self.ready => {
                return Err(Error::permanent(Exit::Config, error.to_string()));
            }
            LaneEvent::Down(error) if !lane.is_attached() => {
                tracing::debug!(cache, address, "still detached: {}", error.sentence);
            }
            LaneEvent::Down(error) => {
                metrics.redis_error(cache, if error.kind == CacheKind::Refused { "refused" } else { "away" });
                tracing::warn!(cache, address, "{}; its tags are kept and sent again", error.sentence);
            }
        }
        Ok(())
    }

    /// Changes may have been missed, and a lane that begins or gets other rules has found out.
    pub(super) fn tell_gap(&self, lane: &Lane, gap: &Gap) {
        self.board.metrics.gap(&lane.cache().name, gap.code);
        tracing::warn!(cache = lane.cache().name, "resync: {gap}");
    }

    /// READY once the stream runs and every cache was claimed, or tried in vain.
    pub(super) fn announce(&mut self, flow: &Flow) {
        if !self.ready && flow.lanes.iter().all(Lane::attempted) {
            self.ready = true;
            if self.reload.refused.is_none() {
                self.registry.keep(&self.rules);
            }
            self.reload.proven = true;
            self.manager.ready();
            self.tell_streaming(flow);
            tracing::info!(caches = flow.lanes.len(), rules = self.rules.rules.len(), "ready");
        }
    }

    /// The status line while the stream runs. Told when something changed it, not by every turn of the loop.
    pub(super) fn tell_streaming(&self, flow: &Flow) {
        if self.ready {
            let detached = flow.lanes.iter().filter(|lane| !lane.is_attached()).count();
            self.manager.status(&match detached {
                0 => format!("streaming; {} caches", flow.lanes.len()),
                detached => format!("streaming; {detached} of {} caches are detached", flow.lanes.len()),
            });
        }
    }

    /// Says what is wrong, once per cause.
    pub(super) fn tell(&mut self, error: &Error) {
        let state = match (error.kind, self.ready) {
            (Kind::Standby, _) => State::Standby,
            (_, true) => State::Reconnecting,
            (_, false) => State::Starting,
        };
        self.view.waiting(state, &error.sentence);
        self.show_at_rest();
        if self.told.as_ref() == Some(&error.sentence) {
            return;
        }
        let trying = format!("trying again: {}", error.sentence);
        match error.kind {
            Kind::Standby => {
                tracing::info!("{error}; waiting for the slot: this daemon takes over when it is free");
                // A hot standby is up: it takes over by itself.
                self.manager.ready();
                self.manager.status("standby: another daemon holds the slot");
            }
            Kind::Away | Kind::Renew | Kind::Undecodable | Kind::Blind => {
                tracing::warn!("{error}; trying again");
                self.manager.status(&trying);
            }
            Kind::Permanent(_) => {
                tracing::error!("{error}; trying again");
                self.manager.status(&trying);
            }
        }
        self.told = Some(error.sentence.clone());
    }
}
