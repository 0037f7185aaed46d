//! The place where everything meets: one thread, one write connection.
//!
//! Whatever waits goes into one transaction. First the promise: all waiting reports are stored,
//! committed, and acknowledged. Then the opinion: each is read by its provider's dialect, decided
//! upon, and its consequences (the run's new state, the record, the mark that it is digested) are
//! committed together. Invariants 1, 3 and 4 are kept here and nowhere else.
//!
//! A body that kills the parser was promised all the same. What panics is tried three times and
//! set aside. What ends the process is found undigested at the next start, where its attempt is
//! counted before it is tried again.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Source;
use crate::limits;
use crate::providers::{Delivery, Reading};
use crate::report::{Head, Report};
use crate::run::asking;
use crate::run::decide::{Circumstances, Decision, Effect, Phase, Publication, Run, decide};
use crate::run::observation::{Claim, Observation};
use crate::run::record::{About, PAYLOAD_BYTES_MAX, Payload, draft, payload_text};
use crate::run::{At, RunId, RunKey, SourceName, Trust, Via};
use crate::secret::Redactor;
use crate::store::{HeardRow, RingLimits, StoreError, Traffic, Transaction, Writer};

/// Tells the time. The daemon's is the system clock; a simulation brings its own.
pub type Clock = Arc<dyn Fn() -> At + Send + Sync>;

/// The configured sources, by the row ids they have in the ledger.
#[derive(Clone, Default)]
pub struct Fleet {
    by_id: BTreeMap<i64, Arc<Member>>,
    ids: BTreeMap<SourceName, i64>,
}

/// One configured source.
pub struct Member {
    /// Row id.
    pub id: i64,
    /// Its configuration.
    pub source: Arc<Source>,
    redactor: Redactor,
}

impl Member {
    /// The text without this source's secrets.
    pub fn redacted(&self, text: String) -> String {
        self.redactor.redact(text)
    }
}

impl Fleet {
    /// Gives every source its row.
    pub fn enlist(writer: &mut Writer, sources: &BTreeMap<SourceName, Arc<Source>>) -> Result<Fleet, StoreError> {
        let named = sources.values().map(|source| (source.name.as_str(), source.provider.name()));
        let rows = writer.transaction(|tx| tx.sources(named))?;
        let mut fleet = Fleet::default();
        for (name, source) in sources {
            let id = rows[name.as_str()];
            fleet.ids.insert(name.clone(), id);
            let redactor = source.redactor();
            fleet.by_id.insert(id, Arc::new(Member { id, source: source.clone(), redactor }));
        }
        Ok(fleet)
    }

    /// The source of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Member>> {
        let name = SourceName::new(name).ok()?;
        self.by_id.get(self.ids.get(&name)?)
    }

    /// Every source, in the order of their rows.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.by_id.values()
    }

    fn member(&self, id: i64) -> Option<&Arc<Member>> {
        self.by_id.get(&id)
    }
}

/// Why nothing was written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// More waits than we let wait.
    #[error("too much is waiting to be written; try again in a few seconds")]
    Busy,
    /// The ledger could not take it.
    #[error("the database cannot store it ({0})")]
    Store(Arc<str>),
    /// We are stopping.
    #[error("settled is stopping")]
    Stopping,
}

/// What a report did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// The report's id.
    pub report: i64,
    /// Each run it changed or confirmed, what it did to it, and the record it caused.
    pub effects: Vec<(RunId, Effect, Option<i64>)>,
}

type Work = Box<dyn FnOnce(&mut Transaction<'_>) -> Result<(), StoreError> + Send>;

/// What came of verifying a source's unverified deliveries again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reverified {
    /// Deliveries looked at.
    pub examined: u64,
    /// Of those, how many verify now.
    pub verified: u64,
    /// Runs that this changed.
    pub changed: u64,
}

enum Job {
    Reverify { source: i64, reply: oneshot::Sender<Result<Reverified, Refusal>> },
    Report { report: Report, reply: Reply },
    Write { work: Work, done: oneshot::Sender<Result<(), Refusal>> },
}

enum Reply {
    Recorded(oneshot::Sender<Result<i64, Refusal>>),
    Digested(oneshot::Sender<Result<Digest, Refusal>>),
}

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    head: watch::Receiver<i64>,
    nudges: watch::Receiver<u64>,
}

