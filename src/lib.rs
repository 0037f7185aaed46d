//! settled: exactly one completion per run.
pub mod calendar;
pub mod config;
pub mod limits;
pub mod providers;
pub mod run;
pub mod secret;
