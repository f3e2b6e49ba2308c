//! One life of a stream, and the way to it: both connections, the tables, the slot, the lanes.

use super::reload::{origin, share};
use super::{CLOSE_LIMIT, Daemon, IDLE_LOOK};
use crate::cache::Cache;
use crate::cache::lane::Lane;
use crate::exit::Exit;
use crate::flow::Flow;
use crate::rules::diagnostic;
use crate::setup;
use crate::setup::catalog::Catalog;
use crate::shutdown::Shutdown;
use crate::source::lsn::Lsn;
use crate::source::replication::error::{Error, Kind};
use crate::source::session::Session;
use crate::source::{Server, Source, Stream};

impl Daemon {
    /// One life of a stream: opens it, and moves rows until it breaks. `Ok` when asked to stop.
    pub(super) async fn stream<S: Stream>(&mut self, shutdown: &mut Shutdown) -> Result<(), Error> {
        if self.flow.is_none() {
            self.take_offer();
        }
        let (mut turn, mut opening) = (tokio::time::interval(IDLE_LOOK), Box::pin(self.open::<S>()));
        let (mut source, catalog, confirmed) = loop {
            tokio::select! {
                () = shutdown.asked() => return Ok(()),
                opened = &mut opening => break opened?,
                _ = turn.tick() => self.turn(),
            }
        };
        drop(opening);
        let mut flow = self.resume(&source.server);
        flow.resume_at(confirmed, S::FENCED);
        self.board.metrics.connected("postgresql");
        self.view.streaming(&source.place);
        (self.renew, self.blind) = (false, None);
        (self.streams_inserts, self.reload.reopen_at) = (source.stream.has_inserts(), None);
        let log = source.stream.log().unwrap_or(confirmed);
        self.begin(&mut flow, &source.server, confirmed, log);
        self.reload.forget_unjudged();
        match catalog {
            // At first the markers say what was there before.
            Some(catalog) if !flow.lanes.iter().all(Lane::is_covered) => self.judge(catalog, &mut flow),
            Some(catalog) => self.reload.judge_later(self.rules.clone(), catalog),
            None => self.reload.look_again(),
        }
        let (server, slot) = (source.server.clone(), &self.settings.names.slot);
        tracing::info!(server = source.place, slot, timeline = server.timeline, %confirmed, "streaming");
        self.tell_streaming(&flow);
        if let Some(Lsn(0)) = self.goal {
            self.goal = Some(source.stream.end(&source.session).await?);
        }
        let ended = match flow.relations.read_ancestors(&source.session).await {
            Ok(()) => self.pump(&mut source, &mut flow, shutdown).await,
            Err(error) => Err(Error::session("reading the partitions", &source.place, &error)),
        };
        // Whatever ended it: both connections go, at once, or a server that shuts down would wait for us.
        flow.disconnect();
        self.view.broken();
        self.show(&flow);
        self.flow = Some((server, flow));
        let Source { session, stream, .. } = source;
        drop(session);
        stream.close(CLOSE_LIMIT).await;
        ended
    }

    /// Opens both connections, looks at the tables, and starts the stream; where it starts.
    pub(super) async fn open<S: Stream>(&self) -> Result<(Source<S>, Option<Catalog>, Lsn), Error> {
        let mut source = S::open(&self.settings, self.renew, &self.owner).await?;
        let catalog = match self.look_at_tables(&source.session, &source.place).await {
            // A migration holds a lock on a table of ours: the others must not wait for it once they were looked at.
            Err(error) if self.ready && error.kind == Kind::Away => {
                tracing::warn!("{error}; streaming all the same");
                None
            }
            looked => Some(looked?),
        };
        let received = self.flow.as_ref().map_or(Lsn(0), |(_, flow)| flow.received());
        let confirmed = source.stream.start(&source.session, &self.settings, received).await?;
        let horizon = source.stream.horizon();
        let catalog = catalog.map(|mut catalog| {
            catalog.lies_between(confirmed, horizon);
            catalog
        });
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
    pub(super) fn begin(&self, flow: &mut Flow, server: &Server, confirmed: Lsn, log: Lsn) {
        flow.logged_before(log);
        for lane in &mut flow.lanes {
            if let Some(gap) = lane.begin(confirmed, log, origin(server)) {
                self.tell_gap(lane, &gap);
            }
        }
    }

    /// A table whose identity does not send what the rules need is refused before anything goes stale.
    async fn look_at_tables(&self, session: &Session, place: &str) -> Result<Catalog, Error> {
        let read = setup::catalog::read(session, &self.rules, &self.settings.names).await;
        let catalog = read.map_err(|error| Error::session("reading the catalog", place, &error))?;
        let (refused, _) = setup::verify::tables(&self.rules, &catalog);
        // Once it was good, the other tables must not suffer: the rule is degraded.
        if refused.is_empty() || self.ready || self.reload.proven {
            return Ok(catalog);
        }
        Err(Error::permanent(Exit::Rules, diagnostic::list(&refused)))
    }
}
