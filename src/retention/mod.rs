//! Upkeep: what has been kept for long enough goes, a little at a time.
//!
//! Everything is looked for on a reader and removed by the writer in pieces of a few milliseconds,
//! with a pause between them, so that intake never waits for retention.

pub mod feed;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Retention;
use crate::ledger::commands::{DropBodies, ForgetSettlements, RemoveReports, Shrink};
use crate::ledger::{LedgerError, Reader, Removable, View};
use crate::limits;
use crate::model::At;
use crate::reconciler::{Clock, Handle, Refusal};

/// What upkeep works with.
pub struct Upkeep {
    /// The way to the writer.
    pub ledger: Handle,
    /// Read-only access.
    pub reader: Reader,
    /// The time.
    pub clock: Clock,
    /// How long things are kept.
    pub retention: Retention,
}

/// Why a round was broken off. The next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A lookup failed.
    #[error("{0}")]
    Store(Arc<str>),
    /// A removal failed.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

impl From<LedgerError> for Broken {
    fn from(error: LedgerError) -> Broken {
        Broken::Store(error.to_string().into())
    }
}

/// What is taken of a report.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Take {
    Bodies,
    Rows,
}

impl Upkeep {
    /// Goes round until `stop` turns true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut pause = limits::UPKEEP_FIRST;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            pause = limits::UPKEEP_INTERVAL
                .min(self.retention.deliveries / 2)
                .max(Duration::from_secs(1));
            tokio::select! {
                result = self.round() => if let Err(error) = result {
                    tracing::warn!(%error, "upkeep is broken off and begins anew later");
                },
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// One round: by age, by size, and the free space given back.
    pub async fn round(&self) -> Result<(), Broken> {
        let now = (self.clock)();
        let kept_since = At(now.0.saturating_sub(millis(self.retention.deliveries)));
        let removed = self.trim(kept_since, Take::Rows, || true).await?;
        let trimmed = self.trim_to_size(now).await?;
        if removed + trimmed > 0 {
            tracing::info!(
                removed,
                trimmed,
                "deliveries removed by age, and emptied or removed by size"
            );
        }
        self.ledger.execute(ForgetSettlements { now }).await?;
        self.shrink().await
    }

    /// Takes from the oldest reports while the file holds more than it should: bytes first, then
    /// rows.
    async fn trim_to_size(&self, now: At) -> Result<usize, Broken> {
        let Some(most) = self.retention.store_bytes else {
            return Ok(0);
        };
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        // What nobody had time to look at stays, whatever its size.
        let before = At(now.0.saturating_sub(millis(limits::RETENTION_MIN)));
        let mut taken = 0;
        for take in [Take::Bodies, Take::Rows] {
            let reader = self.reader.clone();
            let too_large = move || reader.read(sizes).is_ok_and(|(used, _)| used > most);
            taken += self.trim(before, take, too_large).await?;
        }
        Ok(taken)
    }

    async fn trim(
        &self,
        before: At,
        take: Take,
        wanted: impl Fn() -> bool + Send,
    ) -> Result<usize, Broken> {
        let (mut position, mut taken) = (0, 0);
        while wanted() {
            let bodies = take == Take::Bodies;
            let Removable {
                ids,
                position: upto,
                end,
            } = self
                .look(move |view| view.removable(position, before, bodies))
                .await?;
            position = upto;
            taken += ids.len();
            if !ids.is_empty() {
                match take {
                    Take::Bodies => self.ledger.execute(DropBodies { ids }).await?,
                    Take::Rows => self.ledger.execute(RemoveReports { ids }).await?,
                };
                tokio::time::sleep(limits::UPKEEP_PAUSE).await;
            }
            if end {
                break;
            }
        }
        Ok(taken)
    }

    /// Gives free pages back, once they are worth it.
    async fn shrink(&self) -> Result<(), Broken> {
        loop {
            let (used, free) = self.look(sizes).await?;
            if free < limits::SHRINK_BYTES_MIN || free < used / 4 {
                return Ok(());
            }
            let pages = limits::SHRINK_PAGES;
            self.ledger.execute(Shrink { pages }).await?;
            let (_, left) = self.look(sizes).await?;
            if left >= free {
                return Ok(()); // a file from before pages could be given back
            }
            tokio::time::sleep(limits::UPKEEP_PAUSE).await;
        }
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View<'_>) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, Broken> {
        let reader = self.reader.clone();
        match tokio::task::spawn_blocking(move || reader.read(look)).await {
            Ok(found) => Ok(found?),
            Err(_) => Err(Broken::Store(
                "a lookup panicked; please report this".into(),
            )),
        }
    }
}

/// Bytes used and bytes free. A function of its own, since a method of a view fits one lifetime only.
fn sizes(view: &View<'_>) -> Result<(i64, i64), LedgerError> {
    view.sizes()
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::ledger::commands::RegisterSources;
    use crate::ledger::{UnverifiedLimits, Writer};
    use crate::model::RunId;
    use crate::reconciler::{Reconciler, channel};
    use crate::report::{Meta, Report};

    fn quarantined(view: &View<'_>) -> Result<i64, LedgerError> {
        view.quarantined_count()
    }

    /// An upkeep at a moment an hour after `count` reports came, over a ledger of its own.
    async fn upkeep(folder: &std::path::Path, count: usize, retention: Retention) -> Upkeep {
        let mut writer = Writer::open(&folder.join("settled.db"), At(0)).unwrap();
        let sources = vec![("a".to_owned(), "skyvern".to_owned())];
        writer
            .execute(RegisterSources {
                sources,
                now: At(0),
            })
            .unwrap();
        let reader = writer.reader();
        let unverified = UnverifiedLimits {
            rows_max: 10,
            bytes_max: 10,
        };
        let clock: Clock = Arc::new(|| At(3_600_000));
        let (ledger, serve) = channel(
            Reconciler::new(writer, Sources::default(), unverified),
            clock.clone(),
            0,
        );
        std::thread::spawn(serve);
        for _ in 0..count {
            let meta = Meta::Clock {
                run_id: RunId::new("r").unwrap(),
            };
            ledger
                .process(Report {
                    source: 1,
                    at: At(1_000),
                    meta,
                    body: vec![b'x'; 100_000],
                })
                .await
                .unwrap();
        }
        Upkeep {
            ledger,
            reader,
            clock,
            retention,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_old_goes_and_what_is_young_stays() {
        let folder = tempfile::tempdir().unwrap();
        let hours = |hours: u64| Retention {
            deliveries: Duration::from_secs(3_600 * hours),
            ..Retention::default()
        };
        let mut upkeep = upkeep(folder.path(), 20, hours(2)).await;
        upkeep.round().await.unwrap();
        assert_eq!(upkeep.look(quarantined).await.unwrap(), 20);
        upkeep.retention = Retention {
            deliveries: Duration::from_secs(600),
            ..Retention::default()
        };
        upkeep.round().await.unwrap();
        assert_eq!(
            upkeep.look(quarantined).await.unwrap(),
            0,
            "they go with their reports"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_too_much_loses_its_bytes_first() {
        let folder = tempfile::tempdir().unwrap();
        let store_bytes = Some(1_000_000);
        let upkeep = upkeep(
            folder.path(),
            20,
            Retention {
                store_bytes,
                ..Retention::default()
            },
        )
        .await;
        assert!(upkeep.look(sizes).await.unwrap().0 > 2_000_000);
        upkeep.round().await.unwrap();
        assert!(upkeep.look(sizes).await.unwrap().0 < 1_000_000);
        assert_eq!(
            upkeep.look(quarantined).await.unwrap(),
            20,
            "the rows were no burden"
        );
    }
}
