//! `docs/api.md` shows every request and reply as it is: each JSON block with a type's name is compared
//! with a filled example of that type, every field has its row, and every route its line.
//!
//! The examples are struct literals without `..`, so a new field does not compile until it is here, and
//! then fails until it is in the document.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use settled::api::types::*;
use settled::ledger::{DamagedRow, DeliveryRow, Filter, Loss};
use settled::model::decide::Effect;
use settled::model::record::RecordType;
use settled::model::{At, Kind, Origin, Outcome, Via};
use settled::polling::rate_limit::{Breaker, Pause, PauseReason, RateLimiterState, ResponseCounts};
use settled::providers::Verdict;
use settled::report::ResponseMeta;

const TIME: &str = "2026-11-21T08:00:00.123Z";

fn text(text: &str) -> String {
    text.to_owned()
}

#[expect(clippy::unnecessary_wraps, reason = "many fields may be null")]
fn some(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn metadata() -> Option<Map<String, Value>> {
    json!({ "order": "4711" }).as_object().cloned()
}

fn run() -> RunView {
    RunView {
        source: text("prod"),
        provider: text("acme"),
        run_id: text("wr_123"),
        kind: Some(Kind::Workflow),
        group_id: some("wpid_9"),
        phase: text("settled"),
        outcome: Some(Outcome::Failed),
        origin: Some(Origin::Webhook),
        confirmed: Some(true),
        provider_status: some("terminated"),
        reason: some("terminated"),
        error: some("the page did not load"),
        metadata: metadata(),
        found_by: Via::Webhook,
        opened_at: text(TIME),
        known_since: text(TIME),
        settled_at: some(TIME),
        overdue: false,
        held: false,
        webhooks: 1,
        first_webhook_at: some(TIME),
        last_webhook_at: some(TIME),
        polls: 2,
        answered_at: some(TIME),
        next_poll_at: some(TIME),
        amendments: 0,
        completion: some("k3v9.42"),
    }
}

fn damaged() -> DamagedRow {
    DamagedRow {
        table: text("runs"),
        source: some("prod"),
        name: text("wr_9"),
    }
}

fn delivery() -> DeliveryRow {
    DeliveryRow {
        id: 7,
        source: text("prod"),
        via: text("webhook"),
        at: text(TIME),
        verdict: some("signed"),
        secret: some("api_key"),
        bytes: 512,
        note: some("not JSON"),
        quarantined: some("processing it failed"),
        runs: vec![text("wr_123")],
    }
}

fn filter() -> Filter {
    Filter {
        types: vec![RecordType::Completion],
        source: vec![text("prod")],
        provider: vec![text("acme")],
        outcome: vec![Outcome::Failed],
        origin: vec![Origin::Webhook],
        group: vec![text("wpid_9")],
    }
}

fn query() -> EventQuery {
    EventQuery {
        types: Some(WordList::Text(text("completion,amendment"))),
        source: Some(WordList::Items(vec![text("prod")])),
        provider: Some(WordList::Text(text("acme"))),
        outcome: Some(WordList::Items(vec![text("failed"), text("timed_out")])),
        origin: Some(WordList::Text(text("webhook"))),
        group: Some(WordList::Text(text("wpid_9"))),
    }
}

fn consumer() -> ConsumerView {
    ConsumerView {
        name: text("mail"),
        acked: text("k3v9.41"),
        head: text("k3v9.42"),
        lag: 1,
        expired: false,
        window: 1_000,
        filter: filter(),
        generation: 3,
        connected: true,
        parked: 0,
        created_at: text(TIME),
        seen_at: text(TIME),
    }
}

fn limiter() -> RateLimiterState {
    RateLimiterState {
        rate: 5.0,
        effective_rate: 2.5,
        tokens: 1.0,
        pause: Some(Pause {
            until: At(1_795_248_060_000),
            reason: PauseReason::RetryAfter,
            why: text("HTTP 429"),
        }),
        breaker: Some(Breaker {
            since: At(1_795_248_000_000),
            why: text("the API key is not accepted (401)"),
            next_probe: At(1_795_248_060_000),
            probes: 1,
        }),
        troubles_in_a_row: 0,
        responses: ResponseCounts {
            ok: 120,
            rate_limited: 1,
            denied: 1,
            unavailable: 0,
        },
    }
}

fn status() -> StatusView {
    let loss = Loss {
        completions: 120,
        synthesized: 3,
        late: 1,
        rate: 0.025,
    };
    StatusView {
        version: text("0.1.0"),
        started_at: text(TIME),
        trouble: some("settled.toml:1: hocks: unknown key"),
        epoch: text("k3v9"),
        head: text("k3v9.42"),
        earliest: text("k3v9.0"),
        open: 4,
        overdue: 0,
        quarantined: 0,
        damaged: vec![damaged()],
        store: StoreView {
            path: text("/var/lib/settled/settled.db"),
            bytes: 1_048_576,
            free_bytes: 4_096,
            wal_bytes: 32_768,
        },
        sources: vec![SourceView {
            name: text("prod"),
            provider: text("acme"),
            configured: true,
            open: 4,
            overdue: 0,
            loss: BTreeMap::from([(text("24h"), loss)]),
            last_webhook_at: some(TIME),
            last_unverified_at: some(TIME),
            last_answer_at: some(TIME),
            limiter: Some(limiter()),
            clock_skew_ms: Some(120),
            unaccounted: 0,
            secrets: vec![SecretView {
                label: text("api_key"),
                last_used_at: some(TIME),
                uses: 117,
                can_go: false,
            }],
            notes: vec![text(
                "polling has stopped: the API key is not accepted (401)",
            )],
        }],
        consumers: vec![consumer()],
    }
}

fn answer() -> ResponseMeta {
    ResponseMeta {
        path: text("/v1/runs/wr_123"),
        status: Some(200),
        failed: some("connection refused"),
        headers: vec![(text("date"), text("Sat, 21 Nov 2026 08:00:00 GMT"))],
        bytes: 512,
        truncated: true,
    }
}

fn event() -> Box<RawValue> {
    RawValue::from_string(text(r#"{"id":"prod:wr_123:completion"}"#)).unwrap()
}

fn line(kind: &str, cursor: bool, data: StreamData) -> StreamLine {
    StreamLine {
        specversion: text("1.0"),
        id: format!("settled.feed.{kind}:k3v9.42"),
        source: text("/settled"),
        line_type: format!("settled.feed.{kind}"),
        time: text(TIME),
        datacontenttype: text("application/json"),
        cursor: cursor.then(|| text("k3v9.42")),
        data,
    }
}

fn error() -> ErrorBody {
    ErrorBody {
        code: text("cursor_expired"),
        message: text("records after this cursor were removed by retention"),
        more: json!({ "earliest": "k3v9.40" })
            .as_object()
            .cloned()
            .unwrap(),
    }
}

/// A filled example of every request and reply, by the name of its block in the document.
fn examples() -> BTreeMap<&'static str, Value> {
    let mut examples = BTreeMap::new();
    let mut add = |name, value: Result<Value, serde_json::Error>| {
        assert!(examples.insert(name, value.unwrap()).is_none(), "{name}");
    };
    macro_rules! add {
        ($($name:literal => $value:expr),+ $(,)?) => { $(add($name, serde_json::to_value($value));)+ };
    }
    add! {
        "TrackRequest" => TrackRequest {
            source: text("prod"), run_id: text("wr_123"), kind: Some(Kind::Workflow),
            group_id: some("wpid_9"), metadata: metadata(),
        },
        "RunView" => run(),
        "RunList" => RunList { runs: vec![run()], damaged: vec![damaged()], next: Some(100) },
        "MissingWebhooks" => MissingWebhooks { runs: vec![run()] },
        "RunDetail" => RunDetail {
            run: run(),
            timeline: vec![TimelineLine {
                at: text(TIME), via: text("webhook"), trust: text("signed"), claim: text("ended"),
                status: some("terminated"), effect: text("settled"), report: 7,
                record: some("k3v9.42"),
            }],
        },
        "PollReply" => PollReply {
            report: 8, learned: true,
            answer: Some(PollAnswer {
                class: AnswerClass::Ok, status: Some(200), reason: some("HTTP 503"),
            }),
            effect: Some(Effect::Settled), run: run(),
        },
        "RetryWebhookRequest" => RetryWebhookRequest { webhook_url: some("https://x.example/hooks") },
        "RetryWebhookReply" => RetryWebhookReply {
            delivered: true, delivered_status: Some(200), error: some("timed out"),
            target_url: some("https://x.example/hooks"), latency_ms: Some(5),
            payload_verdict: Some(Verdict::Signed), effect: Some(Effect::Confirmed),
        },
        "DeliveryList" => DeliveryList { deliveries: vec![delivery()], next: Some(7) },
        "DeliveryView" => DeliveryView {
            row: delivery(), headers: Some(vec![(text("x-signature"), text("[hidden]"))]),
            truncated: false, peer: some("203.0.113.9"), answers: vec![answer()],
        },
        "ReverifyReply" => ReverifyReply { examined: 3, verified: 2, changed: 1 },
        "HealthReply" => HealthReply { status: text("ok") },
        "StatusView" => status(),
        "CreateConsumerRequest" => CreateConsumerRequest {
            start: some("earliest"), filter: query(), window: Some(1_000),
        },
        "ConsumerView" => consumer(),
        "ConsumerList" => ConsumerList { consumers: vec![consumer()] },
        "ConsumerDeleted" => ConsumerDeleted { deleted: text("mail"), parked_dropped: 2 },
        "PositionReply" => PositionReply { acked: text("k3v9.42"), lag: 0 },
        "ParkRequest" => ParkRequest { attempts: 3, error: text("exit status: 7") },
        "ParkedList" => ParkedList {
            parked: vec![ParkedView {
                cursor: text("k3v9.42"), attempts: 3, error: text("exit status: 7"),
                at: text(TIME), retry: false, event: event(),
            }],
            next: Some(42),
        },
        "RetryParkedReply" => RetryParkedReply { to_retry: 1 },
        "DropParkedReply" => DropParkedReply { dropped: 1 },
        "ErrorReply" => ErrorReply { error: error() },
        "hello" => line("hello", true, StreamData::Hello(StreamHello {
            protocol: 1, epoch: text("k3v9"), start: text("k3v9.0"), head: text("k3v9.42"),
            follow: true, heartbeat: 15, filter: filter(), consumer: some("mail"),
            generation: Some(3), window: Some(1_000),
        })),
        "bookmark" => line("bookmark", true, StreamData::Bookmark {}),
        "paused" => line("paused", false, StreamData::Paused(StreamPaused {
            consumer: text("mail"), unacknowledged: 1_000, window: 1_000,
        })),
        "superseded" => line("superseded", false, StreamData::Superseded(StreamSuperseded {
            consumer: text("mail"), by: text("reader"), generation: 4,
        })),
        "end" => line("end", true, StreamData::End(StreamEnd { more: false })),
        "error" => line("error", false, StreamData::Error(error())),
    }
    examples
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md");
    std::fs::read_to_string(path).unwrap()
}

/// The JSON blocks of the document that have a name: ```` ```json NAME ````.
fn blocks(document: &str) -> BTreeMap<&str, Value> {
    let parts = document.split("\n```json ").skip(1);
    parts
        .map(|part| {
            let (name, rest) = part.split_once('\n').unwrap();
            let json = rest.split_once("\n```").unwrap().0;
            let value = serde_json::from_str(json);
            (
                name,
                value.unwrap_or_else(|error| panic!("{name}: {error}")),
            )
        })
        .collect()
}

#[test]
fn every_request_and_reply_is_shown_as_it_is() {
    let document = document();
    let (shown, examples) = (blocks(&document), examples());
    let names = |map: &BTreeMap<&str, Value>| -> BTreeSet<String> {
        map.keys().map(|name| (*name).to_owned()).collect()
    };
    assert_eq!(names(&shown), names(&examples));
    for (name, example) in &examples {
        assert_eq!(
            &shown[name],
            example,
            "the block {name} of docs/api.md should be:\n{}",
            serde_json::to_string_pretty(example).unwrap()
        );
    }
}

#[test]
fn every_line_of_the_stream_is_read_as_it_was_written() {
    for name in ["hello", "bookmark", "paused", "superseded", "end", "error"] {
        let example = &examples()[name];
        let line: StreamLine = serde_json::from_value(example.clone()).unwrap();
        assert_eq!(&serde_json::to_value(&line).unwrap(), example, "{name}");
    }
}

#[test]
fn every_field_has_a_row() {
    fn fields(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    into.insert(name.clone());
                    fields(value, into);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| fields(item, into)),
            _ => {}
        }
    }
    let document = document();
    let rows: String = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let mut names = BTreeSet::new();
    for example in examples().values() {
        fields(example, &mut names);
    }
    // Examples of values that the user or the database names.
    for name in ["order", "24h"] {
        names.remove(name);
    }
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !rows.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/api.md has no row for {missing:?}");
}

#[test]
fn every_route_is_listed() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/mod.rs");
    let source = std::fs::read_to_string(source).unwrap();
    let routes: Vec<&str> = source
        .split(".route(")
        .skip(1)
        .filter_map(|part| part.split('"').nth(1))
        .collect();
    assert!(routes.len() > 15, "{routes:?}");
    let document = document();
    for route in routes {
        assert!(
            document.contains(&format!(" {route}`")),
            "docs/api.md does not list {route}"
        );
    }
}
