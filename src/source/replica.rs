//! A standby that an application reads from: how far it has replayed. A row is visible there only when its commit record was.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::endpoint::Endpoint;
use super::lsn::Lsn;
use super::session::{Error, Session};

/// Between two looks while something is owed.
const LOOK: Duration = Duration::from_millis(20);
/// The same while nothing is: it is seen to be there.
const IDLE: Duration = Duration::from_secs(1);
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_secs(1);
/// A replica that does not answer for this long no longer holds anything up. When it is back, everything goes stale once it has
/// replayed what was written meanwhile.
const AWAY: Duration = Duration::from_secs(30);
/// A look is a matter of microseconds; a replica that stalls is as good as away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Not asked yet, or away for a while: it is waited for.
    Unknown,
    /// Everything up to here is visible there.
    Up(Lsn),
    /// Away for too long.
    Away,
}

/// A replica that is watched beside the loop.
pub struct Replica {
    /// Host and port.
    pub place: String,
    replayed: watch::Receiver<Replayed>,
    wanted: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Replica {
    /// Begins to watch it; `moved` hears of each step. `name` becomes the application_name.
    pub fn watch(endpoint: Endpoint, name: String, moved: Arc<Notify>) -> Replica {
        let (told, replayed) = watch::channel(Replayed::Unknown);
        let (wanted, asked) = watch::channel(false);
        let place = endpoint.to_string();
        Replica { place, replayed, wanted, task: tokio::spawn(follow(endpoint, name, told, asked, moved)) }
    }

    /// Where it is.
    pub fn replayed(&self) -> Replayed {
        *self.replayed.borrow()
    }

    /// Something is owed to its readers: look often.
    pub fn want(&self, wanted: bool) {
        self.wanted.send_if_modified(|known| std::mem::replace(known, wanted) != wanted);
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(
    endpoint: Endpoint,
    name: String,
    told: watch::Sender<Replayed>,
    mut asked: watch::Receiver<bool>,
    moved: Arc<Notify>,
) {
    let mut heard = Instant::now();
    let tell = |replayed: Replayed| {
        if told.send_if_modified(|known| std::mem::replace(known, replayed) != replayed) {
            moved.notify_one();
        }
    };
    loop {
        let broken = match Session::open(&endpoint, &name).await {
            Ok(session) => loop {
                match timeout(PATIENCE, look(&session)).await.unwrap_or_else(|_| Err(Error::mute())) {
                    Ok(position) => {
                        heard = Instant::now();
                        tell(Replayed::Up(position));
                    }
                    Err(error) => break error,
                }
                let pause = if *asked.borrow_and_update() { LOOK } else { IDLE };
                let _ = timeout(pause, asked.changed()).await;
            },
            Err(error) => error,
        };
        let gone = heard.elapsed() > AWAY;
        if gone && *told.borrow() != Replayed::Away {
            tracing::warn!(replica = %endpoint, "away: {broken}; what was made stale for its readers is made up for when it is back");
        }
        tell(if gone { Replayed::Away } else { Replayed::Unknown });
        sleep(RETRY).await;
    }
}

/// A server that was promoted has nothing to replay any more.
async fn look(session: &Session) -> Result<Lsn, Error> {
    let query = "SELECT pg_last_wal_replay_lsn()::text WHERE pg_is_in_recovery()";
    let position = session.value(query).await?;
    Ok(position.map_or(Lsn(u64::MAX), |text| text.parse().unwrap_or_default()))
}
