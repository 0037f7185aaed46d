//! Named readers in the ledger: where each has come to, and what it has parked.
//!
//! Generations come from one counter for the whole ledger and are never given twice, so that a
//! number held by the reader of a consumer since deleted cannot fit the one made in its place.

use rusqlite::{OptionalExtension, Row, params};

use super::{DamagedRow, Filter, Result, Transaction, View, from_json, stored, to_json};
use crate::model::At;
use crate::model::record::{self, RecordType};

/// A named reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Everything up to this seq is done.
    pub acked: i64,
    /// What it wants; fixed for life.
    pub filter: Filter,
    /// Records that may be out unacknowledged; 0: any number.
    pub window: u32,
    /// Of the last reader, seek or creation.
    pub generation: i64,
    /// When it was made.
    pub created_at: At,
    /// When it was last opened, acknowledged or moved.
    pub seen_at: At,
}

/// What became of an acknowledgement, or of another change a reader asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// There is no consumer of this name.
    Unknown,
    /// The reader that asked has been superseded; this is the generation now.
    Stale(i64),
    /// No record has this number yet; this is the last that has.
    Beyond(i64),
    /// There is no such record, or retention removed it.
    Absent,
    /// As many are parked as may be.
    Full,
    /// Done.
    Done {
        /// The position now.
        acked: i64,
        /// Seq of the last record.
        head: i64,
    },
}

/// An event a consumer has parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedRow {
    /// Its position.
    pub seq: i64,
    /// The whole line.
    pub line: String,
    /// How often it was tried.
    pub attempts: u32,
    /// How the last attempt failed.
    pub error: String,
    /// When that was.
    pub at: At,
    /// Somebody asked for another attempt.
    pub retry: bool,
}

const COLUMNS: &str =
    "SELECT name, acked, filter, window, generation, created_at, seen_at FROM consumers";

impl Transaction<'_> {
    /// Makes a consumer at a position, or gives the one of this name; true: it is new.
    pub fn create_consumer(
        &mut self,
        name: &str,
        acked: i64,
        filter: &Filter,
        window: u32,
        now: At,
    ) -> Result<(Consumer, bool)> {
        if let Some(consumer) = consumer(&self.tx, name)? {
            return Ok((consumer, false));
        }
        let generation = self.next_generation()?;
        self.tx
            .prepare_cached(
                "INSERT INTO consumers (name, acked, filter, window, generation, created_at, seen_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
            )?
            .execute(params![name, acked, to_json(filter), window, generation, now.0])?;
        let consumer = stored(consumer(&self.tx, name)?, "a consumer just made")?;
        Ok((consumer, true))
    }

    /// Gives a consumer to a new reader, which supersedes the one before.
    pub fn open_consumer(&mut self, name: &str, now: At) -> Result<Option<Consumer>> {
        let generation = self.next_generation()?;
        self.tx
            .prepare_cached("UPDATE consumers SET generation = ?2, seen_at = ?3 WHERE name = ?1")?
            .execute((name, generation, now.0))?;
        consumer(&self.tx, name)
    }

    /// Moves a position forward, never back. Invariant 9: the answer waits for the commit.
    pub fn ack(&mut self, name: &str, seq: i64, generation: Option<i64>, now: At) -> Result<Moved> {
        let Some(consumer) = consumer(&self.tx, name)? else {
            return Ok(Moved::Unknown);
        };
        let head = self.head()?;
        if generation.is_some_and(|generation| generation != consumer.generation) {
            return Ok(Moved::Stale(consumer.generation));
        }
        if seq > head {
            return Ok(Moved::Beyond(head));
        }
        let acked = seq.max(consumer.acked);
        self.tx
            .prepare_cached("UPDATE consumers SET acked = ?2, seen_at = ?3 WHERE name = ?1")?
            .execute((name, acked, now.0))?;
        Ok(Moved::Done { acked, head })
    }

    /// Puts a position somewhere else, which fences the readers there are.
    pub fn seek(&mut self, name: &str, seq: i64, now: At) -> Result<Option<Consumer>> {
        let generation = self.next_generation()?;
        self.tx
            .prepare_cached(
                "UPDATE consumers SET acked = ?2, generation = ?3, seen_at = ?4 WHERE name = ?1",
            )?
            .execute((name, seq, generation, now.0))?;
        consumer(&self.tx, name)
    }

    /// Removes a consumer with what it has parked. Gives the number of those, and a generation
    /// that supersedes its readers.
    pub fn delete_consumer(&mut self, name: &str) -> Result<Option<(i64, i64)>> {
        let parked = parked_count(&self.tx, name)?;
        let gone = self
            .tx
            .prepare_cached("DELETE FROM consumers WHERE name = ?1")?
            .execute([name])?;
        if gone == 0 {
            Ok(None)
        } else {
            Ok(Some((parked, self.next_generation()?)))
        }
    }

    fn next_generation(&mut self) -> Result<i64> {
        let mut next = self
            .tx
            .prepare_cached("UPDATE meta SET generation = generation + 1 RETURNING generation")?;
        Ok(next.query_row([], |row| row.get(0))?)
    }
}

