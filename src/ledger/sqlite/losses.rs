//! How many completions were published without their webhook.
//!
//! They are counted by the minute in the transaction that settles the runs, so that a rate over a month
//! is a sum of a few thousand rows and does not read every run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Result, Totals, Transaction, View};
use crate::ledger::commands::ForgetSettlements;
use crate::ledger::rows::{LOSS_SPANS, Loss, Losses};
use crate::model::decide::{Phase, Run};
use crate::model::{At, Origin};

/// Runs of a source that settled in one minute.
#[derive(Clone, Copy, Default)]
pub(super) struct Settlements {
    completions: i64,
    synthesized: i64,
    late: i64,
}

impl Totals {
    /// Counts what a change of a run means for its source's losses.
    pub(super) fn note_settlement(&mut self, source: i64, before: Option<&Run>, after: &Run) {
        let Phase::Settled(settled) = &after.phase else {
            return;
        };
        let was_settled = before.is_some_and(|before| matches!(before.phase, Phase::Settled(_)));
        let synthesized = settled.origin != Origin::Webhook;
        let came_late = |run: &Run| run.webhooks.last.is_some_and(|last| last > settled.at);
        let late = synthesized && came_late(after) && !before.is_some_and(came_late);
        if was_settled && !late {
            return;
        }
        let counts = self
            .settlements
            .entry((source, minute(settled.at)))
            .or_default();
        if !was_settled {
            counts.completions += 1;
            counts.synthesized += i64::from(synthesized);
        }
        counts.late += i64::from(late);
    }
}

impl Transaction<'_> {
    pub(super) fn write_settlements(&mut self) -> Result<()> {
        for ((source, minute), counts) in std::mem::take(&mut self.totals.settlements) {
            // A late webhook must not bring back the row of a minute that retention has removed.
            let sql = if counts.completions == 0 {
                "UPDATE settlements SET completions = completions + ?3, synthesized = synthesized + ?4, late = late + ?5
                 WHERE source = ?1 AND minute = ?2"
            } else {
                "INSERT INTO settlements (source, minute, completions, synthesized, late) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET completions = completions + excluded.completions,
                    synthesized = synthesized + excluded.synthesized, late = late + excluded.late"
            };
            let values = (
                source,
                minute,
                counts.completions,
                counts.synthesized,
                counts.late,
            );
            self.tx.prepare_cached(sql)?.execute(values)?;
        }
        Ok(())
    }

    pub(super) fn forget_settlements(&mut self, command: ForgetSettlements) -> Result<usize> {
        let before = since(command.now, LOSS_SPANS[2].1);
        Ok(self
            .tx
            .prepare_cached("DELETE FROM settlements WHERE minute < ?1")?
            .execute([before])?)
    }
}

impl View<'_> {
    /// Losses of every source, by row id.
    pub fn losses(&self, now: At) -> Result<BTreeMap<i64, Losses>> {
        let mut all: BTreeMap<i64, Losses> = BTreeMap::new();
        let mut sum = self.connection.prepare_cached(
            "SELECT s.id, coalesce(sum(completions), 0), coalesce(sum(synthesized), 0), coalesce(sum(late), 0)
             FROM sources s LEFT JOIN settlements t ON t.source = s.id AND t.minute >= ?1 GROUP BY s.id",
        )?;
        for (name, span) in LOSS_SPANS {
            let mut rows = sum.query([since(now, span)])?;
            while let Some(row) = rows.next()? {
                let (completions, synthesized, late) = (row.get(1)?, row.get(2)?, row.get(3)?);
                let loss = Loss {
                    completions,
                    synthesized,
                    late,
                    rate: ratio(synthesized, completions),
                };
                all.entry(row.get(0)?)
                    .or_default()
                    .insert(name.to_owned(), loss);
            }
        }
        Ok(all)
    }
}

fn minute(at: At) -> i64 {
    at.0.div_euclid(60_000)
}

/// The first minute of a span that ends now.
fn since(now: At, span: Duration) -> i64 {
    minute(At(now.0.saturating_sub(
        i64::try_from(span.as_millis()).unwrap_or(i64::MAX),
    )))
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people and graphs")]
fn ratio(part: i64, whole: i64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
