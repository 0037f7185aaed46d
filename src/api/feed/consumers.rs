//! Named consumers: readers whose position is kept here, in the ledger.
//!
//! One reader per name. A newcomer takes over without waiting for the old one to notice: it gets a
//! new generation, in the ledger, and whatever the old one still says under its own is refused. A
//! reader that says its generation when it reads again goes on as itself, which costs no write.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::super::{
    ApiState, HandlerResult, Params, Segments, Shared, bad_request, body_json, flag,
};
use super::events::{self, EventQuery, cursor_expired, epoch_mismatch, position};
use super::stream::{ReadOptions, ReaderLease, Stream};
use crate::ledger::commands::{
    Ack, CreateConsumer, Created, DeleteConsumer, Deleted, DropParked, Moved, OpenConsumer, Park,
    RetryParked, Seek,
};
use crate::ledger::{Consumer, FeedBounds, Filter, LedgerError, ParkedRow, View};
use crate::limits;
use crate::model::is_name;
use crate::model::record::Cursor;
use crate::server::{self, Peer, Problem};

/// Why a reader is no longer the one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// Another reader came.
    #[default]
    Reader,
    /// The position was put somewhere else.
    Seek,
    /// The consumer is gone.
    Deleted,
}

impl Cause {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Reader => "reader",
            Cause::Seek => "seek",
            Cause::Deleted => "delete",
        }
    }
}

/// What has happened to a consumer, for the stream that reads it. An acknowledgement wakes it and says
/// nothing: the ledger knows the rest.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConsumerEvent {
    /// The newest generation.
    pub generation: i64,
    /// What made it.
    pub cause: Cause,
}

/// The consumers that are being read, by name.
#[derive(Default)]
pub struct Readers {
    by_name: Mutex<HashMap<String, watch::Sender<ConsumerEvent>>>,
}

impl Readers {
    /// News about a consumer from now on.
    fn listen(&self, name: &str) -> watch::Receiver<ConsumerEvent> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.retain(|_, stirs| stirs.receiver_count() > 0);
        by_name.entry(name.to_owned()).or_default().subscribe()
    }

    /// Whether anybody reads it.
    fn connected(&self, name: &str) -> bool {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name
            .get(name)
            .is_some_and(|stirs| stirs.receiver_count() > 0)
    }

    fn supersede(&self, name: &str, generation: i64, cause: Cause) {
        self.tell(name, |event| {
            if generation > event.generation {
                (event.generation, event.cause) = (generation, cause);
            }
        });
    }

    fn acked(&self, name: &str) {
        self.tell(name, |_| ());
    }

    fn tell(&self, name: &str, change: impl FnOnce(&mut ConsumerEvent)) {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stirs) = by_name.get(name) {
            stirs.send_modify(change);
        }
    }
}

/// What a consumer is made of.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Making {
    start: Option<String>,
    filter: EventQuery,
    window: Option<u32>,
}

/// `PUT /v1/consumers/{name}`.
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
    let making: Making = body_json(body).await?;
    let filter = making.filter.filter()?;
    let window = making.window.unwrap_or(limits::WINDOW);
    if window > limits::WINDOW_MAX {
        return Err(bad_request(format!(
            "window is 0 (none) to {}",
            limits::WINDOW_MAX
        )));
    }
    let bounds = state.bounds().await?;
    let start = match position(
        "start",
        making.start.as_deref(),
        state.reader.epoch(),
        bounds,
    ) {
        Ok(start) => start,
        // A start that cannot be had any more does not matter to a consumer that is there already.
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
            "the consumer {name} exists with another filter or window, which are fixed: records it has passed cannot \
             be had back; use another name, or delete it first"
        );
        let problem = Problem::new(StatusCode::CONFLICT, "consumer_exists", message);
        return Err(problem
            .with("filter", json!(consumer.filter))
            .with("window", consumer.window));
    }
    if new {
        let (uid, pid) = who(peer.as_ref());
        tracing::info!(consumer = name, uid, pid, "consumer created");
    }
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(server::json(status, &state.describe(consumer).await?))
}

