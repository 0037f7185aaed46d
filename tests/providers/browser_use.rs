//! Browser Use: signature vectors, webhook generations, answers of three API generations, lists.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use settled::model::decide::{Circumstances, Effect, Phase, decide};
use settled::model::observation::{Claim, Observation, Progress};
use settled::model::{At, Kind, Outcome, RunId, Trust, Via};
use settled::providers::browser_use::BrowserUse;
use settled::providers::signature::sign;
use settled::providers::{
    ApiRequest, ApiResponse, Delivery, Headers, Proof, Provider, Reading, Response, ResponseClass,
    RunRef, Settings, Verdict, Webhook, named, python_json,
};
use settled::secret::{Key, Keyring, Secret, SecretLabel};

const TASK: &str = "5b73fb3f-a3cb-4912-be40-17ce9e9e1a45";
const SESSION: &str = "cd9cc7bf-e3af-4181-80a2-73f083bc94b4";
const NOW: At = At(1_789_560_000_000);

// ── Signatures ──────────────────────────────────────────────────────────────────────────────────

#[derive(Deserialize)]
struct Vector {
    name: String,
    secret: String,
    headers: BTreeMap<String, String>,
    raw_body: String,
    valid: bool,
    now: i64,
    signed_message: Option<String>,
    tags: Vec<String>,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("../vectors/browser-use/signatures.json")).unwrap()
}

fn keyring(secrets: &[&str]) -> Keyring {
    let key = |(n, secret): (usize, &&str)| Key {
        label: SecretLabel(format!("s{n}")),
        secret: Secret::new(secret),
    };
    Keyring {
        signing: secrets.iter().enumerate().map(key).collect(),
        ..Keyring::default()
    }
}

fn prove(headers: &[(&str, &str)], body: &[u8], secrets: &[&str]) -> Proof {
    let headers: Headers = headers
        .iter()
        .map(|(k, v)| (k.to_lowercase(), (*v).to_owned()))
        .collect();
    let delivery = Delivery {
        headers: &headers,
        body,
        truncated: false,
        path_token: None,
    };
    BrowserUse.verify(&delivery, &keyring(secrets), NOW)
}

fn verdict(headers: &[(&str, &str)], body: &str, secrets: &[&str]) -> Verdict {
    prove(headers, body.as_bytes(), secrets).verdict()
}

/// What a vector must be judged as. Its `valid` says what the vendor's references hold; the rest is
/// policy of ours.
fn expected(vector: &Vector) -> Verdict {
    match vector.name.as_str() {
        // A lone surrogate has no place in a Rust string: unverifiable on purpose, polling covers it.
        // Nor does the canonical text cover the value that a repeated key hides.
        "B/lone_surrogate_escape" | "B/duplicate_keys_last_wins" => Verdict::BadSignature,
        // A ping gets its 200 whatever its signature, and touches no run.
        "A/utf8_vs_escaped" => Verdict::Ping,
        "B/stale_301" | "B/stale_one_day" | "B/future_301" => Verdict::Stale,
        "B/missing_signature_header" => Verdict::Unsigned,
        _ if vector.valid => Verdict::Signed,
        _ => Verdict::BadSignature,
    }
}

#[test]
fn every_signature_vector_is_judged_as_it_says_at_its_own_now() {
    let vectors = vectors();
    assert!(vectors.len() >= 54);
    for vector in vectors {
        let headers: Headers = vector
            .headers
            .iter()
            .map(|(k, v)| (k.to_lowercase(), v.clone()))
            .collect();
        let body = vector.raw_body.as_bytes();
        let delivery = Delivery {
            headers: &headers,
            body,
            truncated: false,
            path_token: None,
        };
        let proof = BrowserUse.verify(
            &delivery,
            &keyring(&[&vector.secret]),
            At(vector.now * 1000),
        );
        assert_eq!(
            proof.verdict(),
            expected(&vector),
            "{} {:?}",
            vector.name,
            vector.tags
        );
        assert_eq!(
            proof.secret().is_some(),
            matches!(proof.verdict(), Verdict::Signed | Verdict::Stale)
        );
    }
}

