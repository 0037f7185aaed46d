//! The only place where the state of a run changes.
//!
//! [`decide`] is a function of a run, one observation, the source's policy and the time. What it
//! returns is all that happens next: the run's new state, what the feed publishes
//! (at most one record), and when to poll next or wake again.
//!
//! The rules, in the order of the code:
//!
//! * A hint opens nothing and settles nothing; it may bring a known run's next poll forward.
//! * A list that reaches back shows an account's whole history. A run that it shows as over is opened
//!   only if it was still alive when its source was first configured. The same holds for a run that
//!   is first known from the answer to an inquiry.
//! * The phase goes from open to settled once and never back.
//! * A webhook that says "ended" settles at once if the policy lets it. Otherwise it is *claimed*: the
//!   run is polled, and if no answer comes in time it settles unconfirmed.
//! * An answer that says "ended" settles at once when `grace` is zero or when a claim that could
//!   have settled alone agrees; else it is *seen*, and a second answer, `grace` later, must agree. If
//!   none comes in time it settles unconfirmed too.
//! * Of several pieces of evidence the one that outranks the others is believed, in whatever order they came.
//!   After the completion this can only lead to amendments, at most [`AMENDMENTS_MAX`].
//! * Nothing is guessed: vanished runs, and runs past `give_up`, end as indeterminate, with a reason.
//! * Nothing ends by time in which nobody could poll (invariant 11): see [`Watched`]. Evidence that was
//!   held when the daemon stopped or the clock jumped gets one more poll first.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observation::{
    AnswerPrecedence, Claim, Detail, Ending, Evidence, Observation, Progress,
};
use super::schedule::{self, Confirm, Policy};
use super::{At, Kind, Origin, Outcome, Trust, Via, words};

/// No run is ever amended more often than this; a further contradiction is reported, not published.
pub const AMENDMENTS_MAX: u32 = 3;
/// How often a settled run is polled because weaker evidence disputes it.
const DISPUTES_MAX: u32 = 3;

/// Everything `decide` needs to know of a run, and all it changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The kind of run, once a report has named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// When a report first named it.
    pub known_since: At,
    /// How that report came.
    pub found_by: Via,
    /// The facts about it beside its end: group, metadata, birth, last open status.
    pub detail: Detail,
    /// How far along it was seen to be while open.
    pub progress: Progress,
    /// Authentic webhooks about it.
    pub webhooks: Arrivals,
    /// Polls of it that were answered or failed.
    pub polls: u32,
    /// When a poll last showed the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<At>,
    /// For how long the provider could be polled about it, and was.
    #[serde(default)]
    pub watched: Watched,
    /// When a hint last moved its next poll.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hinted_at: Option<At>,
    /// It has been open for longer than its deadline.
    pub overdue: bool,
    /// Status records published.
    pub statuses: u32,
    /// Every outcome that entitled evidence has claimed, so that one that only covers another is
    /// read as that other whichever came first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claimed_outcomes: Vec<Outcome>,
    /// Open, with the evidence held about it, or settled, with the evidence believed.
    pub phase: Phase,
    /// When to poll next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<PollPlan>,
    /// When the run's timer fires: the next moment at which a limit passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_at: Option<At>,
}

/// Time that counts towards `give_up` (invariant 11): only time between two answers of the provider,
/// and of a long silence between them only [`schedule::counted`]. A daemon that was off, a clock that
/// jumped and a provider that was away add next to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// When the provider last answered about the run; before the first answer, when it became known.
    pub until: At,
    /// The time counted up to then, in milliseconds.
    pub ms: u64,
    /// When the next answer was due, as planned at the last one.
    #[serde(default)]
    pub due: At,
}

/// A count of arrivals, with the times of the first and the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrivals {
    /// How many.
    pub count: u32,
    /// When the first came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<At>,
    /// When the last came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<At>,
}

/// A poll that is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollPlan {
    /// Not before this.
    pub at: At,
    /// The poll does not wait for the source's poll window.
    pub urgent: bool,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No entitled report has shown conclusively that it is over.
    Open(Open),
    /// Over; its completion is published.
    Settled(Settled),
}

/// The evidence held about the end of an open run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Open {
    /// A webhook's "ended" that waits for an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claimed>,
    /// An answer's "ended" that waits for a second one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<Evidence>,
    /// Consecutive misses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub misses: Option<Misses>,
}

impl Open {
    /// All evidence of an end that is held.
    fn held(&self) -> impl Iterator<Item = &Evidence> {
        self.claim
            .as_ref()
            .map(|held| &held.evidence)
            .into_iter()
            .chain(&self.seen)
    }

