//! The feed, held against the real daemon over its real sockets.

#[path = "../proof/check.rs"]
mod check;
mod consume;
mod consumers;
mod control;
mod events;
mod examples;
mod kills;
mod load;
mod metrics;
mod retention;
mod schema;
mod support;
mod tools;
mod versions;
