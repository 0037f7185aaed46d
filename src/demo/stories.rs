//! The stories that a run can live through: one table per account, with their weights.
//!
//! A story tells a run's states as the status endpoint will show them, the letters its cloud will
//! send, and the truth. The stranger ones are not invented: each contradicts itself in a way that
//! its provider has been seen to.

use std::time::Duration;

use super::dice::Dice;
use super::life::{Answers, DemoSource, Form, Hinge, Life, Mail, State, Truth};
use crate::model::{Kind, Outcome};

/// A life as its story has it, before any lie is told about it.
pub fn live(source: DemoSource, dice: &mut Dice) -> Life {
    let span = dice.millis(200, 3000);
    match source {
        DemoSource::Skyvern => dice.weigh(&SKYVERN)(dice, span),
        DemoSource::Tasks => task(dice, span),
        DemoSource::Sessions => session(dice, span),
        DemoSource::Runs => run(dice, span),
        DemoSource::Recipes => recipe(dice, span),
        DemoSource::Jobs => dice.weigh(&FIRECRAWL)(dice, span),
    }
}

/// The state that a forged webhook claims for a run of this account that really ends with `outcome`.
pub fn wrong(source: DemoSource, outcome: Outcome) -> State {
    let (if_good, if_bad) = match source {
        DemoSource::Tasks => ("stopped", "finished"),
        DemoSource::Sessions => ("stopped", "idle"),
        _ => ("failed", "completed"),
    };
    State::over(if outcome == Outcome::Succeeded {
        if_good
    } else {
        if_bad
    })
}

/// The clouds' test pings, as runs that never existed: Browser Use sends one when a webhook is set
/// up, before there is a secret to sign it with; Skyvern signs a sample.
pub fn pings() -> [Life; 3] {
    let ping = |source, kind, id: &str| Life {
        mail: vec![Mail {
            form: Form::Ping,
            ..Mail::new(Duration::from_millis(100), State::over("completed"))
        }],
        ..blank(source, kind, "a test ping", id.to_owned(), String::new())
    };
    [
        ping(DemoSource::Skyvern, Kind::Task, "tsk_sample_123456789"),
        ping(DemoSource::Tasks, Kind::Task, "test"),
        ping(DemoSource::Sessions, Kind::Session, "test"),
    ]
}

type Story = fn(&mut Dice, Duration) -> Life;

const SKYVERN: [(u32, Story); 7] = [
    (8, skyvern_task),
    (7, skyvern_workflow),
    (2, skyvern_retries),
    (2, skyvern_finally),
    (2, skyvern_cancel_race),
    (2, skyvern_pair),
    (1, skyvern_cancelled_twice),
];

const FIRECRAWL: [(u32, Story); 7] = [
    (6, firecrawl_pages),
    (3, firecrawl_cancelled_pages),
    (1, firecrawl_kickoff),
    (3, firecrawl_extract),
    (2, firecrawl_agent),
    (2, firecrawl_cancelled_agent),
    (3, firecrawl_batch),
];

/// A life of which nothing is known but what it is.
fn blank(source: DemoSource, kind: Kind, story: &'static str, id: String, group: String) -> Life {
    Life {
        source,
        kind,
        id,
        group,
        story,
        begins: Duration::ZERO,
        states: Vec::new(),
        mail: Vec::new(),
        truth: None,
        tracked: None,
        replay: None,
        only_listed: false,
        answers: Answers::default(),
    }
}

/// States at parts of a span.
fn states(span: Duration, course: &[(f64, State)]) -> Vec<(Duration, State)> {
    course
        .iter()
        .map(|(part, state)| (span.mul_f64(*part), *state))
        .collect()
}

const fn truth(outcome: Outcome) -> Truth {
    Truth {
        outcome,
        hinge: None,
    }
}

/// A little after the end: the cloud writes its letter once it has cleaned up.
fn soon(dice: &mut Dice, span: Duration) -> Duration {
    span + dice.millis(5, 300)
}

// ── Skyvern ─────────────────────────────────────────────────────────────────────────────────────

