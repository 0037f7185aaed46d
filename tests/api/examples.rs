//! Every example against the real daemon, across a restart of it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rusqlite::Connection;

use crate::support::home::{Home, example, runs};
use crate::support::process::{Kept, installed, until};

fn start(home: &Home, program: &str, arguments: &[&str]) -> Kept {
    let out = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(home.path("out"))
        .unwrap();
    let err = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(home.path("err"))
        .unwrap();
    let mut command = Command::new(program);
    // A shell's pipeline would go on without the shell.
    command.process_group(0);
    Kept(
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap(),
    )
}

fn file(name: &str) -> String {
    format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A named consumer that prints `RUN OUTCOME` for each completion.
fn prints(program: &str, script: &str) {
    let home = Home::new();
    let feed = home.feed();
    let arguments = [script, feed.to_str().unwrap(), "mail"];
    let daemon = home.serve();
    home.complete(1..=2);
    let printed = || fs::read_to_string(home.path("out")).unwrap_or_default();
    let lag = || home.ask("GET", "/v1/consumers/mail", "").json()["lag"] == 0;
    let consumer = start(&home, program, &arguments);
    until("two are done", || {
        printed() == "wr_1 succeeded\nwr_2 succeeded\n" && lag()
    });
    daemon.kill();
    let _daemon = home.serve();
    home.say(3, "failed");
    until("the third is done after a restart", || {
        printed().ends_with("wr_2 succeeded\nwr_3 failed\n") && lag()
    });
    drop(consumer);
    home.complete([4]);
    let _consumer = start(&home, program, &arguments);
    until("its position was kept", || {
        printed().ends_with("wr_3 failed\nwr_4 succeeded\n") && lag()
    });
}

/// A consumer that keeps its cursor with its results.
fn stores(program: &str, script: Option<&str>) {
    let home = Home::new();
    let (feed, database) = (home.feed(), home.path("results.db"));
    let arguments: Vec<&str> = script
        .into_iter()
        .chain([feed.to_str().unwrap(), database.to_str().unwrap()])
        .collect();
    let stored = || {
        let Ok(db) = Connection::open(&database) else {
            return Vec::new();
        };
        let Ok(mut select) = db.prepare("SELECT run_id FROM results ORDER BY n") else {
            return Vec::new();
        };
        let rows = select.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.filter_map(Result::ok).collect()
    };
    let daemon = home.serve();
    home.complete(1..=2);
    let consumer = start(&home, program, &arguments);
    until("two are stored", || stored() == runs(1..=2));
    daemon.kill();
    let _daemon = home.serve();
    home.complete([3]);
    until("the third is stored after a restart", || {
        stored() == runs(1..=3)
    });
    drop(consumer);
    home.complete([4]);
    let _consumer = start(&home, program, &arguments);
    until("the fourth is stored, and nothing twice", || {
        stored() == runs(1..=4)
    });
}

#[test]
fn rust() {
    stores(example("consume").to_str().unwrap(), None);
}

#[test]
fn python() {
    if installed("python3") {
        stores("python3", Some(&file("consume.py")));
    }
}

#[test]
fn node() {
    if installed("node") {
        prints("node", &file("consume.mjs"));
    }
}

#[test]
fn shell() {
    if installed("curl") && installed("jq") {
        prints("sh", &file("consume.sh"));
    }
}
