//! tests/fuzz/servers.rs, hooks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::servers::hooks(data));
