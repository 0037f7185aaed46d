//! Everything one report leads to: it is read, each observation is decided upon, and all that
//! follows is written in the caller's transaction.

use super::sources::{Source, Sources};
use super::{BatchResult, Processed};
use crate::config::SourceConfig;
use crate::ledger::{LedgerError, TimelineRow, Transaction};
use crate::model::decide::{Circumstances, Decision, Effect, Phase, Publication, Run, decide};
use crate::model::observation::{Claim, Observation};
use crate::model::record::{About, PAYLOAD_BYTES_MAX, Payload, draft, payload_text};
use crate::model::schedule;
use crate::model::{At, RunId, RunKey, Trust, Via};
use crate::providers::{Delivery, Reading};
use crate::report::{Meta, Report};

/// Reads a stored report and writes down all that follows.
pub(super) fn process(
    tx: &mut Transaction<'_>,
    sources: &Sources,
    id: i64,
    report: &Report,
    now: At,
    batch: &mut BatchResult,
) -> Result<(), LedgerError> {
    let mut process = Processed::of(id);
    match sources.member(report.source) {
        None => tx.quarantine(id, now, "its source is no longer configured")?,
        Some(member) => process.effects = effects(tx, member, id, report, now, batch)?,
    }
    batch.processed.push(process);
    Ok(())
}

type Effects = Vec<(RunId, Effect, Option<i64>)>;

fn effects(
    tx: &mut Transaction<'_>,
    member: &Source,
    id: i64,
    report: &Report,
    now: At,
    batch: &mut BatchResult,
) -> Result<Effects, LedgerError> {
    let (mut observations, counted) =
        match report.read(member.config.provider, &member.config.settings) {
            Reading::Said(observations) => (observations, None),
            Reading::Counted(observations, gap) => (observations, Some(gap)),
            Reading::Ping => return Ok(Vec::new()),
            Reading::Unreadable(why) => {
                tx.note(id, &member.redactor().redact(why))?;
                return Ok(Vec::new());
            }
        };
    let (mut effects, mut news) = (Vec::new(), false);
    for observation in &mut observations {
        observation
            .detail
            .rewrite(|text| member.redactor().redact(text));
        let Some((effect, seq)) = conclude(tx, member, id, report, observation, now, batch)? else {
            continue;
        };
        news |= match effect {
            Effect::Unchanged => false,
            Effect::Ignored => observation.via != Via::Sweep,
            _ => true,
        };
        if effect != Effect::Ignored {
            effects.push((observation.run_id.clone(), effect, seq));
        }
    }
    if let Some(gap) = counted {
        let missing = tx.count_runs(
            member.id,
            i64::try_from(gap.runs_counted).unwrap_or(i64::MAX),
        )?;
        if missing > 0 {
            tracing::warn!(source = %member.config.name, missing, "the provider has counted runs that nobody told us of");
        }
    }
    if !news && matches!(report.meta.via(), Via::Poll | Via::Sweep) {
        tx.drop_body(id)?;
    }
    Ok(effects)
}

/// Judges a stored delivery again, as of when it came: a corrected secret makes it genuine, not
/// fresher than it was.
pub(super) fn verifies_now(member: &Source, report: &mut Report) -> bool {
    let source = &member.config;
    let Meta::Webhook(meta) = &mut report.meta else {
        return false;
    };
    let delivery = Delivery {
        headers: &meta.headers,
        body: &report.body,
        truncated: meta.truncated,
        path_token: meta.path_token.as_ref(),
    };
    let proof = source
        .provider
        .verify(&delivery, &source.keyring, report.at);
    (meta.verdict, meta.secret) = (proof.verdict(), proof.secret().cloned());
    meta.verdict.authentic()
}

/// Decides on one observation and writes down all that follows.
fn conclude(
    tx: &mut Transaction<'_>,
    member: &Source,
    id: i64,
    report: &Report,
    observation: &Observation,
    now: At,
    batch: &mut BatchResult,
) -> Result<Option<(Effect, Option<i64>)>, LedgerError> {
    let source = &member.config;
    let known = match tx.run(member.id, &observation.run_id) {
        Err(error) if !error.blames_the_disk() => {
            return pass_over(tx, source, id, report, observation, &error, now).map(|()| None);
        }
        known => known?,
    };
    let before = known.as_ref().map(|(_, run)| run.clone());
    let policy = source.policy(
        before
            .as_ref()
            .and_then(|run| run.kind)
            .or(observation.kind),
    );
    let seed = schedule::seed(source.name.as_str(), observation.run_id.as_str());
    let at = Circumstances {
        policy: &policy,
        now,
        report: id,
        seed,
        since: member.since,
    };
    let Decision {
        run,
        publish,
        effect,
    } = decide(before, observation, &at);
    let Some(run) = run else { return Ok(None) };
    let completion = if publish == Some(Publication::Completion) {
        Some(tx.next_seq()?)
    } else {
        None
    };
    let known = known.as_ref().map(|(row, before)| (*row, before));
    let row = tx.save_run((member.id, &observation.run_id), known, &run, completion)?;
    let seq = match publish {
        Some(publication) => Some(append(
            tx,
            member,
            row,
            &run,
            publication,
            (id, report, observation),
            now,
        )?),
        None => None,
    };
    if belongs_in_timeline(observation, effect) {
        tx.add_timeline_row(row, id, &line(id, observation, effect, seq, now))?;
    }
    batch.head = seq.or(batch.head);
    batch.urgent |= run.is_urgent();
    tell(source, &observation.run_id, &run, effect, observation);
    Ok(Some((effect, seq)))
}

