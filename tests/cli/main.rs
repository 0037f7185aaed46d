//! Every command of the real program, against the real daemon, over real sockets.

#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::world::{Ran, World, command, state, within};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_run_is_tracked_looked_at_and_waited_for() {
    let world = World::start();
    let told = world
        .settled(&[
            "track",
            "prod",
            "tsk_1",
            "--group",
            "wf",
            "--metadata",
            "order=4711",
        ])
        .good();
    assert_eq!(
        told,
        "prod tsk_1 is tracked from now on; next poll in 59 min\n"
    );
    let told = world.settled(&["track", "prod", "tsk_1"]).good();
    assert!(
        told.starts_with("prod tsk_1 is known: open; next poll in "),
        "{told}"
    );
    let run = &world.settled(&["track", "prod", "tsk_1", "--json"]).json()[0];
    assert_eq!(
        (&run["kind"], &run["metadata"]["order"], &run["group_id"]),
        (&"task".into(), &"4711".into(), &"wf".into())
    );

    let waited = world.settled(&["wait", "prod", "tsk_1", "--timeout", "200ms"]);
    assert_eq!((waited.code, waited.out.as_str()), (14, "open\n"));
    assert_eq!(waited.err, "settled: still open after 200ms\n");

    let waiting = world
        .command(&["wait", "prod", "tsk_1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    world.webhook(&state("tsk_1", "completed"));
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(
        (waited.status.code(), waited.stdout.as_slice()),
        (Some(0), b"succeeded\n".as_slice())
    );
    let settled = &world.settled(&["wait", "prod", "tsk_1", "--json"]).json()[0]["run"];
    assert_eq!(
        (&settled["outcome"], &settled["origin"]),
        (&"succeeded".into(), &"webhook".into())
    );

    let told = world.settled(&["run", "prod", "tsk_1"]).good();
    assert!(
        told.contains("\nstate        succeeded (completed)\n"),
        "{told}"
    );
    assert!(told.contains("\nwebhooks     1, "), "{told}");
    assert!(
        told.contains("\nWHEN") && told.contains("  settled"),
        "{told}"
    );
    let timeline = &world.settled(&["run", "prod", "tsk_1", "--json"]).json()[0]["timeline"];
    assert_eq!(
        timeline.as_array().unwrap().last().unwrap()["effect"],
        "settled"
    );
    let told = world.settled(&["track", "prod", "tsk_1"]).good();
    assert_eq!(
        told,
        "prod tsk_1 has settled already: succeeded (completed)\n"
    );
}

#[test]
fn a_wait_ends_with_the_code_of_the_outcome() {
    let world = World::start();
    for (status, word, code) in [
        ("failed", "failed", 10),
        ("terminated", "failed", 10),
        ("canceled", "cancelled", 11),
        ("timed_out", "timed_out", 12),
    ] {
        let run_id = format!("tsk_{status}");
        world.webhook(&state(&run_id, status));
        let waited = world.settled(&["wait", "prod", &run_id, "--timeout", "10s"]);
        assert_eq!(
            (waited.code, waited.out),
            (code, format!("{word}\n")),
            "{status}"
        );
    }
}

#[test]
fn lists_are_tables_for_people_and_lines_for_programs() {
    let world = World::start();
    let long = format!("tsk_{}", "9".repeat(180));
    world.settled(&["track", "prod", &long]).good();
    for number in 0..5 {
        world.webhook(&state(
            &format!("tsk_{number}"),
            if number == 0 { "failed" } else { "completed" },
        ));
    }
    within(SECOND * 10, || {
        world.settled(&["runs", "--settled", "--json"]).json().len() == 5
    });
    assert_eq!(world.settled(&["runs", "--all", "--json"]).json().len(), 6);
    assert_eq!(
        world
            .settled(&["runs", "--limit", "2", "--json"])
            .json()
            .len(),
        2
    );
    assert_eq!(
        world.settled(&["runs", "--open", "--json"]).json()[0]["run_id"],
        long.as_str()
    );
    let newest: Vec<_> = world.settled(&["runs", "--limit", "2", "--json"]).json();
    assert_eq!(
        [&newest[0]["run_id"], &newest[1]["run_id"]],
        ["tsk_4", "tsk_3"]
    );
    assert_eq!(
        world
            .settled(&["runs", "--oldest", "--limit", "1", "--json"])
            .json()[0]["run_id"],
        long.as_str()
    );
    assert!(
        world
            .settled(&["runs", "--source", "other", "--json"])
            .json()
            .is_empty()
    );
    let none = world.settled(&["runs", "--overdue"]);
    assert_eq!(
        (none.code, none.out.as_str(), none.err.as_str()),
        (0, "", "settled: no such runs\n")
    );
    let table = world.settled(&["runs"]).good();
    let mut lines = table.lines();
    let words: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        words,
        ["SOURCE", "RUN", "KIND", "OPENED", "SETTLED", "BY", "STATE"]
    );
    assert!(lines.last().unwrap().contains(&long), "{table}");

    assert_eq!(world.post("{}", "forged"), 401);
    let deliveries = world.settled(&["deliveries", "--json"]).json();
    assert_eq!(
        (deliveries.len(), &deliveries[0]["verdict"]),
        (6, &"bad_signature".into())
    );
    assert_eq!(
        world
            .settled(&["deliveries", "--limit", "1", "--json"])
            .json()
            .len(),
        1
    );
    assert_eq!(
        world
            .settled(&["deliveries", "--verdict", "bad_signature", "--json"])
            .json()
            .len(),
        1
    );
    let of_one = world
        .settled(&["deliveries", "--run", "tsk_0", "--json"])
        .json();
    assert_eq!(of_one.len(), 1);
    let id = of_one[0]["id"].to_string();
    assert!(
        world
            .settled(&["deliveries", "--run", "tsk_0"])
            .good()
            .contains("tsk_0")
    );
    let one = world.settled(&["deliveries", "--id", &id]).good();
    assert!(
        one.contains("header       x-skyvern-signature: [hidden]")
            || one.contains("x-skyvern-signature: [hidden]"),
        "{one}"
    );
    assert_eq!(
        world.settled(&["deliveries", "--id", &id, "--json"]).json()[0]["verdict"],
        "signed"
    );
    assert_eq!(
        world.settled(&["deliveries", "--id", &id, "--body"]).good(),
        state("tsk_0", "failed").to_string()
    );
}

