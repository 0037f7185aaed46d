//! Ledgers that released versions wrote: this one opens each, finds in it what was there, and goes on.
//!
//! `versions/N.db` was written by the last settled of schema version N and `versions/N.feed` is what
//! its feed said. Both are made by [`write_this_version`], once, when a schema is released, and
//! never changed after that. (Version 1 is not released yet.)

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use settled::ledger::{SCHEMA_VERSION, Writer, check_with_all_reports};
use settled::reconciler::Reconciler;

use super::check::a_ledger;
use crate::support::reconciler::{Ledger, ROOMY, START, json, register, signed, source};

fn kept(version: i64, ending: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/ledger/versions/{version}.{ending}"))
}

/// What the feed says, without the cursors: their first half belongs to the file.
fn said(ledger: &Ledger) -> String {
    let line = |record| {
        let mut line = json(record);
        line.as_object_mut()
            .unwrap()
            .remove("cursor")
            .expect("every line has a cursor");
        line.to_string() + "\n"
    };
    ledger.feed().iter().map(line).collect()
}

/// The tables, indices and triggers of a ledger.
fn schema(ledger: &Ledger) -> BTreeSet<String> {
    let sql = ledger.sql();
    let mut select = sql
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
        .unwrap();
    select
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// A ledger of an earlier version, opened by this one.
fn reopened(version: i64) -> Ledger {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settled.db");
    fs::copy(kept(version, "db"), &path)
        .unwrap_or_else(|error| panic!("{}: {error}", kept(version, "db").display()));
    let mut writer = Writer::open(&path, START).unwrap();
    let sources = register(
        &mut writer,
        [source("sky", &settled::providers::skyvern::Skyvern)],
    );
    let reader = writer.reader();
    let mut reconciler = Reconciler::new(writer, sources, ROOMY);
    reconciler.recover(START, |_| ()).unwrap();
    Ledger {
        folder,
        reader,
        reconciler,
        now: START,
    }
}

const ADVICE: &str = "a ledger that has been written is not one of this program's any more. If its schema is released, \
    a step in MIGRATIONS is missing; if not: cargo test --test ledger write_this_version -- --ignored";

#[test]
fn every_version_opens_says_what_it_said_and_goes_on() {
    for version in 1..=SCHEMA_VERSION {
        let fresh = schema(&Ledger::new());
        let found = Connection::open(kept(version, "db")).unwrap();
        let number: i64 = found
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(number, version);
        let mut ledger = reopened(version);
        assert_eq!(schema(&ledger), fresh, "version {version}: {ADVICE}");
        assert_eq!(
            ledger.reader.read(check_with_all_reports).unwrap(),
            [],
            "version {version}"
        );
        let before = said(&ledger);
        assert_eq!(
            before,
            fs::read_to_string(kept(version, "feed")).unwrap(),
            "version {version}"
        );
        let held = ledger.run("wr_3").unwrap().run;
        assert!(held.wake_at.is_some(), "what was open is open");
        assert_eq!(
            ledger.count("SELECT acked FROM consumers WHERE name = 'books'"),
            1
        );
        ledger.hears(signed("wr_2", "failed"));
        assert_eq!(said(&ledger), before, "what had settled stays settled");
        ledger.hears(signed("wr_new", "completed"));
        assert_eq!(said(&ledger).lines().count(), before.lines().count() + 1);
        assert_eq!(
            ledger.reader.read(check_with_all_reports).unwrap(),
            [],
            "version {version}"
        );
    }
}

#[test]
#[ignore = "writes the ledger that later versions are tested with; run it when a schema is released"]
fn write_this_version() {
    let ledger = a_ledger();
    let sql = ledger.sql();
    sql.execute(
        "INSERT INTO consumers VALUES ('books', 1, '{\"types\":[]}', 10, 0, 5, 6)",
        [],
    )
    .unwrap();
    let file = kept(SCHEMA_VERSION, "db");
    let _ = fs::remove_file(&file);
    sql.execute("VACUUM INTO ?1", [file.to_str().unwrap()])
        .unwrap();
    fs::write(kept(SCHEMA_VERSION, "feed"), said(&ledger)).unwrap();
}
