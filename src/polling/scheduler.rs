//! The scheduler of a source: its poll window, its sweeps, and its free slots.
//!
//! Pure: the due runs, the rate limiter and the time come in, the exchanges to start come out. The
//! last decision about each run stored when the run is due.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::Source;
use crate::ledger::Due;
use crate::ledger::changes::Inquiry;
use crate::model::At;
use crate::polling::exchange::Exchange;
use crate::polling::inquiry::{Inquiries, StartedInquiry};
use crate::polling::rate_limit::RateLimiter;
use crate::providers::ApiRequest;

/// The scheduler of one source.
pub struct Scheduler {
    member: Arc<Source>,
    /// When the poll window last opened: runs that were due by then may be polled.
    opened: At,
    next_poll: At,
    next_sweep: At,
    /// The runs whose polls are under way, by row.
    busy: BTreeSet<i64>,
    sweeping: bool,
    probing: bool,
    inquiries: Inquiries,
    /// The inquiry that is under way.
    inquiry: Option<StartedInquiry>,
    /// When it was last called.
    now: At,
}

/// A task under way; each runs once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The poll of the run of this row.
    Run(i64),
    /// A sweep: the provider's list is read.
    Sweep,
    /// A probe of a refused key.
    Probe,
    /// An inquiry: the poll of an unknown run.
    Inquiry,
}

/// An exchange to start now.
pub struct Started {
    /// The task to pass to [`Scheduler::finished`] at its end.
    pub task: Task,
    /// The exchange to run.
    pub exchange: Exchange,
    /// The first request of the exchange.
    pub request: ApiRequest,
}

/// Which due runs to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueQuery {
    /// Runs that are not urgent count if they were due by this moment.
    pub window: At,
    /// The most runs to return.
    pub max: usize,
}

/// The due runs found for a [`DueQuery`].
#[derive(Default)]
pub struct DueRuns {
    /// Runs to poll, urgent ones first.
    pub due: Vec<Due>,
    /// When the next urgent poll falls due.
    pub next_urgent: Option<At>,
}

impl Task {
    /// Whether the scheduler took the token of the first request already. A sweep takes its own.
    pub fn paid(self) -> bool {
        self != Task::Sweep
    }
}

impl Scheduler {
    /// A scheduler whose window is closed until the poll schedule next fires after `now`.
    pub fn new(member: Arc<Source>, now: At) -> Scheduler {
        let (opened, busy, sweeping, probing) = (At(0), BTreeSet::new(), false, false);
        let next_poll = member.config.poll.next_after(now).unwrap_or(At::NEVER);
        let next_sweep = member.config.sweep.next_after(now).unwrap_or(At::NEVER);
        Scheduler {
            member,
            opened,
            next_poll,
            next_sweep,
            busy,
            sweeping,
            probing,
            inquiries: Inquiries::new(now),
            inquiry: None,
            now,
        }
    }

    /// Opens the poll window and starts the sweep when their schedules fire. Starts a probe when the
    /// breaker is open and a probe is due.
    pub fn tick(&mut self, limiter: &mut RateLimiter, now: At) -> Vec<Started> {
        let source = &self.member.config;
        if now < self.now {
            // The clock was set back: what was planned by the old time would wait until it has
            // caught up.
            self.opened = self.opened.min(now);
            self.next_poll = source.poll.next_after(now).unwrap_or(At::NEVER);
            self.next_sweep = source.sweep.next_after(now).unwrap_or(At::NEVER);
        }
        self.now = now;
        if self.next_poll <= now {
            self.opened = now;
            self.next_poll = source.poll.next_after(now).unwrap_or(At::NEVER);
        }
        let mut started = Vec::new();
        let broken = limiter.broken();
        if broken && !self.probing && limiter.try_acquire_probe(now) {
            self.probing = true;
            let (exchange, request) = Exchange::probe(&self.member);
            started.push(Started {
                task: Task::Probe,
                exchange,
                request,
            });
        }
        if self.next_sweep <= now {
            self.next_sweep = source.sweep.next_after(now).unwrap_or(At::NEVER);
            if !self.sweeping
                && !broken
                && let Some((exchange, request)) = Exchange::sweep(&self.member, now)
            {
                self.sweeping = true;
                started.push(Started {
                    task: Task::Sweep,
                    exchange,
                    request,
                });
            }
        }
        started
    }

