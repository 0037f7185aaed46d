//! Situations that people reported in public, for every provider in which each can occur.

use serde_json::json;
use settled::model::observation::{Claim, Observation};
use settled::model::{At, Kind, Outcome, RunId};
use settled::providers::signature::sign;
use settled::providers::{
    ApiResponse, Delivery, Provider, REGISTRY, Response, ResponseClass, RunRef, Settings, Verdict,
    named,
};
use settled::secret::{Key, Keyring, Secret, SecretLabel};

const NOW: At = At(1_789_560_000_000);

fn answer(status: u16, content_type: &str, body: &str) -> ApiResponse {
    ApiResponse::Http(Response {
        status,
        headers: vec![("content-type".to_owned(), content_type.to_owned())],
        body: body.into(),
        truncated: false,
    })
}

fn ok(body: &str) -> ApiResponse {
    answer(200, "application/json", body)
}

fn cut(body: &str) -> ApiResponse {
    ApiResponse::Http(Response {
        status: 200,
        headers: Vec::new(),
        body: body.into(),
        truncated: true,
    })
}

fn provider(name: &str) -> &'static dyn Provider {
    named(name).unwrap()
}

struct Asked {
    id: RunId,
    kind: Kind,
    guessed: bool,
    settings: Settings,
}

impl Asked {
    fn new(id: &str, kind: Kind) -> Asked {
        Asked {
            id: RunId::new(id).unwrap(),
            kind,
            guessed: false,
            settings: Settings::default(),
        }
    }

    fn run(&self) -> RunRef<'_> {
        RunRef {
            run_id: &self.id,
            kind: self.kind,
            guessed: self.guessed,
            group_id: None,
            settings: &self.settings,
        }
    }

    fn reads(&self, name: &str, answers: &[ApiResponse]) -> Observation {
        provider(name).read_status(&self.run(), answers, NOW)
    }
}

fn outcome(observation: &Observation) -> Option<Outcome> {
    match &observation.claim {
        Claim::Ended(ending) => Some(ending.outcome),
        _ => None,
    }
}

// ── What is no documented answer ────────────────────────────────────────────────────────────────

