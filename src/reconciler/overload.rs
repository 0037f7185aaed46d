//! Overload: more reports arrive than the writer can commit, for longer than a burst lasts.
//!
//! A burst waits in the queue, and each of its senders is answered a moment later than usual. If a
//! full batch is still queued after every commit for one second, new reports get 503 at once. An
//! accepted report then waits for about two batches, however many senders there are. CoDel draws the
//! same line between a good and a bad queue (Nichols and Jacobson, "Controlling Queue Delay", 2012).
//! A disk that hangs is another case: no commit ends meanwhile, and senders wait for it up to
//! [`limits::QUEUE_WAIT`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::sync;
use crate::limits;

/// The state of the overload, shared by the writer and every handle.
#[derive(Clone)]
pub struct Overload {
    standing: Arc<Mutex<Option<Standing>>>,
    /// The most reports in one batch.
    group: usize,
}

struct Standing {
    since: Instant,
    /// A full batch was still queued [`limits::STANDING_MAX`] later.
    lasts: bool,
    turned_away: u64,
}

impl Overload {
    /// No overload; a batch has up to `group` reports.
    pub fn new(group: usize) -> Overload {
        Overload {
            standing: Arc::default(),
            group,
        }
    }

    /// Notes that the writer has taken a batch and `left` reports still wait.
    pub fn taken(&self, left: usize) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if left >= self.group {
            let fresh = || Standing {
                since: Instant::now(),
                lasts: false,
                turned_away: 0,
            };
            let standing = standing.get_or_insert_with(fresh);
            standing.lasts = sync::since(standing.since) >= limits::STANDING_MAX;
        } else if let Some(Standing {
            turned_away: turned_away @ 1..,
            ..
        }) = standing.take()
        {
            tracing::warn!(turned_away, "what comes in can be written again");
        }
    }

    /// Whether to refuse a report that has `waiting` others before it.
    pub fn refuses(&self, waiting: usize) -> bool {
        if waiting < self.group {
            return false;
        }
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(standing) = standing.as_mut().filter(|standing| standing.lasts) else {
            return false;
        };
        if standing.turned_away == 0 {
            tracing::warn!(
                waiting,
                "more comes in than can be written; senders are turned away with 503"
            );
        }
        standing.turned_away += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn standing_since(ago: Duration) -> Overload {
        let overload = Overload::new(4);
        overload.taken(4);
        overload.standing.lock().unwrap().as_mut().unwrap().since =
            Instant::now().checked_sub(ago).unwrap();
        overload
    }

    #[test]
    fn a_queue_that_stands_turns_away_who_would_wait_longest() {
        let overload = standing_since(limits::STANDING_MAX);
        assert!(!overload.refuses(4), "it may be a turn that takes its time");
        overload.taken(4);
        assert!(
            !overload.refuses(3),
            "who waits for one turn only is let in"
        );
        assert!(overload.refuses(4));
        overload.taken(4);
        assert!(overload.refuses(4), "it goes on standing");
        overload.taken(3);
        assert!(!overload.refuses(4), "it has moved");
    }

    #[test]
    fn a_burst_waits() {
        assert!(!Overload::new(4).refuses(4_000), "nobody has looked yet");
        let overload = standing_since(limits::STANDING_MAX / 2);
        overload.taken(4);
        assert!(!overload.refuses(4_000));
        overload.taken(0);
        overload.taken(4);
        assert!(!overload.refuses(4_000), "it stands anew");
    }
}
