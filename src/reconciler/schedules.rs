//! The queue of the writer under a scheduler that decides which thread continues next: thousands of
//! orders in which senders submit reports, the writer commits and fails, acknowledgements arrive and
//! readers see the head.
//!
//! Everything but the ledger runs as in the daemon: [`Handle`], the loop, its channels. The channels
//! are tokio's and count as atomic (tokio explores their insides with loom). The scheduler switches
//! threads before and after each use of them, and in the middle of a commit. The ledger is a
//! [`Stand`]-in that behaves as the reconciler: it stores in one batch, processes in the next, and
//! forgets what it held in memory when anything fails.
//!
//! `SETTLED_SEEDS` says how many schedules of each kind to run. A failure prints a schedule that
//! shuttle can repeat (`shuttle::replay`).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use shuttle::rand::Rng as _;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use tokio::sync::oneshot;

use super::handle::{BatchWriter, Job, Sizes, channel_of};
use super::{Batch, BatchResult, Handle, Refusal, Reverified};
use crate::config::Sources;
use crate::ledger::changes::Processed;
use crate::ledger::commands::Probe;
use crate::ledger::{AnyCommand, AnyReply, LedgerError};
use crate::model::{At, RunId};
use crate::report::{Meta, Report};

// ── What `sync` needs ───────────────────────────────────────────────────────────────────────────

thread_local! {
    static EXPLORING: Cell<bool> = const { Cell::new(false) };
}

/// Whether shuttle schedules this thread.
pub(super) fn exploring() -> bool {
    EXPLORING.get()
}

pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    shuttle::future::block_on(future)
}

/// Lets another thread continue.
pub(super) fn step() {
    shuttle::thread::yield_now();
}

/// No time, or more than any wait lasts, at random.
pub(super) fn some_time() -> Duration {
    if shuttle::rand::thread_rng().gen_bool(0.5) {
        Duration::ZERO
    } else {
        Duration::MAX
    }
}

/// A wait that ends at a random moment.
pub(super) async fn patiently<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..PATIENCE {
        let polled =
            std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            step();
            return Some(output);
        }
        shuttle::future::yield_now().await;
    }
    None
}

/// How often a sender finds the queue full before it gives up.
const PATIENCE: usize = 12;

// ── The stand-in ────────────────────────────────────────────────────────────────────────────────

/// The content of the disk. The scheduler does not switch threads during an access.
#[derive(Default)]
struct Disk {
    /// By id: the sender whose report it is, and whether it is processed.
    reports: BTreeMap<i64, (i64, bool)>,
    commands: usize,
    head: i64,
    /// Failures still to come.
    failures: u32,
    /// The last attempt failed.
    sick: bool,
    /// The writer's thread has panicked.
    broken: bool,
    closed: bool,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides at random whether this attempt fails.
    fn fails(&self) -> bool {
        let mut disk = self.disk();
        let fails = disk.failures > 0 && shuttle::rand::thread_rng().gen_bool(0.25);
        disk.failures -= u32::from(fails);
        disk.sick = fails;
        fails
    }

    fn stored_of(&self, input: i64) -> Option<(i64, bool)> {
        self.disk()
            .reports
            .iter()
            .find(|(_, (of, _))| *of == input)
            .map(|(id, (_, processed))| (*id, *processed))
    }
}

/// Planted mistakes of a ledger: a test must notice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// A batch returns before its commit, which comes with the next one.
    TellsBeforeItCommits,
    /// The head moves before the record's commit.
    HeadRunsAhead,
    /// A report is reported as processed, and is not.
    ForgetsToDigest,
}

/// The stand-in for the reconciler.
struct Stand {
    shared: Shared,
    mistake: Mistake,
    /// A batch that would fail panics instead.
    panics: bool,
    pending: Vec<(i64, i64)>,
    behind: bool,
    next: i64,
    late: Vec<(i64, i64)>,
}

impl Stand {
    fn failed(&mut self) -> LedgerError {
        self.behind = true;
        self.pending.clear();
        LedgerError::Sqlite(rusqlite::Error::InvalidQuery)
    }

    fn batch_result(&self, processed: &[(i64, i64)], head: i64) -> BatchResult {
        let head_moves = !processed.is_empty();
        let processed = processed.iter().map(|(id, _)| Processed::of(*id)).collect();
        let ahead = i64::from(self.mistake == Mistake::HeadRunsAhead);
        BatchResult {
            processed,
            head: head_moves.then_some(head + ahead),
            urgent: true,
        }
    }

