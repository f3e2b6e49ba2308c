//! `waltag demo`: the whole path, live, on private servers that leave nothing behind.

pub mod monitor;
mod reader;
mod redis_server;
pub mod servers;
mod story;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::shutdown::Shutdown;
use story::Error;

/// Tells the story once; with `keep` the servers and the daemon stay until Ctrl-C. Everything is removed when it ends, also
/// after Ctrl-C: what runs and what lies in temporary directories belongs to values that are dropped here.
pub async fn run(keep: bool) -> Result<(), Failure> {
    let mut shutdown = Shutdown::listen()?;
    let told = tokio::select! {
        () = shutdown.asked() => return Ok(()),
        told = story::tell() => told,
    };
    let stage = told.map_err(|error| {
        let exit = if matches!(error, Error::Server(_)) { Exit::Unavailable } else { Exit::Bug };
        Failure::new(exit, format!("the demo stopped: {error}"))
    })?;
    if keep {
        stage.invite();
        shutdown.asked().await;
    }
    drop(stage);
    Ok(())
}
