//! The contract of both sockets: every request body and every reply is a type of this file.
//!
//! Handlers write these types and commands read them. `docs/api.md` shows an example of each, and a
//! test compares the two. Times are RFC 3339 texts in UTC. A field that a reply may lack says so.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::ledger::{
    DamagedRow, DeliveryRow, Filter, Losses, RunRow, SecretUse, SourceCounts, TimelineRow,
};
use crate::model::decide::{Effect, Phase, Run};
use crate::model::observation::Detail;
use crate::model::record::Cursor;
use crate::model::{At, Kind, Origin, Outcome, Via};
use crate::polling::rate_limit::RateLimiterState;
use crate::providers::{Headers, ResponseClass, Verdict};
use crate::report::{Meta, ResponseMeta};
use crate::secret::SecretLabel;

pub use crate::server::{ErrorBody, ErrorReply};

fn cursor(epoch: &str, seq: i64) -> String {
    Cursor {
        epoch: epoch.to_owned(),
        seq,
    }
    .to_string()
}

// ── Runs ────────────────────────────────────────────────────────────────────────────────────────

/// The body of `POST /v1/runs`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrackRequest {
    /// The source's name in the configuration.
    pub source: String,
    /// The provider's id of the run.
    pub run_id: String,
    /// The kind of run, where the id does not show it.
    pub kind: Option<Kind>,
    /// The workflow, recipe, agent or monitor that the run belongs to.
    pub group_id: Option<String>,
    /// Values that the run's completion repeats.
    pub metadata: Option<Map<String, Value>>,
}

/// A run: the reply of `POST /v1/runs`, and an item of every list of runs.
#[derive(Debug, Deserialize, Serialize)]
pub struct RunView {
    /// Name of the source.
    pub source: String,
    /// Name of the source's provider.
    pub provider: String,
    /// The provider's id of the run.
    pub run_id: String,
    /// The kind of run; `null` until the id or an answer shows it.
    pub kind: Option<Kind>,
    /// The workflow, recipe, agent or monitor that the run belongs to.
    pub group_id: Option<String>,
    /// `open` or `settled`.
    pub phase: String,
    /// How a settled run ended.
    pub outcome: Option<Outcome>,
    /// Which kind of report settled the run.
    pub origin: Option<Origin>,
    /// Of a settled run: whether the evidence is what the policy asks for. False if no answer came
    /// within `confirm_timeout`, or if the end is inferred.
    pub confirmed: Option<bool>,
    /// The provider's status, verbatim.
    pub provider_status: Option<String>,
    /// A word that qualifies the outcome, such as `deadline_exceeded`.
    pub reason: Option<String>,
    /// The provider's error text.
    pub error: Option<String>,
    /// Values that `track` or the provider attached.
    pub metadata: Option<Map<String, Value>>,
    /// Which kind of report made the run known.
    pub found_by: Via,
    /// When the run began, as far as settled knows.
    pub opened_at: String,
    /// When settled first learned of the run.
    pub known_since: String,
    /// When the run settled.
    pub settled_at: Option<String>,
    /// The run is open for longer than its deadline.
    pub overdue: bool,
    /// A report says that the run has ended, and a poll has to confirm it.
    pub held: bool,
    /// How many authentic webhooks named the run.
    pub webhooks: u32,
    /// When the first of them came.
    pub first_webhook_at: Option<String>,
    /// When the last of them came.
    pub last_webhook_at: Option<String>,
    /// How many polls asked about the run.
    pub polls: u32,
    /// When a poll was last answered with news of the run.
    pub answered_at: Option<String>,
    /// When the next poll is due.
    pub next_poll_at: Option<String>,
    /// How many amendments followed the completion.
    pub amendments: u32,
    /// Cursor of the completion.
    pub completion: Option<String>,
}

