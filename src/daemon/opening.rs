//! The way to a running stream: both connections, the tables, the slot, the lanes.

use super::Daemon;
use crate::cache::Cache;
use crate::cache::lane::Lane;
use crate::cache::marker::{Marker, Origin};
use crate::exit::Exit;
use crate::flow::Flow;
use crate::settings::Settings;
use crate::setup;
use crate::setup::catalog::Catalog;
use crate::source::lsn::Lsn;
use crate::source::replication::error::{Error, Kind};
use crate::source::replication::{self, Server, Source};

impl Daemon {
    /// Opens both connections, looks at the tables, and starts the stream; where it starts.
    pub(super) async fn open(&self) -> Result<(Source, Option<Catalog>, Lsn), Error> {
        let Settings { dsn, names, lock_timeout, .. } = &self.settings;
        let mut source = replication::open(dsn, names, *lock_timeout).await?;
        let catalog = match self.look_at_tables(&source).await {
            // A migration holds a lock on a table of ours: the others must not wait for it once they were looked at.
            Err(error) if self.ready && error.kind == Kind::Away => {
                tracing::warn!("{error}; streaming all the same");
                None
            }
            looked => Some(looked?),
        };
        source.start(names).await?;
        let confirmed = source.confirmed(names).await?;
        Ok((source, catalog, confirmed))
    }

    /// What was under way when the last stream broke; a new flow if this is another server.
    pub(super) fn resume(&mut self, server: &Server) -> Flow {
        let origin = Origin { timeline: server.timeline.clone(), crash: server.crash.clone() };
        match self.flow.take() {
            Some((last, flow)) if last.system == server.system && last.timeline == server.timeline => flow,
            _ => {
                let slot = &self.settings.names.slot;
                // One share is left over: a lane that fills its own must not stop the reader for the others.
                let share = self.settings.tag_memory / (self.rules.caches.len() + 1);
                let lane = |cache: &Cache| {
                    let marker = Marker::new(&server.system, slot, &cache.name, &self.owner, origin.clone());
                    Lane::new(cache.clone(), marker, share, self.rules.caches.len() == 1)
                };
                Flow::new(self.rules.clone(), self.rules.caches.iter().map(lane).collect())
            }
        }
    }

    /// Tells the lanes where the stream starts, and what a sweep can reach.
    pub(super) fn begin(&self, flow: &mut Flow, server: &Server, confirmed: Lsn) {
        for (index, lane) in flow.lanes.iter_mut().enumerate() {
            let origin = Origin { timeline: server.timeline.clone(), crash: server.crash.clone() };
            let reach = self
                .rules
                .reach(index, |table, column| self.catalog.as_ref().and_then(|catalog| catalog.type_of(table, column)));
            for template in &reach.unreachable {
                tracing::warn!(
                    cache = lane.cache().name,
                    template,
                    "a sweep cannot reach the keys of this template: it does not start with a literal that ends in a separator"
                );
            }
            if let Some(reason) = lane.begin(confirmed, origin, reach.patterns) {
                tracing::warn!(cache = lane.cache().name, "resync: {reason}");
            }
        }
    }

    /// A table whose identity does not send what the rules need is refused before anything goes stale.
    pub(super) async fn look_at_tables(&self, source: &Source) -> Result<Catalog, Error> {
        let read = setup::catalog::read(&source.session, &self.rules, &self.settings.names.publication).await;
        let catalog = read.map_err(|error| Error::session("reading the catalog", &source.place, &error))?;
        let (refused, told) = setup::verify::tables(&self.rules, &catalog, &self.settings.names.publication);
        if self.told.is_none() {
            told.iter().for_each(|problem| tracing::warn!("{problem}"));
        }
        if refused.is_empty() {
            return Ok(catalog);
        }
        let list: Vec<String> = refused.iter().map(ToString::to_string).collect();
        if self.ready {
            // The other tables must not suffer; each change whose tags cannot be listed is told.
            tracing::error!("a table changed under its rules:\n{}", list.join("\n\n"));
            return Ok(catalog);
        }
        Err(Error::permanent(Exit::Rules, list.join("\n\n")))
    }
}
