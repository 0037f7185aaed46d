//! Long histories at random: any policy, any pause, clocks that step back, answers that overtake
//! each other.

use std::time::Duration;

use proptest::prelude::*;
use settled::model::decide::{Circumstances, Run, decide};
use settled::model::observation::{AnswerPrecedence, Observation};
use settled::model::schedule::{Confirm, Policy};
use settled::model::{At, Trust};

use super::dsl::{DAY, MINUTE, RunRef, SECOND, observation};
use super::laws::{History, says_nothing_new};

const WORDS: [&str; 32] = [
    "hint:succeeded!",
    "hint:running",
    "client:track",
    "list:open",
    "list:over",
    "signed:waiting",
    "signed:running",
    "signed:paused+10m",
    "signed:succeeded!",
    "signed:succeeded",
    "signed:failed!",
    "signed:failed",
    "signed:cancelled!",
    "signed:timed_out!",
    "secret:running",
    "secret:succeeded",
    "secret:failed!",
    "secret:cancelled!",
    "replay:succeeded!",
    "replay:failed",
    "get:waiting",
    "get:running",
    "get:running+1h",
    "get:succeeded",
    "get:failed",
    "get:failed~cancelled",
    "get:cancelled",
    "get:timed_out",
    "get:404",
    "get:5xx",
    "clock:timer",
    "clock:timer",
];

/// A step: what is heard, how long after the step before in milliseconds (the clock may go back),
/// and how long ago the question was asked.
#[derive(Clone, Debug)]
struct Step {
    words: &'static str,
    pause: i64,
    asked_ago: i64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pause = prop_oneof![
        8 => 0_i64..120_000,
        3 => 0_i64..1_200_000,
        1 => 0_i64..200_000_000,
        1 => -90_000_000_i64..0,
    ];
    let step = (
        prop::sample::select(&WORDS[..]),
        pause,
        prop_oneof![4 => Just(0_i64), 1 => 0_i64..200_000],
    );
    let step = step.prop_map(|(words, pause, asked_ago)| Step {
        words,
        pause,
        asked_ago,
    });
    prop::collection::vec(step, 1..40)
}

fn policies() -> impl Strategy<Value = Policy> {
    let confirm = prop::sample::select(Confirm::ALL);
    let seconds = |choices: &'static [u32]| {
        prop::sample::select(choices).prop_map(|seconds| SECOND * seconds)
    };
    let spans = (
        seconds(&[0, 1, 60, 600]),
        seconds(&[0, 1, 60, 900]),
        seconds(&[1, 20, 300]),
        seconds(&[1, 300, 3600]),
    );
    let limits = (
        seconds(&[60, 1500, 86_400]),
        seconds(&[60, 86_400, 604_800]),
        seconds(&[0, 450]),
    );
    (
        confirm,
        spans,
        limits,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(
                confirm,
                (confirm_timeout, grace, first_poll, max_interval),
                (deadline, give_up, listed_for),
                first,
                can_poll,
                expected_end_ages,
            )| {
                Policy {
                    confirm,
                    confirm_timeout,
                    // Nobody combines the two: a provider that forgets does not reopen.
                    grace: if first { Duration::ZERO } else { grace },
                    deadline,
                    give_up,
                    first_poll,
                    max_interval,
                    expected_end_ages: if expected_end_ages {
                        &[MINUTE, DAY]
                    } else {
                        &[]
                    },
                    answer_precedence: if first {
                        AnswerPrecedence::FirstWins
                    } else {
                        AnswerPrecedence::LastWins
                    },
                    can_poll,
                    listed_for,
                }
            },
        )
}

/// The step as an observation, at its time.
fn hear(history: &mut History<'_>, step: &Step) -> Observation {
    history.subject.now = At(history.subject.now.0 + step.pause);
    let heard = observation(step.words, history.subject.now);
    let ago = if heard.trust == Trust::Authoritative {
        step.asked_ago
    } else {
        0
    };
    let heard = Observation {
        requested_at: At(heard.requested_at.0 - ago),
        ..heard
    };
    history.hears(&heard);
    heard
}

/// What the ledger does with a run between two decisions.
fn stored(run: &Run) -> Run {
    let text = serde_json::to_string(run).expect("a run can be written");
    serde_json::from_str(&text).expect("and read back")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_of_a_long_history_obeys_the_laws(policy in policies(), steps in steps()) {
        let mut history = History::of(RunRef::under(&policy));
        for step in &steps {
            hear(&mut history, step);
        }
        history.wait_out();
        history.is_complete();
    }

    #[test]
    fn storing_a_run_between_two_decisions_changes_neither(policy in policies(), steps in steps()) {
        let mut history = History::of(RunRef::under(&policy));
        for step in &steps {
            let before = history.subject.run.clone();
            let heard = hear(&mut history, step);
            let (now, report) = (history.subject.now, history.subject.report);
            let at = Circumstances { policy: &policy, now, report, seed: 7, since: At(i64::MIN), found_at: None };
            let again = decide(before.as_ref().map(stored), &heard, &at);
            prop_assert_eq!(&again.run, &history.subject.run, "the same decision from a stored run");
            prop_assert_eq!(again.run.as_ref().map(stored), again.run);
        }
    }

    #[test]
    fn what_webhooks_said_is_no_news_when_they_say_it_again(policy in policies(), steps in steps()) {
        let mut history = History::of(RunRef::under(&policy));
        let mut webhooks = Vec::new();
        for step in &steps {
            let heard = hear(&mut history, step);
            if heard.trust < Trust::Authoritative {
                webhooks.push(heard);
            }
        }
        history.wait_out();
        says_nothing_new(&history, webhooks.iter());
    }

    #[test]
    fn if_the_provider_answers_everything_settles_in_the_end(policy in policies(), steps in steps()) {
        let mut history = History::of(RunRef::under(&policy));
        for step in &steps {
            hear(&mut history, step);
        }
        // The provider answers now and then, and each time says that the run goes on.
        let gap = policy.max_interval.max(policy.first_poll).saturating_mul(15).max(60 * MINUTE);
        for _ in 0..20_000 {
            let Some(wake) = history.subject.run.as_ref().and_then(|run| run.wake_at) else { break };
            history.subject.now = history.subject.now.max(wake);
            history.hears(&observation("clock:timer", history.subject.now));
            if policy.can_poll && history.subject.run.as_ref().is_some_and(|run| run.wake_at.is_some()) {
                history.subject.now = history.subject.now.plus(gap);
                history.hears(&observation("get:running", history.subject.now));
            }
        }
        prop_assert!(history.subject.run.is_none_or(|run| run.wake_at.is_none()), "no run is open for ever");
    }
}
