//! SmartBrowse: three bodies with three words for the state, and deliveries nobody signed.

use std::time::Duration;

use serde_json::{Value, json};
use settled::model::decide::{Circumstances, Effect, decide};
use settled::model::observation::{Claim, Observation, Progress};
use settled::model::schedule::{Confirm, Policy};
use settled::model::{At, Kind, RunId, Trust, Via};
use settled::providers::smartbrowse::SmartBrowse;
use settled::providers::{
    ApiResponse, Delivery, Gap, Headers, Method, Provider, Reading, Response, ResponseClass,
    RetryResult, RunRef, Settings, Verdict, Webhook,
};
use settled::secret::{Key, Keyring, RequiredHeader, Secret, SecretLabel, TokenDigest};

const NOW: At = At(1_795_249_022_000);
const SETTINGS: Settings = Settings { api: None };

fn id(text: &str) -> RunId {
    RunId::new(text).unwrap()
}

fn key(label: &str, value: &str) -> Key {
    Key {
        label: SecretLabel(label.to_owned()),
        secret: Secret::new(value),
    }
}

fn header(name: &str, values: &[&str]) -> RequiredHeader {
    let values = values
        .iter()
        .enumerate()
        .map(|(n, value)| key(&format!("{name}[{n}]"), value))
        .collect();
    RequiredHeader {
        name: name.to_owned(),
        values,
    }
}

fn verify(
    keyring: &Keyring,
    token: Option<&str>,
    headers: &[(&str, &str)],
) -> (Verdict, Option<String>) {
    let headers: Headers = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let token = token.map(TokenDigest::of);
    let delivery = Delivery {
        headers: &headers,
        body: b"{}",
        truncated: false,
        path_token: token.as_ref(),
    };
    let proof = SmartBrowse.verify(&delivery, keyring, NOW);
    (proof.verdict(), proof.secret().map(|label| label.0.clone()))
}

fn read_as(body: &[u8], truncated: bool) -> Reading {
    let (trust, via) = (Trust::SharedSecret, Via::Webhook);
    SmartBrowse.read_webhook(&Webhook {
        body,
        truncated,
        trust,
        via,
        received_at: NOW,
        settings: &SETTINGS,
    })
}

