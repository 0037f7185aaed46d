//! The ledger: everything settled knows, on disk. The only folder with SQL in it.
//!
//! Others change it with [`commands`], each a value with a typed reply, and with
//! a [`ChangeSet`](changes::ChangeSet), and read it through queries that give typed rows. How that is done in
//! SQLite is in `sqlite/`; a second ledger would stand beside it, behind the same commands and rows.

pub mod changes;
pub mod commands;
mod rows;
mod sqlite;

use std::path::PathBuf;

pub use changes::TimelineRow;
pub use commands::{AnyCommand, AnyReply, Command, Moved, Trimmed, UnverifiedLimits};
pub use rows::{
    Consumer, DamagedRow, DeliveryQuery, DeliveryRow, Due, DueTimers, FeedBounds, Filter,
    LOSS_SPANS, Loss, Losses, ParkedRow, RecordQuery, Removable, RunPage, RunQuery, RunRow,
    SecretUse, SourceCounts, StoredRecord,
};
pub use sqlite::{
    Checkpointer, Commit, Committed, Examination, Finding, Missing, Reader, SCHEMA_VERSION, View,
    Writer, check, check_with_all_reports, copy, examine,
};

/// An error of the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The directory or the file could not be created or opened.
    #[error(
        "cannot open the database {path}: {source}; the directory must exist and be writable for this user"
    )]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a database of settled.
    #[error("{0} is not a database of settled; name another [store] path")]
    Foreign(PathBuf),
    /// A newer settled wrote the file.
    #[error(
        "{path} has schema version {found}, this settled knows up to {SCHEMA_VERSION}; run the newer settled, or restore the backup from before the upgrade"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// A step of an upgrade failed; the file is as it was.
    #[error("the database could not be upgraded from schema version {from}; it is unchanged")]
    Migration {
        /// The version that could not be left.
        from: i64,
        /// Why.
        source: rusqlite::Error,
    },
    /// A setting that durability needs has no effect.
    #[error(
        "SQLite answers {found:?} for {pragma} where {wanted:?} is needed; this build or file system cannot keep settled's promises"
    )]
    Pragma {
        /// Which setting.
        pragma: &'static str,
        /// The value that SQLite reports.
        found: String,
        /// The value that is needed.
        wanted: &'static str,
    },
    /// The path no longer leads to the file that was opened, or its log is gone.
    #[error(
        "{0}, or its log, is no longer the file that this daemon opened; nothing is written into it, and the daemon has to start again"
    )]
    Replaced(PathBuf),
    /// Another process has the file.
    #[error("another settled is using {0}")]
    InUse(PathBuf),
    /// A row says something that this program never writes.
    #[error("the database holds something unreadable ({0}); run `settled check`")]
    Unreadable(String),
    /// A change set does not fit the state of the ledger that it is applied to.
    #[error("changes were computed from another state of the database; please report this")]
    OutOfDate,
    /// Reading or deciding panicked.
    #[error("processing a report panicked; please report this")]
    Panicked,
    /// Anything SQLite says.
    #[error("the database failed")]
    Sqlite(#[from] rusqlite::Error),
}

impl LedgerError {
    /// Whether the file, the disk or the system failed, rather than the value to be written.
    pub fn blames_the_disk(&self) -> bool {
        use rusqlite::ErrorCode::{ConstraintViolation, ParameterOutOfRange, TooBig, TypeMismatch};
        match self {
            LedgerError::Panicked | LedgerError::OutOfDate | LedgerError::Unreadable(_) => false,
            LedgerError::Sqlite(error) => !matches!(
                error.sqlite_error_code(),
                None | Some(ConstraintViolation | ParameterOutOfRange | TooBig | TypeMismatch)
            ),
            _ => true,
        }
    }
}

/// The result of an operation on the ledger.
pub type Result<T, E = LedgerError> = std::result::Result<T, E>;
