//! What may go from the ledger, and that what is left is still a sound one.

use settled::ledger::commands::{
    Ack, CreateConsumer, DropBodies, RemoveReports, Shrink, TrimRecords, Trimmed,
};
use settled::ledger::{Filter, Removable, check};
use settled::limits::{UPKEEP_BYTES, UPKEEP_ROWS};
use settled::model::At;
use settled::providers::Verdict;

use crate::support::reconciler::{Bare, Ledger, START, bounds, delivery, forged, signed};

struct Kept(Bare);

impl Kept {
    /// Four records, of one second each.
    fn feed() -> Kept {
        let mut ledger = Ledger::new();
        for run_id in ["wr_1", "wr_2", "wr_3", "wr_4"] {
            ledger.hears(signed(run_id, "completed"));
        }
        Kept(ledger.bare())
    }

    fn consumer(&mut self, name: &str, acked: i64) {
        let create = CreateConsumer {
            name: name.to_owned(),
            acked,
            filter: Filter::default(),
            window: 0,
            now: START,
        };
        self.0.writer.execute(create).unwrap();
    }

    /// Trims, and looks at what is left.
    fn trim(&mut self, before: At, bytes_max: i64, rows_max: u32) -> Trimmed {
        let trim = TrimRecords {
            before,
            bytes_max,
            rows_max,
        };
        let trimmed = self.0.writer.execute(trim).unwrap();
        assert_eq!(self.0.reader.read(check).unwrap(), []);
        trimmed
    }

    fn trimmed(&self) -> i64 {
        bounds(&self.0.reader).trimmed
    }

    fn removable(&self, position: i64, before: At, bodies: bool) -> Removable {
        self.0
            .reader
            .read(|view| view.removable(position, before, bodies))
            .unwrap()
    }
}

/// The moment at which the record of this number was appended.
fn at(seq: i64) -> At {
    At(START.0 + 1_000 * seq)
}

fn gone(rows: usize) -> Trimmed {
    Trimmed {
        rows,
        ..Trimmed::default()
    }
}

#[test]
fn age_takes_what_is_older_and_nothing_else() {
    let mut kept = Kept::feed();
    assert_eq!(
        kept.trim(at(1), i64::MAX, 10),
        gone(0),
        "of that very moment is not older"
    );
    assert_eq!(kept.trim(at(3), i64::MAX, 10), gone(2));
    assert_eq!(
        (kept.trimmed(), kept.0.count("SELECT min(seq) FROM records")),
        (2, 3)
    );
    assert_eq!(kept.trim(at(3), i64::MAX, 10), gone(0));
}

#[test]
fn age_waits_for_the_slowest_who_is_named() {
    let mut kept = Kept::feed();
    kept.consumer("quick", 4);
    kept.consumer("slow", 2);
    kept.consumer("slower", 1);
    let held = |rows, holding: &[&str]| Trimmed {
        rows,
        holding: holding.iter().map(|name| (*name).to_owned()).collect(),
        ..Trimmed::default()
    };
    assert_eq!(
        kept.trim(at(2), i64::MAX, 10),
        gone(1),
        "it has acknowledged the first"
    );
    assert_eq!(kept.trim(at(4), i64::MAX, 10), held(0, &["slower"]));
    let ack = Ack {
        name: "slower".to_owned(),
        seq: 2,
        generation: None,
        now: START,
    };
    kept.0.writer.execute(ack).unwrap();
    assert_eq!(kept.trim(at(4), i64::MAX, 10), held(1, &["slow", "slower"]));
    assert_eq!(
        kept.trim(at(3), i64::MAX, 10),
        gone(0),
        "nobody keeps what is young"
    );
    assert_eq!(kept.trimmed(), 2);
}

#[test]
fn size_waits_for_nobody_and_says_whom_it_overran() {
    let mut kept = Kept::feed();
    kept.consumer("quick", 4);
    kept.consumer("level", 2);
    kept.consumer("slow", 1);
    let left = kept.0.count(
        "SELECT sum(octet_length(envelope) + octet_length(data)) FROM records WHERE seq >= 3",
    );
    let overrun = |rows: usize, names: &[&str]| Trimmed {
        overrun: names.iter().map(|name| (*name).to_owned()).collect(),
        ..gone(rows)
    };
    assert_eq!(
        kept.trim(at(0), left, 10),
        overrun(2, &["slow"]),
        "no more than it takes"
    );
    assert_eq!(kept.trim(at(0), left, 10), gone(0));
    assert_eq!(
        kept.trim(at(0), left - 1, 10),
        overrun(1, &["level"]),
        "who had been overrun is not told again"
    );
    assert_eq!(kept.trimmed(), 3);
}

