//! A planned run: its states over time, the webhooks that its cloud sends, how it answers polls, and
//! the truth about its end.

use std::time::Duration;

use crate::model::{Kind, Outcome, words};

words! {
    /// The clouds.
    Cloud {
        /// Skyvern.
        Skyvern = "skyvern",
        /// Browser Use.
        BrowserUse = "browser-use",
        /// SmartBrowse.
        SmartBrowse = "smartbrowse",
        /// Firecrawl.
        Firecrawl = "firecrawl",
    }
}

words! {
    /// The accounts that the daemon is configured with. Browser Use has one per generation of its
    /// API, since a source speaks one.
    DemoSource {
        /// Skyvern tasks and workflows.
        Skyvern = "skyvern",
        /// Browser Use v2 tasks.
        Tasks = "browser-use",
        /// Browser Use v3 sessions.
        Sessions = "browser-use-v3",
        /// Browser Use v4 runs.
        Runs = "browser-use-v4",
        /// SmartBrowse recipes.
        Recipes = "smartbrowse",
        /// Firecrawl crawls, batches, extracts and agents.
        Jobs = "firecrawl",
    }
}

impl DemoSource {
    /// The cloud it is an account at.
    pub fn cloud(self) -> Cloud {
        match self {
            DemoSource::Skyvern => Cloud::Skyvern,
            DemoSource::Tasks | DemoSource::Sessions | DemoSource::Runs => Cloud::BrowserUse,
            DemoSource::Recipes => Cloud::SmartBrowse,
            DemoSource::Jobs => Cloud::Firecrawl,
        }
    }

    /// The generation of the API it is configured for, where there are several.
    pub fn api(self) -> Option<&'static str> {
        match self {
            DemoSource::Tasks => Some("v2"),
            DemoSource::Sessions => Some("v3"),
            DemoSource::Runs => Some("v4"),
            _ => None,
        }
    }
}

/// A run's state as its provider words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The provider's status word; for a Firecrawl letter the event without its prefix.
    pub word: &'static str,
    /// The run shows as over. It need not stay so.
    pub over: bool,
    /// The agent's own verdict, where the provider has one.
    pub success: Option<bool>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Another attempt will follow.
    pub retry_pending: bool,
}

impl State {
    /// Not over.
    pub const fn open(word: &'static str) -> State {
        State {
            word,
            over: false,
            success: None,
            attempt: 1,
            retry_pending: false,
        }
    }

    /// Over.
    pub const fn over(word: &'static str) -> State {
        State {
            over: true,
            ..State::open(word)
        }
    }

    /// With the agent's verdict.
    #[must_use]
    pub const fn judged(self, success: Option<bool>) -> State {
        State { success, ..self }
    }

    /// Of a later attempt.
    #[must_use]
    pub const fn attempt(self, attempt: u32) -> State {
        State { attempt, ..self }
    }

    /// With another attempt to follow.
    #[must_use]
    pub const fn pending(self) -> State {
        State {
            retry_pending: true,
            ..self
        }
    }
}

/// The ways in which a webhook only looks genuine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// The right shape, made up (where there are signatures: 64 random digits).
    MadeUp,
    /// Made with another key.
    OtherKey,
    /// Nothing where the proof should be.
    Unsigned,
}

/// The ways in which a body is hard on a parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// Arrays in arrays in arrays.
    Deep,
    /// Bytes that are no UTF-8.
    NotUtf8,
    /// A bare `NaN`, as Python writes it.
    NotANumber,
}

/// How a letter is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By the cloud, and true as far as the cloud's word goes.
    Genuine,
    /// The same once more in other words.
    Rewritten,
    /// By the cloud, with a proof, and unreadable.
    Poisoned(Poison),
    /// By somebody else.
    Forged(Forgery),
    /// By the cloud, an hour ago.
    Stale,
    /// By the cloud, to see whether anybody is there. Speaks of no run, or of a sample.
    Ping,
}

/// One letter about a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Mail {
    /// The state that the webhook shows.
    pub says: State,
    /// How it is written.
    pub form: Form,
    /// When it leaves after the run's begin; the further times are repetitions of the same bytes.
    pub times: Vec<Duration>,
    /// It is never sent.
    pub dropped: bool,
}

