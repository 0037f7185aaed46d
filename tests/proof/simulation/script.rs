//! What will happen in a world, as a function of its seed: the demo's lives and lies, stretched to
//! the length of real days, and everything that breaks around them.

use std::time::Duration;

use settled::demo::dice::Dice;
use settled::demo::life::{Cloud, Life, Stumble};
use settled::demo::plan::{Plan, Rates};

/// Something that reaches the daemon from outside, or befalls it.
#[derive(Clone, Debug)]
pub enum Input {
    /// A letter leaves: of a run, or of one that never was.
    Letter {
        run: usize,
        ghost: bool,
        letter: usize,
    },
    /// A client tells of a run.
    Track { run: usize },
    /// An operator polls for a run's webhook once more, and reads it out of the answer.
    Replay { run: usize },
    /// A cloud is not itself for a while.
    Spell(Spell),
    /// The daemon dies and is started again so much later.
    Crash { down: Duration, over: Over },
    /// Somebody sets the daemon's clock.
    Step { millis: i64 },
}

/// Over what the daemon dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nothing: at once, and what it has written is there.
    Nothing,
    /// The power fails while the promise of what reaches it next is written.
    Promise,
    /// It has promised what reaches it next, and has no opinion of it yet.
    Between,
    /// The power fails while the opinion of what reaches it next is written.
    Opinion,
}

/// What is wrong with a cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sky {
    /// No connection.
    Silent,
    /// 500, whatever is asked.
    Broken,
    /// "Too fast", whatever is asked.
    Overwhelmed,
    /// The key is refused.
    Refusing,
}

/// A time in which a cloud answers no question as it should.
#[derive(Clone, Copy, Debug)]
pub struct Spell {
    pub cloud: Cloud,
    pub sky: Sky,
    pub from: Duration,
    pub until: Duration,
}

/// A world before it turns.
pub struct Script {
    pub plan: Plan,
    /// In the order of their times.
    pub inputs: Vec<(Duration, Input)>,
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// The lives of the demo take seconds. Those that come back from the dead do so within what the
/// policies wait for, at this factor as at the demo's own.
const SLOWER: u32 = 100;

impl Script {
    /// The script of a seed: every fourth is honest and long.
    pub fn new(seed: u64) -> Script {
        let honest = seed % 4 == 3;
        let mut dice = Dice::new(seed, 0x5157);
        let (runs, days) = if honest {
            (60, 6)
        } else {
            (40, 1 + dice.below(2))
        };
        let rates = if honest {
            Rates::HONEST
        } else {
            Rates {
                tracked_late: 0.3,
                ..Rates::default()
            }
        };
        let window = Duration::from_secs(days * 86_400);
        let mut plan = Plan::new(seed, runs, &rates);
        for life in plan.runs.iter_mut().chain(&mut plan.ghosts) {
            stretch(life, &mut dice);
            life.begins = dice.part(window, 0.0, 1.0);
            if !honest {
                delay_and_repeat(life, &mut dice);
            }
        }
        let mut inputs = outside(&plan);
        if !honest {
            inputs.extend(misfortunes(window, &mut dice));
        }
        inputs.sort_by_key(|(at, _)| *at);
        Script { plan, inputs }
    }

    /// The script in which a plan is all that happens.
    pub fn of(plan: Plan) -> Script {
        let mut inputs = outside(&plan);
        inputs.sort_by_key(|(at, _)| *at);
        Script { plan, inputs }
    }

    /// The same world in which nothing further happens after so many inputs.
    #[must_use]
    pub fn cut(mut self, inputs: usize) -> Script {
        self.inputs.truncate(inputs);
        self
    }

    /// When the last thing has gone wrong and the last run is over.
    pub fn calm(&self) -> Duration {
        let faults = self.inputs.iter().map(|(at, input)| match input {
            Input::Spell(spell) => spell.until,
            Input::Crash { down, .. } => *at + *down,
            // A sender that finds nobody tries for minutes.
            _ => *at + 5 * MINUTE,
        });
        let lives = self
            .plan
            .runs
            .iter()
            .map(|life| life.begins + life.ends() + lateness(life));
        faults.chain(lives).max().unwrap_or_default() + MINUTE
    }

