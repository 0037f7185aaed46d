//! The invariant checker: every invariant that can be seen in the file alone, written once.
//! `settled check` runs it on your ledger, the demo on its own when it closes, and every layer of the
//! tests after its faults. The tests add what only they know, such as which requests were answered.
//!
//! Nothing here uses the rest of this folder: a mistake there must not hide itself.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;
use std::path::Path;

use rusqlite::{OpenFlags, Row};
use serde::Serialize;

use super::damage::Damages;
use super::{LedgerError, Result, View, connect, foreign, from_json, version};
use crate::model::decide::{AMENDMENTS_MAX, Phase, Run};

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The invariant, in a few words.
    pub what: String,
    /// How many rows violate it.
    pub rows: i64,
    /// The names of the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<String>,
}

/// The result of an examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// How many rows each table has.
    pub rows: BTreeMap<&'static str, i64>,
    /// The violated invariants.
    pub findings: Vec<Finding>,
}

impl Finding {
    /// The result for a ledger that cannot be read.
    pub fn unreadable(why: &str) -> Finding {
        Finding {
            what: "ledgers that cannot be read".to_owned(),
            rows: 1,
            named: vec![why.to_owned()],
        }
    }
}

/// How many rows a finding names.
const NAMED_MAX: usize = 5;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { what, rows, named } = self;
        if named.is_empty() {
            write!(f, "{what}: {rows}")
        } else {
            write!(f, "{what}: {rows}: {}", named.join(", "))
        }
    }
}

/// The invariants, as queries for rows that violate them. Each query returns a name for the row.
const INVARIANTS: [(&str, &str); 17] = [
    (
        "settled runs whose completion is missing from the feed",
        "SELECT u.run_id FROM runs u WHERE u.completion > (SELECT trimmed FROM meta) AND NOT EXISTS
            (SELECT 1 FROM records c WHERE c.seq = u.completion AND c.run = u.id AND c.type = 'settled.run.completion')",
    ),
    (
        "completions in the feed that their run knows nothing of",
        "SELECT c.seq FROM records c JOIN runs u ON u.id = c.run
         WHERE c.type = 'settled.run.completion' AND u.completion IS NOT c.seq",
    ),
    // Checked without the index that forbids it, which may be gone.
    (
        "runs with more than one completion",
        "SELECT run FROM records WHERE type = 'settled.run.completion' GROUP BY run HAVING count(*) > 1",
    ),
    (
        "gaps in the feed",
        "SELECT seq FROM (SELECT seq, lag(seq, 1, (SELECT trimmed FROM meta)) OVER (ORDER BY seq) AS before FROM records)
         WHERE seq <> before + 1",
    ),
    (
        "ends of the feed that are not the last number given",
        "SELECT recorded FROM meta WHERE recorded <> max(trimmed, coalesce((SELECT max(seq) FROM records), 0))",
    ),
    (
        "records without a cause that was entitled to cause them",
        // A row of the timeline says what caused a record. It goes when retention takes the report.
        "SELECT r.seq FROM records r JOIN timeline h ON h.run = r.run AND h.seq = r.seq LEFT JOIN reports p ON p.id = h.report
         WHERE p.id IS NULL OR p.unverified IS NOT NULL OR p.via <> h.via OR NOT CASE
            WHEN h.via IN ('webhook', 'replay') THEN h.trust = p.verdict AND p.verdict IN ('signed', 'shared_secret')
            ELSE h.trust = 'authoritative' END",
    ),
    (
        "deliveries that nobody verified outside of the unverified, or others in it",
        "SELECT id FROM reports WHERE (unverified IS NOT NULL) <>
            (via = 'webhook' AND verdict NOT IN ('signed', 'shared_secret', 'stale', 'untimed'))",
    ),
    (
        "lines in timelines that name a record of another run or none",
        "SELECT h.report FROM timeline h LEFT JOIN records r ON r.seq = h.seq
         WHERE h.seq > (SELECT trimmed FROM meta) AND r.run IS NOT h.run",
    ),
    (
        "marks beyond the last report, or reports beyond the last number given",
        "SELECT reported FROM meta WHERE reported < max(processed, coalesce((SELECT max(id) FROM reports), 0))",
    ),
    (
        "sizes of the feed that are wrong",
        "SELECT fed_bytes FROM meta WHERE fed_bytes <>
            (SELECT coalesce(sum(octet_length(envelope) + octet_length(data)), 0) FROM records)",
    ),
    (
        "consumers beyond the end of the feed, or with a number never given",
        "SELECT name FROM consumers, meta WHERE acked < 0 OR consumers.generation > meta.generation
            OR acked > recorded",
    ),
    ("records in the feed whose data cannot be read", "SELECT seq FROM records WHERE NOT json_valid(data)"),
    (
        "records that refer to another payload than retention keeps for them",
        "SELECT seq FROM records WHERE json_valid(data)
            AND json_extract(data, '$.payload_ref') IS NOT '/v1/deliveries/' || payload_report || '/body'",
    ),
    ("reports whose metadata cannot be read", "SELECT id FROM reports WHERE NOT json_valid(meta)"),
    ("consumers whose filter cannot be read", "SELECT name FROM consumers WHERE NOT json_valid(filter)"),
    (
        "sources whose runs are counted wrong",
        "SELECT name FROM sources s LEFT JOIN (SELECT source, count(*) AS known, sum(phase = 'open') AS open,
            sum(phase = 'open' AND overdue) AS overdue FROM runs GROUP BY source) u ON u.source = s.id
         WHERE s.known <> coalesce(u.known, 0) OR s.open <> coalesce(u.open, 0)
            OR s.overdue <> coalesce(u.overdue, 0)",
    ),
    (
        "minutes whose losses are counted wrong",
        // A webhook is late if it came after the end, by a clock that may have stepped back meanwhile.
        "SELECT t.source || ':' || t.minute FROM settlements t LEFT JOIN
            (SELECT source, settled_at / 60000 AS minute, count(*) AS completions, sum(origin <> 'webhook') AS synthesized
             FROM runs WHERE settled_at IS NOT NULL GROUP BY 1, 2) r USING (source, minute)
         WHERE (t.completions, t.synthesized) IS NOT (r.completions, r.synthesized) OR t.late NOT BETWEEN 0 AND t.synthesized",
    ),
];

