//! The plan of a demo: every run there will be, how it truly ends, and every lie that will be told
//! about it. Pure: a function of a seed, so the same seed tells the same lies at the same moments.
//!
//! A [`Life`] is what one run goes through: its states as the status endpoint shows them, the mail
//! its cloud sends about it, and how badly questions about it are answered. What may happen to a
//! run at all stands in [`super::stories`]; here lies are laid over it at the stated [`Rates`].

use std::time::Duration;

use super::dice::Dice;
use super::life::{Cloud, DemoSource, Forgery, Form, Life, Mail, Poison, Replay, Stumble};
use super::stories;
use crate::model::Outcome;

/// How often which lie is told. Rates are per run or per letter, between 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Runs that the client tracks only after they have ended.
    pub tracked_late: f64,
    /// Runs that nobody tracks: a webhook or a list must make them known.
    pub never_tracked: f64,
    /// Letters that are never sent.
    pub dropped: f64,
    /// Letters that leave up to four seconds late.
    pub delayed: f64,
    /// Letters that are sent up to three times more, byte by byte the same.
    pub repeated: f64,
    /// Letters that are sent once more in other words: a new delivery id, another time stamp.
    pub rewritten: f64,
    /// Letters about a start or a page that leave after the one about the end.
    pub reordered: f64,
    /// Letters about an end, correctly signed, that no parser survives or understands.
    pub poisoned: f64,
    /// Runs about which somebody else sends a letter with the wrong outcome and no valid proof.
    pub forged: f64,
    /// Browser Use runs about which a genuine letter, an hour old, says the wrong thing.
    pub stale: f64,
    /// Forged letters about runs that never existed, per run that does.
    pub unknown_runs: f64,
    /// Questions, up to two per run, that are answered with a 500 or a 503, slowly, with garbage,
    /// or with half a body and a closed connection.
    pub stumbling: f64,
    /// Runs whose status is 404 for up to a second after their start.
    pub hidden: f64,
    /// Runs whose status endpoint lags up to a second behind.
    pub lagging: f64,
    /// SmartBrowse runs whose status endpoint answers 500 for longer than the daemon waits for it.
    pub deaf: f64,
    /// Skyvern runs with a lost letter for which an operator asks once more as soon as they end.
    pub replayed: f64,
    /// Moments per cloud and ten seconds at which it answers everything with 429 (Skyvern: 503).
    pub throttled: f64,
}

impl Default for Rates {
    fn default() -> Rates {
        Rates {
            tracked_late: 0.15,
            never_tracked: 0.25,
            dropped: 0.20,
            delayed: 0.10,
            repeated: 0.08,
            rewritten: 0.06,
            reordered: 0.10,
            poisoned: 0.02,
            forged: 0.10,
            stale: 0.08,
            unknown_runs: 0.03,
            stumbling: 0.08,
            hidden: 0.05,
            lagging: 0.10,
            deaf: 0.03,
            replayed: 0.5,
            throttled: 0.5,
        }
    }
}

impl Rates {
    /// No lies. The contradictions of the providers themselves ([`stories`]) remain.
    pub const HONEST: Rates = Rates {
        tracked_late: 0.0,
        never_tracked: 0.0,
        dropped: 0.0,
        delayed: 0.0,
        repeated: 0.0,
        rewritten: 0.0,
        reordered: 0.0,
        poisoned: 0.0,
        forged: 0.0,
        stale: 0.0,
        unknown_runs: 0.0,
        stumbling: 0.0,
        hidden: 0.0,
        lagging: 0.0,
        deaf: 0.0,
        replayed: 0.0,
        throttled: 0.0,
    };
}

/// A moment at which a cloud answers every question with "too fast" or "not now".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Whose.
    pub cloud: Cloud,
    /// From when after the begin of the demo …
    pub from: Duration,
    /// … until when.
    pub until: Duration,
}

