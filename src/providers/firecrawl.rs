//! Firecrawl: crawls, batch scrapes, extracts, agents and monitor checks.
//!
//! # Where the facts are from
//!
//! The tables below follow the service's own source, `apps/api/src` of `firecrawl/firecrawl` as
//! mirrored in `yzkee/firecrawl` at `ca0be9b7` (2026-08-21), unless another source is named:
//!
//! * webhook types and envelope: `services/webhook/types.ts`, `delivery.ts`; cloud deliveries also
//!   by the dispatcher on branch `tom/webhook-dispatcher` (`7b3899f8`); agent events only by
//!   `firecrawl/firecrawl-docs` (`2edce52b`), `features/agent.mdx` and the webhook OpenAPI
//! * states: `controllers/v2/{crawl,extract,agent}-status.ts`, `controllers/v2/monitor.ts`
//! * an extract's `data` stands before its `status`: `controllers/v2/extract-status.ts` (`08a2c02e`)
//! * lists: `controllers/v2/crawl-ongoing.ts`, `controllers/v1/activity.ts` (501 without its store
//!   and times without a zone: `3cef4ced`)
//! * states of a check: `MonitorCheck` in the v2 OpenAPI of the docs
//! * limits: `services/rate-limiter.ts`, `lib/concurrency-limit.ts`, docs `rate-limits.mdx`
//!
//! # Webhooks
//!
//! `X-Firecrawl-Signature: sha256=<hex>` is an HMAC over the raw body and nothing else: no time is
//! in it, so a replay cannot be told from a retry, and a repeated completion is only ever a
//! repeated completion. Without a secret at the sender the header is absent.
//!
//! | type | claim | alone enough (`confirm = "auto"`)? |
//! |---|---|---|
//! | `crawl.started` `.page`, `batch_scrape.started` `.page` | open | |
//! | `crawl.completed`, `batch_scrape.completed` | succeeded | no: a cancelled one says the same, with `success: true` |
//! | `crawl.failed` `.cancelled`, `batch_scrape.failed` `.cancelled`, `extract.cancelled` | as named | no: the docs name some of them, nothing sends them yet |
//! | `extract.started`, `agent.started`, `agent.action` | open | |
//! | `extract.completed` `.failed`, `agent.completed` `.failed` `.cancelled` | as named | yes |
//! | `monitor.page` | open (the check) | |
//! | `monitor.check.completed` | by its `status`, see below | yes |
//! | any other type of these families but `monitor` | open: the run exists, its own poll tells | |
//! | everything else (`threat_protection.*`, `schedule.*`, …) | nothing; stored all the same | |
//!
//! # Answers
//!
//! | kind | open | succeeded | failed | cancelled |
//! |---|---|---|---|---|
//! | crawl, batch scrape | `scraping` | `completed` | `failed` | `cancelled` |
//! | extract | `processing` | `completed` | `failed` | `cancelled` |
//! | agent | `processing` | `completed` | `failed`, which covers cancelled | `cancelled` |
//! | monitor check | `queued`, `running` | `completed` | `failed`, `partial` | `skipped_overlap` |
//!
//! Any other word is open. A state decides, never `success`: a crawl that failed at its kick-off
//! and a failed extract say `success: false` with HTTP 200, a failed agent says `success: true`.
//! A crawl of which every page failed is `completed` with `completed: 0`; it stays a success, with
//! the counters and the reason `no_pages`. A partial check is a failure with the reason `partial`,
//! because the provider itself says `success: false` of it.
//!
//! # What is told about the run
//!
//! The group of a monitor check is its monitor, which its address needs; a check whose monitor
//! nobody named cannot be asked about, so the canary is asked instead and nothing is concluded.
//! `expiresAt` is not read: it slides forward with every read and cannot order anything.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::signature::Signature;
use super::{
    ApiRequest, ApiResponse, Delivery, Environment, Listing, Proof, Provider, Reading, Response,
    ResponseClass, RunRef, Settings, Verdict, Webhook, answered, classify_by_status, encoded, json,
    listed, missing_if_canary_worked, told,
};
use crate::model::observation::{AnswerPrecedence, Claim, Detail, Ending, Observation, Progress};
use crate::model::schedule::{Confirm, Policy};
use crate::model::{At, Kind, Outcome, RunId, Trust};
use crate::secret::Keyring;

