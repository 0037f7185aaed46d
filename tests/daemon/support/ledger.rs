//! What senders were promised, and what the database has of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};

/// Every acknowledged delivery: its row, the bytes that were sent, the run it ended if it did.
#[derive(Clone, Default)]
pub struct Promises(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    bodies: BTreeMap<i64, Vec<u8>>,
    ended: BTreeSet<String>,
}

impl Promises {
    pub fn note(&self, id: i64, body: &[u8], ended: Option<&str>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bodies.insert(id, body.to_vec());
        kept.ended.extend(ended.map(str::to_owned));
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bodies.len()
    }

    /// Runs whose end was acknowledged.
    pub fn ended(&self) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ended.clone()
    }

    /// The acknowledged deliveries that this database does not have, or has with other bytes.
    pub fn broken(&self, store: &Path) -> Vec<i64> {
        let connection = read(store);
        let mut select = connection.prepare("SELECT body FROM reports WHERE id = ?1").expect("the table is there");
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = |id: &i64| select.query_row([id], |row| row.get::<_, Vec<u8>>(0)).ok();
        let mut held = held;
        kept.bodies.iter().filter(|(id, body)| held(id).as_ref() != Some(body)).map(|(id, _)| *id).collect()
    }
}

/// A look at a database that somebody else may be writing.
pub fn read(store: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(store, flags).expect("the database opens");
    connection.busy_timeout(super::PATIENCE).expect("a number");
    connection
}

/// One number out of a database.
pub fn number(store: &Path, sql: &str) -> i64 {
    read(store).query_row(sql, [], |row| row.get(0)).expect("a number")
}

/// `ok`, or what SQLite finds wrong with the file.
pub fn integrity(store: &Path) -> String {
    read(store).query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer")
}
