//! tests/fuzz/servers.rs, control.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::servers::control(data));
