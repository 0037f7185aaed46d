//! tests/fuzz/targets.rs, verify.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::targets::verify(data));
