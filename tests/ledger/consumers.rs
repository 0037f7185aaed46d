//! Named readers: where each has come to, who may move it, and what it has parked.

use settled::ledger::commands::{
    Ack, CreateConsumer, Created, DeleteConsumer, Deleted, DropParked, Moved, OpenConsumer, Park,
    RetryParked, Seek,
};
use settled::ledger::{Command, Consumer, Filter, ParkedRow};
use settled::model::At;
use settled::model::record::RecordType;

use crate::support::reconciler::{Bare, Ledger, signed};

/// A feed of three completions.
struct Feed(Bare);

impl Feed {
    fn of_three() -> Feed {
        let mut ledger = Ledger::new();
        for run_id in ["wr_1", "wr_2", "wr_3"] {
            ledger.hears(signed(run_id, "completed"));
        }
        Feed(ledger.bare())
    }

    fn execute<C: Command>(&mut self, command: C) -> C::Reply {
        self.0.writer.execute(command).unwrap()
    }

    fn create(&mut self, name: &str, acked: i64) -> Consumer {
        self.execute(CreateConsumer {
            name: name.to_owned(),
            acked,
            filter: Filter::default(),
            window: 0,
            now: At(1),
        })
        .consumer
    }

    fn ack(&mut self, name: &str, seq: i64, generation: Option<i64>, now: At) -> Moved {
        self.execute(Ack {
            name: name.to_owned(),
            seq,
            generation,
            now,
        })
    }

    fn park(&mut self, seq: i64, attempts: u32, max: i64) -> Moved {
        self.park_as("a", None, seq, attempts, max)
    }

    fn park_as(
        &mut self,
        name: &str,
        generation: Option<i64>,
        seq: i64,
        attempts: u32,
        max: i64,
    ) -> Moved {
        let error = format!("attempt {attempts}");
        self.execute(Park {
            name: name.to_owned(),
            seq,
            generation,
            attempts,
            error,
            parked_max: max,
            now: At(i64::from(attempts)),
        })
    }

    fn consumer(&self, name: &str) -> Option<Consumer> {
        self.0.reader.read(|view| view.consumer(name)).unwrap()
    }

    fn parked(&self, due: bool, after: i64, max: u32) -> Vec<ParkedRow> {
        self.0
            .reader
            .read(|view| view.parked("a", due, after, max))
            .unwrap()
    }

    fn parked_seqs(&self, due: bool) -> Vec<i64> {
        self.parked(due, 0, 10).iter().map(|row| row.seq).collect()
    }

    fn parked_count(&self) -> i64 {
        self.0.reader.read(|view| view.parked_count("a")).unwrap()
    }
}

#[test]
fn a_consumer_is_made_once() {
    let mut feed = Feed::of_three();
    let filter = Filter {
        types: vec![RecordType::Amendment],
        ..Filter::default()
    };
    let made = feed.execute(CreateConsumer {
        name: "a".to_owned(),
        acked: 1,
        filter: filter.clone(),
        window: 7,
        now: At(10),
    });
    let a = Consumer {
        name: "a".to_owned(),
        acked: 1,
        filter,
        window: 7,
        generation: made.consumer.generation,
        created_at: At(10),
        seen_at: At(10),
    };
    let created = |new| Created {
        consumer: a.clone(),
        new,
    };
    assert_eq!(made, created(true));
    let again = feed.execute(CreateConsumer {
        name: "a".to_owned(),
        acked: 3,
        filter: Filter::default(),
        window: 0,
        now: At(20),
    });
    assert_eq!(again, created(false));
    let b = feed.create("b", 0);
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method alone is not general enough"
    )]
    let all = feed.0.reader.read(|view| view.consumers()).unwrap();
    assert_eq!(all, [a.clone(), b]);
    assert_eq!((feed.consumer("a"), feed.consumer("c")), (Some(a), None));
}

#[test]
fn whoever_opens_or_moves_a_consumer_supersedes_all_before() {
    let mut feed = Feed::of_three();
    let mut last = feed.create("a", 1).generation;
    for name in ["b", "c"] {
        let generation = feed.create(name, 0).generation;
        assert!(generation > last, "{generation} after {last}");
        last = generation;
    }
    let open = |name: &str| OpenConsumer {
        name: name.to_owned(),
        now: At(20),
    };
    let opened = feed.execute(open("a")).unwrap();
    assert!(opened.generation > last);
    assert_eq!(
        (opened.acked, opened.seen_at, opened.created_at),
        (1, At(20), At(1))
    );
    assert_eq!(feed.consumer("a").as_ref(), Some(&opened));
    let seek = |name: &str, seq| Seek {
        name: name.to_owned(),
        seq,
        now: At(30),
    };
    let moved = feed.execute(seek("a", 3)).unwrap();
    assert!(moved.generation > opened.generation);
    assert_eq!((moved.acked, moved.seen_at), (3, At(30)));
    assert_eq!(feed.consumer("a").as_ref(), Some(&moved));
    assert_eq!(feed.execute(open("d")), None);
    assert_eq!(feed.execute(seek("d", 0)), None);
}

