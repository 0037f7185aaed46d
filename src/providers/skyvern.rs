//! Skyvern: tasks (`tsk_…`), tasks 2.0 (`tsk_v2_…`) and workflow runs (`wr_…`).
//!
//! | provider's word | claim |
//! |---|---|
//! | `created`, `queued` | open, waiting |
//! | `running`, `paused` | open, started |
//! | `completed` | succeeded |
//! | `failed` | failed |
//! | `terminated` | failed, reason `terminated`: the agent itself judged that the goal cannot be met |
//! | `canceled` | cancelled |
//! | `timed_out` | timed out |
//! | any of the last five with `retry_pending: true` | open, started, reason `retry_pending` |
//! | any other | open, waiting |
//!
//! Where the facts come from ("1.0.56" is the `skyvern` package of that version, read and run on
//! loopback; the captured deliveries are in `tests/vectors/skyvern/samples.json`):
//!
//! * Words, ids, shapes: `skyvern/schemas/run_enums.py`, `skyvern/schemas/runs.py`,
//!   `skyvern/forge/sdk/db/id.py`, `skyvern/services/run_service.py`.
//! * A terminal word is not always the end: a retry policy starts the same run again
//!   (`skyvern/forge/sdk/workflow/retry_policy.py`), and a `finally` block puts a failed run back to
//!   `running` for as long as it runs (`skyvern/forge/sdk/workflow/service.py`). The first is told by
//!   `retry_pending`; against the second there is [`Policy::grace`]. `finished_at` is set during both,
//!   so it is no evidence of anything.
//! * A `canceled` task 2.0 may run on and end otherwise (seen live, three times of three), so that
//!   webhook alone is not sufficient.
//! * The signature is over the raw body alone, with an API key; which of an organisation's keys
//!   depends on who caused the delivery, so all configured keys are tried
//!   (`skyvern/forge/sdk/core/security.py`). The timestamp beside it is not signed, and off by the
//!   server's zone: it is stored with the headers and never judged.
//! * Times in bodies are UTC without saying so.
//! * Sample deliveries (`skyvern/services/webhook_service.py`, `build_sample_*_payload`) are signed
//!   like real ones, say `completed`, and may carry a real run's id; a fixed browser session gives
//!   them away.
//! * A run without a `task_runs` row is 404 at `/v1/runs/…`; workflow runs can then still be read at
//!   the older `/api/v1/workflows/runs/…`, whose body has the same state fields.
//! * Retry-webhook is synchronous, answers 200 even when nothing was delivered, and holds the signed
//!   payload (`replay_run_webhook` in `skyvern/services/webhook_service.py`).

use std::time::Duration;

use serde_json::{Map, Value};

use super::json::{self, Surface};
use super::signature::Signature;
use super::{
    ApiRequest, ApiResponse, Delivery, Environment, Headers, Listing, Method, Proof, Provider,
    Reading, Response, ResponseClass, RetryResult, RunRef, Settings, Verdict, Webhook,
};
use crate::model::observation::{AnswerPrecedence, Claim, Detail, Ending, Observation, Progress};
use crate::model::schedule::{Confirm, Policy};
use crate::model::{At, Kind, Outcome, RunId};
use crate::secret::Keyring;

/// Skyvern Cloud and self-hosted Skyvern.
#[derive(Debug)]
pub struct Skyvern;

/// Runs on a full page of the list; the provider allows no more.
const PAGE_SIZE: usize = 100;
/// The provider serves no later page.
const PAGE_MAX: u32 = 100;
/// Outputs are unbounded, and the fields that tell whether a workflow run is retried follow them.
const RUN_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The answer to a retry holds a whole payload, quoted once more.
const RETRY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The provider gives the receiver 60 s before it answers us.
const RETRY_TIMEOUT: Duration = Duration::from_secs(90);
/// The longest delay a retry policy can have.
const NEXT_ATTEMPT_MAX: Duration = Duration::from_secs(3600);
/// Ids of the provider's sample deliveries.
const SAMPLE_RUNS: [&str; 2] = ["tsk_sample_123456789", "wr_sample_123456789"];
/// The browser session of a sample delivery that was given a real run's id.
const SAMPLE_SESSION: &str = "pbs_sample_123456";
const COUNTERS: [&str; 6] = [
    "attempt",
    "step_count",
    "total_steps",
    "total_cost",
    "credits_used",
    "cached_credits_used",
];