    fn process(&self, reports: &[(i64, i64)]) -> i64 {
        let mut disk = self.shared.disk();
        for (id, _) in reports
            .iter()
            .filter(|_| self.mistake != Mistake::ForgetsToDigest)
        {
            disk.reports
                .get_mut(id)
                .expect("what is processed is stored")
                .1 = true;
        }
        disk.head += i64::try_from(reports.len()).unwrap();
        disk.head
    }
}

impl BatchWriter for Stand {
    fn write_batch(
        &mut self,
        reports: Vec<Report>,
        commands: Vec<AnyCommand>,
        _: At,
    ) -> Result<Batch, LedgerError> {
        let pending = std::mem::take(&mut self.pending);
        step();
        if self.shared.fails() {
            if self.panics {
                self.shared.disk().broken = true;
                // Without the hook, which would print every one of them.
                std::panic::resume_unwind(Box::new("the writer panicked"));
            }
            return Err(self.failed());
        }
        let poisoned = !pending.is_empty() && self.shared.fails();
        let promised: Vec<(i64, i64)> = (self.next..)
            .zip(reports.iter().map(|report| report.source))
            .collect();
        self.next += i64::try_from(promised.len()).unwrap();
        step();
        let mut committed = std::mem::take(&mut self.late);
        if self.mistake == Mistake::TellsBeforeItCommits {
            self.late.clone_from(&promised);
        } else {
            committed.extend(&promised);
        }
        self.shared
            .disk()
            .reports
            .extend(committed.iter().map(|(id, input)| (*id, (*input, false))));
        self.shared.disk().commands += commands.len();
        let processed = if poisoned {
            self.behind = true;
            Err(LedgerError::Panicked)
        } else {
            let head = self.process(&pending);
            Ok(self.batch_result(&pending, head))
        };
        step();
        if !self.behind {
            self.pending.clone_from(&promised);
        }
        let stored = promised.into_iter().map(|(id, _)| id).collect();
        Ok(Batch {
            stored,
            replies: commands.iter().map(|_| Ok(AnyReply::Probe(()))).collect(),
            processed,
        })
    }

    fn pending(&self) -> usize {
        self.pending.len()
    }

    fn behind(&self) -> bool {
        self.behind
    }

    fn catch_up(&mut self, _: At, mut tell: impl FnMut(&BatchResult)) -> Result<(), LedgerError> {
        loop {
            step();
            let next = self
                .shared
                .disk()
                .reports
                .iter()
                .find(|(_, (_, processed))| !processed)
                .map(|(id, of)| (*id, of.0));
            let Some(next) = next else { break };
            if self.shared.fails() {
                return Err(self.failed());
            }
            let head = self.process(&[next]);
            tell(&self.batch_result(&[next], head));
        }
        self.behind = false;
        Ok(())
    }

    fn reverify(
        &mut self,
        _: i64,
        _: At,
        _: impl FnMut(&BatchResult),
    ) -> Result<Reverified, LedgerError> {
        step();
        if self.shared.fails() {
            Err(self.failed())
        } else {
            Ok(Reverified::default())
        }
    }

    fn set_sources(&mut self, _: Sources) {}

    fn close(self) {
        self.shared.disk().closed = true;
    }
}

// ── The senders and the reader ──────────────────────────────────────────────────────────────────

pub(super) fn report(input: i64) -> Report {
    let run_id = RunId::new("r").unwrap();
    Report {
        source: input,
        at: At(0),
        meta: Meta::Clock { run_id },
        body: Vec::new(),
    }
}

/// The webhook endpoint: "stored" means stored, and a refusal means that nothing was.
async fn record(ledger: Handle, shared: Shared, input: i64) {
    match ledger.store(report(input)).await {
        Ok(id) => assert_eq!(
            shared.stored_of(input).map(|(id, _)| id),
            Some(id),
            "acknowledged and not on disk"
        ),
        Err(Refusal::Busy | Refusal::Store(_) | Refusal::Replaced(_)) => {
            assert_eq!(shared.stored_of(input), None, "refused and on disk");
        }
        Err(Refusal::Stopping) => assert!(shared.disk().broken, "nobody has stopped"),
    }
}

/// A poller: "processed" means processed. After a refusal the report may be stored all the same; it
/// tries again.
async fn process(ledger: Handle, shared: Shared, input: i64) {
    match ledger.process(report(input)).await {
        Ok(process) => assert_eq!(
            shared.stored_of(input),
            Some((process.report, true)),
            "told processed and is not"
        ),
        Err(Refusal::Busy | Refusal::Store(_) | Refusal::Replaced(_)) => {}
        Err(Refusal::Stopping) => assert!(shared.disk().broken, "nobody has stopped"),
    }
}