    /// What is wrong with a cloud at a moment.
    pub fn sky(&self, cloud: Cloud, now: Duration) -> Option<Spell> {
        let spells = self.inputs.iter().filter_map(|(_, input)| match input {
            Input::Spell(spell) => Some(*spell),
            _ => None,
        });
        spells
            .into_iter()
            .find(|spell| spell.cloud == cloud && (spell.from..spell.until).contains(&now))
    }
}

/// How long after its end a run's status may show something else.
fn lateness(life: &Life) -> Duration {
    let deaf = life
        .answers
        .deaf_until
        .unwrap_or_default()
        .saturating_sub(life.ends());
    life.answers.lag.max(deaf).max(life.answers.hidden_until)
}

/// Lives a life at the pace of a real one; half of the plain ones for hours.
fn stretch(life: &mut Life, dice: &mut Dice) {
    let plain = life.states.iter().filter(|(_, state)| state.over).count() == 1;
    let factor = if plain && dice.chance(0.5) {
        SLOWER * u32::try_from(2 + dice.below(30)).unwrap()
    } else {
        SLOWER
    };
    let ended = life.ends();
    life.states.iter_mut().for_each(|(at, _)| *at *= factor);
    life.mail
        .iter_mut()
        .flat_map(|mail| &mut mail.times)
        .for_each(|at| *at *= factor);
    let ends = life.ends();
    life.tracked = life.tracked.map(|at| {
        at.checked_sub(ended)
            .map_or(at, |late| ends + late * SLOWER)
    });
    if let Some(replay) = &mut life.replay {
        replay.at *= factor;
    }
    life.answers.lag *= SLOWER;
    life.answers.hidden_until *= SLOWER / 2;
    life.answers.deaf_until = life
        .answers
        .deaf_until
        .map(|_| ends + dice.part(HOUR, 0.01, 1.0));
    for stumble in life.answers.stumbles.iter_mut().flatten() {
        if let Stumble::Slow(span) = stumble {
            *span *= 30;
        }
    }
}

/// What the way from a cloud to us does to its letters.
fn delay_and_repeat(life: &mut Life, dice: &mut Dice) {
    for mail in &mut life.mail {
        if dice.chance(0.15) {
            let late = up_to_half_a_day(dice);
            mail.times.iter_mut().for_each(|at| *at += late);
        }
        if dice.chance(0.2) {
            let first = mail.times[0];
            let copies = 1 + dice.below(5);
            mail.times
                .extend((0..copies).map(|_| first + up_to_half_a_day(dice)));
            mail.times.sort();
        }
    }
}

/// Mostly minutes, sometimes hours, sometimes nothing at all.
fn up_to_half_a_day(dice: &mut Dice) -> Duration {
    let most = *dice.pick(&[Duration::ZERO, MINUTE, 10 * MINUTE, HOUR, 12 * HOUR]);
    dice.part(most, 0.0, 1.0)
}

fn outside(plan: &Plan) -> Vec<(Duration, Input)> {
    let mut inputs = Vec::new();
    for (run, life) in plan.runs.iter().enumerate() {
        inputs.extend(letters(life, run, false));
        inputs.extend(
            life.tracked
                .map(|at| (life.begins + at, Input::Track { run })),
        );
        inputs.extend(
            life.replay
                .map(|replay| (life.begins + replay.at, Input::Replay { run })),
        );
    }
    inputs.extend(
        plan.ghosts
            .iter()
            .enumerate()
            .flat_map(|(run, life)| letters(life, run, true)),
    );
    inputs
}

fn letters(life: &Life, run: usize, ghost: bool) -> impl Iterator<Item = (Duration, Input)> {
    let sent = life
        .mail
        .iter()
        .enumerate()
        .filter(|(_, mail)| !mail.dropped);
    sent.flat_map(move |(letter, mail)| {
        mail.times
            .iter()
            .map(move |at| (life.begins + *at, Input::Letter { run, ghost, letter }))
    })
}

/// Outages, crashes and clocks.
fn misfortunes(window: Duration, dice: &mut Dice) -> Vec<(Duration, Input)> {
    let mut all = Vec::new();
    for cloud in Cloud::ALL {
        for _ in 0..dice.below(4) {
            let from = dice.part(window, 0.0, 1.0);
            let most = *dice.pick(&[5 * MINUTE, HOUR, 6 * HOUR]);
            let until = from + MINUTE + dice.part(most, 0.0, 1.0);
            let sky = *dice.pick(&[Sky::Silent, Sky::Broken, Sky::Overwhelmed, Sky::Refusing]);
            all.push((
                from,
                Input::Spell(Spell {
                    cloud: *cloud,
                    sky,
                    from,
                    until,
                }),
            ));
        }
    }
    for _ in 0..dice.below(7) {
        let most = *dice.pick(&[2 * Duration::from_secs(1), MINUTE, HOUR]);
        let over = *dice.pick(&[Over::Nothing, Over::Promise, Over::Between, Over::Opinion]);
        let crash = Input::Crash {
            down: dice.part(most, 0.1, 1.0),
            over,
        };
        all.push((dice.part(window, 0.0, 1.0), crash));
    }
    for _ in 0..dice.below(3) {
        let millis = if dice.chance(0.5) {
            3_600_000
        } else {
            -3_600_000
        };
        all.push((dice.part(window, 0.0, 1.0), Input::Step { millis }));
    }
    all
}
