//! The files of a ledger: where they lie, and what a process that dies leaves of them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder in memory where there is one: these tests need what is written to be readable, not to
/// survive a power cut.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        TempDir::new_in(memory).unwrap()
    } else {
        TempDir::new().unwrap()
    }
}

/// A ledger's files as they are at one moment, without what a clean end would still do to them.
pub struct Remains {
    store: PathBuf,
    pub bytes: Vec<u8>,
    pub log: Option<Vec<u8>>,
}

impl Remains {
    /// Looks at the files of a ledger that may be in use.
    pub fn of(store: &Path) -> Remains {
        let log = match fs::read(log(store)) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => panic!("{error}"),
        };
        Remains {
            store: store.to_owned(),
            bytes: fs::read(store).unwrap(),
            log,
        }
    }

    /// Puts them back where they were, into the same files, after whoever used them is gone.
    pub fn lay_out(&self) {
        fs::write(&self.store, &self.bytes).unwrap();
        let _ = fs::remove_file(log(&self.store));
        let _ = fs::remove_file(self.store.with_extension("db-shm"));
        if let Some(bytes) = &self.log {
            fs::write(log(&self.store), bytes).unwrap();
        }
    }
}

/// SQLite's log of a ledger.
pub fn log(store: &Path) -> PathBuf {
    store.with_extension("db-wal")
}