impl Provider for Skyvern {
    fn name(&self) -> &'static str {
        "skyvern"
    }

    fn base_url(&self) -> &'static str {
        "https://api.skyvern.com"
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("x-api-key", "")
    }

    fn environment(&self) -> Environment {
        Environment {
            api_key: "SKYVERN_API_KEY",
            webhook_secret: None,
            path_token: None,
            base_urls: &["SKYVERN_BASE_URL"],
        }
    }

    fn signs_with_api_key(&self) -> bool {
        true
    }

    fn webhook_setup(&self) -> &'static str {
        "as webhook_url of each run, or as the default of a workflow"
    }

    fn policy(&self, _kind: Option<Kind>) -> Policy {
        Policy {
            confirm: Confirm::Auto,
            confirm_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(60),
            deadline: Duration::from_secs(24 * 3600),
            give_up: Duration::from_secs(7 * 24 * 3600),
            first_poll: Duration::from_secs(20),
            max_interval: Duration::from_secs(300),
            expected_end_ages: &[],
            answer_precedence: AnswerPrecedence::LastWins,
            can_poll: true,
            listed_for: Duration::ZERO,
        }
    }

    fn kind_of(&self, run_id: &RunId, _settings: &Settings) -> Kind {
        kind_by_id(run_id).unwrap_or(Kind::Task)
    }

    fn verify(&self, delivery: &Delivery<'_>, keyring: &Keyring, _now: At) -> Proof {
        if delivery.truncated {
            return Proof::without(Verdict::Truncated);
        }
        if keyring.signing.is_empty() {
            return Proof::without(Verdict::NoSecret);
        }
        let Some(given) = delivery.header("x-skyvern-signature") else {
            return Proof::without(Verdict::Unsigned);
        };
        let signature = Signature::from_hex(given);
        match signature
            .as_ref()
            .and_then(|signature| signature.signed_by(&keyring.signing, &[delivery.body]))
        {
            Some(key) => Proof::by(Verdict::Signed, key.clone()),
            None => Proof::without(Verdict::BadSignature),
        }
    }

    fn read_webhook(&self, webhook: &Webhook<'_>) -> Reading {
        let said = json::surface(webhook.body, Some("run_request"));
        if let (Some(why), false) = (&said.broken, webhook.truncated) {
            return Reading::Unreadable(why.clone());
        }
        let Some(id) = ["run_id", "workflow_run_id", "task_id"]
            .iter()
            .find_map(|key| json::text(&said.fields, key))
        else {
            return Reading::Unreadable("the body names no run".to_owned());
        };
        if SAMPLE_RUNS.contains(&id)
            || json::text(&said.fields, "browser_session_id") == Some(SAMPLE_SESSION)
        {
            return Reading::Ping;
        }
        let Ok(run_id) = RunId::new(id) else {
            return Reading::Unreadable("the run id is not usable as one".to_owned());
        };
        let state = State::of(&said, &run_id).unwrap_or(State::silent());
        let kind = kind_by_id(&run_id).or_else(|| kind_by_type(&said));
        let told = super::told(run_id, kind, state.claim.clone(), webhook);
        Reading::Said(vec![state.tell(told, &said)])
    }

    fn status_request(&self, run: &RunRef<'_>) -> ApiRequest {
        run_request("/v1/runs/", run.run_id)
    }

    fn follow_up(&self, run: &RunRef<'_>, answers: &[ApiResponse]) -> Option<ApiRequest> {
        let older = || run_request("/api/v1/workflows/runs/", run.run_id);
        match (answers, has_older_read(run.run_id)) {
            ([first], true) if no_such_run(first) || lacks_its_end(run, first) => Some(older()),
            ([first], false) if no_such_run(first) => Some(self.canary_request(run.settings)),
            ([first, second], true) if no_such_run(first) && no_such_run(second) => {
                Some(self.canary_request(run.settings))
            }
            _ => None,
        }
    }

    fn read_status(
        &self,
        run: &RunRef<'_>,
        answers: &[ApiResponse],
        requested_at: At,
    ) -> Observation {
        let silent = || {
            super::answered(
                run.run_id,
                kind_by_id(run.run_id),
                Claim::Nothing,
                requested_at,
            )
        };
        // A canary's answer is an array and never says a state.
        let state = answers.iter().filter_map(body_of).find_map(|body| {
            let said = json::surface(body, Some("run_request"));
            State::of(&said, run.run_id).map(|state| (state, said))
        });
        if let Some((state, said)) = state {
            // The body of a task 2.0's own workflow run names the task; we asked about the former.
            let kind = kind_by_id(run.run_id).or_else(|| kind_by_type(&said));
            let answered = super::answered(run.run_id, kind, state.claim.clone(), requested_at);
            return state.tell(answered, &said);
        }
        let reads = if has_older_read(run.run_id) { 2 } else { 1 };
        if answers.iter().take(reads).all(no_such_run) {
            return Observation {
                claim: super::missing_if_canary_worked(self, answers),
                ..silent()
            };
        }
        silent()
    }

    fn canary_request(&self, _settings: &Settings) -> ApiRequest {
        ApiRequest::get("/v1/runs?page=1&page_size=1")
    }

    fn list_request(&self, page: Option<&str>, _settings: &Settings) -> Option<ApiRequest> {
        let paused = if is_without_paused(page) {
            ""
        } else {
            "&status=paused"
        };
        let page = page_number(page);
        Some(ApiRequest::get(format!(
            "/v1/runs?page={page}&page_size={PAGE_SIZE}&status=created&status=queued&status=running{paused}"
        )))
    }

    fn read_list(
        &self,
        page: Option<&str>,
        answer: &ApiResponse,
        _settings: &Settings,
        requested_at: At,
    ) -> Listing {
        let without_paused = is_without_paused(page);
        let token = |page: u32| {
            if without_paused {
                format!("{WITHOUT_PAUSED}{page}")
            } else {
                page.to_string()
            }
        };
        if refuses_query(answer) && !without_paused {
            // Servers of April to July 2026 do not know every status: ask again without the newest.
            return Listing {
                next: Some(format!("{WITHOUT_PAUSED}1")),
                ..Listing::default()
            };
        }
        let Some(Ok(Value::Array(items))) = body_of(answer).map(serde_json::from_slice) else {
            return Listing::default();
        };
        let page = page_number(page);
        Listing {
            runs: items
                .iter()
                .filter_map(|item| listed(item.as_object()?, requested_at))
                .collect(),
            next: (items.len() >= PAGE_SIZE && page < PAGE_MAX).then(|| token(page + 1)),
            gap: None,
        }
    }

    fn retry_request(&self, run_id: &RunId, webhook_url: Option<&str>) -> Option<ApiRequest> {
        let url = webhook_url.map(str::trim).filter(|url| !url.is_empty());
        Some(ApiRequest {
            method: Method::Post,
            path: format!("/v1/runs/{}/retry_webhook", super::encoded(run_id.as_str())),
            body: url.map(|url| serde_json::json!({ "webhook_url": url }).to_string()),
            timeout: RETRY_TIMEOUT,
            bytes_max: RETRY_BYTES_MAX,
        })
    }

    fn read_retry(&self, run_id: &RunId, answer: &ApiResponse) -> RetryResult {
        match answer {
            ApiResponse::Failed { what } => RetryResult::Refused {
                status: None,
                message: format!("Skyvern could not be asked: {what}"),
            },
            ApiResponse::Http(response) if is_success(response) => tried(response),
            ApiResponse::Http(response) => RetryResult::Refused {
                status: Some(response.status),
                message: refusal(run_id, response),
            },
        }
    }

    fn classify(&self, answer: &ApiResponse) -> ResponseClass {
        match answer {
            // A key whose organisation is gone fails as 404, not as 403.
            ApiResponse::Http(response)
                if response.status == 404 && knows_no_organization(response) =>
            {
                ResponseClass::Denied {
                    why: "the API key belongs to no organization (404)".to_owned(),
                }
            }
            _ => super::classify_by_status(answer),
        }
    }
}

