//! Every history of up to five observations, and every order of up to four pieces of evidence.

use std::time::Duration;

use settled::model::observation::{AnswerPrecedence, Claim, Observation};
use settled::model::schedule::Policy;
use settled::model::{At, Outcome, Trust};

use super::dsl::{RunRef, START, observation, policy, span};
use super::laws::{History, outcome, says_nothing_new};

/// Thirteen observations, each with the time since the one before. 13⁰ + 13¹ + … + 13⁵ = 402,234.
const ALPHABET: [(&str, &str); 13] = [
    ("1s", "hint:succeeded!"),
    ("1s", "client:track"),
    ("30s", "list:over"),
    ("5s", "signed:running"),
    ("2s", "signed:succeeded!"),
    ("2s", "signed:failed"),
    ("2s", "secret:cancelled!"),
    ("20s", "get:running"),
    ("40s", "get:succeeded"),
    ("40s", "get:failed~cancelled"),
    ("5m", "get:404"),
    ("10s", "get:5xx"),
    ("0s", "clock:timer"),
];

/// The moment at which a letter is heard: the timer when it is due, all others after their time.
fn next_moment(subject: &RunRef<'_>, pause: Duration, letter: &Observation) -> At {
    let timer = subject
        .run
        .as_ref()
        .and_then(|run| run.wake_at)
        .filter(|_| letter.claim == Claim::TimerFired);
    timer.unwrap_or(subject.now.plus(pause)).max(subject.now)
}

struct Walk {
    depth: usize,
    heard: Vec<Observation>,
    histories: usize,
    letters: Vec<(Duration, Observation)>,
}

impl Walk {
    fn from(&mut self, history: &History<'_>) {
        self.histories += 1;
        self.conclude(history);
        if self.heard.len() == self.depth {
            return;
        }
        for letter in 0..self.letters.len() {
            let (pause, letter) = &self.letters[letter];
            let mut next = history.clone();
            next.subject.now = next_moment(&next.subject, *pause, letter);
            let heard = Observation {
                requested_at: next.subject.now,
                ..letter.clone()
            };
            next.hears(&heard);
            self.heard.push(heard);
            self.from(&next);
            self.heard.pop();
        }
    }

    /// What must hold once everything that is held has been waited out.
    fn conclude(&self, history: &History<'_>) {
        let mut history = history.clone();
        history.wait_out();
        history.is_complete();
        if !self.was_withdrawn(history.subject.policy) {
            says_nothing_new(&history, self.heard.iter());
        }
    }

    /// An answered end that a later answer took back is a contradiction of the provider's own, and
    /// may be news again.
    fn was_withdrawn(&self, policy: &Policy) -> bool {
        let at = |wanted: fn(&Claim) -> bool| {
            move |heard: &Observation| heard.trust == Trust::Authoritative && wanted(&heard.claim)
        };
        let first = self
            .heard
            .iter()
            .position(at(|claim| matches!(claim, Claim::Ended(_))));
        let last = self
            .heard
            .iter()
            .rposition(at(|claim| matches!(claim, Claim::Open(_))));
        !policy.grace.is_zero() && first.is_some_and(|first| last > Some(first))
    }
}

fn walk(words: &str, depth: usize) -> usize {
    let policy = policy(words);
    let letters = ALPHABET
        .map(|(pause, words)| (span(pause), observation(words, START)))
        .to_vec();
    let mut walk = Walk {
        depth,
        heard: Vec::new(),
        histories: 0,
        letters,
    };
    walk.from(&History::of(RunRef::under(&policy)));
    walk.histories
}

#[test]
fn all_short_histories_with_an_immediate_policy() {
    assert_eq!(walk("auto", 5), 402_234);
}

#[test]
fn all_short_histories_with_confirmation_and_grace() {
    assert_eq!(walk("always+grace", 5), 402_234);
}

#[test]
fn all_short_histories_where_the_first_answer_is_believed() {
    assert_eq!(walk("first", 5), 402_234);
}

