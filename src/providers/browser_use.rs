//! Browser Use Cloud: v2 tasks, v3 sessions (and their turns), v4 runs.
//!
//! Facts from the vendor's OpenAPI documents and guides (github.com/browser-use/sdk at 44546949,
//! `docs/openapi/*.json` and `docs/**/guides/webhooks.mdx` with its history), its published SDKs
//! (PyPI and npm `browser-use-sdk` 2.0.15, PyPI 3.12.1) and docs.browser-use.com; which fact is held
//! by which test stands in `docs/providers.md`.
//!
//! Facts that shape this provider:
//!
//! * Webhooks carry neither a success flag nor an error, so none of their endings settles alone, and
//!   v4 runs send none at all.
//! * There are two signature schemes. One has a time and signs Python's rewriting of the body
//!   ([`python_json`]); the other signs the raw body and has no time.
//! * A v3 session may host several tasks, and `idle` means both "ready" and "done": it ends a run
//!   only with evidence that work was done. `SESSION#n` names the n-th task of a session.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    ApiRequest, ApiResponse, Delivery, Environment, Listing, Proof, Provider, Reading, Response,
    ResponseClass, RunRef, Settings, Verdict, Webhook, answered, classify_by_status, encoded, json,
    listed, missing_if_canary_worked, python_json, told,
};
use crate::limits;
use crate::model::observation::{AnswerPrecedence, Claim, Detail, Ending, Observation, Progress};
use crate::model::schedule::{Confirm, Policy};
use crate::model::{At, Kind, Outcome, RunId, Trust};
use crate::providers::signature::Signature;
use crate::secret::{Key, Keyring, SecretLabel};

/// Browser Use Cloud, in the three generations of its API.
#[derive(Clone, Copy, Debug)]
pub struct BrowserUse;

/// The header of the signature that has a time beside it.
const TIMESTAMPED: &str = "x-browser-use-signature";
/// How far a timestamped delivery's time may lie from ours, either way.
const TOLERANCE_MS: u64 = 300_000;
/// Larger deliveries are not parsed, so that nobody can make us sort and rewrite megabytes: genuine
/// ones hold three ids, a word and at most ten metadata pairs.
const BODY_MAX: usize = 256 * 1024;
/// How many pages of a list are read in one sweep.
const LIST_PAGES_MAX: u32 = 10;
/// How many rows a page of a list has.
const LIST_ROWS: usize = 100;
/// How many pages of messages (100 each) are read to count the turns of a session.
const MESSAGE_PAGES_MAX: usize = 10;
/// How much of a provider's error text is kept.
const ERROR_CHARS: usize = 2000;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

