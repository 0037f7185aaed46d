//! What must hold for any bytes.
//!
//! The first bytes of an input choose (provider, trust, status, …), the rest is what a sender or a
//! provider would send. `cargo test --test fuzz` calls these with seeded mutations, `fuzz/` with what
//! a coverage-guided fuzzer comes upon.

use settled::config::{self, Env};
use settled::model::decide::{Circumstances, Publication, Run, decide};
use settled::model::observation::Observation;
use settled::model::record::{
    About, Cursor, PAYLOAD_BYTES_MAX, Payload, draft, line, payload_text,
};
use settled::model::{At, Kind, RunId, RunKey, SourceName, Trust};
use settled::providers::{
    ApiResponse, Delivery, Provider, REGISTRY, Reading, Response, RetryResult, RunRef, Settings,
    Verdict, python_json, signature,
};
use settled::report::{Meta, PollMeta, Report, ResponseMeta, WebhookMeta};
use settled::secret::{Key, Keyring, RequiredHeader, Secret, SecretLabel, TokenDigest};

pub const NOW: At = At(1_795_249_022_000);
pub const SECRET: &str = "a-secret-that-signs";
/// More than this of a report's own words would not be carried in every change of a run.
const DETAIL_BYTES_MAX: usize = 128 * 1024;

/// Takes the bytes that choose off the front.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn next(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        usize::from(*first)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next() % all.len()]
    }

    fn provider(&mut self) -> &'static dyn Provider {
        self.of(REGISTRY)
    }

    fn settings(&mut self, provider: &dyn Provider) -> Settings {
        let api = provider
            .apis()
            .get(self.next() % 4)
            .map(|api| (*api).to_owned());
        Settings { api }
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}

pub fn keyring() -> Keyring {
    let key = |value: &str| Key {
        label: SecretLabel("key".to_owned()),
        secret: Secret::new(value),
    };
    Keyring {
        signing: vec![key("another"), key(SECRET)],
        path_tokens: vec![key(SECRET)],
        headers: vec![RequiredHeader {
            name: "authorization".to_owned(),
            values: vec![key(SECRET)],
        }],
    }
}

/// A run's state and its record can be written and read back; gives the state that was read.
fn conclude(
    provider: &dyn Provider,
    run: Option<Run>,
    heard: &Observation,
    report: &Report,
) -> Option<Run> {
    let heard = &Observation {
        detail: heard.detail.clone().sanitized(|text| text),
        ..heard.clone()
    };
    let words = serde_json::to_string(&heard.detail).expect("details render");
    let says = || {
        format!(
            "{}: {} bytes of detail: {}",
            provider.name(),
            words.len(),
            words[..400].escape_debug()
        )
    };
    assert!(words.len() <= DETAIL_BYTES_MAX, "{}", says());
    let policy = provider.policy(heard.kind);
    let at = Circumstances {
        policy: &policy,
        now: report.at,
        report: 1,
        seed: 7,
        since: At(0),
        found_at: None,
    };
    let decision = decide(run, heard, &at);
    let run = decision.run?;
    let text = serde_json::to_string(&run).expect("a state renders");
    let read: Run = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(read, run);
    if let Some(publication) = decision.publish {
        check_record(provider, &run, publication, &heard.run_id, report.payload());
    }
    Some(read)
}

fn check_record(
    provider: &dyn Provider,
    run: &Run,
    publication: Publication,
    run_id: &RunId,
    body: &[u8],
) {
    let key = RunKey {
        source: SourceName::new("s").expect("a name"),
        run_id: run_id.clone(),
    };
    let json = Some(body)
        .filter(|body| body.len() <= PAYLOAD_BYTES_MAX)
        .and_then(payload_text);
    let payload = json.as_ref().map_or(Payload::Absent, Payload::Inline);
    let draft = draft(
        About {
            provider: provider.name(),
            key: &key,
        },
        run,
        publication,
        payload,
        NOW,
    );
    let line = line(&draft.envelope, "e", 1, &draft.data);
    assert!(!line.contains('\n'), "{line}");
    let read: serde_json::Value =
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(
        (&read["subject"], &read["cursor"]),
        (&run_id.as_str().into(), &"e.1".into())
    );
}

fn check_reading(provider: &dyn Provider, report: &Report, settings: &Settings) {
    let again = report.read(provider, settings);
    match report.read(provider, settings) {
        Reading::Said(observations) | Reading::Counted(observations, _) => {
            let mut run = None;
            for heard in observations.iter().chain(&observations) {
                run = conclude(provider, None, heard, report).or(run);
                run = conclude(provider, run, heard, report);
            }
            assert!(
                matches!(again, Reading::Said(same) | Reading::Counted(same, _) if same == observations)
            );
        }
        Reading::Unreadable(why) => assert!(why.len() < 300, "{why}"),
        Reading::Ping => {}
    }
}

