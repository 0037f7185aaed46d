//! The feed, held against the real daemon over its real sockets.

mod consume;
mod consumers;
mod control;
mod events;
mod examples;
mod kills;
mod load;
mod metrics;
mod reference;
mod retention;
mod schema;
#[path = "../support/mod.rs"]
mod support;
mod tools;
mod versions;
