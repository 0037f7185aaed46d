//! One reader of the feed, anonymous or named, as NDJSON or SSE.
//!
//! A stream holds a position and nothing else. It is woken by the number of the newest record,
//! reads a page of rows from the ledger, closes the snapshot, and sends: a slow reader costs one
//! page, nothing can be dropped, and nothing is held open in the database while anybody waits.
//!
//! A named reader has a [`ReaderLease`] beside it: the generation under which it reads, and the records
//! that are out unacknowledged.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep, sleep};

use super::super::{ApiState, flag};
use super::consumers::{Cause, ConsumerEvent};
use super::events::cursor_expired;
use super::page_cache::{Page, Want};
use crate::ledger::Filter;
use crate::limits;
use crate::model::record::Cursor;
use crate::server::Problem;

/// How a reader wants to be served.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    follow: bool,
    limit: u64,
    wait: Duration,
    heartbeat: Duration,
    sse: bool,
}

impl ReadOptions {
    /// Out of a request.
    pub fn of(
        follow: Option<&str>,
        limit: Option<u64>,
        wait: Option<u64>,
        heartbeat: Option<u64>,
        headers: &HeaderMap,
    ) -> Result<ReadOptions, Problem> {
        let accepts = |accept: &HeaderValue| {
            accept
                .to_str()
                .is_ok_and(|text| text.contains("text/event-stream"))
        };
        Ok(ReadOptions {
            follow: flag("follow", follow)?,
            limit: limit.unwrap_or(u64::MAX),
            wait: Duration::from_secs(wait.unwrap_or(0)).min(limits::WAIT_MAX),
            heartbeat: Duration::from_secs(
                heartbeat
                    .unwrap_or(limits::HEARTBEAT.as_secs())
                    .clamp(1, 60),
            ),
            sse: headers.get_all(ACCEPT).iter().any(accepts),
        })
    }
}

/// What a named reader holds.
pub struct ReaderLease {
    /// Whose position it is.
    pub name: String,
    /// Under which number it reads.
    pub generation: i64,
    /// Records that may be out unacknowledged; 0: any number.
    pub window: u32,
    /// News about the consumer.
    pub stirs: watch::Receiver<ConsumerEvent>,
    /// Seqs of the records that are out.
    pub out: VecDeque<i64>,
    /// The reader was told that its window is full, and half of it has not been free since.
    pub told: bool,
    /// The consumer's position may have moved since it was last looked at.
    pub moved: bool,
}

/// One reader.
pub struct Stream {
    state: Arc<ApiState>,
    filter: Filter,
    options: ReadOptions,
    lease: Option<ReaderLease>,
    /// Everything up to here has been sent or does not match.
    position: i64,
    /// The last position the reader was told.
    marked: i64,
    /// When it was last told anything.
    spoke_at: Instant,
    /// Records that may still be sent.
    left: u64,
    sent: u64,
    /// Until when a reader that does not follow waits for a first record.
    deadline: Instant,
    phase: Phase,
    /// Rings when it is time to look again, or before.
    timer: Pin<Box<Sleep>>,
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
    /// A reader of what comes after `start`.
    pub fn new(
        state: Arc<ApiState>,
        start: i64,
        filter: Filter,
        options: ReadOptions,
        lease: Option<ReaderLease>,
        slot: OwnedSemaphorePermit,
    ) -> Stream {
        Stream {
            position: start,
            marked: start,
            spoke_at: Instant::now(),
            left: options.limit,
            sent: 0,
            deadline: Instant::now() + options.wait,
            phase: Phase::Hello,
            timer: Box::pin(sleep(Duration::ZERO)),
            head: state.ledger.head(),
            stop: state.stop.clone(),
            state,
            filter,
            options,
            lease,
            _slot: slot,
        }
    }

