//! Every invariant of the ledger, broken: what `check` must find and name.

use settled::ledger::{LedgerError, Reader, check, check_with_all_reports};
use settled::providers::Verdict;

use crate::support::reconciler::{Ledger, answer, delivery, forged, signed, state, track};

/// Two runs that have settled, one of them amended; one that is open and holds a claim; a forged
/// delivery.
pub fn a_ledger() -> Ledger {
    let mut ledger = Ledger::new();
    ledger.hears(signed("wr_1", "running"));
    ledger.hears(signed("wr_1", "completed"));
    ledger.hears(signed("wr_2", "failed"));
    let requested_at = ledger.now;
    ledger.hears(answer("wr_2", requested_at, &state("wr_2", "completed")));
    ledger.hears(track("wr_3"));
    let requested_at = ledger.now;
    ledger.hears(answer("wr_3", requested_at, &state("wr_3", "completed")));
    ledger.hears(forged("wr_4", "completed"));
    ledger.hears(delivery(Verdict::Stale, state("wr_5", "completed")));
    ledger
}

/// What is found once this has been done to the file behind our back.
fn found_after(damage: &str) -> Vec<String> {
    let ledger = a_ledger();
    let sql = ledger.sql();
    sql.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; PRAGMA writable_schema = ON;")
        .unwrap();
    sql.execute_batch(damage)
        .unwrap_or_else(|error| panic!("{damage}: {error}"));
    drop(sql);
    let reader = Reader::open(&ledger.path()).unwrap();
    reader
        .read(check_with_all_reports)
        .unwrap()
        .into_iter()
        .map(|finding| finding.what)
        .collect()
}

#[test]
fn a_sound_ledger_has_no_findings() {
    let ledger = a_ledger();
    assert_eq!(ledger.reader.read(check_with_all_reports).unwrap(), []);
    assert_eq!(
        ledger.count("SELECT count(*) FROM records"),
        4,
        "or there is little to check"
    );
}

#[test]
fn whatever_is_broken_is_named() {
    let no_trigger = "DROP TRIGGER a_completion_is_for_ever; DROP INDEX one_completion_per_run;";
    let completion = "type = 'settled.run.completion'";
    for (damage, expected) in [
        (
            "UPDATE meta SET processed = 1000",
            "marks beyond the last report, or reports beyond the last number given",
        ),
        (
            "UPDATE meta SET reported = processed - 1",
            "marks beyond the last report, or reports beyond the last number given",
        ),
        (
            "UPDATE meta SET recorded = recorded + 1",
            "ends of the feed that are not the last number given",
        ),
        (
            "UPDATE sources SET known = known + 1",
            "sources whose runs are counted wrong",
        ),
        (
            "UPDATE sources SET open = open + 1",
            "sources whose runs are counted wrong",
        ),
        (
            "UPDATE sources SET overdue = overdue + 1",
            "sources whose runs are counted wrong",
        ),
        (
            "UPDATE settlements SET completions = 7",
            "minutes whose losses are counted wrong",
        ),
        (
            "UPDATE meta SET fed_bytes = fed_bytes + 1",
            "sizes of the feed that are wrong",
        ),
        (
            "DELETE FROM records WHERE type = 'settled.run.status'",
            "gaps in the feed",
        ),
        (
            "DELETE FROM records WHERE type = 'settled.run.amendment'",
            "ends of the feed that are not the last number given",
        ),
        (
            &format!("DELETE FROM records WHERE {completion} AND run = 1"),
            "settled runs whose completion is missing from the feed",
        ),
        (
            &format!("{no_trigger} UPDATE runs SET completion = 1 WHERE run_id = 'wr_1'"),
            "completions in the feed that their run knows nothing of",
        ),
        (
            &format!(
                "{no_trigger} INSERT INTO records (seq, run, type, at, source, envelope, data) SELECT seq + 100, run, type, at, \
                 source, envelope, data FROM records WHERE {completion}"
            ),
            "runs with more than one completion",
        ),
        (
            "UPDATE records SET payload_report = 1 WHERE seq = 1",
            "records that refer to another payload than retention keeps for them",
        ),
        (
            "UPDATE reports SET verdict = 'bad_signature', unverified = 1 WHERE id = 3",
            "records without a cause that was entitled to cause them",
        ),
        (
            "UPDATE timeline SET trust = 'hint' WHERE seq IS NOT NULL AND via = 'poll'",
            "records without a cause that was entitled to cause them",
        ),
        (
            "UPDATE reports SET unverified = NULL WHERE unverified = 1",
            "deliveries that nobody verified outside of the unverified, or others in it",
        ),
        (
            "UPDATE timeline SET seq = NULL WHERE seq = 1",
            "records without a cause",
        ),
        (
            "UPDATE timeline SET seq = 2 WHERE seq = 3",
            "lines in timelines that name a record of another run or none",
        ),
        (
            "DELETE FROM reports WHERE id = 6",
            "runs that hold an end whose report is gone",
        ),
        (
            "INSERT INTO consumers VALUES ('a', 5, '{}', 1, 0, 0, 0)",
            "consumers beyond the end of the feed, or with a number never given",
        ),
        (
            "UPDATE runs SET outcome = 'failed'",
            "runs whose columns say something else than their state",
        ),
        ("UPDATE runs SET state = ''", "runs that cannot be read"),
        (
            "UPDATE runs SET wake_at = NULL",
            "open runs that nothing will ever wake, or settled ones that something will",
        ),
        (
            "UPDATE records SET envelope = replace(envelope, 'completion', 'conclusion') WHERE seq = 2",
            "runs of which the feed has not said what follows from their state",
        ),
        ("DELETE FROM sources", "rows that refer to nothing"),
    ] {
        let found = found_after(damage);
        assert!(
            found.iter().any(|what| what == expected),
            "{damage}\n  must show {expected:?}\n  and shows {found:?}"
        );
    }
}

#[test]
fn a_page_of_other_bytes_is_found() {
    let mut ledger = a_ledger();
    for number in 0..200 {
        ledger.hears(signed(&format!("wr_more_{number}"), "completed"));
    }
    let path = ledger.path();
    ledger.reconciler.close();
    let mut bytes = std::fs::read(&path).unwrap();
    let (from, page) = (bytes.len() / 4096 / 2 * 4096, 4096);
    bytes[from..from + page].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    let reader = Reader::open(&path).unwrap();
    let found = reader.read(check);
    assert!(
        found.is_err() || found.is_ok_and(|found| found[0].what.contains("damages of the file"))
    );
}

#[test]
fn only_a_ledger_can_be_opened_for_reading_and_none_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settled.db");
    let missing = Reader::open(&path).err().unwrap();
    assert!(
        matches!(missing, LedgerError::Sqlite(_)),
        "it is nobody's: {missing}"
    );
    assert!(!path.exists());
    std::fs::write(&path, b"").unwrap();
    assert!(
        Reader::open(&path)
            .err()
            .unwrap()
            .to_string()
            .contains("is not a database of settled")
    );
}
