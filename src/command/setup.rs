//! `waltag setup`: the SQL that the rules need, printed or applied.

use std::time::Duration;

use super::{load, session, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::plain::plain;
use crate::rules::Rules;
use crate::settings::{Environment, Settings};
use crate::setup::catalog::{self, Catalog};
use crate::setup::outbox::statements as outbox;
use crate::setup::removal::{self, Remains};
use crate::setup::statements::{self, Decided, Role, RoleState, Statement};
use crate::setup::tags::Tags;
use crate::setup::{cost, identity, verify};
use crate::source::replication::error::Error;
use crate::source::replication::slot::Feed;
use crate::source::session::{self as sql, Session, literal};

/// Locks that could not be had within `--lock-timeout` are asked for this often.
const ATTEMPTS: u32 = 5;

/// What was asked for.
pub struct Wish<'a> {
    /// Run the statements.
    pub apply: bool,
    /// The way back.
    pub remove: bool,
    /// The daemon's role.
    pub role: &'a str,
    /// Indexes and column lists where they will do.
    pub prefer_wal: bool,
}

/// Prints the statements; with `apply` runs them one at a time, each under `lock_timeout`.
pub async fn setup(settings: &Settings, environment: &Environment, wish: Wish<'_>) -> Result<(), Failure> {
    let Wish { apply, remove, .. } = wish;
    // What is removed is known without rules: a broken rule file must not keep anybody from leaving.
    let rules = if remove { Rules::default() } else { load(settings, environment)? };
    let (session, endpoint) = session(settings).await?;
    let place = endpoint.to_string();
    let statements = plan(&session, settings, &rules, &wish, &place).await?;
    if statements.is_empty() {
        show(format_args!("-- Nothing to do: the database has what the rules need."));
        return Ok(());
    }
    superior(&session, &place).await?.iter().for_each(show);
    show(HEAD);
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

/// What is printed may be run by somebody whose search_path has other schemas first, and whose encoding has quotes and semicolons within characters
/// (SJIS, GBK, BIG5).
const HEAD: &str = "SET client_encoding = 'UTF8';\nSET search_path = pg_catalog, pg_temp;\nSET standard_conforming_strings = on;\n\
    SET default_transaction_read_only = off;\n";

/// A superuser is told who would do.
async fn superior(session: &Session, place: &str) -> Result<Option<String>, Failure> {
    let query = "SELECT current_user FROM pg_roles WHERE rolname = current_user AND rolsuper";
    let name = session.value(query).await;
    let name = name.map_err(|error| Failure::from(Error::session("reading the catalog", place, &error)))?;
    Ok(name.map(|name| {
        format!(
            "-- {} is a superuser. The owner of the tables would do, with CREATE on the database; a superuser only has to make the role below, if it is to\n\
             -- replicate (on PostgreSQL 16 and later CREATEROLE with REPLICATION does that, too), and an index or a trigger on the tables of others.\n",
            plain(&name)
        )
    }))
}

/// `run --setup`: the same, without a word on stdout. The connecting role is the daemon's, so none is made.
pub async fn apply_first(settings: &Settings, rules: &Rules) -> Result<(), Failure> {
    let (session, endpoint) = session(settings).await?;
    let place = endpoint.to_string();
    let user = endpoint.config().get_user().unwrap_or_default().to_owned();
    let wish = Wish { apply: true, remove: false, role: &user, prefer_wal: false };
    for statement in plan(&session, settings, rules, &wish, &place).await? {
        tracing::info!("setup: {}", statement.text.lines().filter(|line| !line.starts_with("--")).collect::<String>());
        execute(&session, settings.lock_timeout, &statement, &place).await?;
    }
    Ok(())
}

async fn plan(
    session: &Session,
    settings: &Settings,
    rules: &Rules,
    wish: &Wish<'_>,
    place: &str,
) -> Result<Vec<Statement>, Failure> {
    let failed = |error: sql::Error| Error::session("reading the catalog", place, &error);
    let catalog = catalog::read(session, rules, &settings.names).await.map_err(failed)?;
    let role = role(session, wish.role, settings.names.feed).await.map_err(failed)?;
    let named = Tags::read(session, wish.role).await.map_err(failed)?;
    if let (Some(stranger), false) = (&named.stranger, wish.remove) {
        let sentence = format!(
            "the schema `waltag`, or something in it, belongs to {stranger}, who could then do what this role may: run setup as {stranger}, or drop the schema first"
        );
        return Err(Failure::new(Exit::NoPermission, sentence));
    }
    if settings.names.feed == Feed::Outbox {
        if wish.remove {
            return Ok(outbox::remove(&catalog, &role));
        }
        refuse_wrong_rules(rules, &catalog)?;
        let mut statements = outbox::apply(rules, &catalog, &role, settings.max_retained_wal);
        statements.extend(named.apply(Feed::Outbox, catalog.triggers.notify, wish.role));
        return Ok(statements);
    }
    if wish.remove {
        let remains = Remains::read(session, &catalog, &settings.names.slot).await.map_err(failed)?;
        let mut statements = removal::remove(&catalog, &remains, &role);
        // Behind the slot: who may not drop that has removed nothing yet.
        let behind = usize::from(remains.slot.is_some()).min(statements.len());
        statements.splice(behind..behind, named.remove());
        return Ok(statements);
    }
    refuse_wrong_rules(rules, &catalog)?;
    // Its owner decides what it publishes: who owns none of the tables has no say in that.
    let owner = catalog.publication.owner.as_ref();
    if let Some(owner) = owner.filter(|owner| !catalog.trusted.contains(*owner)) {
        let sentence = format!(
            "the publication {} belongs to {}, who owns no table of the rules: drop it, or choose another with --publication",
            plain(&catalog.publication.name),
            plain(owner)
        );
        return Err(Failure::new(Exit::NoPermission, sentence));
    }
    let indexable = match wish.prefer_wal {
        true => Some(identity::read_indexable(session, &catalog).await.map_err(failed)?),
        false => None,
    };
    let changes = identity::changes(rules, &catalog, indexable.as_ref());
    let costs = cost::measure(session, &changes).await.map_err(failed)?;
    let decided = Decided {
        changes: &changes,
        costs: &costs,
        indexable: indexable.as_ref(),
        virtual_columns: catalog.version >= 180_000,
    };
    let statements = statements::apply(rules, &catalog, &decided, &role);
    let mut statements = statements.map_err(|refusals| Failure::new(Exit::Rules, refusals.join("\n")))?;
    statements.extend(named.apply(Feed::Replication, false, wish.role));
    Ok(statements)
}

/// The problems that setup mends.
const MENDED: [&str; 2] = ["identity", "column-list"];

/// Everything else that is wrong.
fn refuse_wrong_rules(rules: &Rules, catalog: &Catalog) -> Result<(), Failure> {
    let (refused, _) = verify::tables(rules, catalog);
    let wrong: Vec<String> =
        refused.iter().filter(|problem| !MENDED.contains(&problem.code)).map(ToString::to_string).collect();
    if wrong.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Rules, wrong.join("\n\n"))) }
}

