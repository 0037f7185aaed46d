//! The log lines of a batch, written once its changes are on disk.

use crate::config::Sources;
use crate::ledger::Missing;
use crate::ledger::changes::{ChangeSet, LogLine};
use crate::model::decide::Effect;

/// Logs one line per thing that happened to a run, and runs that only the provider counted.
pub fn applied(sources: &Sources, changes: &ChangeSet, missing: &Missing) {
    for line in &changes.log {
        write(sources, changes, line);
    }
    for (source, missing) in missing {
        let source = name(sources, *source);
        tracing::warn!(
            source,
            missing,
            "the provider has counted runs that were not tracked and sent no webhook"
        );
    }
}

/// The name of a source. Changes come from configured sources only, so there always is one.
fn name(sources: &Sources, id: i64) -> &str {
    sources
        .by_id(id)
        .map_or("?", |source| source.config.name.as_str())
}

fn write(sources: &Sources, changes: &ChangeSet, line: &LogLine) {
    match line {
        LogLine::Decided {
            run,
            via,
            effect,
            ending,
        } => {
            let run = &changes.runs[*run];
            let (source, run_id) = (name(sources, run.source), run.run_id.as_str());
            let (effect, via) = (*effect, via.word());
            match (effect, ending) {
                (Effect::Settled, Some((outcome, origin, confirmed))) => tracing::info!(
                    source,
                    run_id,
                    outcome = outcome.word(),
                    origin = origin.word(),
                    confirmed,
                    "settled"
                ),
                (Effect::Amended, Some((outcome, ..))) => {
                    tracing::warn!(source, run_id, via, outcome = outcome.word(), "amended");
                }
                (Effect::Exhausted, _) => tracing::error!(
                    source,
                    run_id,
                    via,
                    "contradicted again; no more amendments are published"
                ),
                (Effect::Overdue, _) => tracing::warn!(source, run_id, "overdue"),
                (Effect::Disputed, _) => {
                    tracing::warn!(source, run_id, via, "disputed; polling the provider");
                }
                (Effect::Opened, _) => tracing::info!(source, run_id, via, "watching"),
                _ => tracing::debug!(source, run_id, via, effect = effect.word(), "processed"),
            }
        }
        LogLine::Damaged {
            source,
            run_id,
            via,
            quarantined,
            error,
        } => {
            let (source, run_id, via) = (name(sources, *source), run_id.as_str(), via.word());
            if let Some(report) = quarantined {
                tracing::error!(
                    source,
                    run_id,
                    via,
                    report,
                    error,
                    "quarantined: the run's row is damaged"
                );
            } else {
                tracing::debug!(source, run_id, via, error, "the run's row is damaged");
            }
        }
    }
}
