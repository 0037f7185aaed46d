//! Reading without a name, and what every stream has in common.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::home::{Home, Lines, ask, cursor, runs, subjects};

#[test]
fn a_read_gives_everything_in_order_and_ends() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=5);
    home.complete(1..=5);
    assert_eq!(home.completed(5), runs(1..=5));
    let lines = home.read("/v1/events");
    let kinds: Vec<&str> = lines
        .iter()
        .map(|line| line["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds[0], "settled.feed.hello");
    assert_eq!(kinds[6], "settled.feed.end");
    assert_eq!(lines[6]["data"]["more"], false);
    assert_eq!(lines[0]["data"]["head"], lines[5]["cursor"]);
    assert_eq!(lines[1]["id"], "sky:wr_1:completion");

    let after = cursor(&lines[2]);
    assert_eq!(
        subjects(&home.read(&format!("/v1/events?after={after}"))),
        runs(3..=5)
    );
    assert_eq!(subjects(&home.read("/v1/events?after=latest")), runs([]));
    let some = home.read(&format!("/v1/events?after={after}&limit=2"));
    assert_eq!(subjects(&some), runs(3..=4));
    assert_eq!(some.last().unwrap()["data"]["more"], true);
    let request = format!("GET /v1/events HTTP/1.0\r\nLast-Event-ID: {after}\r\n\r\n");
    let resumed: Vec<Value> = Lines::request(&home.feed(), &request).unwrap().collect();
    assert_eq!(subjects(&resumed), runs(3..=5));
}

#[test]
fn a_line_of_the_streams_own_stands_for_what_was_sent_before_it() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=4);
    home.completed(4);
    let lines = home.read("/v1/events?limit=2");
    let (hello, end) = (cursor(&lines[0]), cursor(lines.last().unwrap()));
    // Whoever keeps one of these and comes back misses nothing.
    assert_eq!(
        subjects(&home.read(&format!("/v1/events?after={hello}"))),
        runs(1..=4)
    );
    assert_eq!(end, cursor(&lines[2]));
    assert_eq!(
        subjects(&home.read(&format!("/v1/events?after={end}"))),
        runs(3..=4)
    );
}

#[test]
fn a_cursor_of_another_life_is_refused_and_says_where_to_begin() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete([1]);
    home.completed(1);
    let lines = home.read("/v1/events");
    let (earliest, head) = (lines[0]["cursor"].clone(), cursor(&lines[1]));
    assert_eq!(
        home.ask("GET", &format!("/v1/events?after={head}"), "")
            .status,
        200
    );
    let not_given_yet = head.replace(".1", ".2");
    for after in ["deadbeef.1", "deadbeef.0", &not_given_yet] {
        let answer = home.ask("GET", &format!("/v1/events?after={after}"), "");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (409, "epoch_mismatch")
        );
        assert_eq!(answer.json()["error"]["earliest"], earliest);
    }
    for wrong in [
        "after=1",
        "after=",
        "follow=2",
        "types=run",
        "outcome=good",
        "origin=x",
        "color=red",
        "limit=-1",
    ] {
        let answer = home.ask("GET", &format!("/v1/events?{wrong}"), "");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_request"),
            "{wrong}"
        );
    }
}

#[test]
fn a_follower_hears_at_once_and_is_told_when_the_daemon_stops() {
    let home = Home::new();
    let daemon = home.serve();
    let mut lines = Lines::open(&home.feed(), "/v1/events?follow=1&heartbeat=60").unwrap();
    lines.until("settled.feed.hello");
    // What `nc -N` and `socat` do.
    lines.half_close();
    let began = Instant::now();
    home.complete([1]);
    assert_eq!(lines.completion()["subject"], "wr_1");
    assert!(began.elapsed() < Duration::from_secs(5));
    daemon.stop();
    assert_eq!(lines.until("settled.feed.end")["data"]["more"], false);
    assert!(lines.next().is_none());
}

