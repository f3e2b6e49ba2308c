//! demo
pub mod servers;
use crate::failure::Failure;
/// run
pub async fn run(_keep: bool) -> Result<(), Failure> {
    tokio::task::yield_now().await;
    Ok(())
}
