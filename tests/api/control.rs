//! What the control socket answers to whoever asks it without our own commands.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::home::{ApiResponse, Home, ask, runs};
use crate::support::process::{signal, until};

fn get(home: &Home, path: &str) -> ApiResponse {
    ask(&home.path("control.sock"), "GET", path, "").unwrap()
}

fn track(home: &Home, run: u32) {
    let body = format!(r#"{{"source":"sky","run_id":"wr_{run}","kind":"workflow"}}"#);
    assert_eq!(
        ask(&home.path("control.sock"), "POST", "/v1/runs", &body)
            .unwrap()
            .status,
        201
    );
}

#[test]
fn whoever_waits_for_a_run_is_answered_when_it_settles_or_his_time_is_up() {
    let home = Home::new();
    let _daemon = home.serve();
    track(&home, 1);
    let began = Instant::now();
    let run = &get(&home, "/v1/runs/sky/wr_1?wait=1").json()["run"];
    assert_eq!(
        (&run["phase"], &run["held"]),
        (&"open".into(), &false.into())
    );
    assert!(began.elapsed() >= Duration::from_secs(1));
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| get(&home, "/v1/runs/sky/wr_1?wait=30").json()["run"]["phase"].clone());
        home.complete([1]);
        assert_eq!(waiting.join().unwrap(), "settled");
    });
    assert_eq!(
        get(&home, "/v1/runs/sky/wr_1?wait=30").json()["run"]["phase"],
        "settled"
    );
    assert!(began.elapsed() < Duration::from_secs(25));
}

#[test]
fn a_run_shows_what_is_held_and_which_record_completed_it() {
    let home = Home::with("confirm = \"always\"");
    let daemon = home.serve();
    home.complete([1]);
    until("the webhook is held for an answer", || {
        get(&home, "/v1/runs/sky/wr_1").json()["run"]["held"] == true
    });
    assert_eq!(
        get(&home, "/v1/runs/sky/wr_1").json()["run"]["completion"],
        Value::Null
    );
    daemon.stop();
    home.configure("confirm = \"never\"");
    let _daemon = home.serve();
    home.complete([2]);
    home.completed(1);
    let record = home
        .read("/v1/events?types=completion")
        .into_iter()
        .find(|line| line["subject"] == "wr_2")
        .unwrap();
    let shown = get(&home, "/v1/runs/sky/wr_2").json();
    assert_eq!(shown["run"]["completion"], record["cursor"]);
    assert_eq!(shown["timeline"][0]["record"], record["cursor"]);
}

#[test]
fn a_list_of_deliveries_says_where_it_goes_on() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=3);
    let ids = |page: &Value| {
        let rows = page["deliveries"].as_array().unwrap();
        rows.iter()
            .map(|row| row["id"].as_i64().unwrap())
            .collect::<Vec<_>>()
    };
    let first = get(&home, "/v1/deliveries?limit=2").json();
    assert_eq!(ids(&first), [3, 2]);
    let rest = get(
        &home,
        &format!("/v1/deliveries?limit=2&before={}", first["next"]),
    )
    .json();
    assert_eq!((ids(&rest), &rest["next"]), (vec![1], &Value::Null));
}

#[test]
fn a_configuration_that_was_not_taken_is_in_the_status_until_one_is() {
    let home = Home::new();
    let daemon = home.serve();
    let trouble = || get(&home, "/v1/status").json()["trouble"].clone();
    let shown = || String::from_utf8(home.settled(&["status"]).output().unwrap().stdout).unwrap();
    assert_eq!(trouble(), Value::Null);
    assert!(!shown().contains("OLD CONFIGURATION"));
    home.configure("rates = 1");
    signal(daemon.child.id(), "HUP");
    until("it is refused", || trouble().is_string());
    let mistake = format!(
        "OLD CONFIGURATION IN FORCE ({}:",
        home.path("settled.toml").display()
    );
    assert!(
        trouble().as_str().unwrap().starts_with(&mistake),
        "{}",
        trouble()
    );
    assert!(shown().contains(&mistake), "{}", shown());
    home.configure("deadline = \"1h\"");
    signal(daemon.child.id(), "HUP");
    until("it is taken", || trouble().is_null());
}

#[test]
fn a_status_adds_up_what_is_open_and_overdue() {
    let home = Home::with("deadline = \"1s\"");
    let _daemon = home.serve();
    track(&home, 1);
    track(&home, 2);
    home.complete([3]);
    home.completed(1);
    until("they are overdue", || {
        let status = get(&home, "/v1/status").json();
        assert_eq!(status["open"], 2, "{status}");
        status["overdue"] == 2
    });
    let listed = get(&home, "/v1/runs?overdue=1").json();
    let listed: Vec<&str> = listed["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["run_id"].as_str().unwrap())
        .collect();
    assert_eq!(listed, runs(1..=2));
}

#[test]
fn a_client_that_sends_a_body_to_a_route_that_refuses_it_sees_the_answer() {
    let home = Home::new();
    let _daemon = home.serve();
    // More than the buffers of a socket hold: the client is still writing when the route refuses.
    let body = "x".repeat(8 << 20);
    for (socket, method, path, host, status) in [
        ("feed.sock", "POST", "/v1/runs", "settled", 404),
        ("feed.sock", "POST", "/v1/events", "settled", 405),
        ("control.sock", "POST", "/v1/runs", "settled", 413),
        ("control.sock", "POST", "/v1/runs", "evil.example", 403),
        ("control.sock", "PUT", "/v1/consumers/A%20B", "settled", 400),
    ] {
        let mut stream = UnixStream::connect(home.path(socket)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let sent = stream.write_all(body.as_bytes());
        assert!(sent.is_ok(), "{method} {path}: {sent:?}");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = answer.lines().next().unwrap_or_default();
        assert!(
            line.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method} {path}: {line}"
        );
    }
}