impl Handle {
    /// Stores a report. On disk when this returns `Ok`.
    pub async fn record(&self, report: Report) -> Result<i64, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Report { report, reply: Reply::Recorded(reply) }).await?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Stores a report and waits until its consequences are on disk too.
    pub async fn digest(&self, report: Report) -> Result<Digest, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Report { report, reply: Reply::Digested(reply) }).await?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Runs `work` in the writer's next transaction. On disk when this returns `Ok`.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (give, mut take) = oneshot::channel();
        let (done, committed) = oneshot::channel();
        let work = Box::new(move |tx: &mut Transaction<'_>| {
            let _ = give.send(work(tx)?);
            Ok(())
        });
        self.submit(Job::Write { work, done }).await?;
        committed.await.unwrap_or(Err(Refusal::Stopping))?;
        take.try_recv().map_err(|_| Refusal::Stopping)
    }

    /// Verifies the unverified deliveries of a source again, with the secrets it has now, and
    /// applies those that verify, in the order in which they came.
    pub async fn reverify(&self, source: i64) -> Result<Reverified, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Reverify { source, reply }).await?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// The seq of the newest record that is on disk. Changes wake the feed.
    pub fn head(&self) -> watch::Receiver<i64> {
        self.head.clone()
    }

    /// Changes whenever a run wants to be asked about at once.
    pub fn nudges(&self) -> watch::Receiver<u64> {
        self.nudges.clone()
    }

    async fn submit(&self, job: Job) -> Result<(), Refusal> {
        match tokio::time::timeout(limits::QUEUE_WAIT, self.jobs.send(job)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Refusal::Stopping),
            Err(_) => Err(Refusal::Busy),
        }
    }
}

/// The writer and all that is decided with it. Synchronous: the daemon gives it a thread, a
/// simulation calls it step by step.
pub struct Reconciler {
    writer: Writer,
    fleet: Fleet,
    ring: RingLimits,
    /// Unverified rows and bytes added since the ring of a source was last trimmed.
    ring_added: BTreeMap<i64, (i64, i64)>,
    /// Something may be undigested on disk that is not in memory.
    behind: bool,
}

/// What a promise gave: the ids of the reports, and how each piece of other work went.
type Promised = (Vec<i64>, Vec<Result<(), Refusal>>);

/// What one round of digestion leads to.
#[derive(Default)]
pub struct Aftermath {
    digests: Vec<Digest>,
    head: Option<i64>,
    urgent: bool,
}

impl Reconciler {
    /// A reconciler over an open ledger.
    pub fn new(writer: Writer, fleet: Fleet, ring: RingLimits) -> Reconciler {
        Reconciler { writer, fleet, ring, ring_added: BTreeMap::new(), behind: true }
    }

    /// Digests what an earlier process stored and did not get to, one by one, each attempt counted
    /// on disk before it is made. Returns how many there were.
    pub fn recover(&mut self, now: At) -> Result<usize, StoreError> {
        let mut count = 0;
        loop {
            let waiting = self.writer.transaction(|tx| tx.undigested(1))?;
            let Some((id, report, attempts)) = waiting.into_iter().next() else { break };
            count += 1;
            if attempts >= limits::ATTEMPTS_MAX {
                self.writer.transaction(|tx| {
                    tx.set_aside(id, now, "digesting it ended the process three times")?;
                    tx.mark_digested(id)
                })?;
                tracing::error!(report = id, "a report that ended the process three times is set aside");
                continue;
            }
            self.writer.transaction(|tx| tx.count_attempt(id))?;
            self.digest(&[(id, report)], now)?;
        }
        self.behind = false;
        Ok(count)
    }

    /// Stores reports, and runs other work, in one transaction. Work that fails undoes only itself.
    fn promise(&mut self, reports: &[Report], work: Vec<Work>) -> Result<Promised, StoreError> {
        let mut traffic: BTreeMap<i64, Traffic> = BTreeMap::new();
        let ring = self.ring;
        let ring_added = &mut self.ring_added;
        self.writer.transaction(|tx| {
            let ids = reports.iter().map(|report| tx.add_report(report)).collect::<Result<Vec<_>, _>>()?;
            for report in reports {
                note_traffic(&mut traffic, report);
                trim_if_full(tx, ring_added, ring, report)?;
            }
            for (source, traffic) in &traffic {
                tx.note_traffic(*source, traffic)?;
            }
            let done = work.into_iter().map(|work| tx.apart(work).map_err(|error| refusal(&error))).collect();
            Ok((ids, done))
        })
    }