#[test]
fn a_position_moves_forward_as_far_as_there_are_records_for_the_reader_of_now() {
    let mut feed = Feed::of_three();
    let generation = feed.create("a", 0).generation;
    assert_eq!(feed.ack("b", 1, None, At(5)), Moved::Unknown);
    assert_eq!(
        feed.ack("a", 2, None, At(5)),
        Moved::Done { acked: 2, head: 3 }
    );
    assert_eq!(
        feed.ack("a", 1, Some(generation), At(6)),
        Moved::Done { acked: 2, head: 3 },
        "never back"
    );
    assert_eq!(
        feed.ack("a", 3, Some(generation), At(7)),
        Moved::Done { acked: 3, head: 3 }
    );
    assert_eq!(feed.ack("a", 4, None, At(8)), Moved::Beyond(3));
    assert_eq!(
        feed.ack("a", 3, Some(generation - 1), At(9)),
        Moved::Stale(generation)
    );
    let now = feed.consumer("a").unwrap();
    assert_eq!(
        (now.acked, now.seen_at),
        (3, At(7)),
        "what was refused changed nothing"
    );
}

#[test]
fn a_consumer_goes_with_what_it_has_parked() {
    let mut feed = Feed::of_three();
    let generation = feed.create("a", 0).generation;
    feed.park(1, 1, 10);
    feed.park(2, 1, 10);
    assert_eq!(feed.parked_count(), 2);
    let delete = DeleteConsumer {
        name: "a".to_owned(),
    };
    let Deleted {
        parked,
        generation: after,
    } = feed.execute(delete.clone()).unwrap();
    assert_eq!(parked, 2);
    assert!(after > generation, "its readers are superseded");
    assert_eq!((feed.consumer("a"), feed.parked_count()), (None, 0));
    assert_eq!(feed.execute(delete), None);
}

#[test]
fn a_parked_event_is_kept_whole_and_passed() {
    let mut feed = Feed::of_three();
    let generation = feed.create("a", 0).generation;
    assert_eq!(feed.park_as("b", None, 1, 1, 10), Moved::Unknown);
    assert_eq!(
        feed.park_as("a", Some(generation - 1), 1, 1, 10),
        Moved::Stale(generation)
    );
    assert_eq!(feed.parked_count(), 0);
    assert_eq!(feed.park(1, 1, 10), Moved::Done { acked: 1, head: 3 });
    let line = feed
        .0
        .reader
        .read(|view| view.record_at(1))
        .unwrap()
        .unwrap()
        .line;
    let first = ParkedRow {
        seq: 1,
        line,
        attempts: 1,
        error: "attempt 1".to_owned(),
        at: At(1),
        retry: false,
    };
    assert_eq!(feed.parked(false, 0, 10), std::slice::from_ref(&first));
    // It fails once more: the same row, and nothing moves.
    assert_eq!(feed.park(1, 2, 10), Moved::Done { acked: 1, head: 3 });
    let second = ParkedRow {
        attempts: 2,
        error: "attempt 2".to_owned(),
        at: At(2),
        ..first
    };
    assert_eq!(feed.parked(false, 0, 10), [second]);
    assert_eq!(feed.park(4, 1, 10), Moved::Absent);
    assert_eq!(feed.consumer("a").unwrap().acked, 1);
}

#[test]
fn no_more_is_parked_than_may_be() {
    let mut feed = Feed::of_three();
    feed.create("a", 0);
    assert_eq!(feed.park(1, 1, 2), Moved::Done { acked: 1, head: 3 });
    assert_eq!(feed.park(2, 1, 2), Moved::Done { acked: 2, head: 3 });
    assert_eq!(feed.park(3, 1, 2), Moved::Full);
    assert_eq!(
        feed.consumer("a").unwrap().acked,
        2,
        "what is not parked is not passed"
    );
    assert_eq!(
        feed.park(2, 2, 2),
        Moved::Done { acked: 2, head: 3 },
        "what is parked may fail again"
    );
    assert_eq!(feed.parked_seqs(false), [1, 2]);
}

#[test]
fn parked_events_are_tried_again_or_forgotten_one_by_one_or_all_together() {
    let mut feed = Feed::of_three();
    feed.create("a", 0);
    for seq in 1..=3 {
        feed.park(seq, 1, 10);
    }
    assert_eq!(feed.parked_seqs(true), [0; 0], "nobody asked yet");
    let retry = |seq| RetryParked {
        name: "a".to_owned(),
        seq,
    };
    let retried = [Some(9), Some(2)].map(|seq| feed.execute(retry(seq)));
    assert_eq!(retried, [0, 1]);
    assert_eq!(feed.parked_seqs(true), [2]);
    feed.park(2, 2, 10);
    assert_eq!(feed.parked_seqs(true), [0; 0], "that was the attempt");
    assert_eq!(feed.execute(retry(None)), 3);
    assert_eq!(feed.parked_seqs(true), [1, 2, 3]);
    let page: Vec<_> = feed
        .parked(true, 1, 1)
        .iter()
        .map(|row| (row.seq, row.retry))
        .collect();
    assert_eq!(page, [(2, true)]);
    let forgotten = [Some(2), Some(2), None].map(|seq| {
        feed.execute(DropParked {
            name: "a".to_owned(),
            seq,
        })
    });
    assert_eq!(forgotten, [1, 0, 2]);
    assert_eq!(feed.parked_count(), 0);
}