/// Firecrawl Cloud and self-hosted Firecrawl.
#[derive(Clone, Copy, Debug)]
pub struct Firecrawl;

const SIGNATURE_HEADER: &str = "x-firecrawl-signature";

/// Reads past the end: all counters, no documents. Never `limit=0`, which one of its queues takes
/// for "no limit" and a coming validation refuses.
const NO_DOCUMENTS: &str = "skip=1000000&limit=1";

/// Extracts and agents send their whole result with their last state, and an extract's state
/// stands behind it.
const RESULT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The pages that one sweep reads of each list of the last 24 hours, 100 runs each.
const ACTIVITY_PAGES_MAX: u32 = 20;

/// The lists of the last 24 hours, in the order in which they are read, and what is on them.
const ACTIVITIES: [(&str, Kind); 4] = [
    ("crawl", Kind::Crawl),
    ("batch_scrape", Kind::BatchScrape),
    ("extract", Kind::Extract),
    ("agent", Kind::Agent),
];

const ERROR_CHARS_MAX: usize = 2_000;
const THROTTLE_DEFAULT: Duration = Duration::from_secs(60);

impl Provider for Firecrawl {
    fn name(&self) -> &'static str {
        "firecrawl"
    }

    fn base_url(&self) -> &'static str {
        "https://api.firecrawl.dev"
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("Authorization", "Bearer ")
    }

    fn environment(&self) -> Environment {
        Environment {
            api_key: "FIRECRAWL_API_KEY",
            webhook_secret: Some("FIRECRAWL_WEBHOOK_SECRET"),
            path_token: None,
            base_urls: &["FIRECRAWL_API_URL"],
        }
    }

    fn webhook_setup(&self) -> &'static str {
        "as webhook.url of each request"
    }

    fn policy(&self, kind: Option<Kind>) -> Policy {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let (deadline, give_up) = match kind {
            // Its record in progress lives 6 hours; one that is lost reads "processing" for 24.
            Some(Kind::Extract) => (hours(6), hours(48)),
            Some(Kind::Agent | Kind::MonitorCheck) => (hours(24), hours(7 * 24)),
            // A job may wait 48 hours for its turn and is legally "scraping" all the while.
            _ => (hours(48), hours(7 * 24)),
        };
        Policy {
            confirm: Confirm::Auto,
            confirm_timeout: Duration::from_secs(60),
            grace: Duration::ZERO,
            deadline,
            give_up,
            first_poll: Duration::from_secs(20),
            max_interval: Duration::from_secs(300),
            expected_end_ages: &[],
            // A cancelled crawl can read back as completed once its record has been evicted.
            answer_precedence: AnswerPrecedence::FirstWins,
            can_poll: true,
            // No list here shows a state, so being listed spares no run its own request.
            listed_for: Duration::ZERO,
        }
    }

    /// Batch scrapes are answered by the same controller, so "crawl" is the best guess; an extract
    /// or agent that was tracked without its kind is put right by its first webhook or the sweep.
    fn kind_of(&self, _run_id: &RunId, _settings: &Settings) -> Kind {
        Kind::Crawl
    }

    /// Ids of all kinds are UUIDs.
    fn guesses_kind(&self) -> bool {
        true
    }

    fn verify(&self, delivery: &Delivery<'_>, keyring: &Keyring, _now: At) -> Proof {
        if keyring.signing.is_empty() {
            return Proof::without(Verdict::NoSecret);
        }
        if delivery.truncated {
            return Proof::without(Verdict::Truncated);
        }
        let Some(header) = delivery.header(SIGNATURE_HEADER) else {
            return Proof::without(Verdict::Unsigned);
        };
        let signature = header
            .trim()
            .strip_prefix("sha256=")
            .and_then(Signature::from_hex);
        match signature.and_then(|signature| {
            signature
                .signed_by(&keyring.signing, &[delivery.body])
                .cloned()
        }) {
            Some(secret) => Proof::by(Verdict::Signed, secret),
            None => Proof::without(Verdict::BadSignature),
        }
    }

    fn read_webhook(&self, webhook: &Webhook<'_>) -> Reading {
        let fields = Fields::of(webhook.body, &EVENT_FIELDS);
        match &fields.flaw {
            Some(flaw) if !webhook.truncated => return Reading::Unreadable(flaw.clone()),
            _ => {}
        }
        let Some(event) = fields.text("type") else {
            return Reading::Unreadable("the body has no type".to_owned());
        };
        match family(&event) {
            Some((kind, verb)) => read_event(webhook, &fields, kind, verb),
            None => Reading::Said(vec![]),
        }
    }

    fn status_request(&self, run: &RunRef<'_>) -> ApiRequest {
        let id = encoded(run.run_id.as_str());
        match (run.kind, monitor(run)) {
            (Kind::BatchScrape, _) => {
                ApiRequest::get(format!("/v2/batch/scrape/{id}?{NO_DOCUMENTS}"))
            }
            (Kind::Extract, _) => whole_result(format!("/v2/extract/{id}")),
            (Kind::Agent, _) => whole_result(format!("/v2/agent/{id}")),
            (Kind::MonitorCheck, Some(monitor)) => ApiRequest::get(format!(
                "/v2/monitor/{}/checks/{id}?limit=1",
                encoded(monitor)
            )),
            (Kind::MonitorCheck, None) => self.canary_request(run.settings),
            _ => ApiRequest::get(format!("/v2/crawl/{id}?{NO_DOCUMENTS}")),
        }
    }

    fn follow_up(&self, run: &RunRef<'_>, answers: &[ApiResponse]) -> Option<ApiRequest> {
        let kinds = kinds(run);
        let absent =
            |(answer, kind): (&ApiResponse, &Kind)| is_absent(&as_kind(run, *kind), answer);
        if !has_address(run)
            || answers.len() > kinds.len()
            || !answers.iter().zip(kinds).all(absent)
        {
            return None;
        }
        match kinds.get(answers.len()) {
            Some(kind) => Some(self.status_request(&as_kind(run, *kind))),
            None => Some(self.canary_request(run.settings)),
        }
    }

    fn read_status(
        &self,
        run: &RunRef<'_>,
        answers: &[ApiResponse],
        requested_at: At,
    ) -> Observation {
        let kinds = kinds(run);
        let asked = answers.iter().zip(kinds);
        let present = asked
            .clone()
            .find(|(answer, kind)| !is_absent(&as_kind(run, **kind), answer));
        let (claim, detail, kind) = match present {
            Some((ApiResponse::Http(response), kind))
                if has_address(run) && (200..300).contains(&response.status) =>
            {
                let (claim, detail) =
                    read_state(*kind, response).unwrap_or((Claim::Nothing, Detail::default()));
                // An answer to a guess shows what the run is; a kind that was named is known.
                let shown = run.guessed && claim != Claim::Nothing;
                (claim, detail, shown.then_some(*kind))
            }
            None if has_address(run) && answers.len() > kinds.len() => (
                missing_if_canary_worked(self, answers),
                Detail::default(),
                None,
            ),
            _ => (Claim::Nothing, Detail::default(), None),
        };
        Observation {
            detail,
            ..answered(run.run_id, kind, claim, requested_at)
        }
    }

    /// Works with every key, in the cloud and self-hosted, touches no run, and has a rate limit of
    /// its own.
    fn canary_request(&self, _settings: &Settings) -> ApiRequest {
        ApiRequest::get("/v2/team/queue-status")
    }

    /// First the crawls under way (also self-hosted), then what the cloud remembers of the last 24
    /// hours: `endpoint/page/cursor`. Neither shows a state. A crawl under way is open, which spares
    /// it its own request; what happened today only exists, and may well be over.
    fn list_request(&self, page: Option<&str>, _settings: &Settings) -> Option<ApiRequest> {
        let Some(page) = page else {
            return Some(ApiRequest::get("/v2/crawl/active"));
        };
        let page = ActivityPage::parse(page)?;
        let mut path = format!("/v2/team/activity?endpoint={}&limit=100", page.endpoint());
        if !page.cursor.is_empty() {
            path.push_str("&cursor=");
            path.push_str(&encoded(page.cursor));
        }
        Some(ApiRequest::get(path))
    }

    fn read_list(
        &self,
        page: Option<&str>,
        answer: &ApiResponse,
        _settings: &Settings,
        requested_at: At,
    ) -> Listing {
        let ApiResponse::Http(response @ Response { status: 200, .. }) = answer else {
            // Self-hosted there is no activity (501, formerly 404): the sweep simply ends there.
            return Listing::default();
        };
        // Thousands of crawls with all their options may be cut off; the lists of the day hold them
        // too, so the sweep goes on.
        let body = json::object(&response.body).unwrap_or_default();
        match page {
            None => Listing {
                runs: rows(
                    &body,
                    "crawls",
                    Kind::Crawl,
                    &Claim::Listed { over: false },
                    requested_at,
                ),
                next: Some(ActivityPage::first(0).to_string()),
                gap: None,
            },
            Some(page) => ActivityPage::parse(page).map_or_else(Listing::default, |page| Listing {
                runs: rows(&body, "data", page.kind(), &Claim::Tracked, requested_at),
                next: page.next(&body).map(|next| next.to_string()),
                gap: None,
            }),
        }
    }

    /// The documentation promises a `Retry-After`, the source sends the seconds only in its text.
    /// 501 is how a self-hosted service says that it has no such list: no trouble. Nor is an address
    /// that an older one does not have.
    fn classify(&self, answer: &ApiResponse) -> ResponseClass {
        match (answer, classify_by_status(answer)) {
            (ApiResponse::Http(response), ResponseClass::RateLimited { retry_after: None }) => {
                ResponseClass::RateLimited {
                    retry_after: Some(stated_wait(&response.body).unwrap_or(THROTTLE_DEFAULT)),
                }
            }
            (ApiResponse::Http(Response { status: 501, .. }), _) => ResponseClass::Ok,
            (ApiResponse::Http(response), _) if has_no_route(response) => ResponseClass::Ok,
            (_, class) => class,
        }
    }
}