#[test]
fn the_canonical_text_of_every_valid_vector_is_what_python_signed() {
    let b = vectors()
        .into_iter()
        .filter(|v| v.valid && v.name.starts_with("B/") && !v.name.contains("surrogate"));
    let mut checked = 0;
    for vector in b {
        let message = vector.signed_message.unwrap();
        let (_, text) = message.split_once('.').unwrap();
        let document = python_json::parse(vector.raw_body.as_bytes()).unwrap();
        assert_eq!(
            document.canonical().as_deref(),
            Some(text),
            "{}",
            vector.name
        );
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
}

#[expect(clippy::needless_pass_by_value, reason = "it is always a literal")]
fn event(kind: &str, payload: Value) -> String {
    json!({ "type": kind, "timestamp": "2026-09-16T12:00:00", "payload": payload }).to_string()
}

fn finished_task() -> String {
    event(
        "agent.task.status_update",
        json!({"task_id": TASK, "session_id": SESSION, "status": "finished"}),
    )
}

fn signed_b(body: &str, time: &str, secret: &str) -> String {
    let canonical = python_json::parse(body.as_bytes())
        .unwrap()
        .canonical()
        .unwrap();
    sign(secret, &[time.as_bytes(), b".", canonical.as_bytes()])
}

#[test]
fn a_time_stamp_counts_for_300_seconds_either_way_and_not_a_moment_longer() {
    let body = finished_task();
    let sent: i64 = NOW.0 / 1000;
    let (time, signature) = (sent.to_string(), signed_b(&body, &sent.to_string(), "k"));
    let headers = [
        ("x-browser-use-timestamp".to_owned(), time),
        ("x-browser-use-signature".to_owned(), signature),
    ];
    let delivery = Delivery {
        headers: &headers,
        body: body.as_bytes(),
        truncated: false,
        path_token: None,
    };
    for (millis, verdict) in [
        (299_000, Verdict::Signed),
        (299_999, Verdict::Signed),
        (300_000, Verdict::Signed),
        (300_001, Verdict::Stale),
        (301_000, Verdict::Stale),
    ] {
        for now in [sent * 1000 + millis, sent * 1000 - millis] {
            let proof = BrowserUse.verify(&delivery, &keyring(&["k"]), At(now));
            assert_eq!(
                proof.verdict(),
                verdict,
                "{} ms after it was sent",
                now - sent * 1000
            );
        }
    }
}

#[test]
fn when_both_signatures_come_only_the_timestamped_one_decides() {
    let body = finished_task();
    let (a, b) = (
        sign("k", &[body.as_bytes()]),
        signed_b(&body, "1789560000", "k"),
    );
    let time = ("X-Browser-Use-Timestamp", "1789560000");
    let both = |a: &str, b: &str| {
        verdict(
            &[
                ("X-Webhook-Signature", a),
                ("X-Browser-Use-Signature", b),
                time,
            ],
            &body,
            &["k"],
        )
    };
    assert_eq!(both(&a, &b), Verdict::Signed);
    assert_eq!(both("nonsense", &b), Verdict::Signed);
    assert_eq!(both(&a, &"0".repeat(64)), Verdict::BadSignature);
    assert_eq!(
        both(&a, ""),
        Verdict::BadSignature,
        "an empty one is no way around it either"
    );
}

#[test]
fn an_untimed_signature_is_worth_nothing_more_than_a_hint_for_a_session() {
    let judged = |body: &str| {
        verdict(
            &[("X-Webhook-Signature", &sign("k", &[body.as_bytes()]))],
            body,
            &["k"],
        )
    };
    let task = "agent.task.status_update";
    assert_eq!(judged(&finished_task()), Verdict::Signed);
    assert_eq!(
        judged(&event(
            task,
            json!({"taskId": TASK, "sessionId": SESSION, "status": "stopped"})
        )),
        Verdict::Signed
    );
    assert_eq!(
        judged(&event(
            "session.status.update",
            json!({"run_id": "r", "status": "completed"})
        )),
        Verdict::Signed
    );
    for session in [
        event(task, json!({"session_id": SESSION, "status": "stopped"})),
        event(
            task,
            json!({"task_id": TASK, "session_id": SESSION, "status": "idle"}),
        ),
        event(
            "session.status.update",
            json!({"session_id": SESSION, "task_id": TASK, "status": "stopped"}),
        ),
    ] {
        assert_eq!(judged(&session), Verdict::Untimed, "{session}");
        assert!(Verdict::Untimed.authentic() && Verdict::Untimed.trust() == Trust::Hint);
    }
}

#[test]
fn the_raw_body_after_the_time_is_the_second_form_tried_and_authenticates_everything() {
    let body = format!(
        r#"{{ "type":"agent.task.status_update","payload":{{"task_id":"{TASK}","status":"finished","x":"\ud83d"}}}}"#
    );
    let signature = sign("k", &[b"1789560000.", body.as_bytes()]);
    let headers = [
        ("X-Browser-Use-Signature", signature.as_str()),
        ("X-Browser-Use-Timestamp", "1789560000"),
    ];
    assert_eq!(verdict(&headers, &body, &["k"]), Verdict::Signed);
}

#[test]
fn a_time_that_is_not_one_to_twelve_digits_proves_nothing() {
    let body = finished_task();
    for (time, good) in [
        ("0001789560000", false),
        ("001789560000", true),
        ("1789560000", true),
    ]
    .into_iter()
    .chain(
        [
            "",
            "+1789560000",
            "1789560000.0",
            "2026-09-16T12:00:00Z",
            "-1",
            "1789560000 ",
        ]
        .map(|time| (time, false)),
    ) {
        let signature = signed_b(&body, time, "k");
        let headers = [
            ("X-Browser-Use-Signature", signature.as_str()),
            ("X-Browser-Use-Timestamp", time),
        ];
        let expected = if good {
            Verdict::Signed
        } else {
            Verdict::BadSignature
        };
        assert_eq!(verdict(&headers, &body, &["k"]), expected, "{time:?}");
    }
    let signature = signed_b(&body, "", "k");
    assert_eq!(
        verdict(&[("X-Browser-Use-Signature", &signature)], &body, &["k"]),
        Verdict::BadSignature
    );
}

#[test]
fn an_untimed_body_cut_at_a_point_cannot_pose_as_a_timestamped_one() {
    // Whatever the sender signed, its beginning is no time unless it is digits alone.
    let body = r#"{"payload":{"task_id":"t","status":"finished"}}"#;
    let whole = format!("{{\"x\":1.{body}");
    let signature = sign("k", &[whole.as_bytes()]);
    let headers = [
        ("X-Browser-Use-Signature", signature.as_str()),
        ("X-Browser-Use-Timestamp", "{\"x\":1"),
    ];
    assert_eq!(verdict(&headers, body, &["k"]), Verdict::BadSignature);
}

#[test]
fn the_signed_text_of_a_timestamped_delivery_is_no_body_for_an_untimed_one() {
    let canonical = python_json::parse(finished_task().as_bytes())
        .unwrap()
        .canonical()
        .unwrap();
    let body = format!("1789560000.{canonical}");
    let signature = sign("k", &[body.as_bytes()]);
    assert_eq!(
        verdict(&[("X-Webhook-Signature", &signature)], &body, &["k"]),
        Verdict::BadSignature
    );
}

#[test]
fn upper_case_signatures_are_refused() {
    let body = finished_task();
    let signature = sign("k", &[body.as_bytes()]).to_uppercase();
    assert_eq!(
        verdict(&[("X-Webhook-Signature", &signature)], &body, &["k"]),
        Verdict::BadSignature
    );
}

#[test]
fn the_secret_that_matched_is_named() {
    let body = finished_task();
    let (a, b) = (
        sign("old", &[body.as_bytes()]),
        signed_b(&body, "1789560000", "old"),
    );
    let time = ("X-Browser-Use-Timestamp", "1789560000");
    for headers in [
        &[("X-Webhook-Signature", a.as_str())][..],
        &[("X-Browser-Use-Signature", b.as_str()), time],
    ] {
        let proof = prove(headers, body.as_bytes(), &["new", "old"]);
        assert_eq!(proof.secret().map(|label| label.0.as_str()), Some("s1"));
    }
}

#[test]
fn a_ping_is_a_ping_before_there_is_a_secret_and_when_its_signature_is_wrong() {
    for ping in [
        r#"{"type":"test","timestamp":"2024-03-21T12:00:00Z","payload":{"test":"ok"}}"#,
        r#"{"test":"ok"}"#,
    ] {
        assert_eq!(verdict(&[], ping, &[]), Verdict::Ping);
        assert_eq!(verdict(&[], ping, &["k"]), Verdict::Ping);
        assert_eq!(
            verdict(&[("X-Browser-Use-Signature", "bad")], ping, &["k"]),
            Verdict::Ping
        );
        assert_eq!(
            verdict(
                &[("X-Webhook-Signature", &sign("k", &[ping.as_bytes()]))],
                ping,
                &["k"]
            ),
            Verdict::Signed
        );
        for trust in Trust::ALL {
            assert_eq!(read(ping, *trust, "v2"), Reading::Ping);
        }
    }
}

#[test]
fn without_a_secret_nothing_but_a_ping_is_taken() {
    assert_eq!(verdict(&[], &finished_task(), &[]), Verdict::NoSecret);
    assert_eq!(verdict(&[], &finished_task(), &["k"]), Verdict::Unsigned);
    assert_eq!(verdict(&[], "not json", &[]), Verdict::NoSecret);
}

#[test]
fn a_body_that_was_cut_off_proves_nothing_and_hints_at_what_it_names() {
    let body = finished_task();
    let head = &body.as_bytes()[..body.len() - 3];
    let delivery = Delivery {
        headers: &Headers::new(),
        body: head,
        truncated: true,
        path_token: None,
    };
    assert_eq!(
        BrowserUse
            .verify(&delivery, &keyring(&["k"]), NOW)
            .verdict(),
        Verdict::Truncated
    );
    let settings = Settings::default();
    let cut = |body| Webhook {
        body,
        truncated: true,
        ..webhook(b"", Trust::Hint, &settings)
    };
    let said = said(BrowserUse.read_webhook(&cut(head)));
    assert_eq!(
        said.iter()
            .map(|seen| seen.run_id.as_str())
            .collect::<Vec<_>>(),
        [TASK, SESSION]
    );
    assert!(said.iter().all(|seen| seen.trust == Trust::Hint));
    assert!(matches!(
        BrowserUse.read_webhook(&cut(b"{\"type\":\"ag\xff")),
        Reading::Unreadable(_)
    ));
}

#[test]
fn a_body_too_large_to_be_genuine_is_not_parsed() {
    let payload =
        json!({"task_id": TASK, "status": "finished", "metadata": {"x": "y".repeat(1 << 20)}});
    let body = event("agent.task.status_update", payload);
    let signature = sign("k", &[body.as_bytes()]);
    assert_eq!(
        verdict(&[("X-Webhook-Signature", &signature)], &body, &["k"]),
        Verdict::BadSignature
    );
    // The key of the metadata sorts first and pushes the id out of the head that is looked at.
    assert!(matches!(
        read(&body, Trust::Hint, "v2"),
        Reading::Unreadable(_)
    ));
}

#[test]
#[ignore = "needs python3; run with --ignored"]
fn canonical_text_is_cpythons_over_many_generated_documents() {
    let documents: Vec<String> = (1..=20_000_u64)
        .map(|seed| Generator(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).document())
        .collect();
    let program = "import sys, json
for line in sys.stdin.buffer.read().split(b'\\n')[:-1]:
    try: print(json.dumps(json.loads(line.decode('utf-8')), sort_keys=True, separators=(',', ':')))
    except ValueError: print('!')";
    let mut python = Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is on PATH");
    let mut stdin = python.stdin.take().unwrap();
    let input = documents.join("\n") + "\n";
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap();
    writer.join().unwrap().unwrap();
    let (mut accepted, mut lone) = (0, 0);
    for (document, theirs) in documents.iter().zip(output.lines()) {
        let ours =
            match python_json::parse(document.as_bytes()).map(|document| document.canonical()) {
                Ok(Some(text)) => text,
                Ok(None) => {
                    lone += 1; // what was inserted broke a surrogate pair: ours has no text, on purpose
                    continue;
                }
                Err(_) => "!".to_owned(),
            };
        assert_eq!(ours, theirs, "{document}");
        accepted += usize::from(theirs != "!");
    }
    assert_eq!(output.lines().count(), documents.len());
    assert!(accepted > 18_000 && lone < 200, "{accepted} {lone}");
}

/// Documents, most of them well formed, from a xorshift.
struct Generator(u64);

impl Generator {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn document(&mut self) -> String {
        let mut text = self.value(3);
        if self.next(10) == 0 {
            let at = usize::try_from(self.next(text.len() as u64)).unwrap();
            if text.is_char_boundary(at) {
                text.insert_str(
                    at,
                    ["\"", "}", "0", ".", "e", "\\", " ", ","]
                        [usize::try_from(self.next(8)).unwrap()],
                );
            }
        }
        text
    }

    fn value(&mut self, depth: u64) -> String {
        match self.next(if depth == 0 { 5 } else { 8 }) {
            0 => ["null", "true", "false"][usize::try_from(self.next(3)).unwrap()].to_owned(),
            1 => self.integer(),
            2 => self.float(),
            3 | 4 => self.string(),
            5 => format!("[{}]", self.many(|g| g.value(depth - 1))),
            _ => format!(
                "{{{}}}",
                self.many(|g| format!("{}: {}", g.string(), g.value(depth - 1)))
            ),
        }
    }

    fn many(&mut self, mut one: impl FnMut(&mut Self) -> String) -> String {
        let items: Vec<String> = (0..self.next(5)).map(|_| one(self)).collect();
        items.join([",", " , ", "\t,\r"][usize::try_from(self.next(3)).unwrap()])
    }

    fn integer(&mut self) -> String {
        let sign = if self.next(3) == 0 { "-" } else { "" };
        let digits = (self.next(u64::MAX), self.next(u64::MAX));
        match self.next(4) {
            0 => format!("{sign}{}", self.next(10)),
            1 => format!("{sign}{}{}", digits.0, digits.1),
            _ => format!("{sign}{}", digits.0 >> self.next(64)),
        }
    }

    fn float(&mut self) -> String {
        match self.next(6) {
            // Doubles that lie in the middle between two shortest texts are found among these.
            4 => format!(
                "{}.{}",
                self.next(1 << 53),
                ["25", "75", "125", "375", "5"][usize::try_from(self.next(5)).unwrap()]
            ),
            5 => format!(
                "{:e}",
                2_f64.powi(i32::try_from(self.next(2000)).unwrap() - 1000)
            ),
            0 => format!("{}.{}", self.integer(), self.next(1_000_000)),
            1 => format!("{}E+{}", self.integer(), self.next(320)),
            2 => format!("{}.{}e-{}", self.integer(), self.next(1000), self.next(340)),
            _ => {
                let float = f64::from_bits(self.next(u64::MAX));
                if float.is_finite() {
                    format!("{float:?}").replace('e', "e0")
                } else {
                    "1e400".to_owned()
                }
            }
        }
    }

    fn string(&mut self) -> String {
        const PIECES: [&str; 16] = [
            "a",
            "B",
            "_",
            "10",
            "9",
            "é",
            "東",
            "🚀",
            "\u{7f}",
            "\u{ffee}",
            "\\n",
            "\\/",
            "\\u00FC",
            "\\uD83D\\uDE80",
            "\\\"",
            "\\u0000",
        ];
        let pieces: String = (0..self.next(6))
            .map(|_| PIECES[usize::try_from(self.next(16)).unwrap()])
            .collect();
        format!("\"{pieces}\"")
    }
}

// ── Webhooks ────────────────────────────────────────────────────────────────────────────────────

fn settings(api: &str) -> Settings {
    Settings {
        api: Some(api.to_owned()),
    }
}

fn webhook<'a>(body: &'a [u8], trust: Trust, settings: &'a Settings) -> Webhook<'a> {
    Webhook {
        body,
        truncated: false,
        trust,
        via: Via::Webhook,
        received_at: NOW,
        settings,
    }
}

fn read(body: &str, trust: Trust, api: &str) -> Reading {
    BrowserUse.read_webhook(&webhook(body.as_bytes(), trust, &settings(api)))
}

fn said(reading: Reading) -> Vec<Observation> {
    match reading {
        Reading::Said(said) => said,
        other => panic!("{other:?}"),
    }
}

/// `(run, kind, claim)` of the entitled observation, and the runs hinted at beside it.
fn told(body: &str, api: &str) -> (String, Option<Kind>, Claim, Vec<String>) {
    let said = said(read(body, Trust::Signed, api));
    let (first, rest) = said.split_first().unwrap();
    assert_eq!(
        (first.trust, first.via, first.requested_at),
        (Trust::Signed, Via::Webhook, NOW)
    );
    assert!(
        rest.iter()
            .all(|other| other.trust == Trust::Hint && matches!(other.claim, Claim::Listed { .. }))
    );
    let rest = rest.iter().map(|other| other.run_id.to_string()).collect();
    (
        first.run_id.to_string(),
        first.kind,
        first.claim.clone(),
        rest,
    )
}

fn outcome(claim: &Claim) -> Option<Outcome> {
    if let Claim::Ended(ending) = claim {
        Some(ending.outcome)
    } else {
        None
    }
}

#[test]
fn every_generation_of_bodies_names_the_task() {
    for body in [
        json!({"session_id": SESSION, "task_id": TASK, "status": "finished"}).to_string(),
        finished_task(),
        event(
            "agent.task.status_update",
            json!({"taskId": TASK, "status": "finished", "sessionId": SESSION}),
        ),
        event(
            "agent.task.status_update",
            json!({"task_id": TASK, "session_id": SESSION, "status": "finished", "metadata": {}}),
        ),
        event(
            "agent.task.statusUpdate",
            json!({"task_id": TASK, "taskId": TASK, "sessionId": SESSION, "status": "finished"}),
        ),
    ] {
        let (id, kind, claim, hinted) = told(&body, "v2");
        assert_eq!(
            (id.as_str(), kind, outcome(&claim)),
            (TASK, Some(Kind::Task), Some(Outcome::Succeeded)),
            "{body}"
        );
        assert_eq!(hinted, [SESSION]);
    }
}

#[test]
fn an_event_that_names_only_a_session_is_about_the_session() {
    for kind in ["session.status.update", "agent.task.status_update"] {
        for id in ["session_id", "sessionId"] {
            let (id, kind, claim, hinted) = told(
                &event(kind, json!({id: SESSION, "status": "stopped"})),
                "v2",
            );
            assert_eq!((id.as_str(), kind), (SESSION, Some(Kind::Session)));
            assert_eq!(outcome(&claim), Some(Outcome::Indeterminate));
            assert!(hinted.is_empty());
        }
    }
}

#[test]
fn a_run_goes_before_a_task_before_a_session_unless_the_session_is_the_unit_of_work() {
    let all = |kind| {
        event(
            kind,
            json!({"run_id": "r", "task_id": "t", "session_id": "s", "status": "running"}),
        )
    };
    let two = |kind| {
        event(
            kind,
            json!({"task_id": "t", "session_id": "s", "status": "running"}),
        )
    };
    let chosen = |body: &str, api| told(body, api).0;
    assert_eq!(told(&all("agent.task.status_update"), "v2").3, ["t", "s"]);
    for api in ["v2", "v3", "v4"] {
        assert_eq!(chosen(&all("agent.task.status_update"), api), "r");
    }
    assert_eq!(chosen(&two("agent.task.status_update"), "v2"), "t");
    assert_eq!(chosen(&two("agent.task.status_update"), "v3"), "s");
    assert_eq!(chosen(&two("session.status.update"), "v2"), "s");
}

#[test]
fn two_spellings_of_an_id_that_differ_are_malformed() {
    for (snake, camel) in [
        ("task_id", "taskId"),
        ("session_id", "sessionId"),
        ("run_id", "runId"),
    ] {
        let body = event(
            "agent.task.status_update",
            json!({snake: "a", camel: "b", "status": "finished"}),
        );
        let Reading::Unreadable(why) = read(&body, Trust::Signed, "v2") else {
            panic!("{body}")
        };
        assert!(why.starts_with("malformed"), "{why}");
    }
    let spaced = event(
        "agent.task.status_update",
        json!({"task_id": "a b", "status": "finished"}),
    );
    assert!(matches!(
        read(&spaced, Trust::Signed, "v2"),
        Reading::Unreadable(_)
    ));
}

#[test]
fn each_status_word_means_what_the_table_says_and_no_ending_settles_alone() {
    let over = |outcome| (Some(outcome), None);
    for (word, (ended, open), reason) in [
        ("created", (None, Some(Progress::Waiting)), None),
        ("queued", (None, Some(Progress::Waiting)), None),
        ("dispatching", (None, Some(Progress::Waiting)), None),
        ("initializing", (None, Some(Progress::Waiting)), None),
        ("started", (None, Some(Progress::Started)), None),
        ("running", (None, Some(Progress::Started)), None),
        ("paused", (None, Some(Progress::Started)), None),
        ("finished", over(Outcome::Succeeded), Some("unreported")),
        ("completed", over(Outcome::Succeeded), Some("unreported")),
        (
            "stopped",
            over(Outcome::Indeterminate),
            Some("stopped_unconfirmed"),
        ),
        ("failed", over(Outcome::Failed), None),
        ("error", over(Outcome::Failed), Some("infrastructure_error")),
        ("timed_out", over(Outcome::TimedOut), None),
        ("cancelled", over(Outcome::Cancelled), None),
        (
            "hibernating",
            (None, Some(Progress::Waiting)),
            Some("unknown_status"),
        ),
    ] {
        let body = event(
            "agent.task.status_update",
            json!({"task_id": TASK, "status": word}),
        );
        let said = said(read(&body, Trust::Signed, "v2"));
        let first = &said[0];
        match &first.claim {
            Claim::Ended(ending) => assert_eq!(
                (Some(ending.outcome), ending.sufficient),
                (ended, false),
                "{word}"
            ),
            claim => assert_eq!(Some(claim), open.map(Claim::Open).as_ref(), "{word}"),
        }
        assert_eq!(
            (
                first.detail.provider_status.as_deref(),
                first.detail.reason.as_deref()
            ),
            (Some(word), reason)
        );
    }
}

#[test]
fn an_unknown_word_leaves_the_run_open_and_brings_its_poll_forward() {
    let body = event(
        "agent.task.status_update",
        json!({"task_id": TASK, "status": "hibernating"}),
    );
    let (id, _, claim, hinted) = told(&body, "v2");
    assert_eq!(
        (id.as_str(), claim, hinted),
        (TASK, Claim::Open(Progress::Waiting), vec![TASK.to_owned()])
    );
}

#[test]
fn an_idle_webhook_asks_at_once_and_never_settles() {
    let body = event(
        "session.status.update",
        json!({"session_id": SESSION, "status": "idle"}),
    );
    let said = said(read(&body, Trust::Signed, "v3"));
    assert_eq!(said[0].claim, Claim::Listed { over: true });
    let policy = BrowserUse.policy(Some(Kind::Session));
    let at = Circumstances {
        policy: &policy,
        now: NOW,
        report: 1,
        seed: 1,
        since: At(0),
        found_at: None,
    };
    let heard = decide(None, &said[0], &at);
    let run = heard.run.unwrap();
    assert_eq!((heard.publish, heard.effect), (None, Effect::Opened));
    assert!(run.poll.is_some_and(|plan| plan.at == NOW && plan.urgent));
    assert!(matches!(&run.phase, Phase::Open(open) if open.claim.is_none()));
}

#[test]
fn metadata_and_the_time_are_kept() {
    for (time, at) in [
        ("2026-02-20T10:30:00Z", 1_771_583_400_000),
        ("2025-05-25T09:22:22.269116+00:00", 1_748_164_942_269),
        ("2025-05-25T09:22:22.269116", 1_748_164_942_269),
    ] {
        let body = json!({"type": "agent.task.status_update", "timestamp": time,
            "payload": {"task_id": TASK, "status": "started", "metadata": {"team": "ops", "n": [1]}}});
        let said = said(read(&body.to_string(), Trust::Signed, "v2"));
        assert_eq!(said[0].detail.provider_time, Some(At(at)), "{time}");
        assert_eq!(
            said[0].detail.metadata.clone().map(Value::Object),
            Some(json!({"team": "ops", "n": [1]}))
        );
    }
    for none in [json!(null), json!({}), json!("text")] {
        let body = event(
            "agent.task.status_update",
            json!({"task_id": TASK, "status": "started", "metadata": none}),
        );
        assert_eq!(
            said(read(&body, Trust::Signed, "v2"))[0].detail.metadata,
            None
        );
    }
}

#[test]
fn events_of_other_types_are_hints_at_most() {
    for body in [
        event(
            "browser.session.closed",
            json!({"session_id": SESSION, "status": "stopped"}),
        ),
        event(
            "agent.task.status_update",
            json!({"task_id": TASK, "status": null}),
        ),
        event("agent.task.status_update", json!({"task_id": TASK})),
    ] {
        let said = said(read(&body, Trust::Signed, "v2"));
        assert!(said.len() == 1 && said[0].trust == Trust::Hint, "{body}");
    }
    let about_nothing = event("account.billing", json!({"credits": 3}));
    assert_eq!(
        read(&about_nothing, Trust::Signed, "v2"),
        Reading::Said(Vec::new())
    );
    let (id, ..) = told(
        &event(
            "agent.run.status_update",
            json!({"run_id": "r", "status": "running"}),
        ),
        "v4",
    );
    assert_eq!(id, "r");
}

#[test]
fn a_hint_stays_a_hint() {
    assert!(
        said(read(&finished_task(), Trust::Hint, "v2"))
            .iter()
            .all(|said| said.trust == Trust::Hint)
    );
}

#[test]
fn a_body_with_duplicate_keys_is_not_proven_and_its_last_values_are_read() {
    let body = format!(
        r#"{{"type":"agent.task.status_update","payload":{{"task_id":"forged","task_id":"{TASK}","status":"stopped","status":"finished"}}}}"#
    );
    let honest = format!(
        r#"{{"type":"agent.task.status_update","payload":{{"task_id":"{TASK}","status":"finished"}}}}"#
    );
    let signature = signed_b(&honest, "1789560000", "k");
    let headers = [
        ("X-Browser-Use-Signature", signature.as_str()),
        ("X-Browser-Use-Timestamp", "1789560000"),
    ];
    assert_eq!(verdict(&headers, &body, &["k"]), Verdict::BadSignature);
    assert_eq!(verdict(&headers, &honest, &["k"]), Verdict::Signed);
    assert_eq!(told(&body, "v2"), told(&honest, "v2"));
    let serde: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        serde,
        serde_json::from_str::<Value>(&honest).unwrap(),
        "serde_json, too, lets the last one win"
    );
}

