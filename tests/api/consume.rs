//! `settled consume` and `settled consumers`.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::home::Home;
use crate::support::process::signal;

struct Consumer(Child);

impl Consumer {
    fn start(home: &Home, arguments: &[&str], script: &str) -> Consumer {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(home.path("consume.log"))
            .unwrap();
        let mut command = home.settled(&["consume", "mail"]);
        command
            .args(arguments)
            .args(["--", "sh", "-c", script])
            .current_dir(home.path(""))
            .stderr(log);
        Consumer(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn stop(mut self) {
        signal(self.0.id(), "TERM");
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn until(what: &str, home: &Home, true_now: impl Fn() -> bool) {
    let began = Instant::now();
    while !true_now() {
        let log = fs::read_to_string(home.path("consume.log")).unwrap_or_default();
        assert!(began.elapsed() < Duration::from_secs(30), "{what}: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn lag(home: &Home) -> i64 {
    home.ask("GET", "/v1/consumers/mail", "").json()["lag"]
        .as_i64()
        .unwrap_or(-1)
}

#[test]
fn each_event_is_one_process_and_is_done_when_it_exits_with_0() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=2);
    home.say(3, "failed");
    let script = "cat >> events; echo $SETTLED_CONSUMER $SETTLED_RUN_ID $SETTLED_OUTCOME $SETTLED_ORIGIN \
                  $SETTLED_SOURCE $SETTLED_PROVIDER $SETTLED_ATTEMPT $SETTLED_COUNT $SETTLED_CONFIRMED >> fields";
    let consumer = Consumer::start(&home, &[], script);
    until("three are done", &home, || {
        lines(&home.path("fields")).len() == 3 && lag(&home) == 0
    });
    assert_eq!(
        lines(&home.path("fields")),
        [
            "mail wr_1 succeeded webhook sky skyvern 1 1 1",
            "mail wr_2 succeeded webhook sky skyvern 1 1 1",
            "mail wr_3 failed webhook sky skyvern 1 1 1"
        ]
    );
    let fed = home.read("/v1/events");
    for (line, record) in lines(&home.path("events")).iter().zip(&fed[1..]) {
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(line).unwrap(),
            *record
        );
    }
    home.complete([4]);
    until("a new one is done", &home, || {
        lines(&home.path("fields")).len() == 4 && lag(&home) == 0
    });
    consumer.stop();
    // Its position is kept: nothing is done twice.
    let consumer = Consumer::start(&home, &[], script);
    home.complete([5]);
    until("only the new one is done", &home, || {
        lines(&home.path("fields")).len() == 5 && lag(&home) == 0
    });
    consumer.stop();
}

#[test]
fn the_position_passes_no_event_whose_command_has_not_succeeded() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=2);
    home.completed(2);
    let consumer = Consumer::start(&home, &[], "echo $SETTLED_ATTEMPT >> tried; test -e well");
    until("it was tried twice", &home, || {
        lines(&home.path("tried")).len() == 2
    });
    assert_eq!(lag(&home), 2, "neither is done");
    drop(consumer);
    // Killed in the middle of it: the next one begins with the same event.
    fs::write(home.path("well"), "").unwrap();
    let consumer = Consumer::start(&home, &[], "echo $SETTLED_RUN_ID >> done");
    until("both are done", &home, || lag(&home) == 0);
    assert_eq!(lines(&home.path("done")), ["wr_1", "wr_2"]);
    consumer.stop();
}

#[test]
fn a_failing_event_is_tried_again_and_never_skipped() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=3);
    let script = "echo $SETTLED_RUN_ID $SETTLED_ATTEMPT >> tried; test $SETTLED_RUN_ID != wr_2 -o $SETTLED_ATTEMPT = 3";
    let consumer = Consumer::start(&home, &["--max-backoff", "1s"], script);
    until("all are done", &home, || {
        lines(&home.path("tried")).len() == 5 && lag(&home) == 0
    });
    assert_eq!(
        lines(&home.path("tried")),
        ["wr_1 1", "wr_2 1", "wr_2 2", "wr_2 3", "wr_3 1"]
    );
    consumer.stop();
}