    /// Reads, decides and appends for stored reports, in one transaction.
    fn digest(&mut self, reports: &[(i64, Report)], now: At) -> Result<Aftermath, StoreError> {
        let fleet = &self.fleet;
        self.writer.transaction(|tx| {
            let mut aftermath = Aftermath::default();
            for (id, report) in reports {
                let digest = digest_one(tx, fleet, *id, report, now, &mut aftermath)?;
                aftermath.digests.push(digest);
            }
            if let Some((last, _)) = reports.last() {
                tx.mark_digested(*last)?;
            }
            Ok(aftermath)
        })
    }

    /// See [`Handle::reverify`]. In transactions of a page each, so that intake waits for one page.
    pub fn reverify(
        &mut self,
        source: i64,
        now: At,
        mut publish: impl FnMut(&Aftermath),
    ) -> Result<Reverified, StoreError> {
        let fleet = &self.fleet;
        let Some(member) = fleet.member(source) else { return Ok(Reverified::default()) };
        let (mut total, mut after) = (Reverified::default(), 0);
        let page = u32::try_from(limits::PAGE_ROWS).unwrap_or(u32::MAX);
        loop {
            let mut aftermath = Aftermath::default();
            let last = self.writer.transaction(|tx| {
                let waiting = tx.ring(source, after, page)?;
                let last = waiting.last().map(|(id, _)| *id);
                for (id, mut report) in waiting {
                    total.examined += 1;
                    if !verifies_now(member, &mut report) {
                        continue;
                    }
                    total.verified += 1;
                    if let Head::Webhook(head) = &report.head {
                        tx.promote(id, head)?;
                    }
                    let digest = digest_one(tx, fleet, id, &report, now, &mut aftermath)?;
                    total.changed += digest.effects.len() as u64;
                }
                Ok(last)
            })?;
            publish(&aftermath);
            match last {
                Some(last) => after = last,
                None => return Ok(total),
            }
        }
    }

    /// Stores and digests reports, as the thread does with a group. For simulations and tests.
    pub fn step(&mut self, reports: Vec<Report>, now: At) -> Result<Vec<Digest>, StoreError> {
        let (ids, _) = self.promise(&reports, Vec::new())?;
        let stored: Vec<_> = ids.into_iter().zip(reports).collect();
        Ok(self.digest(&stored, now)?.digests)
    }

    /// Replaces the configuration of the sources.
    pub fn set_fleet(&mut self, fleet: Fleet) {
        self.fleet = fleet;
    }
}

fn refusal(error: &StoreError) -> Refusal {
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Refusal::Store(text.into())
}

fn note_traffic(traffic: &mut BTreeMap<i64, Traffic>, report: &Report) {
    let traffic = traffic.entry(report.source).or_default();
    match &report.head {
        Head::Webhook(head) if head.verdict.authentic() => {
            traffic.webhook_at = Some(report.at);
            if let Some(label) = &head.secret {
                *traffic.secrets.entry(label.0.clone()).or_default() += 1;
            }
        }
        Head::Webhook(_) => traffic.unverified_at = Some(report.at),
        Head::Poll(head) if head.answers.iter().any(|answer| answer.status.is_some()) => {
            traffic.answer_at = Some(report.at);
        }
        _ => {}
    }
}

/// Trims a source's ring each time a twentieth of its limit has been added, so that a flood costs
/// one sorted scan per five hundred deliveries and overshoots by at most that twentieth.
fn trim_if_full(
    tx: &mut Transaction<'_>,
    added: &mut BTreeMap<i64, (i64, i64)>,
    limits: RingLimits,
    report: &Report,
) -> Result<(), StoreError> {
    if report.head.webhook().is_none_or(|head| head.verdict.authentic()) {
        return Ok(());
    }
    let (rows, bytes) = added.entry(report.source).or_default();
    *rows += 1;
    *bytes += i64::try_from(report.body.len()).unwrap_or(i64::MAX);
    if *rows * 20 >= limits.rows_max || *bytes * 20 >= limits.bytes_max {
        tx.trim_ring(report.source, limits)?;
        (*rows, *bytes) = (0, 0);
    }
    Ok(())
}