impl Provider for BrowserUse {
    fn name(&self) -> &'static str {
        "browser-use"
    }

    fn base_url(&self) -> &'static str {
        "https://api.browser-use.com"
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("X-Browser-Use-API-Key", "")
    }

    fn environment(&self) -> Environment {
        Environment {
            api_key: "BROWSER_USE_API_KEY",
            webhook_secret: Some("BROWSER_USE_WEBHOOK_SECRET"),
            path_token: None,
            base_urls: &["BROWSER_USE_BASE_URL"],
        }
    }

    fn apis(&self) -> &'static [&'static str] {
        &["v2", "v3", "v4"]
    }

    /// The vendor ends browsers and sessions after 240 minutes, so a run open for ten minutes more
    /// is overdue, and one still open a day after we heard of it will not end any more.
    fn webhook_setup(&self) -> &'static str {
        "at cloud.browser-use.com/settings?tab=webhooks, for each project; it sends a test at once"
    }

    fn policy(&self, _kind: Option<Kind>) -> Policy {
        const LIMIT: &[Duration] = &[Duration::from_secs(241 * 60)];
        Policy {
            confirm: Confirm::Auto,
            confirm_timeout: MINUTE,
            grace: Duration::ZERO,
            deadline: 250 * MINUTE,
            give_up: 24 * HOUR,
            first_poll: Duration::from_secs(20),
            max_interval: 5 * MINUTE,
            expected_end_ages: LIMIT,
            answer_precedence: AnswerPrecedence::LastWins,
            can_poll: true,
            listed_for: Duration::ZERO,
        }
    }

    fn kind_of(&self, run_id: &RunId, settings: &Settings) -> Kind {
        if turn_of(run_id).1.is_some() {
            Kind::Session
        } else {
            Api::of(settings).kind()
        }
    }

    fn verify(&self, delivery: &Delivery<'_>, keyring: &Keyring, now: At) -> Proof {
        if delivery.truncated {
            return Proof::without(Verdict::Truncated);
        }
        let small = delivery.body.len() <= limits::PING_BYTES_MAX;
        let signature = delivery
            .header(TIMESTAMPED)
            .or_else(|| delivery.header("x-webhook-signature"));
        // Without a signature, a body that is too large for a ping needs no parsing.
        let body = if small || signature.is_some() {
            Body::read(delivery)
        } else {
            None
        };
        let proof = prove(delivery, body.as_ref(), &keyring.signing, now);
        // The ping comes before anybody could have copied the secret out of the dashboard.
        if small && !proof.verdict().authentic() && body.is_some_and(|body| is_ping(&body.object)) {
            return Proof::without(Verdict::Ping);
        }
        proof
    }

    fn read_webhook(&self, webhook: &Webhook<'_>) -> Reading {
        if webhook.truncated || webhook.body.len() > BODY_MAX {
            return read_head(webhook);
        }
        match python_json::parse(webhook.body).map(python_json::Document::into_object) {
            Err(error) => Reading::Unreadable(error.to_string()),
            Ok(None) => Reading::Unreadable("the body is JSON but not an object".to_owned()),
            Ok(Some(object)) if is_ping(&object) => Reading::Ping,
            Ok(Some(object)) => read_event(&object, webhook),
        }
    }

    fn status_request(&self, run: &RunRef<'_>) -> ApiRequest {
        let (id, _) = turn_of(run.run_id);
        ApiRequest::get(match Api::of_run(run) {
            Api::V2 => format!("/api/v2/tasks/{}/status", encoded(run.run_id.as_str())),
            Api::V3 => format!("/api/v3/sessions/{}", encoded(id)),
            Api::V4 => format!("/api/v4/runs/{}/status", encoded(run.run_id.as_str())),
        })
    }

    fn follow_up(&self, run: &RunRef<'_>, answers: &[ApiResponse]) -> Option<ApiRequest> {
        let (first, later) = answers.split_first()?;
        let api = Api::of_run(run);
        if is_gone(first) {
            return later.is_empty().then(|| api.canary());
        }
        let status = status_word(&fields(first)?)?;
        match api {
            Api::V2 | Api::V4 if later.is_empty() && api.is_over(&status) => {
                Some(full_view(api, run.run_id))
            }
            Api::V3 => message_request(run.run_id, &status, later),
            _ => None,
        }
    }

    fn read_status(
        &self,
        run: &RunRef<'_>,
        answers: &[ApiResponse],
        requested_at: At,
    ) -> Observation {
        let api = Api::of_run(run);
        let said = match answers.split_first() {
            Some((first, _)) if is_gone(first) => {
                Some(Said::of(missing_if_canary_worked(self, answers)))
            }
            Some((first, later)) => fields(first)
                .and_then(|view| said_by(api, run.run_id, &view, (is_cut(first), later))),
            None => None,
        };
        let Said { claim, detail } = said.unwrap_or_else(|| Said::of(Claim::Nothing));
        Observation {
            detail,
            ..answered(run.run_id, Some(api.kind()), claim, requested_at)
        }
    }

    fn canary_request(&self, settings: &Settings) -> ApiRequest {
        Api::of(settings).canary()
    }

    fn list_request(&self, page: Option<&str>, settings: &Settings) -> Option<ApiRequest> {
        let page = Page::parse(page)?;
        let number = page.number;
        Some(ApiRequest::get(match Api::of(settings) {
            Api::V2 => format!(
                "/api/v2/tasks?filterBy={}&pageSize={LIST_ROWS}&pageNumber={number}",
                page.filter()
            ),
            Api::V3 => format!("/api/v3/sessions?page={number}&page_size={LIST_ROWS}"),
            Api::V4 if page.of.is_empty() => format!("/api/v4/sessions?limit={LIST_ROWS}"),
            Api::V4 => format!(
                "/api/v4/sessions?limit={LIST_ROWS}&cursor={}",
                encoded(&page.of)
            ),
        }))
    }

    fn read_list(
        &self,
        page: Option<&str>,
        answer: &ApiResponse,
        settings: &Settings,
        requested_at: At,
    ) -> Listing {
        let (Some(page), Some(view)) = (Page::parse(page), fields(answer)) else {
            return Listing::default();
        };
        let api = Api::of(settings);
        let rows = field(&view, api.rows())
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let runs = rows
            .iter()
            .filter_map(|row| listed_row(api, row.as_object()?, requested_at))
            .collect();
        Listing {
            runs,
            next: page.next(api, &view, rows.len()),
            gap: None,
        }
    }

    fn classify(&self, answer: &ApiResponse) -> ResponseClass {
        let ApiResponse::Http(response) = answer else {
            return classify_by_status(answer);
        };
        match (response.status, classify_by_status(answer)) {
            (402 | 403, class @ ResponseClass::Unavailable { .. }) => class,
            (402, _) => ResponseClass::Unavailable {
                why: "HTTP 402: the account is out of credits or over its spend limit".to_owned(),
                retry_after: None,
            },
            (403, _) => ResponseClass::Denied {
                why: "HTTP 403: the key may not do this (v4 excludes projects with zero data retention)".to_owned(),
            },
            (_, ResponseClass::RateLimited { retry_after }) => {
                ResponseClass::RateLimited { retry_after: retry_after.max(retry_after_in_body(response)) }
            }
            (_, ResponseClass::Unavailable { why, retry_after }) => {
                ResponseClass::Unavailable { why, retry_after: retry_after.max(retry_after_in_body(response)) }
            }
            (_, class) => class,
        }
    }
}

// ── The generations of the API ──────────────────────────────────────────────────────────────────

/// A generation of the API, which is also a unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    V2,
    V3,
    V4,
}

impl Api {
    fn of(settings: &Settings) -> Api {
        match settings.api.as_deref() {
            Some("v3") => Api::V3,
            Some("v4") => Api::V4,
            _ => Api::V2,
        }
    }

