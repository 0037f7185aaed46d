//! The state that the clouds share: the plan, the time, who asked how often, and what arrived.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use super::clock::Clock;
use super::reply::{Reply, Transfer};
use super::{Item, Service};
use crate::demo::dice::Dice;
use crate::demo::life::{Cloud, DemoSource, Life, State, Stumble};
use crate::demo::plan::Plan;
use crate::model::{At, words};

/// The secrets of a demo. They open nothing but its clouds.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Skyvern's API key, which signs as well.
    pub skyvern: String,
    /// The beginning of Browser Use's API keys; see [`Keys::api_key`].
    pub browser_use: String,
    /// Browser Use's webhook secret.
    pub browser_use_hooks: String,
    /// SmartBrowse's API key.
    pub smartbrowse: String,
    /// The path token of SmartBrowse's webhooks.
    pub smartbrowse_path: String,
    /// The `Authorization` header of SmartBrowse's webhooks.
    pub smartbrowse_header: String,
    /// Firecrawl's API key.
    pub firecrawl: String,
    /// Firecrawl's webhook secret.
    pub firecrawl_hooks: String,
}

impl Keys {
    /// The keys of a seed.
    pub fn new(seed: u64) -> Keys {
        let mut dice = Dice::new(seed, u64::MAX - 2);
        Keys {
            skyvern: format!(
                "eyJ{}.eyJ{}.{}",
                dice.base62(33),
                dice.base62(65),
                dice.base62(43)
            ),
            browser_use: format!("bu_{}", dice.base62(40)),
            browser_use_hooks: format!("bu_whsec_{}", dice.base62(24)),
            smartbrowse: format!("wsg_live_{}", dice.base62(32)),
            smartbrowse_path: dice.base62(32),
            smartbrowse_header: format!("Bearer {}", dice.base62(32)),
            firecrawl: format!("fc-{}", dice.base62(32)),
            firecrawl_hooks: dice.base62(40),
        }
    }

    /// The API key of an account. Browser Use's three accounts are told apart by it.
    pub fn api_key(&self, source: DemoSource) -> String {
        match (source.cloud(), source.api()) {
            (Cloud::BrowserUse, Some(api)) => format!("{}{api}", self.browser_use),
            (Cloud::BrowserUse, None) => self.browser_use.clone(),
            (Cloud::Skyvern, _) => self.skyvern.clone(),
            (Cloud::SmartBrowse, _) => self.smartbrowse.clone(),
            (Cloud::Firecrawl, _) => self.firecrawl.clone(),
        }
    }
}

words! {
    /// The numbers that are counted on the clouds' side.
    Count {
        /// Letters that left; attempts at the same one count once.
        WebhooksSent = "webhooks_sent",
        /// Attempts at delivery.
        WebhookAttempts = "webhook_attempts",
        /// Letters answered 2xx.
        WebhooksAccepted = "webhooks_accepted",
        /// Letters answered otherwise to the last.
        WebhooksRefused = "webhooks_refused",
        /// Letters that found nobody to the last.
        WebhooksUndelivered = "webhooks_undelivered",
        /// Letters that the plan lost.
        WebhooksDropped = "webhooks_dropped",
        /// Letters sent again byte by byte.
        WebhooksRepeated = "webhooks_repeated",
        /// Letters sent again in other words.
        WebhooksRewritten = "webhooks_rewritten",
        /// Letters written by somebody else.
        WebhooksForged = "webhooks_forged",
        /// Of those, answered 2xx.
        ForgedAccepted = "forged_accepted",
        /// Test pings.
        WebhooksPing = "webhooks_ping",
        /// Genuine letters an hour old.
        WebhooksStale = "webhooks_stale",
        /// Letters that nobody can read.
        WebhooksPoisoned = "webhooks_poisoned",
        /// Questions answered, "no such run" included.
        PollsAnswered = "polls_answered",
        /// Questions answered badly, by plan.
        PollsFailed = "polls_failed",
        /// Questions answered "too fast" or "not now".
        PollsThrottled = "polls_throttled",
        /// Questions with a wrong key.
        PollsRefused = "polls_refused",
        /// Webhooks sent again at somebody's wish.
        Replays = "replays",
    }
}

/// The counters.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; Count::ALL.len()]);

impl Tally {
    /// One more.
    pub fn add(&self, what: Count) {
        self.more(what, 1);
    }

    /// So many more.
    pub fn more(&self, what: Count, many: u64) {
        self.0[what as usize].fetch_add(many, Relaxed);
    }

    /// The numbers now.
    pub fn counted(&self) -> BTreeMap<Count, u64> {
        Count::ALL
            .iter()
            .map(|what| (*what, self.0[*what as usize].load(Relaxed)))
            .collect()
    }
}

