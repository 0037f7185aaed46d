//! From the promise to the opinion: nothing promised is lost, and nothing that cannot be read
//! stands in anybody's way.

use settled::ledger::commands::{CreateConsumer, OpenConsumer};
use settled::ledger::{AnyCommand, Filter, UnverifiedLimits, Writer};
use settled::model::decide::Effect;
use settled::model::observation::Observation;
use settled::model::schedule::Policy;
use settled::model::{At, Kind, RunId};
use settled::providers::browser_use::BrowserUse;
use settled::providers::skyvern::Skyvern;
use settled::providers::{
    ApiRequest, ApiResponse, Delivery, Environment, Listing, Proof, Provider, Reading, Response,
    RunRef, Settings, Verdict, Webhook,
};
use settled::reconciler::Reconciler;
use settled::report::{Meta, Report, ResponseMeta, SweepMeta};
use settled::secret::Keyring;

use crate::support::reconciler::{
    Ledger, ROOMY, START, answer, delivery, forged, register, signed, source, state, track,
};

/// Skyvern, read by somebody who panics at the word.
struct Nervous;

impl Provider for Nervous {
    fn read_webhook(&self, webhook: &Webhook<'_>) -> Reading {
        assert!(!webhook.body.windows(4).any(|word| word == b"BOO!"), "boo");
        Skyvern.read_webhook(webhook)
    }
    fn name(&self) -> &'static str {
        "nervous"
    }
    fn base_url(&self) -> &'static str {
        Skyvern.base_url()
    }
    fn key_header(&self) -> (&'static str, &'static str) {
        Skyvern.key_header()
    }
    fn environment(&self) -> Environment {
        Skyvern.environment()
    }
    fn policy(&self, kind: Option<Kind>) -> Policy {
        Skyvern.policy(kind)
    }
    fn kind_of(&self, run_id: &RunId, settings: &Settings) -> Kind {
        Skyvern.kind_of(run_id, settings)
    }
    fn verify(&self, delivery: &Delivery<'_>, keyring: &Keyring, now: At) -> Proof {
        Skyvern.verify(delivery, keyring, now)
    }
    fn status_request(&self, run: &RunRef<'_>) -> ApiRequest {
        Skyvern.status_request(run)
    }
    fn read_status(
        &self,
        run: &RunRef<'_>,
        answers: &[ApiResponse],
        requested_at: At,
    ) -> Observation {
        Skyvern.read_status(run, answers, requested_at)
    }
    fn canary_request(&self, settings: &Settings) -> ApiRequest {
        Skyvern.canary_request(settings)
    }
    fn list_request(&self, page: Option<&str>, settings: &Settings) -> Option<ApiRequest> {
        Skyvern.list_request(page, settings)
    }
    fn read_list(
        &self,
        page: Option<&str>,
        answer: &ApiResponse,
        settings: &Settings,
        requested_at: At,
    ) -> Listing {
        Skyvern.read_list(page, answer, settings, requested_at)
    }
}

/// A ledger in which reports were promised, and whose process then ended.
fn promised(reports: &[Report]) -> Ledger {
    let ledger = Ledger::new();
    let Ledger {
        folder,
        reconciler,
        reader,
        now,
    } = ledger;
    drop(reconciler);
    let path = folder.path().join("settled.db");
    let mut writer = Writer::open(&path, START).unwrap();
    writer.store(reports).unwrap();
    let sources = register(&mut writer, [source("sky", &Skyvern)]);
    Ledger {
        folder,
        reader,
        reconciler: Reconciler::new(writer, sources, ROOMY),
        now,
    }
}

#[test]
fn what_was_promised_and_not_digested_is_digested_at_the_next_start() {
    let mut ledger = promised(&[
        signed("wr_1", "running"),
        signed("wr_1", "completed"),
        signed("wr_2", "failed"),
    ]);
    assert!(ledger.feed().is_empty());
    assert_eq!(ledger.reconciler.recover(START, |_| ()).unwrap(), 3);
    assert_eq!(ledger.feed().len(), 3);
    assert_eq!(
        ledger.reconciler.recover(START, |_| ()).unwrap(),
        0,
        "and only once"
    );
    assert_eq!(ledger.feed().len(), 3);
}