    /// The response whose body this is.
    pub fn respond(self) -> Response {
        let content = if self.options.sse {
            "text/event-stream"
        } else {
            "application/x-ndjson"
        };
        let chunks = futures_util::stream::unfold(self, |mut stream| async move {
            let chunk = stream.next().await?;
            stream.spoke_at = Instant::now();
            Some((Ok::<_, Infallible>(chunk), stream))
        });
        let mut response = Response::new(Body::from_stream(chunks));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content));
        response
            .headers_mut()
            .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// The next bytes to send; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            Phase::Hello => {
                self.phase = Phase::Reading;
                Some(self.hello())
            }
            Phase::Reading => Some(
                self.read()
                    .await
                    .unwrap_or_else(|problem| self.error(&problem)),
            ),
            Phase::Done => None,
        }
    }

    /// Records if there are any, else a line of the stream's own.
    async fn read(&mut self) -> Result<Bytes, Problem> {
        loop {
            if let Some(last) = self.overtaken() {
                return last;
            }
            let head = *self.head.borrow_and_update();
            if self.left == 0 || *self.stop.borrow() {
                return Ok(self.end(self.position < head));
            }
            let room = self.room().await?;
            if self.position < head && room > 0 {
                let lines = self.page(head, room).await?;
                if !lines.is_empty() {
                    return Ok(lines);
                }
                if self.position - self.marked >= limits::BOOKMARK_ROWS {
                    return Ok(self.bookmark());
                }
                continue;
            }
            if !self.options.follow && (self.sent > 0 || Instant::now() >= self.deadline) {
                return Ok(self.end(self.position < head));
            }
            if let Some(paused) = self.paused(room == 0 && self.position < head) {
                return Ok(paused);
            }
            if Instant::now() >= self.spoke_at + self.options.heartbeat {
                return Ok(self.bookmark());
            }
            self.wait().await;
        }
    }

    /// Until something may have changed, or it is time for a sign of life. These are needed in both
    /// directions: with half-closed clients served, a dead one is noticed only by writing to it.
    async fn wait(&mut self) {
        let heartbeat = self.spoke_at + self.options.heartbeat;
        let until = if self.options.follow {
            heartbeat
        } else {
            heartbeat.min(self.deadline)
        };
        // Every record puts the sign of life off, and nothing brings it forward. An timer that rings too
        // early costs one look; one set anew for every record would cost as much as sending it.
        if self.timer.is_elapsed() {
            self.timer.as_mut().reset(until);
        }
        let stirred = async {
            match &mut self.lease {
                Some(lease) => lease.moved |= lease.stirs.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut self.timer => {}
            _ = self.head.changed() => {}
            _ = self.stop.wait_for(|stop| *stop) => {}
            () = stirred => {}
        }
    }

    /// The last line, once somebody else has the consumer or nobody can.
    fn overtaken(&mut self) -> Option<Result<Bytes, Problem>> {
        let lease = self.lease.as_ref()?;
        let ConsumerEvent { generation, cause } = *lease.stirs.borrow();
        if generation <= lease.generation {
            return None;
        }
        if cause == Cause::Deleted {
            let message = format!("the consumer {} was deleted", lease.name);
            return Some(Err(Problem::new(
                StatusCode::GONE,
                "consumer_deleted",
                message,
            )));
        }
        self.phase = Phase::Done;
        let data = json!({ "consumer": lease.name, "by": cause.word(), "generation": generation });
        Some(Ok(self.own("superseded", &data, false)))
    }

    /// How many records may be sent before the reader has to acknowledge some.
    async fn room(&mut self) -> Result<u64, Problem> {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.window > 0) else {
            return Ok(u64::MAX);
        };
        let window = lease.window as usize;
        if lease.out.len() >= window && (lease.moved || lease.stirs.has_changed().unwrap_or(false))
        {
            lease.stirs.borrow_and_update();
            lease.moved = false;
            let name = lease.name.clone();
            if let Some(consumer) = self.state.look(move |view| view.consumer(&name)).await? {
                lease
                    .out
                    .drain(..lease.out.partition_point(|seq| *seq <= consumer.acked));
            }
        }
        lease.told &= lease.out.len() * 2 > window;
        Ok(window.saturating_sub(lease.out.len()) as u64)
    }

    /// Says once that the window is full, until half of it has been free again.
    fn paused(&mut self, full: bool) -> Option<Bytes> {
        let lease = self.lease.as_mut().filter(|lease| full && !lease.told)?;
        lease.told = true;
        let data = json!({ "consumer": lease.name, "unacknowledged": lease.out.len(), "window": lease.window });
        Some(self.own("paused", &data, false))
    }

    /// The next page of matching records up to `head`, and the position after it.
    async fn page(&mut self, head: i64, room: u64) -> Result<Bytes, Problem> {
        let (after, filter) = (self.position, self.filter.clone());
        let rows = usize::try_from(self.left.min(room))
            .unwrap_or(usize::MAX)
            .min(limits::PAGE_ROWS);
        let page = self
            .state
            .page(Want {
                after,
                head,
                filter,
                rows,
            })
            .await?;
        let Page {
            records,
            position,
            bounds,
            ..
        } = &*page;
        if after < bounds.trimmed {
            return Err(cursor_expired(self.state.reader.epoch(), *bounds));
        }
        self.position = *position;
        self.left -= records.len() as u64;
        self.sent += records.len() as u64;
        if let Some(last) = records.last() {
            self.marked = last.seq;
        }
        if let Some(lease) = self.lease.as_mut().filter(|lease| lease.window > 0) {
            lease.out.extend(records.iter().map(|record| record.seq));
        }
        if !self.options.sse {
            return Ok(page.lines());
        }
        let mut lines = String::new();
        for record in records {
            self.write(
                &mut lines,
                record.record_type.word(),
                Some(&self.cursor(record.seq)),
                &record.line,
            );
        }
        Ok(lines.into())
    }

    fn hello(&mut self) -> Bytes {
        let head = *self.head.borrow();
        let mut data = json!({
            "protocol": 1,
            "epoch": self.state.reader.epoch(),
            "start": self.cursor(self.position),
            "head": self.cursor(head.max(self.position)),
            "follow": self.options.follow,
            "heartbeat": self.options.heartbeat.as_secs(),
            "filter": self.filter,
        });
        if let Some(lease) = &self.lease {
            data["consumer"] = lease.name.as_str().into();
            data["generation"] = lease.generation.into();
            data["window"] = lease.window.into();
        }
        self.own("hello", &data, true)
    }

    fn bookmark(&mut self) -> Bytes {
        self.own("bookmark", &json!({}), true)
    }

    fn end(&mut self, more: bool) -> Bytes {
        self.phase = Phase::Done;
        self.own("end", &json!({ "more": more }), true)
    }

    fn error(&mut self, problem: &Problem) -> Bytes {
        self.phase = Phase::Done;
        let mut data = json!({ "code": problem.code, "message": problem.message });
        for (name, value) in &problem.more {
            data[name] = value.clone();
        }
        self.own("error", &data, false)
    }

    /// A line of the stream's own, at the present position. Only where the cursor may be stored or
    /// acknowledged is it said: everything that matches up to there has been sent before.
    fn own(&mut self, kind: &str, data: &Value, position: bool) -> Bytes {
        let (kind, cursor) = (format!("settled.feed.{kind}"), self.cursor(self.position));
        let mut line = json!({
            "specversion": "1.0",
            "id": format!("{kind}:{cursor}"),
            "source": "/settled",
            "type": kind,
            "time": (self.state.clock)().rfc3339(),
            "datacontenttype": "application/json",
        });
        if position {
            self.marked = self.position;
            line["cursor"] = cursor.as_str().into();
        }
        line["data"] = data.clone();
        let mut text = String::new();
        self.write(
            &mut text,
            &kind,
            position.then_some(&cursor),
            &line.to_string(),
        );
        text.into()
    }

    fn write(&self, out: &mut String, kind: &str, cursor: Option<&String>, line: &str) {
        if !self.options.sse {
            out.push_str(line);
            out.push('\n');
            return;
        }
        // Without an id, an EventSource keeps the last one.
        for part in cursor.iter().flat_map(|cursor| ["id: ", cursor, "\n"]) {
            out.push_str(part);
        }
        for part in ["event: ", kind, "\ndata: ", line, "\n\n"] {
            out.push_str(part);
        }
    }

    fn cursor(&self, seq: i64) -> String {
        Cursor {
            epoch: self.state.reader.epoch().to_owned(),
            seq,
        }
        .to_string()
    }
}