    /// Holds all evidence for its full time from now on.
    fn hold_from(&mut self, at: &Circumstances<'_>) {
        if let Some(held) = &mut self.claim {
            held.until = at.now.plus(at.policy.confirm_timeout);
        }
        if let Some(seen) = &mut self.seen {
            let grace = i64::try_from(at.policy.grace.as_millis()).unwrap_or(i64::MAX);
            seen.received_at = At(at.now.0.saturating_sub(grace));
        }
    }

    /// When held evidence settles the run even if no further answer comes. A claim waits for an
    /// answer; once it has one, it waits for the second, or the grace would end before it was over.
    fn held_until(&self, policy: &Policy) -> Option<At> {
        let answered = |claim: &Claimed| {
            self.seen
                .as_ref()
                .is_some_and(|seen| seen.requested_at >= claim.evidence.received_at)
        };
        let claim = self
            .claim
            .as_ref()
            .filter(|claim| !answered(claim))
            .map(|claim| claim.until);
        let seen = self.seen.as_ref().map(|seen| {
            seen.received_at
                .plus(policy.grace)
                .plus(policy.confirm_timeout)
        });
        claim.into_iter().chain(seen).min()
    }
}

/// A held webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claimed {
    /// The evidence.
    pub evidence: Evidence,
    /// When it settles the run even if no answer comes.
    pub until: At,
    /// Polls since.
    pub polls: u32,
}

/// Consecutive answers "no such run", each with a canary that worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misses {
    /// When the first came.
    pub first: At,
    /// When the last came.
    #[serde(default)]
    pub last: At,
    /// The milliseconds between them, of which each interval counts as long as it was planned.
    #[serde(default)]
    pub spread_ms: u64,
    /// How many.
    pub count: u32,
}

/// The state of a settled run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// The evidence last published.
    pub belief: Evidence,
    /// How the evidence that settled it came.
    pub origin: Origin,
    /// Nothing that the policy asks for is missing; see [`Publication::Completion`].
    pub confirmed: bool,
    /// When it settled.
    pub at: At,
    /// Amendments published.
    pub amendments: u32,
    /// Polls planned because of a dispute.
    pub disputes: u32,
    /// Since when a dispute waits for the answer that decides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disputed_at: Option<At>,
    /// Verification polls done of [`schedule::CHECKS`]; `None` when none is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<u32>,
}

/// The record for the feed. The record's content is the run's new state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// The run has settled. `confirmed` in it is false exactly when the policy wanted an
    /// authoritative answer (or a second one) and none was to be had in time, or when the end was
    /// inferred.
    Completion,
    /// The `number`-th time (from 1) that what was published had to be corrected.
    Amendment {
        /// Which correction this is.
        number: u32,
        /// The outcome published before.
        previous: Outcome,
    },
    /// The n-th change (from 1) of an open run's status.
    Status(u32),
}

words! {
    /// The effect of an observation, for the run's timeline.
    Effect {
        /// The run was unknown; now it is watched.
        Opened = "opened",
        /// An open run's status changed.
        Status = "status",
        /// Nothing new.
        Unchanged = "unchanged",
        /// Evidence of an end is held until it is confirmed.
        Held = "held",
        /// Held evidence is withdrawn: the provider says the run goes on.
        Withdrawn = "withdrawn",
        /// The run settled.
        Settled = "settled",
        /// A published end was corrected.
        Amended = "amended",
        /// A report repeats the end of a settled run.
        Confirmed = "confirmed",
        /// Weaker evidence contradicts; the run is polled where an answer could change anything.
        Disputed = "disputed",
        /// A contradiction beyond the last amendment; it stays unpublished.
        Exhausted = "exhausted",
        /// The provider does not know the run (yet, or any more).
        Missed = "missed",
        /// The run passed its deadline.
        Overdue = "overdue",
        /// A hint brought the next poll forward.
        Hinted = "hinted",
        /// Stored, and without consequence.
        Ignored = "ignored",
    }
}

/// The decision on one observation.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The run's new state; `None`: there is no such run and there will be none.
    pub run: Option<Run>,
    /// The record for the feed, if there is one.
    pub publish: Option<Publication>,
    /// The effect, for the run's timeline.
    pub effect: Effect,
}

/// The circumstances of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// The policy of the run's source and kind.
    pub policy: &'a Policy,
    /// The time.
    pub now: At,
    /// The stored report that the observation was read from.
    pub report: i64,
    /// See [`schedule::seed`].
    pub seed: u64,
    /// When the run's source was first configured. A run that was over before is history.
    pub since: At,
    /// When the provider last showed any run of the source in answer to a status request.
    pub found_at: Option<At>,
}