#[test]
fn poison_is_unreadable_and_harms_nobody() {
    let deep = format!(r#"{{"payload":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    let nul = r#"{"payload":{"task_id":"a\u0000b","status":"finished"}}"#;
    let nulls = r#"{"type":null,"timestamp":null,"payload":{"task_id":null,"session_id":null,"status":null}}"#;
    for body in [
        "",
        "[]",
        "null",
        "3",
        "a=b&c=d",
        "\u{feff}{}",
        "{",
        &deep,
        nul,
        nulls,
        "{}",
        r#"{"payload":null}"#,
    ] {
        assert!(
            matches!(read(body, Trust::Signed, "v2"), Reading::Unreadable(_)),
            "{body:?}"
        );
        assert!(!verdict(&[("X-Webhook-Signature", "00")], body, &["k"]).authentic());
    }
    let settings = Settings::default();
    let not_text = BrowserUse.read_webhook(&webhook(b"{\"a\":\"\xff\"}", Trust::Hint, &settings));
    assert!(matches!(not_text, Reading::Unreadable(why) if !why.contains('\u{fffd}')));
    for odd in [
        "1e999",
        "99999999999999999999",
        "\"\\ud83d\"",
        "\"\\u0000\"",
    ] {
        let body = format!(
            r#"{{"payload":{{"task_id":"{TASK}","status":"finished","metadata":{{"x":{odd}}}}}}}"#
        );
        assert_eq!(told(&body, "v2").0, TASK, "{odd}");
    }
}

// ── Answers ─────────────────────────────────────────────────────────────────────────────────────

fn ok(body: &Value) -> ApiResponse {
    http(200, &body.to_string())
}

fn http(status: u16, body: &str) -> ApiResponse {
    ApiResponse::Http(Response {
        status,
        body: body.as_bytes().to_vec(),
        ..Response::default()
    })
}

struct Asked {
    run_id: RunId,
    kind: Kind,
    settings: Settings,
}

impl Asked {
    fn about(run_id: &str, kind: Kind) -> Asked {
        Asked {
            run_id: RunId::new(run_id).unwrap(),
            kind,
            settings: Settings::default(),
        }
    }

    fn run_ref(&self) -> RunRef<'_> {
        RunRef {
            guessed: false,
            run_id: &self.run_id,
            kind: self.kind,
            group_id: None,
            settings: &self.settings,
        }
    }

    fn reads(&self, answers: &[ApiResponse]) -> Observation {
        let seen = BrowserUse.read_status(&self.run_ref(), answers, NOW);
        assert_eq!(
            (&seen.run_id, seen.trust, seen.via),
            (&self.run_id, Trust::Authoritative, Via::Poll)
        );
        seen
    }

    /// The paths that are asked for, when these are the answers.
    fn asks(&self, answers: &[ApiResponse]) -> Vec<String> {
        let first = BrowserUse.status_request(&self.run_ref());
        let later =
            (1..=answers.len()).map_while(|n| BrowserUse.follow_up(&self.run_ref(), &answers[..n]));
        [first]
            .into_iter()
            .chain(later)
            .map(|ApiRequest { path, .. }| path)
            .collect()
    }
}

