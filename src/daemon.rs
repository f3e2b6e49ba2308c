//! The loop: stream -> flow -> fence -> Redis -> confirm. One task; what runs beside it (a flight to Redis, a snapshot) is
//! polled by it, so nothing can get ahead of anything else unnoticed.

mod judging;
mod looking;
mod opening;
mod pulse;
mod reload;
mod report;
mod rest;
mod view;

use std::future::{Future, pending};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::backoff::Backoff;
use crate::cache::gap::{Gap, REWOUND};
use crate::cache::lane::{Event as LaneEvent, Lane};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::files;
use crate::flow::Flow;
use crate::http::admission::{self, Doors};
use crate::http::{self, Board, Reached};
use crate::rules::Rules;
use crate::rules::registry::Registry;
use crate::settings::Settings;
use crate::setup::catalog::Catalog;
use crate::shutdown::Shutdown;
use crate::source::lsn::Lsn;
use crate::source::outbox::Outbox;
use crate::source::replication::Replication;
use crate::source::replication::error::{Error, Kind};
use crate::source::replication::slot::Feed;
use crate::source::session::Answer;
use crate::source::{Server, Source, Stream};
use crate::systemd::Manager;
use pulse::Pulse;
use reload::{Check, Reload};
use view::View;

/// A clean stop waits this long for the batches in flight.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// A stream that ends because the server shuts down must be let go within this: the server waits for us.
const CLOSE_LIMIT: Duration = Duration::from_millis(200);
/// Between two attempts while another daemon holds the slot.
const STANDBY_WAIT: Duration = Duration::from_secs(1);
/// With nothing behind the fence the session is still asked this often: it may be mute, or the setting may have come that
/// makes waltag a synchronous standby.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// The catalog is compared with the rules this often: a table that is published is seen within this time.
const CHECK: Duration = Duration::from_secs(5);
/// After a TRUNCATE it is read at once, but no more often than this: nothing behind it may be called done before.
const AFTER_TRUNCATE: Duration = Duration::from_millis(100);
/// What `/status` shows is at most this old.
const SHOW: Duration = Duration::from_secs(1);
/// An error at the same position so many times in a row comes again for ever: that is within seconds, because each is waited for only as long as the
/// back-off says.
const TRIES: u32 = 3;
/// With a relation that no catalog has shown the catalog is read this often, or a fifth of the time where it takes long: until then a few tags more
/// than owed go stale, and some positions wait.
const IN_DOUBT: Duration = Duration::from_millis(250);
/// A server that says nothing for this long although it is asked is gone. Behind a large unpublished transaction it may be
/// busy for long, so the patience doubles with each such end.
const PATIENCE: RangeInclusive<Duration> = Duration::from_secs(30)..=Duration::from_secs(600);

/// What a daemon starts with.
pub struct Start {
    /// Where rules come from.
    pub registry: Registry,
    /// The rules to begin with.
    pub rules: Rules,
    /// Why these are the last good ones and not what the files say.
    pub refused: Option<String>,
    /// Catch up with the position of the start, and end.
    pub once: bool,
}

/// What could not be decoded.
struct Undecodable {
    /// How far the stream had come.
    received: Lsn,
    /// How far the source was told that everything is done.
    done: Option<Lsn>,
    /// How often in a row.
    times: u32,
}

struct Daemon {
    settings: Settings,
    board: Board,
    registry: Registry,
    rules: Rc<Rules>,
    reload: Reload,
    owner: String,
    /// The server that was streamed from last, and what was under way.
    flow: Option<(Server, Flow)>,
    ready: bool,
    told: Option<String>,
    backoff: Backoff,
    patience: Duration,
    manager: Manager,
    /// As it was read last: a sweep goes by the types of the columns.
    catalog: Option<Catalog>,
    view: View,
    /// The slot cannot be read any more: one that is confirmed no further than this is made anew.
    renew: Option<Lsn>,
    /// What comes next could not be decoded.
    undecodable: Option<Undecodable>,
    /// How far the stream had come when it broke.
    broke_at: (Lsn, Option<Lsn>),
    /// What is remembered is of another history: the next stream begins with nothing.
    forgets: Option<Gap>,
    /// Since when there has been no slot, and when everything was made stale last because of it.
    blind: Option<Instant>,
    /// The stream has the publication of inserts, too.
    streams_inserts: bool,
    /// With `--once`: the server's end when it was asked first; zero until then.
    goal: Option<Lsn>,
}