/// The plan of a demo.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The seed it was made from.
    pub seed: u64,
    /// Every run, in the order of their begins.
    pub runs: Vec<Life>,
    /// Runs that never existed and are written about all the same.
    pub ghosts: Vec<Life>,
    /// When the clouds are overwhelmed.
    pub throttles: Vec<Throttle>,
    /// When the daemon is killed and started again.
    pub kills: Vec<Duration>,
}

/// So many runs begin in a second.
const RUNS_PER_SECOND: f64 = 125.0;
/// Runs begin within this time at least, however few they are.
const WINDOW_MIN: Duration = Duration::from_secs(3);
/// Longer than the demo's configuration lets a webhook wait for its answer.
const DEAF_FOR: Duration = Duration::from_secs(25);
/// How long a cloud is overwhelmed.
const THROTTLED_FOR: (u64, u64) = (400, 900);

/// Which account how many runs of a hundred run in.
const SHARES: [(u32, DemoSource); 6] = [
    (30, DemoSource::Skyvern),
    (15, DemoSource::Tasks),
    (8, DemoSource::Sessions),
    (7, DemoSource::Runs),
    (20, DemoSource::Recipes),
    (20, DemoSource::Jobs),
];

impl Plan {
    /// The plan of this seed.
    pub fn new(seed: u64, runs: usize, rates: &Rates) -> Plan {
        let window = window(runs);
        let mut runs: Vec<Life> = (0..runs)
            .map(|number| life(seed, number, runs, window, rates))
            .collect();
        runs.sort_by_key(|life| life.begins);
        let mut ghosts = ghosts(seed, runs.len(), window, rates);
        ghosts.extend(stories::pings());
        let throttles = throttles(seed, window, rates);
        Plan {
            seed,
            runs,
            ghosts,
            throttles,
            kills: Vec::new(),
        }
    }

    /// The same plan with so many kills while runs begin and end.
    #[must_use]
    pub fn with_kills(mut self, kills: usize) -> Plan {
        let window =
            self.runs.last().map(|life| life.begins).unwrap_or_default() + Duration::from_secs(2);
        let mut dice = Dice::new(self.seed, u64::MAX - 3);
        self.kills = (0..kills).map(|_| dice.part(window, 0.1, 0.95)).collect();
        self.kills.sort_unstable();
        self
    }

    /// When the last thing of the plan happens, after the begin of the demo.
    pub fn done(&self) -> Duration {
        self.runs
            .iter()
            .chain(&self.ghosts)
            .map(|life| life.begins + life.done())
            .max()
            .unwrap_or_default()
    }

    /// Whether this cloud is overwhelmed then, and until when.
    pub fn throttled(&self, cloud: Cloud, now: Duration) -> Option<Throttle> {
        self.throttles
            .iter()
            .copied()
            .find(|t| t.cloud == cloud && (t.from..t.until).contains(&now))
    }
}

/// The time within which all runs begin.
fn window(runs: usize) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "nobody plans 2^52 runs")]
    let seconds = runs as f64 / RUNS_PER_SECOND;
    Duration::from_secs_f64(seconds).max(WINDOW_MIN)
}

/// The `number`-th of `count` lives.
fn life(seed: u64, number: usize, count: usize, window: Duration, rates: &Rates) -> Life {
    let mut dice = Dice::new(seed, number as u64);
    let source = *dice.weigh(&SHARES);
    let mut life = stories::live(source, &mut dice);
    #[expect(clippy::cast_precision_loss, reason = "nobody plans 2^52 runs")]
    let place = (number as f64 + dice.unit()) / count as f64;
    life.begins = window.mul_f64(place);
    let plain = life.plain();
    track(&mut life, rates, &mut dice);
    lose(&mut life, rates, &mut dice);
    shuffle(&mut life, rates, &mut dice);
    life.only_listed = !life.told_of();
    replay(&mut life, plain, rates, &mut dice);
    forge(&mut life, rates, &mut dice);
    misanswer(&mut life, plain, rates, &mut dice);
    life
}

