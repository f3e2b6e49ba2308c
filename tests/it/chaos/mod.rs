//! Chaos: writers, readers and faults at random; at the end, and at rests in between, every cached record is compared with the
//! database by code that shares nothing with waltag. `scripts/chaos [seconds]` runs it.
//!
//! Six caches: `library` (the protocol of cache-dependencies: a tag without a key is stale), `versions` (a tag without a key is
//! valid; versions are taken before the row is read), `standby` (records under plain keys, read from a lagging standby), `stamps` (that of
//! the Next.js handlers: no key before the first invalidation, and a `guard`), `sets` (the keys of its records under each tag), and
//! `ledger`, which nobody reads: each UNLINK there is a first pass, and each row version has a tag of its own, so what was sent is compared
//! with what was owed.
//!
//! Run `d` has a world of its own: no standby, because a copy of the primary that is put back leaves one behind, so `plain` stands for `standby`;
//! a user of Redis for the daemon, and a way to it that is never idle; and a small budget with rules that hold tags back.

mod faults;
mod hostile;
mod prober;
mod readers;
mod writers;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::{Mutex, RwLock};
use tokio_postgres::Client;
use waltag::demo::monitor::Monitor;
use waltag::demo::servers::{Postgres, Redis};

use crate::support::{Daemon, World, outbox, outbox_settled, until_within};
use faults::Fault;

/// Rows of the table that is written at random.
const ROWS: i32 = 120;
/// Their categories.
const CATEGORIES: i32 = 8;
/// A row, and its categories, that only one of the faults writes.
const OTHER_ROW: i32 = ROWS + 1;
const OTHER_CATEGORIES: std::ops::Range<i32> = CATEGORIES..CATEGORIES + 3;
/// Rows of the table `bulk` that are read in run `d`.
const BULK: i32 = 100;
/// Nothing takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(90);

const SCHEMA: &str = "
    CREATE SEQUENCE nonce;
    CREATE TABLE item (id int PRIMARY KEY, cat int NOT NULL, val bigint NOT NULL);
    CREATE TABLE bulk (id int PRIMARY KEY, val bigint NOT NULL);
    CREATE TABLE probe (id int PRIMARY KEY, val bigint NOT NULL);
    CREATE TABLE noise (id int PRIMARY KEY, val bigint NOT NULL);
    INSERT INTO probe VALUES (1, 0);
    INSERT INTO noise SELECT n, 0 FROM generate_series(1, 5000) n;
    INSERT INTO bulk SELECT n, nextval('nonce') FROM generate_series(1, 10000) n;
    INSERT INTO item SELECT n, n % 8, nextval('nonce') FROM generate_series(1, 120) n";

/// Everything that runs.
pub struct Lab {
    world: Mutex<World>,
    /// Not in the world of run `d`.
    standby: Option<Postgres>,
    hostile: bool,
    /// The standby is the primary, or about to be: what became of a commit cannot be asked any more.
    promoted: AtomicBool,
    /// An older copy of the primary is put back: what was committed last is lost, and was read.
    undone: AtomicBool,
    /// Odd while a fault is under way, and another number afterwards.
    faults: AtomicU64,
    /// `versions` is by itself, because it is away for the whole of a run; so is `ledger`, because it never is.
    versions: Mutex<Redis>,
    _ledger: Redis,
    monitor: Monitor,
    daemon: Mutex<Option<Daemon>>,
    logs: Mutex<Vec<String>>,
    /// Writers hold it for reading; a rest takes it.
    rest: RwLock<()>,
    /// No writer begins anything until the next rest is over.
    quiet: AtomicBool,
    urls: Urls,
    counts: Counts,
    /// Row versions that were committed, each with the moment; and those of which nobody knows.
    owed: Mutex<HashMap<u64, Instant>>,
    /// Those that were copied with their rows: they may be sent, and nobody is owed them.
    copied: Mutex<HashSet<u64>>,
    sent: Mutex<HashSet<u64>>,
    /// Nothing that was committed before is owed to the ledger: a resync stands for it.
    forgiven: Mutex<Instant>,
}

/// Where everything is; ports stay the same over restarts.
pub struct Urls {
    /// Another one after a promotion.
    primary: std::sync::RwLock<String>,
    standby: String,
    library: String,
    plain: String,
    versions: String,
    stamps: String,
    sets: String,
    ledger: String,
}

#[derive(Default)]
struct Counts {
    commits: AtomicU64,
    reads: AtomicU64,
    hits: AtomicU64,
    stale: AtomicU64,
    /// Repeats that were waited for while no fault was under way, and by how much the latest of them was late, in milliseconds.
    repeats: AtomicU64,
    latest_repeat: AtomicU64,
    /// Passes that did not come.
    hangs: AtomicU64,
}