impl RunView {
    /// The view of a stored run.
    pub fn of(row: &RunRow, epoch: &str) -> RunView {
        let run = &row.run;
        let settled = match &run.phase {
            Phase::Settled(settled) => Some(settled),
            Phase::Open(_) => None,
        };
        // A settled run shows the belief that was published, not what later reports added.
        let said = settled.map_or(&run.detail, |settled| &settled.belief.detail);
        let Detail {
            provider_status,
            reason,
            error,
            ..
        } = said;
        RunView {
            source: row.key.source.to_string(),
            provider: row.provider.clone(),
            run_id: row.key.run_id.to_string(),
            kind: run.kind,
            group_id: run.detail.group_id.clone(),
            phase: if settled.is_some() { "settled" } else { "open" }.to_owned(),
            outcome: settled.map(|settled| settled.belief.ending.outcome),
            origin: settled.map(|settled| settled.origin),
            confirmed: settled.map(|settled| settled.confirmed),
            provider_status: provider_status.clone(),
            reason: reason.clone(),
            error: error.clone(),
            metadata: run.detail.metadata.clone(),
            found_by: run.found_by,
            opened_at: run.opened_at().rfc3339(),
            known_since: run.known_since.rfc3339(),
            settled_at: settled.map(|settled| settled.at.rfc3339()),
            overdue: run.overdue,
            held: held(run),
            webhooks: run.webhooks.count,
            first_webhook_at: run.webhooks.first.map(At::rfc3339),
            last_webhook_at: run.webhooks.last.map(At::rfc3339),
            polls: run.polls,
            answered_at: run.answered_at.map(At::rfc3339),
            next_poll_at: run.poll.map(|plan| plan.at.rfc3339()),
            amendments: settled.map_or(0, |settled| settled.amendments),
            completion: row.completion.map(|seq| cursor(epoch, seq)),
        }
    }
}

fn held(run: &Run) -> bool {
    matches!(&run.phase, Phase::Open(open) if open.claim.is_some() || open.seen.is_some())
}

/// The reply of `GET /v1/runs`: one page.
#[derive(Debug, Deserialize, Serialize)]
pub struct RunList<R = RunView> {
    /// The runs of the page.
    pub runs: Vec<R>,
    /// Runs whose row in the database cannot be read.
    pub damaged: Vec<DamagedRow>,
    /// The value of `after` (with `newest`: of `before`) for the next page; `null` on the last.
    pub next: Option<i64>,
}

/// The reply of `GET /v1/sources/{source}/missing-webhooks`: settled runs without a webhook.
#[derive(Debug, Deserialize, Serialize)]
pub struct MissingWebhooks {
    /// At most 1,000 runs.
    pub runs: Vec<RunView>,
}

/// The reply of `GET /v1/runs/{source}/{run_id}`.
#[derive(Debug, Deserialize, Serialize)]
pub struct RunDetail {
    /// The run as it is now.
    pub run: RunView,
    /// The claims of the reports about it, oldest first.
    pub timeline: Vec<TimelineLine>,
}

/// A line of a run's timeline: one report and its effect.
#[derive(Debug, Deserialize, Serialize)]
pub struct TimelineLine {
    /// When the report came.
    pub at: String,
    /// The kind of report: `webhook`, `poll`, `sweep`, `replay`, `clock`, `operator`.
    pub via: String,
    /// How far the report may be believed: `authoritative`, `signed`, `shared_secret`, `hint`.
    pub trust: String,
    /// The claim of the report about the run.
    pub claim: String,
    /// The provider's status, verbatim.
    pub status: Option<String>,
    /// The effect of the report on the run.
    pub effect: String,
    /// Id of the report, for `GET /v1/deliveries/{id}`.
    pub report: i64,
    /// Cursor of the record that it caused.
    pub record: Option<String>,
}

impl TimelineLine {
    /// The view of a stored line.
    pub fn of(row: TimelineRow, epoch: &str) -> TimelineLine {
        TimelineLine {
            at: row.at.rfc3339(),
            via: row.via,
            trust: row.trust,
            claim: row.claim,
            status: row.status,
            effect: row.effect,
            report: row.report,
            record: row.seq.map(|seq| cursor(epoch, seq)),
        }
    }
}

/// The reply of `POST /v1/runs/{source}/{run_id}/poll`.
#[derive(Debug, Deserialize, Serialize)]
pub struct PollReply {
    /// Id of the report that holds the answers.
    pub report: i64,
    /// Whether the answers say anything of the run.
    pub learned: bool,
    /// The provider's last answer.
    pub answer: Option<PollAnswer>,
    /// The effect of the report on the run; `null` if none.
    pub effect: Option<Effect>,
    /// The run after it.
    pub run: RunView,
}

