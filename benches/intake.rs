//! Durable intake beside servers that do less: the same load, in turns, in one run.
//!
//! Every request is a signed Skyvern webhook of a new run, made before the clock starts. All servers
//! answer the same bytes; an answer means:
//!
//! * settled: the delivery is on disk; the run is settled and in the feed a moment later;
//! * `bare SQLite`: the delivery's bytes are on disk, one row each, one commit for all that wait;
//! * `the rows alone`: rows of the lengths that settled would write, in the same tables with the same
//!   indexes, are on disk; the server reads no delivery, looks for no run and decides nothing;
//! * `do-nothing`: nothing.
//!
//! Prints requests a second and latencies as medians over the rounds, and the ratios. Beside them it
//! prints how long the disk takes in the same minutes to sync one page, and to sync as many bytes as
//! the log grows by when settled stores and processes a batch of 64 webhooks.
//!
//! `cargo bench --bench intake -- [--rounds 5] [--seconds 3] [--connections 64] [--rate N] [--beside NAME=ADDRESS]…`
//!
//! Without `--rate` each connection sends as soon as it is answered. With it a request is due every
//! 1/N s, whether or not the one before was answered. Latency counts from when the request was due if
//! every connection was busy then, and otherwise from when it was sent.
//!
//! `--beside` adds another server to the same rounds. It must run already and accept the same signed
//! deliveries under `/hooks/sky`; `benches/compare` starts some and adds them.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]

mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use rusqlite::{Connection, ToSql};
use settled::server::{Allowance, AnyBody, Function, Listener, serve, whole};
use support::{
    BODIES, Beat, Daemon, PAGE_BYTES, Sender, database, fdatasyncs, median, option, options,
    request, share,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

#[derive(Clone, Copy)]
struct Options {
    rounds: usize,
    seconds: f64,
    connections: usize,
    /// Requests a second; 0 sends as fast as the server answers.
    rate: f64,
}

fn main() {
    let options = Options {
        rounds: option("--rounds", 5),
        seconds: option("--seconds", 3.0),
        connections: option("--connections", 64),
        rate: option("--rate", 0.0),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(run(options));
}

async fn run(options: Options) {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path()).await;
    let mut servers = vec![
        ("do-nothing hyper".to_owned(), beside(None).await),
        (
            "bare SQLite".to_owned(),
            beside(Some(writer(bare(&folder.path().join("bare.db"))))).await,
        ),
        (
            "the rows alone".to_owned(),
            beside(Some(writer(rows(&folder.path().join("rows.db"))))).await,
        ),
        ("settled".to_owned(), daemon.hooks),
    ];
    servers.extend(self::options("--beside").into_iter().map(|server| {
        let (name, address) = server.split_once('=').expect("NAME=ADDRESS");
        (name.to_owned(), address.parse().expect("an address"))
    }));
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); servers.len()];
    let (mut syncs, mut serial) = ([Vec::new(), Vec::new()], 0);
    for _ in 0..options.rounds {
        for (rounds, (_, address)) in rounds.iter_mut().zip(&servers) {
            // Measured beside every run, because a shared disk has slow minutes.
            for (syncs, bytes) in syncs.iter_mut().zip([PAGE_BYTES, GROUP_BYTES]) {
                syncs.extend(fdatasyncs(folder.path(), bytes, 100, Duration::ZERO));
            }
            let rate = if options.rate > 0.0 {
                options.rate
            } else {
                100_000.0
            };
            let requests = (0..(options.seconds * rate) as usize).map(|_| {
                serial += 1;
                request(&format!("wr_{serial:018}"))
            });
            rounds.push(load(*address, requests.collect(), options).await);
        }
    }
    let [page, group] = syncs;
    println!(
        "fdatasync of 4 KiB: {}; of {} KiB: {}\n{} connections, {} rounds of {} s{}",
        figures(page),
        GROUP_BYTES >> 10,
        figures(group),
        options.connections,
        options.rounds,
        options.seconds,
        if options.rate > 0.0 {
            format!(", {} /s wanted", options.rate)
        } else {
            String::new()
        }
    );
    let nothing = Round::median(&rounds[0]);
    for ((name, _), rounds) in servers.iter().zip(&rounds) {
        let round = Round::median(rounds);
        println!(
            "{name:24} {round}   {:.3} of doing nothing",
            round.per_second / nothing.per_second
        );
    }
}

