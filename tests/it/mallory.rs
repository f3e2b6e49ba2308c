//! Mallory: a role that may log in and nothing else, and whether something of hers was run by somebody else.

use std::process::Command;

use crate::support::World;

/// What is hers and gets run writes it into the server's log, which no rollback takes back, after a try to leave a role that was merely set.
const SPY: &str = "CREATE ROLE mallory LOGIN; CREATE SCHEMA spy AUTHORIZATION mallory; GRANT USAGE ON SCHEMA spy TO PUBLIC;
    CREATE FUNCTION spy.sprung(what text) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog AS $$ BEGIN
        BEGIN PERFORM set_config('role', 'none', false); EXCEPTION WHEN OTHERS THEN NULL; END;
        RAISE LOG 'SPRUNG % as %', what, current_user;
        RETURN true; END $$;
    CREATE FUNCTION spy.fold(what text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog AS $$ BEGIN
        RETURN spy.sprung(what); END $$;
    ALTER FUNCTION spy.sprung OWNER TO mallory; ALTER FUNCTION spy.fold OWNER TO mallory;";

/// A line for each thing that is run: without the statement, and what called it.
const LOG: &str = "log_error_verbosity = terse\nlog_min_error_statement = panic";

/// A world with a schema, and with her in it.
pub async fn world(schema: &str) -> World {
    World::with(LOG, &format!("{SPY}{schema}")).await
}

/// What of hers was run, and by whom, each once, since the log was as long as `known`; what she ran herself is her own affair.
pub fn sprung_since(world: &World, known: usize) -> Vec<String> {
    let log = world.postgres.log();
    let lines = log.get(known..).unwrap_or_default().lines();
    let lines = lines.filter_map(|line| Some(line.split_once("LOG:  SPRUNG ")?.1.to_owned()));
    let mut found: Vec<String> = lines.filter(|line| !line.ends_with(" as mallory")).collect();
    found.sort();
    found.dedup();
    found
}

/// Runs a command, however it ends; everything that it said.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.code().is_some() && !said.contains("panicked"), "{command:?}: {said}");
    said
}
