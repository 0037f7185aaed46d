//! Polls: each source has a loop that polls the runs that are due, and sweeps the provider's list.
//! The loop hands every answer to the writer as a report and interprets none.
//!
//! The [`Scheduler`] decides what to poll and when. The
//! [`exchange`] decides what follows an answer. Only the loop here waits.

pub mod client;
pub mod exchange;
pub mod inquiry;
pub mod rate_limit;
mod scheduler;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;

use crate::config::Sources;
use crate::ledger::commands::ClampPolls;
use crate::ledger::{LedgerError, Reader, View};
use crate::limits;
use crate::model::At;
use crate::polling::client::SourceClient;
use crate::reconciler::{Clock, Handle};
use crate::report::{Meta, Report};

pub use scheduler::{DueQuery, DueRuns, Scheduler, Started, Task};

/// The polling loop of one source.
pub struct Poller {
    client: Arc<SourceClient>,
    ledger: Handle,
    reader: Reader,
    clock: Clock,
}

impl Poller {
    /// A loop over this client's source. [`Poller::run`] starts it.
    pub fn new(client: Arc<SourceClient>, ledger: Handle, reader: Reader, clock: Clock) -> Poller {
        Poller {
            client,
            ledger,
            reader,
            clock,
        }
    }

    /// Polls until `stop` turns true. Exchanges under way are dropped then; their runs stay due, so
    /// the next start polls them again.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut nudges = self.ledger.nudges();
        let mut scheduler = Scheduler::new(self.client.member.clone(), (self.clock)());
        let mut under_way = FuturesUnordered::new();
        loop {
            let now = (self.clock)();
            for inquiry in self.ledger.take_inquiries(self.client.member.id) {
                scheduler.add_inquiry(inquiry, now);
            }
            let started = scheduler.tick(&mut self.client.limiter(), now);
            let (due, look_again) = self.due(&mut scheduler, now).await;
            under_way.extend(
                started
                    .into_iter()
                    .chain(due)
                    .map(|started| self.work(started)),
            );
            let wait = look_again
                .min(scheduler.next_at(&self.client.limiter()))
                .min(now.plus(limits::POLLER_IDLE_MAX));
            let pause = wait.since(now).max(limits::POLLER_IDLE_MIN);
            tokio::select! {
                Some((task, answered)) = under_way.next() => {
                    if task == Task::Inquiry && !answered {
                        scheduler.inquiry_failed((self.clock)());
                    }
                    scheduler.finished(task);
                }
                _ = nudges.changed() => {}
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Starts polls of due runs, as slots and rate limit allow. Returns them, and when to look again.
    async fn due(&self, scheduler: &mut Scheduler, now: At) -> (Vec<Started>, At) {
        let wanted = scheduler.wanted(&self.client.limiter());
        let Some(wanted) = wanted else {
            return (Vec::new(), At::NEVER);
        };
        match self.look(wanted, now).await {
            Ok(found) => scheduler.choose(found, &mut self.client.limiter(), now),
            Err(error) => {
                tracing::error!(source = %self.client.member.config.name, %error, "cannot look for due runs");
                (Vec::new(), now.plus(limits::FAILURE_PAUSE))
            }
        }
    }

    async fn look(&self, wanted: DueQuery, now: At) -> Result<DueRuns, LedgerError> {
        let (reader, source) = (self.reader.clone(), self.client.member.id);
        let look = move || reader.read(|view| wanted.look(view, source, now));
        tokio::task::spawn_blocking(look)
            .await
            .unwrap_or(Ok(DueRuns::default()))
    }

    /// Runs an exchange to its end and stores its reports. A sweep stores one report a page. Also
    /// returns whether the provider answered.
    async fn work(
        &self,
        Started {
            task,
            exchange,
            request,
        }: Started,
    ) -> (Task, bool) {
        let (mut next, mut paid) = (Some((exchange, request)), task.paid());
        let mut answered = false;
        while let Some((exchange, request)) = next
            && let Some((report, further)) = self.client.run(exchange, request, paid).await
        {
            answered = report.answered();
            self.hand_in(report).await;
            (next, paid) = (further, false);
        }
        (task, answered)
    }

    async fn hand_in(&self, report: Report) {
        if let Err(refusal) = self.ledger.process(report).await {
            // The run stays due. Without this pause a failing disk would cause a flood of calls.
            tracing::warn!(source = %self.client.member.config.name, %refusal, "an answer could not be stored");
            tokio::time::sleep(limits::FAILURE_PAUSE).await;
        }
    }
}

impl DueQuery {
    /// Reads the due runs, and when the next urgent poll falls due.
    pub fn look(self, view: &View<'_>, source: i64, now: At) -> Result<DueRuns, LedgerError> {
        let max = u32::try_from(self.max).unwrap_or(u32::MAX);
        let due = view.due(source, now, self.window, max)?;
        Ok(DueRuns {
            due,
            next_urgent: view.next_urgent_after(source, now)?,
        })
    }
}

/// Stores a clock report for every run whose timer is due (confirmation, grace, deadline, give-up),
/// until `stop` turns true. Waits for each to be processed, so no timer fires twice for one moment.
pub async fn keep_time(
    sources: watch::Receiver<Arc<Sources>>,
    ledger: Handle,
    reader: Reader,
    clock: Clock,
    mut stop: watch::Receiver<bool>,
) {
    let mut pause = Duration::ZERO;
    let mut before = (clock(), Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let now = clock();
        let (then, instant) = std::mem::replace(&mut before, (now, Instant::now()));
        if then.plus(before.1 - instant).since(now) > limits::CLOCK_JUMP {
            // Polls planned by the old time would wait until the clock has caught up.
            let back = then.since(now).as_secs();
            tracing::warn!(
                seconds = back,
                "the clock was set back; polls are brought forward"
            );
            let clamp = ClampPolls::of(&sources.borrow().clone(), now);
            if let Err(refusal) = ledger.execute(clamp).await {
                tracing::error!(%refusal, "polls cannot be brought forward");
                before = (then, instant);
                pause = limits::FAILURE_PAUSE;
                continue;
            }
        }
        let look = {
            let (reader, sources) = (reader.clone(), sources.borrow().rows());
            move || reader.read(|view| view.due_timers(&sources, now, limits::TIMERS_PER_ROUND_MAX))
        };
        pause = match tokio::task::spawn_blocking(look).await {
            Ok(Ok((due, next))) if due.is_empty() => {
                let next = next.map_or(limits::TIMER_INTERVAL_MAX, |next| next.since(now));
                next.clamp(Duration::from_millis(10), limits::TIMER_INTERVAL_MAX)
            }
            Ok(Ok((due, _))) => {
                let ring = |(source, run_id)| {
                    let report = Report {
                        source,
                        at: now,
                        meta: Meta::Clock { run_id },
                        body: Vec::new(),
                    };
                    ledger.process(report)
                };
                let rung = futures_util::future::join_all(due.into_iter().map(ring)).await;
                if rung.iter().all(Result::is_ok) {
                    Duration::ZERO
                } else {
                    limits::FAILURE_PAUSE
                }
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot look for passed limits");
                limits::FAILURE_PAUSE
            }
            Err(_) => limits::FAILURE_PAUSE,
        };
    }
}