/// Decides on one observation of a run.
pub fn decide(run: Option<Run>, observation: &Observation, at: &Circumstances<'_>) -> Decision {
    let known = run.is_some();
    let Some(mut run) = run.or_else(|| open(observation, at)) else {
        return Decision {
            run: None,
            publish: None,
            effect: Effect::Ignored,
        };
    };
    if observation.entitled() {
        run.clamp(at.policy, at.now);
    }
    run.note(observation, at.now);
    let watched_until = run.watched.until;
    let settled = matches!(run.phase, Phase::Settled(_));
    let (publish, effect) = if settled {
        once_settled(&mut run, observation, at)
    } else {
        while_open(&mut run, observation, at)
    };
    run.set_timer(at.policy, at.now);
    if !known || run.watched.until != watched_until {
        let planned = run.poll.map(|plan| plan.at);
        run.watched.due = planned
            .into_iter()
            .chain(run.wake_at)
            .min()
            .unwrap_or(at.now);
    }
    let quiet = matches!(effect, Effect::Unchanged | Effect::Ignored | Effect::Hinted);
    let effect = if !known && quiet {
        Effect::Opened
    } else {
        effect
    };
    Decision {
        run: Some(run),
        publish,
        effect,
    }
}

/// A new run, if the observation may open one.
fn open(observation: &Observation, at: &Circumstances<'_>) -> Option<Run> {
    let opens = match observation.claim {
        Claim::Listed { over: true } if observation.via == Via::Sweep => {
            observation.last_sign() >= Some(at.since)
        }
        // The answer to an inquiry about a run that a hint named. Undated, it cannot be told from
        // history, and a completion too many is better than a run without one.
        Claim::Ended(_) if observation.via == Via::Poll => observation
            .last_sign()
            .is_none_or(|last_sign| last_sign >= at.since),
        Claim::Tracked | Claim::Listed { .. } | Claim::Open(_) | Claim::Ended(_) => true,
        Claim::Missing | Claim::Nothing | Claim::Withheld | Claim::TimerFired => false,
    };
    if !opens || !observation.entitled() {
        return None;
    }
    let mut run = Run {
        kind: observation.kind,
        known_since: at.now,
        found_by: observation.via,
        detail: Detail::default(),
        progress: Progress::Waiting,
        webhooks: Arrivals::default(),
        polls: 0,
        answered_at: None,
        watched: Watched {
            until: at.now,
            ms: 0,
            due: at.now,
        },
        hinted_at: None,
        overdue: false,
        statuses: 0,
        claimed_outcomes: Vec::new(),
        phase: Phase::Open(Open::default()),
        poll: None,
        wake_at: None,
    };
    run.learn(observation);
    run.poll_at(
        schedule::first(at.policy, run.opened_at(), at.now),
        at.policy,
    );
    Some(run)
}

type Conclusion = (Option<Publication>, Effect);

/// An observation about a run that has not ended yet.
fn while_open(run: &mut Run, observation: &Observation, at: &Circumstances<'_>) -> Conclusion {
    if !observation.entitled() {
        return (None, run.hint(at));
    }
    match &observation.claim {
        Claim::Tracked => (None, Effect::Unchanged),
        Claim::Listed { over } => (None, listed(run, observation, *over, at)),
        Claim::Open(rank) => goes_on(run, observation, *rank, at),
        Claim::Ended(ending) => {
            let evidence = run.refined(evidence(*ending, observation, at));
            if evidence.trust == Trust::Authoritative {
                answered_ended(run, evidence, at)
            } else {
                told_ended(run, evidence, at)
            }
        }
        Claim::Missing => missing(run, observation, at),
        // The provider answers about other runs: it can be reached, and says nothing about this one.
        Claim::Nothing if at.found_at <= Some(run.watched.until) => {
            run.poll_after_failure(at);
            (None, Effect::Unchanged)
        }
        Claim::Nothing | Claim::Withheld => {
            run.watch(at);
            run.poll_after_failure(at);
            run.give_up_if_due(Via::Poll, at)
                .unwrap_or((None, Effect::Unchanged))
        }
        Claim::TimerFired => timer(run, at),
    }
}

fn evidence(ending: Ending, observation: &Observation, at: &Circumstances<'_>) -> Evidence {
    Evidence {
        ending,
        trust: observation.trust,
        via: observation.via,
        requested_at: observation.requested_at,
        received_at: at.now,
        report: at.report,
        detail: observation.detail.clone(),
    }
}

/// A list shows the run, so it is not gone. If it is open there, its own poll can wait, within reason.
/// If it is over there, the run is polled, since a list is a copy that may be wrong.
fn listed(run: &mut Run, observation: &Observation, over: bool, at: &Circumstances<'_>) -> Effect {
    if let (Trust::Authoritative, Phase::Open(open)) = (observation.trust, &mut run.phase) {
        open.misses = None;
    }
    if over {
        run.poll_now(at);
        return Effect::Hinted;
    }
    // The list shows the run as a poll would, so the time up to now counts. Only a poll ends a run.
    run.watch(at);
    if run.give_up_at(at.policy) <= at.now {
        run.poll_now(at);
        return Effect::Unchanged;
    }
    let bound = run
        .answered_at
        .unwrap_or(run.known_since)
        .plus(at.policy.max_interval.saturating_mul(10));
    let spared = at.now.plus(at.policy.listed_for).min(bound);
    if let Some(plan) = &mut run.poll
        && !plan.urgent
    {
        plan.at = plan.at.max(spared);
    }
    Effect::Unchanged
}