// ── Webhooks ────────────────────────────────────────────────────────────────────────────────────

const EVENT_FIELDS: [&str; 8] = [
    "type",
    "id",
    "jobId",
    "webhookId",
    "success",
    "error",
    "metadata",
    "data",
];
const EVENT_DATA_FIELDS: [&str; 10] = [
    "monitorId",
    "checkId",
    "status",
    "summary",
    "creditsUsed",
    "creditsBilled",
    "tokensBilled",
    "totalUrlsScraped",
    "llmUsage",
    "error",
];

/// The kind of run a webhook type speaks of, and the rest of the type.
fn family(event: &str) -> Option<(Kind, &str)> {
    let (family, verb) = event.split_once('.')?;
    let kind = match family {
        "crawl" => Kind::Crawl,
        "batch_scrape" => Kind::BatchScrape,
        "extract" => Kind::Extract,
        "agent" => Kind::Agent,
        // Of other monitor events we could not know whether their id is a check's.
        "monitor" if matches!(verb, "page" | "check.completed") => Kind::MonitorCheck,
        _ => return None,
    };
    Some((kind, verb))
}

fn read_event(webhook: &Webhook<'_>, fields: &Fields<'_>, kind: Kind, verb: &str) -> Reading {
    // A page's data is the whole document, tens of megabytes at worst, and says nothing here.
    let told_of_pages = verb == "page" && kind != Kind::MonitorCheck;
    let data = if told_of_pages {
        Fields::default()
    } else {
        fields.first("data", &EVENT_DATA_FIELDS)
    };
    let id = fields
        .text("id")
        .or_else(|| fields.text("jobId"))
        .or_else(|| data.text("checkId"));
    let Some(run_id) = id.and_then(|id| RunId::new(&id).ok()) else {
        return Reading::Unreadable("the body has no usable id".to_owned());
    };
    let (claim, reason) = event_claim(kind, verb, fields, &data, webhook.trust);
    let ended = matches!(claim, Claim::Ended(_));
    let detail = Detail {
        // Open events carry no state of their own; their words would only alternate with a poll's.
        provider_status: ended.then(|| data.text("status").unwrap_or_else(|| verb.to_owned())),
        group_id: data.text("monitorId"),
        reason,
        // The error of a page is not the run's.
        error: if ended {
            fields.error().or_else(|| data.error())
        } else {
            None
        },
        counters: if ended {
            event_counters(kind, &data)
        } else {
            None
        },
        metadata: fields
            .object("metadata")
            .filter(|metadata| !metadata.is_empty()),
        ..Detail::default()
    };
    Reading::Said(vec![Observation {
        detail,
        ..told(run_id, Some(kind), claim, webhook)
    }])
}

