//! The configured sources as the ledger knows them: by row id, with what each needs at hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Source;
use crate::ledger::{SourceRow, StoreError, Transaction, Writer};
use crate::model::{At, SourceName, schedule};
use crate::secret::Redactor;

/// The configured sources, by the row ids they have in the ledger.
#[derive(Clone, Default)]
pub struct Fleet {
    by_id: BTreeMap<i64, Arc<Member>>,
    ids: BTreeMap<SourceName, i64>,
}

/// One configured source.
pub struct Member {
    /// Row id.
    pub id: i64,
    /// When it was first configured.
    pub since: At,
    /// Its configuration.
    pub source: Arc<Source>,
    redactor: Redactor,
}

impl Member {
    /// A source under its row.
    pub fn new(row: SourceRow, source: Arc<Source>) -> Member {
        Member {
            id: row.id,
            since: row.since,
            redactor: source.redactor(),
            source,
        }
    }

    /// What its pace jitters by; see [`schedule::seed`].
    pub fn seed(&self) -> u64 {
        schedule::seed(self.source.name.as_str(), "")
    }

    /// Hides this source's secrets.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }
}

impl Fleet {
    /// Gives every source its row.
    pub fn enlist(
        writer: &mut Writer,
        sources: &BTreeMap<SourceName, Arc<Source>>,
        now: At,
    ) -> Result<Fleet, StoreError> {
        writer.transaction(|tx| Fleet::enlist_in(tx, sources, now))
    }

    /// Gives every source its row, within a transaction.
    pub fn enlist_in(
        tx: &mut Transaction<'_>,
        sources: &BTreeMap<SourceName, Arc<Source>>,
        now: At,
    ) -> Result<Fleet, StoreError> {
        let rows = tx.sources(
            sources
                .values()
                .map(|source| (source.name.as_str(), source.provider.name())),
            now,
        )?;
        Ok(Fleet::of(sources.values().map(|source| {
            Member::new(rows[source.name.as_str()], source.clone())
        })))
    }

    /// These sources, whose rows are known.
    pub fn of(members: impl IntoIterator<Item = Member>) -> Fleet {
        let mut fleet = Fleet::default();
        for member in members {
            fleet.ids.insert(member.source.name.clone(), member.id);
            fleet.by_id.insert(member.id, Arc::new(member));
        }
        fleet
    }

    /// The source of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Member>> {
        let name = SourceName::new(name).ok()?;
        self.by_id.get(self.ids.get(&name)?)
    }

    /// Every source, in the order of their rows.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.by_id.values()
    }

    /// The row ids of every source.
    pub fn rows(&self) -> Vec<i64> {
        self.by_id.keys().copied().collect()
    }

    /// This fleet, with `earlier` members for the rows that it has none for: what they took in and
    /// what is still on its way is read all the same.
    #[must_use]
    pub fn remembering(&self, earlier: &Fleet) -> Fleet {
        let mut fleet = self.clone();
        for (id, member) in &earlier.by_id {
            fleet.by_id.entry(*id).or_insert_with(|| member.clone());
        }
        fleet
    }

    pub(super) fn member(&self, id: i64) -> Option<&Arc<Member>> {
        self.by_id.get(&id)
    }
}
