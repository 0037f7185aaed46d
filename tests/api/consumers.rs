//! Named consumers.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::home::{Home, Lines, cursor, runs, subjects};

fn ack(home: &Home, name: &str, cursor: &str) -> crate::support::home::ApiResponse {
    home.ask(
        "POST",
        &format!("/v1/consumers/{name}/ack?cursor={cursor}"),
        "",
    )
}

#[test]
fn making_one_is_idempotent_and_its_filter_is_for_life() {
    let home = Home::new();
    let _daemon = home.serve();
    let put = |name: &str, body: &str| home.ask("PUT", &format!("/v1/consumers/{name}"), body);
    assert_eq!(
        home.ask("GET", "/v1/consumers/mail", "").code(),
        "unknown_consumer"
    );
    assert_eq!(
        home.ask("GET", "/v1/consumers/mail/events", "").status,
        404,
        "a typo must not make a consumer"
    );
    assert_eq!(
        put(
            "mail",
            r#"{"filter":{"outcome":["failed"],"types":"completion"},"window":5}"#
        )
        .status,
        201
    );
    let same = put(
        "mail",
        r#"{"start":"latest","filter":{"outcome":"failed"},"window":5}"#,
    );
    assert_eq!(same.status, 200);
    for other in [
        r#"{"window":5}"#,
        r#"{"filter":{"outcome":"failed"}}"#,
        r#"{"filter":{"outcome":"failed"},"window":6}"#,
    ] {
        let answer = put("mail", other);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (409, "consumer_exists"),
            "{other}"
        );
        assert_eq!(answer.json()["error"]["window"], 5);
    }
    for (name, body) in [
        ("Mail", "{}"),
        ("-mail", "{}"),
        ("x", "{"),
        ("x", r#"{"colour":1}"#),
        ("x", r#"{"window":1000000}"#),
        ("x", r#"{"start":"tomorrow"}"#),
        ("x", r#"{"filter":{"outcome":"good"}}"#),
    ] {
        assert_eq!(put(name, body).status, 400, "{name} {body}");
    }
    let answer = put("x", r#"{"start":"deadbeef.7"}"#);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (409, "epoch_mismatch")
    );
    let shown = home.ask("GET", "/v1/consumers/mail", "").json();
    assert_eq!(shown["filter"]["outcome"][0], "failed");
    assert_eq!(
        (&shown["connected"], &shown["lag"], &shown["expired"]),
        (&false.into(), &0.into(), &false.into())
    );
    assert_eq!(
        home.ask("GET", "/v1/consumers", "").json()["consumers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(home.ask("DELETE", "/v1/consumers/mail", "").status, 200);
    assert_eq!(home.ask("DELETE", "/v1/consumers/mail", "").status, 404);
}

#[test]
fn an_ack_moves_forward_is_on_disk_and_never_moves_back() {
    let home = Home::new();
    let daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", "{}");
    home.complete(1..=4);
    home.completed(4);
    let lines = home.read("/v1/consumers/mail/events");
    assert_eq!(subjects(&lines), runs(1..=4));
    let (second, third) = (cursor(&lines[2]), cursor(&lines[3]));
    let answer = ack(&home, "mail", third);
    assert_eq!(
        (
            answer.status,
            &answer.json()["acked"],
            &answer.json()["lag"]
        ),
        (200, &third.into(), &1.into())
    );
    // Killed at once: the 200 was a promise.
    daemon.kill();
    let _daemon = home.serve();
    assert_eq!(
        home.ask("GET", "/v1/consumers/mail", "").json()["acked"],
        third
    );
    let older = ack(&home, "mail", second);
    assert_eq!((older.status, &older.json()["acked"]), (200, &third.into()));
    assert_eq!(subjects(&home.read("/v1/consumers/mail/events")), runs([4]));

    let epoch = third.split_once('.').unwrap().0;
    let beyond = ack(&home, "mail", &format!("{epoch}.9999"));
    assert_eq!(
        (beyond.status, beyond.code().as_str()),
        (409, "ack_beyond_head")
    );
    let foreign = ack(&home, "mail", "deadbeef.1");
    assert_eq!(
        (foreign.status, foreign.code().as_str()),
        (409, "epoch_mismatch")
    );
    assert_eq!(foreign.json()["error"]["earliest"], format!("{epoch}.0"));
    assert_eq!(ack(&home, "mail", "nonsense").status, 400);
    assert_eq!(home.ask("POST", "/v1/consumers/mail/ack", "").status, 400);
    assert_eq!(ack(&home, "nobody", third).status, 404);
}

#[test]
fn a_newcomer_takes_over_and_the_old_reader_is_fenced() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", "{}");
    home.complete([1]);
    let follow = "/v1/consumers/mail/events?follow=1";
    let mut old = Lines::open(&home.feed(), follow).unwrap();
    let generation = old.until("settled.feed.hello")["data"]["generation"].clone();
    let event = old.completion();
    let mut new = Lines::open(&home.feed(), follow).unwrap();
    let newer = new.until("settled.feed.hello")["data"]["generation"].clone();
    assert!(newer.as_i64() > generation.as_i64());
    let last = old.until("settled.feed.superseded");
    assert_eq!(
        (&last["data"]["by"], &last["data"]["generation"]),
        (&"reader".into(), &newer)
    );
    assert!(old.next().is_none());
    assert_eq!(
        new.completion()["cursor"],
        event["cursor"],
        "what was not acknowledged comes again"
    );

    let say = |generation: &serde_json::Value| {
        home.ask(
            "POST",
            &format!(
                "/v1/consumers/mail/ack?cursor={}&gen={generation}",
                cursor(&event)
            ),
            "",
        )
    };
    let stale = say(&generation);
    assert_eq!(
        (stale.status, stale.code().as_str()),
        (409, "stale_generation")
    );
    assert_eq!(say(&newer).status, 200);
    assert_eq!(
        home.ask("GET", "/v1/consumers/mail", "").json()["connected"],
        true
    );
    // Who says its generation goes on as the reader it is.
    let again = home.read(&format!("/v1/consumers/mail/events?gen={newer}"));
    assert_eq!(again[0]["data"]["generation"], newer);
    let stale = home.ask(
        "GET",
        &format!("/v1/consumers/mail/events?gen={generation}"),
        "",
    );
    assert_eq!(
        (stale.status, stale.code().as_str()),
        (409, "stale_generation")
    );
}

#[test]
fn a_take_over_does_not_wait_for_a_reader_that_does_not_read() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", r#"{"window":0}"#);
    let padding = "x".repeat(20_000);
    for run in 1..=60 {
        home.insist(&format!(
            r#"{{"run_id":"wr_{run}","status":"completed","run_type":"workflow_run","outputs":"{padding}"}}"#
        ));
    }
    home.completed(60);
    let _stalled = Lines::open(&home.feed(), "/v1/consumers/mail/events?follow=1").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    let mut new = Lines::open(&home.feed(), "/v1/consumers/mail/events?follow=1").unwrap();
    assert_eq!(new.completion()["subject"], "wr_1");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_seek_goes_anywhere_and_fences_the_readers_there_are() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", "{}");
    home.complete(1..=3);
    home.completed(3);
    let mut lines = Lines::open(&home.feed(), "/v1/consumers/mail/events?follow=1").unwrap();
    let generation = lines.until("settled.feed.hello")["data"]["generation"].clone();
    let first = lines.completion();
    let seek = |to: &str| home.ask("POST", &format!("/v1/consumers/mail/seek?to={to}"), "");
    assert_eq!(seek("latest").status, 200);
    assert_eq!(lines.until("settled.feed.superseded")["data"]["by"], "seek");
    assert_eq!(home.ask("GET", "/v1/consumers/mail", "").json()["lag"], 0);
    let stale = home.ask(
        "POST",
        &format!(
            "/v1/consumers/mail/ack?cursor={}&gen={generation}",
            cursor(&first)
        ),
        "",
    );
    assert_eq!(stale.code(), "stale_generation");
    assert!(subjects(&home.read("/v1/consumers/mail/events")).is_empty());
    assert_eq!(seek(cursor(&first)).status, 200);
    assert_eq!(
        subjects(&home.read("/v1/consumers/mail/events")),
        runs(2..=3)
    );
    assert_eq!(seek("earliest").status, 200);
    assert_eq!(
        subjects(&home.read("/v1/consumers/mail/events")),
        runs(1..=3)
    );
    assert_eq!(seek("deadbeef.1").code(), "epoch_mismatch");
    assert_eq!(home.ask("POST", "/v1/consumers/mail/seek", "").status, 400);
}

#[test]
fn deleting_ends_the_stream_and_a_namesake_owes_it_nothing() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", "{}");
    let mut lines = Lines::open(&home.feed(), "/v1/consumers/mail/events?follow=1").unwrap();
    let generation = lines.until("settled.feed.hello")["data"]["generation"].clone();
    assert_eq!(home.ask("DELETE", "/v1/consumers/mail", "").status, 200);
    assert_eq!(
        lines.until("settled.feed.error")["data"]["code"],
        "consumer_deleted"
    );
    assert!(lines.next().is_none());
    home.ask("PUT", "/v1/consumers/mail", "{}");
    home.complete([1]);
    home.completed(1);
    let event = home.read("/v1/events")[1].clone();
    let stale = home.ask(
        "POST",
        &format!(
            "/v1/consumers/mail/ack?cursor={}&gen={generation}",
            cursor(&event)
        ),
        "",
    );
    assert_eq!(stale.code(), "stale_generation");
}

#[test]
fn a_full_window_pauses_once_and_acks_open_it() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", r#"{"window":2}"#);
    home.complete(1..=5);
    home.completed(5);
    let mut lines = Lines::open(
        &home.feed(),
        "/v1/consumers/mail/events?follow=1&heartbeat=1",
    )
    .unwrap();
    assert_eq!(lines.until("settled.feed.hello")["data"]["window"], 2);
    assert_eq!(lines.completion()["subject"], "wr_1");
    let second = lines.completion();
    let paused = lines.next().unwrap();
    assert_eq!(
        (&paused["type"], &paused["data"]["unacknowledged"]),
        (&"settled.feed.paused".into(), &2.into())
    );
    assert!(
        paused.get("cursor").is_none(),
        "nothing to acknowledge in it"
    );
    let bookmark = lines.next().unwrap();
    assert_eq!(
        (&bookmark["type"], &bookmark["cursor"]),
        (&"settled.feed.bookmark".into(), &second["cursor"])
    );
    assert_eq!(ack(&home, "mail", cursor(&second)).status, 200);
    assert_eq!(lines.completion()["subject"], "wr_3");
    assert_eq!(lines.next().unwrap()["subject"], "wr_4");
    // A batch is no larger than the window either, and says that there is more.
    let batch = home.read("/v1/consumers/mail/events");
    assert_eq!(subjects(&batch), runs(3..=4));
    assert_eq!(batch.last().unwrap()["data"]["more"], true);
}

#[test]
fn a_pause_is_told_again_only_after_half_of_the_window_was_free() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", r#"{"window":6}"#);
    home.complete(1..=12);
    home.completed(12);
    let mut lines = Lines::open(
        &home.feed(),
        "/v1/consumers/mail/events?follow=1&heartbeat=1",
    )
    .unwrap();
    let first: Vec<Value> = (0..6).map(|_| lines.completion()).collect();
    assert_eq!(lines.next().unwrap()["type"], "settled.feed.paused");
    ack(&home, "mail", cursor(&first[1]));
    let more = [lines.completion(), lines.completion()];
    assert_eq!(
        lines.next().unwrap()["type"],
        "settled.feed.bookmark",
        "only a third was free"
    );
    ack(&home, "mail", cursor(&first[4]));
    let last: Vec<Value> = (0..3).map(|_| lines.completion()).collect();
    assert_eq!(lines.next().unwrap()["type"], "settled.feed.paused");
    let told: Vec<Value> = first.into_iter().chain(more).chain(last).collect();
    assert_eq!(subjects(&told), runs(1..=11));
}

