//! Questions out: for every source one loop that asks about the runs that are due, and sweeps the
//! lists. It hands every answer in as a report and understands none of them.
//!
//! Which runs are due was written down by the last decision about each. Here it is only found out
//! whether the source's gate is open, whether its pace allows a call, and whether there is a hand
//! free to make it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;

use crate::calls::Asker;
use crate::limits;
use crate::providers::{Answer, Question, Subject};
use crate::reconciler::{Clock, Fleet, Handle};
use crate::report::{AnswerHead, Head, PollHead, Report, SweepHead};
use crate::run::decide::Run;
use crate::run::{At, RunId};
use crate::store::{Due, Reader, StoreError};

/// One source's loop.
pub struct Poller {
    asker: Arc<Asker>,
    ledger: Handle,
    reader: Reader,
    clock: Clock,
}

/// What a finished piece of work leaves to note.
enum Finished {
    Run(i64),
    Sweep,
    Probe,
}

/// When the gate opens and the lists are read.
struct Gates {
    opened: At,
    next_poll: At,
    next_sweep: At,
}

impl Poller {
    /// A loop for one source.
    pub fn new(asker: Arc<Asker>, ledger: Handle, reader: Reader, clock: Clock) -> Poller {
        Poller { asker, ledger, reader, clock }
    }

    /// Asks until `stop` turns true; what is under way then is dropped, and asked again after the
    /// next start.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut nudges = self.ledger.nudges();
        let mut gates = self.gates((self.clock)());
        let mut under_way = FuturesUnordered::new();
        let mut busy: BTreeSet<i64> = BTreeSet::new();
        let (mut sweeping, mut probing) = (false, false);
        loop {
            let now = (self.clock)();
            self.open_gates(&mut gates, now);
            let broken = self.asker.pace().state(now).breaker.is_some();
            if broken && !probing && self.asker.pace().may_probe(now) {
                probing = true;
                under_way.push(self.work(Work::Probe));
            }
            if gates.next_sweep <= now {
                gates.next_sweep = self.asker.member.source.sweep.next_after(now).unwrap_or(At::NEVER);
                if !sweeping && !broken {
                    sweeping = true;
                    under_way.push(self.work(Work::Sweep));
                }
            }
            let (due, look_again) = self.due(&gates, now, broken, &mut busy).await;
            under_way.extend(due.into_iter().map(|due| self.work(Work::Run(due))));
            let wait = look_again.min(gates.next_poll).min(gates.next_sweep).min(now.plus(limits::POLLER_IDLE_MAX));
            let pause = wait.since(now).max(limits::POLLER_IDLE_MIN);
            tokio::select! {
                Some(finished) = under_way.next() => match finished {
                    Finished::Run(row) => { busy.remove(&row); }
                    Finished::Sweep => sweeping = false,
                    Finished::Probe => probing = false,
                },
                _ = nudges.changed() => {}
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    fn gates(&self, now: At) -> Gates {
        let source = &self.asker.member.source;
        let next = |schedule: &crate::calendar::Schedule| schedule.next_after(now).unwrap_or(At::NEVER);
        Gates { opened: At(0), next_poll: next(&source.poll), next_sweep: next(&source.sweep) }
    }

    /// Lets through what is due up to now, each time the cron expression fires.
    fn open_gates(&self, gates: &mut Gates, now: At) {
        if gates.next_poll <= now {
            gates.opened = now;
            gates.next_poll = self.asker.member.source.poll.next_after(now).unwrap_or(At::NEVER);
        }
    }

    /// As many due runs as there are free hands and the pace allows, and the moment at which
    /// looking again is worthwhile.
    async fn due(&self, gates: &Gates, now: At, broken: bool, busy: &mut BTreeSet<i64>) -> (Vec<Due>, At) {
        let hands = self.asker.member.source.concurrency;
        if broken || busy.len() >= hands {
            return (Vec::new(), At::NEVER);
        }
        // Rows under way are still due until their answer is digested: look past them.
        let (mut due, mut look_again) = match self.look(now, gates.opened, hands + busy.len()).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(source = %self.asker.member.source.name, %error, "cannot look for due runs");
                return (Vec::new(), now.plus(limits::FAILURE_PAUSE));
            }
        };
        due.retain(|due| !busy.contains(&due.row));
        due.truncate(hands - busy.len());
        let allowed = due.iter().map(|due| self.asker.may_poll(&due.run, now)).take_while(|allowed| {
            look_again = allowed.err().unwrap_or(look_again);
            allowed.is_ok()
        });
        let allowed = allowed.count();
        due.truncate(allowed);
        busy.extend(due.iter().map(|due| due.row));
        (due, look_again)
    }

    async fn look(&self, now: At, gate: At, max: usize) -> Result<(Vec<Due>, At), StoreError> {
        let (reader, source) = (self.reader.clone(), self.asker.member.id);
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let look = move || {
            reader.read(|view| {
                let due = view.due(source, now, gate, max)?;
                let next = view.next_urgent_after(source, now)?.unwrap_or(At::NEVER);
                Ok((due, next))
            })
        };
        tokio::task::spawn_blocking(look).await.unwrap_or(Ok((Vec::new(), At::NEVER)))
    }

