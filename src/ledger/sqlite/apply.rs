//! A batch of the writer: what processing it needs is read, and what it leads to is written.

use std::collections::BTreeMap;

use rusqlite::{Row, params};

use super::{LedgerError, Result, Transaction, Writer, from_json, to_json};
use crate::ledger::changes::{
    ChangeSet, NewRecord, NewTimelineRow, Quarantine, RunChange, RunsCounted, StoredPayload,
    StoredRun,
};
use crate::ledger::commands::{AnyCommand, AnyReply};
use crate::model::decide::{Phase, Run};
use crate::model::record::PAYLOAD_BYTES_MAX;
use crate::model::{At, RunId};
use crate::report::{Meta, Report};

/// The content of one transaction of the writer, in the order of the fields.
#[derive(Default)]
pub struct Commit<'a> {
    /// The changes that the batch before led to.
    pub changes: Option<&'a ChangeSet>,
    /// Reports to store.
    pub reports: &'a [Report],
    /// Commands to execute.
    pub commands: &'a [AnyCommand],
}

/// The result of a [`Commit`].
pub struct Committed {
    /// How often each source's provider counted more runs than it should have, by row id; or why the
    /// changes could not be applied. The rest is on disk all the same.
    pub applied: Result<Missing>,
    /// The ids of the stored reports, in their order.
    pub stored: Vec<i64>,
    /// The reply to each command, in their order. A command that failed undid only itself.
    pub replies: Vec<Result<AnyReply>>,
}

/// By how many runs the counter of a provider rose without a run that became known: the row id of
/// the source, and the number.
pub type Missing = Vec<(i64, i64)>;

impl Writer {
    /// The stored state of these runs, in one query. A run whose row is damaged comes back as damaged.
    pub fn runs(&mut self, keys: &[(i64, RunId)]) -> Result<Vec<StoredRun>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        // An object that maps run ids to sources. A run id may stand in it more than once.
        let mut wanted = String::with_capacity(keys.len() * 48);
        for (source, run_id) in keys {
            wanted.push(if wanted.is_empty() { '{' } else { ',' });
            wanted.push_str(&to_json(&run_id.as_str()));
            wanted.push(':');
            wanted.push_str(&source.to_string());
        }
        wanted.push('}');
        self.look(|connection| {
            // CROSS JOIN fixes the order: each key is looked up in the index of (source, run_id).
            let mut select = connection.prepare_cached(
                "SELECT u.source, u.run_id, u.id, u.state FROM json_each(?1) k
                 CROSS JOIN runs u ON u.source = k.value AND u.run_id = k.key",
            )?;
            let rows = select.query_and_then([&wanted], stored_run)?;
            rows.collect()
        })
    }

    /// By source: when the provider last showed any of its runs in answer to a status request.
    pub fn found_at(&mut self) -> Result<BTreeMap<i64, At>> {
        self.look(|connection| {
            let mut select = connection
                .prepare_cached("SELECT id, found_at FROM sources WHERE found_at IS NOT NULL")?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, At(row.get(1)?))))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The seq that the next record gets.
    pub fn next_seq(&mut self) -> Result<i64> {
        self.look(|connection| {
            let mut select = connection.prepare_cached("SELECT recorded + 1 FROM meta")?;
            Ok(select.query_row([], |row| row.get(0))?)
        })
    }

    /// The payloads of stored reports. A report that retention has removed is missing from the map.
    pub fn payloads(&mut self, reports: &[i64]) -> Result<BTreeMap<i64, StoredPayload>> {
        if reports.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.look(|connection| {
            let mut select = connection
                .prepare_cached("SELECT meta, length(body) FROM reports WHERE id = ?1")?;
            let mut part = connection
                .prepare_cached("SELECT substr(body, ?2 + 1, ?3) FROM reports WHERE id = ?1")?;
            let mut payloads = BTreeMap::new();
            for report in reports {
                let mut rows = select.query([report])?;
                let Some(row) = rows.next()? else { continue };
                let meta = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                let meta: Meta = from_json(meta, "a report's meta")?;
                let length: i64 = row.get(1)?;
                let range = meta.payload_range(usize::try_from(length).unwrap_or(0));
                let payload = if range.len() > PAYLOAD_BYTES_MAX {
                    StoredPayload::TooLarge
                } else {
                    let number = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
                    let (from, bytes) = (number(range.start), number(range.len()));
                    let part = part.query_row((report, from, bytes), |row| {
                        row.get::<_, Option<Vec<u8>>>(0)
                    })?;
                    StoredPayload::Whole(part.unwrap_or_default())
                };
                payloads.insert(*report, payload);
            }
            Ok(payloads)
        })
    }

    /// Does everything in `commit` in one transaction. If the changes cannot be applied, nothing
    /// else has been done yet: the transaction is rolled back, and the rest goes into a second one. A
    /// savepoint for that rare case would copy every page that the changes write. On an error nothing
    /// happened.
    pub fn commit(&mut self, commit: &Commit<'_>) -> Result<Committed> {
        let mut refused = false;
        let whole = self.transaction(|tx| {
            let applied = match commit.changes.map(|changes| tx.apply(changes)) {
                None => Vec::new(),
                Some(Ok(missing)) => missing,
                Some(Err(error)) => {
                    refused = true;
                    return Err(error);
                }
            };
            tx.store_and_execute(commit, Ok(applied))
        });
        match whole {
            Err(error) if refused => {
                self.transaction(|tx| tx.store_and_execute(commit, Err(error)))
            }
            whole => whole,
        }
    }

    /// Applies a change set in a transaction of its own.
    pub fn apply(&mut self, changes: &ChangeSet) -> Result<Missing> {
        self.transaction(|tx| tx.apply(changes))
    }
}

