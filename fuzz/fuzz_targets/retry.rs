//! tests/fuzz/targets.rs, retry.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::targets::retry(data));