#[test]
fn a_provider_is_asked_and_asked_to_send_again() {
    let world = World::start();
    world.cloud.says("tsk_1", state("tsk_1", "running"), 200);
    world.settled(&["track", "prod", "tsk_1"]).good();
    let told = world.settled(&["poll", "prod", "tsk_1"]).good();
    assert!(
        told.starts_with("its status has changed: prod tsk_1 is open (running); next poll in "),
        "{told}"
    );
    world.cloud.says("tsk_1", state("tsk_1", "completed"), 200);
    let told = &world.settled(&["poll", "prod", "tsk_1", "--json"]).json()[0];
    assert_eq!(
        (&told["effect"], &told["run"]["origin"]),
        (&"settled".into(), &"poll".into())
    );

    world.cloud.says("tsk_2", state("tsk_2", "failed"), 500);
    world.settled(&["track", "prod", "tsk_2"]).good();
    world.settled(&["poll", "prod", "tsk_2"]).good();
    let (code, error) = world.settled(&["retry-webhook", "prod", "--missing"]).bad();
    assert_eq!(
        (code, error.as_str()),
        (1, "settled: prod tsk_2: the receiver said no\n")
    );
    world.cloud.says("tsk_2", state("tsk_2", "failed"), 204);
    let lines = world
        .settled(&["retry-webhook", "--missing", "--json"])
        .json();
    assert!(
        lines.iter().all(|line| line["result"]["delivered"] == true),
        "{lines:?}"
    );
    let again = world.settled(&["retry-webhook", "prod", "tsk_2"]).good();
    assert!(
        again.starts_with("sent again to https://hooks.example.org/hooks/prod in 5 ms: HTTP 204"),
        "{again}"
    );
    let again = &world
        .settled(&[
            "retry-webhook",
            "prod",
            "tsk_2",
            "--url",
            "https://x.example",
            "--json",
        ])
        .json()[0];
    assert_eq!(again["payload_verdict"], "signed");
}

