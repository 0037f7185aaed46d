//! What one webhook costs the writer: no HTTP, no network, one thread.
//!
//! Every report is a delivery of a run of its own that settles at once, in groups as large as those
//! that form under load. Prints webhooks a second, the time of one, and the bytes that it leaves in
//! the write-ahead log and in the file. Counted in instructions the same run repeats exactly:
//!
//! `cargo bench --bench ledger -- [--webhooks 100000] [--group 64] [--stored 0]`
//! `valgrind --tool=callgrind target/release/deps/ledger-* --webhooks 6400`

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use settled::config::Source;
use settled::providers::{REGISTRY, Verdict};
use settled::reconciler::{Fleet, Reconciler};
use settled::report::{Head, Report, WebhookHead};
use settled::run::{At, SourceName};
use settled::secret::{Key, Secret, SecretLabel};
use settled::store::{RingLimits, Writer};

const START: i64 = 1_795_248_987_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str, otherwise: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(otherwise, |at| arguments[at + 1].parse().expect("a number"))
    };
    let (webhooks, group, stored) = (option("--webhooks", 100_000), option("--group", 64), option("--stored", 0));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("settled.db");
    let mut writer = Writer::open(&path, At(START)).expect("a ledger");
    let provider = REGISTRY.iter().find(|provider| provider.name() == "skyvern").expect("skyvern");
    let name = SourceName::new("sky").expect("a name");
    let key =
        || Key { label: SecretLabel("api_key".to_owned()), secret: Secret::new("bench-key-that-signs-every-webhook") };
    let source = Source::new(name.clone(), *provider).with_keys(Some(key()), [key()]);
    let fleet = Fleet::enlist(&mut writer, &BTreeMap::from([(name, Arc::new(source))]), At(START)).expect("a source");
    let row = fleet.rows()[0];
    let ring = RingLimits { rows_max: 10_000, bytes_max: 64 << 20 };
    let mut reconciler = Reconciler::new(writer, fleet, ring);
    reconciler.recover(At(START), |_| ()).expect("nothing to recover");
    let checkpointer = reconciler.checkpointer().expect("a checkpointer");
    std::thread::spawn(move || checkpointer.run());
    let mut serial = 0;
    feed(&mut reconciler, row, &mut serial, stored, group);
    let before = file_bytes(&path);
    let begin = Instant::now();
    let logged = feed(&mut reconciler, row, &mut serial, webhooks, group);
    let spent = begin.elapsed();
    let each = |bytes: u64| bytes as f64 / webhooks as f64;
    println!(
        "{webhooks} webhooks in groups of {group} onto {stored}: {:.0} /s, {:.1} µs each; {:.0} bytes in the file each, {} bytes of log",
        webhooks as f64 / spent.as_secs_f64(),
        spent.as_secs_f64() * 1e6 / webhooks as f64,
        each(file_bytes(&path) - before),
        logged,
    );
}

/// Takes in so many webhooks; gives the size of the log at the end.
fn feed(reconciler: &mut Reconciler, source: i64, serial: &mut u64, count: usize, group: usize) -> u64 {
    for _ in 0..count.div_ceil(group) {
        let now = At(START + i64::try_from(*serial / 20).expect("small"));
        let reports = (0..group).map(|_| report(source, serial, now)).collect();
        reconciler.turn(reports, Vec::new(), now).expect("a turn");
    }
    reconciler.turn(Vec::new(), Vec::new(), At(START)).expect("the last opinion");
    let path = reconciler.reader().path().with_extension("db-wal");
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// A delivery of a run whose id is as good as random, about 600 bytes of body.
fn report(source: i64, serial: &mut u64, at: At) -> Report {
    *serial += 1;
    let id = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let body = format!(
        r#"{{"run_id":"wr_{id:020}","status":"completed","run_type":"workflow_run","created_at":"2026-11-21T07:48:22.144163","finished_at":"2026-11-21T07:49:22.144163","workflow_permanent_id":"wpid_1234567890","failure_reason":null,"output":{{"text":"{}"}},"step_count":7}}"#,
        "x".repeat(330)
    );
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let head = WebhookHead {
        headers: vec![
            header("host", "hooks.example.com"),
            header("content-type", "application/json"),
            header("user-agent", "python-httpx/0.28.1"),
            header("x-skyvern-timestamp", "1795248987"),
            header("x-skyvern-signature", &format!("{id:064x}")),
            header("content-length", &body.len().to_string()),
        ],
        path_token: None,
        verdict: Verdict::Signed,
        secret: Some(SecretLabel("api_key".to_owned())),
        truncated: false,
        peer: Some("127.0.0.1".to_owned()),
    };
    Report { source, at, head: Head::Webhook(head), body: body.into_bytes() }
}

fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}
