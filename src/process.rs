//! Computes what a batch of reports leads to, as a pure function: no SQL, no clock, no I/O.
//!
//! ```text
//!  reports of a batch ──read──▶ Readings ──decide──▶ Decisions ──render──▶ ChangeSet
//!                                 │ ▲                  │ ▲
//!                           keys  ▼ │ stored runs      ▼ │ stored payloads
//!                                ledger               ledger
//! ```
//!
//! 1. [`read`]: each report is read by its provider into observations, whose texts are redacted.
//!    After that the runs that the batch speaks of are known, and the ledger looks them up in one
//!    query.
//! 2. [`Readings::decide`]: each observation is decided upon, in the order of the reports. An
//!    observation sees the state that the ones before it have left, so a batch leads to what its
//!    reports would lead to one by one. Records are numbered and rendered here.
//! 3. [`Decisions::render`]: a record whose payload stands in an earlier report waits until the
//!    ledger has looked that up. Most batches have none.
//!
//! The caller runs the steps one after the other ([`process`] does it for stored state that is at
//! hand already), guards each against a panic of a parser, and has the ledger apply the
//! [`ChangeSet`] in one transaction (invariants 3 and 4).

use std::collections::{BTreeMap, HashMap};

use crate::config::{Source, Sources};
use crate::ledger::changes::{
    ChangeSet, Inquiry, LogLine, NewRecord, NewTimelineRow, Processed, Quarantine, RunChange,
    RunsCounted, StoredPayload, StoredRun, TimelineRow, Traffic,
};
use crate::model::decide::{Circumstances, Decision, Effect, Phase, Publication, Run, decide};
use crate::model::observation::{Claim, Observation};
use crate::model::record::{About, Draft, PAYLOAD_BYTES_MAX, Payload, draft, payload_text};
use crate::model::{At, RunId, RunKey, Trust, Via, schedule};
use crate::providers::{Delivery, Reading};
use crate::report::{Meta, Report};

#[cfg(test)]
mod tests;

/// A stored report: its id and what it says.
pub type Stored = (i64, Report);

/// The circumstances of processing, beside the reports and the stored state.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The configured sources.
    pub sources: &'a Sources,
    /// The time.
    pub now: At,
}

/// The stored state that a batch starts from.
#[derive(Clone, Debug, Default)]
pub struct StoredState {
    /// The runs that the batch speaks of, as far as they are known.
    pub runs: Vec<StoredRun>,
    /// The seq that the next record gets.
    pub next_seq: i64,
    /// By source: when the provider last showed any of its runs in answer to a status request.
    pub found_at: BTreeMap<i64, At>,
}

/// Processes a batch from state that is at hand: all three steps at once.
pub fn process(
    reports: &[Stored],
    context: Context<'_>,
    state: StoredState,
    payloads: &BTreeMap<i64, StoredPayload>,
) -> ChangeSet {
    read(reports, context).decide(state).render(payloads)
}

/// Those of `waiting` that verify with the source's secrets of today, with what verification says.
/// A delivery is verified as of its arrival: a corrected secret makes it genuine, not fresher than
/// it was.
pub fn reverify(source: &Source, waiting: Vec<Stored>) -> Vec<Stored> {
    let verifies = |(id, mut report): Stored| {
        let Meta::Webhook(meta) = &mut report.meta else {
            return None;
        };
        let delivery = Delivery {
            headers: &meta.headers,
            body: &report.body,
            truncated: meta.truncated,
            path_token: meta.path_token.as_ref(),
        };
        let config = &source.config;
        let proof = config
            .provider
            .verify(&delivery, &config.keyring, report.at);
        (meta.verdict, meta.secret) = (proof.verdict(), proof.secret().cloned());
        meta.verdict.authentic().then_some((id, report))
    };
    waiting.into_iter().filter_map(verifies).collect()
}

// ── Step 1: read ────────────────────────────────────────────────────────────────────────────────

/// A batch whose reports have been read.
pub struct Readings<'a> {
    context: Context<'a>,
    reports: &'a [Stored],
    meanings: Vec<Meaning<'a>>,
    /// The runs that the observations are about, each once.
    keys: Vec<(i64, RunId)>,
    /// For each observation, in order: which of `keys` it is about.
    subjects: Vec<usize>,
}

