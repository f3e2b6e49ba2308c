//! Where committed changes come from: PostgreSQL's logical replication, or an outbox that triggers fill.
//!
//! [`dsn`] -> [`endpoint`] -> a SQL [`session`] and a [`replication`] stream to the same server; [`visibility`] says which
//! transactions readers see.

pub mod clock;
pub mod dsn;
mod dsn_defaults;
mod dsn_tls;
pub mod endpoint;
pub mod link;
pub mod login;
pub mod lsn;
pub mod outbox;
pub mod replica;
pub mod replication;
pub mod server_error;
pub mod session;
pub mod visibility;

use std::time::Duration;

use self::dsn::Dsn;
use self::endpoint::Endpoint;
use self::lsn::Lsn;
use self::replication::error::{Error, Kind};
use self::replication::pgoutput::Message;
use self::replication::slot::{Names, State};
use self::session::{Session, Sql};
use self::visibility::Snapshot;
use crate::flow::Flow;
use crate::settings::Settings;

/// Prefix of our messages in the log. Any role can send one.
pub const PREFIX: &str = "waltag";
/// The number of the type `pg_type t`, or of what lies below a domain, however many there are: pgoutput sends that one.
pub const BASE_TYPE: &str = "(WITH RECURSIVE b AS (SELECT t.oid, t.typbasetype UNION ALL SELECT d.oid, d.typbasetype FROM b \
    JOIN pg_type d ON d.oid = b.typbasetype) SELECT oid FROM b WHERE typbasetype = 0)::int8";
/// Messages that are handed over without looking at anything else: bounds how late a reply of Redis is seen.
const MESSAGES: usize = 256;

/// Which server, and in what life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// System identifier of the cluster.
    pub system: String,
    /// `server_version_num`.
    pub version: u32,
    /// Its timeline.
    pub timeline: String,
    /// [`CRASH_MARKS`]: all of them change over a crash.
    pub crash: String,
    /// The end of its log when it was opened: less than what we know of is another history.
    pub log: Lsn,
}

/// A crash resets every one of these statistics at the same time, an administrator one by one
/// (manual: "Cumulative Statistics System", pg_stat_reset_shared).
pub const CRASH_MARKS: &str = "(SELECT concat_ws(',', (SELECT stats_reset::text FROM pg_stat_bgwriter), \
    (SELECT stats_reset::text FROM pg_stat_archiver), (SELECT stats_reset::text FROM pg_stat_wal), \
    (SELECT max(stats_reset)::text FROM pg_stat_slru)))";

/// Has the server not crashed between two readings of [`CRASH_MARKS`]? One mark that is still the same proves it.
pub fn has_survived(before: &str, now: &str) -> bool {
    before == now || before.split(',').any(|mark| !mark.is_empty() && now.split(',').any(|other| other == mark))
}

/// A SQL session, and what brings the changes; opened together, lost together.
pub struct Source<S> {
    /// Answers the fence.
    pub session: Session,
    /// Reads the catalog, which may take long: the fence must not wait behind it.
    pub catalog: Session,
    /// Which server, and in what life.
    pub server: Server,
    /// Address for messages.
    pub place: String,
    /// Brings the changes.
    pub stream: S,
}

/// Who hears what somebody put into the log: prefix and content.
pub type Hear<'a> = dyn FnMut(&str, &[u8]) + 'a;

/// What brings committed changes: the log, or an outbox. Nothing above knows which.
#[expect(async_fn_in_trait, reason = "one loop on one thread: nobody asks whether a future may be sent")]
pub trait Stream: Sized {
    /// What it brings may not be visible yet.
    const FENCED: bool;
    /// It comes out of the log: a message that is put there arrives.
    const LOGGED: bool;

    /// Connects to a server that is fit, and takes nothing yet.
    async fn open(settings: &Settings, owner: &str) -> Result<Source<Self>, Error>;

    /// Begins; the position behind which it does. Everything up to there was confirmed once. This process has `received` more before.
    /// `renew`: what is confirmed no further than this cannot be read any more.
    async fn start(
        &mut self,
        session: &Session,
        settings: &Settings,
        received: Lsn,
        renew: Option<Lsn>,
    ) -> Result<Lsn, Error>;

    /// Waits until something has arrived; without `room` only does what must go on. Cancel-safe.
    async fn next(&mut self, room: bool) -> Result<(), Error>;

    /// Hands over what has arrived, a bounded number of messages.
    fn take(&mut self, flow: &mut Flow, heard: &mut Hear<'_>) -> Result<(), Error>;

    /// How far back in transactions what it brings may reach, as an expression of SQL.
    fn past(names: &Names) -> String;

    /// Everything up to here may be forgotten.
    fn confirm(&mut self, position: Lsn);

    /// When the server should be told, if not within [`Stream::next`].
    fn due(&self) -> Option<tokio::time::Instant>;

    /// Tells it.
    async fn tell(&mut self) -> Result<(), Error>;

    /// The last words before a clean stop.
    async fn finish(&mut self, position: Option<Lsn>) -> Result<(), Error>;

    /// The position by which everything has arrived that is committed now.
    async fn end(&self, session: &Session) -> Result<Lsn, Error>;

    /// The same, where the catalog's own position says nothing.
    fn horizon(&self) -> Option<Lsn> {
        None
    }

    /// What the source has written down of its position, where that is not in the log.
    fn kept(&self) -> Option<Lsn> {
        None
    }

    /// What was visible when it was looked last, and by which position that has arrived.
    fn polled(&self) -> Option<&(Snapshot, Lsn)> {
        None
    }

    /// Somebody waits.
    fn wake(&mut self) {}

    /// How long the server has said nothing although it was asked.
    fn silence(&self) -> Duration {
        Duration::ZERO
    }

    /// It is not listened to.
    fn heard(&mut self) {}

    /// It has the publication of inserts, too.
    fn has_inserts(&self) -> bool {
        false
    }

    /// The slot as the server sees it, if there is one.
    async fn state(_sql: Sql, _names: &Names) -> Result<Option<State>, session::Error> {
        Ok(None)
    }

    /// Lets go within `limit`.
    async fn close(self, limit: Duration);
}

/// The first host that is fit. With several, one that is away may be the primary: then waiting helps.
async fn first_fit<T>(dsn: &Dsn, open: impl AsyncFn(&Endpoint) -> Result<T, Error>) -> Result<T, Error> {
    let mut worst: Option<Error> = None;
    for endpoint in dsn.endpoints() {
        match open(endpoint).await {
            Ok(opened) => return Ok(opened),
            Err(error) if worst.as_ref().is_none_or(|worst| matches!(worst.kind, Kind::Permanent(_))) => {
                worst = Some(error);
            }
            Err(_) => {}
        }
    }
    Err(worst.unwrap_or_else(|| Error::away("the database URL names no host")))
}

/// Hands a message over. Nothing is asked meanwhile: whoever waits for one answer while the loop has not taken another waits for ever, because
/// answers of a session come in their order.
pub fn deliver(data: &[u8], flow: &mut Flow, heard: &mut Hear<'_>) -> Result<(), Error> {
    let message = Message::parse(data).map_err(|error| {
        Error::undecodable(format!("{error}: the stream is opened anew at the last confirmed position"))
    })?;
    if let Message::Message { prefix, content, .. } = &message {
        heard(prefix, content);
    }
    flow.take(&message).map_err(|error| Error::undecodable(error.to_string()))
}