/// Decides when a client tells the daemon of the run, if it does.
fn track(life: &mut Life, rates: &Rates, dice: &mut Dice) {
    let thrown = dice.unit();
    life.tracked = if thrown < rates.never_tracked && life.discoverable() {
        None
    } else if thrown < rates.never_tracked + rates.tracked_late {
        Some(life.ends() + dice.millis(100, 1500))
    } else {
        Some(dice.millis(5, 60))
    };
}

/// Loses, poisons and delays letters.
fn lose(life: &mut Life, rates: &Rates, dice: &mut Dice) {
    let tracked = life.tracked.is_some();
    let unlisted = life.source == DemoSource::Recipes;
    let hinge = life
        .truth
        .and_then(|truth| truth.hinge)
        .map(|hinge| hinge.letter);
    for (number, mail) in life.mail.iter_mut().enumerate() {
        // One letter alone carries this truth, or nothing else makes this run known.
        let vital = hinge == Some(number) || (unlisted && !tracked);
        let (dropped, poisoned, delayed) = (
            dice.chance(rates.dropped),
            dice.chance(rates.poisoned),
            dice.chance(rates.delayed),
        );
        let delay = dice.millis(300, 4000);
        let poison = *dice.pick(&[Poison::Deep, Poison::NotUtf8, Poison::NotANumber]);
        if dropped && !vital {
            mail.dropped = true;
        } else if poisoned && !vital && mail.says.over {
            mail.form = Form::Poisoned(poison);
        } else if delayed {
            mail.times[0] += delay;
        }
    }
}

/// Repeats, rewrites and reorders letters.
fn shuffle(life: &mut Life, rates: &Rates, dice: &mut Dice) {
    let ends = life.ends();
    let resends = life.source.cloud() != Cloud::SmartBrowse; // that one never sends anything twice
    let mut rewritten = Vec::new();
    for mail in life.mail.iter_mut().filter(|mail| !mail.dropped) {
        if dice.chance(rates.reordered) && !mail.says.over {
            mail.times[0] = ends + dice.millis(20, 800);
        }
        if dice.chance(rates.repeated) && resends {
            let first = mail.times[0];
            for _ in 0..=dice.below(3) {
                mail.times.push(first + dice.millis(20, 2500));
            }
            mail.times.sort();
        }
        if dice.chance(rates.rewritten) && resends && mail.form == Form::Genuine {
            let at = mail.times[0] + dice.millis(50, 3000);
            rewritten.push(Mail {
                form: Form::Rewritten,
                times: vec![at],
                ..mail.clone()
            });
        }
    }
    life.mail.extend(rewritten);
}

/// Decides whether an operator asks for a lost letter.
fn replay(life: &mut Life, plain: bool, rates: &Rates, dice: &mut Dice) {
    let wish = Replay {
        at: life.ends() + dice.millis(50, 400),
        elsewhere: dice.chance(0.5),
    };
    let lost = life.mail.iter().any(|mail| mail.says.over && mail.dropped);
    let known = life.tracked.is_some_and(|at| at < wish.at);
    if dice.chance(rates.replayed) && life.source == DemoSource::Skyvern && plain && lost && known {
        life.replay = Some(wish);
    }
}

/// Adds letters that somebody else wrote, or that are not of today.
fn forge(life: &mut Life, rates: &Rates, dice: &mut Dice) {
    let Some(truth) = life.truth else { return };
    let span = life.ends().max(Duration::from_millis(200));
    if dice.chance(rates.forged) {
        let forgery = *dice.pick(&[Forgery::MadeUp, Forgery::OtherKey, Forgery::Unsigned]);
        let mail = Mail::new(
            dice.part(span, 0.05, 1.3),
            stories::wrong(life.source, truth.outcome),
        );
        life.mail.push(Mail {
            form: Form::Forged(forgery),
            ..mail
        });
    }
    if dice.chance(rates.stale) && matches!(life.source, DemoSource::Tasks | DemoSource::Sessions) {
        let mail = Mail::new(
            dice.part(span, 0.05, 1.3),
            stories::wrong(life.source, truth.outcome),
        );
        life.mail.push(Mail {
            form: Form::Stale,
            ..mail
        });
    }
}