/// The meaning of a report.
enum Meaning<'a> {
    /// Its source is no longer configured, so no provider can read it.
    Unconfigured,
    /// A provider's test: it touches no run.
    Ping,
    /// The provider cannot read it, for this reason.
    Unreadable(String),
    /// It says something about runs.
    Said {
        source: &'a Source,
        observations: Vec<Observation>,
        /// The provider's own count of runs, which came along with a list.
        counted: Option<i64>,
    },
}

/// Reads each report of a batch.
pub fn read<'a>(reports: &'a [Stored], context: Context<'a>) -> Readings<'a> {
    let meaning = |(_, report): &'a Stored| match context.sources.by_id(report.source) {
        None => Meaning::Unconfigured,
        Some(source) => meaning_of(report, source),
    };
    let meanings: Vec<Meaning<'a>> = reports.iter().map(meaning).collect();
    let (mut known, mut keys, mut subjects) = (HashMap::new(), Vec::new(), Vec::new());
    for meaning in &meanings {
        let Meaning::Said {
            source,
            observations,
            ..
        } = meaning
        else {
            continue;
        };
        for observation in observations {
            let key = (source.id, &observation.run_id);
            let subject = known.entry(key).or_insert_with(|| {
                keys.push((source.id, observation.run_id.clone()));
                keys.len() - 1
            });
            subjects.push(*subject);
        }
    }
    Readings {
        context,
        reports,
        meanings,
        keys,
        subjects,
    }
}

fn meaning_of<'a>(report: &Report, source: &'a Source) -> Meaning<'a> {
    let config = &source.config;
    let (mut observations, counted) = match report.read(config.provider, &config.settings) {
        Reading::Said(observations) => (observations, None),
        Reading::Counted(observations, gap) => {
            let counted = i64::try_from(gap.runs_counted).unwrap_or(i64::MAX);
            (observations, Some(counted))
        }
        Reading::Ping => return Meaning::Ping,
        Reading::Unreadable(why) => return Meaning::Unreadable(source.redactor().redact(why)),
    };
    // Here and not when the record is rendered: what an observation says also stands in the run's
    // state, in timelines and in the log.
    for observation in &mut observations {
        let detail = std::mem::take(&mut observation.detail);
        observation.detail = detail.sanitized(|text| source.redactor().redact(text));
    }
    Meaning::Said {
        source,
        observations,
        counted,
    }
}

impl<'a> Readings<'a> {
    /// The runs that the batch speaks of, each once: the row id of the source, and the run id.
    pub fn keys(&self) -> &[(i64, RunId)] {
        &self.keys
    }

    /// Decides upon everything that the batch says.
    pub fn decide(self, state: StoredState) -> Decisions<'a> {
        let Readings {
            context,
            reports,
            meanings,
            keys,
            subjects,
        } = self;
        let mut deciding = Deciding {
            subjects: stored_subjects(keys, state.runs),
            decisions: Decisions {
                context,
                reports,
                changes: ChangeSet::default(),
                waiting: Vec::new(),
            },
            spoken_of: Vec::new(),
            next_seq: state.next_seq,
            found_at: state.found_at,
            newly_known: BTreeMap::new(),
        };
        let mut subjects = subjects.into_iter();
        for ((id, report), meaning) in reports.iter().zip(meanings) {
            let changes = &mut deciding.decisions.changes;
            changes.processed.push(Processed::of(*id));
            note_traffic(changes.traffic.entry(report.source).or_default(), report);
            match meaning {
                Meaning::Unconfigured => changes.quarantined.push(Quarantine {
                    report: *id,
                    at: context.now,
                    why: "its source is no longer configured".to_owned(),
                }),
                Meaning::Ping => {}
                Meaning::Unreadable(why) => changes.notes.push((*id, why)),
                Meaning::Said {
                    source,
                    observations,
                    counted,
                } => {
                    let heard = Heard {
                        id: *id,
                        report,
                        source,
                    };
                    let about = subjects.by_ref().take(observations.len());
                    deciding.hear(&heard, about.zip(&observations));
                    deciding.count(source.id, counted);
                }
            }
        }
        deciding.finish()
    }
}

