//! What the test programs share: a daemon of their own, senders, raw connections, a ledger, and the
//! invariant checker. Each program uses a part of it.

#![allow(dead_code)]

pub mod acknowledged;
pub mod check;
pub mod daemon;
pub mod disk;
pub mod home;
pub mod process;
pub mod reconciler;
pub mod senders;
pub mod wire;
pub mod world;
