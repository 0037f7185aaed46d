//! The newest pages of the feed, read once for all streams that follow it: a new record wakes every
//! stream, and a thousand of them want the same rows.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::super::ApiState;
use crate::ledger::{FeedBounds, Filter, RecordQuery, StoredRecord};
use crate::limits;
use crate::server::Problem;

/// Which page: all streams with the same key get the same page.
#[derive(Clone, PartialEq, Eq)]
pub struct PageKey {
    /// The position before the page.
    pub after: i64,
    /// The last seq that may be on the page.
    pub head: i64,
    /// Which records are on it.
    pub filter: Filter,
    /// The most records on it.
    pub rows: usize,
}

/// A page as it was read from the ledger.
pub struct CachedPage {
    /// The records that match the filter.
    pub records: Vec<StoredRecord>,
    /// The position up to which the page covers the feed.
    pub position: i64,
    /// Where the feed began and ended after the page was read.
    pub bounds: FeedBounds,
    lines: OnceLock<Bytes>,
}

/// The pages near the newest record that were read last.
#[derive(Default)]
pub struct PageCache {
    pages: Mutex<VecDeque<(PageKey, SharedPage)>>,
}

type SharedPage = Arc<OnceCell<Arc<CachedPage>>>;

impl CachedPage {
    /// The records as NDJSON.
    pub fn lines(&self) -> Bytes {
        let lines = || {
            let mut lines = String::with_capacity(
                self.records
                    .iter()
                    .map(|record| record.line.len() + 1)
                    .sum(),
            );
            for record in &self.records {
                lines.push_str(&record.line);
                lines.push('\n');
            }
            lines.into()
        };
        self.lines.get_or_init(lines).clone()
    }
}

impl PageCache {
    /// The place of a page. The first stream that asks for the page reads it, the others wait.
    fn shared(&self, key: &PageKey) -> SharedPage {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, page)) = pages.iter().find(|(known, _)| known == key) {
            return page.clone();
        }
        if pages.len() == limits::TAIL_PAGES {
            pages.pop_front();
        }
        let page = SharedPage::default();
        pages.push_back((key.clone(), page.clone()));
        page
    }
}

impl ApiState {
    /// The next page for a stream. One that is far behind reads alone, as no other is just there.
    pub(super) async fn page(&self, key: PageKey) -> Result<Arc<CachedPage>, Problem> {
        if key.head - key.after > limits::TAIL_ROWS {
            return self.read_page(key).await;
        }
        let shared = self.page_cache.shared(&key);
        shared
            .get_or_try_init(|| self.read_page(key))
            .await
            .cloned()
    }

    async fn read_page(&self, key: PageKey) -> Result<Arc<CachedPage>, Problem> {
        let look = move |view: &crate::ledger::View<'_>| {
            let (records, position) = view.records(&RecordQuery {
                after: key.after,
                upto: key.head,
                filter: &key.filter,
                rows_max: key.rows,
                scan_max: limits::PAGE_SCAN_ROWS,
            })?;
            // The bounds are read after the rows: a row that exists now existed before.
            Ok(CachedPage {
                records,
                position,
                bounds: view.bounds()?,
                lines: OnceLock::new(),
            })
        };
        self.look(look).await.map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(after: i64, head: i64) -> PageKey {
        PageKey {
            after,
            head,
            filter: Filter::default(),
            rows: 10,
        }
    }

    #[test]
    fn equal_keys_share_a_page_and_old_pages_go() {
        let page_cache = PageCache::default();
        let first = page_cache.shared(&key(0, 1));
        assert!(Arc::ptr_eq(&first, &page_cache.shared(&key(0, 1))));
        let others = [
            key(0, 2),
            key(1, 2),
            PageKey {
                rows: 9,
                ..key(0, 1)
            },
            PageKey {
                filter: Filter {
                    source: vec!["a".to_owned()],
                    ..Filter::default()
                },
                ..key(0, 1)
            },
        ];
        for other in &others {
            assert!(!Arc::ptr_eq(&first, &page_cache.shared(other)));
        }
        assert!(
            Arc::ptr_eq(&first, &page_cache.shared(&key(0, 1))),
            "still there"
        );
        for head in 10..10 + i64::try_from(limits::TAIL_PAGES).unwrap() {
            page_cache.shared(&key(9, head));
        }
        assert!(!Arc::ptr_eq(&first, &page_cache.shared(&key(0, 1))));
        assert_eq!(page_cache.pages.lock().unwrap().len(), limits::TAIL_PAGES);
    }
}
