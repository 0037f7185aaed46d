//! What grows with the ledger, and what must not: reading the feed from its beginning beside a bare
//! scan of the same rows, and choosing what to ask about among many open runs.
//!
//! `cargo bench --bench scale -- [--settled 100000] [--open 100000] [--rounds 5]`

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use settled::config::Source;
use settled::limits::{PAGE_ROWS, PAGE_SCAN_ROWS};
use settled::providers::{REGISTRY, Verdict};
use settled::reconciler::{Fleet, Reconciler};
use settled::report::{Head, Report, TrackHead, WebhookHead};
use settled::run::{At, Kind, RunId, SourceName};
use settled::secret::{Key, Secret, SecretLabel};
use settled::store::{Filter, Reader, RingLimits, Writer};

const START: At = At(1_795_248_987_000);
const GROUP: usize = 512;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str, otherwise: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(otherwise, |at| arguments[at + 1].parse().expect("a number"))
    };
    let (settled, open, rounds) = (option("--settled", 100_000), option("--open", 100_000), option("--rounds", 5));
    catch_up(settled, rounds);
    choose(open, rounds);
}

/// A ledger in a folder of its own, with one Skyvern account.
struct Ledger {
    folder: tempfile::TempDir,
    reconciler: Reconciler,
    source: i64,
}

impl Ledger {
    fn new() -> Ledger {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::open(&folder.path().join("settled.db"), START).expect("a ledger");
        let provider = REGISTRY.iter().find(|provider| provider.name() == "skyvern").expect("skyvern");
        let name = SourceName::new("sky").expect("a name");
        let secret = Secret::new("bench-key-that-signs-every-webhook");
        let source = Source::new(name.clone(), *provider).with_keys(Some(secret_key(&secret)), [secret_key(&secret)]);
        let fleet = Fleet::enlist(&mut writer, &BTreeMap::from([(name, Arc::new(source))]), START).expect("a source");
        let source = fleet.rows()[0];
        let ring = RingLimits { rows_max: 10_000, bytes_max: 64 << 20 };
        let mut reconciler = Reconciler::new(writer, fleet, ring);
        reconciler.recover(START, |_| ()).expect("nothing to recover");
        Ledger { folder, reconciler, source }
    }

    fn hears(&mut self, count: usize, report: impl Fn(usize) -> Head, body: impl Fn(usize) -> Vec<u8>) {
        for first in (0..count).step_by(GROUP) {
            let numbers = first..count.min(first + GROUP);
            let group = numbers.map(|number| Report {
                source: self.source,
                at: START,
                head: report(number),
                body: body(number),
            });
            self.reconciler.turn(group.collect(), Vec::new(), START).expect("a turn");
        }
        self.reconciler.turn(Vec::new(), Vec::new(), START).expect("the last opinion");
    }
}

fn secret_key(secret: &Secret) -> Key {
    Key { label: SecretLabel("api_key".to_owned()), secret: secret.clone() }
}

/// Reads the whole feed as a follower does, and the same rows as SQLite gives them.
fn catch_up(count: usize, rounds: usize) {
    let mut ledger = Ledger::new();
    let head = WebhookHead {
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        path_token: None,
        verdict: Verdict::Signed,
        secret: None,
        truncated: false,
        peer: None,
    };
    let text = "x".repeat(500);
    ledger.hears(
        count,
        |_| Head::Webhook(head.clone()),
        |number| format!(r#"{{"run_id":"wr_{number:018}","status":"completed","output":{{"text":"{text}"}}}}"#).into(),
    );
    let reader = ledger.reconciler.reader();
    let bare = Connection::open(ledger.folder.path().join("settled.db")).expect("the same file");
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
    let mut select =
        bare.prepare_cached("SELECT seq, type, at, envelope, data FROM records ORDER BY seq").expect("a statement");
    let mut rows = select.query([]).expect("rows");
    while let Some(row) = rows.next().expect("a row") {
        for column in 0..5 {
            black_box(row.get_ref(column).expect("a column"));
        }
    }
}

fn follow(reader: &Reader) {
    let (mut position, filter) = (0, Filter { types: Vec::new(), ..Filter::default() });
    loop {
        let page =
            reader.read(|view| view.records(position, i64::MAX, &filter, PAGE_ROWS, PAGE_SCAN_ROWS)).expect("a page");
        if page.0.is_empty() {
            return;
        }
        position = page.0.last().expect("one at least").seq;
        black_box(page);
    }
}

/// Asks for what is due among so many open runs, none of which is, and then all of which are.
fn choose(count: usize, rounds: usize) {
    let mut ledger = Ledger::new();
    let track = |number: usize| {
        let run_id = RunId::new(&format!("wr_{number:018}")).expect("an id");
        Head::Track(TrackHead { run_id, kind: Some(Kind::Workflow), group_id: None, metadata: None })
    };
    for part in [count / 100, count - count / 100] {
        let before = ledger.reconciler.reader().read(|view| view.source_counts()).expect("counts")[0].open;
        let first = usize::try_from(before).expect("small");
        ledger.hears(part, |number| track(first + number), |_| Vec::new());
        let (reader, source) = (ledger.reconciler.reader(), ledger.source);
        let later = At(START.0 + 86_400_000);
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            let due =
                |now: At| timed(|| drop(black_box(reader.read(|view| view.due(source, now, now, 64)).expect("rows"))));
            let alarms =
                timed(|| drop(black_box(reader.read(|view| view.alarms(&[source], START, 64)).expect("rows"))));
            for (times, time) in times.iter_mut().zip([due(START), due(later), alarms]) {
                times.push(time.as_secs_f64() * 1e6);
            }
        }
        let [none, all, alarms] = times.map(median);
        println!(
            "{} open runs: nothing due {none:.0} µs, 64 chosen of all due {all:.0} µs, no alarm {alarms:.0} µs; {} MiB resident, {:.0} bytes a run",
            first + part,
            resident() >> 20,
            file_bytes(&ledger.folder.path().join("settled.db")) as f64 / (first + part) as f64,
        );
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bytes of memory that this process really has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}
