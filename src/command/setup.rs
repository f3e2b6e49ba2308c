//! `waltag setup`: the SQL that the rules need, printed or applied.

use std::time::Duration;

use super::{load, session, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::rules::Rules;
use crate::settings::{Environment, Settings};
use crate::setup::catalog::{self, Catalog};
use crate::setup::statements::{self, Role, RoleState};
use crate::setup::verify;
use crate::source::replication::error::Error;
use crate::source::session::{self as sql, Session, literal};

/// Locks that could not be had within `--lock-timeout` are asked for this often.
const ATTEMPTS: u32 = 5;

/// Prints the statements; with `apply` runs them one at a time, each under `lock_timeout`.
pub async fn setup(
    settings: &Settings,
    environment: &Environment,
    apply: bool,
    remove: bool,
    role: &str,
) -> Result<(), Failure> {
    // What is removed is known without rules: a broken rule file must not keep anybody from leaving.
    let rules = if remove { Rules::default() } else { load(settings, environment)? };
    let (session, endpoint) = session(settings).await?;
    let place = endpoint.to_string();
    let statements = plan(&session, settings, &rules, remove, role, &place).await?;
    if statements.is_empty() {
        show(format_args!("-- Nothing to do: the database has what the rules need."));
        return Ok(());
    }
    for statement in &statements {
        show(format_args!("{}\n", statement));
        if apply {
            execute(&session, settings.lock_timeout, statement, &place).await?;
        }
    }
    if apply {
        show(format_args!("-- Applied: {} statements on {} at {place}.", statements.len(), settings.dsn.database()));
    } else {
        show(format_args!("-- Nothing was changed; `--apply` runs these statements one at a time."));
    }
    Ok(())
}

/// `run --setup`: the same, without a word on stdout. The connecting role is the daemon's, so none is made.
pub async fn apply_first(settings: &Settings, rules: &Rules) -> Result<(), Failure> {
    let (session, endpoint) = session(settings).await?;
    let place = endpoint.to_string();
    let user = endpoint.config().get_user().unwrap_or_default().to_owned();
    for statement in plan(&session, settings, rules, false, &user, &place).await? {
        tracing::info!("setup: {}", statement.lines().filter(|line| !line.starts_with("--")).collect::<String>());
        execute(&session, settings.lock_timeout, &statement, &place).await?;
    }
    Ok(())
}

async fn plan(
    session: &Session,
    settings: &Settings,
    rules: &Rules,
    remove: bool,
    role: &str,
    place: &str,
) -> Result<Vec<String>, Failure> {
    let failed = |error: sql::Error| Error::session("reading the catalog", place, &error);
    let publication = &settings.names.publication;
    let catalog = catalog::read(session, rules, publication).await.map_err(failed)?;
    let role = Role { name: role.to_owned(), state: role_state(session, role).await.map_err(failed)? };
    if remove {
        let slot = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = {}", literal(&settings.names.slot));
        let slot = session.value(&slot).await.map_err(failed)?.map(|_| settings.names.slot.as_str());
        return Ok(statements::remove(&catalog, publication, slot, &role));
    }
    refuse_wrong_rules(rules, &catalog, publication)?;
    let statements = statements::apply(rules, &catalog, publication, &role);
    statements.map_err(|refusals| Failure::new(Exit::Rules, refusals.join("\n")))
}

/// Everything but the identity, which is what setup mends.
fn refuse_wrong_rules(rules: &Rules, catalog: &Catalog, publication: &str) -> Result<(), Failure> {
    let (refused, _) = verify::tables(rules, catalog, publication);
    let wrong: Vec<String> =
        refused.iter().filter(|problem| problem.code != "identity").map(ToString::to_string).collect();
    if wrong.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Rules, wrong.join("\n\n"))) }
}

async fn role_state(session: &Session, role: &str) -> Result<RoleState, sql::Error> {
    let query = format!(
        "SELECT (rolcanlogin AND rolreplication) OR rolsuper, shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = {}",
        literal(role)
    );
    let rows = session.rows(&query).await?;
    Ok(match rows.first() {
        None => RoleState::Missing,
        Some(row) if row.get(0) != Some("t") => RoleState::Unfit,
        Some(row) if statements::is_ours(row.get(1)) => RoleState::Ours,
        Some(_) => RoleState::Fit,
    })
}

/// Waits for a lock at most `lock_timeout` at a time: longer, and every query behind it in the queue would wait too.
async fn execute(session: &Session, lock_timeout: Duration, statement: &str, place: &str) -> Result<(), Failure> {
    let failed = |error: &sql::Error| Failure::from(Error::session("setup", place, error));
    let limit = format!("SET lock_timeout = {}", lock_timeout.as_millis());
    session.execute(&limit).await.map_err(|error| failed(&error))?;
    for attempt in 1..=ATTEMPTS {
        match session.execute(statement).await {
            Ok(()) => return Ok(()),
            Err(sql::Error::Server(error)) if error.code == "55P03" && attempt < ATTEMPTS => {
                tracing::info!(
                    attempt,
                    "the lock is taken; trying again: {}",
                    statement.lines().last().unwrap_or_default()
                );
                tokio::time::sleep(lock_timeout / 2).await;
            }
            Err(error) => return Err(privilege(&error).unwrap_or_else(|| failed(&error))),
        }
    }
    Ok(())
}

/// Setup runs as the tables' owner; the daemon's own role can do none of it.
fn privilege(error: &sql::Error) -> Option<Failure> {
    match error {
        sql::Error::Server(error) if error.code == "42501" => {
            let sentence = format!(
                "setup: {error}. Run it as the owner of the tables (REPLICATION needs a superuser, or CREATEROLE with REPLICATION)."
            );
            Some(Failure::new(Exit::NoPermission, sentence))
        }
        _ => None,
    }
}
