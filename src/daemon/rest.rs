//! Between two streams.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Daemon, IDLE_LOOK};
use crate::cache::gap::Gap;
use crate::cache::lane::Event as LaneEvent;
use crate::flow::Flow;
use crate::shutdown::Shutdown;
use crate::source::Server;

/// While there is no slot, changes are missed: everything is made stale this often.
const BLIND: Duration = Duration::from_secs(30);

impl Daemon {
    /// No slot, and none can be made yet.
    pub(super) fn resync_blindly(&mut self) {
        let Some((_, flow)) = &mut self.flow else { return };
        if self.blind.is_some_and(|last| last.elapsed() < BLIND) {
            return;
        }
        self.blind = Some(Instant::now());
        let gap = Gap::new("blind", "there is no slot, and none can be made as long as an old transaction runs");
        flow.resync(&gap);
    }

    /// Waits between two streams; the lanes go on with what they have. True if asked to stop.
    pub(super) async fn rest(&mut self, wait: Duration, shutdown: &mut Shutdown) -> bool {
        let (until, mut turn) = (Instant::now() + wait, tokio::time::interval(IDLE_LOOK));
        loop {
            self.turn();
            tokio::select! {
                () = shutdown.asked() => return true,
                () = sleep_until(until) => return false,
                _ = turn.tick() => self.show_at_rest(),
                asked = self.registry.asked() => drop(self.read_rules(asked)),
                (index, event) = next_event(&mut self.flow) => {
                    if let Some((server, flow)) = self.flow.take() {
                        // Nothing here ends the wait.
                        if let Err(error) = self.lane_event(&flow, index, event) {
                            tracing::error!("{error}");
                        }
                        self.flow = Some((server, flow));
                    }
                }
            }
        }
    }
}

async fn next_event(flow: &mut Option<(Server, Flow)>) -> (usize, LaneEvent) {
    match flow {
        Some((_, flow)) => flow.next_lane_event().await,
        None => pending().await,
    }
}
