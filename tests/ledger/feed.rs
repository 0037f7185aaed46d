//! Records: once each, the same on every machine, found by cursor and filter.

use std::time::Duration;

use settled::ledger::{Filter, RecordQuery};
use settled::model::decide::Effect;
use settled::model::record::{Cursor, PAYLOAD_BYTES_MAX, RecordType};
use settled::model::{At, Origin, Outcome};
use settled::providers::Verdict;
use settled::providers::skyvern::Skyvern;
use settled::providers::smartbrowse::SmartBrowse;

use crate::support::reconciler::{
    API_KEY, Ledger, ROOMY, answer, bounds, delivery, json, signed, source, state, track,
};

fn a_history(ledger: &mut Ledger) {
    ledger.hears(track("wr_1"));
    ledger.hears(signed("wr_1", "running"));
    ledger.hears(signed("wr_2", "failed"));
    ledger.hears(signed("wr_1", "completed"));
    ledger.hears(signed("wr_1", "completed"));
    let requested_at = ledger.now;
    ledger.hears(answer("wr_2", requested_at, &state("wr_2", "completed")));
}

#[test]
fn the_same_history_gives_the_same_records() {
    let rows = |ledger: &Ledger| -> Vec<(i64, String, String)> {
        let sql = ledger.sql();
        let mut select = sql
            .prepare("SELECT seq, envelope, data FROM records ORDER BY seq")
            .unwrap();
        let rows = select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    let (mut one, mut other) = (Ledger::new(), Ledger::new());
    a_history(&mut one);
    a_history(&mut other);
    assert_eq!(rows(&one), rows(&other));
    let ids: Vec<_> = one
        .feed()
        .iter()
        .map(|record| json(record)["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        ids,
        [
            "sky:wr_1:status:1",
            "sky:wr_2:completion",
            "sky:wr_1:completion",
            "sky:wr_2:amendment:1"
        ]
    );
    assert_ne!(
        one.reader.epoch(),
        other.reader.epoch(),
        "a cursor of one means nothing to the other"
    );
}

#[test]
fn digesting_in_a_group_gives_the_records_that_digesting_one_by_one_gives() {
    let (mut one, mut group) = (Ledger::new(), Ledger::new());
    let reports = [
        signed("wr_1", "running"),
        signed("wr_1", "failed"),
        signed("wr_2", "completed"),
        signed("wr_1", "failed"),
    ];
    for report in reports.clone() {
        one.hears(report);
    }
    group.reconciler.step(reports.to_vec(), group.now).unwrap();
    let ids = |ledger: &Ledger| {
        ledger
            .feed()
            .iter()
            .map(|record| json(record)["id"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&one), ids(&group));
}

#[test]
fn sql_itself_refuses_a_second_completion() {
    let mut ledger = Ledger::new();
    a_history(&mut ledger);
    let sql = ledger.sql();
    let refused = |statement: &str| {
        let error = sql.execute(statement, []).expect_err(statement).to_string();
        assert!(
            error.contains("constraint")
                || error.contains("CHECK")
                || error.contains("UNIQUE")
                || error.contains("for ever"),
            "{error}"
        );
    };
    refused(
        "INSERT INTO records (run, type, at, source, envelope, data)
         SELECT run, type, at, source, envelope, data FROM records WHERE type = 'settled.run.completion'",
    );
    refused("UPDATE runs SET completion = completion + 1");
    refused("UPDATE runs SET completion = NULL, phase = 'open'");
    refused("UPDATE runs SET phase = 'open'");
    refused(
        "INSERT INTO runs (source, run_id, phase, overdue, state) VALUES (1, 'wr_9', 'settled', 0, '')",
    );
    refused(
        "INSERT INTO runs (source, run_id, phase, overdue, state) VALUES (1, 'wr_1', 'open', 0, '')",
    );
    assert_eq!(
        ledger.count("SELECT count(*) FROM records WHERE type = 'settled.run.completion'"),
        2
    );
}

#[test]
fn a_cursor_leads_to_what_comes_after_it() {
    let mut ledger = Ledger::new();
    a_history(&mut ledger);
    let feed = ledger.feed();
    for record in &feed {
        let cursor = Cursor::parse(json(record)["cursor"].as_str().unwrap()).unwrap();
        assert_eq!(cursor, ledger.cursor(record.seq));
        let all = Filter {
            types: Vec::new(),
            ..Filter::default()
        };
        let rest = ledger
            .reader
            .read(|view| {
                view.records(&RecordQuery {
                    after: cursor.seq,
                    upto: i64::MAX,
                    filter: &all,
                    rows_max: 100,
                    scan_max: 100,
                })
            })
            .unwrap()
            .0;
        assert_eq!(
            rest,
            feed.iter()
                .filter(|other| other.seq > record.seq)
                .cloned()
                .collect::<Vec<_>>()
        );
        assert_eq!(
            ledger
                .reader
                .read(|view| view.record_at(record.seq))
                .unwrap()
                .as_ref(),
            Some(record)
        );
    }
    let found = bounds(&ledger.reader);
    assert_eq!((found.trimmed, found.head), (0, feed.last().unwrap().seq));
    assert_eq!(
        ledger
            .reader
            .read(|view| view.record_at(found.head + 1))
            .unwrap(),
        None
    );
}

#[test]
fn a_page_ends_where_its_bounds_say_and_says_how_far_it_came() {
    let mut ledger = Ledger::new();
    a_history(&mut ledger);
    let page = |filter: &Filter, rows, scan| {
        ledger
            .reader
            .read(|view| {
                view.records(&RecordQuery {
                    after: 0,
                    upto: i64::MAX,
                    filter,
                    rows_max: rows,
                    scan_max: scan,
                })
            })
            .unwrap()
    };
    let all = Filter {
        types: Vec::new(),
        ..Filter::default()
    };
    let seqs = |records: &[settled::ledger::StoredRecord]| {
        records.iter().map(|record| record.seq).collect::<Vec<_>>()
    };
    let (records, position) = page(&all, 2, 100);
    assert_eq!((seqs(&records), position), (vec![1, 2], 2));
    let (records, position) = page(&Filter::default(), 100, 2);
    assert_eq!(
        (seqs(&records), position),
        (vec![2], 2),
        "no more rows are looked at than allowed"
    );
    let none = Filter {
        outcome: vec![Outcome::TimedOut],
        ..Filter::default()
    };
    let (records, position) = page(&none, 100, 3);
    assert_eq!(
        (seqs(&records), position),
        (vec![], 3),
        "what did not match is not looked at again"
    );
}

#[test]
fn a_filter_lets_through_what_matches_all_its_fields() {
    let mut ledger = Ledger::of(
        [source("bees", &SmartBrowse), source("sky", &Skyvern)],
        ROOMY,
    );
    let skyvern = |report: settled::report::Report| settled::report::Report {
        source: 2,
        ..report
    };
    ledger.hears(skyvern(signed("wr_1", "running")));
    ledger.hears(skyvern(signed("wr_1", "completed")));
    ledger.hears(skyvern(signed("wr_2", "failed")));
    let requested_at = ledger.now.plus(Duration::from_secs(90));
    ledger.hears(skyvern(answer(
        "wr_2",
        requested_at,
        &state("wr_2", "canceled"),
    )));
    let ids = |filter: &Filter| {
        ledger
            .filtered(filter)
            .iter()
            .map(|record| json(record)["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let completions = Filter::default;
    let any = || Filter {
        types: Vec::new(),
        ..Filter::default()
    };
    assert_eq!(
        ids(&completions()),
        ["sky:wr_1:completion", "sky:wr_2:completion"]
    );
    assert_eq!(ids(&any()).len(), 4);
    assert_eq!(
        ids(&Filter {
            types: vec![RecordType::Status, RecordType::Amendment],
            ..any()
        })
        .len(),
        2
    );
    assert_eq!(
        ids(&Filter {
            outcome: vec![Outcome::Failed],
            ..any()
        }),
        ["sky:wr_2:completion"]
    );
    assert_eq!(
        ids(&Filter {
            outcome: vec![Outcome::Cancelled],
            ..any()
        }),
        ["sky:wr_2:amendment:1"]
    );
    assert_eq!(
        ids(&Filter {
            origin: vec![Origin::Poll],
            ..any()
        }),
        [""; 0]
    );
    assert_eq!(
        ids(&Filter {
            group: vec!["wpid_wr_1".to_owned()],
            ..completions()
        }),
        ["sky:wr_1:completion"]
    );
    assert_eq!(
        ids(&Filter {
            source: vec!["sky".to_owned()],
            ..completions()
        })
        .len(),
        2
    );
    assert_eq!(
        ids(&Filter {
            source: vec!["bees".to_owned()],
            ..completions()
        }),
        [""; 0]
    );
    assert_eq!(
        ids(&Filter {
            provider: vec!["skyvern".to_owned()],
            ..completions()
        })
        .len(),
        2
    );
    assert_eq!(
        ids(&Filter {
            provider: vec!["x' OR 1 --".to_owned()],
            ..completions()
        }),
        [""; 0]
    );
}

#[test]
fn a_completion_carries_the_providers_own_words() {
    let mut ledger = Ledger::new();
    ledger.hears(delivery(
        Verdict::Signed,
        "{\n  \"run_id\": \"wr_1\",\n  \"status\": \"completed\",\n  \"n\": 1.50\n}",
    ));
    let record = &ledger.feed()[0];
    assert!(
        record
            .line
            .contains(r#""payload":{"run_id":"wr_1","status":"completed","n":1.50}"#),
        "{}",
        record.line
    );
    assert!(!record.line.contains('\n'));
    assert_eq!(json(record)["data"]["provider_status"], "completed");
}

#[test]
fn a_held_end_is_published_with_the_words_that_told_it() {
    let mut ledger = Ledger::new();
    let body = r#"{"run_id": "tsk_v2_1", "status": "canceled", "told": "then"}"#;
    let held = ledger.hears(delivery(Verdict::Signed, body));
    assert_eq!(held.effects[0].1, Effect::Held);
    ledger.now = ledger.now.plus(Duration::from_secs(60));
    let run_id = held.effects[0].0.clone();
    let clock = settled::report::Meta::Clock { run_id };
    ledger.hears(settled::report::Report {
        source: 1,
        at: At(0),
        meta: clock,
        body: Vec::new(),
    });
    let record = json(&ledger.feed()[0]);
    assert_eq!(record["data"]["payload"]["told"], "then");
    assert_eq!(record["data"]["confirmed"], false);
}

#[test]
fn a_payload_that_is_too_large_is_referred_to() {
    let mut ledger = Ledger::new();
    let body = |bytes: usize| {
        format!(
            r#"{{"run_id":"wr_1","status":"completed","page":"{}"}}"#,
            "x".repeat(bytes)
        )
    };
    let large = body(256 * 1024);
    let process = ledger.hears(delivery(Verdict::Signed, large.clone()));
    let record = json(&ledger.feed()[0]);
    assert_eq!(record["data"]["payload"], serde_json::Value::Null);
    assert_eq!(
        record["data"]["payload_ref"],
        format!("/v1/deliveries/{}/body", process.report)
    );
    let stored = ledger
        .reader
        .read(|view| view.body(process.report))
        .unwrap()
        .unwrap();
    assert_eq!(stored, large.into_bytes(), "and there it is, to the byte");
}

#[test]
fn a_payload_of_256_kib_travels_and_one_byte_more_does_not() {
    let wrapping = r#"{"run_id":"wr_1","status":"completed","page":""}"#.len();
    for (bytes, travels) in [
        (PAYLOAD_BYTES_MAX - 1, true),
        (PAYLOAD_BYTES_MAX, true),
        (PAYLOAD_BYTES_MAX + 1, false),
    ] {
        let page = "x".repeat(bytes - wrapping);
        let body = format!(r#"{{"run_id":"wr_1","status":"completed","page":"{page}"}}"#);
        assert_eq!(body.len(), bytes);
        let mut ledger = Ledger::new();
        ledger.hears(delivery(Verdict::Signed, body));
        let data = &json(&ledger.feed()[0])["data"];
        assert_eq!(
            (data["payload"].is_object(), data["payload_ref"].is_string()),
            (travels, !travels),
            "{bytes} bytes"
        );
    }
}

#[test]
fn a_secret_that_is_echoed_does_not_reach_the_feed() {
    let mut ledger = Ledger::new();
    let body = format!(
        r#"{{"run_id":"wr_1","status":"failed","failure_reason":"bad key {API_KEY}","webhook":"https://x/{API_KEY}/y"}}"#
    );
    ledger.hears(delivery(Verdict::Signed, body));
    let record = &ledger.feed()[0];
    assert!(!record.line.contains(API_KEY), "{}", record.line);
    assert_eq!(json(record)["data"]["error"], "bad key [secret]");
    assert_eq!(
        json(record)["data"]["payload"]["webhook"],
        "https://x/[secret]/y"
    );
}
