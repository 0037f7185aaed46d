//! `settled consume`: one process per event.
//!
//! Three things go on beside each other: the stream is read (so that a slow command does not look
//! like a dead reader), the command is run on one batch after the other, and signals are listened
//! to. Whatever breaks, the position in the daemon says where to go on.

mod child;

use std::ffi::OsString;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use self::child::{Event, Fields, Program, Unfinished};
use super::{Context, Failure, Talk, show};
use crate::cli::client::{Client, ClientError, Reply, Stream, Target};
use crate::limits;
use crate::model::record::RecordType;

/// The daemon speaks at least every [`limits::HEARTBEAT`]; one that does not is gone.
const SILENCE_MAX: Duration = limits::HEARTBEAT.saturating_mul(4);
/// Between attempts: from here, doubled …
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// … up to here, to reach a daemon that is gone.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether somebody wants a parked event tried again.
const LOT_CHECK: Duration = Duration::from_secs(10);
/// How long the line is waited for that says who has taken over.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Events read ahead of the command.
const AHEAD: usize = 256;

/// Run a command for every completion, once it is there
///
/// The command gets the event as a line of JSON on its standard input, and its main fields as
/// SETTLED_RUN_ID, SETTLED_OUTCOME, SETTLED_SOURCE and so on. When it exits with 0, the event is
/// done for good; otherwise it is tried again, later and later, and nothing after it is begun. With
/// --max-attempts, an event that keeps failing is parked: see `settled consumers parked`. An event
/// may come a second time if this program or the machine dies between the command's end and the
/// acknowledgement, with the same SETTLED_ID.
///
/// The first SIGTERM or Ctrl-C lets the running command finish, the second ends it.
///
/// Example: settled consume mail --outcome failed -- sh -c 'mail -s "$SETTLED_RUN_ID failed" ops'
#[derive(Debug, Args)]
pub struct Consume {
    /// Whose position is kept in the daemon; made if there is none of this name
    name: String,
    /// Where a new consumer begins: earliest, latest, or a cursor
    #[arg(long, value_name = "CURSOR", default_value = "earliest")]
    from: String,
    #[command(flatten)]
    filter: Filtered,
    /// Give the command up to so many events at once, if there are so many; all or none are done
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// After so many failures park the event and go on [default: try for ever]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,
    /// A command that takes longer is ended, and has failed
    #[arg(long, value_name = "DURATION", value_parser = crate::config::duration)]
    timeout: Option<Duration>,
    /// The longest pause between attempts; the first is a second, then doubled
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::config::duration)]
    max_backoff: Duration,
    /// The daemon's socket [default: as configured]
    #[arg(long, value_name = "PATH")]
    socket: Option<std::path::PathBuf>,
    /// What to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Which records a consumer wants. Fixed when it is made.
#[derive(Args, Clone, Debug)]
pub struct Filtered {
    /// Which records: completion, amendment, status [default: completion]
    #[arg(long, value_name = "TYPES")]
    types: Option<String>,
    /// Only of these sources
    #[arg(long, value_name = "NAMES")]
    source: Option<String>,
    /// Only of these providers
    #[arg(long, value_name = "NAMES")]
    provider: Option<String>,
    /// Only with these outcomes
    #[arg(long, value_name = "OUTCOMES")]
    outcome: Option<String>,
    /// Only settled by these
    #[arg(long, value_name = "ORIGINS")]
    origin: Option<String>,
    /// Only of these workflows, recipes, agents or monitors
    #[arg(long, value_name = "IDS")]
    group: Option<String>,
}

impl Filtered {
    /// As the daemon wants it.
    pub fn json(&self) -> Value {
        let named = [
            ("types", &self.types),
            ("source", &self.source),
            ("provider", &self.provider),
            ("outcome", &self.outcome),
            ("origin", &self.origin),
            ("group", &self.group),
        ];
        named
            .into_iter()
            .filter_map(|(name, words)| Some((name.to_owned(), json!(words.as_ref()?))))
            .collect()
    }

