//! Firecrawl's dialect against captured deliveries (`tests/vectors/firecrawl/samples.json`: sent by
//! the service's own webhook code and its dispatcher, run on a loopback address) and against the
//! shapes its source builds.

#![expect(clippy::needless_pass_by_value, reason = "bodies are written in place")]

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use settled::model::decide::{Circumstances, Decision, Phase, Publication, decide};
use settled::model::observation::{AnswerPrecedence, Claim, Ending, Observation, Progress};
use settled::model::schedule::Confirm;
use settled::model::{At, Kind, Origin, Outcome, RunId, Trust, Via};
use settled::providers::firecrawl::Firecrawl;
use settled::providers::signature::sign;
use settled::providers::{
    ApiRequest, ApiResponse, Delivery, Headers, Listing, Provider, Reading, Response,
    ResponseClass, RunRef, Settings, Verdict, Webhook, named,
};
use settled::secret::{Key, Keyring, Secret, SecretLabel};

const CRAWL: &str = "01989f60-3c1a-7d2e-9b57-0c6f2a7e1d01";
const EXTRACT: &str = "01989f60-77f0-7c3d-a9d2-93aa10ce5b03";
const CHECK: &str = "01989f60-8e10-7b11-b0aa-f1c8d2e39c04";
const MONITOR: &str = "01989f60-9999-7000-8000-00000000000a";
const NOW: At = At(1_795_247_302_000);
static SETTINGS: Settings = Settings { api: None };

// ── Vectors and hands ───────────────────────────────────────────────────────────────────────────

#[derive(Deserialize)]
struct Sample {
    label: String,
    mode: String,
    headers: Headers,
    body: String,
    secret: Option<String>,
    event: String,
    #[serde(rename = "webhookId")]
    webhook_id: String,
}

impl Sample {
    fn all() -> Vec<Sample> {
        let text = include_str!("../vectors/firecrawl/samples.json");
        let mut file: Value = serde_json::from_str(text).unwrap();
        serde_json::from_value(file["samples"].take()).unwrap()
    }

    fn of(label: &str) -> Sample {
        Sample::all()
            .into_iter()
            .find(|sample| sample.label == label)
            .unwrap()
    }

    fn headers(&self) -> Headers {
        self.headers
            .iter()
            .map(|(name, value)| (name.to_lowercase(), value.clone()))
            .collect()
    }

    fn read(&self) -> Observation {
        said(self.body.as_bytes())
    }
}

fn keyring(secrets: &[&str]) -> Keyring {
    let key = |(i, secret): (usize, &&str)| Key {
        label: SecretLabel(format!("secret {i}")),
        secret: Secret::new(secret),
    };
    Keyring {
        signing: secrets.iter().enumerate().map(key).collect(),
        ..Keyring::default()
    }
}

fn verdict(headers: &Headers, body: &[u8], secrets: &[&str]) -> (Verdict, Option<String>) {
    let delivery = Delivery {
        headers,
        body,
        truncated: false,
        path_token: None,
    };
    let proof = Firecrawl.verify(&delivery, &keyring(secrets), NOW);
    (proof.verdict(), proof.secret().map(|label| label.0.clone()))
}

fn webhook(body: &[u8], trust: Trust, truncated: bool) -> Webhook<'_> {
    Webhook {
        body,
        truncated,
        trust,
        via: Via::Webhook,
        received_at: NOW,
        settings: &SETTINGS,
    }
}

fn read(body: &[u8]) -> Reading {
    Firecrawl.read_webhook(&webhook(body, Trust::Signed, false))
}

fn said(body: &[u8]) -> Observation {
    match read(body) {
        Reading::Said(mut observations) if observations.len() == 1 => observations.remove(0),
        other => panic!("{other:?}"),
    }
}

fn event(event: &str, more: Value) -> Observation {
    let mut body = json!({"success": true, "type": event, "id": CRAWL, "data": []});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    said(body.to_string().as_bytes())
}

fn is_unreadable(body: &[u8]) -> bool {
    matches!(read(body), Reading::Unreadable(_))
}

fn http(status: u16, body: impl ToString) -> ApiResponse {
    ApiResponse::Http(Response {
        status,
        body: body.to_string().into_bytes(),
        ..Response::default()
    })
}

fn run_id(id: &str) -> RunId {
    RunId::new(id).unwrap()
}

fn question(kind: Kind, id: &str, group_id: Option<&str>) -> ApiRequest {
    Firecrawl.status_request(&RunRef {
        guessed: false,
        run_id: &run_id(id),
        kind,
        group_id,
        settings: &SETTINGS,
    })
}

fn asked(kind: Kind, answers: &[ApiResponse]) -> Observation {
    let group_id = (kind == Kind::MonitorCheck).then_some(MONITOR);
    let subject = RunRef {
        guessed: false,
        run_id: &run_id(CRAWL),
        kind,
        group_id,
        settings: &SETTINGS,
    };
    Firecrawl.read_status(&subject, answers, NOW)
}

fn state(kind: Kind, body: Value) -> Observation {
    asked(kind, &[http(200, body)])
}

fn outcome(observation: &Observation) -> Option<(Outcome, bool)> {
    match observation.claim {
        Claim::Ended(ending) => Some((ending.outcome, ending.sufficient)),
        _ => None,
    }
}

const OPEN: Claim = Claim::Open(Progress::Started);

// ── Who sent it (§4.3) ──────────────────────────────────────────────────────────────────────────

#[test]
fn every_captured_signature_verifies_and_names_its_secret() {
    let samples = Sample::all();
    assert!(samples.len() >= 21);
    for sample in samples {
        let expected = match &sample.secret {
            Some(_) => (Verdict::Signed, Some("secret 1".to_owned())),
            None => (Verdict::Unsigned, None),
        };
        let secret = sample.secret.as_deref().unwrap_or("other");
        let found = verdict(
            &sample.headers(),
            sample.body.as_bytes(),
            &["not this one", secret],
        );
        assert_eq!(found, expected, "{}", sample.label);
    }
}

