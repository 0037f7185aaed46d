//! Named readers: where each has come to, who may move it, and what it has parked.

use settled::ledger::{Consumer, Filter, Moved, ParkedRow, Parking};
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

    fn create(&mut self, name: &str, acked: i64) -> Consumer {
        self.0
            .writer
            .transaction(|tx| tx.create_consumer(name, acked, &Filter::default(), 0, At(1)))
            .unwrap()
            .0
    }

    fn ack(&mut self, name: &str, seq: i64, generation: Option<i64>, now: At) -> Moved {
        self.0
            .writer
            .transaction(|tx| tx.ack(name, seq, generation, now))
            .unwrap()
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
        let parking = Parking {
            name: name.to_owned(),
            seq,
            generation,
            attempts,
            error,
        };
        self.0
            .writer
            .transaction(|tx| tx.park(&parking, max, At(i64::from(attempts))))
            .unwrap()
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
    let made = feed
        .0
        .writer
        .transaction(|tx| tx.create_consumer("a", 1, &filter, 7, At(10)))
        .unwrap();
    let a = Consumer {
        name: "a".to_owned(),
        acked: 1,
        filter,
        window: 7,
        generation: made.0.generation,
        created_at: At(10),
        seen_at: At(10),
    };
    assert_eq!(made, (a.clone(), true));
    let again = feed
        .0
        .writer
        .transaction(|tx| tx.create_consumer("a", 3, &Filter::default(), 0, At(20)))
        .unwrap();
    assert_eq!(again, (a.clone(), false));
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
    let opened = feed
        .0
        .writer
        .transaction(|tx| tx.open_consumer("a", At(20)))
        .unwrap()
        .unwrap();
    assert!(opened.generation > last);
    assert_eq!(
        (opened.acked, opened.seen_at, opened.created_at),
        (1, At(20), At(1))
    );
    assert_eq!(feed.consumer("a").as_ref(), Some(&opened));
    let moved = feed
        .0
        .writer
        .transaction(|tx| tx.seek("a", 3, At(30)))
        .unwrap()
        .unwrap();
    assert!(moved.generation > opened.generation);
    assert_eq!((moved.acked, moved.seen_at), (3, At(30)));
    assert_eq!(feed.consumer("a").as_ref(), Some(&moved));
    assert_eq!(
        feed.0
            .writer
            .transaction(|tx| tx.open_consumer("d", At(20)))
            .unwrap(),
        None
    );
    assert_eq!(
        feed.0
            .writer
            .transaction(|tx| tx.seek("d", 0, At(20)))
            .unwrap(),
        None
    );
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
    let (parked, after) = feed
        .0
        .writer
        .transaction(|tx| tx.delete_consumer("a"))
        .unwrap()
        .unwrap();
    assert_eq!(parked, 2);
    assert!(after > generation, "its readers are superseded");
    assert_eq!((feed.consumer("a"), feed.parked_count()), (None, 0));
    assert_eq!(
        feed.0
            .writer
            .transaction(|tx| tx.delete_consumer("a"))
            .unwrap(),
        None
    );
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
    let mut retry = |seq| {
        feed.0
            .writer
            .transaction(|tx| tx.retry_parked("a", seq))
            .unwrap()
    };
    assert_eq!((retry(Some(9)), retry(Some(2))), (0, 1));
    assert_eq!(feed.parked_seqs(true), [2]);
    feed.park(2, 2, 10);
    assert_eq!(feed.parked_seqs(true), [0; 0], "that was the attempt");
    assert_eq!(
        feed.0
            .writer
            .transaction(|tx| tx.retry_parked("a", None))
            .unwrap(),
        3
    );
    assert_eq!(feed.parked_seqs(true), [1, 2, 3]);
    let page: Vec<_> = feed
        .parked(true, 1, 1)
        .iter()
        .map(|row| (row.seq, row.retry))
        .collect();
    assert_eq!(page, [(2, true)]);
    let mut forget = |seq| {
        feed.0
            .writer
            .transaction(|tx| tx.drop_parked("a", seq))
            .unwrap()
    };
    assert_eq!((forget(Some(2)), forget(Some(2)), forget(None)), (1, 0, 2));
    assert_eq!(feed.parked_count(), 0);
}