async fn role(session: &Session, name: &str, feed: Feed) -> Result<Role, sql::Error> {
    let reads_a_table = feed == Feed::Outbox;
    let query = format!(
        "SELECT (r.rolcanlogin AND ({reads_a_table} OR r.rolreplication OR m.oid IS NOT NULL AND pg_has_role(r.oid, m.oid, 'MEMBER'))) OR r.rolsuper, \
         shobj_description(r.oid, 'pg_authid'), m.oid IS NOT NULL, \
         has_table_privilege(r.oid, to_regclass('waltag.outbox'), 'DELETE') AND has_table_privilege(r.oid, to_regclass('waltag.progress'), 'UPDATE') \
         AND has_function_privilege(r.oid, to_regproc('waltag.measure_outbox'), 'EXECUTE'), \
         EXISTS (SELECT FROM pg_shdepend s WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid \
           AND s.dbid NOT IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))) \
         FROM (SELECT) one LEFT JOIN pg_roles r ON r.rolname = {} LEFT JOIN pg_roles m ON m.rolname = 'rds_replication'",
        literal(name)
    );
    let rows = session.rows(&query).await?;
    let row = rows.first();
    let field = |index: usize| row.and_then(|row| row.get(index));
    let state = match (field(0), field(1)) {
        (None, _) => RoleState::Missing,
        (Some("t"), comment) if statements::is_ours(comment) => RoleState::Ours,
        (Some("t"), _) => RoleState::Fit,
        _ => RoleState::Unfit,
    };
    let yes = |index: usize| field(index) == Some("t");
    Ok(Role { name: name.to_owned(), state, by_membership: yes(2), reads_outbox: yes(3), elsewhere: yes(4) })
}

/// What passes: lock_not_available; object_in_use, as a slot is for a moment after its daemon has ended; and deadlock_detected, beside a daemon
/// that empties its outbox.
const PASSING: [&str; 3] = ["55P03", "55006", "40P01"];

/// Waits for a lock at most `lock_timeout` at a time: longer, and every query behind it in the queue would wait too.
async fn execute(session: &Session, lock_timeout: Duration, statement: &Statement, place: &str) -> Result<(), Failure> {
    let failed = |error: &sql::Error| Failure::from(Error::session("setup", place, error));
    let limit = format!("SET lock_timeout = {}", lock_timeout.as_millis());
    session.execute(&limit).await.map_err(|error| failed(&error))?;
    for attempt in 1..=ATTEMPTS {
        let cleared = match &statement.clear {
            Some(clear) if attempt > 1 => session.execute_alone(clear).await,
            _ => Ok(()),
        };
        let done = match cleared {
            Ok(()) if statement.alone => session.execute_alone(&statement.text).await,
            Ok(()) => session.execute(&statement.text).await,
            failed => failed,
        };
        match done {
            Ok(()) => return Ok(()),
            Err(sql::Error::Server(error)) if PASSING.contains(&error.code.as_str()) && attempt < ATTEMPTS => {
                tracing::info!(attempt, "{error}; trying again: {}", statement.text.lines().last().unwrap_or_default());
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
            if error.message.contains("replication slots") {
                let sentence = format!(
                    "setup: {error}. Drop the slot as the daemon's role (SELECT pg_drop_replication_slot(...), see above), then run this again"
                );
                return Some(Failure::new(Exit::NoPermission, sentence));
            }
            let sentence = format!(
                "setup: {error}. Run it as the owner of the tables (REPLICATION needs a superuser, or CREATEROLE with REPLICATION)."
            );
            Some(Failure::new(Exit::NoPermission, sentence))
        }
        _ => None,
    }
}
