//! Many readers, and one that does not read.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::home::{Home, Lines};

const IDLE: usize = 1_000;

/// BodyBudget for the streams of both ends; the daemon inherits it.
fn raise_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(4_096, |maximum| maximum.min(4_096));
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if current < wanted {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum,
            },
        )
        .unwrap();
    }
}

fn large(home: &Home, runs: std::ops::RangeInclusive<u32>) {
    let padding = "x".repeat(50_000);
    for run in runs {
        home.insist(&format!(
            r#"{{"run_id":"wr_{run}","status":"completed","run_type":"workflow_run","outputs":"{padding}"}}"#
        ));
    }
}

#[test]
fn a_thousand_idle_readers_and_a_stalled_one_cost_little_and_it_is_closed_after_a_minute() {
    raise_files();
    let home = Home::new();
    let daemon = home.serve();
    // Everything has been done once: caches are warm, threads are there.
    large(&home, 1..=20);
    home.completed(20);
    let bare = daemon.memory();
    let mut idle: Vec<Lines> = (0..IDLE)
        .map(|_| {
            Lines::open(
                &home.feed(),
                "/v1/events?follow=1&heartbeat=60&source=none&after=latest",
            )
            .unwrap()
        })
        .collect();
    for lines in &mut idle {
        lines.until("settled.feed.hello");
    }
    let mut stalled = UnixStream::connect(home.feed()).unwrap();
    stalled
        .write_all(b"GET /v1/events?follow=1&heartbeat=60 HTTP/1.0\r\n\r\n")
        .unwrap();
    large(&home, 21..=40);
    home.completed(40);
    let (began, before) = (Instant::now(), daemon.memory());
    assert!(
        before - bare < IDLE as u64 * 100,
        "{} KiB for {IDLE} idle readers",
        before - bare
    );
    // Ten megabytes that the stalled reader does not read.
    large(&home, 41..=240);
    let runs = home.completed(240).len();
    let after = daemon.memory();
    println!(
        "bare {bare} KiB, with {IDLE} idle readers {before} KiB, after {runs} large records {after} KiB"
    );
    assert!(
        after.saturating_sub(before) < 40_000,
        "{before} KiB became {after} KiB"
    );

    // Its connection is closed a minute after it stopped reading; what it was sent before is one
    // page and what the kernel holds.
    std::thread::sleep(Duration::from_secs(65).saturating_sub(began.elapsed()));
    stalled
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut sent = Vec::new();
    let ended = stalled.read_to_end(&mut sent);
    let closed = ended.is_ok()
        || ended
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
    assert!(closed, "{ended:?}");
    assert!(
        sent.len() < 4 << 20,
        "{} bytes were produced for a reader that did not read",
        sent.len()
    );
    // The idle ones are still served.
    assert_eq!(
        idle[IDLE - 1].until("settled.feed.bookmark")["type"],
        "settled.feed.bookmark"
    );
}

#[test]
fn streams_are_limited_and_requests_still_get_through() {
    raise_files();
    let home = Home::new();
    let _daemon = home.serve();
    let max = settled::limits::STREAMS_MAX;
    let mut open: Vec<Lines> = (0..max)
        .map(|_| Lines::open(&home.feed(), "/v1/events?follow=1&after=latest").unwrap())
        .collect();
    let refused = home.ask("GET", "/v1/events", "");
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "too_many_streams")
    );
    assert_eq!(home.ask("GET", "/healthz", "").status, 200);
    assert_eq!(home.ask("PUT", "/v1/consumers/mail", "{}").status, 201);
    assert!(open.pop().is_some());
}
