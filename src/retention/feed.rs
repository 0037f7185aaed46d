//! Removes old records from the feed, and logs which consumers hold records back or lose some.

use std::collections::BTreeSet;

use tokio::sync::watch;

use crate::config::Retention;
use crate::ledger::commands::{TrimRecords, Trimmed};
use crate::limits;
use crate::model::At;
use crate::reconciler::{Clock, Handle, Refusal};

/// Trims the feed every [`limits::TRIM_INTERVAL`] until `stop` turns true.
pub async fn keep(
    ledger: Handle,
    clock: Clock,
    retention: Retention,
    mut stop: watch::Receiver<bool>,
) {
    let mut told = BTreeSet::new();
    loop {
        if let Err(refusal) = trim(&ledger, &clock, &retention, &mut told).await {
            tracing::warn!(%refusal, "the feed could not be trimmed; trying again later");
        }
        tokio::select! {
            () = tokio::time::sleep(limits::TRIM_INTERVAL) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// One round, in small transactions, so that no sender waits long behind it.
async fn trim(
    ledger: &Handle,
    clock: &Clock,
    retention: &Retention,
    told: &mut BTreeSet<String>,
) -> Result<(), Refusal> {
    let span = i64::try_from(retention.feed.as_millis()).unwrap_or(i64::MAX);
    let bytes_max = i64::try_from(retention.feed_bytes).unwrap_or(i64::MAX);
    let before = At(clock().0.saturating_sub(span));
    let trim = TrimRecords {
        before,
        bytes_max,
        rows_max: limits::TRIM_ROWS,
    };
    loop {
        let trimmed = ledger.execute(trim).await?;
        tell(&trimmed, told);
        if !trimmed.more {
            return Ok(());
        }
    }
}

fn tell(trimmed: &Trimmed, told: &mut BTreeSet<String>) {
    if trimmed.rows > 0 {
        tracing::info!(
            records = trimmed.rows,
            "retention removed records from the feed"
        );
    }
    for consumer in &trimmed.overrun {
        tracing::error!(
            consumer,
            "the feed is larger than retention.feed_bytes, so records this consumer has not acknowledged were removed; \
             it gets 410 until it seeks"
        );
    }
    // Each consumer is logged once, until it has caught up.
    told.retain(|name| trimmed.more || trimmed.holding.contains(name));
    for consumer in &trimmed.holding {
        if told.insert(consumer.clone()) {
            tracing::warn!(
                consumer,
                "this consumer keeps records from being removed that are older than retention.feed; \
                 let it catch up, or delete it if nobody uses it any more"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_that_holds_records_back_is_named_once_until_it_has_caught_up() {
        let mut told = BTreeSet::new();
        let mut say = |more, holding: &[&str]| {
            let holding = holding.iter().map(|name| (*name).to_owned()).collect();
            tell(
                &Trimmed {
                    more,
                    holding,
                    ..Trimmed::default()
                },
                &mut told,
            );
            told.iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(say(false, &["mail"]), ["mail"]);
        assert_eq!(
            say(true, &[]),
            ["mail"],
            "a round that is not over says nothing about who has caught up"
        );
        assert_eq!(say(true, &["files"]), ["files", "mail"]);
        assert_eq!(say(false, &["files"]), ["files"]);
    }
}
