//! The tools people have: each reads a stream whose lines come one after the other, also those that
//! close their sending side at once.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::home::Home;
use crate::support::process::{Kept, installed};

/// Eight runs are told half a second apart; all must be seen.
fn sees_all(tools: &[&str], script: &str) {
    if !tools.iter().all(|tool| installed(tool)) {
        return;
    }
    let home = Home::new();
    let _daemon = home.serve();
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .env("S", home.feed())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = Kept(command.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let hello = lines.find(|line| line.contains("settled.feed.hello"));
    assert!(hello.is_some(), "{script}: no hello");
    for run in 1..=8 {
        std::thread::sleep(Duration::from_millis(500));
        home.complete([run]);
        let found = lines.find(|line| line.contains("settled.run.completion"));
        assert!(
            found.is_some_and(|line| line.contains(&format!("\"wr_{run}\""))),
            "{script}: run {run} was not seen"
        );
    }
}

const REQUEST: &str = r"printf 'GET /v1/events?follow=1 HTTP/1.0\r\n\r\n'";

#[test]
fn curl() {
    sees_all(
        &["curl"],
        "curl -sN --unix-socket $S 'http://feed/v1/events?follow=1'",
    );
    sees_all(
        &["curl"],
        "curl -sN --http1.0 --unix-socket $S 'http://feed/v1/events?follow=1'",
    );
}

#[test]
fn nc() {
    sees_all(&["nc"], &format!("{REQUEST} | nc -U $S"));
}

#[test]
fn nc_that_closes_its_side() {
    sees_all(&["nc"], &format!("{REQUEST} | nc -N -U $S"));
}

#[test]
fn socat_with_time() {
    sees_all(
        &["socat"],
        &format!("{REQUEST} | socat -t 86400 - UNIX-CONNECT:$S"),
    );
}

#[test]
fn socat_that_ignores_the_end() {
    sees_all(
        &["socat"],
        &format!("{REQUEST} | socat STDIO,ignoreeof UNIX-CONNECT:$S"),
    );
}

#[test]
fn http_1_1_by_hand() {
    let request = r"printf 'GET /v1/events?follow=1 HTTP/1.1\r\nHost: feed\r\n\r\n'";
    sees_all(&["nc"], &format!("{request} | nc -N -U $S"));
}

#[test]
fn the_line_of_the_manual_for_a_live_tail() {
    let script = format!("{REQUEST} | nc -N -U $S | sed -u '1,/^\\r$/d' | jq --unbuffered -c .");
    sees_all(&["nc", "jq"], &script);
}