/// An entitled report says that the run goes on.
fn goes_on(
    run: &mut Run,
    observation: &Observation,
    rank: Progress,
    at: &Circumstances<'_>,
) -> Conclusion {
    let authoritative = observation.trust == Trust::Authoritative;
    let Phase::Open(open) = &mut run.phase else {
        unreachable!("called while open")
    };
    let mut effect = Effect::Unchanged;
    if authoritative {
        open.misses = None;
        if open
            .seen
            .take_if(|seen| seen.requested_at <= observation.requested_at)
            .is_some()
        {
            effect = Effect::Withdrawn;
        }
    }
    let mut publish = None;
    let news = observation.detail.provider_status.is_some()
        && (observation.detail.provider_status != run.detail.provider_status
            || observation.detail.reason != run.detail.reason);
    if news && (authoritative || rank >= run.progress) {
        run.progress = rank;
        run.detail
            .provider_status
            .clone_from(&observation.detail.provider_status);
        run.detail.reason.clone_from(&observation.detail.reason);
        run.statuses += 1;
        publish = Some(Publication::Status(run.statuses));
        effect = Effect::Status;
    }
    if authoritative {
        run.watch(at);
        run.poll_again(at);
    }
    if let (Some(span), Some(plan)) = (observation.poll_after, &mut run.poll)
        && !plan.urgent
    {
        plan.at = plan.at.max(at.now.plus(span));
    }
    // A status that is news is published first; the next answer may end the run.
    if authoritative && publish.is_none() {
        return run
            .give_up_if_due(observation.via, at)
            .unwrap_or((publish, effect));
    }
    (publish, effect)
}

/// A webhook (or a replayed one) says that the run has ended.
fn told_ended(run: &mut Run, evidence: Evidence, at: &Circumstances<'_>) -> Conclusion {
    let answer_precedence = at.policy.answer_precedence;
    let Phase::Open(open) = &run.phase else {
        unreachable!("called while open")
    };
    let enough = match at.policy.confirm {
        Confirm::Never => true,
        Confirm::Always => false,
        Confirm::Auto => evidence.ending.sufficient,
    };
    // Something stronger already said otherwise and is held: an answer decides.
    let contradicted = open
        .held()
        .any(|other| other.outranks(&evidence, answer_precedence) && !other.allows(&evidence));
    if (enough && !contradicted) || !at.policy.can_poll {
        let confirmed = enough || open.seen.is_some();
        return run.settle(evidence, confirmed, at);
    }
    let held = match &open.claim {
        Some(held) if !evidence.outranks(&held.evidence, answer_precedence) => held.clone(),
        Some(held) => Claimed {
            evidence,
            ..held.clone()
        },
        None => Claimed {
            evidence,
            until: at.now.plus(at.policy.confirm_timeout),
            polls: 0,
        },
    };
    run.phase = Phase::Open(Open {
        claim: Some(held),
        ..open.clone()
    });
    run.poll_now(at);
    (None, Effect::Held)
}

/// An answer of the provider says that the run has ended.
fn answered_ended(run: &mut Run, evidence: Evidence, at: &Circumstances<'_>) -> Conclusion {
    let policy = at.policy;
    let Phase::Open(open) = &mut run.phase else {
        unreachable!("called while open")
    };
    open.misses = None;
    let (seen, second) = look_twice(open.seen.take(), evidence, policy.answer_precedence);
    let seconded = open
        .claim
        .as_ref()
        .is_some_and(|held| held.evidence.ending.sufficient && seen.allows(&held.evidence));
    let held_true = second && at.now.since(seen.received_at) >= policy.grace;
    if policy.grace.is_zero() || seconded || held_true || !policy.can_poll {
        return run.settle(seen, true, at);
    }
    open.seen = Some(seen);
    run.poll_again(at);
    (None, Effect::Held)
}

/// The answer to go by after one more, with the time since which it holds, and whether it has been
/// given twice: a later poll did not change it.
fn look_twice(
    seen: Option<Evidence>,
    evidence: Evidence,
    answer_precedence: AnswerPrecedence,
) -> (Evidence, bool) {
    let Some(seen) = seen else {
        return (evidence, false);
    };
    let later = evidence.requested_at >= seen.requested_at;
    match (
        evidence.outranks(&seen, answer_precedence),
        evidence.agrees(&seen),
    ) {
        (true, true) => (
            Evidence {
                received_at: seen.received_at,
                ..evidence
            },
            later,
        ),
        (true, false) => (evidence, false),
        (false, _) => (seen, later),
    }
}

