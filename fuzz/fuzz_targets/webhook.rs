//! tests/fuzz/targets.rs, webhook.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::targets::webhook(data));
