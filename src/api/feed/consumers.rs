//! Named consumers: readers whose position the ledger keeps.
//!
//! A name has one reader. A second reader takes over at once: the ledger gives it a new generation,
//! and refuses acknowledgements under the old one. A reader that sends its generation when it reads
//! again stays the reader, which costs no write.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::types::{
    ConsumerDeleted, ConsumerList, ConsumerView, CreateConsumerRequest, DropParkedReply,
    ParkRequest, ParkedList, ParkedView, PositionReply, RetryParkedReply,
};
use super::super::{
    ApiState, HandlerResult, Params, Segments, Shared, bad_request, body_json, flag,
};
use super::lease::{Cause, ReaderLease};
use super::query::{self, cursor_expired, epoch_mismatch, position};
use super::stream::{ReadOptions, Reader};
use crate::ledger::commands::{
    Ack, CreateConsumer, Created, DeleteConsumer, Deleted, DropParked, Moved, OpenConsumer, Park,
    RetryParked, Seek,
};
use crate::ledger::{Consumer, FeedBounds, LedgerError, ParkedRow, View};
use crate::limits;
use crate::model::is_name;
use crate::model::record::Cursor;
use crate::server::{self, Peer, Problem};

/// `PUT /v1/consumers/{name}`: 201 if it is new, 200 if it exists and is the same.
pub async fn create(
    State(state): Shared,
    Segments(name): Segments<String>,
    peer: Option<Extension<Arc<Peer>>>,
    body: Body,
) -> HandlerResult {
    if !is_name(&name) {
        let message =
            "a consumer's name has 1 to 64 of a-z 0-9 . _ -, and begins with a letter or digit";
        return Err(bad_request(message));
    }
    let wanted: CreateConsumerRequest = body_json(body).await?;
    let filter = query::filter(&wanted.filter)?;
    let window = wanted.window.unwrap_or(limits::WINDOW);
    if window > limits::WINDOW_MAX {
        return Err(bad_request(format!(
            "window is 0 (none) to {}",
            limits::WINDOW_MAX
        )));
    }
    let bounds = state.bounds().await?;
    let start = match position(
        "start",
        wanted.start.as_deref(),
        state.reader.epoch(),
        bounds,
    ) {
        Ok(start) => start,
        // The start counts at creation only: an expired one does not matter to a consumer that exists.
        Err(problem) => state.consumer(&name).await.map_err(|_| problem)?.acked,
    };
    let create = CreateConsumer {
        name: name.clone(),
        acked: start,
        filter: filter.clone(),
        window,
        now: (state.clock)(),
    };
    let Created { consumer, new } = state.ledger.execute(create).await?;
    if consumer.filter != filter || consumer.window != window {
        let message = format!(
            "the consumer {name} exists with another filter or window, which are fixed, because it has \
             passed the records that a wider filter would want; use another name, or delete it first"
        );
        let problem = Problem::new(StatusCode::CONFLICT, "consumer_exists", message);
        let existing = serde_json::to_value(&consumer.filter).unwrap_or_default();
        return Err(problem
            .with("filter", existing)
            .with("window", consumer.window));
    }
    if new {
        let (uid, pid) = process_of(peer.as_ref());
        tracing::info!(consumer = name, uid, pid, "consumer created");
    }
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(server::json(status, &state.describe(consumer).await?))
}

/// `GET /v1/consumers`: every named consumer.
pub async fn list(State(state): Shared) -> HandlerResult {
    let (bounds, consumers) = state.look(|view| Ok((view.bounds()?, all(view)?))).await?;
    let consumers = state.consumer_views(consumers, bounds);
    Ok(server::json(StatusCode::OK, &ConsumerList { consumers }))
}

/// Every consumer, with the number of its parked events.
pub(in crate::api) fn all(view: &View<'_>) -> Result<Vec<(Consumer, i64)>, LedgerError> {
    let consumers = view.consumers()?.into_iter();
    let counted = |consumer: Consumer| {
        view.parked_count(&consumer.name)
            .map(|parked| (consumer, parked))
    };
    consumers.map(counted).collect()
}

/// `GET /v1/consumers/{name}`: its position and its options.
pub async fn show(State(state): Shared, Segments(name): Segments<String>) -> HandlerResult {
    let consumer = state.consumer(&name).await?;
    Ok(server::json(
        StatusCode::OK,
        &state.describe(consumer).await?,
    ))
}