#[test]
fn what_was_digested_is_not_digested_again() {
    let mut ledger = Ledger::new();
    ledger.hears(signed("wr_1", "completed"));
    assert_eq!(ledger.reconciler.recover(START, |_| ()).unwrap(), 0);
}

#[test]
fn a_report_that_ended_the_process_three_times_is_set_aside() {
    let mut ledger = promised(&[signed("wr_1", "completed"), signed("wr_2", "completed")]);
    // Three processes counted an attempt, and came no further.
    ledger
        .sql()
        .execute("UPDATE reports SET attempts = 3 WHERE id = 1", [])
        .unwrap();
    assert_eq!(ledger.reconciler.recover(START, |_| ()).unwrap(), 2);
    assert!(ledger.run("wr_1").is_none());
    assert!(
        ledger.run("wr_2").unwrap().completion.is_some(),
        "and the next is not kept waiting"
    );
    assert_eq!(ledger.quarantined(), 1);
    let (row, _) = ledger
        .reader
        .read(|view| view.delivery(1))
        .unwrap()
        .unwrap();
    assert!(row.quarantined.unwrap().contains("three times"));
}

#[test]
fn an_attempt_is_counted_on_disk_before_it_is_made() {
    let mut ledger = promised(&[signed("wr_1", "completed")]);
    ledger.reconciler.recover(START, |_| ()).unwrap();
    assert_eq!(ledger.count("SELECT attempts FROM reports WHERE id = 1"), 1);
}

#[test]
fn a_report_that_panics_its_reader_is_set_aside_and_blocks_nobody() {
    let mut ledger = Ledger::of([source("sky", &Nervous)], ROOMY);
    let poison = delivery(
        Verdict::Signed,
        r#"{"run_id":"wr_1","status":"completed","page":"BOO!"}"#,
    );
    let processed = ledger
        .reconciler
        .step(
            vec![signed("wr_0", "failed"), poison, signed("wr_2", "failed")],
            START,
        )
        .unwrap();
    assert_eq!(
        processed
            .iter()
            .map(|process| process.effects.len())
            .collect::<Vec<_>>(),
        [1, 0, 1]
    );
    let (row, _) = ledger
        .reader
        .read(|view| view.delivery(processed[1].report))
        .unwrap()
        .unwrap();
    assert!(row.quarantined.unwrap().contains("panicked"));
    assert!(ledger.run("wr_1").is_none());
    assert_eq!(
        ledger.reconciler.recover(START, |_| ()).unwrap(),
        0,
        "it is not tried again"
    );
    ledger.hears(signed("wr_1", "completed"));
    assert!(
        ledger.run("wr_1").unwrap().completion.is_some(),
        "its run can still settle"
    );
}

fn create(name: &str) -> AnyCommand {
    let create = CreateConsumer {
        name: name.to_owned(),
        acked: 0,
        filter: Filter::default(),
        window: 0,
        now: START,
    };
    create.into()
}

#[test]
fn an_opinion_that_fails_takes_neither_promise_nor_work_with_it() {
    let mut ledger = Ledger::of([source("sky", &Nervous)], ROOMY);
    let poison = delivery(Verdict::Signed, "BOO!");
    ledger
        .reconciler
        .write_batch(vec![signed("wr_1", "failed"), poison], Vec::new(), START)
        .unwrap();
    let turn = ledger
        .reconciler
        .write_batch(vec![signed("wr_2", "failed")], vec![create("a")], START)
        .unwrap();
    assert!(turn.processed.is_err() && turn.replies[0].is_ok());
    assert_eq!((turn.stored, ledger.feed().len()), (vec![3], 0));
    assert_eq!(ledger.count("SELECT count(*) FROM consumers"), 1);
    ledger.reconciler.catch_up(START, |_| ()).unwrap();
    assert_eq!((ledger.feed().len(), ledger.quarantined()), (2, 1));
}