#[test]
fn a_long_poll_waits_for_the_first_record_and_no_longer_than_asked() {
    let home = Home::new();
    let _daemon = home.serve();
    let began = Instant::now();
    assert!(subjects(&home.read("/v1/events?wait=1")).is_empty());
    assert!(began.elapsed() >= Duration::from_secs(1));
    let mut lines = Lines::open(&home.feed(), "/v1/events?wait=30").unwrap();
    lines.until("settled.feed.hello");
    home.complete([1]);
    assert_eq!(subjects(&lines.collect::<Vec<_>>()), runs([1]));
    assert_eq!(
        subjects(&home.read("/v1/events?wait=30")),
        runs([1]),
        "what is there needs no waiting"
    );
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn filters_choose_and_bookmarks_pass_over_the_rest() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=2);
    home.say(3, "failed");
    home.say(4, "running");
    home.completed(3);
    assert_eq!(subjects(&home.read("/v1/events?outcome=failed")), runs([3]));
    assert_eq!(
        subjects(&home.read("/v1/events?outcome=failed,succeeded&source=sky&provider=skyvern")),
        runs(1..=3)
    );
    assert_eq!(subjects(&home.read("/v1/events?source=other")), runs([]));
    assert_eq!(subjects(&home.read("/v1/events?origin=poll")), runs([]));
    let began = Instant::now();
    let mut lines =
        Lines::open(&home.feed(), "/v1/events?follow=1&heartbeat=1&source=other").unwrap();
    let head = lines.until("settled.feed.hello")["data"]["head"].clone();
    // Records that do not match keep coming; they must not keep the sign of life back.
    let mut run = 100;
    let bookmark = loop {
        home.complete([run]);
        run += 1;
        let line = lines.next().unwrap();
        if line["type"] == "settled.feed.bookmark" {
            break line;
        }
    };
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_ne!(
        bookmark["cursor"], head,
        "a bookmark moves the position past what does not match"
    );
}

#[test]
fn server_sent_events_are_the_same_records() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=2);
    home.completed(2);
    let plain = home.read("/v1/events");
    let request = "GET /v1/events HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n";
    let mut lines = Lines::request(&home.feed(), request).unwrap();
    let mut text = String::new();
    while let Some(line) = lines.raw() {
        text.push_str(&line);
    }
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.len(), plain.len());
    for (event, plain) in events.iter().zip(&plain).skip(1).take(2) {
        let parts: Vec<&str> = event.lines().collect();
        assert_eq!(parts[0], format!("id: {}", cursor(plain)));
        assert_eq!(parts[1], "event: settled.run.completion");
        assert_eq!(
            serde_json::from_str::<Value>(parts[2].strip_prefix("data: ").unwrap()).unwrap(),
            *plain
        );
    }
}

#[test]
fn http_1_1_is_chunked_and_1_0_is_not() {
    use std::io::{Read, Write};
    let home = Home::new();
    let _daemon = home.serve();
    home.complete([1]);
    home.completed(1);
    let mut stream = std::os::unix::net::UnixStream::connect(home.feed()).unwrap();
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.to_lowercase().contains("transfer-encoding: chunked"),
        "{answer}"
    );
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
    assert!(
        !home
            .ask("GET", "/v1/events", "")
            .head
            .to_lowercase()
            .contains("transfer-encoding")
    );
}

#[test]
fn the_feed_socket_reads_and_consumes_and_nothing_else() {
    let home = Home::new();
    let _daemon = home.serve();
    let control = home.path("control.sock");
    let only_control = [
        ("GET", "/v1/runs"),
        ("POST", "/v1/runs"),
        ("GET", "/v1/runs/sky/wr_1"),
        ("POST", "/v1/runs/sky/wr_1/poll"),
        ("POST", "/v1/runs/sky/wr_1/retry-webhook"),
        ("GET", "/v1/sources/sky/missing-webhooks"),
        ("GET", "/v1/deliveries"),
        ("GET", "/v1/deliveries/1"),
        ("GET", "/v1/deliveries/1/body"),
        ("GET", "/v1/status"),
    ];
    for (method, path) in only_control {
        let answer = home.ask(method, path, "");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "not_found"),
            "{method} {path}"
        );
        let operator = ask(&control, method, path, "").unwrap();
        assert!(
            !operator.text.contains("nothing is served here"),
            "{method} {path} is missing on the control socket"
        );
    }
    for (method, path) in [
        ("GET", "/healthz"),
        ("GET", "/v1/events"),
        ("GET", "/v1/consumers"),
    ] {
        assert_eq!(home.ask(method, path, "").status, 200, "{path}");
        assert_eq!(
            ask(&control, method, path, "").unwrap().status,
            200,
            "{path}"
        );
    }
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let home = Home::new();
    drop(UnixListener::bind(home.feed()).unwrap());
    let daemon = home.serve();
    for name in ["feed.sock", "control.sock"] {
        let meta = std::fs::metadata(home.path(name)).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    }
    daemon.kill();
    let daemon = home.serve();
    daemon.stop();
    assert!(
        !home.feed().exists(),
        "a daemon that stops takes its sockets away"
    );

    let _somebody = UnixListener::bind(home.feed()).unwrap();
    let output = home.settled(&["serve"]).output().unwrap();
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("another process is serving"),
        "{output:?}"
    );
    assert!(home.feed().exists());
}

