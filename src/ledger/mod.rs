//! The ledger: one SQLite file. The only folder with SQL in it, and all of it synchronous.
//!
//! There is one [`Writer`], neither `Clone` nor shared, and any number of read-only [`Reader`]s.
//! `synchronous=FULL` and WAL are set and then asked back at every start, because a build or a
//! pragma that silently says otherwise would turn every 200 we give into a lie.

mod check;
mod consumers;
mod damage;
mod log;
mod losses;
mod records;
mod reports;
mod runs;
mod trimming;
mod upkeep;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::limits;
use crate::model::At;
use crate::model::record::json as to_json;
use damage::Damages;

pub use check::{Examination, Finding, check, check_with_all_reports, examine};
pub use consumers::{Consumer, Moved, ParkedRow, Parking};
pub use damage::DamagedRow;
pub use log::Checkpointer;
pub use losses::{LOSS_SPANS, Loss, Losses};
pub use records::{FeedBounds, Filter, StoredRecord};
pub use reports::{DeliveryQuery, DeliveryRow, TimelineRow, UnverifiedLimits};
pub use runs::{Due, RunPage, RunQuery, RunRow, SecretUse, SourceCounts};
pub use trimming::{TrimLimits, Trimmed};
pub use upkeep::{Removable, copy};

/// The schema version this program writes. `PRAGMA user_version` of the file.
pub const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = include_str!("../../schema.sql");
/// `MIGRATIONS[n]` leads from version n+1 to n+2.
const MIGRATIONS: &[&str] = &[];
/// "settled" in the file's header, so that another program's database is not taken for ours.
const APPLICATION_ID: i64 = 0x5e77_1ed0;

#[expect(clippy::cast_possible_wrap, reason = "a handful")]
const _: () = assert!(SCHEMA_VERSION == MIGRATIONS.len() as i64 + 1);

/// What can go wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The directory or file could not be made or opened.
    #[error(
        "cannot open the database {path}: {source}; the directory must exist and be writable for this user"
    )]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not one of ours.
    #[error("{0} is not a database of settled; name another [store] path")]
    Foreign(PathBuf),
    /// A newer settled wrote it.
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
    /// A setting on which a promise rests did not take.
    #[error(
        "SQLite answers {found:?} for {pragma} where {wanted:?} is needed; this build or file system cannot keep settled's promises"
    )]
    Pragma {
        /// Which setting.
        pragma: &'static str,
        /// What it says.
        found: String,
        /// What it must say.
        wanted: &'static str,
    },
    /// Another process has the file.
    #[error("another settled is using {0}")]
    InUse(PathBuf),
    /// A row says something that this program never writes.
    #[error("the database holds something unreadable ({0}); run `settled check`")]
    Unreadable(String),
    /// Reading or deciding panicked.
    #[error("processing a report panicked; please report this")]
    Panicked,
    /// Anything SQLite says.
    #[error("the database failed")]
    Sqlite(#[from] rusqlite::Error),
}

impl LedgerError {
    /// Whether the file, the disk or the system failed, and not what was to be written.
    pub fn blames_the_disk(&self) -> bool {
        use rusqlite::ErrorCode::{ConstraintViolation, ParameterOutOfRange, TooBig, TypeMismatch};
        match self {
            LedgerError::Panicked | LedgerError::Unreadable(_) => false,
            LedgerError::Sqlite(error) => !matches!(
                error.sqlite_error_code(),
                None | Some(ConstraintViolation | ParameterOutOfRange | TooBig | TypeMismatch)
            ),
            _ => true,
        }
    }
}

/// Short for results in here.
pub type Result<T, E = LedgerError> = std::result::Result<T, E>;

/// The one connection that writes.
pub struct Writer {
    connection: Connection,
    path: PathBuf,
    epoch: String,
    /// Its last transaction failed: it must be replaced before the next.
    suspect: bool,
    /// Where a [`Checkpointer`] moves the log; else SQLite does, on this connection.
    log: Option<log::Log>,
    _lock: File,
}

/// A write transaction. Everything that changes the ledger is a method of this.
pub struct Transaction<'a> {
    tx: rusqlite::Transaction<'a>,
    totals: Totals,
}