fn event_claim(
    kind: Kind,
    verb: &str,
    fields: &Fields<'_>,
    data: &Fields<'_>,
    trust: Trust,
) -> (Claim, Option<String>) {
    if (kind, verb) == (Kind::MonitorCheck, "check.completed") {
        return check_completed(
            data.text("status").as_deref(),
            fields.flag("success"),
            trust,
        );
    }
    let outcome = match verb {
        "completed" => Outcome::Succeeded,
        "failed" => Outcome::Failed,
        "cancelled" => Outcome::Cancelled,
        "started" | "page" | "action" => return (Claim::Open(Progress::Started), None),
        _ => return (Claim::Open(Progress::Waiting), None),
    };
    let enough = matches!(
        (kind, outcome),
        (Kind::Agent, _) | (Kind::Extract, Outcome::Succeeded | Outcome::Failed)
    );
    (Claim::Ended(ending(outcome, enough, trust)), None)
}

/// The event is sent for every end of a check. Should it ever name a state we do not know, its
/// flag still tells success from failure, but then an answer must agree.
fn check_completed(
    status: Option<&str>,
    success: Option<bool>,
    trust: Trust,
) -> (Claim, Option<String>) {
    if let Some((outcome, reason)) = status.and_then(check_ended) {
        return (
            Claim::Ended(ending(outcome, true, trust)),
            reason.map(str::to_owned),
        );
    }
    match success {
        Some(true) => (Claim::Ended(Ending::needs_answer(Outcome::Succeeded)), None),
        Some(false) => (Claim::Ended(Ending::needs_answer(Outcome::Failed)), None),
        None => (Claim::Open(Progress::Started), None),
    }
}

