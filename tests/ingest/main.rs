//! The webhook port of the real binary: what it answers, what it keeps, and what it bears.
//!
//! `SETTLED_LONG=1` runs the hostile network for longer.

mod answers;
mod captured;
mod hostile;
#[path = "../support/mod.rs"]
mod support;