/// Notes when a source was heard from.
fn note_traffic(traffic: &mut Traffic, report: &Report) {
    match &report.meta {
        Meta::Webhook(meta) if meta.verdict.authentic() => {
            traffic.webhook_at = Some(report.at);
            if let Some(label) = &meta.secret {
                *traffic.secrets.entry(label.0.clone()).or_default() += 1;
            }
        }
        Meta::Webhook(_) => traffic.unverified_at = Some(report.at),
        Meta::Poll(meta) if meta.answers.iter().any(|answer| answer.status.is_some()) => {
            traffic.answer_at = Some(report.at);
        }
        _ => {}
    }
}

// ── Step 2: decide ──────────────────────────────────────────────────────────────────────────────

/// A batch that has been decided upon; some of its records may wait for a payload.
pub struct Decisions<'a> {
    context: Context<'a>,
    reports: &'a [Stored],
    changes: ChangeSet,
    waiting: Vec<Waiting<'a>>,
}

/// A record that waits for the payload of an earlier report.
struct Waiting<'a> {
    /// Which of the change set's records it is.
    record: usize,
    source: &'a Source,
    run_id: RunId,
    /// The run as it stood when the record was decided upon.
    run: Run,
    publication: Publication,
    /// The earlier report.
    report: i64,
}

/// A run that the batch speaks of.
struct Subject {
    source: i64,
    run_id: RunId,
    /// Its row and its state before the batch.
    before: Option<(i64, Run)>,
    /// Its state so far; `None` until the batch has said something about it.
    after: Option<Run>,
    /// Why its row cannot be read.
    damaged: Option<String>,
    /// The seq of its completion, if the batch publishes it.
    completion: Option<i64>,
    /// Its position among the runs of the change set.
    position: usize,
}

/// The report that is being decided upon.
struct Heard<'a, 'b> {
    id: i64,
    report: &'b Report,
    source: &'a Source,
}

struct Deciding<'a> {
    subjects: Vec<Subject>,
    decisions: Decisions<'a>,
    /// The subjects that the batch has said something about, in order.
    spoken_of: Vec<usize>,
    next_seq: i64,
    found_at: BTreeMap<i64, At>,
    /// How many runs of each source the batch has made known so far.
    newly_known: BTreeMap<i64, i64>,
}

/// Joins the keys of a batch with what is stored of them.
fn stored_subjects(keys: Vec<(i64, RunId)>, stored: Vec<StoredRun>) -> Vec<Subject> {
    let mut stored: HashMap<(i64, String), StoredRun> = stored
        .into_iter()
        .map(|run| ((run.source, run.run_id.clone()), run))
        .collect();
    let subject = |(source, run_id): (i64, RunId)| {
        let run = stored.remove(&(source, run_id.as_str().to_owned()));
        let (before, damaged) = match run.map(|run| (run.row, run.state)) {
            None => (None, None),
            Some((row, Ok(run))) => (Some((row, run)), None),
            Some((_, Err(why))) => (None, Some(why)),
        };
        Subject {
            source,
            run_id,
            before,
            after: None,
            damaged,
            completion: None,
            position: 0,
        }
    };
    keys.into_iter().map(subject).collect()
}

impl<'a> Deciding<'a> {
    /// Decides upon what one report says.
    fn hear<'o>(
        &mut self,
        heard: &Heard<'a, 'a>,
        observations: impl Iterator<Item = (usize, &'o Observation)>,
    ) {
        let mut news = false;
        for (subject, observation) in observations {
            let Some((effect, seq)) = self.conclude(heard, subject, observation) else {
                continue;
            };
            news |= match effect {
                Effect::Unchanged => false,
                Effect::Ignored => observation.via != Via::Sweep,
                _ => true,
            };
            if effect != Effect::Ignored
                && let Some(processed) = self.decisions.changes.processed.last_mut()
            {
                let run_id = observation.run_id.clone();
                processed.effects.push((run_id, effect, seq));
            }
        }
        // Answers without news are the bulk of what polling brings in. That they came stays.
        if !news && matches!(heard.report.meta.via(), Via::Poll | Via::Sweep) {
            self.decisions.changes.bodies_dropped.push(heard.id);
        }
    }

