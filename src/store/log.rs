//! The write-ahead log: kept short without the writer's help, as far as that goes.
//!
//! Moving the log's pages into the file costs syncs, and whoever does it on the writer's connection
//! makes every sender wait for them. A [`Checkpointer`] does it on a connection and a thread of its
//! own. It can never quite finish while the writer goes on appending, and only a finished log begins
//! anew; so at a size of [`limits::LOG_PAGES_MAX`] the writer moves the short rest itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rusqlite::Connection;
use rusqlite::hooks::Wal;

use super::{Result, connect_to_write};
use crate::limits;

/// Moves the log into the file, on a thread of its own.
pub struct Checkpointer {
    path: PathBuf,
    wanted: Receiver<()>,
    moved: Arc<AtomicI32>,
}

/// The writer's side: looks at the log's length after each commit.
#[derive(Clone)]
pub(super) struct Log {
    wanted: SyncSender<()>,
    /// Pages of the present log that the checkpointer has moved.
    moved: Arc<AtomicI32>,
}

impl Log {
    /// Both sides.
    pub(super) fn shared(path: PathBuf) -> (Log, Checkpointer) {
        let (want, wanted) = sync_channel(1);
        let moved = Arc::new(AtomicI32::new(0));
        (Log { wanted: want, moved: moved.clone() }, Checkpointer { path, wanted, moved })
    }

    /// Has `connection` look after each of its commits.
    pub(super) fn watch(&self, connection: &mut Connection) -> Result<()> {
        let log = self.clone();
        connection.wal_hook(Some(move |wal: &mut Wal, pages| {
            log.committed(wal, pages);
            Ok(())
        }))?;
        Ok(())
    }

    /// After a commit that left `pages` in the log.
    fn committed(&self, wal: &mut Wal, pages: i32) {
        let moved = self.moved.load(Ordering::Relaxed);
        // Fewer pages than were moved: the log has begun anew.
        let left = if pages < moved { pages } else { pages - moved };
        if left >= limits::CHECKPOINT_PAGES || pages >= limits::LOG_PAGES_MAX {
            let _ = self.wanted.try_send(());
        }
        let short = pages >= limits::LOG_PAGES_MAX && left < limits::LOG_REST_PAGES;
        if short || pages >= 2 * limits::LOG_PAGES_MAX {
            // The commit stands whatever becomes of this; the next one tries again.
            if let Err(error) = wal.checkpoint() {
                tracing::debug!(%error, "the write-ahead log could not be moved by the writer");
            }
        }
    }
}

impl Checkpointer {
    /// Works until the writer is gone.
    pub fn run(self) {
        let mut connection = None;
        while self.wanted.recv().is_ok() {
            let pass = match connection.take() {
                Some(connection) => Ok(connection),
                None => connect_to_write(&self.path),
            };
            // A connection that failed is not used again.
            connection = match pass.and_then(|connection| self.pass(connection)) {
                Ok(connection) => Some(connection),
                Err(error) => {
                    tracing::warn!(%error, "the write-ahead log could not be moved into the file; it grows meanwhile");
                    None
                }
            };
        }
    }

    fn pass(&self, connection: Connection) -> Result<Connection> {
        let moved = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i32>(2))?;
        self.moved.store(moved.max(0), Ordering::Relaxed);
        Ok(connection)
    }
}
