//! The feed: one stream for every reader, stateless reads, and named consumers.
//!
//! Imports run one way: `consumers` and `events` use `stream`, which uses `lease`, `page_cache` and
//! `query`.

pub(super) mod consumers;
pub(super) mod events;
mod lease;
mod page_cache;
mod query;
mod stream;

pub use lease::Readers;
pub use page_cache::PageCache;
