//! A small language for what is heard about a run, and a run that hears it.
//!
//! An observation is written `evidence:claim`. Evidence: `hint`, `secret`, `signed` (webhooks), `replay`,
//! `get` (an answer), `list`, `client`, `clock`. Claims: `waiting`, `running`, an outcome (followed
//! by `!` where the webhook is sufficient under `confirm = "auto"`, by `~other` where the word
//! covers another outcome), `404`, `403` (of this run alone), `5xx`, `over`, `open`, `track`, `timer`.
//! `other:found` says that the provider has shown another run of the source. `get@5:failed` is an
//! answer to a question asked at second 5; `running+10m` polls to be left alone that long.

use std::time::Duration;

use settled::model::decide::{Circumstances, Effect, Phase, Publication, Run, Settled, decide};
use settled::model::observation::{AnswerPrecedence, Claim, Detail, Ending, Observation, Progress};
use settled::model::schedule::{Confirm, Policy};
use settled::model::{At, Outcome, RunId, Trust, Via};

pub const SECOND: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(86_400);

/// Moment zero of every story. Far from 1970, so that nothing passes by accident.
pub const START: At = At(1_700_000_000_000);

/// The policy that the words, joined by `+`, describe; `auto` is the plainest.
pub fn policy(words: &str) -> Policy {
    let plain = Policy {
        confirm: Confirm::Auto,
        confirm_timeout: MINUTE,
        grace: Duration::ZERO,
        deadline: DAY,
        give_up: 7 * DAY,
        first_poll: 20 * SECOND,
        max_interval: 5 * MINUTE,
        expected_end_ages: &[],
        answer_precedence: AnswerPrecedence::LastWins,
        can_poll: true,
        listed_for: Duration::ZERO,
    };
    words.split('+').fold(plain, |policy, word| match word {
        "auto" => policy,
        "always" => Policy {
            confirm: Confirm::Always,
            ..policy
        },
        "never" => Policy {
            confirm: Confirm::Never,
            ..policy
        },
        "grace" => Policy {
            grace: MINUTE,
            ..policy
        },
        "first" => Policy {
            answer_precedence: AnswerPrecedence::FirstWins,
            ..policy
        },
        "patient" => Policy {
            confirm_timeout: 10 * MINUTE,
            ..policy
        },
        "mute" => Policy {
            can_poll: false,
            ..policy
        },
        "brief" => Policy {
            give_up: 3 * HOUR,
            ..policy
        },
        "hasty" => Policy {
            deadline: MINUTE,
            ..policy
        },
        "short" => Policy {
            give_up: 2 * MINUTE,
            ..policy
        },
        "lists" => Policy {
            listed_for: 10 * MINUTE,
            ..policy
        },
        other => panic!("no such policy: {other}"),
    })
}

/// `90`, `90s`, `5m`, `24h`, `7d`; several in a row are added up.
pub fn span(text: &str) -> Duration {
    let mut total = Duration::ZERO;
    let mut digits = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            's' => SECOND,
            'm' => MINUTE,
            'h' => HOUR,
            'd' => DAY,
            other => panic!("no such unit: {other} in {text}"),
        };
        total += unit * digits.parse::<u32>().unwrap();
        digits.clear();
    }
    if digits.is_empty() {
        total
    } else {
        total + SECOND * digits.parse::<u32>().unwrap()
    }
}

