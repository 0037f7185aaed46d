//! What must hold, whatever happened: the one judge that every layer calls.
//!
//! What can be seen in the file alone is [`settled::ledger::check`], written once for people's
//! ledgers and for these; [`check`] adds what the world outside knows: what senders were told, which
//! runs there are, what the feed had said before. The numbers are those of the invariants in
//! `docs/reliability.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use settled::ledger::{self, Reader};
use settled::providers::signature::sign;

/// What is known outside of the ledger.
pub struct World<'a> {
    /// The ledger.
    pub store: &'a Path,
    /// What senders were told is stored.
    pub acked: &'a [Acked],
    /// Whether there ever was such a run: source, id.
    pub exists: &'a dyn Fn(&str, &str) -> bool,
    /// How many unverified deliveries are kept of each source, at most.
    pub ring_rows_max: i64,
    /// Nobody is at work on it, and nothing waits to be processed.
    pub at_rest: bool,
    /// Retention has not taken any report.
    pub all_reports: bool,
}

/// A delivery that was answered 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acked {
    /// The id it was answered with.
    pub report: i64,
    /// The digest of its body.
    pub body: String,
    /// What verification had found.
    pub verdict: String,
}

/// The feed as it was read: by seq, the id and the digest of the record.
pub type Feed = BTreeMap<i64, (String, String)>;

/// What stands for bytes that are too many to keep.
pub fn digest(bytes: &[u8]) -> String {
    sign("", &[bytes])
}

/// Everything that is wrong; nothing, if all is well. `before` is what the feed said when it was
/// last read, and is brought up to date.
pub fn check(world: &World<'_>, before: &mut Feed) -> Result<(), String> {
    let looked = if world.all_reports {
        ledger::check_with_all_reports
    } else {
        ledger::check
    };
    let seen = Reader::open(world.store).and_then(|reader| reader.read(looked));
    let mut faults = match seen {
        Ok(findings) => findings.iter().map(ToString::to_string).collect(),
        Err(error) => vec![format!("it cannot be read: {error:?}")],
    };
    let ledger = Ledger::open(world.store);
    faults.extend(ledger.forgotten(world.acked));
    faults.extend(ledger.unknown_runs(world.exists));
    let feed = ledger.feed();
    faults.extend(rewritten(before, &feed, ledger.trimmed()));
    faults.extend(ledger.unprocessed().filter(|_| world.at_rest));
    faults.extend(ledger.overgrown(world));
    *before = feed;
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults.join("\n"))
    }
}

/// The ledger, read with SQL of our own.
struct Ledger {
    connection: Connection,
}

impl Ledger {
    fn open(path: &Path) -> Ledger {
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        Ledger { connection }
    }

    fn rows<T>(
        &self,
        sql: &str,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Vec<T> {
        let mut select = self.connection.prepare(sql).unwrap();
        select
            .query_map([], read)
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    /// I1: what was answered 2xx is there, byte by byte.
    fn forgotten(&self, acked: &[Acked]) -> Vec<String> {
        let mut select = self
            .connection
            .prepare("SELECT body, verdict FROM reports WHERE id = ?1")
            .unwrap();
        let mut fault = |acked: &Acked| {
            let row = |row: &rusqlite::Row<'_>| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Option<String>>(1)?))
            };
            match select.query_row([acked.report], row) {
                Err(_) => Some(format!(
                    "I1: report {} was answered 2xx and is not there",
                    acked.report
                )),
                Ok((body, _)) if digest(&body) != acked.body => {
                    Some(format!("I1: report {} has other bytes", acked.report))
                }
                Ok((_, verdict)) if verdict.as_deref() != Some(&acked.verdict) => Some(format!(
                    "I1: report {} was {}, is {verdict:?}",
                    acked.report, acked.verdict
                )),
                Ok(_) => None,
            }
        };
        acked.iter().filter_map(&mut fault).collect()
    }

    /// I2: nothing is said of runs that never were.
    fn unknown_runs(&self, exists: &dyn Fn(&str, &str) -> bool) -> Vec<String> {
        let sql = "SELECT s.name, u.run_id FROM runs u JOIN sources s ON s.id = u.source";
        let runs: Vec<(String, String)> = self.rows(sql, |row| Ok((row.get(0)?, row.get(1)?)));
        let unknown_runs = runs
            .into_iter()
            .filter(|(source, run)| !exists(source, run));
        unknown_runs
            .map(|(source, run)| format!("I2: {source}:{run} never was"))
            .collect()
    }

    fn feed(&self) -> Feed {
        let records = self.rows(
            "SELECT seq, envelope, data FROM records ORDER BY seq",
            |row| {
                let (seq, envelope, data): (i64, String, String) =
                    (row.get(0)?, row.get(1)?, row.get(2)?);
                let told: Value = serde_json::from_str(&envelope).expect("an envelope is JSON");
                let id = told["id"].as_str().unwrap_or_default().to_owned();
                Ok((seq, (id, digest((envelope + &data).as_bytes()))))
            },
        );
        records.into_iter().collect()
    }

    /// Records up to here may be gone.
    fn trimmed(&self) -> i64 {
        self.rows("SELECT trimmed FROM meta", |row| row.get(0))[0]
    }

    fn unprocessed(&self) -> Option<String> {
        let behind =
            "SELECT (SELECT coalesce(max(id), 0) FROM reports) - (SELECT processed FROM meta)";
        let behind: Vec<i64> = self.rows(behind, |row| row.get(0));
        (behind[0] > 0).then(|| format!("{} reports are not processed", behind[0]))
    }

    /// I10: what is bounded stays within its bounds.
    fn overgrown(&self, world: &World<'_>) -> Vec<String> {
        let unverified = "SELECT count(*) FROM reports WHERE unverified = 1 GROUP BY source";
        let rings: Vec<i64> = self.rows(unverified, |row| row.get(0));
        let most = world.ring_rows_max + world.ring_rows_max / 20;
        let rings = rings
            .into_iter()
            .filter(|rows| *rows > most)
            .map(|rows| format!("I10: {rows} rows in a unverified"));
        let log = fs::metadata(world.store.with_extension("db-wal")).map_or(0, |meta| meta.len());
        let log =
            (world.at_rest && log > LOG_BYTES_MAX).then(|| format!("I10: the log has {log} bytes"));
        rings.chain(log).collect()
    }
}

/// Twice what SQLite lets the log grow to before it moves it into the file.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// I4: what was read once reads the same for as long as it is there.
fn rewritten(before: &Feed, feed: &Feed, trimmed: i64) -> Vec<String> {
    let changed = before
        .iter()
        .filter(|(seq, record)| **seq > trimmed && feed.get(seq) != Some(record));
    changed
        .map(|(seq, (id, _))| format!("I4: record {seq} ({id}) is not what it was"))
        .collect()
}