#[test]
fn a_wrong_secret_and_a_changed_byte_are_bad_signatures() {
    for sample in Sample::all()
        .iter()
        .filter(|sample| sample.secret.is_some())
    {
        let secret = sample.secret.as_deref().unwrap();
        let headers = sample.headers();
        assert_eq!(
            verdict(&headers, sample.body.as_bytes(), &["wrong"]).0,
            Verdict::BadSignature
        );
        let changed = sample
            .body
            .replacen("true", "true ", 1)
            .replacen("false", "false ", 1);
        assert_eq!(
            verdict(&headers, changed.as_bytes(), &[secret]).0,
            Verdict::BadSignature,
            "{}",
            sample.label
        );
    }
}

#[test]
fn without_a_header_it_is_unsigned_and_without_a_secret_nothing_can_be_known() {
    let sample = Sample::of("crawl.completed with no HMAC secret configured");
    assert_eq!(
        verdict(&sample.headers(), sample.body.as_bytes(), &["s"]).0,
        Verdict::Unsigned
    );
    assert_eq!(
        verdict(&sample.headers(), sample.body.as_bytes(), &[]).0,
        Verdict::NoSecret
    );
    let signed = Sample::of("crawl.completed");
    assert_eq!(
        verdict(&signed.headers(), signed.body.as_bytes(), &[]).0,
        Verdict::NoSecret
    );
    let delivery = Delivery {
        headers: &signed.headers(),
        body: b"{",
        truncated: true,
        path_token: None,
    };
    assert_eq!(
        Firecrawl.verify(&delivery, &keyring(&["s"]), NOW).verdict(),
        Verdict::Truncated
    );
}

#[test]
fn only_sha256_and_64_lower_case_digits_are_a_signature() {
    let good = sign("s", &[b"{}"]);
    let check = |value: &str| {
        verdict(
            &vec![("x-firecrawl-signature".into(), value.into())],
            b"{}",
            &["s"],
        )
        .0
    };
    assert_eq!(check(&format!("sha256={good}")), Verdict::Signed);
    for bad in [
        good.clone(),
        format!("sha256={}", good.to_uppercase()),
        format!("SHA256={good}"),
        format!("sha1={good}"),
        "sha256=".into(),
        String::new(),
        format!("sha256={good}{good}"),
    ] {
        assert_eq!(check(&bad), Verdict::BadSignature, "{bad}");
    }
}

// ── What it says (§4.1, §4.2) ───────────────────────────────────────────────────────────────────

#[test]
fn every_captured_delivery_is_read_as_the_table_says() {
    for sample in Sample::all() {
        let observation = sample.read();
        let (kind, claim) = match sample.event.as_str() {
            "crawl.started" | "crawl.page" => (Kind::Crawl, None),
            "crawl.completed" => (Kind::Crawl, Some((Outcome::Succeeded, false))),
            "batch_scrape.started" | "batch_scrape.page" => (Kind::BatchScrape, None),
            "batch_scrape.completed" => (Kind::BatchScrape, Some((Outcome::Succeeded, false))),
            "extract.started" => (Kind::Extract, None),
            "extract.completed" => (Kind::Extract, Some((Outcome::Succeeded, true))),
            "extract.failed" => (Kind::Extract, Some((Outcome::Failed, true))),
            "monitor.page" => (Kind::MonitorCheck, None),
            "monitor.check.completed" => (Kind::MonitorCheck, Some((Outcome::Succeeded, true))),
            other => panic!("{other}"),
        };
        assert_eq!(observation.kind, Some(kind), "{}", sample.label);
        assert_eq!(outcome(&observation), claim, "{}", sample.label);
        assert!(
            claim.is_some() || observation.claim == OPEN,
            "{}",
            sample.label
        );
        assert_eq!(
            observation.detail.metadata.as_ref().unwrap()["order"],
            "42",
            "{}",
            sample.label
        );
        let body: Value = serde_json::from_str(&sample.body).unwrap();
        assert_eq!(body["id"], observation.run_id.as_str());
        assert_eq!(body["webhookId"], sample.webhook_id);
        assert_eq!(
            (observation.trust, observation.via, observation.requested_at),
            (Trust::Signed, Via::Webhook, NOW)
        );
    }
}

#[test]
fn retries_of_one_event_differ_in_bytes_and_say_the_same() {
    let mut pairs = 0;
    for first in Sample::all()
        .iter()
        .filter(|sample| sample.mode == "dispatcher" && sample.label.ends_with('1'))
    {
        let second = Sample::of(&first.label.replace("attempt 1", "attempt 2"));
        assert_ne!(first.body, second.body);
        assert_ne!(
            first.headers(),
            second.headers(),
            "so their signatures differ too"
        );
        assert_eq!(first.read(), second.read(), "and yet they say the same");
        pairs += 1;
    }
    assert_eq!(pairs, 3);
}

#[test]
fn an_extracts_and_an_agents_end_carry_their_counters_and_error() {
    let extract = Sample::of("extract.completed").read();
    let counters = json!({"totalUrlsScraped": 1, "tokensBilled": 300, "creditsBilled": 20, "llmUsage": 0.002_011_8});
    assert_eq!(Value::from(extract.detail.counters.unwrap()), counters);
    let failed = Sample::of("extract.failed").read();
    assert_eq!(failed.detail.provider_status.as_deref(), Some("failed"));
    assert!(
        failed
            .detail
            .error
            .unwrap()
            .starts_with("All provided URLs are invalid")
    );
    let agent = event(
        "agent.failed",
        json!({"success": false, "data": [{"creditsUsed": 8}], "error": "Max credits exceeded"}),
    );
    assert_eq!(agent.detail.error.as_deref(), Some("Max credits exceeded"));
    assert_eq!(
        Value::from(agent.detail.counters.unwrap()),
        json!({"creditsUsed": 8})
    );
}

#[test]
fn agent_events_settle_alone_each_by_its_name() {
    let ends = ["agent.completed", "agent.failed", "agent.cancelled"]
        .map(|name| outcome(&event(name, json!({}))));
    let expected =
        [Outcome::Succeeded, Outcome::Failed, Outcome::Cancelled].map(|end| Some((end, true)));
    assert_eq!(ends, expected);
    assert_eq!(event("agent.started", json!({})).claim, OPEN);
    assert_eq!(
        event(
            "agent.action",
            json!({"data": [{"action": "scrape", "creditsUsed": 5}]})
        )
        .claim,
        OPEN
    );
}

