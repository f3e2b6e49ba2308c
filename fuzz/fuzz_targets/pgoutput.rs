//! No bytes make the decoder panic: `cargo +nightly fuzz run pgoutput`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waltag::source::replication::pgoutput::{Message, Old};

fuzz_target!(|bytes: &[u8]| {
    match Message::parse(bytes) {
        Ok(Message::Insert { new, .. }) => drop(new.values().count()),
        Ok(Message::Update { old, new, .. }) => {
            if let Some(Old::Full(old) | Old::Key(old)) = old {
                drop(old.values().count());
            }
            drop(new.values().count());
        }
        Ok(Message::Truncate { relations }) => drop(relations.iter().count()),
        _ => {}
    }
});