    fn is_empty(&self) -> bool {
        self.json()
            .as_object()
            .is_some_and(serde_json::Map::is_empty)
    }
}

impl Consume {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.feed(&Talk {
            json: false,
            socket: self.socket.clone(),
        })?;
        let (told, stop) = watch::channel(0);
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let signals = async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                told.send_modify(|count| *count += 1);
            }
        };
        let program = Program {
            words: self.command.clone(),
            consumer: self.name.clone(),
            timeout: self.timeout,
        };
        let mut worker = Worker {
            options: self,
            client,
            program,
            stop,
            trying: None,
            acked: None,
            looked_at: None,
        };
        tokio::select! {
            ended = worker.run() => ended,
            () = signals => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Why a stream is no longer read, or a batch no longer worked on.
#[derive(Clone, Debug, PartialEq)]
enum End {
    /// We were told to stop.
    Stopped,
    /// It broke off; the daemon may be back in a moment.
    Lost(String),
    /// The position was put somewhere else: read again from there.
    Moved,
    /// Somebody else reads under this name.
    Superseded,
    /// The consumer is gone, or needs a person.
    Refused(String),
    /// We are no longer the reader; the stream's last line says why.
    Stale,
    /// The stream has ended, and has said why.
    Over,
}

/// What the reader hands to the worker.
enum Item {
    Record(Event),
    /// Nothing else for us up to here.
    Mark(String),
}

struct Worker {
    options: Consume,
    client: Client,
    program: Program,
    /// How often we were told to stop.
    stop: watch::Receiver<u32>,
    /// The event that failed last, and how often.
    trying: Option<(String, u32)>,
    /// The last position the daemon has confirmed.
    acked: Option<String>,
    /// When the parking lot was last looked at.
    looked_at: Option<Instant>,
}

/// One connection's worth of reading.
struct Session {
    generation: i64,
    /// Why the stream has ended, once it has.
    over: watch::Receiver<Option<End>>,
}

impl Worker {
    async fn run(&mut self) -> Result<ExitCode, Failure> {
        let mut pause = PAUSE_MIN;
        loop {
            let began = Instant::now();
            let end = match self.session().await {
                Ok(end) => end,
                Err(Failure::Client(error)) if passing(&error) => End::Lost(error.to_string()),
                Err(failure) => return Err(failure),
            };
            if self.stopping() {
                return Ok(ExitCode::SUCCESS);
            }
            match end {
                End::Stopped => return Ok(ExitCode::SUCCESS),
                End::Moved => {}
                End::Stale | End::Over => self.pause(PAUSE_MIN).await,
                End::Superseded => {
                    let text = format!(
                        "another reader has taken over the consumer {}",
                        self.options.name
                    );
                    return Err(Failure::Other(text));
                }
                End::Refused(why) => return Err(Failure::Other(why)),
                End::Lost(why) => {
                    if began.elapsed() > PAUSE_MAX {
                        pause = PAUSE_MIN;
                    }
                    if pause == PAUSE_MIN {
                        show::note(&show::clean(&format!("{why}; trying again until it works")));
                    }
                    self.pause(jittered(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Reads and works until one of them ends.
    async fn session(&mut self) -> Result<End, Failure> {
        self.acked = None;
        self.make().await?;
        let target = self.target().then("events").with("follow", 1);
        let mut lines = Lines {
            stream: self
                .client
                .stream(target)
                .await
                .map_err(|error| self.hint(error))?,
            waiting: Vec::new(),
        };
        let Some(hello) = lines.next().await else {
            return Ok(End::Lost("the daemon broke off".to_owned()));
        };
        let hello: Own = serde_json::from_str(&hello).map_err(ClientError::Unreadable)?;
        let (items, queue) = mpsc::channel(AHEAD);
        let (ended, over) = watch::channel(None);
        let session = Session {
            generation: hello.data.generation.unwrap_or_default(),
            over,
        };
        let mut reading = pin!(read(lines, items));
        let mut working = pin!(self.work(queue, &session));
        tokio::select! {
            worked = &mut working => match worked? {
                End::Stale => Ok(timeout(LAST_WORDS, reading).await.unwrap_or(End::Superseded)),
                end => Ok(end),
            },
            end = &mut reading => {
                ended.send_replace(Some(end.clone()));
                Ok(match working.await? {
                    End::Stopped => End::Stopped,
                    _ => end,
                })
            }
        }
    }

    /// Makes the consumer, unless it is there and nothing was said about what it should be.
    async fn make(&self) -> Result<(), Failure> {
        if self.options.filter.is_empty() && self.client.get(self.target()).await.is_ok() {
            return Ok(());
        }
        let body = json!({ "start": self.options.from, "filter": self.options.filter.json() });
        self.client
            .send(Method::PUT, self.target(), Some(&body))
            .await?;
        Ok(())
    }

    fn target(&self) -> Target {
        Target::new(["v1", "consumers", &self.options.name])
    }

    fn hint(&self, error: ClientError) -> Failure {
        match error.code() {
            Some("cursor_expired") => Failure::Other(format!(
                "retention has removed events that {0} had not done; go on with what is left by \
                 `settled consumers seek {0} earliest`",
                self.options.name
            )),
            _ => error.into(),
        }
    }

    /// Runs the command on what comes.
    async fn work(
        &mut self,
        mut queue: mpsc::Receiver<Item>,
        session: &Session,
    ) -> Result<End, Failure> {
        let mut items = Vec::new();
        let mut stop = self.stop.clone();
        loop {
            if let Some(end) = self.retry_parked(session).await? {
                return Ok(end);
            }
            let waiting = queue.recv_many(&mut items, usize::from(self.options.batch));
            let count = tokio::select! {
                biased;
                _ = stop.wait_for(|count| *count > 0) => return Ok(End::Stopped),
                count = waiting => count,
            };
            if count == 0 || session.over.borrow().is_some() {
                return Ok(End::Over);
            }
            let mut events = Vec::new();
            for item in items.drain(..) {
                match item {
                    Item::Record(event) => events.push(event),
                    Item::Mark(cursor) => {
                        if let Some(end) = self.finish(std::mem::take(&mut events), session).await?
                        {
                            return Ok(end);
                        }
                        if let Some(end) = self.ack(&cursor, session).await? {
                            return Ok(end);
                        }
                    }
                }
            }
            if let Some(end) = self.finish(events, session).await? {
                return Ok(end);
            }
        }
    }

    /// Tries until these events are done or parked; otherwise says why it stopped trying.
    async fn finish(
        &mut self,
        events: Vec<Event>,
        session: &Session,
    ) -> Result<Option<End>, Failure> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return Ok(None);
        };
        let (first, last) = (first.cursor.clone(), last.cursor.clone());
        loop {
            let attempt = match &self.trying {
                Some((cursor, count)) if *cursor == first => count + 1,
                _ => 1,
            };
            let why = match self
                .program
                .run(&events, attempt, insisted(self.stop.clone()))
                .await
            {
                Ok(()) => {
                    self.trying = None;
                    return self.ack(&last, session).await;
                }
                Err(Unfinished::Interrupted) => return Ok(Some(End::Stopped)),
                Err(Unfinished::Impossible(error)) => return Err(self.impossible(&error)),
                Err(Unfinished::Failed(why)) => why,
            };
            self.trying = Some((first.clone(), attempt));
            show::note(&show::clean(&format!(
                "{}: attempt {attempt} failed: {why}",
                names(&events)
            )));
            if self.options.max_attempts.is_some_and(|max| attempt >= max) {
                match self.park(&events, attempt, &why, session).await? {
                    Parked::Yes => {
                        self.trying = None;
                        return Ok(None);
                    }
                    Parked::No(end) => return Ok(Some(end)),
                    Parked::Full => {
                        show::note("the parking lot is full; see `settled consumers parked`");
                    }
                }
            }
            let pause = PAUSE_MIN
                .saturating_mul(1 << (attempt - 1).min(20))
                .min(self.options.max_backoff);
            let mut over = session.over.clone();
            tokio::select! {
                () = self.pause(jittered(pause)) => {}
                // The event will be read again, by us or by somebody else.
                _ = over.wait_for(Option::is_some) => return Ok(Some(End::Over)),
            }
            if self.stopping() {
                return Ok(Some(End::Stopped));
            }
        }
    }

    fn impossible(&self, error: &std::io::Error) -> Failure {
        Failure::Other(format!(
            "{} cannot be run: {error}",
            self.program.words[0].display()
        ))
    }

    /// Moves the position, however long the daemon is away.
    async fn ack(&mut self, cursor: &str, session: &Session) -> Result<Option<End>, Failure> {
        if self.acked.as_deref() == Some(cursor) {
            return Ok(None);
        }
        let target = self
            .target()
            .then("ack")
            .with("cursor", cursor)
            .with("gen", session.generation);
        match self.insist(Method::POST, target, None).await? {
            Ok(_) => {
                self.acked = Some(cursor.to_owned());
                Ok(None)
            }
            Err(end) => Ok(Some(end)),
        }
    }

    async fn park(
        &self,
        events: &[Event],
        attempts: u32,
        why: &str,
        session: &Session,
    ) -> Result<Parked, Failure> {
        for event in events {
            let target = self
                .target()
                .then("parked")
                .with("cursor", &event.cursor)
                .with("gen", session.generation);
            let body = json!({ "attempts": attempts, "error": why });
            match self.insist(Method::POST, target, Some(&body)).await {
                Ok(Ok(_)) => {}
                Ok(Err(end)) => return Ok(Parked::No(end)),
                Err(Failure::Client(error)) if error.code() == Some("parking_full") => {
                    return Ok(Parked::Full);
                }
                Err(failure) => return Err(failure),
            }
        }
        show::note(&format!(
            "{}: parked; see `settled consumers parked {}`",
            names(events),
            self.options.name
        ));
        Ok(Parked::Yes)
    }

    /// Tries once what somebody wants tried again. That nobody can be asked is no reason to stop.
    async fn retry_parked(&mut self, session: &Session) -> Result<Option<End>, Failure> {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOT_CHECK) {
            return Ok(None);
        }
        self.looked_at = Some(Instant::now());
        loop {
            let target = self
                .target()
                .then("parked")
                .with("retry", 1)
                .with("limit", 1);
            let Ok(reply) = self.client.get(target).await else {
                return Ok(None);
            };
            let lot: Lot = reply.read()?;
            let Some(Waiting {
                cursor,
                attempts,
                event,
            }) = lot.parked.into_iter().next()
            else {
                return Ok(None);
            };
            let Some(event) = Event::read(event.get()) else {
                return Ok(None);
            };
            let events = [event];
            let attempt = attempts.saturating_add(1);
            match self
                .program
                .run(&events, attempt, insisted(self.stop.clone()))
                .await
            {
                Ok(()) => {
                    show::note(&format!("{}: done, no longer parked", names(&events)));
                    let target = self.target().then("parked").with("cursor", &cursor);
                    if let Err(end) = self.insist(Method::DELETE, target, None).await? {
                        return Ok(Some(end));
                    }
                }
                Err(Unfinished::Interrupted) => return Ok(Some(End::Stopped)),
                Err(Unfinished::Impossible(error)) => return Err(self.impossible(&error)),
                Err(Unfinished::Failed(why)) => {
                    match self.park(&events, attempt, &why, session).await? {
                        Parked::Yes | Parked::Full => {}
                        Parked::No(end) => return Ok(Some(end)),
                    }
                }
            }
            if self.stopping() {
                return Ok(Some(End::Stopped));
            }
        }
    }

    /// Asks until there is an answer, or until we are to stop.
    async fn insist(
        &self,
        method: Method,
        target: Target,
        body: Option<&Value>,
    ) -> Result<Result<Reply, End>, Failure> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.client.send(method.clone(), target.clone(), body).await {
                Ok(reply) => return Ok(Ok(reply)),
                Err(error) if passing(&error) => {
                    if self.stopping() {
                        return Ok(Err(End::Stopped));
                    }
                    self.pause(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(error) if error.code() == Some("stale_generation") => {
                    return Ok(Err(End::Stale));
                }
                Err(error) if error.code() == Some("epoch_mismatch") => {
                    return Ok(Err(End::Lost(error.to_string())));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sleeps, unless told to stop.
    async fn pause(&self, span: Duration) {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = sleep(span) => {}
            _ = stop.wait_for(|count| *count > 0) => {}
        }
    }

    fn stopping(&self) -> bool {
        *self.stop.borrow() > 0
    }
}

enum Parked {
    Yes,
    No(End),
    Full,
}

#[derive(Deserialize)]
struct Lot {
    parked: Vec<Waiting>,
}

#[derive(Deserialize)]
struct Waiting {
    cursor: String,
    attempts: u32,
    event: Box<RawValue>,
}

/// A line of the stream's own.
#[derive(Deserialize)]
struct Own {
    r#type: String,
    cursor: Option<String>,
    #[serde(default)]
    data: OwnData,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OwnData {
    generation: Option<i64>,
    by: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

impl Event {
    fn read(line: &str) -> Option<Event> {
        #[derive(Deserialize)]
        struct Line {
            cursor: String,
            #[serde(flatten)]
            fields: Fields,
        }
        let Line { cursor, fields } = serde_json::from_str(line).ok()?;
        Some(Event {
            line: line.to_owned(),
            cursor,
            fields,
        })
    }
}

/// Hands on what comes, and says how it ended.
async fn read(mut lines: Lines, items: mpsc::Sender<Item>) -> End {
    while let Some(line) = lines.next().await {
        let Ok(own) = serde_json::from_str::<Own>(&line) else {
            return End::Refused(format!("a line of the feed is not understood: {line}"));
        };
        let item = match own.r#type.as_str() {
            kind if RecordType::from_word(kind).is_some() => Event::read(&line).map(Item::Record),
            "settled.feed.bookmark" => own.cursor.map(Item::Mark),
            "settled.feed.superseded" if own.data.by.as_deref() == Some("seek") => {
                return End::Moved;
            }
            "settled.feed.superseded" => return End::Superseded,
            "settled.feed.end" => return End::Lost("the daemon is stopping".to_owned()),
            "settled.feed.error" => {
                let why = own.data.message.unwrap_or_default();
                let fatal = matches!(
                    own.data.code.as_deref(),
                    Some("consumer_deleted" | "cursor_expired")
                );
                return if fatal {
                    End::Refused(why)
                } else {
                    End::Lost(why)
                };
            }
            _ => None,
        };
        // When nobody works any more, only the last line is of interest.
        if let Some(item) = item {
            let _ = items.send(item).await;
        }
    }
    End::Lost("the connection to the daemon broke off".to_owned())
}

/// A stream as lines.
struct Lines {
    stream: Stream,
    waiting: Vec<u8>,
}

impl Lines {
    /// The next whole line; `None` at the end, also when the daemon has fallen silent.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.waiting.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let chunk = timeout(SILENCE_MAX, self.stream.chunk())
                .await
                .ok()?
                .ok()??;
            self.waiting.extend_from_slice(&chunk);
        }
    }
}

/// Once we were told twice to stop.
async fn insisted(mut stop: watch::Receiver<u32>) {
    let _ = stop.wait_for(|count| *count > 1).await;
}

fn names(events: &[Event]) -> String {
    match events {
        [event] => event.cursor.clone(),
        [first, .., last] => format!("{} to {}", first.cursor, last.cursor),
        [] => String::new(),
    }
}

/// Whether the daemon may be back, or less busy, in a moment.
fn passing(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Broken { .. } => true,
        ClientError::Refused { status, .. } => matches!(status, 429 | 503),
        _ => false,
    }
}

/// A little more or less, so that many do not come back together.
fn jittered(span: Duration) -> Duration {
    let noise = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    span.mul_f64(0.9 + f64::from(noise % 1_000) / 5_000.0)
}
