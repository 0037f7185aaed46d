//! Senders that mean harm, or behave as if they did. Honest ones are served meanwhile, and memory
//! and disk stay within bounds.
//!
//! `SETTLED_LONG=1` for more and larger of everything.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::acknowledged::number;
use crate::support::daemon::{Daemon, Wish, post};
use crate::support::process::{PATIENCE, signal};
use crate::support::senders::{firecrawl_body, skyvern, skyvern_of, unsigned};
use crate::support::wire::Wire;

fn long() -> bool {
    std::env::var_os("SETTLED_LONG").is_some()
}

fn ring_of(rows: u32, bytes: &str) -> Daemon {
    let hooks =
        format!("body_limit = \"64KiB\"\nunverified_rows = {rows}\nunverified_bytes = \"{bytes}\"");
    Daemon::with(Wish {
        hooks,
        ..Wish::default()
    })
}

/// An honest sender is served, on a new connection, as often as this.
fn assert_serves(daemon: &Daemon, times: u32) {
    for n in 0..times {
        let answer = daemon.post(&skyvern(&format!("honest_{n}"), "completed"));
        assert!(answer.stored().is_some(), "{answer:?}");
    }
}

#[test]
fn whoever_keeps_us_waiting_is_shown_out() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let (half, declared) = (
        post.body.len() / 2,
        format!("Content-Length: {}\r\n", post.body.len()),
    );
    let mut silent = daemon.wire();
    let mut slow_head = daemon.wire();
    slow_head.send("POST /hooks/sky HTTP/1.1\r\nHo").unwrap();
    let mut idle = daemon.wire();
    assert!(idle.ask(post.bytes()).unwrap().stored().is_some());
    let mut slow_body = daemon.wire();
    slow_body.send(post.head(&declared)).unwrap();
    slow_body.send(&post.body[..half]).unwrap();
    let mut half_closed = daemon.wire();
    half_closed.send("POST /hooks/sky HTTP/1.1\r\n").unwrap();
    half_closed.finish().unwrap();
    assert_serves(&daemon, 3);
    let late = slow_body.answer().expect("an answer");
    assert_eq!((late.status, late.code().as_str()), (408, "too_slow"));
    for (name, wire) in [
        ("silent", &mut silent),
        ("slow head", &mut slow_head),
        ("idle", &mut idle),
        ("slow body", &mut slow_body),
        ("half closed", &mut half_closed),
    ] {
        assert!(wire.closes(), "{name}");
    }
    assert_eq!(daemon.kept(), 4, "only what was whole");
}

#[test]
fn one_byte_at_a_time_is_slow_but_honest() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    for bytes in [post.bytes(), post.chunked(1)] {
        let mut wire = daemon.wire();
        for byte in bytes.chunks(1) {
            wire.send(byte).unwrap();
        }
        assert!(wire.answer().unwrap().stored().is_some());
    }
}

#[test]
fn what_breaks_off_is_not_stored() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let declared = post.body.len() + 1;
    let mut short = daemon.wire();
    short
        .send(post.head(&format!("Content-Length: {declared}\r\n")))
        .unwrap();
    short.send(&post.body).unwrap();
    short.finish().unwrap();
    assert!(short.answer().map_or(true, |answer| answer.status == 400));
    for cut in [1, 50, post.bytes().len() - 1] {
        // Dropped with what was sent unanswered: a reset.
        daemon.wire().send(&post.bytes()[..cut]).unwrap();
    }
    let chunks = post.chunked(10);
    for cut in [chunks.len() - 1, chunks.len() - 5, chunks.len() / 2] {
        let mut wire = daemon.wire();
        wire.send(&chunks[..cut]).unwrap();
        wire.finish().unwrap();
        assert!(
            wire.answer().map_or(true, |answer| answer.status == 400),
            "{cut}"
        );
    }
    assert_eq!(daemon.kept(), 0);
    assert_serves(&daemon, 1);
}

