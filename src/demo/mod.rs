//! `settled demo`: the four providers' clouds on loopback, every lie they are known to tell, and
//! the real daemon between them and a real feed.
//!
//! ```text
//!            plan (a function of the seed)
//!              │                │
//!   clouds ────┴── webhooks ──▶ daemon ──feed──▶ client ──▶ book ──▶ ledger
//!      ▲                        │   ▲                         ▲
//!      └──────── polls ◀────────┘   └── track, kill -9        │
//!      └──────────────── what the clouds know ────────────────┘
//! ```
//!
//! * [`plan`] and [`stories`]: what will happen, pure.
//! * [`clouds`]: makes it happen.
//! * [`stage`]: a folder, the clouds and the daemon as a child process.
//! * [`client`]: the other side of the daemon's sockets.
//! * [`ledger`]: what the feed said, beside what the clouds know.
//!
//! Tests use the parts: set a [`Stage`], start and kill the daemon, and [`play`].

pub mod client;
pub mod clouds;
pub mod dice;
pub mod life;
pub mod plan;
mod screen;
pub mod stage;
pub mod stories;
pub mod tally;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use plan::{Plan, Rates};
pub use stage::Stage;
pub use tally::{Audit, Book, Ledger, Offender};

use crate::ledger::{self, Finding, Reader};
use client::{Client, News};
use clouds::World;
use dice::Dice;
use screen::Screen;

/// The options of a demo.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many runs.
    pub runs: usize,
    /// The seed of the plan.
    pub seed: u64,
    /// How often the daemon is killed and started again.
    pub kills: usize,
    /// How often which lie is told.
    pub rates: Rates,
    /// The `settled` binary; `None`: this program.
    pub program: Option<PathBuf>,
    /// The folder stays even if all went well.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            runs: 1000,
            seed: 1,
            kills: 0,
            rates: Rates::default(),
            program: None,
            keep: false,
        }
    }
}

/// Why there is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The folder for the daemon's files.
    #[error("the demo's folder cannot be set up: {0}")]
    Folder(#[source] io::Error),
    /// The clouds' sockets.
    #[error("the clouds cannot listen on 127.0.0.1: {0}")]
    Clouds(#[source] io::Error),
    /// The daemon's program.
    #[error("{} cannot be started: {why}", .program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// The error of the system.
        #[source]
        why: io::Error,
    },
    /// The daemon does not answer.
    #[error("the daemon {}; the end of its log:\n{log}", .exited.map_or_else(|| "does not answer".to_owned(), |status| format!("ended ({status})")))]
    NotReady {
        /// How it ended, if it did.
        exited: Option<ExitStatus>,
        /// The end of its log.
        log: String,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// How long nothing may have happened before we believe that nothing more will.
const QUIET: Duration = Duration::from_millis(1500);
/// How long we wait for what is missing once the plan is done and the feed has gone silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without a record for this long the plan goes on, however far behind the daemon is: then it is not
/// the machine that is too slow.
const PROGRESS: Duration = Duration::from_secs(5);
/// A run that ended this long ago is late …
const LATE: Duration = Duration::from_secs(10);
/// … and this many of those are too many.
const LATE_MAX: usize = 150;
/// This many letters on their way at once are too many.
const POST_MAX: usize = 150;
/// How often we look whether it is over.
const LOOK: Duration = Duration::from_millis(200);
/// How long a killed daemon stays down.
const DOWN: (u64, u64) = (50, 400);

/// Plays a whole demo: sets the stage, plays, cleans up.
pub async fn run(options: Options) -> Result<Ledger, DemoError> {
    let program = match options.program {
        Some(program) => program,
        None => std::env::current_exe().map_err(|why| DemoError::Start {
            program: "settled".into(),
            why,
        })?,
    };
    let plan = Plan::new(options.seed, options.runs, &options.rates).with_kills(options.kills);
    let mut stage = Stage::set(plan, &program).await?;
    let played = play(&mut stage).await;
    stage.stop().await;
    let Stage { place, .. } = stage;
    let keep = played
        .as_ref()
        .is_ok_and(|ledger| options.keep || !ledger.ok());
    let folder = keep.then(|| place.dir().to_owned());
    if !keep {
        place.remove();
    }
    played.map(|ledger| Ledger { folder, ..ledger })
}

/// The events that the demo waits for.
enum Event {
    Feed(News),
    Tracked(usize),
}

/// Plays the stage's plan and closes the book. The daemon runs when this returns, so that it can be
/// asked about what is wrong.
pub async fn play(stage: &mut Stage) -> Result<Ledger, DemoError> {
    stage.start().await?;
    let began = Instant::now();
    stage.clouds.begin();
    let world = Arc::clone(stage.clouds.world());
    let client = stage.place.client();
    let (events, mut heard) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(listen(client.clone(), events.clone()));
    tasks.spawn(go_on_errands(client.clone(), Arc::clone(&world), events));
    let mut book = Book::new(Arc::clone(&world));
    let screen = Screen::new(world.plan.runs.len());
    let (mut killed, mut crashes, mut last_news) = (0_usize, 0, Instant::now());
    let mut looking = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            Some(event) = heard.recv() => match event {
                Event::Tracked(run) => book.note_tracked(run),
                Event::Feed(news) => {
                    last_news = if matches!(news, News::Record(_)) { Instant::now() } else { last_news };
                    book.hear(news);
                }
            },
            _ = looking.tick() => {
                screen.show(&book, &world);
                world.hold(last_news.elapsed() < PROGRESS && behind(&book, &world));
                if world.plan.kills.get(killed).is_some_and(|at| *at <= world.now()) {
                    stage.kill().await;
                    let down = Dice::new(world.plan.seed, killed as u64).millis(DOWN.0, DOWN.1);
                    tokio::time::sleep(down).await;
                    stage.start().await?;
                    killed += 1;
                } else if !stage.running() {
                    crashes += 1;
                    stage.start().await?;
                }
                if killed > 0 && world.now() > world.plan.done() && world.in_the_post() == 0 {
                    tell_late(&client, &mut book, &world).await;
                }
                if over(&book, &world, last_news) {
                    break;
                }
            }
            _ = tokio::signal::ctrl_c() => return Err(DemoError::Interrupted),
        }
    }
    screen.clear();
    let elapsed = began.elapsed();
    let (again, webhooks) = (client.reread().await, client.webhooks().await);
    let findings = check(stage.place.store()).await;
    let ledger = book.close(&Audit {
        kills: killed as u64,
        crashes,
        elapsed,
        again,
        findings,
        webhooks,
    });
    write_evidence(stage, &client, &ledger).await;
    Ok(ledger)
}

