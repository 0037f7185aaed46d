//! Damaged rows: each is logged once, counted, and stepped over, so that one damaged row does not
//! affect the others. Nothing here changes a row.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rusqlite::types::ValueRef;
use rusqlite::{Row, Rows};

use super::{LedgerError, Result};
use crate::ledger::rows::DamagedRow;

/// How many damaged rows are remembered; `settled check` finds all of them.
const REMEMBERED_MAX: usize = 1_000;

/// The damaged rows found since the start, with what is wrong with each.
#[derive(Default)]
pub(super) struct Damages {
    met: Mutex<BTreeMap<DamagedRow, String>>,
}

impl Damages {
    /// A row that was read, or `None` for a damaged one. An error of the disk stays an error: it says
    /// nothing about this row.
    pub fn step_over<T>(
        &self,
        read: Result<T>,
        named: impl FnOnce() -> DamagedRow,
    ) -> Result<Option<T>> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.blames_the_disk() => Err(error),
            Err(error) => {
                self.note(named(), &error);
                Ok(None)
            }
        }
    }

    /// Up to `max` readable ones of `rows`; damaged rows do not count.
    pub fn pick<T>(
        &self,
        mut rows: Rows<'_>,
        max: usize,
        read: impl Fn(&Row<'_>) -> Result<T>,
        named: impl Fn(&Row<'_>) -> DamagedRow,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        while found.len() < max
            && let Some(row) = rows.next()?
        {
            found.extend(self.step_over(read(row), || named(row))?);
        }
        Ok(found)
    }

    fn note(&self, row: DamagedRow, error: &LedgerError) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if met.len() < REMEMBERED_MAX && !met.contains_key(&row) {
            let (table, source, name, error) = (
                &row.table,
                row.source.as_deref(),
                &row.name,
                error.to_string(),
            );
            if table == "runs" {
                tracing::error!(
                    source,
                    run_id = name,
                    error,
                    "a damaged row is stepped over; run `settled check`"
                );
            } else {
                tracing::error!(
                    table,
                    name,
                    error,
                    "a damaged row is stepped over; run `settled check`"
                );
            }
            met.insert(row, error);
        }
    }

    pub fn met(&self) -> Vec<DamagedRow> {
        self.met
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }
}

impl DamagedRow {
    /// A run by columns of a row.
    pub(super) fn run(row: &Row<'_>, source: Option<usize>, run_id: usize) -> DamagedRow {
        DamagedRow {
            table: "runs".to_owned(),
            source: source.map(|at| legible(row, at)),
            name: legible(row, run_id),
        }
    }

    /// The name of the row: `source:run_id`, or a consumer's name.
    pub fn key(&self) -> String {
        let source = self
            .source
            .as_ref()
            .map(|source| format!("{source}:"))
            .unwrap_or_default();
        format!("{source}{}", self.name)
    }

    /// A consumer by the column of its name.
    pub(super) fn consumer(row: &Row<'_>, name: usize) -> DamagedRow {
        DamagedRow {
            table: "consumers".to_owned(),
            source: None,
            name: legible(row, name),
        }
    }
}

impl std::fmt::Display for DamagedRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.key(), self.table)
    }
}

/// The value of a column as text, as far as it can be read.
fn legible(row: &Row<'_>, index: usize) -> String {
    match row.get_ref(index) {
        Ok(ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        Ok(ValueRef::Integer(number)) => number.to_string(),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn an_error_of_the_disk_is_no_damage_of_a_row() {
        let damages = Damages::default();
        let failed = |code| {
            Err::<(), _>(LedgerError::from(rusqlite::Error::SqliteFailure(
                ffi::Error::new(code),
                None,
            )))
        };
        let named = || DamagedRow {
            table: "runs".to_owned(),
            source: None,
            name: "wr_1".to_owned(),
        };
        assert!(damages.step_over(failed(ffi::SQLITE_IOERR), named).is_err());
        assert_eq!(damages.met(), []);
        let unreadable = Err::<(), _>(LedgerError::Unreadable("a run's state".to_owned()));
        assert!(damages.step_over(unreadable, named).unwrap().is_none());
        assert_eq!(damages.met(), [named()]);
    }
}
