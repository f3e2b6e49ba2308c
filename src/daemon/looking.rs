//! What the loop does with a snapshot, and how it stops.

use tokio::time::timeout;
use tokio_postgres::SimpleQueryRow;

use super::{DRAIN_LIMIT, Daemon};
use crate::cache::lane::Lane;
use crate::flow::Flow;
use crate::source::replication::error::Error;
use crate::source::replication::slot::verify_not_synchronous;
use crate::source::session;
use crate::source::visibility::Snapshot;
use crate::source::{Source, Stream};

impl Daemon {
    /// Releases what a snapshot shows, unless the server has made us a synchronous standby.
    pub(super) fn look<S: Stream>(
        &self,
        answer: Result<Vec<SimpleQueryRow>, session::Error>,
        flow: &mut Flow,
        place: &str,
    ) -> Result<(), Error> {
        let rows = answer.map_err(|error| Error::session("looking at a snapshot", place, &error))?;
        let row = rows.first();
        let standbys = row.and_then(|row| row.get(1)).unwrap_or_default();
        if S::LOGGED {
            verify_not_synchronous(standbys, &self.settings.names.slot)?;
        }
        let text = row.and_then(|row| row.get(0)).unwrap_or_default();
        let unreadable = || Error::away(format!("pg_current_snapshot() at {place} gave `{text}`"));
        let snapshot = Snapshot::parse(text).ok_or_else(unreadable)?;
        let snapshot = match rows.first() {
            Some(row) if row.len() > 2 => snapshot.with_newest(row.get(2).unwrap_or_default()),
            _ => snapshot,
        };
        self.reload.seen(text);
        flow.release(&snapshot);
        Ok(())
    }

    /// A clean stop: nothing more is read, the batches in flight are finished and confirmed.
    pub(super) async fn drain<S: Stream>(&self, source: &mut Source<S>, flow: &mut Flow) {
        let settle = async {
            while !flow.lanes.iter().all(Lane::is_settled) {
                flow.next_lane_event().await;
                flow.advance();
            }
        };
        if timeout(DRAIN_LIMIT, settle).await.is_err() {
            tracing::warn!("stopped with tags that no cache has acknowledged; the next start sends them again");
        }
        // Who was asked to stop stops.
        if let Err(error) = source.stream.finish(flow.marked()).await {
            tracing::warn!("{error}; what was done last is sent again by the next start");
        }
        tracing::info!(confirmed = %flow.marked().unwrap_or_default(), "stopped");
    }
}