/// What a run does, and what it owes.
struct Run {
    name: &'static str,
    faults: &'static [Fault],
    /// What goes wrong last: nothing is as it was after it.
    last: Option<Fault>,
    /// The cache `versions` is away from the beginning to the end.
    one_is_away: bool,
    /// It has the world of run `d`.
    hostile: bool,
}

const CALM: Run = Run { name: "a: no faults", faults: &[], last: None, one_is_away: false, hostile: false };

const RUNS: [Run; 4] = [
    CALM,
    Run { name: "b: faults that owe no resync", faults: &faults::HARMLESS, one_is_away: true, ..CALM },
    Run { name: "c: faults that owe one", faults: &faults::GAPS, last: Some(Fault::Promoted), ..CALM },
    Run { name: "d: what a hostile reader thought of", faults: &faults::HOSTILE, hostile: true, ..CALM },
];

/// CHAOS_SECONDS of each of the four runs; CHAOS_RUN names one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "long: scripts/chaos"]
async fn chaos() {
    let seconds = std::env::var("CHAOS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let only = std::env::var("CHAOS_RUN").unwrap_or_default();
    let mut failed = Vec::new();
    // The gaps of run c are those of slots and publications, and so are some of run d; the triggers of a table do not come with its name.
    let on_this_source = |run: &&Run| !(outbox() && (run.last.is_some() || run.hostile));
    for run in RUNS.iter().filter(on_this_source).filter(|run| run.name.starts_with(&only)) {
        let (line, well) = Lab::new(run.hostile).await.run(run, Duration::from_secs(seconds)).await;
        println!("{}\n{line}", run.name);
        if !well {
            failed.push(run.name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

impl Lab {
    async fn new(hostile: bool) -> Arc<Lab> {
        let world = World::with("", SCHEMA).await;
        let standby = if hostile { None } else { Some(synchronous_standby(&world).await) };
        let (versions, ledger) = (Redis::start(&[]).unwrap(), Redis::start(&[]).unwrap());
        let primary = world.postgres.url("postgres", "shop");
        let urls = Urls {
            standby: standby.as_ref().map_or(primary.clone(), |standby| standby.url("postgres", "shop")),
            primary: std::sync::RwLock::new(primary),
            library: world.redis.url(0),
            plain: world.redis.url(1),
            versions: versions.url(0),
            stamps: world.redis.url(2),
            sets: world.redis.url(3),
            ledger: ledger.url(0),
        };
        let rules = match &standby {
            Some(standby) => rules("{redis}", &urls, Some(&standby.url("waltag", "shop"))),
            None => hostile::rules(&world, &urls).await,
        };
        world.setup(&rules);
        Arc::new(Lab {
            world: Mutex::new(world),
            standby,
            hostile,
            promoted: AtomicBool::new(false),
            undone: AtomicBool::new(false),
            faults: AtomicU64::default(),
            versions: Mutex::new(versions),
            monitor: Monitor::start(ledger.port),
            _ledger: ledger,
            daemon: Mutex::default(),
            logs: Mutex::default(),
            rest: RwLock::default(),
            quiet: AtomicBool::new(false),
            urls,
            counts: Counts::default(),
            // The row of an altered publication.
            owed: Mutex::new(HashMap::from([(0, Instant::now())])),
            copied: Mutex::default(),
            sent: Mutex::default(),
            forgiven: Mutex::new(Instant::now()),
        })
    }

    async fn run(self: Arc<Lab>, run: &Run, length: Duration) -> (String, bool) {
        self.start_daemon().await;
        self.daemon.lock().await.as_ref().unwrap().wait_for(" ready ");
        self.daemon.lock().await.as_ref().unwrap().wait_until_resynced();
        if run.one_is_away {
            self.versions.lock().await.kill();
        }
        let mut tasks = Vec::new();
        tasks.extend((0..3).map(|number| tokio::spawn(writers::write(self.clone(), number))));
        tasks.extend((0..2).flat_map(|_| readers::all(&self)));
        tasks.push(tokio::spawn(prober::probe(self.clone())));
        if run.hostile {
            tasks.push(tokio::spawn(writers::never_pause(self.clone())));
        }
        let (mut made, mut owed_resyncs) = (BTreeMap::<&str, u32>::new(), 0);
        let before = self.resyncs().await;
        let (begin, mut round) = (Instant::now(), 0);
        while begin.elapsed() < length || (!run.faults.is_empty() && made.len() < run.faults.len()) {
            tokio::time::sleep(Duration::from_millis(dice(300..1_500))).await;
            // Each in turn, and in a run that has time for more, at random.
            let next = if made.len() < run.faults.len() { round } else { dice(0..run.faults.len().max(1)) };
            round += 1;
            if let Some(fault) = run.faults.get(next) {
                owed_resyncs += self.suffer(*fault).await;
                *made.entry(fault.name()).or_default() += 1;
            }
            if fault_owes(run, next) || self.quiet.load(Relaxed) || round % 6 == 0 {
                self.take_rest(run, before + owed_resyncs).await;
            }
        }
        // Faults may have come too close to each other for one that counts.
        until_within(LIMIT, "a repeat was measured", || async { self.counts.repeats.load(Relaxed) > 0 }).await;
        self.take_rest(run, before + owed_resyncs).await;
        if let Some(fault) = run.last {
            owed_resyncs += self.suffer(fault).await;
            made.insert(fault.name(), 1);
            self.take_rest(run, before + owed_resyncs).await;
        }
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.verdict(run, made, owed_resyncs, self.resyncs().await - before).await
    }

    /// Writers stop, everything settles, and each record is compared.
    async fn take_rest(&self, run: &Run, resyncs: u32) {
        let _rest = self.rest.write().await;
        let sql = self.sql().await;
        self.wait_for_resyncs(resyncs).await;
        self.settled(&sql).await;
        // A slow reader may store what it read before the last change; its record goes stale with the last repeat.
        tokio::time::sleep(readers::SLOWEST + Duration::from_millis(100)).await;
        self.settled(&sql).await;
        let sent = self.monitor.unlinked();
        self.monitor.forget();
        self.sent.lock().await.extend(sent.iter().filter_map(|line| line.strip_prefix("0 v:")?.parse::<u64>().ok()));
        let stale = readers::compare(self, &sql, !run.one_is_away).await;
        self.quiet.store(false, Relaxed);
        if !stale.is_empty() {
            println!("stale: {stale:?}");
            self.counts.stale.fetch_add(stale.len() as u64, Relaxed);
        }
    }

    /// Everything up to now is confirmed, which means: every pass is over, those for the standby's readers included.
    async fn settled(&self, sql: &Client) {
        if outbox() {
            return outbox_settled(sql, LIMIT).await;
        }
        let query =
            "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = 'waltag'";
        let now: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        until_within(LIMIT, &format!("the slot confirms {now}"), || async {
            sql.query_opt(query, &[&now]).await.unwrap().is_some_and(|row| row.get(0))
        })
        .await;
    }

    async fn verdict(&self, run: &Run, made: BTreeMap<&str, u32>, owed_resyncs: u32, resyncs: u32) -> (String, bool) {
        let (owed, sent, forgiven) = (self.owed.lock().await, self.sent.lock().await, *self.forgiven.lock().await);
        let unsent = owed.iter().filter(|(version, at)| !sent.contains(version) && **at > forgiven);
        let missed = unsent.clone().count();
        if missed > 0 {
            println!("missed: {:?}", unsent.take(20).collect::<Vec<_>>());
        }
        let copied = self.copied.lock().await;
        let is_excess = |version: &&u64| !owed.contains_key(version) && !copied.contains(version);
        let (excess, owed_count) = (sent.iter().filter(is_excess).count(), owed.len());
        let over = (owed_count + excess) as f64 / owed_count.max(1) as f64;
        let faults: Vec<String> = made.iter().map(|(name, count)| format!("{name}:{count}")).collect();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let Counts { commits, reads, hits, stale, latest_repeat, hangs, .. } = &self.counts;
        let line = format!(
            "chaos: commits={} reads={} hits={} stale={} missed={missed} over={over:.2} resyncs={resyncs} latest_repeat_ms={} faults={}",
            count(commits),
            count(reads),
            count(hits),
            count(stale),
            count(latest_repeat),
            faults.join(",")
        );
        let nothing_wrong = count(stale) == 0 && missed == 0 && excess == 0 && count(hangs) == 0;
        let well = nothing_wrong && resyncs == owed_resyncs && count(hits) > 0;
        if !well {
            let hangs = count(hangs);
            println!(
                "{} ended with {excess} too many, {hangs} passes that never came, {owed_resyncs} resyncs owed\n{}",
                run.name,
                self.told().await
            );
        }
        (line, well)
    }

    /// A session on the primary, once it answers.
    async fn sql(&self) -> Client {
        loop {
            if let Some(client) = session(&self.urls.primary()).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn start_daemon(&self) {
        let world = self.world.lock().await;
        let mut arguments = vec!["run", "--lock-timeout", "500ms", "--max-retained-wal", "64MiB"];
        if self.hostile {
            arguments.extend(["--tag-memory", "1MiB"]);
        }
        let mut command = world.waltag("waltag", &arguments);
        if let Some(standby) = &self.standby {
            let url = format!("postgres://waltag@127.0.0.1:{},127.0.0.1:{}/shop", world.postgres.port, standby.port);
            command.env("WALTAG_DATABASE_URL", url);
        }
        // That it has looked at the catalog is told at this level.
        let level =
            if self.hostile { "waltag=info,waltag::daemon=debug,waltag::daemon::report=info" } else { "waltag=info" };
        let daemon = world.start_at(level, &mut command);
        // Signals end a process that has no handlers yet, and these are there before it says anything.
        until_within(LIMIT, "it speaks", || async { !daemon.log().is_empty() }).await;
        *self.daemon.lock().await = Some(daemon);
    }

    /// Takes the daemon away, and keeps what it said.
    async fn take_daemon(&self) -> Daemon {
        let daemon = self.daemon.lock().await.take().unwrap();
        self.logs.lock().await.push(daemon.log());
        daemon
    }

    async fn told(&self) -> String {
        let mut all = self.logs.lock().await.clone();
        all.extend(self.daemon.lock().await.as_ref().map(Daemon::log));
        all.join("\n")
    }

    async fn wait_for_resyncs(&self, count: u32) {
        let deadline = Instant::now() + LIMIT;
        while self.resyncs().await < count {
            assert!(Instant::now() < deadline, "never: {count} resyncs\n{}", self.told().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often the daemons said so.
    async fn said(&self, words: &str) -> usize {
        self.told().await.matches(words).count()
    }

    /// Resyncs that are complete, over all daemons and caches.
    async fn resyncs(&self) -> u32 {
        self.told().await.matches("resync complete").count() as u32
    }
}

impl Urls {
    fn primary(&self) -> String {
        self.primary.read().unwrap().clone()
    }
}

/// Commits wait for it, those of one writer until it has replayed them, and are visible only then: without the fence they would go stale
/// too early.
async fn synchronous_standby(world: &World) -> Postgres {
    let standby = Postgres::standby_of(&world.postgres).unwrap();
    let synchronous = "ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'";
    world.sql().await.batch_execute(synchronous).await.unwrap();
    world.postgres.reload().unwrap();
    standby.configure("hot_standby = on\nrecovery_min_apply_delay = 20ms").unwrap();
    standby.reload().unwrap();
    standby
}

/// The rules of every run. `redis`: where the daemon finds the Redis that four of the caches share.
fn rules(redis: &str, urls: &Urls, standby: Option<&str>) -> String {
    let (plain, replicas) = match standby {
        Some(standby) => ("standby", format!(r#", replicas: ["{standby}"]"#)),
        None => ("plain", String::new()),
    };
    format!(
        r#"
version: 1
caches:
  library: {{ url: "{redis}/0", dialect: cache-dependencies, repeat: [1s] }}
  versions: {{ url: "{}", dialect: version, absent: valid, ttl: 1d, repeat: [], detach_after: 2s }}
  {plain}: {{ url: "{redis}/1", dialect: keys, repeat: [1s]{replicas} }}
  stamps: {{ url: "{redis}/2", dialect: nextjs, repeat: [1s], guard: 300ms }}
  sets: {{ url: "{redis}/3", dialect: set, tag_prefix: "tag:", records: ["item:", "cat:", "probe:"], repeat: [1s] }}
  ledger: {{ url: "{}", dialect: keys, repeat: [] }}
rules:
  - {{ table: item, caches: [library, {plain}, stamps, sets], tags: ["item:<id>", "cat:<cat>"] }}
  - {{ table: item, caches: [versions], unknown: ["all"], tags: ["item:<id>", "cat:<cat>"] }}
  - {{ tables: [item, bulk], caches: [ledger], tags: ["v:<val>"] }}
  - {{ table: probe, caches: [sets], tags: ["probe:<id>"] }}
"#,
        urls.versions, urls.ledger
    )
}

/// Such a fault is over before the next one comes: two gaps at once are one resync.
fn fault_owes(run: &Run, index: usize) -> bool {
    run.faults.get(index).is_some_and(|fault| fault.owes() != Some(0))
}

/// A number in the range. No generator is held over an await.
fn dice<T: rand::distr::uniform::SampleUniform, R: rand::distr::uniform::SampleRange<T>>(range: R) -> T {
    rand::rng().random_range(range)
}

async fn session(url: &str) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}