#[test]
fn no_more_goes_at_once_than_may() {
    let mut kept = Kept::feed();
    assert_eq!(
        kept.trim(at(9), i64::MAX, 3),
        Trimmed {
            more: true,
            ..gone(3)
        }
    );
    assert_eq!(kept.trim(at(9), i64::MAX, 3), gone(1));
    assert_eq!(kept.trim(at(9), i64::MAX, 3), gone(0));
    assert_eq!((kept.trimmed(), bounds(&kept.0.reader).head), (4, 4));
}

#[test]
fn a_page_of_reports_that_may_go_ends_by_rows_and_by_bytes() {
    let mut ledger = Ledger::new();
    // Nothing waits for an unreadable delivery, so each may go.
    let many = usize::try_from(UPKEEP_ROWS).unwrap() + 1;
    let small = vec![delivery(Verdict::Signed, "x"); many];
    ledger.reconciler.step(small, ledger.now).unwrap();
    let quarter = vec![b'x'; usize::try_from(UPKEEP_BYTES / 4).unwrap()];
    for _ in 0..5 {
        ledger.hears(delivery(Verdict::Signed, quarter.clone()));
    }
    let kept = Kept(ledger.bare());
    let first = kept.removable(0, At::NEVER, false);
    assert_eq!(
        (first.ids.len(), first.position, first.end),
        (many - 1, UPKEEP_ROWS, false)
    );
    let second = kept.removable(first.position, At::NEVER, false);
    assert_eq!(
        (second.ids.len(), second.end),
        (5, false),
        "the rest of the small ones, and 8 MiB"
    );
    let third = kept.removable(second.position, At::NEVER, false);
    assert_eq!((third.ids.len(), third.end), (1, true));
    let fourth = kept.removable(third.position, At::NEVER, false);
    assert_eq!(
        fourth,
        Removable {
            ids: vec![],
            position: third.position,
            end: true
        }
    );
    assert_eq!(
        kept.removable(0, START, false),
        Removable {
            ids: vec![],
            position: 0,
            end: true
        },
        "nothing is older"
    );
    assert_eq!(kept.removable(3, At(START.0 + 1), true).ids[0], 4);
}

#[test]
fn what_is_removed_is_counted_and_its_pages_can_be_given_back() {
    let mut ledger = Ledger::new();
    for _ in 0..3 {
        ledger.hears(forged("wr_1", "completed"));
    }
    for _ in 0..3 {
        ledger.hears(delivery(Verdict::Signed, vec![b'x'; 400_000]));
    }
    let mut kept = Kept(ledger.bare());
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method alone is not general enough"
    )]
    let sizes = |kept: &Kept| kept.0.reader.read(|view| view.sizes()).unwrap();
    let (pages, free) = (
        "SELECT * FROM pragma_page_count",
        "SELECT * FROM pragma_freelist_count",
    );
    let stored = |kept: &Kept| {
        (
            4096 * (kept.0.count(pages) - kept.0.count(free)),
            4096 * kept.0.count(free),
        )
    };
    let (full, none) = sizes(&kept);
    assert_eq!((full, none), stored(&kept));
    assert!(full > 1_200_000, "{full}");
    let drop = DropBodies {
        ids: vec![4, 5, 99],
    };
    assert_eq!(kept.0.writer.execute(drop).unwrap(), 2);
    assert_eq!(
        kept.0
            .count("SELECT count(*) FROM reports WHERE length(body) = 0"),
        2
    );
    let remove = RemoveReports {
        ids: vec![1, 2, 3, 99],
    };
    assert_eq!(kept.0.writer.execute(remove).unwrap(), 3);
    assert_eq!(kept.0.count("SELECT count(*) FROM reports"), 3);
    let (used, free) = sizes(&kept);
    assert_eq!((used, free), stored(&kept));
    assert!(
        free > 800_000 && used < full - 800_000,
        "{used} used, {free} free"
    );
    kept.0.writer.execute(Shrink { pages: 100 }).unwrap();
    assert_eq!(sizes(&kept), (used, free - 100 * 4096));
}
