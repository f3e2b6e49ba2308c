//! Arguments -> settings -> runtime -> command -> exit code.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use waltag::cli::{Cli, Command, Prefer, Typed};
use waltag::command;
use waltag::command::dialects::Form;
use waltag::command::setup::Wish;
use waltag::exit::Exit;
use waltag::failure::Failure;
use waltag::log;
use waltag::plain::lines;
use waltag::rules::diagnostic::masked_urls;
use waltag::settings::{self, Environment, Settings};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| log::last_words(format!("{panic}\nThis is a mistake in waltag.\n"))));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let environment = Environment::of_process();
    match start(cli, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::last_words(lines(&masked_urls(&format!("{error:#}\n"))));
            let exit = error.downcast_ref::<Failure>().map_or(Exit::Bug, |failure| failure.exit);
            ExitCode::from(exit as u8)
        }
    }
}

fn start(cli: Cli, environment: &Environment) -> anyhow::Result<()> {
    let format = settings::log_format(&cli.typed, environment).map_err(Failure::from)?;
    // stdout carries results, stderr the log.
    let _written = log::start(format);
    // One thread is enough: one loop moves more changes per second than a walsender sends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(tokio::task::LocalSet::new().run_until(run(cli, environment)));
    // A connection attempt to a host that does not answer must not delay the exit.
    runtime.shutdown_background();
    Ok(outcome?)
}

async fn run(cli: Cli, environment: &Environment) -> Result<(), Failure> {
    let settings = |typed: &Typed| Settings::resolve(typed, environment).map_err(Failure::from);
    match cli.command {
        Command::Run { dry_run: true, once, .. } => {
            command::run::dry_run(&settings(&cli.typed)?, environment, once).await
        }
        Command::Run { setup, once, .. } => command::run::run(settings(&cli.typed)?, environment, setup, once).await,
        Command::Init { redis } => command::init::init(&settings(&cli.typed)?, redis.as_deref()).await,
        Command::Detect { url } => command::detect::detect(&url).await,
        Command::Dialects { name, json, markdown } => {
            let form = match (json, markdown) {
                (true, _) => Form::Json,
                (_, true) => Form::Markdown,
                _ => Form::Text,
            };
            command::dialects::dialects(name.as_deref(), form)
        }
        Command::Setup { apply, remove, role, prefer } => {
            let wish = Wish { apply, remove, role: &role, prefer_wal: prefer == Some(Prefer::Wal) };
            command::setup::setup(&settings(&cli.typed)?, environment, wish).await
        }
        Command::Check { live, strict, json } => {
            command::check::check(&settings(&cli.typed)?, environment, live, strict, json).await
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "waltag", &mut script);
            let _ = std::io::Write::write_all(&mut std::io::stdout(), &script);
            Ok(())
        }
        Command::Schema => {
            command::schema::schema();
            Ok(())
        }
        Command::Explain { table, old, new } => {
            command::explain::explain(&settings(&cli.typed)?, environment, &table, old.as_deref(), new.as_deref())
        }
        Command::Invalidate { cache, tags } => {
            command::invalidate::invalidate(&settings(&cli.typed)?, environment, cache.as_deref(), &tags).await
        }
        Command::Test { live } => command::test::test(&settings(&cli.typed)?, environment, live).await,
        Command::Status { json } => command::status::status(&settings(&cli.typed)?, json).await,
        Command::Wait { lsn, timeout } => command::status::wait(&settings(&cli.typed)?, &lsn, &timeout).await,
        Command::Resync { cache, table, dry_run } => {
            let settings = settings(&cli.typed)?;
            command::resync::resync(&settings, environment, cache.as_deref(), table.as_deref(), dry_run).await
        }
        Command::Demo { keep } => waltag::demo::run(keep).await,
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // What was typed in the wrong place is repeated, and may be a URL with its password.
    let may_hold_one = |argument: String| {
        !argument.starts_with('-') && argument.contains(['@', ':', '=', '%'])
            || argument.contains("://")
            || argument.to_lowercase().contains("pass")
    };
    log::last_words(match std::env::args().skip(1).any(may_hold_one) {
        true => format!(
            "error: {}; what was typed may hold a password and is not repeated. `waltag --help` shows what is understood\n",
            error.kind()
        ),
        false => error.render().to_string(),
    });
    ExitCode::from(Exit::Usage as u8)
}
