//! Retention of the feed. Records go from the oldest on, never from the middle: what is left is
//! always everything after one position.

use super::{Result, Transaction};
use crate::ledger::commands::{TrimRecords, Trimmed};

impl Transaction<'_> {
    pub(super) fn trim_records(&mut self, limits: &TrimRecords) -> Result<Trimmed> {
        let mut bytes = self.marks()?.fed_bytes;
        let trimmed: i64 = self
            .tx
            .query_row("SELECT trimmed FROM meta", [], |row| row.get(0))?;
        let slowest: Option<i64> =
            self.tx
                .query_row("SELECT min(acked) FROM consumers", [], |row| row.get(0))?;
        let (mut last, mut rows, mut held) = (trimmed, 0, false);
        {
            let mut oldest = self.tx.prepare_cached(
                "SELECT seq, at, length(CAST(envelope AS BLOB)) + length(CAST(data AS BLOB)) FROM records ORDER BY seq LIMIT ?1",
            )?;
            let mut oldest = oldest.query([limits.rows_max])?;
            while let Some(row) = oldest.next()? {
                let (seq, at, size): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let (old, free) = (
                    at < limits.before.0,
                    slowest.is_none_or(|slowest| seq <= slowest),
                );
                held |= old && !free;
                if bytes <= limits.bytes_max && !(old && free) {
                    break;
                }
                (last, rows, bytes) = (seq, rows + 1, bytes - size);
            }
        }
        let holding = if held {
            self.behind(last + 1)?
        } else {
            Vec::new()
        };
        if rows == 0 {
            return Ok(Trimmed {
                holding,
                ..Trimmed::default()
            });
        }
        let overrun = self.overrun(trimmed, last)?;
        self.tx
            .prepare_cached("DELETE FROM records WHERE seq <= ?1")?
            .execute([last])?;
        self.tx
            .prepare_cached("UPDATE meta SET trimmed = ?1")?
            .execute([last])?;
        self.marks()?.fed_bytes = bytes;
        Ok(Trimmed {
            rows,
            more: rows >= limits.rows_max as usize,
            overrun,
            holding,
        })
    }

    /// Consumers that have not acknowledged `seq`.
    fn behind(&mut self, seq: i64) -> Result<Vec<String>> {
        let mut select = self
            .tx
            .prepare_cached("SELECT name FROM consumers WHERE acked < ?1 ORDER BY name")?;
        let names = select.query_map([seq], |row| row.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    /// Consumers that lose records they have not acknowledged, once records up to `last` go.
    fn overrun(&mut self, trimmed: i64, last: i64) -> Result<Vec<String>> {
        let mut select = self.tx.prepare_cached(
            "SELECT name FROM consumers WHERE acked >= ?1 AND acked < ?2 ORDER BY name",
        )?;
        let names = select.query_map([trimmed, last], |row| row.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }
}
