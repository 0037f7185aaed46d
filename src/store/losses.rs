//! How many completions had to do without their webhook. Asked for by every look at the status and
//! every scrape, of ledgers with millions of runs: hours that are over are counted once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Result, View};
use crate::run::At;

/// The losses of one source in one span of time.
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

/// The spans of time over which losses are counted, with their names.
pub const LOSS_SPANS: [(&str, Duration); 3] = [
    ("1h", Duration::from_secs(3_600)),
    ("24h", Duration::from_secs(86_400)),
    ("30d", Duration::from_secs(30 * 86_400)),
];

/// Losses by the names of [`LOSS_SPANS`].
pub type Losses = BTreeMap<String, Loss>;

const HOUR: i64 = 3_600_000;

/// Completions, and those of them that were synthesized.
#[derive(Clone, Copy, Default)]
struct Count(i64, i64);

/// What has been counted of hours that are over, by source. A run settles now, never in the past, so
/// they do not change; the last hour before this one is left open for a clock that is set back a
/// little.
#[derive(Default)]
pub(super) struct Hours {
    of: Mutex<BTreeMap<i64, Counted>>,
}

/// The hours of one source, as numbers since 1970; all before `upto` that any span reaches.
#[derive(Default)]
struct Counted {
    upto: i64,
    hours: BTreeMap<i64, Count>,
}

impl View<'_> {
    /// Losses of every source, by row id.
    pub fn losses(&self, now: At) -> Result<BTreeMap<i64, Losses>> {
        let mut sources = self.connection.prepare_cached("SELECT id FROM sources")?;
        let ids = sources.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
        ids.into_iter().map(|id| Ok((id, self.losses_of(id, now)?))).collect()
    }

    fn losses_of(&self, source: i64, now: At) -> Result<Losses> {
        let mut all = self.hours.of.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = all.entry(source).or_default();
        let over = now.0.div_euclid(HOUR) - 1;
        self.count_hours(source, now, over, counted)?;
        let mut losses = Losses::new();
        for (name, span) in LOSS_SPANS {
            let since = before(now, span);
            let whole = hour_from(since);
            let Count(completions, synthesized) = if whole < over {
                let within = counted.hours.range(whole..over).map(|(_, count)| *count);
                let edges = [self.count(source, since, whole * HOUR)?, self.count(source, over * HOUR, i64::MAX)?];
                within.chain(edges).fold(Count::default(), |sum, one| Count(sum.0 + one.0, sum.1 + one.1))
            } else {
                self.count(source, since, i64::MAX)?
            };
            let mut late = self.connection.prepare_cached(
                "SELECT count(*) FROM runs INDEXED BY runs_late WHERE source = ?1 AND settled_at >= ?2
                    AND origin <> 'webhook' AND last_webhook_at > settled_at",
            )?;
            let late = late.query_row((source, since), |row| row.get(0))?;
            let rate = ratio(synthesized, completions);
            losses.insert(name.to_owned(), Loss { completions, synthesized, late, rate });
        }
        Ok(losses)
    }

    /// Counts the hours that have ended since the last time.
    fn count_hours(&self, source: i64, now: At, over: i64, counted: &mut Counted) -> Result<()> {
        let first = hour_from(before(now, LOSS_SPANS[2].1));
        if counted.upto > over {
            *counted = Counted::default(); // the clock was set back
        }
        let from = counted.upto.max(first);
        let mut select = self.connection.prepare_cached(
            "SELECT settled_at / 3600000, count(*), count(*) FILTER (WHERE origin <> 'webhook')
             FROM runs INDEXED BY runs_settled WHERE source = ?1 AND settled_at >= ?2 AND settled_at < ?3 GROUP BY 1",
        )?;
        let hours = select
            .query_map((source, from * HOUR, over * HOUR), |row| Ok((row.get(0)?, Count(row.get(1)?, row.get(2)?))))?;
        let hours = hours.collect::<rusqlite::Result<Vec<_>>>()?;
        counted.hours.retain(|hour, _| *hour >= first);
        counted.hours.extend(hours);
        counted.upto = over;
        Ok(())
    }

    fn count(&self, source: i64, since: i64, until: i64) -> Result<Count> {
        let mut count = self.connection.prepare_cached(
            "SELECT count(*), count(*) FILTER (WHERE origin <> 'webhook')
             FROM runs INDEXED BY runs_settled WHERE source = ?1 AND settled_at >= ?2 AND settled_at < ?3",
        )?;
        Ok(count.query_row((source, since, until), |row| Ok(Count(row.get(0)?, row.get(1)?)))?)
    }
}

fn before(now: At, span: Duration) -> i64 {
    now.0 - i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// The first hour that begins at this moment or after it.
fn hour_from(moment: i64) -> i64 {
    (moment + HOUR - 1).div_euclid(HOUR)
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people and graphs")]
fn ratio(part: i64, whole: i64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Writer;

    /// A settled run of source 1: when, whether by its webhook, and when its last webhook came.
    type Life = (i64, bool, Option<i64>);

    fn settle(writer: &mut Writer, number: usize, (at, by_webhook, webhook): Life) {
        let origin = if by_webhook { "webhook" } else { "poll" };
        let webhook = webhook.map_or("NULL".to_owned(), |at| at.to_string());
        let sql = format!(
            "INSERT OR IGNORE INTO sources (id, name, provider, since) VALUES (1, 'a', 'skyvern', 0);
             INSERT INTO runs (source, run_id, phase, overdue, outcome, origin, settled_at, last_webhook_at, completion,
                opened_at, state) VALUES (1, 'r{number}', 'settled', 0, 'succeeded', '{origin}', {at}, {webhook}, {number} + 1, 1, '')"
        );
        writer.transaction(|tx| Ok(tx.tx.execute_batch(&sql)?)).unwrap();
    }

    #[test]
    fn hours_that_are_over_are_remembered_and_the_sums_are_those_of_counting_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(&folder.path().join("settled.db"), At(0)).unwrap();
        let reader = writer.reader();
        // Seven runs settle between any two looks, the looks go on for forty days, and once back.
        let (mut lives, mut now): (Vec<Life>, i64) = (Vec::new(), 1_700_000_000_123);
        for look in 0..60_i64 {
            now += if look == 30 { -50 * HOUR } else { (look % 7 + 1) * 4 * HOUR + look * 777_777 };
            for one in 0..7 {
                let at = now - one * 400_000;
                let webhook = match one % 3 {
                    0 => None,
                    1 => Some(at - 5_000),
                    _ => Some(at + 5_000),
                };
                let life = (at, one % 2 == 0, webhook);
                settle(&mut writer, lives.len(), life);
                lives.push(life);
            }
            let mut losses = reader.read(|view| view.losses(At(now))).unwrap();
            for (name, span) in LOSS_SPANS {
                let within = |life: &&Life| life.0 >= before(At(now), span);
                let lost = |life: &&Life| !life.1;
                let late = |life: &&Life| life.2 > Some(life.0);
                let all = lives.iter().filter(within).count();
                let synthesized = lives.iter().filter(within).filter(lost).count();
                let late = lives.iter().filter(within).filter(lost).filter(late).count();
                let found = losses.get_mut(&1).unwrap().remove(name).unwrap();
                let found =
                    [found.completions, found.synthesized, found.late].map(|count| usize::try_from(count).unwrap());
                assert_eq!(found, [all, synthesized, late], "{name} at look {look}");
            }
        }
    }
}
