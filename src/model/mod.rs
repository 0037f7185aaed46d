//! The words of settled, and the pure part that concludes.
//!
//! Nothing in this folder knows tokio, SQL, HTTP, JSON text, randomness or a clock: time comes in
//! as an argument, conclusions go out as values. Read in this order: [`observation`] (what was
//! claimed), [`decide`] (the decision), [`schedule`] (when to poll next), [`record`] (what the
//! feed says).

pub mod decide;
pub mod observation;
pub mod record;
pub mod schedule;

use std::fmt;
use std::time::Duration;

use jiff::fmt::temporal::DateTimePrinter;
use serde::{Deserialize, Serialize};

/// A moment: milliseconds since the Unix epoch, UTC. Always passed in, never read here.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct At(pub i64);

impl At {
    /// Later than every moment that can be written.
    pub const NEVER: At = At(i64::MAX);

    /// This moment plus `span`, saturating.
    #[must_use]
    pub fn plus(self, span: Duration) -> At {
        At(self
            .0
            .saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// RFC 3339, UTC, with milliseconds: the form of every time on the wire.
    pub fn rfc3339(self) -> String {
        const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
        jiff::Timestamp::from_millisecond(self.0).map_or_else(
            |_| "9999-12-31T23:59:59.999Z".to_owned(),
            |at| PRINTER.timestamp_to_string(&at),
        )
    }

    /// How long ago `earlier` was; zero when it lies ahead (clocks step back).
    pub fn since(self, earlier: At) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Declares a fieldless enum together with the word each variant has on the wire and in the
/// database, so that a word is written down once.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The word for this on the wire and in the database.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }

            /// The variant a word stands for.
            pub fn from_word(word: &str) -> Option<$name> {
                match word { $($word => Some($name::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// The kind of remote work that a run is.
    Kind {
        /// Skyvern task; Browser Use v2 task.
        Task = "task",
        /// Skyvern workflow run.
        Workflow = "workflow",
        /// Browser Use v3 session (or one turn of it, `SESSION#n`).
        Session = "session",
        /// SmartBrowse recipe run.
        Recipe = "recipe",
        /// Firecrawl crawl.
        Crawl = "crawl",
        /// Firecrawl batch scrape.
        BatchScrape = "batch_scrape",
        /// Firecrawl extract.
        Extract = "extract",
        /// Firecrawl agent; Browser Use v4 run.
        Agent = "agent",
        /// One check of a Firecrawl monitor.
        MonitorCheck = "monitor_check",
    }
}

words! {
    /// How a settled run ended.
    Outcome {
        /// The provider says the work was done.
        Succeeded = "succeeded",
        /// The provider says the work failed.
        Failed = "failed",
        /// It was stopped before its end.
        Cancelled = "cancelled",
        /// The provider's own time limit ended it.
        TimedOut = "timed_out",
        /// It is over, or settled gave up, and no entitled report says how it ended.
        Indeterminate = "indeterminate",
    }
}

words! {
    /// How the evidence that settled a run came.
    Origin {
        /// A webhook said that the run had ended, alone or confirmed by an answer.
        Webhook = "webhook",
        /// Only our own poll found it out: the webhook was lost, late or never sent.
        Poll = "poll",
        /// The signed payload in a provider's answer to a request to send its webhook again.
        Replay = "replay",
        /// No report said it: a limit passed or the run vanished.
        Inferred = "inferred",
    }
}

words! {
    /// How far an observation may be believed. The order of the variants is the order of belief.
    Trust {
        /// A report that proved nothing. It changes only when the run is polled next.
        Hint = "hint",
        /// Unsigned, but the secret path and headers matched.
        SharedSecret = "shared_secret",
        /// The signature was verified.
        Signed = "signed",
        /// The provider answered our own authenticated request.
        Authoritative = "authoritative",
    }
}

words! {
    /// How a report came in.
    Via {
        /// An HTTP request on a webhook endpoint.
        Webhook = "webhook",
        /// The answer to a poll of one run.
        Poll = "poll",
        /// A page of the provider's list of runs.
        Sweep = "sweep",
        /// The signed payload in the answer to a retry-webhook call.
        Replay = "replay",
        /// A timer of ours: a limit passed.
        Clock = "clock",
        /// An operator or a client named a run.
        Operator = "operator",
    }
}

/// A name was not usable as a source or consumer name.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a name: use 1 to 64 of a-z 0-9 . _ -, starting with a letter or digit")]
pub struct NotAName(pub String);

/// The name a person gave to one account at a provider: `[a-z0-9][a-z0-9._-]{0,63}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct SourceName(String);

impl SourceName {
    /// Reads a name.
    pub fn new(name: &str) -> Result<SourceName, NotAName> {
        if is_name(name) {
            Ok(SourceName(name.to_owned()))
        } else {
            Err(NotAName(name.to_owned()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SourceName {
    type Error = NotAName;
    fn try_from(name: String) -> Result<SourceName, NotAName> {
        SourceName::new(&name)
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether `text` may name a source or a consumer: `[a-z0-9][a-z0-9._-]{0,63}`.
pub fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = text.bytes();
    text.len() <= 64
        && bytes.next().is_some_and(inner)
        && bytes.all(|byte| inner(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

/// Text that cannot be the id of a run.
#[derive(Debug, thiserror::Error)]
#[error(
    "a run id has 1 to {} characters and no control characters or spaces",
    RunId::BYTES_MAX
)]
pub struct NotARunId;

/// A provider's name for one run. Opaque, but bounded and printable, since it travels in paths,
/// logs and the feed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct RunId(String);

impl RunId {
    /// Longest id taken. The longest seen at any provider is a UUID with a turn number.
    pub const BYTES_MAX: usize = 200;

    /// Reads an id. `.` and `..` are refused: as a path segment they would lead to another address.
    pub fn new(id: &str) -> Result<RunId, NotARunId> {
        let printable = |c: char| !c.is_control() && !c.is_whitespace();
        let dots = matches!(id, "." | "..");
        if id.is_empty() || dots || id.len() > RunId::BYTES_MAX || !id.chars().all(printable) {
            return Err(NotARunId);
        }
        Ok(RunId(id.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunId {
    type Error = NotARunId;
    fn try_from(id: String) -> Result<RunId, NotARunId> {
        RunId::new(&id)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The key of everything settled promises: one completion per key, for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey {
    /// The account it runs in.
    pub source: SourceName,
    /// The provider's id of it.
    pub run_id: RunId,
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.run_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_names_are_as_the_contract_says() {
        for good in ["a", "skyvern-prod", "0", "a.b_c-d", &"x".repeat(64)] {
            assert!(SourceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(SourceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn run_ids_are_bounded_and_printable() {
        assert!(RunId::new("wr_123").is_ok());
        assert!(RunId::new("5b73fb3f-a3cb-4912-be40-17ce9e9e1a45#2").is_ok());
        for bad in ["", ".", "..", "a b", "a\nb", "a\0", &"x".repeat(201)] {
            assert!(RunId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn moments_saturate_and_never_run_backwards() {
        assert_eq!(At(5).since(At(9)), Duration::ZERO);
        assert_eq!(At::NEVER.plus(Duration::from_secs(1)), At::NEVER);
    }
}
