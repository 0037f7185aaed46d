//! Records in the ledger: appended in the transaction of the decision that caused them, read in
//! order, never changed.

use rusqlite::{Row, params_from_iter, types::Value};

use super::{Result, Transaction, View, stored};
use crate::ledger::rows::{FeedBounds, Filter, RecordQuery, StoredRecord};
use crate::limits;
use crate::model::At;
use crate::model::record::{self, Cursor, RecordType};

impl Transaction<'_> {
    /// The seq of the last record appended, kept or not.
    pub(super) fn head(&mut self) -> Result<i64> {
        Ok(self.marks()?.recorded)
    }
}

impl View<'_> {
    /// Where the feed begins and ends.
    pub fn bounds(&self) -> Result<FeedBounds> {
        let mut select = self
            .connection
            .prepare_cached("SELECT trimmed, recorded FROM meta")?;
        Ok(select.query_row([], |row| {
            Ok(FeedBounds {
                trimmed: row.get(0)?,
                head: row.get(1)?,
            })
        })?)
    }

    /// Records in the order of the feed, and the seq up to which every record has now been looked
    /// at. Stops after [`limits::PAGE_BYTES`].
    pub fn records(&self, query: &RecordQuery<'_>) -> Result<(Vec<StoredRecord>, i64)> {
        let RecordQuery {
            after,
            upto,
            filter,
            rows_max,
            scan_max,
        } = *query;
        let last = upto.min(after.saturating_add(scan_max));
        let (conditions, values) = filter.sql();
        let sql = format!(
            "SELECT seq, type, at, envelope, data FROM records WHERE seq > ? AND seq <= ? {conditions} ORDER BY seq LIMIT ?"
        );
        let bounds = [Value::Integer(after), Value::Integer(last)];
        let limit = [Value::Integer(i64::try_from(rows_max).unwrap_or(i64::MAX))];
        let mut select = self.connection.prepare_cached(&sql)?;
        let rows = select.query_and_then(
            params_from_iter(bounds.into_iter().chain(values).chain(limit)),
            |row| self.record(row),
        )?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        for record in rows {
            let record: StoredRecord = record?;
            bytes += record.line.len();
            records.push(record);
            if bytes >= limits::PAGE_BYTES {
                break;
            }
        }
        let position = match records.last() {
            Some(record) if records.len() == rows_max || bytes >= limits::PAGE_BYTES => record.seq,
            _ => last.max(after),
        };
        Ok((records, position))
    }

    /// The record at a position.
    pub fn record_at(&self, seq: i64) -> Result<Option<StoredRecord>> {
        let mut select = self
            .connection
            .prepare_cached("SELECT seq, type, at, envelope, data FROM records WHERE seq = ?1")?;
        let mut rows = select.query_and_then([seq], |row| self.record(row))?;
        rows.next().transpose()
    }

    /// A position as a cursor.
    pub fn cursor(&self, seq: i64) -> Cursor {
        Cursor {
            epoch: self.epoch.to_owned(),
            seq,
        }
    }

    fn record(&self, row: &Row<'_>) -> Result<StoredRecord> {
        let text = |index: usize| row.get_ref(index)?.as_str().map_err(rusqlite::Error::from);
        let seq = row.get(0)?;
        Ok(StoredRecord {
            seq,
            record_type: stored(RecordType::from_word(text(1)?), "a record's type")?,
            at: At(row.get(2)?),
            line: record::line(text(3)?, self.epoch, seq, text(4)?),
        })
    }
}

impl Filter {
    /// SQL conditions and the values to bind to them. A value is never part of the text.
    fn sql(&self) -> (String, Vec<Value>) {
        let mut sql = String::new();
        let mut values = Vec::new();
        let mut any_of = |column: &str, list: Vec<String>| {
            if !list.is_empty() {
                let marks = vec!["?"; list.len()].join(", ");
                sql.push_str(&column.replace("{}", &marks));
                values.extend(list.into_iter().map(Value::Text));
            }
        };
        any_of(
            " AND type IN ({})",
            self.types.iter().map(ToString::to_string).collect(),
        );
        any_of(
            " AND source IN (SELECT id FROM sources WHERE name IN ({}))",
            self.source.clone(),
        );
        any_of(
            " AND source IN (SELECT id FROM sources WHERE provider IN ({}))",
            self.provider.clone(),
        );
        any_of(
            " AND outcome IN ({})",
            self.outcome.iter().map(ToString::to_string).collect(),
        );
        any_of(
            " AND origin IN ({})",
            self.origin.iter().map(ToString::to_string).collect(),
        );
        any_of(" AND group_id IN ({})", self.group.clone());
        (sql, values)
    }
}