/// The provider does not know the run, and our key works.
fn missing(run: &mut Run, observation: &Observation, at: &Circumstances<'_>) -> Conclusion {
    let polls = run.polls;
    let Phase::Open(open) = &mut run.phase else {
        unreachable!("called while open")
    };
    if open.held().next().is_some() {
        // It lags behind its own word, or has forgotten a run that is over; the hold has its end.
        run.poll_again(at);
        return (None, Effect::Missed);
    }
    if at.now.since(run.known_since) < schedule::YOUNG {
        run.poll_at(
            schedule::after_lag(polls.saturating_sub(1), at.now),
            at.policy,
        );
        return (None, Effect::Missed);
    }
    let forgotten =
        run.answered_at.is_none() || at.found_at > open.misses.map(|misses| misses.first);
    let misses = open.misses.get_or_insert(Misses {
        first: at.now,
        last: at.now,
        spread_ms: 0,
        count: 0,
    });
    // A stop or a jump of the clock between two misses does not spread them.
    let interval = at.now.since(misses.last).min(schedule::MISS_INTERVAL);
    misses.spread_ms += u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    misses.last = at.now;
    misses.count += 1;
    let absent = misses.count >= schedule::MISSES_MIN
        && Duration::from_millis(misses.spread_ms) >= schedule::MISSES_SPAN;
    // A run that was there, at a source that shows none of its runs any more: then the key or the
    // project has changed, and the run has not ended.
    if absent && forgotten {
        return conclude_without_answer(run, "provider_gone", observation.via, at);
    }
    run.poll_at(at.now.plus(schedule::MISS_INTERVAL), at.policy);
    if absent {
        run.watch(at);
        return run
            .give_up_if_due(observation.via, at)
            .unwrap_or((None, Effect::Missed));
    }
    (None, Effect::Missed)
}

/// One of our own limits was passed.
fn timer(run: &mut Run, at: &Circumstances<'_>) -> Conclusion {
    let Phase::Open(open) = &mut run.phase else {
        unreachable!("called while open")
    };
    if let Some(until) = open.held_until(at.policy).filter(|until| *until <= at.now) {
        if !at.policy.can_poll || at.now.since(until) <= schedule::LATE {
            return conclude_without_answer(run, "", Via::Clock, at);
        }
        // The hold ended while the daemon was off, or in a jump of the clock. One poll comes first.
        open.hold_from(at);
        run.poll_now(at);
        return (None, Effect::Unchanged);
    }
    if run.give_up_at(at.policy) <= at.now {
        if at.policy.can_poll {
            // Only an answer ends the run; see `give_up_if_due`.
            run.poll_now(at);
        } else if let Some(conclusion) = run.give_up_unasked(at) {
            return conclusion;
        }
    }
    if !run.overdue && run.opened_at().plus(at.policy.deadline) <= at.now {
        run.overdue = true;
        return (None, Effect::Overdue);
    }
    (None, Effect::Unchanged)
}

/// Settles on the strongest evidence held, or, where there is none, as indeterminate.
fn conclude_without_answer(
    run: &mut Run,
    reason: &str,
    via: Via,
    at: &Circumstances<'_>,
) -> Conclusion {
    let Phase::Open(open) = &run.phase else {
        unreachable!("called while open")
    };
    match (open.seen.clone(), open.claim.clone()) {
        (Some(seen), claim) => {
            let confirmed = claim
                .is_some_and(|held| held.evidence.ending.sufficient && seen.allows(&held.evidence));
            return run.settle(seen, confirmed, at);
        }
        (None, Some(held)) => return run.settle(held.evidence, false, at),
        (None, None) => {}
    }
    let detail = Detail {
        reason: Some(reason.to_owned()),
        provider_status: run.detail.provider_status.clone(),
        ..Detail::default()
    };
    let inferred = Evidence {
        ending: Ending::needs_answer(Outcome::Indeterminate),
        trust: Trust::Hint,
        via,
        requested_at: at.now,
        received_at: at.now,
        report: at.report,
        detail,
    };
    run.settle(inferred, false, at)
}

/// An observation about a run whose completion is published.
fn once_settled(run: &mut Run, observation: &Observation, at: &Circumstances<'_>) -> Conclusion {
    let asked = observation.via == Via::Poll;
    let conclusion = match &observation.claim {
        Claim::Ended(ending) if observation.entitled() => {
            let evidence = run.refined(evidence(*ending, observation, at));
            hear_again(run, evidence, at)
        }
        _ => (
            None,
            if asked {
                Effect::Unchanged
            } else {
                Effect::Ignored
            },
        ),
    };
    if let (true, Phase::Settled(settled)) = (asked, &mut run.phase) {
        settled.note_answer(observation);
        run.poll = next_look(settled, at);
    }
    conclusion
}

