//! Skyvern: captured deliveries of a real 1.0.56 server, and every fact that can change an outcome.

use std::time::Duration;

use serde_json::{Value, json};
use settled::model::decide::{Circumstances, Publication, decide};
use settled::model::observation::{Claim, Observation, Progress};
use settled::model::schedule::{Confirm, Policy};
use settled::model::{At, Kind, RunId, Trust, Via};
use settled::providers::skyvern::Skyvern;
use settled::providers::{
    ApiResponse, Delivery, Headers, Method, Provider, Reading, Response, ResponseClass,
    RetryResult, RunRef, Settings, Verdict, Webhook, signature,
};
use settled::secret::{Key, Keyring, Secret, SecretLabel};

const NOW: At = At(1_795_249_022_000);
const SETTINGS: Settings = Settings { api: None };

fn samples() -> Value {
    serde_json::from_str(include_str!("../vectors/skyvern/samples.json")).unwrap()
}

fn id(text: &str) -> RunId {
    RunId::new(text).unwrap()
}

fn keyring(keys: &[(&str, &str)]) -> Keyring {
    let key = |(label, value): &(&str, &str)| Key {
        label: SecretLabel((*label).to_owned()),
        secret: Secret::new(value),
    };
    Keyring {
        signing: keys.iter().map(key).collect(),
        ..Keyring::default()
    }
}

fn sample_keys() -> Keyring {
    keyring(&[("api_key", samples()["api_key"].as_str().unwrap())])
}

fn headers(lines: &Value) -> Headers {
    let split = |line: &Value| {
        let (name, value) = line.as_str().unwrap().split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    };
    lines.as_array().unwrap().iter().map(split).collect()
}

fn verify(headers: &[(String, String)], body: &[u8], keys: &Keyring) -> (Verdict, Option<String>) {
    let delivery = Delivery {
        headers,
        body,
        truncated: false,
        path_token: None,
    };
    let proof = Skyvern.verify(&delivery, keys, NOW);
    (proof.verdict(), proof.secret().map(|label| label.0.clone()))
}

fn read(body: &[u8]) -> Reading {
    read_as(body, Trust::Signed, false)
}

fn read_as(body: &[u8], trust: Trust, truncated: bool) -> Reading {
    let via = Via::Webhook;
    Skyvern.read_webhook(&Webhook {
        body,
        truncated,
        trust,
        via,
        received_at: NOW,
        settings: &SETTINGS,
    })
}

fn said(body: &[u8]) -> Observation {
    match read(body) {
        Reading::Said(mut heard) if heard.len() == 1 => heard.remove(0),
        other => panic!("{other:?}"),
    }
}

fn http(status: u16, body: impl Into<Vec<u8>>) -> ApiResponse {
    ApiResponse::Http(Response {
        status,
        body: body.into(),
        ..Response::default()
    })
}

fn cut(status: u16, body: &str) -> ApiResponse {
    ApiResponse::Http(Response {
        status,
        body: body.into(),
        truncated: true,
        ..Response::default()
    })
}

fn status_of(run: &str, answers: &[ApiResponse]) -> Observation {
    let run_id = id(run);
    let subject = RunRef {
        guessed: false,
        run_id: &run_id,
        kind: Kind::Task,
        group_id: None,
        settings: &SETTINGS,
    };
    Skyvern.read_status(&subject, answers, NOW)
}

fn follow_up(run: &str, answers: &[ApiResponse]) -> Option<String> {
    let run_id = id(run);
    let subject = RunRef {
        guessed: false,
        run_id: &run_id,
        kind: Kind::Task,
        group_id: None,
        settings: &SETTINGS,
    };
    Skyvern
        .follow_up(&subject, answers)
        .map(|question| question.path)
}

fn words(heard: &Observation) -> String {
    let claim = match &heard.claim {
        Claim::Open(Progress::Waiting) => "open waiting".to_owned(),
        Claim::Open(Progress::Started) => "open started".to_owned(),
        Claim::Ended(end) => format!(
            "{} {}",
            end.outcome,
            if end.sufficient {
                "at once"
            } else {
                "after an answer"
            }
        ),
        other => format!("{other:?}"),
    };
    heard
        .detail
        .reason
        .as_ref()
        .map_or(claim.clone(), |reason| format!("{claim}, {reason}"))
}

// ── Signatures ──────────────────────────────────────────────────────────────────────────────────

#[test]
fn every_captured_delivery_verifies_and_reads() {
    let expected = [
        ("tsk_599430489783879670", Kind::Task, "failed at once", None),
        ("tsk_599430489783879670", Kind::Task, "failed at once", None),
        ("tsk_599430489783879670", Kind::Task, "failed at once", None),
        (
            "wr_599430494078844936",
            Kind::Workflow,
            "succeeded at once",
            Some("wpid_599430494078846974"),
        ),
        (
            "wr_599430494078844936",
            Kind::Workflow,
            "succeeded at once",
            Some("wpid_599430494078846974"),
        ),
        (
            "wr_599430644402700610",
            Kind::Workflow,
            "open started, retry_pending",
            Some("wpid_599430644402700606"),
        ),
        (
            "wr_599430644402700610",
            Kind::Workflow,
            "failed at once",
            Some("wpid_599430644402700606"),
        ),
    ];
    let samples = samples();
    let deliveries = samples["webhooks"].as_array().unwrap();
    assert_eq!(deliveries.len(), expected.len());
    for (sample, (run, kind, end, group)) in deliveries.iter().zip(expected) {
        let body = sample["body"].as_str().unwrap().as_bytes();
        let (verdict, key) = verify(&headers(&sample["header_lines"]), body, &sample_keys());
        assert_eq!(
            (verdict, key.as_deref()),
            (Verdict::Signed, Some("api_key")),
            "{run}"
        );
        let heard = said(body);
        assert_eq!(
            (heard.run_id.as_str(), heard.kind, words(&heard).as_str()),
            (run, Some(kind), end)
        );
        assert_eq!(heard.detail.group_id.as_deref(), group, "{run}");
        assert_eq!(
            (heard.trust, heard.via, heard.requested_at),
            (Trust::Signed, Via::Webhook, NOW)
        );
        assert!(
            heard.detail.opened_at.is_some() && heard.detail.provider_time.is_some(),
            "{run}"
        );
    }
}