/// `GET /v1/consumers`.
pub async fn list(State(state): Shared) -> HandlerResult {
    let (bounds, consumers) = state.look(|view| Ok((view.bounds()?, all(view)?))).await?;
    Ok(server::json(
        StatusCode::OK,
        &json!({ "consumers": state.consumer_views(consumers, bounds) }),
    ))
}

/// Every consumer, with how much it has parked.
pub(in crate::api) fn all(view: &View<'_>) -> Result<Vec<(Consumer, i64)>, LedgerError> {
    let consumers = view.consumers()?.into_iter();
    let counted = |consumer: Consumer| {
        view.parked_count(&consumer.name)
            .map(|parked| (consumer, parked))
    };
    consumers.map(counted).collect()
}

/// `GET /v1/consumers/{name}`.
pub async fn show(State(state): Shared, Segments(name): Segments<String>) -> HandlerResult {
    let consumer = state.consumer(&name).await?;
    Ok(server::json(
        StatusCode::OK,
        &state.describe(consumer).await?,
    ))
}

/// `DELETE /v1/consumers/{name}`, with all it has parked.
pub async fn delete(
    State(state): Shared,
    Segments(name): Segments<String>,
    peer: Option<Extension<Arc<Peer>>>,
) -> HandlerResult {
    let delete = DeleteConsumer { name: name.clone() };
    let deleted = state.ledger.execute(delete).await?;
    let Deleted { parked, generation } = deleted.ok_or_else(|| unknown(&name))?;
    state.consumers.supersede(&name, generation, Cause::Deleted);
    let (uid, pid) = who(peer.as_ref());
    tracing::info!(consumer = name, parked, uid, pid, "consumer deleted");
    Ok(server::json(
        StatusCode::OK,
        &json!({ "deleted": name, "parked_dropped": parked }),
    ))
}

/// How a named consumer is read.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reading {
    follow: Option<String>,
    limit: Option<u64>,
    wait: Option<u64>,
    heartbeat: Option<u64>,
    r#gen: Option<i64>,
}

/// `GET /v1/consumers/{name}/events`.
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
    // Listening begins before the take-over is written, so that the next one cannot be missed.
    let stirs = state.consumers.listen(&name);
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
        stirs,
        out: VecDeque::new(),
        told: false,
        moved: true,
    };
    Ok(Stream::new(state, acked, filter, options, Some(lease), slot).respond())
}

fn same_reader(consumer: Consumer, generation: i64) -> Result<Consumer, Problem> {
    if consumer.generation == generation {
        Ok(consumer)
    } else {
        Err(stale(consumer.generation))
    }
}

/// A position, and the reader that says it.
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

/// Where to.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    to: Option<String>,
}

/// `POST /v1/consumers/{name}/seek?to=`: the one way back, and over what is missing.
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
    let (uid, pid) = who(peer.as_ref());
    tracing::info!(consumer = name, to = seq, uid, pid, "consumer moved");
    Ok(server::json(
        StatusCode::OK,
        &state.describe(consumer).await?,
    ))
}

/// How an event failed.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Failed {
    attempts: u32,
    error: String,
}

/// `POST /v1/consumers/{name}/parked?cursor=[&gen=]`: sets an event aside and moves past it, in one
/// transaction.
pub async fn park(
    State(state): Shared,
    Segments(name): Segments<String>,
    Params(mark): Params<Mark>,
    body: Body,
) -> HandlerResult {
    let seq = state.seq("cursor", mark.cursor.as_deref()).await?;
    let Failed {
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

/// Which parked events to list.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListParked {
    retry: Option<String>,
    after: Option<i64>,
    limit: Option<u32>,
}

/// A parked event.
#[derive(Serialize)]
struct ParkedView {
    cursor: String,
    attempts: u32,
    error: String,
    at: String,
    retry: bool,
    event: Box<RawValue>,
}

/// `GET /v1/consumers/{name}/parked`; `next` goes into `after`.
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
        &json!({ "parked": views, "next": next }),
    ))
}

/// One parked event, or all of a consumer.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Which {
    cursor: Option<String>,
    all: Option<String>,
}

/// `POST /v1/consumers/{name}/parked/retry?cursor=` or `?all=1`: polls the consumer to try again.
pub async fn retry_parked(
    State(state): Shared,
    Segments(name): Segments<String>,
    Params(which): Params<Which>,
) -> HandlerResult {
    let seq = state.which(&name, &which).await?;
    let retry = RetryParked {
        name: name.clone(),
        seq,
    };
    let count = state.ledger.execute(retry).await?;
    some(count, &name)?;
    Ok(server::json(StatusCode::OK, &json!({ "to_retry": count })))
}

