//! settled: exactly one completion per run.
pub mod calendar;
pub mod calls;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod feed;
pub mod http;
pub mod limits;
pub mod poller;
pub mod providers;
pub mod receiver;
pub mod reconciler;
pub mod report;
pub mod run;
pub mod secret;
pub mod store;
pub mod telemetry;