#[test]
fn a_changed_body_another_key_and_a_missing_header_do_not_verify() {
    let samples = samples();
    let sample = &samples["webhooks"][3];
    let (all, body) = (
        headers(&sample["header_lines"]),
        sample["body"].as_str().unwrap(),
    );
    let without: Headers = all
        .iter()
        .filter(|(name, _)| name != "x-skyvern-signature")
        .cloned()
        .collect();
    let with = |value: &str| vec![("x-skyvern-signature".to_owned(), value.to_owned())];
    let good = sample["signature"].as_str().unwrap();
    let bytes = body.as_bytes();
    let keys = sample_keys();

    assert_eq!(verify(&without, bytes, &keys).0, Verdict::Unsigned);
    assert_eq!(
        verify(&all, body.replace("completed", "failed").as_bytes(), &keys).0,
        Verdict::BadSignature
    );
    assert_eq!(
        verify(&all, format!("{body}\n").as_bytes(), &keys).0,
        Verdict::BadSignature
    );
    assert_eq!(
        verify(&all, bytes, &keyring(&[("api_key", "another")])).0,
        Verdict::BadSignature
    );
    assert_eq!(
        verify(&all, bytes, &Keyring::default()).0,
        Verdict::NoSecret
    );
    assert_eq!(verify(&with(good), bytes, &keys).0, Verdict::Signed);
    for bad in [
        "",
        "0",
        &good.to_uppercase(),
        &format!("sha256={good}"),
        &good[1..],
    ] {
        assert_eq!(
            verify(&with(bad), bytes, &keys).0,
            Verdict::BadSignature,
            "{bad}"
        );
    }
}

#[test]
fn the_raw_bytes_are_signed_and_not_what_they_parse_to() {
    let body = r#"{"run_id":"wr_1","status":"completed","output":{"n":42.0}}"#;
    let signed = vec![(
        "x-skyvern-signature".to_owned(),
        signature::sign("k", &[body.as_bytes()]),
    )];
    let keys = keyring(&[("api_key", "k")]);
    assert_eq!(verify(&signed, body.as_bytes(), &keys).0, Verdict::Signed);
    let same_json = serde_json::to_vec(&serde_json::from_str::<Value>(body).unwrap()).unwrap();
    assert_eq!(verify(&signed, &same_json, &keys).0, Verdict::BadSignature);
}

#[test]
fn of_several_keys_the_one_that_signed_is_named() {
    let body = b"{}";
    let keys = keyring(&[
        ("api_key", "new"),
        ("webhook_secrets[0]", "old"),
        ("webhook_secrets[1]", "older"),
    ]);
    for (value, label) in [
        ("new", "api_key"),
        ("old", "webhook_secrets[0]"),
        ("older", "webhook_secrets[1]"),
    ] {
        let signed = vec![(
            "x-skyvern-signature".to_owned(),
            signature::sign(value, &[body]),
        )];
        assert_eq!(
            verify(&signed, body, &keys),
            (Verdict::Signed, Some(label.to_owned()))
        );
    }
}

#[test]
fn the_timestamp_is_never_judged() {
    for timestamp in ["0", "1795267022", "99999999999", "yesterday"] {
        let body = b"{}";
        let signed = vec![
            ("x-skyvern-timestamp".to_owned(), timestamp.to_owned()),
            (
                "x-skyvern-signature".to_owned(),
                signature::sign("k", &[body]),
            ),
        ];
        assert_eq!(
            verify(&signed, body, &keyring(&[("api_key", "k")])).0,
            Verdict::Signed,
            "{timestamp}"
        );
    }
}