#[test]
fn sockets_belong_to_the_groups_that_are_named() {
    use std::os::unix::fs::MetadataExt;
    let home = Home::new();
    let sockets = |groups: &str| {
        let text = std::fs::read_to_string(home.path("settled.toml")).unwrap();
        let text = text.replace("[sources.sky]", &format!("{groups}\n[sources.sky]"));
        std::fs::write(home.path("grouped.toml"), text).unwrap();
    };
    sockets("feed_group = \"no-such-group\"");
    let serve = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_settled"));
        command
            .arg("--config")
            .arg(home.path("grouped.toml"))
            .arg("serve")
            .env("KEY_FOR_TESTS", crate::support::home::KEY);
        command
    };
    let refused = serve().output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("there is no group \"no-such-group\""),
        "{said}"
    );

    // Only root may give a file to any group; everybody else to one of their own.
    let own = std::fs::metadata(home.path("settled.toml")).unwrap().gid();
    let group = if own == 0 {
        "daemon".to_owned()
    } else {
        uzers::get_group_by_gid(own)
            .unwrap()
            .name()
            .to_str()
            .unwrap()
            .to_owned()
    };
    sockets(&format!("feed_group = \"{group}\""));
    let _daemon = crate::support::process::Kept(serve().spawn().unwrap());
    crate::support::process::until("it answers", || {
        ask(&home.feed(), "GET", "/healthz", "").is_ok()
    });
    let gid = |name: &str| std::fs::metadata(home.path(name)).unwrap().gid();
    assert_eq!(
        gid("feed.sock"),
        uzers::get_group_by_name(&group).unwrap().gid()
    );
    assert_eq!(gid("control.sock"), own);
}

#[test]
fn too_large_a_request_is_refused() {
    let home = Home::new();
    let _daemon = home.serve();
    let answer = home.ask("PUT", "/v1/consumers/big", &" ".repeat((1 << 20) + 1));
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));
}

#[test]
fn a_restored_backup_is_another_life() {
    let home = Home::new();
    let daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", "{}");
    home.complete(1..=2);
    home.completed(2);
    let lines = home.read("/v1/consumers/mail/events");
    let (first, second) = (cursor(&lines[1]).to_owned(), cursor(&lines[2]).to_owned());
    assert_eq!(
        home.ask(
            "POST",
            &format!("/v1/consumers/mail/ack?cursor={first}"),
            ""
        )
        .status,
        200
    );
    daemon.stop();
    std::fs::copy(home.path("settled.db"), home.path("backup.db")).unwrap();

    let daemon = home.serve();
    assert_eq!(
        home.ask(
            "POST",
            &format!("/v1/consumers/mail/ack?cursor={second}"),
            ""
        )
        .status,
        200
    );
    home.complete([3]);
    home.completed(3);
    let third = cursor(&home.read("/v1/events")[3]).to_owned();
    daemon.stop();
    std::fs::rename(home.path("backup.db"), home.path("settled.db")).unwrap();

    let _daemon = home.serve();
    for known in [&first, &second, &third] {
        let answer = home.ask("GET", &format!("/v1/events?after={known}"), "");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (409, "epoch_mismatch")
        );
        let answer = home.ask(
            "POST",
            &format!("/v1/consumers/mail/ack?cursor={known}"),
            "",
        );
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (409, "epoch_mismatch")
        );
    }
    // A position kept here goes back with the backup: what was done since comes again, with the
    // ids it had; what the backup does not know comes when it is heard of again.
    home.complete([3]);
    home.completed(3);
    let again = home.read("/v1/consumers/mail/events");
    assert_eq!(subjects(&again), runs(2..=3));
    assert_eq!(again[1]["id"], lines[2]["id"]);
    assert_ne!(again[1]["cursor"], lines[2]["cursor"]);
}
