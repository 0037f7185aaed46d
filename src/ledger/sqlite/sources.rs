//! Sources in the ledger: their rows, and when each last delivered or answered.

use std::collections::BTreeMap;

use super::{Result, Transaction};
use crate::config::SourceRow;
use crate::ledger::changes::Traffic;
use crate::ledger::commands::RegisterSources;
use crate::model::At;

impl Transaction<'_> {
    /// Gives each source a row, keeping the row of a name that has one.
    pub(super) fn register_sources(
        &mut self,
        command: &RegisterSources,
    ) -> Result<BTreeMap<String, SourceRow>> {
        let mut upsert = self.tx.prepare_cached(
            "INSERT INTO sources (name, provider, since) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET provider = excluded.provider RETURNING id, since",
        )?;
        let mut rows = BTreeMap::new();
        for (name, provider) in &command.sources {
            let row = upsert.query_row((name, provider, command.now.0), |row| {
                Ok(SourceRow {
                    id: row.get(0)?,
                    since: At(row.get(1)?),
                })
            })?;
            rows.insert(name.clone(), row);
        }
        Ok(rows)
    }
}

impl Transaction<'_> {
    /// Notes when a source last delivered or answered.
    pub(super) fn note_traffic(&mut self, source: i64, traffic: &Traffic) -> Result<()> {
        let mut update = self.tx.prepare_cached(
            "UPDATE sources SET webhook_at = coalesce(?2, webhook_at), unverified_at = coalesce(?3, unverified_at),
                answer_at = coalesce(?4, answer_at), found_at = coalesce(?5, found_at) WHERE id = ?1",
        )?;
        let at = |at: Option<At>| at.map(|at| at.0);
        update.execute((
            source,
            at(traffic.webhook_at),
            at(traffic.unverified_at),
            at(traffic.answer_at),
            at(traffic.found_at),
        ))?;
        let mut used = self.tx.prepare_cached(
            "INSERT INTO secret_uses (source, label, last_at, uses) VALUES (?1, ?2, ?3, ?4) ON CONFLICT
             DO UPDATE SET last_at = max(last_at, excluded.last_at), uses = uses + excluded.uses",
        )?;
        for (label, uses) in &traffic.secrets {
            used.execute((source, label, at(traffic.webhook_at), uses))?;
        }
        Ok(())
    }
}