/// Runs until a signal asks to stop, or until something only people can mend is wrong before the first READY.
pub async fn run(settings: Settings, start: Start) -> Result<(), Failure> {
    let mut shutdown = Shutdown::listen()?;
    admission::raise_limit();
    files::refuse_pipes();
    let board = Board::new();
    if settings.names.feed == Feed::Replication {
        board.reads_the_log();
    }
    let host = settings.listen.rsplit_once(':').map(|(host, _)| host.to_owned());
    let doors = Doors {
        hosts: host.into_iter().chain(settings.listen_hosts.clone()).collect(),
        token: settings.listen_token.clone(),
    };
    http::serve(&settings.listen, doors, board.clone()).await?;
    let Start { registry, mut rules, refused, once } = start;
    board.metrics.attach(&mut rules);
    let reload = Reload::new(registry.was_good(&rules), refused);
    let mut daemon = Daemon {
        settings,
        board,
        registry,
        rules: Rc::new(rules),
        reload,
        owner: format!("{:016x}", rand::random::<u64>()),
        flow: None,
        ready: false,
        told: None,
        backoff: Backoff::default(),
        patience: *PATIENCE.start(),
        manager: Manager::new(),
        catalog: None,
        view: View::default(),
        renew: None,
        undecodable: None,
        broke_at: (Lsn(0), None),
        forgets: None,
        blind: None,
        streams_inserts: false,
        goal: once.then_some(Lsn(0)),
    };
    daemon.show_at_rest();
    loop {
        let streamed = match daemon.settings.names.feed {
            Feed::Replication => daemon.stream::<Replication>(&mut shutdown).await,
            Feed::Outbox => daemon.stream::<Outbox>(&mut shutdown).await,
        };
        let error = match streamed {
            Ok(()) => break,
            Err(failure) => failure,
        };
        let wait = match error.kind {
            Kind::Permanent(Exit::Rules) if !daemon.ready && daemon.fall_back(&error.sentence) => continue,
            Kind::Permanent(exit) if !daemon.ready && !daemon.manager.is_ready() => {
                return Err(Failure::new(exit, error.sentence));
            }
            Kind::Standby => STANDBY_WAIT,
            Kind::Away | Kind::Permanent(_) | Kind::Renew | Kind::Undecodable | Kind::Blind => daemon.backoff.next(),
        };
        daemon.consider(&error);
        daemon.tell(&error);
        if daemon.rest(wait, &mut shutdown).await {
            break;
        }
    }
    daemon.manager.stopping();
    Ok(())
}

