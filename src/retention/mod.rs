//! Retention: removes reports that are old enough or take too much space, a little at a time.
//!
//! A reader finds what may go. The writer removes it in transactions of a few milliseconds, with a
//! pause between them, so that intake waits for one such transaction at most.

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

/// The retention of reports, bodies and settlement counts.
pub struct Upkeep {
    /// The handle of the writer, which removes.
    pub ledger: Handle,
    /// Finds what may be removed.
    pub reader: Reader,
    /// Gives the time that ages are counted from.
    pub clock: Clock,
    /// The configured ages and sizes.
    pub retention: Retention,
}

/// Why a round ended early. The next round starts from the oldest report again.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A read of the database failed.
    #[error("{0}")]
    Store(Arc<str>),
    /// The writer refused or failed a removal.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

impl From<LedgerError> for Broken {
    fn from(error: LedgerError) -> Broken {
        Broken::Store(error.to_string().into())
    }
}

/// The part of a report that retention removes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Take {
    Bodies,
    Rows,
}

impl Upkeep {
    /// Runs a round now and then until `stop` turns true.
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

    /// One round: removes by age, then by size, then gives free pages back to the file system.
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

    /// While the database holds more than `store_bytes`, removes bodies of the oldest reports; if
    /// that is not enough, removes their rows too. Returns how many reports it touched.
    async fn trim_to_size(&self, now: At) -> Result<usize, Broken> {
        let Some(most) = self.retention.store_bytes else {
            return Ok(0);
        };
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        // A report younger than the shortest retention stays, whatever its size: readers may need it.
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

    /// Gives free pages back once they are a quarter of the used bytes and at least
    /// [`limits::SHRINK_BYTES_MIN`].
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
                return Ok(()); // the file was made without incremental vacuum
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

/// Bytes used and bytes free. A function, since the path of a method is less general over lifetimes.
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

    /// An upkeep whose clock stands an hour after `count` reports came, over a ledger of its own.
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