/// The provider's answer to a poll.
#[derive(Debug, Deserialize, Serialize)]
pub struct PollAnswer {
    /// The response class: what the answer says of the account and the service.
    pub class: AnswerClass,
    /// The HTTP status; `null` if there was no response.
    pub status: Option<u16>,
    /// Why the answer is not `ok`, or why it says nothing of the run.
    pub reason: Option<String>,
}

/// The class of a provider's answer; also the label `result` of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerClass {
    /// The call worked, or failed for a reason of this run alone.
    Ok,
    /// Too many calls.
    RateLimited,
    /// The key is not accepted.
    Denied,
    /// The service failed, or there was no response.
    Unavailable,
}

impl AnswerClass {
    /// The class, and the provider's reason for one that is not `ok`.
    pub fn of(class: &ResponseClass) -> (AnswerClass, Option<String>) {
        match class {
            ResponseClass::Ok => (AnswerClass::Ok, None),
            ResponseClass::RateLimited { retry_after: None } => (AnswerClass::RateLimited, None),
            ResponseClass::RateLimited {
                retry_after: Some(pause),
            } => {
                let reason = format!("try again after {} s", pause.as_secs());
                (AnswerClass::RateLimited, Some(reason))
            }
            ResponseClass::Denied { why } => (AnswerClass::Denied, Some(why.clone())),
            ResponseClass::Unavailable { why, .. } => (AnswerClass::Unavailable, Some(why.clone())),
        }
    }

    /// The word of the class, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            AnswerClass::Ok => "ok",
            AnswerClass::RateLimited => "rate_limited",
            AnswerClass::Denied => "denied",
            AnswerClass::Unavailable => "unavailable",
        }
    }
}

/// The body of `POST /v1/runs/{source}/{run_id}/retry-webhook`; an empty body will do.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryWebhookRequest {
    /// Where the provider is to send this one delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
}

/// The reply of `POST /v1/runs/{source}/{run_id}/retry-webhook`.
#[derive(Debug, Deserialize, Serialize)]
pub struct RetryWebhookReply {
    /// The provider's delivery got a 2xx.
    pub delivered: bool,
    /// The HTTP status that the provider got.
    pub delivered_status: Option<u16>,
    /// The provider's error text.
    pub error: Option<String>,
    /// Where the provider sent the webhook.
    pub target_url: Option<String>,
    /// How long the delivery took.
    pub latency_ms: Option<u64>,
    /// The verdict on the payload in the provider's answer; `null` without a payload.
    pub payload_verdict: Option<Verdict>,
    /// The effect of that payload on the run.
    pub effect: Option<Effect>,
}

// ── Deliveries ──────────────────────────────────────────────────────────────────────────────────

/// The reply of `GET /v1/deliveries`: one page, newest first.
#[derive(Debug, Deserialize, Serialize)]
pub struct DeliveryList<D = DeliveryRow> {
    /// The deliveries of the page.
    pub deliveries: Vec<D>,
    /// The value of `before` for the next page; `null` on the last.
    pub next: Option<i64>,
}

/// The reply of `GET /v1/deliveries/{id}`: one report of any kind, without secrets.
#[derive(Debug, Deserialize, Serialize)]
pub struct DeliveryView {
    /// The fields that lists show too.
    #[serde(flatten)]
    pub row: DeliveryRow,
    /// Headers of a delivery; the value of any that may hold a secret is `[hidden]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
    /// The body was cut off.
    pub truncated: bool,
    /// The sender's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Of a poll or a sweep: each request and its answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<ResponseMeta>,
}

impl DeliveryView {
    /// Headers whose values are shown. Any other may hold a secret.
    const SHOWN: [&'static str; 6] = [
        "host",
        "user-agent",
        "content-type",
        "content-length",
        "accept-encoding",
        "date",
    ];

    /// The view of a stored report.
    pub fn of(row: DeliveryRow, meta: Meta) -> DeliveryView {
        let mut view = DeliveryView {
            row,
            headers: None,
            truncated: false,
            peer: None,
            answers: Vec::new(),
        };
        match meta {
            Meta::Webhook(meta) | Meta::Replay(meta) => {
                view.headers = Some(meta.headers.into_iter().map(Self::shown).collect());
                view.truncated = meta.truncated;
                view.peer = meta.peer;
            }
            Meta::Poll(meta) => view.answers = meta.answers,
            Meta::Sweep(meta) => view.answers = vec![meta.answer],
            Meta::Clock { .. } | Meta::Track(_) => {}
        }
        view
    }

