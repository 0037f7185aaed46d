//! A ledger in which something was damaged: what can be answered is answered, and the rest is named.

use rusqlite::Connection;
use settled::ledger::commands::{ClampPolls, CreateConsumer};
use settled::ledger::{DamagedRow, Filter, LedgerError, RunPage, RunQuery, Writer, examine};
use settled::model::{At, RunId, RunKey, SourceName};

use crate::support::reconciler::{Ledger, forged, signed, track};

/// Three open runs; the first of them is damaged.
fn damaged() -> Ledger {
    let mut ledger = Ledger::new();
    for run_id in ["wr_bad", "wr_1", "wr_2"] {
        ledger.hears(track(run_id));
    }
    let spoilt = ledger
        .sql()
        .execute(
            "UPDATE runs SET state = '{\"kind\":' WHERE run_id = 'wr_bad'",
            [],
        )
        .unwrap();
    assert_eq!(spoilt, 1);
    ledger
}

fn bad() -> DamagedRow {
    DamagedRow {
        table: "runs".to_owned(),
        source: Some("sky".to_owned()),
        name: "wr_bad".to_owned(),
    }
}

fn names(page: &RunPage) -> Vec<&str> {
    page.runs
        .iter()
        .map(|row| row.key.run_id.as_str())
        .collect()
}

#[test]
fn a_damaged_run_is_left_out_of_the_list_and_named() {
    let ledger = damaged();
    let list = |query: RunQuery| ledger.reader.read(|view| view.runs(&query)).unwrap();
    let all = list(RunQuery {
        limit: 10,
        ..RunQuery::default()
    });
    assert_eq!(
        (names(&all), &all.damaged, all.next),
        (vec!["wr_1", "wr_2"], &vec![bad()], None)
    );
    // A page that ends with the damaged row goes on behind it.
    let first = list(RunQuery {
        limit: 1,
        ..RunQuery::default()
    });
    assert_eq!((names(&first), first.next), (vec![], Some(1)));
    let second = list(RunQuery {
        limit: 1,
        after: 1,
        ..RunQuery::default()
    });
    assert_eq!((names(&second), second.next), (vec!["wr_1"], Some(2)));
    assert_eq!(ledger.reader.damaged(), [bad()], "it is remembered once");
}

#[test]
fn the_newest_come_first_page_by_page() {
    let mut ledger = Ledger::new();
    (1..=5).for_each(|number| drop(ledger.hears(track(&format!("wr_{number}")))));
    let list = |before| {
        let query = RunQuery {
            newest: true,
            before,
            limit: 2,
            ..RunQuery::default()
        };
        ledger.reader.read(|view| view.runs(&query)).unwrap()
    };
    let (first, last) = (list(None), list(Some(2)));
    assert_eq!((names(&first), first.next), (vec!["wr_5", "wr_4"], Some(4)));
    assert_eq!(names(&list(Some(4))), ["wr_3", "wr_2"]);
    assert_eq!((names(&last), last.next), (vec!["wr_1"], None));
}

#[test]
fn a_damaged_run_takes_no_place_among_those_that_are_asked_about_or_rung() {
    let ledger = damaged();
    // As due as can be, in every queue there is.
    ledger
        .sql()
        .execute(
            "UPDATE runs SET poll_at = id, poll_urgent_at = NULL, wake_at = id",
            [],
        )
        .unwrap();
    let now = ledger.now;
    let due = ledger.reader.read(|view| view.due(1, now, now, 1)).unwrap();
    assert_eq!(
        due.iter()
            .map(|due| due.run_id.as_str())
            .collect::<Vec<_>>(),
        ["wr_1"]
    );
    ledger
        .sql()
        .execute(
            "UPDATE runs SET poll_urgent_at = poll_at, poll_at = NULL",
            [],
        )
        .unwrap();
    let due = ledger
        .reader
        .read(|view| view.due(1, now, At(0), 2))
        .unwrap();
    assert_eq!(
        due.iter()
            .map(|due| due.run_id.as_str())
            .collect::<Vec<_>>(),
        ["wr_1", "wr_2"]
    );
    let (due_timers, _) = ledger
        .reader
        .read(|view| view.due_timers(&[1], now, 1))
        .unwrap();
    assert_eq!(due_timers, [(1, RunId::new("wr_1").unwrap())]);
    assert_eq!(ledger.reader.damaged(), [bad()]);
}

#[test]
fn a_clock_that_was_set_back_does_not_stop_the_start_over_a_damaged_run() {
    let mut bare = damaged().bare();
    assert_eq!(
        bare.writer
            .execute(ClampPolls {
                now: At(7),
                latest: At(1_000),
                sources: Vec::new(),
            })
            .unwrap(),
        3
    );
    assert_eq!(bare.count("SELECT count(*) FROM runs WHERE poll_at = 7"), 3);
    assert_eq!(
        bare.count("SELECT count(*) FROM runs WHERE state = '{\"kind\":'"),
        1,
        "it stays as it was found"
    );
}