    /// The kind decides, since one source may hear of several generations; the settings only where
    /// a run was given a kind that is not ours.
    fn of_run(run: &RunRef<'_>) -> Api {
        match run.kind {
            Kind::Task => Api::V2,
            Kind::Session => Api::V3,
            Kind::Agent => Api::V4,
            _ => Api::of(run.settings),
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Api::V2 => Kind::Task,
            Api::V3 => Kind::Session,
            Api::V4 => Kind::Agent,
        }
    }

    /// One row of a list of the same generation. A generation that is switched off answers 404 to
    /// everything (v1 did), so a call of another one could not tell that from a run that is gone.
    fn canary(self) -> ApiRequest {
        ApiRequest::get(match self {
            Api::V2 => "/api/v2/tasks?pageSize=1",
            Api::V3 => "/api/v3/sessions?page_size=1",
            Api::V4 => "/api/v4/sessions?limit=1",
        })
    }

    /// The key of the rows in an answer to a list.
    const fn rows(self) -> &'static str {
        match self {
            Api::V2 => "items",
            Api::V3 | Api::V4 => "sessions",
        }
    }

    /// Whether a status of this generation's API says that the run, or the session, is over.
    fn is_over(self, status: &str) -> bool {
        match self {
            Api::V2 => matches!(status, "finished" | "failed" | "stopped"),
            Api::V3 => matches!(status, "stopped" | "timed_out" | "error"),
            Api::V4 => matches!(status, "completed" | "failed" | "cancelled"),
        }
    }
}

/// The session (or whatever the id names) and, for `SESSION#n`, the number of the turn, from 1.
fn turn_of(run_id: &RunId) -> (&str, Option<usize>) {
    let id = run_id.as_str();
    let turn = |(session, number): (&'_ str, &'_ str)| -> Option<usize> {
        let plain =
            (1..=6).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
        let named = !matches!(session, "" | "." | "..");
        let counted = plain && !number.starts_with('0') && named;
        counted.then(|| number.parse().ok())?
    };
    match id.rsplit_once('#') {
        Some(parts) if turn(parts).is_some() => (parts.0, turn(parts)),
        _ => (id, None),
    }
}

// ── Verifying ───────────────────────────────────────────────────────────────────────────────────

/// A delivery's body that is one JSON object.
struct Body {
    object: Map<String, Value>,
    /// Made only where a signature may be over it. A body that repeats a key has none: the signer
    /// never writes one, and the text does not show the value that the later key hides.
    canonical: Option<String>,
}

impl Body {
    fn read(delivery: &Delivery<'_>) -> Option<Body> {
        let document =
            (delivery.body.len() <= BODY_MAX).then(|| python_json::parse(delivery.body).ok())??;
        let canonical = delivery
            .header(TIMESTAMPED)
            .filter(|_| !document.has_repeated_keys())
            .and_then(|_| document.canonical());
        document
            .into_object()
            .map(|object| Body { object, canonical })
    }
}

/// Judges the signature headers. With both, the timestamped one decides and the other is not
/// looked at. Only a JSON object can be proven: the signed text of a timestamped delivery,
/// replayed as the body of an untimed one, would carry a genuine signature.
fn prove(delivery: &Delivery<'_>, body: Option<&Body>, keys: &[Key], now: At) -> Proof {
    if keys.is_empty() {
        return Proof::without(Verdict::NoSecret);
    }
    let timestamped = delivery.header(TIMESTAMPED);
    let Some(signature) = timestamped.or_else(|| delivery.header("x-webhook-signature")) else {
        return Proof::without(Verdict::Unsigned);
    };
    let (Some(signature), Some(body)) = (Signature::from_hex(signature), body) else {
        return Proof::without(Verdict::BadSignature);
    };
    let proven = if timestamped.is_some() {
        prove_timestamped(delivery, body, &signature, keys, now)
    } else {
        prove_untimed(delivery, body, &signature, keys)
    };
    proven.map_or_else(
        || Proof::without(Verdict::BadSignature),
        |(verdict, label)| Proof::by(verdict, label.clone()),
    )
}

/// Signed is `T.C`: the time as it stands in its header, and Python's rewriting of the body, or
/// the body itself. JavaScript's rewritings are not tried: they cannot tell 1 from 1.0.
fn prove_timestamped<'a>(
    delivery: &Delivery<'_>,
    body: &Body,
    signature: &Signature,
    keys: &'a [Key],
    now: At,
) -> Option<(Verdict, &'a SecretLabel)> {
    let time = delivery
        .header("x-browser-use-timestamp")
        .filter(|time| is_unix_time(time))?;
    let signed = |text: &[u8]| signature.signed_by(keys, &[time.as_bytes(), b".", text]);
    let canonical = body
        .canonical
        .as_ref()
        .and_then(|text| signed(text.as_bytes()));
    let label = canonical.or_else(|| signed(delivery.body))?;
    let sent = time.parse::<i64>().ok()?.saturating_mul(1000);
    let fresh = now.0.abs_diff(sent) <= TOLERANCE_MS;
    Some((
        if fresh {
            Verdict::Signed
        } else {
            Verdict::Stale
        },
        label,
    ))
}