#[test]
fn garbage_between_chunks_is_refused() {
    let daemon = Daemon::start();
    let head = skyvern("wr_1", "completed").head("Transfer-Encoding: chunked\r\n");
    let bad = [
        "zz\r\nxx\r\n0\r\n\r\n".to_owned(),
        "-5\r\nhello\r\n0\r\n\r\n".to_owned(),
        "ffffffffffffffffff\r\nx\r\n0\r\n\r\n".to_owned(),
        "5\r\nhelloXX0\r\n\r\n".to_owned(),
        "5;\0\r\nhello\r\nx\r\n\r\n".to_owned(),
        format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(100_000)),
        format!(
            "5\r\nhello\r\n0\r\n{}\r\n",
            "x-trailer: y\r\n".repeat(10_000)
        ),
    ];
    for body in bad {
        let mut wire = daemon.wire();
        let sent = wire.send(format!("{head}{body}"));
        let answer = sent.and_then(|()| wire.answer());
        assert!(
            answer.as_ref().map_or(true, |answer| answer.status == 400),
            "{answer:?} to {:?}",
            &body[..20.min(body.len())]
        );
    }
    assert_eq!(daemon.kept(), 0);
    assert_serves(&daemon, 1);
}

#[test]
fn a_bomb_is_not_inflated() {
    let daemon = Daemon::start();
    let before = daemon.memory("VmHWM");
    // The first bytes of what gzip makes of a gigabyte of noughts, again and again.
    let bomb = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3, 0xec, 0xc1, 1, 1, 0, 0].repeat(60_000);
    let mut post = unsigned("wr_1", 100).with("Content-Encoding", "gzip");
    post.body = bomb;
    assert_eq!(daemon.post(&post).status, 415);
    assert!(
        daemon.memory("VmHWM") - before < 16 * 1024,
        "it was read, not inflated"
    );
    assert_eq!(daemon.kept(), 0);
}

fn crowd(daemon: &Daemon, size: usize) -> Vec<TcpStream> {
    let one = |n: usize| {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).expect("a connection");
        if n.is_multiple_of(2) {
            let _ = stream.write_all(b"POST /hooks/sky HTTP/1.1\r\nHost: t\r\nx: ");
        }
        stream
    };
    (0..size).map(one).collect()
}

#[test]
fn thousands_of_idle_connections_keep_nobody_out() {
    let daemon = Daemon::start();
    let size = if long() { 9_000 } else { 2_000 };
    let before = daemon.memory("VmRSS");
    let crowd = crowd(&daemon, size);
    assert_serves(&daemon, 20);
    let grown = daemon.memory("VmRSS").saturating_sub(before);
    eprintln!("{size} idle connections: {} KiB each", grown / size as u64);
    assert!(
        grown < 32 * size as u64,
        "{grown} KiB for {size} connections"
    );
    drop(crowd);
}

#[test]
fn a_burst_of_connections_waits_to_be_accepted() {
    let daemon = Daemon::start();
    signal(daemon.pid(), "STOP");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], daemon.port));
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok();
    let burst: Vec<_> = (0..1_500).map_while(connect).collect();
    signal(daemon.pid(), "CONT");
    assert_serves(&daemon, 20);
    assert_eq!(
        burst.len(),
        1_500,
        "the next one would come again after a second, and then after two"
    );
}

/// Posts what is not signed, as fast as it goes, from so many connections, until told to stop.
fn flood(
    daemon: &Daemon,
    from: u64,
    bytes: usize,
    stop: &Arc<AtomicBool>,
) -> Vec<thread::JoinHandle<u64>> {
    let port = daemon.port;
    let one = |n: u64| {
        let stop = stop.clone();
        let post = unsigned(&format!("flood_{n}"), bytes).bytes();
        thread::spawn(move || {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                // Each 401 ends its connection.
                let answer = Wire::open(port).and_then(|mut wire| wire.ask(&post));
                sent += u64::from(
                    answer.is_ok_and(|answer| answer.status == 401 || answer.status == 429),
                );
            }
            sent
        })
    };
    (0..from).map(one).collect()
}

