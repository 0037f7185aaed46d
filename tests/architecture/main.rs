//! The rules of the tree, read from the sources: which module may import which, what the pure
//! modules must not name, where SQL and spawns stand, and that documents name only paths that exist.

mod documents;
mod sources;

use std::collections::{BTreeMap, BTreeSet};

use sources::{Source, sources};

/// The modules of `src/` from the top floor down. A module imports only what stands below it.
const FLOORS: &[&str] = &[
    "main",
    "lib",
    "cli",
    "daemon",
    "api",
    "ingest",
    "gateway",
    "polling",
    "retention",
    "demo",
    "reconciler",
    "process",
    "ledger",
    "server",
    "report",
    "config",
    "providers",
    "model",
    "limits",
    "secret",
];

/// Files, or folders, whose code is a function of its arguments.
const PURE: &[&str] = &[
    "model/",
    "providers/",
    "process",
    "report.rs",
    "limits.rs",
    "secret.rs",
    "polling/exchange.rs",
    "polling/rate_limit.rs",
    "polling/scheduler.rs",
    "api/access.rs",
    "ledger/changes.rs",
    "ledger/commands.rs",
    "ledger/rows.rs",
];

/// Words that a pure file does not contain, with what each would bring in.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "tasks and timers"),
    ("rusqlite", "SQL"),
    ("reqwest", "HTTP calls"),
    ("axum", "HTTP handlers"),
    ("SystemTime", "a clock"),
    ("Instant", "a clock"),
    ("Timestamp::now", "a clock"),
    ("Zoned::now", "a clock"),
    ("getrandom", "randomness"),
    ("std::fs", "files"),
    ("std::net::Tcp", "sockets"),
    ("std::env", "the environment"),
    ("tracing::", "the log"),
    ("thread::", "threads"),
];

fn is_pure(source: &Source) -> bool {
    PURE.iter().any(|pure| source.path.starts_with(pure))
}

#[test]
fn every_arrow_between_modules_runs_downward() {
    let floor = |module: &str| FLOORS.iter().position(|known| *known == module);
    let mut wrong = BTreeSet::new();
    for source in sources() {
        let from = floor(source.module());
        assert!(from.is_some(), "{} has no floor", source.path);
        for target in source.modules_imported() {
            let to = floor(&target);
            assert!(to.is_some(), "{}: {target} has no floor", source.path);
            if to < from {
                wrong.insert(format!(
                    "{} imports {target}, which stands above it",
                    source.path
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_tree_has_at_most_twenty_modules() {
    let sources = sources();
    let modules: BTreeSet<&str> = sources.iter().map(Source::module).collect();
    assert!((16..=20).contains(&modules.len()), "{modules:?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    let arrows: BTreeMap<&str, BTreeSet<String>> = sources
        .iter()
        .map(|source| (source.path.as_str(), source.files_imported(&sources)))
        .collect();
    let mut circles = Vec::new();
    for start in arrows.keys() {
        if let Some(circle) = path_between(&arrows, start, start) {
            circles.push(circle.join(" -> "));
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

/// A way along the arrows, with at least one step.
fn path_between<'a>(
    arrows: &'a BTreeMap<&str, BTreeSet<String>>,
    start: &'a str,
    end: &str,
) -> Option<Vec<&'a str>> {
    let mut seen = BTreeSet::new();
    let mut waiting = vec![vec![start]];
    while let Some(path) = waiting.pop() {
        for next in arrows.get(path[path.len() - 1]).into_iter().flatten() {
            let mut longer = path.clone();
            longer.push(next);
            if next == end {
                return Some(longer);
            }
            if seen.insert(next) {
                waiting.push(longer);
            }
        }
    }
    None
}

#[test]
fn pure_modules_name_no_clock_no_runtime_and_no_database() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| is_pure(source)) {
        for (word, brings) in IMPURE {
            if source.names(word) {
                wrong.push(format!("{} names {word}: {brings}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn sql_stands_in_the_ledger_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.module() == "ledger" {
            continue;
        }
        let statements = [
            "\"SELECT ",
            "\"INSERT ",
            "\"UPDATE ",
            "\"DELETE ",
            "\"PRAGMA ",
        ];
        let words = statements.iter().chain(&["rusqlite"]);
        for word in words.filter(|word| source.names(word)) {
            wrong.push(format!("{} has {word}", source.path));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tasks_and_threads_are_started_in_few_places() {
    const ALLOWED: &[&str] = &["daemon/", "server/", "demo/", "cli/"];
    let mut wrong = Vec::new();
    for source in sources() {
        let allowed = ALLOWED.iter().any(|folder| source.path.starts_with(folder));
        for word in [
            "tokio::spawn",
            "thread::spawn",
            "thread::Builder",
            "JoinSet",
        ] {
            if !allowed && source.names(word) {
                wrong.push(format!("{} has {word}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