    async fn work(&self, work: Work) -> Finished {
        match work {
            Work::Run(due) => {
                let row = due.row;
                self.ask_about(&due).await;
                Finished::Run(row)
            }
            Work::Sweep => {
                self.sweep().await;
                Finished::Sweep
            }
            Work::Probe => {
                let source = &self.asker.member.source;
                self.asker.ask_now(&source.provider.canary_question(&source.settings)).await;
                Finished::Probe
            }
        }
    }

    /// One run: its question, and whatever the dialect must know beside it.
    async fn ask_about(&self, due: &Due) {
        if let Some(report) = poll(&self.asker, &due.run_id, &due.run, (self.clock)(), true).await {
            self.hand_in(Report { at: (self.clock)(), ..report }).await;
        }
    }

    /// The provider's list, page by page, each page a report.
    async fn sweep(&self) {
        let source = &self.asker.member.source;
        if source.api_key.is_none() {
            return;
        }
        let mut page: Option<String> = None;
        for _ in 0..limits::SWEEP_PAGES_MAX {
            let Some(question) = source.provider.list_question(page.as_deref(), &source.settings) else { return };
            let asked_at = (self.clock)();
            let Some(answer) = self.asker.ask(&question).await else { return };
            let next = source.provider.read_list(page.as_deref(), &answer, &source.settings, asked_at).next;
            let (answer, body) = AnswerHead::split(question.path, answer);
            let head = Head::Sweep(SweepHead { page, asked_at, answer });
            page = next;
            self.hand_in(Report { source: self.asker.member.id, at: (self.clock)(), head, body }).await;
            if page.is_none() {
                return;
            }
        }
    }

    async fn hand_in(&self, report: Report) {
        if let Err(refusal) = self.ledger.digest(report).await {
            // The run stays due; a moment's pause keeps a sick disk from turning into a flood of calls.
            tracing::warn!(source = %self.asker.member.source.name, %refusal, "an answer could not be stored");
            tokio::time::sleep(limits::FAILURE_PAUSE).await;
        }
    }
}

enum Work {
    Run(Due),
    Sweep,
    Probe,
}

/// Asks about one run and makes the report of it. `paid`: the pace has already let the first
/// question through. `None`: the breaker is open.
pub async fn poll(asker: &Asker, run_id: &RunId, run: &Run, asked_at: At, paid: bool) -> Option<Report> {
    let source = &asker.member.source;
    let guessed = run.kind.is_none() && source.provider.guesses_kind();
    let kind = run.kind.unwrap_or_else(|| source.provider.kind_of(run_id, &source.settings));
    let group_id = run.detail.group_id.clone();
    let subject = Subject { run_id, kind, guessed, group_id: group_id.as_deref(), settings: &source.settings };
    let (mut paths, mut answers): (Vec<String>, Vec<Answer>) = (Vec::new(), Vec::new());
    let mut question: Option<Question> = Some(source.provider.status_question(&subject));
    while let Some(next) = question.take() {
        let answer = if answers.is_empty() && paid { asker.ask_now(&next).await } else { asker.ask(&next).await? };
        paths.push(next.path);
        answers.push(answer);
        if answers.len() < limits::QUESTIONS_PER_POLL_MAX {
            question = source.provider.follow_up(&subject, &answers);
        }
    }
    let (mut heads, mut body) = (Vec::new(), Vec::new());
    for (path, answer) in paths.into_iter().zip(answers) {
        let (head, bytes) = AnswerHead::split(path, answer);
        heads.push(head);
        body.extend(bytes);
    }
    let head = Head::Poll(PollHead { run_id: run_id.clone(), kind, guessed, group_id, asked_at, answers: heads });
    Some(Report { source: asker.member.id, at: asked_at, head, body })
}

/// Hands in a clock report for every run one of whose limits has passed.
pub async fn keep_time(
    fleet: watch::Receiver<Arc<Fleet>>,
    ledger: Handle,
    reader: Reader,
    clock: Clock,
    mut stop: watch::Receiver<bool>,
) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let now = clock();
        let look = {
            let (reader, sources) = (reader.clone(), fleet.borrow().rows());
            move || reader.read(|view| view.alarms(&sources, now, limits::ALARMS_PER_ROUND_MAX))
        };
        pause = match tokio::task::spawn_blocking(look).await {
            Ok(Ok((due, next))) if due.is_empty() => {
                let next = next.map_or(limits::ALARM_INTERVAL_MAX, |next| next.since(now));
                next.clamp(Duration::from_millis(10), limits::ALARM_INTERVAL_MAX)
            }
            Ok(Ok((due, _))) => {
                let ring = |(source, run_id)| {
                    let report = Report { source, at: now, head: Head::Clock { run_id }, body: Vec::new() };
                    ledger.digest(report)
                };
                let rung = futures_util::future::join_all(due.into_iter().map(ring)).await;
                if rung.iter().all(Result::is_ok) { Duration::ZERO } else { limits::FAILURE_PAUSE }
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot look for passed limits");
                limits::FAILURE_PAUSE
            }
            Err(_) => limits::FAILURE_PAUSE,
        };
    }
}
