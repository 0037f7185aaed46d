//! Durable intake beside a do-nothing server: the same load, in turns, in one run.
//!
//! Every request is a signed Skyvern webhook of a new run, made before the clock starts. Both
//! servers answer the same bytes; settled's answer means that the delivery is on disk, the other's
//! means nothing. Prints requests a second and latencies as medians over the rounds, the ratio, and
//! the median fdatasync of the disk in the same minute.
//!
//! `cargo bench --bench intake -- [--rounds 5] [--seconds 3] [--connections 64] [--beside NAME=ADDRESS]…`
//!
//! `--beside` puts another server, which is running already and accepts the same signed deliveries
//! under `/hooks/sky`, into the same rounds; `benches/compare` starts some and does so.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::{Request, Response, body::Incoming};
use settled::http::{Allowance, AnyBody, Function, Listener, serve, whole};
use settled::providers::signature::sign;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const KEY: &str = "bench-key-that-signs-every-webhook";

struct Options {
    rounds: usize,
    seconds: f64,
    connections: usize,
    beside: Vec<(String, SocketAddr)>,
}

fn main() {
    let options = options();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(options));
}

fn options() -> Options {
    let mut options = Options { rounds: 5, seconds: 3.0, connections: 64, beside: Vec::new() };
    let arguments: Vec<String> = std::env::args().collect();
    for pair in arguments.windows(2) {
        match pair[0].as_str() {
            "--rounds" => options.rounds = pair[1].parse().expect("a number of rounds"),
            "--seconds" => options.seconds = pair[1].parse().expect("seconds"),
            "--beside" => {
                let (name, address) = pair[1].split_once('=').expect("NAME=ADDRESS");
                options.beside.push((name.to_owned(), address.parse().expect("an address")));
            }
            "--connections" => options.connections = pair[1].parse().expect("a number of connections"),
            _ => {}
        }
    }
    options
}

async fn run(options: Options) {
    let folder = tempfile::tempdir().expect("a folder");
    let idle = do_nothing().await;
    let (mut daemon, hooks) = start(folder.path()).await;
    let mut serial = 0;
    let ours = [("do-nothing hyper".to_owned(), idle), ("settled".to_owned(), hooks)];
    let servers: Vec<(String, SocketAddr)> = ours.into_iter().chain(options.beside.clone()).collect();
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); servers.len()];
    let mut syncs = Vec::new();
    for _ in 0..options.rounds {
        for (rounds, (_, address)) in rounds.iter_mut().zip(&servers) {
            // Beside every run: a disk that others use too has slow minutes.
            syncs.push(fdatasync_median(folder.path()));
            let requests = requests(&mut serial, (options.seconds * 100_000.0) as usize);
            rounds.push(load(*address, requests, &options).await);
        }
    }
    let _ = daemon.kill();
    let _ = daemon.wait();
    println!(
        "fdatasync median {:.2} ms; {} connections, {} rounds of {} s",
        median(syncs),
        options.connections,
        options.rounds,
        options.seconds
    );
    let nothing = Round::median(&rounds[0]);
    for ((name, _), rounds) in servers.iter().zip(&rounds) {
        let round = Round::median(rounds);
        println!("{name:24} {round}   {:.3} of doing nothing", round.per_second / nothing.per_second);
    }
}

/// A server that reads the request and answers what settled would.
async fn do_nothing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = watch::channel(false);
    let allowance = Allowance {
        connections_max: 10_000,
        header_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(60),
    };
    let service = |_| {
        Function(|request: Request<Incoming>| async move {
            use http_body_util::BodyExt;
            let _ = request.into_body().collect().await;
            let response: Response<AnyBody> = Response::new(whole("{\"stored\":1}\n"));
            response
        })
    };
    tokio::spawn(async move {
        serve(Listener::Tcp(listener), allowance, service, stopped).await;
        drop(stop);
    });
    address
}