/// Invariants that hold only as long as retention has never removed a report.
const WITH_ALL_REPORTS: [(&str, &str); 1] = [(
    "records without a cause",
    "SELECT seq FROM records r WHERE NOT EXISTS (SELECT 1 FROM timeline h WHERE h.run = r.run AND h.seq = r.seq)",
)];

/// Tables whose number of rows the result has.
const COUNTED: [&str; 5] = [
    "runs",
    "reports",
    "records",
    "consumers",
    "quarantined_reports",
];

/// Examines the ledger in a file, as far as it can be read. A daemon may be serving it.
pub fn examine(path: &Path) -> Result<Examination> {
    let connection =
        connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| foreign(error, path))?;
    version(&connection, path).map_err(|error| foreign(error, path))?;
    let view = View {
        connection: &connection,
        epoch: "",
        damages: &Damages::default(),
    };
    let rows = COUNTED.iter().filter_map(|table| {
        let count = connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            row.get(0)
        });
        Some((*table, count.ok()?))
    });
    Ok(Examination {
        rows: rows.collect(),
        findings: check(&view)?,
    })
}

/// Checks the file and everything the program relies on. Reads all of it, as of one moment, which
/// takes a while. A query that fails on a damaged file is a finding too.
pub fn check(view: &View<'_>) -> Result<Vec<Finding>> {
    let _one_moment = view.connection.unchecked_transaction()?;
    Ok(look(view))
}

/// As [`check`], of a ledger from which retention has never removed a report.
pub fn check_with_all_reports(view: &View<'_>) -> Result<Vec<Finding>> {
    let _one_moment = view.connection.unchecked_transaction()?;
    let mut findings = look(view);
    findings.extend(ask(view, &WITH_ALL_REPORTS));
    Ok(findings)
}

fn look(view: &View<'_>) -> Vec<Finding> {
    let mut findings = answered("damages of the file", damage(view));
    if findings.is_empty() {
        findings.extend(ask(view, &INVARIANTS));
        findings.extend(answered("damaged runs", check_runs(view)));
    }
    findings
}

fn answered(what: &str, found: Result<Vec<Finding>>) -> Vec<Finding> {
    found.unwrap_or_else(|error| vec![unanswered(what, &error)])
}

