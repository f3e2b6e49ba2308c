//! No text makes the template parser panic, and every place that it reports lies within the text:
//! `cargo +nightly fuzz run template`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waltag::rules::template::Template;

fuzz_target!(|text: &str| {
    if let Err(error) = Template::parse(text) {
        assert!(error.offset <= text.chars().count());
    }
});