/// A consumer's acknowledgement.
async fn write(ledger: Handle, shared: Shared, _: i64) {
    let (reply, answer) = oneshot::channel();
    let command = Probe.into();
    if ledger
        .submit(Job::Command { command, reply })
        .await
        .is_err()
    {
        return;
    }
    match answer.await {
        Ok(Ok(_)) => assert_eq!(shared.disk().commands, 1, "acknowledged and not done"),
        Ok(Err(Refusal::Store(_))) => assert_eq!(shared.disk().commands, 0, "refused and done"),
        answer => assert!(shared.disk().broken, "{answer:?}"),
    }
}

/// A sender that goes away before it is answered.
async fn vanish(ledger: Handle, _: Shared, input: i64) {
    let mut waiting = pin!(ledger.process(report(input)));
    for _ in 0..2 {
        let polled =
            std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_ready()))
                .await;
        if polled {
            return;
        }
        shuttle::future::yield_now().await;
    }
}

async fn reverify(ledger: Handle, _: Shared, source: i64) {
    let _ = ledger.reverify(source).await;
}

/// A stream of the feed: wakes with the head.
fn follow(mut head: tokio::sync::watch::Receiver<i64>, shared: &Shared) {
    let mut before = 0;
    while block_on(head.changed()).is_ok() {
        let seen = *head.borrow_and_update();
        assert!(seen >= before, "the head went back from {before} to {seen}");
        assert!(
            seen <= shared.disk().head,
            "the head is told before its commit"
        );
        before = seen;
    }
}

/// One run of the daemon, from its start until every handle is dropped.
fn a_life(mistake: Mistake) {
    let shared = Shared::default();
    shared.disk().failures = shuttle::rand::thread_rng().gen_range(0..4);
    let panics = shuttle::rand::thread_rng().gen_bool(0.2);
    let (pending, late) = (Vec::new(), Vec::new());
    let stand = Stand {
        shared: shared.clone(),
        mistake,
        panics,
        pending,
        behind: false,
        next: 1,
        late,
    };
    let (ledger, serve) = channel_of(Sizes { queue: 2, batch: 2 }, stand, Arc::new(|| At(0)), 0);
    let writer = shuttle::thread::spawn(|| {
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(serve));
    });
    let follower = {
        let (head, shared) = (ledger.head(), shared.clone());
        shuttle::thread::spawn(move || follow(head, &shared))
    };
    let inputs: Vec<_> = (1..)
        .zip([0, 0, 0, 1, 1, 2, 3, 4])
        .map(|(input, kind)| {
            let (ledger, shared) = (ledger.clone(), shared.clone());
            shuttle::thread::spawn(move || match kind {
                0 => block_on(record(ledger, shared, input)),
                1 => block_on(process(ledger, shared, input)),
                2 => block_on(write(ledger, shared, input)),
                3 => block_on(vanish(ledger, shared, input)),
                _ => block_on(reverify(ledger, shared, input)),
            })
        })
        .collect();
    drop(ledger);
    for thread in inputs.into_iter().chain([writer, follower]) {
        thread.join().unwrap();
    }
    let disk = shared.disk();
    if disk.closed {
        let owed = disk
            .reports
            .values()
            .filter(|(_, processed)| !processed)
            .count();
        assert_eq!(owed, 0, "the writer said goodbye and owes an opinion");
    }
    assert!(
        disk.closed || disk.sick || disk.broken,
        "the writer went without a word"
    );
}

fn explore(scheduler: impl Scheduler + 'static, mistake: Mistake) {
    EXPLORING.set(true);
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 18;
    shuttle::Runner::new(scheduler, config).run(move || a_life(mistake));
    EXPLORING.set(false);
}

fn schedules() -> usize {
    std::env::var("SETTLED_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(1_000)
}

#[test]
fn in_whatever_order_things_happen_everybody_is_told_the_truth() {
    explore(RandomScheduler::new(schedules()), Mistake::None);
}

#[test]
fn and_so_it_is_when_few_changes_of_hands_come_at_the_worst_moments() {
    explore(PctScheduler::new(3, schedules()), Mistake::None);
}

/// The exploration finds each planted mistake.
#[test]
fn every_planted_mistake_is_found() {
    for mistake in [
        Mistake::TellsBeforeItCommits,
        Mistake::HeadRunsAhead,
        Mistake::ForgetsToDigest,
    ] {
        let found = std::panic::catch_unwind(|| explore(RandomScheduler::new(1_000), mistake));
        EXPLORING.set(false);
        assert!(found.is_err(), "{mistake:?} goes unnoticed");
    }
}
