//! The JSON in the ledger is a format: golden files hold its shape, and `docs/formats.md` describes
//! every field of it. The values here fill every field, so that a new one does not compile until it
//! is filled, and fails these tests until the golden file and the document have it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use settled::ledger::Filter;
use settled::model::decide::{
    Arrivals, Claimed, Misses, Open, Phase, PollPlan, Run, Settled, Watched,
};
use settled::model::observation::{Detail, Ending, Evidence, Progress};
use settled::model::record::RecordType;
use settled::model::{At, Kind, Origin, Outcome, RunId, Trust, Via};
use settled::providers::Verdict;
use settled::report::{Meta, PollMeta, ResponseMeta, SweepMeta, TrackMeta, WebhookMeta};
use settled::secret::{SecretLabel, TokenDigest};

fn object(key: &str, value: Value) -> Map<String, Value> {
    Map::from_iter([(key.to_owned(), value)])
}

fn detail() -> Detail {
    Detail {
        provider_status: Some("completed".to_owned()),
        group_id: Some("wpid_1".to_owned()),
        reason: Some("max_steps".to_owned()),
        error: Some("no more steps".to_owned()),
        counters: Some(object("step_count", json!(7))),
        metadata: Some(object("order", json!("42"))),
        opened_at: Some(At(1_000)),
        provider_time: Some(At(2_000)),
    }
}

fn evidence() -> Evidence {
    Evidence {
        ending: Ending {
            outcome: Outcome::Failed,
            covers: Some(Outcome::Cancelled),
            sufficient: true,
        },
        trust: Trust::Signed,
        via: Via::Webhook,
        requested_at: At(3_000),
        received_at: At(4_000),
        report: 5,
        detail: detail(),
    }
}

fn run(phase: Phase) -> Run {
    Run {
        kind: Some(Kind::Workflow),
        known_since: At(5_000),
        found_by: Via::Operator,
        detail: detail(),
        progress: Progress::Started,
        webhooks: Arrivals {
            count: 2,
            first: Some(At(6_000)),
            last: Some(At(7_000)),
        },
        polls: 3,
        answered_at: Some(At(8_000)),
        watched: Watched {
            until: At(8_500),
            ms: 3_500,
            due: At(8_900),
        },
        hinted_at: Some(At(9_000)),
        overdue: true,
        statuses: 4,
        claimed_outcomes: vec![Outcome::Failed, Outcome::Cancelled],
        phase,
        poll: Some(PollPlan {
            at: At(10_000),
            urgent: true,
        }),
        wake_at: Some(At(11_000)),
    }
}

fn open() -> Run {
    run(Phase::Open(Open {
        claim: Some(Claimed {
            evidence: evidence(),
            until: At(12_000),
            polls: 1,
        }),
        seen: Some(evidence()),
        misses: Some(Misses {
            first: At(13_000),
            last: At(13_500),
            spread_ms: 500,
            count: 2,
        }),
    }))
}

fn settled() -> Run {
    run(Phase::Settled(Settled {
        belief: evidence(),
        origin: Origin::Webhook,
        confirmed: true,
        at: At(14_000),
        amendments: 1,
        disputes: 2,
        disputed_at: Some(At(15_000)),
        checks: Some(1),
    }))
}

fn run_id() -> RunId {
    RunId::new("wr_1").unwrap()
}

fn headers() -> Vec<(String, String)> {
    vec![("content-type".to_owned(), "application/json".to_owned())]
}

fn webhook() -> WebhookMeta {
    WebhookMeta {
        headers: headers(),
        path_token: Some(TokenDigest("ab12".to_owned())),
        verdict: Verdict::Signed,
        secret: Some(SecretLabel("api_key".to_owned())),
        truncated: true,
        peer: Some("127.0.0.1:5000".to_owned()),
    }
}

fn answer() -> ResponseMeta {
    ResponseMeta {
        path: "/v1/runs/wr_1".to_owned(),
        status: Some(200),
        failed: Some("the connection was closed".to_owned()),
        headers: headers(),
        bytes: 17,
        truncated: true,
    }
}