/// What a transaction adds up in memory and writes down once, at its end.
#[derive(Clone, Default)]
struct Totals {
    /// As they will be; `None`: not looked at yet.
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
    /// Opens the file at `path`, making it if need be, and brings it to [`SCHEMA_VERSION`].
    pub fn open(path: &Path, now: At) -> Result<Writer> {
        let at = |source| LedgerError::Open {
            path: path.to_owned(),
            source,
        };
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(at)?;
        let lock = lock(path)?;
        let new = !path.exists();
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(path)
            .map_err(at)?;
        if new {
            // The name of the file must survive a power cut as well as its content.
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(at)?;
        }
        let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(|error| foreign(error, path))?;
        let version = version(&connection, path).map_err(|error| foreign(error, path))?;
        if version == 0 {
            // Both take effect in an empty file only. Incremental: free pages can be given back bit by bit.
            connection
                .execute_batch("PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL;")?;
        }
        set_up(&connection)?;
        migrate(&mut connection, path, version, now, MIGRATIONS)?;
        let epoch = epoch(&connection, path)?;
        Ok(Writer {
            connection,
            path: path.to_owned(),
            epoch,
            suspect: false,
            log: None,
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

    /// Runs `work` in one transaction. It is on disk when this returns `Ok`; if it returns an
    /// error nothing happened, and the connection is replaced, by [`Writer::reopen`] or before the
    /// next transaction: after a failed fsync its idea of the file may be wrong.
    pub fn transaction<T>(
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
        transaction.tx.commit()?;
        self.suspect = false;
        Ok(value)
    }

    /// Has the log moved by somebody else from now on, who must be given a thread.
    pub fn checkpointer(&mut self) -> Result<Checkpointer> {
        let (log, checkpointer) = log::Log::shared(self.path.clone());
        log.watch(&mut self.connection)?;
        self.log = Some(log);
        Ok(checkpointer)
    }

    /// Moves everything out of the write-ahead log, so that the file alone is the whole ledger:
    /// people copy it after they have stopped the daemon. Best effort; the log is as good, and a
    /// reader that stays (replication beside us holds one always) must not hold up the stop.
    pub fn checkpoint_on_close(&self) {
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

    /// The rows of the sources of these names and providers, made if need be.
    pub fn sources<'n>(
        &mut self,
        named: impl Iterator<Item = (&'n str, &'n str)>,
        now: At,
    ) -> Result<BTreeMap<String, SourceRow>> {
        let mut upsert = self.tx.prepare_cached(
            "INSERT INTO sources (name, provider, since) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET provider = excluded.provider RETURNING id, since",
        )?;
        let mut row = |(name, provider)| {
            upsert.query_row((name, provider, now.0), |row| {
                Ok(SourceRow {
                    id: row.get(0)?,
                    since: At(row.get(1)?),
                })
            })
        };
        named
            .map(|named| Ok((named.0.to_owned(), row(named)?)))
            .collect()
    }
}

/// A source in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRow {
    /// Its row id.
    pub id: i64,
    /// When it was first configured.
    pub since: At,
}

/// What a group of reports shows about the traffic of one source. `None`: nothing new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Last authentic delivery.
    pub webhook_at: Option<At>,
    /// Last delivery that was not.
    pub unverified_at: Option<At>,
    /// Last answer to a question of ours.
    pub answer_at: Option<At>,
    /// Secrets that verified a delivery, with how many.
    pub secrets: BTreeMap<String, i64>,
}

impl Transaction<'_> {
    /// Notes when a source was last heard from.
    pub fn note_traffic(&mut self, source: i64, traffic: &Traffic) -> Result<()> {
        let mut update = self.tx.prepare_cached(
            "UPDATE sources SET webhook_at = coalesce(?2, webhook_at), unverified_at = coalesce(?3, unverified_at),
                answer_at = coalesce(?4, answer_at) WHERE id = ?1",
        )?;
        let at = |at: Option<At>| at.map(|at| at.0);
        update.execute((
            source,
            at(traffic.webhook_at),
            at(traffic.unverified_at),
            at(traffic.answer_at),
        ))?;
        let mut used = self.tx.prepare_cached(
            "INSERT INTO secret_uses (source, label, last_at, uses) VALUES (?1, ?2, ?3, ?4) ON CONFLICT
             DO UPDATE SET last_at = max(last_at, excluded.last_at), uses = uses + excluded.uses",
        )?;
        for (label, uses) in &traffic.secrets {
            used.execute((source, label, at(traffic.webhook_at), uses))?;
        }
        Ok(())
    }
}

