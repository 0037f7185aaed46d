//! From a webhook to the consumer: the time from the last byte of a request to the line of its
//! completion at a follower of the feed, at fixed rates; and the cost of a thousand followers.
//!
//! `cargo bench --bench live -- [--rates 1,100,2000] [--seconds 10] [--followers 1000] [--lines 2000]`
//!
//! A webhook is due every 1/rate s on one of 64 connections, and each is of a new run. Two commits lie
//! between: the delivery is on disk before it is processed, and its completion is on disk before a
//! reader sees it. Beside it stands the time of two SQLite commits of one row with the body, on the
//! same disk at the same rate.
//!
//! Followers are compared with two minimal senders. One thread has the lines in memory and writes
//! them at the same rate, one by one, to as many sockets, whose readers sleep until a line comes as
//! followers do. One process has them in memory too, and sends them as settled does: with tokio and
//! hyper, a task for each follower.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]

mod support;

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Response, body::Frame};
use settled::server::{Allowance, AnyBody, Function, Listener, serve};
use support::{
    BODIES, Beat, Daemon, Sender, body, computed, database, median, option, request, share, timed,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

const CONNECTIONS: usize = 64;

/// About the length of a line of the feed.
const LINE_BYTES: usize = 1_400;

/// Lines a second that are sent to each follower.
const FOLLOWED_RATE: f64 = 50.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let teller: String = option("--teller", String::new());
    if !teller.is_empty() {
        return runtime.block_on(tell(
            Path::new(&teller),
            option("--followers", 1),
            option("--lines", 1),
        ));
    }
    runtime.block_on(async {
        let seconds = option("--seconds", 10.0);
        for rate in option("--rates", "1,100,2000".to_owned()).split(',') {
            latency(rate.parse().expect("a rate"), seconds).await;
        }
        followers(option("--followers", 1000), option("--lines", 2000)).await;
    });
}

/// When the last byte of a run's webhook was sent, by run id.
type Sent = Arc<Mutex<HashMap<String, Instant>>>;

async fn latency(rate: f64, seconds: f64) {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path()).await;
    // The first second is not counted: connections and caches are cold.
    let (warm, count) = (rate as usize, (rate * (seconds + 1.0)) as usize);
    let (sent, mut took) = (Sent::default(), Vec::new());
    let mut lines = BufReader::new(follow(&daemon.feed).await).lines();
    let commit = median(commits(
        &folder.path().join("bare.db"),
        10.max(rate as usize),
        Duration::from_secs_f64(1.0 / rate),
    ));
    let sending = tokio::spawn(send(daemon.hooks, count, rate, sent.clone()));
    let mut seen = 0;
    while seen < count {
        let line = lines
            .next_line()
            .await
            .expect("a feed")
            .expect("it goes on");
        let Some(run_id) = run_id(&line) else {
            continue;
        };
        let now = Instant::now();
        seen += 1;
        if let Some(sent) = sent
            .lock()
            .expect("no panic")
            .remove(run_id)
            .filter(|_| seen > warm)
        {
            took.push((now - sent).as_secs_f64() * 1000.0);
        }
    }
    sending.await.expect("sent");
    took.sort_by(f64::total_cmp);
    println!(
        "{rate} webhooks a second: p50 {:.2} ms, p99 {:.2} ms of {} to the follower; two commits at this pace {:.2} ms",
        share(&took, 0.5),
        share(&took, 0.99),
        took.len(),
        2.0 * commit,
    );
}

/// Measures commits in milliseconds, with a pause before each, because an idle CPU wakes slowly.
fn commits(path: &Path, count: usize, pause: Duration) -> Vec<f64> {
    let sql = database(path, BODIES);
    let body = body("wr_1").into_bytes();
    let one = || {
        sql.execute("INSERT INTO events (body) VALUES (?1)", [&body])
            .expect("committed");
    };
    one();
    (0..count)
        .map(|_| {
            std::thread::sleep(pause);
            timed(one).as_secs_f64() * 1000.0
        })
        .collect()
}

/// Follows the feed from its newest record, past the response headers and the `hello` line.
async fn follow(feed: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(feed).await.expect("a feed");
    stream
        .write_all(b"GET /v1/events?follow=1&after=latest HTTP/1.0\r\n\r\n")
        .await
        .expect("asked");
    let (mut seen, mut byte) = (String::new(), [0]);
    while !seen.contains("settled.feed.hello") || !seen.ends_with('\n') {
        stream.read_exact(&mut byte).await.expect("an answer");
        seen.push(char::from(byte[0]));
    }
    stream
}

/// The run id of a line, if the line is about a run.
fn run_id(line: &str) -> Option<&str> {
    line.split_once("\"subject\":\"")?
        .1
        .split_once('"')
        .map(|(run_id, _)| run_id)
}

/// Sends `count` webhooks, each when it is due.
async fn send(hooks: std::net::SocketAddr, count: usize, rate: f64, sent: Sent) {
    let requests: Arc<Vec<_>> = Arc::new(
        (0..count)
            .map(|number| format!("wr_{number:018}"))
            .map(|id| (request(&id), id))
            .collect(),
    );
    let beat = Arc::new(Beat::start(Instant::now(), rate, count));
    let worker = || {
        let (requests, beat, sent) = (requests.clone(), beat.clone(), sent.clone());
        async move {
            let mut sender = Sender::connect(hooks).await;
            while let Some((number, _)) = beat.next().await {
                let (request, run_id) = &requests[number];
                let out = || {
                    sent.lock()
                        .expect("no panic")
                        .insert(run_id.clone(), Instant::now());
                };
                assert_eq!(sender.send(request, out).await, 200);
            }
        }
    };
    let workers: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(worker())).collect();
    for worker in workers {
        worker.await.expect("a worker");
    }
}