#[test]
fn a_forged_report_that_panics_its_reader_keeps_nobody_waiting_though_the_ring_is_full() {
    let mut ledger = Ledger::of(
        [source("sky", &Nervous)],
        UnverifiedLimits {
            rows_max: 10,
            bytes_max: 40,
        },
    );
    let poison = delivery(Verdict::BadSignature, format!("BOO! {}", "x".repeat(50)));
    let processed = ledger
        .reconciler
        .step(vec![poison, signed("wr_1", "completed")], START)
        .unwrap();
    assert_eq!(processed.last().unwrap().effects.len(), 1);
    assert!(ledger.run("wr_1").unwrap().completion.is_some());
}

#[test]
fn what_cannot_be_read_is_noted_and_ends_there() {
    let mut ledger = Ledger::new();
    for body in [
        "",
        "[]",
        "{",
        "null",
        "\u{feff}{}",
        "a=b&c=d",
        &"[".repeat(5_000),
        r#"{"run_id":null}"#,
    ] {
        let process = ledger.hears(delivery(Verdict::Signed, body));
        assert_eq!(process.effects, [], "{body:.20}");
        let (row, _) = ledger
            .reader
            .read(|view| view.delivery(process.report))
            .unwrap()
            .unwrap();
        assert!(
            row.note.is_some() && row.quarantined.is_none(),
            "{body:.20}"
        );
    }
    assert_eq!(ledger.count("SELECT count(*) FROM runs"), 0);
}

#[test]
fn a_report_of_a_source_that_is_gone_is_set_aside() {
    let mut ledger = Ledger::of([source("gone", &Skyvern), source("sky", &Skyvern)], ROOMY);
    let path = ledger.path();
    drop(ledger.reconciler);
    let mut writer = Writer::open(&path, START).unwrap();
    let sources = register(&mut writer, [source("sky", &Skyvern)]);
    ledger.reconciler = Reconciler::new(writer, sources, ROOMY);
    ledger.hears(signed("wr_1", "completed"));
    assert_eq!(ledger.quarantined(), 1);
    assert!(ledger.feed().is_empty());
}

// ── Forgery ─────────────────────────────────────────────────────────────────────────────────────

#[test]
fn the_ring_is_bounded_in_rows() {
    let mut ledger = Ledger::of(
        [source("sky", &Skyvern)],
        UnverifiedLimits {
            rows_max: 40,
            bytes_max: 1 << 30,
        },
    );
    for number in 0..200 {
        ledger.hears(forged(&format!("wr_{number}"), "completed"));
        assert!(
            ledger.count("SELECT count(*) FROM reports WHERE unverified = 1") <= 42,
            "at {number}"
        );
    }
    assert_eq!(
        ledger.count("SELECT max(id) FROM reports WHERE unverified = 1"),
        200,
        "the newest are kept"
    );
}

#[test]
fn the_ring_is_bounded_in_bytes() {
    let mut ledger = Ledger::of(
        [source("sky", &Skyvern)],
        UnverifiedLimits {
            rows_max: 1 << 30,
            bytes_max: 10_000,
        },
    );
    for _ in 0..50 {
        ledger.hears(delivery(Verdict::Unsigned, vec![b'x'; 900]));
        assert!(
            ledger.count("SELECT coalesce(sum(length(body)), 0) FROM reports WHERE unverified = 1")
                <= 10_000
        );
    }
    ledger.hears(delivery(Verdict::Unsigned, vec![b'x'; 20_000]));
    assert!(
        ledger.count("SELECT coalesce(sum(length(body)), 0) FROM reports WHERE unverified = 1")
            <= 10_000
    );
}

