//! The single writer: one thread and one write connection, through which all input goes.
//!
//! A batch is one transaction with two halves. It applies what the reports of the batch before led
//! to ([`process`] has computed that as a value), and it stores the reports that
//! wait now; after the commit their senders are answered. So there is one fsync per batch, and a
//! report is on disk before anything tries to understand it. Invariants 1, 3 and 4 are kept here and
//! nowhere else.
//!
//! A report that was answered with 200 is stored, even if it kills the parser. If processing a batch
//! fails, its reports are processed again from disk, one by one. Each attempt is counted on disk
//! before it is made, and after three the report is quarantined: visible to the operator, and in
//! nobody's way. A report that ends the process is found unprocessed at the next start and takes the
//! same path.

mod handle;
mod log;
mod overload;
#[cfg(test)]
mod schedules;
mod sync;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::config::{Source, SourceConfig, SourceRow, Sources};
use crate::ledger::changes::{ChangeSet, Processed, Quarantine};
use crate::ledger::commands::{RegisterSources, TrimUnverified};
use crate::ledger::{
    AnyCommand, AnyReply, Checkpointer, Commit, LedgerError, Reader, UnverifiedLimits, Writer,
};
use crate::limits;
use crate::model::{At, SourceName};
use crate::process::{self, Context, StoredState};
use crate::report::{Meta, Report};

pub use handle::{Handle, Refusal, channel};

/// Tells the time. The daemon's is the system clock; a simulation brings its own.
pub type Clock = Arc<dyn Fn() -> At + Send + Sync>;

/// The result of verifying a source's unverified deliveries again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Reverified {
    /// How many deliveries were looked at.
    pub examined: u64,
    /// How many of those verify now.
    pub verified: u64,
    /// How many runs that changed.
    pub changed: u64,
}

/// The command that gives these sources their rows.
pub fn registration(configs: &BTreeMap<SourceName, Arc<SourceConfig>>, now: At) -> RegisterSources {
    let named =
        |config: &Arc<SourceConfig>| (config.name.to_string(), config.provider.name().to_owned());
    RegisterSources {
        sources: configs.values().map(named).collect(),
        now,
    }
}

/// The sources with the rows that [`registration`] gave them.
pub fn registered(
    configs: &BTreeMap<SourceName, Arc<SourceConfig>>,
    rows: &BTreeMap<String, SourceRow>,
) -> Sources {
    let source = |config: &Arc<SourceConfig>| {
        let row = rows.get(config.name.as_str())?;
        Some(Source::new(*row, config.clone()))
    };
    Sources::of(configs.values().filter_map(source))
}

/// Gives every source its row. For a start, before there is a [`Handle`].
pub fn register(
    writer: &mut Writer,
    configs: &BTreeMap<SourceName, Arc<SourceConfig>>,
    now: At,
) -> Result<Sources, LedgerError> {
    let rows = writer.execute(registration(configs, now))?;
    Ok(registered(configs, &rows))
}

/// The writer and what it decides with. Synchronous: the daemon gives it a thread, and a simulation
/// calls it step by step.
pub struct Reconciler {
    writer: Writer,
    sources: Sources,
    unverified: UnverifiedLimits,
    /// By source: rows and bytes of unverified deliveries added since the last trim.
    unverified_added: BTreeMap<i64, (i64, i64)>,
    /// Stored by the last batch, to be processed by the next.
    pending: Vec<(i64, Report)>,
    /// Reports are unprocessed on disk that are not in `pending`. They are older, so nothing is
    /// processed from memory until [`Reconciler::catch_up`] has run.
    behind: bool,
    /// The report whose attempt is already counted, so that a failing disk is not held against it.
    attempted: Option<i64>,
}

/// The result of one batch.
pub struct Batch {
    /// The ids of the stored reports, in their order.
    pub stored: Vec<i64>,
    /// The reply to each command, in their order.
    pub replies: Vec<Result<AnyReply, Refusal>>,
    /// The result of processing the reports of the batch before.
    pub processed: Result<BatchResult, LedgerError>,
}

