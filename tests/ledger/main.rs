//! The ledger and the reconciler over it, without a process: reports go in, and what is on disk
//! afterwards is what was promised.

mod batches;
mod check;
mod consumers;
mod damage;
mod feed;
mod files;
mod formats;
mod lists;
mod numbers;
mod processing;
mod retention;
mod storing;
#[path = "../support/mod.rs"]
mod support;
mod versions;