async fn start(folder: &Path) -> (Child, SocketAddr) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let path = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "[hooks]\nlisten = \"{port}\"\n[store]\npath = \"{}\"\n[sockets]\nfeed = \"{}\"\ncontrol = \"{}\"\n[sources.sky]\nprovider = \"skyvern\"\nbase_url = \"http://127.0.0.1:9\"\napi_key = {{ file = \"{}\" }}\n",
        path("settled.db"),
        path("feed.sock"),
        path("control.sock"),
        path("key")
    );
    std::fs::write(folder.join("key"), KEY).expect("a key");
    std::fs::write(folder.join("settled.toml"), config).expect("a configuration");
    let daemon = Command::new(env!("CARGO_BIN_EXE_settled"))
        .args(["--config", &path("settled.toml"), "serve", "--log", "warn"])
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the daemon starts");
    for _ in 0..200 {
        if TcpStream::connect(port).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    (daemon, port)
}

/// Whole requests, each a signed delivery of a run of its own, about 600 bytes of body.
fn requests(serial: &mut usize, count: usize) -> Vec<Vec<u8>> {
    let request = |_| {
        *serial += 1;
        let body = format!(
            r#"{{"run_id":"wr_{:018}","status":"completed","run_type":"workflow_run","created_at":"2026-11-21T07:48:22.144163","finished_at":"2026-11-21T07:49:22.144163","workflow_permanent_id":"wpid_1234567890","failure_reason":null,"output":{{"text":"{}"}},"step_count":7}}"#,
            *serial,
            "x".repeat(330)
        );
        let signature = sign(KEY, &[body.as_bytes()]);
        let head = format!(
            "POST /hooks/sky HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nuser-agent: python-httpx/0.28.1\r\nx-skyvern-timestamp: 1795248987\r\nx-skyvern-signature: {signature}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        [head.into_bytes(), body.into_bytes()].concat()
    };
    (0..count).map(request).collect()
}

/// One server under load once.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Round {
    fn median(rounds: &[Round]) -> Round {
        let of = |field: fn(&Round) -> f64| median(rounds.iter().map(field).collect());
        Round { per_second: of(|r| r.per_second), p50_ms: of(|r| r.p50_ms), p99_ms: of(|r| r.p99_ms) }
    }
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:8.0} /s   p50 {:6.2} ms   p99 {:6.2} ms", self.per_second, self.p50_ms, self.p99_ms)
    }
}

/// Sends requests over so many connections, each waiting for its answer, for so long.
async fn load(address: SocketAddr, requests: Vec<Vec<u8>>, options: &Options) -> Round {
    let (requests, next) = (Arc::new(requests), Arc::new(AtomicUsize::new(0)));
    let begin = Instant::now();
    let until = begin + Duration::from_secs_f64(options.seconds);
    let workers: Vec<_> = (0..options.connections)
        .map(|_| tokio::spawn(worker(address, requests.clone(), next.clone(), until)))
        .collect();
    let mut times = Vec::new();
    for worker in workers {
        times.extend(worker.await.expect("a worker"));
    }
    let per_second = times.len() as f64 / begin.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Round { per_second, p50_ms: at(0.5), p99_ms: at(0.99) }
}

async fn worker(address: SocketAddr, requests: Arc<Vec<Vec<u8>>>, next: Arc<AtomicUsize>, until: Instant) -> Vec<f64> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("nodelay");
    let mut times = Vec::new();
    let mut answer = vec![0; 4096];
    while Instant::now() < until {
        let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
        let sent = Instant::now();
        stream.write_all(request).await.expect("sent");
        let mut read = 0;
        while !whole_answer(&answer[..read]) {
            let count = stream.read(&mut answer[read..]).await.expect("answered");
            assert!(count > 0, "the server closed: {}", String::from_utf8_lossy(&answer[..read]));
            read += count;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..read]));
        times.push(sent.elapsed().as_secs_f64() * 1000.0);
    }
    times
}

/// Whether everything that a server says in answer has come.
fn whole_answer(answer: &[u8]) -> bool {
    let text = std::str::from_utf8(answer).expect("an answer in ASCII");
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().expect("a length"))
    });
    body.len() >= length.expect("every server here says how long its answer is")
}

fn fdatasync_median(folder: &Path) -> f64 {
    let mut file = File::create(folder.join("probe")).expect("a probe");
    let one = |_| {
        file.write_all(&[0; 4096]).expect("written");
        let begin = Instant::now();
        file.sync_data().expect("synced");
        begin.elapsed().as_secs_f64() * 1000.0
    };
    median((0..200).map(one).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
