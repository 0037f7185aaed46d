//! The ledger and the reconciler over it, without a process: reports go in, and what is on disk
//! afterwards is what was promised.

mod check;
mod consumers;
mod damage;
mod digestion;
mod feed;
mod files;
mod lists;
mod numbers;
mod promises;
mod retention;
mod setting;
mod turns;
mod versions;
