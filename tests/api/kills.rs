//! kill -9, again and again: the daemon, a consumer that keeps its own cursor (the Rust example),
//! a consumer whose position the daemon keeps (`settled consume`).
//!
//! `SETTLED_KILLS` says how often (20 unless set; 200 in the long form), `SETTLED_SEED` repeats a run.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use crate::support::check::{Feed, World, check};
use crate::support::home::{Home, example, subjects};
use crate::support::process::{Kept, until};

/// Marsaglia's xorshift: enough to choose victims.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn own_cursor(home: &Home, program: &std::path::Path) -> Kept {
    let mut command = Command::new(program);
    command.arg(home.feed()).arg(home.path("own.db"));
    Kept(
        command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

fn kept_cursor(home: &Home) -> Kept {
    let mut command = home.settled(&[
        "consume",
        "kept",
        "--",
        "sh",
        "-c",
        "echo $SETTLED_CURSOR $SETTLED_RUN_ID >> kept",
    ]);
    command
        .current_dir(home.path(""))
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    Kept(command.spawn().unwrap())
}

/// What the daemon-held consumer did: position and run, in the order of doing.
fn done(home: &Home) -> Vec<(i64, String)> {
    let text = fs::read_to_string(home.path("kept")).unwrap_or_default();
    let line = |line: &str| {
        let (cursor, run) = line.split_once(' ').unwrap();
        (seq(cursor), run.to_owned())
    };
    text.lines().map(line).collect()
}

fn seq(cursor: &str) -> i64 {
    cursor.split_once('.').unwrap().1.parse().unwrap()
}

fn acked(home: &Home) -> i64 {
    home.ask("GET", "/v1/consumers/kept", "").json()["acked"]
        .as_str()
        .map_or(0, seq)
}

/// What the judge of every layer says of the ledger, while nobody is at work on it.
fn judged(home: &Home, feed: &mut Feed, at_rest: bool) {
    let exists = |source: &str, run: &str| source == "sky" && run.starts_with("wr_");
    let world = World {
        store: &home.path("settled.db"),
        acked: &[],
        exists: &exists,
        ring_rows_max: 10_000,
        at_rest,
        all_reports: true,
    };
    assert_eq!(check(&world, feed), Ok(()));
}

#[test]
fn nothing_is_lost_and_nothing_is_done_twice_that_need_not_be() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let kills = number("SETTLED_KILLS").unwrap_or(20);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    let seed = number("SETTLED_SEED").unwrap_or(u64::from(now) | 1);
    println!("SETTLED_KILLS={kills} SETTLED_SEED={seed}");
    let mut dice = Dice(seed);
    let program = example("consume");
    let home = Home::new();
    let mut daemon = home.serve();
    let (mut own, mut kept) = (own_cursor(&home, &program), kept_cursor(&home));
    let over = AtomicBool::new(false);
    let (mut killed, mut said) = ([0; 3], Feed::new());
    // How much the daemon-held consumer had done and acknowledged when it was killed.
    let mut fences = Vec::new();
    let (total, alive) = std::thread::scope(|scope| {
        let provider = scope.spawn(|| {
            let mut run = 0;
            while !over.load(Ordering::Relaxed) {
                run += 1;
                home.say(run, ["completed", "failed", "terminated"][run as usize % 3]);
                if run % 4 == 0 {
                    home.complete([run / 2]);
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            run
        });
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(30 + dice.below(200)));
            let victim = usize::try_from(dice.below(3)).unwrap();
            killed[victim] += 1;
            match victim {
                0 => {
                    daemon.kill();
                    judged(&home, &mut said, false);
                    daemon = home.serve();
                }
                1 => {
                    drop(own);
                    own = own_cursor(&home, &program);
                }
                _ => {
                    drop(kept);
                    fences.push((done(&home).len(), acked(&home)));
                    kept = kept_cursor(&home);
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        (provider.join().unwrap() as usize, (daemon, own, kept))
    });

    let feed = home.completed(total);
    assert_eq!(feed.len(), total, "one completion per run");
    let results = Connection::open(home.path("own.db")).unwrap();
    results.busy_timeout(Duration::from_secs(10)).unwrap();
    let count = || {
        results
            .query_row("SELECT count(*) FROM results", [], |row| {
                row.get::<_, u32>(0)
            })
            .unwrap_or(0) as usize
    };
    until("the one with its own cursor has all", || count() >= total);
    let head = home.read("/v1/events?after=latest")[0]["cursor"]
        .as_str()
        .map(seq)
        .unwrap();
    until("the one with its cursor in the daemon has all", || {
        acked(&home) == head
    });

    let mut select = results
        .prepare("SELECT run_id FROM results ORDER BY n")
        .unwrap();
    let rows: Vec<String> = select
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        rows, feed,
        "with its own cursor: every completion exactly once, in order"
    );

    let done = done(&home);
    let mut seen = BTreeSet::new();
    let first: Vec<String> = done
        .iter()
        .filter(|(seq, _)| seen.insert(*seq))
        .map(|(_, run)| run.clone())
        .collect();
    assert_eq!(
        first, feed,
        "with its cursor in the daemon: none missed, in order"
    );
    for (count, acked) in fences {
        let again = done[count..].iter().find(|(seq, _)| *seq <= acked);
        assert_eq!(
            again, None,
            "nothing acknowledged comes again (acknowledged up to {acked})"
        );
    }
    let repeated = done.len() - total;
    assert!(
        repeated <= killed[2],
        "{repeated} repeated after {} kills",
        killed[2]
    );
    assert_eq!(subjects(&home.read("/v1/events")), feed);
    println!(
        "{total} completions; killed: daemon, own, kept {killed:?}; repeated by the last: {repeated}"
    );
    let (daemon, ..) = alive;
    daemon.stop();
    judged(&home, &mut said, true);
}
