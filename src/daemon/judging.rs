//! A catalog that was read: which rules cover their tables, what they did not before, and what explains it.

use std::rc::Rc;

use super::Daemon;
use crate::cache::gap::Gap;
use crate::cache::lane::Lane;
use crate::flow::Flow;
use crate::flow::history::Verdict;
use crate::setup::catalog::Catalog;
use crate::setup::verify::{self, sends_all};
use crate::source::lsn::Lsn;
use crate::source::replication::error::Error;
use crate::source::replication::slot::Feed;

impl Daemon {
    /// Tables of a publication that is not streamed are not covered by it.
    pub(super) fn compare_streamed(&mut self, catalog: &mut Catalog) {
        match (catalog.inserts.exists, self.streams_inserts) {
            (true, false) => {
                self.reload.reopen_at.get_or_insert(catalog.end);
                catalog.forget_inserts();
            }
            (false, true) => self.reload.reopen_at = Some(Lsn(0)),
            _ => self.reload.reopen_at = None,
        }
    }

    /// Is the server's history the one that this process knew, and may positions be confirmed? Otherwise nothing of what is remembered is true of it.
    pub(super) fn judge_history(&mut self, flow: &mut Flow) -> Result<bool, Error> {
        let Flow { lanes, history, .. } = flow;
        let mut another = None;
        for lane in lanes.iter_mut() {
            if let Some(gap) = lane.settle_history(history) {
                self.tell_gap(lane, &gap);
                another = Some(gap);
            }
        }
        if let Some(gap) = another {
            flow.resync_all(&gap);
        }
        let Flow { lanes, history, .. } = flow;
        if lanes.iter().all(Lane::has_told_its_history) {
            history.forget();
        }
        match history.verdict() {
            Verdict::Same => Ok(true),
            Verdict::Open => Ok(false),
            Verdict::Another => {
                let gap = Gap::another_history(history.last().map(|commit| commit.to_string()).unwrap_or_default());
                let sentence = format!("{gap}; nothing that was known of it is true any more");
                self.forgets = Some(gap);
                Err(Error::away(sentence))
            }
        }
    }

    /// Judges the catalog that waits, and what was in doubt at the start, if everything has arrived that explains it.
    pub(super) fn judge_what_arrived(&mut self, flow: &mut Flow) {
        let received = flow.received();
        for lane in &mut flow.lanes {
            if let Some(gap) = lane.settle_doubts(received, &flow.truncations) {
                self.tell_gap(lane, &gap);
            }
        }
        if self.reload.unjudged.as_ref().is_none_or(|(_, catalog)| received < catalog.end) {
            return;
        }
        match self.reload.unjudged.take() {
            Some((rules, catalog)) if Rc::ptr_eq(&rules, &self.rules) => self.judge(catalog, flow),
            _ => self.reload.look_again(),
        }
    }

    /// Compares the rules in force with the catalog: which cover their tables, and what they did not before.
    pub(super) fn judge(&mut self, catalog: Catalog, flow: &mut Flow) {
        let (degraded, uncovered) = verify::tables(&self.rules, &catalog);
        let text = |list: Vec<crate::rules::diagnostic::Diagnostic>| -> Vec<String> {
            list.iter().map(ToString::to_string).collect()
        };
        let (degraded, mut uncovered) = (text(degraded), text(uncovered));
        uncovered.extend(catalog.deaf.clone());
        for new in uncovered.iter().filter(|problem| !self.reload.uncovered.contains(problem)) {
            tracing::warn!("{new}");
        }
        for new in degraded.iter().filter(|problem| !self.reload.degraded.contains(problem)) {
            tracing::error!(
                "a table or the publication changed under the rules: until it fits again, each change that arrives makes everything stale that the rules reach, and what does not arrive is made up for afterwards\n{new}"
            );
        }
        let healed = self.reload.uncovered.len() + self.reload.degraded.len() > uncovered.len() + degraded.len();
        if healed && uncovered.is_empty() && degraded.is_empty() {
            tracing::info!("every rule fits its table, and every table is published");
        }
        (self.reload.degraded, self.reload.uncovered) = (degraded, uncovered);
        let truncated = flow.truncations.relations();
        for (index, lane) in flow.lanes.iter_mut().enumerate() {
            let coverage = self.rules.coverage(
                index,
                catalog.tables.keys(),
                |table, column| catalog.type_of(table, column),
                |table| {
                    catalog
                        .tables
                        .get(table)
                        .filter(|found| sends_all(table, found, &catalog, &self.rules))
                        .map(|found| found.fingerprint(self.settings.names.feed == Feed::Replication))
                },
            );
            for template in coverage.unreachable.iter().filter(|_| self.catalog.is_none()) {
                tracing::warn!(
                    cache = lane.cache().name,
                    template,
                    "a sweep cannot reach the keys of this template: it does not start with a literal that ends in a separator"
                );
            }
            if let Some(gap) = lane.cover(coverage, &truncated, catalog.end, catalog.log) {
                self.tell_gap(lane, &gap);
            }
        }
        if let Some(snapshot) = &catalog.snapshot {
            flow.truncations.looked(snapshot);
        }
        flow.relations.learn(catalog.lineage(&self.rules), catalog.snapshot.as_ref(), &self.rules);
        flow.hear_by(catalog.word.clone(), &catalog);
        self.catalog = Some(catalog);
    }
}
