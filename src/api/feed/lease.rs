//! Which reader holds a named consumer, and the news that its stream gets.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// Why a reader has lost its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// Another reader opened the consumer.
    #[default]
    Reader,
    /// The position was moved.
    Seek,
    /// The consumer was deleted.
    Deleted,
}

impl Cause {
    /// The value of `by` in the stream's last line.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Reader => "reader",
            Cause::Seek => "seek",
            Cause::Deleted => "delete",
        }
    }
}

/// The newest event of a consumer, for the stream that reads it. An acknowledgement wakes the stream
/// and changes nothing here: the stream reads the position from the ledger.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConsumerEvent {
    /// The newest generation.
    pub generation: i64,
    /// Why there is a newer generation than the stream's.
    pub cause: Cause,
}

/// The consumers that are being read, by name.
#[derive(Default)]
pub struct Readers {
    by_name: Mutex<HashMap<String, watch::Sender<ConsumerEvent>>>,
}

impl Readers {
    /// Subscribes to the events of a consumer from now on.
    pub fn listen(&self, name: &str) -> watch::Receiver<ConsumerEvent> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.retain(|_, sender| sender.receiver_count() > 0);
        by_name.entry(name.to_owned()).or_default().subscribe()
    }

    /// Whether a stream reads the consumer.
    pub fn connected(&self, name: &str) -> bool {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name
            .get(name)
            .is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// Ends the streams whose generation is older than this one.
    pub fn supersede(&self, name: &str, generation: i64, cause: Cause) {
        self.notify(name, |event| {
            if generation > event.generation {
                (event.generation, event.cause) = (generation, cause);
            }
        });
    }

    /// Wakes the consumer's stream after its position has moved.
    pub fn acked(&self, name: &str) {
        self.notify(name, |_| ());
    }

    fn notify(&self, name: &str, change: impl FnOnce(&mut ConsumerEvent)) {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = by_name.get(name) {
            sender.send_modify(change);
        }
    }
}

/// The lease that the stream of a named consumer holds.
pub struct ReaderLease {
    /// The consumer's name.
    pub name: String,
    /// The number under which the stream reads.
    pub generation: i64,
    /// How many records may be out unacknowledged; 0 is any number.
    pub window: u32,
    /// News about the consumer.
    pub events: watch::Receiver<ConsumerEvent>,
    /// Seqs of the records that are out.
    pub out: VecDeque<i64>,
    /// The stream has sent `paused`, and less than half of the window has become free since.
    pub paused: bool,
    /// The consumer's position may have moved since the stream last read it.
    pub moved: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_reader_are_forgotten() {
        let readers = Readers::default();
        drop(readers.listen("a"));
        let mut reading = readers.listen("b");
        assert!(readers.connected("b") && !readers.connected("a"));
        assert_eq!(
            readers.by_name.lock().unwrap().keys().collect::<Vec<_>>(),
            ["b"]
        );
        readers.acked("b");
        assert!(
            reading.has_changed().unwrap(),
            "an acknowledgement wakes the reader"
        );
        readers.supersede("b", 2, Cause::Seek);
        readers.supersede("b", 1, Cause::Reader);
        let ConsumerEvent { generation, cause } = *reading.borrow_and_update();
        assert_eq!(
            (generation, cause),
            (2, Cause::Seek),
            "an older generation changes nothing"
        );
    }
}
