//! The way to a running stream: both connections, the tables, the slot, the lanes.

use super::Daemon;
use super::reload::{origin, share};
use crate::cache::Cache;
use crate::exit::Exit;
use crate::flow::Flow;
use crate::rules::diagnostic;
use crate::settings::Settings;
use crate::setup;
use crate::setup::catalog::Catalog;
use crate::source::lsn::Lsn;
use crate::source::replication::creation::Wish;
use crate::source::replication::error::{Error, Kind};
use crate::source::replication::{self, Server, Source, Which};

impl Daemon {
    /// Opens both connections, looks at the tables, and starts the stream; where it starts.
    pub(super) async fn open(&self) -> Result<(Source, Option<Catalog>, Lsn), Error> {
        let Settings { dsn, names, lock_timeout, slot_mode, max_retained_wal, .. } = &self.settings;
        let wish =
            Wish { mode: *slot_mode, anew: self.renew, max_retained: *max_retained_wal, lock_timeout: *lock_timeout };
        let mut source = replication::open(dsn, names, *lock_timeout, Which::Own(wish)).await?;
        let catalog = match self.look_at_tables(&source).await {
            // A migration holds a lock on a table of ours: the others must not wait for it once they were looked at.
            Err(error) if self.ready && error.kind == Kind::Away => {
                tracing::warn!("{error}; streaming all the same");
                None
            }
            looked => Some(looked?),
        };
        source.start(names, self.settings.canary.is_some()).await?;
        let confirmed = source.confirmed(names).await?;
        Ok((source, catalog, confirmed))
    }

    /// What was under way when the last stream broke; a new flow if this is another server.
    pub(super) fn resume(&mut self, server: &Server) -> Flow {
        match self.flow.take() {
            Some((last, flow)) if last.system == server.system && last.timeline == server.timeline => flow,
            _ => {
                let (share, alone) = (share(self.settings.tag_memory, &self.rules), self.rules.caches.len() == 1);
                let lane = |cache: &Cache| self.lane(cache, server, share, alone);
                let lanes = self.rules.caches.iter().map(lane).collect();
                Flow::new(self.rules.clone(), lanes, self.board.metrics.clone())
            }
        }
    }

    /// Tells the lanes where the stream starts.
    pub(super) fn begin(&self, flow: &mut Flow, server: &Server, confirmed: Lsn) {
        for lane in &mut flow.lanes {
            if let Some(gap) = lane.begin(confirmed, origin(server)) {
                self.tell_gap(lane, &gap);
            }
        }
    }

    /// A table whose identity does not send what the rules need is refused before anything goes stale.
    async fn look_at_tables(&self, source: &Source) -> Result<Catalog, Error> {
        let read = setup::catalog::read(&source.session, &self.rules, &self.settings.names.publication).await;
        let catalog = read.map_err(|error| Error::session("reading the catalog", &source.place, &error))?;
        let (refused, _) = setup::verify::tables(&self.rules, &catalog, &self.settings.names.publication);
        // Once it was good, the other tables must not suffer: the rule is degraded.
        if refused.is_empty() || self.ready || self.reload.proven {
            return Ok(catalog);
        }
        Err(Error::permanent(Exit::Rules, diagnostic::list(&refused)))
    }
}