/// How old a run may be that a list still shows. Real lists reach back a day or for ever; a day
/// here takes seconds.
const LISTS_REACH_BACK: Duration = Duration::from_secs(20);

/// A run that only a list can make known goes on for this long once it was seen.
const SEEN_FOR: Duration = Duration::from_millis(100);

/// How often somebody who waits looks whether the time was held.
const HELD_LOOK: Duration = Duration::from_millis(50);

/// Everything the clouds know.
#[derive(Debug)]
pub struct World {
    /// The count goes up.
    pub plan: Plan,
    /// The secrets.
    pub keys: Keys,
    /// The counters.
    pub tally: Tally,
    hooks: String,
    clock: Clock,
    index: HashMap<(DemoSource, String), usize>,
    asked: Vec<AtomicUsize>,
    /// When each run was first seen: on a list, or, where the daemon that saw it there may have been
    /// killed before it could write that down, by a question about it.
    first_seen: Vec<OnceLock<Duration>>,
    accepted: Vec<Vec<AtomicU64>>,
    in_the_post: AtomicUsize,
}

/// The result of looking an id up at a status endpoint.
pub(super) enum Found<'a> {
    /// The run, in this state.
    Seen(&'a Life, &'a State),
    /// Nothing, or nothing yet.
    Missing,
}

impl World {
    /// A world in which time has not begun.
    pub fn new(plan: Plan, hooks: &str) -> World {
        let index = plan
            .runs
            .iter()
            .enumerate()
            .map(|(n, life)| ((life.source, life.id.clone()), n))
            .collect();
        let asked = plan.runs.iter().map(|_| AtomicUsize::new(0)).collect();
        let letters = |life: &Life| life.mail.iter().map(|_| AtomicU64::new(0)).collect();
        let accepted = plan.runs.iter().map(letters).collect();
        World {
            keys: Keys::new(plan.seed),
            tally: Tally::default(),
            hooks: hooks.to_owned(),
            clock: Clock::default(),
            index,
            asked,
            first_seen: plan.runs.iter().map(|_| OnceLock::new()).collect(),
            accepted,
            in_the_post: AtomicUsize::new(0),
            plan,
        }
    }

    /// Starts the time. Only the first call counts.
    pub fn begin(&self) {
        self.clock.begin();
    }

    /// Makes it so long after a begin at `wall`: the time of a simulation, which stands still until
    /// it is moved again. The first call decides when the begin was.
    pub fn turn_to(&self, wall: At, age: Duration) {
        self.clock.turn_to(wall, age);
    }

    /// How long the world has been turning.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Holds the time, or lets it go on: on a machine that is too busy for the plan, the plan waits.
    pub fn hold(&self, hold: bool) {
        self.clock.hold(hold);
    }

    /// Waits until the world has been turning for so long.
    pub async fn until(&self, age: Duration) {
        loop {
            let left = age.saturating_sub(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.clamp(Duration::from_millis(1), HELD_LOOK)).await;
        }
    }

    /// The time of day so long after the begin, had the time never been held.
    pub fn wall(&self, age: Duration) -> At {
        self.clock.wall().plus(age)
    }

    /// The run of this id, whatever its state.
    pub fn life(&self, source: DemoSource, id: &str) -> Option<&Life> {
        self.index
            .get(&(source, id.to_owned()))
            .map(|number| &self.plan.runs[*number])
    }

    /// Whether a letter about a run was answered 2xx.
    pub fn accepted(&self, run: usize, letter: usize) -> bool {
        self.accepted[run][letter].load(Relaxed) > 0
    }

    /// How many letters about a run, repetitions included, were answered 2xx that anybody can read
    /// and believe.
    pub fn told(&self, run: usize) -> u64 {
        let letters = self.plan.runs[run].mail.iter().zip(&self.accepted[run]);
        letters
            .filter(|(mail, _)| mail.tells())
            .map(|(_, accepted)| accepted.load(Relaxed))
            .sum()
    }

    pub(in crate::demo) fn note_accepted(&self, run: usize, letter: usize) {
        self.accepted[run][letter].fetch_add(1, Relaxed);
    }

    /// Letters that are on their way or wait for another attempt.
    pub fn in_the_post(&self) -> usize {
        self.in_the_post.load(Relaxed)
    }

    pub(super) fn post_one(&self, more: bool) {
        if more {
            self.in_the_post.fetch_add(1, Relaxed)
        } else {
            self.in_the_post.fetch_sub(1, Relaxed)
        };
    }

    /// The receiver's address for a letter.
    pub(super) fn address(&self, source: DemoSource, path_token: Option<&str>) -> String {
        let token = path_token
            .map(|token| format!("/{token}"))
            .unwrap_or_default();
        format!("{}/hooks/{source}{token}", self.hooks)
    }