#[test]
fn ends_that_only_the_docs_know_are_taken_but_want_an_answer() {
    for family in ["crawl", "batch_scrape"] {
        assert_eq!(
            outcome(&event(&format!("{family}.failed"), json!({}))),
            Some((Outcome::Failed, false))
        );
        assert_eq!(
            outcome(&event(&format!("{family}.cancelled"), json!({}))),
            Some((Outcome::Cancelled, false))
        );
    }
    assert_eq!(
        outcome(&event("extract.cancelled", json!({}))),
        Some((Outcome::Cancelled, false))
    );
}

#[test]
fn without_a_verified_signature_no_word_is_enough() {
    for sample in ["extract.completed", "monitor.check.completed"] {
        let body = Sample::of(sample).body;
        for trust in [Trust::SharedSecret, Trust::Hint] {
            let Reading::Said(said) =
                Firecrawl.read_webhook(&webhook(body.as_bytes(), trust, false))
            else {
                panic!()
            };
            assert_eq!(outcome(&said[0]), Some((Outcome::Succeeded, false)));
            assert_eq!(said[0].trust, trust);
        }
    }
}

#[test]
fn a_monitor_check_ends_as_its_status_says_in_an_array_or_an_object() {
    for (status, expected, reason) in [
        ("completed", Outcome::Succeeded, None),
        ("failed", Outcome::Failed, None),
        ("partial", Outcome::Failed, Some("partial")),
        (
            "skipped_overlap",
            Outcome::Cancelled,
            Some("skipped_overlap"),
        ),
    ] {
        let data = json!({"monitorId": MONITOR, "checkId": CRAWL, "status": status, "summary": {"totalPages": 2, "error": 1}});
        for data in [json!([data]), data] {
            let check = event(
                "monitor.check.completed",
                json!({"success": status == "completed", "data": data}),
            );
            assert_eq!(outcome(&check), Some((expected, true)), "{status}");
            assert_eq!(check.detail.reason.as_deref(), reason);
            assert_eq!(check.detail.provider_status.as_deref(), Some(status));
            assert_eq!(check.detail.group_id.as_deref(), Some(MONITOR));
            assert_eq!(check.detail.counters.unwrap()["error"], 1);
        }
    }
}

#[test]
fn a_check_that_ended_in_a_way_we_do_not_know_is_told_by_its_flag_and_confirmed() {
    let of = |success: Value| {
        event(
            "monitor.check.completed",
            json!({"success": success, "data": [{"status": "new"}]}),
        )
    };
    assert_eq!(outcome(&of(json!(true))), Some((Outcome::Succeeded, false)));
    assert_eq!(outcome(&of(json!(false))), Some((Outcome::Failed, false)));
    assert_eq!(of(json!(null)).claim, OPEN);
}

#[test]
fn a_monitor_page_opens_its_check_under_its_monitor() {
    let page = Sample::of("monitor.page").read();
    assert_eq!(
        (page.run_id.as_str(), page.detail.group_id.as_deref()),
        (CHECK, Some(MONITOR))
    );
    assert_eq!(page.detail.error, None);
}

#[test]
fn the_error_of_a_page_is_not_the_runs() {
    for label in [
        "crawl.page failed url",
        "crawl.page cancelled url",
        "batch_scrape.page failed url",
    ] {
        let page = Sample::of(label).read();
        assert_eq!(
            (page.claim, page.detail.error, page.detail.provider_status),
            (OPEN, None, None)
        );
    }
}