/// The result of processing some reports.
#[derive(Debug, Default)]
pub struct BatchResult {
    /// The effects of each report.
    pub processed: Vec<Processed>,
    /// The seq of the last record appended.
    pub head: Option<i64>,
    /// A run is to be polled at once.
    pub urgent: bool,
}

impl BatchResult {
    /// Of changes that are on disk.
    fn of(changes: ChangeSet) -> BatchResult {
        BatchResult {
            head: changes.records.last().map(|record| record.seq),
            urgent: changes.urgent,
            processed: changes.processed,
        }
    }
}

impl Reconciler {
    /// A reconciler over an open ledger.
    pub fn new(writer: Writer, sources: Sources, unverified: UnverifiedLimits) -> Reconciler {
        Reconciler {
            writer,
            sources,
            unverified,
            unverified_added: BTreeMap::new(),
            pending: Vec::new(),
            behind: true,
            attempted: None,
        }
    }

    /// Readers of the ledger.
    pub fn reader(&self) -> Reader {
        self.writer.reader()
    }

    /// See [`Writer::checkpointer`].
    pub fn checkpointer(&mut self) -> Result<Checkpointer, LedgerError> {
        self.writer.checkpointer()
    }

    /// Ends, leaving the ledger in one file.
    pub fn close(mut self) {
        self.writer.checkpoint_on_close();
    }

    /// How many reports this process has stored and not yet processed.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether [`Reconciler::catch_up`] must run before anything else is processed.
    pub fn behind(&self) -> bool {
        self.behind
    }

    /// Replaces the configuration of the sources.
    pub fn set_sources(&mut self, sources: Sources) {
        self.sources = sources;
    }

    /// One transaction: applies what the reports of the batch before led to, stores `reports`, and
    /// executes `commands`. A command that fails undoes only itself. If the reports of the batch
    /// before cannot be processed, the rest is done without them. On an error nothing happened.
    pub fn write_batch(
        &mut self,
        reports: Vec<Report>,
        commands: Vec<AnyCommand>,
        now: At,
    ) -> Result<Batch, LedgerError> {
        let pending = std::mem::take(&mut self.pending);
        if reports.is_empty() && commands.is_empty() && pending.is_empty() {
            return Ok(Batch {
                stored: Vec::new(),
                replies: Vec::new(),
                processed: Ok(BatchResult::default()),
            });
        }
        let changes = self.process(&pending, now);
        let mut all = self.trims(&reports);
        let trims = all.len();
        all.extend(commands);
        let commit = Commit {
            changes: changes.as_ref().ok(),
            reports: &reports,
            commands: &all,
        };
        let committed = match self.writer.commit(&commit) {
            Ok(committed) => committed,
            Err(error) => return Err(self.fail(error)),
        };
        let mut replies = committed.replies.into_iter();
        for error in replies.by_ref().take(trims).filter_map(Result::err) {
            tracing::error!(%error, "unverified deliveries could not be trimmed");
        }
        let processed = changes.and_then(|changes| {
            log::applied(&self.sources, &changes, &committed.applied?);
            Ok(BatchResult::of(changes))
        });
        self.behind |= processed.is_err();
        if !self.behind {
            self.pending = committed.stored.iter().copied().zip(reports).collect();
        }
        Ok(Batch {
            stored: committed.stored,
            replies: replies
                .map(|reply| reply.map_err(|error| Refusal::from(&error)))
                .collect(),
            processed,
        })
    }

    /// Computes what reports lead to. Between the pure steps it looks up what they ask for. A panic
    /// in one of them is an error: one poisoned report must not end the daemon.
    fn process(&mut self, reports: &[(i64, Report)], now: At) -> Result<ChangeSet, LedgerError> {
        if reports.is_empty() {
            return Ok(ChangeSet::default());
        }
        let context = Context {
            sources: &self.sources,
            now,
        };
        let readings = guarded(|| process::read(reports, context))?;
        let state = StoredState {
            runs: self.writer.runs(readings.keys())?,
            next_seq: self.writer.next_seq()?,
            found_at: self.writer.found_at()?,
        };
        let decisions = guarded(|| readings.decide(state))?;
        let payloads = self.writer.payloads(&decisions.wanted())?;
        guarded(|| decisions.render(&payloads))
    }

