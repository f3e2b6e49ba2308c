//! Between two streams.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Daemon;
use crate::cache::gap::Gap;
use crate::cache::lane::Lane;
use crate::setup::catalog::Catalog;
use crate::shutdown::Shutdown;
use crate::source::Server;

/// While there is no slot, changes are missed: everything is made stale this often.
const BLIND: Duration = Duration::from_secs(30);

impl Daemon {
    /// A process that starts without a slot has no lanes yet. Those that it makes have missed everything up to where the server is.
    pub(super) fn see_blindly(&mut self, server: Server, catalog: Catalog) {
        if self.flow.is_some() {
            return;
        }
        let (mut flow, _) = self.resume(&server, None);
        flow.resume_at(server.log, true, false);
        self.begin(&mut flow, &server, server.log, server.log);
        self.judge(catalog, &mut flow);
        flow.disconnect();
        self.flow = Some((server, flow));
    }

    /// No slot, and none can be made yet.
    pub(super) fn resync_blindly(&mut self) {
        let Some((_, flow)) = &mut self.flow else { return };
        flow.lanes.iter_mut().for_each(Lane::go_blind);
        if self.blind.is_some_and(|last| last.elapsed() < BLIND) {
            return;
        }
        self.blind = Some(Instant::now());
        let gap = Gap::new("blind", "there is no slot, and none can be made as long as an old transaction runs");
        flow.resync(&gap);
    }

    /// Waits between two streams; the lanes go on with what they have. True if asked to stop.
    pub(super) async fn rest(&mut self, wait: Duration, shutdown: &mut Shutdown) -> bool {
        self.while_lanes_go_on(shutdown, Box::pin(sleep(wait))).await.is_none()
    }
}