    /// Keeps a provider's count of runs, with how many the batch has made known before it.
    fn count(&mut self, source: i64, counted: Option<i64>) {
        let newly_known = self.newly_known.get(&source).copied().unwrap_or(0);
        self.decisions
            .changes
            .counted
            .extend(counted.map(|counted| RunsCounted {
                source,
                counted,
                newly_known,
            }));
    }

    /// Decides on one observation and keeps all that follows. `None` if nothing does: the run
    /// stays unknown, or its row cannot be read.
    fn conclude(
        &mut self,
        heard: &Heard<'a, 'a>,
        subject: usize,
        observation: &Observation,
    ) -> Option<(Effect, Option<i64>)> {
        let slot = &mut self.subjects[subject];
        if let Some(why) = &slot.damaged {
            let why = why.clone();
            self.pass_over(heard, observation, why);
            return None;
        }
        let spoken_of = slot.after.is_some();
        // The state before the batch is kept: the ledger counts by the difference.
        let run = slot
            .after
            .take()
            .or_else(|| slot.before.as_ref().map(|(_, run)| run.clone()));
        let known = run.is_some();
        let source = heard.source;
        let policy = source
            .config
            .policy(run.as_ref().and_then(|run| run.kind).or(observation.kind));
        let circumstances = Circumstances {
            policy: &policy,
            now: self.decisions.context.now,
            report: heard.id,
            seed: schedule::seed(source.config.name.as_str(), observation.run_id.as_str()),
            since: source.since,
            found_at: self.found_at.get(&source.id).copied(),
        };
        let Decision {
            run,
            publish,
            effect,
        } = decide(run, observation, &circumstances);
        let Some(run) = run else {
            self.inquire(heard, observation, policy.can_poll);
            return None;
        };
        if observation.via == Via::Poll
            && matches!(observation.claim, Claim::Open(_) | Claim::Ended(_))
        {
            let now = self.decisions.context.now;
            self.found_at.insert(source.id, now);
            let traffic = self.decisions.changes.traffic.entry(source.id);
            traffic.or_default().found_at = Some(now);
        }
        if !spoken_of {
            slot.position = self.spoken_of.len();
            self.spoken_of.push(subject);
        }
        let position = slot.position;
        if !known {
            *self.newly_known.entry(source.id).or_default() += 1;
        }
        let seq = publish.map(|publication| self.publish(heard, subject, &run, publication));
        let changes = &mut self.decisions.changes;
        if belongs_in_timeline(observation, effect) {
            let row = timeline_row(heard.id, observation, effect);
            let at = self.decisions.context.now;
            changes.timeline.push(NewTimelineRow {
                run: position,
                row: TimelineRow { at, seq, ..row },
            });
        }
        changes.urgent |= run.is_urgent();
        changes.log.push(LogLine::Decided {
            run: position,
            via: observation.via,
            effect,
            ending: match &run.phase {
                Phase::Open(_) => None,
                Phase::Settled(settled) => Some((
                    settled.belief.ending.outcome,
                    settled.origin,
                    settled.confirmed,
                )),
            },
        });
        self.subjects[subject].after = Some(run);
        Some((effect, seq))
    }

    /// A delivery that proves nothing names a run that is unknown. It may be genuine, so the run is
    /// polled once with our own key, at a bounded rate (invariant 7).
    fn inquire(&mut self, heard: &Heard<'_, '_>, observation: &Observation, can_poll: bool) {
        let Meta::Webhook(meta) = &heard.report.meta else {
            return;
        };
        if observation.entitled() || !can_poll {
            return;
        }
        if let Some(processed) = self.decisions.changes.processed.last_mut() {
            processed.inquiry = Some(Inquiry {
                source: heard.source.id,
                run_id: observation.run_id.clone(),
                kind: observation.kind,
                group_id: observation.detail.group_id.clone(),
                genuine: meta.verdict.authentic(),
                sender: meta.peer.clone(),
            });
        }
    }

