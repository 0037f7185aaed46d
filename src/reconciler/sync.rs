//! How the queue of the writer waits: for work, for a free place, for a failing disk to recover; and
//! how long something has lasted. Nothing else is here, so that a test that explores schedules
//! ([`super::schedules`]) can replace the waiting, and run all other code as the daemon does.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

#[cfg(test)]
use super::schedules;
use crate::limits;

/// Blocks the writer's thread until the queue has jobs, and takes up to `max` of them. 0: every
/// handle is dropped.
pub fn receive<T>(waiting: &mut mpsc::Receiver<T>, group: &mut Vec<T>, max: usize) -> usize {
    #[cfg(test)]
    if schedules::exploring() {
        return schedules::block_on(waiting.recv_many(group, max));
    }
    waiting.blocking_recv_many(group, max)
}

/// Blocks the writer's thread for `span`.
pub fn pause(span: Duration) {
    #[cfg(test)]
    if schedules::exploring() {
        return schedules::step();
    }
    std::thread::sleep(span);
}

/// The output of `future`; `None` if it takes longer than [`limits::QUEUE_WAIT`].
pub async fn patiently<F: Future>(future: F) -> Option<F::Output> {
    #[cfg(test)]
    if schedules::exploring() {
        return schedules::patiently(future).await;
    }
    tokio::time::timeout(limits::QUEUE_WAIT, future).await.ok()
}

/// How much time has passed since `moment`.
pub fn since(moment: Instant) -> Duration {
    #[cfg(test)]
    if schedules::exploring() {
        return schedules::some_time();
    }
    moment.elapsed()
}

/// A point between two visible effects, at which a test may let other threads continue.
pub fn step() {
    #[cfg(test)]
    if schedules::exploring() {
        schedules::step();
    }
}
