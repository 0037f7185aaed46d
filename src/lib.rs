//! settled: exactly one completion per run.
pub mod cli;
pub mod demo;
pub mod providers;
pub mod run;
pub mod secret;
