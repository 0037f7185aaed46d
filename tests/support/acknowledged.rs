//! What senders were promised, and what the database has of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OpenFlags};

use super::check::{self, Acked, Feed, World};

/// Every acknowledged delivery, and the runs that these ended.
#[derive(Clone, Default)]
pub struct Promises(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    acked: Vec<Acked>,
    ended: BTreeSet<String>,
    /// What the feed said when it was last looked at.
    feed: Feed,
}

impl Promises {
    /// A signed delivery was answered 2xx.
    pub fn note(&self, report: i64, body: &[u8], ended: Option<&str>) {
        let acked = Acked {
            report,
            body: check::digest(body),
            verdict: "signed".to_owned(),
        };
        let mut kept = self.kept();
        kept.acked.push(acked);
        kept.ended.extend(ended.map(str::to_owned));
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self) -> usize {
        self.kept().acked.len()
    }

    /// Runs whose end was acknowledged.
    pub fn ended(&self) -> BTreeSet<String> {
        self.kept().ended.clone()
    }

    /// What must hold of this ledger, whether or not a daemon is writing it, after these promises.
    pub fn hold(&self, store: &Path) {
        let kept = &mut *self.kept();
        hold(store, &kept.acked, &mut kept.feed);
    }
}

/// What must hold of a ledger, where nothing is known of the clouds and a daemon may be at work.
pub fn hold(store: &Path, acked: &[Acked], before: &mut Feed) {
    let world = World {
        store,
        acked,
        exists: &|_, _| true,
        ring_rows_max: i64::MAX / 2,
        at_rest: false,
        all_reports: true,
    };
    if let Err(faults) = check::check(&world, before) {
        panic!("{faults}");
    }
}

/// A look at a database that somebody else may be writing.
pub fn read(store: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(store, flags).expect("the database opens");
    connection
        .busy_timeout(super::process::PATIENCE)
        .expect("a number");
    connection
}

/// One number out of a database.
pub fn number(store: &Path, sql: &str) -> i64 {
    read(store)
        .query_row(sql, [], |row| row.get(0))
        .expect("a number")
}
