//! Observations: what one report says about one run, in our words instead of a provider's.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::limits;

use super::{At, Kind, Outcome, RunId, Trust, Via};

/// How far along an open run is. Only used to keep a late "queued" from hiding a "running".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Not started yet, or the word is not known to us.
    Waiting,
    /// Work was seen to begin (running, paused, between two attempts).
    Started,
}

/// One claim about a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// A client, an operator or a list without states says that the run exists, and no more.
    Tracked,
    /// A list named it, perhaps with a state. Lists lag and omit, so this never settles anything;
    /// `over` polls for a closer look.
    Listed {
        /// The list's word suggests that the run has ended.
        over: bool,
    },
    /// The run is not over.
    Open(Progress),
    /// The run is over.
    Ended(Ending),
    /// The provider says that it knows no such run, and a call that must work with this key worked.
    Missing,
    /// We polled and learned nothing: no response, a key that is not accepted, an unreadable
    /// answer.
    Nothing,
    /// The provider answers, but not about this run: its status cannot be read, while a call that
    /// must work with this key worked.
    Withheld,
    /// A timer fired: one of our own limits has passed.
    TimerFired,
}

/// The end of a run as a provider told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// How it ended.
    pub outcome: Outcome,
    /// Another outcome for which this provider uses the same word here, so that a weaker evidence
    /// saying it refines instead of contradicts (a cancelled Firecrawl agent polls as failed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covers: Option<Outcome>,
    /// Whether a webhook saying this settles by itself under `confirm = "auto"`.
    #[serde(default)]
    pub sufficient: bool,
}

impl Ending {
    /// An ending that under `confirm = "auto"` needs an authoritative answer beside it.
    pub const fn needs_answer(outcome: Outcome) -> Ending {
        Ending {
            outcome,
            covers: None,
            sufficient: false,
        }
    }

    /// An ending that settles by itself under `confirm = "auto"`.
    pub const fn sufficient(outcome: Outcome) -> Ending {
        Ending {
            outcome,
            covers: None,
            sufficient: true,
        }
    }
}

/// The details that a report gives beside its claim. Everything is optional; absent means "not said".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// The provider's own status word, verbatim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_status: Option<String>,
    /// Workflow, recipe or agent the run belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<String>,
    /// One word of ours that qualifies the outcome or the state (`retry_pending`, `max_steps`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The provider's error text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Numbers the provider counts (pages, items, credits, steps), by their own names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Map<String, Value>>,
    /// The metadata that `track` or the provider attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// When the provider says the run was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_at: Option<At>,
    /// When the provider says that what it reports happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_time: Option<At>,
}

impl Detail {
    /// The same, with every text from outside redacted and bounded. An observation passes through
    /// here before anything of it is kept, logged or published.
    ///
    /// The fields are taken apart without `..`, so that a new one does not compile until it is
    /// treated here. A text is redacted before it is cut: half a secret would not be found.
    #[must_use]
    pub fn sanitized(self, redact: impl Fn(String) -> String) -> Detail {
        let Detail {
            provider_status,
            group_id,
            reason,
            error,
            counters,
            metadata,
            opened_at,
            provider_time,
        } = self;
        let bounded = |text: Option<String>, chars_max: usize| {
            text.map(|text| shortened(&redact(text), chars_max))
        };
        Detail {
            provider_status: bounded(provider_status, limits::WORD_CHARS_MAX),
            group_id: bounded(group_id, limits::WORD_CHARS_MAX),
            reason: bounded(reason, limits::WORD_CHARS_MAX),
            error: bounded(error, limits::ERROR_CHARS_MAX),
            counters: counters.map(|counters| sanitized_counters(counters, &redact)),
            metadata: metadata
                .filter(portable)
                .map(|metadata| sanitized_fields(metadata, &redact)),
            opened_at,
            provider_time,
        }
    }
}

/// Counters are numbers under short names, and few.
fn sanitized_counters(
    counters: Map<String, Value>,
    redact: &impl Fn(String) -> String,
) -> Map<String, Value> {
    let numbers = counters.into_iter().filter(|(_, value)| value.is_number());
    let named = numbers.map(|(name, value)| {
        let name = shortened(&redact(name), limits::WORD_CHARS_MAX);
        (name, value)
    });
    named.take(limits::COUNTERS_MAX).collect()
}

