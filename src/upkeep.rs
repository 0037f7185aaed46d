//! Upkeep: what has been kept for long enough goes, a little at a time.
//!
//! Everything is looked for on a reader and removed by the writer in pieces of a few milliseconds,
//! with a pause between them, so that intake never waits for retention.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Retention;
use crate::limits;
use crate::reconciler::{Clock, Handle, Refusal};
use crate::run::At;
use crate::store::{Reader, Removable, StoreError};

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

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Broken {
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
            pause = limits::UPKEEP_INTERVAL.min(self.retention.deliveries / 2).max(Duration::from_secs(1));
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
            tracing::info!(removed, trimmed, "deliveries removed by age, and emptied or removed by size");
        }
        self.shrink().await
    }

    /// Takes from the oldest reports while the file holds more than it should: bytes first, then
    /// rows.
    async fn trim_to_size(&self, now: At) -> Result<usize, Broken> {
        let Some(most) = self.retention.size else { return Ok(0) };
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        // What nobody had time to look at stays, whatever its size.
        let before = At(now.0.saturating_sub(millis(limits::RETENTION_MIN)));
        let mut taken = 0;
        for take in [Take::Bodies, Take::Rows] {
            let reader = self.reader.clone();
            let too_large = move || reader.read(|view| view.sizes()).is_ok_and(|(used, _)| used > most);
            taken += self.trim(before, take, too_large).await?;
        }
        Ok(taken)
    }

    async fn trim(&self, before: At, take: Take, wanted: impl Fn() -> bool + Send) -> Result<usize, Broken> {
        let (mut position, mut taken) = (0, 0);
        while wanted() {
            let bodies = take == Take::Bodies;
            let Removable { ids, position: upto, end } =
                self.look(move |view| view.removable(position, before, bodies)).await?;
            position = upto;
            taken += ids.len();
            if !ids.is_empty() {
                let remove = move |tx: &mut crate::store::Transaction<'_>| match take {
                    Take::Bodies => tx.drop_bodies(&ids),
                    Take::Rows => tx.remove_reports(&ids),
                };
                self.ledger.write(remove).await?;
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
            let (used, free) = self.look(|view| view.sizes()).await?;
            if free < limits::SHRINK_BYTES_MIN || free < used / 4 {
                return Ok(());
            }
            self.ledger.write(|tx| tx.shrink(limits::SHRINK_PAGES)).await?;
            let (_, left) = self.look(|view| view.sizes()).await?;
            if left >= free {
                return Ok(()); // a file from before pages could be given back
            }
            tokio::time::sleep(limits::UPKEEP_PAUSE).await;
        }
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&crate::store::View<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Broken> {
        let reader = self.reader.clone();
        match tokio::task::spawn_blocking(move || reader.read(look)).await {
            Ok(found) => Ok(found?),
            Err(_) => Err(Broken::Store("a lookup panicked; please report this".into())),
        }
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