    /// A signature's timestamp is no secret, whichever provider's it is.
    fn shown((name, value): (String, String)) -> (String, String) {
        let public = Self::SHOWN.contains(&name.as_str())
            || (name.starts_with("x-") && name.ends_with("-timestamp"));
        let value = if public { value } else { "[hidden]".to_owned() };
        (name, value)
    }
}

/// The reply of `POST /v1/sources/{source}/reverify`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct ReverifyReply {
    /// Unverified deliveries that were verified again.
    pub examined: u64,
    /// Those that verify now.
    pub verified: u64,
    /// Runs that they changed.
    pub changed: u64,
}

// ── The daemon ──────────────────────────────────────────────────────────────────────────────────

/// The reply of `GET /healthz`: the writer has executed an empty transaction.
#[derive(Debug, Deserialize, Serialize)]
pub struct HealthReply {
    /// Always `ok`; a daemon that is not well answers 503.
    pub status: String,
}

/// One source, of `GET /v1/status`.
#[derive(Debug, Deserialize, Serialize)]
pub struct SourceView {
    /// The source's name.
    pub name: String,
    /// Name of its provider.
    pub provider: String,
    /// The source is in the configuration now.
    pub configured: bool,
    /// Open runs.
    pub open: i64,
    /// Open runs past their deadline.
    pub overdue: i64,
    /// Completions whose webhook was lost, over an hour, a day and thirty days.
    pub loss: Losses,
    /// When the last authentic delivery came.
    pub last_webhook_at: Option<String>,
    /// When the last delivery came that was not authentic.
    pub last_unverified_at: Option<String>,
    /// When the provider last answered a poll or a sweep.
    pub last_answer_at: Option<String>,
    /// The rate limiter; `null` if the source is not configured.
    pub limiter: Option<RateLimiterState>,
    /// How many milliseconds the provider's clock is ahead of ours.
    pub clock_skew_ms: Option<i64>,
    /// Runs that the provider counted and settled does not know.
    pub unaccounted: i64,
    /// The configured secrets.
    pub secrets: Vec<SecretView>,
    /// Sentences for a person: a fault, and what to do.
    pub notes: Vec<String>,
}

/// A configured secret, named by its place in the configuration.
#[derive(Debug, Deserialize, Serialize)]
pub struct SecretView {
    /// Its place in the configuration.
    pub label: String,
    /// When it last verified a delivery.
    pub last_used_at: Option<String>,
    /// How many deliveries it has verified.
    pub uses: i64,
    /// No run that is still alive can need it: it may be removed.
    pub can_go: bool,
}

impl SecretView {
    /// The view of a secret and its use.
    pub fn of(label: &SecretLabel, used: Option<&SecretUse>, can_go: bool) -> SecretView {
        let last_used_at = used.map(|used| used.last_at.rfc3339());
        SecretView {
            label: label.0.clone(),
            last_used_at,
            uses: used.map_or(0, |used| used.uses),
            can_go,
        }
    }
}

impl SourceView {
    /// The view of a source's numbers; `limiter` of one that is configured.
    pub fn of(
        counts: SourceCounts,
        limiter: Option<RateLimiterState>,
        clock_skew_ms: Option<i64>,
        secrets: Vec<SecretView>,
        notes: Vec<String>,
        loss: Losses,
    ) -> SourceView {
        SourceView {
            loss,
            name: counts.name,
            provider: counts.provider,
            configured: limiter.is_some(),
            open: counts.open,
            overdue: counts.overdue,
            last_webhook_at: counts.webhook_at.map(At::rfc3339),
            last_unverified_at: counts.unverified_at.map(At::rfc3339),
            last_answer_at: counts.answer_at.map(At::rfc3339),
            limiter,
            clock_skew_ms,
            unaccounted: counts.unaccounted,
            secrets,
            notes,
        }
    }
}

