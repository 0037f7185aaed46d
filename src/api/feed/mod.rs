//! The feed: one stream for every reader, stateless reads, and named consumers.

pub(super) mod consumers;
pub(super) mod events;
mod page_cache;
mod stream;

pub use consumers::{ConsumerView, Readers};
pub use page_cache::PageCache;