/// The run's row is damaged: what was heard of it is kept where it can be seen, and takes nothing
/// from what the report says of other runs. A list will show the run again, and who is not entitled
/// to say anything leaves nothing.
fn pass_over(
    tx: &mut Transaction<'_>,
    source: &SourceConfig,
    id: i64,
    report: &Report,
    observation: &Observation,
    error: &LedgerError,
    now: At,
) -> Result<(), LedgerError> {
    let (source, run_id, via) = (
        source.name.as_str(),
        observation.run_id.as_str(),
        observation.via.word(),
    );
    if report.meta.via() == Via::Sweep || !observation.entitled() {
        tracing::debug!(source, run_id, via, %error, "the run's row is damaged");
        return Ok(());
    }
    tracing::error!(source, run_id, via, report = id, %error, "quarantined: the run's row is damaged");
    tx.quarantine(
        id,
        now,
        &format!("the row of the run {run_id} cannot be read: {error}"),
    )
}

/// Appends the record of a publication.
fn append(
    tx: &mut Transaction<'_>,
    member: &Source,
    row: i64,
    run: &Run,
    publication: Publication,
    (id, report, observation): (i64, &Report, &Observation),
    now: At,
) -> Result<i64, LedgerError> {
    let key = RunKey {
        source: member.config.name.clone(),
        run_id: observation.run_id.clone(),
    };
    let about = About {
        provider: member.config.provider.name(),
        key: &key,
    };
    let spoken_by = match &run.phase {
        Phase::Settled(settled) if settled.belief.trust > Trust::Hint => {
            Some(settled.belief.report)
        }
        _ => None,
    };
    let earlier = match spoken_by {
        Some(earlier) if earlier != id => tx.report(earlier)?,
        _ => None,
    };
    let speaker = match spoken_by {
        Some(earlier) if earlier != id => None,
        _ => Some(report),
    };
    // A speaker that retention has removed leaves no payload, and never another's.
    let body = spoken_by
        .and(earlier.as_ref().or(speaker))
        .map(Report::payload);
    let json = body
        .filter(|body| body.len() <= PAYLOAD_BYTES_MAX)
        .and_then(payload_text);
    let payload = match (&json, spoken_by) {
        (Some(json), _) => Payload::Inline(json),
        (None, Some(report)) if body.is_some_and(|body| !body.is_empty()) => Payload::Ref(report),
        _ => Payload::Absent,
    };
    let mut record = draft(about, run, publication, payload, now);
    if let Some(data) = member.redactor().redacted(&record.data) {
        record.data = data;
        if serde_json::from_str::<serde::de::IgnoredAny>(&record.data).is_err() {
            // A secret of digits stood in the payload as a number. The body can still be fetched.
            let elsewhere = spoken_by.map_or(Payload::Absent, Payload::Ref);
            record = draft(about, run, publication, elsewhere, now);
            record.data = member.redactor().redact(record.data);
        }
    }
    tx.append(row, member.id, run, &record, now)
}

/// A list that shows what we know, and a hint without consequence, leave no line: a flood of
/// forged deliveries must not grow the timeline.
fn belongs_in_timeline(observation: &Observation, effect: Effect) -> bool {
    match effect {
        Effect::Ignored => observation.entitled() && observation.via != Via::Sweep,
        Effect::Unchanged => observation.via != Via::Sweep,
        _ => true,
    }
}

fn line(
    report: i64,
    observation: &Observation,
    effect: Effect,
    seq: Option<i64>,
    at: At,
) -> TimelineRow {
    let claim = match &observation.claim {
        Claim::Tracked => "tracked",
        Claim::Listed { .. } => "listed",
        Claim::Open(_) => "open",
        Claim::Ended(ending) => ending.outcome.word(),
        Claim::Missing => "missing",
        Claim::Nothing => "nothing",
        Claim::TimerFired => "timer",
    };
    TimelineRow {
        report,
        at,
        via: observation.via.word().to_owned(),
        trust: observation.trust.word().to_owned(),
        claim: claim.to_owned(),
        status: observation.detail.provider_status.clone(),
        effect: effect.word().to_owned(),
        seq,
    }
}

/// One log line per thing that happened to a run.
fn tell(
    source: &SourceConfig,
    run_id: &RunId,
    run: &Run,
    effect: Effect,
    observation: &Observation,
) {
    let (source, run_id, via) = (
        source.name.as_str(),
        run_id.as_str(),
        observation.via.word(),
    );
    match (effect, &run.phase) {
        (Effect::Settled, Phase::Settled(settled)) => {
            let (outcome, origin) = (settled.belief.ending.outcome.word(), settled.origin.word());
            tracing::info!(
                source,
                run_id,
                outcome,
                origin,
                confirmed = settled.confirmed,
                "settled"
            );
        }
        (Effect::Amended, Phase::Settled(settled)) => {
            tracing::warn!(
                source,
                run_id,
                via,
                outcome = settled.belief.ending.outcome.word(),
                "amended"
            );
        }
        (Effect::Exhausted, _) => {
            tracing::error!(
                source,
                run_id,
                via,
                "contradicted again; no more amendments are published"
            );
        }
        (Effect::Overdue, _) => tracing::warn!(source, run_id, "overdue"),
        (Effect::Disputed, _) => tracing::warn!(source, run_id, via, "disputed; asking"),
        (Effect::Opened, _) => tracing::info!(source, run_id, via, "watching"),
        _ => tracing::debug!(source, run_id, via, effect = effect.word(), "heard"),
    }
}
