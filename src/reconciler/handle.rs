//! The handle to the writer, and the loop on the writer's thread.
//!
//! The promises: a caller gets "stored" only after the commit of its report, and "processed" only
//! after the commit of what the report led to. Every caller gets a reply, whatever fails. The head
//! never runs ahead of the commit. `schedules` explores the orders in which this may happen.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};

use super::overload::Overload;
use super::{Batch, BatchResult, Clock, Reconciler, Reverified, sync};
use crate::config::Sources;
use crate::ledger::changes::{Inquiry, Processed};
use crate::ledger::{AnyCommand, AnyReply, Command, LedgerError};
use crate::limits;
use crate::model::At;
use crate::report::Report;

/// Why the writer has written nothing for a caller.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// More reports wait than may wait.
    #[error("too much is waiting to be written; try again in a few seconds")]
    Busy,
    /// The ledger failed.
    #[error("the database cannot store it ({0})")]
    Store(Arc<str>),
    /// The ledger is no longer at its path: nothing will be stored until the daemon starts again.
    #[error("nothing is stored any more ({0})")]
    Replaced(Arc<str>),
    /// The daemon stops.
    #[error("settled is stopping")]
    Stopping,
}

impl From<&LedgerError> for Refusal {
    fn from(error: &LedgerError) -> Refusal {
        let mut text = error.to_string();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        match error {
            LedgerError::Replaced(_) => Refusal::Replaced(text.into()),
            _ => Refusal::Store(text.into()),
        }
    }
}

pub(super) enum Job {
    Report {
        report: Report,
        reply: Reply,
    },
    Command {
        command: AnyCommand,
        reply: oneshot::Sender<Result<AnyReply, Refusal>>,
    },
    Reverify {
        source: i64,
        reply: oneshot::Sender<Result<Reverified, Refusal>>,
    },
    Sources {
        sources: Sources,
        done: oneshot::Sender<()>,
    },
}

pub(super) enum Reply {
    Stored(oneshot::Sender<Result<i64, Refusal>>),
    Processed(oneshot::Sender<Result<Processed, Refusal>>),
}

/// The handle to the writer. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    overload: Overload,
    head: watch::Receiver<i64>,
    nudges: watch::Receiver<u64>,
    inquiries: Inquiries,
}

/// Runs to inquire about, on their way to the pollers. A restart forgets them, as it forgets who sent
/// what; a flood pushes out the oldest.
type Inquiries = Arc<Mutex<VecDeque<Inquiry>>>;

impl Handle {
    /// Takes the runs that this source is to inquire about.
    pub fn take_inquiries(&self, source: i64) -> Vec<Inquiry> {
        let mut waiting = self
            .inquiries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (mine, others) = waiting.drain(..).partition(|each| each.source == source);
        *waiting = others;
        Vec::from(mine)
    }

    /// Stores a report that comes from outside, where there may be more of them than we can write. On
    /// disk when this returns `Ok`.
    pub async fn store(&self, report: Report) -> Result<i64, Refusal> {
        if self
            .overload
            .refuses(self.jobs.max_capacity() - self.jobs.capacity())
        {
            return Err(Refusal::Busy);
        }
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Report {
            report,
            reply: Reply::Stored(reply),
        })
        .await?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Stores a report and waits until what it leads to is on disk too.
    pub async fn process(&self, report: Report) -> Result<Processed, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Report {
            report,
            reply: Reply::Processed(reply),
        })
        .await?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Executes a command in the writer's next transaction. The change is on disk when this returns
    /// `Ok`.
    pub async fn execute<C: Command>(&self, command: C) -> Result<C::Reply, Refusal> {
        let (reply, answer) = oneshot::channel();
        let command = command.into();
        self.submit(Job::Command { command, reply }).await?;
        let reply = answer.await.unwrap_or(Err(Refusal::Stopping))?;
        C::reply(reply).ok_or(Refusal::Stopping)
    }

    /// Verifies the unverified deliveries of a source again, with the secrets it has now, and
    /// processes those that verify, in the order in which they came.
    pub async fn reverify(&self, source: i64) -> Result<Reverified, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Reverify { source, reply }).await?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Has the writer read reports with these sources from now on.
    pub async fn set_sources(&self, sources: Sources) -> Result<(), Refusal> {
        let (done, set) = oneshot::channel();
        self.submit(Job::Sources { sources, done }).await?;
        set.await.map_err(|_| Refusal::Stopping)
    }

    /// The seq of the newest record that is on disk. Changes wake the feed.
    pub fn head(&self) -> watch::Receiver<i64> {
        self.head.clone()
    }

    /// Changes whenever a run is to be polled at once.
    pub fn nudges(&self) -> watch::Receiver<u64> {
        self.nudges.clone()
    }

    pub(super) async fn submit(&self, job: Job) -> Result<(), Refusal> {
        match sync::patiently(self.jobs.send(job)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(Refusal::Stopping),
            None => Err(Refusal::Busy),
        }
    }
}