#[test]
fn a_full_window_that_keeps_nothing_back_is_no_pause() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", r#"{"window":2}"#);
    home.complete(1..=2);
    home.completed(2);
    let mut lines = Lines::open(
        &home.feed(),
        "/v1/consumers/mail/events?follow=1&heartbeat=1",
    )
    .unwrap();
    assert_eq!(
        [
            lines.completion()["subject"].clone(),
            lines.completion()["subject"].clone()
        ],
        ["wr_1", "wr_2"]
    );
    assert_eq!(lines.next().unwrap()["type"], "settled.feed.bookmark");
    home.complete([3]);
    assert_eq!(
        lines.until("settled.feed.paused")["data"]["unacknowledged"],
        2
    );
}

#[test]
fn a_filter_without_a_match_still_moves_on() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask(
        "PUT",
        "/v1/consumers/failures",
        r#"{"filter":{"outcome":"failed"}}"#,
    );
    home.complete(1..=3);
    home.completed(3);
    let mut lines = Lines::open(
        &home.feed(),
        "/v1/consumers/failures/events?follow=1&heartbeat=1",
    )
    .unwrap();
    let bookmark = lines.until("settled.feed.bookmark");
    let answer = ack(&home, "failures", cursor(&bookmark));
    assert_eq!((answer.status, &answer.json()["lag"]), (200, &0.into()));
    home.say(4, "failed");
    assert_eq!(lines.completion()["subject"], "wr_4");
}

