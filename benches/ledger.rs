//! The cost of one webhook for the writer: no HTTP, no network, one thread.
//!
//! Every report is a delivery of a new run that settles at once. The batches are as large as those
//! that form under load. Prints webhooks a second, the time of one, and the bytes that it leaves in
//! the write-ahead log and in the file. Counts of instructions repeat exactly from run to run:
//!
//! `cargo bench --bench ledger -- [--webhooks 100000] [--group 64] [--stored 0] [--ids random|ordered]`
//! `valgrind --tool=callgrind target/release/deps/ledger-* --webhooks 6400`
//!
//! `--stored` runs are in the ledger before: copies, made by SQL, of the rows that one webhook left,
//! with the deliveries and records of the last million of them. Beside it the benchmark measures the
//! least table that knows its runs by their ids: one row each, id and body, the id unique, as
//! durable, in the same batches, onto as many rows. Any index of such ids slows down by as much.

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod support;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use settled::model::At;
use settled::providers::Verdict;
use settled::report::{Meta, Report, WebhookMeta};
use settled::secret::SecretLabel;
use support::{Ledger, body, database, file_bytes, option, timed};

const START: i64 = 1_795_248_987_000;

fn main() {
    let (webhooks, group) = (option("--webhooks", 100_000_u64), option("--group", 64));
    let (stored, ids) = (
        option("--stored", 0_u64),
        option("--ids", "random".to_owned()),
    );
    let mut ledger = Ledger::new(At(START));
    if stored > 1 {
        let source = ledger.source;
        ledger.hear([report(source, &run_id(&ids, 0), At(START))], 1, At(START));
        clone_runs(&ledger, &ids, stored);
    }
    let before = file_bytes(&ledger.path());
    let source = ledger.source;
    let spent = timed(|| {
        let reports = (stored..stored + webhooks)
            .map(|serial| report(source, &run_id(&ids, serial), At(START)));
        ledger.hear(reports, group, At(START));
    });
    println!(
        "settled: {webhooks} webhooks in groups of {group} onto {stored}, {ids} ids: {:.0} /s, {:.1} µs each; {:.0} bytes in the file each, {} bytes of log",
        webhooks as f64 / spent.as_secs_f64(),
        spent.as_secs_f64() * 1e6 / webhooks as f64,
        (file_bytes(&ledger.path()) - before) as f64 / webhooks as f64,
        file_bytes(&ledger.path().with_extension("db-wal")),
    );
    let spent = bare(
        &ledger.folder.path().join("bare.db"),
        &ids,
        stored,
        webhooks,
        group,
    );
    println!(
        "one table with a unique id: {:.1} µs each",
        spent.as_secs_f64() * 1e6 / webhooks as f64
    );
}

/// Measures the least table. A thread of its own moves its log into the file, as settled's does.
fn bare(path: &Path, ids: &str, stored: u64, webhooks: u64, group: usize) -> Duration {
    let table = "CREATE TABLE events (id INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL) STRICT;";
    let mut sql = database(path, table);
    sql.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -16384;")
        .expect("settings");
    let mut insert = |serials: Range<u64>| {
        let tx = sql.transaction().expect("begun");
        let mut insert = tx
            .prepare_cached("INSERT INTO events (run_id, body) VALUES (?1, ?2)")
            .expect("a statement");
        for serial in serials {
            let id = run_id(ids, serial);
            // The rows before the measurement are small, so that only the index is large.
            let body = if serial < stored {
                String::new()
            } else {
                body(&id)
            };
            insert.execute((id, body.into_bytes())).expect("inserted");
        }
        drop(insert);
        tx.commit().expect("committed");
    };
    insert(0..stored);
    database(path, "PRAGMA wal_checkpoint(TRUNCATE);");
    File::open(path)
        .and_then(|file| file.sync_all())
        .expect("on the disk");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sql = database(path, "");
            while !done.load(Ordering::Relaxed) {
                let _ = sql.execute_batch("PRAGMA wal_checkpoint(PASSIVE);");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let spent = timed(|| {
            for serial in (stored..stored + webhooks).step_by(group) {
                insert(serial..(serial + group as u64).min(stored + webhooks));
            }
        });
        done.store(true, Ordering::Relaxed);
        spent
    })
}

/// Run ids: ordered as Skyvern's, or as good as random as those of the other providers.
fn run_id(ids: &str, serial: u64) -> String {
    match ids {
        "ordered" => format!("wr_{serial:020}"),
        "random" => format!("wr_{:020}", serial.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        other => panic!("--ids {other}"),
    }
}

/// Fills the ledger with the rows that `stored` webhooks would leave.
fn clone_runs(ledger: &Ledger, ids: &str, count: u64) {
    let mut sql = Connection::open(ledger.path()).expect("the same file");
    sql.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -2097152;")
        .expect("settings");
    let tx = sql.transaction().expect("begun");
    let copy = |table: &str, columns: &str, key: &str| {
        tx.prepare(&format!(
            "INSERT INTO {table} SELECT {columns} FROM {table} WHERE {key} = 1"
        ))
        .expect("a statement")
    };
    let mut run = copy(
        "runs",
        "?1, source, ?2, phase, overdue, opened_at, outcome, origin, settled_at, first_webhook_at, poll_at, poll_urgent_at,
         wake_at, ?1, state",
        "id",
    );
    let mut report = copy(
        "reports",
        "?1, source, via, at, verdict, secret, ring, head, body, note, attempts",
        "id",
    );
    let mut heard = copy(
        "heard",
        "?1, ?1, at, via, trust, claim, status, effect, ?1",
        "run",
    );
    let mut record = copy(
        "records",
        "?1, ?1, type, at, source, group_id, outcome, origin, envelope, data",
        "seq",
    );
    for serial in 1..count {
        let row = i64::try_from(serial + 1).expect("small");
        run.execute((row, run_id(ids, serial))).expect("a run");
        if serial + 1_000_000 >= count {
            for statement in [&mut report, &mut heard, &mut record] {
                statement.execute([row]).expect("a row");
            }
        }
    }
    drop((run, report, heard, record));
    tx.execute(
        "UPDATE meta SET reported = ?1, processed = ?1, recorded = ?1",
        [count.cast_signed()],
    )
    .expect("the marks");
    tx.commit().expect("committed");
    sql.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);")
        .expect("moved");
    // Otherwise the system would still write these rows during the measurement.
    File::open(ledger.path())
        .and_then(|file| file.sync_all())
        .expect("on the disk");
}

fn report(source: i64, run_id: &str, at: At) -> Report {
    let body = body(run_id);
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let meta = WebhookMeta {
        headers: vec![
            header("host", "hooks.example.com"),
            header("content-type", "application/json"),
            header("user-agent", "python-httpx/0.28.1"),
            header("x-skyvern-timestamp", "1795248987"),
            header("x-skyvern-signature", &format!("{run_id:0>64}")),
            header("content-length", &body.len().to_string()),
        ],
        path_token: None,
        verdict: Verdict::Signed,
        secret: Some(SecretLabel("api_key".to_owned())),
        truncated: false,
        peer: Some("127.0.0.1".to_owned()),
    };
    Report {
        source,
        at,
        meta: Meta::Webhook(meta),
        body: body.into_bytes(),
    }
}