/// About the bytes that 64 webhooks add to the log, from `benches/ledger.rs`.
const GROUP_BYTES: usize = 80 * PAGE_BYTES;

fn figures(mut syncs: Vec<f64>) -> String {
    syncs.sort_by(f64::total_cmp);
    format!(
        "p50 {:.2} ms, p99 {:.2} ms",
        share(&syncs, 0.5),
        share(&syncs, 0.99)
    )
}

type Store = mpsc::Sender<(Vec<u8>, oneshot::Sender<()>)>;

/// A server that reads the request and answers as settled would; with a store, after the commit.
async fn beside(store: Option<Store>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = watch::channel(false);
    let allowance = Allowance {
        connections_max: 10_000,
        header_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(20),
    };
    let service = move |_| {
        let store = store.clone();
        Function(move |request: Request<Incoming>| {
            let store = store.clone();
            async move {
                let body = request
                    .into_body()
                    .collect()
                    .await
                    .expect("a body")
                    .to_bytes();
                if let Some(store) = store {
                    let (tell, stored) = oneshot::channel();
                    store
                        .send((body.to_vec(), tell))
                        .await
                        .expect("the writer lives");
                    stored.await.expect("stored");
                }
                let response: Response<AnyBody> = Response::new(whole("{\"stored\":1}\n"));
                response
            }
        })
    };
    tokio::spawn(async move {
        serve(Listener::Tcp(listener), allowance, service, stopped).await;
        drop(stop);
    });
    address
}

/// A thread that inserts all waiting bodies and commits them, synced as settled's commits are.
fn writer(
    (connection, insert): (Connection, impl Fn(&Connection, &[u8]) + Send + 'static),
) -> Store {
    let (store, mut waiting) = mpsc::channel::<(Vec<u8>, oneshot::Sender<()>)>(4096);
    std::thread::spawn(move || {
        let mut group = Vec::new();
        while waiting.blocking_recv_many(&mut group, 512) > 0 {
            connection.execute_batch("BEGIN IMMEDIATE").expect("begun");
            for (body, _) in &group {
                insert(&connection, body);
            }
            connection.execute_batch("COMMIT").expect("committed");
            for (_, tell) in group.drain(..) {
                let _ = tell.send(());
            }
        }
    });
    store
}

/// The least work of a durable intake into SQLite: one insert per body.
fn bare(path: &Path) -> (Connection, impl Fn(&Connection, &[u8]) + use<>) {
    let insert = |connection: &Connection, body: &[u8]| {
        let mut insert = connection
            .prepare_cached("INSERT INTO events (body) VALUES (?1)")
            .expect("a statement");
        insert.execute([body]).expect("inserted");
    };
    (database(path, BODIES), insert)
}

/// The least work of writing settled's rows: ready-made rows of the lengths that one webhook leaves.
fn rows(path: &Path) -> (Connection, impl Fn(&Connection, &[u8]) + use<>) {
    let connection = database(path, include_str!("../schema.sql"));
    connection
        .execute_batch("INSERT INTO sources (name, provider, since) VALUES ('sky', 'skyvern', 0)")
        .expect("a source");
    let filler = |bytes| "x".repeat(bytes);
    let (head, state, envelope, data) = (filler(337), filler(694), filler(230), filler(508));
    let serial = Cell::new(0_i64);
    let insert = move |connection: &Connection, body: &[u8]| {
        serial.set(serial.get() + 1);
        let (id, at) = (serial.get(), 1_795_248_987_000_i64);
        let run_id = format!("wr_{id:018}");
        let execute = |sql, values: &[&dyn ToSql]| {
            connection
                .prepare_cached(sql)
                .and_then(|mut insert| insert.execute(values))
                .expect("inserted");
        };
        execute(
            "INSERT INTO reports (id, source, via, at, verdict, secret, meta, body)
             VALUES (?1, 1, 'webhook', ?2, 'signed', 'api_key', ?3, ?4)",
            &[&id, &at, &head, &body],
        );
        execute(
            "INSERT INTO runs (source, run_id, phase, overdue, opened_at, outcome, origin, settled_at, first_webhook_at,
                completion, state) VALUES (1, ?2, 'settled', 0, ?3, 'succeeded', 'webhook', ?3, ?3, ?1, ?4)",
            &[&id, &run_id, &at, &state],
        );
        execute(
            "INSERT INTO records (seq, run, type, at, source, group_id, outcome, origin, envelope, data)
             VALUES (?1, ?1, 'settled.run.completion', ?2, 1, 'wpid_1234567890', 'succeeded', 'webhook', ?3, ?4 || ?5)",
            &[&id, &at, &envelope, &data, &std::str::from_utf8(body).expect("text")],
        );
        execute(
            "INSERT INTO timeline (run, report, at, via, trust, claim, status, effect, seq)
             VALUES (?1, ?1, ?2, 'webhook', 'signed', 'succeeded', 'completed', 'settled', ?1)",
            &[&id, &at],
        );
    };
    (connection, insert)
}

