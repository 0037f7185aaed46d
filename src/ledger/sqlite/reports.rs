//! Reports in the ledger: stored before they are parsed, read back in order, and listed as deliveries.

use rusqlite::{OptionalExtension, Row, params};

use super::{Result, Transaction, View, Writer, from_json, stored, to_json};
use crate::ledger::changes::TimelineRow;
use crate::ledger::commands::TrimUnverified;
use crate::ledger::rows::{DeliveryQuery, DeliveryRow};
use crate::model::{At, Via};
use crate::providers::Verdict;
use crate::report::{Meta, Report, WebhookMeta};

impl Transaction<'_> {
    /// Stores a report and gives its id. Ids grow and are never given twice.
    pub(super) fn add_report(&mut self, report: &Report) -> Result<i64> {
        let webhook = report.meta.webhook();
        let unverified = webhook.filter(|meta| !meta.verdict.authentic()).map(|_| 1);
        let id = self.marks()?.reported + 1;
        self.tx
            .prepare_cached(
                "INSERT INTO reports (id, source, via, at, verdict, secret, unverified, meta, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                id,
                report.source,
                report.meta.via().word(),
                report.at.0,
                webhook.map(|meta| meta.verdict.word()),
                webhook
                    .and_then(|meta| meta.secret.as_ref())
                    .map(|label| label.0.as_str()),
                unverified,
                to_json(&report.meta),
                report.body,
            ])?;
        self.marks()?.reported = id;
        Ok(id)
    }

    pub(super) fn trim_unverified(&mut self, command: &TrimUnverified) -> Result<usize> {
        let TrimUnverified { source, limits } = *command;
        let mut oldest_kept = self.tx.prepare_cached(
            "SELECT min(id) FROM (SELECT id, count(*) OVER newest AS rows, sum(octet_length(meta) + octet_length(body)) OVER newest AS bytes
                FROM reports WHERE source = ?1 AND unverified = 1 WINDOW newest AS (ORDER BY id DESC))
             WHERE rows <= ?2 AND bytes <= ?3",
        )?;
        let kept: Option<i64> = oldest_kept
            .query_row((source, limits.rows_max, limits.bytes_max), |row| {
                row.get(0)
            })?;
        let mut drop = self.tx.prepare_cached(
            "DELETE FROM reports WHERE source = ?1 AND unverified = 1 AND id < ?2",
        )?;
        Ok(drop.execute((source, kept.unwrap_or(i64::MAX)))?)
    }

    /// Marks a delivery as verified, with the metadata that verification gives now.
    pub(super) fn promote(&mut self, id: i64, meta: &WebhookMeta) -> Result<()> {
        let secret = meta.secret.as_ref().map(|label| label.0.as_str());
        self.tx
            .prepare_cached(
                "UPDATE reports SET unverified = NULL, verdict = ?2, secret = ?3, meta = ?4, note = NULL WHERE id = ?1",
            )?
            .execute(params![id, meta.verdict.word(), secret, to_json(&Meta::Webhook(meta.clone()))])?;
        Ok(())
    }
}

const DELIVERY_COLUMNS: &str = "SELECT r.id, s.name AS source, r.via, r.at, r.verdict, r.secret, length(r.body) AS bytes, r.note, a.why AS quarantined
     FROM reports r JOIN sources s ON s.id = r.source LEFT JOIN quarantined_reports a ON a.report = r.id";

impl Writer {
    /// Unverified deliveries of `source` after `after`, oldest first.
    pub fn unverified(&mut self, source: i64, after: i64, max: u32) -> Result<Vec<(i64, Report)>> {
        self.look(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT id, source, at, meta, body FROM reports
                 WHERE source = ?1 AND unverified = 1 AND id > ?2 ORDER BY id LIMIT ?3",
            )?;
            let rows = select.query_and_then((source, after, max), |row| {
                Ok((row.get("id")?, report(row)?))
            })?;
            rows.collect()
        })
    }

    /// The first report that has not been processed, and the attempts made on it.
    pub fn first_unprocessed(&mut self) -> Result<Option<(i64, u32)>> {
        self.look(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT id, attempts FROM reports WHERE id > (SELECT processed FROM meta) ORDER BY id LIMIT 1",
            )?;
            let row = select.query_row([], |row| Ok((row.get(0)?, row.get(1)?)));
            Ok(row.optional()?)
        })
    }

    /// One stored report by its id; `None` if it has been removed.
    pub fn report(&mut self, id: i64) -> Result<Option<Report>> {
        self.look(|connection| {
            let mut select = connection
                .prepare_cached("SELECT source, at, meta, body FROM reports WHERE id = ?1")?;
            let mut rows = select.query_and_then([id], report)?;
            rows.next().transpose()
        })
    }

    /// Counts an attempt to process a report, before the attempt is made.
    pub fn count_attempt(&mut self, id: i64) -> Result<()> {
        self.transaction(|tx| {
            tx.tx
                .prepare_cached("UPDATE reports SET attempts = attempts + 1 WHERE id = ?1")?
                .execute([id])?;
            Ok(())
        })
    }
}