/// Only a verified sender's word settles alone.
fn ending(outcome: Outcome, enough: bool, trust: Trust) -> Ending {
    if enough && trust >= Trust::Signed {
        Ending::sufficient(outcome)
    } else {
        Ending::needs_answer(outcome)
    }
}

fn event_counters(kind: Kind, data: &Fields<'_>) -> Option<Map<String, Value>> {
    match kind {
        Kind::MonitorCheck => data.object("summary").and_then(counted),
        _ => counted(data.numbers(&[
            "creditsUsed",
            "creditsBilled",
            "tokensBilled",
            "totalUrlsScraped",
            "llmUsage",
        ])),
    }
}

// ── Answers ─────────────────────────────────────────────────────────────────────────────────────

const STATE_FIELDS: [&str; 13] = [
    "status",
    "error",
    "completed",
    "total",
    "creditsUsed",
    "tokensUsed",
    "duration",
    "createdAt",
    "completedAt",
    "finishedAt",
    "actualCredits",
    "summary",
    "data",
];

/// An address whose answer can be longer than usual.
fn whole_result(path: String) -> ApiRequest {
    ApiRequest {
        bytes_max: RESULT_BYTES_MAX,
        ..ApiRequest::get(path)
    }
}

/// Whether [`Provider::status_request`] is about the run, and not the canary in its place.
fn has_address(run: &RunRef<'_>) -> bool {
    run.kind != Kind::MonitorCheck || monitor(run).is_some()
}

