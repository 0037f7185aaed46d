//! The newest pages of the feed, read once for all who follow it: a new record wakes every stream,
//! and a thousand of them want the same rows.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::super::ApiState;
use crate::ledger::{FeedBounds, Filter, RecordQuery, StoredRecord};
use crate::limits;
use crate::server::Problem;

/// What a reader wants to see next.
#[derive(Clone, PartialEq, Eq)]
pub struct Want {
    /// The position before it.
    pub after: i64,
    /// The last seq that may be in it.
    pub head: i64,
    /// Of these.
    pub filter: Filter,
    /// At most so many.
    pub rows: usize,
}

/// A page as it was read.
pub struct Page {
    /// What matches.
    pub records: Vec<StoredRecord>,
    /// Up to where everything has been looked at.
    pub position: i64,
    /// Where the feed began and ended afterwards.
    pub bounds: FeedBounds,
    lines: OnceLock<Bytes>,
}

/// The pages that were read last near the head.
#[derive(Default)]
pub struct PageCache {
    pages: Mutex<VecDeque<(Want, Shared)>>,
}

type Shared = Arc<OnceCell<Arc<Page>>>;

impl Page {
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
    /// The place of a page that others may want too; whoever comes first reads it.
    fn shared(&self, want: &Want) -> Shared {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, page)) = pages.iter().find(|(known, _)| known == want) {
            return page.clone();
        }
        if pages.len() == limits::TAIL_PAGES {
            pages.pop_front();
        }
        let page = Shared::default();
        pages.push_back((want.clone(), page.clone()));
        page
    }
}

impl ApiState {
    /// The next page for a reader. Who is far behind reads alone: nobody else is just there.
    pub(super) async fn page(&self, want: Want) -> Result<Arc<Page>, Problem> {
        if want.head - want.after > limits::TAIL_ROWS {
            return self.read_page(want).await;
        }
        let shared = self.page_cache.shared(&want);
        shared
            .get_or_try_init(|| self.read_page(want))
            .await
            .cloned()
    }

    async fn read_page(&self, want: Want) -> Result<Arc<Page>, Problem> {
        let look = move |view: &crate::ledger::View<'_>| {
            let (records, position) = view.records(&RecordQuery {
                after: want.after,
                upto: want.head,
                filter: &want.filter,
                rows_max: want.rows,
                scan_max: limits::PAGE_SCAN_ROWS,
            })?;
            // Looked at after the rows: what had not been removed by now was there before.
            Ok(Page {
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

    fn want(after: i64, head: i64) -> Want {
        Want {
            after,
            head,
            filter: Filter::default(),
            rows: 10,
        }
    }

    #[test]
    fn who_wants_the_same_gets_the_same_and_old_pages_go() {
        let page_cache = PageCache::default();
        let first = page_cache.shared(&want(0, 1));
        assert!(Arc::ptr_eq(&first, &page_cache.shared(&want(0, 1))));
        let others = [
            want(0, 2),
            want(1, 2),
            Want {
                rows: 9,
                ..want(0, 1)
            },
            Want {
                filter: Filter {
                    source: vec!["a".to_owned()],
                    ..Filter::default()
                },
                ..want(0, 1)
            },
        ];
        for other in &others {
            assert!(!Arc::ptr_eq(&first, &page_cache.shared(other)));
        }
        assert!(
            Arc::ptr_eq(&first, &page_cache.shared(&want(0, 1))),
            "still there"
        );
        for head in 10..10 + i64::try_from(limits::TAIL_PAGES).unwrap() {
            page_cache.shared(&want(9, head));
        }
        assert!(!Arc::ptr_eq(&first, &page_cache.shared(&want(0, 1))));
        assert_eq!(page_cache.pages.lock().unwrap().len(), limits::TAIL_PAGES);
    }
}