/// `^[0-9]{1,12}$`. Anything laxer lets the body of an untimed delivery be cut at a "." and its
/// first part be presented as the time.
fn is_unix_time(text: &str) -> bool {
    (1..=12).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Signed is the raw body. Nothing shows when: an old one says of a task only what stays true, but
/// of a session it may speak of an earlier turn.
fn prove_untimed<'a>(
    delivery: &Delivery<'_>,
    body: &Body,
    signature: &Signature,
    keys: &'a [Key],
) -> Option<(Verdict, &'a SecretLabel)> {
    let label = signature.signed_by(keys, &[delivery.body])?;
    Some((
        if speaks_of_session(&body.object) {
            Verdict::Untimed
        } else {
            Verdict::Signed
        },
        label,
    ))
}

/// Whether a body tells of a v3 session: by its type, by naming nothing else, or by a word that
/// only sessions have.
fn speaks_of_session(object: &Map<String, Value>) -> bool {
    let payload = payload(object);
    let Ok(ids) = Ids::of(payload) else {
        return false;
    };
    let session_word = || {
        matches!(
            json::text(payload, "status"),
            Some("idle" | "timed_out" | "error")
        )
    };
    ids.run.is_none()
        && (is_session_event(object)
            || ids.task.is_none() && ids.session.is_some()
            || session_word())
}

// ── Reading webhooks ────────────────────────────────────────────────────────────────────────────

/// `{"type":"test", …}`, or in the first generation `{"test":"ok"}`.
fn is_ping(object: &Map<String, Value>) -> bool {
    match json::text(object, "type") {
        Some(kind) => kind == "test",
        None => json::text(object, "test") == Some("ok"),
    }
}

/// The part that speaks of the run: the first generation had no envelope.
fn payload(object: &Map<String, Value>) -> &Map<String, Value> {
    json::child(object, "payload").unwrap_or(object)
}

fn is_session_event(object: &Map<String, Value>) -> bool {
    json::text(object, "type").is_some_and(|kind| kind.starts_with("session."))
}

/// `agent.task.status_update`, `session.status.update` and the like; the first generation named no
/// type.
fn is_status_event(object: &Map<String, Value>) -> bool {
    let letters = |kind: &str| {
        kind.chars()
            .filter(char::is_ascii_alphabetic)
            .collect::<String>()
    };
    json::text(object, "type")
        .is_none_or(|kind| letters(kind).to_ascii_lowercase().ends_with("statusupdate"))
}

/// Both spellings of an id are there, and differ.
struct Malformed;

/// The ids in a payload.
struct Ids<'a> {
    run: Option<&'a str>,
    task: Option<&'a str>,
    session: Option<&'a str>,
}