/// The monitor of a check, if its id can stand in a path: dot segments would lead elsewhere.
fn monitor<'a>(run: &RunRef<'a>) -> Option<&'a str> {
    run.group_id.filter(|id| !matches!(*id, "" | "." | ".."))
}

/// The kinds that a run may have: the one that was named, or each in turn, the most common first.
fn kinds<'k>(run: &'k RunRef<'_>) -> &'k [Kind] {
    // The address of extracts also answers for agents (controllers/v2/extract-status.ts since
    // September 2026), so agents are asked for before them.
    const GUESSES: [Kind; 4] = [Kind::Crawl, Kind::BatchScrape, Kind::Agent, Kind::Extract];
    if run.guessed {
        &GUESSES
    } else {
        std::slice::from_ref(&run.kind)
    }
}

fn as_kind<'r>(run: &RunRef<'r>, kind: Kind) -> RunRef<'r> {
    RunRef { kind, ..*run }
}

/// Whether an answer says that there is no such run of this kind. While guessing, a self-hosted
/// extract's 500 counts: its status controller dereferences the row that is not there.
fn is_absent(run: &RunRef<'_>, answer: &ApiResponse) -> bool {
    let ApiResponse::Http(response) = answer else {
        return false;
    };
    is_absence(run, response.status)
        || (run.guessed && run.kind == Kind::Extract && response.status == 500)
}

/// Whether this status says that there is no such run. An id that is no UUID is refused with 400
/// instead of 404; of any other id a 400 would be about our query and says nothing.
fn is_absence(run: &RunRef<'_>, status: u16) -> bool {
    matches!(status, 404 | 410) || (status == 400 && !is_uuid(run.run_id.as_str()))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, byte)| match i {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Reads a state, from the head of the body where it was cut off. `None` if there is none.
fn read_state(kind: Kind, response: &Response) -> Option<(Claim, Detail)> {
    let body = Fields::of(&response.body, &STATE_FIELDS);
    if body.flaw.is_some() && !response.truncated {
        return None;
    }
    let state = if kind == Kind::MonitorCheck {
        body.first("data", &STATE_FIELDS)
    } else {
        body
    };
    let word = state.text("status")?;
    let (claim, mut reason) = state_claim(kind, &word);
    let ended = matches!(claim, Claim::Ended(_));
    let crawl = !matches!(kind, Kind::Extract | Kind::Agent | Kind::MonitorCheck);
    if crawl
        && word == "completed"
        && state
            .number("completed")
            .is_some_and(|pages| pages.as_u64() == Some(0))
    {
        reason = Some("no_pages");
    }
    let time = state
        .time("completedAt")
        .or_else(|| state.time("finishedAt"));
    let detail = Detail {
        provider_status: Some(word),
        reason: reason.map(str::to_owned),
        error: state.error(),
        counters: state_counters(kind, &state),
        opened_at: state.time("createdAt"),
        provider_time: time.filter(|_| ended),
        ..Detail::default()
    };
    Some((claim, detail))
}

fn state_claim(kind: Kind, word: &str) -> (Claim, Option<&'static str>) {
    if kind == Kind::MonitorCheck
        && let Some((outcome, reason)) = check_ended(word)
    {
        return (Claim::Ended(Ending::needs_answer(outcome)), reason);
    }
    let ending = match (word, kind) {
        (_, Kind::MonitorCheck) => None,
        ("completed", _) => Some(Ending::needs_answer(Outcome::Succeeded)),
        // A cancelled agent reads "failed"; only its webhook knows better.
        ("failed", Kind::Agent) => Some(Ending {
            covers: Some(Outcome::Cancelled),
            ..Ending::needs_answer(Outcome::Failed)
        }),
        ("failed", _) => Some(Ending::needs_answer(Outcome::Failed)),
        ("cancelled", _) => Some(Ending::needs_answer(Outcome::Cancelled)),
        _ => None,
    };
    let started = matches!(word, "scraping" | "processing" | "running");
    let open = Claim::Open(if started {
        Progress::Started
    } else {
        Progress::Waiting
    });
    (ending.map_or(open, Claim::Ended), None)
}

/// How a monitor's check ended, and one word about it.
fn check_ended(status: &str) -> Option<(Outcome, Option<&'static str>)> {
    match status {
        "completed" => Some((Outcome::Succeeded, None)),
        "failed" => Some((Outcome::Failed, None)),
        "partial" => Some((Outcome::Failed, Some("partial"))),
        "skipped_overlap" => Some((Outcome::Cancelled, Some("skipped_overlap"))),
        _ => None,
    }
}

fn state_counters(kind: Kind, state: &Fields<'_>) -> Option<Map<String, Value>> {
    let mut numbers = state.numbers(&[
        "completed",
        "total",
        "creditsUsed",
        "tokensUsed",
        "duration",
        "actualCredits",
    ]);
    if kind == Kind::MonitorCheck {
        numbers.extend(state.object("summary").unwrap_or_default());
    }
    counted(numbers)
}

/// The numbers among these; −1 stands for "could not be read" and is left out.
fn counted(said: Map<String, Value>) -> Option<Map<String, Value>> {
    let known = |value: &Value| value.as_f64().is_some_and(|number| number >= 0.0);
    let counters: Map<String, Value> = said.into_iter().filter(|(_, value)| known(value)).collect();
    (!counters.is_empty()).then_some(counters)
}

/// The wait in "… please retry after 42s, resets at …".
fn stated_wait(body: &[u8]) -> Option<Duration> {
    let text = String::from_utf8_lossy(&body[..body.len().min(4096)]);
    let (_, rest) = text.split_once("retry after ")?;
    let digits = &rest[..rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len())];
    let seconds = digits.parse::<u64>().ok()?;
    (seconds <= 86_400).then(|| Duration::from_secs(seconds))
}