// ── States ──────────────────────────────────────────────────────────────────────────────────────

/// The state that the fields of a body show, wherever the body came from.
struct State {
    claim: Claim,
    reason: Option<&'static str>,
    next_attempt_at: Option<At>,
}

impl State {
    /// Nothing is said, but the run exists.
    fn silent() -> State {
        State {
            claim: Claim::Open(Progress::Waiting),
            reason: None,
            next_attempt_at: None,
        }
    }

    /// `None` if the body names no status, or was cut off before it told whether the end is one.
    fn of(said: &Surface, run_id: &RunId) -> Option<State> {
        let status = json::text(&said.fields, "status")?;
        let Some((outcome, reason)) = end(status) else {
            return Some(State {
                claim: Claim::Open(rank(status)),
                ..State::silent()
            });
        };
        match said.fields.get("retry_pending") {
            Some(Value::Bool(true)) => Some(State {
                claim: Claim::Open(Progress::Started),
                reason: Some("retry_pending"),
                next_attempt_at: json::time(&said.fields, "next_attempt_at"),
            }),
            None if said.broken.is_some() && may_be_retried(run_id) => None,
            _ => {
                let ending = if reopens_after_cancel(said, run_id) && outcome == Outcome::Cancelled
                {
                    Ending::needs_answer(outcome)
                } else {
                    Ending::sufficient(outcome)
                };
                Some(State {
                    claim: Claim::Ended(ending),
                    reason,
                    next_attempt_at: None,
                })
            }
        }
    }