/// Outcome (or open) and reason.
fn meaning(seen: &Observation) -> (String, &str) {
    let claim = match &seen.claim {
        Claim::Ended(ending) => ending.outcome.to_string(),
        Claim::Open(Progress::Waiting) => "waiting".to_owned(),
        Claim::Open(Progress::Started) => "started".to_owned(),
        other => format!("{other:?}"),
    };
    (claim, seen.detail.reason.as_deref().unwrap_or(""))
}

#[test]
fn each_kind_is_asked_about_at_its_own_generation_whatever_the_source_says() {
    for (id, kind, path) in [
        ("t", Kind::Task, "/api/v2/tasks/t/status"),
        ("s", Kind::Session, "/api/v3/sessions/s"),
        ("s#2", Kind::Session, "/api/v3/sessions/s"),
        ("r", Kind::Agent, "/api/v4/runs/r/status"),
        ("x/y", Kind::Workflow, "/api/v2/tasks/x%2Fy/status"),
    ] {
        assert_eq!(Asked::about(id, kind).asks(&[]), [path]);
    }
    let kind = |id, api| BrowserUse.kind_of(&RunId::new(id).unwrap(), &settings(api));
    assert_eq!(
        (kind("x", "v2"), kind("x", "v3"), kind("x", "v4")),
        (Kind::Task, Kind::Session, Kind::Agent)
    );
    assert_eq!(
        (
            kind("x#1", "v2"),
            BrowserUse.kind_of(&RunId::new("x").unwrap(), &Settings::default())
        ),
        (Kind::Session, Kind::Task)
    );
}

