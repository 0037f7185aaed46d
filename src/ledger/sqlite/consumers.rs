//! Consumers in the ledger: the position of each, and what it has parked.
//!
//! Generations come from one counter for the whole ledger and are never given twice. So a reader of a
//! deleted consumer cannot pass for a reader of a new one with the same name.

use rusqlite::{OptionalExtension, Row, params};

use super::{DamagedRow, Result, Transaction, View, from_json, stored, to_json};
use crate::ledger::commands::{
    Ack, CreateConsumer, Created, DeleteConsumer, Deleted, DropParked, Moved, OpenConsumer, Park,
    RetryParked, Seek,
};
use crate::ledger::rows::{Consumer, ParkedRow};
use crate::model::At;
use crate::model::record::{self, RecordType};

const COLUMNS: &str =
    "SELECT name, acked, filter, window, generation, created_at, seen_at FROM consumers";

impl Transaction<'_> {
    pub(super) fn create_consumer(&mut self, command: &CreateConsumer) -> Result<Created> {
        let CreateConsumer {
            name,
            acked,
            filter,
            window,
            now,
        } = command;
        if let Some(consumer) = consumer(&self.tx, name)? {
            return Ok(Created {
                consumer,
                new: false,
            });
        }
        let generation = self.next_generation()?;
        self.tx
            .prepare_cached(
                "INSERT INTO consumers (name, acked, filter, window, generation, created_at, seen_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
            )?
            .execute(params![name, acked, to_json(filter), window, generation, now.0])?;
        let consumer = stored(consumer(&self.tx, name)?, "a consumer just created")?;
        Ok(Created {
            consumer,
            new: true,
        })
    }

    pub(super) fn open_consumer(&mut self, command: &OpenConsumer) -> Result<Option<Consumer>> {
        let generation = self.next_generation()?;
        self.tx
            .prepare_cached("UPDATE consumers SET generation = ?2, seen_at = ?3 WHERE name = ?1")?
            .execute((&command.name, generation, command.now.0))?;
        consumer(&self.tx, &command.name)
    }

    pub(super) fn ack(&mut self, command: &Ack) -> Result<Moved> {
        let Ack {
            name,
            seq,
            generation,
            now,
        } = command;
        let Some(consumer) = consumer(&self.tx, name)? else {
            return Ok(Moved::Unknown);
        };
        let head = self.head()?;
        if generation.is_some_and(|generation| generation != consumer.generation) {
            return Ok(Moved::Stale(consumer.generation));
        }
        if *seq > head {
            return Ok(Moved::Beyond(head));
        }
        let acked = consumer.acked.max(*seq);
        self.tx
            .prepare_cached("UPDATE consumers SET acked = ?2, seen_at = ?3 WHERE name = ?1")?
            .execute((name, acked, now.0))?;
        Ok(Moved::Done { acked, head })
    }

    pub(super) fn seek(&mut self, command: &Seek) -> Result<Option<Consumer>> {
        let generation = self.next_generation()?;
        self.tx
            .prepare_cached(
                "UPDATE consumers SET acked = ?2, generation = ?3, seen_at = ?4 WHERE name = ?1",
            )?
            .execute((&command.name, command.seq, generation, command.now.0))?;
        consumer(&self.tx, &command.name)
    }

    pub(super) fn delete_consumer(&mut self, command: &DeleteConsumer) -> Result<Option<Deleted>> {
        let parked = parked_count(&self.tx, &command.name)?;
        let gone = self
            .tx
            .prepare_cached("DELETE FROM consumers WHERE name = ?1")?
            .execute([&command.name])?;
        if gone == 0 {
            return Ok(None);
        }
        let generation = self.next_generation()?;
        Ok(Some(Deleted { parked, generation }))
    }

    pub(super) fn park(&mut self, command: &Park) -> Result<Moved> {
        let Park {
            name,
            seq,
            generation,
            attempts,
            error,
            parked_max,
            now,
        } = command;
        let ack = |seq| Ack {
            name: name.clone(),
            seq,
            generation: *generation,
            now: *now,
        };
        // An ack of nothing first: a reader that may not move the position may not park either.
        let moved = self.ack(&ack(0))?;
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
        if parked_count(&self.tx, name)? >= *parked_max {
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
            self.ack(&ack(*seq))
        }
    }

    pub(super) fn retry_parked(&mut self, command: &RetryParked) -> Result<usize> {
        let mut retry = self.tx.prepare_cached(
            "UPDATE parked SET retry = 1 WHERE consumer = ?1 AND (?2 IS NULL OR seq = ?2)",
        )?;
        Ok(retry.execute((&command.name, command.seq))?)
    }

    pub(super) fn drop_parked(&mut self, command: &DropParked) -> Result<usize> {
        let mut drop = self.tx.prepare_cached(
            "DELETE FROM parked WHERE consumer = ?1 AND (?2 IS NULL OR seq = ?2)",
        )?;
        Ok(drop.execute((&command.name, command.seq))?)
    }

    fn next_generation(&mut self) -> Result<i64> {
        let mut next = self
            .tx
            .prepare_cached("UPDATE meta SET generation = generation + 1 RETURNING generation")?;
        Ok(next.query_row([], |row| row.get(0))?)
    }
}

impl View<'_> {
    /// One consumer by its name.
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

    /// The parked events of a consumer after `after`, in order. `due`: only those marked for another
    /// attempt.
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