impl<'a> Ids<'a> {
    fn of(payload: &'a Map<String, Value>) -> Result<Ids<'a>, Malformed> {
        let id = |snake, camel| match (json::text(payload, snake), json::text(payload, camel)) {
            (Some(a), Some(b)) if a != b => Err(Malformed),
            (a, b) => Ok(a.or(b)),
        };
        Ok(Ids {
            run: id("run_id", "runId")?,
            task: id("task_id", "taskId")?,
            session: id("session_id", "sessionId")?,
        })
    }

    /// The run that the event is about first, then the others that it names. A task belongs to a
    /// session, so the
    /// task is the narrower name; but where the source's unit of work (or the event's) is the
    /// session, nobody knows what a task id stands for.
    fn in_order(&self, sessions: bool) -> Vec<(Kind, &'a str)> {
        let run = (Kind::Agent, self.run);
        let task = (Kind::Task, self.task);
        let session = (Kind::Session, self.session);
        let order = if sessions {
            [run, session, task]
        } else {
            [run, task, session]
        };
        order
            .into_iter()
            .filter_map(|(kind, id)| Some((kind, id?)))
            .collect()
    }
}

fn read_event(object: &Map<String, Value>, webhook: &Webhook<'_>) -> Reading {
    let payload = payload(object);
    let Ok(ids) = Ids::of(payload) else {
        return Reading::Unreadable(
            "malformed: an id is spelled in two ways that differ".to_owned(),
        );
    };
    let sessions = is_session_event(object) || Api::of(webhook.settings) == Api::V3;
    let ids = ids.in_order(sessions);
    let Ok(named) = ids
        .iter()
        .map(|(kind, id)| RunId::new(id).map(|id| (*kind, id)))
        .collect::<Result<Vec<_>, _>>()
    else {
        return Reading::Unreadable("malformed: an id cannot be one".to_owned());
    };
    match (named.split_first(), json::text(payload, "status")) {
        (Some((subject, others)), Some(status)) if is_status_event(object) => {
            let mut said = vec![told_status(subject, status, object, webhook)];
            // The meaning of an unknown word is not documented: a poll decides.
            said.extend(word_claim(status).is_none().then(|| hint(subject, webhook)));
            said.extend(others.iter().map(|other| hint(other, webhook)));
            Reading::Said(said)
        }
        (None, _) if is_status_event(object) => {
            Reading::Unreadable("the body names no run".to_owned())
        }
        _ => Reading::Said(named.iter().map(|named| hint(named, webhook)).collect()),
    }
}

fn told_status(
    (kind, id): &(Kind, RunId),
    status: &str,
    object: &Map<String, Value>,
    webhook: &Webhook<'_>,
) -> Observation {
    let (claim, reason) =
        word_claim(status).unwrap_or((Claim::Open(Progress::Waiting), Some("unknown_status")));
    let detail = Detail {
        provider_status: Some(status.to_owned()),
        reason: reason.map(str::to_owned),
        metadata: json::map(payload(object), "metadata"),
        provider_time: json::time(object, "timestamp"),
        ..Detail::default()
    };
    Observation {
        detail,
        ..told(id.clone(), Some(*kind), claim, webhook)
    }
}

/// Something that is named beside the subject. It may be a run we know under that name (v1 events
/// carried its id as the session's), so its next poll is brought forward, whatever the event's
/// trust; it opens nothing.
fn hint((kind, id): &(Kind, RunId), webhook: &Webhook<'_>) -> Observation {
    let claim = Claim::Listed { over: true };
    Observation {
        trust: Trust::Hint,
        ..told(id.clone(), Some(*kind), claim, webhook)
    }
}

/// The union of all published status words, as a webhook means them. No ending settles alone.
fn word_claim(status: &str) -> Option<(Claim, Option<&'static str>)> {
    let over = |outcome, reason| Some((Claim::Ended(Ending::needs_answer(outcome)), reason));
    match status {
        "created" | "queued" | "dispatching" | "initializing" => {
            Some((Claim::Open(Progress::Waiting), None))
        }
        "started" | "running" | "paused" => Some((Claim::Open(Progress::Started), None)),
        // "Ready, nothing began yet" and "done" are one word: only worth a look.
        "idle" => Some((Claim::Listed { over: true }, Some("idle_unconfirmed"))),
        // No flag says whether what finished was a success.
        "finished" | "completed" => over(Outcome::Succeeded, Some("unreported")),
        // Covers people's stops, errors and, for sessions, the normal end.
        "stopped" => over(Outcome::Indeterminate, Some("stopped_unconfirmed")),
        "failed" => over(Outcome::Failed, None),
        "error" => over(Outcome::Failed, Some("infrastructure_error")),
        "timed_out" => over(Outcome::TimedOut, None),
        "cancelled" => over(Outcome::Cancelled, None),
        _ => None,
    }
}

/// Reads what it can of a body that was cut off or is too large: the ids near its beginning, as
/// hints.
fn read_head(webhook: &Webhook<'_>) -> Reading {
    const HEAD: usize = 16 * 1024;
    const KEYS: [(Kind, &str); 6] = [
        (Kind::Agent, "\"run_id\""),
        (Kind::Agent, "\"runId\""),
        (Kind::Task, "\"task_id\""),
        (Kind::Task, "\"taskId\""),
        (Kind::Session, "\"session_id\""),
        (Kind::Session, "\"sessionId\""),
    ];
    let head = String::from_utf8_lossy(&webhook.body[..webhook.body.len().min(HEAD)]);
    let named = KEYS
        .iter()
        .filter_map(|(kind, key)| Some((*kind, RunId::new(string_after(&head, key)?).ok()?)));
    let hints: Vec<Observation> = named.map(|named| hint(&named, webhook)).collect();
    if hints.is_empty() {
        return Reading::Unreadable(
            "the body was cut off, and what is left names no run".to_owned(),
        );
    }
    Reading::Said(hints)
}

/// The string that stands as the value of the first such key.
fn string_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    let rest = rest
        .trim_start()
        .strip_prefix(':')?
        .trim_start()
        .strip_prefix('"')?;
    rest.split_once('"').map(|(value, _)| value)
}

// ── Reading answers ─────────────────────────────────────────────────────────────────────────────

/// The claim of an answer about the polled run.
struct Said {
    claim: Claim,
    detail: Detail,
}

impl Said {
    fn of(claim: Claim) -> Said {
        Said {
            claim,
            detail: Detail::default(),
        }
    }
}

fn is_gone(answer: &ApiResponse) -> bool {
    matches!(answer, ApiResponse::Http(response) if matches!(response.status, 404 | 410))
}

/// The object in a good answer. Read as leniently as webhooks are: agents' outputs are scraped
/// text, and an odd character in one must not keep its run open for ever. Of an answer that was cut
/// off these are the scalars in the part that was kept.
fn fields(answer: &ApiResponse) -> Option<Map<String, Value>> {
    match answer {
        ApiResponse::Http(response) if (200..300).contains(&response.status) => {
            if response.truncated {
                return Some(json::surface(&response.body, None).fields);
            }
            python_json::parse(&response.body).ok()?.into_object()
        }
        _ => None,
    }
}

/// A field that is not null, in the documented spelling or in snake case.
fn field<'a>(view: &'a Map<String, Value>, camel: &str) -> Option<&'a Value> {
    let said = |key: &str| view.get(key).filter(|value| !value.is_null());
    said(camel).or_else(|| said(&snake_case(camel)))
}

fn snake_case(camel: &str) -> String {
    camel
        .chars()
        .fold(String::with_capacity(camel.len() + 4), |mut out, letter| {
            if letter.is_ascii_uppercase() {
                out.push('_');
            }
            out.push(letter.to_ascii_lowercase());
            out
        })
}