#[test]
fn a_provider_that_cannot_be_asked_is_no_news_of_the_run() {
    let world = World::start();
    world.cloud.says("tsk_1", state("tsk_1", "running"), 200);
    world.settled(&["track", "prod", "tsk_1"]).good();
    world.cloud.fails(503);
    let polled = world.settled(&["poll", "prod", "tsk_1", "--json"]);
    assert_eq!(
        (polled.code, polled.err.as_str()),
        (
            1,
            "settled: skyvern answered HTTP 503 (unavailable): HTTP 503; nothing was learned, tsk_1 is open\n"
        )
    );
    assert!(serde_json::from_str::<serde_json::Value>(&polled.out).unwrap()["run"].is_object());
    world.cloud.fails(401);
    let (code, error) = world.settled(&["poll", "prod", "tsk_1"]).bad();
    assert_eq!(
        (code, error.as_str()),
        (
            1,
            "settled: skyvern answered HTTP 401 (denied): the API key is not accepted (401); nothing was learned, tsk_1 is open\n"
        )
    );
    let told = world.settled(&["status"]).good();
    assert!(
        told.contains("  stopped ") && told.contains("prod: polling has stopped: "),
        "{told}"
    );
    let (code, error) = world.settled(&["poll", "prod", "tsk_1"]).bad();
    assert_eq!(code, 1, "{error}");
}

#[test]
fn a_poll_whose_answer_says_nothing_of_the_run_fails() {
    let world = World::start();
    world.cloud.says("tsk_1", state("tsk_1", "running"), 200);
    world.settled(&["track", "prod", "tsk_1"]).good();
    // A landing page, or an API of another version: HTTP 200 and none of the documented fields.
    world
        .cloud
        .says("tsk_1", serde_json::json!({"welcome": true}), 200);
    let (code, error) = world.settled(&["poll", "prod", "tsk_1"]).bad();
    assert!(
        code == 1 && error.contains("answered HTTP 200: ") && error.contains("nothing was learned"),
        "{error}"
    );
    let polled = world.settled(&["poll", "prod", "tsk_1", "--json"]);
    let polled: serde_json::Value = serde_json::from_str(&polled.out).unwrap();
    assert_eq!(
        (
            &polled["learned"],
            &polled["answer"]["class"],
            &polled["answer"]["status"]
        ),
        (&false.into(), &"ok".into(), &200.into())
    );
}

#[test]
fn no_command_waits_for_a_stopped_daemon() {
    let world = World::start();
    world.settled(&["track", "prod", "tsk_1"]).good();
    let waiting = world
        .command(&["wait", "prod", "tsk_1", "--timeout", "4s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(SECOND);
    let stopped = Stopped::new(world.daemon_pid());
    // Known to be open before the daemon stopped: 14. Nothing known: 3.
    let begun = Instant::now();
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(waited.status.code(), Some(14), "{waited:?}");
    let (code, error) = world
        .settled(&["wait", "prod", "tsk_1", "--timeout", "2s"])
        .bad();
    assert!(code == 3 && error.contains("does not answer"), "{error}");
    assert!(begun.elapsed() < SECOND * 9, "{:?}", begun.elapsed());
    let commands: [&[&str]; 5] = [
        &["status"],
        &["runs"],
        &["track", "prod", "tsk_2"],
        &["feed"],
        &["backup", "copy.db"],
    ];
    std::thread::scope(|scope| {
        for args in commands {
            let world = &world;
            scope.spawn(move || {
                let begun = Instant::now();
                let (code, error) = world.settled(args).bad();
                assert!(
                    code == 3 && error.contains("does not answer"),
                    "{args:?}: {error}"
                );
                assert!(begun.elapsed() < SECOND * 20, "{args:?}");
            });
        }
    });
    let checked = world.settled(&["check", "--quick"]);
    assert!(
        checked.code == 1
            && checked.out.contains("does not answer")
            && !checked.out.contains("the daemon answers"),
        "{}",
        checked.out
    );
    drop(stopped);
    world.settled(&["status"]).good();
}

/// A process that SIGSTOP holds, until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Stopped {
        support::process::signal(pid, "STOP");
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        support::process::signal(self.0, "CONT");
    }
}