/// Opens a connection with the settings every connection has.
fn connect(path: &Path, mode: OpenFlags) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(64);
    // Without this, statements that a partial index might serve are compiled anew for every value
    // that is bound to them: two fifths of the time that the reconciler and the poller spend here.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.execute_batch(
        "PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON; PRAGMA cache_size = -8192;",
    )?;
    Ok(connection)
}

/// Opens a connection that may write to a ledger that is there. Writes nothing itself: under load it
/// would wait for its turn for seconds.
fn connect_to_write(path: &Path) -> Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    set_up(&connection)?;
    Ok(connection)
}

/// What the writing connection needs beside that, asked back.
fn set_up(connection: &Connection) -> Result<()> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    expect("journal_mode", mode, "wal")?;
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 134217728;")?;
    let level: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
    expect("synchronous", level.to_string(), "2")
}

fn expect(pragma: &'static str, found: String, wanted: &'static str) -> Result<()> {
    if found == wanted {
        Ok(())
    } else {
        Err(LedgerError::Pragma {
            pragma,
            found,
            wanted,
        })
    }
}

/// Takes the lock that keeps a second daemon out, for as long as the file lives.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let at = |source| LedgerError::Open {
        path: path.to_owned(),
        source,
    };
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(name)
        .map_err(at)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(LedgerError::InUse(path.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(at(source)),
    }
}

/// The schema version of a file that is ours or empty. Only looks: what is not ours stays as it is.
fn version(connection: &Connection, path: &Path) -> Result<i64> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let (version, id) = (
        number("PRAGMA user_version")?,
        number("PRAGMA application_id")?,
    );
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    if id != APPLICATION_ID && (id != 0 || version != 0 || tables != 0) {
        return Err(LedgerError::Foreign(path.to_owned()));
    }
    if version > SCHEMA_VERSION {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            found: version,
        });
    }
    Ok(version)
}

/// A file that is no database at all is not ours either.
fn foreign(error: LedgerError, path: &Path) -> LedgerError {
    match error {
        LedgerError::Sqlite(error)
            if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) =>
        {
            LedgerError::Foreign(path.to_owned())
        }
        error => error,
    }
}

/// Makes an empty file one of [`SCHEMA_VERSION`]; takes an older one there by `steps`, each in a
/// transaction of its own.
fn migrate(
    connection: &mut Connection,
    path: &Path,
    version: i64,
    now: At,
    steps: &[&str],
) -> Result<()> {
    let Ok(done) = usize::try_from(version - 1) else {
        return create(connection, path, now)
            .map_err(|source| LedgerError::Migration { from: 0, source });
    };
    for (from, sql) in (1..).zip(steps).skip(done) {
        step(connection, sql, from + 1)
            .map_err(|source| LedgerError::Migration { from, source })?;
    }
    Ok(())
}

fn create(connection: &mut Connection, path: &Path, now: At) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(SCHEMA)?;
    tx.execute(
        "INSERT INTO meta (id, epoch, identity, created_at) VALUES (1, lower(hex(randomblob(4))), ?1, ?2)",
        (identity(path), now.0),
    )?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    tx.commit()
}

fn step(connection: &mut Connection, sql: &str, to: i64) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(sql)?;
    tx.pragma_update(None, "user_version", to)?;
    tx.commit()
}

/// The epoch of this file. A copy (a restored backup) is another file than the one the epoch was
/// made for, and gets a new one: its next numbers may already name other records elsewhere.
fn epoch(connection: &Connection, path: &Path) -> Result<String> {
    let here = identity(path);
    connection.execute(
        "UPDATE meta SET epoch = lower(hex(randomblob(4))), identity = ?1 WHERE identity <> ?1",
        [&here],
    )?;
    Ok(connection.query_row("SELECT epoch FROM meta", [], |row| row.get(0))?)
}

