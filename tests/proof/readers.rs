//! Named consumers and what retention takes, in plain maps: the reference for both, and what may happen
//! to them.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use settled::ledger::commands::{
    Ack, CreateConsumer, DeleteConsumer, Deleted, DropParked, Moved, OpenConsumer, Park,
    RetryParked, Seek, TrimRecords, Trimmed,
};
use settled::ledger::{AnyCommand, AnyReply, Command, Consumer, Filter, ParkedRow, Reader};
use settled::model::At;
use settled::model::record::line;

/// So few events may be parked here.
const PARKED_MAX: i64 = 2;
const NAMES: [&str; 2] = ["mail", "sheet"];

/// Something a consumer or its operator does.
#[derive(Clone, Debug)]
pub struct Deed {
    name: &'static str,
    what: What,
    /// Which record it is about.
    seq: Index,
    as_whom: Whom,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Create,
    Open,
    Ack,
    Park,
    Retry,
    Drop,
    Seek,
    Delete,
}

/// What a reader says of itself.
#[derive(Clone, Copy, Debug)]
enum Whom {
    Anybody,
    Reader,
    FormerReader,
}

/// Executes commands in the ledger that is compared with the reference.
pub struct Commands<'a>(pub &'a mut dyn FnMut(AnyCommand) -> AnyReply);

impl Commands<'_> {
    /// Executes one command, which must not fail.
    pub fn execute<C: Command>(&mut self, command: C) -> C::Reply {
        C::reply((self.0)(command.into())).expect("a reply to another command")
    }
}

/// What one of them was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Is(Option<Consumer>),
    Moved(Moved),
    Count(usize),
    Gone(Option<Deleted>),
}

/// Anything a consumer may do.
pub fn deed() -> impl Strategy<Value = Deed> {
    use What::{Ack, Create, Delete, Drop, Open, Park, Retry, Seek};
    let what = prop_oneof![
        3 => Just(Create), 2 => Just(Open), 6 => Just(Ack), 4 => Just(Park),
        1 => Just(Retry), 1 => Just(Drop), 1 => Just(Seek), 1 => Just(Delete),
    ];
    let whom = prop_oneof![2 => Just(Whom::Anybody), 3 => Just(Whom::Reader), 1 => Just(Whom::FormerReader)];
    (
        prop::sample::select(NAMES.to_vec()),
        what,
        any::<Index>(),
        whom,
    )
        .prop_map(|(name, what, seq, as_whom)| Deed {
            name,
            what,
            seq,
            as_whom,
        })
}

/// How far the feed may be trimmed.
pub fn limits() -> impl Strategy<Value = (i64, i64, u32)> {
    let age = prop::sample::select(vec![-1, 60, 3_600, 90_000]);
    let bytes = prop::sample::select(vec![i64::MAX, i64::MAX, 4_000, 0]);
    (age, bytes, prop::sample::select(vec![1, 3, 100]))
}

/// A record that was published.
pub struct Published {
    pub envelope: String,
    pub data: String,
    pub at: At,
}

impl Published {
    fn bytes(&self) -> i64 {
        i64::try_from(self.envelope.len() + self.data.len()).unwrap()
    }
}

/// The feed and who reads it, as they must be.
#[derive(Default)]
pub struct Readers {
    /// Every record there ever was.
    pub feed: Vec<Published>,
    trimmed: i64,
    generation: i64,
    consumers: BTreeMap<String, (Consumer, BTreeMap<i64, ParkedRow>)>,
}

impl Readers {
    fn head(&self) -> i64 {
        i64::try_from(self.feed.len()).unwrap()
    }

    fn record(&self, seq: i64) -> &Published {
        &self.feed[usize::try_from(seq).unwrap() - 1]
    }

    fn next_generation(&mut self) -> i64 {
        self.generation += 1;
        self.generation
    }

    // ── What they do, there and here ────────────────────────────────────────────────────────────

