//! What every fuzz target does with its bytes. A target is a plain function, so that libFuzzer (`fuzz_targets/`, nightly) and a small
//! mutator on the toolchain of the crate (`examples/few_seconds.rs`) run the same code. It panics when something does not hold.
//!
//! Inputs are text where that is possible, so that those of `corpus/` can be read and written by hand.

mod bytes;
mod daemon;
mod database;
mod redis_side;
mod rule_files;

pub use daemon::{http, kept, marker};
pub use database::{catalog, dsn, frames, pgoutput, said, stream, values};
pub use redis_side::{location, resp};
pub use rule_files::{condition, rules, template};

/// A target: its name, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 15] = [
    ("catalog", catalog),
    ("condition", condition),
    ("dsn", dsn),
    ("frames", frames),
    ("http", http),
    ("kept", kept),
    ("location", location),
    ("marker", marker),
    ("pgoutput", pgoutput),
    ("resp", resp),
    ("rules", rules),
    ("said", said),
    ("stream", stream),
    ("template", template),
    ("values", values),
];

/// Runs a target under libFuzzer. Its hook ends the process at any panic; the parser of conditions, which is not ours, runs in a thread of its own
/// whose panics are caught and told as mistakes, so only those of the main thread count.
#[cfg(feature = "libfuzzer")]
pub fn libfuzzer(target: fn(&[u8]), data: &[u8]) {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let main = std::thread::current().id();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().id() == main {
                eprintln!("{panic}");
                std::process::abort();
            }
        }));
    });
    target(data);
}
