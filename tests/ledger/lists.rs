//! What is listed, counted and found when due: the answers that people and the poller get.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::ffi;
use settled::config::SourceRow;
use settled::ledger::changes::{ChangeSet, RunsCounted, Traffic};
use settled::ledger::commands::{ClampPolls, RegisterSources};
use settled::ledger::{
    DeliveryQuery, Filter, LOSS_SPANS, LedgerError, Loss, RecordQuery, RunQuery, RunRow, SecretUse,
    SourceCounts, StoredRecord, check, examine,
};
use settled::model::At;
use settled::providers::Verdict;
use settled::providers::skyvern::Skyvern;
use settled::providers::smartbrowse::SmartBrowse;
use settled::report::{Meta, Report};
use settled::secret::SecretLabel;

use crate::support::reconciler::{
    Bare, Ledger, ROOMY, START, answer, delivery, forged, signed, source, state, track,
};

/// So many seconds after the beginning.
fn at(seconds: i64) -> At {
    At(START.0 + 1_000 * seconds)
}

/// A signed delivery that names the secret it was signed with.
fn signed_with(label: &str, run_id: &str, status: &str) -> Report {
    let mut report = signed(run_id, status);
    if let Meta::Webhook(meta) = &mut report.meta {
        meta.secret = Some(SecretLabel(label.to_owned()));
    }
    report
}

#[test]
#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method alone is not general enough"
)]
fn every_source_is_listed_with_its_numbers() {
    let mut ledger = Ledger::of(
        [source("bees", &SmartBrowse), source("sky", &Skyvern)],
        ROOMY,
    );
    let sky = |report: Report| Report {
        source: 2,
        ..report
    };
    ledger.hears(sky(track("wr_1")));
    ledger.hears(sky(track("wr_2")));
    ledger.hears(sky(signed_with("api_key", "wr_3", "completed")));
    ledger.hears(sky(signed_with("old_key", "wr_3", "completed")));
    ledger.hears(sky(signed_with("api_key", "wr_3", "completed")));
    ledger.hears(sky(forged("wr_9", "completed")));
    ledger.hears(sky(answer("wr_1", at(6), &state("wr_1", "running"))));
    let RunRow { key, run, .. } = ledger.run("wr_2").unwrap();
    let deadline = run.wake_at.unwrap();
    let timer = Report {
        source: 2,
        at: deadline,
        meta: Meta::Clock { run_id: key.run_id },
        body: Vec::new(),
    };
    ledger.reconciler.step(vec![timer], deadline).unwrap();
    let silent = SourceCounts {
        id: 1,
        name: "bees".to_owned(),
        provider: "smartbrowse".to_owned(),
        ..SourceCounts::default()
    };
    let busy = SourceCounts {
        id: 2,
        name: "sky".to_owned(),
        provider: "skyvern".to_owned(),
        open: 2,
        overdue: 1,
        webhook_at: Some(at(5)),
        unverified_at: Some(at(6)),
        answer_at: Some(at(7)),
        unaccounted: 0,
    };
    assert_eq!(
        ledger.reader.read(|view| view.source_counts()).unwrap(),
        [silent.clone(), busy.clone()]
    );
    let used = |label: &str, seconds, uses| SecretUse {
        source: 2,
        label: label.to_owned(),
        last_at: at(seconds),
        uses,
    };
    assert_eq!(
        ledger.reader.read(|view| view.secret_uses()).unwrap(),
        [used("api_key", 5, 2), used("old_key", 4, 1)]
    );
    // An overdue run that settles is neither any more.
    ledger.hears(sky(signed_with("api_key", "wr_2", "completed")));
    let less = SourceCounts {
        open: 1,
        overdue: 0,
        webhook_at: Some(at(8)),
        ..busy
    };
    assert_eq!(
        ledger.reader.read(|view| view.source_counts()).unwrap(),
        [silent, less]
    );
}