#[test]
fn what_keeps_failing_is_parked_listed_and_retried() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=3);
    let script = "test $SETTLED_RUN_ID != wr_2 -o -e mended && echo $SETTLED_RUN_ID $SETTLED_ATTEMPT >> done || exit 7";
    let arguments = ["--max-attempts", "2", "--max-backoff", "1s"];
    let consumer = Consumer::start(&home, &arguments, script);
    until("the others are done", &home, || lag(&home) == 0);
    assert_eq!(lines(&home.path("done")), ["wr_1 1", "wr_3 1"]);
    consumer.stop();
    let listed = home
        .settled(&["consumers", "--json", "parked", "mail"])
        .output()
        .unwrap();
    let parked: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(
        (&parked["attempts"], &parked["error"]),
        (&2.into(), &"exit status: 7".into())
    );
    assert_eq!(parked["event"]["id"], "sky:wr_2:completion");
    let table = home.settled(&["consumers"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&table.stdout).contains("mail"),
        "{table:?}"
    );

    fs::write(home.path("mended"), "").unwrap();
    let cursor = parked["cursor"].as_str().unwrap();
    assert!(
        home.settled(&["consumers", "retry", "mail", cursor])
            .status()
            .unwrap()
            .success()
    );
    let consumer = Consumer::start(&home, &arguments, script);
    until("it is done", &home, || lines(&home.path("done")).len() == 3);
    assert_eq!(lines(&home.path("done"))[2], "wr_2 3");
    let empty = || {
        home.ask("GET", "/v1/consumers/mail/parked", "").json()["parked"]
            .as_array()
            .unwrap()
            .is_empty()
    };
    until("it is no longer parked", &home, empty);
    consumer.stop();
}

#[test]
fn batches_are_done_all_or_none() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete(1..=7);
    home.completed(7);
    let script =
        "test $SETTLED_ATTEMPT = 2 || exit 1; cat >> events; echo $SETTLED_COUNT >> counts";
    let consumer = Consumer::start(&home, &["--batch", "5", "--max-backoff", "1s"], script);
    until("all are done", &home, || lag(&home) == 0);
    assert_eq!(lines(&home.path("events")).len(), 7);
    assert!(
        lines(&home.path("counts")).len() < 7,
        "{:?}",
        lines(&home.path("counts"))
    );
    consumer.stop();
}

#[test]
fn a_stop_lets_the_command_finish_and_a_second_one_does_not() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete([1]);
    let script = "echo >> begun; sleep 2; echo >> done";
    let consumer = Consumer::start(&home, &[], script);
    until("it has begun", &home, || home.path("begun").exists());
    consumer.stop();
    assert!(home.path("done").exists());
    assert_eq!(lag(&home), 0);

    home.complete([2]);
    let mut consumer = Consumer::start(&home, &[], "echo >> begun2; sleep 60; echo >> done2");
    until("it has begun", &home, || home.path("begun2").exists());
    signal(consumer.0.id(), "TERM");
    std::thread::sleep(Duration::from_millis(300));
    signal(consumer.0.id(), "TERM");
    let began = Instant::now();
    assert!(consumer.0.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(!home.path("done2").exists());
    assert_eq!(lag(&home), 1, "what was not done is not acknowledged");
}

#[test]
fn a_closed_terminal_lets_the_command_finish_and_leaves_nothing_running() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete([1]);
    let script = "echo >> begun; sleep 2; echo $SETTLED_RUN_ID >> done";
    let mut consumer = Consumer::start(&home, &[], script);
    until("it has begun", &home, || home.path("begun").exists());
    signal(consumer.0.id(), "HUP");
    assert!(consumer.0.wait().unwrap().success());
    assert_eq!(lines(&home.path("done")), ["wr_1"]);
    assert_eq!(lag(&home), 0, "the command's end is acknowledged");
}

