//! settled: exactly one completion per run.
pub mod providers;
pub mod run;
pub mod secret;