#[test]
fn the_feed_is_one_record_a_line() {
    let world = World::start();
    for (run_id, status) in [
        ("tsk_1", "completed"),
        ("tsk_2", "failed"),
        ("tsk_3", "completed"),
    ] {
        world.webhook(&state(run_id, status));
        world.settled(&["wait", "prod", run_id]);
    }
    let records = world.settled(&["feed"]).json();
    let ids: Vec<&str> = records
        .iter()
        .map(|record| record["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        [
            "prod:tsk_1:completion",
            "prod:tsk_2:completion",
            "prod:tsk_3:completion"
        ]
    );
    let cursor = records[0]["cursor"].as_str().unwrap();
    assert_eq!(
        world
            .settled(&["feed", "--after", cursor, "--json"])
            .json()
            .len(),
        2
    );
    assert_eq!(
        world
            .settled(&["feed", "--outcome", "failed,timed_out"])
            .json()[0]["subject"],
        "tsk_2"
    );
    assert_eq!(world.settled(&["feed", "--limit", "1"]).json().len(), 1);
    assert!(
        world
            .settled(&["feed", "--after", "latest"])
            .json()
            .is_empty()
    );
    assert!(
        world
            .settled(&["feed", "--provider", "firecrawl"])
            .json()
            .is_empty()
    );
    assert!(
        world
            .settled(&["feed", "--types", "completion,status", "--limit", "1"])
            .json()[0]["data"]
            .is_object()
    );
    let (code, error) = world.settled(&["feed", "--after", "zzzz.1"]).bad();
    assert!(
        code == 1 && error.contains("another life of this database") && error.contains("(--after "),
        "{error}"
    );
}

