//! What must hold, whatever happened: the invariants, written once.
//!
//! [`check`] reads the ledger by itself, with its own SQL, so that a mistake in the store does not
//! hide itself. Every layer calls it with what it knows of the outside [`World`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use settled::providers::signature::sign;
use settled::run::decide::{AMENDMENTS_MAX, Phase, Run};

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
    /// Nothing waits to be digested.
    pub digested: bool,
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
    let ledger = Ledger::open(world.store);
    let mut faults = Vec::new();
    faults.extend(ledger.damage());
    faults.extend(ledger.forgotten(world.acked));
    faults.extend(ledger.groundless());
    faults.extend(ledger.strangers(world.exists));
    let feed = ledger.feed();
    faults.extend(ledger.doubled(&feed));
    faults.extend(rewritten(before, &feed));
    faults.extend(ledger.inconsistent(world.digested));
    faults.extend(ledger.overgrown(world));
    *before = feed.into_iter().map(|record| (record.seq, (record.id, record.text))).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

struct Ledger {
    connection: Connection,
}

struct Record {
    seq: i64,
    run: i64,
    kind: String,
    id: String,
    text: String,
}

struct RunRow {
    id: i64,
    key: String,
    phase: String,
    outcome: Option<String>,
    completion: Option<i64>,
    asks: [Option<i64>; 2],
    wake_at: Option<i64>,
    run: Run,
}

impl Ledger {
    fn open(path: &Path) -> Ledger {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        Ledger { connection }
    }

    fn rows<T>(&self, sql: &str, read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
        let mut select = self.connection.prepare(sql).unwrap();
        select.query_map([], read).unwrap().map(Result::unwrap).collect()
    }

    /// The file itself is sound.
    fn damage(&self) -> Vec<String> {
        let mut said: Vec<String> = self.rows("PRAGMA integrity_check", |row| row.get(0));
        said.retain(|word| word != "ok");
        let orphans = self.rows("PRAGMA foreign_key_check", |row| row.get::<_, String>(0));
        said.extend(orphans.into_iter().map(|table| format!("a row of {table} refers to nothing")));
        said.into_iter().map(|fault| format!("damaged: {fault}")).collect()
    }