const SKYVERN_ENDS: [(u32, (&str, Outcome)); 5] = [
    (10, ("completed", Outcome::Succeeded)),
    (4, ("failed", Outcome::Failed)),
    (2, ("terminated", Outcome::Failed)),
    (1, ("timed_out", Outcome::TimedOut)),
    (2, ("canceled", Outcome::Cancelled)),
];

fn skyvern(dice: &mut Dice, kind: Kind, prefix: &str, story: &'static str) -> Life {
    let id = format!("{prefix}{}", dice.digits(18));
    blank(
        DemoSource::Skyvern,
        kind,
        story,
        id,
        format!("wpid_{}", dice.digits(18)),
    )
}

fn skyvern_ends(
    dice: &mut Dice,
    span: Duration,
    kind: Kind,
    prefix: &str,
    story: &'static str,
) -> Life {
    let (word, outcome) = *dice.weigh(&SKYVERN_ENDS);
    let end = State::over(word);
    let course = [
        (0.0, State::open("created")),
        (0.05, State::open("queued")),
        (0.2, State::open("running")),
        (1.0, end),
    ];
    Life {
        states: states(span, &course),
        mail: vec![Mail::new(soon(dice, span), end)],
        truth: Some(truth(outcome)),
        ..skyvern(dice, kind, prefix, story)
    }
}

fn skyvern_task(dice: &mut Dice, span: Duration) -> Life {
    skyvern_ends(dice, span, Kind::Task, "tsk_", "a task ends")
}

/// A workflow, perhaps one that waits for a person in between.
fn skyvern_workflow(dice: &mut Dice, span: Duration) -> Life {
    let mut life = skyvern_ends(dice, span, Kind::Workflow, "wr_", "a workflow ends");
    if dice.chance(0.2) {
        life.story = "a workflow pauses and ends";
        life.states
            .insert(3, (span.mul_f64(0.4), State::open("paused")));
        life.states
            .insert(4, (span.mul_f64(0.7), State::open("running")));
    }
    life
}

/// A retry policy: the run shows as failed, with another attempt to come, and says so by webhook.
fn skyvern_retries(dice: &mut Dice, span: Duration) -> Life {
    let (word, outcome) = *dice.pick(&[
        ("completed", Outcome::Succeeded),
        ("failed", Outcome::Failed),
    ]);
    let span = span.max(Duration::from_millis(900));
    let interim = State::over("failed").pending();
    let end = State::over(word).attempt(2);
    let course = [
        (0.0, State::open("queued")),
        (0.1, State::open("running")),
        (0.3, interim),
        (0.7, State::open("queued").attempt(2)),
        (0.75, State::open("running").attempt(2)),
        (1.0, end),
    ];
    let mail = vec![
        Mail::new(span.mul_f64(0.32), interim),
        Mail::new(soon(dice, span), end),
    ];
    Life {
        states: states(span, &course),
        mail,
        truth: Some(truth(outcome)),
        ..skyvern(dice, Kind::Workflow, "wr_", "a failed attempt is repeated")
    }
}

/// A `finally` block: failed, running again, and then ended, with one letter at the real end.
fn skyvern_finally(dice: &mut Dice, span: Duration) -> Life {
    let (word, outcome) = *dice.weigh(&[
        (4, ("failed", Outcome::Failed)),
        (1, ("completed", Outcome::Succeeded)),
    ]);
    let failed = span.max(Duration::from_millis(500));
    let again = failed + dice.millis(30, 400);
    let end = again + dice.millis(300, 2500);
    let states = vec![
        (Duration::ZERO, State::open("running")),
        (failed, State::over("failed")),
        (again, State::open("running")),
        (end, State::over(word)),
    ];
    Life {
        states,
        mail: vec![Mail::new(soon(dice, end), State::over(word))],
        truth: Some(truth(outcome)),
        ..skyvern(
            dice,
            Kind::Workflow,
            "wr_",
            "a finally block reopens a failed workflow",
        )
    }
}

