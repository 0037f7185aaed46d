//! tests/fuzz/targets.rs, status.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::targets::status(data));
