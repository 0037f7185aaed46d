//! Nothing lost, nothing doubled: the proof.
//!
//! Ways of doing the worst to the real store and the real reconciler, and one opinion about what
//! must hold then ([`check`]):
//!
//! * [`model`]: generated histories, compared step by step with plain maps.

mod check;
mod clouds;
mod files;
mod history;
mod model;