#[test]
fn a_task_ends_by_its_status_and_its_success_flag() {
    for (status, success, expected) in [
        ("created", json!(null), ("waiting", "")),
        ("started", json!(null), ("started", "")),
        ("paused", json!(null), ("started", "")),
        ("finished", json!(true), ("succeeded", "")),
        ("finished", json!(false), ("failed", "")),
        ("finished", json!(null), ("succeeded", "unreported")),
        ("failed", json!(null), ("failed", "")),
        ("failed", json!(true), ("failed", "")),
        ("stopped", json!(true), ("succeeded", "")),
        ("stopped", json!(false), ("failed", "")),
        (
            "stopped",
            json!(null),
            ("cancelled", "stopped_cause_unknown"),
        ),
        ("completed", json!(true), ("waiting", "unknown_status")),
    ] {
        for key in ["isSuccess", "is_success"] {
            let view = json!({"id": TASK, "status": status, "output": "x", key: success, "finishedAt": "2026-09-16T11:59:00"});
            let seen = Asked::about(TASK, Kind::Task).reads(&[ok(&view)]);
            let (claim, reason) = meaning(&seen);
            assert_eq!((claim.as_str(), reason), expected, "{status} {success}");
            assert_eq!(seen.detail.provider_status.as_deref(), Some(status));
            assert_eq!(seen.detail.provider_time, Some(At(1_789_559_940_000)));
        }
    }
}