fn flag(view: &Map<String, Value>, camel: &str) -> Option<bool> {
    field(view, camel)?.as_bool()
}

fn text(view: &Map<String, Value>, camel: &str) -> Option<String> {
    field(view, camel)?
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

fn time(view: &Map<String, Value>, camel: &str) -> Option<At> {
    json::parse_time(field(view, camel)?.as_str()?)
}

fn status_word(view: &Map<String, Value>) -> Option<String> {
    text(view, "status")
}

fn is_cut(answer: &ApiResponse) -> bool {
    matches!(answer, ApiResponse::Http(response) if response.truncated)
}

/// Whether the run has ended with a word that leaves the outcome to a flag, and the flag is not
/// there. In an answer that was cut off it may stand in the part that is lost.
fn hangs_on_flag(api: Api, status: &str, view: &Map<String, Value>) -> bool {
    match api {
        Api::V2 => {
            matches!(status, "finished" | "stopped")
                && flag(view, "isSuccess").is_none()
                && flag(view, "judgeVerdict").is_none()
        }
        Api::V3 => matches!(status, "idle" | "stopped") && flag(view, "isTaskSuccessful").is_none(),
        Api::V4 => false,
    }
}

fn full_view(api: Api, run_id: &RunId) -> ApiRequest {
    let id = encoded(run_id.as_str());
    ApiRequest::get(if api == Api::V4 {
        format!("/api/v4/runs/{id}")
    } else {
        format!("/api/v2/tasks/{id}")
    })
}

fn said_by(
    api: Api,
    run_id: &RunId,
    view: &Map<String, Value>,
    (first_cut, later): (bool, &[ApiResponse]),
) -> Option<Said> {
    let status = status_word(view)?;
    let full = later
        .first()
        .and_then(fields)
        .filter(|_| api != Api::V3)
        .unwrap_or_default();
    // The fuller, later view adds details; the status itself stays that of the first answer.
    let mut merged = view.clone();
    merged.extend(
        full.into_iter()
            .filter(|(key, value)| key != "status" && !value.is_null()),
    );
    let turn = turn_of(run_id).1.filter(|_| api == Api::V3);
    let (claim, reason) = match (api, turn) {
        (Api::V2, _) => task_claim(&status, &merged),
        (Api::V4, _) => run_claim(&status, &merged),
        (Api::V3, Some(turn)) => turn_claim(turn, &status, view, later),
        (Api::V3, None) => session_claim(&status, view),
    };
    // The pages of messages are only counted, and a cut page is not counted at all.
    let cut = first_cut || api == Api::V2 && later.first().is_some_and(is_cut);
    let (claim, reason) = if cut && hangs_on_flag(api, &status, &merged) {
        ended(Outcome::Indeterminate, Some("answer_cut_off"))
    } else {
        (claim, reason)
    };
    let mut detail = detail_of(status, reason, &claim, &merged);
    // A session is older than its later turns.
    detail.opened_at = detail
        .opened_at
        .filter(|_| turn.is_none_or(|turn| turn == 1));
    Some(Said { claim, detail })
}

fn detail_of(
    status: String,
    reason: Option<&str>,
    claim: &Claim,
    view: &Map<String, Value>,
) -> Detail {
    Detail {
        provider_status: Some(status),
        reason: reason.map(str::to_owned),
        error: matches!(claim, Claim::Ended(_))
            .then(|| text(view, "error").map(|error| json::shortened(&error, ERROR_CHARS)))
            .flatten(),
        counters: counters(view),
        metadata: json::map(view, "metadata"),
        opened_at: time(view, "createdAt"),
        provider_time: time(view, "finishedAt").or_else(|| time(view, "updatedAt")),
        ..Detail::default()
    }
}

fn counters(view: &Map<String, Value>) -> Option<Map<String, Value>> {
    const COUNTED: [&str; 3] = ["stepCount", "totalInputTokens", "totalOutputTokens"];
    let counted = COUNTED
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), field(view, key)?.clone())));
    Some(counted.filter(|(_, value)| value.is_number()).collect())
        .filter(|counted: &Map<_, _>| !counted.is_empty())
}