/// Runs one server under load for one round.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    refused: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Round {
    fn median(rounds: &[Round]) -> Round {
        let of = |field: fn(&Round) -> f64| median(rounds.iter().map(field).collect());
        let (per_second, refused) = (of(|r| r.per_second), of(|r| r.refused));
        Round {
            per_second,
            refused,
            p50_ms: of(|r| r.p50_ms),
            p99_ms: of(|r| r.p99_ms),
        }
    }
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:8.0} /s   p50 {:6.2} ms   p99 {:6.2} ms",
            self.per_second, self.p50_ms, self.p99_ms
        )?;
        if self.refused > 0.0 {
            write!(f, "   {:.0} /s answered 503", self.refused)
        } else {
            Ok(())
        }
    }
}

/// Sends requests over `connections`, each waiting for its answer, until the time is over.
async fn load(address: SocketAddr, requests: Vec<Vec<u8>>, options: Options) -> Round {
    let (requests, next) = (Arc::new(requests), Arc::new(AtomicUsize::new(0)));
    // Time for every connection to open.
    let begin = Instant::now() + Duration::from_millis(200);
    let beat =
        (options.rate > 0.0).then(|| Arc::new(Beat::start(begin, options.rate, requests.len())));
    let workers: Vec<_> = (0..options.connections)
        .map(|_| {
            tokio::spawn(worker(
                address,
                requests.clone(),
                next.clone(),
                beat.clone(),
                begin,
                options,
            ))
        })
        .collect();
    let (mut times, mut refused) = (Vec::new(), 0);
    for worker in workers {
        let (served, not) = worker.await.expect("a worker");
        times.extend(served);
        refused += not;
    }
    let spent = begin.elapsed().as_secs_f64();
    let per_second = times.len() as f64 / spent;
    times.sort_by(f64::total_cmp);
    Round {
        per_second,
        refused: f64::from(refused) / spent,
        p50_ms: share(&times, 0.5),
        p99_ms: share(&times, 0.99),
    }
}

/// One connection. Returns the milliseconds of each stored request, and the number of 503 answers.
async fn worker(
    address: SocketAddr,
    requests: Arc<Vec<Vec<u8>>>,
    next: Arc<AtomicUsize>,
    beat: Option<Arc<Beat>>,
    begin: Instant,
    options: Options,
) -> (Vec<f64>, u32) {
    let mut sender = Sender::connect(address).await;
    tokio::time::sleep_until(begin.into()).await;
    let until = begin + Duration::from_secs_f64(options.seconds);
    let (mut times, mut refused) = (Vec::new(), 0);
    while Instant::now() < until {
        let (number, since) = match &beat {
            None => (next.fetch_add(1, Ordering::Relaxed), Instant::now()),
            Some(beat) => match beat.next().await {
                Some(due) => due,
                None => break,
            },
        };
        let Some(request) = requests.get(number) else {
            break;
        };
        match sender.send(request, || ()).await {
            200 => times.push(since.elapsed().as_secs_f64() * 1000.0),
            503 => {
                refused += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            status => panic!("answered {status}"),
        }
    }
    (times, refused)
}
