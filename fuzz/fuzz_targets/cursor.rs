//! tests/fuzz/targets.rs, cursor.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::targets::cursor(data));
