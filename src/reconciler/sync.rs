//! How the hand-off waits: for work, for room in the queue, for a sick disk to be well; and how long
//! something has lasted. And nothing else, so that a test that explores schedules
//! ([`super::schedules`]) can wait in its own way while everything around it is what runs in the
//! daemon.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

#[cfg(test)]
use super::schedules;
use crate::limits;

/// Waits on the writer's thread until something was handed in, and takes up to `max` of it. 0:
/// nobody is left to hand anything in.
pub fn receive<T>(waiting: &mut mpsc::Receiver<T>, group: &mut Vec<T>, max: usize) -> usize {
    #[cfg(test)]
    if schedules::exploring() {
        return schedules::block_on(waiting.recv_many(group, max));
    }
    waiting.blocking_recv_many(group, max)
}

/// Waits on the writer's thread.
pub fn pause(span: Duration) {
    #[cfg(test)]
    if schedules::exploring() {
        return schedules::step();
    }
    std::thread::sleep(span);
}

/// What `future` gives, unless it takes longer than a mouth may wait.
pub async fn patiently<F: Future>(future: F) -> Option<F::Output> {
    #[cfg(test)]
    if schedules::exploring() {
        return schedules::patiently(future).await;
    }
    tokio::time::timeout(limits::QUEUE_WAIT, future).await.ok()
}

/// How much time has passed.
pub fn since(moment: Instant) -> Duration {
    #[cfg(test)]
    if schedules::exploring() {
        return schedules::some_time();
    }
    moment.elapsed()
}

/// Between two things that others can see. Here a test lets everybody else go on.
pub fn step() {
    #[cfg(test)]
    if schedules::exploring() {
        schedules::step();
    }
}