    /// Does it in the ledger and here, and compares what they were told.
    pub fn act(&mut self, deed: &Deed, ledger: &mut Commands<'_>, now: At) {
        let Deed { name, what, .. } = deed;
        let named = (*name).to_owned();
        // One too many, so that nobody acknowledges what is not there.
        let seq = i64::try_from(deed.seq.index(self.feed.len() + 2)).unwrap();
        let known = self
            .consumers
            .get(*name)
            .map(|(consumer, _)| consumer.generation);
        let generation = match deed.as_whom {
            Whom::Anybody => None,
            Whom::Reader => known,
            Whom::FormerReader => Some(known.unwrap_or_default() - 1),
        };
        let error = format!("{seq} failed at {}", now.0);
        let park = Park {
            name: named.clone(),
            seq,
            generation,
            attempts: 3,
            error,
            parked_max: PARKED_MAX,
            now,
        };
        let one = (seq % 2 == 0).then_some(seq);
        let position = seq.min(self.head());
        let told = match what {
            What::Create => {
                let create = CreateConsumer {
                    name: named,
                    acked: position,
                    filter: Filter::default(),
                    window: 5,
                    now,
                };
                Told::Is(Some(ledger.execute(create).consumer))
            }
            What::Open => Told::Is(ledger.execute(OpenConsumer { name: named, now })),
            What::Ack => Told::Moved(ledger.execute(Ack {
                name: named,
                seq,
                generation,
                now,
            })),
            What::Park => Told::Moved(ledger.execute(park.clone())),
            What::Retry => Told::Count(ledger.execute(RetryParked {
                name: named,
                seq: one,
            })),
            What::Drop => Told::Count(ledger.execute(DropParked {
                name: named,
                seq: one,
            })),
            What::Seek => Told::Is(ledger.execute(Seek {
                name: named,
                seq: position,
                now,
            })),
            What::Delete => Told::Gone(ledger.execute(DeleteConsumer { name: named })),
        };
        let expected = match what {
            What::Create => Told::Is(Some(self.create(name, position, now))),
            What::Open => Told::Is(self.seized(name, None, now)),
            What::Ack => Told::Moved(self.ack(name, seq, generation, now)),
            What::Park => Told::Moved(self.park(&park)),
            What::Retry => Told::Count(
                self.parked(name, one)
                    .map(|parked| parked.retry = true)
                    .count(),
            ),
            What::Drop => Told::Count(self.drop_parked(name, one)),
            What::Seek => Told::Is(self.seized(name, Some(position), now)),
            What::Delete => Told::Gone(self.delete(name)),
        };
        assert_eq!(told, expected, "{deed:?} of record {seq}");
    }

    fn create(&mut self, name: &str, acked: i64, now: At) -> Consumer {
        if !self.consumers.contains_key(name) {
            let (generation, filter) = (self.next_generation(), Filter::default());
            let name = name.to_owned();
            let made = Consumer {
                name,
                acked,
                filter,
                window: 5,
                generation,
                created_at: now,
                seen_at: now,
            };
            self.consumers
                .insert(made.name.clone(), (made, BTreeMap::new()));
        }
        self.consumers[name].0.clone()
    }

    /// Somebody else has it now, and perhaps somewhere else.
    fn seized(&mut self, name: &str, to: Option<i64>, now: At) -> Option<Consumer> {
        let generation = self.next_generation();
        let (consumer, _) = self.consumers.get_mut(name)?;
        (consumer.generation, consumer.seen_at, consumer.acked) =
            (generation, now, to.unwrap_or(consumer.acked));
        Some(consumer.clone())
    }

    fn ack(&mut self, name: &str, seq: i64, generation: Option<i64>, now: At) -> Moved {
        let head = self.head();
        match self.consumers.get_mut(name) {
            None => Moved::Unknown,
            Some((consumer, _)) if generation.is_some_and(|given| given != consumer.generation) => {
                Moved::Stale(consumer.generation)
            }
            Some(_) if seq > head => Moved::Beyond(head),
            Some((consumer, _)) => {
                (consumer.acked, consumer.seen_at) = (consumer.acked.max(seq), now);
                Moved::Done {
                    acked: consumer.acked,
                    head,
                }
            }
        }
    }

    fn park(&mut self, park: &Park) -> Moved {
        let Park {
            name,
            seq,
            generation,
            attempts,
            error,
            now,
            ..
        } = park;
        let (now, generation) = (*now, *generation);
        let moved = self.ack(name, 0, generation, now);
        if !matches!(moved, Moved::Done { .. }) {
            return moved;
        }
        let there = *seq > self.trimmed && *seq <= self.head();
        let (_, parked) = &self.consumers[name];
        let (known, full) = (
            parked.contains_key(seq),
            parked.len() >= usize::try_from(PARKED_MAX).unwrap(),
        );
        match (known, full, there) {
            (false, true, _) => return Moved::Full,
            (false, false, false) => return Moved::Absent,
            _ => {}
        }
        // Its line is looked up when it is compared: the epoch in it may be another by then.
        let (seq, attempts, error) = (*seq, *attempts, error.clone());
        let row = ParkedRow {
            seq,
            line: String::new(),
            attempts,
            error,
            at: now,
            retry: false,
        };
        self.consumers.get_mut(name).unwrap().1.insert(seq, row);
        if known {
            moved
        } else {
            self.ack(name, seq, generation, now)
        }
    }

