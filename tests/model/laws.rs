//! What must hold of every decision, and of every history.

use settled::model::decide::{AMENDMENTS_MAX, Effect, Open, Phase, Publication, Run, Settled};
use settled::model::observation::{AnswerPrecedence, Claim, Evidence, Observation};
use settled::model::{At, Outcome, Trust};

use super::dsl::{RunRef, observation};

/// A history under test: a run that hears, and what its feed said.
#[derive(Clone)]
pub struct History<'a> {
    pub subject: RunRef<'a>,
    pub completions: u32,
    pub amendments: u32,
    /// Entitled evidence said that it ended, and no later answer took that back.
    pub ended: bool,
    told: bool,
    answered: Option<At>,
}

impl<'a> History<'a> {
    pub fn of(subject: RunRef<'a>) -> History<'a> {
        History {
            subject,
            completions: 0,
            amendments: 0,
            ended: false,
            told: false,
            answered: None,
        }
    }

    /// Hears, and holds the decision to the laws.
    pub fn hears(&mut self, heard: &Observation) {
        let before = self.subject.run.clone();
        let (publish, effect) = self.subject.hears(heard);
        self.keep_account(before.as_ref(), heard);
        match publish {
            Some(Publication::Completion) => self.completions += 1,
            Some(Publication::Amendment { .. }) => {
                assert_eq!(self.completions, 1, "completion before amendment");
                self.amendments += 1;
            }
            _ => {}
        }
        assert!(self.completions <= 1, "one completion");
        obeys(before.as_ref(), heard, &self.subject, publish, effect);
    }

    /// Who said what, told independently of `decide`.
    fn keep_account(&mut self, before: Option<&Run>, heard: &Observation) {
        let open = before.is_none_or(|run| matches!(run.phase, Phase::Open(_)));
        match &heard.claim {
            Claim::Ended(_) if heard.trust == Trust::Authoritative => {
                self.answered = self.answered.max(Some(heard.requested_at));
            }
            Claim::Ended(_) if heard.entitled() => self.told = true,
            Claim::Open(_)
                if open
                    && heard.trust == Trust::Authoritative
                    && self.answered <= Some(heard.requested_at) =>
            {
                self.answered = None;
            }
            _ => {}
        }
        self.ended = self.told || self.answered.is_some();
    }

    /// Lets our own clock pass every limit until nothing is held.
    pub fn wait_out(&mut self) {
        for _ in 0..50 {
            let Some(run) = self.subject.run.as_ref().filter(|run| holds(run)) else {
                return;
            };
            self.subject.now = self
                .subject
                .now
                .max(run.wake_at.expect("an open run has an timer"));
            self.hears(&observation("clock:timer", self.subject.now));
        }
        assert!(
            !self.subject.run.as_ref().is_some_and(holds),
            "held for ever"
        );
    }

    /// After everything held has been waited out: a completion with an end in it if and only if
    /// somebody entitled said that it ended.
    pub fn is_complete(&self) {
        let outcome = outcome(self.subject.run.as_ref());
        let end = outcome.is_some_and(|outcome| outcome != Outcome::Indeterminate);
        assert_eq!(
            end, self.ended,
            "an end is published iff somebody entitled said so: {outcome:?}"
        );
        assert_eq!(
            self.completions,
            u32::from(outcome.is_some()),
            "a settled run has exactly one completion"
        );
        assert!(self.amendments <= AMENDMENTS_MAX);
    }
}

pub fn outcome(run: Option<&Run>) -> Option<Outcome> {
    settled(run?).map(|settled| settled.belief.ending.outcome)
}

pub fn settled(run: &Run) -> Option<&Settled> {
    match &run.phase {
        Phase::Open(_) => None,
        Phase::Settled(settled) => Some(settled),
    }
}

/// An end was heard that waits for something.
pub fn holds(run: &Run) -> bool {
    matches!(&run.phase, Phase::Open(Open { claim, seen, .. }) if claim.is_some() || seen.is_some())
}

fn obeys(
    before: Option<&Run>,
    heard: &Observation,
    subject: &RunRef<'_>,
    publish: Option<Publication>,
    effect: Effect,
) {
    let Some(after) = &subject.run else {
        assert!(before.is_none(), "a run is never forgotten");
        assert_eq!((publish, effect), (None, Effect::Ignored));
        assert!(
            !heard.entitled()
                || matches!(
                    heard.claim,
                    Claim::Missing | Claim::Nothing | Claim::TimerFired
                )
        );
        return;
    };
    opened_by_right(before, heard, after);
    publishes_what_changed(before, after, publish);
    asks_as_it_should(after, subject, heard.trust == Trust::Hint);
    if heard.trust == Trust::Hint {
        hints_change_nothing(before, after, publish);
    }
    if let (Some(earlier), Some(later)) = (before.and_then(settled), settled(after)) {
        belief_never_sinks(
            &earlier.belief,
            &later.belief,
            subject.policy.answer_precedence,
        );
        assert_eq!(
            (earlier.at, earlier.origin),
            (later.at, later.origin),
            "what settled it stays"
        );
    }
}

fn opened_by_right(before: Option<&Run>, heard: &Observation, after: &Run) {
    if before.is_none() {
        assert!(heard.entitled(), "a hint opens nothing");
        assert_eq!(after.found_by, heard.via);
    }
}

fn publishes_what_changed(before: Option<&Run>, after: &Run, publish: Option<Publication>) {
    let (was, is) = (before.and_then(settled), settled(after));
    match (was, is, publish) {
        (None, Some(settled), Some(Publication::Completion)) => assert_eq!(settled.amendments, 0),
        (None, None, Some(Publication::Status(number))) => {
            assert_eq!(number, before.map_or(0, |run| run.statuses) + 1);
        }
        (Some(was), Some(is), Some(Publication::Amendment { number, previous })) => {
            assert_eq!(number, was.amendments + 1, "amendments are counted");
            assert!(number <= AMENDMENTS_MAX, "amendments are bounded");
            assert_eq!(previous, was.belief.ending.outcome);
            assert_ne!(
                previous, is.belief.ending.outcome,
                "an amendment changes the outcome"
            );
            assert_ne!(
                is.belief.ending.outcome,
                Outcome::Indeterminate,
                "only ends amend"
            );
        }
        (None, None, None) => {}
        (Some(was), Some(is), None) => {
            assert_eq!(
                was.belief.ending.outcome, is.belief.ending.outcome,
                "no outcome changes silently"
            );
        }
        (Some(_), None, _) => panic!("the phase went back"),
        (_, _, publish) => panic!("{publish:?} does not fit what happened"),
    }
}

fn asks_as_it_should(run: &Run, subject: &RunRef<'_>, hint: bool) {
    let (policy, now) = (subject.policy, subject.now);
    assert!(
        policy.can_poll || run.poll.is_none(),
        "nobody polls without a key"
    );
    match &run.phase {
        Phase::Open(open) => {
            let wake = run.wake_at.expect("an open run has an timer");
            assert_eq!(
                run.poll.is_some(),
                policy.can_poll,
                "an open run is asked about"
            );
            if holds(run) {
                let longest = if open.seen.is_some() {
                    policy.grace + policy.confirm_timeout
                } else {
                    policy.confirm_timeout
                };
                assert!(
                    hint || wake <= now.plus(longest),
                    "nothing is held for longer"
                );
                assert!(
                    run.poll.is_none_or(|plan| plan.urgent),
                    "what is held is asked about urgently"
                );
            }
        }
        Phase::Settled(settled) => {
            assert_eq!(run.wake_at, None, "a settled run has no timer");
            let wanted = settled.checks.is_some() || settled.disputed_at.is_some();
            assert!(
                wanted || run.poll.is_none(),
                "a settled run is asked about for a reason"
            );
            assert!(settled.disputes <= 3);
        }
    }
}

fn hints_change_nothing(before: Option<&Run>, after: &Run, publish: Option<Publication>) {
    assert_eq!(publish, None);
    let mut same = before.expect("a hint opens nothing").clone();
    (same.poll, same.hinted_at, same.wake_at) = (after.poll, after.hinted_at, after.wake_at);
    assert_eq!(&same, after, "a hint changes nothing but when we ask");
}

fn belief_never_sinks(was: &Evidence, is: &Evidence, answer_precedence: AnswerPrecedence) {
    assert!(is.trust >= was.trust, "trust never sinks");
    let order = |evidence: &Evidence| {
        if answer_precedence == AnswerPrecedence::LastWins {
            evidence.requested_at.0
        } else {
            -evidence.requested_at.0
        }
    };
    if was.trust == Trust::Authoritative {
        assert!(order(is) >= order(was), "no weaker answer is believed");
    }
}

/// Hears the same things again: nothing is published. (To an open run a 404 or a passed limit is
/// not the same thing when it comes again: time has passed.)
pub fn says_nothing_new<'o>(history: &History<'_>, again: impl Iterator<Item = &'o Observation>) {
    let mut subject = history.subject.clone();
    let was_settled = subject
        .run
        .as_ref()
        .is_some_and(|run| settled(run).is_some());
    for heard in again {
        if !was_settled && matches!(heard.claim, Claim::Missing | Claim::TimerFired) {
            continue;
        }
        let (publish, _) = subject.hears(heard);
        let status = matches!(publish, Some(Publication::Status(_)));
        assert!(
            publish.is_none() || (status && !was_settled),
            "{heard:?} published {publish:?} again"
        );
    }
}