/// The batch writer that the loop drives: the [`Reconciler`], or a stand-in of a test.
pub(super) trait BatchWriter {
    fn write_batch(
        &mut self,
        reports: Vec<Report>,
        commands: Vec<AnyCommand>,
        now: At,
    ) -> Result<Batch, LedgerError>;
    fn pending(&self) -> usize;
    fn behind(&self) -> bool;
    fn catch_up(&mut self, now: At, tell: impl FnMut(&BatchResult)) -> Result<(), LedgerError>;
    fn reverify(
        &mut self,
        source: i64,
        now: At,
        tell: impl FnMut(&BatchResult),
    ) -> Result<Reverified, LedgerError>;
    fn set_sources(&mut self, sources: Sources);
    fn close(self);
}

impl BatchWriter for Reconciler {
    fn write_batch(
        &mut self,
        reports: Vec<Report>,
        commands: Vec<AnyCommand>,
        now: At,
    ) -> Result<Batch, LedgerError> {
        self.write_batch(reports, commands, now)
    }

    fn pending(&self) -> usize {
        self.pending()
    }

    fn behind(&self) -> bool {
        self.behind()
    }

    fn catch_up(&mut self, now: At, tell: impl FnMut(&BatchResult)) -> Result<(), LedgerError> {
        self.catch_up(now, tell)
    }

    fn reverify(
        &mut self,
        source: i64,
        now: At,
        tell: impl FnMut(&BatchResult),
    ) -> Result<Reverified, LedgerError> {
        self.reverify(source, now, tell)
    }

    fn set_sources(&mut self, sources: Sources) {
        self.set_sources(sources);
    }

    fn close(self) {
        self.close();
    }
}

/// How many jobs may wait, and how many of them make one transaction.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub queue: usize,
    pub batch: usize,
}

/// Makes the handle to the writer, and the loop that serves it. The loop blocks: give it a thread of
/// its own. It returns when every handle is gone and every report is stored and processed.
pub fn channel(
    reconciler: Reconciler,
    clock: Clock,
    head: i64,
) -> (Handle, impl FnOnce() + Send + 'static) {
    let sizes = Sizes {
        queue: limits::QUEUE_REPORTS_MAX,
        batch: limits::BATCH_REPORTS_MAX,
    };
    channel_of(sizes, reconciler, clock, head)
}

pub(super) fn channel_of<L: BatchWriter + Send + 'static>(
    sizes: Sizes,
    ledger: L,
    clock: Clock,
    head: i64,
) -> (Handle, impl FnOnce() + Send + 'static) {
    let (jobs, waiting) = mpsc::channel(sizes.queue);
    let (head_tx, head) = watch::channel(head);
    let (nudge_tx, nudges) = watch::channel(0);
    let batch_max = sizes.batch;
    let overload = Overload::new(batch_max);
    let inquiries = Inquiries::default();
    let writer = WriterLoop {
        ledger,
        clock,
        overload: overload.clone(),
        head: head_tx,
        nudges: nudge_tx,
        inquiries: inquiries.clone(),
        waiting_for_processing: Vec::new(),
        batch_max,
    };
    (
        Handle {
            jobs,
            overload,
            head,
            nudges,
            inquiries,
        },
        move || writer.serve(waiting),
    )
}

/// How long the writer waits between two attempts to process a backlog.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(200);

