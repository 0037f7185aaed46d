//! Reads the query of a read: a filter, and a position in the feed.

use hyper::StatusCode;

use super::super::bad_request;
use super::super::types::{EventQuery, WordList};
use crate::ledger::{FeedBounds, Filter};
use crate::model::record::{Cursor, RecordType};
use crate::model::{Origin, Outcome};
use crate::server::Problem;

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

/// Refuses a cursor of another epoch: the database was restored or replaced since.
pub fn epoch_mismatch(epoch: &str, bounds: FeedBounds) -> Problem {
    let message = "the cursor is from another life of this database (it was restored or replaced); \
                   start again from the earliest cursor and skip the ids you have seen";
    let problem = Problem::new(StatusCode::CONFLICT, "epoch_mismatch", message);
    problem
        .with("epoch", epoch)
        .with("earliest", earliest(epoch, bounds))
}

/// Refuses a cursor after which retention has removed records.
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

/// The filter that a query means, in one form for all queries that mean the same.
pub fn filter(query: &EventQuery) -> Result<Filter, Problem> {
    let types = each(query.types.as_ref(), record_type)?;
    let text = |word: &str| Ok(word.to_owned());
    Ok(Filter {
        types: if types.is_empty() {
            Filter::default().types
        } else {
            types
        },
        source: each(query.source.as_ref(), text)?,
        provider: each(query.provider.as_ref(), text)?,
        outcome: each(query.outcome.as_ref(), known("outcome", Outcome::from_word))?,
        origin: each(query.origin.as_ref(), known("origin", Origin::from_word))?,
        group: each(query.group.as_ref(), text)?,
    })
}

fn each<T: Ord>(
    list: Option<&WordList>,
    read: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    let words: Vec<&str> = match list {
        None => Vec::new(),
        Some(WordList::Text(text)) => text.split(',').collect(),
        Some(WordList::Items(items)) => items.iter().map(String::as_str).collect(),
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
