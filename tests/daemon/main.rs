//! The real binary from outside: what it answers, what it keeps, and what it bears.
//!
//! Long forms: `SETTLED_KILLS=1000` for the test of kill -9, `SETTLED_LONG=1` for the hostile network;
//! `cargo test --test daemon -- --ignored` (as root) for power cuts and full disks.

mod answers;
mod captured;
#[path = "../proof/check.rs"]
mod check;
mod full_disk;
mod hostile;
mod killed;
mod power_cut;
mod questions;
mod support;