/// The state of the writer's thread.
struct WriterLoop<L> {
    ledger: L,
    clock: Clock,
    overload: Overload,
    head: watch::Sender<i64>,
    nudges: watch::Sender<u64>,
    inquiries: Inquiries,
    /// The callers that wait until a stored report is processed.
    waiting_for_processing: Vec<(i64, oneshot::Sender<Result<Processed, Refusal>>)>,
    /// At most so many jobs make a batch.
    batch_max: usize,
}

impl<L: BatchWriter> WriterLoop<L> {
    /// Takes the jobs that wait and writes them. While stored reports are still to be processed it does
    /// not wait for more: the commit that processes them stores what has come in meanwhile.
    fn serve(mut self, mut waiting: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(self.batch_max);
        loop {
            if self.ledger.behind() && !self.catch_up() {
                // The disk fails. Callers must not wait until it recovers: they are refused below.
                sync::pause(CATCH_UP_PAUSE);
            } else if self.ledger.pending() == 0
                && sync::receive(&mut waiting, &mut batch, self.batch_max) == 0
            {
                return self.ledger.close();
            }
            let closed = take(&mut waiting, &mut batch, self.batch_max);
            self.overload.taken(waiting.len());
            if closed && batch.is_empty() && self.ledger.behind() {
                // Stopping with a failing disk: the next start processes what is stored.
                return;
            }
            self.write(batch.drain(..));
        }
    }

    fn catch_up(&mut self) -> bool {
        let (head, nudges) = (&self.head, &self.nudges);
        let caught_up = self
            .ledger
            .catch_up((self.clock)(), |batch| publish(batch, head, nudges));
        caught_up.map_err(|error| failed(&error)).is_ok()
    }

    /// Writes one batch, then replies to the callers whose jobs are on disk.
    fn write(&mut self, batch: impl Iterator<Item = Job>) {
        let (mut reports, mut waiting) = (Vec::new(), Vec::new());
        let (mut commands, mut callers) = (Vec::new(), Vec::new());
        for job in batch {
            match job {
                Job::Report { report, reply } => {
                    reports.push(report);
                    waiting.push(reply);
                }
                Job::Command { command, reply } => {
                    commands.push(command);
                    callers.push(reply);
                }
                Job::Sources { sources, done } => {
                    self.ledger.set_sources(sources);
                    let _ = done.send(());
                }
                Job::Reverify { source, reply } => {
                    let _ = reply.send(self.reverify(source));
                }
            }
        }
        let batch = match self.ledger.write_batch(reports, commands, (self.clock)()) {
            Ok(batch) => batch,
            Err(error) => {
                let refusal = failed(&error);
                self.refuse_waiting(&refusal);
                for reply in waiting {
                    reply.refuse(&refusal);
                }
                for caller in callers {
                    let _ = caller.send(Err(refusal.clone()));
                }
                return;
            }
        };
        sync::step();
        for (caller, reply) in callers.into_iter().zip(batch.replies) {
            let _ = caller.send(reply);
            sync::step();
        }
        self.tell_processed(batch.processed);
        for (reply, id) in waiting.into_iter().zip(batch.stored) {
            match reply {
                Reply::Stored(tell) => drop(tell.send(Ok(id))),
                Reply::Processed(tell) => self.waiting_for_processing.push((id, tell)),
            }
            sync::step();
        }
        if self.ledger.behind() {
            // Their reports are stored, and will be processed from disk.
            self.refuse_waiting(&Refusal::Busy);
        }
    }

    fn tell_processed(&mut self, processed: Result<BatchResult, LedgerError>) {
        match processed {
            Ok(batch) => {
                self.pass_on(&batch);
                publish(&batch, &self.head, &self.nudges);
                sync::step();
                let mut processed = batch.processed.into_iter();
                for (id, tell) in self.waiting_for_processing.drain(..) {
                    // After a failure in between, catching up processes the report instead.
                    let process = processed.find(|process| process.report == id);
                    let _ = tell.send(process.ok_or(Refusal::Busy));
                }
            }
            Err(error) => {
                let refusal = failed(&error);
                self.refuse_waiting(&refusal);
            }
        }
    }

