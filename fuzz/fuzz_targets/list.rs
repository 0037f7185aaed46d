//! tests/fuzz/targets.rs, list.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::targets::list(data));
