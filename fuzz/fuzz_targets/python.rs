//! tests/fuzz/targets.rs, python.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::targets::python(data));
