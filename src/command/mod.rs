//! One module per command.

pub mod check;
pub mod detect;
pub mod dialects;
pub mod dry_run;
pub mod explain;
pub mod init;
pub mod invalidate;
pub mod resync;
pub mod run;
pub mod schema;
pub mod setup;
pub mod status;
pub mod test;

use std::fmt::Display;
use std::io::Write;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::plain::lines;
use crate::rules::Rules;
use crate::rules::diagnostic::nearest;
use crate::rules::tables::TableName;
use crate::settings::{Environment, Settings, with_surroundings};
use crate::source::endpoint::Endpoint;
use crate::source::replication::error::Error;
use crate::source::session::Session;

/// Loads the rules that the settings name.
fn load(settings: &Settings, environment: &Environment) -> Result<Rules, Failure> {
    Ok(with_surroundings(environment, |around| Rules::load(&settings.rules, around))?)
}

/// The table that is meant; a hint if no rule names it.
fn table_named(rules: &Rules, text: &str) -> Result<TableName, Failure> {
    let usage = |sentence: String| Failure::new(Exit::Usage, sentence);
    let table = TableName::parse(text).ok_or_else(|| usage(format!("`{text}` is not a table name")))?;
    if rules.of_table(&table).next().is_some() {
        return Ok(table);
    }
    let known: Vec<String> = rules.tables().iter().map(ToString::to_string).collect();
    let names: Vec<&str> = known.iter().map(String::as_str).collect();
    let hint = nearest(&table.to_string(), &names).map_or(String::new(), |near| format!("; did you mean {near}?"));
    Err(usage(format!("no rule names the table {table}{hint}")))
}

/// Index of the cache that is meant; a hint if there is none.
fn cache_named(rules: &Rules, name: &str) -> Result<usize, Failure> {
    let names: Vec<&str> = rules.caches.iter().map(|cache| cache.name.as_str()).collect();
    let hint =
        || nearest(name, &names).map_or(format!("known: {}", names.join(", ")), |near| format!("did you mean {near}?"));
    let missing = || Failure::new(Exit::Usage, format!("there is no cache `{name}`; {}", hint()));
    names.iter().position(|known| *known == name).ok_or_else(missing)
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
    let _ = writeln!(std::io::stdout(), "{}", lines(&line.to_string()));
}
