//! The rate limit of one source, with pause and breaker.
//!
//! A [`RateLimiter`] observes the class of every answer ([`RateLimiter::observe`]) and says whether
//! one more request may go out ([`RateLimiter::try_acquire`],
//! [`RateLimiter::try_acquire_reserved`]). In the order of precedence:
//!
//! 1. **Pause.** A `Retry-After` is honoured to its full value and stops the whole source, since
//!    every provider here limits accounts and not runs. A 429 without a value pauses for
//!    [`THROTTLE_PAUSE`]. The third failure in a row, and every further one, pauses for a
//!    full-jitter exponential span of at most [`TROUBLE_PAUSE_MAX`]. The first two do not pause:
//!    one timeout must not delay everything else.
//! 2. **Breaker.** A refusal that speaks for the account, of the canary, stops all requests but probes
//!    ([`RateLimiter::try_acquire_probe`]). Probes go out after 1, 2, 4, … at most 15 minutes,
//!    until one works.
//! 3. **Bucket.** `rate` tokens a second, at most `max(1, ⌈rate⌉)` saved up. A 429 halves the rate
//!    (not below 1/60 of the configured one), every good answer gives 1/60 back. Exchanges under way
//!    come first: while one waits for a reserved token, no new one gets a token. A page of a list
//!    spares a hundred runs their polls, so it must not wait behind those polls; an urgent poll does
//!    not wait behind pages.
//!
//! A pause ends with one token, not with a full bucket. Answers to requests that were already under
//! way when a pause began neither halve the rate nor back off again: they carry the same news.
//!
//! Pure: the time and the jitter's seed are arguments. If the wall clock steps back, every stored
//! moment moves back with it, so no pause becomes longer than the provider asked for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{At, schedule, words};
use crate::providers::ResponseClass;

/// The pause after a 429 without `Retry-After`.
pub const THROTTLE_PAUSE: Duration = Duration::from_secs(60);
/// The longest back-off after failures of the service.
pub const TROUBLE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The longest time between two probes of a refused key.
pub const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(15 * 60);
/// The longest `Retry-After` believed, as in [`crate::providers::retry_after`].
pub const PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// This many failures in a row cause no pause.
const TROUBLES_FREE: u32 = 2;
const TROUBLE_PAUSE_BASE: Duration = Duration::from_secs(1);
const PROBE_INTERVAL_MIN: Duration = Duration::from_secs(60);
/// AIMD: the lowest rate, and what one good answer gives back, are both 1/60 of the configured rate.
const RATE_PARTS: f64 = 60.0;
/// Configured rates are clamped to this range, so that nothing here divides by zero.
const RATES: (f64, f64) = (1.0 / 3600.0, 10_000.0);
/// A caller may have read the clock this long before the call without the clock having stepped.
const SLACK: Duration = Duration::from_secs(1);
/// Moments are whole milliseconds, rounded down: the answer may have come nearly one later than its
/// moment says, and so may the end of the pause that it asks for.
const CLOCK_GRAIN: Duration = Duration::from_nanos(1_999_999);
/// Callers that wait for one moment come back spread over this span.
const SPREAD: Duration = Duration::from_secs(1);
/// How long a reserved token is kept after its moment. Timers are late on a busy machine, and a
/// caller that was cancelled meanwhile never comes.
const KEPT_FOR: Duration = Duration::from_millis(100);
/// How far rounding may take a full token below 1.
const EPSILON: f64 = 1e-9;

words! {
    /// Why a source is paused.
    PauseReason {
        /// The provider sent `Retry-After`.
        RetryAfter = "retry_after",
        /// The provider answered 429 without a time.
        RateLimited = "rate_limited",
        /// The service failed several times in a row.
        Unavailable = "unavailable",
    }
}

/// A time in which no request of the source goes out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pause {
    /// The first moment at which a request may go out again.
    pub until: At,
    /// The kind of answer that caused it.
    pub reason: PauseReason,
    /// The cause in a few words, for people.
    pub why: String,
}

/// The provider refuses the key: only probes go out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Breaker {
    /// When the breaker opened.
    pub since: At,
    /// The provider's last refusal, in a few words.
    pub why: String,
    /// When the next probe may go out.
    pub next_probe: At,
    /// Probes sent since it opened.
    pub probes: u32,
}

/// Answers since the start, counted by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ResponseCounts {
    /// Documented answers, whatever they say of the run.
    pub ok: u64,
    /// 429 and its equivalents.
    pub rate_limited: u64,
    /// Refusals of the key.
    pub denied: u64,
    /// Failures of the service, and requests without an answer.
    pub unavailable: u64,
}

