//! The database file is moved, removed or replaced under the running daemon: nothing is acknowledged
//! that would be lost with the file, and the daemon ends so that the service manager starts it again.

use std::fs;
use std::process::Command;

use crate::support::daemon::{Daemon, suffixed};
use crate::support::process::until;
use crate::support::senders::skyvern;

/// Does something to the files of the database.
type Harm = fn(&std::path::Path);

const HARMS: [(&str, Harm); 5] = [
    ("the file is removed", |store| {
        fs::remove_file(store).unwrap();
    }),
    ("the file is moved away", |store| {
        fs::rename(store, suffixed(store, ".old")).unwrap();
    }),
    ("a copy is put over it", |store| {
        let copy = suffixed(store, ".copy");
        fs::copy(store, &copy).unwrap();
        fs::rename(copy, store).unwrap();
    }),
    ("install puts a copy in its place", |store| {
        let copy = suffixed(store, ".copy");
        fs::copy(store, &copy).unwrap();
        let done = Command::new("install").arg(&copy).arg(store).status();
        assert!(done.unwrap().success());
    }),
    ("its log is removed", |store| {
        fs::remove_file(suffixed(store, "-wal")).unwrap();
    }),
];

#[test]
fn nothing_is_acknowledged_into_a_file_that_the_path_no_longer_leads_to() {
    for (what, harm) in HARMS {
        let mut daemon = Daemon::start();
        assert_eq!(daemon.post(&skyvern("before", "completed")).status, 200);
        daemon.completions(1);
        harm(&daemon.store());
        for round in 0..5 {
            let answer = daemon
                .wire()
                .ask(skyvern(&format!("after_{round}"), "completed").bytes());
            if let Ok(answer) = answer {
                assert_eq!(answer.status, 503, "{what}: nothing is promised");
            }
        }
        until("the daemon ends", || daemon.ended().is_some());
        assert_eq!(daemon.ended(), Some(1), "{what}: {}", daemon.log());
        assert!(
            daemon.log().contains("no longer the file"),
            "{what}: {}",
            daemon.log()
        );
    }
}

#[test]
fn a_file_that_is_left_alone_is_written_on() {
    let daemon = Daemon::start();
    for round in 0..20 {
        let run = format!("r_{round}");
        assert_eq!(daemon.post(&skyvern(&run, "completed")).status, 200);
    }
    assert_eq!(daemon.completions(20).len(), 20);
}