/// Decides how questions about the run are answered.
fn misanswer(life: &mut Life, plain: bool, rates: &Rates, dice: &mut Dice) {
    life.answers.stumbles = (0..2)
        .map(|_| dice.chance(rates.stumbling).then(|| stumble(dice)))
        .collect();
    if dice.chance(rates.hidden) {
        life.answers.hidden_until = dice.millis(200, 1000);
    }
    let lag = dice.millis(100, 1000);
    if dice.chance(rates.lagging) && plain {
        life.answers.lag = lag;
    }
    let told = life.mail.iter().any(|mail| mail.tells() && mail.says.over);
    if dice.chance(rates.deaf) && plain && told && life.trusted_alone() {
        life.answers.deaf_until = Some(life.ends() + DEAF_FOR);
        life.begins /= 4; // so that nobody has to wait for them at the end
    }
}

fn stumble(dice: &mut Dice) -> Stumble {
    let slow = Stumble::Slow(dice.millis(200, 1200));
    *dice.pick(&[
        Stumble::Broken,
        Stumble::Unavailable,
        Stumble::CutOff,
        slow,
        Stumble::Garbage,
    ])
}

impl Life {
    /// Whether the states only ever go forward, so that lag cannot turn one story into another.
    fn plain(&self) -> bool {
        self.states.iter().filter(|(_, state)| state.over).count() == 1
    }

    /// Whether the run can become known although nobody tracks it, even if its letters are lost: it
    /// can be made to stay on its cloud's list until it is seen. (SmartBrowse has no list; there the
    /// letter is not lost.)
    fn discoverable(&self) -> bool {
        self.plain() && !self.ends().is_zero()
    }

    /// Whether the letter about the end says what the status endpoint would, and the daemon would
    /// rather hear it from there: so are SmartBrowse's.
    fn trusted_alone(&self) -> bool {
        self.source == DemoSource::Recipes
            && self
                .mail
                .iter()
                .all(|mail| !matches!(mail.form, Form::Poisoned(_)))
    }
}

/// Runs that never existed, with a forged letter each.
fn ghosts(seed: u64, runs: usize, window: Duration, rates: &Rates) -> Vec<Life> {
    let mut dice = Dice::new(seed, u64::MAX);
    (0..runs)
        .filter_map(|_| {
            if !dice.chance(rates.unknown_runs) {
                return None;
            }
            let source = *dice.weigh(&SHARES);
            let lived = stories::live(source, &mut dice);
            let says = stories::wrong(source, Outcome::Failed);
            let forgery = *dice.pick(&[Forgery::MadeUp, Forgery::OtherKey, Forgery::Unsigned]);
            let mail = vec![Mail {
                form: Form::Forged(forgery),
                ..Mail::new(Duration::ZERO, says)
            }];
            let begins = dice.part(window, 0.0, 1.0);
            Some(Life {
                begins,
                mail,
                states: Vec::new(),
                truth: None,
                story: "never existed",
                ..lived
            })
        })
        .collect()
}