    /// When a run was created, and when this state of it began (last, if it came back to it).
    pub(super) fn times(&self, life: &Life, state: &State) -> (At, At) {
        let age = self.now().saturating_sub(life.begins);
        let since = life
            .states
            .iter()
            .rev()
            .find(|(at, other)| other == state && *at <= age);
        (
            self.wall(life.begins),
            self.wall(life.begins + since.map_or(Duration::ZERO, |(at, _)| *at)),
        )
    }

    /// The result of looking it up now.
    pub(super) fn find(&self, source: DemoSource, id: &str) -> Found<'_> {
        let number = self.index.get(&(source, id.to_owned()));
        let state = number.and_then(|number| self.state(*number));
        state.map_or(Found::Missing, |(life, state)| Found::Seen(life, state))
    }

    /// A run and the state it shows now, if it does.
    fn state(&self, number: usize) -> Option<(&Life, &State)> {
        let (life, now) = (&self.plan.runs[number], self.now());
        let state = life.state_at(now.checked_sub(life.begins)?)?;
        let seen = || {
            self.first_seen[number]
                .get()
                .is_some_and(|at| *at + SEEN_FOR <= now)
        };
        if life.only_listed && state.over && !seen() {
            return life.last_open().map(|state| (life, state));
        }
        Some((life, state))
    }

    /// Answers a question about one run: `render` gives the proper answer, on which the plan may
    /// lay its hand.
    pub(super) fn status(
        &self,
        service: &dyn Service,
        (source, id): (DemoSource, &str),
        missing: Reply,
        render: impl FnOnce(&Life, &State) -> Reply,
    ) -> Reply {
        let Some(number) = self.index.get(&(source, id.to_owned())) else {
            return missing;
        };
        let asked = self.asked[*number].fetch_add(1, Relaxed);
        self.first_seen[*number].get_or_init(|| self.now());
        let Some((life, state)) = self.state(*number) else {
            return missing;
        };
        let age = self.now().saturating_sub(life.begins);
        if life
            .answers
            .deaf_until
            .is_some_and(|until| (life.ends()..until).contains(&age))
        {
            return service.broken();
        }
        let proper = render(life, state);
        match life.answers.stumbles.get(asked).copied().flatten() {
            None => proper,
            Some(stumble) => stumbled(service, stumble, proper),
        }
    }

    /// The runs of an account that a list shows now, newest first, with their states: those that
    /// are open, and those that began not long ago.
    pub(super) fn listed(&self, source: DemoSource) -> impl Iterator<Item = (&Life, &State)> {
        let now = self.now();
        let begun = self.plan.runs.partition_point(|life| life.begins <= now);
        let ours = (0..begun)
            .rev()
            .filter(move |number| self.plan.runs[*number].source == source);
        ours.filter_map(|number| self.state(number))
            .filter(move |(life, state)| !state.over || now < life.begins + LISTS_REACH_BACK)
    }

    /// Notes that a page of a list showed these runs. A page with room for one is no list: that is
    /// how somebody asks whether the key still works, and then looks at nothing on it.
    pub(super) fn shown<'a>(
        &self,
        rows: Vec<(&'a Life, &'a State)>,
        room: usize,
    ) -> Vec<(&'a Life, &'a State)> {
        if room > 1 && self.plan.kills.is_empty() {
            for (life, _) in rows.iter().filter(|(life, _)| life.only_listed) {
                if let Some(number) = self.index.get(&(life.source, life.id.clone())) {
                    self.first_seen[*number].get_or_init(|| self.now());
                }
            }
        }
        rows
    }

    /// The letter of an item, by the cloud concerned.
    pub fn letter(&self, item: &Item<'_>) -> super::Letter {
        super::service(item.life.source.cloud()).letter(self, item)
    }
}

/// A bad answer.
fn stumbled(service: &dyn Service, stumble: Stumble, proper: Reply) -> Reply {
    match stumble {
        Stumble::Broken => service.broken(),
        Stumble::Unavailable => {
            Reply::text(503, "text/plain; charset=utf-8", "Service Unavailable")
        }
        Stumble::CutOff => proper.transfer(Transfer::CutOff),
        Stumble::Slow(span) => proper.transfer(Transfer::Slow(span)),
        Stumble::Garbage => Reply::text(
            200,
            "text/html",
            "<html><body><h1>It works!</h1>{\"status\":",
        ),
    }
}

/// One page of a list.
pub(super) fn page<T>(rows: impl Iterator<Item = T>, number: usize, size: usize) -> Vec<T> {
    rows.skip(number.saturating_sub(1).saturating_mul(size))
        .take(size)
        .collect()
}
