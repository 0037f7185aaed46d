//! The servers as senders and clients meet them: bytes on a connection, to the real accept loop,
//! receiver, sockets, writer and database, in one process.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use settled::api::{self, ApiState};
use settled::config::SourceConfig;
use settled::ingest::Receiver;
use settled::ledger::commands::Probe;
use settled::ledger::{Reader, UnverifiedLimits, Writer};
use settled::limits;
use settled::model::{At, SourceName};
use settled::providers::{REGISTRY, signature};
use settled::reconciler::{self, Clock, Handle, Reconciler};
use settled::server::{self, Allowance, Function, Listener, Peer};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::targets::{NOW, SECRET, keyring};

/// A new place is made after so many inputs, so that none grows without end.
const INPUTS_MAX: u32 = 3_000;

/// What the endpoint is told to take.
const BODY_BYTES_MAX: usize = 1 << 20;

static TIME: AtomicI64 = AtomicI64::new(NOW.0);

/// Both servers over a ledger of their own.
struct Place {
    runtime: Option<Runtime>,
    folder: TempDir,
    ledger: Handle,
    reader: Reader,
    inputs: u32,
    _stop: watch::Sender<bool>,
}

fn clock() -> Clock {
    Arc::new(|| At(TIME.load(Ordering::Relaxed)))
}

/// In memory where that can be had: what is looked for is not lost by a power cut. A fuzzer ends its
/// process without clearing up, so the next one does.
fn folder() -> TempDir {
    const PREFIX: &str = "settled-fuzz-";
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    for entry in std::fs::read_dir(&place).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(place)
        .expect("a folder")
}

impl Place {
    fn new() -> Place {
        let folder = folder();
        let mut writer = Writer::open(&folder.path().join("settled.db"), NOW).expect("a ledger");
        let account = |provider: &&'static dyn settled::providers::Provider| {
            let mut source =
                SourceConfig::new(SourceName::new(provider.name()).expect("a name"), *provider);
            source.keyring = keyring();
            (source.name.clone(), Arc::new(source))
        };
        let sources =
            reconciler::register(&mut writer, &REGISTRY.iter().map(account).collect(), NOW)
                .expect("rows");
        let ring = UnverifiedLimits {
            rows_max: 100,
            bytes_max: 1 << 20,
        };
        let mut reconciler = Reconciler::new(writer, sources.clone(), ring);
        reconciler.recover(NOW, |_| ()).expect("nothing to recover");
        let reader = reconciler.reader();
        let (ledger, serve) = reconciler::channel(reconciler, clock(), 0);
        std::thread::spawn(serve);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let (stop, stopped) = watch::channel(false);
        let sources = watch::channel(Arc::new(sources)).1;
        let state = ApiState {
            ledger: ledger.clone(),
            reader: reader.clone(),
            sources: sources.clone(),
            clients: watch::channel(Arc::default()).1,
            access: settled::api::access::Access::default(),
            clock: clock(),
            started_at: NOW,
            stop: stopped.clone(),
            trouble: watch::channel(None).1,
            streams: Arc::new(Semaphore::new(limits::STREAMS_MAX)),
            lookups: Semaphore::new(limits::LOOKUPS_MAX),
            consumers: api::Readers::default(),
            page_cache: api::PageCache::default(),
        };
        runtime.block_on(async {
            // A fuzzer's main function is not Rust's, so a connection that breaks would end the process.
            drop(signal(SignalKind::pipe()).expect("a handler"));
            let listen = |name: &str| {
                Listener::Unix(UnixListener::bind(folder.path().join(name)).expect("a socket"))
            };
            let receiver = Arc::new(Receiver::new(
                sources,
                ledger.clone(),
                clock(),
                BODY_BYTES_MAX,
            ));
            let hooks = move |peer: Peer| {
                let (receiver, peer) = (receiver.clone(), Arc::new(peer));
                Function(move |request| {
                    let (receiver, peer) = (receiver.clone(), peer.clone());
                    async move { receiver.respond(request, &peer).await }
                })
            };
            let routes = api::control_routes(Arc::new(state));
            let control = move |_: Peer| {
                let routes = TowerToHyperService::new(routes.clone());
                Function(move |request| {
                    let answer = hyper::service::Service::call(&routes, request);
                    async move { answer.await.unwrap_or_else(|never| match never {}) }
                })
            };
            tokio::spawn(server::serve(
                listen("hooks"),
                allowance(),
                hooks,
                stopped.clone(),
            ));
            tokio::spawn(server::serve(
                listen("control"),
                allowance(),
                control,
                stopped,
            ));
        });
        Place {
            runtime: Some(runtime),
            folder,
            ledger,
            reader,
            inputs: 0,
            _stop: stop,
        }
    }

    fn path(&self, socket: &str) -> PathBuf {
        self.folder.path().join(socket)
    }

    /// Nothing that was taken in defeated its reader.
    fn check(&self) {
        let runtime = self.runtime.as_ref().expect("it runs");
        // The first batch stores what waits, the second processes it.
        for _ in 0..2 {
            let probed = runtime.block_on(self.ledger.execute(Probe));
            probed.expect("the writer lives");
        }
        let unprocessed = self.reader.read(|view| view.unprocessed_count());
        assert_eq!(unprocessed.expect("it reads"), 0, "it is not processed");
        #[expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method alone is not general enough"
        )]
        let aside = self.reader.read(|view| view.quarantined_count());
        assert_eq!(aside.expect("it reads"), 0, "it is quarantined");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn allowance() -> Allowance {
    let timeout = Duration::from_secs(5);
    Allowance {
        connections_max: 100,
        header_timeout: timeout,
        write_timeout: timeout,
        drain_timeout: timeout,
    }
}

