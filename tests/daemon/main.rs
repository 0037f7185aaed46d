//! The real binary from outside: what it answers, what it keeps, and what it bears.
//!
//! Long forms: `SETTLED_KILLS=1000` for the test of kill -9, `SETTLED_LONG=1` for the hostile network;
//! `cargo test --test daemon -- --ignored` (as root) for power cuts and full disks.

mod full_disk;
mod killed;
mod power_cut;
mod replaced;
#[path = "../support/mod.rs"]
mod support;