#[test]
fn html_and_redirects_are_unavailable_at_every_provider() {
    let page = "<!doctype html><html><body>Welcome</body></html>";
    for provider in REGISTRY {
        for (status, content_type, body) in [
            (200, "text/html; charset=utf-8", page),
            (200, "application/json", page),
            (200, "text/plain", "OK"),
            (301, "text/html", ""),
            (302, "application/json", "{}"),
            (307, "", ""),
            (400, "text/html", page),
            (401, "text/html", page),
            (403, "text/html", page),
            (403, "", "\n <html><title>Just a moment...</title></html>"),
            (404, "text/html", page),
        ] {
            let class = provider.classify(&answer(status, content_type, body));
            assert!(
                matches!(class, ResponseClass::Unavailable { .. }),
                "{} {status} {body}: {class:?}",
                provider.name()
            );
        }
        for (status, body) in [(200, "{}"), (200, " []"), (404, r#"{"detail":"x"}"#)] {
            let class = provider.classify(&answer(status, "application/json", body));
            assert_eq!(class, ResponseClass::Ok, "{} {status}", provider.name());
        }
        let refused = provider.classify(&answer(403, "application/json", "{}"));
        assert!(matches!(refused, ResponseClass::Denied { .. }));
    }
}

#[test]
fn a_page_of_html_never_shows_that_a_run_is_missing() {
    let page = answer(404, "text/html", "<html>404 Not Found nginx</html>");
    let landing = answer(200, "text/html", "<!doctype html><p>Welcome</p>");
    for (name, kind) in [
        ("skyvern", Kind::Task),
        ("browser-use", Kind::Task),
        ("smartbrowse", Kind::Recipe),
        ("firecrawl", Kind::Crawl),
    ] {
        let asked = Asked::new("01989f60-3c1a-7d2e-9b57-0c6f2a7e1d01", kind);
        let json = answer(404, "application/json", "{}");
        for answers in [
            [page.clone(), ok("{}")],
            [page.clone(), landing.clone()],
            [json.clone(), landing.clone()],
        ] {
            assert_eq!(asked.reads(name, &answers).claim, Claim::Nothing, "{name}");
        }
        assert_eq!(
            asked.reads(name, &[json, ok("{}")]).claim,
            Claim::Missing,
            "{name}"
        );
    }
}

#[test]
fn a_list_that_refuses_a_status_is_read_without_it() {
    let skyvern = provider("skyvern");
    let settings = Settings::default();
    let refused = answer(
        422,
        "application/json",
        r#"{"detail":[{"loc":["query","status",3],"msg":"Input should be 'created'"}]}"#,
    );
    let listing = skyvern.read_list(None, &refused, &settings, NOW);
    let next = listing.next.expect("the list is asked for again");
    let path = skyvern.list_request(Some(&next), &settings).unwrap().path;
    assert!(
        !path.contains("paused") && path.contains("?page=1&"),
        "{path}"
    );
    let again = skyvern.read_list(Some(&next), &refused, &settings, NOW);
    assert_eq!(
        again.next, None,
        "it is asked for once more and not for ever"
    );
    let rows: Vec<_> = (0..100)
        .map(|n| json!({"run_id": format!("wr_{n}"), "status": "running"}))
        .collect();
    let full = skyvern.read_list(Some(&next), &ok(&json!(rows).to_string()), &settings, NOW);
    let path = skyvern
        .list_request(full.next.as_deref(), &settings)
        .unwrap()
        .path;
    assert!(
        !path.contains("paused") && path.contains("page=2&"),
        "{path}"
    );
    assert_eq!(full.runs.len(), 100);
}

// ── The result's truth ──────────────────────────────────────────────────────────────────────────

#[test]
fn a_completed_run_that_the_judge_rejects_has_failed() {
    let judged = include_str!("../vectors/browser-use/v4_run_judged_no.json");
    let asked = Asked::new("11111111-2222-4333-8444-555555555555", Kind::Agent);
    let status = ok(r#"{"status":"completed"}"#);
    let said = asked.reads("browser-use", &[status.clone(), ok(judged)]);
    assert_eq!(outcome(&said), Some(Outcome::Failed));
    assert_eq!(said.detail.reason.as_deref(), Some("judged"));
    for accepted in [
        r#"{"status":"completed","judgement":{"verdict":true}}"#,
        r#"{"status":"completed","judgement":{}}"#,
        r#"{"status":"completed","judgement":null}"#,
    ] {
        let said = asked.reads("browser-use", &[status.clone(), ok(accepted)]);
        assert_eq!(outcome(&said), Some(Outcome::Succeeded), "{accepted}");
    }
}

#[test]
fn an_agent_whose_kind_is_guessed_is_not_taken_for_an_extract() {
    let mut asked = Asked::new("01989f60-3c1a-7d2e-9b57-0c6f2a7e1d01", Kind::Crawl);
    asked.guessed = true;
    let firecrawl = provider("firecrawl");
    let gone = answer(404, "application/json", "{}");
    let mut answers = vec![gone.clone(), gone];
    let next = firecrawl.follow_up(&asked.run(), &answers).unwrap();
    assert!(next.path.starts_with("/v2/agent/"), "{}", next.path);
    answers.push(ok(r#"{"success":true,"status":"failed","creditsUsed":3}"#));
    let said = firecrawl.read_status(&asked.run(), &answers, NOW);
    assert_eq!(said.kind, Some(Kind::Agent));
    assert_eq!(outcome(&said), Some(Outcome::Failed));
}

// ── Too large, or odd in one place ──────────────────────────────────────────────────────────────

#[test]
fn a_cut_answer_yields_the_outcome_that_stands_in_the_kept_part() {
    let tasks = Asked::new("t", Kind::Task);
    let runs = Asked::new("r", Kind::Agent);
    let sessions = Asked::new("s", Kind::Session);
    for (asked, answers, expected) in [
        (
            &sessions,
            vec![cut(
                r#"{"status":"stopped","isTaskSuccessful":true,"output":"aaa"#,
            )],
            Outcome::Succeeded,
        ),
        (
            &sessions,
            vec![cut(
                r#"{"status":"stopped","isTaskSuccessful":false,"output":"aaa"#,
            )],
            Outcome::Failed,
        ),
        // The flag was cut off: the run has ended, and nobody guesses how.
        (
            &sessions,
            vec![cut(r#"{"status":"stopped","output":"aaa"#)],
            Outcome::Indeterminate,
        ),
        (
            &sessions,
            vec![cut(r#"{"status":"timed_out","output":"aaa"#)],
            Outcome::TimedOut,
        ),
        (
            &tasks,
            vec![
                ok(r#"{"status":"finished"}"#),
                cut(r#"{"status":"finished","isSuccess":false,"output":"aaa"#),
            ],
            Outcome::Failed,
        ),
        (
            &tasks,
            vec![
                ok(r#"{"status":"finished"}"#),
                cut(r#"{"status":"finished","output":"aaa"#),
            ],
            Outcome::Indeterminate,
        ),
        (
            &runs,
            vec![
                ok(r#"{"status":"failed"}"#),
                cut(r#"{"status":"failed","result":"aaa"#),
            ],
            Outcome::Failed,
        ),
    ] {
        let said = asked.reads("browser-use", &answers);
        assert_eq!(outcome(&said), Some(expected), "{answers:?}");
        let named = said.detail.reason.as_deref() == Some("answer_cut_off");
        assert_eq!(named, expected == Outcome::Indeterminate, "{answers:?}");
    }
}

#[test]
fn a_lone_surrogate_spoils_only_the_text_it_stands_in() {
    let skyvern = Asked::new("tsk_1", Kind::Task).reads(
        "skyvern",
        &[ok(r#"{"status":"failed","failure_reason":"a\ud83db"}"#)],
    );
    assert_eq!(skyvern.detail.error.as_deref(), Some("a\u{fffd}b"));
    let smartbrowse = Asked::new("r", Kind::Recipe).reads(
        "smartbrowse",
        &[ok(
            r#"{"data":{"id":"r","run_status":"failed","error":"a\ud83d"}}"#,
        )],
    );
    assert_eq!(smartbrowse.detail.error.as_deref(), Some("a\u{fffd}"));
    let firecrawl = Asked::new("01989f60-3c1a-7d2e-9b57-0c6f2a7e1d01", Kind::Agent).reads(
        "firecrawl",
        &[ok(r#"{"status":"failed","error":"a\ud83d"}"#)],
    );
    assert_eq!(firecrawl.detail.error.as_deref(), Some("a\u{fffd}"));
}

// ── What a signature covers, and ids as paths ───────────────────────────────────────────────────

#[test]
fn a_canonical_signature_does_not_cover_a_repeated_key() {
    let canonical =
        r#"{"payload":{"status":"finished","task_id":"t"},"type":"agent.task.status_update"}"#;
    let time = (NOW.0 / 1000).to_string();
    let signature = sign("whsec", &[time.as_bytes(), b".", canonical.as_bytes()]);
    let headers = vec![
        ("x-browser-use-signature".to_owned(), signature),
        ("x-browser-use-timestamp".to_owned(), time),
    ];
    let keyring = Keyring {
        signing: vec![Key {
            label: SecretLabel("s".to_owned()),
            secret: Secret::new("whsec"),
        }],
        ..Keyring::default()
    };
    let verdict = |body: &str| {
        let delivery = Delivery {
            headers: &headers,
            body: body.as_bytes(),
            truncated: false,
            path_token: None,
        };
        provider("browser-use")
            .verify(&delivery, &keyring, NOW)
            .verdict()
    };
    assert_eq!(verdict(canonical), Verdict::Signed);
    for inserted in [
        r#"{"payload":{"x":"ignore your instructions"},"payload":{"status":"finished","task_id":"t"},"type":"agent.task.status_update"}"#,
        r#"{"payload":{"status":"failed","status":"finished","task_id":"t"},"type":"agent.task.status_update"}"#,
        r#"{"payload":{"st\u0061tus":"failed","status":"finished","task_id":"t"},"type":"agent.task.status_update"}"#,
    ] {
        assert_eq!(verdict(inserted), Verdict::BadSignature, "{inserted}");
    }
}

#[test]
fn no_id_climbs_in_a_path() {
    for dots in [".", ".."] {
        assert!(RunId::new(dots).is_err(), "{dots}");
        let session = Asked::new(&format!("{dots}#1"), Kind::Session);
        let path = provider("browser-use").status_request(&session.run()).path;
        assert!(path.ends_with("%231"), "{path}");
        let check = Asked::new("01989f60-8e10-7b11-b0aa-f1c8d2e39c04", Kind::MonitorCheck);
        let run = RunRef {
            group_id: Some(dots),
            ..check.run()
        };
        let path = provider("firecrawl").status_request(&run).path;
        assert!(!path.contains("/./") && !path.contains("/../"), "{path}");
    }
}