#[test]
fn a_cut_off_body_verifies_as_nothing_and_is_at_most_a_hint() {
    let signed = vec![(
        "x-skyvern-signature".to_owned(),
        signature::sign("k", &[b"{}"]),
    )];
    let delivery = Delivery {
        headers: &signed,
        body: b"{}",
        truncated: true,
        path_token: None,
    };
    let proof = Skyvern.verify(&delivery, &keyring(&[("api_key", "k")]), NOW);
    assert_eq!(
        (proof.verdict(), proof.verdict().trust()),
        (Verdict::Truncated, Trust::Hint)
    );

    let beginning =
        br#"{"workflow_id":"w","workflow_run_id":"wr_1","status":"completed","outputs":{"a":"#;
    let Reading::Said(heard) = read_as(beginning, Trust::Hint, true) else {
        panic!("a hint")
    };
    assert_eq!(
        (heard[0].run_id.as_str(), heard[0].trust),
        ("wr_1", Trust::Hint)
    );
    assert!(matches!(
        read_as(br#"{"outputs":"#, Trust::Hint, true),
        Reading::Unreadable(_)
    ));
}

// ── States ──────────────────────────────────────────────────────────────────────────────────────

#[test]
fn every_state_reads_the_same_in_a_webhook_and_in_an_answer() {
    let vectors: Vec<Value> =
        serde_json::from_str(include_str!("../vectors/skyvern/states.json")).unwrap();
    for vector in vectors {
        let (name, expected) = (&vector["name"], vector["says"].as_str().unwrap());
        let body = vector["body"].to_string();
        let told = said(body.as_bytes());
        assert_eq!(words(&told), expected, "{name}");
        assert_eq!(
            told.detail.provider_status.as_deref(),
            vector["body"]["status"].as_str(),
            "{name}"
        );
        let answered = status_of(
            vector["body"]["run_id"].as_str().unwrap(),
            &[http(200, body)],
        );
        assert_eq!(words(&answered), expected, "{name}");
        assert_eq!(
            (answered.trust, answered.via),
            (Trust::Authoritative, Via::Poll),
            "{name}"
        );
    }
}

#[test]
fn a_pending_retry_is_asked_about_after_its_next_attempt_begins() {
    let body = |next: &str| json!({"run_id":"wr_1","status":"failed","retry_pending":true,"next_attempt_at":next});
    let wait = |next: &str| said(body(next).to_string().as_bytes()).poll_after;
    // NOW is 2026-11-21T08:17:02Z.
    assert_eq!(
        wait("2026-11-21T08:17:08.454560"),
        Some(Duration::from_millis(6454))
    );
    assert_eq!(wait("2026-11-21T08:17:08Z"), Some(Duration::from_secs(6)));
    assert_eq!(wait("2026-11-21T08:16:00"), None);
    assert_eq!(wait("soon"), None);
    assert_eq!(
        wait("2027-11-21T08:17:08"),
        Some(Duration::from_secs(3600)),
        "a policy delays an hour at most"
    );
}

#[test]
fn a_finally_block_and_one_unlucky_poll_settle_nothing_early() {
    // Seen live: running, failed at 0.28 s, running again at 0.33 s, failed for good at 3.41 s.
    let seen = [
        (100, "running"),
        (280, "failed"),
        (330, "running"),
        (3_410, "failed"),
        (64_000, "failed"),
    ];
    let policy = Skyvern.policy(None);
    let mut run = None;
    let mut completed = Vec::new();
    for (millis, status) in seen {
        let now = At(NOW.0 + millis);
        let body = json!({"run_id":"wr_1","status":status,"finished_at":"2026-11-21T08:17:02.280"})
            .to_string();
        let heard = Observation {
            requested_at: now,
            ..status_of("wr_1", &[http(200, body)])
        };
        let decision = decide(
            run,
            &heard,
            &Circumstances {
                policy: &policy,
                now,
                report: millis,
                seed: 1,
                since: At(0),
                found_at: None,
            },
        );
        run = decision.run;
        if decision.publish == Some(Publication::Completion) {
            completed.push(millis);
        }
    }
    assert_eq!(completed, [64_000]);
}

#[test]
fn while_a_run_is_open_finished_at_is_not_its_time() {
    let body = |status: &str| {
        json!({"run_id":"wr_1","status":status,"created_at":"2026-11-21T08:00:00","modified_at":"2026-11-21T08:03:00",
               "finished_at":"2026-11-21T08:02:00"})
        .to_string()
    };
    let (open, ended) = (
        said(body("running").as_bytes()),
        said(body("failed").as_bytes()),
    );
    let rfc3339 = |at: Option<At>| at.unwrap().rfc3339();
    assert_eq!(
        rfc3339(open.detail.provider_time),
        "2026-11-21T08:03:00.000Z"
    );
    assert_eq!(
        rfc3339(ended.detail.provider_time),
        "2026-11-21T08:02:00.000Z"
    );
    assert_eq!(rfc3339(ended.detail.opened_at), "2026-11-21T08:00:00.000Z");
}

#[test]
fn counters_error_and_group_are_told_under_their_own_names() {
    let body = json!({
        "run_id": "wr_1", "status": "failed", "attempt": 2, "step_count": 0, "total_steps": 7, "total_cost": 0.25,
        "credits_used": null, "cached_credits_used": "3", "failure_reason": "x".repeat(5000),
        "workflow_id": "w_9", "run_request": {"workflow_id": "wpid_5", "webhook_url": "https://a/hooks/s/secret-token"},
        "extra_http_headers": {"Authorization": "Bearer secret"}, "totp_identifier": "secret"
    });
    let detail = said(body.to_string().as_bytes()).detail;
    let counted = json!({"attempt": 2, "step_count": 0, "total_steps": 7, "total_cost": 0.25});
    assert_eq!(Value::Object(detail.counters.clone().unwrap()), counted);
    assert_eq!(detail.group_id.as_deref(), Some("wpid_5"));
    assert_eq!(detail.error.as_ref().unwrap().chars().count(), 1001);
    assert!(!format!("{detail:?}").contains("secret"), "{detail:?}");
    assert_eq!(detail.metadata, None);
}

#[test]
fn the_group_is_the_workflow_and_not_one_version_of_it() {
    let group = |mut body: Value| {
        body["run_id"] = "wr_1".into();
        said(body.to_string().as_bytes()).detail.group_id
    };
    assert_eq!(
        group(json!({"workflow_id": "wpid_1"})).as_deref(),
        Some("wpid_1")
    );
    assert_eq!(
        group(json!({"workflow_id": "w_1", "workflow_permanent_id": "wpid_2"})).as_deref(),
        Some("wpid_2")
    );
    assert_eq!(
        group(json!({"workflow_id": "w_1", "agent_id": "wpid_3"})).as_deref(),
        Some("wpid_3")
    );
    assert_eq!(group(json!({"workflow_id": "w_1"})), None);
}

#[test]
fn the_run_is_named_by_run_id_then_workflow_run_id_then_task_id() {
    let run = |body: Value| said(body.to_string().as_bytes()).run_id.to_string();
    let all = json!({"task_id": "tsk_1", "workflow_run_id": "wr_1", "run_id": "tsk_v2_1", "status": "failed"});
    assert_eq!(run(all), "tsk_v2_1");
    assert_eq!(
        run(json!({"task_id": "tsk_1", "workflow_run_id": "wr_1", "run_id": null})),
        "wr_1"
    );
    assert_eq!(
        run(json!({"task_id": "tsk_1", "workflow_run_id": null, "run_id": ""})),
        "tsk_1"
    );
}

#[test]
fn kinds_go_by_prefix_and_then_by_type() {
    let kind = |run: &str, run_type: &str| {
        said(
            json!({"run_id":run,"run_type":run_type})
                .to_string()
                .as_bytes(),
        )
        .kind
    };
    assert_eq!(kind("wr_1", "task_v2"), Some(Kind::Workflow));
    assert_eq!(kind("tsk_1", "anthropic_cua"), Some(Kind::Task));
    assert_eq!(kind("tsk_v2_1", "unheard_of"), Some(Kind::Task));
    assert_eq!(kind("x_1", "workflow_run"), Some(Kind::Workflow));
    assert_eq!(kind("x_1", "task_v3"), Some(Kind::Task));
    assert_eq!(kind("x_1", "unheard_of"), None);
    assert_eq!(Skyvern.kind_of(&id("wr_1"), &SETTINGS), Kind::Workflow);
    assert_eq!(Skyvern.kind_of(&id("tsk_v2_1"), &SETTINGS), Kind::Task);
}

#[test]
fn sample_deliveries_touch_no_run_even_under_a_real_run_id() {
    for body in [
        json!({"run_id": "tsk_sample_123456789", "status": "completed"}),
        json!({"workflow_run_id": "wr_sample_123456789", "status": "completed"}),
        json!({"run_id": "wr_599430494078844936", "status": "completed", "browser_session_id": "pbs_sample_123456"}),
    ] {
        assert_eq!(read(body.to_string().as_bytes()), Reading::Ping);
    }
    let real = json!({"run_id": "wr_599430494078844936", "status": "completed", "browser_session_id": "pbs_1"});
    assert!(matches!(
        read(real.to_string().as_bytes()),
        Reading::Said(_)
    ));
}

// ── Poison ──────────────────────────────────────────────────────────────────────────────────────

#[test]
fn nan_in_an_output_verifies_and_is_unreadable() {
    let body = br#"{"run_id":"wr_1","status":"completed","output":{"price":NaN}}"#;
    let signed = vec![(
        "x-skyvern-signature".to_owned(),
        signature::sign("k", &[body]),
    )];
    assert_eq!(
        verify(&signed, body, &keyring(&[("api_key", "k")])).0,
        Verdict::Signed
    );
    assert!(matches!(read(body), Reading::Unreadable(_)));
}

#[test]
fn what_cannot_be_understood_is_unreadable_and_never_quoted() {
    let nulls = r#"{"run_id":null,"workflow_run_id":null,"task_id":null,"status":null,"run_type":null,"output":null}"#;
    let long = format!(
        r#"{{"run_id":"{}","status":"failed"}}"#,
        "secret".repeat(50)
    );
    let bodies: [&[u8]; 14] = [
        b"",
        b"\0",
        b"secret",
        b"run_id=secret&status=completed",
        b"[{\"run_id\":\"wr_secret\",\"status\":\"completed\"}]",
        b"\"secret\"",
        b"null",
        b"\xef\xbb\xbf{\"run_id\":\"wr_secret\",\"status\":\"completed\"}",
        b"{\"run_id\":\"wr_secret\",\"output\":\"\xff\xfe\",\"status\":\"completed\"}",
        b"{\"run_id\":\"wr_secret\\u0000\",\"status\":\"completed\"}",
        b"{\"run_id\":{\"secret\":1},\"status\":\"completed\"}",
        b"{\"run_id\":\"wr_secret\",\"status\":\"completed\"",
        nulls.as_bytes(),
        long.as_bytes(),
    ];
    for body in bodies {
        let Reading::Unreadable(why) = read(body) else {
            panic!("{}", String::from_utf8_lossy(body))
        };
        assert!(!why.contains("secret"), "{why}");
    }
}

#[test]
fn poison_beside_the_state_hides_nothing() {
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    for output in [
        deep.as_str(),
        "1e999",
        "12345678901234567890",
        "\"\\u0000\"",
        "{\"status\":\"failed\",\"run_id\":\"x\"}",
    ] {
        let body = format!(
            r#"{{"run_id":"wr_1","output":{output},"status":"completed","step_count":{output}}}"#
        );
        assert_eq!(
            words(&said(body.as_bytes())),
            "succeeded at once",
            "{}",
            &output[..output.len().min(20)]
        );
    }
}

#[test]
fn of_duplicate_keys_the_last_counts_as_in_python() {
    assert_eq!(
        words(&said(
            br#"{"run_id":"wr_1","status":"failed","status":"completed"}"#
        )),
        "succeeded at once"
    );
}

#[test]
fn a_genuine_body_without_a_status_says_that_the_run_exists() {
    for status in ["null", "5", "[]", "\"\""] {
        let heard = said(format!(r#"{{"run_id":"wr_1","status":{status}}}"#).as_bytes());
        assert_eq!(
            (words(&heard).as_str(), heard.detail.provider_status),
            ("open waiting", None),
            "{status}"
        );
    }
}

// ── Asking ──────────────────────────────────────────────────────────────────────────────────────

#[test]
fn captured_answers_read_like_the_deliveries_of_the_same_runs() {
    let samples = samples();
    for (scenario, delivery) in [("task_v1_failed", 0), ("workflow_completed", 3)] {
        let captured = &samples["get_run"][scenario];
        let told = said(
            samples["webhooks"][delivery]["body"]
                .as_str()
                .unwrap()
                .as_bytes(),
        );
        let run_id = told.run_id.clone();
        let subject = RunRef {
            guessed: false,
            run_id: &run_id,
            kind: Kind::Task,
            group_id: None,
            settings: &SETTINGS,
        };
        assert_eq!(
            Skyvern.status_request(&subject).path,
            captured["request"]["path"].as_str().unwrap()
        );
        let answered = status_of(
            told.run_id.as_str(),
            &[http(200, captured["body"].as_str().unwrap())],
        );
        assert_eq!((answered.claim, answered.kind), (told.claim, told.kind));
        assert_eq!(answered.detail.group_id, told.detail.group_id);
        assert_eq!(answered.detail.error, told.detail.error);
        assert_eq!(answered.detail.opened_at, told.detail.opened_at);
        assert_eq!(answered.detail.provider_time, told.detail.provider_time);
    }
}

#[test]
fn a_run_is_asked_about_by_its_id_and_with_room_for_its_output() {
    let run_id = id("wr_1/../x?y");
    let subject = RunRef {
        guessed: false,
        run_id: &run_id,
        kind: Kind::Workflow,
        group_id: None,
        settings: &SETTINGS,
    };
    let question = Skyvern.status_request(&subject);
    assert_eq!(question.path, "/v1/runs/wr_1%2F..%2Fx%3Fy");
    assert_eq!(
        (question.method, question.body, question.bytes_max),
        (Method::Get, None, 32 * 1024 * 1024)
    );
}

#[test]
fn a_backing_run_that_answers_with_its_task_is_still_the_run_we_asked_about() {
    let body =
        json!({"run_id": "tsk_v2_7", "status": "completed", "run_type": "task_v2"}).to_string();
    let heard = status_of("wr_7", &[http(200, body)]);
    assert_eq!(
        (heard.run_id.as_str(), heard.kind),
        ("wr_7", Some(Kind::Workflow))
    );
    assert_eq!(words(&heard), "succeeded at once");
}

#[test]
fn failures_are_never_evidence() {
    let failed = ApiResponse::Failed {
        what: "timed out".to_owned(),
    };
    let answers = [400, 401, 402, 403, 409, 422, 429, 499, 500, 502, 503]
        .map(|code| http(code, r#"{"status":"failed"}"#));
    for answer in answers.iter().chain([&failed]) {
        assert_eq!(
            status_of("tsk_1", std::slice::from_ref(answer)).claim,
            Claim::Nothing,
            "{answer:?}"
        );
        assert_eq!(
            follow_up("tsk_1", std::slice::from_ref(answer)),
            None,
            "{answer:?}"
        );
        assert_eq!(
            follow_up("wr_1", std::slice::from_ref(answer)),
            None,
            "{answer:?}"
        );
    }
    for unreadable in ["", "<html>", "[]", "{}", "null", r#"{"status":null}"#] {
        assert_eq!(
            status_of("tsk_1", &[http(200, unreadable)]).claim,
            Claim::Nothing,
            "{unreadable}"
        );
    }
}

const CANARY: &str = "/v1/runs?page=1&page_size=1";
const OLDER: &str = "/api/v1/workflows/runs/wr_1";

#[test]
fn a_missing_task_is_missing_only_if_the_canary_worked() {
    let samples = samples();
    for body in [
        samples["errors"]["unknown_run"]["body"].as_str().unwrap(),
        "",
        "{}",
        "Not Found",
    ] {
        let missing = http(404, body);
        assert_eq!(
            follow_up("tsk_nope", std::slice::from_ref(&missing)).as_deref(),
            Some(CANARY)
        );
        let claim = |canary: ApiResponse| status_of("tsk_nope", &[missing.clone(), canary]).claim;
        assert_eq!(claim(http(200, "[]")), Claim::Missing);
        assert_eq!(
            claim(http(403, r#"{"detail":"Invalid credentials"}"#)),
            Claim::Nothing
        );
        assert_eq!(
            claim(http(404, r#"{"detail":"Organization not found"}"#)),
            Claim::Nothing
        );
        assert_eq!(claim(http(503, "")), Claim::Nothing);
        assert_eq!(
            claim(ApiResponse::Failed {
                what: "refused".to_owned()
            }),
            Claim::Nothing
        );
        assert_eq!(
            status_of("tsk_nope", std::slice::from_ref(&missing)).claim,
            Claim::Nothing
        );
    }
}

#[test]
fn a_workflow_run_missing_at_one_address_is_read_at_the_older_one() {
    let missing = http(404, r#"{"detail":"Task run not found wr_1"}"#);
    let older = http(
        200,
        r#"{"workflow_id":"wpid_1","workflow_run_id":"wr_1","status":"timed_out","retry_pending":false}"#,
    );
    let none = http(404, r#"{"detail":"WorkflowRun wr_1 not found"}"#);
    let canary = http(200, "[]");

    assert_eq!(
        follow_up("wr_1", std::slice::from_ref(&missing)).as_deref(),
        Some(OLDER)
    );
    assert_eq!(follow_up("wr_1", &[missing.clone(), older.clone()]), None);
    let heard = status_of("wr_1", &[missing.clone(), older]);
    assert_eq!(
        (words(&heard).as_str(), heard.run_id.as_str()),
        ("timed_out at once", "wr_1")
    );
    assert_eq!(heard.detail.group_id.as_deref(), Some("wpid_1"));

    assert_eq!(
        status_of("wr_1", &[missing.clone(), none.clone()]).claim,
        Claim::Nothing
    );
    assert_eq!(
        follow_up("wr_1", &[missing.clone(), none.clone()]).as_deref(),
        Some(CANARY)
    );
    assert_eq!(
        follow_up("wr_1", &[missing.clone(), none.clone(), canary.clone()]),
        None
    );
    assert_eq!(
        status_of("wr_1", &[missing.clone(), none.clone(), canary.clone()]).claim,
        Claim::Missing
    );
    assert_eq!(
        status_of("wr_1", &[missing.clone(), none, http(500, "")]).claim,
        Claim::Nothing
    );
    // The older read failing, or answering what we cannot read, is not a working canary.
    for second in [
        http(500, ""),
        http(403, ""),
        http(200, "{}"),
        http(200, "[]"),
    ] {
        assert_eq!(follow_up("wr_1", &[missing.clone(), second.clone()]), None);
        assert_eq!(
            status_of("wr_1", &[missing.clone(), second]).claim,
            Claim::Nothing
        );
    }
}

#[test]
fn a_key_without_an_organization_is_refused_and_no_run_is_missing() {
    let answer = http(404, r#"{"detail":"Organization not found"}"#);
    assert!(matches!(
        Skyvern.classify(&answer),
        ResponseClass::Denied { .. }
    ));
    for run in ["tsk_1", "wr_1"] {
        assert_eq!(follow_up(run, std::slice::from_ref(&answer)), None);
        assert_eq!(
            status_of(run, std::slice::from_ref(&answer)).claim,
            Claim::Nothing
        );
    }
    assert_eq!(
        Skyvern.classify(&http(404, r#"{"detail":"Task run not found tsk_1"}"#)),
        ResponseClass::Ok
    );
    assert_eq!(Skyvern.classify(&http(404, "")), ResponseClass::Ok);
}

#[test]
fn what_answers_tell_about_key_pace_and_service() {
    assert!(matches!(
        Skyvern.classify(&http(403, r#"{"detail":"Invalid credentials"}"#)),
        ResponseClass::Denied { .. }
    ));
    assert!(matches!(
        Skyvern.classify(&http(401, "")),
        ResponseClass::Denied { .. }
    ));
    let slow = Response {
        status: 429,
        headers: vec![("retry-after".into(), "7".into())],
        ..Response::default()
    };
    assert_eq!(
        Skyvern.classify(&ApiResponse::Http(slow)),
        ResponseClass::RateLimited {
            retry_after: Some(Duration::from_secs(7))
        }
    );
    for status in [500, 502, 503] {
        assert!(matches!(
            Skyvern.classify(&http(status, "")),
            ResponseClass::Unavailable { .. }
        ));
    }
    for status in [200, 400, 409, 422, 499] {
        assert_eq!(Skyvern.classify(&http(status, "{}")), ResponseClass::Ok);
    }
}

#[test]
fn a_cut_off_answer_still_tells_the_state_of_a_task() {
    let body = r#"{"run_id":"tsk_1","status":"failed","output":{"rows":[1,2,"#;
    let heard = status_of("tsk_1", &[cut(200, body)]);
    assert_eq!(
        (
            words(&heard).as_str(),
            heard.detail.provider_status.as_deref()
        ),
        ("failed at once", Some("failed"))
    );
    let running = cut(200, &body.replace("failed", "running"));
    assert_eq!(
        words(&status_of("wr_1", std::slice::from_ref(&running))),
        "open started"
    );
    assert_eq!(follow_up("wr_1", &[running]), None);
}

#[test]
fn a_cut_off_end_of_a_workflow_run_may_be_retried_so_the_older_read_is_asked() {
    let end = cut(
        200,
        r#"{"run_id":"wr_1","status":"failed","output":{"rows":[1,2,"#,
    );
    assert_eq!(
        status_of("wr_1", std::slice::from_ref(&end)).claim,
        Claim::Nothing
    );
    assert_eq!(
        follow_up("wr_1", std::slice::from_ref(&end)).as_deref(),
        Some(OLDER)
    );
    let older = |pending| {
        cut(
            200,
            &format!(
                r#"{{"workflow_run_id":"wr_1","status":"failed","retry_pending":{pending},"outputs":{{"#
            ),
        )
    };
    assert_eq!(
        words(&status_of("wr_1", &[end.clone(), older(true)])),
        "open started, retry_pending"
    );
    assert_eq!(
        words(&status_of("wr_1", &[end.clone(), older(false)])),
        "failed at once"
    );
    assert_eq!(
        status_of("wr_1", &[end.clone(), http(500, "")]).claim,
        Claim::Nothing
    );
    assert_eq!(follow_up("wr_1", &[end, older(false)]), None);
}

// ── Lists ───────────────────────────────────────────────────────────────────────────────────────

#[test]
fn the_open_list_is_asked_for_and_read_as_captured() {
    let samples = samples();
    let captured = &samples["list_open"];
    assert_eq!(
        Skyvern.list_request(None, &SETTINGS).unwrap().path,
        captured["request"]["path"].as_str().unwrap()
    );
    let listing = Skyvern.read_list(
        None,
        &http(200, captured["body"].as_str().unwrap()),
        &SETTINGS,
        NOW,
    );
    let run = &listing.runs[0];
    assert_eq!(
        (listing.runs.len(), listing.next, listing.gap),
        (1, None, None)
    );
    assert_eq!(
        (run.run_id.as_str(), run.kind),
        ("wr_599430502668779622", Some(Kind::Workflow))
    );
    assert_eq!(
        (&run.claim, run.via, run.trust),
        (
            &Claim::Listed { over: false },
            Via::Sweep,
            Trust::Authoritative
        )
    );
    assert_eq!(
        run.detail.group_id.as_deref(),
        Some("wpid_599430502668779618")
    );
    assert_eq!(
        run.detail.opened_at.unwrap().rfc3339(),
        "2026-11-21T08:16:29.816Z"
    );
}

fn page_of(items: usize) -> ApiResponse {
    let items: Vec<Value> = (0..items)
        .map(|n| json!({"task_run_id": "tr_1", "run_id": format!("wr_{n}")}))
        .collect();
    http(200, Value::Array(items).to_string())
}

#[test]
fn full_pages_lead_to_the_next_up_to_the_last_the_provider_serves() {
    let next = |page: Option<&str>, items| {
        Skyvern
            .read_list(page, &page_of(items), &SETTINGS, NOW)
            .next
    };
    assert_eq!(next(None, 100).as_deref(), Some("2"));
    assert_eq!(next(Some("2"), 100).as_deref(), Some("3"));
    assert_eq!(next(Some("99"), 100).as_deref(), Some("100"));
    assert_eq!(next(Some("100"), 100), None);
    assert_eq!(next(None, 99), None);
    assert_eq!(next(None, 0), None);
    assert!(
        Skyvern
            .list_request(Some("3"), &SETTINGS)
            .unwrap()
            .path
            .starts_with("/v1/runs?page=3&page_size=100&")
    );
}

#[test]
fn a_list_never_settles_and_an_end_in_it_only_asks_for_a_closer_look() {
    let item = |status: &str, pending| json!({"run_id": "wr_1", "status": status, "retry_pending": pending});
    let items = json!([
        item("failed", false),
        item("failed", true),
        item("running", false),
        item("odd", false)
    ]);
    let listing = Skyvern.read_list(None, &http(200, items.to_string()), &SETTINGS, NOW);
    let over: Vec<bool> = listing
        .runs
        .iter()
        .map(|run| run.claim == Claim::Listed { over: true })
        .collect();
    assert_eq!(over, [true, false, false, false]);
}

#[test]
fn items_without_a_run_and_answers_without_a_list_say_nothing() {
    let items = json!([null, 5, {}, {"run_id": null}, {"run_id": "a b"}, {"task_run_id": "tr_1"}, {"run_id": "wr_1"}]);
    let runs = |answer| Skyvern.read_list(None, &answer, &SETTINGS, NOW).runs.len();
    assert_eq!(runs(http(200, items.to_string())), 1);
    assert_eq!(runs(cut(200, &items.to_string()[..40])), 0);
    assert_eq!(runs(http(200, "{}")), 0);
    assert_eq!(runs(http(500, items.to_string())), 0);
    assert_eq!(
        runs(ApiResponse::Failed {
            what: "refused".to_owned()
        }),
        0
    );
}

// ── Retry-webhook ───────────────────────────────────────────────────────────────────────────────

#[test]
fn a_retry_is_asked_for_with_patience_and_perhaps_another_address() {
    let plain = Skyvern.retry_request(&id("wr_1"), None).unwrap();
    assert_eq!(
        (plain.method, plain.path.as_str()),
        (Method::Post, "/v1/runs/wr_1/retry_webhook")
    );
    assert_eq!((plain.body, plain.timeout), (None, Duration::from_secs(90)));
    let elsewhere = Skyvern
        .retry_request(&id("wr_1"), Some(" https://x.test/h \n"))
        .unwrap();
    assert_eq!(
        elsewhere.body.as_deref(),
        Some(r#"{"webhook_url":"https://x.test/h"}"#)
    );
    assert_eq!(
        Skyvern.retry_request(&id("wr_1"), Some("  ")).unwrap().body,
        None
    );
}

/// When the samples were made shareable, deliveries were signed again with a made-up key, but not the
/// headers quoted inside these two answers. So the payload is held against the delivery that the same
/// call caused, and against its headers; the headers in the answer are only read.
#[test]
fn the_payload_of_a_retry_is_the_delivery_it_made_to_the_byte() {
    let samples = samples();
    for (scenario, run, delivery, end) in [
        (
            "task_v1_failed",
            "tsk_599430489783879670",
            1,
            "failed at once",
        ),
        (
            "workflow_completed",
            "wr_599430494078844936",
            4,
            "succeeded at once",
        ),
    ] {
        let body = samples["retry_webhook"][scenario]["body"].as_str().unwrap();
        let RetryResult::Tried {
            delivered_status,
            error,
            target_url,
            latency_ms,
            payload,
        } = Skyvern.read_retry(&id(run), &http(200, body))
        else {
            panic!("tried")
        };
        assert_eq!((delivered_status, error), (Some(200), None));
        assert!(
            target_url
                .unwrap()
                .starts_with("http://127.0.0.1:18999/hook/")
                && latency_ms.is_some()
        );
        let (payload, told) = payload.unwrap();
        let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["content-type", "x-skyvern-signature", "x-skyvern-timestamp"]
        );

        let delivered = &samples["webhooks"][delivery];
        assert_eq!(payload, delivered["body"].as_str().unwrap().as_bytes());
        assert_eq!(
            verify(
                &headers(&delivered["header_lines"]),
                &payload,
                &sample_keys()
            )
            .0,
            Verdict::Signed
        );
        let heard = replayed(&payload);
        assert_eq!(
            (heard.run_id.as_str(), heard.via, words(&heard).as_str()),
            (run, Via::Replay, end)
        );
    }
}

#[test]
fn the_payload_of_a_retry_verifies_with_the_headers_in_the_same_answer() {
    let payload = r#"{"run_id":"wr_1","status":"completed","output":"é \u2028 \" <b>","n":10000000000000000000000}"#;
    let answer = json!({"payload": payload, "status_code": null, "error": "Could not reach URL: refused", "headers": {
        "X-Skyvern-Signature": signature::sign("ours", &[payload.as_bytes()]), "x-skyvern-timestamp": "1795248988"}});
    let RetryResult::Tried {
        payload: Some((bytes, headers)),
        ..
    } = Skyvern.read_retry(&id("wr_1"), &http(200, answer.to_string()))
    else {
        panic!("tried, with a payload")
    };
    assert_eq!(
        verify(&headers, &bytes, &keyring(&[("api_key", "ours")])).0,
        Verdict::Signed
    );
    assert_eq!(
        verify(&headers, &bytes, &keyring(&[("api_key", "other")])).0,
        Verdict::BadSignature
    );
    assert_eq!(words(&replayed(&bytes)), "succeeded at once");
}

fn replayed(body: &[u8]) -> Observation {
    let (truncated, trust, via) = (false, Trust::Signed, Via::Replay);
    match Skyvern.read_webhook(&Webhook {
        body,
        truncated,
        trust,
        via,
        received_at: NOW,
        settings: &SETTINGS,
    }) {
        Reading::Said(mut heard) if heard.len() == 1 => heard.remove(0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_200_does_not_mean_that_the_retry_was_delivered() {
    let tried = |body: Value| Skyvern.read_retry(&id("wr_1"), &http(200, body.to_string()));
    let unreachable = json!({"run_id":"wr_1","payload":"{}","headers":{},"status_code":null,"latency_ms":60000,
        "error":"Request timed out after 60 seconds.","target_webhook_url":"http://x.test/"});
    let RetryResult::Tried {
        delivered_status,
        error,
        payload,
        ..
    } = tried(unreachable)
    else {
        panic!("tried")
    };
    assert_eq!(
        (delivered_status, error.as_deref()),
        (None, Some("Request timed out after 60 seconds."))
    );
    assert_eq!(payload, Some((b"{}".to_vec(), vec![])));
    let refused = json!({"status_code": 401, "error": null});
    let RetryResult::Tried {
        delivered_status,
        error,
        payload,
        ..
    } = tried(refused)
    else {
        panic!("tried")
    };
    assert_eq!((delivered_status, error, payload), (Some(401), None, None));
    let RetryResult::Tried {
        delivered_status,
        error,
        ..
    } = tried(json!([]))
    else {
        panic!("tried")
    };
    assert!(delivered_status.is_none() && error.unwrap().contains("could not be read"));
}

#[test]
fn refusals_say_what_to_do() {
    let samples = samples();
    let captured = |name: &str| samples["errors"][name]["body"].as_str().unwrap().to_owned();
    let detail = |text: &str| json!({ "detail": text }).to_string();
    let cases = [
        (
            400,
            detail("Run wr_1 has not reached a terminal state (status=running)."),
            "has not ended yet",
        ),
        (
            400,
            captured("retry_no_target"),
            "give one, or, if it is the workflow run of a task 2.0",
        ),
        (
            400,
            detail("Run type yutori_navigator is not supported for webhook replay."),
            "poll the run instead",
        ),
        (400, captured("retry_bad_scheme"), "unsupported scheme"),
        (
            400,
            detail("Invalid webhook_url: blocked host."),
            "blocked host",
        ),
        (401, String::new(), "check api_key"),
        (403, captured("no_key"), "check api_key"),
        (404, captured("retry_unknown"), "does not know wr_1"),
        (404, detail("Organization not found"), "check api_key"),
        (
            409,
            detail("Run wr_1 is not final; webhook replay is unavailable until it is final."),
            "further attempt is due",
        ),
        (
            422,
            captured("retry_bad_body"),
            "Input should be a valid string",
        ),
        (429, String::new(), "try again later"),
        (
            500,
            r#"{"error":"Unexpected error: FailedToSendWebhook"}"#.to_owned(),
            "FailedToSendWebhook",
        ),
        (302, String::new(), "HTTP 302"),
    ];
    for (status, body, words) in cases {
        let RetryResult::Refused {
            status: told,
            message,
        } = Skyvern.read_retry(&id("wr_1"), &http(status, body))
        else {
            panic!("{status}")
        };
        assert_eq!(told, Some(status));
        assert!(message.contains(words), "{status}: {message}");
    }
    let unasked = Skyvern.read_retry(
        &id("wr_1"),
        &ApiResponse::Failed {
            what: "connection refused".to_owned(),
        },
    );
    let expected = "Skyvern could not be asked: connection refused".to_owned();
    assert_eq!(
        unasked,
        RetryResult::Refused {
            status: None,
            message: expected
        }
    );
    let RetryResult::Refused { message, .. } =
        Skyvern.read_retry(&id("tsk_1"), &http(400, captured("retry_no_target")))
    else {
        panic!("refused")
    };
    assert_eq!(message, "tsk_1 has no webhook URL at Skyvern: give one");
}

// ── The account ─────────────────────────────────────────────────────────────────────────────────

#[test]
fn the_account_is_reached_as_documented() {
    assert_eq!(
        settled::providers::named("skyvern").map(Provider::name),
        Some("skyvern")
    );
    assert_eq!(Skyvern.base_url(), "https://api.skyvern.com");
    assert_eq!(Skyvern.key_header(), ("x-api-key", ""));
    assert_eq!(Skyvern.canary_request(&SETTINGS).path, CANARY);
    let environment = Skyvern.environment();
    assert_eq!(environment.api_key, "SKYVERN_API_KEY");
    assert_eq!(
        (environment.webhook_secret, environment.path_token),
        (None, None)
    );
    assert!(Skyvern.signs_with_api_key());
}

#[test]
fn the_policy_waits_out_finally_blocks() {
    let Policy {
        confirm,
        grace,
        deadline,
        give_up,
        first_poll,
        max_interval,
        can_poll,
        ..
    } = Skyvern.policy(None);
    assert_eq!((confirm, can_poll), (Confirm::Auto, true));
    let seconds = [grace, deadline, give_up, first_poll, max_interval].map(|span| span.as_secs());
    assert_eq!(seconds, [60, 86_400, 604_800, 20, 300]);
}
