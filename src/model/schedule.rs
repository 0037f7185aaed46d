//! When to poll: the policy of a source, the curve of its polls and the limits on absence.
//!
//! Jitter comes from a hash of the run and the number of the poll, so the same history polls
//! at the same moments.

use std::time::Duration;

use super::observation::AnswerPrecedence;
use super::{At, words};

words! {
    /// Whether a terminal webhook settles at once.
    Confirm {
        /// As the provider says for each event.
        Auto = "auto",
        /// Always poll once first.
        Always = "always",
        /// Never poll first.
        Never = "never",
    }
}

/// Everything that a person may decide about when a run settles and how it is polled.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Does a terminal webhook settle alone?
    pub confirm: Confirm,
    /// How long a terminal webhook may wait for that answer.
    pub confirm_timeout: Duration,
    /// How long a polled end must hold before it is believed. Zero: at once.
    pub grace: Duration,
    /// Open for longer than this: overdue.
    pub deadline: Duration,
    /// Known and open for longer than this: indeterminate.
    pub give_up: Duration,
    /// Age of a run at its first poll; also the first interval of the curve.
    pub first_poll: Duration,
    /// The longest interval of the curve.
    pub max_interval: Duration,
    /// Ages at which the provider's own limits make an answer likely: the run is polled then in any case.
    pub expected_end_ages: &'static [Duration],
    /// Which of two differing answers is believed.
    pub answer_precedence: AnswerPrecedence,
    /// Whether the source can be polled at all: it has an API key.
    pub can_poll: bool,
    /// How long being listed as open spares a run its own poll.
    pub listed_for: Duration,
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A run known for less than this makes a 404 mere lag.
pub const YOUNG: Duration = MINUTE;
/// So many misses make an absence …
pub const MISSES_MIN: u32 = 3;
/// … if the last is at least this long after the first.
pub const MISSES_SPAN: Duration = Duration::from_secs(600);
/// After a miss the run is polled again this much later.
pub const MISS_INTERVAL: Duration = Duration::from_secs(300);
/// Hints may bring a run's next poll forward this often.
pub const HINT_INTERVAL: Duration = Duration::from_secs(30);
/// A run without a key whose `give_up` passed while the daemon was off still gets this long for a
/// webhook.
pub const LAST_CHANCE: Duration = Duration::from_secs(3600);
/// A timer that fires later than this fires after a stop or a jump of the clock.
pub const LATE: Duration = Duration::from_secs(30);
/// When an unconfirmed settlement is polled again.
pub const CHECKS: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(86_400)];
/// A settled run is not polled for longer than this.
pub const LOOK_FOR: Duration = Duration::from_secs(2 * 86_400);
/// An overdue run is polled this many times less often.
const OVERDUE_STRETCH: u32 = 12;
/// Waiting times while a provider's own store lags behind its webhook.
const LAG: [Duration; 5] = [
    SECOND,
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
];

const _: () = assert!(CHECKS[1].as_secs() < LOOK_FOR.as_secs());
const _: () = assert!(MISS_INTERVAL.as_secs() * (MISSES_MIN as u64 - 1) >= MISSES_SPAN.as_secs());

/// How much of the time between two answers counts as time in which the provider could be reached:
/// no more than the longest interval that the schedule itself leaves between two polls, or an hour.
/// If the second answer came much later than it was due, something was wrong in between, and a third
/// of `give_up` is the most that counts: no single silence ends a run.
pub fn counted(policy: &Policy, between: Duration, late: Duration) -> Duration {
    let longest = policy
        .max_interval
        .max(policy.first_poll)
        .saturating_mul(OVERDUE_STRETCH + 3)
        .max(HOUR);
    let on_time = late <= policy.max_interval.min(policy.give_up / 4);
    between.min(if on_time {
        longest
    } else {
        longest.min(policy.give_up / 3)
    })
}

/// When a run that was opened at `opened_at` and is known from `now` on is polled first.
pub fn first(policy: &Policy, opened_at: At, now: At) -> At {
    opened_at.plus(policy.first_poll).max(now)
}

/// When to poll next after `polls` answers that did not end the run.
pub fn next(policy: &Policy, opened_at: At, polls: u32, overdue: bool, seed: u64, now: At) -> At {
    let curve = now.plus(interval(policy, polls, overdue, seed));
    policy
        .expected_end_ages
        .iter()
        .map(|age| opened_at.plus(*age))
        .find(|expected_end| *expected_end > now)
        .map_or(curve, |expected_end| curve.min(expected_end))
}

