//! One reader of the feed, anonymous or named, as NDJSON or SSE.
//!
//! A stream holds only a position. The seq of the newest record wakes it; it reads a page of rows
//! from the ledger, closes the snapshot, and sends. So a slow reader costs one page, no record can be
//! dropped, and no snapshot is open while a stream waits.
//!
//! A named reader also has a [`ReaderLease`]: the generation under which it reads, and the records
//! that are out unacknowledged.

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
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep, sleep};

use super::super::types::{
    StreamData, StreamEnd, StreamHello, StreamLine, StreamPaused, StreamSuperseded,
};
use super::super::{ApiState, flag};
use super::lease::{Cause, ConsumerEvent, ReaderLease};
use super::page_cache::{CachedPage, PageKey};
use super::query::cursor_expired;
use crate::ledger::Filter;
use crate::limits;
use crate::model::record::Cursor;
use crate::server::Problem;

/// The options of a read: those of its query, and the format that it accepts.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    follow: bool,
    limit: u64,
    wait: Duration,
    heartbeat: Duration,
    sse: bool,
}

impl ReadOptions {
    /// The options of a request, within the limits.
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

/// One connection that reads the feed.
pub struct Reader {
    state: Arc<ApiState>,
    filter: Filter,
    options: ReadOptions,
    lease: Option<ReaderLease>,
    /// Everything up to here has been sent or does not match.
    position: i64,
    /// The last position that was sent.
    marked: i64,
    /// When anything was last sent.
    spoke_at: Instant,
    /// Records that may still be sent.
    left: u64,
    sent: u64,
    /// When a reader that does not follow stops waiting for a first record.
    deadline: Instant,
    phase: Phase,
    /// Fires when a heartbeat or the deadline is due, or before.
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

impl Reader {
    /// A reader of the records after `start`.
    pub fn new(
        state: Arc<ApiState>,
        start: i64,
        filter: Filter,
        options: ReadOptions,
        lease: Option<ReaderLease>,
        slot: OwnedSemaphorePermit,
    ) -> Reader {
        Reader {
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

    /// Records if there are any, else a line about the stream.
    async fn read(&mut self) -> Result<Bytes, Problem> {
        loop {
            if let Some(last) = self.overtaken() {
                return last;
            }
            let head = *self.head.borrow_and_update();
            if self.left == 0 || *self.stop.borrow() {
                return Ok(self.end(self.position < head));
            }
            let sendable = self.window_left().await?;
            if self.position < head && sendable > 0 {
                let lines = self.page(head, sendable).await?;
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
            if let Some(paused) = self.paused(sendable == 0 && self.position < head) {
                return Ok(paused);
            }
            if Instant::now() >= self.spoke_at + self.options.heartbeat {
                return Ok(self.bookmark());
            }
            self.wait().await;
        }
    }

    /// Waits until something may have changed, or a heartbeat is due. Heartbeats serve both sides: as
    /// half-closed clients are served too, only a write shows that a client is dead.
    async fn wait(&mut self) {
        let heartbeat = self.spoke_at + self.options.heartbeat;
        let until = if self.options.follow {
            heartbeat
        } else {
            heartbeat.min(self.deadline)
        };
        // Each record postpones the heartbeat, and nothing brings it forward. A timer that fires too
        // early costs one check; resetting it for each record would cost as much as sending one.
        if self.timer.is_elapsed() {
            self.timer.as_mut().reset(until);
        }
        let changed = async {
            match &mut self.lease {
                Some(lease) => lease.moved |= lease.events.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut self.timer => {}
            _ = self.head.changed() => {}
            _ = self.stop.wait_for(|stop| *stop) => {}
            () = changed => {}
        }
    }

    /// The last line, once another reader has the consumer, or it was moved or deleted.
    fn overtaken(&mut self) -> Option<Result<Bytes, Problem>> {
        let lease = self.lease.as_ref()?;
        let ConsumerEvent { generation, cause } = *lease.events.borrow();
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
        let data = StreamData::Superseded(StreamSuperseded {
            consumer: lease.name.clone(),
            by: cause.word().to_owned(),
            generation,
        });
        Some(Ok(self.own("superseded", data, false)))
    }

    /// How many records may be sent before the reader has to acknowledge some.
    async fn window_left(&mut self) -> Result<u64, Problem> {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.window > 0) else {
            return Ok(u64::MAX);
        };
        let window = lease.window as usize;
        if lease.out.len() >= window && (lease.moved || lease.events.has_changed().unwrap_or(false))
        {
            lease.events.borrow_and_update();
            lease.moved = false;
            let name = lease.name.clone();
            if let Some(consumer) = self.state.look(move |view| view.consumer(&name)).await? {
                lease
                    .out
                    .drain(..lease.out.partition_point(|seq| *seq <= consumer.acked));
            }
        }
        lease.paused &= lease.out.len() * 2 > window;
        Ok(window.saturating_sub(lease.out.len()) as u64)
    }

    /// The line `paused`, once until half of the window has been free again.
    fn paused(&mut self, full: bool) -> Option<Bytes> {
        let lease = self.lease.as_mut().filter(|lease| full && !lease.paused)?;
        lease.paused = true;
        let data = StreamData::Paused(StreamPaused {
            consumer: lease.name.clone(),
            unacknowledged: lease.out.len(),
            window: lease.window,
        });
        Some(self.own("paused", data, false))
    }

    /// The next page of matching records up to `head`, and the position after it.
    async fn page(&mut self, head: i64, sendable: u64) -> Result<Bytes, Problem> {
        let (after, filter) = (self.position, self.filter.clone());
        let rows = usize::try_from(self.left.min(sendable))
            .unwrap_or(usize::MAX)
            .min(limits::PAGE_ROWS);
        let page = self
            .state
            .page(PageKey {
                after,
                head,
                filter,
                rows,
            })
            .await?;
        let CachedPage {
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
        let lease = self.lease.as_ref();
        let hello = StreamHello {
            protocol: 1,
            epoch: self.state.reader.epoch().to_owned(),
            start: self.cursor(self.position),
            head: self.cursor(head.max(self.position)),
            follow: self.options.follow,
            heartbeat: self.options.heartbeat.as_secs(),
            filter: self.filter.clone(),
            consumer: lease.map(|lease| lease.name.clone()),
            generation: lease.map(|lease| lease.generation),
            window: lease.map(|lease| lease.window),
        };
        self.own("hello", StreamData::Hello(hello), true)
    }

    fn bookmark(&mut self) -> Bytes {
        self.own("bookmark", StreamData::Bookmark {}, true)
    }

    fn end(&mut self, more: bool) -> Bytes {
        self.phase = Phase::Done;
        self.own("end", StreamData::End(StreamEnd { more }), true)
    }

    fn error(&mut self, problem: &Problem) -> Bytes {
        self.phase = Phase::Done;
        self.own("error", StreamData::Error(problem.body()), false)
    }

    /// A line about the stream, at the present position. Its cursor is sent only if the reader may
    /// store or acknowledge it: if every matching record up to there has been sent before.
    fn own(&mut self, kind: &str, data: StreamData, position: bool) -> Bytes {
        let (line_type, cursor) = (format!("settled.feed.{kind}"), self.cursor(self.position));
        if position {
            self.marked = self.position;
        }
        let line = StreamLine {
            specversion: "1.0".to_owned(),
            id: format!("{line_type}:{cursor}"),
            source: "/settled".to_owned(),
            line_type: line_type.clone(),
            time: (self.state.clock)().rfc3339(),
            datacontenttype: "application/json".to_owned(),
            cursor: position.then(|| cursor.clone()),
            data,
        };
        let json = serde_json::to_string(&line).unwrap_or_default();
        let mut text = String::new();
        self.write(&mut text, &line_type, position.then_some(&cursor), &json);
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