    fn parked(&mut self, name: &str, one: Option<i64>) -> impl Iterator<Item = &mut ParkedRow> {
        let parked = self
            .consumers
            .get_mut(name)
            .into_iter()
            .flat_map(|(_, parked)| parked.values_mut());
        parked.filter(move |row| one.is_none_or(|one| row.seq == one))
    }

    fn drop_parked(&mut self, name: &str, one: Option<i64>) -> usize {
        let Some((_, parked)) = self.consumers.get_mut(name) else {
            return 0;
        };
        let before = parked.len();
        parked.retain(|seq, _| one.is_some_and(|one| *seq != one));
        before - parked.len()
    }

    fn delete(&mut self, name: &str) -> Option<Deleted> {
        let (_, parked) = self.consumers.remove(name)?;
        Some(Deleted {
            parked: i64::try_from(parked.len()).unwrap(),
            generation: self.next_generation(),
        })
    }

    // ── What retention takes ────────────────────────────────────────────────────────────────────

    /// Trims the feed there and here, and compares what went.
    pub fn trim(&mut self, limits: &TrimRecords, ledger: &mut Commands<'_>) {
        let trimmed = ledger.execute(*limits);
        let begin = self.trimmed;
        let acked = |consumer: &Consumer| consumer.acked;
        let slowest = self
            .consumers
            .values()
            .map(|(consumer, _)| acked(consumer))
            .min()
            .unwrap_or(i64::MAX);
        let mut bytes: i64 = (begin + 1..=self.head())
            .map(|seq| self.record(seq).bytes())
            .sum();
        let mut held = false;
        while self.trimmed < self.head() && self.trimmed - begin < i64::from(limits.rows_max) {
            let next = self.record(self.trimmed + 1);
            let old = next.at < limits.before;
            held |= old && slowest <= self.trimmed;
            if bytes <= limits.bytes_max && (!old || slowest <= self.trimmed) {
                break;
            }
            bytes -= next.bytes();
            self.trimmed += 1;
        }
        let named = |wanted: &dyn Fn(i64) -> bool| -> Vec<String> {
            let wanted = self
                .consumers
                .values()
                .filter(|(consumer, _)| wanted(consumer.acked));
            wanted.map(|(consumer, _)| consumer.name.clone()).collect()
        };
        let rows = usize::try_from(self.trimmed - begin).unwrap();
        let expected = Trimmed {
            rows,
            more: rows > 0 && rows >= limits.rows_max as usize,
            overrun: named(&|acked| rows > 0 && acked >= begin && acked < self.trimmed),
            holding: named(&|acked| held && acked <= self.trimmed),
        };
        assert_eq!(trimmed, expected, "{limits:?}");
    }

    // ── Looking ─────────────────────────────────────────────────────────────────────────────────

    /// The lines of the feed, as they must be.
    pub fn lines(&self, epoch: &str) -> Vec<String> {
        (self.trimmed + 1..=self.head())
            .map(|seq| self.line(epoch, seq))
            .collect()
    }

    fn line(&self, epoch: &str, seq: i64) -> String {
        let record = self.record(seq);
        line(&record.envelope, epoch, seq, &record.data)
    }

    /// The consumers there are what they must be, and what they have parked.
    pub fn agree(&self, reader: &Reader, epoch: &str) {
        let (bounds, consumers) = reader
            .read(|view| {
                let mut consumers = Vec::new();
                for consumer in view.consumers()? {
                    consumers.push((view.parked(&consumer.name, false, 0, u32::MAX)?, consumer));
                }
                Ok((view.bounds()?, consumers))
            })
            .unwrap();
        assert_eq!((bounds.trimmed, bounds.head), (self.trimmed, self.head()));
        let parked = |row: &ParkedRow| ParkedRow {
            line: self.line(epoch, row.seq),
            ..row.clone()
        };
        let expected: Vec<(Vec<ParkedRow>, Consumer)> = self
            .consumers
            .values()
            .map(|(consumer, rows)| (rows.values().map(parked).collect(), consumer.clone()))
            .collect();
        assert_eq!(consumers, expected, "the consumers");
    }
}
