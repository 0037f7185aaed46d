//! What is counted beside the rows: losses, the last numbers given, the length of the log.

use std::time::Duration;

use settled::ledger::commands::{ForgetSettlements, RemoveReports};
use settled::ledger::{Loss, Writer};
use settled::model::At;

use crate::support::reconciler::{Ledger, START, answer, signed, state, track};

/// The losses of the first source over the last hour and the last day, `later` after the last report.
fn losses(ledger: &Ledger, later: Duration) -> (Loss, Loss) {
    let now = ledger.now.plus(later);
    let losses = ledger
        .reader
        .read(|view| view.losses(now))
        .unwrap()
        .remove(&1)
        .unwrap();
    (losses["1h"], losses["24h"])
}

#[test]
fn losses_are_counted_as_runs_settle_and_as_webhooks_come_too_late() {
    let mut ledger = Ledger::new();
    assert_eq!(losses(&ledger, Duration::ZERO).0, Loss::default());
    ledger.hears(signed("wr_told", "completed"));
    ledger.hears(signed("wr_told", "completed"));
    ledger.hears(track("wr_asked"));
    for _ in 0..2 {
        // Twice, a grace apart: a poll alone must hold.
        let requested_at = ledger.now;
        ledger.hears(answer(
            "wr_asked",
            requested_at,
            &state("wr_asked", "completed"),
        ));
        ledger.now = ledger.now.plus(Duration::from_secs(120));
    }
    let lost = Loss {
        completions: 2,
        synthesized: 1,
        late: 0,
        rate: 0.5,
    };
    assert_eq!(losses(&ledger, Duration::ZERO).0, lost);
    for _ in 0..2 {
        ledger.hears(signed("wr_asked", "completed"));
    }
    let late = Loss { late: 1, ..lost };
    assert_eq!(
        losses(&ledger, Duration::ZERO).0,
        late,
        "late once, however often it comes"
    );
    assert_eq!(
        losses(&ledger, Duration::from_secs(7_200)),
        (Loss::default(), late)
    );
    let now = ledger.now;
    for clock in [At(START.0 - 3_600_000), now] {
        ledger.now = clock;
        ledger.hears(signed("wr_asked", "completed"));
    }
    assert_eq!(
        losses(&ledger, Duration::ZERO).0,
        late,
        "nor by a clock that is set back and forth"
    );
    let month = At(ledger.now.0 + 31 * 86_400_000);
    assert_eq!(ledger.count("SELECT count(*) > 0 FROM settlements"), 1);
    let mut bare = ledger.bare();
    let forget = ForgetSettlements { now: month };
    assert!(bare.writer.execute(forget).unwrap() > 0);
    assert_eq!(bare.count("SELECT count(*) FROM settlements"), 0);
}

#[test]
fn numbers_that_are_on_disk_are_never_given_again() {
    let ledger = Ledger::new();
    let path = ledger.path();
    drop(ledger.reconciler);
    let mut writer = Writer::open(&path, START).unwrap();
    let reports = [signed("wr_1", "failed"), signed("wr_2", "failed")];
    assert_eq!(writer.store(&reports).unwrap(), [1, 2]);
    let remove = RemoveReports { ids: vec![1, 2] };
    writer.execute(remove).unwrap();
    drop(writer);
    let mut writer = Writer::open(&path, START).unwrap();
    assert_eq!(writer.store(&[signed("wr_3", "failed")]).unwrap(), [3]);
}

#[test]
fn the_log_stays_short_though_somebody_else_moves_it() {
    let mut ledger = Ledger::new();
    let checkpointer = ledger.reconciler.checkpointer().unwrap();
    let moving = std::thread::spawn(move || checkpointer.run());
    let log = ledger.path().with_extension("db-wal");
    let mut longest = 0;
    let body =
        state("wr_1", "running").replace('}', &format!(r#", "x": "{}"}}"#, "x".repeat(200_000)));
    for _ in 0..1_500 {
        // 300 MB in all.
        ledger.hears(crate::support::reconciler::delivery(
            settled::providers::Verdict::BadSignature,
            body.as_str(),
        ));
        longest = longest.max(std::fs::metadata(&log).unwrap().len());
    }
    assert!(longest < 150 << 20, "{longest}");
    assert!(
        longest > 8 << 20,
        "{longest}: the writer moves it all the time"
    );
    let Ledger {
        reconciler, folder, ..
    } = ledger;
    reconciler.close();
    moving.join().expect("it ends with the writer");
    assert!(
        !folder.path().join("settled.db-wal").exists()
            || std::fs::metadata(&log).unwrap().len() == 0
    );
}