/// Cancelled at once, says so, signed; then the executor overwrites it, and it fails.
fn skyvern_cancel_race(dice: &mut Dice, _: Duration) -> Life {
    let cancelled = dice.millis(20, 60);
    let running = cancelled + dice.millis(20, 80);
    let failed = running + dice.millis(200, 600);
    let states = vec![
        (Duration::ZERO, State::open("queued")),
        (cancelled, State::over("canceled")),
        (running, State::open("running")),
        (failed, State::over("failed")),
    ];
    let mail = vec![
        Mail::new(cancelled + dice.millis(2, 20), State::over("canceled")),
        Mail::new(failed + dice.millis(2, 60), State::over("failed")),
    ];
    Life {
        states,
        mail,
        truth: Some(truth(Outcome::Failed)),
        ..skyvern(
            dice,
            Kind::Task,
            "tsk_v2_",
            "a cancelled task runs on and fails",
        )
    }
}

/// Older servers: the task completes and says so, then the run is rewritten to failed, with a
/// second letter that is just as valid.
fn skyvern_pair(dice: &mut Dice, span: Duration) -> Life {
    let rewritten = span + dice.millis(100, 900);
    let states = vec![
        (Duration::ZERO, State::open("queued")),
        (span.mul_f64(0.2), State::open("running")),
        (span, State::over("completed")),
        (rewritten, State::over("failed")),
    ];
    let mail = vec![
        Mail::new(span + dice.millis(2, 50), State::over("completed")),
        Mail::new(rewritten + dice.millis(2, 50), State::over("failed")),
    ];
    let hinge = Some(Hinge {
        letter: 1,
        otherwise: Outcome::Succeeded,
    });
    Life {
        states,
        mail,
        truth: Some(Truth {
            outcome: Outcome::Failed,
            hinge,
        }),
        ..skyvern(
            dice,
            Kind::Task,
            "tsk_v2_",
            "a completed task is rewritten to failed",
        )
    }
}

/// A cancelled workflow says so twice, in different bytes.
fn skyvern_cancelled_twice(dice: &mut Dice, span: Duration) -> Life {
    let end = State::over("canceled");
    let course = [
        (0.0, State::open("queued")),
        (0.1, State::open("running")),
        (1.0, end),
    ];
    let mail = vec![
        Mail::new(span + dice.millis(2, 20), end),
        Mail {
            form: Form::Rewritten,
            ..Mail::new(span + dice.millis(500, 2000), end)
        },
    ];
    Life {
        states: states(span, &course),
        mail,
        truth: Some(truth(Outcome::Cancelled)),
        ..skyvern(
            dice,
            Kind::Workflow,
            "wr_",
            "a cancelled workflow says so twice",
        )
    }
}

// ── Browser Use ─────────────────────────────────────────────────────────────────────────────────

/// A v2 task. `finished` is not success; a failed task sends no letter.
fn task(dice: &mut Dice, span: Duration) -> Life {
    const ENDS: [(u32, (&str, State, Outcome)); 5] = [
        (
            10,
            (
                "a task finishes",
                State::over("finished").judged(Some(true)),
                Outcome::Succeeded,
            ),
        ),
        (
            2,
            (
                "a task finishes, nobody judged",
                State::over("finished"),
                Outcome::Succeeded,
            ),
        ),
        (
            4,
            (
                "a finished task did not succeed",
                State::over("finished").judged(Some(false)),
                Outcome::Failed,
            ),
        ),
        (
            2,
            (
                "a task fails without a word",
                State::over("failed").judged(Some(false)),
                Outcome::Failed,
            ),
        ),
        (
            2,
            (
                "a task is stopped",
                State::over("stopped"),
                Outcome::Cancelled,
            ),
        ),
    ];
    let (story, end, outcome) = *dice.weigh(&ENDS);
    let course = [
        (0.0, State::open("created")),
        (0.2, State::open("started")),
        (1.0, end),
    ];
    let mut mail = vec![Mail::new(span.mul_f64(0.22), State::open("started"))];
    if end.word != "failed" {
        mail.push(Mail::new(soon(dice, span), end));
    }
    Life {
        states: states(span, &course),
        mail,
        truth: Some(truth(outcome)),
        ..blank(
            DemoSource::Tasks,
            Kind::Task,
            story,
            dice.uuid(4),
            dice.uuid(4),
        )
    }
}