/// When a settled run is looked at again, if at all: while it is disputed, and on the occasions of
/// [`schedule::CHECKS`] if it is unconfirmed.
fn next_look(settled: &Settled, at: &Circumstances<'_>) -> Option<PollPlan> {
    let pending = |since: At| at.now.since(since) < schedule::LOOK_FOR;
    if !at.policy.can_poll {
        None
    } else if let Some(since) = settled.disputed_at.filter(|since| pending(*since)) {
        // Soon at first (the answer was merely late or lost), then ever more rarely.
        let pause = at
            .now
            .since(since)
            .clamp(Duration::from_secs(1), schedule::MISS_INTERVAL);
        Some(PollPlan {
            at: at.now.plus(pause),
            urgent: true,
        })
    } else {
        let span = *schedule::CHECKS.get(settled.checks? as usize)?;
        let next = settled.at.plus(span).max(at.now.plus(schedule::CHECKS[0]));
        pending(settled.at).then_some(PollPlan {
            at: next,
            urgent: false,
        })
    }
}

/// Entitled evidence of an end comes to a settled run: its own or another.
fn hear_again(run: &mut Run, evidence: Evidence, at: &Circumstances<'_>) -> Conclusion {
    let Phase::Settled(settled) = &mut run.phase else {
        unreachable!("called once settled")
    };
    let belief = &settled.belief;
    let authoritative = evidence.trust == Trust::Authoritative;
    let outranks = evidence.outranks(belief, at.policy.answer_precedence);
    if evidence.agrees(belief) {
        if authoritative {
            settled.confirm();
        }
        if outranks {
            settled.belief.trust = evidence.trust;
            settled.belief.requested_at = evidence.requested_at;
            settled.belief.ending.covers = evidence.ending.covers;
        }
        return (None, Effect::Confirmed);
    }
    if !outranks && !belief.is_refined_by(&evidence) {
        if authoritative {
            return (None, Effect::Ignored);
        }
        run.dispute(at);
        return (None, Effect::Disputed);
    }
    if settled.amendments == AMENDMENTS_MAX {
        return (None, Effect::Exhausted);
    }
    let previous = belief.ending.outcome;
    let overtaken = evidence.overtaken_by(belief);
    // A refinement keeps the authority of what it refines.
    let (trust, requested_at) = if outranks {
        (evidence.trust, evidence.requested_at)
    } else {
        (belief.trust, belief.requested_at)
    };
    settled.belief = Evidence {
        trust,
        requested_at,
        ..evidence
    };
    settled.amendments += 1;
    let publication = Publication::Amendment {
        number: settled.amendments,
        previous,
    };
    if authoritative && !overtaken {
        settled.confirm();
    } else if overtaken || settled.belief.trust < Trust::Authoritative {
        run.dispute(at);
    }
    (Some(publication), Effect::Amended)
}

impl Settled {
    /// The provider itself has said it.
    fn confirm(&mut self) {
        self.confirmed = true;
        self.checks = None;
    }

    /// A poll was answered: the check that was due is done, and a dispute older than the poll is
    /// decided.
    fn note_answer(&mut self, observation: &Observation) {
        if matches!(observation.claim, Claim::Nothing | Claim::Withheld) {
            return;
        }
        self.disputed_at = self
            .disputed_at
            .filter(|since| *since > observation.requested_at);
        let due = |done: u32| {
            schedule::CHECKS
                .get(done as usize)
                .is_some_and(|span| self.at.plus(*span) <= observation.requested_at)
        };
        self.checks = self.checks.map(|done| done + u32::from(due(done)));
    }
}

impl Run {
    /// When the run began, if a report says so; else when it became known.
    pub fn opened_at(&self) -> At {
        self.detail
            .opened_at
            .map_or(self.known_since, |told| told.min(self.known_since))
    }

    /// Whether it is polled without waiting for the source's poll window.
    pub fn is_urgent(&self) -> bool {
        self.poll.is_some_and(|plan| plan.urgent)
    }

    /// If the clock has been stepped back, evidence is held no longer for it.
    fn clamp(&mut self, policy: &Policy, now: At) {
        let Phase::Open(open) = &mut self.phase else {
            return;
        };
        if let Some(held) = &mut open.claim {
            held.until = held.until.min(now.plus(policy.confirm_timeout));
        }
        if let Some(seen) = &mut open.seen {
            seen.received_at = seen.received_at.min(now);
        }
    }