impl View<'_> {
    /// Lists deliveries, newest first.
    pub fn deliveries(&self, query: &DeliveryQuery) -> Result<Vec<DeliveryRow>> {
        let sql = format!(
            "{DELIVERY_COLUMNS} WHERE r.via IN ('webhook', 'replay')
               AND (?1 IS NULL OR s.name = ?1) AND (?2 IS NULL OR r.verdict = ?2)
               AND (?3 IS NULL OR r.id IN (SELECT h.report FROM timeline h JOIN runs u ON u.id = h.run WHERE u.run_id = ?3))
               AND (?4 IS NULL OR r.id < ?4)
             ORDER BY r.id DESC LIMIT ?5"
        );
        let mut select = self.connection.prepare_cached(&sql)?;
        let verdict = query.verdict.map(Verdict::word);
        let rows = select.query_and_then(
            params![
                query.source,
                verdict,
                query.run_id,
                query.before,
                query.limit
            ],
            delivery,
        )?;
        let mut rows: Vec<DeliveryRow> = rows.collect::<Result<_>>()?;
        for row in &mut rows {
            row.runs = self.runs_of_report(row.id)?;
        }
        Ok(rows)
    }

    /// One report of any kind, with its meta.
    pub fn delivery(&self, id: i64) -> Result<Option<(DeliveryRow, Meta)>> {
        let mut select = self
            .connection
            .prepare_cached(&format!("{DELIVERY_COLUMNS} WHERE r.id = ?1"))?;
        let Some(mut row) = select.query_and_then([id], delivery)?.next().transpose()? else {
            return Ok(None);
        };
        row.runs = self.runs_of_report(id)?;
        let meta: String =
            self.connection
                .query_row("SELECT meta FROM reports WHERE id = ?1", [id], |row| {
                    row.get(0)
                })?;
        Ok(Some((row, from_json(&meta, "a report's meta")?)))
    }

    /// The payload of a report: for a delivery its raw body.
    pub fn body(&self, id: i64) -> Result<Option<Vec<u8>>> {
        let mut select = self
            .connection
            .prepare_cached("SELECT source, at, meta, body FROM reports WHERE id = ?1")?;
        let report = select.query_and_then([id], report)?.next().transpose()?;
        Ok(report.map(|report| report.payload().to_vec()))
    }

    /// How many reports are stored and not processed yet.
    pub fn unprocessed_count(&self) -> Result<i64> {
        let mut select = self.connection.prepare_cached(
            "SELECT count(*) FROM reports WHERE id > (SELECT processed FROM meta)",
        )?;
        Ok(select.query_row([], |row| row.get(0))?)
    }

    /// How many reports are quarantined.
    pub fn quarantined_count(&self) -> Result<i64> {
        Ok(self
            .connection
            .query_row("SELECT count(*) FROM quarantined_reports", [], |row| {
                row.get(0)
            })?)
    }

    /// The timeline of a run, oldest first.
    pub fn timeline(&self, run: i64) -> Result<Vec<TimelineRow>> {
        let mut select = self
            .connection
            .prepare_cached("SELECT * FROM timeline WHERE run = ?1 ORDER BY report")?;
        let rows = select.query_and_then([run], |row| {
            Ok(TimelineRow {
                report: row.get("report")?,
                at: At(row.get("at")?),
                via: row.get("via")?,
                trust: row.get("trust")?,
                claim: row.get("claim")?,
                status: row.get("status")?,
                effect: row.get("effect")?,
                seq: row.get("seq")?,
            })
        })?;
        rows.collect()
    }

    fn runs_of_report(&self, report: i64) -> Result<Vec<String>> {
        let mut select = self
            .connection
            .prepare_cached("SELECT u.run_id FROM timeline h JOIN runs u ON u.id = h.run WHERE h.report = ?1 LIMIT 100")?;
        let rows = select.query_map([report], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

fn report(row: &Row<'_>) -> Result<Report> {
    Ok(Report {
        source: row.get("source")?,
        at: At(row.get("at")?),
        meta: from_json(
            row.get_ref("meta")?
                .as_str()
                .map_err(rusqlite::Error::from)?,
            "a report's meta",
        )?,
        body: row.get("body")?,
    })
}

fn delivery(row: &Row<'_>) -> Result<DeliveryRow> {
    let via: String = row.get("via")?;
    stored(Via::from_word(&via), "a report's via")?;
    Ok(DeliveryRow {
        id: row.get("id")?,
        source: row.get("source")?,
        via,
        at: At(row.get("at")?).rfc3339(),
        verdict: row.get("verdict")?,
        secret: row.get("secret")?,
        bytes: row.get("bytes")?,
        note: row.get("note")?,
        quarantined: row.get("quarantined")?,
        runs: Vec::new(),
    })
}
