//! The control socket: tracking runs, lists and views, polls at once, webhooks sent again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::types::{
    AnswerClass, DeliveryList, DeliveryView, MissingWebhooks, PollAnswer, PollReply,
    RetryWebhookReply, RetryWebhookRequest, ReverifyReply, RunDetail, RunList, RunView, SourceView,
    StatusView, StoreView, TimelineLine, TrackRequest,
};
use super::{
    ApiState, HandlerResult, Params, Segments, Shared, advice, bad_request, body_json, consumers,
    flag,
};
use crate::config::Source;
use crate::ledger::changes::Processed;
use crate::ledger::{DeliveryQuery, RunPage, RunQuery, RunRow};
use crate::limits;
use crate::limits::{METADATA_BYTES_MAX, METADATA_DEPTH_MAX};
use crate::model::decide::Effect;
use crate::model::observation::{Claim, portable};
use crate::model::record::Cursor;
use crate::model::{RunId, RunKey, SourceName};
use crate::polling::client::SourceClient;
use crate::providers::{ApiResponse, Delivery, Headers, Reading, RetryResult, Verdict};
use crate::reconciler::Reverified;
use crate::report::{Meta, Report, TrackMeta, WebhookMeta};
use crate::server::{self, Problem};

/// `POST /v1/runs`: 201 if the run is new, 200 if it is known.
pub async fn track(State(state): Shared, body: Body) -> HandlerResult {
    let tracked: TrackRequest = body_json(body).await?;
    let member = state.member(&tracked.source)?;
    let key = key(&tracked.source, &tracked.run_id)?;
    if tracked
        .metadata
        .as_ref()
        .is_some_and(|metadata| !portable(metadata))
    {
        let message = format!(
            "metadata may have {METADATA_BYTES_MAX} bytes and nest {METADATA_DEPTH_MAX} deep"
        );
        return Err(bad_request(message));
    }
    let source = &member.config;
    let kind_of_id = || source.provider.kind_of(&key.run_id, &source.settings);
    let meta = TrackMeta {
        run_id: key.run_id.clone(),
        kind: tracked
            .kind
            .or_else(|| (!source.provider.guesses_kind()).then(kind_of_id)),
        group_id: tracked.group_id,
        metadata: tracked.metadata,
    };
    let report = Report {
        source: member.id,
        at: (state.clock)(),
        meta: Meta::Track(meta),
        body: Vec::new(),
    };
    let process = state.ledger.process(report).await?;
    let opened = process
        .effects
        .iter()
        .any(|(_, effect, _)| *effect == Effect::Opened);
    let row = state.run(&key).await?;
    let status = if opened {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(server::json(
        status,
        &RunView::of(&row, state.reader.epoch()),
    ))
}

/// The query of `GET /v1/runs`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListRuns {
    phase: Option<String>,
    source: Option<String>,
    overdue: Option<String>,
    newest: Option<String>,
    after: Option<i64>,
    before: Option<i64>,
    limit: Option<u32>,
}

/// `GET /v1/runs`: runs in the order in which they became known, and `next` for `after`. With
/// `newest`: the newest first, and `next` for `before`. Runs whose row is damaged are listed apart.
pub async fn list_runs(State(state): Shared, Params(list): Params<ListRuns>) -> HandlerResult {
    let phase = match list.phase.as_deref() {
        None => None,
        Some("open") => Some("open"),
        Some("settled") => Some("settled"),
        Some(_) => return Err(bad_request("phase is open or settled")),
    };
    let overdue = flag("overdue", list.overdue.as_deref())?;
    let limit = list.limit.unwrap_or(100).clamp(1, 1_000);
    let newest = flag("newest", list.newest.as_deref())?;
    let (after, before) = (list.after.unwrap_or(0), list.before);
    let query = RunQuery {
        phase,
        source: list.source,
        overdue,
        newest,
        after,
        before,
        limit,
    };
    let RunPage {
        runs,
        damaged,
        next,
    } = state.look(move |view| view.runs(&query)).await?;
    Ok(server::json(
        StatusCode::OK,
        &RunList {
            runs: state.views(&runs),
            damaged,
            next,
        },
    ))
}

/// The query of `GET /v1/runs/{source}/{run_id}`: seconds to wait for the run to settle.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wait {
    wait: Option<u64>,
}