/// `DELETE /v1/consumers/{name}`: deletes its parked events too, and ends its stream.
pub async fn delete(
    State(state): Shared,
    Segments(name): Segments<String>,
    peer: Option<Extension<Arc<Peer>>>,
) -> HandlerResult {
    let delete = DeleteConsumer { name: name.clone() };
    let deleted = state.ledger.execute(delete).await?;
    let Deleted { parked, generation } = deleted.ok_or_else(|| unknown(&name))?;
    state.consumers.supersede(&name, generation, Cause::Deleted);
    let (uid, pid) = process_of(peer.as_ref());
    tracing::info!(consumer = name, parked, uid, pid, "consumer deleted");
    Ok(server::json(
        StatusCode::OK,
        &ConsumerDeleted {
            deleted: name,
            parked_dropped: parked,
        },
    ))
}

/// The query of `GET /v1/consumers/{name}/events`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reading {
    follow: Option<String>,
    limit: Option<u64>,
    wait: Option<u64>,
    heartbeat: Option<u64>,
    r#gen: Option<i64>,
}

/// `GET /v1/consumers/{name}/events`: a stream after the consumer's position.
pub async fn read(
    State(state): Shared,
    Segments(name): Segments<String>,
    peer: Option<Extension<Arc<Peer>>>,
    headers: HeaderMap,
    Params(reading): Params<Reading>,
) -> Result<Response, Problem> {
    let slot = state.slot()?;
    let options = ReadOptions::of(
        reading.follow.as_deref(),
        reading.limit,
        reading.wait,
        reading.heartbeat,
        &headers,
    )?;
    // Subscribe before the take-over is written, so that the stream cannot miss the next one.
    let events = state.consumers.listen(&name);
    let consumer = match reading.r#gen {
        Some(generation) => state
            .consumer(&name)
            .await
            .and_then(|consumer| same_reader(consumer, generation))?,
        None => state.take_over(&name, peer.as_ref()).await?,
    };
    let bounds = state.bounds().await?;
    if consumer.acked < bounds.trimmed {
        return Err(cursor_expired(state.reader.epoch(), bounds));
    }
    let Consumer {
        name,
        acked,
        filter,
        window,
        generation,
        ..
    } = consumer;
    let lease = ReaderLease {
        name,
        generation,
        window,
        events,
        out: VecDeque::new(),
        paused: false,
        moved: true,
    };
    Ok(Reader::new(state, acked, filter, options, Some(lease), slot).respond())
}

fn same_reader(consumer: Consumer, generation: i64) -> Result<Consumer, Problem> {
    if consumer.generation == generation {
        Ok(consumer)
    } else {
        Err(stale(consumer.generation))
    }
}

/// The query of an acknowledgement: a position, and the number of the reader that sends it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mark {
    cursor: Option<String>,
    r#gen: Option<i64>,
}

/// `POST /v1/consumers/{name}/ack?cursor=[&gen=]`: on disk before its 200 (invariant 9).
pub async fn ack(
    State(state): Shared,
    Segments(name): Segments<String>,
    Params(mark): Params<Mark>,
) -> HandlerResult {
    let seq = state.seq("cursor", mark.cursor.as_deref()).await?;
    let ack = Ack {
        name: name.clone(),
        seq,
        generation: mark.r#gen,
        now: (state.clock)(),
    };
    let moved = state.ledger.execute(ack).await?;
    state.moved(&name, moved)
}

/// The query of `POST /v1/consumers/{name}/seek`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    to: Option<String>,
}

/// `POST /v1/consumers/{name}/seek?to=`: moves the position, back or over records that retention has removed.
pub async fn seek(
    State(state): Shared,
    Segments(name): Segments<String>,
    peer: Option<Extension<Arc<Peer>>>,
    Params(target): Params<Target>,
) -> HandlerResult {
    let to = target
        .to
        .ok_or_else(|| bad_request("say where: to=earliest, to=latest or to=CURSOR"))?;
    let bounds = state.bounds().await?;
    let seq = position("to", Some(&to), state.reader.epoch(), bounds)?;
    let seek = Seek {
        name: name.clone(),
        seq,
        now: (state.clock)(),
    };
    let moved = state.ledger.execute(seek).await?;
    let consumer = moved.ok_or_else(|| unknown(&name))?;
    state
        .consumers
        .supersede(&name, consumer.generation, Cause::Seek);
    let (uid, pid) = process_of(peer.as_ref());
    tracing::info!(consumer = name, to = seq, uid, pid, "consumer moved");
    Ok(server::json(
        StatusCode::OK,
        &state.describe(consumer).await?,
    ))
}