/// Metadata with every name and every text in it redacted, at any depth.
fn sanitized_fields(
    fields: Map<String, Value>,
    redact: &impl Fn(String) -> String,
) -> Map<String, Value> {
    let sanitized = |(name, value)| (redact(name), sanitized_value(value, redact));
    fields.into_iter().map(sanitized).collect()
}

/// The depth is bounded: see [`portable`].
fn sanitized_value(value: Value, redact: &impl Fn(String) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(redact(text)),
        Value::Array(items) => items
            .into_iter()
            .map(|item| sanitized_value(item, redact))
            .collect(),
        Value::Object(fields) => Value::Object(sanitized_fields(fields, redact)),
        plain => plain,
    }
}

/// The first characters of a text, with `…` where it was cut.
pub fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Whether metadata can be carried along.
pub fn portable(metadata: &Map<String, Value>) -> bool {
    metadata
        .values()
        .all(|value| depth(value) < limits::METADATA_DEPTH_MAX)
        && serde_json::to_vec(metadata).is_ok_and(|text| text.len() <= limits::METADATA_BYTES_MAX)
}

/// How many arrays and objects stand around the innermost value. What we parse nests 128 deep at most.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// One claim about one run, read out of one report by its provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Whom it is about.
    pub run_id: RunId,
    /// The kind of the run, where the report tells.
    pub kind: Option<Kind>,
    /// The claim.
    pub claim: Claim,
    /// How far it may be believed.
    pub trust: Trust,
    /// The way it came.
    pub via: Via,
    /// For an answer: when the question was asked. Otherwise when the report came in. A later
    /// question outranks an earlier one, whatever the order in which the answers arrive.
    pub requested_at: At,
    /// The run should be asked about no sooner than this after now (a provider's own word for
    /// when its next attempt begins).
    pub poll_after: Option<Duration>,
    /// The rest of what was said.
    pub detail: Detail,
}

impl Observation {
    /// The latest time at which the provider says that something happened to the run.
    pub fn last_sign(&self) -> Option<At> {
        self.detail.provider_time.max(self.detail.opened_at)
    }

    /// Whether it may change what we believe of a run. Hints may not.
    pub fn entitled(&self) -> bool {
        self.trust > Trust::Hint
    }
}

/// One entitled "it ended" that we heard, kept with the run until something stronger replaces it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The end that was claimed.
    pub ending: Ending,
    /// How far it may be believed.
    pub trust: Trust,
    /// The way it came.
    pub via: Via,
    /// See [`Observation::requested_at`].
    pub requested_at: At,
    /// When we heard it.
    pub received_at: At,
    /// The stored report that said it; its body is the payload of the completion.
    pub report: i64,
    /// The rest of what was said.
    pub detail: Detail,
}

/// Which of two authoritative answers is believed when they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerPrecedence {
    /// The one asked for last: a provider may correct itself.
    LastWins,
    /// The one asked for first: the provider forgets (a cancelled Firecrawl crawl can read back
    /// as completed once its record has expired).
    FirstWins,
}

impl Evidence {
    /// Position in the order of belief. Trust first. Among answers the order of the questions;
    /// among equal webhooks, which carry no order that can be relied on, the outcome: Skyvern's
    /// contradicting pairs end as the one that ranks higher here (cancelled then completed,
    /// cancelled then failed, completed then failed).
    fn rank(&self, answer_precedence: AnswerPrecedence) -> (Trust, i64, u8) {
        let outcome = match self.ending.outcome {
            Outcome::Indeterminate => 0,
            Outcome::Cancelled => 1,
            Outcome::TimedOut => 2,
            Outcome::Succeeded => 3,
            Outcome::Failed => 4,
        };
        let order = match (self.trust, answer_precedence) {
            (Trust::Authoritative, AnswerPrecedence::LastWins) => self.requested_at.0,
            (Trust::Authoritative, AnswerPrecedence::FirstWins) => -self.requested_at.0,
            _ => 0,
        };
        (self.trust, order, outcome)
    }