fn stored_run(row: &Row<'_>) -> Result<StoredRun> {
    let state = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from);
    let state = state
        .map_err(LedgerError::from)
        .and_then(|state| from_json::<Run>(state, "a run's state"));
    Ok(StoredRun {
        source: row.get(0)?,
        run_id: row.get(1)?,
        row: row.get(2)?,
        state: state.map_err(|error| error.to_string()),
    })
}

impl Transaction<'_> {
    fn store_and_execute(
        &mut self,
        commit: &Commit<'_>,
        applied: Result<Missing>,
    ) -> Result<Committed> {
        let reports = commit.reports.iter();
        let stored = reports
            .map(|report| self.add_report(report))
            .collect::<Result<_>>()?;
        let commands = commit.commands.iter();
        let replies = commands
            .map(|command| self.apart(|tx| tx.execute(command)))
            .collect();
        Ok(Committed {
            applied,
            stored,
            replies,
        })
    }

    /// Writes a change set, by kind.
    fn apply(&mut self, changes: &ChangeSet) -> Result<Missing> {
        let rows = self.save_runs(&changes.runs)?;
        self.append_records(&changes.records, changes, &rows)?;
        self.add_timeline_rows(&changes.timeline, &rows)?;
        for (report, meta) in &changes.promoted {
            self.promote(*report, meta)?;
        }
        self.quarantine(&changes.quarantined)?;
        self.note(&changes.notes)?;
        self.drop_processed_bodies(&changes.bodies_dropped)?;
        let missing = self.count_runs(&changes.counted)?;
        for (source, traffic) in &changes.traffic {
            self.note_traffic(*source, traffic)?;
        }
        if let Some(upto) = changes.processed_upto {
            let marks = self.marks()?;
            marks.processed = marks.processed.max(upto);
        }
        Ok(missing)
    }

    /// Writes the runs and gives their rows. A run that is as it was is not written.
    fn save_runs(&mut self, changes: &[RunChange]) -> Result<Vec<i64>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut insert = self.tx.prepare_cached(
            "INSERT INTO runs (id, phase, overdue, outcome, origin, settled_at, first_webhook_at, poll_at,
                poll_urgent_at, wake_at, completion, state, opened_at, source, run_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?;
        let mut update = self.tx.prepare_cached(
            "UPDATE runs SET phase = ?2, overdue = ?3, outcome = ?4, origin = ?5, settled_at = ?6,
                first_webhook_at = ?7, poll_at = ?8, poll_urgent_at = ?9, wake_at = ?10,
                completion = coalesce(completion, ?11), state = ?12, opened_at = ?13
             WHERE id = ?1 AND source = ?14 AND run_id = ?15",
        )?;
        let mut rows = Vec::with_capacity(changes.len());
        for change in changes {
            let run = &change.after;
            let row = change.before.as_ref().map(|(row, _)| *row);
            let before = change.before.as_ref().map(|(_, before)| before);
            if let Some(row) = row.filter(|_| before == Some(run)) {
                rows.push(row);
                continue;
            }
            self.totals.note_settlement(change.source, before, run);
            self.totals.note_run(change.source, before, run);
            let (phase, outcome, origin, settled_at) = match &run.phase {
                Phase::Open(_) => ("open", None, None, None),
                Phase::Settled(settled) => (
                    "settled",
                    Some(settled.belief.ending.outcome.word()),
                    Some(settled.origin.word()),
                    Some(settled.at.0),
                ),
            };
            let (poll_urgent_at, poll_at) = match run.poll {
                Some(plan) if plan.urgent => (Some(plan.at.0), None),
                Some(plan) => (None, Some(plan.at.0)),
                None => (None, None),
            };
            let statement = if row.is_some() {
                &mut update
            } else {
                &mut insert
            };
            let written = statement.execute(params![
                row,
                phase,
                run.overdue,
                outcome,
                origin,
                settled_at,
                run.webhooks.first.map(|at| at.0),
                poll_at,
                poll_urgent_at,
                run.wake_at.map(|at| at.0),
                change.completion,
                to_json(run),
                run.opened_at().0,
                change.source,
                change.run_id.as_str(),
            ])?;
            if written != 1 {
                return Err(LedgerError::OutOfDate);
            }
            rows.push(row.unwrap_or_else(|| self.tx.last_insert_rowid()));
        }
        Ok(rows)
    }

    /// Appends records. Their numbers must be the next ones.
    fn append_records(
        &mut self,
        records: &[NewRecord],
        changes: &ChangeSet,
        rows: &[i64],
    ) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut marks = *self.marks()?;
        let mut insert = self.tx.prepare_cached(
            "INSERT INTO records (seq, run, type, at, source, group_id, outcome, origin, payload_report, envelope, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?;
        for record in records {
            if record.seq != marks.recorded + 1 {
                return Err(LedgerError::OutOfDate);
            }
            let draft = &record.draft;
            insert.execute(params![
                record.seq,
                rows[record.run],
                draft.record_type.word(),
                record.at.0,
                changes.runs[record.run].source,
                record.group_id,
                record.ending.map(|(outcome, _)| outcome),
                record.ending.map(|(_, origin)| origin),
                record.payload_report,
                draft.envelope,
                draft.data,
            ])?;
            let bytes = draft.envelope.len() + draft.data.len();
            marks.recorded = record.seq;
            marks.fed_bytes += i64::try_from(bytes).unwrap_or(i64::MAX);
        }
        drop(insert);
        *self.marks()? = marks;
        Ok(())
    }

    /// Adds rows to timelines: one per run and report, the last, unless an earlier one names the
    /// record that it caused.
    fn add_timeline_rows(&mut self, added: &[NewTimelineRow], rows: &[i64]) -> Result<()> {
        if added.is_empty() {
            return Ok(());
        }
        let mut insert = self.tx.prepare_cached(
            "INSERT INTO timeline (run, report, at, via, trust, claim, status, effect, seq)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT DO UPDATE SET at = excluded.at, via = excluded.via, trust = excluded.trust,
                claim = excluded.claim, status = excluded.status, effect = excluded.effect, seq = excluded.seq
             WHERE seq IS NULL",
        )?;
        for NewTimelineRow { run, row } in added {
            insert.execute(params![
                rows[*run], row.report, row.at.0, row.via, row.trust, row.claim, row.status,
                row.effect, row.seq
            ])?;
        }
        Ok(())
    }

    /// Quarantines reports. One that retention or the limits on unverified deliveries have removed
    /// needs no quarantine.
    fn quarantine(&mut self, quarantined: &[Quarantine]) -> Result<()> {
        if quarantined.is_empty() {
            return Ok(());
        }
        let mut insert = self.tx.prepare_cached(
            "INSERT INTO quarantined_reports (report, at, why) SELECT id, ?2, ?3 FROM reports WHERE id = ?1
             ON CONFLICT DO NOTHING",
        )?;
        for Quarantine { report, at, why } in quarantined {
            insert.execute((report, at.0, why))?;
        }
        Ok(())
    }

    /// Writes down why reports could not be read.
    fn note(&mut self, notes: &[(i64, String)]) -> Result<()> {
        if notes.is_empty() {
            return Ok(());
        }
        let mut update = self
            .tx
            .prepare_cached("UPDATE reports SET note = ?2 WHERE id = ?1")?;
        for note in notes {
            update.execute(params![note.0, note.1])?;
        }
        Ok(())
    }

    fn drop_processed_bodies(&mut self, reports: &[i64]) -> Result<()> {
        if reports.is_empty() {
            return Ok(());
        }
        let mut update = self
            .tx
            .prepare_cached("UPDATE reports SET body = x'' WHERE id = ?1")?;
        for report in reports {
            update.execute([report])?;
        }
        Ok(())
    }

    /// Compares counters of runs that providers sent with the runs that are known, and gives by how
    /// many more each counter has risen since it was last looked at than runs became known. A
    /// counter over a sliding window also falls, so only a rise means anything.
    fn count_runs(&mut self, counted: &[RunsCounted]) -> Result<Missing> {
        let mut all = Vec::new();
        for RunsCounted {
            source,
            counted,
            newly_known,
        } in counted
        {
            // `known` in the row is as it was before the batch: totals are written at the commit.
            let mut select = self.tx.prepare_cached(
                "SELECT counted - counted_known, ?2 - (known + ?3) FROM sources WHERE id = ?1",
            )?;
            let (before, unknown) = select.query_row((source, counted, newly_known), |row| {
                Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, i64>(1)?))
            })?;
            let missing = before.map_or(0, |before| (unknown - before).max(0));
            self.tx
                .prepare_cached(
                    "UPDATE sources SET counted = ?2, counted_known = known + ?3, unaccounted = unaccounted + ?4
                     WHERE id = ?1",
                )?
                .execute((source, counted, newly_known, missing))?;
            if missing > 0 {
                all.push((*source, missing));
            }
        }
        Ok(all)
    }
}
