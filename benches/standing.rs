//! An idle daemon on a large ledger: how long it takes to start, its memory and CPU time while idle,
//! and how fast it stores webhooks afterwards.
//!
//! `cargo bench --bench standing -- [--open 1000000] [--seconds 20]`
//!
//! A client tracked the open runs; their next poll is due in an hour.

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod support;

use std::time::{Duration, Instant, SystemTime};

use settled::model::At;
use support::{Daemon, Ledger, Sender, computed, file_bytes, option, request, resident, track};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let seconds = option("--seconds", 20);
        for open in [0, option("--open", 1_000_000)] {
            stand(open, seconds).await;
        }
    });
}

async fn stand(open: usize, seconds: u64) {
    let millis = SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_millis();
    let now = At(i64::try_from(millis).expect("before the sun dies"));
    let mut ledger = Ledger::new(now);
    let source = ledger.source;
    ledger.hear((0..open).map(|number| track(source, number, now)), 512, now);
    let path = ledger.path();
    let Ledger {
        folder, reconciler, ..
    } = ledger;
    reconciler.close();
    let daemon = Daemon::start(folder.path()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = computed(daemon.process());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (idle, memory) = (
        (computed(daemon.process()) - before) / seconds as f64,
        resident(daemon.process()),
    );
    let begin = Instant::now();
    let mut senders = Vec::new();
    for sender in 0..64 {
        let mut sender = (Sender::connect(daemon.hooks).await, sender);
        senders.push(tokio::spawn(async move {
            for number in 0..200 {
                let request = request(&format!(
                    "wr_{:018}",
                    1_000_000_000 + number * 64 + sender.1
                ));
                assert_eq!(sender.0.send(&request, || ()).await, 200);
            }
        }));
    }
    for sender in senders {
        sender.await.expect("sent");
    }
    let rate = 64.0 * 200.0 / begin.elapsed().as_secs_f64();
    println!(
        "{open} open runs in {} MiB: listens after {} ms; idle {:.2} % of a core, {} MiB resident; then {rate:.0} webhooks a second, {} MiB resident",
        file_bytes(&path) >> 20,
        daemon.started_in.as_millis(),
        idle * 100.0,
        memory >> 20,
        resident(daemon.process()) >> 20,
    );
}
