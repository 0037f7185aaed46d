//! The feed, held against the real daemon over its real sockets.

mod consume;
mod consumers;
mod events;
mod examples;
mod kills;
mod load;
mod retention;
mod support;
mod tools;