/// The reply of `GET /v1/status`.
#[derive(Debug, Deserialize, Serialize)]
pub struct StatusView {
    /// The daemon's version.
    pub version: String,
    /// When the daemon was ready.
    pub started_at: String,
    /// Why the last reload was refused; `null` if it was not.
    #[serde(default)]
    pub trouble: Option<String>,
    /// The first half of every cursor.
    pub epoch: String,
    /// Cursor of the newest record.
    pub head: String,
    /// Cursor before the oldest record that is kept.
    pub earliest: String,
    /// Open runs of all sources.
    pub open: i64,
    /// Open runs of all sources that are past their deadline.
    pub overdue: i64,
    /// Reports in quarantine: processing them failed.
    pub quarantined: i64,
    /// Damaged rows that were read since the start. `settled check` finds all of them.
    #[serde(default)]
    pub damaged: Vec<DamagedRow>,
    /// The database file.
    pub store: StoreView,
    /// Every source that is or was configured.
    pub sources: Vec<SourceView>,
    /// Every named consumer of the feed.
    #[serde(default)]
    pub consumers: Vec<ConsumerView>,
}

/// The database file, of `GET /v1/status`.
#[derive(Debug, Deserialize, Serialize)]
pub struct StoreView {
    /// Path of the file.
    pub path: String,
    /// Size of the file.
    pub bytes: u64,
    /// How much of the file is free for reuse.
    pub free_bytes: i64,
    /// Size of the write-ahead log.
    pub wal_bytes: u64,
}

// ── Named consumers ─────────────────────────────────────────────────────────────────────────────

/// A filter in a request; each field is a list, as a JSON array or as a text with commas.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventQuery {
    /// Types of record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<WordList>,
    /// Names of sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<WordList>,
    /// Names of providers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<WordList>,
    /// Outcomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<WordList>,
    /// Origins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<WordList>,
    /// Ids of groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<WordList>,
}

/// `"a,b"` or `["a","b"]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum WordList {
    /// Words with commas between them.
    Text(String),
    /// One word an item.
    Items(Vec<String>),
}

/// The body of `PUT /v1/consumers/{name}`; every field has a default.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CreateConsumerRequest {
    /// `earliest` (default), `latest`, or a cursor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Which records the consumer gets; the default is completions.
    pub filter: EventQuery,
    /// How many records may be out unacknowledged; 0 is any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
}

/// A named consumer.
#[derive(Debug, Deserialize, Serialize)]
pub struct ConsumerView {
    /// The consumer's name.
    pub name: String,
    /// Cursor up to which everything is done.
    pub acked: String,
    /// Cursor of the newest record.
    pub head: String,
    /// Records after its position, whether they match its filter or not.
    pub lag: i64,
    /// Retention has removed records that it had not acknowledged: it has to seek.
    pub expired: bool,
    /// How many records may be out unacknowledged; 0 is any number.
    pub window: u32,
    /// Which records it gets.
    pub filter: Filter,
    /// Number of its last reader, seek or creation.
    pub generation: i64,
    /// A reader is connected.
    pub connected: bool,
    /// Events that it has parked.
    pub parked: i64,
    /// When it was created.
    pub created_at: String,
    /// When it was last opened, acknowledged or moved.
    pub seen_at: String,
}

/// The reply of `GET /v1/consumers`.
#[derive(Debug, Deserialize, Serialize)]
pub struct ConsumerList<C = ConsumerView> {
    /// Every named consumer.
    pub consumers: Vec<C>,
}

/// The reply of `DELETE /v1/consumers/{name}`.
#[derive(Debug, Deserialize, Serialize)]
pub struct ConsumerDeleted {
    /// Name of the consumer that is gone.
    pub deleted: String,
    /// How many parked events went with it.
    pub parked_dropped: i64,
}

/// The reply of `POST /v1/consumers/{name}/ack` and of `POST /v1/consumers/{name}/parked`.
#[derive(Debug, Deserialize, Serialize)]
pub struct PositionReply {
    /// Cursor up to which everything is done.
    pub acked: String,
    /// Records after it, whether they match the filter or not.
    pub lag: i64,
}

/// The body of `POST /v1/consumers/{name}/parked`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParkRequest {
    /// How often the event was tried.
    pub attempts: u32,
    /// How the last attempt failed; the daemon keeps the first 4 KiB.
    pub error: String,
}

