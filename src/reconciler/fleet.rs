//! The configured sources as the ledger knows them: by row id, with what each needs at hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Source;
use crate::run::SourceName;
use crate::secret::Redactor;
use crate::store::{StoreError, Transaction, Writer};

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
    /// Its configuration.
    pub source: Arc<Source>,
    redactor: Redactor,
}

impl Member {
    /// A source under this row id.
    pub fn new(id: i64, source: Arc<Source>) -> Member {
        Member { id, redactor: source.redactor(), source }
    }

    /// The text without this source's secrets.
    pub fn redacted(&self, text: String) -> String {
        self.redactor.redact(text)
    }
}

impl Fleet {
    /// Gives every source its row.
    pub fn enlist(writer: &mut Writer, sources: &BTreeMap<SourceName, Arc<Source>>) -> Result<Fleet, StoreError> {
        writer.transaction(|tx| Fleet::enlist_in(tx, sources))
    }

    /// Gives every source its row, within a transaction.
    pub fn enlist_in(
        tx: &mut Transaction<'_>,
        sources: &BTreeMap<SourceName, Arc<Source>>,
    ) -> Result<Fleet, StoreError> {
        let rows = tx.sources(sources.values().map(|source| (source.name.as_str(), source.provider.name())))?;
        let mut fleet = Fleet::default();
        for (name, source) in sources {
            let id = rows[name.as_str()];
            fleet.ids.insert(name.clone(), id);
            fleet.by_id.insert(id, Arc::new(Member::new(id, source.clone())));
        }
        Ok(fleet)
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
