//! The configured sources as the ledger knows them: by row id, with what each needs at hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::SourceConfig;
use crate::ledger::{LedgerError, SourceRow, Transaction, Writer};
use crate::model::{At, SourceName, schedule};
use crate::secret::Redactor;

/// The configured sources, by the row ids they have in the ledger.
#[derive(Clone, Default)]
pub struct Sources {
    by_id: BTreeMap<i64, Arc<Source>>,
    ids: BTreeMap<SourceName, i64>,
}

/// One configured source.
pub struct Source {
    /// Row id.
    pub id: i64,
    /// When it was first configured.
    pub since: At,
    /// Its configuration.
    pub config: Arc<SourceConfig>,
    redactor: Redactor,
}

impl Source {
    /// A source under its row.
    pub fn new(row: SourceRow, config: Arc<SourceConfig>) -> Source {
        Source {
            id: row.id,
            since: row.since,
            redactor: config.redactor(),
            config,
        }
    }

    /// What its pace jitters by; see [`schedule::seed`].
    pub fn seed(&self) -> u64 {
        schedule::seed(self.config.name.as_str(), "")
    }

    /// Hides this source's secrets.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }
}

impl Sources {
    /// Gives every source its row.
    pub fn register(
        writer: &mut Writer,
        sources: &BTreeMap<SourceName, Arc<SourceConfig>>,
        now: At,
    ) -> Result<Sources, LedgerError> {
        writer.transaction(|tx| Sources::register_in(tx, sources, now))
    }

    /// Gives every source its row, within a transaction.
    pub fn register_in(
        tx: &mut Transaction<'_>,
        sources: &BTreeMap<SourceName, Arc<SourceConfig>>,
        now: At,
    ) -> Result<Sources, LedgerError> {
        let rows = tx.sources(
            sources
                .values()
                .map(|source| (source.name.as_str(), source.provider.name())),
            now,
        )?;
        Ok(Sources::of(sources.values().map(|source| {
            Source::new(rows[source.name.as_str()], source.clone())
        })))
    }

    /// These sources, whose rows are known.
    pub fn of(members: impl IntoIterator<Item = Source>) -> Sources {
        let mut sources = Sources::default();
        for member in members {
            sources.ids.insert(member.config.name.clone(), member.id);
            sources.by_id.insert(member.id, Arc::new(member));
        }
        sources
    }

    /// The source of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Source>> {
        let name = SourceName::new(name).ok()?;
        self.by_id.get(self.ids.get(&name)?)
    }

    /// Every source, in the order of their rows.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.by_id.values()
    }

    /// The row ids of every source.
    pub fn rows(&self) -> Vec<i64> {
        self.by_id.keys().copied().collect()
    }

    /// This sources, with `earlier` members for the rows that it has none for: what they took in and
    /// what is still on its way is read all the same.
    #[must_use]
    pub fn remembering(&self, earlier: &Sources) -> Sources {
        let mut sources = self.clone();
        for (id, member) in &earlier.by_id {
            sources.by_id.entry(*id).or_insert_with(|| member.clone());
        }
        sources
    }

    pub(super) fn member(&self, id: i64) -> Option<&Arc<Source>> {
        self.by_id.get(&id)
    }
}
