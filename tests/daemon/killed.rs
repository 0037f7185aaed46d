//! kill -9 under load: what was acknowledged is there, one completion per run, and what the feed
//! once said it says again.
//!
//! This shows that nothing is promised before it is handed to the kernel. That it is on the disk by
//! then, only a power cut shows: see `power_cut`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use settled::model::schedule::unit;

use crate::support::acknowledged::{self as ledger, Promises};
use crate::support::daemon::Daemon;
use crate::support::senders::{firecrawl, skyvern, unsigned};
use crate::support::wire::{Post, Wire};

const SENDERS: u64 = 4;

/// Numbers from a seed, the same each time.
struct Dice(u64);

impl Dice {
    fn between(&mut self, from: u64, to: u64) -> u64 {
        self.0 += 1;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let offset = (unit(self.0) * (to - from) as f64) as u64;
        from + offset
    }
}

/// What a sender has to say of one run, in order; true where it tells of the end.
fn story(dice: &mut Dice, run: &str) -> Vec<(Post, bool)> {
    match dice.between(0, 10) {
        0 => vec![
            (unsigned(run, 200), false),
            (skyvern(run, "completed"), true),
        ],
        1 | 2 => vec![
            (firecrawl(run, "extract.started"), false),
            (firecrawl(run, "extract.completed"), true),
        ],
        3 | 4 => vec![
            (skyvern(run, "running"), false),
            (skyvern(run, "failed"), true),
            (skyvern(run, "failed"), true),
        ],
        _ => vec![
            (skyvern(run, "completed"), true),
            (skyvern(run, "completed"), true),
        ],
    }
}

/// Sends stories until told to stop; every delivery is repeated until it is answered, as providers do.
fn send(port: u16, sender: u64, stop: &AtomicBool, promises: &Promises, runs: &AtomicU64) {
    let mut dice = Dice(sender << 32);
    let mut wire = None;
    while !stop.load(Ordering::Relaxed) {
        let run = format!("wr_{sender}_{}", runs.fetch_add(1, Ordering::Relaxed));
        for (post, ends) in story(&mut dice, &run) {
            while !deliver(port, &mut wire, &post, ends.then_some(&*run), promises) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn deliver(
    port: u16,
    wire: &mut Option<Wire>,
    post: &Post,
    ended: Option<&str>,
    promises: &Promises,
) -> bool {
    if wire.is_none() {
        *wire = Wire::open(port).ok();
    }
    let answer = wire.as_mut().and_then(|wire| wire.ask(post.bytes()).ok());
    if let Some(id) = answer.as_ref().and_then(|answer| answer.stored()) {
        promises.note(id, &post.body, ended);
    }
    if answer.as_ref().is_none_or(|answer| answer.status != 200) {
        *wire = None;
    }
    answer.is_some_and(|answer| matches!(answer.status, 200 | 401 | 429))
}

/// Every record of `before` is in `after`, to the letter.
fn assert_unchanged(before: &BTreeMap<i64, String>, after: &BTreeMap<i64, String>) {
    for (cursor, line) in before {
        assert_eq!(
            after.get(cursor),
            Some(line),
            "the feed said something else before the kill"
        );
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_no_run_settles_twice_under_kill_9() {
    let env = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(default)
    };
    let (kills, seed) = (env("SETTLED_KILLS", 20), env("SETTLED_SEED", 1));
    let mut dice = Dice(seed << 16);
    let mut daemon = Daemon::start();
    let (promises, stop, runs) = (
        Promises::default(),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (promises, stop, runs, port) =
                (promises.clone(), stop.clone(), runs.clone(), daemon.port);
            thread::spawn(move || send(port, sender, &stop, &promises, &runs))
        })
        .collect();
    let mut said = BTreeMap::new();
    for kill in 1..=kills {
        let follower = daemon.follow();
        thread::sleep(Duration::from_millis(dice.between(5, 500)));
        daemon.kill();
        let followed = follower.join().expect("the follower only reads");
        daemon.launch();
        if dice.between(0, 4) == 0 {
            // Once more, while it starts.
            thread::sleep(Duration::from_millis(dice.between(0, 60)));
            daemon.kill();
            daemon.launch();
        }
        daemon.ready();
        let now = daemon.feed();
        assert_unchanged(&said, &now);
        assert_unchanged(&followed, &now);
        said = now;
        if kill % 10 == 0 {
            eprintln!(
                "seed {seed}, kill {kill}: {} acknowledged",
                promises.count()
            );
            promises.hold(&daemon.store());
        }
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.join().expect("a sender");
    }
    let ended = promises.ended();
    let completions = daemon.completions(ended.len());
    let mut by_run: BTreeMap<&str, u32> = BTreeMap::new();
    for line in &completions {
        *by_run
            .entry(line["subject"].as_str().expect("a run"))
            .or_default() += 1;
    }
    eprintln!(
        "seed {seed}: {kills} kills, {} acknowledged, {} runs",
        promises.count(),
        ended.len()
    );
    promises.hold(&daemon.store());
    assert_eq!(
        by_run.values().max(),
        Some(&1),
        "one completion per run; seed {seed}"
    );
    assert!(
        ended.iter().all(|run| by_run.contains_key(&**run)),
        "every acknowledged end is told; seed {seed}"
    );
    assert_eq!(
        ledger::number(&daemon.store(), "SELECT count(*) FROM quarantined_reports"),
        0
    );
}
