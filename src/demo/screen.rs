//! The progress that a person at a terminal sees while the demo runs. Elsewhere nothing is shown.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::clouds::{Count, World};
use super::life::Life;
use super::tally::Book;
use crate::model::Origin;

/// The live view, on standard error.
pub(super) struct Screen {
    runs: ProgressBar,
}

impl Screen {
    /// A view of so many runs.
    pub(super) fn new(runs: usize) -> Screen {
        let bar = ProgressBar::new(runs as u64);
        let template = "{elapsed_precise} {wide_bar} {pos}/{len} completions\n{msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Screen { runs: bar }
    }

    /// Shows the present numbers.
    pub(super) fn show(&self, book: &Book, world: &World) {
        let origins = book.by_origin();
        let origin = |origin: Origin| origins.get(&origin).copied().unwrap_or_default();
        let counted = world.tally.counted();
        let count = |what: Count| counted.get(&what).copied().unwrap_or_default();
        let missing = |life: &&Life| {
            let settled_by = life.begins + life.ends() + LATE;
            settled_by < world.now() && book.belief(life.source, &life.id).is_none()
        };
        let late = world.plan.runs.iter().filter(missing).count();
        self.runs.set_position(book.completions() as u64);
        self.runs.set_message(format!(
            "by webhook {}, poll {}, replay {} | sent {}, forged {} | asked {} | duplicates {}, late {late}",
            origin(Origin::Webhook),
            origin(Origin::Poll),
            origin(Origin::Replay),
            count(Count::WebhooksSent),
            count(Count::WebhooksForged),
            count(Count::PollsAnswered) + count(Count::PollsFailed),
            book.duplicates(),
        ));
    }

    /// Takes the view away.
    pub(super) fn clear(&self) {
        self.runs.finish_and_clear();
    }
}

/// A run that ended this long ago ought to be in the feed.
const LATE: Duration = Duration::from_secs(20);