    /// Which due runs to look for. `None` while no slot is free, or the breaker is open. Runs under
    /// way stay due until their answer is processed, so the query asks for that many more.
    pub fn wanted(&self, limiter: &RateLimiter) -> Option<DueQuery> {
        let slots = self.member.config.concurrency;
        let free = self.busy.len() < slots && !limiter.broken();
        free.then(|| DueQuery {
            window: self.opened,
            max: slots + self.busy.len(),
        })
    }

    /// Starts polls of the due runs, within the concurrency limit and the rate limit. Also returns
    /// when to look again: when the limiter will allow the next poll, or the next urgent one is due.
    pub fn choose(
        &mut self,
        DueRuns { due, next_urgent }: DueRuns,
        limiter: &mut RateLimiter,
        now: At,
    ) -> (Vec<Started>, At) {
        let mut started = Vec::new();
        for due in due {
            if self.busy.len() >= self.member.config.concurrency {
                return (started, At::NEVER);
            }
            if self.busy.contains(&due.row) {
                continue;
            }
            if let Err(at) = limiter.try_acquire_poll(due.run.is_urgent(), now, self.member.seed())
            {
                return (started, at);
            }
            self.busy.insert(due.row);
            let (exchange, request) = Exchange::about(&self.member, &due.run_id, &due.run, now);
            started.push(Started {
                task: Task::Run(due.row),
                exchange,
                request,
            });
        }
        started.extend(self.inquire(limiter, now));
        (started, next_urgent.unwrap_or(At::NEVER))
    }

    /// Takes in a run to inquire about. It waits until no known run does.
    pub fn add_inquiry(&mut self, inquiry: Inquiry, now: At) {
        self.inquiries.add(inquiry, now);
    }

    /// Starts the next inquiry, if the budget allows it and every known run that is due has started.
    /// Inquiries take no slot of the known runs; one runs at a time.
    fn inquire(&mut self, limiter: &mut RateLimiter, now: At) -> Option<Started> {
        if self.inquiry.is_some()
            || !self.inquiries.ready(now)
            || !limiter.try_acquire_spare(now, self.member.seed())
        {
            return None;
        }
        let started = self.inquiries.next(now)?;
        let (exchange, request) = Exchange::inquiry(&self.member, &started.inquiry, now);
        self.inquiry = Some(started);
        Some(Started {
            task: Task::Inquiry,
            exchange,
            request,
        })
    }

    /// Notes that the provider could not be reached for the inquiry under way: it is repeated later.
    pub fn inquiry_failed(&mut self, now: At) {
        if let Some(started) = self.inquiry.take() {
            self.inquiries.put_back(started, now);
        }
    }

    /// Frees the slot of a task that has ended and whose report is processed.
    pub fn finished(&mut self, task: Task) {
        match task {
            Task::Run(row) => drop(self.busy.remove(&row)),
            Task::Sweep => self.sweeping = false,
            Task::Probe => self.probing = false,
            Task::Inquiry => self.inquiry = None,
        }
    }