/// Older self-hosted services answer an address they do not have with their framework's own page.
fn has_no_route(response: &Response) -> bool {
    let start = &response.body[..response.body.len().min(1024)];
    response.status == 404 && String::from_utf8_lossy(start).contains("<pre>Cannot GET /")
}

// ── Lists ───────────────────────────────────────────────────────────────────────────────────────

/// Which page of which list of the last 24 hours.
#[derive(Clone, Copy, Debug)]
struct ActivityPage<'a> {
    list: usize,
    number: u32,
    cursor: &'a str,
}

impl<'a> ActivityPage<'a> {
    fn first(list: usize) -> ActivityPage<'static> {
        ActivityPage {
            list,
            number: 1,
            cursor: "",
        }
    }

    fn parse(page: &'a str) -> Option<ActivityPage<'a>> {
        let mut parts = page.splitn(3, '/');
        let endpoint = parts.next()?;
        let list = ACTIVITIES.iter().position(|(name, _)| *name == endpoint)?;
        Some(ActivityPage {
            list,
            number: parts.next()?.parse().ok()?,
            cursor: parts.next()?,
        })
    }

    fn endpoint(&self) -> &'static str {
        ACTIVITIES[self.list].0
    }

    fn kind(&self) -> Kind {
        ACTIVITIES[self.list].1
    }

    /// The rest of this list, or the next list.
    fn next<'b>(&self, body: &'b Map<String, Value>) -> Option<ActivityPage<'b>> {
        let more = body.get("has_more").and_then(Value::as_bool) == Some(true);
        match json::text(body, "cursor") {
            Some(cursor) if more && self.number < ACTIVITY_PAGES_MAX => Some(ActivityPage {
                list: self.list,
                number: self.number + 1,
                cursor,
            }),
            _ => (self.list + 1 < ACTIVITIES.len()).then(|| ActivityPage::first(self.list + 1)),
        }
    }
}

impl std::fmt::Display for ActivityPage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.endpoint(), self.number, self.cursor)
    }
}

