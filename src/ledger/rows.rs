//! The arguments and results of the ledger's queries. No SQL and no connection: any ledger answers
//! in these.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::decide::Run;
use crate::model::record::RecordType;
use crate::model::{At, Origin, Outcome, RunId, RunKey};
use crate::providers::Verdict;

/// The records that a reader wants. Empty lists mean "any"; different fields must all match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Record types.
    pub types: Vec<RecordType>,
    /// Source names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
    /// Provider names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provider: Vec<String>,
    /// Outcomes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outcome: Vec<Outcome>,
    /// Origins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub origin: Vec<Origin>,
    /// Group ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<String>,
}

impl Default for Filter {
    /// Completions, of everything.
    fn default() -> Filter {
        Filter {
            types: vec![RecordType::Completion],
            source: Vec::new(),
            provider: Vec::new(),
            outcome: Vec::new(),
            origin: Vec::new(),
            group: Vec::new(),
        }
    }
}

/// The part of the feed to read.
#[derive(Clone, Copy, Debug)]
pub struct RecordQuery<'a> {
    /// Records after this seq.
    pub after: i64,
    /// Records up to this seq.
    pub upto: i64,
    /// Records that match this.
    pub filter: &'a Filter,
    /// At most so many records.
    pub rows_max: usize,
    /// Look at no more than so many rows, so that a narrow filter does not hold a snapshot for long.
    pub scan_max: i64,
}

/// A record as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// The position in the feed.
    pub seq: i64,
    /// Completion, amendment or status.
    pub record_type: RecordType,
    /// When it was appended.
    pub at: At,
    /// The whole line, cursor and all, without a newline.
    pub line: String,
}

/// The first and the last position of the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedBounds {
    /// Records up to this seq were removed by retention: the earliest position to read after.
    pub trimmed: i64,
    /// Seq of the last record there is or ever was.
    pub head: i64,
}

/// A run whose poll is due.
#[derive(Clone, Debug)]
pub struct Due {
    /// The row id of the run.
    pub row: i64,
    /// The provider's id of the run.
    pub run_id: RunId,
    /// The state of the run, from which the exchange is built.
    pub run: Run,
}

/// Runs whose timer is due, by source row, and when the next timer falls due.
pub type DueTimers = (Vec<(i64, RunId)>, Option<At>);

/// A run as it is listed.
#[derive(Clone, Debug)]
pub struct RunRow {
    /// The row id, which is the position in the list.
    pub row: i64,
    /// Source and run id.
    pub key: RunKey,
    /// The provider's name.
    pub provider: String,
    /// Everything known of it.
    pub run: Run,
    /// Seq of its completion.
    pub completion: Option<i64>,
}

/// The runs to list, in the order in which they became known, or the reverse.
#[derive(Clone, Debug, Default)]
pub struct RunQuery {
    /// `open` or `settled`.
    pub phase: Option<&'static str>,
    /// Of this source.
    pub source: Option<String>,
    /// Only overdue ones.
    pub overdue: bool,
    /// The newest first.
    pub newest: bool,
    /// Known after this row.
    pub after: i64,
    /// Known before this row.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// A page of runs.
#[derive(Clone, Debug, Default)]
pub struct RunPage {
    /// Those that can be read.
    pub runs: Vec<RunRow>,
    /// Those that cannot.
    pub damaged: Vec<DamagedRow>,
    /// The row after which the list goes on, if it may.
    pub next: Option<i64>,
}

/// Numbers about one source's runs and traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Row id of the source.
    pub id: i64,
    /// The source's name.
    pub name: String,
    /// The name of its provider.
    pub provider: String,
    /// Open runs.
    pub open: i64,
    /// Open runs past their deadline.
    pub overdue: i64,
    /// Last authentic delivery.
    pub webhook_at: Option<At>,
    /// Last delivery that could not be verified.
    pub unverified_at: Option<At>,
    /// When the provider last answered a poll.
    pub answer_at: Option<At>,
    /// Runs that the provider counted and settled does not know.
    pub unaccounted: i64,
}

/// When a secret last verified a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretUse {
    /// Row id of the source.
    pub source: i64,
    /// The secret's label.
    pub label: String,
    /// When it last verified a delivery.
    pub last_at: At,
    /// How many deliveries it has verified.
    pub uses: i64,
}

/// A delivery as it is listed. No header values: they hold secrets.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DeliveryRow {
    /// Report id.
    pub id: i64,
    /// Source name.
    pub source: String,
    /// Always `webhook` or `replay`.
    pub via: String,
    /// When it came, RFC 3339.
    pub at: String,
    /// The verdict of verification.
    pub verdict: Option<String>,
    /// The label of the secret that matched.
    pub secret: Option<String>,
    /// Bytes of body kept.
    pub bytes: i64,
    /// Why it could not be read.
    pub note: Option<String>,
    /// Why the report is quarantined, if it is.
    pub quarantined: Option<String>,
    /// Runs it spoke of.
    pub runs: Vec<String>,
}

/// The deliveries to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct DeliveryQuery {
    /// Of this source.
    pub source: Option<String>,
    /// With this verdict.
    pub verdict: Option<Verdict>,
    /// About this run.
    pub run_id: Option<String>,
    /// Older than this id.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// A named reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// The consumer's name.
    pub name: String,
    /// Everything up to this seq is done.
    pub acked: i64,
    /// The records it reads; fixed when it is created.
    pub filter: Filter,
    /// Records that may be out unacknowledged; 0: any number.
    pub window: u32,
    /// The number of the last reader, seek or creation.
    pub generation: i64,
    /// When it was made.
    pub created_at: At,
    /// When it was last opened, acknowledged or moved.
    pub seen_at: At,
}

/// An event a consumer has parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedRow {
    /// The seq of the event.
    pub seq: i64,
    /// The whole line.
    pub line: String,
    /// How often it was tried.
    pub attempts: u32,
    /// How the last attempt failed.
    pub error: String,
    /// When the last attempt failed.
    pub at: At,
    /// The event is marked for another attempt.
    pub retry: bool,
}

/// How many runs settled without their webhook, in one span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Runs that settled.
    pub completions: i64,
    /// … without a webhook: by our own question, a replay, or a limit.
    pub synthesized: i64,
    /// … of which the webhook came after all, too late.
    pub late: i64,
    /// Synthesized by completions.
    pub rate: f64,
}

/// The spans of time over which losses are counted, with their names. Exact to the minute.
pub const LOSS_SPANS: [(&str, Duration); 3] = [
    ("1h", Duration::from_secs(3_600)),
    ("24h", Duration::from_secs(86_400)),
    ("30d", Duration::from_secs(30 * 86_400)),
];

/// Losses by the names of [`LOSS_SPANS`].
pub type Losses = BTreeMap<String, Loss>;

/// Reports that retention may take, few enough for one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removable {
    /// Their ids.
    pub ids: Vec<i64>,
    /// Everything up to this id has been looked at.
    pub position: i64,
    /// There is nothing more to look at.
    pub end: bool,
}

/// A row with content that this program never writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DamagedRow {
    /// The table of the row.
    pub table: String,
    /// The source of a run, if that much can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// A run id, or a consumer's name.
    pub name: String,
}