#[test]
fn a_finished_task_is_looked_at_whole_once() {
    let task = Asked::about(TASK, Kind::Task);
    let status = |word| ok(&json!({"id": TASK, "status": word, "isSuccess": null}));
    for (word, more) in [
        ("created", false),
        ("started", false),
        ("finished", true),
        ("failed", true),
        ("stopped", true),
    ] {
        let paths = task.asks(&[status(word), http(500, "")]);
        assert_eq!(paths.len(), if more { 2 } else { 1 }, "{word}");
        assert!(!more || paths[1] == format!("/api/v2/tasks/{TASK}"));
    }
    let full = |verdict: Value, success: Value| {
        ok(
            &json!({"id": TASK, "status": "started", "sessionId": SESSION, "createdAt": "2026-09-16T11:00:00",
            "metadata": {"team": "ops"}, "judgeVerdict": verdict, "isSuccess": success}),
        )
    };
    for (verdict, success, expected) in [
        (json!(true), json!(null), ("succeeded", "judged")),
        (json!(false), json!(null), ("failed", "judged")),
        (json!(false), json!(true), ("succeeded", "judge_disagrees")),
        (json!(true), json!(false), ("failed", "judge_disagrees")),
        (json!(true), json!(true), ("succeeded", "")),
        (json!(null), json!(false), ("failed", "")),
        (json!(null), json!(null), ("succeeded", "unreported")),
    ] {
        let seen = task.reads(&[status("finished"), full(verdict, success)]);
        let (claim, reason) = meaning(&seen);
        assert_eq!((claim.as_str(), reason), expected);
        assert_eq!(
            seen.detail.opened_at,
            Some(At(1_789_556_400_000)),
            "naive times are UTC"
        );
        assert_eq!(
            seen.detail.metadata.map(Value::Object),
            Some(json!({"team": "ops"}))
        );
    }
}

#[test]
fn what_the_fuller_view_would_have_added_is_not_waited_for() {
    let status = ok(&json!({"id": TASK, "status": "finished", "isSuccess": true}));
    let cut = ApiResponse::Http(Response {
        status: 200,
        body: b"{\"id\"".to_vec(),
        truncated: true,
        ..Response::default()
    });
    for full in [
        http(404, "{}"),
        http(500, ""),
        cut,
        ApiResponse::Failed {
            what: "timeout".to_owned(),
        },
    ] {
        let seen = Asked::about(TASK, Kind::Task).reads(&[status.clone(), full]);
        assert_eq!(outcome(&seen.claim), Some(Outcome::Succeeded));
    }
}

#[test]
fn a_v4_run_ends_by_its_status_and_the_summary_tells_its_error() {
    let run = Asked::about("r", Kind::Agent);
    for (status, expected) in [
        ("queued", ("waiting", "")),
        ("dispatching", ("waiting", "")),
        ("running", ("started", "")),
        ("completed", ("succeeded", "")),
        ("failed", ("failed", "")),
        ("cancelled", ("cancelled", "")),
        ("finished", ("waiting", "unknown_status")),
    ] {
        let answers = [ok(&json!({"status": status}))];
        let (seen, over) = (
            run.reads(&answers),
            outcome(&run.reads(&answers).claim).is_some(),
        );
        let (claim, reason) = meaning(&seen);
        assert_eq!((claim.as_str(), reason), expected);
        assert_eq!(run.asks(&answers).len(), if over { 2 } else { 1 });
    }
    let summary = json!({"id": "r", "status": "failed", "error": "boom", "createdAt": "2026-09-16T11:00:00Z",
        "updatedAt": "2026-09-16T11:30:00Z", "totalInputTokens": 7, "total_output_tokens": 8});
    let seen = run.reads(&[ok(&json!({"status": "failed"})), ok(&summary)]);
    assert_eq!(
        run.asks(&[ok(&json!({"status": "failed"}))])[1],
        "/api/v4/runs/r"
    );
    assert_eq!(seen.detail.error.as_deref(), Some("boom"));
    assert_eq!(
        (seen.detail.opened_at, seen.detail.provider_time),
        (Some(At(1_789_556_400_000)), Some(At(1_789_558_200_000)))
    );
    let counted = json!({"totalInputTokens": 7, "totalOutputTokens": 8});
    assert_eq!(seen.detail.counters.map(Value::Object), Some(counted));
    assert_eq!(
        outcome(
            &run.reads(&[ok(&json!({"status": "completed"})), http(403, "{}")])
                .claim
        ),
        Some(Outcome::Succeeded)
    );
}

#[test]
fn a_session_ends_by_its_status_its_flag_and_evidence_of_work() {
    for (view, expected) in [
        (json!({"status": "created"}), ("waiting", "")),
        (
            json!({"status": "running", "isTaskSuccessful": true}),
            ("started", ""),
        ),
        (
            json!({"status": "idle", "output": null, "isTaskSuccessful": null, "stepCount": 0}),
            ("waiting", ""),
        ),
        (
            json!({"status": "idle", "lastStepSummary": ""}),
            ("waiting", ""),
        ),
        (
            json!({"status": "idle", "isTaskSuccessful": true}),
            ("succeeded", ""),
        ),
        (
            json!({"status": "idle", "isTaskSuccessful": false}),
            ("failed", ""),
        ),
        (
            json!({"status": "idle", "output": {"text": "done"}}),
            ("succeeded", "unreported"),
        ),
        (
            json!({"status": "idle", "stepCount": 3}),
            ("succeeded", "unreported"),
        ),
        (
            json!({"status": "idle", "step_count": 3, "is_task_successful": false}),
            ("failed", ""),
        ),
        (
            json!({"status": "idle", "lastStepSummary": "Clicking"}),
            ("succeeded", "unreported"),
        ),
        (
            json!({"status": "stopped", "isTaskSuccessful": true}),
            ("succeeded", ""),
        ),
        (
            json!({"status": "stopped", "isTaskSuccessful": false, "output": "x"}),
            ("failed", ""),
        ),
        (
            json!({"status": "stopped", "output": "x"}),
            ("succeeded", "unreported"),
        ),
        (
            json!({"status": "stopped", "stepCount": 9}),
            ("cancelled", "stopped_cause_unknown"),
        ),
        (json!({"status": "timed_out"}), ("timed_out", "")),
        (
            json!({"status": "error"}),
            ("failed", "infrastructure_error"),
        ),
        (json!({"status": "melting"}), ("waiting", "unknown_status")),
    ] {
        let session = Asked::about(SESSION, Kind::Session);
        let seen = session.reads(&[ok(&view)]);
        let (claim, reason) = meaning(&seen);
        assert_eq!((claim.as_str(), reason), expected, "{view}");
        assert_eq!(session.asks(&[ok(&view)]).len(), 1);
    }
}

/// A page of messages: `u` a user's, `c` a completion, `.` anything else.
fn page(first_id: usize, messages: &str, more: bool) -> ApiResponse {
    let message = |(n, letter)| {
        let kind = match letter {
            'u' => "user_message",
            'c' => "completion",
            _ => "browser_action",
        };
        json!({"id": format!("m{}", first_id + n), "type": kind, "role": if letter == 'u' { "human" } else { "ai" }})
    };
    let messages: Vec<Value> = messages.chars().enumerate().map(message).collect();
    ok(&json!({"messages": messages, "hasMore": more}))
}