    /// Counts the report and keeps its details.
    fn note(&mut self, observation: &Observation, now: At) {
        match observation.via {
            Via::Webhook if observation.entitled() => {
                self.webhooks.count = self.webhooks.count.saturating_add(1);
                self.webhooks.first.get_or_insert(now);
                self.webhooks.last = self.webhooks.last.max(Some(now));
            }
            Via::Poll => {
                self.polls = self.polls.saturating_add(1);
                if let Phase::Open(Open {
                    claim: Some(held), ..
                }) = &mut self.phase
                {
                    held.polls += 1;
                }
                if !matches!(
                    observation.claim,
                    Claim::Nothing | Claim::Withheld | Claim::Missing
                ) {
                    self.answered_at = Some(now);
                }
            }
            _ => {}
        }
        if observation.entitled() {
            self.learn(observation);
        }
    }

    /// The evidence, with the most exact outcome claimed that it covers.
    fn refined(&self, mut evidence: Evidence) -> Evidence {
        if let Some(finer) = evidence
            .ending
            .covers
            .filter(|finer| self.claimed_outcomes.contains(finer))
        {
            evidence.ending = Ending {
                outcome: finer,
                covers: None,
                ..evidence.ending
            };
        }
        evidence
    }

    /// Keeps details of the run itself. The first value stays, except of metadata, where
    /// later keys are added.
    fn learn(&mut self, observation: &Observation) {
        let (mine, said) = (&mut self.detail, &observation.detail);
        self.kind = self.kind.or(observation.kind);
        if let Claim::Ended(Ending { outcome, .. }) = observation.claim
            && !self.claimed_outcomes.contains(&outcome)
        {
            self.claimed_outcomes.push(outcome);
        }
        mine.opened_at = mine.opened_at.or(said.opened_at);
        if mine.group_id.is_none() {
            mine.group_id.clone_from(&said.group_id);
        }
        if let Some(said) = &said.metadata {
            let mine = mine.metadata.get_or_insert_default();
            for (key, value) in said {
                mine.entry(key).or_insert_with(|| value.clone());
            }
        }
    }

    /// A hint: at most the next poll comes sooner.
    fn hint(&mut self, at: &Circumstances<'_>) -> Effect {
        let recent = self
            .hinted_at
            .is_some_and(|last| last <= at.now && at.now.since(last) < schedule::HINT_INTERVAL);
        if recent
            || !at.policy.can_poll
            || self
                .poll
                .is_some_and(|plan| plan.urgent && plan.at <= at.now)
        {
            return Effect::Ignored;
        }
        self.hinted_at = Some(at.now);
        self.poll_now(at);
        Effect::Hinted
    }

    /// Weaker evidence contradicts the published end: the run is polled, unless that end came from an
    /// answer already which no later one can outrank.
    fn dispute(&mut self, at: &Circumstances<'_>) {
        let Phase::Settled(settled) = &mut self.phase else {
            return;
        };
        let final_word = settled.belief.trust == Trust::Authoritative
            && at.policy.answer_precedence == AnswerPrecedence::FirstWins;
        if settled.disputes < DISPUTES_MAX && !final_word {
            settled.disputes += 1;
            settled.disputed_at = Some(at.now);
            self.poll_now(at);
        }
    }

    fn poll_now(&mut self, at: &Circumstances<'_>) {
        self.poll_urgently(at.now, at.policy);
    }

    fn poll_urgently(&mut self, when: At, policy: &Policy) {
        self.poll = policy.can_poll.then_some(PollPlan {
            at: when,
            urgent: true,
        });
    }

    fn poll_at(&mut self, when: At, policy: &Policy) {
        self.poll = policy.can_poll.then_some(PollPlan {
            at: when,
            urgent: false,
        });
    }

    /// Plans the next poll after one that said nothing. An overdue run that could not be polled does
    /// not wait as long as one that was.
    fn poll_after_failure(&mut self, at: &Circumstances<'_>) {
        self.poll_again(at);
        let held = matches!(&self.phase, Phase::Open(open) if open.held().next().is_some());
        if self.overdue && !held {
            let when = schedule::next(
                at.policy,
                self.opened_at(),
                self.polls,
                false,
                at.seed,
                at.now,
            );
            self.poll_at(when, at.policy);
        }
    }

    /// Plans the next poll after an answer that left the run open.
    fn poll_again(&mut self, at: &Circumstances<'_>) {
        match &self.phase {
            Phase::Open(Open {
                seen: Some(seen), ..
            }) => {
                let due = seen.received_at.plus(at.policy.grace);
                self.poll_urgently(
                    due.max(schedule::after_failing_since(due, at.now)),
                    at.policy,
                );
            }
            Phase::Open(Open {
                claim: Some(held), ..
            }) => {
                self.poll_urgently(
                    schedule::after_lag(held.polls.saturating_sub(1), at.now),
                    at.policy,
                );
            }
            _ => {
                // Counted like `give_up`: a clock that jumps ahead makes runs overdue at once, and
                // must not make their polls rare.
                let watched = Duration::from_millis(self.watched.ms);
                let rarely = self.overdue && watched >= at.policy.deadline;
                let when = schedule::next(
                    at.policy,
                    self.opened_at(),
                    self.polls,
                    rarely,
                    at.seed,
                    at.now,
                );
                self.poll_at(when, at.policy);
            }
        }
    }