    /// Which sources' unverified deliveries are to be trimmed once `reports` are stored: each time
    /// a twentieth of a limit has been added. So a flood costs one sorted scan per five hundred
    /// deliveries, and exceeds the limits by little more than that twentieth.
    fn trims(&mut self, reports: &[Report]) -> Vec<AnyCommand> {
        let limits = self.unverified;
        let mut full = BTreeSet::new();
        for report in reports {
            let webhook = report.meta.webhook();
            let Some(meta) = webhook.filter(|meta| !meta.verdict.authentic()) else {
                continue;
            };
            let header = |(name, value): &(String, String)| name.len() + value.len();
            let headers: usize = meta.headers.iter().map(header).sum();
            let bytes_added = i64::try_from(headers + report.body.len()).unwrap_or(i64::MAX);
            let (rows, bytes) = self.unverified_added.entry(report.source).or_default();
            *rows += 1;
            *bytes = bytes.saturating_add(bytes_added);
            if *rows * 20 >= limits.rows_max || bytes.saturating_mul(20) >= limits.bytes_max {
                (*rows, *bytes) = (0, 0);
                full.insert(report.source);
            }
        }
        let trim = |source| TrimUnverified { source, limits }.into();
        full.into_iter().map(trim).collect()
    }

    /// Stores and processes reports, as the thread does. For simulations and tests.
    pub fn step(&mut self, reports: Vec<Report>, now: At) -> Result<Vec<Processed>, LedgerError> {
        self.write_batch(reports, Vec::new(), now)?;
        let batch = self.write_batch(Vec::new(), Vec::new(), now)?;
        let mut processed = batch
            .processed
            .map(|batch| batch.processed)
            .unwrap_or_default();
        if self.behind {
            self.catch_up(now, |batch| processed.extend(batch.processed.clone()))?;
        }
        Ok(processed)
    }

    // ── Reports that are unprocessed on disk ────────────────────────────────────────────────────

    /// Processes what an earlier process has stored and not processed. Returns how many reports
    /// that were; `tell` gets the number so far after each.
    pub fn recover(&mut self, now: At, tell: impl Fn(usize)) -> Result<usize, LedgerError> {
        let mut count = 0;
        self.catch_up(now, |_| {
            count += 1;
            tell(count);
        })?;
        Ok(count)
    }

    /// Processes what is unprocessed on disk, one by one. Each attempt is counted on disk before it
    /// is made, and a report that fails three times is quarantined. An error means that the disk
    /// fails: nothing is lost, try again later.
    pub fn catch_up(
        &mut self,
        now: At,
        mut tell: impl FnMut(&BatchResult),
    ) -> Result<(), LedgerError> {
        loop {
            match self.process_next(now) {
                Ok(Some(batch)) => tell(&batch),
                Ok(None) => {
                    self.behind = false;
                    return Ok(());
                }
                Err(error) => return Err(self.fail(error)),
            }
        }
    }

    /// Tries the oldest unprocessed report until it is processed or quarantined. `None` if there is
    /// no such report.
    fn process_next(&mut self, now: At) -> Result<Option<BatchResult>, LedgerError> {
        let mut why = "processing it ended the process three times".to_owned();
        loop {
            let Some((id, attempts)) = self.writer.first_unprocessed()? else {
                return Ok(None);
            };
            let counted = self.attempted == Some(id);
            if attempts >= limits::ATTEMPTS_MAX && !counted {
                return self.quarantine(id, now, why).map(Some);
            }
            if !counted {
                self.writer.count_attempt(id)?;
                self.attempted = Some(id);
            }
            match self.process_stored(id, now) {
                Ok(batch) => return Ok(Some(batch)),
                Err(error) if error.blames_the_disk() => return Err(error),
                Err(error) => {
                    let refusal = Refusal::from(&error);
                    tracing::error!(report = id, error = %refusal, "a report could not be processed");
                    why = format!("it could not be processed three times; {error}");
                    self.attempted = None;
                    self.writer.reopen()?;
                }
            }
        }
    }

