//! The place where everything meets: one thread, one write connection.
//!
//! A [`Reconciler::turn`] is one transaction with two halves. The opinion: the reports promised in the
//! turn before are read by their providers' dialects, decided upon, and their consequences (the
//! run's new state, the record, the mark that they are processed) written. The promise: all reports
//! that wait are stored; when the commit is done they are acknowledged. So under load there is one
//! commit per group, and a report is always on disk before anybody tries to understand it.
//! Invariants 1, 3 and 4 are kept here and nowhere else.
//!
//! A body that kills the parser was promised all the same. An opinion that fails undoes only itself;
//! then what is unprocessed is taken from disk one by one, each attempt counted there before it is
//! made, and after three it is quarantined: visible, and in nobody's way. What ends the process is
//! found unprocessed at the next start and goes the same way.

mod conclude;
mod handle;
mod overload;
#[cfg(test)]
mod schedules;
mod sources;
mod sync;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::ledger::{
    Checkpointer, LedgerError, Reader, Traffic, Transaction, UnverifiedLimits, Writer,
};
use crate::limits;
use crate::model::decide::Effect;
use crate::model::{At, RunId};
use crate::report::{Meta, Report};

pub use handle::{Handle, Refusal, channel};
pub use sources::{Source, Sources};

/// Tells the time. The daemon's is the system clock; a simulation brings its own.
pub type Clock = Arc<dyn Fn() -> At + Send + Sync>;

/// What a report did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processed {
    /// The report's id.
    pub report: i64,
    /// Each run it changed or confirmed, what it did to it, and the record it caused.
    pub effects: Vec<(RunId, Effect, Option<i64>)>,
}

impl Processed {
    /// Of a report that did nothing.
    pub fn of(report: i64) -> Processed {
        Processed {
            report,
            effects: Vec::new(),
        }
    }
}

/// What came of verifying a source's unverified deliveries again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Reverified {
    /// Deliveries looked at.
    pub examined: u64,
    /// Of those, how many verify now.
    pub verified: u64,
    /// Runs that this changed.
    pub changed: u64,
}

