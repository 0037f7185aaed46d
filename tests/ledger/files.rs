//! The file: whose it is, which version, which life.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use settled::ledger::{LedgerError, Reader, SCHEMA_VERSION, Writer};

use crate::support::reconciler::{Ledger, START, bounds, signed};

fn open(path: &Path) -> Result<Writer, LedgerError> {
    Writer::open(path, START)
}

#[test]
fn a_ledger_keeps_its_epoch_when_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settled.db");
    let writer = open(&path).unwrap();
    let first = writer.epoch().to_owned();
    assert!(
        first.len() == 8 && first.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{first}"
    );
    assert_eq!(writer.reader().epoch(), first);
    drop(writer);
    assert_eq!(open(&path).unwrap().epoch(), first);
    assert_eq!(Reader::open(&path).unwrap().epoch(), first);
}

#[test]
fn several_may_look_at_a_ledger_at_once() {
    let mut ledger = Ledger::new();
    ledger.hears(signed("wr_1", "completed"));
    let reader = Reader::open(&ledger.path()).unwrap();
    let [outer, inner] = reader
        .read(|view| Ok([view.bounds()?, reader.read(|view| view.bounds())?]))
        .unwrap();
    assert_eq!(
        (outer, inner),
        (bounds(&ledger.reader), bounds(&ledger.reader))
    );
}

#[test]
fn a_copy_is_another_feed_with_the_same_runs() {
    let mut ledger = Ledger::new();
    ledger.hears(signed("wr_1", "completed"));
    let copy = ledger.folder.path().join("restored.db");
    let to = copy.display().to_string();
    ledger.sql().execute("VACUUM INTO ?1", [&to]).unwrap();
    let writer = open(&copy).unwrap();
    assert_ne!(writer.epoch(), ledger.reader.epoch());
    let found = bounds(&writer.reader());
    assert_eq!(found, bounds(&ledger.reader));
}

#[test]
fn a_raw_copy_too() {
    let mut ledger = Ledger::new();
    ledger.hears(signed("wr_1", "completed"));
    let (path, epoch) = (ledger.path(), ledger.reader.epoch().to_owned());
    drop(ledger.reconciler);
    let copy = ledger.folder.path().join("copied.db");
    fs::copy(&path, &copy).unwrap();
    let writer = open(&copy).unwrap();
    assert_ne!(writer.epoch(), epoch);
}

#[test]
fn a_second_writer_is_locked_out_until_the_first_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settled.db");
    let first = open(&path).unwrap();
    let refused = open(&path).err().unwrap();
    assert!(matches!(refused, LedgerError::InUse(_)));
    assert!(
        refused.to_string().starts_with("another settled is using "),
        "{refused}"
    );
    drop(first);
    open(&path).unwrap();
}

#[test]
fn a_newer_schema_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settled.db");
    drop(open(&path).unwrap());
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", SCHEMA_VERSION + 1)
        .unwrap();
    let refused = open(&path).err().unwrap();
    assert!(matches!(refused, LedgerError::Newer { found, .. } if found == SCHEMA_VERSION + 1));
    assert!(
        refused.to_string().contains("run the newer settled"),
        "{refused}"
    );
}

#[test]
fn another_programs_database_is_refused_and_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theirs.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
        .unwrap();
    let before = fs::read(&path).unwrap();
    assert!(matches!(
        open(&path).err().unwrap(),
        LedgerError::Foreign(_)
    ));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_database_is_ours_by_its_mark_and_an_empty_one_may_become_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.db");
    for (mark, ours) in [
        ("PRAGMA application_id = 7", false),
        ("PRAGMA user_version = 1", false),
        ("CREATE TABLE theirs (x)", false),
        ("PRAGMA page_size = 4096", true),
    ] {
        let _ = fs::remove_file(&path);
        Connection::open(&path)
            .unwrap()
            .execute_batch(mark)
            .unwrap();
        let opened = open(&path);
        assert_eq!(opened.is_ok(), ours, "{mark}: {:?}", opened.err());
    }
}

#[test]
fn a_ledger_is_private_to_its_user_and_group() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deeper/settled.db");
    let _writer = open(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o027, 0, "{mode:o}");
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    let text = "shopping list\n".repeat(1_000);
    fs::write(&path, &text).unwrap();
    assert!(matches!(
        open(&path).err().unwrap(),
        LedgerError::Foreign(_)
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let refused = open(Path::new("/dev/null/settled/settled.db"))
        .err()
        .unwrap();
    assert!(
        refused.to_string().contains("/dev/null/settled/settled.db"),
        "{refused}"
    );
}

#[test]
fn the_journal_is_a_write_ahead_log() {
    let ledger = Ledger::new();
    let mode: String = ledger
        .sql()
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
}
