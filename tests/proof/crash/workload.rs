//! A process that does everything to a ledger: the real reconciler on its own thread, fed as the
//! receiver feeds it. It logs what it was promised, before anything else can happen, and what it
//! read from the feed.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rusqlite::{Connection, OpenFlags};
use settled::demo::clouds::Keys;
use settled::ledger::commands::TrimRecords;
use settled::ledger::{UnverifiedLimits, Writer};
use settled::model::At;
use settled::reconciler::{self, Clock, Handle, Reconciler, channel};
use settled::report::{Meta, Report};

use super::trace::LOG;
use crate::clouds;
use crate::history::{Op, SEED, Scribe, op};
use crate::support::check::{self, Acked, Feed};

pub const RING: UnverifiedLimits = UnverifiedLimits {
    rows_max: 10,
    bytes_max: 1 << 20,
};

/// What a workload said so far.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub acked: Vec<Acked>,
    pub feed: Feed,
}

impl Said {
    /// Reads one line of the log.
    pub fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["acked", id, verdict, body] => {
                let (verdict, body) = (verdict.to_owned(), body.to_owned());
                self.acked.push(Acked {
                    report: id.parse().unwrap(),
                    verdict,
                    body,
                });
            }
            ["read", seq, id, digest] => {
                self.feed
                    .insert(seq.parse().unwrap(), (id.to_owned(), digest.to_owned()));
            }
            _ => panic!("the workload said {line:?}"),
        }
    }
}

/// The operations of a workload.
pub fn script(seed: u64, steps: usize) -> Vec<Op> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..steps)
        .map(|_| op().new_tree(&mut runner).unwrap().current())
        .collect()
}

/// Where the ledger lies in a folder.
pub fn store(folder: &Path) -> PathBuf {
    folder.join("settled.db")
}

struct Workload {
    store: PathBuf,
    log: File,
    now: Arc<AtomicI64>,
    scribe: Scribe,
    read: i64,
}

/// A daemon's middle: the way to the writer, and its thread.
struct Middle {
    ledger: Handle,
    thread: std::thread::JoinHandle<()>,
}

/// Works through a script. Failures are answered as a provider answers a 503: by sending again.
pub fn work(folder: &Path, ops: &[Op]) {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(LOG))
        .unwrap();
    let scribe = Scribe::new();
    let now = Arc::new(AtomicI64::new(scribe.now.0));
    let mut workload = Workload {
        store: store(folder),
        log,
        now,
        scribe,
        read: 0,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut middle = workload.open();
    for op in ops {
        match op {
            Op::Reach(said) => {
                let reports = workload.scribe.write(said);
                runtime.block_on(workload.hand_in(&middle.ledger, reports));
            }
            Op::Wait(seconds) => workload.wait(*seconds),
            Op::Reverify { account } => {
                let source = workload.scribe.members[*account].id;
                let _ = runtime.block_on(middle.ledger.reverify(source));
            }
            Op::Die(_) | Op::Restore => {
                drop(middle.ledger);
                middle.thread.join().unwrap();
                middle = workload.open();
            }
            Op::Trim(age, bytes_max, rows_max) => {
                let before = At(workload.scribe.now.0 - age * 1000);
                let trim = TrimRecords {
                    before,
                    bytes_max: *bytes_max,
                    rows_max: *rows_max,
                };
                let _ = runtime.block_on(middle.ledger.execute(trim));
            }
            // What was told is compared with what is there, so all of it has to stay.
            Op::Forget { .. } | Op::Rotate { .. } | Op::Consume(_) => {}
        }
        workload.read();
    }
}

impl Workload {
    fn wait(&mut self, seconds: i64) {
        self.scribe.now = At(self.scribe.now.0 + seconds * 1000 + 1);
        self.now.store(self.scribe.now.0, Ordering::Relaxed);
    }

    /// Opens the ledger; as often as it takes.
    fn open(&mut self) -> Middle {
        let now = self.scribe.now;
        let open = || {
            let mut writer = Writer::open(&self.store, now)?;
            let sources =
                reconciler::register(&mut writer, &clouds::accounts(&Keys::new(SEED)), now)?;
            let mut reconciler = Reconciler::new(writer, sources.clone(), RING);
            reconciler.recover(now, |_| ())?;
            Ok::<_, settled::ledger::LedgerError>((reconciler, sources))
        };
        let (reconciler, sources) = insist(|| open().ok());
        self.scribe.members = sources.members().cloned().collect();
        let time = self.now.clone();
        let clock: Clock = Arc::new(move || At(time.load(Ordering::Relaxed)));
        let (ledger, serve) = channel(reconciler, clock, 0);
        Middle {
            ledger,
            thread: std::thread::spawn(serve),
        }
    }

    async fn hand_in(&mut self, ledger: &Handle, reports: Vec<Report>) {
        let log = &self.log;
        join_all(
            reports
                .into_iter()
                .map(|report| hand_in(log, ledger, report)),
        )
        .await;
    }

    /// Reads what is new in the feed.
    fn read(&mut self) {
        let records = insist(|| read_after(&self.store, self.read).ok());
        for (seq, envelope, data) in records {
            let told: serde_json::Value = serde_json::from_str(&envelope).unwrap();
            let digest = check::digest((envelope + &data).as_bytes());
            say(
                &self.log,
                &format!("read {seq} {} {digest}", told["id"].as_str().unwrap()),
            );
            self.read = seq;
        }
    }
}

fn read_after(store: &Path, after: i64) -> rusqlite::Result<Vec<(i64, String, String)>> {
    let connection = Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut select = connection
        .prepare("SELECT seq, envelope, data FROM records WHERE seq > ?1 ORDER BY seq")?;
    select
        .query_map([after], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect()
}

async fn hand_in(log: &File, ledger: &Handle, report: Report) {
    let Meta::Webhook(meta) = &report.meta else {
        let _ = ledger.process(report).await; // the run stays due, and is asked about again
        return;
    };
    let (verdict, digest) = (meta.verdict, check::digest(&report.body));
    for _ in 0..PATIENCE {
        match ledger.store(report.clone()).await {
            Ok(id) if verdict.authentic() => {
                return say(log, &format!("acked {id} {verdict} {digest}"));
            }
            Ok(_) => return,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    panic!("the ledger does not recover");
}

const PATIENCE: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

fn insist<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..PATIENCE {
        if let Some(value) = attempt() {
            return value;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("the ledger does not recover");
}

/// One line, in one write.
fn say(mut log: &File, line: &str) {
    log.write_all(format!("{line}\n").as_bytes()).unwrap();
}
