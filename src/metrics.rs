//! What Prometheus sees at `/metrics`: seconds and bytes, everything under `waltag_`.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::rules::Rules;
use crate::rules::events::Event;

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;

/// Every metric. The loop writes them; the HTTP server reads them.
pub struct Metrics {
    registry: Registry,
    changes: Counters,
    tags: Counters,
    slot_status: Gauges,
    latency: Family<Labels, Histogram, fn() -> Histogram>,
    tags_sent: Counters,
    redis_errors: Counters,
    connections: Counters,
    gaps: Counters,
    caches_up: Gauges,
    replicas_up: Gauges,
    /// Transactions that were received.
    pub transactions: Counter,
    /// From the arrival of tags until every snapshot shows their transaction.
    pub visibility_wait: Histogram,
    /// The way of a message through the log, from its writing to its arrival.
    pub canary_delay: Histogram,
    /// Reads of rule files that gave no usable set.
    pub reload_failures: Counter,
    /// Changes whose tags could not be listed.
    pub unlisted: Counter,
    /// Messages that named tags in a way that nobody understands.
    pub spurned: Counter,
    /// Conditions that could not be decided: they count as true.
    undecided: Counter,
    /// Is everything as it should be?
    pub ready: Gauge,
    /// Rule sets that were in force, this one included.
    pub rules_generation: Gauge,
    /// Tables of the rules that are not published.
    pub uncovered: Gauge,
    /// Rules that do not fit their table.
    pub degraded: Gauge,
    /// Received up to here.
    pub received_lsn: Gauge,
    /// Confirmed up to here.
    pub confirmed_lsn: Gauge,
    /// WAL that the server keeps since what we have confirmed.
    pub unconfirmed_wal: Gauge,
    /// WAL that the slot keeps, for whatever reason.
    pub retained_wal: Gauge,
    /// Bytes of the outbox.
    pub outbox: Gauge,
    /// Bytes that wait on their way to Redis.
    pub memory_used: Gauge,
    /// `--tag-memory`.
    pub memory_limit: Gauge,
    /// Transactions that no snapshot shows yet.
    pub fence_waiting: Gauge,
    /// Lines of the log that were left out.
    pub log_lost: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("waltag");
        macro_rules! metric {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        // 0.1 ms to 52 s in doublings: a Redis round trip is the least, a connect timeout the most that is of interest.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 20));
        Metrics {
            changes: metric!("changes", "Row changes received, by event", Counters::default()),
            tags: metric!(
                "tags",
                "Tags rendered, distinct within a transaction, by rule and cache",
                Counters::default()
            ),
            slot_status: metric!("slot_status", "wal_status of the slot: 1 for the one it has", Gauges::default()),
            latency: metric!(
                "commit_to_invalidate_seconds",
                "From the commit (the server's clock) of the oldest transaction of a batch to Redis' answer",
                Family::new_with_constructor(histogram)
            ),
            tags_sent: metric!("tags_sent", "Tags that Redis acknowledged, repeats included", Counters::default()),
            redis_errors: metric!("redis_errors", "Failures of Redis by kind", Counters::default()),
            connections: metric!("connections", "Connections opened, by server", Counters::default()),
            gaps: metric!("gaps", "Times in which changes may have been missed, by reason", Counters::default()),
            caches_up: metric!("cache_up", "Is the cache claimed and attached?", Gauges::default()),
            replicas_up: metric!(
                "replica_up",
                "Does the standby answer that the cache's application reads from?",
                Gauges::default()
            ),
            transactions: metric!("transactions", "Transactions received", Counter::default()),
            visibility_wait: metric!(
                "visibility_wait_seconds",
                "From the arrival of tags until every new snapshot shows their transaction",
                histogram()
            ),
            canary_delay: metric!(
                "canary_delay_seconds",
                "From the writing of a message into the log to its arrival (--canary)",
                histogram()
            ),
            reload_failures: metric!("rules_reload_failures", "Rule sets that were refused", Counter::default()),
            unlisted: metric!(
                "unlisted_changes",
                "Changes whose tags could not be listed: everything was made stale instead",
                Counter::default()
            ),
            spurned: metric!(
                "spurned_messages",
                "Messages that name tags in SQL and were passed over, because of their size, form or cache",
                Counter::default()
            ),
            undecided: metric!(
                "undecided_conditions",
                "Conditions (`when`) that could not be decided for a row, and counted as true",
                Counter::default()
            ),
            ready: metric!("ready", "1 if /readyz says so", Gauge::default()),
            rules_generation: metric!(
                "rules_generation",
                "Rule sets so far, the one in force included",
                Gauge::default()
            ),
            uncovered: metric!("rules_uncovered", "Rules whose table is not published", Gauge::default()),
            degraded: metric!("rules_degraded", "Rules that do not fit their table any more", Gauge::default()),
            received_lsn: metric!("received_lsn", "Position up to which the stream was received", Gauge::default()),
            confirmed_lsn: metric!("confirmed_lsn", "Position up to which nothing is owed", Gauge::default()),
            unconfirmed_wal: metric!(
                "unconfirmed_wal_bytes",
                "WAL between the confirmed position and the server's end",
                Gauge::default()
            ),
            retained_wal: metric!("retained_wal_bytes", "WAL that the slot makes the server keep", Gauge::default()),
            outbox: metric!("outbox_bytes", "Size of the outbox, what waits to be vacuumed included", Gauge::default()),
            memory_used: metric!("memory_used_bytes", "Bytes of tags on their way to Redis", Gauge::default()),
            memory_limit: metric!("memory_limit_bytes", "--tag-memory", Gauge::default()),
            log_lost: metric!(
                "log_lines_lost",
                "Lines of the log that were left out: one place wrote too many, or nobody reads stderr",
                Gauge::default()
            ),
            fence_waiting: metric!("fence_waiting", "Transactions that readers do not see yet", Gauge::default()),
            registry,
        }
    }
}