/// The daemon's CPU time per line and follower, beside that of the two minimal senders.
async fn followers(count: usize, lines: usize) {
    let alone = followed(1, lines).await;
    let (many, bytes, told) = (
        followed(count, lines).await,
        written(count, lines).await,
        told(count, lines).await,
    );
    let each = |seconds: f64| seconds * 1e6 / (lines * count) as f64;
    println!(
        "{count} followers of {lines} lines: {:.1} µs of computing a line and follower beside what one follower costs; by tokio and hyper alone {:.1} µs; writing the bytes alone {:.1} µs",
        each(many - alone),
        each(told),
        each(bytes),
    );
}

/// CPU seconds of the daemon while `lines` runs settle, until all `count` followers have the last.
async fn followed(count: usize, lines: usize) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path()).await;
    let last = format!("wr_{:018}", lines - 1);
    let mut readers = Vec::new();
    for _ in 0..count {
        readers.push(tokio::spawn(drain(
            follow(&daemon.feed).await,
            last.clone(),
        )));
    }
    let before = computed(daemon.process());
    send(daemon.hooks, lines, FOLLOWED_RATE, Sent::default()).await;
    for reader in readers {
        reader.await.expect("a reader");
    }
    computed(daemon.process()) - before
}

/// CPU seconds of a process that sends such lines over HTTP and does nothing else.
async fn told(count: usize, lines: usize) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("teller.sock");
    let (followers, lines_text) = (count.to_string(), lines.to_string());
    let mut teller = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--teller".as_ref(), socket.as_os_str()])
        .args(["--followers", &followers, "--lines", &lines_text])
        .spawn()
        .expect("a teller");
    while UnixStream::connect(&socket).await.is_err() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (mut readers, last) = (Vec::new(), format!("wr_{:018}", lines - 1));
    for _ in 0..count {
        readers.push(tokio::spawn(drain(follow(&socket).await, last.clone())));
    }
    let before = computed(teller.id());
    for reader in readers {
        reader.await.expect("a reader");
    }
    let spent = computed(teller.id()) - before;
    teller.kill().and_then(|()| teller.wait()).expect("ended");
    spent
}

/// That process: once `count` followers are connected, it sends each of them the lines.
async fn tell(socket: &Path, count: usize, lines: usize) {
    let allowance = Allowance {
        connections_max: 10_000,
        header_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(20),
    };
    let (say, heard) = watch::channel(Bytes::from_static(b"{\"type\":\"settled.feed.hello\"}\n"));
    let (followers, mut came) = watch::channel(0);
    let service = move |_| {
        let (heard, followers) = (heard.clone(), followers.clone());
        Function(move |_| {
            let mut heard = heard.clone();
            heard.mark_changed();
            followers.send_modify(|followers| *followers += 1);
            let lines = futures_util::stream::unfold(heard, |mut heard| async move {
                heard.changed().await.ok()?;
                let line = heard.borrow_and_update().clone();
                Some((Ok::<_, Infallible>(Frame::data(line)), heard))
            });
            let response: Response<AnyBody> = Response::new(StreamBody::new(lines).boxed_unsync());
            std::future::ready(response)
        })
    };
    let (_go_on, stop) = watch::channel(false);
    let listener = UnixListener::bind(socket).expect("a socket");
    let serving = tokio::spawn(serve(Listener::Unix(listener), allowance, service, stop));
    came.wait_for(|followers| *followers >= count)
        .await
        .expect("followers");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for number in 0..lines {
        tokio::time::sleep(Duration::from_secs_f64(1.0 / FOLLOWED_RATE)).await;
        let mut line = format!("wr_{number:018}");
        line.extend(std::iter::repeat_n('x', LINE_BYTES - line.len()));
        say.send_replace(line.into());
    }
    serving.await.expect("it serves");
}

/// Reads until the line of the run arrives.
async fn drain(mut stream: UnixStream, last: String) {
    let (mut buffer, mut tail) = (vec![0; 64 << 10], Vec::new());
    while !String::from_utf8_lossy(&tail).contains(&last) {
        let read = stream.read(&mut buffer).await.expect("the feed");
        assert!(read > 0, "the feed ended");
        tail.drain(..tail.len().saturating_sub(4096));
        tail.extend_from_slice(&buffer[..read]);
    }
}

/// CPU seconds of a thread that writes as many lines to as many sockets and does nothing else.
async fn written(count: usize, lines: usize) -> f64 {
    let (stop, stopped) = watch::channel(false);
    let mut sockets = Vec::new();
    for _ in 0..count {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()
            .map(|(ours, theirs)| {
                theirs.set_nonblocking(true).expect("a socket");
                (ours, UnixStream::from_std(theirs).expect("a socket"))
            })
            .expect("a pair");
        let mut stopped = stopped.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            tokio::select! {
                () = async { while theirs.read(&mut buffer).await.is_ok_and(|read| read > 0) {} } => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        });
        sockets.push(ours);
    }
    let writing = move || {
        use std::io::Write;
        let line = vec![b'x'; LINE_BYTES];
        let begin = thread_seconds();
        for _ in 0..lines {
            std::thread::sleep(Duration::from_secs_f64(1.0 / FOLLOWED_RATE));
            for mut socket in &sockets {
                socket.write_all(&line).expect("written");
            }
        }
        thread_seconds() - begin
    };
    let spent = tokio::task::spawn_blocking(writing).await.expect("written");
    drop(stop);
    spent
}

/// CPU seconds of this thread so far.
fn thread_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    stat.split_whitespace()
        .next()
        .and_then(|nanos| nanos.parse::<f64>().ok())
        .expect("nanoseconds")
        / 1e9
}
