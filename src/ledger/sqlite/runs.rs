//! Runs in the ledger: counted, found when a poll or a timer is due, and listed.

use rusqlite::{OptionalExtension, Row, params};

use super::{DamagedRow, Result, Totals, Transaction, View, from_json, stored, to_json};
use crate::ledger::commands::ClampPolls;
use crate::ledger::rows::{Due, DueTimers, RunPage, RunQuery, RunRow, SecretUse, SourceCounts};
use crate::model::decide::{Phase, Run};
use crate::model::{At, RunId, RunKey, SourceName};

impl Totals {
    /// Counts what a change of a run means for the numbers of its source.
    pub(super) fn note_run(&mut self, source: i64, before: Option<&Run>, after: &Run) {
        let (was, is) = (RunCounts::of(before), RunCounts::of(Some(after)));
        if was != is {
            let change = self.runs.entry(source).or_default();
            change.known += is.known - was.known;
            change.open += is.open - was.open;
            change.overdue += is.overdue - was.overdue;
        }
    }
}

impl Transaction<'_> {
    pub(super) fn write_run_counts(&mut self) -> Result<()> {
        for (source, change) in std::mem::take(&mut self.totals.runs) {
            let sql = "UPDATE sources SET known = known + ?2, open = open + ?3, overdue = overdue + ?4 WHERE id = ?1";
            self.tx.prepare_cached(sql)?.execute((
                source,
                change.known,
                change.open,
                change.overdue,
            ))?;
        }
        Ok(())
    }

    pub(super) fn clamp_polls(&mut self, command: &ClampPolls) -> Result<usize> {
        let mut moved = self.tx.execute(
            "UPDATE runs SET poll_at = ?1,
                    state = CASE WHEN json_valid(state) THEN json_set(state, '$.poll.at', ?1) ELSE state END
                 WHERE poll_at IS NOT NULL AND poll_at > ?2",
            (command.now.0, command.latest.0),
        )?;
        for (source, interval) in &command.sources {
            let span = i64::try_from(interval.as_millis())
                .unwrap_or(i64::MAX)
                .max(1);
            for column in ["poll_at", "poll_urgent_at"] {
                // The run's number spreads the polls over the interval.
                let sql = format!(
                    "UPDATE runs SET {column} = ?2 + (id * 7919) % ?3,
                        state = CASE WHEN json_valid(state)
                            THEN json_set(state, '$.poll.at', ?2 + (id * 7919) % ?3) ELSE state END
                     WHERE source = ?1 AND {column} > ?2 + ?3 AND wake_at IS NOT NULL"
                );
                moved += self.tx.execute(&sql, (source, command.now.0, span))?;
            }
        }
        self.tx.execute(
            "UPDATE runs SET wake_at = ?1, state = json_set(state, '$.wake_at', ?1)
             WHERE wake_at > ?1 AND json_valid(state)
                AND (json_extract(state, '$.phase.open.claim') IS NOT NULL
                    OR json_extract(state, '$.phase.open.seen') IS NOT NULL)",
            [command.now.0],
        )?;
        Ok(moved)
    }
}

/// Numbers of a source's runs, or the change of them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RunCounts {
    known: i64,
    open: i64,
    overdue: i64,
}

impl RunCounts {
    /// The numbers of one run, or of none.
    fn of(run: Option<&Run>) -> RunCounts {
        let Some(run) = run else {
            return RunCounts::default();
        };
        let open = matches!(run.phase, Phase::Open(_));
        RunCounts {
            known: 1,
            open: i64::from(open),
            overdue: i64::from(open && run.overdue),
        }
    }
}

/// How many of the runs that have been due for longest are ordered by age. After a long absence sorting
/// all of them would cost more than it is worth.
const DUE_WINDOW: u32 = 256;

const RUN_COLUMNS: &str = "SELECT u.id, s.name, s.provider, u.run_id, u.state, u.completion FROM runs u JOIN sources s ON s.id = u.source";

