//! Nothing lost, nothing doubled: the proof.
//!
//! Ways of doing the worst to the real store and the real reconciler, and one opinion about what
//! must hold then ([`check`]):
//!
//! * [`model`]: generated histories, compared step by step with plain maps;
//! * [`crash`]: every write and every sync as the last one before the power went, and every one of
//!   them failing.

mod check;
mod clouds;
mod crash;
mod files;
mod history;
mod model;