/// `DELETE /v1/consumers/{name}/parked?cursor=` or `?all=1`: it is done, or not worth doing.
pub async fn drop_parked(
    State(state): Shared,
    Segments(name): Segments<String>,
    Params(which): Params<Which>,
) -> HandlerResult {
    let seq = state.which(&name, &which).await?;
    let drop = DropParked {
        name: name.clone(),
        seq,
    };
    let count = state.ledger.execute(drop).await?;
    some(count, &name)?;
    Ok(server::json(StatusCode::OK, &json!({ "dropped": count })))
}

fn some(count: usize, name: &str) -> Result<(), Problem> {
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

fn who(peer: Option<&Extension<Arc<Peer>>>) -> (Option<u32>, Option<i32>) {
    match peer.map(|Extension(peer)| &**peer) {
        Some(Peer::Unix { uid, pid }) => (*uid, *pid),
        _ => (None, None),
    }
}

/// A consumer as it is shown.
#[derive(Debug, Deserialize, Serialize)]
pub struct ConsumerView {
    /// Its name.
    pub name: String,
    /// Everything up to here is done.
    pub acked: String,
    /// The newest record.
    pub head: String,
    /// Records after its position, whether its filter wants them or not.
    pub lag: i64,
    /// Retention has removed records it had not acknowledged: it has to seek.
    pub expired: bool,
    /// Records that may be out unacknowledged; 0: any number.
    pub window: u32,
    /// What it wants.
    pub filter: Filter,
    /// Of its last reader, seek or creation.
    pub generation: i64,
    /// Somebody is reading it.
    pub connected: bool,
    /// Events it has parked.
    pub parked: i64,
    /// When it was made.
    pub created_at: String,
    /// When it was last opened, acknowledged or moved.
    pub seen_at: String,
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
        let (uid, pid) = who(peer);
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

    /// The number that a cursor of this feed stands for.
    async fn seq(&self, name: &str, text: Option<&str>) -> Result<i64, Problem> {
        let text = text.ok_or_else(|| bad_request(format!("say {name}=CURSOR")))?;
        let cursor = events::cursor(name, text)?;
        if cursor.epoch != self.reader.epoch() {
            return Err(epoch_mismatch(self.reader.epoch(), self.bounds().await?));
        }
        Ok(cursor.seq)
    }

    async fn which(&self, name: &str, which: &Which) -> Result<Option<i64>, Problem> {
        self.consumer(name).await?;
        match (which.cursor.as_deref(), flag("all", which.all.as_deref())?) {
            (Some(cursor), false) => Ok(Some(self.seq("cursor", Some(cursor)).await?)),
            (None, true) => Ok(None),
            _ => Err(bad_request("say which: cursor=CURSOR, or all=1")),
        }
    }

    /// The answer to something that may have moved a position.
    fn moved(&self, name: &str, moved: Moved) -> HandlerResult {
        match moved {
            Moved::Done { acked, head } => {
                self.consumers.acked(name);
                Ok(server::json(
                    StatusCode::OK,
                    &json!({ "acked": self.cursor(acked), "lag": head - acked }),
                ))
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
                    "{name} has {} events parked, which is all there is room for; see to these first",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_reads_any_more_are_forgotten() {
        let readers = Readers::default();
        drop(readers.listen("a"));
        let mut reading = readers.listen("b");
        assert!(readers.connected("b") && !readers.connected("a"));
        assert_eq!(
            readers.by_name.lock().unwrap().keys().collect::<Vec<_>>(),
            ["b"]
        );
        readers.acked("b");
        assert!(
            reading.has_changed().unwrap(),
            "an acknowledgement wakes the reader"
        );
        readers.supersede("b", 2, Cause::Seek);
        readers.supersede("b", 1, Cause::Reader);
        let ConsumerEvent { generation, cause } = *reading.borrow_and_update();
        assert_eq!(
            (generation, cause),
            (2, Cause::Seek),
            "an older generation overtakes nobody"
        );
    }
}
