//! A dialect with its options chosen: every combination where some have several values, because a client's prefix changes at a deploy and
//! both live for a while.

use super::dialect::Dialect;
use super::formula::Formula;
use super::reach::Reach;
use super::step::{Action, Step, conditions};

/// More combinations than this are a mistake.
const MOST: usize = 256;

/// The values of one option, each with the word that conditions compare and the text that is filled in.
pub(super) struct Choice {
    /// The option.
    pub name: &'static str,
    /// Its values; none: it was not given and has no default.
    pub values: Vec<(String, String)>,
}

type Combination<'a> = Vec<(&'a str, &'a (String, String))>;

/// What is sent for a tag, and how the rest is found. The error is a sentence.
pub(super) fn instantiate(dialect: &Dialect, choices: &[Choice]) -> Result<(Vec<Step>, Reach), String> {
    let (mut all, mut reach) = (Vec::new(), Reach::default());
    for combination in combinations(choices)? {
        let find = |name: &str| combination.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let option = |name: &str| find(name).map(|(_, text)| text.clone());
        let applies = |line: &&'static str| -> Option<&'static str> {
            let (conditions, rest) = conditions(line);
            let mut holds =
                conditions.map(|condition| find(condition.option).is_some_and(|(word, _)| condition.holds(word)));
            holds.all(|holds| holds).then_some(rest)
        };
        for line in dialect.steps.iter().filter_map(applies) {
            let step = Step::parse(line, &option)?;
            if !all.contains(&step) {
                all.push(step);
            }
        }
        for line in dialect.sweep.iter().filter_map(applies) {
            reach.take(line, &option)?;
        }
    }
    // A counter that is dropped is 0, and what was stored under 0 comes back: where old and new releases share a key, counting is
    // enough for both.
    let bumped: Vec<Formula> =
        all.iter().filter(|step| step.action == Action::Bump).map(|step| step.key.clone()).collect();
    all.retain(|step| step.action != Action::Unlink || !bumped.contains(&step.key));
    Ok((all, reach))
}

fn combinations(choices: &[Choice]) -> Result<Vec<Combination<'_>>, String> {
    let mut all: Vec<Combination> = vec![Vec::new()];
    for Choice { name, values } in choices.iter().filter(|choice| !choice.values.is_empty()) {
        all = all
            .iter()
            .flat_map(|before| values.iter().map(move |value| [before.as_slice(), &[(*name, value)]].concat()))
            .collect();
        if all.len() > MOST {
            return Err(format!("its options make more than {MOST} combinations"));
        }
    }
    Ok(all)
}
