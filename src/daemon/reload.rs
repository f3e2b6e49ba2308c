//! Other rules while the stream runs: files -> compiled -> compared with the catalog -> in force, whole or not at all, between
//! two transactions. And the catalog while the rules stay: which tables are published, and fit.

use std::cell::Cell;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::rc::Rc;

use super::Daemon;
use crate::cache::Cache;
use crate::cache::lane::Lane;
use crate::cache::marker::{Marker, Origin};
use crate::flow::Flow;
use crate::rules::{Rules, diagnostic};
use crate::setup::catalog::{self, Catalog};
use crate::setup::verify;
use crate::source::lsn::Lsn;
use crate::source::replication::slot;
use crate::source::session::{self, Sql};
use crate::source::{Server, Stream};

/// Where a new rule set stands, and what is wrong with the one in force.
pub(super) struct Reload {
    /// Sets so far.
    pub(super) generation: u64,
    /// The set in force was good once: what no longer fits makes its rules degraded, and nothing else.
    pub(super) proven: bool,
    /// Compiled, and to be compared with the catalog.
    offer: Option<Rc<Rules>>,
    /// The offer does not fit the catalog; it is compared again and again.
    misfit: bool,
    /// What was in force before an offer that was taken without comparing, because no stream ran yet.
    before: Option<Rc<Rules>>,
    /// Compared, and to be put in force between two transactions, when everything has arrived that its catalog shows.
    accepted: Option<(Rc<Rules>, Catalog)>,
    /// A catalog that was read: it is judged when everything has arrived that it shows, because a TRUNCATE explains another file
    /// only once it is known.
    pub(super) unjudged: Option<(Rc<Rules>, Catalog)>,
    /// Why the files as they are now are not in force.
    pub(super) refused: Option<String>,
    pub(super) uncovered: Vec<String>,
    pub(super) degraded: Vec<String>,
    /// The publication of inserts came or went: the stream is opened anew once it is behind this position. Earlier, it would look for
    /// the publication in a past that does not have it.
    pub(super) reopen_at: Option<Lsn>,
    /// The last snapshot, and that of the last reading of the catalog: nothing changes without another one.
    seen: Cell<u64>,
    read_at: Option<u64>,
    /// What the catalog was like when it was read ([`catalog::state`]): transactions end all the time, and hardly one changes a table.
    state: Option<String>,
}

/// What was read of the server.
pub(super) struct Checked {
    /// What had arrived when it was begun.
    begin: Lsn,
    slot: Option<slot::State>,
    state: Option<String>,
    catalog: Option<(Rc<Rules>, Catalog)>,
    offer: Option<(Rc<Rules>, Catalog)>,
}

/// A reading under way.
pub(super) type Check = Pin<Box<dyn Future<Output = Result<Checked, session::Error>>>>;

impl Reload {
    /// `proven`: exactly this set was in force before.
    pub(super) fn new(proven: bool, refused: Option<String>) -> Reload {
        Reload {
            generation: 1,
            proven: proven || refused.is_some(),
            offer: None,
            misfit: false,
            before: None,
            accepted: None,
            unjudged: None,
            refused,
            uncovered: Vec::new(),
            degraded: Vec::new(),
            reopen_at: None,
            seen: Cell::default(),
            // It was read when the stream was opened.
            read_at: Some(0),
            state: None,
        }
    }

    /// A snapshot was taken.
    pub(super) fn seen(&self, snapshot: &str) {
        let mut hasher = DefaultHasher::new();
        snapshot.hash(&mut hasher);
        self.seen.set(hasher.finish());
    }

    /// The catalog is read with the next check, whatever the snapshot says.
    pub(super) fn look_again(&mut self) {
        (self.read_at, self.state) = (None, None);
    }

    /// Does a set wait to be put in force, and has everything arrived that its catalog shows?
    pub(super) fn is_accepted(&self, received: Lsn) -> bool {
        self.accepted.as_ref().is_some_and(|(_, catalog)| received >= catalog.end)
    }