/// The runs of one page, each with the `claim` that being on it makes.
fn rows(
    body: &Map<String, Value>,
    key: &str,
    kind: Kind,
    claim: &Claim,
    requested_at: At,
) -> Vec<Observation> {
    let rows = body
        .get(key)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    rows.iter()
        .filter_map(|row| {
            let row = row.as_object()?;
            let run_id = RunId::new(json::text(row, "id")?).ok()?;
            let detail = Detail {
                opened_at: json::time(row, "created_at"),
                ..Detail::default()
            };
            Some(Observation {
                detail,
                claim: claim.clone(),
                ..listed(&run_id, Some(kind), false, requested_at)
            })
        })
        .collect()
}

// ── Bodies ──────────────────────────────────────────────────────────────────────────────────────

/// The values of a JSON object under the keys that matter, each value still as text. Nothing is
/// copied and nothing nested is built, so a page of 40 MB costs one walk over its bytes and no
/// memory, and a body that was cut off gives what came before the cut. Of a repeated key the last
/// value counts, as in the sender's own JavaScript.
#[derive(Debug, Default)]
struct Fields<'a> {
    held: BTreeMap<&'static str, &'a RawValue>,
    flaw: Option<String>,
}

impl<'a> Fields<'a> {
    fn of(body: &'a [u8], keys: &'static [&'static str]) -> Fields<'a> {
        let mut held = BTreeMap::new();
        let mut reader = serde_json::Deserializer::from_slice(body);
        let read = Collect {
            keys,
            held: &mut held,
        }
        .deserialize(&mut reader)
        .and_then(|()| reader.end());
        let flaw = read.err().map(|error| match error.classify() {
            serde_json::error::Category::Data => "the body is JSON but not an object".to_owned(),
            _ => format!(
                "the body is not JSON (line {}, column {})",
                error.line(),
                error.column()
            ),
        });
        Fields { held, flaw }
    }

    /// The object under `key`, or the first of the array under it: senders and docs differ.
    fn first(&self, key: &str, keys: &'static [&'static str]) -> Fields<'a> {
        let Some(raw) = self.held.get(key).map(|raw| raw.get()) else {
            return Fields::default();
        };
        let object = match serde_json::from_str::<Vec<&'a RawValue>>(raw) {
            Ok(array) => array.first().map(|raw| raw.get()),
            Err(_) => Some(raw),
        };
        object
            .map(|object| Fields::of(object.as_bytes(), keys))
            .unwrap_or_default()
    }

    fn value<T: serde::Deserialize<'a>>(&self, key: &str) -> Option<T> {
        serde_json::from_str(self.held.get(key)?.get()).ok()
    }

    /// A value of a text or an object: see [`json::value`] for odd characters in it.
    fn lenient(&self, key: &str) -> Option<Value> {
        json::value(self.held.get(key)?.get())
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.lenient(key)? {
            Value::String(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    fn error(&self) -> Option<String> {
        self.text("error")
            .map(|error| json::shortened(&error, ERROR_CHARS_MAX))
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.value(key)
    }

    fn object(&self, key: &str) -> Option<Map<String, Value>> {
        match self.lenient(key)? {
            Value::Object(object) => Some(object),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<serde_json::Number> {
        self.value(key)
    }

    fn numbers(&self, keys: &[&str]) -> Map<String, Value> {
        keys.iter()
            .filter_map(|key| Some(((*key).to_owned(), Value::Number(self.number(key)?))))
            .collect()
    }

    fn time(&self, key: &str) -> Option<At> {
        json::parse_time(&self.text(key)?)
    }
}

/// Gathers fields into a place that outlives an error half-way.
struct Collect<'h, 'a> {
    keys: &'static [&'static str],
    held: &'h mut BTreeMap<&'static str, &'a RawValue>,
}

impl<'de> DeserializeSeed<'de> for Collect<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Collect<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.keys.iter().find(|known| **known == key) {
                Some(known) => drop(self.held.insert(known, map.next_value()?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}