    /// The run's row is damaged. The report is quarantined, where an operator sees it, and the rest
    /// of what it says counts. A list will show the run again, and a hint is worth no quarantine.
    fn pass_over(&mut self, heard: &Heard<'a, 'a>, observation: &Observation, error: String) {
        let run_id = observation.run_id.clone();
        let keep = heard.report.meta.via() != Via::Sweep && observation.entitled();
        let changes = &mut self.decisions.changes;
        if keep {
            changes.quarantined.push(Quarantine {
                report: heard.id,
                at: self.decisions.context.now,
                why: format!("the row of the run {run_id} cannot be read: {error}"),
            });
        }
        changes.log.push(LogLine::Damaged {
            source: heard.source.id,
            run_id,
            via: observation.via,
            quarantined: keep.then_some(heard.id),
            error,
        });
    }

    /// Numbers a record and renders it, unless it has to wait for the payload of an earlier report.
    fn publish(
        &mut self,
        heard: &Heard<'a, 'a>,
        subject: usize,
        run: &Run,
        publication: Publication,
    ) -> i64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        let slot = &mut self.subjects[subject];
        if publication == Publication::Completion {
            slot.completion = Some(seq);
        }
        let rendering = Rendering {
            source: heard.source,
            run_id: &slot.run_id,
            run,
            publication,
            now: self.decisions.context.now,
        };
        let ((draft, payload_report), waits_for) = match speaker(run) {
            None => (rendering.draft(Speech::Nobody), None),
            Some(report) => match self.decisions.payload_in_batch(report) {
                Some(body) => (rendering.draft(Speech::Body(report, body)), None),
                None => (rendering.draft(Speech::Removed(report)), Some(report)),
            },
        };
        if let Some(report) = waits_for {
            self.decisions.waiting.push(Waiting {
                record: self.decisions.changes.records.len(),
                source: heard.source,
                run_id: slot.run_id.clone(),
                run: run.clone(),
                publication,
                report,
            });
        }
        let ending = match &run.phase {
            Phase::Open(_) => None,
            Phase::Settled(settled) => {
                Some((settled.belief.ending.outcome.word(), settled.origin.word()))
            }
        };
        self.decisions.changes.records.push(NewRecord {
            seq,
            run: slot.position,
            draft,
            group_id: run.detail.group_id.clone(),
            payload_report,
            ending,
            at: self.decisions.context.now,
        });
        seq
    }

    /// Turns the subjects into changes.
    fn finish(self) -> Decisions<'a> {
        let Deciding {
            subjects,
            mut decisions,
            spoken_of,
            ..
        } = self;
        let mut subjects: Vec<Option<Subject>> = subjects.into_iter().map(Some).collect();
        for subject in spoken_of {
            let Some(Subject {
                source,
                run_id,
                before,
                after: Some(after),
                completion,
                ..
            }) = subjects[subject].take()
            else {
                continue;
            };
            decisions.changes.runs.push(RunChange {
                source,
                run_id,
                before,
                after,
                completion,
            });
        }
        decisions.changes.processed_upto = decisions.reports.last().map(|(id, _)| *id);
        decisions
    }
}

/// Whether an observation is worth a row in the run's timeline. A list that shows what is known and
/// a hint without consequence are not: a flood of forged deliveries must not grow the timeline.
fn belongs_in_timeline(observation: &Observation, effect: Effect) -> bool {
    match effect {
        Effect::Ignored => observation.entitled() && observation.via != Via::Sweep,
        Effect::Unchanged => observation.via != Via::Sweep,
        _ => true,
    }
}

fn timeline_row(report: i64, observation: &Observation, effect: Effect) -> TimelineRow {
    let claim = match &observation.claim {
        Claim::Tracked => "tracked",
        Claim::Listed { .. } => "listed",
        Claim::Open(_) => "open",
        Claim::Ended(ending) => ending.outcome.word(),
        Claim::Missing => "missing",
        Claim::Nothing => "nothing",
        Claim::Withheld => "withheld",
        Claim::TimerFired => "timer",
    };
    TimelineRow {
        report,
        at: At::default(),
        via: observation.via.word().to_owned(),
        trust: observation.trust.word().to_owned(),
        claim: claim.to_owned(),
        status: observation.detail.provider_status.clone(),
        effect: effect.word().to_owned(),
        seq: None,
    }
}

// ── Step 3: render ──────────────────────────────────────────────────────────────────────────────

