//! What retention takes, whom it waits for, and what it says to those it could not wait for.

use std::time::{Duration, Instant};

use crate::support::home::{Home, cursor, subjects};
use crate::support::process::until;

const SMALL: &str = "[retention]\nfeed_bytes = \"1MiB\"";

fn large(home: &Home, numbers: std::ops::RangeInclusive<u32>) {
    let padding = "x".repeat(40_000);
    for run in numbers {
        home.insist(&format!(
            r#"{{"run_id":"wr_{run}","status":"completed","run_type":"workflow_run","outputs":"{padding}"}}"#
        ));
    }
}

#[test]
fn the_size_beats_consumers_and_says_so() {
    let home = Home::with(SMALL);
    let daemon = home.serve();
    home.ask("PUT", "/v1/consumers/slow", "{}");
    home.ask("PUT", "/v1/consumers/quick", "{}");
    large(&home, 1..=40);
    home.completed(40);
    let before = home.read("/v1/events");
    let (first, last) = (
        cursor(&before[1]).to_owned(),
        cursor(&before[40]).to_owned(),
    );
    assert_eq!(
        home.ask(
            "POST",
            &format!("/v1/consumers/quick/ack?cursor={last}"),
            ""
        )
        .status,
        200
    );
    let parked = format!("/v1/consumers/slow/parked?cursor={first}");
    assert_eq!(
        home.ask("POST", &parked, r#"{"attempts":1,"error":"no"}"#)
            .status,
        200
    );
    daemon.stop();

    // The feed is trimmed at the start, and every minute after that.
    let daemon = home.serve();
    let began = Instant::now();
    while home.read("/v1/events").len() == before.len() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "nothing was trimmed: {}",
            home.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let left = home.read("/v1/events");
    let earliest = left[0]["cursor"].clone();
    assert_eq!(
        subjects(&left),
        subjects(&before)[40 - subjects(&left).len()..],
        "the newest stay, without a hole"
    );
    let bytes: usize = left.iter().map(|line| line.to_string().len()).sum();
    assert!(bytes < (1 << 20) + 50_000, "{bytes}");

    for path in [
        format!("/v1/events?after={first}"),
        "/v1/consumers/slow/events".to_owned(),
    ] {
        let answer = home.ask("GET", &path, "");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (410, "cursor_expired"),
            "{path}"
        );
        assert_eq!(answer.json()["error"]["earliest"], earliest);
    }
    let log = home.log();
    assert!(
        log.contains("slow") && log.contains("retention.feed_bytes"),
        "{log}"
    );
    assert_eq!(
        home.ask("GET", "/v1/consumers/slow", "").json()["expired"],
        true
    );
    assert_eq!(
        home.ask("GET", "/v1/consumers/quick", "").json()["expired"],
        false
    );
    assert_eq!(
        home.ask("GET", "/v1/consumers/quick/events", "").status,
        200
    );
    // A parked event survives its record.
    assert_eq!(
        home.ask("GET", "/v1/consumers/slow/parked", "").json()["parked"][0]["event"],
        before[1]
    );
    // Seeking heals.
    assert_eq!(
        home.ask("POST", "/v1/consumers/slow/seek?to=earliest", "")
            .status,
        200
    );
    assert_eq!(
        subjects(&home.read("/v1/consumers/slow/events")),
        subjects(&left)
    );
    // What is gone stays settled: a late duplicate does not settle it again.
    large(&home, 1..=3);
    home.complete([1000]);
    let after = home.read(&format!("/v1/events?after={last}&wait=20"));
    assert_eq!(subjects(&after), ["wr_1000"]);
    drop(daemon);
}

#[test]
fn age_waits_for_consumers() {
    let home = Home::with("[retention]\nfeed = \"1d\"");
    let daemon = home.serve();
    home.ask("PUT", "/v1/consumers/slow", "{}");
    home.complete(1..=4);
    home.completed(4);
    let lines = home.read("/v1/events");
    let ack = |line: usize| {
        let answer = home.ask(
            "POST",
            &format!("/v1/consumers/slow/ack?cursor={}", cursor(&lines[line])),
            "",
        );
        assert_eq!(answer.status, 200);
    };
    ack(1);
    daemon.stop();
    let age = || {
        let db = rusqlite::Connection::open(home.path("settled.db")).unwrap();
        db.execute("UPDATE records SET at = 0 WHERE seq <= 3", [])
            .unwrap();
    };
    age();
    let left = |count: usize| {
        until("they are trimmed", || {
            subjects(&home.read("/v1/events")).len() == count
        });
    };

    let daemon = home.serve();
    left(3);
    assert!(
        home.log()
            .contains("this consumer keeps records from being removed"),
        "{}",
        home.log()
    );
    assert_eq!(
        home.ask("GET", "/v1/consumers/slow", "").json()["expired"],
        false
    );
    ack(4);
    daemon.stop();
    let _daemon = home.serve();
    left(1);
    assert_eq!(
        subjects(&home.read("/v1/events")),
        ["wr_4"],
        "what is young stays"
    );
}