/// The state of a [`RateLimiter`], for `settled status`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct RateLimiterState {
    /// Requests a second, as configured.
    pub rate: f64,
    /// Requests a second in force now: lower after a 429, and rising again.
    pub effective_rate: f64,
    /// Requests that could go out at once.
    pub tokens: f64,
    /// The pause, if one is on.
    pub pause: Option<Pause>,
    /// The breaker, if it is open.
    pub breaker: Option<Breaker>,
    /// Failures of the service in a row.
    pub troubles_in_a_row: u32,
    /// Answers since the start, by class.
    pub responses: ResponseCounts,
}

/// The rate limiter of one source. See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimiter {
    rate: f64,
    effective: f64,
    tokens: f64,
    /// The moment `tokens` is computed for; in the future during a pause, which saves up nothing.
    filled_at: At,
    /// Until then the next token is reserved for an exchange that is under way.
    kept_until: Option<At>,
    pause: Option<Pause>,
    breaker: Option<Breaker>,
    /// How far the probe intervals have grown. Outlives the breaker until an ordinary request
    /// works, or a key that may do the canary and nothing else would be tried every minute.
    caution: u32,
    troubles: u32,
    responses: ResponseCounts,
    /// The latest time a caller gave.
    now: At,
}

impl RateLimiter {
    /// A limiter of `rate` requests a second with a full bucket.
    pub fn new(rate: f64, now: At) -> RateLimiter {
        let rate = if rate.is_nan() {
            1.0
        } else {
            rate.clamp(RATES.0, RATES.1)
        };
        RateLimiter {
            rate,
            effective: rate,
            tokens: burst(rate),
            filled_at: now,
            kept_until: None,
            pause: None,
            breaker: None,
            caution: 0,
            troubles: 0,
            responses: ResponseCounts::default(),
            now,
        }
    }

    /// The limiter after a reload that may have changed rate and key. The pause that the provider asked
    /// for, the counts, the back-off and what was learned of the rate stay. The breaker stays too, but
    /// a new key is probed at once.
    #[must_use]
    pub fn reloaded(&self, rate: f64, new_key: bool, now: At) -> RateLimiter {
        let mut limiter = self.clone();
        let now = limiter.advance(now);
        let fresh = RateLimiter::new(rate, now);
        // A rate that was halved stays the same part of the configured one.
        limiter.effective = fresh.rate * (self.effective / self.rate);
        limiter.rate = fresh.rate;
        limiter.tokens = limiter.tokens.min(burst(limiter.effective));
        if new_key && let Some(breaker) = &mut limiter.breaker {
            breaker.next_probe = now;
            limiter.caution = 0;
        }
        limiter
    }

    /// Takes a token for the first request of an exchange. The error is the earliest moment at which
    /// another attempt makes sense.
    pub fn try_acquire(&mut self, now: At, seed: u64) -> Result<(), At> {
        let now = self.advance(now);
        match self.kept_until {
            Some(until) => Err(until.plus(MILLISECOND)),
            None => self.ask(now, seed),
        }
    }

    /// Takes a token for a further request of an exchange that is under way. The error is the moment
    /// to come again; the next token is reserved until then, and a little longer.
    pub fn try_acquire_reserved(&mut self, now: At, seed: u64) -> Result<(), At> {
        let now = self.advance(now);
        let answer = self.ask(now, seed);
        // While the key is refused no token is reserved: exchanges end there.
        self.kept_until = answer
            .err()
            .filter(|_| self.breaker.is_none())
            .map(|at| at.plus(KEPT_FOR));
        answer
    }

    /// Takes a token for the poll of a run. The error is the moment to come again. An urgent poll
    /// does not wait until a list is read.
    pub fn try_acquire_poll(&mut self, urgent: bool, now: At, seed: u64) -> Result<(), At> {
        if urgent {
            self.try_acquire_reserved(now, seed)
        } else {
            self.try_acquire(now, seed)
        }
    }

    /// Takes a token for an inquiry, which waits behind everything else: only if no exchange waits for
    /// a reserved token and half of what can be saved up remains afterwards.
    pub fn try_acquire_spare(&mut self, now: At, seed: u64) -> bool {
        let now = self.advance(now);
        let spare = 1.0 + (burst(self.effective) - 1.0) / 2.0;
        self.kept_until.is_none() && self.tokens >= spare - EPSILON && self.ask(now, seed).is_ok()
    }