type Judged = (Claim, Option<&'static str>);

const fn open(rank: Progress) -> Judged {
    (Claim::Open(rank), None)
}

const fn ended(outcome: Outcome, reason: Option<&'static str>) -> Judged {
    (Claim::Ended(Ending::sufficient(outcome)), reason)
}

const UNKNOWN_STATUS: Judged = (Claim::Open(Progress::Waiting), Some("unknown_status"));

/// An end whose word leaves the outcome to a flag; without the flag it is what `silent` says.
const fn by_flag(success: Option<bool>, silent: Judged) -> Judged {
    match success {
        Some(true) => ended(Outcome::Succeeded, None),
        Some(false) => ended(Outcome::Failed, None),
        None => silent,
    }
}

const UNREPORTED: Judged = ended(Outcome::Succeeded, Some("unreported"));
const STOPPED: Judged = ended(Outcome::Cancelled, Some("stopped_cause_unknown"));

/// v2.
fn task_claim(status: &str, view: &Map<String, Value>) -> Judged {
    let success = flag(view, "isSuccess");
    match status {
        "created" => open(Progress::Waiting),
        // Until November 2025 a task could be paused.
        "started" | "paused" => open(Progress::Started),
        "finished" => finished_claim(success, flag(view, "judgeVerdict")),
        "failed" => ended(Outcome::Failed, None),
        "stopped" => by_flag(success, STOPPED),
        _ => UNKNOWN_STATUS,
    }
}

/// `isSuccess` is the agent's word for itself, the verdict that of a judge who is only sometimes
/// asked: it speaks where the agent is silent, and where they differ we say so.
fn finished_claim(success: Option<bool>, verdict: Option<bool>) -> Judged {
    match (success, verdict) {
        (Some(success), Some(verdict)) if success != verdict => (
            by_flag(Some(success), UNREPORTED).0,
            Some("judge_disagrees"),
        ),
        (None, Some(verdict)) => (by_flag(Some(verdict), UNREPORTED).0, Some("judged")),
        _ => by_flag(success, UNREPORTED),
    }
}

/// v4. A completed run has no success flag, but may have been judged.
fn run_claim(status: &str, view: &Map<String, Value>) -> Judged {
    let verdict = field(view, "judgement")
        .and_then(Value::as_object)
        .and_then(|judgement| flag(judgement, "verdict"));
    match status {
        "queued" | "dispatching" => open(Progress::Waiting),
        "running" => open(Progress::Started),
        "completed" if verdict == Some(false) => ended(Outcome::Failed, Some("judged")),
        "completed" => ended(Outcome::Succeeded, None),
        "failed" => ended(Outcome::Failed, None),
        "cancelled" => ended(Outcome::Cancelled, None),
        _ => UNKNOWN_STATUS,
    }
}

/// v3, a whole session.
fn session_claim(status: &str, view: &Map<String, Value>) -> Judged {
    let success = flag(view, "isTaskSuccessful");
    match status {
        "running" => open(Progress::Started),
        "idle" if has_worked(view) => by_flag(success, UNREPORTED),
        "created" | "idle" => open(Progress::Waiting),
        "stopped" if field(view, "output").is_some() => by_flag(success, UNREPORTED),
        "stopped" => by_flag(success, STOPPED),
        "timed_out" => ended(Outcome::TimedOut, None),
        "error" => ended(Outcome::Failed, Some("infrastructure_error")),
        _ => UNKNOWN_STATUS,
    }
}

/// Evidence that an idle session has done its task, and is not still waiting for it.
fn has_worked(view: &Map<String, Value>) -> bool {
    let steps = field(view, "stepCount")
        .and_then(Value::as_u64)
        .unwrap_or(0);
    flag(view, "isTaskSuccessful").is_some()
        || field(view, "output").is_some()
        || steps > 0
        || text(view, "lastStepSummary").is_some()
}

// ── Turns of a v3 session ───────────────────────────────────────────────────────────────────────

/// The next page of messages, while the status leaves it open whether the turn has ended and the
/// pages so far hang together. While the session runs they are not read: if the run asked about
/// is the one that goes on they say nothing new, and else they will say it when the session rests.
fn message_request(run_id: &RunId, status: &str, pages: &[ApiResponse]) -> Option<ApiRequest> {
    let (session, turn) = turn_of(run_id);
    turn?;
    if status != "idle" && !Api::V3.is_over(status) || pages.len() >= MESSAGE_PAGES_MAX {
        return None;
    }
    let path = format!("/api/v3/sessions/{}/messages?limit=100", encoded(session));
    let Some(last) = pages.last() else {
        return Some(ApiRequest::get(path));
    };
    let last = fields(last).filter(|page| flag(page, "hasMore") == Some(true))?;
    let after = text(messages(&last).last()?.as_object()?, "id")?;
    Some(ApiRequest::get(format!("{path}&after={}", encoded(&after))))
}

fn messages(page: &Map<String, Value>) -> &[Value] {
    page.get("messages")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// The state of each turn in the messages, in order: whether the agent wrote its completion. `None`
/// unless the pages are all there: then nothing can be counted.
fn turns(pages: &[ApiResponse]) -> Option<Vec<bool>> {
    let pages: Vec<_> = pages.iter().map(fields).collect::<Option<_>>()?;
    let (last, earlier) = pages.split_last()?;
    // Where the first page was not the oldest there is nothing after it, although it said so.
    let whole = flag(last, "hasMore") == Some(false)
        && (earlier.is_empty() || !messages(last).is_empty())
        && earlier
            .iter()
            .all(|page| flag(page, "hasMore") == Some(true));
    if !whole {
        return None;
    }
    let mut turns: Vec<bool> = Vec::new();
    for message in pages.iter().flat_map(messages).filter_map(Value::as_object) {
        match (json::text(message, "type"), json::text(message, "role")) {
            (Some("user_message"), _) | (None, Some("human")) => turns.push(false),
            (Some("completion"), _) => turns
                .last_mut()
                .into_iter()
                .for_each(|completed| *completed = true),
            _ => {}
        }
    }
    Some(turns)
}

/// One turn of a session. The session's own fields speak of its latest turn only, and of the one
/// before until that has begun, so they count for a turn only where the messages show that it is
/// the latest and has ended.
fn turn_claim(
    turn: usize,
    status: &str,
    view: &Map<String, Value>,
    pages: &[ApiResponse],
) -> Judged {
    if status != "idle" && !Api::V3.is_over(status) {
        return session_claim(status, view);
    }
    let Some(turns) = turns(pages) else {
        return (Claim::Open(Progress::Waiting), Some("turns_not_counted"));
    };
    let success = flag(view, "isTaskSuccessful");
    match turns.get(turn - 1) {
        None => (Claim::Open(Progress::Waiting), Some("turn_not_seen")),
        Some(true) if turn < turns.len() => UNREPORTED,
        Some(false) if turn < turns.len() => ended(Outcome::Indeterminate, Some("turn_superseded")),
        Some(true) => by_flag(success, UNREPORTED),
        Some(false) if turn == 1 => session_claim(status, view),
        Some(false) if status == "idle" => open(Progress::Waiting),
        Some(false)
            if status == "stopped" && (success.is_some() || field(view, "output").is_some()) =>
        {
            ended(Outcome::Indeterminate, Some("turn_outcome_unknown"))
        }
        Some(false) => session_claim(status, view),
    }
}

// ── Lists ───────────────────────────────────────────────────────────────────────────────────────

/// Which page of a list: `number:of`, where `of` is v2's filter or v4's cursor.
struct Page {
    number: u32,
    of: String,
}

impl Page {
    fn parse(page: Option<&str>) -> Option<Page> {
        let Some(page) = page else {
            return Some(Page {
                number: 1,
                of: String::new(),
            });
        };
        let (number, of) = page.split_once(':')?;
        Some(Page {
            number: number.parse().ok()?,
            of: of.to_owned(),
        })
    }

    /// v2 lists one status at a time; the open ones are `created` and `started`.
    fn filter(&self) -> &'static str {
        if self.of == "started" {
            "started"
        } else {
            "created"
        }
    }

    /// The page after this one, which had so many rows. Bounded: only v2 can list open runs alone,
    /// so on the others the pages end in history.
    fn next(&self, api: Api, view: &Map<String, Value>, rows: usize) -> Option<String> {
        let number = self.number + 1;
        let full = rows >= LIST_ROWS && self.number < LIST_PAGES_MAX;
        match api {
            Api::V2 if full => Some(format!("{number}:{}", self.filter())),
            Api::V2 => (self.filter() == "created").then(|| "1:started".to_owned()),
            Api::V3 => full.then(|| format!("{number}:")),
            Api::V4 => {
                let more = flag(view, "hasMore") == Some(true) && self.number < LIST_PAGES_MAX;
                more.then(|| text(view, "nextCursor"))
                    .flatten()
                    .map(|cursor| format!("{number}:{cursor}"))
            }
        }
    }
}

/// A row of a list. One that seems to be over is only a hint: lists reach back into history, and
/// runs that ended before we were there are not news.
fn listed_row(api: Api, row: &Map<String, Value>, requested_at: At) -> Option<Observation> {
    let id = text(row, if api == Api::V4 { "latestRunId" } else { "id" })?;
    let status = status_word(row)?;
    let over = api.is_over(&status) || api == Api::V3 && status == "idle" && has_worked(row);
    let seen = listed(&RunId::new(&id).ok()?, Some(api.kind()), over, requested_at);
    let mut detail = detail_of(status, None, &seen.claim, row);
    // v4's rows are sessions, which may be older than the run they name.
    detail.opened_at = detail.opened_at.filter(|_| api != Api::V4);
    Some(Observation { detail, ..seen })
}

// ── Response classes ─────────────────────────────────────────────────────────────────────────────

/// A project's throttle says in its body how long to wait; the edge's says it in the header.
fn retry_after_in_body(response: &Response) -> Option<Duration> {
    let body = python_json::parse(&response.body).ok()?.into_object()?;
    let seconds =
        |object: &Map<String, Value>| field(object, "retryAfterSeconds").and_then(Value::as_f64);
    let seconds = seconds(&body).or_else(|| seconds(json::child(&body, "detail")?))?;
    (0.0..=86_400.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn camel_case_becomes_snake_case() {
        for (camel, snake) in [
            ("id", "id"),
            ("isSuccess", "is_success"),
            ("latestRunId", "latest_run_id"),
            ("retryAfterSeconds", "retry_after_seconds"),
            ("totalInputTokens", "total_input_tokens"),
        ] {
            assert_eq!(snake_case(camel), snake);
        }
    }

    #[test]
    fn a_turn_is_a_number_after_the_last_hash() {
        let of = |id: &str| {
            let id = RunId::new(id).unwrap();
            let (session, turn) = turn_of(&id);
            (session.to_owned(), turn)
        };
        assert_eq!(of("s#1"), ("s".to_owned(), Some(1)));
        assert_eq!(of("s#12"), ("s".to_owned(), Some(12)));
        for whole in ["s", "s#", "s#0", "s#01", "s#x", "s#+1", "#1", "s#1234567"] {
            assert_eq!(of(whole), (whole.to_owned(), None), "{whole}");
        }
    }
}
