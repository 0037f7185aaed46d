//! The requests of the real binary to a provider, and how far they go.

mod redirects;
#[path = "../support/mod.rs"]
mod support;