    /// Publishes the end: the strongest of `evidence` and what was held. A claim that was waiting
    /// makes the origin a webhook.
    fn settle(
        &mut self,
        evidence: Evidence,
        confirmed: bool,
        at: &Circumstances<'_>,
    ) -> Conclusion {
        let Phase::Open(open) = &self.phase else {
            unreachable!("a run settles once")
        };
        let answer_precedence = at.policy.answer_precedence;
        let stronger = |best, other: &Evidence| {
            if other.outranks(&best, answer_precedence) {
                other.clone()
            } else {
                best
            }
        };
        let claim = open.claim.as_ref().map(|held| &held.evidence);
        let told_by = claim.unwrap_or(&evidence).via;
        let evidence = open.held().fold(evidence, stronger);
        let origin = match (evidence.trust, told_by) {
            (Trust::Hint, _) => Origin::Inferred,
            (_, Via::Webhook) => Origin::Webhook,
            (_, Via::Replay) => Origin::Replay,
            _ => Origin::Poll,
        };
        let overtaken = claim.is_some_and(|claim| evidence.overtaken_by(claim));
        let belief = self.refined(evidence);
        let checks = (!confirmed && at.policy.can_poll).then_some(0);
        let settled = Settled {
            belief,
            origin,
            confirmed,
            at: at.now,
            amendments: 0,
            disputes: 0,
            disputed_at: None,
            checks,
        };
        self.poll = next_look(&settled, at);
        self.phase = Phase::Settled(settled);
        if overtaken {
            self.dispute(at);
        }
        (Some(Publication::Completion), Effect::Settled)
    }

    /// Counts the time since the last answer, as far as it counts, and begins anew.
    fn watch(&mut self, at: &Circumstances<'_>) {
        let gap = at.now.since(self.watched.until);
        let late = at.now.since(self.watched.due);
        let counted = schedule::counted(at.policy, gap, late);
        let counted = u64::try_from(counted.as_millis()).unwrap_or(u64::MAX);
        self.watched.ms = self.watched.ms.saturating_add(counted);
        self.watched.until = at.now;
    }

    /// When `give_up` will have passed if the provider goes on answering.
    fn give_up_at(&self, policy: &Policy) -> At {
        let left = policy
            .give_up
            .saturating_sub(Duration::from_millis(self.watched.ms));
        self.watched.until.plus(left)
    }

    /// Settles a run that the provider has shown as unfinished for all of `give_up`.
    fn give_up_if_due(&mut self, via: Via, at: &Circumstances<'_>) -> Option<Conclusion> {
        let watched = Duration::from_millis(self.watched.ms);
        (watched >= at.policy.give_up)
            .then(|| conclude_without_answer(self, "deadline_exceeded", via, at))
    }

    /// Without a key no poll is possible, and only the clock can end the run. If the daemon was off
    /// when `give_up` passed, a webhook first gets [`schedule::LAST_CHANCE`] to arrive.
    fn give_up_unasked(&mut self, at: &Circumstances<'_>) -> Option<Conclusion> {
        let passed = self.give_up_at(at.policy);
        if at.now.since(passed) > schedule::LATE {
            let last_chance = at.policy.give_up.saturating_sub(schedule::LAST_CHANCE);
            self.watched = Watched {
                until: at.now,
                ms: u64::try_from(last_chance.as_millis()).unwrap_or(u64::MAX),
                due: at.now,
            };
            return None;
        }
        Some(conclude_without_answer(
            self,
            "deadline_exceeded",
            Via::Clock,
            at,
        ))
    }

    /// The next moment at which a limit of ours is passed. Once `give_up` has passed and no answer
    /// has come, that is within a minute; news that does not concern the limit does not move it.
    fn set_timer(&mut self, policy: &Policy, now: At) {
        let Phase::Open(open) = &self.phase else {
            self.wake_at = None;
            return;
        };
        let overdue = (!self.overdue).then(|| self.opened_at().plus(policy.deadline));
        let held = open.held_until(policy);
        let end = self.give_up_at(policy);
        let given_up = if end > now {
            end
        } else {
            let minute = now.plus(Duration::from_secs(60));
            self.wake_at
                .filter(|set| *set > now)
                .map_or(minute, |set| set.min(minute))
        };
        self.wake_at = [overdue, held, Some(given_up)].into_iter().flatten().min();
    }
}