    /// Completes an observation that has nothing but its claim.
    fn tell(&self, heard: Observation, said: &Surface) -> Observation {
        let poll_after = self
            .next_attempt_at
            .map(|at| at.since(heard.requested_at).min(NEXT_ATTEMPT_MAX));
        let detail = Detail {
            reason: self.reason.map(str::to_owned),
            ..detail(said, &self.claim)
        };
        Observation {
            poll_after: poll_after.filter(|span| !span.is_zero()),
            detail,
            ..heard
        }
    }
}

/// The outcome behind a terminal status, with our word for what qualifies it.
fn end(status: &str) -> Option<(Outcome, Option<&'static str>)> {
    match status {
        "completed" => Some((Outcome::Succeeded, None)),
        "failed" => Some((Outcome::Failed, None)),
        "terminated" => Some((Outcome::Failed, Some("terminated"))),
        "canceled" => Some((Outcome::Cancelled, None)),
        "timed_out" => Some((Outcome::TimedOut, None)),
        _ => None,
    }
}

fn rank(status: &str) -> Progress {
    if matches!(status, "running" | "paused") {
        Progress::Started
    } else {
        Progress::Waiting
    }
}

fn detail(said: &Surface, claim: &Claim) -> Detail {
    let time = |key| json::time(&said.fields, key);
    // While a run is open, finished_at is that of an attempt, or of what a finally block undoes.
    let finished = time("finished_at").filter(|_| matches!(claim, Claim::Ended(_)));
    Detail {
        provider_status: json::text(&said.fields, "status")
            .map(|status| json::shortened(status, 100)),
        group_id: group(said).map(|group| json::shortened(group, 200)),
        error: json::text(&said.fields, "failure_reason")
            .map(|reason| json::shortened(reason, 1000)),
        counters: json::counters(&said.fields, &COUNTERS),
        opened_at: time("created_at"),
        provider_time: finished.or_else(|| time("modified_at")),
        ..Detail::default()
    }
}

/// The workflow, by the id that all its versions share. `workflow_id` holds that in webhooks and the
/// id of one version (`w_…`) elsewhere.
fn group(said: &Surface) -> Option<&str> {
    let permanent = |fields, key| json::text(fields, key).filter(|id| id.starts_with("wpid_"));
    json::text(&said.fields, "workflow_permanent_id")
        .or_else(|| {
            ["workflow_id", "agent_id"]
                .iter()
                .find_map(|key| permanent(&said.fields, key))
        })
        .or_else(|| {
            ["workflow_id", "agent_id"]
                .iter()
                .find_map(|key| permanent(&said.below, key))
        })
}

fn kind_by_id(run_id: &RunId) -> Option<Kind> {
    match run_id.as_str() {
        id if id.starts_with("wr_") => Some(Kind::Workflow),
        id if id.starts_with("tsk_") => Some(Kind::Task),
        _ => None,
    }
}

fn kind_by_type(said: &Surface) -> Option<Kind> {
    match json::text(&said.fields, "run_type")
        .or_else(|| json::text(&said.fields, "task_run_type"))?
    {
        "workflow_run" => Some(Kind::Workflow),
        "task_v1" | "task_v2" | "task_v3" | "openai_cua" | "anthropic_cua" | "ui_tars"
        | "yutori_navigator" => Some(Kind::Task),
        _ => None,
    }
}

