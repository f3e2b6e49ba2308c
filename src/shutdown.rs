//! SIGTERM and SIGINT. The streams are made once: one made within the loop would lose a signal that arrives between two
//! turns.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;
use crate::failure::Failure;

/// Waits for a request to stop.
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// From here on the signals do not kill the process.
    pub fn listen() -> Result<Shutdown, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::new(Exit::Bug, format!("cannot handle signals: {error}")));
        Ok(Shutdown { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Ends with the first signal. Cancel-safe.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