    /// I1: what was answered 2xx is there, byte by byte.
    fn forgotten(&self, acked: &[Acked]) -> Vec<String> {
        let mut select = self.connection.prepare("SELECT body, verdict FROM reports WHERE id = ?1").unwrap();
        let mut fault = |acked: &Acked| {
            let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Option<String>>(1)?));
            match select.query_row([acked.report], row) {
                Err(_) => Some(format!("I1: report {} was answered 2xx and is not there", acked.report)),
                Ok((body, _)) if digest(&body) != acked.body => {
                    Some(format!("I1: report {} has other bytes", acked.report))
                }
                Ok((_, verdict)) if verdict.as_deref() != Some(&acked.verdict) => {
                    Some(format!("I1: report {} was {}, is {verdict:?}", acked.report, acked.verdict))
                }
                Ok(_) => None,
            }
        };
        acked.iter().filter_map(&mut fault).collect()
    }

    /// I2, I7: every record has a cause that is stored and was entitled to cause it; what could not
    /// be verified causes nothing.
    fn groundless(&self) -> Vec<String> {
        let sql = "SELECT r.seq, r.type, r.origin, h.trust, h.via, p.verdict, p.ring FROM records r
             LEFT JOIN heard h ON h.run = r.run AND h.seq = r.seq LEFT JOIN reports p ON p.id = h.report";
        let faults = self.rows(sql, |row| {
            let seq: i64 = row.get(0)?;
            let word = |index: usize| row.get::<_, Option<String>>(index).map(Option::unwrap_or_default);
            let (origin, trust, via, verdict) = (word(2)?, word(3)?, word(4)?, word(5)?);
            let believed = match via.as_str() {
                "webhook" | "replay" => trust == verdict && matches!(&*verdict, "signed" | "shared_secret"),
                "clock" => trust == "authoritative" && matches!(&*origin, "inferred" | "webhook" | "replay" | "poll"),
                "poll" => trust == "authoritative",
                _ => false,
            };
            let ring: Option<i64> = row.get(6)?;
            let fault = format!("I2: record {seq} has no sufficient cause ({via} {trust} {verdict})");
            Ok((!believed || ring.is_some()).then_some(fault))
        });
        faults.into_iter().flatten().collect()
    }

    /// I2: nothing is said of runs that never were.
    fn strangers(&self, exists: &dyn Fn(&str, &str) -> bool) -> Vec<String> {
        let sql = "SELECT s.name, u.run_id FROM runs u JOIN sources s ON s.id = u.source";
        let runs: Vec<(String, String)> = self.rows(sql, |row| Ok((row.get(0)?, row.get(1)?)));
        let strangers = runs.into_iter().filter(|(source, run)| !exists(source, run));
        strangers.map(|(source, run)| format!("I2: {source}:{run} never was")).collect()
    }

    fn feed(&self) -> Vec<Record> {
        self.rows("SELECT seq, run, type, envelope, data FROM records ORDER BY seq", |row| {
            let (envelope, data): (String, String) = (row.get(3)?, row.get(4)?);
            let told: Value = serde_json::from_str(&envelope).expect("an envelope is JSON");
            let id = told["id"].as_str().unwrap_or_default().to_owned();
            let text = digest((envelope + &data).as_bytes());
            Ok(Record { seq: row.get(0)?, run: row.get(1)?, kind: row.get(2)?, id, text })
        })
    }

    fn runs(&self) -> Vec<RunRow> {
        let sql = "SELECT u.id, s.name || ':' || u.run_id, u.phase, u.outcome, u.completion, u.ask_at, u.urgent_at, u.wake_at, u.state
             FROM runs u JOIN sources s ON s.id = u.source";
        self.rows(sql, |row| {
            let state: String = row.get(8)?;
            Ok(RunRow {
                id: row.get(0)?,
                key: row.get(1)?,
                phase: row.get(2)?,
                outcome: row.get(3)?,
                completion: row.get(4)?,
                asks: [row.get(5)?, row.get(6)?],
                wake_at: row.get(7)?,
                run: serde_json::from_str(&state).expect("a run's state is readable"),
            })
        })
    }

    /// I3, I4: a run's records are its statuses, one completion, and numbered amendments, in this
    /// order and under ids that follow from what they say.
    fn doubled(&self, feed: &[Record]) -> Vec<String> {
        let mut faults = Vec::new();
        let gapless = feed.iter().zip(1..).all(|(record, seq)| record.seq == seq);
        if !gapless {
            faults.push("I4: the feed has a gap".to_owned());
        }
        let mut told: BTreeMap<i64, Vec<&Record>> = BTreeMap::new();
        for record in feed {
            told.entry(record.run).or_default().push(record);
        }
        for row in self.runs() {
            let records = told.remove(&row.id).unwrap_or_default();
            let said: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
            let expected = expected_ids(&row);
            if said != expected {
                faults.push(format!("I3: {}: the feed said {said:?} where {expected:?} follows", row.key));
            }
            let completion = records.iter().find(|record| record.kind == "settled.run.completion");
            if completion.map(|record| record.seq) != row.completion {
                faults.push(format!("I3: {} does not know its completion", row.key));
            }
        }
        faults.extend(told.keys().map(|run| format!("I2: records about the row {run}, which is no run")));
        faults
    }

    /// The columns repeat what the state says, and an open run always has somebody to wake it.
    fn inconsistent(&self, digested: bool) -> Vec<String> {
        let mut faults = Vec::new();
        for row in self.runs() {
            let (phase, outcome) = match &row.run.phase {
                Phase::Open(_) => ("open", None),
                Phase::Settled(settled) => ("settled", Some(settled.belief.ending.outcome.word())),
            };
            let ask = [row.run.ask.filter(|ask| !ask.urgent), row.run.ask.filter(|ask| ask.urgent)];
            let sound = (row.phase.as_str(), row.outcome.as_deref()) == (phase, outcome)
                && row.asks == ask.map(|ask| ask.map(|ask| ask.at.0))
                && row.wake_at == row.run.wake_at.map(|at| at.0)
                && row.wake_at.is_some() == (phase == "open");
            if !sound {
                faults.push(format!("{}: its columns do not say what its state says", row.key));
            }
        }
        let behind = "SELECT (SELECT coalesce(max(id), 0) FROM reports) - (SELECT digested FROM meta)";
        let behind: Vec<i64> = self.rows(behind, |row| row.get(0));
        if behind[0] > 0 && digested {
            faults.push(format!("{} reports are not digested", behind[0]));
        }
        faults
    }

    /// I10: what is bounded stays within its bounds.
    fn overgrown(&self, world: &World<'_>) -> Vec<String> {
        let ring = "SELECT count(*) FROM reports WHERE ring = 1 GROUP BY source";
        let rings: Vec<i64> = self.rows(ring, |row| row.get(0));
        let most = world.ring_rows_max + world.ring_rows_max / 20;
        let rings = rings.into_iter().filter(|rows| *rows > most).map(|rows| format!("I10: {rows} rows in a ring"));
        let log = fs::metadata(world.store.with_extension("db-wal")).map_or(0, |meta| meta.len());
        let log = (log > LOG_BYTES_MAX).then(|| format!("I10: the log has {log} bytes"));
        rings.chain(log).collect()
    }
}

/// Twice what SQLite lets the log grow to before it moves it into the file.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// The ids of the records that a run in this state must have caused.
fn expected_ids(row: &RunRow) -> Vec<String> {
    let statuses = (1..=row.run.statuses).map(|number| format!("{}:status:{number}", row.key));
    let ended = match &row.run.phase {
        Phase::Open(_) => Vec::new(),
        Phase::Settled(settled) => {
            assert!(settled.amendments <= AMENDMENTS_MAX, "{}: amended too often", row.key);
            let amendments = (1..=settled.amendments).map(|number| format!("{}:amendment:{number}", row.key));
            [format!("{}:completion", row.key)].into_iter().chain(amendments).collect()
        }
    };
    statuses.chain(ended).collect()
}

/// I4: what was read once reads the same for ever, and no id twice.
fn rewritten(before: &Feed, feed: &[Record]) -> Vec<String> {
    let now: BTreeMap<i64, &Record> = feed.iter().map(|record| (record.seq, record)).collect();
    let same = |seq: &i64, text: &str| now.get(seq).is_some_and(|record| record.text == text);
    let changed = before.iter().filter(|(seq, (_, text))| !same(seq, text));
    let mut ids = BTreeSet::new();
    let twice = feed.iter().filter(|record| !ids.insert(record.id.as_str()));
    changed
        .map(|(seq, (id, _))| format!("I4: record {seq} ({id}) is not what it was"))
        .chain(twice.map(|record| format!("I4: the id {} twice", record.id)))
        .collect()
}
