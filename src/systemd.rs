//! What systemd is told (sd_notify(3)); without systemd every call does nothing.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service manager. Shared by what runs within one turn of the loop, hence the cells.
pub(crate) struct Manager {
    /// It restarts a daemon that it has not heard for this long.
    watchdog: Option<Duration>,
    fed: Cell<Instant>,
    status: RefCell<String>,
    ready: Cell<bool>,
}

impl Manager {
    /// Reads `WATCHDOG_USEC`.
    pub(crate) fn new() -> Manager {
        let watchdog = sd_notify::watchdog_enabled();
        Manager { watchdog, fed: Cell::new(Instant::now()), status: RefCell::default(), ready: Cell::new(false) }
    }

    /// The service is up; told once.
    pub(crate) fn ready(&self) {
        if !self.ready.replace(true) {
            tell(&[NotifyState::Ready]);
        }
    }

    /// Was it told that the service is up?
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// One line for `systemctl status`; told when it changes.
    pub(crate) fn status(&self, status: &str) {
        if *self.status.borrow() != status {
            status.clone_into(&mut self.status.borrow_mut());
            tell(&[NotifyState::Status(status)]);
        }
    }

    /// The rules are read again; [`Manager::reloaded`] must follow.
    pub(crate) fn reloading(&self) {
        if let (true, Ok(now)) = (self.ready.get(), NotifyState::monotonic_usec_now()) {
            tell(&[NotifyState::Reloading, now]);
        }
    }

    /// The rules were read, whatever came of it.
    pub(crate) fn reloaded(&self) {
        if self.ready.get() {
            tell(&[NotifyState::Ready]);
        }
    }

    /// The service is going down.
    pub(crate) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The loop has turned.
    pub(crate) fn feed(&self) {
        if self.watchdog.is_some_and(|limit| self.fed.get().elapsed() > limit / 4) {
            self.fed.set(Instant::now());
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}
