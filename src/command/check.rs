//! `waltag check`: are the rules right?

use serde_json::json;

use super::{session, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::plain::{plain, whole};
use crate::rules::diagnostic::{self, Diagnostic, Severity};
use crate::rules::{self, Rules};
use crate::settings::{Environment, Settings, with_surroundings};
use crate::setup::examples::{self, Example};
use crate::setup::{catalog, verify};
use crate::source::replication;
use crate::source::replication::error::Error;
use crate::source::replication::slot::{self, Feed};

/// Longest value that is shown whole.
const SHOWN: usize = 60;

/// What the database says.
#[derive(Default)]
struct Live {
    problems: Vec<Diagnostic>,
    /// What has no place in a rule file.
    notes: Vec<String>,
    examples: Vec<Example>,
}

/// Validates the rule files, and with `live` what the database makes of them. With `strict` a warning is an error.
pub async fn check(
    settings: &Settings,
    environment: &Environment,
    live: bool,
    strict: bool,
    json: bool,
) -> Result<(), Failure> {
    let loaded = with_surroundings(environment, |around| Rules::load(&settings.rules, around));
    let (rules, mut problems) = match loaded {
        Err(rules::Error::Wrong(problems)) => (Rules::default(), problems),
        loaded => (loaded?, Vec::new()),
    };
    problems.extend(rules.warnings.iter().cloned());
    let wrong = problems.iter().any(|problem| problem.severity == Severity::Error);
    let found = if live && !wrong { ask(settings, &rules).await? } else { Live::default() };
    problems.extend(found.problems.iter().cloned());
    let (errors, warnings): (Vec<&Diagnostic>, Vec<&Diagnostic>) =
        problems.iter().partition(|problem| problem.severity == Severity::Error);
    if json {
        print_json(&problems, &found, &rules);
    } else {
        warnings.iter().for_each(|warning| show(format_args!("{warning}\n")));
        print_examples(&found.examples);
        found.notes.iter().for_each(|note| show(format_args!("note: {}\n", whole(note))));
    }
    if !errors.is_empty() {
        let list = match json {
            true => format!("{} errors", errors.len()),
            false => diagnostic::list(errors),
        };
        return Err(Failure::new(Exit::Rules, list));
    }
    if !json {
        summary(&rules, warnings.len());
    }
    match (strict, warnings.len()) {
        (true, 1..) => Err(Failure::new(Exit::Rules, format!("{} warnings, and --strict", warnings.len()))),
        _ => Ok(()),
    }
}

/// Reads the catalog, a value of each column whose text differs between languages, and whether `run` would get its stream.
async fn ask(settings: &Settings, rules: &Rules) -> Result<Live, Failure> {
    let (session, endpoint) = session(settings).await?;
    let failed = |error| Error::session("reading the catalog", &endpoint.to_string(), &error);
    let catalog = catalog::read(&session, rules, &settings.names).await.map_err(failed)?;
    let (refused, told) = verify::tables(rules, &catalog);
    let mut live = Live { problems: refused, ..Live::default() };
    live.problems.extend(told);
    live.examples = examples::collect(&endpoint, rules, &catalog).await.map_err(failed)?;
    if settings.names.feed == Feed::Outbox {
        if !catalog.triggers.installed {
            live.notes.push("there is no outbox yet: `waltag setup --source outbox` prints the SQL".into());
        }
        return Ok(live);
    }
    if !catalog.publication.exists {
        let name = &settings.names.publication;
        live.notes
            .push(format!("the publication \"{}\" does not exist yet: `waltag setup` prints the SQL", plain(name)));
    }
    if let Err(error) = replication::probe(&endpoint, &session, &settings.names).await {
        live.notes.push(format!("with these settings `run` would get no stream: {error}"));
    }
    if slot::forgets_tables(catalog.version) {
        live.notes.push(format!(
            "this PostgreSQL ({}.{}) goes on without a table that is published while a transaction writes it, until the stream is opened anew; waltag does so by itself, and 14.18, 15.13, 16.9 and 17.5 are mended",
            catalog.version / 10_000,
            catalog.version % 10_000
        ));
    }
    live.notes.extend(catalog.deaf.clone());
    let kept = session.value("SELECT current_setting('max_slot_wal_keep_size')").await.map_err(failed)?;
    if kept.as_deref() == Some("-1") {
        live.notes.push(
            "max_slot_wal_keep_size is -1: if waltag is gone for good, its slot keeps WAL until the disk is full"
                .into(),
        );
    }
    Ok(live)
}

/// A value that the application writes otherwise would stay cached without a word.
fn print_examples(examples: &[Example]) {
    if examples.is_empty() {
        return;
    }
    show("Values that languages write differently, as they stand in tags. Does the application write the same?");
    for example in examples {
        let Example { place, cache, column, kind, .. } = example;
        let from = example.value.as_deref().map_or("no value to show".into(), shortened);
        let to = match (&example.value, &example.text) {
            (None, _) => String::new(),
            (_, Some(text)) => format!(" -> {}", shortened(text)),
            (_, None) => " -> no tag".into(),
        };
        show(format_args!("  {}  {}  {} {kind}: {from}{to}", whole(&place.to_string()), plain(cache), plain(column)));
    }
    show("");
}

/// In backquotes, so that blanks are seen.
fn shortened(text: &str) -> String {
    match text.chars().count() {
        0..=SHOWN => format!("`{}`", plain(text)),
        more => format!("`{}...` ({more} characters)", plain(&text.chars().take(SHOWN).collect::<String>())),
    }
}

fn summary(rules: &Rules, warnings: usize) {
    let count = |number: usize, word: &str| match number {
        1 => format!("1 {word}"),
        _ => format!("{number} {word}s"),
    };
    let parts = [
        count(rules.rules.len(), "rule"),
        count(rules.tables().len(), "table"),
        count(rules.caches.len(), "cache"),
        count(rules.tests.len(), "test"),
        count(warnings, "warning"),
    ];
    show(parts.join(", "));
}

/// One object: every problem with its place, what the database says, and how much there is.
fn print_json(problems: &[Diagnostic], live: &Live, rules: &Rules) {
    let problem = |problem: &Diagnostic| {
        json!({
            "severity": if problem.severity == Severity::Error { "error" } else { "warning" },
            "code": problem.code,
            "message": diagnostic::masked_urls(&problem.message),
            "help": problem.help.as_deref().map(diagnostic::masked_urls),
            "file": problem.place.path().display().to_string(),
            "line": problem.place.line,
            "column": problem.place.column,
            "width": problem.place.width,
        })
    };
    let example = |example: &Example| {
        json!({
            "file": example.place.path().display().to_string(),
            "line": example.place.line,
            "cache": example.cache,
            "column": example.column,
            "type": example.kind,
            "value": example.value,
            "text": example.text,
        })
    };
    show(json!({
        "problems": problems.iter().map(problem).collect::<Vec<_>>(),
        "examples": live.examples.iter().map(example).collect::<Vec<_>>(),
        "notes": live.notes,
        "rules": rules.rules.len(), "caches": rules.caches.len(), "tests": rules.tests.len(),
    }));
}