    /// A catalog is to be judged later. One that waits already is not replaced: the stream may lag for long.
    pub(super) fn judge_later(&mut self, rules: Rc<Rules>, catalog: Catalog) {
        match self.unjudged {
            // It is read again, whatever the snapshot says.
            Some(_) => self.look_again(),
            None => self.unjudged = Some((rules, catalog)),
        }
    }

    /// The accepted set is put in force before anything else arrives: there is no room for it.
    pub(super) fn adopt_at_once(&mut self) {
        if let Some((_, catalog)) = &mut self.accepted {
            catalog.end = Lsn(0);
        }
    }

    /// Another stream: what was read before it says nothing.
    pub(super) fn forget_unjudged(&mut self) {
        self.unjudged = None;
    }
}

impl Daemon {
    /// Reads the files again; true if what they say should be compared with the catalog now. `asked`: a signal, not a watch.
    pub(super) fn read_rules(&mut self, asked: bool) -> bool {
        let loaded = self.registry.load();
        let mut rules = match loaded {
            Ok(rules) => rules,
            Err(error) => {
                (self.reload.offer, self.reload.accepted) = (None, None);
                self.manager.reloading();
                self.refuse(error.to_string());
                return false;
            }
        };
        let same = |other: &Rules| other.files == rules.files && other.fingerprint == rules.fingerprint;
        if same(&self.rules) {
            (self.reload.offer, self.reload.accepted) = (None, None);
            let mended = self.reload.refused.take().is_some();
            if asked || mended {
                tracing::info!(generation = self.reload.generation, "the rules are those in force");
                self.manager.reloading();
                self.manager.reloaded();
            }
            return false;
        }
        if self.reload.offer.as_deref().is_some_and(same) {
            return false;
        }
        self.manager.reloading();
        rules.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.board.metrics.attach(&mut rules);
        self.reload.accepted = None;
        (self.reload.offer, self.reload.misfit) = (Some(Rc::new(rules)), false);
        // Without a stream there is nothing to compare with: it is done when the next one runs.
        if !self.view.is_streaming() {
            self.manager.reloaded();
        }
        true
    }

    fn refuse(&mut self, sentence: String) {
        if self.reload.refused.as_ref() != Some(&sentence) {
            self.board.metrics.reload_failures.inc();
            tracing::error!("the new rules are refused, those before stay in force:\n{sentence}");
        }
        self.reload.refused = Some(sentence);
        self.manager.reloaded();
    }

    /// Without a stream there is nothing to keep going: new rules are simply those to begin with.
    pub(super) fn take_offer(&mut self) {
        if self.reload.misfit {
            return;
        }
        if let Some(offer) = self.reload.offer.take() {
            self.reload.proven = self.registry.was_good(&offer);
            self.reload.before = Some(std::mem::replace(&mut self.rules, offer));
            self.reload.generation += 1;
            self.reload.refused = None;
        }
    }

    /// Before the first READY: the rules do not fit the database; those before are taken instead, or those that did and were
    /// kept.
    pub(super) fn fall_back(&mut self, sentence: &str) -> bool {
        self.reload.misfit = true;
        if let Some(before) = self.reload.before.take() {
            self.reload.offer = Some(std::mem::replace(&mut self.rules, before));
            self.refuse(sentence.to_owned());
            return true;
        }
        let Some(Ok(mut rules)) = self.registry.last_good() else { return false };
        if rules.files == self.rules.files {
            return false;
        }
        self.board.metrics.attach(&mut rules);
        self.reload.offer = Some(std::mem::replace(&mut self.rules, Rc::new(rules)));
        self.reload.proven = true;
        self.flow = None;
        self.refuse(sentence.to_owned());
        true
    }