#[test]
fn parked_events_are_passed_kept_and_tried_again() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", "{}");
    home.complete(1..=3);
    home.completed(3);
    let lines = home.read("/v1/consumers/mail/events");
    let second = cursor(&lines[2]);
    let lot = "/v1/consumers/mail/parked";
    let park = |query: &str, body: &str| home.ask("POST", &format!("{lot}?{query}"), body);
    let parked = park(
        &format!("cursor={second}"),
        r#"{"attempts":5,"error":"exit status: 3"}"#,
    );
    assert_eq!(
        (parked.status, &parked.json()["acked"]),
        (200, &second.into())
    );
    assert_eq!(subjects(&home.read("/v1/consumers/mail/events")), runs([3]));
    let list = home.ask("GET", lot, "").json();
    assert_eq!(
        (&list["parked"][0]["attempts"], &list["parked"][0]["error"]),
        (&5.into(), &"exit status: 3".into())
    );
    assert_eq!(list["parked"][0]["event"], lines[2]);
    assert_eq!(list["next"], Value::Null, "that was all");
    assert_eq!(
        home.ask("GET", &format!("{lot}?limit=1"), "").json()["next"],
        2,
        "there may be more"
    );
    assert_eq!(
        home.ask("GET", "/v1/consumers/mail", "").json()["parked"],
        1
    );

    assert!(
        home.ask("GET", &format!("{lot}?retry=1"), "").json()["parked"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        home.ask("POST", &format!("{lot}/retry?cursor={second}"), "")
            .json()["to_retry"],
        1
    );
    assert_eq!(
        home.ask("GET", &format!("{lot}?retry=1"), "").json()["parked"][0]["retry"],
        true
    );
    park(
        &format!("cursor={second}"),
        r#"{"attempts":6,"error":"again"}"#,
    );
    let list = home.ask("GET", lot, "").json();
    assert_eq!(
        (&list["parked"][0]["attempts"], &list["parked"][0]["retry"]),
        (&6.into(), &false.into())
    );
    assert_eq!(
        home.ask("DELETE", &format!("{lot}?cursor={second}"), "")
            .json()["dropped"],
        1
    );
    assert_eq!(
        home.ask("DELETE", &format!("{lot}?all=1"), "").code(),
        "not_parked"
    );
    assert_eq!(home.ask("DELETE", lot, "").status, 400);
    let epoch = second.split_once('.').unwrap().0;
    assert_eq!(
        park(
            &format!("cursor={epoch}.99"),
            r#"{"attempts":1,"error":""}"#
        )
        .status,
        404
    );
    assert_eq!(
        park(
            &format!("cursor={second}&gen=0"),
            r#"{"attempts":1,"error":""}"#
        )
        .code(),
        "stale_generation"
    );
}

#[test]
fn the_log_says_who_made_opened_moved_and_deleted_a_consumer() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", "{}");
    home.read("/v1/consumers/mail/events");
    home.ask("POST", "/v1/consumers/mail/seek?to=latest", "");
    home.ask("DELETE", "/v1/consumers/mail", "");
    let log = home.log();
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    for event in [
        "consumer created",
        "consumer opened",
        "consumer moved",
        "consumer deleted",
    ] {
        let line = lines
            .iter()
            .find(|line| line["message"] == event)
            .unwrap_or_else(|| panic!("no {event}: {log}"));
        assert_eq!(line["uid"], rustix::process::getuid().as_raw(), "{line}");
        assert_eq!(line["pid"], std::process::id(), "{line}");
    }
}

#[test]
fn a_window_has_a_largest_size() {
    let home = Home::new();
    let _daemon = home.serve();
    let put = |window: u32| {
        home.ask(
            "PUT",
            &format!("/v1/consumers/of-{window}"),
            &format!(r#"{{"window":{window}}}"#),
        )
    };
    assert_eq!(put(100_000).status, 201);
    assert_eq!(
        (put(100_001).status, put(100_001).code().as_str()),
        (400, "bad_request")
    );
}
