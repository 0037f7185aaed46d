//! The ledger in one SQLite file. All of it is synchronous.
//!
//! There is one [`Writer`], neither `Clone` nor shared, and any number of read-only [`Reader`]s.
//! `synchronous=FULL` and WAL are set and then read back at every start: a build or a pragma that
//! silently does otherwise would break the promise of every 200 that settled gives.

mod apply;
mod check;
mod consumers;
mod damage;
mod file;
mod log;
mod losses;
mod records;
mod reports;
mod runs;
mod sources;
mod trimming;
mod upkeep;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::commands::{AnyCommand, AnyReply, Command};
use super::rows::DamagedRow;
use super::{LedgerError, Result};
use crate::limits;
use crate::model::At;
use crate::model::record::json as to_json;
use crate::report::Report;
use damage::Damages;
use file::{connect, connect_to_write, foreign, version};

pub use apply::{Commit, Committed, Missing};
pub use check::{Examination, Finding, check, check_with_all_reports, examine};
pub use file::SCHEMA_VERSION;
pub use log::Checkpointer;
pub use upkeep::copy;

/// The one connection that writes.
pub struct Writer {
    connection: Connection,
    path: PathBuf,
    epoch: String,
    /// The last transaction failed: the connection must be replaced before the next.
    suspect: bool,
    /// Present if a [`Checkpointer`] moves the log; otherwise SQLite does, on this connection.
    log: Option<log::Log>,
    place: file::Place,
    _lock: File,
}

/// A write transaction. It never leaves the ledger: others send commands and change sets.
struct Transaction<'a> {
    tx: rusqlite::Transaction<'a>,
    totals: Totals,
}

/// Numbers that a transaction adds up in memory and writes once, at its end.
#[derive(Clone, Default)]
struct Totals {
    /// The marks after the transaction; `None` until they are read.
    marks: Option<Marks>,
    /// By source and minute.
    settlements: BTreeMap<(i64, i64), losses::Settlements>,
    /// By source.
    runs: BTreeMap<i64, runs::RunCounts>,
}

/// The numbers in `meta` that move with nearly every transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Marks {
    reported: i64,
    processed: i64,
    recorded: i64,
    fed_bytes: i64,
}

/// Read-only access; cheap to clone.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Readers>,
}

#[derive(Default)]
struct Readers {
    path: PathBuf,
    epoch: String,
    idle: Mutex<Vec<Connection>>,
    damages: Damages,
}

/// A read-only connection at work.
pub struct View<'a> {
    connection: &'a Connection,
    epoch: &'a str,
    damages: &'a Damages,
}

impl Writer {
    /// Opens the file at `path`, creating it if need be, and brings it to [`SCHEMA_VERSION`].
    pub fn open(path: &Path, now: At) -> Result<Writer> {
        let (connection, lock) = file::open(path, now)?;
        let epoch = file::epoch(&connection, path)?;
        Ok(Writer {
            connection,
            path: path.to_owned(),
            epoch,
            suspect: false,
            log: None,
            place: file::Place::of(path),
            _lock: lock,
        })
    }

    /// First half of every cursor.
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Readers of the same file.
    pub fn reader(&self) -> Reader {
        let (path, epoch) = (self.path.clone(), self.epoch.clone());
        Reader {
            shared: Arc::new(Readers {
                path,
                epoch,
                ..Readers::default()
            }),
        }
    }

    /// Executes one command in a transaction of its own. The change is on disk when this returns
    /// `Ok`; on an error nothing happened.
    pub fn execute<C: Command>(&mut self, command: C) -> Result<C::Reply> {
        let command = command.into();
        let reply = self.transaction(|tx| tx.execute(&command))?;
        C::reply(reply).ok_or_else(|| LedgerError::Unreadable("a reply".to_owned()))
    }

    /// Looks something up on this connection, which sees what it has just committed.
    fn look<T>(&mut self, look: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        if self.suspect {
            self.reopen()?;
        }
        let found = look(&self.connection);
        // A damaged row says nothing of the connection.
        self.suspect = found.as_ref().is_err_and(LedgerError::blames_the_disk);
        found
    }

    /// Stores reports in a transaction of their own and gives their ids.
    pub fn store(&mut self, reports: &[Report]) -> Result<Vec<i64>> {
        self.transaction(|tx| reports.iter().map(|report| tx.add_report(report)).collect())
    }

