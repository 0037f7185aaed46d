//! The configured sources by the row ids they have in the ledger, each with what it needs at hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::SourceConfig;
use crate::model::{At, SourceName, schedule};
use crate::secret::Redactor;

/// The row of a source in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRow {
    /// The row id, which every report and run refers to.
    pub id: i64,
    /// When the source was first configured.
    pub since: At,
}

/// The configured sources, by row id and by name.
#[derive(Clone, Default)]
pub struct Sources {
    by_id: BTreeMap<i64, Arc<Source>>,
    ids: BTreeMap<SourceName, i64>,
}

/// One configured source.
pub struct Source {
    /// The row id.
    pub id: i64,
    /// When it was first configured. A run that was over before that is history.
    pub since: At,
    /// Its configuration.
    pub config: Arc<SourceConfig>,
    redactor: Redactor,
}

impl Source {
    /// A source with its row.
    pub fn new(row: SourceRow, config: Arc<SourceConfig>) -> Source {
        Source {
            id: row.id,
            since: row.since,
            redactor: config.redactor(),
            config,
        }
    }

    /// The seed of its jitter; see [`schedule::seed`].
    pub fn seed(&self) -> u64 {
        schedule::seed(self.config.name.as_str(), "")
    }

    /// Hides this source's secrets.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }
}

impl Sources {
    /// These sources, whose rows are known.
    pub fn of(sources: impl IntoIterator<Item = Source>) -> Sources {
        let mut all = Sources::default();
        for source in sources {
            all.ids.insert(source.config.name.clone(), source.id);
            all.by_id.insert(source.id, Arc::new(source));
        }
        all
    }

    /// The source of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Source>> {
        let name = SourceName::new(name).ok()?;
        self.by_id.get(self.ids.get(&name)?)
    }

    /// The source of this row id.
    pub fn by_id(&self, id: i64) -> Option<&Arc<Source>> {
        self.by_id.get(&id)
    }

    /// Every source, in the order of the row ids.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.by_id.values()
    }

    /// The row ids of every source.
    pub fn rows(&self) -> Vec<i64> {
        self.by_id.keys().copied().collect()
    }

    /// These sources, and those of `earlier` for row ids that have none here. Reports of a source
    /// that was just removed from the configuration may still be on their way.
    #[must_use]
    pub fn remembering(&self, earlier: &Sources) -> Sources {
        let mut sources = self.clone();
        for (id, source) in &earlier.by_id {
            sources.by_id.entry(*id).or_insert_with(|| source.clone());
        }
        sources
    }
}
