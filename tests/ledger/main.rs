//! The ledger and the reconciler over it, without a process: reports go in, and what is on disk
//! afterwards is what was promised.

mod check;
mod consumers;
mod damage;
mod processing;
mod feed;
mod files;
mod lists;
mod numbers;
mod storing;
mod retention;
mod support;
mod batches;
mod versions;