/// Only workflow runs have retry policies, so for all others silence about a retry is an answer.
fn may_be_retried(run_id: &RunId) -> bool {
    kind_by_id(run_id) != Some(Kind::Task)
}

/// A task 2.0 that is cancelled right after its creation may overwrite that and run on.
fn reopens_after_cancel(said: &Surface, run_id: &RunId) -> bool {
    run_id.as_str().starts_with("tsk_v2_")
        || json::text(&said.fields, "run_type") == Some("task_v2")
}

// ── Questions about one run ─────────────────────────────────────────────────────────────────────

fn run_request(path: &str, run_id: &RunId) -> ApiRequest {
    ApiRequest {
        bytes_max: RUN_BYTES_MAX,
        ..ApiRequest::get(format!("{path}{}", super::encoded(run_id.as_str())))
    }
}

/// Whether the older read knows runs of this sort.
fn has_older_read(run_id: &RunId) -> bool {
    run_id.as_str().starts_with("wr_")
}

fn no_such_run(answer: &ApiResponse) -> bool {
    let gone =
        matches!(answer, ApiResponse::Http(response) if matches!(response.status, 404 | 410));
    gone && Skyvern.classify(answer) == ResponseClass::Ok
}

/// An end was read, but not whether it is final: `retry_pending` follows the output here, and comes
/// before it in the older read.
fn lacks_its_end(run: &RunRef<'_>, answer: &ApiResponse) -> bool {
    body_of(answer).is_some_and(|body| {
        let said = json::surface(body, None);
        json::text(&said.fields, "status").is_some() && State::of(&said, run.run_id).is_none()
    })
}

fn is_success(response: &Response) -> bool {
    (200..300).contains(&response.status)
}

/// The body of an answer that may say something.
fn body_of(answer: &ApiResponse) -> Option<&[u8]> {
    match answer {
        ApiResponse::Http(response) if is_success(response) => Some(&response.body),
        _ => None,
    }
}

fn knows_no_organization(response: &Response) -> bool {
    said_why(response).is_some_and(|why| why.eq_ignore_ascii_case("organization not found"))
}

/// The text of an error: `detail` is a text or a list of objects with a `msg`; an unexpected error is
/// under `error` instead.
fn said_why(response: &Response) -> Option<String> {
    let body = json::object(&response.body).ok()?;
    match body.get("detail").or_else(|| body.get("error"))? {
        Value::String(text) => Some(text.clone()),
        Value::Array(faults) => {
            let said: Vec<&str> = faults
                .iter()
                .filter_map(|fault| fault.get("msg")?.as_str())
                .collect();
            (!said.is_empty()).then(|| said.join("; "))
        }
        _ => None,
    }
}

// ── The list ────────────────────────────────────────────────────────────────────────────────────

/// Stands before the number of a page of the list that does not ask for paused runs.
const WITHOUT_PAUSED: &str = "without_paused:";

fn is_without_paused(page: Option<&str>) -> bool {
    page.is_some_and(|page| page.starts_with(WITHOUT_PAUSED))
}

fn refuses_query(answer: &ApiResponse) -> bool {
    matches!(answer, ApiResponse::Http(Response { status: 422, .. }))
}

fn page_number(page: Option<&str>) -> u32 {
    page.map(|page| page.strip_prefix(WITHOUT_PAUSED).unwrap_or(page))
        .and_then(|page| page.parse().ok())
        .unwrap_or(1)
        .clamp(1, PAGE_MAX)
}

/// One item. `run_id` is the run; `task_run_id` (`tr_…`) is only the row in the list.
fn listed(item: &Map<String, Value>, requested_at: At) -> Option<Observation> {
    let run_id = RunId::new(json::text(item, "run_id")?).ok()?;
    let said = Surface {
        fields: item.clone(),
        ..Surface::default()
    };
    let over = matches!(
        State::of(&said, &run_id),
        Some(State {
            claim: Claim::Ended(_),
            ..
        })
    );
    let kind = kind_by_id(&run_id).or_else(|| kind_by_type(&said));
    let detail = Detail {
        group_id: group(&said).map(|group| json::shortened(group, 200)),
        opened_at: json::time(item, "created_at"),
        ..Detail::default()
    };
    Some(Observation {
        detail,
        ..super::listed(&run_id, kind, over, requested_at)
    })
}