/// `POST /v1/consumers/{name}/parked?cursor=[&gen=]`: parks an event and acknowledges it, in one
/// transaction.
pub async fn park(
    State(state): Shared,
    Segments(name): Segments<String>,
    Params(mark): Params<Mark>,
    body: Body,
) -> HandlerResult {
    let seq = state.seq("cursor", mark.cursor.as_deref()).await?;
    let ParkRequest {
        attempts,
        mut error,
    } = body_json(body).await?;
    let kept = (0..=limits::PARKED_ERROR_BYTES)
        .rev()
        .find(|at| error.is_char_boundary(*at))
        .unwrap_or(0);
    error.truncate(kept);
    let park = Park {
        name: name.clone(),
        seq,
        generation: mark.r#gen,
        attempts,
        error,
        parked_max: limits::PARKED_MAX,
        now: (state.clock)(),
    };
    let moved = state.ledger.execute(park).await?;
    if matches!(moved, Moved::Done { .. }) {
        tracing::warn!(consumer = name, seq, attempts, "an event is parked");
    }
    state.moved(&name, moved)
}

/// The query of `GET /v1/consumers/{name}/parked`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListParked {
    retry: Option<String>,
    after: Option<i64>,
    limit: Option<u32>,
}

/// `GET /v1/consumers/{name}/parked`: oldest first, and `next` for `after`.
pub async fn parked(
    State(state): Shared,
    Segments(name): Segments<String>,
    Params(list): Params<ListParked>,
) -> HandlerResult {
    state.consumer(&name).await?;
    let after = list.after.unwrap_or(0);
    let due = flag("retry", list.retry.as_deref())?;
    let limit = list.limit.unwrap_or(100).clamp(1, 1_000);
    let rows = state
        .look(move |view| view.parked(&name, due, after, limit))
        .await?;
    let next = rows
        .last()
        .filter(|_| rows.len() == limit as usize)
        .map(|row| row.seq);
    let views = rows
        .into_iter()
        .map(|row| state.parked_view(row))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(server::json(
        StatusCode::OK,
        &ParkedList {
            parked: views,
            next,
        },
    ))
}

/// The query that names one parked event, or all of a consumer.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParkedQuery {
    cursor: Option<String>,
    all: Option<String>,
}

/// `POST /v1/consumers/{name}/parked/retry?cursor=` or `?all=1`: marks events, which
/// `settled consume` then tries again.
pub async fn retry_parked(
    State(state): Shared,
    Segments(name): Segments<String>,
    Params(which): Params<ParkedQuery>,
) -> HandlerResult {
    let seq = state.which(&name, &which).await?;
    let retry = RetryParked {
        name: name.clone(),
        seq,
    };
    let count = state.ledger.execute(retry).await?;
    at_least_one(count, &name)?;
    Ok(server::json(
        StatusCode::OK,
        &RetryParkedReply { to_retry: count },
    ))
}

/// `DELETE /v1/consumers/{name}/parked?cursor=` or `?all=1`: forgets events that are done,
/// or not worth doing.
pub async fn drop_parked(
    State(state): Shared,
    Segments(name): Segments<String>,
    Params(which): Params<ParkedQuery>,
) -> HandlerResult {
    let seq = state.which(&name, &which).await?;
    let drop = DropParked {
        name: name.clone(),
        seq,
    };
    let count = state.ledger.execute(drop).await?;
    at_least_one(count, &name)?;
    Ok(server::json(
        StatusCode::OK,
        &DropParkedReply { dropped: count },
    ))
}

fn at_least_one(count: usize, name: &str) -> Result<(), Problem> {
    let nothing = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "not_parked",
            format!("{name} has no such event parked"),
        )
    };
    if count == 0 { Err(nothing()) } else { Ok(()) }
}

fn unknown(name: &str) -> Problem {
    let message = format!("there is no consumer {name:?}; create it with PUT /v1/consumers/{name}");
    Problem::new(StatusCode::NOT_FOUND, "unknown_consumer", message)
}

fn stale(generation: i64) -> Problem {
    let message =
        "another reader has taken over, or the position was moved; read again to become the reader";
    Problem::new(StatusCode::CONFLICT, "stale_generation", message).with("generation", generation)
}

/// User and process at the other end, for the log.
fn process_of(peer: Option<&Extension<Arc<Peer>>>) -> (Option<u32>, Option<i32>) {
    match peer.map(|Extension(peer)| &**peer) {
        Some(Peer::Unix { uid, pid }) => (*uid, *pid),
        _ => (None, None),
    }
}

impl ApiState {
    async fn consumer(&self, name: &str) -> Result<Consumer, Problem> {
        let label = name.to_owned();
        self.look(move |view| view.consumer(&label))
            .await?
            .ok_or_else(|| unknown(name))
    }