/// When to poll again while the provider's answers lag behind its own webhook.
pub fn after_lag(polls: u32, now: At) -> At {
    now.plus(LAG[(polls as usize).min(LAG.len() - 1)])
}

/// When to repeat a poll that has been due, and has failed, since `due`: twice as long after
/// it, within the bounds of the lag.
pub fn after_failing_since(due: At, now: At) -> At {
    now.plus(now.since(due).clamp(LAG[0], LAG[LAG.len() - 1]))
}

/// `first_poll × 1.6ⁿ`, at most `max_interval`, ±20 %.
fn interval(policy: &Policy, polls: u32, overdue: bool, seed: u64) -> Duration {
    let cap = policy.max_interval.max(policy.first_poll);
    let grown =
        policy.first_poll.as_secs_f64() * 1.6_f64.powi(i32::try_from(polls.min(64)).unwrap_or(64));
    let base = if overdue {
        cap.saturating_mul(OVERDUE_STRETCH)
    } else {
        cap.min(Duration::from_secs_f64(grown.min(cap.as_secs_f64())))
    };
    base.mul_f64(0.8 + 0.4 * unit(seed ^ (u64::from(polls) << 32 | 0x5bd1)))
}

/// A number in `[0, 1)` from a hash: splitmix64's finalizer.
pub fn unit(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let unit = (z >> 11) as f64 / (1_u64 << 53) as f64;
    unit
}

/// The seed of a run's jitter: FNV-1a over its key.
pub fn seed(source: &str, run_id: &str) -> u64 {
    source
        .bytes()
        .chain([0])
        .chain(run_id.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn policy() -> Policy {
        Policy {
            confirm: Confirm::Auto,
            confirm_timeout: MINUTE,
            grace: Duration::ZERO,
            deadline: Duration::from_secs(24 * 3600),
            give_up: Duration::from_secs(7 * 24 * 3600),
            first_poll: 20 * SECOND,
            max_interval: 5 * MINUTE,
            expected_end_ages: &[],
            answer_precedence: AnswerPrecedence::LastWins,
            can_poll: true,
            listed_for: Duration::ZERO,
        }
    }

    #[test]
    fn the_curve_grows_by_1_6_and_stops_at_the_cap() {
        let policy = policy();
        for polls in 0..200 {
            let nominal = (20.0 * 1.6_f64.powi(polls)).min(300.0);
            let at = next(&policy, At(0), polls.try_into().unwrap(), false, 7, At(0));
            #[expect(clippy::cast_precision_loss)]
            let ratio = at.0 as f64 / 1000.0 / nominal;
            assert!((0.79..=1.21).contains(&ratio), "{polls}: {ratio}");
        }
    }

    #[test]
    fn jitter_differs_between_runs_and_repeats_for_one() {
        let policy = policy();
        let of = |run: &str| next(&policy, At(0), 9, false, seed("s", run), At(0));
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
    }

    #[test]
    fn jitter_is_the_same_in_every_version() {
        // The first numbers of splitmix64, and FNV-1a of "s", a nought and "a".
        let first = [
            0.883_310_808_213_642_6,
            0.566_561_575_172_280_9,
            0.893_942_920_283_184_5,
        ];
        assert_eq!(
            [0, 1, u64::MAX].map(unit).map(f64::to_bits),
            first.map(f64::to_bits)
        );
        assert_eq!(seed("s", "a"), 0x81bd_7e19_5c76_b9c5);
        let after = |polls| next(&policy(), At(0), polls, false, 7, At(0));
        assert_eq!((after(0), after(3)), (At(17_607), At(84_305)));
    }

    #[test]
    fn a_landmark_is_never_slept_through() {
        const AGES: &[Duration] = &[Duration::from_secs(900), Duration::from_secs(960)];
        let policy = Policy {
            expected_end_ages: AGES,
            ..policy()
        };
        let at = next(&policy, At(0), 50, false, 3, At(800_000));
        assert_eq!(at, At(900_000));
        assert_eq!(next(&policy, At(0), 50, false, 3, At(900_000)), At(960_000));
        assert!(next(&policy, At(0), 50, false, 3, At(960_000)) > At(1_100_000));
    }

    #[test]
    fn an_overdue_run_is_asked_about_hourly() {
        let at = next(&policy(), At(0), 50, true, 3, At(0));
        assert!((2_880_000..=4_320_000).contains(&at.0), "{at:?}");
    }

    #[test]
    fn the_first_poll_counts_from_the_birth_of_the_run() {
        assert_eq!(first(&policy(), At(0), At(5_000)), At(20_000));
        assert_eq!(first(&policy(), At(0), At(50_000)), At(50_000));
    }
}