impl Daemon {
    async fn pump<S: Stream>(
        &mut self,
        source: &mut Source<S>,
        flow: &mut Flow,
        shutdown: &mut Shutdown,
    ) -> Result<(), Error> {
        let begin = flow.marked();
        let mut snapshot: Option<Answer> = None;
        let mut check: Option<Check> = None;
        let canary = self.settings.canary.filter(|_| S::LOGGED);
        let mut pulse = Pulse::new(canary, &self.owner, source.server.version);
        let (mut looked, mut check_due, mut show_due) = (Instant::now(), Instant::now(), Instant::now());
        let (mut checked, mut check_begun, mut took) = (Instant::now(), Instant::now(), Duration::ZERO);
        loop {
            flow.keep(source.stream.kept());
            let advanced = flow.advance();
            let is_same = self.judge_history(flow)?;
            // What was reached in another history is nothing that anybody waits for.
            let reached = flow.reached();
            self.board.reach(if is_same { reached } else { Reached { position: Lsn(0), ..reached } });
            if let Some(position) = advanced.filter(|_| is_same) {
                source.stream.confirm(position);
                if Some(position) > begin {
                    // Only progress ends a series of failures: a stream that breaks at its first message has made none.
                    self.backoff.reset();
                    self.patience = *PATIENCE.start();
                    self.told = None;
                }
            }
            let is_past = |known: &Undecodable| {
                flow.received() > known.received && source.stream.kept().or(flow.marked()) > known.done
            };
            if self.undecodable.as_ref().is_some_and(is_past) {
                self.undecodable = None;
            }
            if self.goal.is_some_and(|goal| flow.marked() >= Some(goal)) && flow.lanes.iter().all(Lane::is_attached) {
                tracing::info!("caught up with the start");
                self.drain(source, flow).await;
                return Ok(());
            }
            let room = flow.size() < self.settings.tag_memory;
            // Without room nothing more arrives until the new rules are in force.
            let arrived = if room { flow.received() } else { Lsn(u64::MAX) };
            if self.reload.is_accepted(arrived) && !flow.is_within_transaction() {
                self.adopt(flow, &source.server);
            }
            self.judge_what_arrived(flow);
            let hurry = flow.truncations.floor().map(|_| AFTER_TRUNCATE);
            let hurry = hurry
                .or_else(|| (flow.relations.is_in_doubt() || flow.ear.is_in_doubt()).then_some(IN_DOUBT.max(took * 4)));
            if let Some(wait) = hurry.filter(|wait| check_due > checked + *wait) {
                self.reload.look_again();
                check_due = checked + wait;
            }
            if flow.relations.are_too_many() {
                return Err(Error::away(
                    "the stream has described more tables than are remembered: opening it anew, it begins with those that change. Publish fewer, if this comes often",
                ));
            }
            if flow.lanes.iter().any(Lane::wants_reopening) {
                return Err(Error::away(
                    "a table was published that a transaction was writing, and this server forgets it; opening the stream anew",
                ));
            }
            if self.reload.reopen_at.is_some_and(|position| flow.marked() >= Some(position)) {
                // The slot must start behind the moment when the publication came, or the stream would look for it in vain.
                source.stream.tell().await?;
                return Err(Error::away("the publication of inserts came or went; opening the stream anew"));
            }
            self.announce(flow);
            self.turn();
            if show_due <= Instant::now() {
                self.show(flow);
                show_due = Instant::now() + SHOW;
            }
            if check.is_none() && check_due <= Instant::now() {
                check_begun = Instant::now();
                check = Some(self.check::<S>(&source.catalog, source.server.version, flow.received()));
            }
            let behind = u64::try_from(self.view.slot.unconfirmed).unwrap_or_default();
            if self.settings.max_retained_wal > 0 && behind > self.settings.max_retained_wal {
                let sentence = format!("the slot keeps {behind} bytes of WAL, more than --max-retained-wal allows");
                return Err(Error { sentence, kind: Kind::Renew });
            }
            if flow.size() >= self.settings.tag_memory {
                flow.make_room(self.settings.tag_memory);
            }
            let room = flow.size() < self.settings.tag_memory;
            if !room && self.reload.is_accepted(Lsn(u64::MAX)) && flow.is_within_transaction() {
                // The transaction would never end: the rules that are to replace these may name the Redis that is there.
                self.reload.adopt_at_once();
                return Err(Error::away("new rules, and no room to receive the rest of a transaction by the old ones"));
            }
            if !room {
                source.stream.heard();
            } else if source.stream.silence() > self.patience {
                let silence = source.stream.silence();
                self.patience = (self.patience * 2).min(*PATIENCE.end());
                return Err(Error::away(format!("{} has not said a word for {silence:.0?}", source.place)));
            }
            let look = flow.next_look().unwrap_or(looked + IDLE_LOOK);
            if snapshot.is_none() && look <= Instant::now() {
                // At once, not by the timer: its resolution of a millisecond was two thirds of the way from COMMIT to stale.
                snapshot = Some(source.session.ask(flow.snapshot_query()));
            }
            let arrived = if S::LOGGED { self.board.arrived() } else { 0 };
            let pulse_due =
                pulse.due(S::LOGGED && self.settings.flush_nudge, arrived).filter(|_| pulse.running.is_none());
            let told = source.stream.due();
            tokio::select! {
                biased;
                () = shutdown.asked() => {
                    self.drain(source, flow).await;
                    return Ok(());
                }
                error = source.session.closed() => {
                    return Err(Error::session("the SQL session ended", &source.place, &error));
                }
                error = source.catalog.closed() => {
                    return Err(Error::session("the SQL session that reads the catalog ended", &source.place, &error));
                }
                asked = self.registry.asked() => {
                    if self.read_rules(asked) {
                        (check, check_due) = (None, Instant::now());
                    }
                    show_due = Instant::now();
                }
                answer = wait_for(&mut check) => {
                    (check, checked, took) = (None, Instant::now(), check_begun.elapsed());
                    check_due = checked + CHECK;
                    tracing::debug!("looked at the catalog");
                    match answer {
                        Ok(found) => self.checked(found, flow, source.stream.horizon()),
                        Err(error) => tracing::warn!("the catalog cannot be read: {error}; trying again"),
                    }
                    show_due = Instant::now();
                }
                answer = wait_for(&mut snapshot) => {
                    snapshot = None;
                    looked = Instant::now();
                    self.look::<S>(answer, flow, &source.place)?;
                }
                (index, event) = flow.next_lane_event() => {
                    let routine = matches!(event, LaneEvent::Sent(..) | LaneEvent::Marked);
                    let rewound = match &event {
                        LaneEvent::Resync(gap) if gap.code == REWOUND => Some(gap.clone()),
                        _ => None,
                    };
                    self.lane_event(flow, index, event)?;
                    rewound.iter().for_each(|gap| flow.resync_all(gap));
                    if !routine {
                        self.tell_streaming(flow);
                        show_due = Instant::now();
                    }
                }
                sent = wait_for(&mut pulse.running) => {
                    pulse.running = None;
                    match sent {
                        Ok(rows) => pulse.answered(&rows).into_iter().for_each(|(arrived, end)| self.board.ends(arrived, end)),
                        Err(error) => {
                            pulse.give_up();
                            tracing::debug!("a message of our own could not be sent: {error}");
                        }
                    }
                }
                () = sleep_until(pulse_due.unwrap_or(looked)), if pulse_due.is_some() => pulse.send(&source.session, arrived),
                () = self.board.knocked() => source.stream.wake(),
                () = sleep_until(told.unwrap_or(looked)), if told.is_some() => source.stream.tell().await?,
                () = sleep_until(check_due.min(show_due)), if check.is_none() => {}
                () = sleep_until(look), if snapshot.is_none() => snapshot = Some(source.session.ask(flow.snapshot_query())),
                arrived = source.stream.next(room) => {
                    arrived?;
                    let delay = &self.board.metrics.canary_delay;
                    let mut heard = |prefix: &str, content: &[u8]| {
                        pulse.heard(prefix, content).into_iter().for_each(|took| delay.observe(took.as_secs_f64()));
                    };
                    source.stream.take(flow, &mut heard)?;
                    self.board.saw(source.stream.polled());
                    // Tasks move the bytes of the SQL session and of Redis. With a backlog there is always a frame, and they would only get
                    // their turn every 128 reads of the socket: seen, 1.2 s for the answer to a snapshot.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// What an error means for the next stream.
    fn consider(&mut self, error: &Error) {
        let position = match &self.flow {
            Some(_) => self.broke_at.0,
            None => Lsn(u64::MAX),
        };
        match error.kind {
            Kind::Renew => self.renew = Some(position),
            // Whoever has the slot has seen to it.
            Kind::Standby => self.renew = None,
            Kind::Blind => self.resync_blindly(),
            Kind::Undecodable => {
                let (received, done) = self.broke_at;
                // A stream comes as far as before; polls of an outbox have other positions each time, and nothing is done meanwhile.
                let again = |known: &Undecodable| known.received == received || known.done == done;
                let times = self.undecodable.take().filter(again).map_or(1, |known| known.times + 1);
                self.undecodable = Some(Undecodable { received, done, times });
                if times >= TRIES {
                    tracing::error!(
                        "{error}: {times} times at {position}. What cannot be decoded is left behind, and everything goes stale"
                    );
                    (self.renew, self.undecodable) = (Some(position), None);
                }
            }
            Kind::Away | Kind::Permanent(_) => {}
        }
    }

    /// The loop has turned.
    fn turn(&self) {
        self.manager.feed();
        self.board.turn();
    }
}

async fn wait_for<T>(running: &mut Option<Pin<Box<dyn Future<Output = T>>>>) -> T {
    match running {
        Some(running) => running.await,
        None => pending().await,
    }
}
