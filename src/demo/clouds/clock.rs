//! The clouds' time: that of the clock on the wall, except that it can be held.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::At;

/// A clock that has not begun, goes, or is held.
#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<Going>>);

#[derive(Clone, Copy, Debug)]
struct Going {
    began: Instant,
    wall: At,
    held_for: Duration,
    held_since: Option<Instant>,
    /// Where the hands were put, when it is moved by hand.
    hands: Option<Duration>,
}

impl Clock {
    /// Starts it. Only the first call counts.
    pub(super) fn begin(&self) {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let wall = At(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX));
        let going = Going {
            began: Instant::now(),
            wall,
            held_for: Duration::ZERO,
            held_since: None,
            hands: None,
        };
        self.with(|clock| {
            clock.get_or_insert(going);
        });
    }

    /// Puts its hands so long after a begin at `wall`; from then on it moves only by hand. The first
    /// call decides when the begin was.
    pub(super) fn turn_to(&self, wall: At, age: Duration) {
        let still = Going {
            began: Instant::now(),
            wall,
            held_for: Duration::ZERO,
            held_since: None,
            hands: None,
        };
        self.with(|clock| clock.get_or_insert(still).hands = Some(age));
    }

    /// How long it has been going.
    pub(super) fn now(&self) -> Duration {
        let now = |clock: &mut Option<Going>| {
            let going = (*clock)?;
            if going.hands.is_some() {
                return going.hands;
            }
            let held = going
                .held_since
                .map_or(Duration::ZERO, |since| since.elapsed());
            Some(going.began.elapsed().saturating_sub(going.held_for + held))
        };
        self.with(now).unwrap_or_default()
    }

    /// The time of day at which it began.
    pub(super) fn wall(&self) -> At {
        self.with(|clock| clock.map(|going| going.wall))
            .unwrap_or_default()
    }

    /// Holds it or lets it go on.
    pub(super) fn hold(&self, hold: bool) {
        self.with(|clock| {
            let Some(going) = clock else { return };
            match (going.held_since, hold) {
                (None, true) => going.held_since = Some(Instant::now()),
                (Some(since), false) => {
                    going.held_for += since.elapsed();
                    going.held_since = None;
                }
                _ => {}
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Option<Going>) -> T) -> T {
        act(&mut self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_while_it_is_held() {
        let clock = Clock::default();
        assert_eq!(clock.now(), Duration::ZERO);
        clock.begin();
        clock.hold(true);
        let before = clock.now();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(clock.now().as_millis(), before.as_millis());
        clock.hold(false);
        std::thread::sleep(Duration::from_millis(5));
        assert!(
            clock.now() >= before + Duration::from_millis(5)
                && clock.now() < before + Duration::from_secs(10)
        );
    }
}