#[test]
fn all_short_histories_without_a_key() {
    assert_eq!(walk("mute", 4), 30_941);
}

// ── Orders ──────────────────────────────────────────────────────────────────────────────────────

/// Evidence of an end. Answers carry the second at which their question was asked.
const EVIDENCE: [&str; 10] = [
    "signed:succeeded!",
    "signed:failed",
    "signed:cancelled!",
    "secret:succeeded",
    "secret:failed!",
    "secret:cancelled!",
    "get@10:succeeded",
    "get@20:failed~cancelled",
    "get@30:cancelled",
    "get@40:failed",
];

/// Whom to believe, said independently of `decide`.
fn strongest(evidence: &[Observation], answer_precedence: AnswerPrecedence) -> Outcome {
    let gravity = |outcome| match outcome {
        Outcome::Indeterminate => 0,
        Outcome::Cancelled => 1,
        Outcome::TimedOut => 2,
        Outcome::Succeeded => 3,
        Outcome::Failed => 4,
    };
    let ends = evidence.iter().filter_map(|heard| match heard.claim {
        Claim::Ended(ending) => Some((heard, ending)),
        _ => None,
    });
    let order = |heard: &Observation| match (heard.trust, answer_precedence) {
        (Trust::Authoritative, AnswerPrecedence::LastWins) => heard.requested_at.0,
        (Trust::Authoritative, AnswerPrecedence::FirstWins) => -heard.requested_at.0,
        _ => 0,
    };
    let (_, ending) = ends
        .clone()
        .max_by_key(|(heard, ending)| (heard.trust, order(heard), gravity(ending.outcome)))
        .expect("there is evidence");
    ending
        .covers
        .filter(|finer| ends.clone().any(|(_, other)| other.outcome == *finer))
        .unwrap_or(ending.outcome)
}

fn permutations(items: &[&'static str]) -> Vec<Vec<&'static str>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |index: usize| {
        let mut rest = items.to_vec();
        let first = rest.remove(index);
        permutations(&rest).into_iter().map(move |mut order| {
            order.insert(0, first);
            order
        })
    };
    (0..items.len()).flat_map(with_first).collect()
}

#[test]
fn of_up_to_four_voices_the_strongest_is_believed_in_every_order() {
    let policies = [
        "auto",
        "always",
        "never",
        "mute",
        "grace",
        "always+grace",
        "first",
        "first+grace",
        "first+always",
        "patient+grace",
    ];
    for (words, pause) in policies
        .iter()
        .flat_map(|words| [(words, "2s"), (words, "3m")])
    {
        let policy = policy(words);
        for chosen in 1_u32..1 << EVIDENCE.len() {
            if chosen.count_ones() > 4 {
                continue;
            }
            let evidence: Vec<_> = (0..EVIDENCE.len())
                .filter(|bit| chosen >> bit & 1 == 1)
                .map(|bit| EVIDENCE[bit])
                .collect();
            for order in permutations(&evidence) {
                believes_the_strongest(&policy, &order, pause);
            }
        }
    }
}

fn believes_the_strongest(policy: &Policy, order: &[&str], pause: &str) {
    let mut history = History::of(RunRef::under(policy));
    history.subject.now = START.plus(span("2m"));
    let mut evidence = Vec::new();
    for words in order {
        let next = history.subject.now.plus(span(pause));
        while let Some(timer) = history
            .subject
            .run
            .as_ref()
            .and_then(|run| run.wake_at)
            .filter(|at| *at <= next)
        {
            history.subject.now = timer;
            history.hears(&observation("clock:timer", timer));
        }
        history.subject.now = next;
        let heard = observation(words, next);
        history.hears(&heard);
        evidence.push(heard);
    }
    history.wait_out();
    history.is_complete();
    let believed = outcome(history.subject.run.as_ref());
    assert_eq!(
        believed,
        Some(strongest(&evidence, policy.answer_precedence)),
        "{order:?} {policy:?}"
    );
    says_nothing_new(&history, evidence.iter());
}