/// A delivery, verified and read. What is signed with our key verifies, whatever it says.
pub fn webhook(data: &[u8]) {
    let mut choices = Choices(data);
    let provider = choices.provider();
    let settings = choices.settings(provider);
    let truncated = choices.next().is_multiple_of(4);
    let verdict = choices.of(&[
        Verdict::Signed,
        Verdict::SharedSecret,
        Verdict::Unsigned,
        Verdict::Stale,
    ]);
    let body = choices.rest();
    check_proofs(provider, body, truncated);
    let meta = WebhookMeta {
        headers: Vec::new(),
        path_token: None,
        verdict,
        secret: None,
        truncated,
        peer: None,
    };
    let report = Report {
        source: 1,
        at: NOW,
        meta: Meta::Webhook(meta),
        body: body.to_vec(),
    };
    check_reading(provider, &report, &settings);
}

fn check_proofs(provider: &dyn Provider, body: &[u8], truncated: bool) {
    let plain = signature::sign(SECRET, &[body]);
    let time = (NOW.0 / 1000).to_string();
    let timed = signature::sign(SECRET, &[time.as_bytes(), b".", body]);
    let token = TokenDigest::of(SECRET);
    let pairs = [
        ("x-skyvern-signature", plain.clone()),
        ("x-firecrawl-signature", format!("sha256={plain}")),
        ("x-browser-use-signature", timed),
        ("x-browser-use-timestamp", time),
        ("authorization", SECRET.to_owned()),
    ];
    let good: Vec<_> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    let keyring = keyring();
    let judge = |headers: &[(String, String)], path_token| {
        let delivery = Delivery {
            headers,
            body,
            truncated,
            path_token,
        };
        provider.verify(&delivery, &keyring, NOW).verdict()
    };
    let bad: Vec<_> = good
        .iter()
        .map(|(name, value)| (name.clone(), value.chars().rev().collect()))
        .collect();
    for headers in [bad, vec![]] {
        let verdict = judge(&headers, None);
        assert!(!verdict.authentic(), "{}: {verdict}", provider.name());
    }
    let verdict = judge(&good, Some(&token));
    let needs_object = provider.name() == "browser-use"
        && !python_json::parse(body).is_ok_and(|read| read.into_object().is_some());
    let expected = verdict.authentic() || truncated || needs_object || body.len() > 256 * 1024;
    assert!(expected, "{}: {verdict}", provider.name());
}

/// A delivery whose headers a sender has made up: nothing that was not made with a secret proves
/// anything. The headers are lines up to an empty one, the rest is the body.
pub fn verify(data: &[u8]) {
    let mut choices = Choices(data);
    let provider = choices.provider();
    let truncated = choices.next().is_multiple_of(4);
    let rest = choices.rest();
    let (head, body) = match rest.windows(2).position(|two| two == b"\n\n") {
        Some(end) => (&rest[..end], &rest[end + 2..]),
        None => (rest, &b""[..]),
    };
    let head = String::from_utf8_lossy(head);
    let headers: Vec<_> = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_lowercase(), (*value).to_owned()))
        .collect();
    for token in [None, Some(TokenDigest::of("a-token-that-was-guessed"))] {
        let delivery = Delivery {
            headers: &headers,
            body,
            truncated,
            path_token: token.as_ref(),
        };
        for now in [At(0), NOW, At(i64::MAX)] {
            let proof = provider.verify(&delivery, &keyring(), now);
            assert!(
                !proof.verdict().authentic(),
                "{}: {}",
                provider.name(),
                proof.verdict()
            );
            assert_eq!(proof.secret(), None, "{}", provider.name());
        }
    }
}

/// Answers out of the rest: cut at 0xff.
fn answers(choices: &mut Choices<'_>) -> Vec<ApiResponse> {
    const STATUSES: &[u16] = &[
        200, 200, 200, 404, 404, 410, 401, 402, 403, 422, 429, 500, 503,
    ];
    let statuses: Vec<_> = (0..4)
        .map(|_| (choices.of(STATUSES), choices.next()))
        .collect();
    let parts = choices.0.split(|byte| *byte == 0xff);
    let http = |((status, flags), body): (&(u16, usize), &[u8])| {
        let headers = vec![(
            "retry-after".to_owned(),
            String::from_utf8_lossy(&body[..body.len().min(30)]).into_owned(),
        )];
        match flags % 16 {
            0 => ApiResponse::Failed {
                what: "refused".to_owned(),
            },
            flag => ApiResponse::Http(Response {
                status: *status,
                headers,
                body: body.to_vec(),
                truncated: flag == 1,
            }),
        }
    };
    statuses.iter().zip(parts).map(http).collect()
}

