//! Costs that grow with the ledger, and costs that must not: reading the feed from its beginning,
//! beside a bare scan of the same rows; and choosing the runs to poll among many open ones.
//!
//! `cargo bench --bench scale -- [--settled 100000] [--open 100000] [--rounds 5]`

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod support;

use std::hint::black_box;

use rusqlite::Connection;
use settled::ledger::{Filter, Reader, RecordQuery};
use settled::limits::{PAGE_ROWS, PAGE_SCAN_ROWS};
use settled::model::At;
use settled::providers::Verdict;
use settled::report::{Meta, Report, WebhookMeta};
use support::{Ledger, file_bytes, median, option, resident, timed, track};

const START: At = At(1_795_248_987_000);
const GROUP: usize = 512;

fn main() {
    let rounds = option("--rounds", 5);
    catch_up(option("--settled", 100_000), rounds);
    choose(option("--open", 100_000), rounds);
}

/// Reads the whole feed as a follower does, and the same rows with a bare SQLite scan.
fn catch_up(count: usize, rounds: usize) {
    let mut ledger = Ledger::new(START);
    let meta = WebhookMeta {
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        path_token: None,
        verdict: Verdict::Signed,
        secret: None,
        truncated: false,
        peer: None,
    };
    let text = "x".repeat(500);
    let source = ledger.source;
    let reports = (0..count).map(|number| Report {
        source,
        at: START,
        meta: Meta::Webhook(meta.clone()),
        body: format!(
            r#"{{"run_id":"wr_{number:018}","status":"completed","output":{{"text":"{text}"}}}}"#
        )
        .into(),
    });
    ledger.hear(reports, GROUP, START);
    let reader = ledger.reconciler.reader();
    let bare = Connection::open(ledger.path()).expect("the same file");
    let mut ratios = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let (scan, follow) = (timed(|| scan(&bare)), timed(|| follow(&reader)));
        ratios.push(scan.as_secs_f64() / follow.as_secs_f64());
        rates.push(count as f64 / follow.as_secs_f64());
    }
    println!(
        "catch-up of {count} records: {:.0} /s, {:.2} of a bare scan of the same rows",
        median(rates),
        median(ratios)
    );
}

fn scan(bare: &Connection) {
    let mut select = bare
        .prepare_cached("SELECT seq, type, at, envelope, data FROM records ORDER BY seq")
        .expect("a statement");
    let mut rows = select.query([]).expect("rows");
    while let Some(row) = rows.next().expect("a row") {
        for column in 0..5 {
            black_box(row.get_ref(column).expect("a column"));
        }
    }
}

fn follow(reader: &Reader) {
    let (mut position, filter) = (
        0,
        Filter {
            types: Vec::new(),
            ..Filter::default()
        },
    );
    loop {
        let page = reader
            .read(|view| {
                view.records(&RecordQuery {
                    after: position,
                    upto: i64::MAX,
                    filter: &filter,
                    rows_max: PAGE_ROWS,
                    scan_max: PAGE_SCAN_ROWS,
                })
            })
            .expect("a page");
        if page.0.is_empty() {
            return;
        }
        position = page.0.last().expect("one at least").seq;
        black_box(page);
    }
}

/// Looks for due runs among `open` ones: first none is due, then all are.
fn choose(count: usize, rounds: usize) {
    let mut ledger = Ledger::new(START);
    let source = ledger.source;
    for part in [count / 100, count - count / 100] {
        let before = ledger
            .reconciler
            .reader()
            .read(|view| view.source_counts())
            .expect("counts")[0]
            .open;
        let first = usize::try_from(before).expect("small");
        ledger.hear(
            (first..first + part).map(|number| track(source, number, START)),
            GROUP,
            START,
        );
        let reader = ledger.reconciler.reader();
        let later = At(START.0 + 86_400_000);
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            let due = |now: At| {
                timed(|| {
                    drop(black_box(
                        reader
                            .read(|view| view.due(source, now, now, 64))
                            .expect("rows"),
                    ));
                })
            };
            let due_timers = timed(|| {
                drop(black_box(
                    reader
                        .read(|view| view.due_timers(&[source], START, 64))
                        .expect("rows"),
                ));
            });
            for (times, time) in times.iter_mut().zip([due(START), due(later), due_timers]) {
                times.push(time.as_secs_f64() * 1e6);
            }
        }
        let [none, all, due_timers] = times.map(median);
        println!(
            "{} open runs: nothing due {none:.0} µs, 64 chosen of all due {all:.0} µs, no timer {due_timers:.0} µs; {} MiB resident, {:.0} bytes a run",
            first + part,
            resident(std::process::id()) >> 20,
            file_bytes(&ledger.path()) as f64 / (first + part) as f64,
        );
    }
}
