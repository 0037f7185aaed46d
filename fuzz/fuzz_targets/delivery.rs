//! tests/fuzz/servers.rs, delivery.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| settled_fuzz::servers::delivery(data));