/// Reads `evidence:claim`, heard at `now`.
pub fn observation(text: &str, now: At) -> Observation {
    let (evidence, claim) = text
        .split_once(':')
        .unwrap_or_else(|| panic!("no claim in {text}"));
    let (evidence, requested_at) = match evidence.split_once('@') {
        Some((evidence, asked)) => (evidence, START.plus(span(asked))),
        None => (evidence, now),
    };
    let (trust, via) = match evidence {
        "hint" => (Trust::Hint, Via::Webhook),
        "secret" => (Trust::SharedSecret, Via::Webhook),
        "signed" => (Trust::Signed, Via::Webhook),
        "replay" => (Trust::Signed, Via::Replay),
        "get" => (Trust::Authoritative, Via::Poll),
        "list" => (Trust::Authoritative, Via::Sweep),
        "client" => (Trust::Authoritative, Via::Operator),
        "clock" => (Trust::Authoritative, Via::Clock),
        other => panic!("no such evidence: {other}"),
    };
    let (claim, poll_after) = match claim.split_once('+') {
        Some((claim, after)) => (claim, Some(span(after))),
        None => (claim, None),
    };
    let status = claim
        .trim_end_matches('!')
        .split('~')
        .next()
        .unwrap_or_default()
        .to_owned();
    Observation {
        run_id: RunId::new("r").unwrap(),
        kind: None,
        claim: self::claim(claim),
        trust,
        via,
        requested_at,
        poll_after,
        detail: Detail {
            provider_status: matches!(self::claim(claim), Claim::Open(_)).then_some(status),
            provider_time: (claim == "over").then_some(now),
            ..Detail::default()
        },
    }
}

fn claim(text: &str) -> Claim {
    match text {
        "track" => Claim::Tracked,
        "open" => Claim::Listed { over: false },
        "over" | "history" => Claim::Listed { over: true },
        "waiting" => Claim::Open(Progress::Waiting),
        "running" | "paused" => Claim::Open(Progress::Started),
        "404" => Claim::Missing,
        "5xx" => Claim::Nothing,
        "403" => Claim::Withheld,
        "timer" => Claim::TimerFired,
        ended => {
            let (word, sufficient) = ended
                .strip_suffix('!')
                .map_or((ended, false), |word| (word, true));
            let (word, covers) = word
                .split_once('~')
                .map_or((word, None), |(word, other)| (word, Some(other)));
            let outcome =
                |word| Outcome::from_word(word).unwrap_or_else(|| panic!("no such claim: {word}"));
            Claim::Ended(Ending {
                outcome: outcome(word),
                covers: covers.map(outcome),
                sufficient,
            })
        }
    }
}

/// A run, or the absence of one, that hears.
#[derive(Clone)]
pub struct RunRef<'a> {
    pub policy: &'a Policy,
    pub run: Option<Run>,
    pub now: At,
    pub report: i64,
    /// When the provider last showed any run of the source.
    pub found_at: Option<At>,
}

impl<'a> RunRef<'a> {
    /// Nothing is known yet.
    pub fn under(policy: &'a Policy) -> RunRef<'a> {
        RunRef {
            policy,
            run: None,
            now: START,
            report: 0,
            found_at: None,
        }
    }

    /// Decides.
    pub fn hears(&mut self, heard: &Observation) -> (Option<Publication>, Effect) {
        self.report += 1;
        let at = Circumstances {
            policy: self.policy,
            now: self.now,
            report: self.report,
            seed: 7,
            since: At(i64::MIN),
            found_at: self.found_at,
        };
        let decision = decide(self.run.take(), heard, &at);
        self.run = decision.run;
        (decision.publish, decision.effect)
    }

    /// Hears `time evidence:claim` steps, separated by `;`.
    pub fn lives(&mut self, story: &str) {
        for step in story
            .split(';')
            .map(str::trim)
            .filter(|step| !step.is_empty())
        {
            self.hears_step(step);
        }
    }

    /// Hears one `time evidence:claim`.
    pub fn hears_step(&mut self, step: &str) -> (Option<Publication>, Effect) {
        let (time, words) = step
            .split_once(' ')
            .unwrap_or_else(|| panic!("no time in {step}"));
        self.now = START.plus(span(time));
        if words == "other:found" {
            self.found_at = Some(self.now);
            return (None, Effect::Ignored);
        }
        self.hears(&observation(words, self.now))
    }

    pub fn settled(&self) -> Option<&Settled> {
        match &self.run.as_ref()?.phase {
            Phase::Open(_) => None,
            Phase::Settled(settled) => Some(settled),
        }
    }
}
