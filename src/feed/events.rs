//! `GET /v1/events`: the stateless read of the feed, as NDJSON or SSE.
//!
//! A stream holds a position and nothing else. It is woken by the number of the newest record,
//! reads a page of rows from the ledger, closes the snapshot, and sends: a slow reader costs one
//! page, and nothing can be dropped.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use super::{Desk, Params, Shared, bad_request, flag};
use crate::http::Problem;
use crate::limits;
use crate::run::record::{Cursor, RecordType};
use crate::run::{Origin, Outcome};
use crate::store::{FeedBounds, Filter, View};

/// What a reader asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    after: Option<String>,
    follow: Option<String>,
    limit: Option<u64>,
    wait: Option<u64>,
    heartbeat: Option<u64>,
    types: Option<String>,
    source: Option<String>,
    provider: Option<String>,
    outcome: Option<String>,
    origin: Option<String>,
    group: Option<String>,
}

/// Answers `GET /v1/events`.
pub async fn read(
    State(desk): Shared,
    headers: HeaderMap,
    Params(wanted): Params<Wanted>,
) -> Result<Response, Problem> {
    let slot = desk.streams.clone().try_acquire_owned().map_err(|_| {
        let message = format!("{} streams are open, more are not served; close one", limits::STREAMS_MAX);
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", message)
    })?;
    let filter = wanted.filter()?;
    let follow = flag("follow", wanted.follow.as_deref())?;
    let heartbeat = Duration::from_secs(wanted.heartbeat.unwrap_or(limits::HEARTBEAT.as_secs()).clamp(1, 60));
    let wait = Duration::from_secs(wanted.wait.unwrap_or(0)).min(limits::WAIT_MAX);
    let bounds = desk.look(|view| view.bounds()).await?;
    let resumed = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let start = position(resumed.or(wanted.after.as_deref()), desk.reader.epoch(), bounds)?;
    let sse = headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"));
    let stream = Stream {
        position: start,
        marked: start,
        left: wanted.limit.unwrap_or(u64::MAX),
        sent: 0,
        phase: Phase::Hello,
        deadline: Instant::now() + wait,
        head: desk.ledger.head(),
        stop: desk.stop.clone(),
        desk,
        filter,
        follow,
        heartbeat,
        sse,
        _slot: slot,
    };
    Ok(respond(stream))
}

fn respond(stream: Stream) -> Response {
    let content = if stream.sse { "text/event-stream" } else { "application/x-ndjson" };
    let chunks = futures_util::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<_, Infallible>(chunk), stream))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The position that `after` names.
fn position(after: Option<&str>, epoch: &str, bounds: FeedBounds) -> Result<i64, Problem> {
    let text = match after.unwrap_or("earliest") {
        "earliest" => return Ok(bounds.trimmed),
        "latest" => return Ok(bounds.head),
        text => text,
    };
    let named = Cursor::parse(text).ok_or_else(|| bad_request("after is earliest, latest or a cursor of this feed"))?;
    let earliest = Cursor { epoch: epoch.to_owned(), seq: bounds.trimmed }.to_string();
    if named.epoch != epoch || named.seq > bounds.head {
        let message = "the cursor is from another life of this database (it was restored or replaced); \
                       start again from the earliest cursor and skip the ids you have seen";
        let problem = Problem::new(StatusCode::CONFLICT, "epoch_mismatch", message);
        return Err(problem.with("epoch", epoch).with("earliest", earliest));
    }
    if named.seq < bounds.trimmed {
        let message = "records after this cursor were removed by retention; start again from the earliest cursor";
        return Err(Problem::new(StatusCode::GONE, "cursor_expired", message).with("earliest", earliest));
    }
    Ok(named.seq)
}

impl Wanted {
    fn filter(&self) -> Result<Filter, Problem> {
        let types = match &self.types {
            None => Filter::default().types,
            Some(text) => each(text).map(record_type).collect::<Result<_, _>>()?,
        };
        Ok(Filter {
            types,
            source: owned(self.source.as_ref()),
            provider: owned(self.provider.as_ref()),
            outcome: words(self.outcome.as_ref(), "outcome", Outcome::from_word)?,
            origin: words(self.origin.as_ref(), "origin", Origin::from_word)?,
            group: owned(self.group.as_ref()),
        })
    }
}