/// A v3 session of one task: idle before it starts, perhaps idle once more after it, then over.
fn session(dice: &mut Dice, span: Duration) -> Life {
    const ENDS: [(u32, (&str, State, Outcome)); 5] = [
        (
            8,
            (
                "a session stops after success",
                State::over("stopped").judged(Some(true)),
                Outcome::Succeeded,
            ),
        ),
        (
            3,
            (
                "a session stops without success",
                State::over("stopped").judged(Some(false)),
                Outcome::Failed,
            ),
        ),
        (
            1,
            (
                "a session is stopped",
                State::over("stopped"),
                Outcome::Cancelled,
            ),
        ),
        (
            1,
            (
                "a session times out without a word",
                State::over("timed_out"),
                Outcome::TimedOut,
            ),
        ),
        (
            1,
            (
                "a session breaks without a word",
                State::over("error"),
                Outcome::Failed,
            ),
        ),
    ];
    let (story, end, outcome) = *dice.weigh(&ENDS);
    let course = [
        (0.0, State::open("created")),
        (0.05, State::open("idle")),
        (0.3, State::open("running")),
        (1.0, end),
    ];
    let mut mail = vec![Mail::new(span.mul_f64(0.31), State::open("running"))];
    if end.word == "stopped" {
        mail.push(Mail::new(soon(dice, span), end));
    }
    Life {
        states: states(span, &course),
        mail,
        truth: Some(truth(outcome)),
        ..blank(
            DemoSource::Sessions,
            Kind::Session,
            story,
            dice.uuid(4),
            String::new(),
        )
    }
}

/// A v4 run: no letters at all.
fn run(dice: &mut Dice, span: Duration) -> Life {
    const ENDS: [(u32, (&str, State, Outcome)); 3] = [
        (
            6,
            (
                "a run completes without a word",
                State::over("completed"),
                Outcome::Succeeded,
            ),
        ),
        (
            2,
            (
                "a run fails without a word",
                State::over("failed"),
                Outcome::Failed,
            ),
        ),
        (
            1,
            (
                "a run is cancelled without a word",
                State::over("cancelled"),
                Outcome::Cancelled,
            ),
        ),
    ];
    let (story, end, outcome) = *dice.weigh(&ENDS);
    let course = [
        (0.0, State::open("queued")),
        (0.05, State::open("dispatching")),
        (0.2, State::open("running")),
        (1.0, end),
    ];
    Life {
        states: states(span, &course),
        truth: Some(truth(outcome)),
        ..blank(
            DemoSource::Runs,
            Kind::Agent,
            story,
            dice.uuid(4),
            dice.uuid(4),
        )
    }
}

// ── SmartBrowse ─────────────────────────────────────────────────────────────────────────────────

fn recipe(dice: &mut Dice, span: Duration) -> Life {
    const ENDS: [(u32, (&str, &str, Outcome)); 3] = [
        (8, ("a recipe completes", "completed", Outcome::Succeeded)),
        (3, ("a recipe fails", "failed", Outcome::Failed)),
        (
            1,
            ("a recipe is cancelled", "cancelled", Outcome::Cancelled),
        ),
    ];
    let (story, word, outcome) = *dice.weigh(&ENDS);
    let end = State::over(word);
    let course = [
        (0.0, State::open("queued")),
        (0.1, State::open("running")),
        (1.0, end),
    ];
    Life {
        states: states(span, &course),
        mail: vec![Mail::new(soon(dice, span), end)],
        truth: Some(truth(outcome)),
        ..blank(
            DemoSource::Recipes,
            Kind::Recipe,
            story,
            dice.base62(11),
            dice.base62(11),
        )
    }
}

// ── Firecrawl ───────────────────────────────────────────────────────────────────────────────────

fn firecrawl(dice: &mut Dice, kind: Kind, story: &'static str) -> Life {
    blank(DemoSource::Jobs, kind, story, dice.uuid(7), String::new())
}

/// The letters of a crawl or batch on its way.
fn pages(dice: &mut Dice, span: Duration) -> Vec<Mail> {
    let started = Mail::new(span.mul_f64(0.05), State::open("started"));
    let pages = 1 + dice.below(3);
    let page = |dice: &mut Dice| Mail::new(dice.part(span, 0.1, 1.0), State::open("page"));
    [started]
        .into_iter()
        .chain((0..pages).map(|_| page(dice)))
        .collect()
}

