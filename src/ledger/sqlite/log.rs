//! The write-ahead log, and the checkpoints that keep it short.
//!
//! A checkpoint costs syncs, and on the writer's connection every sender would wait for them. So a
//! [`Checkpointer`] does it on a connection and a thread of its own. It can never quite finish while
//! the writer appends, and only a finished log begins anew. At a size of
//! [`limits::LOG_PAGES_MAX`] the writer therefore moves the short rest itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rusqlite::Connection;
use rusqlite::hooks::Wal;

use super::file::leave_log;
use super::{Result, connect_to_write};
use crate::limits;

/// Moves the log into the file, on a thread of its own.
pub struct Checkpointer {
    path: PathBuf,
    wanted: Receiver<()>,
    moved: Arc<AtomicI32>,
}

/// The writer's side, which looks at the length of the log after each commit.
#[derive(Clone)]
pub(super) struct Log {
    wanted: SyncSender<()>,
    /// Pages of the present log that the checkpointer has moved.
    moved: Arc<AtomicI32>,
}

impl Log {
    /// The writer's side and the checkpointer, which share a channel.
    pub(super) fn shared(path: PathBuf) -> (Log, Checkpointer) {
        let (want, wanted) = sync_channel(1);
        let moved = Arc::new(AtomicI32::new(0));
        (
            Log {
                wanted: want,
                moved: moved.clone(),
            },
            Checkpointer {
                path,
                wanted,
                moved,
            },
        )
    }

    /// Makes `connection` look at the log after each of its commits.
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
        let wanted = Wanted::of(pages, self.moved.load(Ordering::Relaxed));
        if wanted.round {
            let _ = self.wanted.try_send(());
        }
        if wanted.rest {
            // The commit is on disk already. If moving the log fails, the next commit tries again.
            if let Err(error) = wal.checkpoint() {
                tracing::debug!(%error, "the write-ahead log could not be moved by the writer");
            }
        }
    }
}

/// The checkpoints that a log needs.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// The checkpointer should run.
    round: bool,
    /// The writer moves what is left, so that the log begins anew.
    rest: bool,
}

impl Wanted {
    /// For a log of `pages`, of which the checkpointer had `moved` so many when it last looked.
    fn of(pages: i32, moved: i32) -> Wanted {
        // Fewer pages than were moved: the log has begun anew.
        let left = if pages < moved { pages } else { pages - moved };
        let long = pages >= limits::LOG_PAGES_MAX;
        Wanted {
            round: long || left >= limits::CHECKPOINT_PAGES,
            rest: (long && left < limits::LOG_REST_PAGES) || pages >= 2 * limits::LOG_PAGES_MAX,
        }
    }
}

impl Checkpointer {
    /// Runs until the writer is dropped.
    pub fn run(self) {
        let mut connection = None;
        while self.wanted.recv().is_ok() {
            let pass = match connection.take() {
                Some(connection) => Ok(connection),
                // The log is the writer's: this connection never removes it.
                None => connect_to_write(&self.path).and_then(|connection| {
                    leave_log(&connection)?;
                    Ok(connection)
                }),
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
        let moved = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            row.get::<_, i32>(2)
        })?;
        self.moved.store(moved.max(0), Ordering::Relaxed);
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CHECKPOINT_PAGES as ROUND, LOG_PAGES_MAX as MOST, LOG_REST_PAGES as REST};

    const NOTHING: Wanted = Wanted {
        round: false,
        rest: false,
    };
    const ROUND_ONLY: Wanted = Wanted {
        round: true,
        rest: false,
    };
    const BOTH: Wanted = Wanted {
        round: true,
        rest: true,
    };

    #[test]
    fn the_checkpointer_is_called_for_a_round_s_worth_of_pages() {
        assert_eq!(Wanted::of(ROUND - 1, 0), NOTHING);
        assert_eq!(Wanted::of(ROUND, 0), ROUND_ONLY);
        assert_eq!(Wanted::of(3 * ROUND - 1, 2 * ROUND), NOTHING);
        assert_eq!(Wanted::of(3 * ROUND, 2 * ROUND), ROUND_ONLY);
        assert_eq!(
            Wanted::of(MOST - 1, MOST - 1),
            NOTHING,
            "all of it is moved, and there is room for more"
        );
    }

    #[test]
    fn a_log_that_has_begun_anew_is_not_taken_for_moved() {
        assert_eq!(Wanted::of(ROUND - 1, ROUND), NOTHING);
        assert_eq!(Wanted::of(ROUND, MOST), ROUND_ONLY);
    }

    #[test]
    fn the_writer_moves_a_short_rest_of_a_long_log_and_whatever_there_is_of_one_twice_as_long() {
        assert_eq!(Wanted::of(MOST, MOST - REST), ROUND_ONLY);
        assert_eq!(Wanted::of(MOST, MOST - REST + 1), BOTH);
        assert_eq!(Wanted::of(MOST, MOST), BOTH);
        assert_eq!(Wanted::of(2 * MOST - 1, 0), ROUND_ONLY);
        assert_eq!(Wanted::of(2 * MOST, 0), BOTH);
    }
}