#[test]
fn the_ring_of_one_source_leaves_the_others_and_the_authentic_alone() {
    let mut ledger = Ledger::of(
        [source("a", &Skyvern), source("b", &Skyvern)],
        UnverifiedLimits {
            rows_max: 5,
            bytes_max: 1 << 20,
        },
    );
    ledger.hears(Report {
        source: 2,
        ..forged("wr_b", "failed")
    });
    ledger.hears(signed("wr_a", "failed"));
    for _ in 0..50 {
        ledger.hears(forged("wr_a", "completed"));
    }
    assert_eq!(
        ledger.count("SELECT count(*) FROM reports WHERE source = 2"),
        1
    );
    assert_eq!(
        ledger.count("SELECT count(*) FROM reports WHERE source = 1 AND unverified IS NULL"),
        1
    );
    assert_eq!(
        ledger.count("SELECT count(*) FROM reports WHERE source = 1 AND unverified = 1"),
        5
    );
}

#[test]
fn a_forged_flood_grows_neither_the_runs_nor_the_timeline() {
    let mut ledger = Ledger::new();
    ledger.hears(track("wr_open"));
    ledger.hears(signed("wr_over", "failed"));
    let before = (
        ledger.count("SELECT count(*) FROM runs"),
        ledger.count("SELECT count(*) FROM timeline"),
    );
    let flood = |number: i64| {
        let names = ["wr_open", "wr_over", "wr_unknown"];
        let run_id = names
            .get(usize::try_from(number % 4).unwrap())
            .map_or(format!("wr_{number}"), |&name| name.to_owned());
        forged(&run_id, "completed")
    };
    ledger
        .reconciler
        .step((0..400).map(flood).collect(), ledger.now)
        .unwrap();
    let after = (
        ledger.count("SELECT count(*) FROM runs"),
        ledger.count("SELECT count(*) FROM timeline"),
    );
    assert_eq!(
        after,
        (before.0, before.1 + 1),
        "one line: that the next question was brought forward"
    );
    assert_eq!(ledger.feed().len(), 1);
    assert_eq!(
        ledger.timeline("wr_open").last().unwrap().effect,
        Effect::Hinted.word()
    );
}

// ── One transaction ─────────────────────────────────────────────────────────────────────────────

#[test]
fn a_command_that_fails_undoes_only_itself() {
    let mut ledger = Ledger::new();
    ledger
        .sql()
        .execute(
            "INSERT INTO consumers VALUES ('damaged', 0, '{', 0, 0, 5, 6)",
            [],
        )
        .unwrap();
    let open = OpenConsumer {
        name: "damaged".to_owned(),
        now: START,
    };
    let commands = vec![create("a"), open.into(), create("b")];
    let batch = ledger
        .reconciler
        .write_batch(Vec::new(), commands, START)
        .unwrap();
    let executed: Vec<bool> = batch.replies.iter().map(Result::is_ok).collect();
    assert_eq!(executed, [true, false, true]);
    assert_eq!(ledger.count("SELECT count(*) FROM consumers"), 3);
    assert_eq!(
        ledger.count("SELECT seen_at FROM consumers WHERE name = 'damaged'"),
        6,
        "the command that failed had changed its row"
    );
    assert_eq!(ledger.count("SELECT generation FROM meta"), 2);
}

#[test]
fn a_transaction_that_fails_leaves_nothing() {
    let ledger = Ledger::new();
    let path = ledger.path();
    drop(ledger.reconciler);
    let mut writer = Writer::open(&path, START).unwrap();
    let of_no_source = Report {
        source: 99,
        ..signed("wr_2", "failed")
    };
    let failed = writer.store(&[signed("wr_1", "failed"), of_no_source]);
    assert!(failed.is_err());
    writer.reopen().unwrap();
    assert_eq!(writer.first_unprocessed().unwrap(), None);
}

#[test]
fn an_answer_without_news_keeps_no_bytes() {
    let mut ledger = Ledger::new();
    ledger.hears(track("wr_1"));
    let requested_at = ledger.now;
    let first = ledger
        .hears(answer("wr_1", requested_at, &state("wr_1", "running")))
        .report;
    let second = ledger
        .hears(answer("wr_1", requested_at, &state("wr_1", "running")))
        .report;
    let bytes =
        |id: i64| ledger.count(&format!("SELECT length(body) FROM reports WHERE id = {id}"));
    assert!(bytes(first) > 0);
    assert_eq!(bytes(second), 0);
}

