//! The targets of `tests/fuzz`, for a fuzzer that looks at coverage.

#[path = "../../tests/fuzz/servers.rs"]
pub mod servers;
#[path = "../../tests/fuzz/targets.rs"]
pub mod targets;
