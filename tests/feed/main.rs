//! The feed, held against the real daemon over its real sockets.

mod consume;
mod consumers;
mod events;
mod retention;
mod support;
