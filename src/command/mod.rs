//! One module per command.

pub mod check;
pub mod dry_run;
pub mod explain;
pub mod init;
pub mod invalidate;
pub mod run;
pub mod schema;
pub mod setup;
pub mod status;
pub mod test;

use std::fmt::Display;
use std::io::Write;

use crate::failure::Failure;
use crate::rules::Rules;
use crate::settings::{Environment, Settings, with_surroundings};
use crate::source::endpoint::Endpoint;
use crate::source::replication::error::Error;
use crate::source::session::Session;

/// Loads the rules that the settings name.
fn load(settings: &Settings, environment: &Environment) -> Result<Rules, Failure> {
    Ok(with_surroundings(environment, |around| Rules::load(&settings.rules, around))?)
}

/// A SQL session on the first host that answers, for one-shot commands.
async fn session(settings: &Settings) -> Result<(Session, Endpoint), Failure> {
    let mut failure = Error::away("the database URL names no host");
    for endpoint in settings.dsn.endpoints() {
        match Session::open(endpoint, &settings.names.slot).await {
            Ok(session) => return Ok((session, endpoint.clone())),
            Err(error) => failure = Error::session("connecting", &endpoint.to_string(), &error),
        }
    }
    Err(failure.into())
}

/// A line of the result. A reader that hangs up (`| head`) is no error.
pub(crate) fn show(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
