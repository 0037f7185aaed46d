//! The file: how it is opened, locked, created and upgraded, and what every connection is set to.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::{LedgerError, Result};
use crate::model::At;

/// The schema version this program writes. `PRAGMA user_version` of the file.
pub const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = include_str!("../../../schema.sql");
/// `MIGRATIONS[n]` leads from version n+1 to n+2. See `src/ledger/migrations/README.md`.
const MIGRATIONS: &[&str] = &[];
/// "settled" in the file's header, so that another program's database is not taken for ours.
const APPLICATION_ID: i64 = 0x5e77_1ed0;

#[expect(clippy::cast_possible_wrap, reason = "a handful")]
const _: () = assert!(SCHEMA_VERSION == MIGRATIONS.len() as i64 + 1);

/// Opens the file at `path` for writing, creating it if need be, and brings it to
/// [`SCHEMA_VERSION`]. The lock keeps a second daemon out for as long as it lives.
pub(super) fn open(path: &Path, now: At) -> Result<(Connection, File)> {
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
    let mut connection =
        connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|error| foreign(error, path))?;
    let version = version(&connection, path).map_err(|error| foreign(error, path))?;
    if version == 0 {
        // Both take effect in an empty file only. Incremental: `Shrink` gives free pages back.
        connection.execute_batch("PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL;")?;
    }
    set_up(&connection)?;
    migrate(&mut connection, path, version, now, MIGRATIONS)?;
    Ok((connection, lock))
}

/// The file that a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn at(path: &Path) -> Option<FileId> {
        let meta = fs::metadata(path).ok()?;
        Some(FileId {
            device: meta.dev(),
            inode: meta.ino(),
        })
    }
}

/// The files that the writer writes into: the database, and its log once there is one.
pub(super) struct Place {
    database: PathBuf,
    log: PathBuf,
    database_id: Option<FileId>,
    log_id: Option<FileId>,
}

impl Place {
    /// The files that `path` leads to now.
    pub(super) fn of(path: &Path) -> Place {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Place {
            database: path.to_owned(),
            log: log.into(),
            database_id: FileId::at(path),
            log_id: None,
        }
    }

    /// Invariant 12: fails once the path leads to another file than the one that was opened. What is
    /// written after that would be lost with the file.
    pub(super) fn check(&mut self) -> Result<()> {
        let log = FileId::at(&self.log);
        let same = self.database_id.is_some() && FileId::at(&self.database) == self.database_id;
        // SQLite makes the log with the first commit and keeps it as long as a connection is open.
        if !same || self.log_id.is_some() && log != self.log_id {
            return Err(LedgerError::Replaced(self.database.clone()));
        }
        self.log_id = log;
        Ok(())
    }
}

/// Has a connection leave the log alone when it is closed. SQLite would remove the log by its path.
pub(super) fn leave_log(connection: &Connection) -> Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(())
}

/// Opens a connection with the settings every connection has.
pub(super) fn connect(path: &Path, mode: OpenFlags) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(64);
    // Without this, SQLite compiles a statement that a partial index might serve anew for every
    // value bound to it, which took two fifths of the writer's and the poller's time in here.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.execute_batch(
        "PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON; PRAGMA cache_size = -8192;",
    )?;
    Ok(connection)
}

/// Opens a connection that may write to an existing ledger. It writes nothing itself: under load it
/// would wait seconds for the write lock.
pub(super) fn connect_to_write(path: &Path) -> Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    set_up(&connection)?;
    Ok(connection)
}

/// Sets what a writing connection needs beside that, and reads it back.
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
pub(super) fn version(connection: &Connection, path: &Path) -> Result<i64> {
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
pub(super) fn foreign(error: LedgerError, path: &Path) -> LedgerError {
    match error {
        LedgerError::Sqlite(error)
            if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) =>
        {
            LedgerError::Foreign(path.to_owned())
        }
        error => error,
    }
}

/// Takes a file of this version, 0 for an empty one, through the `steps` that it has not taken, each
/// in a transaction of its own.
fn migrate(
    connection: &mut Connection,
    path: &Path,
    version: i64,
    now: At,
    steps: &[&str],
) -> Result<()> {
    if version == 0 {
        create(connection, path, now)
            .map_err(|source| LedgerError::Migration { from: 0, source })?;
    }
    // An empty file becomes one of version 1 and then takes the same steps as an old one.
    let done = usize::try_from(version - 1).unwrap_or(0);
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
    tx.pragma_update(None, "user_version", 1)?;
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
pub(super) fn epoch(connection: &Connection, path: &Path) -> Result<String> {
    let here = identity(path);
    connection.execute(
        "UPDATE meta SET epoch = lower(hex(randomblob(4))), identity = ?1 WHERE identity <> ?1",
        [&here],
    )?;
    Ok(connection.query_row("SELECT epoch FROM meta", [], |row| row.get(0))?)
}

/// Tells this file from a copy of it: inode and birth time. Not the device, whose number may change at
/// a boot; and not the inode alone, whose number the next file gets when this one is removed.
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

#[cfg(test)]
mod tests {
    use super::super::Writer;
    use super::super::tests::one_source;
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
            tx.register_sources(&one_source())?;
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
}
