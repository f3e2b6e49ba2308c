//! `waltag_fuzz::stream` under libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| waltag_fuzz::libfuzzer(waltag_fuzz::stream, data));