#[test]
fn a_follower_survives_the_daemon() {
    let mut world = World::start();
    let mut follower = world
        .command(&["feed", "--follow", "--limit", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    world.webhook(&state("tsk_1", "completed"));
    assert!(lines.next().unwrap().contains("prod:tsk_1:completion"));
    world.kill_daemon();
    world.start_daemon();
    world.webhook(&state("tsk_2", "completed"));
    assert!(lines.next().unwrap().contains("prod:tsk_2:completion"));
    assert!(lines.next().is_none());
    assert!(follower.wait().unwrap().success());
}

#[test]
fn a_wait_survives_the_daemon() {
    let mut world = World::start();
    world.settled(&["track", "prod", "tsk_1"]).good();
    let waiting = world
        .command(&["wait", "prod", "tsk_1", "--timeout", "1m"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(SECOND / 2);
    world.kill_daemon();
    world.start_daemon();
    world.webhook(&state("tsk_1", "completed"));
    assert_eq!(waiting.wait_with_output().unwrap().stdout, b"succeeded\n");
}

#[test]
fn a_follower_whom_nobody_reads_ends_quietly() {
    let world = World::start();
    let mut follower = world
        .command(&["feed", "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(follower.stdout.take());
    let begun = Instant::now();
    let ended = follower.wait_with_output().unwrap();
    assert!(
        ended.status.success() && ended.stderr.is_empty(),
        "{ended:?}"
    );
    assert!(begun.elapsed() < SECOND * 10);
}

#[test]
fn status_tells_of_the_daemon_and_its_sources() {
    let world = World::start();
    world.webhook(&state("tsk_1", "completed"));
    world.settled(&["wait", "prod", "tsk_1"]).good();
    let told = world.settled(&["status"]).good();
    assert!(
        told.starts_with("settled  ") && told.contains("\nruns     0 open, 0 overdue\n"),
        "{told}"
    );
    let row: Vec<&str> = told
        .lines()
        .find(|line| line.starts_with("prod"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        (row[1], row[2], row[3], row.last()),
        ("skyvern", "0", "0", Some(&"5/s")),
        "{told}"
    );
    let json = &world.settled(&["status", "--json"]).json()[0];
    assert_eq!(
        (&json["sources"][0]["name"], &json["open"]),
        (&"prod".into(), &0.into())
    );
    assert!(!json["sources"][0]["last_webhook_at"].is_null());

    // Losses and readers.
    world.cloud.says("tsk_2", state("tsk_2", "completed"), 200);
    world.settled(&["track", "prod", "tsk_2"]).good();
    world.settled(&["poll", "prod", "tsk_2"]).good();
    world.settled(&["consumers", "create", "mail"]).good();
    let told = world.settled(&["status"]).good();
    assert!(told.contains("\nLOST WEBHOOKS  IN 1H"), "{told}");
    assert_eq!(told.matches("1 of 2 (50.0 %)").count(), 3, "{told}");
    let row: Vec<&str> = told
        .lines()
        .find(|line| line.starts_with("mail"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        (row[2], row[3], row.last()),
        ("2", "0", Some(&"away")),
        "{told}"
    );
}

#[test]
fn a_damaged_run_is_named_and_stands_in_nobodys_way() {
    let mut world = World::without_daemon();
    let file = world.folder.path().join("settled.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let config = config
        .replace("\npoll = \"0 0 0 1 1 *\"", "\npoll = \"* * * * * *\"")
        .replace("\"1h\"", "\"1s\"");
    std::fs::write(&file, config).unwrap();
    world.start_daemon();
    for run_id in ["tsk_bad", "tsk_1", "tsk_2"] {
        world.settled(&["track", "prod", run_id]).good();
    }
    world.kill_daemon();
    let spoil = "UPDATE runs SET state = '{\"kind\":', poll_at = 1, poll_urgent_at = NULL, wake_at = 1 WHERE run_id = 'tsk_bad'";
    rusqlite::Connection::open(world.folder.path().join("settled.db"))
        .unwrap()
        .execute(spoil, [])
        .unwrap();
    for run_id in ["tsk_1", "tsk_2"] {
        world.cloud.says(run_id, state(run_id, "completed"), 200);
    }
    world.start_daemon();
    for run_id in ["tsk_1", "tsk_2"] {
        assert_eq!(
            world
                .settled(&["wait", "prod", run_id, "--timeout", "20s"])
                .good(),
            "succeeded\n"
        );
    }
    let listed = world.settled(&["runs", "--json"]);
    assert_eq!(listed.out.lines().count(), 2);
    assert_eq!(
        listed.err,
        "settled: prod:tsk_bad: its row is damaged and is left out; see `settled check`\n"
    );
    let status = world.settled(&["status"]).good();
    assert!(
        status.contains("the row of prod:tsk_bad of runs is damaged; see `settled check`"),
        "{status}"
    );
    let (code, error) = world.settled(&["run", "prod", "tsk_bad"]).bad();
    assert!(
        code == 1 && error.contains("run `settled check`"),
        "{error}"
    );

    let checked = world.settled(&["check"]);
    assert!(
        checked.code == 1 && checked.out.contains("\ndatabase  DAMAGED: 3 runs, "),
        "{}",
        checked.out
    );
    assert!(
        checked.out.contains(
            "error: database: runs that cannot be read: 1: prod:tsk_bad (a run's state: "
        )
    );
    let checked = world.settled(&["check", "--json"]);
    let checked: serde_json::Value = serde_json::from_str(&checked.out).unwrap();
    assert_eq!(
        (&checked["ok"], &checked["database"]["findings"][0]["rows"]),
        (&false.into(), &1.into())
    );
    assert_eq!(world.settled(&["check", "--quick"]).code, 0);
}

#[test]
fn a_backup_is_checked_by_itself() {
    let world = World::start();
    world.webhook(&state("tsk_1", "completed"));
    world.settled(&["backup", "copy.db"]).good();
    let told = world.settled(&["check", "--database", "copy.db"]).good();
    assert!(
        told.contains("\ndatabase  sound: 1 runs, 1 reports, 1 records\n"),
        "{told}"
    );
    let copy = world.folder.path().join("copy.db");
    let mut bytes = std::fs::read(&copy).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0);
    std::fs::write(&copy, bytes).unwrap();
    let told = world.settled(&["check", "--database", "copy.db"]);
    assert!(
        told.code == 1 && told.out.contains("error: "),
        "{}",
        told.out
    );
    assert_eq!(
        world.settled(&["check", "--database", "nothing.db"]).code,
        1
    );
}

#[test]
fn what_a_stranger_writes_cannot_command_the_terminal() {
    let world = World::start();
    let mut said = state("tsk_1", "failed");
    said["failure_reason"] = "\u{1b}[2Jgone\u{7}\n\u{202e}back".into();
    world.webhook(&said);
    world.settled(&["wait", "prod", "tsk_1"]);
    for args in [
        &["run", "prod", "tsk_1"][..],
        &["runs"],
        &["deliveries"],
        &["wait", "prod", "tsk_1"],
    ] {
        let Ran { out, err, .. } = world.settled(args);
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(
            !out.contains(bad) && !err.contains(bad),
            "{args:?}: {out:?} {err:?}"
        );
    }
    assert!(
        world
            .settled(&["run", "prod", "tsk_1"])
            .good()
            .contains("[2Jgone")
    );
}

#[test]
fn failures_say_what_to_do() {
    let mut world = World::start();
    assert_eq!(
        world.settled(&["track", "other", "tsk_1"]).bad(),
        (
            1,
            "settled: no source named \"other\" is configured\n".into()
        )
    );
    let (code, error) = world.settled(&["run", "prod", "a/b#c"]).bad();
    assert_eq!(
        (
            code,
            error.contains("no run prod:a/b#c is known; track it with")
        ),
        (1, true),
        "{error}"
    );
    assert_eq!(world.settled(&["poll", "prod", "nobody"]).bad().0, 1);
    assert_eq!(world.settled(&["retry-webhook"]).bad().0, 2);
    assert_eq!(
        world
            .settled(&["track", "prod", "x", "--kind", "dream"])
            .bad()
            .0,
        2
    );
    let file = std::fs::read_to_string(world.folder.path().join("settled.toml")).unwrap();
    std::fs::write(
        world.folder.path().join("bad.toml"),
        file.replace("[hooks]", "[hocks]"),
    )
    .unwrap();
    let (code, error) = Ran::of(&mut command(
        world.folder.path(),
        &["-c", "bad.toml", "status"],
    ))
    .bad();
    assert!(
        code == 1 && error.contains("bad.toml:1: hocks: "),
        "{error}"
    );

    world.kill_daemon();
    for args in [
        &["status"][..],
        &["wait", "prod", "x"],
        &["runs"],
        &["track", "prod", "x"],
        &["deliveries"],
    ] {
        let (code, error) = world.settled(args).bad();
        let start = "settled: the daemon cannot be reached on control.sock: ";
        assert!(
            code == 3 && error.starts_with(start) && error.lines().count() == 1,
            "{error}"
        );
    }
    let (code, error) = world.settled(&["feed", "--follow"]).bad();
    assert!(
        code == 3 && error.contains("feed.sock") && error.contains("start it with"),
        "{error}"
    );
    let (code, error) = world
        .settled(&["status", "--socket", "/nowhere.sock"])
        .bad();
    assert!(
        code == 3 && error.contains("/nowhere.sock: there is no such socket"),
        "{error}"
    );
}

#[test]
fn a_configuration_is_checked() {
    let mut world = World::without_daemon();
    let told = world.settled(&["check"]).good();
    assert!(
        told.contains("\nverified by  a signature with api_key\n")
            && told.ends_with("\nall is well\n"),
        "{told}"
    );
    assert!(told.contains(": can be made\n"), "{told}");
    assert!(!world.folder.path().join("settled.db").exists());
    let online = &world.settled(&["check", "--online", "--json"]).json()[0];
    assert_eq!(
        (&online["ok"], &online["sources"][0]["online"]["verdict"]),
        (&true.into(), &"the key works".into())
    );

    let wrong = Ran::of(
        world
            .command(&["check", "--online"])
            .env("KEY", "a-wrong-key"),
    );
    assert_eq!(wrong.code, 1);
    assert!(
        wrong
            .out
            .contains("error: sources.prod: the key is refused: ")
            && !wrong.out.contains("a-wrong-key"),
        "{}",
        wrong.out
    );
    let (code, error) = Ran::of(world.command(&["check"]).env_remove("KEY")).bad();
    assert!(code == 1 && error.contains("$KEY is not set"), "{error}");
    let broken = Ran::of(world.command(&["check", "--json"]).env_remove("KEY"));
    let broken: serde_json::Value = serde_json::from_str(&broken.out).unwrap();
    assert_eq!(broken["ok"], false);

    world.start_daemon();
    let told = world.settled(&["check"]).good();
    assert!(
        told.contains(": the daemon is listening\n") && told.contains(": the daemon answers\n"),
        "{told}"
    );
}

#[test]
fn a_configuration_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    let init = [
        "init",
        "new.toml",
        "--source",
        "a=skyvern",
        "--source",
        "s=smartbrowse",
        "--public-url",
        "https://h.example/",
    ];
    let told = Ran::of(&mut command(folder.path(), &init)).good();
    let token = std::fs::read_to_string(folder.path().join("s.path_token")).unwrap();
    assert!(
        told.starts_with("wrote new.toml and s.path_token\n"),
        "{told}"
    );
    assert!(told.contains("https://h.example/hooks/a  "), "{told}");
    assert!(
        told.contains(&format!("https://h.example/hooks/s/{}  ", token.trim())),
        "{told}"
    );
    let again = Ran::of(&mut command(folder.path(), &init)).bad();
    assert!(
        again.0 == 1
            && again
                .1
                .contains("new.toml is there already and is not overwritten"),
        "{}",
        again.1
    );
    let mut check = command(folder.path(), &["--config", "new.toml", "check", "--json"]);
    let checked = Ran::of(
        check
            .env("SKYVERN_API_KEY", "k1")
            .env("WEBSCRAPE_API_KEY", "k2"),
    )
    .json();
    assert_eq!(
        (
            &checked[0]["sources"][1]["name"],
            &checked[0]["sources"][1]["verified_by"][0]
        ),
        (&"s".into(), &"path_token in the URL".into())
    );
    let json = Ran::of(&mut command(
        folder.path(),
        &[
            "init",
            "other/x.toml",
            "--source",
            "s=smartbrowse",
            "--json",
        ],
    ))
    .json();
    let token = std::fs::read_to_string(folder.path().join("other/s.path_token")).unwrap();
    assert!(!json[0].to_string().contains(token.trim()));
}

#[test]
fn the_manual_and_the_completions_know_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| Ran::of(&mut command(folder.path(), args)).good();
    let help = run(&["--help"]);
    let (manual, completions) = (run(&["man"]), run(&["completions", "bash"]));
    run(&["man", "--dir", "pages"]);
    let commands: Vec<&str> = help
        .split("\nCommands:\n")
        .nth(1)
        .unwrap()
        .lines()
        .map_while(|line| line.split_whitespace().next())
        .collect();
    assert!(
        commands.len() > 10 && commands.contains(&"retry-webhook"),
        "{commands:?}"
    );
    for name in commands.iter().filter(|name| **name != "help") {
        assert!(
            manual.contains(&format!(".SH \"SETTLED {}\"", name.to_uppercase())),
            "{name}"
        );
        assert!(completions.contains(name), "{name}");
        assert!(
            folder
                .path()
                .join(format!("pages/settled-{name}.1"))
                .exists(),
            "{name}"
        );
        assert!(run(&[name, "--help"]).contains("\nExample"), "{name}");
    }
    assert_eq!(run(&["poll", "--help"]), POLL_HELP);
}

const POLL_HELP: &str = "\
Poll a run now, and show what the provider answered

Ends with 1 if the answer says nothing of the run, for example if the provider does not accept the
key, fails, or cannot be reached.

Example: settled poll prod wr_123

Usage: settled poll [OPTIONS] <SOURCE> <RUN_ID>

Arguments:
  <SOURCE>
          The source's name in the configuration

  <RUN_ID>
          The provider's id of the run

Options:
  -c, --config <FILE>
          The configuration file [default: $SETTLED_CONFIG, else /etc/settled/settled.toml, else the
          providers' environment variables]

      --json
          Print JSON, for programs

      --socket <PATH>
          The daemon's socket [default: as configured]

  -h, --help
          Print help (see a summary with '-h')
";