    /// Runs `work` in one transaction. It is on disk when this returns `Ok`; if it returns an
    /// error nothing happened, and the connection is replaced, by [`Writer::reopen`] or before the
    /// next transaction: after a failed fsync its idea of the file may be wrong.
    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        if self.suspect {
            self.reopen()?;
        }
        self.suspect = true;
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut transaction = Transaction {
            tx,
            totals: Totals::default(),
        };
        let value = work(&mut transaction)?;
        transaction.write_totals()?;
        if let Err(replaced) = self.place.check() {
            drop(transaction);
            // The file at the path now is not ours, nor is the log beside it.
            file::leave_log(&self.connection)?;
            return Err(replaced);
        }
        transaction.tx.commit()?;
        self.suspect = false;
        Ok(value)
    }

    /// Leaves checkpoints to the returned [`Checkpointer`] from now on. Give it a thread of its own.
    pub fn checkpointer(&mut self) -> Result<Checkpointer> {
        let (log, checkpointer) = log::Log::shared(self.path.clone());
        log.watch(&mut self.connection)?;
        self.log = Some(log);
        Ok(checkpointer)
    }

    /// Moves everything out of the write-ahead log, so that the file alone is the whole ledger:
    /// people copy it after they have stopped the daemon. Best effort; the log is as good, and a
    /// reader that stays (replication beside us holds one always) must not hold up the stop.
    pub fn checkpoint_on_close(&mut self) {
        if self.place.check().is_err() {
            return;
        }
        let _ = self
            .connection
            .busy_timeout(limits::CLOSE_CHECKPOINT_TIMEOUT);
        let begin = Instant::now();
        // The checkpointer may be at it just now, for which SQLite does not wait.
        while begin.elapsed() < limits::CLOSE_CHECKPOINT_TIMEOUT {
            match self
                .connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            {
                Ok(false) => return,
                Ok(true) => std::thread::sleep(limits::CLOSE_CHECKPOINT_PAUSE),
                Err(error) => {
                    return tracing::debug!(%error, "the write-ahead log is left as it is");
                }
            }
        }
    }

    /// Replaces the connection by a fresh one.
    pub fn reopen(&mut self) -> Result<()> {
        self.place.check()?;
        let mut connection = connect_to_write(&self.path)?;
        if let Some(log) = &self.log {
            log.watch(&mut connection)?;
        }
        self.connection = connection;
        self.suspect = false;
        Ok(())
    }
}

impl Reader {
    /// Readers of a ledger that another process may be writing. A file that is not there is not made.
    pub fn open(path: &Path) -> Result<Reader> {
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|error| foreign(error, path))?;
        if version(&connection, path).map_err(|error| foreign(error, path))? == 0 {
            return Err(LedgerError::Foreign(path.to_owned()));
        }
        let epoch = connection.query_row("SELECT epoch FROM meta", [], |row| row.get(0))?;
        let (path, idle) = (path.to_owned(), Mutex::new(vec![connection]));
        Ok(Reader {
            shared: Arc::new(Readers {
                path,
                epoch,
                idle,
                ..Readers::default()
            }),
        })
    }

    /// First half of every cursor.
    pub fn epoch(&self) -> &str {
        &self.shared.epoch
    }

    /// The file that is read.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The damaged rows that lookups have come upon.
    pub fn damaged(&self) -> Vec<DamagedRow> {
        self.shared.damages.met()
    }

    /// Runs `look` on a read-only connection. Blocks; never call it while something waits that
    /// must not. No snapshot outlives the call.
    pub fn read<T>(&self, look: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        let idle = self
            .shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connect(&self.shared.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let Readers { epoch, damages, .. } = &*self.shared;
        let value = look(&View {
            connection: &connection,
            epoch,
            damages,
        })?;
        // A connection that failed is not put back.
        self.shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
        Ok(value)
    }
}

