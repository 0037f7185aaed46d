//! Whether a ledger is sound: SQLite's own check of the file, and everything the program relies on,
//! asked of every row. Only looks, also at a ledger that a daemon is serving.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::OpenFlags;
use serde::Serialize;

use super::damage::{DamagedRow, Damages};
use super::runs::{RUN_COLUMNS, run_row};
use super::{Result, View, connect, foreign, version};

/// How many rows a finding names.
const NAMED_MAX: usize = 5;

/// Something in a ledger that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// In how many rows; 0: it is no matter of rows.
    pub rows: i64,
    /// Some of them, where they have names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<String>,
}

/// What was examined, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// Rows of each table that a person knows of.
    pub rows: BTreeMap<&'static str, i64>,
    /// What must not be.
    pub findings: Vec<Finding>,
}

/// What must hold, as questions for rows in which it does not. JSON that cannot be read is a finding
/// of its own, and must not end the others.
const INVARIANTS: [(&str, &str); 13] = [
    (
        "settled runs whose completion is missing from the feed",
        "SELECT count(*) FROM runs u WHERE u.completion > (SELECT trimmed FROM meta) AND NOT EXISTS
            (SELECT 1 FROM records c WHERE c.seq = u.completion AND c.run = u.id AND c.type = 'settled.run.completion')",
    ),
    (
        "completions in the feed that their run knows nothing of",
        "SELECT count(*) FROM records c JOIN runs u ON u.id = c.run
         WHERE c.type = 'settled.run.completion' AND u.completion IS NOT c.seq",
    ),
    (
        "runs with more than one completion",
        "SELECT count(*) FROM (SELECT run FROM records WHERE type = 'settled.run.completion' GROUP BY run HAVING count(*) > 1)",
    ),
    (
        "runs whose columns and state disagree on whether they have settled",
        "SELECT count(*) FROM runs WHERE CASE WHEN json_valid(state)
            THEN (phase = 'settled') <> (json_type(state, '$.phase.settled') IS NOT NULL) ELSE 0 END",
    ),
    (
        "open runs that nothing will ever wake",
        "SELECT count(*) FROM runs WHERE phase = 'open' AND wake_at IS NULL",
    ),
    (
        "records in the feed that retention claims to have removed",
        "SELECT count(*) FROM records WHERE seq <= (SELECT trimmed FROM meta)",
    ),
    (
        "records in the feed whose data cannot be read",
        "SELECT count(*) FROM records WHERE NOT json_valid(data)",
    ),
    (
        "lines in timelines that name a record which never was",
        "SELECT count(*) FROM heard WHERE seq > (SELECT recorded FROM meta)",
    ),
    (
        "held ends whose report is gone",
        "SELECT count(*) FROM (SELECT CASE WHEN json_valid(state)
            THEN json_extract(state, '$.phase.open.claim.voice.report') END AS report FROM runs WHERE phase = 'open')
         WHERE report IS NOT NULL AND report NOT IN (SELECT id FROM reports)",
    ),
    (
        "reports whose head cannot be read",
        "SELECT count(*) FROM reports WHERE NOT json_valid(head)",
    ),
    (
        "consumers whose filter cannot be read",
        "SELECT count(*) FROM consumers WHERE NOT json_valid(filter)",
    ),
    (
        "consumers that have acknowledged what never was",
        "SELECT count(*) FROM consumers WHERE acked > (SELECT recorded FROM meta)",
    ),
    (
        "marks of digestion beyond the last report",
        "SELECT count(*) FROM meta WHERE digested > reported",
    ),
];

/// Tables of which the number of rows is told.
const COUNTED: [&str; 5] = ["runs", "reports", "records", "consumers", "set_aside"];

/// Examines the ledger in a file, whether or not a daemon is serving it.
pub fn examine(path: &Path) -> Result<Examination> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| foreign(error, path))?;
    version(&connection, path).map_err(|error| foreign(error, path))?;
    let damages = Damages::default();
    let view = View { connection: &connection, epoch: "", damages: &damages };
    let rows = COUNTED.iter().filter_map(|table| {
        let count = connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0));
        Some((*table, count.ok()?))
    });
    Ok(Examination { rows: rows.collect(), findings: check(&view)? })
}

/// Verifies the file and everything the program relies on. Reads all of it, which takes a while. A
/// question that a damaged file does not answer is a finding too.
pub fn check(view: &View<'_>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (what, look) in [
        ("the file cannot be examined", file as fn(&View<'_>) -> Result<Vec<Finding>>),
        ("references cannot be examined", references),
        ("runs cannot be read", runs),
    ] {
        match look(view) {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::one(format!("{what}: {}", cause(&error)))),
        }
    }
    for (what, question) in INVARIANTS {
        match view.connection.query_row(question, [], |row| row.get(0)) {
            Ok(0) => {}
            Ok(rows) => findings.push(Finding { what: what.to_owned(), rows, named: Vec::new() }),
            Err(error) => findings.push(Finding::one(format!("it cannot be told whether there are {what}: {error}"))),
        }
    }
    Ok(findings)
}

/// What SQLite says of its pages and indexes.
fn file(view: &View<'_>) -> Result<Vec<Finding>> {
    let mut integrity = view.connection.prepare("PRAGMA integrity_check(20)")?;
    let lines = integrity.query_map([], |row| row.get::<_, String>(0))?;
    let mut findings = Vec::new();
    for line in lines {
        let line = line?;
        if line != "ok" {
            findings.push(Finding::one(format!("the file is damaged: {}", line.replace('\n', " "))));
        }
    }
    Ok(findings)
}

fn references(view: &View<'_>) -> Result<Vec<Finding>> {
    let mut foreign = view.connection.prepare("PRAGMA foreign_key_check")?;
    let mut strays: BTreeMap<String, i64> = BTreeMap::new();
    for table in foreign.query_map([], |row| row.get(0))? {
        *strays.entry(table?).or_default() += 1;
    }
    let finding =
        |(table, rows)| Finding { what: format!("rows of {table} that refer to nothing"), rows, named: Vec::new() };
    Ok(strays.into_iter().map(finding).collect())
}

/// Reads every run as the daemon does.
fn runs(view: &View<'_>) -> Result<Vec<Finding>> {
    let mut select = view.connection.prepare(RUN_COLUMNS)?;
    let mut rows = select.query([])?;
    let mut finding = Finding { what: "runs that cannot be read".to_owned(), rows: 0, named: Vec::new() };
    while let Some(row) = rows.next()? {
        if let Err(error) = run_row(row) {
            finding.rows += 1;
            if finding.named.len() < NAMED_MAX {
                finding.named.push(format!("{} ({})", DamagedRow::run(row, Some(1), 3).key(), cause(&error)));
            }
        }
    }
    Ok(Some(finding).filter(|finding| finding.rows > 0).into_iter().collect())
}

/// The words of SQLite, or ours without the advice to do what is being done.
fn cause(error: &super::StoreError) -> String {
    match error {
        super::StoreError::Unreadable(what) => what.clone(),
        super::StoreError::Sqlite(error) => error.to_string(),
        error => error.to_string(),
    }
}

impl Finding {
    fn one(what: String) -> Finding {
        Finding { what, rows: 0, named: Vec::new() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Finding { what, rows, named } = self;
        match (rows, named.as_slice()) {
            (0, []) => write!(f, "{what}"),
            (rows, []) => write!(f, "{what}: {rows}"),
            (rows, named) => write!(f, "{what}: {rows}: {}", named.join(", ")),
        }
    }
}
