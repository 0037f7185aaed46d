//! Keeping the ledger: what retention may remove, and copies.
//!
//! Runs are never removed, so that a late duplicate finds its run settled even after the first
//! delivery is gone. A reader looks for what may go; the writer removes rows by their ids, a few at a
//! time.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::Connection;

use super::{LedgerError, Reader, Result, Transaction, View, to_json};
use crate::ledger::commands::{DropBodies, RemoveReports, Shrink};
use crate::ledger::rows::Removable;
use crate::limits;
use crate::model::At;

/// A report is needed while an open run holds its evidence, and while a record that is kept refers to
/// its body. Evidence always has a row in the run's timeline, so that only the runs that the report
/// speaks of are looked at.
const NEEDED: &str = "EXISTS (SELECT 1 FROM records c WHERE c.payload_report = r.id)
    OR EXISTS (SELECT 1 FROM timeline h JOIN runs u ON u.id = h.run WHERE h.report = r.id AND u.wake_at IS NOT NULL
        AND r.id IN (json_extract(u.state, '$.phase.open.claim.evidence.report'), json_extract(u.state, '$.phase.open.seen.report')))";

impl View<'_> {
    /// Processed reports after `position` that came before `before` and are not needed any more; with
    /// `bodies`, only those that still have a body.
    pub fn removable(&self, position: i64, before: At, bodies: bool) -> Result<Removable> {
        let sql = format!(
            "SELECT r.id, r.at, length(r.body), {NEEDED} FROM reports r
             WHERE r.id > ?1 AND r.id <= (SELECT processed FROM meta) ORDER BY r.id LIMIT ?2"
        );
        let mut select = self.connection.prepare_cached(&sql)?;
        let mut rows = select.query((position, limits::UPKEEP_ROWS))?;
        let mut found = Removable {
            position,
            ..Removable::default()
        };
        let (mut looked_at, mut bytes) = (0, 0);
        while let Some(row) = rows.next()? {
            let (id, at, length): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            // Reports are in the order of time, unless the clock was set back.
            if at >= before.0 {
                found.end = true;
                return Ok(found);
            }
            (found.position, looked_at) = (id, looked_at + 1);
            let needed: bool = row.get(3)?;
            if !needed && (length > 0 || !bodies) {
                found.ids.push(id);
                bytes += length;
            }
            if bytes >= limits::UPKEEP_BYTES {
                return Ok(found);
            }
        }
        found.end = looked_at < limits::UPKEEP_ROWS;
        Ok(found)
    }

    /// How many bytes of the file are in use, and how many are free within it.
    pub fn sizes(&self) -> Result<(i64, i64)> {
        let pragma = |name: &str| -> Result<i64> {
            Ok(self
                .connection
                .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))?)
        };
        let (page, all, free) = (
            pragma("page_size")?,
            pragma("page_count")?,
            pragma("freelist_count")?,
        );
        Ok(((all - free) * page, free * page))
    }
}

impl Transaction<'_> {
    pub(super) fn remove_reports(&mut self, command: &RemoveReports) -> Result<usize> {
        let ids = to_json(&command.ids);
        self.tx
            .prepare_cached(
                "DELETE FROM timeline WHERE report IN (SELECT value FROM json_each(?1))",
            )?
            .execute([&ids])?;
        let mut remove = self
            .tx
            .prepare_cached("DELETE FROM reports WHERE id IN (SELECT value FROM json_each(?1))")?;
        Ok(remove.execute([&ids])?)
    }

    pub(super) fn drop_bodies(&mut self, command: &DropBodies) -> Result<usize> {
        let mut update = self.tx.prepare_cached(
            "UPDATE reports SET body = x'' WHERE id IN (SELECT value FROM json_each(?1))",
        )?;
        Ok(update.execute([to_json(&command.ids)])?)
    }

    pub(super) fn shrink(&mut self, command: Shrink) -> Result<()> {
        // Each step of the statement frees one page, so it has to be read to its end.
        let mut vacuum = self
            .tx
            .prepare(&format!("PRAGMA incremental_vacuum({})", command.pages))?;
        let mut steps = vacuum.query([])?;
        while steps.next()?.is_some() {}
        Ok(())
    }
}