    /// Reads what may have changed on the server: the slot always; the catalog if a transaction has ended since, or if new
    /// rules wait for it.
    pub(super) fn check<S: Stream>(&mut self, sql: &Sql, version: u32, begin: Lsn) -> Check {
        let seen = self.reload.seen.get();
        let views = self.catalog.as_ref().is_some_and(Catalog::has_views);
        let rules = (views || self.reload.read_at != Some(seen)).then(|| self.rules.clone());
        self.reload.read_at = Some(seen);
        let known = self.reload.state.clone().filter(|_| !views);
        let offer = self.reload.offer.clone();
        let (sql, names) = (sql.clone(), self.settings.names.clone());
        Box::pin(async move {
            let read = async |rules: Option<Rc<Rules>>| match rules {
                Some(rules) => {
                    let catalog = catalog::read(&sql, &rules, &names).await?;
                    Ok::<_, session::Error>(Some((rules, catalog)))
                }
                None => Ok(None),
            };
            // Before the catalog: what changes meanwhile is found by the next look.
            let state = match &rules {
                Some(_) => Some(catalog::state(&sql, version).await?),
                None => None,
            };
            let catalog = read(rules.filter(|_| known.is_none() || known != state)).await?;
            let offer = read(offer).await?;
            let slot = S::state(sql, &names).await?;
            Ok(Checked { begin, slot, state, catalog, offer })
        })
    }

    /// Takes what was read.
    pub(super) fn checked(&mut self, checked: Checked, flow: &mut Flow, horizon: Option<Lsn>) {
        self.view.slot = checked.slot.unwrap_or_default();
        self.reload.state = checked.state.or(self.reload.state.take());
        match checked.catalog {
            Some((rules, mut catalog)) if Rc::ptr_eq(&rules, &self.rules) => {
                catalog.lies_between(checked.begin, horizon);
                self.compare_streamed(&mut catalog);
                self.reload.judge_later(rules, catalog);
                self.judge_what_arrived(flow);
            }
            Some(_) => self.reload.look_again(),
            None => {}
        }
        let Some((rules, mut catalog)) = checked.offer else { return };
        catalog.lies_between(checked.begin, horizon);
        // The files may have changed again meanwhile.
        if !self.reload.offer.as_ref().is_some_and(|offer| Rc::ptr_eq(offer, &rules)) {
            return;
        }
        let (refused, _) = verify::tables(&rules, &catalog);
        self.compare_streamed(&mut catalog);
        if refused.is_empty() {
            self.reload.offer = None;
            self.reload.accepted = Some((rules, catalog));
        } else {
            self.reload.misfit = true;
            self.refuse(diagnostic::list(&refused));
        }
    }

    /// Puts the accepted rules in force.
    pub(super) fn adopt(&mut self, flow: &mut Flow, server: &Server) {
        let Some((rules, catalog)) = self.reload.accepted.take() else { return };
        self.reload.forget_unjudged();
        let share = share(self.settings.tag_memory, &rules);
        let (floor, log, alone) = (flow.floor(), flow.log(), rules.caches.len() == 1);
        // The marker that a new lane finds may know more of the log than there was when the stream was opened.
        let origin = Origin { log: server.log.max(flow.known_log()), ..origin(server) };
        flow.adopt(rules.clone(), share, |cache| {
            let mut lane = self.lane(cache, server, share, alone);
            lane.begin(floor, log, origin.clone(), slot::forgets_tables(server.version));
            lane
        });
        self.registry.keep(&rules);
        self.rules = rules;
        self.reload.generation += 1;
        (self.reload.refused, self.reload.proven) = (None, true);
        let (generation, rules, caches) = (self.reload.generation, self.rules.rules.len(), self.rules.caches.len());
        tracing::info!(generation, rules, caches, "rules reloaded");
        self.judge(catalog, flow);
        self.tell_streaming(flow);
        self.manager.reloaded();
    }

    pub(super) fn lane(&self, cache: &Cache, server: &Server, share: usize, alone: bool) -> Lane {
        let slot = &self.settings.names.slot;
        let marker = Marker::new(&server.system, slot, &cache.name, &self.owner, origin(server));
        Lane::new(cache.clone(), marker, share, alone, self.settings.resync_rate, slot)
    }
}

/// What a lane may keep waiting. One share is left over: a lane that fills its own must not stop the reader for the others.
pub(super) fn share(tag_memory: usize, rules: &Rules) -> usize {
    tag_memory / (rules.caches.len() + 1)
}

/// The life of the server, as the markers say it.
pub(super) fn origin(server: &Server) -> Origin {
    Origin { timeline: server.timeline.clone(), crash: server.crash.clone(), log: server.log }
}
