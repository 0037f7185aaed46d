//! `GET /v1/events`: the stateless read of the feed. The client stores its own cursor, best in the
//! transaction of its own effect: then every effect happens exactly once.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;

use super::super::types::{EventQuery, WordList};
use super::super::{Params, Shared};
use super::query::{filter, position};
use super::stream::{ReadOptions, Reader};
use crate::server::Problem;

/// The query of `GET /v1/events`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsParams {
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

/// `GET /v1/events`: a stream after `after`.
pub async fn read(
    State(state): Shared,
    headers: HeaderMap,
    Params(params): Params<EventsParams>,
) -> Result<Response, Problem> {
    let slot = state.slot()?;
    let filter = filter(&params.query())?;
    let options = ReadOptions::of(
        params.follow.as_deref(),
        params.limit,
        params.wait,
        params.heartbeat,
        &headers,
    )?;
    let bounds = state.bounds().await?;
    // A browser's EventSource connects again with the same URL, and sends its position as a header.
    let resumed = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let start = position(
        "after",
        resumed.or(params.after.as_deref()),
        state.reader.epoch(),
        bounds,
    )?;
    Ok(Reader::new(state, start, filter, options, None, slot).respond())
}

impl EventsParams {
    fn query(&self) -> EventQuery {
        let list = |text: &Option<String>| text.clone().map(WordList::Text);
        EventQuery {
            types: list(&self.types),
            source: list(&self.source),
            provider: list(&self.provider),
            outcome: list(&self.outcome),
            origin: list(&self.origin),
            group: list(&self.group),
        }
    }
}
