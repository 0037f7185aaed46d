//! Every write and every sync as the last one before the power went, and every one of them failing.
//!
//! `strace` records what a [`workload`] does to its files; every beginning of that record is laid
//! out again on a [`disk`] that has lost, kept, mixed or torn what was not synced, and opened. The
//! same tool lets the n-th call fail. Both take minutes and are commands (`tests/proof/crash-points`,
//! `tests/proof/io-errors`). What runs everywhere needs no `strace`: there the writes between two
//! commits are told from the files themselves.

pub mod disk;
mod trace;
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use settled::demo::clouds::Keys;
use settled::demo::dice::Dice;
use settled::ledger::Writer;
use settled::ledger::commands::Probe;
use settled::model::{At, RunId};
use settled::reconciler::{self, Reconciler};
use settled::report::{Meta, Report};

use crate::clouds;
use crate::files::{Remains, folder};
use crate::history::{Op, SEED, Scribe};
use crate::support::check::{self, Feed};
use disk::{Disk, Fate, Step};
use trace::Event;
use workload::{RING, Said, script, store};

/// Opens what a power cut left, as the daemon would, and looks at it.
fn survives(folder: &Path, said: &Said) -> Result<(), String> {
    let now = At(clouds::BEGIN.0 + 10 * 86_400_000);
    let open = || {
        let mut writer = Writer::open(&store(folder), now)?;
        let sources = reconciler::register(&mut writer, &clouds::accounts(&Keys::new(SEED)), now)?;
        let mut reconciler = Reconciler::new(writer, sources, RING);
        reconciler.recover(now, |_| ())?;
        reconciler.recover(now, |_| ())
    };
    match open() {
        Ok(0) => {}
        Ok(again) => return Err(format!("{again} reports are processed over and over")),
        Err(error) => return Err(format!("it cannot be opened: {error:?}")),
    }
    let scribe = Scribe::new();
    let world = check::World {
        store: &store(folder),
        acked: &said.acked,
        exists: &|source, id| scribe.exists(source, id),
        ring_rows_max: RING.rows_max + 60, // whoever recovers trims nothing
        at_rest: true,
        all_reports: true,
    };
    check::check(&world, &mut said.feed.clone())
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

// ── Without strace ──────────────────────────────────────────────────────────────────────────────

#[test]
fn what_was_not_synced_may_be_lost_kept_mixed_or_torn() {
    let (from, to) = (folder(), folder());
    let (path, mut scribe) = (store(from.path()), Scribe::new());
    let mut writer = Writer::open(&path, scribe.now).unwrap();
    let sources =
        reconciler::register(&mut writer, &clouds::accounts(&Keys::new(SEED)), scribe.now).unwrap();
    scribe.members = sources.members().cloned().collect();
    let mut reconciler = Reconciler::new(writer, sources, RING);
    let (mut dice, mut said, mut points) = (Dice::new(1, 0), Said::default(), 0);
    for op in script(1, number("SETTLED_STEPS", 60).try_into().unwrap()) {
        let Op::Reach(what) = op else { continue };
        let (reports, before) = (scribe.write(&what), Remains::of(&path));
        let processed = reconciler.step(reports.clone(), scribe.now).unwrap();
        let Some(disk) = Disk::committing(&before, &Remains::of(&path)) else {
            break; // a checkpoint: its order of writes is for `strace` to tell
        };
        for fate in [Fate::Mixed, Fate::Torn] {
            cut(&disk, fate, &mut dice, to.path(), &said)
                .unwrap_or_else(|fault| panic!("{fate:?}: {fault}"));
            points += 1;
        }
        for (digest, report) in processed.iter().zip(&reports) {
            if let Some(head) = report
                .meta
                .webhook()
                .filter(|head| head.verdict.authentic())
            {
                said.hear(&format!(
                    "acked {} {} {}",
                    digest.report,
                    head.verdict,
                    check::digest(&report.body)
                ));
            }
        }
    }
    assert!(points > 20 && !said.acked.is_empty());
}

fn cut(disk: &Disk, fate: Fate, dice: &mut Dice, folder: &Path, said: &Said) -> Result<(), String> {
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    disk.cut(fate, dice, folder);
    survives(folder, said)
}

// ── With strace ─────────────────────────────────────────────────────────────────────────────────

/// Not a test: what the others run as a process of its own.
#[test]
#[ignore = "run by the tests below"]
fn the_workload() {
    let Some(folder) = std::env::var_os("SETTLED_WORKLOAD").map(PathBuf::from) else {
        return;
    };
    let (seed, steps) = (number("SETTLED_SCRIPT", 1), number("SETTLED_STEPS", 60));
    workload::work(&folder, &script(seed, steps.try_into().unwrap()));
}

/// Runs the workload under `strace`; gives whether it came to its end.
fn traced(folder: &Path, seed: u64, arguments: &[&str]) -> bool {
    let program = std::env::current_exe().unwrap();
    let status = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "1000000", "-o"])
        .arg(folder.join("trace"))
        .args(arguments)
        .arg(program)
        .args(["--exact", "crash::the_workload", "--ignored", "--nocapture"])
        .env("SETTLED_WORKLOAD", folder)
        .env("SETTLED_SCRIPT", seed.to_string())
        .env_remove("SETTLED_SEEDS")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) => status.success(),
        Err(error) => panic!("strace cannot be run ({error}); install it: apt-get install strace"),
    }
}