/// `GET /v1/runs/{source}/{run_id}`: the run and its timeline, at once or when it has settled.
pub async fn show_run(
    State(state): Shared,
    Segments(path): Segments<(String, String)>,
    Params(query): Params<Wait>,
) -> HandlerResult {
    let key = key(&path.0, &path.1)?;
    let until = Instant::now() + Duration::from_secs(query.wait.unwrap_or(0)).min(limits::WAIT_MAX);
    let mut head = state.ledger.head();
    let mut stop = state.stop.clone();
    loop {
        head.borrow_and_update();
        let row = state.run(&key).await;
        let settled = row.as_ref().is_ok_and(|row| row.completion.is_some());
        if settled || Instant::now() >= until || *stop.borrow() {
            return state.with_timeline(&row?).await;
        }
        tokio::select! {
            woken = timeout_at(until, head.changed()) => drop(woken),
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// `POST /v1/runs/{source}/{run_id}/poll`: polls at once, beside the rate limit, and stores the
/// answer as a report.
pub async fn poll(
    State(state): Shared,
    Segments(path): Segments<(String, String)>,
) -> HandlerResult {
    let key = key(&path.0, &path.1)?;
    let client = state.client(&path.0)?;
    let row = state.run(&key).await?;
    let polled = client.poll_run(&key.run_id, &row.run).await;
    let broken =
        || cannot_poll("the provider refuses the API key; polling goes on by itself once it works");
    let report = polled.ok_or_else(broken)?;
    let (learned, answer) = answer_of(&client.member, &report);
    let processed = state.ledger.process(report).await?;
    let row = state.run(&key).await?;
    Ok(server::json(
        StatusCode::OK,
        &PollReply {
            report: processed.report,
            learned,
            answer,
            effect: processed.effects.first().map(|(_, effect, _)| *effect),
            run: RunView::of(&row, state.reader.epoch()),
        },
    ))
}

/// Whether the report of a poll says anything of its run, and the provider's last answer in it.
fn answer_of(member: &Source, report: &Report) -> (bool, Option<PollAnswer>) {
    let Meta::Poll(meta) = &report.meta else {
        return (false, None);
    };
    let source = &member.config;
    let learned = match report.read(source.provider, &source.settings) {
        Reading::Said(observations) => observations
            .iter()
            .any(|observation| observation.claim != Claim::Nothing),
        _ => false,
    };
    let answers = meta.answers(&report.body);
    let answer = answers.last().map(|answer| {
        let (class, reason) = AnswerClass::of(&source.provider.classify(answer));
        let silent = || "the answer is none that the provider documents for a run".to_owned();
        let reason = reason.or_else(|| (!learned).then(silent));
        let status = match answer {
            ApiResponse::Http(response) => Some(response.status),
            ApiResponse::Failed { .. } => None,
        };
        PollAnswer {
            class,
            status,
            reason: reason.map(|reason| member.redactor().redact(reason)),
        }
    });
    (learned, answer)
}

/// `POST /v1/runs/{source}/{run_id}/retry-webhook`: has the provider send the webhook again, and
/// processes the signed payload if the provider's answer repeats it.
pub async fn retry_webhook(
    State(state): Shared,
    Segments(path): Segments<(String, String)>,
    body: Body,
) -> HandlerResult {
    let again: RetryWebhookRequest = body_json(body).await?;
    let key = key(&path.0, &path.1)?;
    let client = state.client(&path.0)?;
    let provider = client.member.config.provider;
    let request = provider
        .retry_request(&key.run_id, again.webhook_url.as_deref())
        .ok_or_else(|| {
            let message = format!("{} has no call that sends a webhook again", provider.name());
            Problem::new(StatusCode::CONFLICT, "no_retry", message)
        })?;
    let answer = client.poll_now(&request).await;
    let (delivered_status, error, target_url, latency_ms, payload) =
        match provider.read_retry(&key.run_id, &answer) {
            RetryResult::Refused {
                status: None,
                message,
            } => {
                return Err(Problem::new(
                    StatusCode::BAD_GATEWAY,
                    "provider_unreachable",
                    message,
                ));
            }
            RetryResult::Refused {
                status: Some(status),
                message,
            } => {
                let problem = Problem::new(StatusCode::CONFLICT, "provider_refused", message);
                return Err(problem.with("provider_status", status));
            }
            RetryResult::Tried {
                delivered_status,
                error,
                target_url,
                latency_ms,
                payload,
            } => (delivered_status, error, target_url, latency_ms, payload),
        };
    let replay = match payload {
        Some((body, headers)) => Some(state.replay(&client.member, body, headers).await?),
        None => None,
    };
    let effect = replay
        .as_ref()
        .and_then(|(_, process)| process.effects.first().map(|(_, effect, _)| *effect));
    let redacted = |text: Option<String>| text.map(|text| client.member.redactor().redact(text));
    Ok(server::json(
        StatusCode::OK,
        &RetryWebhookReply {
            delivered: error.is_none()
                && delivered_status.is_some_and(|status| (200..300).contains(&status)),
            delivered_status,
            error: redacted(error),
            target_url: redacted(target_url),
            latency_ms,
            payload_verdict: replay.as_ref().map(|(verdict, _)| *verdict),
            effect,
        },
    ))
}

/// `GET /v1/sources/{source}/missing-webhooks`: settled runs whose webhook never came.
pub async fn missing_webhooks(
    State(state): Shared,
    Segments(source): Segments<String>,
) -> HandlerResult {
    state.member(&source)?;
    let rows = state
        .look(move |view| view.without_webhook(&source, 1_000))
        .await?;
    Ok(server::json(
        StatusCode::OK,
        &MissingWebhooks {
            runs: state.views(&rows),
        },
    ))
}

/// `POST /v1/sources/{source}/reverify`: applies unverified deliveries that verify by now.
pub async fn reverify(State(state): Shared, Segments(source): Segments<String>) -> HandlerResult {
    let member = state.member(&source)?;
    let Reverified {
        examined,
        verified,
        changed,
    } = state.ledger.reverify(member.id).await?;
    Ok(server::json(
        StatusCode::OK,
        &ReverifyReply {
            examined,
            verified,
            changed,
        },
    ))
}

/// The query of `GET /v1/deliveries`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListDeliveries {
    source: Option<String>,
    verdict: Option<String>,
    run_id: Option<String>,
    before: Option<i64>,
    limit: Option<u32>,
}

/// `GET /v1/deliveries`: newest first, and `next` for `before`.
pub async fn list_deliveries(
    State(state): Shared,
    Params(list): Params<ListDeliveries>,
) -> HandlerResult {
    let verdict = match list.verdict.as_deref() {
        None => None,
        Some(word) => Some(
            Verdict::from_word(word)
                .ok_or_else(|| bad_request(format!("{word:?} is no verdict")))?,
        ),
    };
    let limit = list.limit.unwrap_or(100).clamp(1, 1_000);
    let query = DeliveryQuery {
        source: list.source,
        verdict,
        run_id: list.run_id,
        before: list.before,
        limit,
    };
    let rows = state.look(move |view| view.deliveries(&query)).await?;
    let next = rows
        .last()
        .filter(|_| rows.len() == limit as usize)
        .map(|row| row.id);
    Ok(server::json(
        StatusCode::OK,
        &DeliveryList {
            deliveries: rows,
            next,
        },
    ))
}

/// `GET /v1/deliveries/{id}`: any report, also that of a poll.
pub async fn show_delivery(State(state): Shared, Segments(id): Segments<i64>) -> HandlerResult {
    let found = state.look(move |view| view.delivery(id)).await?;
    let (row, meta) = found.ok_or_else(no_delivery)?;
    Ok(server::json(StatusCode::OK, &DeliveryView::of(row, meta)))
}

/// `GET /v1/deliveries/{id}/body`: the raw bytes.
pub async fn show_body(
    State(state): Shared,
    Segments(id): Segments<i64>,
) -> Result<Response, Problem> {
    let body = state
        .look(move |view| view.body(id))
        .await?
        .ok_or_else(no_delivery)?;
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    Ok(response)
}

fn no_delivery() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is no delivery of this id; retention may have removed it",
    )
}