/// One failure of an event, as its consumer reports it.
#[derive(Clone, Debug)]
pub struct Parking {
    /// Whose event.
    pub name: String,
    /// Which.
    pub seq: i64,
    /// The reader that says so.
    pub generation: Option<i64>,
    /// How often it was tried.
    pub attempts: u32,
    /// How the last attempt failed.
    pub error: String,
}

impl Transaction<'_> {
    /// Parks an event and moves the position past it, or notes that a parked one failed again. At
    /// most `parked_max` of a consumer are kept.
    pub fn park(&mut self, parking: &Parking, parked_max: i64, now: At) -> Result<Moved> {
        let Parking {
            name,
            seq,
            generation,
            attempts,
            error,
        } = parking;
        // Foremost as an ack: who may not move the position may not park either.
        let moved = self.ack(name, 0, *generation, now)?;
        if !matches!(moved, Moved::Done { .. }) {
            return Ok(moved);
        }
        let again = self
            .tx
            .prepare_cached(
                "UPDATE parked SET attempts = ?3, error = ?4, at = ?5, retry = 0 WHERE consumer = ?1 AND seq = ?2",
            )?
            .execute(params![name, seq, attempts, error, now.0])?;
        if again > 0 {
            return Ok(moved);
        }
        if parked_count(&self.tx, name)? >= parked_max {
            return Ok(Moved::Full);
        }
        let added = self
            .tx
            .prepare_cached(
                "INSERT INTO parked (consumer, seq, type, envelope, data, attempts, error, at, retry)
                 SELECT ?1, seq, type, envelope, data, ?3, ?4, ?5, 0 FROM records WHERE seq = ?2",
            )?
            .execute(params![name, seq, attempts, error, now.0])?;
        if added == 0 {
            Ok(Moved::Absent)
        } else {
            self.ack(name, *seq, *generation, now)
        }
    }

    /// Asks for another attempt at one parked event, or all of them; how many.
    pub fn retry_parked(&mut self, name: &str, seq: Option<i64>) -> Result<usize> {
        let mut retry = self.tx.prepare_cached(
            "UPDATE parked SET retry = 1 WHERE consumer = ?1 AND (?2 IS NULL OR seq = ?2)",
        )?;
        Ok(retry.execute((name, seq))?)
    }

    /// Forgets one parked event, or all of them; how many.
    pub fn drop_parked(&mut self, name: &str, seq: Option<i64>) -> Result<usize> {
        let mut drop = self.tx.prepare_cached(
            "DELETE FROM parked WHERE consumer = ?1 AND (?2 IS NULL OR seq = ?2)",
        )?;
        Ok(drop.execute((name, seq))?)
    }
}

impl View<'_> {
    /// A consumer.
    pub fn consumer(&self, name: &str) -> Result<Option<Consumer>> {
        consumer(self.connection, name)
    }

    /// Every consumer, by name.
    pub fn consumers(&self) -> Result<Vec<Consumer>> {
        let mut select = self
            .connection
            .prepare_cached(&format!("{COLUMNS} ORDER BY name"))?;
        self.damages
            .pick(select.query([])?, usize::MAX, read, |row| {
                DamagedRow::consumer(row, 0)
            })
    }

    /// How many events a consumer has parked.
    pub fn parked_count(&self, name: &str) -> Result<i64> {
        parked_count(self.connection, name)
    }

    /// What a consumer has parked after `after`, in order; `due`: only what is to be tried again.
    pub fn parked(&self, name: &str, due: bool, after: i64, max: u32) -> Result<Vec<ParkedRow>> {
        let mut select = self.connection.prepare_cached(
            "SELECT seq, type, envelope, data, attempts, error, at, retry FROM parked
             WHERE consumer = ?1 AND seq > ?2 AND (?3 = 0 OR retry = 1) ORDER BY seq LIMIT ?4",
        )?;
        let rows = select.query_and_then(params![name, after, due, max], |row| {
            let text = |index: usize| row.get_ref(index)?.as_str().map_err(rusqlite::Error::from);
            let seq = row.get(0)?;
            stored(RecordType::from_word(text(1)?), "a parked event's type")?;
            Ok(ParkedRow {
                seq,
                line: record::line(text(2)?, self.epoch, seq, text(3)?),
                attempts: row.get(4)?,
                error: row.get(5)?,
                at: At(row.get(6)?),
                retry: row.get(7)?,
            })
        })?;
        rows.collect()
    }
}

fn consumer(connection: &rusqlite::Connection, name: &str) -> Result<Option<Consumer>> {
    let mut select = connection.prepare_cached(&format!("{COLUMNS} WHERE name = ?1"))?;
    let mut rows = select.query_and_then([name], read)?;
    rows.next().transpose()
}

fn parked_count(connection: &rusqlite::Connection, name: &str) -> Result<i64> {
    let mut count = connection.prepare_cached("SELECT count(*) FROM parked WHERE consumer = ?1")?;
    Ok(count
        .query_row([name], |row| row.get(0))
        .optional()?
        .unwrap_or(0))
}

fn read(row: &Row<'_>) -> Result<Consumer> {
    Ok(Consumer {
        name: row.get(0)?,
        acked: row.get(1)?,
        filter: from_json(
            row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?,
            "a consumer's filter",
        )?,
        window: row.get(3)?,
        generation: row.get(4)?,
        created_at: At(row.get(5)?),
        seen_at: At(row.get(6)?),
    })
}
