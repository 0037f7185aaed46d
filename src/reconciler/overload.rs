//! Whether more comes in than can be written, for longer than a burst lasts.
//!
//! A burst waits, and each of its senders is answered a moment later than usual. What waiting does not
//! mend is a queue that stands: every turn takes all that one may take, and leaves as much again.
//! After a second of that, whoever comes with a whole group before him is turned away at once. So the
//! wait of those that are let in stays at about two turns, however many senders there are. It is the
//! distinction between a good and a bad queue that CoDel makes (Nichols and Jacobson, "Controlling
//! Queue Delay", 2012). A disk that hangs is no such thing: no turn ends meanwhile, and who waits for
//! it waits as long as a mouth may.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::sync;
use crate::limits;

/// What the writer and those who hand in know of it together.
#[derive(Clone)]
pub struct Overload {
    standing: Arc<Mutex<Option<Standing>>>,
    /// So many are taken in one batch.
    group: usize,
}

struct Standing {
    since: Instant,
    /// It was found standing again after [`limits::STANDING_MAX`].
    lasts: bool,
    turned_away: u64,
}

impl Overload {
    /// None, where a turn takes up to `group`.
    pub fn new(group: usize) -> Overload {
        Overload {
            standing: Arc::default(),
            group,
        }
    }

    /// The writer has taken what one turn may take, and `left` still wait.
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

    /// Whether somebody with so many `waiting` before him is to be turned away.
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