/// `GET /v1/status`: the daemon, its database, sources and consumers.
pub async fn status(State(state): Shared) -> HandlerResult {
    Ok(server::json(StatusCode::OK, &facts(&state).await?))
}

/// The reply of `GET /v1/status`, which the metrics are made of too.
pub async fn facts(state: &ApiState) -> Result<StatusView, Problem> {
    let at = (state.clock)();
    let look = move |view: &crate::ledger::View<'_>| {
        let (counts, losses, consumers) = (
            view.source_counts()?,
            view.losses(at)?,
            consumers::all(view)?,
        );
        Ok((
            view.bounds()?,
            counts,
            losses,
            view.quarantined_count()?,
            view.sizes()?.1,
            view.secret_uses()?,
            consumers,
        ))
    };
    let (bounds, counts, mut losses, quarantined, free, uses, consumers) = state.look(look).await?;
    let now = (state.clock)();
    let cursor = |seq| {
        Cursor {
            epoch: state.reader.epoch().to_owned(),
            seq,
        }
        .to_string()
    };
    let clients = state.clients.borrow().clone();
    let (open, overdue) = counts.iter().fold((0, 0), |sum, source| {
        (sum.0 + source.open, sum.1 + source.overdue)
    });
    let sources = counts
        .into_iter()
        .map(|counts| {
            let client = clients.get(&counts.id);
            let limiter = client.map(|client| client.limiter().state(now));
            let skew_ms = client.and_then(|client| client.skew_ms());
            let (mut secrets, mut notes) = (Vec::new(), Vec::new());
            if let Some(client) = client {
                let breaker = limiter
                    .as_ref()
                    .and_then(|limiter| limiter.breaker.as_ref());
                secrets = advice::secrets(&client.member, &uses, now);
                notes = advice::notes(
                    &client.member.config,
                    counts.unaccounted,
                    breaker,
                    skew_ms,
                    &secrets,
                );
            }
            let loss = losses.remove(&counts.id).unwrap_or_default();
            SourceView::of(counts, limiter, skew_ms, secrets, notes, loss)
        })
        .collect();
    Ok(StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: state.started_at.rfc3339(),
        trouble: state.trouble.borrow().clone(),
        epoch: state.reader.epoch().to_owned(),
        head: cursor(bounds.head),
        earliest: cursor(bounds.trimmed),
        open,
        overdue,
        quarantined,
        damaged: state.reader.damaged(),
        store: store_view(state, free),
        sources,
        consumers: state.consumer_views(consumers, bounds),
    })
}