    /// Passes the runs to inquire about on to the pollers.
    fn pass_on(&self, batch: &BatchResult) {
        let named = batch
            .processed
            .iter()
            .filter_map(|each| each.inquiry.clone());
        let mut named = named.peekable();
        if named.peek().is_none() {
            return;
        }
        let mut waiting = self
            .inquiries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for inquiry in named {
            if waiting.len() >= limits::INQUIRIES_PASSED_ON_MAX {
                // A delivery with a genuine signature is not pushed out by forged ones.
                let forged = waiting.iter().position(|each| !each.genuine);
                waiting.remove(forged.unwrap_or(0));
            }
            waiting.push_back(inquiry);
        }
    }

    fn refuse_waiting(&mut self, refusal: &Refusal) {
        for (_, tell) in self.waiting_for_processing.drain(..) {
            let _ = tell.send(Err(refusal.clone()));
        }
    }

    fn reverify(&mut self, source: i64) -> Result<Reverified, Refusal> {
        let (head, nudges) = (&self.head, &self.nudges);
        let done = self
            .ledger
            .reverify(source, (self.clock)(), |batch| publish(batch, head, nudges));
        done.map_err(|error| failed(&error))
    }
}

/// Takes the jobs that wait, without waiting for more; true when every handle is gone.
fn take(waiting: &mut mpsc::Receiver<Job>, batch: &mut Vec<Job>, max: usize) -> bool {
    while batch.len() < max {
        sync::step();
        match waiting.try_recv() {
            Ok(job) => batch.push(job),
            Err(error) => return error == TryRecvError::Disconnected,
        }
    }
    false
}

fn failed(error: &LedgerError) -> Refusal {
    let refusal = Refusal::from(error);
    tracing::error!(%refusal, "a write failed; nothing of it was acknowledged");
    refusal
}

impl Reply {
    fn refuse(self, refusal: &Refusal) {
        match self {
            Reply::Stored(tell) => drop(tell.send(Err(refusal.clone()))),
            Reply::Processed(tell) => drop(tell.send(Err(refusal.clone()))),
        }
    }
}

/// Wakes the feed and the pollers, after the commit.
fn publish(batch: &BatchResult, head: &watch::Sender<i64>, nudge: &watch::Sender<u64>) {
    if let Some(seq) = batch.head {
        head.send_replace(seq);
        sync::step();
    }
    if batch.urgent {
        nudge.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedules::report;
    use super::*;

    /// A batch writer that only takes its time.
    struct Slow;

    impl BatchWriter for Slow {
        fn write_batch(
            &mut self,
            reports: Vec<Report>,
            _: Vec<AnyCommand>,
            _: At,
        ) -> Result<Batch, LedgerError> {
            std::thread::sleep(Duration::from_millis(20));
            Ok(Batch {
                stored: vec![1; reports.len()],
                replies: Vec::new(),
                processed: Ok(BatchResult::default()),
            })
        }
        fn pending(&self) -> usize {
            0
        }
        fn behind(&self) -> bool {
            false
        }
        fn catch_up(&mut self, _: At, _: impl FnMut(&BatchResult)) -> Result<(), LedgerError> {
            Ok(())
        }
        fn reverify(
            &mut self,
            _: i64,
            _: At,
            _: impl FnMut(&BatchResult),
        ) -> Result<Reverified, LedgerError> {
            Ok(Reverified::default())
        }
        fn set_sources(&mut self, _: Sources) {}
        fn close(self) {}
    }

    /// Twelve senders, and batches of two.
    #[tokio::test]
    async fn lasting_overload_refuses_reports_and_a_burst_does_not() {
        let (ledger, serve) = channel_of(
            Sizes {
                queue: 64,
                batch: 2,
            },
            Slow,
            Arc::new(|| At(0)),
            0,
        );
        let writer = std::thread::spawn(serve);
        let begin = std::time::Instant::now();
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let ledger = ledger.clone();
            senders.spawn(async move { while ledger.store(report(1)).await.is_ok() {} });
        }
        senders
            .join_next()
            .await
            .expect("a report is refused")
            .unwrap();
        assert!(begin.elapsed() >= limits::STANDING_MAX, "a burst waits");
        senders.shutdown().await;
        drop(ledger);
        writer.join().unwrap();
    }
}
