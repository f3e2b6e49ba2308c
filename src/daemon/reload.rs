//! Other rules while the stream runs: files -> compiled -> compared with the catalog -> in force, whole or not at all, between
//! two transactions. And the catalog while the rules stay: which tables are published, and fit.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::Daemon;
use crate::cache::Cache;
use crate::cache::lane::Lane;
use crate::cache::marker::{Marker, Origin};
use crate::flow::Flow;
use crate::rules::Rules;
use crate::setup::catalog::{self, Catalog};
use crate::setup::verify::{self, is_covered};
use crate::source::replication::Server;
use crate::source::replication::slot;
use crate::source::session::{self, Sql};

/// Where a new rule set stands, and what is wrong with the one in force.
pub(super) struct Reload {
    /// Sets so far.
    pub(super) generation: u64,
    /// The set in force was good once: what no longer fits makes its rules degraded, and nothing else.
    pub(super) proven: bool,
    /// Compiled, and to be compared with the catalog.
    offer: Option<Rc<Rules>>,
    /// Compared, and to be put in force between two transactions.
    accepted: Option<(Rc<Rules>, Catalog)>,
    /// Why the files as they are now are not in force.
    pub(super) refused: Option<String>,
    pub(super) uncovered: Vec<String>,
    pub(super) degraded: Vec<String>,
    /// The newest transaction of the last snapshot, and of the last reading of the catalog: nothing changes without one.
    pub(super) newest: Cell<u64>,
    read_at: u64,
}

/// What was read of the server.
pub(super) struct Checked {
    slot: Option<slot::State>,
    catalog: Option<(Rc<Rules>, Catalog)>,
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
            accepted: None,
            refused,
            uncovered: Vec::new(),
            degraded: Vec::new(),
            newest: Cell::default(),
            read_at: 0,
        }
    }

    /// Does a set wait to be put in force?
    pub(super) fn is_accepted(&self) -> bool {
        self.accepted.is_some()
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
        self.reload.offer = Some(Rc::new(rules));
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

    /// Before the first READY: the rules do not fit the database; those that did are taken instead, if they were kept.
    pub(super) fn fall_back(&mut self, sentence: &str) -> bool {
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
    pub(super) fn check(&mut self, sql: &Sql) -> Check {
        let newest = self.reload.newest.get();
        let rules = match &self.reload.offer {
            Some(offer) => Some(offer.clone()),
            None => (newest != self.reload.read_at).then(|| self.rules.clone()),
        };
        self.reload.read_at = newest;
        let (sql, names) = (sql.clone(), self.settings.names.clone());
        Box::pin(async move {
            let slot = slot::State::read(&sql, &names.slot).await?;
            let catalog = match rules {
                Some(rules) => {
                    let catalog = catalog::read(&sql, &rules, &names.publication).await?;
                    Some((rules, catalog))
                }
                None => None,
            };
            Ok(Checked { slot, catalog })
        })
    }

    /// Takes what was read.
    pub(super) fn checked(&mut self, checked: Checked, flow: &mut Flow) {
        self.view.slot = checked.slot.unwrap_or_default();
        let Some((rules, catalog)) = checked.catalog else { return };
        if Rc::ptr_eq(&rules, &self.rules) {
            return self.judge(catalog, flow);
        }
        // The files may have changed again meanwhile.
        if !self.reload.offer.as_ref().is_some_and(|offer| Rc::ptr_eq(offer, &rules)) {
            return;
        }
        let (refused, _) = verify::tables(&rules, &catalog, &self.settings.names.publication);
        if refused.is_empty() {
            self.reload.offer = None;
            self.reload.accepted = Some((rules, catalog));
        } else {
            self.refuse(refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"));
        }
    }

    /// Puts the accepted rules in force.
    pub(super) fn adopt(&mut self, flow: &mut Flow, server: &Server) {
        let Some((rules, catalog)) = self.reload.accepted.take() else { return };
        let share = share(self.settings.tag_memory, &rules);
        let (floor, alone) = (flow.floor(), rules.caches.len() == 1);
        let origin = origin(server);
        flow.adopt(rules.clone(), share, |cache| {
            let mut lane = self.lane(cache, server, share, alone);
            lane.begin(floor, origin.clone());
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
        Lane::new(cache.clone(), marker, share, alone)
    }

    /// Compares the rules in force with the catalog: which cover their tables, and what they did not before.
    pub(super) fn judge(&mut self, catalog: Catalog, flow: &mut Flow) {
        let (degraded, uncovered) = verify::tables(&self.rules, &catalog, &self.settings.names.publication);
        let text = |list: Vec<crate::rules::diagnostic::Diagnostic>| -> Vec<String> {
            list.iter().map(ToString::to_string).collect()
        };
        let (degraded, uncovered) = (text(degraded), text(uncovered));
        for new in uncovered.iter().filter(|problem| !self.reload.uncovered.contains(problem)) {
            tracing::warn!("{new}");
        }
        for new in degraded.iter().filter(|problem| !self.reload.degraded.contains(problem)) {
            tracing::error!(
                "a table changed under its rules: until it fits again, each change of it makes everything stale that the rules reach\n{new}"
            );
        }
        let healed = self.reload.uncovered.len() + self.reload.degraded.len() > uncovered.len() + degraded.len();
        if healed && uncovered.is_empty() && degraded.is_empty() {
            tracing::info!("every rule fits its table, and every table is published");
        }
        (self.reload.degraded, self.reload.uncovered) = (degraded, uncovered);
        for (index, lane) in flow.lanes.iter_mut().enumerate() {
            let coverage = self.rules.coverage(
                index,
                |table, column| catalog.type_of(table, column),
                |table| catalog.tables.get(table).is_some_and(|found| is_covered(table, found, &catalog)),
            );
            for template in coverage.unreachable.iter().filter(|_| self.catalog.is_none()) {
                tracing::warn!(
                    cache = lane.cache().name,
                    template,
                    "a sweep cannot reach the keys of this template: it does not start with a literal that ends in a separator"
                );
            }
            if let Some(gap) = lane.cover(coverage) {
                self.board.metrics.gap(&lane.cache().name, gap.code);
                tracing::warn!(cache = lane.cache().name, "resync: {gap}");
            }
        }
        self.catalog = Some(catalog);
    }
}

/// What a lane may keep waiting. One share is left over: a lane that fills its own must not stop the reader for the others.
pub(super) fn share(tag_memory: usize, rules: &Rules) -> usize {
    tag_memory / (rules.caches.len() + 1)
}

/// The life of the server, as the markers say it.
pub(super) fn origin(server: &Server) -> Origin {
    Origin { timeline: server.timeline.clone(), crash: server.crash.clone() }
}