/// One page of the list of a Browser Use account that runs v4.
fn v4_page(rows: &serde_json::Value) -> Report {
    let body = serde_json::json!({ "sessions": rows }).to_string().into();
    let response = Response {
        status: 200,
        body,
        ..Response::default()
    };
    let (answer, body) =
        ResponseMeta::split("/api/v4/sessions".to_owned(), ApiResponse::Http(response));
    let meta = SweepMeta {
        page: None,
        requested_at: START,
        answer,
    };
    Report {
        source: 1,
        at: START,
        meta: Meta::Sweep(meta),
        body,
    }
}

#[test]
fn a_run_that_began_and_ended_between_two_sweeps_is_found_and_history_is_left_alone() {
    let mut account = source("sky", &BrowserUse);
    account.settings = Settings {
        api: Some("v4".to_owned()),
    };
    let mut ledger = Ledger::of([account], ROOMY);
    let row = |run: &str, at: At| serde_json::json!({"sessionId": run, "latestRunId": run, "status": "completed", "updatedAt": at.rfc3339()});
    let page = serde_json::json!([
        row("history", At(START.0 - 1000)),
        row("missed", At(START.0 + 1000))
    ]);
    let sweep = ledger.hears(v4_page(&page));
    assert!(
        ledger.run("history").is_none(),
        "what was over before we came is nobody's business"
    );
    let missed = ledger.run("missed").expect("it is watched");
    assert!(
        missed.run.poll.is_some_and(|plan| plan.urgent),
        "and asked about, since a list is no verdict"
    );
    assert_eq!(sweep.effects.len(), 1);

    let requested_at = ledger.now;
    ledger.hears(answer(
        "missed",
        requested_at,
        r#"{"id": "missed", "status": "completed"}"#,
    ));
    assert_eq!(ledger.feed().len(), 1);
    let again = ledger.hears(v4_page(&page)).report;
    assert_eq!(
        ledger.timeline("missed").len(),
        2,
        "the sweep that found it and the answer; no line a round"
    );
    assert_eq!(
        ledger.count(&format!(
            "SELECT length(body) FROM reports WHERE id = {again}"
        )),
        0
    );
}

#[test]
fn an_unknown_run_in_an_unproven_delivery_is_inquired_about_and_the_answer_decides() {
    let mut ledger = Ledger::new();
    let inquiry = ledger.hears(forged("wr_1", "completed")).inquiry.unwrap();
    assert_eq!((inquiry.run_id.as_str(), inquiry.genuine), ("wr_1", false));
    let stale = delivery(Verdict::Stale, state("wr_2", "completed"));
    assert!(ledger.hears(stale).inquiry.unwrap().genuine);
    assert!(ledger.run("wr_1").is_none(), "a hint opens nothing");

    ledger.hears(track("wr_3"));
    assert_eq!(ledger.hears(forged("wr_3", "completed")).inquiry, None);
    assert_eq!(ledger.hears(signed("wr_4", "running")).inquiry, None);

    ledger.hears(answer("wr_1", START, &state("wr_1", "running")));
    assert!(ledger.run("wr_1").is_some(), "the answer opens it");
    let old = state("wr_2", "completed").replace(
        '{',
        r#"{"created_at": "2020-01-01T00:00:00", "finished_at": "2020-01-01T00:05:00", "#,
    );
    ledger.hears(answer("wr_2", START, &old));
    assert!(ledger.run("wr_2").is_none(), "it is history");
    ledger.hears(answer("wr_5", START, &state("wr_5", "completed")));
    assert!(
        ledger.run("wr_5").is_some(),
        "without a date it is believed"
    );
}

#[test]
fn without_a_key_no_run_is_inquired_about() {
    let mut mute = source("sky", &Skyvern);
    mute.api_key = None;
    let mut ledger = Ledger::of([mute], ROOMY);
    assert_eq!(ledger.hears(forged("wr_1", "completed")).inquiry, None);
}