/// When the clouds are overwhelmed.
fn throttles(seed: u64, window: Duration, rates: &Rates) -> Vec<Throttle> {
    let mut dice = Dice::new(seed, u64::MAX - 1);
    let slots = window.as_secs() / 10 + 1;
    let mut all = Vec::new();
    for cloud in Cloud::ALL {
        for slot in 0..slots {
            let from = Duration::from_secs(slot * 10) + dice.millis(500, 8500);
            let until = from + dice.millis(THROTTLED_FOR.0, THROTTLED_FOR.1);
            if dice.chance(rates.throttled) {
                all.push(Throttle {
                    cloud: *cloud,
                    from,
                    until,
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::life::Answers;

    #[test]
    fn the_same_seed_tells_the_same_lies() {
        let rates = Rates::default();
        assert_eq!(Plan::new(1, 500, &rates), Plan::new(1, 500, &rates));
        assert_ne!(Plan::new(1, 500, &rates), Plan::new(2, 500, &rates));
    }

    #[test]
    fn every_run_can_become_known() {
        for life in Plan::new(3, 5000, &Rates::default()).runs {
            assert!(life.told_of() != life.only_listed, "{life:?}");
            assert!(
                !life.only_listed
                    || (life.source != DemoSource::Recipes && life.last_open().is_some()),
                "{life:?}"
            );
        }
    }

    #[test]
    fn ids_are_unique_and_lives_have_an_end() {
        let plan = Plan::new(4, 5000, &Rates::default());
        let mut ids: Vec<_> = plan
            .runs
            .iter()
            .chain(&plan.ghosts)
            .map(|life| (life.source, &life.id))
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), plan.runs.len() + plan.ghosts.len());
        for life in &plan.runs {
            assert!(life.states.last().unwrap().1.over, "{life:?}");
            assert!(life.states.is_sorted_by_key(|(at, _)| *at), "{life:?}");
            assert!(life.truth.is_some());
        }
        assert!(
            plan.ghosts
                .iter()
                .all(|life| life.truth.is_none() && life.state_at(Duration::MAX).is_none())
        );
    }

    #[test]
    fn every_lie_is_told_in_a_thousand_runs() {
        let plan = Plan::new(1, 1000, &Rates::default());
        let mail: Vec<&Mail> = plan.runs.iter().flat_map(|life| &life.mail).collect();
        let told = |lie: &dyn Fn(&Mail) -> bool| mail.iter().any(|mail| lie(mail));
        assert!(told(&|mail| mail.dropped) && told(&|mail| mail.times.len() > 1));
        for form in [Form::Rewritten, Form::Stale] {
            assert!(told(&|mail| mail.form == form), "{form:?}");
        }
        for forgery in [Forgery::MadeUp, Forgery::OtherKey, Forgery::Unsigned] {
            assert!(
                told(&|mail| mail.form == Form::Forged(forgery)),
                "{forgery:?}"
            );
        }
        for poison in [Poison::Deep, Poison::NotUtf8, Poison::NotANumber] {
            assert!(
                told(&|mail| mail.form == Form::Poisoned(poison)),
                "{poison:?}"
            );
        }
        assert!(plan.ghosts.len() > 10 && !plan.throttles.is_empty());
        assert!(
            plan.runs
                .iter()
                .any(|life| life.answers.deaf_until.is_some())
        );
        assert!(
            plan.runs
                .iter()
                .any(|life| life.replay.is_some_and(|replay| replay.elsewhere))
        );
    }

    #[test]
    fn honest_clouds_tell_no_lies() {
        let plan = Plan::new(1, 500, &Rates::HONEST);
        assert!(
            plan.ghosts
                .iter()
                .all(|ghost| ghost.mail[0].form == Form::Ping)
                && plan.throttles.is_empty()
        );
        for life in &plan.runs {
            assert!(
                life.mail
                    .iter()
                    .all(|mail| mail.tells() && mail.times.len() == 1)
            );
            assert_eq!(
                life.answers,
                Answers {
                    stumbles: vec![None, None],
                    ..Answers::default()
                }
            );
        }
    }

    #[test]
    fn a_thousand_runs_are_over_within_half_a_minute() {
        let plan = Plan::new(1, 1000, &Rates::default());
        assert!(plan.done() < Duration::from_secs(25), "{:?}", plan.done());
    }
}