/// Answers about one run, read and concluded upon, with the questions that follow from them.
pub fn status(data: &[u8]) {
    const KINDS: &[Kind] = &[
        Kind::Task,
        Kind::Workflow,
        Kind::Session,
        Kind::Recipe,
        Kind::Crawl,
        Kind::Extract,
    ];
    const IDS: &[&str] = &[
        "wr_1",
        "tsk_1",
        "tsk_v2_1",
        "a#2",
        "01989f60-3c1a-7d2e-9b57-0c6f2a7e1d01",
        "ä/../%",
    ];
    let mut choices = Choices(data);
    let provider = choices.provider();
    let settings = choices.settings(provider);
    let run_id = RunId::new(choices.of(IDS)).expect("an id");
    let (kind, guessed) = (choices.of(KINDS), choices.next().is_multiple_of(2));
    let group_id = Some("g").filter(|_| choices.next().is_multiple_of(2));
    let run = RunRef {
        run_id: &run_id,
        kind,
        guessed,
        group_id,
        settings: &settings,
    };
    let answers = answers(&mut choices);
    for upto in 1..=answers.len() {
        let answers = &answers[..upto];
        if let Some(question) = provider.follow_up(&run, answers) {
            assert!(
                question.path.starts_with('/') && !question.path.contains([' ', '\n', '\r']),
                "{}",
                question.path
            );
        }
        let _ = provider.classify(&answers[upto - 1]);
        let heard = provider.read_status(&run, answers, NOW);
        assert_eq!(
            heard.run_id, run_id,
            "an answer is about the run that was asked about"
        );
        check_reading(provider, &polled(&run, answers), &settings);
    }
}

/// The report that these answers make.
fn polled(run: &RunRef<'_>, answers: &[ApiResponse]) -> Report {
    let split = answers
        .iter()
        .map(|answer| ResponseMeta::split("/".to_owned(), answer.clone()));
    let (heads, bodies): (Vec<_>, Vec<_>) = split.unzip();
    let meta = PollMeta {
        run_id: run.run_id.clone(),
        kind: run.kind,
        guessed: run.guessed,
        group_id: run.group_id.map(str::to_owned),
        requested_at: NOW,
        answers: heads,
    };
    Report {
        source: 1,
        at: NOW,
        meta: Meta::Poll(meta),
        body: bodies.concat(),
    }
}

/// Pages of a list; every list comes to an end.
pub fn list(data: &[u8]) {
    let mut choices = Choices(data);
    let provider = choices.provider();
    let settings = choices.settings(provider);
    let answers = answers(&mut choices);
    let Some(answer) = answers.first() else {
        return;
    };
    let mut page: Option<String> = None;
    for _ in 0..3 {
        let Some(question) = provider.list_request(page.as_deref(), &settings) else {
            return;
        };
        assert!(
            question.path.starts_with('/') && !question.path.contains([' ', '\n', '\r']),
            "{}",
            question.path
        );
        let listing = provider.read_list(page.as_deref(), answer, &settings, NOW);
        assert!(
            listing
                .runs
                .iter()
                .all(|heard| heard.trust == Trust::Authoritative)
        );
        let Some(next) = listing.next else { return };
        page = Some(next);
    }
}

/// The answer to a request to send a webhook again.
pub fn retry(data: &[u8]) {
    let mut choices = Choices(data);
    let provider = choices.provider();
    let run_id = RunId::new("wr_1").expect("an id");
    for answer in answers(&mut choices) {
        if let RetryResult::Tried {
            payload: Some((body, headers)),
            ..
        } = provider.read_retry(&run_id, &answer)
        {
            let delivery = Delivery {
                headers: &headers,
                body: &body,
                truncated: false,
                path_token: None,
            };
            let _ = provider.verify(&delivery, &keyring(), NOW);
        }
    }
}

/// Python's JSON: the canonical text of a canonical text is itself.
pub fn python(data: &[u8]) {
    let Ok(document) = python_json::parse(data) else {
        return;
    };
    if let Some(canonical) = document.canonical()
        && let Ok(again) = python_json::parse(canonical.as_bytes())
    {
        assert!(canonical.is_ascii());
        assert_eq!(again.canonical().as_ref(), Some(&canonical));
    }
    let _ = document.into_json();
}

/// Cursors are read back as they are shown, up to leading noughts.
pub fn cursor(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(cursor) = Cursor::parse(text) {
        assert!(cursor.seq >= 0);
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
    }
}

/// A configuration is read or refused with a reason that quotes no secret file.
pub fn config(data: &[u8]) {
    let Ok(file) = tempfile::NamedTempFile::new() else {
        return;
    };
    if std::fs::write(file.path(), data).is_err() {
        return;
    }
    let env = Env::of([("KEY", SECRET), ("HOME", "/nonexistent")]);
    if let Err(error) = config::load(Some(file.path()), &env) {
        assert!(!error.to_string().contains(SECRET));
    }
}