impl View<'_> {
    /// Runs of `source` to poll at `now`: urgent ones first, then those that were due when the poll
    /// window last opened, at `window`. Among the runs that have been due for longest the oldest comes
    /// first: it has the least time left before its provider forgets it.
    pub fn due(&self, source: i64, now: At, window: At, max: u32) -> Result<Vec<Due>> {
        let mut due = self.due_by("poll_urgent_at", source, now, max)?;
        let room = max.saturating_sub(u32::try_from(due.len()).unwrap_or(max));
        due.extend(self.due_by("poll_at", source, window.min(now), room)?);
        Ok(due)
    }

    fn due_by(&self, column: &str, source: i64, until: At, max: u32) -> Result<Vec<Due>> {
        let sql = format!(
            "SELECT id, run_id, state, (SELECT name FROM sources WHERE id = ?1) FROM runs WHERE id IN (
                SELECT id FROM runs WHERE source = ?1 AND {column} IS NOT NULL AND {column} <= ?2 ORDER BY {column} LIMIT {DUE_WINDOW})
             ORDER BY opened_at"
        );
        let mut select = self.connection.prepare_cached(&sql)?;
        self.damages
            .pick(select.query((source, until.0))?, max as usize, due, |row| {
                DamagedRow::run(row, Some(3), 1)
            })
    }

    /// When the next urgent poll of `source` after `now` is due.
    pub fn next_urgent_after(&self, source: i64, now: At) -> Result<Option<At>> {
        let mut select = self.connection.prepare_cached(
            "SELECT min(poll_urgent_at) FROM runs WHERE source = ?1 AND poll_urgent_at IS NOT NULL AND poll_urgent_at > ?2",
        )?;
        let at: Option<i64> = select.query_row((source, now.0), |row| row.get(0))?;
        Ok(at.map(At))
    }

    /// Runs of `sources` one of whose limits has passed, and when the next limit passes. `sources` are
    /// the configured ones: no provider could read the timer of another. The query names the index of
    /// open runs, since SQLite would walk every run that the sources ever had.
    pub fn due_timers(&self, sources: &[i64], now: At, max: u32) -> Result<DueTimers> {
        let sources = to_json(&sources);
        let mut select = self.connection.prepare_cached(
            "SELECT u.source, u.run_id, u.state, s.name
             FROM runs u INDEXED BY runs_wake CROSS JOIN sources s ON s.id = u.source
             WHERE u.wake_at IS NOT NULL AND u.wake_at <= ?1
                AND u.source IN (SELECT value FROM json_each(?2)) ORDER BY u.wake_at",
        )?;
        let rows = select.query((now.0, &sources))?;
        // The timer of a damaged run would only be quarantined, again and again.
        let due = self.damages.pick(rows, max as usize, timer, |row| {
            DamagedRow::run(row, Some(3), 1)
        })?;
        let mut select = self.connection.prepare_cached(
            "SELECT wake_at FROM runs INDEXED BY runs_wake WHERE wake_at IS NOT NULL AND wake_at > ?1
                    AND source IN (SELECT value FROM json_each(?2)) ORDER BY wake_at LIMIT 1",
        )?;
        let next: Option<i64> = select
            .query_row((now.0, &sources), |row| row.get(0))
            .optional()?;
        Ok((due, next.map(At)))
    }

    /// One run by its key.
    pub fn run(&self, key: &RunKey) -> Result<Option<RunRow>> {
        let sql = format!("{RUN_COLUMNS} WHERE s.name = ?1 AND u.run_id = ?2");
        let mut select = self.connection.prepare_cached(&sql)?;
        let mut rows =
            select.query_and_then((key.source.as_str(), key.run_id.as_str()), run_row)?;
        rows.next().transpose()
    }

    /// Runs, in the order in which they became known or in the reverse of it.
    pub fn runs(&self, query: &RunQuery) -> Result<RunPage> {
        let RunQuery {
            phase,
            source,
            overdue,
            newest,
            after,
            before,
            limit,
        } = query;
        // `wake_at IS NOT NULL` means open, and is what the index of open runs covers.
        let open = if *phase == Some("open") || *overdue {
            "AND u.wake_at IS NOT NULL"
        } else {
            ""
        };
        let order = if *newest { "DESC" } else { "ASC" };
        let sql = format!(
            "{RUN_COLUMNS} WHERE u.id > ?1 AND u.id < ?2 AND (?3 IS NULL OR u.phase = ?3) AND (?4 IS NULL OR s.name = ?4)
               AND (?5 = 0 OR u.overdue = 1) {open} ORDER BY u.id {order} LIMIT ?6"
        );
        let mut select = self.connection.prepare_cached(&sql)?;
        let mut rows = select.query(params![
            after,
            before.unwrap_or(i64::MAX),
            phase,
            source,
            overdue,
            limit
        ])?;
        let (mut page, mut left, mut last) = (RunPage::default(), *limit, None);
        while let Some(row) = rows.next()? {
            (left, last) = (left.saturating_sub(1), Some(row.get(0)?));
            let named = || DamagedRow::run(row, Some(1), 3);
            match self.damages.step_over(run_row(row), named)? {
                Some(run) => page.runs.push(run),
                None => page.damaged.push(named()),
            }
        }
        page.next = last.filter(|_| left == 0);
        Ok(page)
    }

    /// Settled runs of a source for which no webhook ever came, newest first.
    pub fn without_webhook(&self, source: &str, limit: u32) -> Result<Vec<RunRow>> {
        let sql = format!(
            "{RUN_COLUMNS} WHERE s.name = ?1 AND u.settled_at IS NOT NULL AND u.first_webhook_at IS NULL AND u.origin = 'poll' ORDER BY u.id DESC LIMIT ?2"
        );
        let mut select = self.connection.prepare_cached(&sql)?;
        let rows = select.query((source, limit))?;
        self.damages.pick(rows, limit as usize, run_row, |row| {
            DamagedRow::run(row, Some(1), 3)
        })
    }

    /// When each secret last verified a delivery.
    pub fn secret_uses(&self) -> Result<Vec<SecretUse>> {
        let mut select = self
            .connection
            .prepare_cached("SELECT source, label, last_at, uses FROM secret_uses")?;
        let rows = select.query_map([], |row| {
            Ok(SecretUse {
                source: row.get(0)?,
                label: row.get(1)?,
                last_at: At(row.get(2)?),
                uses: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Every source that has or ever had a row, with its numbers.
    pub fn source_counts(&self) -> Result<Vec<SourceCounts>> {
        let mut select = self.connection.prepare_cached(
            "SELECT id, name, provider, open, overdue, webhook_at, unverified_at, answer_at, unaccounted
             FROM sources ORDER BY name",
        )?;
        let rows = select.query_map([], |row| {
            let at =
                |column: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(At));
            Ok(SourceCounts {
                id: row.get("id")?,
                name: row.get("name")?,
                provider: row.get("provider")?,
                open: row.get("open")?,
                overdue: row.get("overdue")?,
                webhook_at: at("webhook_at")?,
                unverified_at: at("unverified_at")?,
                answer_at: at("answer_at")?,
                unaccounted: row.get("unaccounted")?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

fn due(row: &Row<'_>) -> Result<Due> {
    Ok(Due {
        row: row.get(0)?,
        run_id: run_id(row, 1)?,
        run: from_json(text(row, 2)?, "a run's state")?,
    })
}

fn timer(row: &Row<'_>) -> Result<(i64, RunId)> {
    let _: Run = from_json(text(row, 2)?, "a run's state")?;
    Ok((row.get(0)?, run_id(row, 1)?))
}

fn run_id(row: &Row<'_>, index: usize) -> Result<RunId> {
    stored(RunId::new(text(row, index)?).ok(), "a run id")
}

fn text<'r>(row: &'r Row<'_>, index: usize) -> Result<&'r str> {
    Ok(row
        .get_ref(index)?
        .as_str()
        .map_err(rusqlite::Error::from)?)
}

fn run_row(row: &Row<'_>) -> Result<RunRow> {
    Ok(RunRow {
        row: row.get(0)?,
        key: RunKey {
            source: stored(SourceName::new(text(row, 1)?).ok(), "a source name")?,
            run_id: run_id(row, 3)?,
        },
        provider: row.get(2)?,
        run: from_json(text(row, 4)?, "a run's state")?,
        completion: row.get(5)?,
    })
}
