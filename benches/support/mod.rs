//! Shared by the benchmarks: options, statistics, a ledger, a daemon, and signed webhooks.

#![allow(dead_code, reason = "each benchmark uses a part of it")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use settled::config::SourceConfig;
use settled::ledger::{UnverifiedLimits, Writer};
use settled::model::{At, Kind, RunId, SourceName};
use settled::providers::REGISTRY;
use settled::providers::signature::sign;
use settled::reconciler::{self, Reconciler};
use settled::report::{Meta, Report, TrackMeta};
use settled::secret::{Key, Secret, SecretLabel};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

/// The secret that signs every webhook.
pub const KEY: &str = "bench-key-that-signs-every-webhook";

const FIRST_POLL: Duration = Duration::from_secs(3600);

/// The value after the option `name` on the command line, or the default.
pub fn option<T: FromStr>(name: &str, otherwise: T) -> T {
    options(name).pop().map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} {text}"))
    })
}

/// Every value after an option `name` that may be repeated.
pub fn options(name: &str) -> Vec<String> {
    let arguments: Vec<String> = std::env::args().collect();
    arguments
        .windows(2)
        .filter(|pair| pair[0] == name)
        .map(|pair| pair[1].clone())
        .collect()
}

/// The median.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    share(&values, 0.5)
}

