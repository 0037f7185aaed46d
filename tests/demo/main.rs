//! The demo against the real program: small ones, for the whole way from cloud to feed.

use std::path::PathBuf;

use settled::demo::clouds::Count;
use settled::demo::{self, Ledger, Options, Plan, Rates, Stage};

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_settled"))
}

async fn play(options: Options) -> Ledger {
    let ledger = demo::run(Options {
        program: Some(program()),
        ..options
    })
    .await
    .unwrap();
    assert!(ledger.ok(), "{ledger}");
    ledger
}

#[tokio::test]
async fn honest_clouds_are_believed() {
    let ledger = play(Options {
        runs: 60,
        rates: Rates::HONEST,
        ..Options::default()
    })
    .await;
    assert_eq!((ledger.completions, ledger.unconfirmed), (60, 0));
    assert_eq!(ledger.clouds[&Count::WebhooksRefused], 0);
    assert_eq!(ledger.clouds[&Count::PollsRefused], 0);
}

#[tokio::test]
async fn lying_clouds_are_not() {
    let ledger = play(Options {
        runs: 150,
        seed: 7,
        ..Options::default()
    })
    .await;
    assert_eq!(ledger.completions, 150);
    assert!(
        ledger.clouds[&Count::WebhooksForged] > 0 && ledger.clouds[&Count::ForgedAccepted] == 0
    );
}

#[tokio::test]
async fn kill_9_loses_and_repeats_nothing() {
    let ledger = play(Options {
        runs: 150,
        seed: 8,
        kills: 4,
        ..Options::default()
    })
    .await;
    assert_eq!((ledger.completions, ledger.kills), (150, 4));
}

/// The parts, for tests that want to do something in between.
#[tokio::test]
async fn a_stage_can_be_used_by_hand() {
    let plan = Plan::new(9, 10, &Rates::HONEST);
    let mut stage = Stage::set(plan, &program()).await.unwrap();
    stage.start().await.unwrap();
    stage.kill().await;
    assert!(!stage.running());
    let ledger = demo::play(&mut stage).await.unwrap();
    assert!(ledger.ok(), "{ledger}");
    assert!(
        stage.stop().await.is_some_and(|status| status.success()),
        "SIGTERM ends it cleanly"
    );
    let Stage { place, .. } = stage;
    place.remove();
}
