//! The feed, held against the real daemon over its real sockets.

mod consumers;
mod events;
mod retention;
mod support;
