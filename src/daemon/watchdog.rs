//! The watchdog: proof that the writer works, and the line that `systemctl status` shows.
//!
//! The daemon notifies systemd's watchdog only after an empty transaction has gone through the
//! writer's queue and has been committed. A timer of its own would go on notifying in a daemon that
//! stores nothing any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Sources;
use crate::ledger::commands::Probe;
use crate::ledger::{LedgerError, Reader, SourceCounts};
use crate::limits;
use crate::model::At;
use crate::reconciler::{Clock, Handle, Refusal};
use crate::server::systemd;

/// Checks the writer and reports to the service manager.
#[derive(Clone)]
pub struct Watchdog {
    /// The handle of the writer that is checked.
    pub ledger: Handle,
    /// Reads the numbers of the status line.
    pub reader: Reader,
    /// The configured sources, which the status line counts.
    pub sources: watch::Receiver<Arc<Sources>>,
    /// A problem that needs a person: a configuration that could not be loaded.
    pub trouble: watch::Receiver<Option<String>>,
    /// Says that the daemon cannot go on, and why.
    pub fatal: watch::Sender<Option<String>>,
    /// Gives the time for "last webhook … ago".
    pub clock: Clock,
}

impl Watchdog {
    /// Checks the writer, and notifies systemd, until `stop` turns true.
    pub async fn beat(self, mut stop: watch::Receiver<bool>) {
        // Three times per watchdog interval: one check may wait for a long transaction.
        let interval =
            systemd::watchdog().map_or(limits::PULSE, |most| (most / 3).min(limits::PULSE));
        loop {
            match self.ledger.execute(Probe).await {
                Ok(()) => systemd::alive(&self.line().await),
                Err(Refusal::Stopping) => return,
                Err(refusal @ Refusal::Replaced(_)) => {
                    systemd::status(&format!("Ending: {refusal}"));
                    self.fatal.send_replace(Some(refusal.to_string()));
                    return;
                }
                Err(refusal) => {
                    tracing::error!(%refusal, "the writer does not answer");
                    systemd::status(&format!("Nothing can be stored: {refusal}"));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// The status line of `systemctl status`: sources, open runs, last webhook, and problems.
    pub async fn line(&self) -> String {
        let reader = self.reader.clone();
        let look =
            move || reader.read(|view| Ok((view.source_counts()?, view.quarantined_count()?)));
        let looked = tokio::task::spawn_blocking(look).await;
        let facts = match looked {
            Ok(Ok(facts)) => facts,
            Ok(Err(error)) => return cannot_look(&error),
            Err(_) => return "A lookup panicked; please report this".to_owned(),
        };
        let sources = self.sources.borrow().members().count();
        line(
            self.trouble.borrow().as_deref(),
            sources,
            &facts.0,
            facts.1,
            (self.clock)(),
        )
    }
}

fn cannot_look(error: &LedgerError) -> String {
    format!("The database cannot be read: {error}")
}

fn line(
    trouble: Option<&str>,
    sources: usize,
    counts: &[SourceCounts],
    quarantined: i64,
    now: At,
) -> String {
    let (open, overdue) = counts.iter().fold((0, 0), |sum, source| {
        (sum.0 + source.open, sum.1 + source.overdue)
    });
    let serving = format!("{sources} source{}", if sources == 1 { "" } else { "s" });
    let overdue = if overdue > 0 {
        format!(", {overdue} overdue")
    } else {
        String::new()
    };
    let heard = match counts.iter().filter_map(|source| source.webhook_at).max() {
        Some(at) => format!("last webhook {} ago", span(now.since(at))),
        None => "no webhook yet".to_owned(),
    };
    let mut parts = match trouble {
        Some(trouble) => vec![trouble.to_owned(), format!("serving {serving}")],
        None => vec![format!("Serving {serving}")],
    };
    parts.extend([format!("{open} runs open{overdue}"), heard]);
    parts.extend(
        (quarantined > 0)
            .then(|| format!("{quarantined} reports quarantined, see `settled status`")),
    );
    parts.join("; ")
}

/// A duration in its largest unit, in words for people.
fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_a_person_wants_to_know() {
        let busy = SourceCounts {
            open: 3,
            overdue: 1,
            webhook_at: Some(At(60_000)),
            ..SourceCounts::default()
        };
        assert_eq!(
            line(None, 1, &[busy], 2, At(360_000)),
            "Serving 1 source; 3 runs open, 1 overdue; last webhook 5 min ago; 2 reports quarantined, see `settled status`"
        );
        let line = line(
            Some("OLD CONFIGURATION IN FORCE (a.toml:3: x: y)"),
            2,
            &[],
            0,
            At(0),
        );
        assert_eq!(
            line,
            "OLD CONFIGURATION IN FORCE (a.toml:3: x: y); serving 2 sources; 0 runs open; no webhook yet"
        );
    }
}
