//! One life of a stream, and the way to it: the connections, the tables, the slot, the lanes.

use std::future::{Future, pending};
use std::pin::Pin;
use std::rc::Rc;

use super::reload::{origin, share};
use super::{CLOSE_LIMIT, Daemon, IDLE_LOOK};
use crate::cache::Cache;
use crate::cache::gap::Gap;
use crate::cache::lane::{Event as LaneEvent, Lane};
use crate::exit::Exit;
use crate::flow::Flow;
use crate::http::Reached;
use crate::rules::{Rules, diagnostic};
use crate::settings::Settings;
use crate::setup;
use crate::setup::catalog::Catalog;
use crate::shutdown::Shutdown;
use crate::source::lsn::Lsn;
use crate::source::replication::error::{Error, Kind};
use crate::source::replication::relations::Census;
use crate::source::replication::slot;
use crate::source::session::Session;
use crate::source::{Server, Source, Stream, has_survived};

/// Where a stream starts.
struct Opened<S> {
    source: Source<S>,
    catalog: Option<Catalog>,
    /// Which relations the catalog is right about, also for what the stream brings of the past.
    census: Census,
    confirmed: Lsn,
}

/// Why none was opened, and what was seen of the server by then.
struct Unopened {
    error: Error,
    seen: Option<(Server, Catalog)>,
}

impl From<Error> for Unopened {
    fn from(error: Error) -> Unopened {
        Unopened { error, seen: None }
    }
}

/// What opening a stream goes by; it borrows nothing, because the lanes go on meanwhile.
struct Opening {
    settings: Settings,
    rules: Rc<Rules>,
    owner: String,
    received: Lsn,
    renew: Option<Lsn>,
    /// It was ready once: a table that cannot be looked at must not stop the others.
    ready: bool,
    /// The rules fitted their tables once.
    proven: bool,
}

impl Opening {
    /// Opens all connections, looks at the tables, and starts the stream.
    async fn run<S: Stream>(self) -> Result<Opened<S>, Unopened> {
        let Opening { settings, received, renew, .. } = &self;
        let mut source = S::open(settings, &self.owner).await?;
        let mut catalog = match self.look_at_tables(&source.catalog, &source.place).await {
            // A migration holds a lock on a table of ours: the others must not wait for it once they were looked at.
            Err(error) if self.ready && error.kind == Kind::Away => {
                tracing::warn!("{error}; streaming all the same");
                None
            }
            looked => Some(looked?),
        };
        let confirmed = match source.stream.start(&source.session, settings, *received, *renew).await {
            Ok(confirmed) => confirmed,
            Err(error) => return Err(Unopened { error, seen: catalog.map(|catalog| (source.server, catalog)) }),
        };
        let census = setup::catalog::census(&source.catalog, &S::past(&settings.names)).await;
        let census = census.map_err(|error| Error::session("reading the catalog", &source.place, &error))?;
        let horizon = source.stream.horizon();
        catalog.iter_mut().for_each(|catalog| catalog.lies_between(confirmed, horizon));
        Ok(Opened { source, catalog, census, confirmed })
    }

    /// A table whose identity does not send what the rules need is refused before anything goes stale.
    async fn look_at_tables(&self, session: &Session, place: &str) -> Result<Catalog, Error> {
        let read = setup::catalog::read(session, &self.rules, &self.settings.names).await;
        let catalog = read.map_err(|error| Error::session("reading the catalog", place, &error))?;
        let (refused, _) = setup::verify::tables(&self.rules, &catalog);
        // Once it was good, the other tables must not suffer: the rule is degraded.
        if refused.is_empty() || self.ready || self.proven {
            return Ok(catalog);
        }
        Err(Error::permanent(Exit::Rules, diagnostic::list(&refused)))
    }
}