// ── Retry-webhook ───────────────────────────────────────────────────────────────────────────────

/// Reads a 200, which says only that the provider tried.
fn tried(response: &Response) -> RetryResult {
    let Ok(body) = json::object(&response.body) else {
        return RetryResult::Tried {
            delivered_status: None,
            error: Some(
                "Skyvern's answer could not be read; whether it delivered the webhook is not known"
                    .to_owned(),
            ),
            target_url: None,
            latency_ms: None,
            payload: None,
        };
    };
    RetryResult::Tried {
        delivered_status: body
            .get("status_code")
            .and_then(Value::as_u64)
            .and_then(|status| status.try_into().ok()),
        error: json::text(&body, "error").map(|error| json::shortened(error, 500)),
        target_url: json::text(&body, "target_webhook_url").map(str::to_owned),
        latency_ms: body.get("latency_ms").and_then(Value::as_u64),
        payload: json::text(&body, "payload")
            .map(|payload| (payload.as_bytes().to_vec(), replayed_headers(&body))),
    }
}

fn replayed_headers(body: &Map<String, Value>) -> Headers {
    json::child(body, "headers")
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase(), value.as_str()?.to_owned())))
        .collect()
}

/// The meaning of a refusal, and the remedy.
fn refusal(run_id: &RunId, response: &Response) -> String {
    let why = said_why(response).map_or_else(
        || "no reason given".to_owned(),
        |why| json::shortened(&why, 300),
    );
    match response.status {
        401 | 403 => format!("Skyvern does not accept the API key ({why}): check api_key"),
        404 if knows_no_organization(response) => {
            format!("Skyvern does not accept the API key ({why}): check api_key")
        }
        404 => format!("Skyvern does not know {run_id}: check the id and the account"),
        409 => format!(
            "{run_id} is not final yet: a further attempt is due; try again when it has ended"
        ),
        400 => refused_request(run_id, &why),
        422 => format!("Skyvern does not accept the request ({why}): check the webhook URL"),
        429 => "Skyvern asks us to slow down: try again later".to_owned(),
        status @ 500.. => format!("Skyvern is in trouble (HTTP {status}, {why}): try again later"),
        status => format!("Skyvern refused (HTTP {status}, {why})"),
    }
}

/// The four things that a 400 can mean, told apart by the provider's words.
fn refused_request(run_id: &RunId, why: &str) -> String {
    let says = |words: &str| why.to_ascii_lowercase().contains(words);
    if says("terminal state") {
        format!(
            "{run_id} has not ended yet ({why}): a webhook can be sent again only after the end"
        )
    } else if says("not supported for webhook replay") {
        format!("Skyvern replays no webhooks of this engine ({why}): poll the run instead")
    } else if says("no webhook url") && has_older_read(run_id) {
        format!(
            "{run_id} has no webhook URL at Skyvern: give one, or, if it is the workflow run of a task 2.0, \
             name the task (tsk_v2_…)"
        )
    } else if says("no webhook url") {
        format!("{run_id} has no webhook URL at Skyvern: give one")
    } else {
        format!("Skyvern does not accept the request ({why})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &str) -> Response {
        Response {
            status,
            body: body.into(),
            ..Response::default()
        }
    }

    #[test]
    fn error_texts_are_found_in_every_shape() {
        let why = |body| said_why(&response(400, body));
        assert_eq!(why(r#"{"detail":"text"}"#).as_deref(), Some("text"));
        assert_eq!(
            why(r#"{"detail":[{"msg":"a"},{"msg":"b"},{"loc":[]}]}"#).as_deref(),
            Some("a; b")
        );
        assert_eq!(
            why(r#"{"error":"Unexpected error: X"}"#).as_deref(),
            Some("Unexpected error: X")
        );
        for silent in [
            "",
            "{}",
            "[]",
            "Service Unavailable",
            r#"{"detail":[]}"#,
            r#"{"detail":null}"#,
        ] {
            assert_eq!(why(silent), None, "{silent}");
        }
    }

    #[test]
    fn page_numbers_stay_between_the_first_and_the_last() {
        for (page, number) in [
            (None, 1),
            (Some("2"), 2),
            (Some("0"), 1),
            (Some("x"), 1),
            (Some("900"), 100),
        ] {
            assert_eq!(page_number(page), number);
        }
    }
}