#[test]
fn an_old_envelope_names_its_job_id_and_is_read_all_the_same() {
    let old = said(
        format!(r#"{{"success":true,"type":"crawl.completed","jobId":"{CRAWL}","data":[{{}}]}}"#)
            .as_bytes(),
    );
    assert_eq!(old.run_id.as_str(), CRAWL);
    assert_eq!(old.detail.metadata, None);
}

#[test]
fn unknown_types_are_never_refused() {
    for known_family in [
        "crawl.paused",
        "batch_scrape.x",
        "extract.progress",
        "agent.thought",
    ] {
        assert_eq!(
            event(known_family, json!({})).claim,
            Claim::Open(Progress::Waiting),
            "{known_family}"
        );
    }
    for other in [
        "threat_protection.test",
        "threat_protection.check_batch",
        "schedule.started",
        "monitor.paused",
        "x",
    ] {
        let body =
            json!({"type": other, "batchId": "b", "sentAt": "2026-11-21T08:00:00Z", "events": []});
        assert_eq!(
            read(body.to_string().as_bytes()),
            Reading::Said(vec![]),
            "{other}"
        );
    }
}

#[test]
fn a_body_without_a_type_or_a_usable_id_is_unreadable() {
    assert!(is_unreadable(
        format!(r#"{{"success":true,"id":"{CRAWL}"}}"#).as_bytes()
    ));
    for id in [
        "",
        r#","id":null"#,
        r#","id":7"#,
        r#","id":"""#,
        r#","id":"a b""#,
        r#","id":"a\u0000""#,
        r#","id":{}"#,
    ] {
        assert!(
            is_unreadable(format!(r#"{{"type":"crawl.completed"{id}}}"#).as_bytes()),
            "{id}"
        );
    }
    let long = "x".repeat(201);
    assert!(is_unreadable(
        format!(r#"{{"type":"crawl.completed","id":"{long}"}}"#).as_bytes()
    ));
}

#[test]
fn a_body_that_was_cut_off_gives_its_run_as_a_hint() {
    let body = format!(
        r#"{{"success":true,"type":"extract.completed","id":"{EXTRACT}","data":[{{"x":"cut"#
    );
    let Reading::Said(said) = Firecrawl.read_webhook(&webhook(body.as_bytes(), Trust::Hint, true))
    else {
        panic!()
    };
    assert_eq!(
        (said[0].run_id.as_str(), said[0].kind),
        (EXTRACT, Some(Kind::Extract))
    );
    assert!(
        is_unreadable(body.as_bytes()),
        "the same without being cut off by us"
    );
}

// ── Poison ──────────────────────────────────────────────────────────────────────────────────────

#[test]
fn poison_is_unreadable_or_harmless_and_never_panics() {
    let deep = "[".repeat(1_000_000);
    let tail = format!(r#""type":"crawl.completed","id":"{CRAWL}"}}"#);
    let whole = |head: &str| format!("{{{head},{tail}");
    let unreadable: [Vec<u8>; 10] = [
        vec![],
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"crawl.completed\"".to_vec(),
        b"success=true&type=crawl.completed".to_vec(),
        deep.clone().into_bytes(),
        whole(r#""id":"a"#).into_bytes(),
        [b"\xef\xbb\xbf".as_slice(), whole(r#""a":1"#).as_bytes()].concat(),
        [
            b"{\"type\":\"crawl.\xff\",".as_slice(),
            tail.replace("type", "t").as_bytes(),
        ]
        .concat(),
        [whole(r#""a":1"#).as_bytes(), b"{}"].concat(),
    ];
    for body in &unreadable {
        assert!(
            is_unreadable(body),
            "{}",
            String::from_utf8_lossy(&body[..body.len().min(80)])
        );
    }
    let closed = format!("{deep}{}", "]".repeat(1_000_000));
    for head in [
        r#""type":"old","id":"old""#,
        r#""data":1e999,"n":123456789012345678901234567890"#,
        r#""data":null,"metadata":null,"error":null,"webhookId":null,"success":null"#,
        r#""data":{},"metadata":[],"error":{},"webhookId":7,"success":"yes""#,
        r#""error":"a\u0000b\ud800""#,
        &format!(r#""data":{closed}"#),
        &format!(r#""metadata":{closed}"#),
        &format!(r#""metadata":{{"a":{closed}}}"#),
    ] {
        let observation = said(whole(head).as_bytes());
        assert_eq!(
            observation.run_id.as_str(),
            CRAWL,
            "the last of several keys counts"
        );
        assert_eq!(outcome(&observation), Some((Outcome::Succeeded, false)));
    }
    let nulls =
        br#"{"success":null,"type":null,"id":null,"webhookId":null,"data":null,"metadata":null}"#;
    assert!(is_unreadable(nulls));
    assert!(matches!(
        said(
            whole("\"b\":\"\u{0}\"")
                .replace('\u{0}', "\\u0000")
                .as_bytes()
        )
        .claim,
        Claim::Ended(_)
    ));
    assert!(
        is_unreadable(whole("\"b\":\"\u{0}\"").as_bytes()),
        "a naked NUL is not JSON"
    );
}

#[test]
fn poison_in_an_answer_says_nothing() {
    for body in [
        "",
        "[]",
        "<html>",
        "null",
        r#"{"status":7}"#,
        r#"{"status":""}"#,
        r#"{"success":false}"#,
    ] {
        for kind in [Kind::Crawl, Kind::Extract, Kind::Agent, Kind::MonitorCheck] {
            assert_eq!(
                asked(kind, &[http(200, body)]).claim,
                Claim::Nothing,
                "{body}"
            );
        }
    }
    let cut = format!(
        r#"{{"success":true,"status":"completed","data":[{}"#,
        "[".repeat(100_000)
    );
    assert_eq!(
        asked(Kind::Crawl, &[http(200, &cut)]).claim,
        Claim::Nothing,
        "broken, though not cut off by us"
    );
}

#[test]
fn a_page_of_40_megabytes_is_read_without_being_taken_apart() {
    let document =
        r#"{"rawHtml":"<p>x</p>","links":["https://example.com/"],"metadata":{"statusCode":200}},"#;
    let data = document.repeat(40 * 1024 * 1024 / document.len());
    let body = format!(
        r#"{{"success":true,"type":"crawl.page","data":[{data}{{}}],"id":"{CRAWL}","webhookId":"w","metadata":{{}}}}"#
    );
    assert!(body.len() > 40_000_000);
    let begun = Instant::now();
    let observation = said(body.as_bytes());
    let taken = begun.elapsed();
    assert_eq!(observation.claim, OPEN);
    // Unoptimised it takes less than a second; the bound is for a busy machine.
    assert!(taken < Duration::from_secs(10), "{taken:?}");
}

// ── What we ask (§1, §2.2) ──────────────────────────────────────────────────────────────────────

#[test]
fn each_kind_has_its_address_and_crawls_are_read_past_their_end() {
    for (kind, path) in [
        (
            Kind::Crawl,
            format!("/v2/crawl/{CRAWL}?skip=1000000&limit=1"),
        ),
        (
            Kind::BatchScrape,
            format!("/v2/batch/scrape/{CRAWL}?skip=1000000&limit=1"),
        ),
        (Kind::Extract, format!("/v2/extract/{CRAWL}")),
        (Kind::Agent, format!("/v2/agent/{CRAWL}")),
        (
            Kind::MonitorCheck,
            format!("/v2/monitor/{MONITOR}/checks/{CRAWL}?limit=1"),
        ),
    ] {
        let question = question(kind, CRAWL, Some(MONITOR));
        assert_eq!(question.path, path);
        let whole = matches!(kind, Kind::Extract | Kind::Agent);
        assert_eq!(question.bytes_max > ApiRequest::BYTES_MAX, whole, "{kind}");
    }
    assert_eq!(
        question(Kind::Crawl, "../a?b#c", None).path,
        "/v2/crawl/..%2Fa%3Fb%23c?skip=1000000&limit=1"
    );
    let provider = named("firecrawl").unwrap();
    assert_eq!(provider.base_url(), "https://api.firecrawl.dev");
    assert_eq!(provider.key_header(), ("Authorization", "Bearer "));
    assert_eq!(
        provider.environment().webhook_secret,
        Some("FIRECRAWL_WEBHOOK_SECRET")
    );
}

#[test]
fn a_check_whose_monitor_nobody_named_is_never_concluded_about() {
    assert_eq!(
        question(Kind::MonitorCheck, CHECK, None).path,
        "/v2/team/queue-status"
    );
    let subject = RunRef {
        guessed: false,
        run_id: &run_id(CHECK),
        kind: Kind::MonitorCheck,
        group_id: None,
        settings: &SETTINGS,
    };
    for answer in [
        http(200, r#"{"success":true,"status":"completed"}"#),
        http(404, "{}"),
    ] {
        assert_eq!(
            Firecrawl
                .read_status(&subject, std::slice::from_ref(&answer), NOW)
                .claim,
            Claim::Nothing
        );
        assert_eq!(Firecrawl.follow_up(&subject, &[answer]), None);
    }
}

// ── What is answered (§2.1, §2.4, §2.5) ─────────────────────────────────────────────────────────

#[test]
fn every_state_is_read_as_the_table_says() {
    use Outcome::{Cancelled, Failed, Succeeded};
    let ends = [
        ("completed", Succeeded),
        ("failed", Failed),
        ("cancelled", Cancelled),
    ];
    for (kind, open) in [
        (Kind::Crawl, "scraping"),
        (Kind::BatchScrape, "scraping"),
        (Kind::Extract, "processing"),
        (Kind::Agent, "processing"),
    ] {
        for (word, expected) in ends {
            let found = state(kind, json!({"success": true, "status": word, "data": []}));
            assert_eq!(
                outcome(&found).map(|end| end.0),
                Some(expected),
                "{kind} {word}"
            );
            assert_eq!(found.detail.provider_status.as_deref(), Some(word));
        }
        assert_eq!(
            state(kind, json!({"success": true, "status": open})).claim,
            OPEN
        );
        let unknown = state(kind, json!({"success": true, "status": "paused"}));
        assert_eq!(unknown.claim, Claim::Open(Progress::Waiting));
        assert_eq!(unknown.detail.provider_status.as_deref(), Some("paused"));
    }
}

#[test]
fn an_answer_never_teaches_a_kind_that_was_only_guessed() {
    assert_eq!(state(Kind::Crawl, json!({"status": "scraping"})).kind, None);
    assert_eq!(Firecrawl.kind_of(&run_id(CRAWL), &SETTINGS), Kind::Crawl);
}

#[test]
fn a_kickoff_failure_is_a_200_that_failed() {
    let body = json!({"success": false, "status": "failed", "error": "Queue full", "completed": 0, "total": 0, "data": []});
    let found = state(Kind::Crawl, body);
    assert_eq!(outcome(&found), Some((Outcome::Failed, false)));
    assert_eq!(found.detail.error.as_deref(), Some("Queue full"));
}

#[test]
fn a_crawl_without_a_single_good_page_is_completed_with_a_reason() {
    let found = state(
        Kind::Crawl,
        json!({"success": true, "status": "completed", "completed": 0, "total": 0}),
    );
    assert_eq!(outcome(&found), Some((Outcome::Succeeded, false)));
    assert_eq!(found.detail.reason.as_deref(), Some("no_pages"));
    let found = state(
        Kind::Crawl,
        json!({"success": true, "status": "completed", "completed": 3, "total": 3}),
    );
    assert_eq!(found.detail.reason, None);
}

#[test]
fn counters_and_times_are_kept_and_minus_one_is_not_a_count() {
    let body = json!({
        "success": true, "status": "completed", "completed": 3, "total": 4, "creditsUsed": -1, "duration": 12.5,
        "createdAt": "2026-11-21T07:00:00.000Z", "completedAt": "2026-11-21T07:01:00.000Z",
        "expiresAt": "2026-11-22T07:01:00.000Z", "data": [],
    });
    let detail = state(Kind::Crawl, body).detail;
    assert_eq!(
        Value::from(detail.counters.unwrap()),
        json!({"completed": 3, "total": 4, "duration": 12.5})
    );
    assert_eq!(
        detail
            .provider_time
            .unwrap()
            .since(detail.opened_at.unwrap()),
        Duration::from_secs(60)
    );
    let tokens = state(
        Kind::Extract,
        json!({"status": "completed", "tokensUsed": 300, "data": {"a": 1}}),
    )
    .detail;
    assert_eq!(tokens.counters.unwrap()["tokensUsed"], 300);
}

#[test]
fn a_failed_extract_is_a_200_without_success() {
    let found = state(
        Kind::Extract,
        json!({"success": false, "data": [], "status": "failed", "error": "No URLs"}),
    );
    assert_eq!(
        (outcome(&found), found.detail.error.as_deref()),
        (Some((Outcome::Failed, false)), Some("No URLs"))
    );
}

#[test]
fn a_failed_agent_may_have_been_cancelled() {
    let found = state(
        Kind::Agent,
        json!({"success": true, "status": "failed", "creditsUsed": 3}),
    );
    let expected = Ending {
        covers: Some(Outcome::Cancelled),
        ..Ending::needs_answer(Outcome::Failed)
    };
    assert_eq!(found.claim, Claim::Ended(expected));
}

#[test]
fn an_agents_state_is_read_from_the_head_of_a_result_that_was_cut_off() {
    let cut = |body: &str| {
        let response = Response {
            status: 200,
            body: body.into(),
            truncated: true,
            ..Response::default()
        };
        asked(
            if body.contains("\"data\":{\"a\"") {
                Kind::Agent
            } else {
                Kind::Extract
            },
            &[ApiResponse::Http(response)],
        )
    };
    let agent = cut(r#"{"success":true,"status":"completed","data":{"a":"0123"#);
    assert_eq!(outcome(&agent), Some((Outcome::Succeeded, false)));
    let extract = cut(r#"{"success":true,"data":{"b":[1,2"#);
    assert_eq!(
        extract.claim,
        Claim::Nothing,
        "an extract's state stands behind its data: not read, not guessed"
    );
}

#[test]
fn a_monitor_checks_state_is_inside_its_data() {
    let body = |status: &str| {
        json!({"success": true, "data": {
            "id": CRAWL, "monitorId": MONITOR, "status": status, "createdAt": "2026-11-21T07:00:00Z",
            "finishedAt": "2026-11-21T07:01:00Z", "actualCredits": 2, "error": null,
            "summary": {"totalPages": 2, "changed": 1}, "pages": [{"status": "changed"}],
        }})
    };
    for (word, expected) in [
        ("completed", Outcome::Succeeded),
        ("failed", Outcome::Failed),
        ("partial", Outcome::Failed),
        ("skipped_overlap", Outcome::Cancelled),
    ] {
        let found = state(Kind::MonitorCheck, body(word));
        assert_eq!(outcome(&found), Some((expected, false)), "{word}");
        let counters = json!({"actualCredits": 2, "changed": 1, "totalPages": 2});
        assert_eq!(Value::from(found.detail.counters.unwrap()), counters);
        assert!(found.detail.provider_time.is_some());
    }
    assert_eq!(state(Kind::MonitorCheck, body("running")).claim, OPEN);
    assert_eq!(
        state(Kind::MonitorCheck, body("queued")).claim,
        Claim::Open(Progress::Waiting)
    );
    assert_eq!(
        state(Kind::MonitorCheck, body("cancelled")).claim,
        Claim::Open(Progress::Waiting),
        "not one of its words"
    );
}

// ── Absence (§2.6, §2.8) ────────────────────────────────────────────────────────────────────────

#[test]
fn a_404_counts_only_beside_a_canary_that_worked() {
    let gone = || http(404, r#"{"success":false,"error":"Job not found"}"#);
    let subject = RunRef {
        guessed: false,
        run_id: &run_id(CRAWL),
        kind: Kind::Crawl,
        group_id: None,
        settings: &SETTINGS,
    };
    let canary = Firecrawl.follow_up(&subject, &[gone()]).unwrap();
    assert_eq!(canary, Firecrawl.canary_request(&SETTINGS));
    assert_eq!(
        Firecrawl.follow_up(&subject, &[gone(), http(200, "{}")]),
        None
    );
    let claim = |canary: ApiResponse| asked(Kind::Crawl, &[gone(), canary]).claim;
    assert_eq!(claim(http(200, r#"{"success":true}"#)), Claim::Missing);
    for bad in [
        http(401, "{}"),
        http(403, "{}"),
        http(404, "{}"),
        http(429, "{}"),
        http(500, "{}"),
    ] {
        assert_eq!(claim(bad), Claim::Nothing);
    }
    assert_eq!(asked(Kind::Crawl, &[gone()]).claim, Claim::Nothing);
    assert_eq!(
        asked(Kind::Crawl, &[http(404, "Job expired"), http(200, "{}")]).claim,
        Claim::Missing,
        "not by text"
    );
}

#[test]
fn an_id_that_is_no_uuid_is_refused_with_400_and_follows_the_same_ladder() {
    let ask = |id: &str, answers: &[ApiResponse]| {
        let subject = RunRef {
            guessed: false,
            run_id: &run_id(id),
            kind: Kind::Crawl,
            group_id: None,
            settings: &SETTINGS,
        };
        (
            Firecrawl.follow_up(&subject, &answers[..1]).is_some(),
            Firecrawl.read_status(&subject, answers, NOW).claim,
        )
    };
    let answers = [
        http(400, r#"{"success":false,"error":"Invalid job ID"}"#),
        http(200, "{}"),
    ];
    assert_eq!(ask("my-crawl", &answers), (true, Claim::Missing));
    assert_eq!(
        ask(CRAWL, &answers),
        (false, Claim::Nothing),
        "a 400 for a good id is about our query"
    );
}

#[test]
fn refusals_failures_and_troubles_say_nothing_about_a_run() {
    for kind in [Kind::Crawl, Kind::Extract, Kind::Agent] {
        for status in [100, 301, 401, 402, 403, 409, 429, 500, 502, 503] {
            let answer = http(status, r#"{"success":false,"status":"failed","error":"x"}"#);
            assert_eq!(
                asked(kind, &[answer]).claim,
                Claim::Nothing,
                "{kind} {status}"
            );
        }
        assert_eq!(
            asked(
                kind,
                &[ApiResponse::Failed {
                    what: "timed out".into()
                }]
            )
            .claim,
            Claim::Nothing
        );
        assert_eq!(asked(kind, &[]).claim, Claim::Nothing);
    }
}

#[test]
fn a_429_is_obeyed_by_header_then_by_text_then_for_a_minute() {
    let wait = |headers: Headers, body: &str| {
        let response = Response {
            status: 429,
            headers,
            body: body.into(),
            truncated: false,
        };
        match Firecrawl.classify(&ApiResponse::Http(response)) {
            ResponseClass::RateLimited { retry_after } => retry_after.unwrap().as_secs(),
            other => panic!("{other:?}"),
        }
    };
    let text = r#"{"success":false,"error":"Rate limit exceeded. Consumed (req/min): 501, Remaining (req/min): 0. Upgrade your plan at https://firecrawl.dev/pricing for increased rate limits or please retry after 42s, resets at Sat Nov 21 2026"}"#;
    assert_eq!(wait(vec![("retry-after".into(), "7".into())], text), 7);
    assert_eq!(wait(vec![], text), 42);
    for other in [
        "",
        "{}",
        "please retry after s",
        "please retry after 999999999999999999999s",
        "retry after 86401s",
    ] {
        assert_eq!(wait(vec![], other), 60, "{other}");
    }
}

#[test]
fn the_account_is_heard_apart_from_the_run() {
    let hear = |status| Firecrawl.classify(&http(status, "{}"));
    assert!(
        matches!(hear(401), ResponseClass::Denied { .. })
            && matches!(hear(403), ResponseClass::Denied { .. })
    );
    assert!(
        matches!(hear(500), ResponseClass::Unavailable { .. })
            && matches!(hear(503), ResponseClass::Unavailable { .. })
    );
    assert_eq!(
        [hear(200), hear(400), hear(402), hear(404), hear(501)],
        [const { ResponseClass::Ok }; 5]
    );
}

// ── Lists (§2.7) ────────────────────────────────────────────────────────────────────────────────

fn page(page: Option<&str>, body: &Value) -> Listing {
    Firecrawl.read_list(page, &http(200, body), &SETTINGS, NOW)
}

#[test]
fn a_sweep_reads_the_crawls_under_way_and_then_each_list_of_the_day() {
    let mut paths = vec![];
    let mut next: Option<String> = None;
    loop {
        paths.push(
            Firecrawl
                .list_request(next.as_deref(), &SETTINGS)
                .unwrap()
                .path,
        );
        next = page(
            next.as_deref(),
            &json!({"success": true, "data": [], "cursor": null, "has_more": false}),
        )
        .next;
        if next.is_none() {
            break;
        }
    }
    let activity = |endpoint: &str| format!("/v2/team/activity?endpoint={endpoint}&limit=100");
    let lists = ["crawl", "batch_scrape", "extract", "agent"].map(activity);
    assert_eq!(
        paths,
        [&["/v2/crawl/active".to_owned()], lists.as_slice()].concat()
    );
    assert_eq!(Firecrawl.list_request(Some("nonsense"), &SETTINGS), None);
}

#[test]
fn a_listed_run_is_known_by_its_kind_and_birth_and_its_state_is_left_open() {
    let row = json!({"id": CRAWL, "teamId": "t", "url": "u", "created_at": "2026-11-21T07:00:00.000Z", "options": {}});
    let crawls = page(
        None,
        &json!({"success": true, "crawls": [row, {"id": null}, 7, {"id": ""}]}),
    );
    assert_eq!(crawls.runs.len(), 1);
    let born = crawls.runs[0].detail.opened_at;
    assert_eq!(born, Some(At(1_795_244_400_000)));
    // The activity's store writes times with a space and no zone.
    let rows = json!([{"id": EXTRACT, "endpoint": "extract", "api_version": "v2", "created_at": "2026-11-21 07:00:00.000", "target": null}]);
    let extracts = page(
        Some("extract/1/"),
        &json!({"success": true, "data": rows, "cursor": null, "has_more": false}),
    );
    assert_eq!(extracts.runs[0].detail.opened_at, born);
    assert_eq!(
        (crawls.runs[0].kind, extracts.runs[0].kind),
        (Some(Kind::Crawl), Some(Kind::Extract))
    );
    // A crawl under way spares its own question; what merely happened today may be over.
    for (run, claim) in [
        (&crawls.runs[0], Claim::Listed { over: false }),
        (&extracts.runs[0], Claim::Tracked),
    ] {
        assert_eq!(
            (&run.claim, run.trust, run.via),
            (&claim, Trust::Authoritative, Via::Sweep)
        );
    }
}

#[test]
fn cursors_are_followed_for_a_bounded_number_of_pages() {
    let body = json!({"success": true, "data": [], "cursor": "MjAy/Ni0=", "has_more": true});
    let second = page(Some("crawl/1/"), &body).next.unwrap();
    let path = Firecrawl
        .list_request(Some(&second), &SETTINGS)
        .unwrap()
        .path;
    assert_eq!(
        path,
        "/v2/team/activity?endpoint=crawl&limit=100&cursor=MjAy%2FNi0%3D"
    );
    let mut next = Some(second);
    let mut pages = 1;
    while let Some(page_name) = next {
        pages += 1;
        assert!(pages < 1000, "a cursor that never ends");
        next = page(Some(&page_name), &body).next;
    }
    assert_eq!(pages, 80);
}

#[test]
fn a_service_without_lists_ends_the_sweep_in_silence() {
    for status in [404, 500, 501, 403] {
        let answer = http(status, r#"{"success":false,"error":"only if configured"}"#);
        assert_eq!(
            Firecrawl.read_list(Some("crawl/1/"), &answer, &SETTINGS, NOW),
            Listing::default()
        );
    }
    let broken = ApiResponse::Failed {
        what: "reset".into(),
    };
    assert_eq!(
        Firecrawl.read_list(None, &broken, &SETTINGS, NOW),
        Listing::default()
    );
    for body in [
        "",
        "[]",
        "<html>",
        r#"{"success":true,"crawls":[{"id":"cut o"#,
    ] {
        let listing = Firecrawl.read_list(None, &http(200, body), &SETTINGS, NOW);
        assert_eq!(
            (listing.runs, listing.next.as_deref()),
            (vec![], Some("crawl/1/")),
            "the sweep goes on: {body}"
        );
    }
}

// ── Policy, and the whole way through the decision ──────────────────────────────────────────────

#[test]
fn each_kind_has_its_patience() {
    let hours = |kind| {
        let policy = Firecrawl.policy(kind);
        (
            policy.deadline.as_secs() / 3600,
            policy.give_up.as_secs() / 3600,
        )
    };
    for kind in [None, Some(Kind::Crawl), Some(Kind::BatchScrape)] {
        assert_eq!(hours(kind), (48, 168));
    }
    assert_eq!(hours(Some(Kind::Extract)), (6, 48));
    assert_eq!(hours(Some(Kind::Agent)), (24, 168));
    let policy = Firecrawl.policy(None);
    assert_eq!(
        (policy.grace, policy.answer_precedence, policy.confirm),
        (Duration::ZERO, AnswerPrecedence::FirstWins, Confirm::Auto)
    );
    assert_eq!(
        (policy.confirm_timeout, policy.listed_for),
        (Duration::from_secs(60), Duration::ZERO)
    );
}

/// Feeds observations to the decision, a second apart.
fn told_in_order(kind: Kind, said: impl IntoIterator<Item = Observation>) -> Vec<Decision> {
    let policy = Firecrawl.policy(Some(kind));
    let mut run = None;
    let mut decisions = vec![];
    for (i, mut observation) in (1..).zip(said) {
        let now = NOW.plus(Duration::from_secs(i));
        observation.requested_at = now;
        let at = Circumstances {
            policy: &policy,
            now,
            report: i.try_into().unwrap(),
            seed: 1,
            since: At(0),
            found_at: None,
        };
        let decision = decide(run.take(), &observation, &at);
        run.clone_from(&decision.run);
        decisions.push(decision);
    }
    decisions
}

fn end(decision: &Decision) -> (Outcome, Origin, bool) {
    match &decision.run.as_ref().unwrap().phase {
        Phase::Settled(settled) => (
            settled.belief.ending.outcome,
            settled.origin,
            settled.confirmed,
        ),
        Phase::Open(open) => panic!("{open:?}"),
    }
}

fn publications(decisions: &[Decision]) -> Vec<Publication> {
    let ends = |publication: &Publication| !matches!(publication, Publication::Status(_));
    decisions
        .iter()
        .filter_map(|decision| decision.publish)
        .filter(ends)
        .collect()
}

#[test]
fn a_cancelled_crawl_says_completed_and_settles_as_cancelled() {
    let completed = Sample::of("crawl.completed").read();
    let cancelled = state(
        Kind::Crawl,
        json!({"success": true, "status": "cancelled", "completed": 1, "total": 1}),
    );
    let decisions = told_in_order(Kind::Crawl, [completed, cancelled]);
    assert_eq!(decisions[0].publish, None, "held until an answer agrees");
    assert!(decisions[0].run.as_ref().unwrap().poll.unwrap().urgent);
    assert_eq!(
        end(&decisions[1]),
        (Outcome::Cancelled, Origin::Webhook, true)
    );
}

#[test]
fn a_cancelled_crawl_whose_record_was_evicted_stays_cancelled() {
    let read = |word: &str| state(Kind::Crawl, json!({"success": true, "status": word}));
    let decisions = told_in_order(
        Kind::Crawl,
        [
            Sample::of("crawl.started").read(),
            read("cancelled"),
            read("completed"),
            Sample::of("crawl.completed").read(),
            read("completed"),
        ],
    );
    assert_eq!(publications(&decisions), [Publication::Completion]);
    assert_eq!(end(&decisions[4]).0, Outcome::Cancelled);
}

#[test]
fn a_crawl_that_failed_at_its_kickoff_is_found_by_polling_alone() {
    let row = json!({"id": CRAWL, "created_at": "2026-11-21T07:00:00Z"});
    let listed = page(Some("crawl/1/"), &json!({"data": [row], "has_more": false}))
        .runs
        .remove(0);
    let failed = state(
        Kind::Crawl,
        json!({"success": false, "status": "failed", "error": "Queue full", "data": []}),
    );
    let decisions = told_in_order(Kind::Crawl, [listed, failed]);
    assert_eq!(end(&decisions[1]), (Outcome::Failed, Origin::Poll, true));
}

#[test]
fn two_completions_of_one_run_are_one_completion() {
    let first = Sample::of("extract.completed").read();
    let decisions = told_in_order(Kind::Extract, [first.clone(), first]);
    assert_eq!(publications(&decisions), [Publication::Completion]);
}

#[test]
fn pages_after_the_end_and_a_second_start_reopen_nothing() {
    let completed = state(
        Kind::BatchScrape,
        json!({"success": true, "status": "completed", "completed": 2}),
    );
    let labels = [
        "batch_scrape.page ok",
        "batch_scrape.started",
        "batch_scrape.page failed url",
    ];
    let late = labels.map(|label| Sample::of(label).read());
    let first = Sample::of("batch_scrape.page ok").read();
    let decisions = told_in_order(
        Kind::BatchScrape,
        [first, completed].into_iter().chain(late),
    );
    assert_eq!(publications(&decisions), [Publication::Completion]);
    assert_eq!(end(decisions.last().unwrap()).0, Outcome::Succeeded);
}

#[test]
fn a_cancelled_agent_is_cancelled_in_either_order_and_needs_no_amendment_when_told_first() {
    let cancelled = || {
        event(
            "agent.cancelled",
            json!({"success": false, "data": [{"creditsUsed": 3}]}),
        )
    };
    let failed = || state(Kind::Agent, json!({"success": true, "status": "failed"}));
    let told_first = told_in_order(Kind::Agent, [cancelled(), failed()]);
    assert_eq!(publications(&told_first), [Publication::Completion]);
    assert_eq!(end(&told_first[1]).0, Outcome::Cancelled);
    let polled_first = told_in_order(
        Kind::Agent,
        [event("agent.started", json!({})), failed(), cancelled()],
    );
    assert_eq!(
        end(&polled_first[2]).0,
        Outcome::Cancelled,
        "the webhook says more exactly what the answer said"
    );
}

#[test]
fn a_run_tracked_without_a_kind_is_looked_for_under_each_until_one_answers() {
    let run_id = run_id(CRAWL);
    let subject = RunRef {
        guessed: true,
        run_id: &run_id,
        kind: Kind::Crawl,
        group_id: None,
        settings: &SETTINGS,
    };
    let status = |status: u16, body: &str| {
        ApiResponse::Http(Response {
            status,
            body: body.as_bytes().to_vec(),
            ..Response::default()
        })
    };
    let absent = || status(404, r#"{"success":false,"error":"Job not found"}"#);
    let paths = |answers: &[ApiResponse]| {
        Firecrawl
            .follow_up(&subject, answers)
            .map(|question| question.path)
    };
    assert!(paths(&[absent()]).is_some_and(|path| path.starts_with("/v2/batch/scrape/")));
    assert!(paths(&[absent(), absent()]).is_some_and(|path| path.starts_with("/v2/agent/")));
    let three = [absent(), absent(), absent()];
    assert!(paths(&three).is_some_and(|path| path.starts_with("/v2/extract/")));
    // Self-hosted, an unknown extract is a 500.
    let selfhosted = [absent(), absent(), absent(), status(500, "{}")];
    assert_eq!(paths(&selfhosted).as_deref(), Some("/v2/team/queue-status"));
    let found = [
        absent(),
        absent(),
        absent(),
        status(200, r#"{"success":true,"status":"completed","data":{}}"#),
    ];
    assert_eq!(paths(&found), None);
    let heard = Firecrawl.read_status(&subject, &found, NOW);
    assert_eq!(heard.kind, Some(Kind::Extract));
    assert!(matches!(heard.claim, Claim::Ended(ending) if ending.outcome == Outcome::Succeeded));
}

#[test]
fn a_run_tracked_without_a_kind_is_missing_only_when_no_kind_and_the_canary_know_it() {
    let run_id = run_id(CRAWL);
    let subject = RunRef {
        guessed: true,
        run_id: &run_id,
        kind: Kind::Crawl,
        group_id: None,
        settings: &SETTINGS,
    };
    let status = |status: u16| {
        ApiResponse::Http(Response {
            status,
            body: b"{}".to_vec(),
            ..Response::default()
        })
    };
    let mut answers: Vec<ApiResponse> = (0..4).map(|_| status(404)).collect();
    assert_eq!(
        Firecrawl
            .follow_up(&subject, &answers)
            .map(|question| question.path)
            .as_deref(),
        Some("/v2/team/queue-status")
    );
    answers.push(status(200));
    assert_eq!(
        Firecrawl.read_status(&subject, &answers, NOW).claim,
        Claim::Missing
    );
    answers[4] = status(401);
    assert_eq!(
        Firecrawl.read_status(&subject, &answers, NOW).claim,
        Claim::Nothing
    );
    // Trouble on the way says nothing, and nothing more is asked.
    assert_eq!(
        Firecrawl.follow_up(&subject, &[status(404), status(503)]),
        None
    );
    assert_eq!(
        Firecrawl
            .read_status(&subject, &[status(404), status(503)], NOW)
            .claim,
        Claim::Nothing
    );
}