#[test]
#[ignore = "takes minutes and needs strace; run tests/proof/crash-points"]
fn every_write_is_survived_as_the_last() {
    let (mut writes, mut cuts) = (0, 0);
    for seed in 1..=number("SETTLED_SEEDS", 1) {
        let place = folder();
        let calls = "trace=openat,pwrite64,write,ftruncate,fdatasync,fsync,unlink";
        assert!(
            traced(place.path(), seed, &["-e", calls]),
            "workload {seed} failed"
        );
        let text = std::fs::read_to_string(place.path().join("trace")).unwrap();
        let events = trace::read(&text, place.path());
        drop(text);
        let steps = events
            .iter()
            .filter(|event| matches!(event, Event::Disk(_)))
            .count();
        let syncs = events
            .iter()
            .filter(|event| matches!(event, Event::Disk(Step::Sync(_))))
            .count();
        assert!(
            syncs > 10,
            "{syncs} syncs: the record is not what it should be"
        );
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let hands = std::thread::available_parallelism().map_or(1, usize::from);
            for hand in 0..hands {
                let (events, done) = (&events, &done);
                scope.spawn(move || {
                    done.fetch_add(cut_everywhere(events, seed, hand, hands), Ordering::Relaxed)
                });
            }
        });
        println!("workload {seed}: {steps} writes, syncs and names, {syncs} of them syncs");
        writes += steps;
        cuts += done.into_inner();
    }
    println!("{writes} crash points, {cuts} power cuts survived");
}

/// Cuts the power after every step to the disk that is this hand's share.
fn cut_everywhere(events: &[Event], seed: u64, hand: usize, hands: usize) -> u64 {
    let (mut disk, mut said, mut cuts) = (Disk::default(), Said::default(), 0);
    let place = folder();
    for (number, event) in events.iter().enumerate() {
        match event {
            Event::Disk(step) => disk.take(step),
            Event::Said(line) => said.hear(line),
        }
        if number % hands != hand {
            continue;
        }
        for fate in Fate::ALL {
            let mut dice = Dice::new(seed, number as u64 * 4 + fate as u64);
            if let Err(fault) = cut(&disk, fate, &mut dice, place.path(), &said) {
                panic!(
                    "workload {seed}, after event {number} ({}), {fate:?}:\n{fault}",
                    short(event)
                );
            }
            cuts += 1;
        }
    }
    cuts
}

fn short(event: &Event) -> String {
    format!("{event:?}").chars().take(100).collect()
}

#[test]
#[ignore = "takes minutes and needs strace; run tests/proof/io-errors"]
fn every_call_may_fail_and_nothing_promised_is_lost() {
    for call in [
        "pwrite64:error=EIO",
        "pwrite64:error=ENOSPC",
        "fdatasync:error=EIO",
        "fsync:error=EIO",
        "ftruncate:error=EIO",
    ] {
        for stretch in [1, 4] {
            let failures = fail_one_by_one(call, stretch);
            println!("{call}, {stretch} in a row: {failures} failures survived");
        }
    }
}

/// Lets the n-th call fail, for n = 1, 2, … until there is no n-th call.
fn fail_one_by_one(call: &str, stretch: u64) -> u64 {
    let name = call.split(':').next().unwrap();
    let step = number("SETTLED_EVERY", 1).try_into().unwrap();
    for n in (1..).step_by(step) {
        let place = folder();
        let inject = format!("inject={call}:when={n}..{}", n + stretch - 1);
        let ended = traced(
            place.path(),
            1,
            &["-e", &format!("trace={name}"), "-e", &inject],
        );
        let trace = std::fs::read_to_string(place.path().join("trace")).unwrap();
        assert!(ended, "the workload gave up after {inject}");
        let mut said = Said::default();
        std::fs::read_to_string(place.path().join(trace::LOG))
            .unwrap()
            .lines()
            .for_each(|line| said.hear(line));
        survives(place.path(), &said).unwrap_or_else(|fault| panic!("{inject}: {fault}"));
        if !trace.contains("(INJECTED)") {
            return n - 1;
        }
    }
    unreachable!("the workload has an end")
}

#[test]
fn after_a_failure_nothing_is_written_until_the_file_could_be_opened_again() {
    let place = folder();
    let (here, away) = (place.path().join("here"), place.path().join("away"));
    let mut writer = Writer::open(&store(&here), clouds::BEGIN).unwrap();
    let write = |writer: &mut Writer| writer.execute(Probe);
    let run_id = RunId::new("r").unwrap();
    let of_no_source = Report {
        source: 99,
        at: clouds::BEGIN,
        meta: Meta::Clock { run_id },
        body: Vec::new(),
    };
    assert!(writer.store(&[of_no_source]).is_err());
    std::fs::rename(&here, &away).unwrap();
    assert!(
        write(&mut writer).is_err(),
        "the connection that failed was used again"
    );
    std::fs::rename(&away, &here).unwrap();
    write(&mut writer).unwrap();
}

/// What a check leaves alone is not checked: this one is.
#[test]
fn a_lost_promise_is_noticed() {
    let place = folder();
    drop(Writer::open(&store(place.path()), clouds::BEGIN).unwrap());
    let mut said = Said {
        feed: Feed::new(),
        ..Said::default()
    };
    assert_eq!(survives(place.path(), &said), Ok(()));
    said.hear("acked 1 signed 00");
    assert!(survives(place.path(), &said).unwrap_err().contains("I1"));
}
