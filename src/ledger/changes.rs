//! The values that go between `process` and the ledger: the stored state that processing a batch
//! starts from, and the [`ChangeSet`] that it leads to and that the ledger applies in one transaction.
//!
//! Plain data without behaviour, so that the pure side and the SQL side share it without knowing
//! each other.

use std::collections::BTreeMap;

use crate::model::decide::{Effect, Run};
use crate::model::record::Draft;
use crate::model::{At, Kind, Origin, Outcome, RunId, Via};
use crate::report::WebhookMeta;

/// A run as it stands in the ledger.
#[derive(Clone, Debug)]
pub struct StoredRun {
    /// The row id of its source.
    pub source: i64,
    /// The provider's id of it.
    pub run_id: String,
    /// Its row.
    pub row: i64,
    /// Its state, or why the state cannot be read.
    pub state: Result<Run, String>,
}

/// The payload of a stored report, as far as a record may carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredPayload {
    /// All of it.
    Whole(Vec<u8>),
    /// It has more bytes than a record carries.
    TooLarge,
}

/// Everything that a batch of reports changes in the ledger.
///
/// Applying it is one transaction (invariant 3): the state of the runs, the records, and the mark
/// that the reports are processed are on disk together or not at all.
#[derive(Debug, Default)]
pub struct ChangeSet {
    /// The watermark: every report up to this id counts as processed. `None` leaves it.
    pub processed_upto: Option<i64>,
    /// The runs that the batch spoke of, each once with its final state.
    pub runs: Vec<RunChange>,
    /// Records to append, in the order of their seq.
    pub records: Vec<NewRecord>,
    /// Rows for the timelines, in the order of their reports.
    pub timeline: Vec<NewTimelineRow>,
    /// Counters of runs that providers sent along with their lists, in the order of the reports.
    pub counted: Vec<RunsCounted>,
    /// Reports to quarantine.
    pub quarantined: Vec<Quarantine>,
    /// Notes on reports that could not be read: the report's id and why.
    pub notes: Vec<(i64, String)>,
    /// Ids of reports whose body said nothing new and is dropped.
    pub bodies_dropped: Vec<i64>,
    /// When each source was last heard from, by its row id.
    pub traffic: BTreeMap<i64, Traffic>,
    /// Unverified deliveries that verify now: the report's id and its metadata from now on.
    pub promoted: Vec<(i64, WebhookMeta)>,
    /// The effects of each report. Its sender may wait for this.
    pub processed: Vec<Processed>,
    /// A run is to be polled at once.
    pub urgent: bool,
    /// The log lines to write once the changes are on disk.
    pub log: Vec<LogLine>,
}

/// A log line about one claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogLine {
    /// A claim was decided upon.
    Decided {
        /// Which of [`ChangeSet::runs`] it was about.
        run: usize,
        /// How it came.
        via: Via,
        /// The effect of the claim.
        effect: Effect,
        /// Of a settled run: the outcome, the origin, and whether it is confirmed.
        ending: Option<(Outcome, Origin, bool)>,
    },
    /// A claim was not decided upon, because the row of its run cannot be read.
    Damaged {
        /// The row id of the source.
        source: i64,
        /// The run.
        run_id: RunId,
        /// How the claim came.
        via: Via,
        /// The report, if it is quarantined for this.
        quarantined: Option<i64>,
        /// The fault of the row.
        error: String,
    },
}

/// A run before and after a batch.
#[derive(Debug)]
pub struct RunChange {
    /// The row id of its source.
    pub source: i64,
    /// The provider's id of it.
    pub run_id: RunId,
    /// Its row and its state before the batch; `None` if the batch made it known.
    pub before: Option<(i64, Run)>,
    /// Its state after the batch.
    pub after: Run,
    /// The seq of its completion, if this batch publishes it.
    pub completion: Option<i64>,
}

/// A record to append.
#[derive(Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// Its position in the feed.
    pub seq: i64,
    /// Which of [`ChangeSet::runs`] it is about.
    pub run: usize,
    /// The rendered line, redacted.
    pub draft: Draft,
    /// The group of the run when it was published, to filter the feed by.
    pub group_id: Option<String>,
    /// The report whose body the record refers to, if its payload did not fit.
    pub payload_report: Option<i64>,
    /// The outcome and the origin of a settled run, as words, to filter the feed by.
    pub ending: Option<(&'static str, &'static str)>,
    /// When it was published.
    pub at: At,
}

/// A row to add to a run's timeline.
#[derive(Debug, PartialEq, Eq)]
pub struct NewTimelineRow {
    /// Which of [`ChangeSet::runs`] it belongs to.
    pub run: usize,
    /// The row.
    pub row: TimelineRow,
}

/// A row of a run's timeline: what one report claimed about the run, and what that did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineRow {
    /// The report's id.
    pub report: i64,
    /// When the report was processed.
    pub at: At,
    /// The word of the [`Via`] by which the report came.
    pub via: String,
    /// The word of the [`Trust`](crate::model::Trust) that the claim deserves.
    pub trust: String,
    /// The claim, in one word.
    pub claim: String,
    /// The provider's status word.
    pub status: Option<String>,
    /// The word of the [`Effect`].
    pub effect: String,
    /// The seq of the record that it caused.
    pub seq: Option<i64>,
}

/// A provider's own counter of the runs of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunsCounted {
    /// The row id of the source.
    pub source: i64,
    /// The value of the counter.
    pub counted: i64,
    /// How many runs of this source the batch had made known before it came to the counter.
    pub newly_known: i64,
}

/// A report that is put aside and not processed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The report's id.
    pub report: i64,
    /// When it was quarantined.
    pub at: At,
    /// Why, in a sentence for the operator.
    pub why: String,
}

/// The facts in a batch about the traffic of one source. `None` means that it shows nothing new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// When the last authentic delivery came.
    pub webhook_at: Option<At>,
    /// When the last delivery came that could not be verified.
    pub unverified_at: Option<At>,
    /// When the last answer to one of our polls came.
    pub answer_at: Option<At>,
    /// When the provider last showed a run in answer to a status request.
    pub found_at: Option<At>,
    /// How many deliveries each secret verified, by the secret's label.
    pub secrets: BTreeMap<String, i64>,
}

/// The effects of processing one report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processed {
    /// The report's id.
    pub report: i64,
    /// Each run that it changed or confirmed, what it did to the run, and the seq of the record it
    /// caused.
    pub effects: Vec<(RunId, Effect, Option<i64>)>,
    /// The run that it named, if that is unknown and the report proves nothing: to be polled once.
    pub inquiry: Option<Inquiry>,
}

/// A run that is unknown, and named by a delivery that could not be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// The row id of the source.
    pub source: i64,
    /// The run.
    pub run_id: RunId,
    /// The kind of run that the delivery names.
    pub kind: Option<Kind>,
    /// The group that the delivery says it belongs to.
    pub group_id: Option<String>,
    /// The signature is genuine, but too old to count or without a time.
    pub genuine: bool,
    /// The sender's address.
    pub sender: Option<String>,
}

impl Processed {
    /// A report without any effect.
    pub fn of(report: i64) -> Processed {
        Processed {
            report,
            effects: Vec::new(),
            inquiry: None,
        }
    }
}