fn each(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn owned(text: Option<&String>) -> Vec<String> {
    text.map(|text| each(text).map(str::to_owned).collect()).unwrap_or_default()
}

fn words<T>(text: Option<&String>, name: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Problem> {
    let word = |word: &str| read(word).ok_or_else(|| bad_request(format!("{word:?} is no {name}")));
    text.map_or(Ok(Vec::new()), |text| each(text).map(word).collect())
}

/// `completion` or `settled.run.completion`.
fn record_type(word: &str) -> Result<RecordType, Problem> {
    let full = format!("settled.run.{}", word.strip_prefix("settled.run.").unwrap_or(word));
    let wrong = || bad_request(format!("{word:?} is no type; there are completion, amendment and status"));
    RecordType::from_word(&full).ok_or_else(wrong)
}

/// One reader.
struct Stream {
    desk: Arc<Desk>,
    filter: Filter,
    /// Everything up to here has been sent or does not match.
    position: i64,
    /// The last position the reader was told.
    marked: i64,
    /// Records that may still be sent.
    left: u64,
    sent: u64,
    follow: bool,
    heartbeat: Duration,
    /// Until when a reader that does not follow waits for a first record.
    deadline: Instant,
    sse: bool,
    phase: Phase,
    head: watch::Receiver<i64>,
    stop: watch::Receiver<bool>,
    _slot: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Hello,
    Reading,
    Done,
}

impl Stream {
    /// The next bytes to send; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            Phase::Hello => {
                self.phase = Phase::Reading;
                Some(self.hello())
            }
            Phase::Reading => Some(self.records_or_mark().await),
            Phase::Done => None,
        }
    }

    /// Records if there are any, else a bookmark or the end.
    async fn records_or_mark(&mut self) -> Bytes {
        loop {
            let head = *self.head.borrow_and_update();
            if self.left == 0 || *self.stop.borrow() {
                return self.end(self.position < head);
            }
            if self.position < head {
                match self.page(head).await {
                    Ok(lines) if !lines.is_empty() => return lines,
                    Ok(_) if self.position - self.marked >= limits::BOOKMARK_ROWS => return self.bookmark(),
                    Ok(_) => continue,
                    Err(problem) => return self.error(&problem),
                }
            }
            if !self.follow && (self.sent > 0 || Instant::now() >= self.deadline) {
                return self.end(false);
            }
            let until = if self.follow { Instant::now() + self.heartbeat } else { self.deadline };
            let silent = tokio::select! {
                woken = timeout_at(until, self.head.changed()) => woken.is_err(),
                _ = self.stop.wait_for(|stop| *stop) => false,
            };
            if silent && self.follow {
                return self.bookmark();
            }
        }
    }

    /// The next page of matching records up to `head`, and the position after it.
    async fn page(&mut self, head: i64) -> Result<Bytes, Problem> {
        let (after, filter) = (self.position, self.filter.clone());
        let rows = usize::try_from(self.left).unwrap_or(usize::MAX).min(limits::PAGE_ROWS);
        let look = move |view: &View<'_>| view.records(after, head, &filter, rows, limits::PAGE_SCAN_ROWS);
        let (records, position) = self.desk.look(look).await?;
        self.position = position;
        self.left -= records.len() as u64;
        self.sent += records.len() as u64;
        if let Some(last) = records.last() {
            self.marked = last.seq;
        }
        let mut lines = String::with_capacity(records.iter().map(|record| record.line.len() + 1).sum());
        for record in &records {
            self.write(&mut lines, record.record_type.word(), &self.cursor(record.seq), &record.line);
        }
        Ok(lines.into())
    }

    fn hello(&mut self) -> Bytes {
        let head = *self.head.borrow();
        let data = serde_json::json!({
            "protocol": 1,
            "epoch": self.desk.reader.epoch(),
            "start": self.cursor(self.position),
            "head": self.cursor(head.max(self.position)),
            "follow": self.follow,
            "heartbeat": self.heartbeat.as_secs(),
            "filter": self.filter,
        });
        self.own("hello", &data)
    }

    fn bookmark(&mut self) -> Bytes {
        self.own("bookmark", &serde_json::json!({}))
    }

    fn end(&mut self, more: bool) -> Bytes {
        self.phase = Phase::Done;
        self.own("end", &serde_json::json!({ "more": more }))
    }

    fn error(&mut self, problem: &Problem) -> Bytes {
        self.phase = Phase::Done;
        self.own("error", &serde_json::json!({ "code": problem.code, "message": problem.message }))
    }

    /// A line of the stream's own, at the present position.
    fn own(&mut self, kind: &str, data: &serde_json::Value) -> Bytes {
        self.marked = self.position;
        let (kind, cursor) = (format!("settled.feed.{kind}"), self.cursor(self.position));
        let line = serde_json::json!({
            "specversion": "1.0",
            "id": format!("{kind}:{cursor}"),
            "source": "/settled",
            "type": kind,
            "time": (self.desk.clock)().rfc3339(),
            "datacontenttype": "application/json",
            "cursor": cursor,
            "data": data,
        });
        let mut text = String::new();
        self.write(&mut text, &kind, &cursor, &line.to_string());
        text.into()
    }

    fn write(&self, out: &mut String, kind: &str, cursor: &str, line: &str) {
        if self.sse {
            for part in ["id: ", cursor, "\nevent: ", kind, "\ndata: ", line, "\n\n"] {
                out.push_str(part);
            }
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }

    fn cursor(&self, seq: i64) -> String {
        Cursor { epoch: self.desk.reader.epoch().to_owned(), seq }.to_string()
    }
}