/// Runs `work` at the place, a second after the input before.
fn at_the_place(work: impl FnOnce(&Place)) {
    thread_local!(static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) });
    PLACE.with_borrow_mut(|place| {
        place.take_if(|place| place.inputs >= INPUTS_MAX);
        let place = place.get_or_insert_with(Place::new);
        place.inputs += 1;
        TIME.fetch_add(1_000, Ordering::Relaxed);
        work(place);
    });
}

/// Sends bytes, closes our side, and gives what comes back until the other side closes or `wait` has
/// passed without a byte.
fn talk(socket: &Path, bytes: &[u8], wait: Duration) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    stream.set_read_timeout(Some(wait)).expect("a time limit");
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .expect("a time limit");
    // Whoever is shown out while still sending sees a broken pipe.
    let _ = stream
        .write_all(bytes)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answers = Vec::new();
    let _ = stream.take(1 << 20).read_to_end(&mut answers);
    answers
}

/// The status of the first answer.
fn status(answers: &[u8]) -> Option<u16> {
    let text = answers.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn says(request: &[u8], answers: &[u8]) -> String {
    format!(
        "{}\n--- was answered\n{}",
        request.escape_ascii(),
        answers.escape_ascii()
    )
}

/// Any bytes on a connection of the webhook endpoint.
pub fn hooks(data: &[u8]) {
    on_a_connection("hooks", data, Duration::from_secs(20));
}

/// Any bytes on a connection of the control socket, which serves all that the feed's serves. Streams
/// that go on are left after a moment.
pub fn control(data: &[u8]) {
    on_a_connection("control", data, Duration::from_millis(50));
}

fn on_a_connection(socket: &str, data: &[u8], wait: Duration) {
    at_the_place(|place| {
        let answers = talk(&place.path(socket), data, wait);
        let status = status(&answers);
        assert!(
            status.is_some() || answers.is_empty(),
            "{}",
            says(data, &answers)
        );
        assert!(
            status.is_none_or(|status| status < 500),
            "{}",
            says(data, &answers)
        );
        place.check();
    });
}

/// A delivery with all that a genuine one carries: what verifies is answered 200 and is on disk, byte
/// for byte, whatever it says.
pub fn delivery(data: &[u8]) {
    let Some(([provider, slice], body)) = data
        .split_first_chunk::<2>()
        .map(|(choices, body)| (*choices, body))
    else {
        return;
    };
    if body.len() > BODY_BYTES_MAX {
        return;
    }
    let provider = REGISTRY[usize::from(provider) % REGISTRY.len()].name();
    at_the_place(|place| {
        let plain = signature::sign(SECRET, &[body]);
        let time = (TIME.load(Ordering::Relaxed) / 1_000).to_string();
        let timed = signature::sign(SECRET, &[time.as_bytes(), b".", body]);
        let path = if provider == "smartbrowse" {
            format!("/{SECRET}")
        } else {
            String::new()
        };
        let mut request = format!(
            "POST /hooks/{provider}{path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\
             X-Skyvern-Signature: {plain}\r\nX-Firecrawl-Signature: sha256={plain}\r\nAuthorization: {SECRET}\r\n\
             X-Browser-Use-Signature: {timed}\r\nX-Browser-Use-Timestamp: {time}\r\n\r\n"
        )
        .into_bytes();
        for chunk in body.chunks(usize::from(slice).max(1) * 64) {
            request.extend(format!("{:x}\r\n", chunk.len()).bytes());
            request.extend(chunk);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\n\r\n");
        let answers = talk(&place.path("hooks"), &request, Duration::from_secs(20));
        match status(&answers) {
            // A ping is not proven, so its answer does not name the report.
            Some(200) if answers.ends_with(b"{\"ping\":true}\n") => {}
            Some(200) => {
                let text = String::from_utf8_lossy(&answers);
                let id = text
                    .rsplit_once("{\"stored\":")
                    .and_then(|(_, id)| id.trim_end_matches(['}', '\n']).parse().ok());
                let kept = place
                    .reader
                    .read(|view| view.body(id.expect("a 200 names what it stored")));
                assert_eq!(
                    kept.expect("it reads").as_deref(),
                    Some(body),
                    "{}",
                    says(&request, &answers)
                );
            }
            Some(401 | 429) => assert_eq!(provider, "browser-use", "{}", says(&request, &answers)),
            _ => panic!("{}", says(&request, &answers)),
        }
        place.check();
    });
}