    /// Whether this evidence is to be believed over `other`.
    pub fn outranks(&self, other: &Evidence, answer_precedence: AnswerPrecedence) -> bool {
        self.rank(answer_precedence) > other.rank(answer_precedence)
    }

    /// Whether this is an answer to a question that was asked before a webhook told another end: it
    /// is believed, being an answer, but only a new one decides.
    pub fn overtaken_by(&self, told: &Evidence) -> bool {
        let (answer, webhook) = (
            self.trust == Trust::Authoritative,
            told.trust < Trust::Authoritative,
        );
        answer
            && webhook
            && told.trust > Trust::Hint
            && self.requested_at < told.received_at
            && !self.allows(told)
    }

    /// Whether both say the same end: the material projection of an ending is its outcome.
    /// Everything else (signed addresses, credits, texts) differs benignly between two tellings
    /// of one fact.
    pub fn agrees(&self, other: &Evidence) -> bool {
        self.ending.outcome == other.ending.outcome
    }

    /// Whether `other` says what this evidence says too, perhaps more exactly.
    pub fn allows(&self, other: &Evidence) -> bool {
        self.agrees(other) || self.is_refined_by(other)
    }

    /// Whether `other` says more exactly what this evidence says too.
    pub fn is_refined_by(&self, other: &Evidence) -> bool {
        self.ending.covers == Some(other.ending.outcome)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    fn metadata(value: Value) -> Map<String, Value> {
        Map::from_iter([("k".to_owned(), value)])
    }

    #[test]
    fn metadata_nests_less_than_64_deep() {
        let around: [fn(Value) -> Value; 2] = [
            |inner| json!([1, inner, 1]),
            |inner| json!({"a": 1, "b": inner}),
        ];
        for around in around {
            let nested = |depth| metadata((0..depth).fold(json!(1), |inner, _| around(inner)));
            assert!(portable(&nested(0)) && portable(&nested(63)));
            assert!(!portable(&nested(64)) && !portable(&nested(100)));
        }
    }

    #[test]
    fn metadata_has_64_kib_at_most() {
        let of = |bytes: usize| metadata(Value::from("x".repeat(bytes - r#"{"k":""}"#.len())));
        assert!(portable(&of(65_536)));
        assert!(!portable(&of(65_537)));
    }

    /// A detail with a marked text in every place where a text from outside can stand.
    fn full(text: &str) -> Detail {
        Detail {
            provider_status: Some(text.to_owned()),
            group_id: Some(text.to_owned()),
            reason: Some(text.to_owned()),
            error: Some(text.to_owned()),
            counters: Some(Map::from_iter([(text.to_owned(), json!(1))])),
            metadata: Some(Map::from_iter([
                (text.to_owned(), json!({ text: [text, {"deep": text}] })),
                ("number".to_owned(), json!(1)),
            ])),
            opened_at: Some(At(1)),
            provider_time: Some(At(2)),
        }
    }

    #[test]
    fn every_text_from_outside_is_redacted() {
        let redact = |text: String| text.replace("SECRET", "[gone]");
        let detail = full("a SECRET b").sanitized(redact);
        assert_eq!(detail, full("a [gone] b"));
        let json = serde_json::to_string(&detail).unwrap();
        assert!(!json.contains("SECRET"), "{json}");
    }

    #[test]
    fn every_text_from_outside_is_bounded() {
        let detail = full(&"x".repeat(3_000)).sanitized(|text| text);
        let json = serde_json::to_value(&detail).unwrap();
        for (name, value) in json.as_object().unwrap() {
            let bytes = value.to_string().len();
            let metadata = name == "metadata";
            assert!(metadata || bytes < 2_100, "{name} has {bytes} bytes");
        }
        assert_eq!(
            full(&"x".repeat(70_000)).sanitized(|text| text).metadata,
            None
        );
        let many = (0..1_000).map(|number| (number.to_string(), json!(number)));
        let detail = Detail {
            counters: Some(many.chain([("word".to_owned(), json!("x"))]).collect()),
            ..Detail::default()
        };
        let counters = detail.sanitized(|text| text).counters.unwrap();
        assert_eq!(counters.len(), limits::COUNTERS_MAX);
        assert!(counters.values().all(Value::is_number));
    }
}
