//! `waltag check`: are the rules right?

use serde_json::json;

use super::{session, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::rules::diagnostic::{self, Diagnostic, Severity};
use crate::rules::{self, Rules};
use crate::settings::{Environment, Settings, with_surroundings};
use crate::setup::{catalog, verify};
use crate::source::replication::error::Error;

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
    let mut publication = true;
    if live && !wrong {
        let (session, endpoint) = session(settings).await?;
        let read = catalog::read(&session, &rules, &settings.names.publication).await;
        let catalog = read.map_err(|error| Error::session("reading the catalog", &endpoint.to_string(), &error))?;
        let (refused, told) = verify::tables(&rules, &catalog, &settings.names.publication);
        problems.extend(refused);
        problems.extend(told);
        publication = catalog.publication.exists;
    }
    let (errors, warnings): (Vec<&Diagnostic>, Vec<&Diagnostic>) =
        problems.iter().partition(|problem| problem.severity == Severity::Error);
    if json {
        print_json(&problems, &rules);
    } else {
        warnings.iter().for_each(|warning| show(format_args!("{warning}\n")));
        if !publication {
            let name = &settings.names.publication;
            show(format_args!("the publication \"{name}\" does not exist yet: `waltag setup` prints the SQL\n"));
        }
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

/// One object: every problem with its place, and how much there is.
fn print_json(problems: &[Diagnostic], rules: &Rules) {
    let problem = |problem: &Diagnostic| {
        json!({
            "severity": if problem.severity == Severity::Error { "error" } else { "warning" },
            "code": problem.code,
            "message": problem.message,
            "help": problem.help,
            "file": problem.place.path().display().to_string(),
            "line": problem.place.line,
            "column": problem.place.column,
            "width": problem.place.width,
        })
    };
    let list: Vec<_> = problems.iter().map(problem).collect();
    show(
        json!({"problems": list, "rules": rules.rules.len(), "caches": rules.caches.len(), "tests": rules.tests.len()}),
    );
}