/// The faults of the daemon's ledger. A ledger that cannot be read is one.
async fn check(store: PathBuf) -> Vec<Finding> {
    let look =
        move || Reader::open(&store).and_then(|reader| reader.read(ledger::check_with_all_reports));
    let seen = tokio::task::spawn_blocking(look).await;
    seen.map_or_else(
        |_| vec![Finding::unreadable("the check panicked")],
        |seen| seen.unwrap_or_else(|error| vec![Finding::unreadable(&error.to_string())]),
    )
}

/// Whether nothing is missing any more, or nothing more is to be hoped for.
fn over(book: &Book, world: &World, last_news: Instant) -> bool {
    let Some(since) = world.now().checked_sub(world.plan.done()) else {
        return false;
    };
    let silent_for = last_news.elapsed().min(since);
    let quiet = silent_for >= QUIET && world.in_the_post() == 0;
    silent_for >= PATIENCE || (quiet && book.open().next().is_none())
}

/// Whether the machine is too busy for the plan. Then the plan waits: what is shown here is not how
/// fast things go.
fn behind(book: &Book, world: &World) -> bool {
    let ended =
        |life: &&life::Life| life.begins + life.ends() + LATE < world.now() && !life.only_listed;
    let late = world
        .plan
        .runs
        .iter()
        .filter(ended)
        .filter(|life| book.belief(life.source, &life.id).is_none());
    world.in_the_post() > POST_MAX || late.count() > LATE_MAX
}

/// Tells the daemon of the runs whose letters found it dead: their senders have given up, and there
/// is nobody else left.
async fn tell_late(client: &Client, book: &mut Book, world: &World) {
    for run in book.untold() {
        if matches!(client.track(&world.plan.runs[run]).await, Some(200 | 201)) {
            book.note_told_late(run);
        }
    }
}

async fn listen(client: Client, events: mpsc::UnboundedSender<Event>) {
    let (news, mut heard) = mpsc::unbounded_channel();
    let forward = async {
        while let Some(news) = heard.recv().await {
            if events.send(Event::Feed(news)).is_err() {
                return;
            }
        }
    };
    tokio::join!(client.follow(news), forward);
}

/// The requests that the plan makes to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exchange {
    Track,
    Replay { elsewhere: bool },
}

/// Goes on every exchange of the plan at its time. The daemon is told of a run until it says that it
/// knows; for a webhook it is asked once.
async fn go_on_errands(client: Client, world: Arc<World>, events: mpsc::UnboundedSender<Event>) {
    let mut under_way = JoinSet::new();
    for (at, number, exchange) in exchanges(&world) {
        world.until(at).await;
        under_way.spawn(go(
            client.clone(),
            Arc::clone(&world),
            number,
            exchange,
            events.clone(),
        ));
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

fn exchanges(world: &World) -> Vec<(Duration, usize, Exchange)> {
    let of = |(number, life): (usize, &life::Life)| {
        let track = life
            .tracked
            .map(|at| (life.begins + at, number, Exchange::Track));
        let replay = life.replay.map(|wish| {
            (
                life.begins + wish.at,
                number,
                Exchange::Replay {
                    elsewhere: wish.elsewhere,
                },
            )
        });
        track.into_iter().chain(replay)
    };
    let mut all: Vec<_> = world.plan.runs.iter().enumerate().flat_map(of).collect();
    all.sort_unstable();
    all
}

async fn go(
    client: Client,
    world: Arc<World>,
    number: usize,
    exchange: Exchange,
    events: mpsc::UnboundedSender<Event>,
) {
    let life = &world.plan.runs[number];
    match exchange {
        Exchange::Replay { elsewhere } => {
            client.replay(life, elsewhere.then_some(NOBODY)).await;
        }
        Exchange::Track => {
            while !matches!(client.track(life).await, Some(200 | 201)) {
                tokio::time::sleep(LOOK).await;
            }
            let _ = events.send(Event::Tracked(number));
        }
    }
}

/// The discard port, on which no program listens.
const NOBODY: &str = "http://127.0.0.1:9/";

/// Asks the daemon about every offender and leaves the answers in the folder.
async fn write_evidence(stage: &Stage, client: &Client, ledger: &Ledger) {
    if ledger.offenders.is_empty() {
        return;
    }
    let mut all: BTreeMap<String, Value> = BTreeMap::new();
    for offender in &ledger.offenders {
        let told = client
            .run(&offender.source, &offender.run_id)
            .await
            .unwrap_or_default();
        all.insert(format!("{} {}", offender.source, offender.run_id), told);
    }
    let text = serde_json::to_string_pretty(&all).unwrap_or_default();
    let _ = std::fs::write(stage.place.dir().join("offenders.json"), text);
}