#[test]
fn a_turn_ends_only_when_the_messages_show_that_it_has() {
    let idle = |flag: Value| json!({"status": "idle", "isTaskSuccessful": flag, "output": "x", "createdAt": "2026-09-16T11:00:00Z"});
    let over = |status: &str, flag: Value| json!({"status": status, "isTaskSuccessful": flag});
    for (turn, session, messages, expected) in [
        (1, idle(json!(true)), "u..c", ("succeeded", "")),
        (1, idle(json!(false)), "u..", ("failed", "")),
        (1, json!({"status": "idle"}), "u", ("waiting", "")),
        (
            1,
            json!({"status": "idle"}),
            "",
            ("waiting", "turn_not_seen"),
        ),
        (2, idle(json!(true)), "u.c", ("waiting", "turn_not_seen")),
        (2, idle(json!(true)), "u.cu", ("waiting", "")),
        (2, idle(json!(false)), "u.cu.c", ("failed", "")),
        (2, idle(json!(null)), "u.cu.c", ("succeeded", "unreported")),
        (1, idle(json!(false)), "u.cu.c", ("succeeded", "unreported")),
        (
            1,
            idle(json!(false)),
            "u.u.c",
            ("indeterminate", "turn_superseded"),
        ),
        (2, over("stopped", json!(true)), "u.cu.c", ("succeeded", "")),
        (
            2,
            over("stopped", json!(true)),
            "u.cu.",
            ("indeterminate", "turn_outcome_unknown"),
        ),
        (
            2,
            over("stopped", json!(null)),
            "u.cu.",
            ("cancelled", "stopped_cause_unknown"),
        ),
        (
            2,
            over("stopped", json!(null)),
            "u.c",
            ("waiting", "turn_not_seen"),
        ),
        (
            1,
            over("stopped", json!(null)),
            "u.",
            ("cancelled", "stopped_cause_unknown"),
        ),
        (
            2,
            over("timed_out", json!(true)),
            "u.cu.",
            ("timed_out", ""),
        ),
        (
            2,
            over("timed_out", json!(true)),
            "u.cu.c",
            ("succeeded", ""),
        ),
        (
            2,
            over("error", json!(null)),
            "u.cu.",
            ("failed", "infrastructure_error"),
        ),
    ] {
        let run = Asked::about(&format!("{SESSION}#{turn}"), Kind::Session);
        let answers = [ok(&session), page(1, messages, false)];
        let seen = run.reads(&answers);
        let (claim, reason) = meaning(&seen);
        assert_eq!(
            (claim.as_str(), reason),
            expected,
            "{turn} {session} {messages}"
        );
        assert!(
            seen.detail.opened_at.is_none() || turn == 1,
            "a session is older than its later turns"
        );
        let paths = run.asks(&answers);
        assert_eq!(
            paths[1..],
            [format!("/api/v3/sessions/{SESSION}/messages?limit=100")]
        );
    }
}

#[test]
fn a_turn_of_a_running_session_costs_no_further_request() {
    for (status, expected) in [
        ("created", "waiting"),
        ("running", "started"),
        ("melting", "waiting"),
    ] {
        let run = Asked::about("s#2", Kind::Session);
        let answers = [ok(&json!({"status": status, "isTaskSuccessful": true}))];
        assert_eq!(meaning(&run.reads(&answers)).0, expected);
        assert_eq!(run.asks(&answers).len(), 1);
    }
}

#[test]
fn messages_are_read_page_by_page_and_counted_only_when_all_are_there() {
    let run = Asked::about("s#2", Kind::Session);
    let idle = ok(&json!({"status": "idle", "isTaskSuccessful": true}));
    let (first, second) = (page(1, "u.c", true), page(4, "u.c", false));
    let paths = run.asks(&[idle.clone(), first.clone(), second.clone()]);
    assert_eq!(
        paths[1..],
        [
            "/api/v3/sessions/s/messages?limit=100",
            "/api/v3/sessions/s/messages?limit=100&after=m3"
        ]
    );
    assert_eq!(
        outcome(&run.reads(&[idle.clone(), first.clone(), second]).claim),
        Some(Outcome::Succeeded)
    );
    for partial in [
        vec![idle.clone()],
        vec![idle.clone(), first.clone()],
        vec![idle.clone(), first.clone(), http(500, "")],
        vec![idle.clone(), first.clone(), page(4, "", false)],
        vec![idle.clone(), http(404, "{}")],
    ] {
        assert_eq!(
            meaning(&run.reads(&partial)),
            ("waiting".to_owned(), "turns_not_counted")
        );
    }
    let mut endless = vec![idle];
    endless.extend((0..20).map(|n| page(n * 10, "u.c", true)));
    assert_eq!(run.asks(&endless).len(), 11, "ten pages are enough");
}