/// Copies the ledger to `to`, which must not exist, while the daemon goes on: the copy holds one
/// moment of it. The copy belongs to no epoch, so a daemon that serves it begins a new one.
pub fn copy(reader: &Reader, to: &Path) -> Result<()> {
    let at = |source| LedgerError::Open {
        path: to.to_owned(),
        source,
    };
    // Created here and not by SQLite, so that other users can never read it.
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(at)?;
    let copied = copy_into(reader, to);
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

fn copy_into(reader: &Reader, to: &Path) -> Result<()> {
    let path = to
        .to_str()
        .ok_or_else(|| LedgerError::Unreadable("a path that is not UTF-8".to_owned()))?;
    reader.read(|view| {
        Ok(view
            .connection
            .execute("VACUUM INTO ?1", [path])
            .map(drop)?)
    })?;
    let copy = Connection::open(to)?;
    copy.execute("UPDATE meta SET identity = 'copy'", [])?;
    copy.close().map_err(|(_, error)| error)?;
    let at = |source| LedgerError::Open {
        path: to.to_owned(),
        source,
    };
    File::open(to).and_then(|file| file.sync_all()).map_err(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Writer;

    fn ledger(folder: &Path) -> Writer {
        Writer::open(&folder.join("settled.db"), At(0)).unwrap()
    }

    /// Four processed reports, an unprocessed fifth; the run of the second holds it, the record of the
    /// third refers to its body.
    fn fill(writer: &mut Writer) {
        let state = r#"{"phase":{"open":{"claim":{"evidence":{"report":2}}}}}"#;
        let sql = format!(
            "INSERT INTO sources (id, name, provider, since) VALUES (1, 'a', 'skyvern', 0);
             INSERT INTO reports (id, source, via, at, meta, body) VALUES (1, 1, 'poll', 10, '{{}}', x'01'),
                (2, 1, 'webhook', 20, '{{}}', x'01'), (3, 1, 'webhook', 30, '{{}}', x'01'),
                (4, 1, 'poll', 40, '{{}}', x''), (5, 1, 'webhook', 50, '{{}}', x'01');
             UPDATE meta SET reported = 5, processed = 4, recorded = 1;
             INSERT INTO runs (id, source, run_id, phase, overdue, wake_at, opened_at, state) VALUES (1, 1, 'r', 'open', 0, 9, 1, '{state}');
             INSERT INTO records (seq, run, type, at, source, payload_report, envelope, data) VALUES (1, 2, 'settled.run.completion', 1, 1, 3, '{{}}',
                '{{\"payload\":null,\"payload_ref\":\"/v1/deliveries/3/body\"}}');
             INSERT INTO timeline (run, report, at, via, trust, claim, effect, seq) VALUES (1, 1, 1, '', '', '', '', NULL),
                (1, 2, 1, '', '', '', 'held', NULL), (2, 3, 1, '', '', '', 'settled', 1);"
        );
        let settled = r#"INSERT INTO runs (id, source, run_id, phase, overdue, outcome, origin, settled_at, first_webhook_at, completion, opened_at, state)
            VALUES (2, 1, 's', 'settled', 0, 'succeeded', 'poll', 100, 120, 1, 1, '{"phase":{"settled":{}},"webhooks":{"last":120}}')"#;
        let sql = sql.replace(
            "INSERT INTO records",
            &format!("{settled}; INSERT INTO records"),
        );
        writer
            .transaction(|tx| Ok(tx.tx.execute_batch(&sql)?))
            .unwrap();
    }

    #[test]
    fn what_is_needed_stays_and_what_is_not_goes_with_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ledger(folder.path());
        fill(&mut writer);
        let reader = writer.reader();
        let removable = |before, bodies| {
            reader
                .read(|view| view.removable(0, At(before), bodies))
                .unwrap()
        };
        assert_eq!(
            removable(i64::MAX, false).ids,
            [1, 4],
            "2 is held, 3 is referred to, 5 is not processed"
        );
        assert_eq!(removable(i64::MAX, true).ids, [1], "4 has no body any more");
        assert_eq!(
            removable(15, false),
            Removable {
                ids: vec![1],
                position: 1,
                end: true
            }
        );
        writer.execute(RemoveReports { ids: vec![1, 4] }).unwrap();
        let left = |sql: &str| {
            reader.read(|view| {
                Ok(view
                    .connection
                    .query_row(sql, [], |row| row.get::<_, i64>(0))?)
            })
        };
        assert_eq!(left("SELECT count(*) FROM reports").unwrap(), 3);
        assert_eq!(left("SELECT count(*) FROM timeline").unwrap(), 2);
        assert_eq!(left("SELECT count(*) FROM runs").unwrap(), 2);
    }

    #[test]
    fn a_copy_is_whole_private_and_begins_a_new_epoch_wherever_it_is_put() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (mut writer, copy_at) = (ledger(folder.path()), folder.path().join("copy.db"));
        fill(&mut writer);
        let epoch = writer.epoch().to_owned();
        copy(&writer.reader(), &copy_at).unwrap();
        assert!(
            copy(&writer.reader(), &copy_at).is_err(),
            "nothing is overwritten"
        );
        assert_eq!(
            fs::metadata(&copy_at).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(writer);
        assert_eq!(
            ledger(folder.path()).epoch(),
            epoch,
            "the file itself keeps its epoch"
        );
        // Over the file that is there: inode and birth stay what they were.
        fs::copy(&copy_at, folder.path().join("settled.db")).unwrap();
        let restored = ledger(folder.path());
        assert_ne!(restored.epoch(), epoch);
        let reader = restored.reader();
        assert_eq!(reader.read(|view| Ok(view.bounds()?.head)).unwrap(), 1);
    }
}