impl Daemon {
    /// One life of a stream: opens it, and moves rows until it breaks. `Ok` when asked to stop.
    pub(super) async fn stream<S: Stream>(&mut self, shutdown: &mut Shutdown) -> Result<(), Error> {
        if self.flow.is_none() {
            self.take_offer();
        }
        let opening = Opening {
            settings: self.settings.clone(),
            rules: self.rules.clone(),
            owner: self.owner.clone(),
            received: self.flow.as_ref().map_or(Lsn(0), |(_, flow)| flow.received()),
            renew: self.renew,
            ready: self.ready,
            proven: self.reload.proven,
        };
        let Some(opened) = self.while_lanes_go_on(shutdown, Box::pin(opening.run::<S>())).await else { return Ok(()) };
        let Opened { mut source, catalog, census, confirmed } = match opened {
            Ok(opened) => opened,
            Err(Unopened { error, seen }) => {
                if let (Kind::Blind, Some((server, catalog))) = (error.kind, seen) {
                    self.see_blindly(server, catalog);
                }
                return Err(error);
            }
        };
        let (mut flow, rewound) = self.resume(&source.server, source.stream.kept());
        flow.resume_at(confirmed, S::FENCED, source.stream.has_inserts());
        self.board.metrics.connected("postgresql");
        self.view.streaming(&source.place);
        (self.renew, self.blind) = (None, None);
        (self.streams_inserts, self.reload.reopen_at) = (source.stream.has_inserts(), None);
        let began = if S::LOGGED { confirmed } else { source.server.log };
        self.begin(&mut flow, &source.server, confirmed, began);
        if let Some(gap) = rewound {
            flow.resync(&gap);
        }
        self.reload.forget_unjudged();
        let known = catalog.as_ref().or(self.catalog.as_ref());
        let lineage = known.map(|catalog| catalog.lineage(&self.rules));
        if let Some(catalog) = known {
            flow.hear_by(catalog.word.clone(), catalog);
        }
        flow.relations.begin(lineage.unwrap_or_default(), census);
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
        let ended = self.pump(&mut source, &mut flow, shutdown).await;
        // Whatever ended it: all connections go, at once, or a server that shuts down would wait for us.
        flow.keep(source.stream.kept());
        self.broke_at = (flow.received(), source.stream.kept().or(flow.marked()));
        // Until it is known again whose history it is, nothing is said to be reached.
        self.board.reach(Reached { position: Lsn(0), ..flow.reached() });
        flow.disconnect();
        self.view.broken();
        self.show(&flow);
        self.flow = self.forgets.is_none().then_some((server, flow));
        let Source { session, catalog, stream, .. } = source;
        drop((session, catalog));
        stream.close(CLOSE_LIMIT).await;
        ended
    }

    /// Waits for something; the lanes go on with what they have, and rules are read. None if asked to stop.
    pub(super) async fn while_lanes_go_on<T>(
        &mut self,
        shutdown: &mut Shutdown,
        mut work: Pin<Box<impl Future<Output = T>>>,
    ) -> Option<T> {
        let mut turn = tokio::time::interval(IDLE_LOOK);
        loop {
            self.turn();
            tokio::select! {
                () = shutdown.asked() => return None,
                done = &mut work => return Some(done),
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

    /// What was under way when the last stream broke. A new flow if this is another server, or has another history: then nothing of
    /// what is remembered is true of it, and why is told. `kept` is what the source has written down of its position.
    pub(super) fn resume(&mut self, server: &Server, kept: Option<Lsn>) -> (Flow, Option<Gap>) {
        let mut rewound = self.forgets.take();
        if let Some((last, flow)) = self.flow.take()
            && last.system == server.system
            && last.timeline == server.timeline
        {
            rewound = match (flow.kept(), kept) {
                _ if flow.log() > server.log => Some(Gap::rewound(flow.log(), server.log)),
                (Some(known), Some(stands)) if stands < known => Some(Gap::taken_back(known, stands)),
                _ => return (flow, None),
            };
            // What nobody had flushed is gone with a crash, and so is an outbox.
            if !has_survived(&last.crash, &server.crash) {
                rewound = Some(Gap::crash());
            }
        }
        let (share, alone) = (share(self.settings.tag_memory, &self.rules), self.rules.caches.len() == 1);
        let lane = |cache: &Cache| self.lane(cache, server, share, alone);
        let lanes = self.rules.caches.iter().map(lane).collect();
        (Flow::new(self.rules.clone(), lanes, self.board.metrics.clone()), rewound)
    }

    /// Tells the lanes where the stream starts.
    pub(super) fn begin(&self, flow: &mut Flow, server: &Server, confirmed: Lsn, log: Lsn) {
        flow.logged_before(log);
        let reopens = slot::forgets_tables(server.version);
        for lane in &mut flow.lanes {
            if let Some(gap) = lane.begin(confirmed, log, origin(server), reopens) {
                self.tell_gap(lane, &gap);
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