#[test]
fn the_commands_environment_holds_nothing_but_what_is_listed() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete([1]);
    let log = fs::File::create(home.path("consume.log")).unwrap();
    let mut command = home.settled(&["consume", "mail", "--env", "PASSED", "--env", "SET=a=b"]);
    command
        .args(["--", "sh", "-c", "env > env.part; mv env.part env"])
        .envs([("SOME_API_KEY", "hidden"), ("PASSED", "on"), ("TZ", "UTC")])
        .current_dir(home.path(""))
        .stdin(Stdio::null())
        .stderr(log);
    let consumer = Consumer(command.spawn().unwrap());
    until("it is done", &home, || {
        home.path("env").exists() && lag(&home) == 0
    });
    consumer.stop();
    let seen = lines(&home.path("env"));
    for wanted in ["PASSED=on", "SET=a=b", "TZ=UTC", "SETTLED_RUN_ID=wr_1"] {
        assert!(seen.iter().any(|line| line == wanted), "{wanted}: {seen:?}");
    }
    assert!(
        seen.iter().any(|line| line.starts_with("PATH=")),
        "{seen:?}"
    );
    assert!(!seen.iter().any(|line| line.contains("hidden")), "{seen:?}");
    assert!(
        !seen.iter().any(|line| line.starts_with("SETTLED_CONFIG=")),
        "{seen:?}"
    );

    let unset = home
        .settled(&["consume", "mail", "--env", "NOT_SET_ANYWHERE", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(unset.status.code(), Some(1), "{unset:?}");
    assert!(String::from_utf8_lossy(&unset.stderr).contains("NOT_SET_ANYWHERE is not set here"));
}

#[test]
fn a_command_that_hangs_is_ended_with_all_it_started() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete([1]);
    let script = "test $SETTLED_ATTEMPT = 2 || { sleep 77 & echo $! >> pid; wait; }";
    let consumer = Consumer::start(&home, &["--timeout", "1s", "--max-backoff", "1s"], script);
    until("the second attempt is good", &home, || {
        home.path("pid").exists() && lag(&home) == 0
    });
    let pid = lines(&home.path("pid"))[0].clone();
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    until("its child is gone", &home, || {
        state().is_empty() || state().contains(") Z ")
    });
    consumer.stop();
}

#[test]
fn it_outlives_the_daemon_and_gives_way_to_another_reader() {
    let home = Home::new();
    let daemon = home.serve();
    home.complete([1]);
    let mut consumer = Consumer::start(&home, &[], "echo $SETTLED_RUN_ID >> done");
    until("one is done", &home, || {
        lag(&home) == 0 && home.path("done").exists()
    });
    daemon.kill();
    std::thread::sleep(Duration::from_millis(200));
    let _daemon = home.serve();
    home.complete([2]);
    until("another is done", &home, || {
        lines(&home.path("done")) == ["wr_1", "wr_2"] && lag(&home) == 0
    });
    assert!(
        home.settled(&["consumers", "seek", "mail", "earliest"])
            .status()
            .unwrap()
            .success()
    );
    until("they are done again", &home, || {
        lines(&home.path("done")).len() == 4 && lag(&home) == 0
    });

    home.read("/v1/consumers/mail/events");
    assert_eq!(consumer.0.wait().unwrap().code(), Some(1));
    assert!(
        fs::read_to_string(home.path("consume.log"))
            .unwrap()
            .contains("another reader has taken over")
    );
}

#[test]
fn a_command_that_is_not_there_is_said_at_once() {
    let home = Home::new();
    let _daemon = home.serve();
    home.complete([1]);
    let output = home
        .settled(&["consume", "mail", "--", "/no/such/command"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("/no/such/command cannot be run"),
        "{output:?}"
    );
    assert_eq!(lag(&home), 1);
}