/// Everything one report leads to.
fn digest_one(
    tx: &mut Transaction<'_>,
    fleet: &Fleet,
    id: i64,
    report: &Report,
    now: At,
    aftermath: &mut Aftermath,
) -> Result<Digest, StoreError> {
    let mut digest = Digest { report: id, effects: Vec::new() };
    let Some(member) = fleet.member(report.source) else {
        tx.set_aside(id, now, "its source is no longer configured")?;
        return Ok(digest);
    };
    let mut counted = None;
    let observations = match read(member, report) {
        Ok(Reading::Said(observations)) => observations,
        Ok(Reading::Counted(observations, gap)) => {
            counted = Some(gap);
            observations
        }
        Ok(Reading::Ping) => return Ok(digest),
        Ok(Reading::Unreadable(why)) => {
            tx.note(id, &member.redacted(why))?;
            return Ok(digest);
        }
        Err(()) => {
            tx.set_aside(id, now, "reading it panicked three times; please report this")?;
            tracing::error!(source = %member.source.name, report = id, "a report that cannot be read is set aside");
            return Ok(digest);
        }
    };
    let mut news = false;
    for heard in &observations {
        let Some((effect, seq)) = conclude(tx, member, id, report, heard, now, aftermath)? else { continue };
        news |= !matches!(effect, Effect::Unchanged);
        if !matches!(effect, Effect::Ignored) {
            digest.effects.push((heard.run_id.clone(), effect, seq));
        }
    }
    if let Some(gap) = counted {
        let missing = tx.count_runs(member.id, i64::try_from(gap.runs_counted).unwrap_or(i64::MAX))?;
        if missing > 0 {
            tracing::warn!(source = %member.source.name, missing, "the provider has counted runs that nobody told us of");
        }
    }
    if !news && matches!(report.head.via(), Via::Poll | Via::Sweep) {
        tx.drop_body(id)?;
    }
    Ok(digest)
}

/// Judges a stored delivery again, as of when it came: a corrected secret makes it genuine, not
/// fresher than it was.
fn verifies_now(member: &Member, report: &mut Report) -> bool {
    let source = &member.source;
    let Head::Webhook(head) = &mut report.head else { return false };
    let delivery = Delivery {
        headers: &head.headers,
        body: &report.body,
        truncated: head.truncated,
        path_token: head.path_token.as_ref(),
    };
    let proof = source.provider.verify(&delivery, &source.keyring, report.at);
    (head.verdict, head.secret) = (proof.verdict(), proof.secret().cloned());
    head.verdict.authentic()
}

/// Reads a report, in a cage: a dialect that panics must not take the daemon with it.
fn read(member: &Member, report: &Report) -> Result<Reading, ()> {
    let read = || report.read(member.source.provider, &member.source.settings);
    (0..limits::ATTEMPTS_MAX).find_map(|_| catch_unwind(AssertUnwindSafe(read)).ok()).ok_or(())
}

/// Decides on one observation and writes down all that follows.
fn conclude(
    tx: &mut Transaction<'_>,
    member: &Member,
    id: i64,
    report: &Report,
    heard: &Observation,
    now: At,
    aftermath: &mut Aftermath,
) -> Result<Option<(Effect, Option<i64>)>, StoreError> {
    let source = &member.source;
    let known = tx.run(member.id, &heard.run_id)?;
    let (row, run) = known.map_or((None, None), |(row, run)| (Some(row), Some(run)));
    let policy = source.policy(run.as_ref().and_then(|run| run.kind).or(heard.kind));
    let seed = asking::seed(source.name.as_str(), heard.run_id.as_str());
    let at = Circumstances { policy: &policy, now, report: id, seed };
    let Decision { run, publish, effect } = decide(run, heard, &at);
    let Some(run) = run else { return Ok(None) };
    let row = match row {
        Some(row) => row,
        None => tx.add_run(member.id, &heard.run_id)?,
    };
    let seq = match publish {
        Some(publication) => Some(append(tx, member, row, &run, publication, (id, report, heard), now)?),
        None => None,
    };
    tx.save_run(row, &run, seq.filter(|_| publish == Some(Publication::Completion)))?;
    if worth_a_line(heard, effect) {
        tx.note_heard(row, id, &line(id, heard, effect, seq, now))?;
    }
    aftermath.head = seq.or(aftermath.head);
    aftermath.urgent |= run.ask.is_some_and(|ask| ask.urgent);
    tell(source, &heard.run_id, &run, effect, heard);
    Ok(Some((effect, seq)))
}

