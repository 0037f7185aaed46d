//! `GET /v1/events`: the stateless read of the feed. The client keeps its own cursor, best in the
//! transaction of its own effect: then every effect happens exactly once.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use hyper::StatusCode;
use serde::Deserialize;

use super::super::{Params, Shared, bad_request};
use super::stream::{ReadOptions, Stream};
use crate::ledger::{FeedBounds, Filter};
use crate::model::record::{Cursor, RecordType};
use crate::model::{Origin, Outcome};
use crate::server::Problem;

/// What a reader polls for.
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
    State(state): Shared,
    headers: HeaderMap,
    Params(wanted): Params<Wanted>,
) -> Result<Response, Problem> {
    let slot = state.slot()?;
    let filter = wanted.words().filter()?;
    let options = ReadOptions::of(
        wanted.follow.as_deref(),
        wanted.limit,
        wanted.wait,
        wanted.heartbeat,
        &headers,
    )?;
    let bounds = state.bounds().await?;
    // A browser's EventSource says where it was in a header, and says nothing else on its return.
    let resumed = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let start = position(
        "after",
        resumed.or(wanted.after.as_deref()),
        state.reader.epoch(),
        bounds,
    )?;
    Ok(Stream::new(state, start, filter, options, None, slot).respond())
}

/// The position that a parameter names: `earliest` (the default), `latest` or a cursor.
pub fn position(
    name: &str,
    text: Option<&str>,
    epoch: &str,
    bounds: FeedBounds,
) -> Result<i64, Problem> {
    match text.unwrap_or("earliest") {
        "earliest" => Ok(bounds.trimmed),
        "latest" => Ok(bounds.head),
        text => {
            let named = cursor(name, text)?;
            if named.epoch != epoch || named.seq > bounds.head {
                return Err(epoch_mismatch(epoch, bounds));
            }
            if named.seq < bounds.trimmed {
                return Err(cursor_expired(epoch, bounds));
            }
            Ok(named.seq)
        }
    }
}

/// The cursor that a parameter holds.
pub fn cursor(name: &str, text: &str) -> Result<Cursor, Problem> {
    Cursor::parse(text).ok_or_else(|| {
        bad_request(format!(
            "{name}={text} is no cursor of a feed; write one as it was read there"
        ))
    })
}

/// The cursor names a record of another database, or of another life of this one.
pub fn epoch_mismatch(epoch: &str, bounds: FeedBounds) -> Problem {
    let message = "the cursor is from another life of this database (it was restored or replaced); \
                   start again from the earliest cursor and skip the ids you have seen";
    let problem = Problem::new(StatusCode::CONFLICT, "epoch_mismatch", message);
    problem
        .with("epoch", epoch)
        .with("earliest", earliest(epoch, bounds))
}

/// Retention has passed the cursor.
pub fn cursor_expired(epoch: &str, bounds: FeedBounds) -> Problem {
    let message = "records after this cursor were removed by retention; start again from the earliest cursor \
                   (a named consumer: seek there), knowing that some are missing";
    Problem::new(StatusCode::GONE, "cursor_expired", message)
        .with("earliest", earliest(epoch, bounds))
}

fn earliest(epoch: &str, bounds: FeedBounds) -> String {
    Cursor {
        epoch: epoch.to_owned(),
        seq: bounds.trimmed,
    }
    .to_string()
}

/// A filter as it was asked for, not yet looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventQuery {
    types: Option<List>,
    source: Option<List>,
    provider: Option<List>,
    outcome: Option<List>,
    origin: Option<List>,
    group: Option<List>,
}

/// `"a,b"` or `["a","b"]`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum List {
    Text(String),
    Items(Vec<String>),
}

impl Wanted {
    fn words(&self) -> EventQuery {
        let list = |text: &Option<String>| text.clone().map(List::Text);
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

impl EventQuery {
    /// The filter, in one form for everything that means the same.
    pub fn filter(&self) -> Result<Filter, Problem> {
        let types = each(self.types.as_ref(), record_type)?;
        let text = |word: &str| Ok(word.to_owned());
        Ok(Filter {
            types: if types.is_empty() {
                Filter::default().types
            } else {
                types
            },
            source: each(self.source.as_ref(), text)?,
            provider: each(self.provider.as_ref(), text)?,
            outcome: each(self.outcome.as_ref(), known("outcome", Outcome::from_word))?,
            origin: each(self.origin.as_ref(), known("origin", Origin::from_word))?,
            group: each(self.group.as_ref(), text)?,
        })
    }
}

fn each<T: Ord>(
    list: Option<&List>,
    read: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    let words: Vec<&str> = match list {
        None => Vec::new(),
        Some(List::Text(text)) => text.split(',').collect(),
        Some(List::Items(items)) => items.iter().map(String::as_str).collect(),
    };
    let words = words
        .into_iter()
        .map(str::trim)
        .filter(|word| !word.is_empty());
    let mut values = words.map(read).collect::<Result<Vec<_>, _>>()?;
    values.sort_unstable();
    values.dedup();
    Ok(values)
}

fn known<T>(name: &str, read: impl Fn(&str) -> Option<T>) -> impl Fn(&str) -> Result<T, Problem> {
    move |word| read(word).ok_or_else(|| bad_request(format!("{word:?} is no {name}")))
}

/// `completion` or `settled.run.completion`.
fn record_type(word: &str) -> Result<RecordType, Problem> {
    let full = format!(
        "settled.run.{}",
        word.strip_prefix("settled.run.").unwrap_or(word)
    );
    let wrong = || {
        bad_request(format!(
            "{word:?} is no type; there are completion, amendment and status"
        ))
    };
    RecordType::from_word(&full).ok_or_else(wrong)
}
