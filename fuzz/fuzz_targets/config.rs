//! tests/fuzz/targets.rs, config.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::targets::config(data));