fn unanswered(what: &str, error: &LedgerError) -> Finding {
    let what = format!("the file cannot be asked for {what}");
    Finding {
        what,
        rows: 1,
        named: vec![cause(error)],
    }
}

/// An error's text, without the advice to run the check that is running.
fn cause(error: &LedgerError) -> String {
    match error {
        LedgerError::Unreadable(what) => what.clone(),
        LedgerError::Sqlite(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// The finding for one invariant, if rows violate it.
struct Wrong {
    what: &'static str,
    rows: i64,
    named: Vec<String>,
}

impl Wrong {
    fn new(what: &'static str) -> Wrong {
        Wrong {
            what,
            rows: 0,
            named: Vec::new(),
        }
    }

    fn note(&mut self, row: impl FnOnce() -> String) {
        self.rows += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(row());
        }
    }

    fn finding(self) -> Option<Finding> {
        let Wrong { what, rows, named } = self;
        (rows > 0).then(|| Finding {
            what: what.to_owned(),
            rows,
            named,
        })
    }
}

/// Checks the file itself.
fn damage(view: &View<'_>) -> Result<Vec<Finding>> {
    let (mut file, mut strays) = (
        Wrong::new("damages of the file"),
        Wrong::new("rows that refer to nothing"),
    );
    let mut integrity = view.connection.prepare("PRAGMA integrity_check(20)")?;
    for line in integrity.query_map([], |row| row.get::<_, String>(0))? {
        let line = line?;
        if line != "ok" {
            file.note(|| line);
        }
    }
    let mut foreign = view.connection.prepare("PRAGMA foreign_key_check")?;
    for table in foreign.query_map([], |row| row.get::<_, String>(0))? {
        let table = table?;
        strays.note(|| table);
    }
    Ok([file, strays]
        .into_iter()
        .filter_map(Wrong::finding)
        .collect())
}

fn ask(view: &View<'_>, questions: &[(&'static str, &str)]) -> Vec<Finding> {
    let found = questions
        .iter()
        .map(|(what, question)| answered(what, ask_one(view, what, question)));
    found.flatten().collect()
}

fn ask_one(view: &View<'_>, what: &'static str, question: &str) -> Result<Vec<Finding>> {
    let mut wrong = Wrong::new(what);
    let mut select = view.connection.prepare(question)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let name = match row.get_ref(0)? {
            rusqlite::types::ValueRef::Integer(number) => number.to_string(),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        wrong.note(|| name);
    }
    Ok(wrong.finding().into_iter().collect())
}

/// The columns of a run that repeat parts of its state, for searching.
#[derive(Debug, PartialEq, Eq)]
struct Columns {
    phase: String,
    overdue: bool,
    opened_at: i64,
    outcome: Option<String>,
    origin: Option<String>,
    settled_at: Option<i64>,
    first_webhook_at: Option<i64>,
    poll_at: Option<i64>,
    poll_urgent_at: Option<i64>,
    wake_at: Option<i64>,
    completed: bool,
}

impl Columns {
    fn read(row: &Row<'_>) -> rusqlite::Result<Columns> {
        Ok(Columns {
            phase: row.get("phase")?,
            overdue: row.get("overdue")?,
            opened_at: row.get("opened_at")?,
            outcome: row.get("outcome")?,
            origin: row.get("origin")?,
            settled_at: row.get("settled_at")?,
            first_webhook_at: row.get("first_webhook_at")?,
            poll_at: row.get("poll_at")?,
            poll_urgent_at: row.get("poll_urgent_at")?,
            wake_at: row.get("wake_at")?,
            completed: row.get("completed")?,
        })
    }

    fn of(run: &Run) -> Columns {
        let settled = match &run.phase {
            Phase::Open(_) => None,
            Phase::Settled(settled) => Some(settled),
        };
        let ask = |urgent| {
            run.poll
                .filter(|plan| plan.urgent == urgent)
                .map(|plan| plan.at.0)
        };
        Columns {
            phase: if settled.is_some() { "settled" } else { "open" }.to_owned(),
            overdue: run.overdue,
            opened_at: run.opened_at().0,
            outcome: settled.map(|settled| settled.belief.ending.outcome.word().to_owned()),
            origin: settled.map(|settled| settled.origin.word().to_owned()),
            settled_at: settled.map(|settled| settled.at.0),
            first_webhook_at: run.webhooks.first.map(|at| at.0),
            poll_at: ask(false),
            poll_urgent_at: ask(true),
            wake_at: run.wake_at.map(|at| at.0),
            completed: settled.is_some(),
        }
    }
}