/// Appends the record of a publication.
fn append(
    tx: &mut Transaction<'_>,
    member: &Member,
    row: i64,
    run: &Run,
    publication: Publication,
    (id, report, heard): (i64, &Report, &Observation),
    now: At,
) -> Result<i64, StoreError> {
    let key = RunKey { source: member.source.name.clone(), run_id: heard.run_id.clone() };
    let about = About { provider: member.source.provider.name(), key: &key };
    let spoken_by = match &run.phase {
        Phase::Settled(settled) if settled.belief.trust > Trust::Hint => Some(settled.belief.report),
        _ => None,
    };
    let earlier = match spoken_by {
        Some(earlier) if earlier != id => tx.report(earlier)?,
        _ => None,
    };
    let body = spoken_by.map(|_| earlier.as_ref().unwrap_or(report).payload());
    let json = body.filter(|body| body.len() <= PAYLOAD_BYTES_MAX).and_then(payload_text);
    let payload = match (&json, spoken_by) {
        (Some(json), _) => Payload::Inline(json),
        (None, Some(report)) if body.is_some_and(|body| !body.is_empty()) => Payload::Ref(report),
        _ => Payload::Absent,
    };
    let mut draft = draft(about, run, publication, payload, now);
    draft.data = member.redacted(draft.data);
    tx.append(row, member.id, run, &draft, now)
}

/// A list that shows what we know, and a hint without consequence, leave no line: a flood of
/// forged deliveries must not grow the timeline.
fn worth_a_line(heard: &Observation, effect: Effect) -> bool {
    match effect {
        Effect::Ignored => heard.entitled(),
        Effect::Unchanged => heard.via != Via::Sweep,
        _ => true,
    }
}

fn line(report: i64, heard: &Observation, effect: Effect, seq: Option<i64>, at: At) -> HeardRow {
    let claim = match &heard.claim {
        Claim::Tracked => "tracked",
        Claim::Listed { .. } => "listed",
        Claim::Open(_) => "open",
        Claim::Ended(ending) => ending.outcome.word(),
        Claim::Missing => "missing",
        Claim::Nothing => "nothing",
        Claim::Alarm => "alarm",
    };
    HeardRow {
        report,
        at,
        via: heard.via.word().to_owned(),
        trust: heard.trust.word().to_owned(),
        claim: claim.to_owned(),
        status: heard.detail.provider_status.clone(),
        effect: effect.word().to_owned(),
        seq,
    }
}

/// One log line per thing that happened to a run.
fn tell(source: &Source, run_id: &RunId, run: &Run, effect: Effect, heard: &Observation) {
    let (source, run_id, via) = (source.name.as_str(), run_id.as_str(), heard.via.word());
    match (effect, &run.phase) {
        (Effect::Settled, Phase::Settled(settled)) => {
            let (outcome, origin) = (settled.belief.ending.outcome.word(), settled.origin.word());
            tracing::info!(source, run_id, outcome, origin, confirmed = settled.confirmed, "settled");
        }
        (Effect::Amended, Phase::Settled(settled)) => {
            tracing::warn!(source, run_id, via, outcome = settled.belief.ending.outcome.word(), "amended");
        }
        (Effect::Exhausted, _) => {
            tracing::error!(source, run_id, via, "contradicted again; no more amendments are published");
        }
        (Effect::Overdue, _) => tracing::warn!(source, run_id, "overdue"),
        (Effect::Disputed, _) => tracing::warn!(source, run_id, via, "disputed; asking"),
        (Effect::Opened, _) => tracing::info!(source, run_id, via, "watching"),
        _ => tracing::debug!(source, run_id, via, effect = effect.word(), "heard"),
    }
}

/// Makes the way to the writer, and the loop that serves it. The loop blocks: give it a thread of
/// its own. It returns when every handle is gone and everything handed in is written.
pub fn channel(mut reconciler: Reconciler, clock: Clock, head: i64) -> (Handle, impl FnOnce() + Send + 'static) {
    let (jobs, mut waiting) = mpsc::channel(limits::QUEUE_REPORTS_MAX);
    let (head_tx, head) = watch::channel(head);
    let (nudge_tx, nudges) = watch::channel(0);
    let serve = move || {
        let mut group = Vec::with_capacity(limits::GROUP_REPORTS_MAX);
        loop {
            if !reconciler.catch_up(&clock, &head_tx, &nudge_tx) {
                std::thread::sleep(CATCH_UP_PAUSE);
                // Requests must not wait for a sick disk to be well; they get their refusal.
                while group.len() < limits::GROUP_REPORTS_MAX
                    && let Ok(job) = waiting.try_recv()
                {
                    group.push(job);
                }
            } else if waiting.blocking_recv_many(&mut group, limits::GROUP_REPORTS_MAX) == 0 {
                break;
            }
            reconciler.serve(&mut group, &clock, &head_tx, &nudge_tx);
        }
    };
    (Handle { jobs, head, nudges }, serve)
}