/// The quantile: the value below which this share of the values lies.
pub fn share(sorted: &[f64], share: f64) -> f64 {
    sorted
        .get((sorted.len().saturating_sub(1) as f64 * share) as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Measures how long `work` takes.
pub fn timed(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

/// The size of a file; 0 if it does not exist.
pub fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// The resident memory of a process in bytes.
pub fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or("0 kB");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .unwrap_or(0)
        << 10
}

/// CPU seconds of a process, user and system time. Linux counts them in hundredths of a second.
pub fn computed(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}

/// The size of a database page: the least that one webhook adds to the log.
pub const PAGE_BYTES: usize = 4096;

/// Measures syncs of this many bytes on the disk of `folder`, in milliseconds. There is a pause before
/// each, because an idle CPU wakes slowly. The file is overwritten again and again, as a log is.
pub fn fdatasyncs(folder: &Path, bytes: usize, count: usize, pause: Duration) -> Vec<f64> {
    let probe = vec![0; bytes];
    let mut file = File::create(folder.join("probe")).expect("a probe");
    let mut one = || {
        file.rewind()
            .and_then(|()| file.write_all(&probe))
            .expect("written");
        timed(|| file.sync_data().expect("synced")).as_secs_f64() * 1000.0
    };
    one();
    (0..count)
        .map(|_| {
            std::thread::sleep(pause);
            one()
        })
        .collect()
}

/// The least table that stores bodies.
pub const BODIES: &str = "CREATE TABLE events (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;";

/// Opens a database with these tables and settled's durability settings.
pub fn database(path: &Path, tables: &str) -> Connection {
    let connection = Connection::open(path).expect("a database");
    let durable = "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;";
    connection
        .execute_batch(durable)
        .and_then(|()| connection.execute_batch(tables))
        .expect("tables");
    connection
}

/// Says when the next of `rate` requests a second is due. It has a thread of its own, because the
/// runtime's timers fire once a millisecond, for everything that fell due meanwhile.
pub struct Beat(tokio::sync::Mutex<mpsc::UnboundedReceiver<(usize, Instant)>>);

impl Beat {
    /// A schedule of `count` requests, the first due at `begin`.
    pub fn start(begin: Instant, rate: f64, count: usize) -> Beat {
        let (tick, ticks) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for number in 0..count {
                let due = begin + Duration::from_secs_f64(number as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if tick.send((number, Instant::now())).is_err() {
                    return;
                }
            }
        });
        Beat(tokio::sync::Mutex::new(ticks))
    }

    /// Waits for the next request: its number, and the moment from which its latency counts. That is
    /// when it fell due if all connections were busy then, and otherwise now, since the time our own
    /// threads take to wake is not the server's. `None` after the last.
    pub async fn next(&self) -> Option<(usize, Instant)> {
        let mut ticks = self.0.lock().await;
        if let Ok(late) = ticks.try_recv() {
            return Some(late);
        }
        ticks
            .recv()
            .await
            .map(|(number, _)| (number, Instant::now()))
    }
}

/// The body of a webhook: the run has completed; about 600 bytes.
pub fn body(run_id: &str) -> String {
    format!(
        r#"{{"run_id":"{run_id}","status":"completed","run_type":"workflow_run","created_at":"2026-11-21T07:48:22.144163","finished_at":"2026-11-21T07:49:22.144163","workflow_permanent_id":"wpid_1234567890","failure_reason":null,"output":{{"text":"{}"}},"step_count":7}}"#,
        "x".repeat(330)
    )
}

/// A whole signed HTTP request with this body.
pub fn request(run_id: &str) -> Vec<u8> {
    let body = body(run_id);
    let signature = sign(KEY, &[body.as_bytes()]);
    let head = format!(
        "POST /hooks/sky HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nuser-agent: python-httpx/0.28.1\r\nx-skyvern-timestamp: 1795248987\r\nx-skyvern-signature: {signature}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// The report of a client that tracks the run of this number.
pub fn track(source: i64, number: usize, at: At) -> Report {
    let run_id = RunId::new(&format!("wr_{number:018}")).expect("an id");
    let meta = Meta::Track(TrackMeta {
        run_id,
        kind: Some(Kind::Workflow),
        group_id: None,
        metadata: None,
    });
    Report {
        source,
        at,
        meta,
        body: Vec::new(),
    }
}

/// A ledger in a folder of its own, with one Skyvern account.
pub struct Ledger {
    /// The folder of the database.
    pub folder: TempDir,
    /// The writer over it.
    pub reconciler: Reconciler,
    /// The row id of the source.
    pub source: i64,
}

impl Ledger {
    /// Makes an empty ledger.
    pub fn new(now: At) -> Ledger {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::open(&folder.path().join("settled.db"), now).expect("a ledger");
        let provider = REGISTRY
            .iter()
            .find(|provider| provider.name() == "skyvern")
            .expect("skyvern");
        let name = SourceName::new("sky").expect("a name");
        let key = || Key {
            label: SecretLabel("api_key".to_owned()),
            secret: Secret::new(KEY),
        };
        let mut source = SourceConfig::new(name.clone(), *provider).with_keys(Some(key()), [key()]);
        // As in the daemon's configuration below: no open run is due during the measurement.
        source.overrides.first_poll = Some(FIRST_POLL);
        source.overrides.max_interval = Some(FIRST_POLL * 2);
        let sources = reconciler::register(
            &mut writer,
            &BTreeMap::from([(name, Arc::new(source))]),
            now,
        )
        .expect("a source");
        let source = sources.rows()[0];
        let ring = UnverifiedLimits {
            rows_max: 10_000,
            bytes_max: 64 << 20,
        };
        let mut reconciler = Reconciler::new(writer, sources, ring);
        reconciler.recover(now, |_| ()).expect("nothing to recover");
        let checkpointer = reconciler.checkpointer().expect("a checkpointer");
        std::thread::spawn(move || checkpointer.run());
        Ledger {
            folder,
            reconciler,
            source,
        }
    }

    /// The path of the database file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("settled.db")
    }

    /// Stores reports in batches, and processes them.
    pub fn hear(&mut self, reports: impl IntoIterator<Item = Report>, group: usize, now: At) {
        let mut reports = reports.into_iter().peekable();
        while reports.peek().is_some() {
            let group = reports.by_ref().take(group).collect();
            self.reconciler
                .write_batch(group, Vec::new(), now)
                .expect("a turn");
        }
        self.reconciler
            .write_batch(Vec::new(), Vec::new(), now)
            .expect("the last opinion");
    }
}

/// A daemon with one Skyvern account. Dropping this ends its process.
pub struct Daemon {
    child: Child,
    /// The address of the webhook endpoint.
    pub hooks: SocketAddr,
    /// The path of the feed's socket.
    pub feed: PathBuf,
    /// The time from the start of the process until it listened.
    pub started_in: Duration,
}

impl Daemon {
    /// Starts a daemon on the ledger in `folder`, or on a new ledger.
    pub async fn start(folder: &Path) -> Daemon {
        let hooks = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port");
        let path = |name: &str| folder.join(name).display().to_string();
        let config = format!(
            "[hooks]\nlisten = \"{hooks}\"\n[store]\npath = \"{}\"\n[sockets]\nfeed = \"{}\"\ncontrol = \"{}\"\n[sources.sky]\nprovider = \"skyvern\"\nbase_url = \"http://127.0.0.1:9\"\napi_key = {{ file = \"{}\" }}\nfirst_poll = \"{}s\"\nmax_interval = \"{}s\"\n",
            path("settled.db"),
            path("feed.sock"),
            path("control.sock"),
            path("key"),
            FIRST_POLL.as_secs(),
            2 * FIRST_POLL.as_secs(),
        );
        std::fs::write(folder.join("key"), KEY).expect("a key");
        std::fs::write(folder.join("settled.toml"), config).expect("a configuration");
        let begin = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_settled"))
            .args(["--config", &path("settled.toml"), "serve", "--log", "error"])
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the daemon starts");
        let feed = folder.join("feed.sock");
        while TcpStream::connect(hooks).await.is_err() || UnixStream::connect(&feed).await.is_err()
        {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "the daemon does not listen"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Daemon {
            child,
            hooks,
            feed,
            started_in: begin.elapsed(),
        }
    }

    /// The process id.
    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sender that waits for each answer.
pub struct Sender {
    address: SocketAddr,
    stream: TcpStream,
    answer: Vec<u8>,
    used_at: Instant,
}

/// After this much silence a sender opens a new connection, because servers close idle ones.
const IDLE_MAX: Duration = Duration::from_secs(5);

impl Sender {
    /// Opens the connection.
    pub async fn connect(address: SocketAddr) -> Sender {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("nodelay");
        Sender {
            address,
            stream,
            answer: vec![0; 4096],
            used_at: Instant::now(),
        }
    }

    /// Sends a request and returns the status of its answer. Calls `sent` after the last byte is sent.
    pub async fn send(&mut self, request: &[u8], sent: impl FnOnce()) -> u16 {
        if self.used_at.elapsed() > IDLE_MAX {
            *self = Sender::connect(self.address).await;
        }
        self.stream.write_all(request).await.expect("sent");
        sent();
        let mut read = 0;
        while !whole_answer(&self.answer[..read]) {
            let count = self
                .stream
                .read(&mut self.answer[read..])
                .await
                .expect("answered");
            assert!(
                count > 0,
                "the server closed: {}",
                String::from_utf8_lossy(&self.answer[..read])
            );
            read += count;
        }
        let text = std::str::from_utf8(&self.answer[..read])
            .expect("ASCII")
            .to_owned();
        if text.to_ascii_lowercase().contains("connection: close") {
            *self = Sender::connect(self.address).await;
        }
        self.used_at = Instant::now();
        text.get(9..12)
            .and_then(|status| status.parse().ok())
            .expect("a status")
    }
}

/// Whether the buffer holds a whole response.
fn whole_answer(answer: &[u8]) -> bool {
    let text = std::str::from_utf8(answer).expect("an answer in ASCII");
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().expect("a length"))
    });
    body.len() >= length.expect("every server here says how long its answer is")
}