#[test]
fn a_flood_without_signatures_fills_neither_memory_nor_disk_and_keeps_nobody_out() {
    let daemon = ring_of(200, "2MiB");
    let stop = Arc::new(AtomicBool::new(false));
    let flooders = flood(&daemon, 8, 60_000, &stop);
    let lasts = Duration::from_secs(if long() { 60 } else { 4 });
    let (began, mut slowest, mut served) = (Instant::now(), Duration::ZERO, 0);
    while began.elapsed() < lasts {
        let sent = Instant::now();
        let answer = daemon.post(&skyvern(&format!("honest_{served}"), "completed"));
        assert!(answer.stored().is_some(), "{answer:?}");
        slowest = slowest.max(sent.elapsed());
        served += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let flooded: u64 = flooders
        .into_iter()
        .map(|flooder| flooder.join().expect("a flooder"))
        .sum();
    let (memory, disk) = (daemon.memory("VmHWM"), daemon.disk());
    eprintln!(
        "{flooded} forged, {served} honest (slowest {slowest:?}), memory {memory} KiB, disk {disk} bytes"
    );
    assert_eq!(
        daemon.completions(served).len(),
        served,
        "every honest one, and no other"
    );
    let rows = number(
        &daemon.store(),
        "SELECT count(*) FROM reports WHERE unverified = 1",
    );
    assert!(rows <= 210, "{rows} rows in the unverified");
    // The unverified twice (the file does not shrink), what was honest, and a log that waits to be reset.
    assert!(disk < 100 << 20, "{disk} bytes on disk");
    assert!(memory < 256 << 10, "{memory} KiB of memory");
}

#[test]
fn large_bodies_that_never_end_leave_room_for_small_ones() {
    if !long() {
        return;
    }
    let daemon = Daemon::start();
    let head = unsigned("wr_1", 100).head(&format!("Content-Length: {}\r\n", 32 << 20));
    let part = vec![b'x'; (32 << 20) - 1024];
    let mut greedy: Vec<_> = (0..20).map(|_| daemon.wire()).collect();
    let stop = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for wire in &mut greedy {
            let (head, part, stop) = (&head, &part, &stop);
            scope.spawn(move || {
                let _ = wire.send(head).and_then(|()| wire.send(part));
                while stop.load(Ordering::Relaxed) == 0 && wire.send("x").is_ok() {
                    thread::sleep(Duration::from_secs(1));
                }
            });
        }
        thread::sleep(Duration::from_secs(5));
        let began = Instant::now();
        let answer = daemon.post(&skyvern("honest", "completed"));
        stop.store(1, Ordering::Relaxed);
        assert!(
            answer.stored().is_some() && began.elapsed() < PATIENCE / 6,
            "{:?}, {answer:?}",
            began.elapsed()
        );
    });
    eprintln!("memory at most {} KiB", daemon.memory("VmHWM"));
    assert!(daemon.memory("VmHWM") < 1200 << 10);
}

#[test]
fn half_a_million_chunks_of_a_byte_take_the_room_of_half_a_megabyte() {
    if !long() {
        return;
    }
    let daemon = Daemon::start();
    let post = skyvern_of("wr_1", 600_000);
    assert!(daemon.raw(post.chunked(1)).stored().is_some());
}

#[test]
fn headers_count_in_the_ring_as_bodies_do() {
    let daemon = ring_of(100_000, "1MiB");
    let post = unsigned("wr_1", 100).with("x-padding", "x".repeat(50_000));
    for _ in 0..100 {
        assert_eq!(daemon.post(&post).status, 401);
    }
    let kept = number(
        &daemon.store(),
        "SELECT sum(length(meta) + length(body)) FROM reports WHERE unverified = 1",
    );
    assert!(kept < 1_200_000, "{kept} bytes in a unverified of 1 MiB");
}

#[test]
fn a_crowd_does_not_take_the_last_file_descriptor() {
    let daemon = Daemon::with(Wish {
        files: Some(256),
        ..Wish::default()
    });
    let crowd = crowd(&daemon, 600);
    let began = Instant::now();
    assert_serves(&daemon, 5);
    daemon.completions(5);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "served before the crowd is shown out, in {:?}",
        began.elapsed()
    );
    assert!(
        !daemon.log().contains("could not be accepted"),
        "{}",
        daemon.log()
    );
    drop(crowd);
}

#[test]
fn no_depth_of_metadata_makes_a_run_unreadable_or_holds_up_the_others() {
    let daemon = Daemon::start();
    for depth in [
        90, 100, 110, 120, 121, 122, 123, 124, 125, 126, 127, 128, 200,
    ] {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let run = format!("deep_{depth}");
        for event in ["extract.started", "extract.completed", "extract.completed"] {
            let body = format!(
                r#"{{"success":true,"type":"{event}","id":"{run}","data":[],"metadata":{deep}}}"#
            );
            assert!(daemon.post(&firecrawl_body(body)).stored().is_some());
        }
        let other = format!("after_{depth}");
        assert!(
            daemon
                .post(&skyvern(&other, "completed"))
                .stored()
                .is_some()
        );
        daemon.until(&format!("{other} has settled"), |daemon| {
            daemon
                .feed()
                .values()
                .any(|line| line.contains(&format!("{other}:completion")))
        });
        let listed = daemon.control("/v1/runs?limit=1000");
        assert_eq!(
            listed.status,
            200,
            "{depth}: {}",
            String::from_utf8_lossy(&listed.body)
        );
    }
    assert_eq!(
        number(&daemon.store(), "SELECT count(*) FROM quarantined_reports"),
        0
    );
}