    /// When to call [`Scheduler::tick`] again at the latest: window, sweep or probe.
    pub fn next_at(&self, limiter: &RateLimiter) -> At {
        self.next_poll
            .min(self.next_sweep)
            .min(limiter.probe_at().unwrap_or(At::NEVER))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::SourceConfig;
    use crate::config::SourceRow;
    use crate::config::cron::Schedule;
    use crate::model::{RunId, SourceName};
    use crate::providers::{ApiResponse, REGISTRY, ResponseClass};
    use crate::secret::{Key, Secret, SecretLabel};

    /// A full hour, so that schedules fire at whole minutes after it.
    const START: At = At(1_795_248_000_000);

    fn minutes(count: u64) -> At {
        START.plus(Duration::from_secs(60 * count))
    }

    fn scheduler(change: impl FnOnce(&mut SourceConfig)) -> (Scheduler, RateLimiter) {
        let key = Key {
            label: SecretLabel("api_key".to_owned()),
            secret: Secret::new("a-key-of-the-tests"),
        };
        let mut source = SourceConfig::new(SourceName::new("sky").unwrap(), REGISTRY[0])
            .with_keys(Some(key), []);
        source.poll = Schedule::parse("* * * * *").unwrap();
        source.sweep = Schedule::parse("*/5 * * * *").unwrap();
        (source.rate, source.concurrency) = (100.0, 2);
        change(&mut source);
        let limiter = RateLimiter::new(source.rate, START);
        (
            Scheduler::new(
                Arc::new(Source::new(
                    SourceRow {
                        id: 1,
                        since: START,
                    },
                    Arc::new(source),
                )),
                START,
            ),
            limiter,
        )
    }

    fn due(rows: impl IntoIterator<Item = i64>) -> DueRuns {
        const RUN: &str = r#"{"known_since":0,"found_by":"operator","detail":{},"progress":"waiting","webhooks":{"count":0},
            "polls":0,"overdue":false,"statuses":0,"phase":{"open":{}},"poll":{"at":0,"urgent":false}}"#;
        let run = |row| Due {
            row,
            run_id: RunId::new(&format!("wr_{row}")).unwrap(),
            run: serde_json::from_str(RUN).unwrap(),
        };
        DueRuns {
            due: rows.into_iter().map(run).collect(),
            next_urgent: None,
        }
    }

    fn tasks(started: &[Started]) -> Vec<Task> {
        started.iter().map(|started| started.task).collect()
    }

    #[test]
    fn as_many_are_asked_about_as_there_are_hands_and_none_twice() {
        let (mut scheduler, mut limiter) = scheduler(|_| ());
        assert_eq!(scheduler.wanted(&limiter).map(|wanted| wanted.max), Some(2));
        let (started, again) = scheduler.choose(due(1..=3), &mut limiter, START);
        assert_eq!(
            (tasks(&started), again),
            (vec![Task::Run(1), Task::Run(2)], At::NEVER)
        );
        assert_eq!(started[0].request.path, "/v1/runs/wr_1");
        assert_eq!(scheduler.wanted(&limiter), None, "no hand is free");
        scheduler.finished(Task::Run(1));
        assert_eq!(
            scheduler.wanted(&limiter).map(|wanted| wanted.max),
            Some(3),
            "one looks past what is under way"
        );
        let (started, _) = scheduler.choose(due(2..=4), &mut limiter, START);
        assert_eq!(tasks(&started), [Task::Run(3)]);
    }

    #[test]
    fn the_pace_is_kept_and_says_when_it_goes_on() {
        let (mut scheduler, _) = scheduler(|_| ());
        let mut limiter = RateLimiter::new(1.0, START);
        let (started, again) = scheduler.choose(due(1..=2), &mut limiter, START);
        assert_eq!(tasks(&started), [Task::Run(1)]);
        assert!(again >= START.plus(Duration::from_secs(1)) && again < At::NEVER);
        let (started, _) = scheduler.choose(due(2..=2), &mut limiter, again);
        assert_eq!(
            tasks(&started),
            [Task::Run(2)],
            "who was not started is not taken for busy"
        );
    }

    #[test]
    fn an_unknown_run_is_polled_when_no_known_run_waits() {
        let inquiry = |run: &str| Inquiry {
            source: 1,
            run_id: RunId::new(run).unwrap(),
            kind: None,
            group_id: None,
            genuine: false,
            sender: Some(run.to_owned()),
        };
        let (mut scheduler, mut limiter) = scheduler(|_| ());
        scheduler.add_inquiry(inquiry("wr_8"), START);
        scheduler.add_inquiry(inquiry("wr_9"), START);
        let (started, _) = scheduler.choose(due(1..=3), &mut limiter, START);
        assert_eq!(tasks(&started), [Task::Run(1), Task::Run(2)], "3 waits");
        scheduler.finished(Task::Run(1));
        let (started, _) = scheduler.choose(due(2..=3), &mut limiter, START);
        assert_eq!(tasks(&started), [Task::Run(3), Task::Inquiry]);
        assert_eq!(started[1].request.path, "/v1/runs/wr_8");
        scheduler.finished(Task::Run(2));
        let (started, _) = scheduler.choose(due(3..=3), &mut limiter, START);
        assert!(tasks(&started).is_empty(), "one inquiry at a time");
        scheduler.finished(Task::Inquiry);
        let mut slow = RateLimiter::new(4.0, START);
        assert_eq!([(); 2].map(|()| slow.try_acquire(START, 0)), [Ok(()); 2]);
        let (started, _) = scheduler.choose(due(3..=3), &mut slow, START);
        assert!(
            tasks(&started).is_empty(),
            "half the tokens are for known runs"
        );
        let (started, _) = scheduler.choose(due(3..=3), &mut limiter, START);
        assert_eq!(tasks(&started), [Task::Inquiry]);
    }