    /// Checks pause, breaker and bucket, whether or not the next token is reserved.
    fn ask(&mut self, now: At, seed: u64) -> Result<(), At> {
        let blocked = self.breaker.as_ref().map(|breaker| breaker.next_probe);
        match blocked.max(self.pause.as_ref().map(|pause| pause.until)) {
            Some(until) => Err(until
                .max(now)
                .plus(SPREAD.mul_f64(schedule::unit(seed)) + MILLISECOND)),
            None => self.take(now, seed),
        }
    }

    /// Takes a token for a probe of a refused key: true once per interval while the breaker is
    /// open and the source is not paused; false while the breaker is closed.
    pub fn try_acquire_probe(&mut self, now: At) -> bool {
        let now = self.advance(now);
        let due = self
            .breaker
            .as_ref()
            .is_some_and(|breaker| breaker.next_probe <= now);
        if !due || self.pause.is_some() || self.take(now, 0).is_err() {
            return false;
        }
        self.caution = self.caution.saturating_add(1);
        if let Some(breaker) = &mut self.breaker {
            breaker.probes = breaker.probes.saturating_add(1);
            breaker.next_probe = now.plus(probe_interval(self.caution));
        }
        true
    }

    /// When the next probe is due; `None` while the breaker is closed.
    pub fn probe_at(&self) -> Option<At> {
        let due = self.breaker.as_ref()?.next_probe;
        Some(
            self.pause
                .as_ref()
                .map_or(due, |pause| due.max(pause.until)),
        )
    }

    /// Whether the breaker is open: a refused key has stopped all requests but probes.
    pub fn broken(&self) -> bool {
        self.breaker.is_some()
    }

    /// Takes the class of one answer into account. A refusal that does not speak for the account is
    /// counted and stops nothing; the canary follows it.
    pub fn observe_answer(
        &mut self,
        class: &ResponseClass,
        speaks_for_account: bool,
        now: At,
        seed: u64,
    ) {
        match class {
            ResponseClass::Denied { .. } if !speaks_for_account => {
                self.advance(now);
                self.responses.denied += 1;
            }
            _ => self.observe(class, now, seed),
        }
    }

    /// Takes the class of one answer that speaks for the account, of a poll or a probe, into account.
    /// `seed` is for the jitter.
    pub fn observe(&mut self, class: &ResponseClass, now: At, seed: u64) {
        let now = self.advance(now);
        match class {
            ResponseClass::Ok => self.fine(),
            ResponseClass::RateLimited { retry_after } => self.throttled(*retry_after, now),
            ResponseClass::Denied { why } => self.refused(why, now),
            ResponseClass::Unavailable { why, retry_after } => {
                self.trouble(why, *retry_after, now, seed);
            }
        }
    }

    /// The state as of `now`, for status and metrics.
    pub fn state(&self, now: At) -> RateLimiterState {
        let mut shown = self.clone();
        shown.advance(now);
        RateLimiterState {
            rate: shown.rate,
            effective_rate: shown.effective,
            tokens: shown.tokens,
            pause: shown.pause,
            breaker: shown.breaker,
            troubles_in_a_row: shown.troubles,
            responses: shown.responses,
        }
    }

    fn fine(&mut self) {
        self.responses.ok += 1;
        self.troubles = 0;
        self.effective = (self.effective + self.rate / RATE_PARTS).min(self.rate);
        match &self.breaker {
            // Only a probe's success closes it; an answer that was under way when the key was
            // refused proves nothing about the key now.
            Some(breaker) if breaker.probes > 0 => self.breaker = None,
            Some(_) => {}
            None => self.caution = 0,
        }
    }

    fn throttled(&mut self, retry_after: Option<Duration>, now: At) {
        self.responses.rate_limited += 1;
        let slowed = |pause: &Pause| pause.reason != PauseReason::Unavailable;
        if !self.pause.as_ref().is_some_and(slowed) {
            self.effective = (self.effective / 2.0).max(self.rate / RATE_PARTS);
        }
        match retry_after {
            Some(span) => self.pause_for(span, PauseReason::RetryAfter, "too many requests", now),
            None => self.pause_for(
                THROTTLE_PAUSE,
                PauseReason::RateLimited,
                "too many requests",
                now,
            ),
        }
    }