fn firecrawl_ends(dice: &mut Dice, span: Duration, kind: Kind, story: &'static str) -> Life {
    let course = [
        (0.0, State::open("scraping")),
        (1.0, State::over("completed")),
    ];
    let mut mail = pages(dice, span);
    mail.push(Mail::new(soon(dice, span), State::over("completed")));
    Life {
        states: states(span, &course),
        mail,
        truth: Some(truth(Outcome::Succeeded)),
        ..firecrawl(dice, kind, story)
    }
}

fn firecrawl_pages(dice: &mut Dice, span: Duration) -> Life {
    firecrawl_ends(dice, span, Kind::Crawl, "a crawl completes")
}

fn firecrawl_batch(dice: &mut Dice, span: Duration) -> Life {
    firecrawl_ends(dice, span, Kind::BatchScrape, "a batch completes")
}

/// Cancelled, and yet its letter says "completed", as if nothing had happened.
fn firecrawl_cancelled_pages(dice: &mut Dice, span: Duration) -> Life {
    let kind = *dice.pick(&[Kind::Crawl, Kind::BatchScrape]);
    let course = [
        (0.0, State::open("scraping")),
        (0.7, State::over("cancelled")),
    ];
    let mut mail = pages(dice, span);
    mail.push(Mail::new(
        span + dice.millis(50, 900),
        State::over("completed"),
    ));
    Life {
        states: states(span, &course),
        mail,
        truth: Some(truth(Outcome::Cancelled)),
        ..firecrawl(dice, kind, "a cancelled crawl says it completed")
    }
}

/// Never got going: failed from the first moment on, and no letter at all.
fn firecrawl_kickoff(dice: &mut Dice, _: Duration) -> Life {
    let states = vec![(Duration::ZERO, State::over("failed"))];
    let truth = Some(truth(Outcome::Failed));
    Life {
        states,
        truth,
        ..firecrawl(
            dice,
            Kind::Crawl,
            "a crawl fails at its start without a word",
        )
    }
}

fn firecrawl_extract(dice: &mut Dice, span: Duration) -> Life {
    const ENDS: [(u32, (&str, &str, Outcome)); 2] = [
        (3, ("an extract completes", "completed", Outcome::Succeeded)),
        (1, ("an extract fails", "failed", Outcome::Failed)),
    ];
    let (story, word, outcome) = *dice.weigh(&ENDS);
    working(dice, span, Kind::Extract, story, word, outcome)
}

fn firecrawl_agent(dice: &mut Dice, span: Duration) -> Life {
    const ENDS: [(u32, (&str, &str, Outcome)); 2] = [
        (3, ("an agent completes", "completed", Outcome::Succeeded)),
        (1, ("an agent fails", "failed", Outcome::Failed)),
    ];
    let (story, word, outcome) = *dice.weigh(&ENDS);
    working(dice, span, Kind::Agent, story, word, outcome)
}

/// An extract or agent: both are "processing" and then over.
fn working(
    dice: &mut Dice,
    span: Duration,
    kind: Kind,
    story: &'static str,
    word: &'static str,
    outcome: Outcome,
) -> Life {
    let end = State::over(word);
    let course = [(0.0, State::open("processing")), (1.0, end)];
    let mail = vec![
        Mail::new(span.mul_f64(0.05), State::open("started")),
        Mail::new(soon(dice, span), end),
    ];
    Life {
        states: states(span, &course),
        mail,
        truth: Some(truth(outcome)),
        ..firecrawl(dice, kind, story)
    }
}

/// A cancelled agent: its letter says so, its status says "failed".
fn firecrawl_cancelled_agent(dice: &mut Dice, span: Duration) -> Life {
    let course = [
        (0.0, State::open("processing")),
        (1.0, State::over("failed")),
    ];
    let mail = vec![
        Mail::new(span.mul_f64(0.05), State::open("started")),
        Mail::new(soon(dice, span), State::over("cancelled")),
    ];
    let hinge = Some(Hinge {
        letter: 1,
        otherwise: Outcome::Failed,
    });
    Life {
        states: states(span, &course),
        mail,
        truth: Some(Truth {
            outcome: Outcome::Cancelled,
            hinge,
        }),
        ..firecrawl(dice, Kind::Agent, "a cancelled agent shows as failed")
    }
}