#[test]
fn a_source_keeps_its_row_and_what_was_noted_of_it() {
    let mut bare = Ledger::new().bare();
    let named = [("new", "skyvern"), ("sky", "firecrawl")];
    let named = named.map(|(name, provider)| (name.to_owned(), provider.to_owned()));
    let register = RegisterSources {
        sources: named.to_vec(),
        now: at(9),
    };
    let rows = bare.writer.execute(register).unwrap();
    let sky = SourceRow {
        id: 1,
        since: START,
    };
    assert_eq!(rows["sky"], sky, "whatever its provider is now");
    assert_eq!((rows.len(), rows["new"].since), (2, at(9)));
    let mut note = |traffic: Traffic| {
        let changes = ChangeSet {
            traffic: BTreeMap::from([(1, traffic)]),
            ..ChangeSet::default()
        };
        bare.writer.apply(&changes).unwrap();
    };
    note(Traffic {
        webhook_at: Some(at(1)),
        ..Traffic::default()
    });
    note(Traffic {
        answer_at: Some(at(2)),
        secrets: BTreeMap::new(),
        ..Traffic::default()
    });
    assert_eq!(
        bare.count("SELECT webhook_at FROM sources WHERE id = 1"),
        at(1).0
    );
    assert_eq!(
        bare.count("SELECT answer_at FROM sources WHERE id = 1"),
        at(2).0
    );
    assert_eq!(
        bare.count("SELECT count(*) FROM sources WHERE provider = 'firecrawl'"),
        1
    );
}

#[test]
fn runs_that_a_provider_counted_and_nobody_told_us_of_are_counted() {
    let mut ledger = Ledger::new();
    for run in 1..=2 {
        ledger.hears(track(&format!("wr_{run}")));
    }
    let mut bare = ledger.bare();
    let count = |bare: &mut Bare, counted| {
        let counted = RunsCounted {
            source: 1,
            counted,
            newly_known: 0,
        };
        let changes = ChangeSet {
            counted: vec![counted],
            ..ChangeSet::default()
        };
        let missing = bare.writer.apply(&changes).unwrap();
        missing.iter().map(|(_, missing)| missing).sum::<i64>()
    };
    assert_eq!(count(&mut bare, 10), 0, "nothing to compare it with");
    assert_eq!(count(&mut bare, 13), 3);
    bare.sql()
        .execute("UPDATE sources SET known = known + 4", [])
        .unwrap();
    assert_eq!(count(&mut bare, 30), 13, "of seventeen more we know four");
    assert_eq!(count(&mut bare, 20), 0, "its window has moved on");
    assert_eq!(count(&mut bare, 21), 1);
    assert_eq!(bare.count("SELECT unaccounted FROM sources"), 17);
}

/// Moves polls that are planned for later than a second after the beginning of time.
const CLAMP: ClampPolls = ClampPolls {
    now: At(7),
    latest: At(1_000),
    sources: Vec::new(),
};

#[test]
fn a_clock_that_was_set_back_freezes_no_request() {
    let mut ledger = Ledger::new();
    for run in 1..=3 {
        ledger.hears(track(&format!("wr_{run}")));
    }
    ledger
        .sql()
        .execute(
            "UPDATE runs SET poll_at = id * 1000, poll_urgent_at = NULL",
            [],
        )
        .unwrap();
    let mut bare = ledger.bare();
    assert_eq!(bare.writer.execute(CLAMP).unwrap(), 2);
    assert_eq!(bare.count("SELECT count(*) FROM runs WHERE poll_at = 7"), 2);
    assert_eq!(bare.count("SELECT poll_at FROM runs WHERE id = 1"), 1_000);
    assert_eq!(bare.writer.execute(CLAMP).unwrap(), 0);
}

#[test]
fn a_clock_that_was_set_back_delays_no_poll_by_more_than_the_longest_interval() {
    let mut ledger = Ledger::new();
    for run in 1..=3 {
        ledger.hears(track(&format!("wr_{run}")));
    }
    let update = "UPDATE runs SET poll_at = iif(id = 1, NULL, id * 1000000),
        poll_urgent_at = iif(id = 1, 9000000, NULL)";
    ledger.sql().execute(update, []).unwrap();
    let mut bare = ledger.bare();
    let clamp = ClampPolls {
        latest: At(i64::MAX),
        sources: vec![(1, Duration::from_secs(2_500))],
        ..CLAMP
    };
    assert_eq!(bare.writer.execute(clamp.clone()).unwrap(), 2);
    assert_eq!(bare.writer.execute(clamp).unwrap(), 0);
    let late = "SELECT count(*) FROM runs WHERE max(ifnull(poll_at, 0), ifnull(poll_urgent_at, 0)) > 7 + 2500000";
    assert_eq!(bare.count(late), 0);
    assert_eq!(
        bare.count("SELECT poll_at FROM runs WHERE id = 2"),
        2_000_000
    );
}

#[test]
fn a_question_that_was_put_forward_is_so_in_the_run_too() {
    let mut ledger = Ledger::new();
    ledger.hears(track("wr_1"));
    let mut bare = ledger.bare();
    assert_eq!(bare.writer.execute(CLAMP).unwrap(), 1);
    assert_eq!(bare.reader.read(check).unwrap(), []);
    let due = bare
        .reader
        .read(|view| view.due(1, START, START, 9))
        .unwrap();
    assert_eq!(due[0].run.poll.unwrap().at, At(7));
}

