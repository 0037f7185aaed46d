//! What the control socket shows of runs, deliveries and sources. The commands read these back.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ConsumerView;
use crate::ledger::{
    DamagedRow, DeliveryRow, Losses, RunRow, SecretUse, SourceCounts, TimelineRow,
};
use crate::model::decide::{Phase, Run};
use crate::model::observation::Detail;
use crate::model::record::Cursor;
use crate::model::{At, Kind, Origin, Outcome, Via};
use crate::polling::rate_limit::RateLimiterState;
use crate::providers::Headers;
use crate::report::{Meta, ResponseMeta};
use crate::secret::SecretLabel;

/// A run.
#[derive(Debug, Deserialize, Serialize)]
pub struct RunView {
    /// Source name.
    pub source: String,
    /// Provider name.
    pub provider: String,
    /// The provider's id.
    pub run_id: String,
    /// What sort of run.
    pub kind: Option<Kind>,
    /// Workflow, recipe or agent.
    pub group_id: Option<String>,
    /// `open` or `settled`.
    pub phase: String,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What settled it.
    pub origin: Option<Origin>,
    /// False: the policy wanted an answer and had none in time, or the end was inferred.
    pub confirmed: Option<bool>,
    /// The provider's word.
    pub provider_status: Option<String>,
    /// Our word that qualifies it.
    pub reason: Option<String>,
    /// The provider's error text.
    pub error: Option<String>,
    /// What `track` or the provider attached.
    pub metadata: Option<Map<String, Value>>,
    /// By which mouth we learned of it.
    pub found_by: Via,
    /// When it began.
    pub opened_at: String,
    /// When we learned of it.
    pub known_since: String,
    /// When it settled.
    pub settled_at: Option<String>,
    /// Open for longer than its deadline.
    pub overdue: bool,
    /// An end was heard and waits for its confirmation.
    pub held: bool,
    /// Authentic webhooks about it.
    pub webhooks: u32,
    /// When the first came.
    pub first_webhook_at: Option<String>,
    /// When the last came.
    pub last_webhook_at: Option<String>,
    /// Questions asked about it.
    pub polls: u32,
    /// When one was last answered.
    pub answered_at: Option<String>,
    /// When the next is due.
    pub next_poll_at: Option<String>,
    /// Amendments published.
    pub amendments: u32,
    /// Cursor of its completion.
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

fn cursor(epoch: &str, seq: i64) -> String {
    Cursor {
        epoch: epoch.to_owned(),
        seq,
    }
    .to_string()
}

/// A line of a run's timeline.
#[derive(Debug, Deserialize, Serialize)]
pub struct TimelineLine {
    /// When.
    pub at: String,
    /// By which mouth.
    pub via: String,
    /// How far it may be believed.
    pub trust: String,
    /// What it claimed.
    pub claim: String,
    /// The provider's word.
    pub status: Option<String>,
    /// What it did.
    pub effect: String,
    /// The report, for `/v1/deliveries/{id}`.
    pub report: i64,
    /// Cursor of the record it caused.
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

/// One report in full, without secrets: header values that may hold one are hidden.
#[derive(Debug, Deserialize, Serialize)]
pub struct DeliveryView {
    /// What is listed.
    #[serde(flatten)]
    pub row: DeliveryRow,
    /// Headers of a delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
    /// The body was cut off.
    pub truncated: bool,
    /// The peer's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Of a poll or sweep: what was asked, and how it was answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<ResponseMeta>,
}

impl DeliveryView {
    /// Headers whose values are shown. Any other may carry a secret of somebody's.
    const SHOWN: [&'static str; 8] = [
        "host",
        "user-agent",
        "content-type",
        "content-length",
        "accept-encoding",
        "date",
        "x-skyvern-timestamp",
        "x-browser-use-timestamp",
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

    fn shown((name, value): (String, String)) -> (String, String) {
        let value = if Self::SHOWN.contains(&name.as_str()) {
            value
        } else {
            "[hidden]".to_owned()
        };
        (name, value)
    }
}

/// One source.
#[derive(Debug, Deserialize, Serialize)]
pub struct SourceView {
    /// Its name.
    pub name: String,
    /// Its provider.
    pub provider: String,
    /// It is in the configuration now.
    pub configured: bool,
    /// Open runs.
    pub open: i64,
    /// Open runs past their deadline.
    pub overdue: i64,
    /// Completions that had to do without their webhook, over an hour, a day and thirty days.
    pub loss: Losses,
    /// Last authentic delivery.
    pub last_webhook_at: Option<String>,
    /// Last delivery that was not.
    pub last_unverified_at: Option<String>,
    /// Last answer to a question of ours.
    pub last_answer_at: Option<String>,
    /// RateLimiter, pauses, breaker and calls by result since the start.
    pub limiter: Option<RateLimiterState>,
    /// How far the provider's clock is ahead of ours.
    pub clock_skew_ms: Option<i64>,
    /// Runs that the provider counted and nobody told us of.
    pub unaccounted: i64,
    /// The configured secrets.
    pub secrets: Vec<SecretView>,
    /// What a person should know or do.
    pub notes: Vec<String>,
}

/// A configured secret, by its name.
#[derive(Debug, Deserialize, Serialize)]
pub struct SecretView {
    /// Its name in the configuration.
    pub label: String,
    /// When it last verified a delivery.
    pub last_used_at: Option<String>,
    /// How many deliveries it has verified.
    pub uses: i64,
    /// Nothing needs it any more.
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
    /// The view of a source's numbers; `pace` of one that is configured.
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

/// The whole daemon.
#[derive(Debug, Deserialize, Serialize)]
pub struct StatusView {
    /// Of the program.
    pub version: String,
    /// When it was ready.
    pub started_at: String,
    /// What a person has to put right: a configuration that was not taken.
    #[serde(default)]
    pub trouble: Option<String>,
    /// First half of every cursor.
    pub epoch: String,
    /// Cursor of the newest record.
    pub head: String,
    /// Cursor before the oldest record.
    pub earliest: String,
    /// Open runs.
    pub open: i64,
    /// Open runs past their deadline.
    pub overdue: i64,
    /// Reports that could not be processed.
    pub quarantined: i64,
    /// Damaged rows that were come upon since the start. `settled check` finds all of them.
    #[serde(default)]
    pub damaged: Vec<DamagedRow>,
    /// The database file.
    pub store: StoreView,
    /// Every source that is or was configured.
    pub sources: Vec<SourceView>,
    /// Every named reader of the feed.
    #[serde(default)]
    pub consumers: Vec<ConsumerView>,
}

/// The database file.
#[derive(Debug, Deserialize, Serialize)]
pub struct StoreView {
    /// Where it is.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// How much of it is free, for what comes next.
    pub free_bytes: i64,
    /// The size of its write-ahead log.
    pub wal_bytes: u64,
}
