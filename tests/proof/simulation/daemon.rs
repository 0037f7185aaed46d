//! The daemon as far as it decides: the real reconciler over a real file, the real providers, and the real
//! limiter, scheduler and exchanges of each source.

use std::path::Path;
use std::sync::Arc;

use settled::config::Source;
use settled::demo::clouds::Keys;
use settled::demo::life::{Cloud, DemoSource};
use settled::ledger::commands::ClampPolls;
use settled::ledger::{Reader, UnverifiedLimits, View, Writer};
use settled::limits;
use settled::model::At;
use settled::polling::rate_limit::RateLimiter;
use settled::polling::{Scheduler, Started, Task};
use settled::providers::{ApiResponse, ResponseClass};
use settled::reconciler::{self, Reconciler};
use settled::report::{Meta, Report};

use crate::clouds;

/// What is kept of unverified deliveries here: few, so that rings are trimmed.
pub const RING: UnverifiedLimits = UnverifiedLimits {
    rows_max: 40,
    bytes_max: 1 << 20,
};

/// One life of the daemon, from its start to its crash.
pub struct Daemon {
    pub reconciler: Reconciler,
    pub reader: Reader,
    pub desks: Vec<SourceLoop>,
    /// What was found unprocessed at the start.
    pub recovered: usize,
}

/// One source's loop: the real scheduler and exchanges, without a network.
pub struct SourceLoop {
    pub member: Arc<Source>,
    pub cloud: Cloud,
    pub limiter: RateLimiter,
    scheduler: Scheduler,
}

impl Daemon {
    /// Starts in the order of the real one: the ledger, what is owed, the clients.
    pub fn start(store: &Path, keys: &Keys, now: At) -> Daemon {
        let mut writer = Writer::open(store, now).unwrap();
        let sources = reconciler::register(&mut writer, &clouds::accounts(keys), now).unwrap();
        writer.execute(ClampPolls::of(&sources, now)).unwrap();
        let reader = writer.reader();
        let desks = sources
            .members()
            .map(|member| SourceLoop::new(member.clone(), now))
            .collect();
        let mut reconciler = Reconciler::new(writer, sources, RING);
        let recovered = reconciler.recover(now, |_| ()).unwrap();
        Daemon {
            reconciler,
            reader,
            desks,
            recovered,
        }
    }

    /// Limits that have passed, as reports, and when the next one passes.
    pub fn due_timers(&self, now: At) -> (Vec<Report>, At) {
        let sources: Vec<i64> = self.desks.iter().map(|desk| desk.member.id).collect();
        let look = |view: &View<'_>| view.due_timers(&sources, now, limits::TIMERS_PER_ROUND_MAX);
        let (due, next) = self.reader.read(look).unwrap();
        let unverified = |(source, run_id)| Report {
            source,
            at: now,
            meta: Meta::Clock { run_id },
            body: Vec::new(),
        };
        (
            due.into_iter().map(unverified).collect(),
            next.unwrap_or(At::NEVER),
        )
    }
}

impl SourceLoop {
    fn new(member: Arc<Source>, now: At) -> SourceLoop {
        let cloud = DemoSource::from_word(member.config.name.as_str())
            .unwrap()
            .cloud();
        SourceLoop {
            cloud,
            limiter: RateLimiter::new(member.config.rate, now),
            scheduler: Scheduler::new(member.clone(), now),
            member,
        }
    }

    /// One look around: what is to be asked now, and when looking again is worthwhile.
    pub fn look(&mut self, reader: &Reader, now: At) -> (Vec<Started>, At) {
        let mut started = self.scheduler.tick(&mut self.limiter, now);
        let mut again = self.scheduler.next_at(&self.limiter);
        if let Some(wanted) = self.scheduler.wanted(&self.limiter) {
            let found = reader
                .read(|view| wanted.look(view, self.member.id, now))
                .unwrap();
            let (chosen, look_again) = self.scheduler.choose(found, &mut self.limiter, now);
            started.extend(chosen);
            again = again.min(look_again);
        }
        (started, again)
    }

    /// Takes a permission to go on asking, or says when to try again.
    pub fn try_acquire_reserved(&mut self, now: At) -> Result<(), At> {
        self.limiter.try_acquire_reserved(now, self.member.seed())
    }

    /// Whether nothing but a probe may be asked.
    pub fn broken(&self) -> bool {
        self.limiter.broken()
    }

    /// What an answer tells about the account.
    pub fn hear(
        &mut self,
        answer: &ApiResponse,
        speaks_for_account: bool,
        now: At,
    ) -> ResponseClass {
        let class = self.member.config.provider.classify(answer);
        self.limiter
            .observe_answer(&class, speaks_for_account, now, self.member.seed());
        class
    }

    /// What was started is over.
    pub fn finished(&mut self, task: Task) {
        self.scheduler.finished(task);
    }
}