    /// Processes one report from disk.
    fn process_stored(&mut self, id: i64, now: At) -> Result<BatchResult, LedgerError> {
        let report = self.writer.report(id)?.map(|report| (id, report));
        let mut changes = self.process(report.as_slice(), now)?;
        // A report that has been removed meanwhile is done with.
        changes.processed_upto = Some(id);
        let missing = self.writer.apply(&changes)?;
        log::applied(&self.sources, &changes, &missing);
        Ok(BatchResult::of(changes))
    }

    /// Quarantines a report, so that those after it are processed.
    fn quarantine(&mut self, id: i64, at: At, why: String) -> Result<BatchResult, LedgerError> {
        tracing::error!(
            report = id,
            why,
            "a report that cannot be processed is quarantined"
        );
        let changes = ChangeSet {
            processed_upto: Some(id),
            processed: vec![Processed::of(id)],
            quarantined: vec![Quarantine {
                report: id,
                at,
                why,
            }],
            ..ChangeSet::default()
        };
        self.writer.apply(&changes)?;
        Ok(BatchResult::of(changes))
    }

    // ── Deliveries that verify after all ────────────────────────────────────────────────────────

    /// Verifies the unverified deliveries of a source again and processes those that verify, in
    /// transactions of a page each, so that intake waits for one page at most.
    pub fn reverify(
        &mut self,
        source: i64,
        now: At,
        mut tell: impl FnMut(&BatchResult),
    ) -> Result<Reverified, LedgerError> {
        let (mut total, mut after) = (Reverified::default(), 0);
        loop {
            let page = self.reverify_page(source, after, now);
            let (last, batch, page) = page.map_err(|error| self.fail(error))?;
            total.examined += page.examined;
            total.verified += page.verified;
            total.changed += page.changed;
            tell(&batch);
            match last {
                Some(last) => after = last,
                None => return Ok(total),
            }
        }
    }

    /// One page after the report `after`: the last report looked at, if any, and what came of it.
    fn reverify_page(
        &mut self,
        source: i64,
        after: i64,
        now: At,
    ) -> Result<(Option<i64>, BatchResult, Reverified), LedgerError> {
        let Some(configured) = self.sources.by_id(source).cloned() else {
            return Ok((None, BatchResult::default(), Reverified::default()));
        };
        let page = u32::try_from(limits::PAGE_ROWS).unwrap_or(u32::MAX);
        let waiting = self.writer.unverified(source, after, page)?;
        let (examined, last) = (waiting.len() as u64, waiting.last().map(|(id, _)| *id));
        let verified = guarded(|| process::reverify(&configured, waiting))?;
        let mut changes = self.process(&verified, now)?;
        // These came long ago: they neither move the watermark nor count as traffic of today.
        changes.processed_upto = None;
        changes.traffic.clear();
        for (id, report) in &verified {
            if let Meta::Webhook(meta) = &report.meta {
                changes.promoted.push((*id, meta.clone()));
            }
        }
        let missing = self.writer.apply(&changes)?;
        log::applied(&self.sources, &changes, &missing);
        let effects = |processed: &Processed| processed.effects.len() as u64;
        let came_of_it = Reverified {
            examined,
            verified: verified.len() as u64,
            changed: changes.processed.iter().map(effects).sum(),
        };
        Ok((last, BatchResult::of(changes), came_of_it))
    }

    /// After a failed write nothing that the connection believes about the file can be relied on. The
    /// connection is replaced, and reports that are stored and unprocessed are found on disk.
    fn fail(&mut self, error: LedgerError) -> LedgerError {
        self.behind = true;
        self.pending.clear();
        if let Err(again) = self.writer.reopen() {
            tracing::error!(error = %Refusal::from(&again), "the database cannot be opened again");
        }
        error
    }
}

/// Runs a pure step, turning a panic into an error.
fn guarded<T>(step: impl FnOnce() -> T) -> Result<T, LedgerError> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|_| LedgerError::Panicked)
}