/// How long the writer waits between two attempts to digest a backlog.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(200);

impl Reconciler {
    /// Digests what an earlier failure left behind; true when nothing is.
    fn catch_up(&mut self, clock: &Clock, head: &watch::Sender<i64>, nudge: &watch::Sender<u64>) -> bool {
        while self.behind {
            let max = u32::try_from(limits::GROUP_REPORTS_MAX).unwrap_or(u32::MAX);
            let result = self.writer.transaction(|tx| tx.undigested(max)).and_then(|waiting| {
                let waiting: Vec<_> = waiting.into_iter().map(|(id, report, _)| (id, report)).collect();
                let aftermath = self.digest(&waiting, clock())?;
                Ok((waiting.len(), aftermath))
            });
            match result {
                Ok((0, _)) => self.behind = false,
                Ok((_, aftermath)) => publish(&aftermath, head, nudge),
                Err(error) => {
                    self.fail(&error);
                    return false;
                }
            }
        }
        true
    }

    /// Writes a group of jobs: the promise, the acknowledgements, the opinion.
    fn serve(&mut self, group: &mut Vec<Job>, clock: &Clock, head: &watch::Sender<i64>, nudge: &watch::Sender<u64>) {
        let (mut reports, mut replies, mut work, mut done) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for job in group.drain(..) {
            match job {
                Job::Reverify { source, reply } => {
                    let done = self.reverify(source, clock(), |aftermath| publish(aftermath, head, nudge));
                    let _ = reply.send(done.map_err(|error| self.fail(&error)));
                }
                Job::Report { report, reply } => {
                    reports.push(report);
                    replies.push(reply);
                }
                Job::Write { work: one, done: tell } => {
                    work.push(one);
                    done.push(tell);
                }
            }
        }
        if reports.is_empty() && work.is_empty() {
            return;
        }
        let (ids, results) = match self.promise(&reports, work) {
            Ok(promised) => promised,
            Err(error) => {
                let refusal = self.fail(&error);
                for reply in replies {
                    reply.refuse(&refusal);
                }
                for tell in done {
                    let _ = tell.send(Err(refusal.clone()));
                }
                return;
            }
        };
        for (tell, result) in done.into_iter().zip(results) {
            let _ = tell.send(result);
        }
        let mut wait = Vec::new();
        for (reply, id) in replies.into_iter().zip(&ids) {
            match reply {
                Reply::Recorded(tell) => drop(tell.send(Ok(*id))),
                Reply::Digested(tell) => wait.push((*id, tell)),
            }
        }
        let stored: Vec<_> = ids.into_iter().zip(reports).collect();
        if stored.is_empty() {
            return;
        }
        if self.behind {
            // Older reports come first; the next round digests these with them, from disk.
            for (_, tell) in wait {
                let _ = tell.send(Err(Refusal::Busy));
            }
            return;
        }
        match self.digest(&stored, clock()) {
            Ok(aftermath) => {
                publish(&aftermath, head, nudge);
                let mut digests = aftermath.digests.into_iter();
                for (id, tell) in wait {
                    let digest = digests.find(|digest| digest.report == id).unwrap_or_default();
                    let _ = tell.send(Ok(digest));
                }
            }
            Err(error) => {
                let refusal = self.fail(&error);
                for (_, tell) in wait {
                    let _ = tell.send(Err(refusal.clone()));
                }
            }
        }
    }

    /// After an error what may have been stored without being digested is looked for on disk, once
    /// the store has a connection that can be trusted again.
    fn fail(&mut self, error: &StoreError) -> Refusal {
        let refusal = refusal(error);
        tracing::error!(%refusal, "a write failed; nothing of it was acknowledged");
        self.behind = true;
        refusal
    }
}

impl Reply {
    fn refuse(self, refusal: &Refusal) {
        match self {
            Reply::Recorded(tell) => drop(tell.send(Err(refusal.clone()))),
            Reply::Digested(tell) => drop(tell.send(Err(refusal.clone()))),
        }
    }
}

/// Wakes the feed and the poller, after the commit.
fn publish(aftermath: &Aftermath, head: &watch::Sender<i64>, nudge: &watch::Sender<u64>) {
    if let Some(seq) = aftermath.head {
        head.send_replace(seq);
    }
    if aftermath.urgent {
        nudge.send_modify(|count| *count += 1);
    }
}