/// The reply of `GET /v1/consumers/{name}/parked`: one page, oldest first.
#[derive(Debug, Deserialize, Serialize)]
pub struct ParkedList<P = ParkedView> {
    /// The parked events of the page.
    pub parked: Vec<P>,
    /// The value of `after` for the next page; `null` on the last.
    pub next: Option<i64>,
}

/// A parked event.
#[derive(Debug, Deserialize, Serialize)]
pub struct ParkedView {
    /// Cursor of the event.
    pub cursor: String,
    /// How often it was tried.
    pub attempts: u32,
    /// How the last attempt failed.
    pub error: String,
    /// When the last attempt failed.
    pub at: String,
    /// `settled consumers retry` marked it for another attempt.
    pub retry: bool,
    /// The record as the feed had it.
    pub event: Box<RawValue>,
}

/// The reply of `POST /v1/consumers/{name}/parked/retry`.
#[derive(Debug, Deserialize, Serialize)]
pub struct RetryParkedReply {
    /// How many events are marked for another attempt.
    pub to_retry: usize,
}

/// The reply of `DELETE /v1/consumers/{name}/parked`.
#[derive(Debug, Deserialize, Serialize)]
pub struct DropParkedReply {
    /// How many events are no longer parked.
    pub dropped: usize,
}

// ── The feed's own lines ────────────────────────────────────────────────────────────────────────

/// The part of any line of the feed that a reader needs before it knows whether the line is a record.
#[derive(Debug, Deserialize)]
pub struct FeedLine {
    /// The CloudEvents type.
    #[serde(rename = "type")]
    pub line_type: String,
    /// The position after the line, if the reader may store or acknowledge it.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// A line about the stream itself, in the envelope that records have.
#[derive(Debug, Deserialize, Serialize)]
pub struct StreamLine {
    /// The version of CloudEvents.
    pub specversion: String,
    /// Type and cursor.
    pub id: String,
    /// Always `/settled`.
    pub source: String,
    /// `settled.feed.` and the kind of line.
    #[serde(rename = "type")]
    pub line_type: String,
    /// When the daemon wrote the line.
    pub time: String,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// The position after the line, if the reader may store or acknowledge it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// The content, by the kind of line.
    pub data: StreamData,
}

/// The `data` of a [`StreamLine`]. The first form whose fields are there is taken.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum StreamData {
    /// Of `hello`.
    Hello(StreamHello),
    /// Of `superseded`.
    Superseded(StreamSuperseded),
    /// Of `paused`.
    Paused(StreamPaused),
    /// Of `end`.
    End(StreamEnd),
    /// Of `error`.
    Error(ErrorBody),
    /// Of `bookmark`, which says nothing but its cursor.
    Bookmark {},
}

/// The first line of a stream.
#[derive(Debug, Deserialize, Serialize)]
pub struct StreamHello {
    /// The version of the protocol.
    pub protocol: u32,
    /// The first half of every cursor.
    pub epoch: String,
    /// The position that the stream begins after.
    pub start: String,
    /// Cursor of the newest record.
    pub head: String,
    /// The stream stays open.
    pub follow: bool,
    /// Seconds of silence after which a bookmark comes.
    pub heartbeat: u64,
    /// Which records the stream sends.
    pub filter: Filter,
    /// Of a named consumer: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Of a named consumer: the number of this reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Of a named consumer: how many records may be out unacknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
}

/// The last line of a reader that no longer is the one.
#[derive(Debug, Deserialize, Serialize)]
pub struct StreamSuperseded {
    /// Name of the consumer.
    pub consumer: String,
    /// `reader`: another reader opened the consumer. `seek`: its position was moved.
    pub by: String,
    /// The number that replaces the reader's.
    pub generation: i64,
}

/// The window is full: the stream goes on after an acknowledgement.
#[derive(Debug, Deserialize, Serialize)]
pub struct StreamPaused {
    /// Name of the consumer.
    pub consumer: String,
    /// Records that are out.
    pub unacknowledged: usize,
    /// How many may be.
    pub window: u32,
}

/// The last line of a read without `follow`, and of a daemon that stops.
#[derive(Debug, Deserialize, Serialize)]
pub struct StreamEnd {
    /// There are more records after the cursor.
    pub more: bool,
}