fn said(body: &[u8]) -> Observation {
    match read_as(body, false) {
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

fn status_of(answers: &[ApiResponse]) -> Observation {
    let run_id = id("r1");
    SmartBrowse.read_status(
        &RunRef {
            guessed: false,
            run_id: &run_id,
            kind: Kind::Recipe,
            group_id: None,
            settings: &SETTINGS,
        },
        answers,
        NOW,
    )
}

fn words(heard: &Observation) -> String {
    match &heard.claim {
        Claim::Open(Progress::Waiting) => "open waiting".to_owned(),
        Claim::Open(Progress::Started) => "open started".to_owned(),
        Claim::Listed { over: true } => "look".to_owned(),
        Claim::Nothing => "nothing".to_owned(),
        Claim::Ended(end) if !end.sufficient => end.outcome.word().to_owned(),
        other => format!("{other:?}"),
    }
}

// ── Verification ────────────────────────────────────────────────────────────────────────────────

#[test]
fn everything_that_is_configured_must_match() {
    let both = Keyring {
        path_tokens: vec![key("path_token", "t1"), key("path_tokens[1]", "t2")],
        headers: vec![
            header("authorization", &["Bearer a", "Bearer b"]),
            header("x-hook", &["h"]),
        ],
        ..Keyring::default()
    };
    let good = [("authorization", "Bearer b"), ("x-hook", "h")];
    let genuine = |label: &str| (Verdict::SharedSecret, Some(label.to_owned()));
    let bad = (Verdict::BadToken, None);
    assert_eq!(verify(&both, Some("t1"), &good), genuine("path_token"));
    assert_eq!(verify(&both, Some("t2"), &good), genuine("path_tokens[1]"));
    assert_eq!(verify(&both, Some("t3"), &good), bad);
    assert_eq!(verify(&both, None, &good), bad);
    assert_eq!(verify(&both, Some("t1"), &good[..1]), bad);
    assert_eq!(
        verify(&both, Some("t1"), &[("authorization", "Bearer c"), good[1]]),
        bad
    );
    assert_eq!(
        verify(&both, Some("t1"), &[("authorization", "bearer a"), good[1]]),
        bad
    );
    assert_eq!(verify(&both, Some("t1"), &[]), bad);
}

#[test]
fn a_header_alone_or_a_token_alone_suffices_where_only_that_is_configured() {
    let header = Keyring {
        headers: vec![header("authorization", &["Bearer a", "Bearer b"])],
        ..Keyring::default()
    };
    let named = (Verdict::SharedSecret, Some("authorization[1]".to_owned()));
    assert_eq!(
        verify(&header, None, &[("authorization", "Bearer b")]),
        named
    );
    assert_eq!(
        verify(&header, Some("unasked"), &[("authorization", " Bearer b ")]),
        named
    );
    assert_eq!(verify(&header, Some("unasked"), &[]).0, Verdict::BadToken);
    let token = Keyring {
        path_tokens: vec![key("path_token", "t1")],
        ..Keyring::default()
    };
    assert_eq!(
        verify(&token, Some("t1"), &[]),
        (Verdict::SharedSecret, Some("path_token".to_owned()))
    );
}

#[test]
fn with_nothing_configured_nothing_is_believed() {
    let signing = Keyring {
        signing: vec![key("api_key", "k")],
        ..Keyring::default()
    };
    for keyring in [Keyring::default(), signing] {
        assert_eq!(
            verify(&keyring, Some("t"), &[("authorization", "x")]),
            (Verdict::NoSecret, None)
        );
    }
    let unfillable = Keyring {
        headers: vec![header("authorization", &[])],
        ..Keyring::default()
    };
    assert_eq!(
        verify(&unfillable, None, &[("authorization", "")]).0,
        Verdict::BadToken
    );
}

#[test]
fn a_cut_off_body_is_as_genuine_as_its_address_and_leads_to_a_request() {
    let token = TokenDigest::of("t");
    let keyring = Keyring {
        path_tokens: vec![key("path_token", "t")],
        ..Keyring::default()
    };
    let body = br#"{"event":"completed","status":"completed","run_id":"r1","warnings":["#;
    let delivery = Delivery {
        headers: &[],
        body,
        truncated: true,
        path_token: Some(&token),
    };
    assert_eq!(
        SmartBrowse.verify(&delivery, &keyring, NOW).verdict(),
        Verdict::SharedSecret
    );
    let Reading::Said(heard) = read_as(body, true) else {
        panic!("said")
    };
    assert_eq!(
        (words(&heard[0]).as_str(), heard[0].run_id.as_str()),
        ("look", "r1")
    );
    assert!(matches!(
        read_as(br#"{"warnings":["#, true),
        Reading::Unreadable(_)
    ));
}

// ── Webhooks ────────────────────────────────────────────────────────────────────────────────────

#[test]
fn flat_bodies_say_their_state_and_never_settle_alone() {
    let vectors: Vec<Value> =
        serde_json::from_str(include_str!("../vectors/smartbrowse/webhooks.json")).unwrap();
    for vector in vectors {
        let name = &vector["name"];
        let heard = said(vector["body"].to_string().as_bytes());
        assert_eq!(words(&heard), vector["says"].as_str().unwrap(), "{name}");
        assert_eq!(
            heard.detail.error.as_deref(),
            vector["error"].as_str(),
            "{name}"
        );
        assert_eq!(
            (heard.run_id.as_str(), heard.kind),
            ("r1", Some(Kind::Recipe)),
            "{name}"
        );
        assert_eq!(
            (heard.trust, heard.via, heard.requested_at),
            (Trust::SharedSecret, Via::Webhook, NOW),
            "{name}"
        );
    }
}

#[test]
fn a_webhook_tells_recipe_time_and_counts() {
    let vectors: Vec<Value> =
        serde_json::from_str(include_str!("../vectors/smartbrowse/webhooks.json")).unwrap();
    let detail = said(vectors[0]["body"].to_string().as_bytes()).detail;
    assert_eq!(
        (
            detail.group_id.as_deref(),
            detail.provider_status.as_deref()
        ),
        (Some("c1"), Some("completed"))
    );
    assert_eq!(
        detail.provider_time.unwrap().rfc3339(),
        "2026-11-21T08:00:00.000Z"
    );
    let counted = json!({"pages_extracted": 3, "items_extracted": 40, "credits_used": 6});
    assert_eq!(Value::Object(detail.counters.unwrap()), counted);
}

#[test]
fn a_body_that_differs_only_in_warnings_says_the_same() {
    let one = said(br#"{"event":"failed","status":"failed","run_id":"r1","warnings":[]}"#);
    assert_eq!(
        one,
        said(br#"{"event":"failed","status":"failed","run_id":"r1","warnings":["slow",{"a":1}]}"#)
    );
    assert_eq!(
        one,
        said(br#"{"event":"failed","status":"failed","run_id":"r1","warnings":[]}"#)
    );
}

#[test]
fn a_contradiction_in_a_webhook_asks_at_once_and_settles_nothing() {
    let policy = SmartBrowse.policy(None);
    let at = Circumstances {
        policy: &policy,
        now: NOW,
        report: 1,
        seed: 1,
        since: At(0),
        found_at: None,
    };
    let heard = said(br#"{"event":"completed","status":"failed","run_id":"r1"}"#);
    let decision = decide(None, &heard, &at);
    let run = decision.run.unwrap();
    assert_eq!((decision.publish, decision.effect), (None, Effect::Opened));
    assert!(run.poll.is_some_and(|plan| plan.at == NOW && plan.urgent));
    let answered = status_of(&[http(
        200,
        r#"{"status":"completed","data":{"run_status":"failed"}}"#,
    )]);
    assert_eq!(decide(Some(run), &answered, &at).effect, Effect::Settled);
}

#[test]
fn what_cannot_be_understood_is_unreadable_and_never_quoted() {
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let bodies: [&[u8]; 12] = [
        b"",
        b"\0",
        b"run_id=secret&status=completed",
        b"[{\"run_id\":\"secret\"}]",
        b"{\"status\":\"completed\",\"data\":{\"id\":\"secret\",\"run_status\":\"completed\"}}",
        b"{\"run_id\":null,\"status\":null,\"event\":null}",
        b"{\"run_id\":17,\"status\":\"completed\"}",
        b"{\"run_id\":\"secret\\u0000\",\"status\":\"completed\"}",
        b"{\"run_id\":\"secret\",\"error\":\"\xff\",\"status\":\"completed\"}",
        b"\xef\xbb\xbf{\"run_id\":\"secret\"}",
        b"{\"run_id\":\"secret\",\"drift\":NaN}",
        deep.as_bytes(),
    ];
    for body in bodies {
        let Reading::Unreadable(why) = read_as(body, false) else {
            panic!("{}", String::from_utf8_lossy(body))
        };
        assert!(!why.contains("secret"), "{why}");
    }
}

#[test]
fn poison_beside_the_state_hides_nothing() {
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    for odd in [
        deep.as_str(),
        "1e999",
        "12345678901234567890",
        "\"\\u0000\"",
    ] {
        let body =
            format!(r#"{{"run_id":"r1","warnings":{odd},"status":"failed","credits_used":{odd}}}"#);
        assert_eq!(
            words(&said(body.as_bytes())),
            "failed",
            "{}",
            &odd[..odd.len().min(20)]
        );
    }
    assert_eq!(
        words(&said(
            br#"{"run_id":"r1","status":"failed","status":"completed"}"#
        )),
        "succeeded"
    );
}

// ── Answers ─────────────────────────────────────────────────────────────────────────────────────

#[test]
fn only_run_status_inside_data_is_the_state_of_a_run() {
    let vectors: Vec<Value> =
        serde_json::from_str(include_str!("../vectors/smartbrowse/runs.json")).unwrap();
    for vector in vectors {
        let name = &vector["name"];
        let heard = status_of(&[http(200, vector["body"].to_string())]);
        assert_eq!(words(&heard), vector["says"].as_str().unwrap(), "{name}");
        assert_eq!(
            heard.detail.error.as_deref(),
            vector["error"].as_str(),
            "{name}"
        );
        assert_eq!(
            (heard.run_id.as_str(), heard.kind),
            ("r1", Some(Kind::Recipe)),
            "{name}"
        );
        assert_eq!(
            (heard.trust, heard.via),
            (Trust::Authoritative, Via::Poll),
            "{name}"
        );
    }
}

#[test]
fn the_credits_of_the_run_are_inside_and_those_of_the_call_outside() {
    let vectors: Vec<Value> =
        serde_json::from_str(include_str!("../vectors/smartbrowse/runs.json")).unwrap();
    let detail = status_of(&[http(200, vectors[0]["body"].to_string())]).detail;
    let counted = json!({"pages_extracted": 1, "items_extracted": 4, "credits_used": 2});
    assert_eq!(Value::Object(detail.counters.unwrap()), counted);
    assert_eq!(detail.group_id.as_deref(), Some("c1"));
    assert_eq!(
        detail.opened_at.unwrap().rfc3339(),
        "2026-11-21T08:00:00.000Z"
    );
}

#[test]
fn an_answer_tells_the_word_and_the_last_time_there_is() {
    let detail = |data: Value| status_of(&[http(200, json!({"data": data}).to_string())]).detail;
    let over = detail(
        json!({"run_status": "completed", "started_at": "2026-11-21T08:00:01Z", "completed_at": "2026-11-21T08:05:00Z"}),
    );
    assert_eq!(over.provider_status.as_deref(), Some("completed"));
    assert_eq!(
        over.provider_time.unwrap().rfc3339(),
        "2026-11-21T08:05:00.000Z"
    );
    let running = detail(json!({"run_status": "running", "started_at": "2026-11-21T08:00:01Z"}));
    assert_eq!(running.provider_status.as_deref(), Some("running"));
    assert_eq!(
        running.provider_time.unwrap().rfc3339(),
        "2026-11-21T08:00:01.000Z"
    );
}

#[test]
fn the_state_is_found_behind_a_huge_result_and_before_a_cut() {
    let items = "{\"a\":\"b\"},".repeat(550_000);
    let late = format!(
        r#"{{"status":"completed","data":{{"result":{{"pages":[{items}0]}},"run_status":"failed"}}}}"#
    );
    assert!(late.len() > 5 * 1024 * 1024);
    assert_eq!(words(&status_of(&[http(200, late.clone())])), "failed");
    let cut = |body: &str| {
        ApiResponse::Http(Response {
            status: 200,
            body: body.into(),
            truncated: true,
            ..Response::default()
        })
    };
    assert_eq!(
        words(&status_of(&[cut(
            r#"{"data":{"run_status":"completed","result":{"pages":[{"#
        )])),
        "succeeded"
    );
    assert_eq!(
        words(&status_of(&[cut(&late[..late.len() / 2])])),
        "nothing"
    );
}

#[test]
fn a_run_is_asked_about_with_room_for_all_its_items() {
    let run_id = id("aB3/x");
    let question = SmartBrowse.status_request(&RunRef {
        guessed: false,
        run_id: &run_id,
        kind: Kind::Recipe,
        group_id: None,
        settings: &SETTINGS,
    });
    assert_eq!(
        (question.method, question.path.as_str()),
        (Method::Get, "/v1/smartbrowse/runs/aB3%2Fx")
    );
    assert_eq!(question.bytes_max, 64 * 1024 * 1024);
}

#[test]
fn a_404_may_be_a_wrong_key_so_usage_is_asked() {
    let run_id = id("r1");
    let subject = RunRef {
        guessed: false,
        run_id: &run_id,
        kind: Kind::Recipe,
        group_id: None,
        settings: &SETTINGS,
    };
    let missing = http(
        404,
        r#"{"status":"error","request_id":"req_1","error":{"code":"not_found","message":"x"}}"#,
    );
    let next = SmartBrowse
        .follow_up(&subject, std::slice::from_ref(&missing))
        .unwrap();
    assert_eq!(next.path, "/v1/smartbrowse/usage");
    let after = |canary: ApiResponse| status_of(&[missing.clone(), canary]).claim;
    assert_eq!(after(http(200, "{}")), Claim::Missing);
    assert_eq!(after(http(401, r#"{"error":"bad key"}"#)), Claim::Nothing);
    assert_eq!(after(http(500, "")), Claim::Nothing);
    assert_eq!(
        after(ApiResponse::Failed {
            what: "timed out".to_owned()
        }),
        Claim::Nothing
    );
    assert_eq!(
        status_of(std::slice::from_ref(&missing)).claim,
        Claim::Nothing
    );
}

#[test]
fn failures_are_never_evidence() {
    let ended = r#"{"status":"completed","data":{"run_status":"completed"}}"#;
    for status in [400, 401, 402, 403, 409, 429, 500, 502, 503] {
        assert_eq!(
            status_of(&[http(status, ended)]).claim,
            Claim::Nothing,
            "{status}"
        );
    }
    assert_eq!(
        status_of(&[ApiResponse::Failed {
            what: "refused".to_owned()
        }])
        .claim,
        Claim::Nothing
    );
    for unreadable in ["", "<html>", "[]", "{}", "null", r#"{"data":{"id":"r1""#] {
        assert_eq!(
            status_of(&[http(200, unreadable)]).claim,
            Claim::Nothing,
            "{unreadable}"
        );
    }
}

#[test]
fn a_401_is_about_the_key_with_and_without_an_envelope() {
    for body in [
        r#"{"error":"invalid API key"}"#,
        r#"{"status":"error","error":{"code":"unauthorized"}}"#,
        "",
    ] {
        assert!(
            matches!(
                SmartBrowse.classify(&http(401, body)),
                ResponseClass::Denied { .. }
            ),
            "{body}"
        );
    }
    assert!(matches!(
        SmartBrowse.classify(&http(502, "")),
        ResponseClass::Unavailable { .. }
    ));
    let slow = Response {
        status: 429,
        headers: vec![("retry-after".into(), "9".into())],
        ..Response::default()
    };
    let throttled = ResponseClass::RateLimited {
        retry_after: Some(Duration::from_secs(9)),
    };
    assert_eq!(SmartBrowse.classify(&ApiResponse::Http(slow)), throttled);
    for (status, body) in [(200, "{}"), (402, ""), (404, ""), (409, "")] {
        assert_eq!(
            SmartBrowse.classify(&http(status, body)),
            ResponseClass::Ok,
            "{status}"
        );
    }
}

// ── Usage in place of a list ────────────────────────────────────────────────────────────────────

#[test]
fn usage_shows_the_newest_run_and_counts_the_rest() {
    let question = SmartBrowse.list_request(None, &SETTINGS).unwrap();
    assert_eq!(question.path, "/v1/smartbrowse/usage");
    assert_eq!(SmartBrowse.list_request(Some("2"), &SETTINGS), None);
    for (state, over) in [
        ("running", false),
        ("completed", true),
        ("failed", true),
        ("cancelled", true),
        ("odd", false),
    ] {
        let body = json!({"status": "completed", "data": {"runs_used_30d": 41, "last_run":
            {"id": "r9", "status": state, "pages_extracted": 1, "created_at": "2026-11-21T08:00:00Z"}}});
        let listing = SmartBrowse.read_list(None, &http(200, body.to_string()), &SETTINGS, NOW);
        assert_eq!(
            (listing.gap, listing.next),
            (Some(Gap { runs_counted: 41 }), None)
        );
        let run = &listing.runs[0];
        assert_eq!((listing.runs.len(), run.run_id.as_str()), (1, "r9"));
        assert_eq!(
            (&run.claim, run.via, run.kind),
            (&Claim::Listed { over }, Via::Sweep, Some(Kind::Recipe))
        );
        assert_eq!(
            run.detail.opened_at.unwrap().rfc3339(),
            "2026-11-21T08:00:00.000Z"
        );
    }
}

#[test]
fn usage_without_a_run_or_a_count_says_only_what_it_says() {
    let read =
        |status, body: &str| SmartBrowse.read_list(None, &http(status, body), &SETTINGS, NOW);
    let none = read(
        200,
        r#"{"status":"completed","data":{"runs_used_30d":0,"last_run":null}}"#,
    );
    assert_eq!(
        (none.runs.len(), none.gap),
        (0, Some(Gap { runs_counted: 0 }))
    );
    for body in [
        r#"{"data":{"last_run":{"status":"running"}}}"#,
        r#"{"last_run":{"id":"r9"}}"#,
        "[]",
        "",
        "{}",
    ] {
        assert_eq!(
            read(200, body),
            settled::providers::Listing::default(),
            "{body}"
        );
    }
    assert_eq!(
        read(401, r#"{"data":{"runs_used_30d":3}}"#),
        settled::providers::Listing::default()
    );
}

// ── The account ─────────────────────────────────────────────────────────────────────────────────

#[test]
fn the_account_is_reached_as_documented() {
    assert_eq!(
        settled::providers::named("smartbrowse").map(Provider::name),
        Some("smartbrowse")
    );
    assert_eq!(SmartBrowse.base_url(), "https://api.webscrape.ai");
    assert_eq!(SmartBrowse.key_header(), ("X-API-Key", ""));
    let environment = SmartBrowse.environment();
    assert_eq!(
        (environment.api_key, environment.path_token),
        ("WEBSCRAPE_API_KEY", Some("SMARTBROWSE_PATH_TOKEN"))
    );
    assert_eq!(environment.webhook_secret, None);
    assert!(!SmartBrowse.signs_with_api_key());
    assert_eq!(SmartBrowse.kind_of(&id("x"), &SETTINGS), Kind::Recipe);
    assert_eq!(SmartBrowse.retry_request(&id("x"), None), None);
    assert!(matches!(
        SmartBrowse.read_retry(&id("x"), &http(200, "{}")),
        RetryResult::Refused { .. }
    ));
}

#[test]
fn the_policy_knows_the_fifteen_minutes_a_run_may_take() {
    let Policy {
        confirm,
        grace,
        deadline,
        give_up,
        first_poll,
        max_interval,
        expected_end_ages,
        can_poll,
        ..
    } = SmartBrowse.policy(None);
    assert_eq!((confirm, can_poll), (Confirm::Auto, true));
    let seconds = [grace, deadline, give_up, first_poll, max_interval].map(|span| span.as_secs());
    assert_eq!(seconds, [0, 1500, 86_400, 20, 300]);
    assert_eq!(
        expected_end_ages
            .iter()
            .map(Duration::as_secs)
            .collect::<Vec<_>>(),
        [900, 960, 1080]
    );
}