    #[test]
    fn the_gate_opens_when_its_schedule_fires() {
        let (mut scheduler, mut limiter) = scheduler(|_| ());
        let window = |scheduler: &Scheduler, limiter: &RateLimiter| {
            scheduler.wanted(limiter).unwrap().window
        };
        scheduler.tick(&mut limiter, At(minutes(1).0 - 1));
        assert_eq!(
            (window(&scheduler, &limiter), scheduler.next_at(&limiter)),
            (At(0), minutes(1))
        );
        scheduler.tick(&mut limiter, minutes(1));
        assert_eq!(
            (window(&scheduler, &limiter), scheduler.next_at(&limiter)),
            (minutes(1), minutes(2))
        );
    }

    #[test]
    fn a_clock_that_is_set_back_closes_no_window_and_puts_off_no_sweep() {
        let (mut scheduler, mut limiter) = scheduler(|_| ());
        scheduler.tick(&mut limiter, minutes(61));
        scheduler.finished(Task::Sweep);
        scheduler.tick(&mut limiter, minutes(1));
        assert_eq!(scheduler.next_at(&limiter), minutes(2));
        assert_eq!(
            tasks(&scheduler.tick(&mut limiter, minutes(5))),
            [Task::Sweep]
        );
    }

    #[test]
    fn a_list_is_read_once_at_a_time() {
        let (mut scheduler, mut limiter) = scheduler(|_| ());
        assert!(scheduler.tick(&mut limiter, minutes(4)).is_empty());
        let started = scheduler.tick(&mut limiter, minutes(5));
        assert_eq!(tasks(&started), [Task::Sweep]);
        assert!(!started[0].task.paid() && started[0].request.path.starts_with("/v1/runs?page=1&"));
        assert!(
            scheduler.tick(&mut limiter, minutes(10)).is_empty(),
            "it is still being read"
        );
        scheduler.finished(Task::Sweep);
        assert!(scheduler.tick(&mut limiter, minutes(14)).is_empty());
        assert_eq!(
            tasks(&scheduler.tick(&mut limiter, minutes(15))),
            [Task::Sweep]
        );
    }

    #[test]
    fn without_a_key_no_list_is_read() {
        let (mut scheduler, mut limiter) = scheduler(|source| source.api_key = None);
        assert!(scheduler.tick(&mut limiter, minutes(5)).is_empty());
    }

    #[test]
    fn a_refused_key_is_tried_now_and_then_and_nothing_else_is_asked() {
        let (mut scheduler, mut limiter) = scheduler(|_| ());
        limiter.observe(
            &ResponseClass::Denied {
                why: "401".to_owned(),
            },
            START,
            0,
        );
        let at = limiter.probe_at().unwrap();
        assert_eq!(scheduler.next_at(&limiter), at.min(minutes(1)));
        assert_eq!(scheduler.wanted(&limiter), None);
        let mut started = scheduler.tick(&mut limiter, at);
        assert_eq!(tasks(&started), [Task::Probe]);
        assert!(
            scheduler.tick(&mut limiter, minutes(20)).is_empty(),
            "one probe at a time, and no list"
        );
        let Started {
            exchange, request, ..
        } = started.remove(0);
        let answer = ApiResponse::Failed {
            what: "connection refused".to_owned(),
        };
        assert!(matches!(
            exchange.go_on(request, answer, at),
            crate::polling::exchange::Next::Done
        ));
        scheduler.finished(Task::Probe);
        assert_eq!(
            tasks(&scheduler.tick(&mut limiter, minutes(21))),
            [Task::Probe]
        );
    }
}