#[test]
fn what_is_due_comes_urgent_first_then_the_oldest_as_far_as_the_gate_was_open() {
    let mut ledger = Ledger::new();
    for run in 1..=5 {
        ledger.hears(track(&format!("wr_{run}")));
    }
    // The later it became known the longer ago it began.
    let sql = "UPDATE runs SET opened_at = 100 - id, poll_at = CASE WHEN id < 4 THEN id * 10 END,
        poll_urgent_at = CASE WHEN id >= 4 THEN id * 10 END";
    ledger.sql().execute(sql, []).unwrap();
    let due = |now, window, max| -> Vec<i64> {
        let due = ledger
            .reader
            .read(|view| view.due(1, At(now), At(window), max))
            .unwrap();
        due.iter().map(|due| due.row).collect()
    };
    assert_eq!(due(100, 100, 10), [5, 4, 3, 2, 1]);
    assert_eq!(due(100, 100, 3), [5, 4, 3]);
    assert_eq!(due(100, 100, 1), [5]);
    assert_eq!(
        due(40, 20, 10),
        [4, 2, 1],
        "what falls due at that very moment is due"
    );
    assert_eq!(
        due(20, 100, 10),
        [2, 1],
        "a window that opens later lets nothing through now"
    );
    assert_eq!(due(5, 5, 10), [0; 0]);
    let next = |now| {
        ledger
            .reader
            .read(|view| view.next_urgent_after(1, At(now)))
            .unwrap()
    };
    assert_eq!(
        (next(0), next(40), next(50)),
        (Some(At(40)), Some(At(50)), None)
    );
}

#[test]
fn alarms_ring_for_the_sources_that_are_asked_for_and_say_when_the_next_one_will() {
    let mut ledger = Ledger::of(
        [source("bees", &SmartBrowse), source("sky", &Skyvern)],
        ROOMY,
    );
    for run in 1..=4 {
        ledger.hears(Report {
            source: 1 + run % 2,
            ..track(&format!("wr_{run}"))
        });
    }
    ledger
        .sql()
        .execute("UPDATE runs SET wake_at = id * 10", [])
        .unwrap();
    let due_timers = |sources: &[i64], now, max| {
        let (due, next) = ledger
            .reader
            .read(|view| view.due_timers(sources, At(now), max))
            .unwrap();
        (
            due.into_iter()
                .map(|(source, run_id)| format!("{source}:{run_id}"))
                .collect::<Vec<_>>(),
            next,
        )
    };
    let all = ["2:wr_1", "1:wr_2", "2:wr_3", "1:wr_4"].map(str::to_owned);
    assert_eq!(
        due_timers(&[1, 2], 30, 10),
        (all[..3].to_vec(), Some(At(40)))
    );
    assert_eq!(
        due_timers(&[1, 2], 30, 2),
        (all[..2].to_vec(), Some(At(40)))
    );
    assert_eq!(due_timers(&[2], 5, 10), (vec![], Some(At(10))));
    assert_eq!(
        due_timers(&[1], 99, 10),
        (vec![all[1].clone(), all[3].clone()], None)
    );
}

#[test]
fn runs_are_listed_by_what_is_asked_for() {
    let mut ledger = Ledger::of(
        [source("bees", &SmartBrowse), source("sky", &Skyvern)],
        ROOMY,
    );
    let sky = |report: Report| Report {
        source: 2,
        ..report
    };
    ledger.hears(Report {
        source: 1,
        ..track("b_1")
    });
    ledger.hears(sky(track("wr_2")));
    ledger.hears(sky(signed("wr_3", "completed")));
    ledger.hears(sky(track("wr_4")));
    ledger
        .sql()
        .execute(
            "UPDATE runs SET overdue = 1 WHERE run_id IN ('wr_3', 'wr_4')",
            [],
        )
        .unwrap();
    let list = |query: RunQuery| -> Vec<String> {
        let page = ledger
            .reader
            .read(|view| view.runs(&RunQuery { limit: 10, ..query }))
            .unwrap();
        page.runs.iter().map(|row| row.key.to_string()).collect()
    };
    let all = || RunQuery::default();
    assert_eq!(
        list(all()),
        ["bees:b_1", "sky:wr_2", "sky:wr_3", "sky:wr_4"]
    );
    assert_eq!(
        list(RunQuery {
            phase: Some("open"),
            ..all()
        }),
        ["bees:b_1", "sky:wr_2", "sky:wr_4"]
    );
    assert_eq!(
        list(RunQuery {
            phase: Some("settled"),
            ..all()
        }),
        ["sky:wr_3"]
    );
    assert_eq!(
        list(RunQuery {
            overdue: true,
            ..all()
        }),
        ["sky:wr_4"],
        "only what is open can be"
    );
    assert_eq!(
        list(RunQuery {
            source: Some("bees".to_owned()),
            ..all()
        }),
        ["bees:b_1"]
    );
}