#[test]
fn no_more_damaged_rows_are_remembered_than_a_thousand() {
    let ledger = Ledger::new();
    let many = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1001)
        INSERT INTO runs (source, run_id, phase, overdue, opened_at, state) SELECT 1, 'wr_' || x, 'open', 0, 1, '{' FROM n";
    ledger.sql().execute(many, []).unwrap();
    let query = RunQuery {
        limit: 2_000,
        ..RunQuery::default()
    };
    assert_eq!(
        ledger
            .reader
            .read(|view| view.runs(&query))
            .unwrap()
            .damaged
            .len(),
        1_001,
        "all are told"
    );
    assert_eq!(ledger.reader.damaged().len(), 1_000);
}

#[test]
fn what_is_heard_of_a_damaged_run_is_set_aside_and_the_rest_goes_on() {
    let mut ledger = damaged();
    ledger.hears(forged("wr_bad", "completed"));
    assert_eq!(
        ledger.quarantined(),
        0,
        "who is not entitled leaves nothing"
    );
    let process = ledger.hears(signed("wr_bad", "completed"));
    assert_eq!((process.effects.len(), ledger.quarantined()), (0, 1));
    let process = ledger.hears(signed("wr_1", "completed"));
    assert_eq!(process.effects.len(), 1);
    assert_eq!(ledger.feed().len(), 1);
    // Asked for alone, it is an error that says so.
    let key = RunKey {
        source: SourceName::new("sky").unwrap(),
        run_id: RunId::new("wr_bad").unwrap(),
    };
    let error = ledger.reader.read(|view| view.run(&key)).unwrap_err();
    assert!(
        matches!(&error, LedgerError::Unreadable(_)) && error.to_string().contains("settled check"),
        "{error}"
    );
}

#[test]
fn a_damaged_consumer_leaves_the_others_their_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settled.db");
    let mut writer = Writer::open(&path, At(0)).unwrap();
    for name in ["a", "b"] {
        let create = CreateConsumer {
            name: name.to_owned(),
            acked: 0,
            filter: Filter::default(),
            window: 0,
            now: At(0),
        };
        writer.execute(create).unwrap();
    }
    Connection::open(&path)
        .unwrap()
        .execute("UPDATE consumers SET filter = '{' WHERE name = 'a'", [])
        .unwrap();
    let reader = writer.reader();
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method alone is not general enough"
    )]
    let consumers = reader.read(|view| view.consumers()).unwrap();
    assert_eq!(
        consumers
            .iter()
            .map(|one| one.name.as_str())
            .collect::<Vec<_>>(),
        ["b"]
    );
    assert_eq!(
        reader
            .damaged()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["a of consumers"]
    );
}

#[test]
fn a_sound_ledger_has_no_findings_and_a_damaged_one_says_what() {
    let mut ledger = Ledger::new();
    ledger.hears(track("wr_1"));
    ledger.hears(signed("wr_2", "completed"));
    let found = |ledger: &Ledger| -> Vec<String> {
        examine(&ledger.path())
            .unwrap()
            .findings
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(found(&ledger), [""; 0]);
    assert_eq!(examine(&ledger.path()).unwrap().rows["runs"], 2);

    let spoil = |sql: &str| ledger.sql().execute_batch(sql).unwrap();
    spoil(
        "UPDATE runs SET state = '{' WHERE run_id = 'wr_1'; UPDATE runs SET wake_at = NULL WHERE phase = 'open'",
    );
    let told = found(&ledger);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("runs that cannot be read: 1: sky:wr_1 (a run's state: "),
        "{told:?}"
    );
    spoil(
        "PRAGMA foreign_keys = OFF; DELETE FROM records; UPDATE reports SET meta = '{'; UPDATE meta SET processed = 99",
    );
    let told = found(&ledger).join("\n");
    for part in [
        "settled runs whose completion is missing from the feed: 1",
        "reports whose metadata cannot be read: 2",
        "marks beyond the last report",
    ] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
}

#[test]
fn a_file_with_overwritten_pages_is_found_damaged_whatever_cannot_be_asked_any_more() {
    let mut ledger = Ledger::new();
    for number in 0..200 {
        ledger.hears(signed(&format!("wr_{number}"), "completed"));
    }
    let path = ledger.path();
    let copy = ledger.folder.path().join("copy.db");
    settled::ledger::copy(&ledger.reader, &copy).unwrap();
    assert_eq!(examine(&copy).unwrap().findings, []);
    let mut bytes = std::fs::read(&copy).unwrap();
    let pages = bytes.len() / 4096;
    assert!(pages > 20, "{pages}");
    // The schema is on the first few.
    for page in (pages / 2..pages).step_by(3) {
        bytes[page * 4096..(page + 1) * 4096].fill(0x5a);
    }
    std::fs::write(&copy, &bytes).unwrap();
    let findings = examine(&copy).unwrap().findings;
    assert!(
        findings
            .iter()
            .any(|finding| finding.what.contains("the file")),
        "{findings:?}"
    );
    // Not even a schema.
    bytes[100..4096].fill(0x5a);
    std::fs::write(&copy, &bytes).unwrap();
    assert!(examine(&copy).is_err() || !examine(&copy).unwrap().findings.is_empty());
    std::fs::write(
        &copy,
        "no database at all, but long enough to have a header of a hundred bytes in it, which this text has",
    )
    .unwrap();
    assert!(matches!(examine(&copy), Err(LedgerError::Foreign(_))));
    assert_eq!(examine(&path).unwrap().findings, []);
}