#[test]
fn metadata_too_deep_to_be_read_back_is_refused_when_tracking() {
    let daemon = Daemon::start();
    let track = |depth: usize| {
        let metadata = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let body = format!(r#"{{"source":"sky","run_id":"wr_{depth}","metadata":{metadata}}}"#);
        post(&daemon.control_socket(), "/v1/runs", &body)
            .expect("the control socket answers")
            .status
    };
    assert_eq!(
        [
            track(1),
            track(64),
            track(65),
            track(124),
            track(126),
            track(200)
        ],
        [201, 201, 400, 400, 400, 400]
    );
}

#[test]
fn a_run_whose_row_is_damaged_holds_up_no_other() {
    let mut daemon = Daemon::start();
    daemon.post(&skyvern("damaged", "running"));
    daemon.until("it is known", |daemon| {
        daemon.control("/v1/runs/sky/damaged").status == 200
    });
    let spoil = "UPDATE runs SET state = 'not JSON' WHERE run_id = 'damaged'";
    rusqlite::Connection::open(daemon.store())
        .and_then(|ledger| ledger.execute(spoil, []))
        .expect("it is written");
    for round in 0..2 {
        assert!(
            daemon
                .post(&skyvern("damaged", "completed"))
                .stored()
                .is_some()
        );
        assert!(
            daemon
                .post(&skyvern(&format!("sound_{round}"), "completed"))
                .stored()
                .is_some()
        );
        assert_eq!(daemon.completions(round + 1).len(), round + 1);
        let why = daemon
            .deliveries("")
            .into_iter()
            .filter_map(|row| row["quarantined"].as_str().map(str::to_owned));
        assert_eq!(why.collect::<Vec<_>>().len(), round + 1, "visible");
        daemon.kill();
        daemon.launch();
        daemon.ready();
    }
}

#[test]
fn no_query_upsets_the_feed() {
    let daemon = Daemon::start();
    daemon.post(&skyvern("wr_1", "completed"));
    let epoch = daemon.completions(1)[0]["cursor"]
        .as_str()
        .expect("a cursor")
        .split('.')
        .next()
        .unwrap()
        .to_owned();
    let names = [
        "after",
        "follow",
        "limit",
        "wait",
        "heartbeat",
        "types",
        "source",
        "provider",
        "outcome",
        "origin",
        "group",
        "x",
    ];
    let values = [
        "",
        "0",
        "1",
        "-1",
        "18446744073709551615",
        "18446744073709551616",
        "earliest",
        "latest",
        "completion,,status",
        "%00",
        "%ff%fe",
        "a%27%20OR%201=1--",
        "succeeded",
        "webhook",
        "true",
        "%F0%9F%98%80",
        "sky,fire",
        ".",
        "..",
        &format!("{epoch}.0"),
        &format!("{epoch}.9223372036854775807"),
        &format!("{epoch}.1"),
        "00ff.1",
        &"x".repeat(5000),
    ]
    .map(str::to_owned);
    for name in names {
        for value in &values {
            let waits = matches!(
                (name, value.as_str()),
                ("follow", "" | "1" | "true") | ("wait", "18446744073709551615")
            );
            if waits {
                continue;
            }
            let answer = daemon.control(&format!("/v1/events?limit=1&{name}={value}"));
            assert!(
                matches!(answer.status, 200 | 400 | 409 | 410),
                "{name}={value}: {answer:?}"
            );
        }
    }
    for (path, value) in ["/v1/runs/", "/v1/deliveries/", "/v1/"]
        .iter()
        .flat_map(|path| values.iter().map(move |value| (path, value)))
    {
        let status = daemon.control(&format!("{path}{value}")).status;
        assert!(
            matches!(status, 200 | 400 | 404 | 405),
            "{path}{value}: {status}"
        );
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