impl Mail {
    /// A genuine letter.
    pub fn new(at: Duration, says: State) -> Mail {
        Mail {
            says,
            form: Form::Genuine,
            times: vec![at],
            dropped: false,
        }
    }

    /// Whether a receiver who takes it in knows of the run from then on.
    pub fn tells(&self) -> bool {
        !self.dropped && matches!(self.form, Form::Genuine | Form::Rewritten)
    }
}

/// How one question is answered that is not answered properly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stumble {
    /// 500 in the provider's words.
    Broken,
    /// 503 in nobody's words.
    Unavailable,
    /// Half a body, then the connection is closed.
    CutOff,
    /// Properly, but late.
    Slow(Duration),
    /// 200 and something that is no JSON.
    Garbage,
}

/// How questions about a run are answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// 404 until this long after the begin.
    pub hidden_until: Duration,
    /// The answers are this old.
    pub lag: Duration,
    /// The failures of the first polls.
    pub stumbles: Vec<Option<Stumble>>,
    /// 500 from the run's end until this long after the begin.
    pub deaf_until: Option<Duration>,
}

/// How a run really ended, in settled's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truth {
    /// The outcome.
    pub outcome: Outcome,
    /// Where only one letter tells it, and the status endpoint uses another word for it.
    pub hinge: Option<Hinge>,
}

/// A truth that one letter carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hinge {
    /// Which of the run's letters.
    pub letter: usize,
    /// The outcome that counts as true for a receiver that never got the webhook.
    pub otherwise: Outcome,
}

/// Everything that happens to one run. Moments count from its begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Life {
    /// The account it runs in.
    pub source: DemoSource,
    /// The kind of the run.
    pub kind: Kind,
    /// The provider's id of it.
    pub id: String,
    /// Its workflow, recipe, session or agent.
    pub group: String,
    /// Which story it lives.
    pub story: &'static str,
    /// When it begins, after the begin of the demo.
    pub begins: Duration,
    /// Its states, in order; none: the run never existed.
    pub states: Vec<(Duration, State)>,
    /// Every letter about it.
    pub mail: Vec<Mail>,
    /// How it really ended; `None`: the run never existed.
    pub truth: Option<Truth>,
    /// When the client tells the daemon of it, if it does.
    pub tracked: Option<Duration>,
    /// When an operator asks for its webhook once more, if one does.
    pub replay: Option<Replay>,
    /// Only a list can make it known, so it does not end before it was on one.
    pub only_listed: bool,
    /// How questions about it are answered.
    pub answers: Answers,
}

/// An operator's wish that a webhook be sent again. (Skyvern alone can.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// When, after the run's begin.
    pub at: Duration,
    /// To an address where nobody is, so that only the answer to the wish can carry the payload.
    pub elsewhere: bool,
}

impl Life {
    /// The state that the status endpoint shows so long after the begin, lag included; `None`: nothing yet.
    pub fn state_at(&self, age: Duration) -> Option<&State> {
        if age < self.answers.hidden_until {
            return None;
        }
        let seen = age.saturating_sub(self.answers.lag);
        self.states
            .iter()
            .rev()
            .find(|(at, _)| *at <= seen)
            .map(|(_, state)| state)
    }

    /// Its last state before the first in which it shows as over, if there is one.
    pub fn last_open(&self) -> Option<&State> {
        let open = self.states.iter().take_while(|(_, state)| !state.over);
        open.last().map(|(_, state)| state)
    }

    /// When the last state begins.
    pub fn ends(&self) -> Duration {
        self.states.last().map_or(Duration::ZERO, |(at, _)| *at)
    }

    /// When the last thing happens to it.
    pub(super) fn done(&self) -> Duration {
        let mail = self
            .mail
            .iter()
            .filter(|mail| !mail.dropped)
            .flat_map(|mail| mail.times.iter().copied());
        mail.chain([self.ends(), self.tracked.unwrap_or_default()])
            .max()
            .unwrap_or_default()
    }

    /// Whether settled can know of it without having read a list at the right moment.
    pub(super) fn told_of(&self) -> bool {
        self.tracked.is_some() || self.mail.iter().any(Mail::tells)
    }
}