fn store_view(state: &ApiState, free_bytes: i64) -> StoreView {
    let path = state.reader.path();
    let bytes = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        std::fs::metadata(name).map_or(0, |meta| meta.len())
    };
    StoreView {
        path: path.display().to_string(),
        bytes: bytes(""),
        free_bytes,
        wal_bytes: bytes("-wal"),
    }
}

fn key(source: &str, run_id: &str) -> Result<RunKey, Problem> {
    Ok(RunKey {
        source: SourceName::new(source).map_err(|error| bad_request(error.to_string()))?,
        run_id: RunId::new(run_id).map_err(|error| bad_request(error.to_string()))?,
    })
}

fn cannot_poll(message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::CONFLICT, "cannot_poll", message)
}

impl ApiState {
    fn member(&self, name: &str) -> Result<Arc<Source>, Problem> {
        let found = self.sources.borrow().named(name).cloned();
        let message = || format!("no source named {name:?} is configured");
        found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "unknown_source", message()))
    }

    /// The client of a source that has an API key.
    fn client(&self, name: &str) -> Result<Arc<SourceClient>, Problem> {
        let member = self.member(name)?;
        if member.config.api_key.is_none() {
            return Err(cannot_poll(format!(
                "{name} has no api_key in the configuration, so the provider cannot be polled"
            )));
        }
        let found = self.clients.borrow().get(&member.id).cloned();
        found.ok_or_else(|| cannot_poll("the source is being reloaded; try again"))
    }

    async fn run(&self, key: &RunKey) -> Result<RunRow, Problem> {
        let wanted = key.clone();
        let found = self.look(move |view| view.run(&wanted)).await?;
        let message =
            || format!("no run {key} is known; track it with POST /v1/runs or `settled track`");
        found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "unknown_run", message()))
    }

    fn views(&self, rows: &[RunRow]) -> Vec<RunView> {
        rows.iter()
            .map(|row| RunView::of(row, self.reader.epoch()))
            .collect()
    }

    async fn with_timeline(&self, row: &RunRow) -> HandlerResult {
        let id = row.row;
        let lines = self.look(move |view| view.timeline(id)).await?;
        let timeline: Vec<_> = lines
            .into_iter()
            .map(|line| TimelineLine::of(line, self.reader.epoch()))
            .collect();
        let run = RunView::of(row, self.reader.epoch());
        Ok(server::json(StatusCode::OK, &RunDetail { run, timeline }))
    }

    /// Verifies and processes the signed payload of a provider's answer, as a report of its own.
    async fn replay(
        &self,
        member: &Source,
        body: Vec<u8>,
        headers: Headers,
    ) -> Result<(Verdict, Processed), Problem> {
        let now = (self.clock)();
        let source = &member.config;
        let delivery = Delivery {
            headers: &headers,
            body: &body,
            truncated: false,
            path_token: None,
        };
        let proof = source.provider.verify(&delivery, &source.keyring, now);
        let (verdict, secret) = (proof.verdict(), proof.secret().cloned());
        let meta = WebhookMeta {
            headers,
            path_token: None,
            verdict,
            secret,
            truncated: false,
            peer: None,
        };
        let report = Report {
            source: member.id,
            at: now,
            meta: Meta::Replay(meta),
            body,
        };
        Ok((verdict, self.ledger.process(report).await?))
    }
}
