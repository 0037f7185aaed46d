//! A disk that is full. Needs root: `cargo test --test daemon full -- --ignored`.

use std::time::{Duration, Instant};

use crate::support::acknowledged::Promises;
use crate::support::daemon::{Daemon, Wish};
use crate::support::disk::Disk;
use crate::support::senders::{skyvern, skyvern_of};
use crate::support::wire::Post;

/// Posts and notes what is promised; the status.
fn send(daemon: &Daemon, promises: &Promises, post: &Post, run: &str) -> u16 {
    let answer = daemon.post(post);
    if let Some(id) = answer.stored() {
        promises.note(id, &post.body, Some(run));
    }
    if answer.status == 503 {
        assert!(
            answer
                .header("retry-after")
                .is_some_and(|after| after.parse::<u32>().is_ok()),
            "{answer:?}"
        );
    }
    answer.status
}

fn fills_up_and_recovers(disk: &Disk) {
    let daemon = Daemon::with(Wish {
        store: Some(disk.root.join("settled.db")),
        ..Wish::default()
    });
    let promises = Promises::default();
    for round in 0..3 {
        // Leaves room for a few; then for less and less of a transaction.
        disk.fill([2000, 300, 0][round]);
        let (mut refused, mut n) = (0, 0);
        while refused < 30 {
            let run = format!("full_{round}_{n}");
            let status = send(
                &daemon,
                &promises,
                &skyvern_of(&run, 20_000 + n * 100),
                &run,
            );
            assert!(matches!(status, 200 | 503), "{status}");
            refused += u32::from(status == 503);
            n += 1;
            assert!(n < 5000, "the disk does not fill up");
        }
        disk.empty();
        let began = Instant::now();
        while send(
            &daemon,
            &promises,
            &skyvern(&format!("again_{round}"), "completed"),
            &format!("again_{round}"),
        ) != 200
        {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "does not recover:\n{}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!(
            "round {round}: {n} sent, {} kept so far, well again after {:?}",
            promises.count(),
            began.elapsed()
        );
    }
    let ended = promises.ended();
    let completions = daemon.completions(ended.len());
    // A refused delivery may be on disk all the same (its commit failed late); an accepted one must.
    assert!(
        ended
            .iter()
            .all(|run| completions.iter().any(|line| line["subject"] == **run))
    );
    promises.hold(&daemon.store());
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
#[ignore = "needs root"]
fn a_full_ext4_refuses_and_recovers_without_a_restart() {
    fills_up_and_recovers(&Disk::ext4(32));
}

#[test]
#[ignore = "needs root"]
fn a_full_tmpfs_refuses_and_recovers_without_a_restart() {
    fills_up_and_recovers(&Disk::tmpfs(32));
}