#[test]
fn a_404_means_missing_only_beside_a_list_of_the_same_generation_that_works() {
    for (kind, canary) in [
        (Kind::Task, "/api/v2/tasks?pageSize=1"),
        (Kind::Session, "/api/v3/sessions?page_size=1"),
        (Kind::Agent, "/api/v4/sessions?limit=1"),
    ] {
        let run = Asked::about("x", kind);
        let gone = http(404, r#"{"detail":"Task not found"}"#);
        assert_eq!(run.asks(&[gone.clone(), ok(&json!({}))])[1..], [canary]);
        assert_eq!(run.reads(std::slice::from_ref(&gone)).claim, Claim::Nothing);
        assert_eq!(
            run.reads(&[gone.clone(), ok(&json!({"items": []}))]).claim,
            Claim::Missing
        );
        for broken in [
            http(401, ""),
            http(403, ""),
            http(404, ""),
            http(429, ""),
            http(500, ""),
        ] {
            assert_eq!(run.reads(&[gone.clone(), broken]).claim, Claim::Nothing);
        }
    }
    assert_eq!(
        BrowserUse.canary_request(&settings("v3")).path,
        "/api/v3/sessions?page_size=1"
    );
}

#[test]
fn failures_and_refusals_say_nothing_about_a_run() {
    for status in [400, 401, 402, 403, 409, 422, 429, 500, 502, 503] {
        let answers = [http(status, r#"{"status":"failed","detail":"x"}"#)];
        assert_eq!(
            Asked::about("t", Kind::Task).reads(&answers).claim,
            Claim::Nothing,
            "{status}"
        );
        assert_eq!(Asked::about("t", Kind::Task).asks(&answers).len(), 1);
    }
    for body in [
        "",
        "<html>",
        "\"finished\"",
        "[]",
        "{}",
        r#"{"status":7}"#,
        r#"{"status":null}"#,
    ] {
        assert_eq!(
            Asked::about("t", Kind::Task)
                .reads(&[http(200, body)])
                .claim,
            Claim::Nothing,
            "{body}"
        );
    }
    let failed = ApiResponse::Failed {
        what: "timeout".to_owned(),
    };
    assert_eq!(
        Asked::about("t", Kind::Task).reads(&[failed]).claim,
        Claim::Nothing
    );
}

#[test]
fn scraped_text_that_is_not_quite_unicode_does_not_keep_a_run_open() {
    let body = r#"{"status":"idle","output":"\ud83d","isTaskSuccessful":true,"stepCount":1e400}"#;
    let seen = Asked::about("s", Kind::Session).reads(&[http(200, body)]);
    assert_eq!(outcome(&seen.claim), Some(Outcome::Succeeded));
}

#[test]
fn the_key_and_the_pace_are_heard_in_status_headers_and_body() {
    let headers = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let hear = |status, headers: Headers, body: &str| {
        BrowserUse.classify(&ApiResponse::Http(Response {
            status,
            headers,
            body: body.into(),
            truncated: false,
        }))
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    for (status, body) in [(200, "{}"), (404, ""), (409, ""), (422, "")] {
        assert_eq!(hear(status, vec![], body), ResponseClass::Ok);
    }
    for status in [401, 403] {
        assert!(matches!(
            hear(status, vec![], ""),
            ResponseClass::Denied { .. }
        ));
    }
    assert!(matches!(
        hear(402, vec![], ""),
        ResponseClass::Unavailable { .. }
    ));
    let throttled = |retry_after| ResponseClass::RateLimited { retry_after };
    assert_eq!(hear(429, vec![], "{}"), throttled(None));
    assert_eq!(
        hear(429, headers("retry-after", "300"), ""),
        throttled(seconds(300))
    );
    let body = r#"{"limit_rps":25,"retry_after_seconds":4}"#;
    assert_eq!(hear(429, vec![], body), throttled(seconds(4)));
    assert_eq!(
        hear(429, headers("retry-after", "2"), body),
        throttled(seconds(4))
    );
    assert_eq!(
        hear(
            429,
            vec![],
            r#"{"detail":{"message":"slow","retry_after_seconds":7}}"#
        ),
        throttled(seconds(7))
    );
    for odd in [
        r#"{"retry_after_seconds":-1}"#,
        r#"{"retry_after_seconds":1e400}"#,
        r#"{"retry_after_seconds":"x"}"#,
    ] {
        assert_eq!(hear(429, vec![], odd), throttled(None), "{odd}");
    }
    assert!(
        matches!(hear(503, headers("retry-after", "9"), ""), ResponseClass::Unavailable { retry_after, .. } if retry_after == seconds(9))
    );
}

// ── Lists ───────────────────────────────────────────────────────────────────────────────────────

fn list_path(page: Option<&str>, api: &str) -> String {
    BrowserUse.list_request(page, &settings(api)).unwrap().path
}

fn rows(count: usize, row: impl Fn(usize) -> Value) -> Vec<Value> {
    (0..count).map(row).collect()
}

#[test]
fn open_v2_tasks_are_listed_by_status_created_then_started() {
    let read_page =
        |page, answer: &Value| BrowserUse.read_list(page, &ok(answer), &settings("v2"), NOW);
    assert_eq!(
        list_path(None, "v2"),
        "/api/v2/tasks?filterBy=created&pageSize=100&pageNumber=1"
    );
    let full = json!({"items": rows(100, |n| json!({"id": format!("t{n}"), "status": "created", "metadata": {"n": n}}))});
    let first = read_page(None, &full);
    assert_eq!(first.runs.len(), 100);
    assert!(
        first
            .runs
            .iter()
            .all(|seen| seen.claim == Claim::Listed { over: false } && seen.via == Via::Sweep)
    );
    assert_eq!(
        (first.runs[0].kind, first.runs[0].trust),
        (Some(Kind::Task), Trust::Authoritative)
    );
    assert_eq!(
        first.runs[3].detail.metadata.clone().map(Value::Object),
        Some(json!({"n": 3}))
    );
    assert_eq!(
        list_path(first.next.as_deref(), "v2"),
        "/api/v2/tasks?filterBy=created&pageSize=100&pageNumber=2"
    );
    let last = read_page(first.next.as_deref(), &json!({"items": []}));
    assert_eq!(
        list_path(last.next.as_deref(), "v2"),
        "/api/v2/tasks?filterBy=started&pageSize=100&pageNumber=1"
    );
    assert_eq!(
        read_page(last.next.as_deref(), &json!({"items": []})).next,
        None
    );
}

#[test]
fn every_sweep_ends() {
    for (api, key) in [("v2", "items"), ("v3", "sessions"), ("v4", "sessions")] {
        let row = |n| json!({"id": format!("x{n}"), "latestRunId": "r", "status": "running"});
        let answer = ok(
            &json!({key: rows(100, row), "hasMore": true, "nextCursor": "a:b&c", "total": 9999}),
        );
        let (mut page, mut pages) = (None, 0);
        loop {
            pages += 1;
            page = BrowserUse
                .read_list(page.as_deref(), &answer, &settings(api), NOW)
                .next;
            if page.is_none() {
                break;
            }
        }
        assert_eq!(pages, if api == "v2" { 20 } else { 10 }, "{api}");
    }
    assert_eq!(
        BrowserUse.list_request(Some("nonsense"), &Settings::default()),
        None
    );
    for answer in [
        http(500, ""),
        http(200, "[]"),
        ApiResponse::Failed {
            what: "x".to_owned(),
        },
    ] {
        let listing = BrowserUse.read_list(None, &answer, &Settings::default(), NOW);
        assert_eq!(
            (listing.runs.len(), listing.next, listing.gap),
            (0, None, None)
        );
    }
}

#[test]
fn a_list_tells_which_sessions_are_over_and_when_they_were_last_alive() {
    let sessions = json!([
        {"id": "new", "status": "created", "createdAt": "2026-09-16T11:00:00Z"},
        {"id": "ready", "status": "idle"},
        {"id": "done", "status": "idle", "isTaskSuccessful": true},
        {"id": "gone", "status": "stopped", "finishedAt": "2026-09-16T11:00:00Z"},
        {"id": "no status"}, {"status": "running"}, 7,
    ]);
    assert_eq!(
        list_path(None, "v3"),
        "/api/v3/sessions?page=1&page_size=100"
    );
    let listing = BrowserUse.read_list(
        None,
        &ok(&json!({"sessions": sessions})),
        &settings("v3"),
        NOW,
    );
    let seen: Vec<_> = listing
        .runs
        .iter()
        .map(|seen| (seen.run_id.as_str(), seen.trust, seen.claim.clone()))
        .collect();
    let (open, over) = (Claim::Listed { over: false }, Claim::Listed { over: true });
    let expected = [
        ("new", Trust::Authoritative, open.clone()),
        ("ready", Trust::Authoritative, open),
        ("done", Trust::Authoritative, over.clone()),
        ("gone", Trust::Authoritative, over),
    ];
    assert_eq!(seen, expected);
    assert_eq!(
        (listing.runs[0].detail.opened_at, listing.next),
        (Some(At(1_789_556_400_000)), None)
    );
    assert_eq!(listing.runs[3].last_sign(), Some(At(1_789_556_400_000)));
    assert_eq!(listing.runs[2].last_sign(), None);
}

#[test]
fn v4_sessions_name_their_latest_run_and_page_by_cursor() {
    assert_eq!(list_path(None, "v4"), "/api/v4/sessions?limit=100");
    let answer = json!({"sessions": [
        {"sessionId": "s", "latestRunId": "r1", "status": "running", "createdAt": "2026-09-16T11:00:00Z"},
        {"sessionId": "s", "latest_run_id": "r2", "status": "failed", "updatedAt": "2026-09-16T11:00:00Z"}], "hasMore": true, "nextCursor": "a:b&c"});
    let listing = BrowserUse.read_list(None, &ok(&answer), &settings("v4"), NOW);
    assert_eq!(
        listing
            .runs
            .iter()
            .map(|seen| seen.run_id.as_str())
            .collect::<Vec<_>>(),
        ["r1", "r2"]
    );
    assert_eq!(
        (listing.runs[0].kind, listing.runs[0].detail.opened_at),
        (Some(Kind::Agent), None)
    );
    assert_eq!(
        (listing.runs[0].claim.clone(), listing.runs[1].claim.clone()),
        (Claim::Listed { over: false }, Claim::Listed { over: true })
    );
    assert_eq!(listing.runs[1].last_sign(), Some(At(1_789_556_400_000)));
    assert_eq!(
        list_path(listing.next.as_deref(), "v4"),
        "/api/v4/sessions?limit=100&cursor=a%3Ab%26c"
    );
}

// ── The rest of the contract ────────────────────────────────────────────────────────────────────

#[test]
fn the_defaults_are_those_of_the_contract() {
    let provider = named("browser-use").expect("registered");
    assert_eq!(
        (provider.base_url(), provider.key_header()),
        ("https://api.browser-use.com", ("X-Browser-Use-API-Key", ""))
    );
    let environment = provider.environment();
    assert_eq!(
        (environment.api_key, environment.webhook_secret),
        ("BROWSER_USE_API_KEY", Some("BROWSER_USE_WEBHOOK_SECRET"))
    );
    assert_eq!(provider.apis(), ["v2", "v3", "v4"]);
    let policy = provider.policy(None);
    assert_eq!(
        (policy.grace, policy.confirm_timeout),
        (Duration::ZERO, Duration::from_secs(60))
    );
    assert_eq!(
        (policy.deadline, policy.give_up),
        (Duration::from_secs(15_000), Duration::from_secs(86_400))
    );
    assert_eq!(
        (policy.first_poll, policy.max_interval),
        (Duration::from_secs(20), Duration::from_secs(300))
    );
    assert!(
        provider
            .retry_request(&RunId::new("t").unwrap(), None)
            .is_none()
    );
}