    fn refused(&mut self, why: &str, now: At) {
        self.responses.denied += 1;
        if let Some(breaker) = &mut self.breaker {
            why.clone_into(&mut breaker.why);
        } else {
            let next_probe = now.plus(probe_interval(self.caution));
            self.breaker = Some(Breaker {
                since: now,
                why: why.to_owned(),
                next_probe,
                probes: 0,
            });
        }
    }

    fn trouble(&mut self, why: &str, retry_after: Option<Duration>, now: At, seed: u64) {
        self.responses.unavailable += 1;
        if self.pause.is_none() {
            self.troubles = self.troubles.saturating_add(1);
            let span = trouble_span(self.troubles).mul_f64(schedule::unit(seed));
            self.pause_for(span, PauseReason::Unavailable, why, now);
        }
        if let Some(span) = retry_after {
            self.pause_for(span, PauseReason::RetryAfter, why, now);
        }
    }

    /// Pauses for `span`, unless a pause that ends later is on.
    fn pause_for(&mut self, span: Duration, reason: PauseReason, why: &str, now: At) {
        let until = now.plus(span.min(PAUSE_MAX) + CLOCK_GRAIN);
        if span.is_zero()
            || self
                .pause
                .as_ref()
                .is_some_and(|pause| pause.until >= until)
        {
            return;
        }
        self.tokens = self.tokens.min(1.0);
        self.filled_at = until;
        self.pause = Some(Pause {
            until,
            reason,
            why: why.to_owned(),
        });
    }

    fn take(&mut self, now: At, seed: u64) -> Result<(), At> {
        if self.tokens >= 1.0 - EPSILON {
            self.tokens = (self.tokens - 1.0).max(0.0);
            return Ok(());
        }
        let token = Duration::from_secs_f64((1.0 - self.tokens) / self.effective);
        let spread = SPREAD
            .min(Duration::from_secs_f64(1.0 / self.effective))
            .mul_f64(schedule::unit(seed));
        Err(now.plus(token + spread + MILLISECOND))
    }

