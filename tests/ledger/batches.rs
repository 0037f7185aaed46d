//! Batches: what one stores, the next processes, and what was wrongly refused is heard
//! again once its secret is known.

use std::sync::Arc;

use settled::config::SourceRow;
use settled::config::{Source, Sources};
use settled::model::At;
use settled::providers::signature::sign;
use settled::providers::skyvern::Skyvern;
use settled::reconciler::Reverified;
use settled::report::{Meta, Report};
use settled::secret::{Key, Secret, SecretLabel};

use crate::support::reconciler::{Ledger, forged, signed, source, state};

const FORGOTTEN: &str = "sk-the-key-nobody-configured";

/// Genuine, but signed with a key that the source does not have; so it came as a bad signature.
fn under_the_forgotten_key(run_id: &str, status: &str) -> Report {
    let body = state(run_id, status);
    let mut report = forged(run_id, status);
    if let Meta::Webhook(meta) = &mut report.meta {
        meta.headers.push((
            "x-skyvern-signature".to_owned(),
            sign(FORGOTTEN, &[body.as_bytes()]),
        ));
    }
    report
}

/// The same source, with the forgotten key beside its own.
fn corrected() -> Sources {
    let key = Key {
        label: SecretLabel("webhook_secrets[0]".to_owned()),
        secret: Secret::new(FORGOTTEN),
    };
    let mut source = source("sky", &Skyvern);
    source.keyring.signing.push(key);
    Sources::of([Source::new(
        SourceRow {
            id: 1,
            since: At(0),
        },
        Arc::new(source),
    )])
}

#[test]
fn a_turn_promises_this_group_and_digests_the_last() {
    let mut ledger = Ledger::new();
    let now = ledger.now;
    let first = ledger
        .reconciler
        .write_batch(vec![signed("wr_1", "completed")], Vec::new(), now)
        .unwrap();
    assert_eq!(first.stored.len(), 1);
    assert!(ledger.feed().is_empty(), "stored, and not yet understood");
    let second = ledger
        .reconciler
        .write_batch(vec![signed("wr_2", "failed")], Vec::new(), now)
        .unwrap();
    assert_eq!(
        second.processed.unwrap().processed[0].report,
        first.stored[0]
    );
    assert_eq!((ledger.feed().len(), ledger.reconciler.pending()), (1, 1));
    ledger
        .reconciler
        .write_batch(Vec::new(), Vec::new(), now)
        .unwrap();
    assert_eq!((ledger.feed().len(), ledger.reconciler.pending()), (2, 0));
}

#[test]
fn deliveries_that_verify_after_a_correction_are_applied_in_their_order() {
    let mut ledger = Ledger::new();
    for report in [
        under_the_forgotten_key("wr_1", "completed"),
        forged("wr_2", "completed"),
        under_the_forgotten_key("wr_3", "failed"),
    ] {
        ledger.hears(report);
    }
    assert!(ledger.feed().is_empty());
    let now = ledger.now;
    assert_eq!(
        ledger.reconciler.reverify(1, now, |_| ()).unwrap(),
        Reverified {
            examined: 3,
            verified: 0,
            changed: 0
        }
    );
    ledger.reconciler.set_sources(corrected());
    let done = ledger.reconciler.reverify(1, now, |_| ()).unwrap();
    assert_eq!(
        done,
        Reverified {
            examined: 3,
            verified: 2,
            changed: 2
        }
    );
    let feed = ledger.feed();
    let ids: Vec<_> = feed
        .iter()
        .map(|record| crate::support::reconciler::json(record)["id"].clone())
        .collect();
    assert_eq!(ids, ["sky:wr_1:completion", "sky:wr_3:completion"]);
    assert_eq!(
        ledger.count("SELECT count(*) FROM reports WHERE unverified = 1"),
        1,
        "the forged one stays where it was"
    );
    let label =
        "SELECT count(*) FROM reports WHERE verdict = 'signed' AND secret = 'webhook_secrets[0]'";
    assert_eq!(
        ledger.count(label),
        2,
        "and which secret matched is written down"
    );
    // A second look finds nothing new.
    assert_eq!(
        ledger.reconciler.reverify(1, now, |_| ()).unwrap(),
        Reverified {
            examined: 1,
            verified: 0,
            changed: 0
        }
    );
    assert_eq!(ledger.feed().len(), 2);
}