/// What tells this file from a copy of it. Not the device, whose number may change at a boot; and
/// not the inode alone, whose number is given to the next file when this one is removed.
fn identity(path: &Path) -> String {
    let Ok(meta) = fs::metadata(path) else {
        return "unknown".to_owned();
    };
    let born = meta
        .created()
        .ok()
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    match born {
        Some(born) => format!("{}:{}", meta.ino(), born.as_nanos()),
        None => format!("{}:{}", meta.dev(), meta.ino()),
    }
}

/// BatchWriter a stored word back into a value; a word nobody writes is a damaged row.
fn stored<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| LedgerError::Unreadable(what.to_owned()))
}

/// BatchWriter stored JSON back into a value.
fn from_json<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| LedgerError::Unreadable(format!("{what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_writes_through_to_the_disk_and_so_does_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(&folder.path().join("settled.db"), At(0)).unwrap();
        let pragma = |writer: &Writer, name: &str| -> String {
            let value = |row: &rusqlite::Row<'_>| row.get_ref(0).map(|value| format!("{value:?}"));
            writer
                .connection
                .query_row(&format!("PRAGMA {name}"), [], value)
                .unwrap()
        };
        let full = pragma(&writer, "synchronous");
        assert_eq!(full, "Integer(2)");
        assert!(
            expect("synchronous", "1".to_owned(), "2")
                .unwrap_err()
                .to_string()
                .contains("cannot keep")
        );
        writer.reopen().unwrap();
        assert_eq!(pragma(&writer, "synchronous"), full);
        assert_eq!(pragma(&writer, "foreign_keys"), "Integer(1)");
    }

    /// The checkpointer's connection is opened when there is something to move, and that is under load.
    #[test]
    fn a_second_connection_is_opened_while_the_writer_is_at_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settled.db");
        let mut writer = Writer::open(&path, At(0)).unwrap();
        let second = writer.transaction(|tx| {
            tx.sources([("a", "skyvern")].into_iter(), At(0))?;
            connect_to_write(&path)
        });
        let vacuum = |connection: &Connection| {
            connection
                .query_row("PRAGMA auto_vacuum", [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        assert_eq!(
            vacuum(&second.unwrap()),
            2,
            "a new file is one that gives pages back"
        );
    }

    #[test]
    fn a_step_that_fails_stops_the_start_and_leaves_what_was_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settled.db");
        let mut connection = Writer::open(&path, At(0)).unwrap().connection;
        let number = |connection: &Connection, sql: &str| {
            connection.query_row(sql, [], |row| row.get::<_, i64>(0))
        };
        let steps = [
            "ALTER TABLE sources ADD COLUMN one INTEGER NOT NULL DEFAULT 7;",
            "CREATE TABLE two (x); INSERT INTO two VALUES (1); INSERT INTO nowhere VALUES (1);",
            "CREATE TABLE three (x);",
        ];
        let failed = migrate(&mut connection, &path, 1, At(0), &steps).unwrap_err();
        assert!(
            matches!(failed, LedgerError::Migration { from: 2, .. }),
            "{failed:?}"
        );
        assert!(
            failed
                .to_string()
                .contains("could not be upgraded from schema version 2; it is unchanged")
        );
        let version = "PRAGMA user_version";
        assert_eq!(number(&connection, version), Ok(2), "the first step stays");
        assert_eq!(
            number(
                &connection,
                "SELECT count(*) FROM sqlite_schema WHERE name IN ('two', 'three')"
            ),
            Ok(0)
        );
        // Mended, it goes on from there.
        migrate(
            &mut connection,
            &path,
            2,
            At(0),
            &[steps[0], "CREATE TABLE two (x);", steps[2]],
        )
        .unwrap();
        assert_eq!(number(&connection, version), Ok(4));
        assert_eq!(
            number(
                &connection,
                "SELECT count(*) FROM sqlite_schema WHERE name IN ('two', 'three')"
            ),
            Ok(2)
        );
        drop(connection);
        assert!(matches!(
            Writer::open(&path, At(0)),
            Err(LedgerError::Newer { found: 4, .. })
        ));
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
            .transaction(|tx| tx.sources([("a", "skyvern")].into_iter(), At(0)))
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