/// The report whose body is the payload of what is published about a run. An open run and an end
/// that was inferred have none.
fn speaker(run: &Run) -> Option<i64> {
    match &run.phase {
        Phase::Settled(settled) if settled.belief.trust > Trust::Hint => {
            Some(settled.belief.report)
        }
        _ => None,
    }
}

/// The payload of the report behind a publication.
#[derive(Clone, Copy)]
enum Speech<'b> {
    /// There is no such report.
    Nobody,
    /// Retention has removed it: the record goes without a payload, and never with another's.
    Removed(i64),
    /// Its payload has more bytes than a record carries.
    TooLarge(i64),
    /// Its payload.
    Body(i64, &'b [u8]),
}

impl Speech<'_> {
    /// The report, if there is one.
    fn report(self) -> Option<i64> {
        match self {
            Speech::Nobody => None,
            Speech::Removed(report) | Speech::TooLarge(report) | Speech::Body(report, _) => {
                Some(report)
            }
        }
    }
}

/// A record that is being rendered.
struct Rendering<'b> {
    source: &'b Source,
    run_id: &'b RunId,
    run: &'b Run,
    publication: Publication,
    now: At,
}

impl Rendering<'_> {
    /// Renders the record, redacted. Beside it: the report that it refers to, if its payload stands
    /// there and not in the record.
    fn draft(&self, speech: Speech<'_>) -> (Draft, Option<i64>) {
        let json = match speech {
            Speech::Body(_, body) if body.len() <= PAYLOAD_BYTES_MAX => payload_text(body),
            _ => None,
        };
        let (payload, mut referred) = match (&json, speech) {
            (Some(json), _) => (Payload::Inline(json), None),
            (None, Speech::Body(report, body)) if !body.is_empty() => {
                (Payload::Ref(report), Some(report))
            }
            (None, Speech::TooLarge(report)) => (Payload::Ref(report), Some(report)),
            _ => (Payload::Absent, None),
        };
        let redactor = self.source.redactor();
        let mut record = self.with(payload);
        if let Some(data) = redactor.redacted(&record.data) {
            record.data = data;
            if serde_json::from_str::<serde::de::IgnoredAny>(&record.data).is_err() {
                // A secret of digits stood in the payload as a number, and the text that replaced it
                // is no JSON. The body can still be fetched.
                referred = speech.report();
                record = self.with(referred.map_or(Payload::Absent, Payload::Ref));
                record.data = redactor.redact(record.data);
            }
        }
        (record, referred)
    }

    fn with(&self, payload: Payload<'_>) -> Draft {
        let key = RunKey {
            source: self.source.config.name.clone(),
            run_id: self.run_id.clone(),
        };
        let about = About {
            provider: self.source.config.provider.name(),
            key: &key,
        };
        draft(about, self.run, self.publication, payload, self.now)
    }
}

impl Decisions<'_> {
    /// Ids of earlier reports whose payloads are needed.
    pub fn wanted(&self) -> Vec<i64> {
        self.waiting.iter().map(|waiting| waiting.report).collect()
    }

    /// Renders the records that waited for a payload. A report that is not among `payloads` has been
    /// removed by retention.
    pub fn render(mut self, payloads: &BTreeMap<i64, StoredPayload>) -> ChangeSet {
        for waiting in self.waiting {
            let speech = match payloads.get(&waiting.report) {
                None => Speech::Removed(waiting.report),
                Some(StoredPayload::TooLarge) => Speech::TooLarge(waiting.report),
                Some(StoredPayload::Whole(body)) => Speech::Body(waiting.report, body),
            };
            let rendering = Rendering {
                source: waiting.source,
                run_id: &waiting.run_id,
                run: &waiting.run,
                publication: waiting.publication,
                now: self.context.now,
            };
            let record = &mut self.changes.records[waiting.record];
            (record.draft, record.payload_report) = rendering.draft(speech);
        }
        self.changes
    }

    /// The payload of a report of this batch. Reports stand in the order of their ids.
    fn payload_in_batch(&self, report: i64) -> Option<&[u8]> {
        let found = self.reports.binary_search_by_key(&report, |(id, _)| *id);
        found.ok().map(|at| self.reports[at].1.payload())
    }
}
