//! Every client library that waltag speaks the format of: a dozen lines each.

mod node;
mod others;
mod php;
mod primitives;
mod python;

use super::dialect::Dialect;

/// The one whose lines stand in the rule file.
pub const CUSTOM: &str = "custom";

/// All of them, by language.
pub fn all() -> impl Iterator<Item = &'static Dialect> {
    [&primitives::DIALECTS[..], &python::DIALECTS, &php::DIALECTS, &node::DIALECTS, &others::DIALECTS]
        .into_iter()
        .flatten()
}

/// The dialect of that name.
pub fn named(name: &str) -> Option<&'static Dialect> {
    all().find(|dialect| dialect.name == name)
}

/// Clients that cannot be served, and why.
pub const REFUSED: [(&str, &str); 4] = [
    (
        "hybridcache",
        "Microsoft's HybridCache keeps the times of its tags in each process and reads them once: nothing from outside reaches a process \
         that has read a tag; FusionCache has an adapter of the same interface that does",
    ),
    (
        "phpfastcache",
        "its tags are lists that every writer reads, changes and writes back: they lose records by themselves",
    ),
    ("identity-cache", "its keys hold a hash of the schema, and its records live in memcached first"),
    ("jetcache", "its messages are Java objects in an encoding of the application's choice"),
];

/// Why a client of that name is not there.
pub fn refused(name: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(known, _)| *known == name).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::choices::{Choice, instantiate};
    use crate::cache::step::conditions;

    /// Every line of every dialect means something, with every word of every option.
    #[test]
    fn every_line_is_understood() {
        for dialect in all() {
            let choices = dialect.options.iter().map(|option| {
                let values = match option.kind {
                    crate::cache::dialect::Kind::Word(words) => words.to_vec(),
                    crate::cache::dialect::Kind::Seconds => vec![option.default.unwrap_or("1h")],
                    crate::cache::dialect::Kind::Symfony => vec!["7.0", "5.4", "4.4"],
                    _ => vec![option.default.unwrap_or("x")],
                };
                let read = |text: &&str| option.kind.read(option.name, text).unwrap();
                Choice { name: option.name, values: values.iter().map(read).collect() }
            });
            let (steps, reach) = instantiate(dialect, &choices.collect::<Vec<_>>())
                .unwrap_or_else(|error| panic!("{}: {error}", dialect.name));
            assert!(dialect.name == CUSTOM || !(steps.is_empty() || reach.ways.is_empty()), "{}", dialect.name);
            for condition in dialect.steps.iter().chain(dialect.sweep).flat_map(|line| conditions(line).0) {
                let (name, word) = (condition.option, condition.word);
                let option = dialect.options.iter().find(|option| option.name == name);
                let option = option.unwrap_or_else(|| panic!("{}: no option {name}", dialect.name));
                if let crate::cache::dialect::Kind::Word(words) = option.kind {
                    assert!(words.contains(&word), "{}: {name} is never {word}", dialect.name);
                }
            }
        }
        let mut names: Vec<&str> = all().map(|dialect| dialect.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count(), "a name stands twice");
    }
}