impl Metrics {
    /// The text of `/metrics`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Lets each tag of the rules count into its own series; a rule that stays keeps counting.
    pub fn attach(&self, rules: &mut Rules) {
        rules.undecided = self.undecided.clone();
        let caches: Vec<String> = rules.caches.iter().map(|cache| cache.name.clone()).collect();
        for rule in &mut rules.rules {
            for tag in &mut rule.tags {
                let counter = |cache: &usize| {
                    let cache = caches.get(*cache).cloned().unwrap_or_default();
                    let labels =
                        vec![("table", rule.tables.to_string()), ("tag", tag.template.text.clone()), ("cache", cache)];
                    self.tags.get_or_create_owned(&labels)
                };
                tag.made = tag.caches.iter().map(counter).collect();
            }
        }
    }

    /// The counter of one event's changes.
    pub fn changes(&self, event: Event) -> Counter {
        self.changes.get_or_create_owned(&vec![("event", event.name().to_owned())])
    }

    /// Tags were acknowledged, some of them by their first pass.
    pub fn sent(&self, cache: &str, tags: usize, latency: Option<f64>) {
        self.tags_sent.get_or_create(&of(cache)).inc_by(tags as u64);
        if let Some(latency) = latency {
            self.latency.get_or_create(&of(cache)).observe(latency);
        }
    }

    /// A cache failed.
    pub fn redis_error(&self, cache: &str, kind: &str) {
        let labels = vec![("cache", cache.to_owned()), ("kind", kind.to_owned())];
        self.redis_errors.get_or_create(&labels).inc();
    }

    /// A connection was opened: `postgresql`, or a cache.
    pub fn connected(&self, server: &str) {
        self.connections.get_or_create(&vec![("server", server.to_owned())]).inc();
    }

    /// Changes may have been missed.
    pub fn gap(&self, cache: &str, reason: &str) {
        self.gaps.get_or_create(&vec![("cache", cache.to_owned()), ("reason", reason.to_owned())]).inc();
    }

    /// The caches as they are now.
    pub fn caches<'a>(&self, caches: impl Iterator<Item = (&'a str, bool)>) {
        self.caches_up.clear();
        for (cache, up) in caches {
            self.caches_up.get_or_create(&of(cache)).set(i64::from(up));
        }
    }

    /// The standbys as they are now: cache, host and port, whether it answers.
    pub fn replicas<'a>(&self, replicas: impl Iterator<Item = (&'a str, &'a str, bool)>) {
        self.replicas_up.clear();
        for (cache, replica, up) in replicas {
            let labels = vec![("cache", cache.to_owned()), ("replica", replica.to_owned())];
            self.replicas_up.get_or_create(&labels).set(i64::from(up));
        }
    }

    /// `wal_status` of the slot.
    pub fn slot_status(&self, status: &str) {
        self.slot_status.clear();
        self.slot_status.get_or_create(&vec![("status", status.to_owned())]).set(1);
    }
}

fn of(cache: &str) -> Labels {
    vec![("cache", cache.to_owned())]
}