    /// Makes the caller the reader of a consumer.
    async fn take_over(
        &self,
        name: &str,
        peer: Option<&Extension<Arc<Peer>>>,
    ) -> Result<Consumer, Problem> {
        let open = OpenConsumer {
            name: name.to_owned(),
            now: (self.clock)(),
        };
        let opened = self.ledger.execute(open).await?;
        let consumer = opened.ok_or_else(|| unknown(name))?;
        self.consumers
            .supersede(name, consumer.generation, Cause::Reader);
        let (uid, pid) = process_of(peer);
        tracing::info!(
            consumer = name,
            generation = consumer.generation,
            uid,
            pid,
            "consumer opened"
        );
        Ok(consumer)
    }

    async fn describe(&self, consumer: Consumer) -> Result<ConsumerView, Problem> {
        let name = consumer.name.clone();
        let (bounds, parked) = self
            .look(move |view| Ok((view.bounds()?, view.parked_count(&name)?)))
            .await?;
        Ok(self.view(consumer, bounds, parked))
    }

    pub(in crate::api) fn consumer_views(
        &self,
        consumers: Vec<(Consumer, i64)>,
        bounds: FeedBounds,
    ) -> Vec<ConsumerView> {
        consumers
            .into_iter()
            .map(|(consumer, parked)| self.view(consumer, bounds, parked))
            .collect()
    }

    fn view(&self, consumer: Consumer, bounds: FeedBounds, parked: i64) -> ConsumerView {
        let FeedBounds { trimmed, head } = bounds;
        ConsumerView {
            acked: self.cursor(consumer.acked),
            head: self.cursor(head),
            lag: head - consumer.acked.max(trimmed),
            expired: consumer.acked < trimmed,
            window: consumer.window,
            generation: consumer.generation,
            connected: self.consumers.connected(&consumer.name),
            parked,
            created_at: consumer.created_at.rfc3339(),
            seen_at: consumer.seen_at.rfc3339(),
            filter: consumer.filter,
            name: consumer.name,
        }
    }

    /// The seq of a cursor of this feed.
    async fn seq(&self, name: &str, text: Option<&str>) -> Result<i64, Problem> {
        let text = text.ok_or_else(|| bad_request(format!("say {name}=CURSOR")))?;
        let cursor = query::cursor(name, text)?;
        if cursor.epoch != self.reader.epoch() {
            return Err(epoch_mismatch(self.reader.epoch(), self.bounds().await?));
        }
        Ok(cursor.seq)
    }

    async fn which(&self, name: &str, which: &ParkedQuery) -> Result<Option<i64>, Problem> {
        self.consumer(name).await?;
        match (which.cursor.as_deref(), flag("all", which.all.as_deref())?) {
            (Some(cursor), false) => Ok(Some(self.seq("cursor", Some(cursor)).await?)),
            (None, true) => Ok(None),
            _ => Err(bad_request("say which: cursor=CURSOR, or all=1")),
        }
    }

    /// The reply to a request that may have moved the position.
    fn moved(&self, name: &str, moved: Moved) -> HandlerResult {
        match moved {
            Moved::Done { acked, head } => {
                self.consumers.acked(name);
                let reply = PositionReply {
                    acked: self.cursor(acked),
                    lag: head - acked,
                };
                Ok(server::json(StatusCode::OK, &reply))
            }
            Moved::Unknown => Err(unknown(name)),
            Moved::Stale(generation) => Err(stale(generation)),
            Moved::Beyond(head) => {
                let message = "no record has this cursor yet; acknowledge what you have read";
                let problem = Problem::new(StatusCode::CONFLICT, "ack_beyond_head", message);
                Err(problem.with("head", self.cursor(head)))
            }
            Moved::Absent => {
                let message = "there is no record at this cursor; retention may have removed it";
                Err(Problem::new(StatusCode::NOT_FOUND, "not_found", message))
            }
            Moved::Full => {
                let message = format!(
                    "{name} has {} events parked, which is the most; retry or drop some first",
                    limits::PARKED_MAX
                );
                Err(Problem::new(StatusCode::CONFLICT, "parking_full", message))
            }
        }
    }

    fn parked_view(&self, row: ParkedRow) -> Result<ParkedView, Problem> {
        let unreadable = |_| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "bug",
                "a parked event is not JSON",
            )
        };
        Ok(ParkedView {
            cursor: self.cursor(row.seq),
            attempts: row.attempts,
            error: row.error,
            at: row.at.rfc3339(),
            retry: row.retry,
            event: RawValue::from_string(row.line).map_err(unreadable)?,
        })
    }

    fn cursor(&self, seq: i64) -> String {
        Cursor {
            epoch: self.reader.epoch().to_owned(),
            seq,
        }
        .to_string()
    }
}