fn metas() -> [(&'static str, Meta); 6] {
    let poll = PollMeta {
        run_id: run_id(),
        kind: Kind::Workflow,
        guessed: true,
        group_id: Some("wpid_1".to_owned()),
        requested_at: At(16_000),
        answers: vec![answer()],
    };
    let sweep = SweepMeta {
        page: Some("2".to_owned()),
        requested_at: At(17_000),
        answer: answer(),
    };
    let track = TrackMeta {
        run_id: run_id(),
        kind: Some(Kind::Workflow),
        group_id: Some("wpid_1".to_owned()),
        metadata: Some(object("order", json!("42"))),
    };
    [
        ("meta-webhook", Meta::Webhook(webhook())),
        ("meta-replay", Meta::Replay(webhook())),
        ("meta-poll", Meta::Poll(poll)),
        ("meta-sweep", Meta::Sweep(sweep)),
        ("meta-clock", Meta::Clock { run_id: run_id() }),
        ("meta-track", Meta::Track(track)),
    ]
}

fn filter() -> Filter {
    Filter {
        types: vec![RecordType::Completion, RecordType::Amendment],
        source: vec!["sky".to_owned()],
        provider: vec!["skyvern".to_owned()],
        outcome: vec![Outcome::Failed],
        origin: vec![Origin::Poll],
        group: vec!["wpid_1".to_owned()],
    }
}

/// Compares a value with its golden file, which `SETTLED_BLESS=1` writes anew.
fn golden<T>(name: &str, value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/ledger/formats")
        .join(format!("{name}.json"));
    let written = serde_json::to_value(value).unwrap();
    if std::env::var_os("SETTLED_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&written).unwrap() + "\n";
        fs::write(&path, text).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    let stored: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written, stored, "{name}: what is written has changed");
    let read: T = serde_json::from_str(&text).unwrap();
    assert_eq!(&read, value, "{name}: what is read has changed");
    let document = include_str!("../../docs/formats.md");
    let missing: Vec<String> = keys(&stored)
        .into_iter()
        .filter(|key| !document.contains(&format!("`{key}`")))
        .collect();
    assert!(
        missing.is_empty(),
        "{name}: not in docs/formats.md: {missing:?}"
    );
}

/// The names of all fields, but those that a provider or a client has chosen.
fn keys(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    match value {
        Value::Array(items) => items.iter().for_each(|item| found.extend(keys(item))),
        Value::Object(fields) => {
            for (key, value) in fields {
                found.insert(key.clone());
                if key != "counters" && key != "metadata" {
                    found.extend(keys(value));
                }
            }
        }
        _ => {}
    }
    found
}

#[test]
fn the_state_of_a_run_is_stored_as_documented() {
    golden("run-open", &open());
    golden("run-settled", &settled());
}

#[test]
fn the_metadata_of_a_report_is_stored_as_documented() {
    for (name, meta) in metas() {
        golden(name, &meta);
    }
}

#[test]
fn the_filter_of_a_consumer_is_stored_as_documented() {
    golden("filter", &filter());
}

/// The least that any build has written: every optional field is left out.
#[test]
fn a_state_without_its_optional_fields_can_be_read() {
    let evidence = json!({"ending": {"outcome": "succeeded"}, "trust": "signed", "via": "webhook", "requested_at": 1,
        "received_at": 2, "report": 3, "detail": {}});
    let settled = json!({"settled": {"belief": evidence, "origin": "webhook", "confirmed": true, "at": 2, "amendments": 0,
        "disputes": 0}});
    for phase in [json!({"open": {}}), settled] {
        let state = json!({"known_since": 1, "found_by": "webhook", "detail": {}, "progress": "waiting",
            "webhooks": {"count": 0}, "polls": 0, "overdue": false, "statuses": 0, "phase": phase});
        serde_json::from_value::<Run>(state).unwrap();
    }
    let webhook = json!({"webhook": {"headers": [], "verdict": "signed"}});
    let poll = json!({"poll": {"run_id": "r", "kind": "task", "requested_at": 1, "answers": [{"path": "/"}]}});
    let sweep = json!({"sweep": {"requested_at": 1, "answer": {"path": "/"}}});
    for meta in [webhook, poll, sweep, json!({"track": {"run_id": "r"}})] {
        serde_json::from_value::<Meta>(meta).unwrap();
    }
}