/// Checks each run and its records. The columns repeat what the state says; an open run has a time at
/// which it wakes; the feed has the records that follow from the state, in this order and under these
/// ids: the statuses, one completion, the amendments.
fn check_runs(view: &View<'_>) -> Result<Vec<Finding>> {
    let mut unreadable = Wrong::new("runs that cannot be read");
    let mut differing = Wrong::new("runs whose columns say something else than their state");
    let mut asleep =
        Wrong::new("open runs that nothing will ever wake, or settled ones that something will");
    let mut evidence_lost = Wrong::new("runs that hold an end whose report is gone");
    let mut told = Wrong::new("runs of which the feed has not said what follows from their state");
    let trimmed: i64 = view
        .connection
        .query_row("SELECT trimmed FROM meta", [], |row| row.get(0))?;
    let mut records = view.connection.prepare(
        "SELECT run, CASE WHEN json_valid(envelope) THEN coalesce(json_extract(envelope, '$.id'), '') ELSE '' END FROM records ORDER BY run, seq",
    )?;
    let mut records = records
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .peekable();
    let mut report = view
        .connection
        .prepare("SELECT 1 FROM reports WHERE id = ?1")?;
    let mut runs = view.connection.prepare(
        "SELECT u.*, u.completion IS NOT NULL AS completed, s.name || ':' || u.run_id AS key
         FROM runs u JOIN sources s ON s.id = u.source ORDER BY u.id",
    )?;
    let mut rows = runs.query([])?;
    while let Some(row) = rows.next()? {
        let (id, key): (i64, String) = (row.get("id")?, row.get("key")?);
        let said = records_of(id, &mut records)?;
        let state = row
            .get_ref("state")?
            .as_str()
            .map_err(|error| LedgerError::Unreadable(error.to_string()));
        let run = match state.and_then(|state| from_json::<Run>(state, "a run's state")) {
            Ok(run) => run,
            Err(error) => {
                unreadable.note(|| format!("{key} ({})", cause(&error)));
                continue;
            }
        };
        let columns = Columns::read(row)?;
        if columns != Columns::of(&run) {
            differing.note(|| key.clone());
        }
        if columns.wake_at.is_some() == columns.completed {
            asleep.note(|| key.clone());
        }
        if let Phase::Open(open) = &run.phase {
            for held in open
                .claim
                .iter()
                .map(|claim| &claim.evidence)
                .chain(&open.seen)
            {
                if !report.exists([held.report])? {
                    evidence_lost.note(|| key.clone());
                }
            }
        }
        let expected = ids_of(&key, &run);
        let sound = if trimmed == 0 {
            said == expected
        } else {
            expected.ends_with(&said)
        };
        if !sound {
            told.note(|| format!("{key} (said: {said:?}, follows: {expected:?})"));
        }
    }
    Ok([unreadable, differing, asleep, evidence_lost, told]
        .into_iter()
        .filter_map(Wrong::finding)
        .collect())
}

/// The ids of a run's records; `records` are in the order of their runs.
fn records_of(
    run: i64,
    records: &mut Peekable<impl Iterator<Item = rusqlite::Result<(i64, String)>>>,
) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    while let Some(record) =
        records.next_if(|record| record.as_ref().is_ok_and(|(of, _)| *of <= run) || record.is_err())
    {
        let (of, id) = record?;
        if of == run {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The ids of the records that a run in this state must have caused.
fn ids_of(key: &str, run: &Run) -> Vec<String> {
    let mut ids: Vec<String> = (1..=run.statuses)
        .map(|number| format!("{key}:status:{number}"))
        .collect();
    if let Phase::Settled(settled) = &run.phase {
        ids.push(format!("{key}:completion"));
        // The state may count more contradictions than are published.
        let amendments = settled.amendments.min(AMENDMENTS_MAX);
        ids.extend((1..=amendments).map(|number| format!("{key}:amendment:{number}")));
    }
    ids
}