impl Transaction<'_> {
    /// Executes a command.
    fn execute(&mut self, command: &AnyCommand) -> Result<AnyReply> {
        Ok(match command {
            AnyCommand::Probe(_) => AnyReply::Probe(()),
            AnyCommand::CreateConsumer(command) => {
                AnyReply::CreateConsumer(self.create_consumer(command)?)
            }
            AnyCommand::OpenConsumer(command) => {
                AnyReply::OpenConsumer(self.open_consumer(command)?)
            }
            AnyCommand::Ack(command) => AnyReply::Ack(self.ack(command)?),
            AnyCommand::Seek(command) => AnyReply::Seek(self.seek(command)?),
            AnyCommand::DeleteConsumer(command) => {
                AnyReply::DeleteConsumer(self.delete_consumer(command)?)
            }
            AnyCommand::Park(command) => AnyReply::Park(self.park(command)?),
            AnyCommand::RetryParked(command) => AnyReply::RetryParked(self.retry_parked(command)?),
            AnyCommand::DropParked(command) => AnyReply::DropParked(self.drop_parked(command)?),
            AnyCommand::TrimRecords(command) => AnyReply::TrimRecords(self.trim_records(command)?),
            AnyCommand::TrimUnverified(command) => {
                AnyReply::TrimUnverified(self.trim_unverified(command)?)
            }
            AnyCommand::RemoveReports(command) => {
                AnyReply::RemoveReports(self.remove_reports(command)?)
            }
            AnyCommand::DropBodies(command) => AnyReply::DropBodies(self.drop_bodies(command)?),
            AnyCommand::ForgetSettlements(command) => {
                AnyReply::ForgetSettlements(self.forget_settlements(*command)?)
            }
            AnyCommand::Shrink(command) => AnyReply::Shrink(self.shrink(*command)?),
            AnyCommand::RegisterSources(command) => {
                AnyReply::RegisterSources(self.register_sources(command)?)
            }
            AnyCommand::ClampPolls(command) => AnyReply::ClampPolls(self.clamp_polls(command)?),
        })
    }

    /// Runs `work` so that its failure undoes only itself.
    pub fn apart<T>(&mut self, work: impl FnOnce(&mut Transaction<'_>) -> Result<T>) -> Result<T> {
        self.tx.execute_batch("SAVEPOINT apart")?;
        let before = self.totals.clone();
        let result = work(self);
        if result.is_ok() {
            self.tx.execute_batch("RELEASE apart")?;
        } else {
            self.totals = before;
            self.tx.execute_batch("ROLLBACK TO apart; RELEASE apart")?;
        }
        result
    }

    fn marks(&mut self) -> Result<&mut Marks> {
        let marks = match self.totals.marks.take() {
            Some(marks) => marks,
            None => self.stored_marks()?,
        };
        Ok(self.totals.marks.insert(marks))
    }

    fn stored_marks(&self) -> Result<Marks> {
        let mut select = self
            .tx
            .prepare_cached("SELECT reported, processed, recorded, fed_bytes FROM meta")?;
        let marks = select.query_row([], |row| {
            Ok(Marks {
                reported: row.get(0)?,
                processed: row.get(1)?,
                recorded: row.get(2)?,
                fed_bytes: row.get(3)?,
            })
        })?;
        Ok(marks)
    }

    fn write_totals(&mut self) -> Result<()> {
        if let Some(Marks {
            reported,
            processed,
            recorded,
            fed_bytes,
        }) = self.totals.marks
        {
            self.tx
                .prepare_cached(
                    "UPDATE meta SET reported = ?1, processed = ?2, recorded = ?3, fed_bytes = ?4",
                )?
                .execute((reported, processed, recorded, fed_bytes))?;
        }
        self.write_run_counts()?;
        self.write_settlements()
    }
}

/// Turns a stored word back into a value; a word that this program never writes is a damaged row.
fn stored<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| LedgerError::Unreadable(what.to_owned()))
}

/// Turns stored JSON back into a value; what cannot be read is a damaged row.
fn from_json<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| LedgerError::Unreadable(format!("{what}: {error}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::ledger::commands::RegisterSources;
    use crate::model::RunId;
    use crate::report::Meta;

    pub fn one_source() -> RegisterSources {
        RegisterSources {
            sources: vec![("a".to_owned(), "skyvern".to_owned())],
            now: At(0),
        }
    }

    #[test]
    fn numbers_that_a_failure_took_back_are_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(&folder.path().join("settled.db"), At(0)).unwrap();
        writer.execute(one_source()).unwrap();
        let run_id = RunId::new("r").unwrap();
        let report = Report {
            source: 1,
            at: At(0),
            meta: Meta::Clock { run_id },
            body: Vec::new(),
        };
        let last = writer.transaction(|tx| {
            let first = tx.add_report(&report)?;
            let failed = tx.apart(|tx| {
                tx.add_report(&report)?;
                tx.marks()?.processed = 99;
                Err::<(), _>(LedgerError::Unreadable("on purpose".to_owned()))
            });
            assert!(failed.is_err());
            assert_eq!((tx.marks()?.reported, tx.marks()?.processed), (first, 0));
            tx.add_report(&report)
        });
        assert_eq!(last.unwrap(), 2);
    }

    #[test]
    fn a_reader_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let writer = Writer::open(&folder.path().join("settled.db"), At(0)).unwrap();
        let written = writer.reader().read(|view| {
            Ok(view
                .connection
                .execute("UPDATE meta SET processed = 9", [])?)
        });
        assert!(written.is_err());
    }

    #[test]
    fn a_reader_that_stays_does_not_hold_up_the_stop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settled.db");
        let mut writer = Writer::open(&path, At(0)).unwrap();
        let reader = Connection::open(&path).unwrap();
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM runs")
            .unwrap();
        writer
            .transaction(|tx| tx.register_sources(&one_source()))
            .unwrap();
        let begun = std::time::Instant::now();
        writer.checkpoint_on_close();
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
    }

    #[test]
    fn a_connection_that_failed_is_not_used_again_even_if_it_cannot_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, away) = (
            folder.path().join("settled.db"),
            folder.path().join("away.db"),
        );
        let mut writer = Writer::open(&path, At(0)).unwrap();
        let wrong =
            writer.transaction(|tx| Ok(tx.tx.execute_batch("INSERT INTO nowhere VALUES (1)")?));
        assert!(wrong.is_err());
        fs::rename(&path, &away).unwrap();
        assert!(writer.reopen().is_err());
        assert!(
            writer.transaction(|_| Ok(())).is_err(),
            "what it believes of the file may be wrong"
        );
        fs::rename(&away, &path).unwrap();
        assert!(writer.transaction(|_| Ok(())).is_ok());
    }
}