    /// Brings pause, reservation and tokens up to `now`. Returns the time that counts, which is
    /// later than `now` if an earlier caller gave a later one within [`SLACK`].
    fn advance(&mut self, now: At) -> At {
        let back = self.now.since(now);
        if back > SLACK {
            self.shift(back);
            self.now = now;
        }
        self.now = self.now.max(now);
        if self
            .pause
            .as_ref()
            .is_some_and(|pause| pause.until <= self.now)
        {
            self.pause = None;
        }
        self.kept_until = self.kept_until.filter(|until| *until > self.now);
        let elapsed = self.now.since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.effective).min(burst(self.effective));
        self.filled_at = self.filled_at.max(self.now);
        self.now
    }

    /// Moves every stored moment back with the clock.
    fn shift(&mut self, back: Duration) {
        let back = i64::try_from(back.as_millis()).unwrap_or(i64::MAX);
        let shift = |at: &mut At| at.0 = at.0.saturating_sub(back);
        shift(&mut self.filled_at);
        if let Some(until) = &mut self.kept_until {
            shift(until);
        }
        if let Some(pause) = &mut self.pause {
            shift(&mut pause.until);
        }
        if let Some(breaker) = &mut self.breaker {
            shift(&mut breaker.since);
            shift(&mut breaker.next_probe);
        }
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

/// The most tokens that are saved up at this rate.
fn burst(rate: f64) -> f64 {
    rate.ceil().max(1.0)
}

/// 1, 2, 4, 8, 15, 15, … minutes.
fn probe_interval(before: u32) -> Duration {
    PROBE_INTERVAL_MIN
        .saturating_mul(1 << before.min(10))
        .min(PROBE_INTERVAL_MAX)
}

/// 0, 0, 1, 2, 4, … 60, 60, … seconds: the upper end of the jitter after this many failures.
fn trouble_span(troubles: u32) -> Duration {
    match troubles.checked_sub(TROUBLES_FREE + 1) {
        None => Duration::ZERO,
        Some(doublings) => TROUBLE_PAUSE_BASE
            .saturating_mul(1 << doublings.min(10))
            .min(TROUBLE_PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: i64 = 1000;

    fn throttled(seconds: Option<u64>) -> ResponseClass {
        ResponseClass::RateLimited {
            retry_after: seconds.map(Duration::from_secs),
        }
    }
    fn refused() -> ResponseClass {
        ResponseClass::Denied {
            why: "the API key is not accepted (401)".to_owned(),
        }
    }
    fn trouble(retry_after: Option<u64>) -> ResponseClass {
        ResponseClass::Unavailable {
            why: "HTTP 503".to_owned(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }
    fn granted(limiter: &mut RateLimiter, now: At) -> usize {
        std::iter::from_fn(|| limiter.try_acquire(now, 1).ok())
            .take(100_000)
            .count()
    }

    #[test]
    fn a_second_gives_rate_tokens_and_a_long_silence_no_more_than_the_burst() {
        let mut limiter = RateLimiter::new(5.0, At(0));
        assert_eq!(granted(&mut limiter, At(0)), 5);
        assert_eq!(granted(&mut limiter, At(S)), 5);
        assert_eq!(granted(&mut limiter, At(1000 * S)), 5);
        let mut slow = RateLimiter::new(0.1, At(0));
        assert_eq!(granted(&mut slow, At(0)), 1);
        assert_eq!(granted(&mut slow, At(9 * S)), 0);
        assert_eq!(granted(&mut slow, At(10 * S)), 1);
    }

    #[test]
    fn what_was_begun_goes_on_before_anything_else_begins() {
        let mut limiter = RateLimiter::new(1.0, At(0));
        assert_eq!(limiter.try_acquire(At(0), 0), Ok(()));
        let at = limiter.try_acquire_reserved(At(0), 0).unwrap_err();
        assert!(at >= At(S));
        let later = limiter.try_acquire(at, 0).unwrap_err();
        assert!(later > at, "there is a token, and it is kept");
        assert_eq!(limiter.try_acquire_reserved(at, 0), Ok(()));
        let next = limiter.try_acquire(at, 0).unwrap_err();
        assert_eq!(
            limiter.try_acquire(next, 0),
            Ok(()),
            "nobody waits any more"
        );
    }

    #[test]
    fn a_token_is_not_kept_for_somebody_who_does_not_come() {
        let mut limiter = RateLimiter::new(1.0, At(0));
        assert_eq!(granted(&mut limiter, At(0)), 1);
        limiter.try_acquire_reserved(At(0), 0).unwrap_err();
        let at = limiter.try_acquire(At(0), 0).unwrap_err();
        assert_eq!(limiter.try_acquire(at, 0), Ok(()));
    }

    #[test]
    fn a_retry_after_stops_the_whole_source_and_good_news_from_before_does_not_lift_it() {
        let mut limiter = RateLimiter::new(5.0, At(0));
        limiter.observe(&throttled(Some(90)), At(0), 0);
        limiter.observe(&ResponseClass::Ok, At(S), 0);
        limiter.observe(&throttled(None), At(S), 0);
        assert!(limiter.try_acquire(At(90 * S - 1), 0).unwrap_err() > At(90 * S));
        assert_eq!(
            granted(&mut limiter, At(90 * S)),
            0,
            "our clock may be nearly a millisecond behind"
        );
        assert_eq!(
            granted(&mut limiter, At(90 * S + 1)),
            1,
            "a pause ends with one token, not with a burst"
        );
        let mut limiter = RateLimiter::new(5.0, At(0));
        let odd = Duration::from_micros(5_000_700);
        limiter.observe(
            &ResponseClass::RateLimited {
                retry_after: Some(odd),
            },
            At(0),
            0,
        );
        assert_eq!(
            granted(&mut limiter, At(5 * S + 1)),
            0,
            "it may have come at 0.9 ms"
        );
        assert_eq!(granted(&mut limiter, At(5 * S + 2)), 1);
    }

    #[test]
    fn a_429_without_a_value_pauses_for_a_minute() {
        let mut limiter = RateLimiter::new(5.0, At(0));
        limiter.observe(&throttled(None), At(0), 0);
        assert_eq!(granted(&mut limiter, At(60 * S)), 0);
        assert_eq!(granted(&mut limiter, At(60 * S + 1)), 1);
    }

    #[test]
    fn the_rate_halves_once_per_pause_and_comes_back_by_sixtieths() {
        let mut limiter = RateLimiter::new(6.0, At(0));
        for _ in 0..4 {
            limiter.observe(&throttled(Some(10)), At(0), 0);
        }
        assert!(
            (limiter.state(At(0)).effective_rate - 3.0).abs() < 1e-9,
            "four answers, one piece of news"
        );
        for round in 1..20 {
            limiter.observe(&throttled(Some(10)), At(round * 20 * S), 0);
        }
        assert!(
            (limiter.state(At(0)).effective_rate - 0.1).abs() < 1e-9,
            "not below a sixtieth"
        );
        limiter.observe(&ResponseClass::Ok, At(500 * S), 0);
        assert!((limiter.state(At(500 * S)).effective_rate - 0.2).abs() < 1e-9);
        for _ in 0..100 {
            limiter.observe(&ResponseClass::Ok, At(500 * S), 0);
        }
        assert!((limiter.state(At(500 * S)).effective_rate - 6.0).abs() < 1e-9);
    }

    #[test]
    fn two_troubles_pause_nothing_and_many_at_most_a_minute() {
        let mut limiter = RateLimiter::new(5.0, At(0));
        limiter.observe(&trouble(None), At(0), u64::MAX);
        limiter.observe(&trouble(None), At(0), u64::MAX);
        assert_eq!(limiter.state(At(0)).pause, None);
        let mut now = At(0);
        for seed in 0..100 {
            limiter.observe(&trouble(None), now, seed);
            let until = limiter.state(now).pause.map_or(now, |pause| pause.until);
            assert!(until.since(now) <= TROUBLE_PAUSE_MAX);
            now = until;
        }
        assert_eq!(limiter.state(now).troubles_in_a_row, 102);
        limiter.observe(&ResponseClass::Ok, now, 0);
        limiter.observe(&trouble(None), now, 0);
        assert_eq!(limiter.state(now).pause, None, "a good answer forgives");
    }

    #[test]
    fn the_back_off_doubles_from_one_second_and_stragglers_do_not_drive_it() {
        let spans: Vec<u64> = (1..12)
            .map(|troubles| trouble_span(troubles).as_secs())
            .collect();
        assert_eq!(spans, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        let mut limiter = RateLimiter::new(5.0, At(0));
        for _ in 0..50 {
            limiter.observe(&trouble(None), At(0), 3);
        }
        assert_eq!(limiter.state(At(0)).troubles_in_a_row, 3);
        assert_eq!(limiter.state(At(0)).responses.unavailable, 50);
    }

    #[test]
    fn a_single_503_with_a_retry_after_pauses() {
        let mut limiter = RateLimiter::new(5.0, At(0));
        limiter.observe(&trouble(Some(30)), At(0), 0);
        assert_eq!(granted(&mut limiter, At(30 * S - 1)), 0);
        assert_eq!(
            limiter.state(At(S)).pause.unwrap().reason,
            PauseReason::RetryAfter
        );
    }

    #[test]
    fn a_refused_key_is_probed_after_1_2_4_8_15_15_minutes() {
        let mut limiter = RateLimiter::new(5.0, At(0));
        limiter.observe(&refused(), At(0), 0);
        let mut now = At(0);
        let mut minutes = vec![];
        for _ in 0..6 {
            let due = limiter.probe_at().unwrap();
            assert!(!limiter.try_acquire_probe(At(due.0 - 1)));
            assert!(limiter.try_acquire(due, 0).is_err());
            assert!(limiter.try_acquire_probe(due));
            assert!(!limiter.try_acquire_probe(due), "one probe per interval");
            limiter.observe(&refused(), due, 0);
            minutes.push(due.since(now).as_secs() / 60);
            now = due;
        }
        assert_eq!(minutes, [1, 2, 4, 8, 15, 15]);
        limiter.observe(&ResponseClass::Ok, now, 0);
        assert!(
            limiter
                .try_acquire(now.plus(Duration::from_secs(1)), 0)
                .is_ok()
        );
        assert_eq!(limiter.probe_at(), None);
    }

    #[test]
    fn an_answer_that_was_under_way_does_not_close_the_breaker() {
        let mut limiter = RateLimiter::new(5.0, At(0));
        limiter.observe(&refused(), At(0), 0);
        limiter.observe(&ResponseClass::Ok, At(10), 0);
        assert!(limiter.try_acquire(At(20), 0).is_err());
    }

    #[test]
    fn a_key_that_passes_the_canary_and_nothing_else_is_tried_ever_more_rarely() {
        let mut limiter = RateLimiter::new(5.0, At(0));
        let mut now = At(0);
        let mut minutes = vec![];
        for _ in 0..6 {
            limiter.observe(&refused(), now, 0);
            let due = limiter.probe_at().unwrap();
            minutes.push(due.since(now).as_secs() / 60);
            assert!(limiter.try_acquire_probe(due));
            limiter.observe(&ResponseClass::Ok, due, 0);
            now = due;
        }
        assert_eq!(minutes, [1, 2, 4, 8, 15, 15]);
        limiter.observe(&ResponseClass::Ok, now, 0);
        limiter.observe(&refused(), now, 0);
        assert_eq!(limiter.probe_at(), Some(now.plus(Duration::from_secs(60))));
    }

    #[test]
    fn a_clock_that_steps_back_takes_the_pause_with_it() {
        let mut limiter = RateLimiter::new(5.0, At(1_000_000 * S));
        limiter.observe(&throttled(Some(60)), At(1_000_000 * S), 0);
        assert_eq!(granted(&mut limiter, At(0)), 0);
        assert_eq!(granted(&mut limiter, At(60 * S)), 0);
        assert_eq!(granted(&mut limiter, At(60 * S + 1)), 1);
    }

    #[test]
    fn nonsense_rates_do_not_panic() {
        for rate in [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            0.0,
            -1.0,
            f64::MIN_POSITIVE,
        ] {
            let mut limiter = RateLimiter::new(rate, At::NEVER);
            assert!(granted(&mut limiter, At::NEVER) >= 1);
            limiter.observe(&throttled(Some(u64::MAX)), At(i64::MIN), 0);
            assert!(limiter.try_acquire(At(i64::MIN), 0).is_err());
        }
    }

    #[test]
    fn the_state_is_json_that_names_the_reason() {
        let mut limiter = RateLimiter::new(2.0, At(0));
        limiter.observe(&throttled(Some(5)), At(0), 0);
        limiter.observe(&refused(), At(0), 0);
        let state = serde_json::to_value(limiter.state(At(S))).unwrap();
        assert_eq!(state["pause"]["until"], 5001);
        assert_eq!(state["pause"]["reason"], "retry_after");
        assert_eq!(state["breaker"]["next_probe"], 60_000);
        assert_eq!(state["responses"]["rate_limited"], 1);
        assert_eq!(state["effective_rate"], 1.0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask,
        GoOn,
        Probe,
        Told(ResponseClass),
    }

    fn classes() -> impl Strategy<Value = ResponseClass> {
        prop_oneof![
            4 => Just(ResponseClass::Ok),
            1 => prop::option::of(0_u64..600).prop_map(throttled),
            1 => Just(refused()),
            2 => prop::option::weighted(0.2, 0_u64..600).prop_map(trouble),
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<(i64, u64, Step)>> {
        let step = prop_oneof![
            4 => Just(Step::Ask),
            2 => Just(Step::GoOn),
            1 => Just(Step::Probe),
            2 => classes().prop_map(Step::Told),
        ];
        prop::collection::vec((0_i64..20_000, any::<u64>(), step), 1..150)
    }

    fn signed_steps() -> impl Strategy<Value = Vec<(i64, u64, ResponseClass)>> {
        prop::collection::vec(
            (-10_000_000_i64..10_000_000, any::<u64>(), classes()),
            1..60,
        )
    }

    #[test]
    fn a_reload_keeps_what_was_learned() {
        let mut limiter = RateLimiter::new(6.0, At(0));
        limiter.observe(
            &ResponseClass::RateLimited {
                retry_after: Some(Duration::from_secs(15)),
            },
            At(0),
            0,
        );
        limiter.observe(
            &ResponseClass::Denied {
                why: "401".to_owned(),
            },
            At(0),
            0,
        );
        let same = limiter.reloaded(6.0, false, At(0));
        assert_eq!(same, limiter);
        let slower = limiter.reloaded(2.0, true, At(1_000)).state(At(1_000));
        assert!((slower.effective_rate - 1.0).abs() < 0.01, "half of 2/s");
        assert_eq!(slower.pause, limiter.state(At(1_000)).pause);
        assert_eq!(slower.responses, limiter.state(At(1_000)).responses);
        assert_eq!(slower.breaker.unwrap().next_probe, At(1_000), "a new key");
        assert!(
            !limiter
                .reloaded(6.0, true, At(1_000))
                .try_acquire_probe(At(1_000))
        );
        assert!(
            limiter
                .reloaded(6.0, true, At(16_000))
                .try_acquire_probe(At(16_000))
        );
    }

    proptest! {
        #[test]
        fn no_window_sees_more_calls_than_rate_times_length_plus_burst(
            rate in 0.01_f64..20.0, gap in 1_i64..500, steps in steps()
        ) {
            let mut limiter = RateLimiter::new(rate, At(0));
            let (mut now, mut calls) = (0, vec![]);
            for (dt, seed, step) in steps {
                now += dt % gap;
                let granted = match step {
                    Step::Ask => limiter.try_acquire(At(now), seed).is_ok(),
                    Step::GoOn => limiter.try_acquire_reserved(At(now), seed).is_ok(),
                    Step::Probe => limiter.try_acquire_probe(At(now)),
                    Step::Told(class) => { limiter.observe(&class, At(now), seed); false }
                };
                calls.extend(granted.then_some(now));
            }
            for (i, from) in calls.iter().enumerate() {
                for (count, to) in calls[i..].iter().enumerate() {
                    #[expect(clippy::cast_precision_loss)]
                    let (count, seconds) = ((count + 1) as f64, (to - from) as f64 / 1000.0);
                    prop_assert!(count <= rate * seconds + rate.ceil().max(1.0) + 1e-6);
                }
            }
        }

        /// Neither to a request nor to a probe, whatever else is responses.
        #[test]
        fn nothing_is_granted_before_a_retry_after_has_passed(steps in steps()) {
            let mut limiter = RateLimiter::new(5.0, At(0));
            let (mut now, mut not_before) = (0, 0);
            for (dt, seed, step) in steps {
                now += dt;
                let granted = match step {
                    Step::Ask => limiter.try_acquire(At(now), seed).is_ok(),
                    Step::GoOn => limiter.try_acquire_reserved(At(now), seed).is_ok(),
                    Step::Probe => limiter.try_acquire_probe(At(now)),
                    Step::Told(class) => {
                        if let ResponseClass::RateLimited { retry_after: Some(span) }
                        | ResponseClass::Unavailable { retry_after: Some(span), .. } = &class {
                            not_before = not_before.max(At(now).plus(*span).0);
                        }
                        limiter.observe(&class, At(now), seed);
                        false
                    }
                };
                prop_assert!(!granted || now >= not_before, "granted at {now}, promised not before {not_before}");
            }
        }

        /// Between a refusal and the good answer to a probe.
        #[test]
        fn an_open_breaker_grants_probes_and_nothing_else(steps in steps()) {
            let mut limiter = RateLimiter::new(5.0, At(0));
            let (mut now, mut open, mut probed) = (0, false, false);
            for (dt, seed, step) in steps {
                now += dt;
                match step {
                    Step::Ask => prop_assert!(limiter.try_acquire(At(now), seed).is_err() || !open),
                    Step::GoOn => prop_assert!(limiter.try_acquire_reserved(At(now), seed).is_err() || !open),
                    Step::Probe => {
                        let granted = limiter.try_acquire_probe(At(now));
                        prop_assert!(open || !granted);
                        probed |= granted;
                    }
                    Step::Told(class) => {
                        limiter.observe(&class, At(now), seed);
                        match class {
                            ResponseClass::Denied { .. } if !open => (open, probed) = (true, false),
                            ResponseClass::Ok if probed => open = false,
                            _ => {}
                        }
                    }
                }
                prop_assert_eq!(limiter.state(At(now)).breaker.is_some(), open);
            }
        }

        /// However the clock jumps, the longest thing told is the longest thing waited for.
        #[test]
        fn a_jumping_clock_freezes_nothing_for_longer_than_the_longest_pause(steps in signed_steps()) {
            let mut limiter = RateLimiter::new(5.0, At(0));
            let mut now = 0;
            for (dt, seed, class) in steps {
                now += dt;
                let _ = if seed % 2 == 0 { limiter.try_acquire(At(now), seed) } else { limiter.try_acquire_reserved(At(now), seed) };
                limiter.observe(&class, At(now), seed);
            }
            let one_token = Duration::from_secs(12);
            let later = At(now).plus(PROBE_INTERVAL_MAX + SLACK + one_token);
            prop_assert!(limiter.try_acquire(later, 0).is_ok() || limiter.try_acquire_probe(later));
        }

        /// A caller that is alone succeeds when it comes back at the moment it was given.
        #[test]
        fn the_moment_it_names_is_good_for_a_caller_that_is_alone(
            rate in 0.01_f64..20.0, news in prop::collection::vec(classes(), 0..10), seed in any::<u64>()
        ) {
            let mut limiter = RateLimiter::new(rate, At(0));
            for class in news.iter().filter(|class| !matches!(class, ResponseClass::Denied { .. })) {
                limiter.observe(class, At(0), seed);
            }
            let refusal = std::iter::repeat_with(|| limiter.try_acquire(At(0), seed)).find_map(Result::err).unwrap();
            prop_assert!(refusal > At(0));
            prop_assert!(limiter.try_acquire(refusal, seed).is_ok());
        }
    }
}