/// Something to be done in the writer's next transaction.
pub type Work = Box<dyn FnOnce(&mut Transaction<'_>) -> Result<(), LedgerError> + Send>;

/// The writer and all that is decided with it. Synchronous: the daemon gives it a thread, a
/// simulation calls it step by step.
pub struct Reconciler {
    writer: Writer,
    sources: Sources,
    unverified: UnverifiedLimits,
    /// Unverified rows and bytes added since the unverified of a source was last trimmed.
    unverified_added: BTreeMap<i64, (i64, i64)>,
    /// Stored in the last turn, processed in the next.
    pending: Vec<(i64, Report)>,
    /// Something is unprocessed on disk that is not in `pending`. Older reports come first, so
    /// nothing is processed from memory then.
    behind: bool,
    /// The report whose attempt is counted already: a sick disk is not held against it.
    attempted: Option<i64>,
}

/// What one turn did.
pub struct Batch {
    /// The ids of the reports, in their order.
    pub stored: Vec<i64>,
    /// How each piece of work went.
    pub work: Vec<Result<(), Refusal>>,
    /// What became of the reports of the turn before.
    pub processed: Result<BatchResult, LedgerError>,
}

/// What processing some reports led to.
#[derive(Debug, Default)]
pub struct BatchResult {
    /// What each report did.
    pub processed: Vec<Processed>,
    /// Seq of the last record appended.
    pub head: Option<i64>,
    /// A run wants to be asked about at once.
    pub urgent: bool,
}

impl Reconciler {
    /// A reconciler over an open ledger.
    pub fn new(writer: Writer, sources: Sources, unverified: UnverifiedLimits) -> Reconciler {
        let (unverified_added, pending) = (BTreeMap::new(), Vec::new());
        Reconciler {
            writer,
            sources,
            unverified,
            unverified_added,
            pending,
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

    /// Ends: leaves the ledger in one file.
    pub fn close(self) {
        self.writer.checkpoint_on_close();
    }

    /// How many reports are stored in this process and not yet processed.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether [`Reconciler::catch_up`] must run before anything is processed.
    pub fn behind(&self) -> bool {
        self.behind
    }

    /// Digests what an earlier process stored and did not get to. Returns how many there were;
    /// `tell` hears of each.
    pub fn recover(&mut self, now: At, tell: impl Fn(usize)) -> Result<usize, LedgerError> {
        let mut count = 0;
        self.catch_up(now, |_| {
            count += 1;
            tell(count);
        })?;
        Ok(count)
    }

    /// Digests what is unprocessed on disk, one by one, each attempt counted there before it is made;
    /// what fails three times is quarantined. An error means that the disk is sick: nothing is lost,
    /// try again later.
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

    /// Tries the oldest unprocessed report until it is processed or quarantined; `None` when there is none.
    fn process_next(&mut self, now: At) -> Result<Option<BatchResult>, LedgerError> {
        let mut why = "processing it ended the process three times".to_owned();
        loop {
            let Some((id, attempts)) = self.writer.transaction(|tx| tx.first_unprocessed())? else {
                return Ok(None);
            };
            let counted = self.attempted == Some(id);
            if attempts >= limits::ATTEMPTS_MAX && !counted {
                self.quarantine(id, now, &why)?;
                return Ok(Some(BatchResult {
                    processed: vec![Processed::of(id)],
                    ..BatchResult::default()
                }));
            }
            if !counted {
                self.writer.transaction(|tx| tx.count_attempt(id))?;
                self.attempted = Some(id);
            }
            let sources = &self.sources;
            let tried = self.writer.transaction(|tx| {
                let report = tx.report(id)?.map(|report| (id, report));
                process(tx, sources, report.as_slice(), now).and_then(|batch| {
                    tx.mark_processed(id)?;
                    Ok(batch)
                })
            });
            match tried {
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

    /// Quarantines a report, so that it blocks nobody.
    fn quarantine(&mut self, id: i64, now: At, why: &str) -> Result<(), LedgerError> {
        tracing::error!(
            report = id,
            why,
            "a report that cannot be processed is quarantined"
        );
        self.writer.transaction(|tx| {
            tx.quarantine(id, now, why)?;
            tx.mark_processed(id)
        })
    }

    /// One transaction: processed the reports of the turn before, stores `reports`, runs `work`. Work
    /// that fails undoes only itself. An opinion that fails undoes the transaction, in which nothing
    /// else was done yet, and the rest goes into another: a savepoint for it would copy every page
    /// that it writes, for the rare case. On an error nothing happened.
    pub fn write_batch(
        &mut self,
        reports: Vec<Report>,
        mut work: Vec<Work>,
        now: At,
    ) -> Result<Batch, LedgerError> {
        let pending = std::mem::take(&mut self.pending);
        if reports.is_empty() && work.is_empty() && pending.is_empty() {
            return Ok(Batch {
                stored: Vec::new(),
                work: Vec::new(),
                processed: Ok(BatchResult::default()),
            });
        }
        let (unverified, unverified_added, sources) =
            (self.unverified, &mut self.unverified_added, &self.sources);
        let mut rest = |tx: &mut Transaction<'_>, processed| {
            let stored = store(tx, &reports, unverified, unverified_added)?;
            let work = work
                .drain(..)
                .map(|work| tx.apart(work).map_err(|error| Refusal::from(&error)))
                .collect();
            Ok(Batch {
                stored,
                work,
                processed,
            })
        };
        let mut undone = false;
        let whole = self
            .writer
            .transaction(|tx| match process(tx, sources, &pending, now) {
                Ok(batch) => rest(tx, Ok(batch)),
                Err(error) => {
                    undone = true;
                    Err(error)
                }
            });
        let result = match whole {
            Err(error) if undone => self.writer.transaction(|tx| rest(tx, Err(error))),
            whole => whole,
        };
        let batch = result.map_err(|error| self.fail(error))?;
        self.behind |= batch.processed.is_err();
        if !self.behind {
            self.pending = batch.stored.iter().copied().zip(reports).collect();
        }
        Ok(batch)
    }

    /// Stores and processed reports, as the thread does. For simulations and tests.
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

    /// Verifies the unverified deliveries of a source again and processed those that verify, in
    /// transactions of a page each, so that intake waits for one page.
    pub fn reverify(
        &mut self,
        source: i64,
        now: At,
        mut tell: impl FnMut(&BatchResult),
    ) -> Result<Reverified, LedgerError> {
        let (mut total, mut after) = (Reverified::default(), 0);
        loop {
            let page = self.reverify_page(source, after, now, &mut total);
            let (last, batch) = page.map_err(|error| self.fail(error))?;
            tell(&batch);
            match last {
                Some(last) => after = last,
                None => return Ok(total),
            }
        }
    }

    fn reverify_page(
        &mut self,
        source: i64,
        after: i64,
        now: At,
        total: &mut Reverified,
    ) -> Result<(Option<i64>, BatchResult), LedgerError> {
        let sources = &self.sources;
        let Some(member) = sources.member(source) else {
            return Ok((None, BatchResult::default()));
        };
        self.writer.transaction(|tx| {
            let mut batch = BatchResult::default();
            let waiting = tx.unverified(
                source,
                after,
                u32::try_from(limits::PAGE_ROWS).unwrap_or(u32::MAX),
            )?;
            let last = waiting.last().map(|(id, _)| *id);
            for (id, mut report) in waiting {
                total.examined += 1;
                if !conclude::verifies_now(member, &mut report) {
                    continue;
                }
                total.verified += 1;
                if let Meta::Webhook(meta) = &report.meta {
                    tx.promote(id, meta)?;
                }
                conclude::process(tx, sources, id, &report, now, &mut batch)?;
            }
            total.changed += batch
                .processed
                .iter()
                .map(|process| process.effects.len() as u64)
                .sum::<u64>();
            Ok((last, batch))
        })
    }

    /// Replaces the configuration of the sources.
    pub fn set_sources(&mut self, sources: Sources) {
        self.sources = sources;
    }

    /// After a failed write nothing the connection believes is to be trusted: it is replaced, and
    /// what may be stored without being processed is looked for on disk.
    fn fail(&mut self, error: LedgerError) -> LedgerError {
        self.behind = true;
        self.pending.clear();
        if let Err(again) = self.writer.reopen() {
            tracing::error!(error = %Refusal::from(&again), "the database cannot be opened again");
        }
        error
    }
}

/// Stores reports and gives their ids.
fn store(
    tx: &mut Transaction<'_>,
    reports: &[Report],
    unverified: UnverifiedLimits,
    unverified_added: &mut BTreeMap<i64, (i64, i64)>,
) -> Result<Vec<i64>, LedgerError> {
    let mut stored = Vec::with_capacity(reports.len());
    for report in reports {
        stored.push(tx.add_report(report)?);
        trim_if_full(tx, unverified_added, unverified, report)?;
    }
    Ok(stored)
}

/// Reads, decides and appends, notes when the sources were heard from, and marks the reports as
/// processed. A panic on the way is an error: one poisoned report must not end the daemon.
fn process(
    tx: &mut Transaction<'_>,
    sources: &Sources,
    reports: &[(i64, Report)],
    now: At,
) -> Result<BatchResult, LedgerError> {
    let process_all = AssertUnwindSafe(|| {
        let mut batch = BatchResult::default();
        let mut traffic: BTreeMap<i64, Traffic> = BTreeMap::new();
        for (id, report) in reports {
            conclude::process(tx, sources, *id, report, now, &mut batch)?;
            note_traffic(&mut traffic, report);
        }
        // Not with the promise, for which senders wait: it would have two more pages to write.
        for (source, traffic) in &traffic {
            tx.note_traffic(*source, traffic)?;
        }
        if let Some((last, _)) = reports.last() {
            tx.mark_processed(*last)?;
        }
        Ok(batch)
    });
    catch_unwind(process_all).unwrap_or(Err(LedgerError::Panicked))
}

fn note_traffic(traffic: &mut BTreeMap<i64, Traffic>, report: &Report) {
    let traffic = traffic.entry(report.source).or_default();
    match &report.meta {
        Meta::Webhook(meta) if meta.verdict.authentic() => {
            traffic.webhook_at = Some(report.at);
            if let Some(label) = &meta.secret {
                *traffic.secrets.entry(label.0.clone()).or_default() += 1;
            }
        }
        Meta::Webhook(_) => traffic.unverified_at = Some(report.at),
        Meta::Poll(meta) if meta.answers.iter().any(|answer| answer.status.is_some()) => {
            traffic.answer_at = Some(report.at);
        }
        _ => {}
    }
}

/// Trims a source's unverified each time a twentieth of its limit has been added, so that a flood costs
/// one sorted scan per five hundred deliveries and overshoots by at most that twentieth.
fn trim_if_full(
    tx: &mut Transaction<'_>,
    added: &mut BTreeMap<i64, (i64, i64)>,
    limits: UnverifiedLimits,
    report: &Report,
) -> Result<(), LedgerError> {
    let Some(head) = report
        .meta
        .webhook()
        .filter(|meta| !meta.verdict.authentic())
    else {
        return Ok(());
    };
    let headers: usize = head
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let (rows, bytes) = added.entry(report.source).or_default();
    *rows += 1;
    *bytes += i64::try_from(headers + report.body.len()).unwrap_or(i64::MAX);
    if *rows * 20 >= limits.rows_max || *bytes * 20 >= limits.bytes_max {
        tx.trim_unverified(report.source, limits)?;
        (*rows, *bytes) = (0, 0);
    }
    Ok(())
}
