//! No bytes make the rule reader panic, and every problem that it reports can be shown: `cargo +nightly fuzz run rules`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waltag::rules::expand::Surroundings;
use waltag::rules::Rules;

fuzz_target!(|bytes: &[u8]| {
    let around = Surroundings::new(&|_| None, None);
    match Rules::parse(vec![("r.yaml".into(), bytes.to_vec())], &around) {
        Ok(rules) => rules.warnings.iter().for_each(|warning| assert!(!warning.to_string().is_empty())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