#[test]
fn settled_runs_whose_webhook_never_came_are_found() {
    let mut ledger = Ledger::new();
    ledger.hears(signed("wr_told", "completed"));
    for run_id in ["wr_1", "wr_2", "wr_3"] {
        ledger.hears(track(run_id));
        // Twice, a grace apart: a poll alone must hold.
        for _ in 0..2 {
            let requested_at = ledger.now;
            ledger.hears(answer(run_id, requested_at, &state(run_id, "failed")));
            ledger.now = ledger.now.plus(Duration::from_secs(120));
        }
    }
    ledger.hears(signed("wr_2", "failed"));
    let found = |limit| -> Vec<String> {
        let rows = ledger
            .reader
            .read(|view| view.without_webhook("sky", limit))
            .unwrap();
        rows.iter().map(|row| row.key.run_id.to_string()).collect()
    };
    assert_eq!(
        (found(10), found(1)),
        (
            vec!["wr_3".to_owned(), "wr_1".to_owned()],
            vec!["wr_3".to_owned()]
        )
    );
    assert!(
        ledger
            .reader
            .read(|view| view.without_webhook("bees", 10))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn deliveries_are_listed_by_what_is_asked_for() {
    let mut ledger = Ledger::new();
    ledger.hears(track("wr_1"));
    ledger.hears(signed_with("api_key", "wr_1", "running"));
    ledger.hears(forged("wr_1", "completed"));
    ledger.hears(delivery(Verdict::Signed, "no JSON"));
    ledger.hears(signed("wr_2", "completed"));
    let list = |query: DeliveryQuery| -> Vec<i64> {
        let rows = ledger
            .reader
            .read(|view| view.deliveries(&DeliveryQuery { limit: 10, ..query }))
            .unwrap();
        rows.iter().map(|row| row.id).collect()
    };
    let all = || DeliveryQuery::default();
    assert_eq!(
        list(all()),
        [5, 4, 3, 2],
        "what came by itself, the newest first"
    );
    assert_eq!(
        list(DeliveryQuery {
            before: Some(4),
            ..all()
        }),
        [3, 2]
    );
    assert_eq!(
        list(DeliveryQuery {
            verdict: Some(Verdict::BadSignature),
            ..all()
        }),
        [3]
    );
    assert_eq!(
        list(DeliveryQuery {
            run_id: Some("wr_2".to_owned()),
            ..all()
        }),
        [5]
    );
    assert_eq!(
        list(DeliveryQuery {
            source: Some("bees".to_owned()),
            ..all()
        }),
        [0; 0]
    );
    let one = |id| ledger.reader.read(|view| view.delivery(id)).unwrap();
    let (row, head) = one(2).unwrap();
    assert_eq!(
        (row.source.as_str(), row.via.as_str(), row.at),
        ("sky", "webhook", at(2).rfc3339())
    );
    assert_eq!(
        (row.verdict.as_deref(), row.secret.as_deref()),
        (Some("signed"), Some("api_key"))
    );
    assert_eq!(
        (row.bytes, row.runs),
        (
            i64::try_from(state("wr_1", "running").len()).unwrap(),
            vec!["wr_1".to_owned()]
        )
    );
    assert!(head.webhook().is_some());
    assert!(one(4).unwrap().0.note.is_some());
    assert!(one(9).is_none());
    let body = |id| ledger.reader.read(|view| view.body(id)).unwrap();
    assert_eq!((body(4), body(9)), (Some(b"no JSON".to_vec()), None));
}

#[test]
fn a_line_of_the_timeline_says_what_came_and_what_it_did() {
    let mut ledger = Ledger::new();
    ledger.hears(track("wr_1"));
    ledger.hears(signed("wr_1", "running"));
    let [opened, told] = &ledger.timeline("wr_1")[..] else {
        panic!("two lines")
    };
    assert_eq!(
        (opened.report, opened.at, opened.effect.as_str(), opened.seq),
        (1, at(1), "opened", None)
    );
    assert_eq!(
        (told.via.as_str(), told.trust.as_str(), told.claim.as_str()),
        ("webhook", "signed", "open")
    );
    assert_eq!(
        (told.status.as_deref(), told.effect.as_str(), told.seq),
        (Some("running"), "status", Some(1))
    );
}

#[test]
fn a_page_of_the_feed_ends_after_a_mebibyte() {
    let mut ledger = Ledger::new();
    for run in 1..=6 {
        let page = "x".repeat(250_000);
        let body = format!(r#"{{"run_id":"wr_{run}","status":"completed","page":"{page}"}}"#);
        ledger.hears(delivery(Verdict::Signed, body));
    }
    let page = |after| {
        ledger
            .reader
            .read(|view| {
                view.records(&RecordQuery {
                    after,
                    upto: i64::MAX,
                    filter: &Filter::default(),
                    rows_max: 100,
                    scan_max: 100,
                })
            })
            .unwrap()
    };
    let seqs =
        |records: &[StoredRecord]| records.iter().map(|record| record.seq).collect::<Vec<_>>();
    let (records, position) = page(0);
    assert_eq!((seqs(&records), position), (vec![1, 2, 3, 4, 5], 5));
    assert_eq!(records[0].at, at(1));
    let (records, position) = page(5);
    assert_eq!(
        (seqs(&records), position),
        (vec![6], 105),
        "so far there is nothing else"
    );
    let (records, position) = page(200);
    assert_eq!((seqs(&records), position), (vec![], 300));
}

#[test]
fn losses_are_told_of_each_span() {
    let mut ledger = Ledger::new();
    ledger.hears(signed("wr_1", "completed"));
    let names = LOSS_SPANS.map(|(name, span)| (name, span.as_secs()));
    assert_eq!(names, [("1h", 3_600), ("24h", 86_400), ("30d", 2_592_000)]);
    let found = |days: u64| {
        let now = at(0).plus(Duration::from_secs(days * 86_400));
        ledger.reader.read(|view| view.losses(now)).unwrap()[&1]["30d"].completions
    };
    assert_eq!((found(2), found(29), found(31)), (1, 1, 0));
    let all = ledger.reader.read(|view| view.losses(ledger.now)).unwrap();
    let one = Loss {
        completions: 1,
        ..Loss::default()
    };
    assert_eq!(all[&1].values().copied().collect::<Vec<_>>(), [one; 3]);
}

#[test]
fn the_disk_is_blamed_for_what_is_its_fault() {
    let sqlite =
        |code| LedgerError::Sqlite(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
    for code in [
        ffi::SQLITE_FULL,
        ffi::SQLITE_IOERR,
        ffi::SQLITE_CORRUPT,
        ffi::SQLITE_BUSY,
    ] {
        assert!(sqlite(code).blames_the_disk(), "{code}");
    }
    for code in [
        ffi::SQLITE_CONSTRAINT,
        ffi::SQLITE_TOOBIG,
        ffi::SQLITE_MISMATCH,
        ffi::SQLITE_RANGE,
    ] {
        assert!(!sqlite(code).blames_the_disk(), "{code}");
    }
    assert!(!LedgerError::Panicked.blames_the_disk());
    assert!(!LedgerError::Unreadable("a row".to_owned()).blames_the_disk());
    assert!(!LedgerError::Sqlite(rusqlite::Error::QueryReturnedNoRows).blames_the_disk());
    assert!(LedgerError::InUse("settled.db".into()).blames_the_disk());
}

#[test]
fn a_finding_counts_all_its_rows_and_names_the_first_five() {
    let mut ledger = Ledger::new();
    for run in 1..=7 {
        ledger.hears(track(&format!("wr_{run}")));
    }
    assert_eq!(ledger.reader.read(check).unwrap(), []);
    ledger
        .sql()
        .execute("UPDATE runs SET opened_at = 1", [])
        .unwrap();
    let examined = examine(&ledger.path()).unwrap();
    let [finding] = &examined.findings[..] else {
        panic!("{:?}", examined.findings)
    };
    let named = ["sky:wr_1", "sky:wr_2", "sky:wr_3", "sky:wr_4", "sky:wr_5"];
    assert_eq!(
        (finding.rows, &finding.named[..]),
        (7, &named.map(str::to_owned)[..])
    );
    let told = "runs whose columns say something else than their state: 7: sky:wr_1, sky:wr_2, sky:wr_3, sky:wr_4, sky:wr_5";
    assert_eq!(finding.to_string(), told);
    let counted = [
        ("consumers", 0),
        ("quarantined_reports", 0),
        ("records", 0),
        ("reports", 7),
        ("runs", 7),
    ];
    assert_eq!(examined.rows.into_iter().collect::<Vec<_>>(), counted);
}
