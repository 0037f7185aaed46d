//! Nothing lost, nothing doubled: the proof.
//!
//! Three ways of doing the worst to the real store and the real reconciler, and one opinion about
//! what must hold then ([`check`](support::check)):
//!
//! * [`model`]: generated histories, compared step by step with plain maps;
//! * [`simulation`]: seeded worlds of days, with four lying clouds, outages, storms and crashes;
//! * [`crash`]: every write and every sync as the last one before the power went.
//!
//! `docs/reliability.md` has the long forms and what they found.

mod clouds;
mod crash;
mod files;
mod history;
mod model;
mod readers;
mod simulation;
#[path = "../support/mod.rs"]
mod support;
