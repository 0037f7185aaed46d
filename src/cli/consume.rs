//! `settled consume`: one process per event.
//!
//! Three futures run beside each other: one reads the stream (so that a slow command does not look
//! like a dead reader), one runs the command on one batch after the other, and one receives signals.
//! After any failure the position in the daemon says where to continue.

mod child;

use std::ffi::OsString;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use self::child::{Event, Fields, Program, Unfinished};
use super::{Context, Failure, Talk, show};
use crate::api::types::{
    CreateConsumerRequest, EventQuery, FeedLine, ParkRequest, ParkedList, ParkedView, StreamData,
    StreamLine, WordList,
};
use crate::cli::client::{ByteStream, Client, ClientError, Target, WholeReply};
use crate::limits;
use crate::model::record::RecordType;

/// The daemon sends a line at least every [`limits::HEARTBEAT`]. After this long it is taken for gone.
const SILENCE_MAX: Duration = limits::HEARTBEAT.saturating_mul(4);
/// The first pause between attempts; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause between attempts to reach the daemon.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often the command looks for parked events that are marked for another attempt.
const PARKED_CHECK: Duration = Duration::from_secs(10);
/// How long the stream's last line may take after the daemon refused an acknowledgement.
const LAST_LINE_MAX: Duration = Duration::from_secs(5);
/// How many events are read ahead of the command.
const AHEAD: usize = 256;

/// Run a command for every completion
///
/// The command gets the event as a line of JSON on its standard input, and its main fields as
/// SETTLED_RUN_ID, SETTLED_OUTCOME, SETTLED_SOURCE and so on. If it exits with 0, the event is done
/// for good. Otherwise it is tried again, later and later, and no later event begins. With
/// --max-attempts, an event that keeps failing is parked: see `settled consumers parked`. An event
/// may come a second time, with the same SETTLED_ID, if this program or the machine dies between the
/// command's end and the acknowledgement.
///
/// The command's environment is clean: besides the SETTLED_ variables it has PATH, HOME, USER,
/// LOGNAME, SHELL, LANG, LANGUAGE, LC_*, TZ, TMPDIR and TERM. Add others with --env. The texts come
/// from providers: write \"$SETTLED_RUN_ID\" with its quotes in a shell. In variables, control
/// characters are spaces and a leading - is %2D, so that no value can be taken for an option; the
/// JSON has the exact texts.
///
/// The first SIGTERM, SIGHUP or Ctrl-C lets the running command finish, the second ends it.
///
/// Example: settled consume mail --outcome failed -- sh -c 'mail -s "$SETTLED_RUN_ID failed" ops'
#[derive(Debug, Args)]
pub struct Consume {
    /// The consumer's name, under which the daemon keeps the position; created if it is new
    name: String,
    /// Where a new consumer begins: earliest, latest, or a cursor
    #[arg(long, value_name = "CURSOR", default_value = "earliest")]
    from: String,
    #[command(flatten)]
    filter: FilterOptions,
    /// Give the command up to N events at once; all of them are done, or none
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Park an event after N failures and continue [default: try for ever]
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
    /// Pass this variable on to the command, or set it; may be given several times
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = child::variable_option)]
    env: Vec<(String, Option<String>)>,
    /// The command to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Which records a consumer gets; fixed when it is created.
#[derive(Args, Clone, Debug)]
pub struct FilterOptions {
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

impl FilterOptions {
    /// The filter of a request.
    pub fn query(&self) -> EventQuery {
        let list = |words: &Option<String>| words.clone().map(WordList::Text);
        EventQuery {
            types: list(&self.types),
            source: list(&self.source),
            provider: list(&self.provider),
            outcome: list(&self.outcome),
            origin: list(&self.origin),
            group: list(&self.group),
        }
    }

    fn is_empty(&self) -> bool {
        let options = [
            &self.types,
            &self.source,
            &self.provider,
            &self.outcome,
            &self.origin,
            &self.group,
        ];
        options.iter().all(|option| option.is_none())
    }
}

impl Consume {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.feed(&Talk {
            json: false,
            socket: self.socket.clone(),
        })?;
        let (stops, stop) = watch::channel(0);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // A closed terminal must not leave the command running in its own process group, beside the
        // same event after a restart.
        let mut hangup = signal(SignalKind::hangup())?;
        let signals = async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
                stops.send_modify(|count| *count += 1);
            }
        };
        let program = Program {
            words: self.command.clone(),
            consumer: self.name.clone(),
            timeout: self.timeout,
            environment: child::environment(&self.env)?,
        };
        let mut worker = Worker {
            options: self,
            client,
            program,
            stop,
            trying: None,
            acked: None,
            parked_checked_at: None,
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
    /// A signal asked us to stop.
    Stopped,
    /// It broke off; the daemon may be back in a moment.
    Lost(String),
    /// The position was moved: read again from there.
    Moved,
    /// Another reader has the consumer.
    Superseded,
    /// The consumer was deleted, or a person has to act.
    Refused(String),
    /// The daemon refuses our generation; the stream's last line says why.
    Stale,
    /// The stream has ended, and its last line said why.
    Over,
}

/// The messages from the reader to the worker.
enum Input {
    Record(Event),
    /// No further event up to here.
    Mark(String),
}

struct Worker {
    options: Consume,
    client: Client,
    program: Program,
    /// How many signals have asked us to stop.
    stop: watch::Receiver<u32>,
    /// The event that failed last, and how often.
    trying: Option<(String, u32)>,
    /// The last position the daemon has confirmed.
    acked: Option<String>,
    /// When the parked events were last checked.
    parked_checked_at: Option<Instant>,
}

/// One connection to the feed.
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
                Err(Failure::Client(error)) if error.is_passing() => End::Lost(error.to_string()),
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
        self.create().await?;
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
        let hello: StreamLine = serde_json::from_str(&hello).map_err(ClientError::Unreadable)?;
        let generation = match hello.data {
            StreamData::Hello(hello) => hello.generation.unwrap_or_default(),
            StreamData::Error(error) => return Ok(End::Lost(error.message)),
            _ => return Ok(End::Lost("the stream began without a hello".to_owned())),
        };
        let (items, queue) = mpsc::channel(AHEAD);
        let (ended, over) = watch::channel(None);
        let session = Session { generation, over };
        let mut reading = pin!(read(lines, items));
        let mut working = pin!(self.work(queue, &session));
        tokio::select! {
            worked = &mut working => match worked? {
                End::Stale => Ok(timeout(LAST_LINE_MAX, reading).await.unwrap_or(End::Superseded)),
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

    /// Creates the consumer, unless it exists and no filter was given.
    async fn create(&self) -> Result<(), Failure> {
        if self.options.filter.is_empty() && self.client.get(self.target()).await.is_ok() {
            return Ok(());
        }
        let body = CreateConsumerRequest {
            start: Some(self.options.from.clone()),
            filter: self.options.filter.query(),
            window: None,
        };
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
        mut queue: mpsc::Receiver<Input>,
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
                    Input::Record(event) => events.push(event),
                    Input::Mark(cursor) => {
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
                    ParkOutcome::Parked => {
                        self.trying = None;
                        return Ok(None);
                    }
                    ParkOutcome::Ended(end) => return Ok(Some(end)),
                    ParkOutcome::Full => {
                        show::note("no more events can be parked; see `settled consumers parked`");
                    }
                }
            }
            let pause = PAUSE_MIN
                .saturating_mul(1 << (attempt - 1).min(20))
                .min(self.options.max_backoff);
            let mut over = session.over.clone();
            tokio::select! {
                () = self.pause(jittered(pause)) => {}
                // This or another reader will read the event again.
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

    /// Acknowledges a position, however long the daemon is away.
    async fn ack(&mut self, cursor: &str, session: &Session) -> Result<Option<End>, Failure> {
        if self.acked.as_deref() == Some(cursor) {
            return Ok(None);
        }
        let target = self
            .target()
            .then("ack")
            .with("cursor", cursor)
            .with("gen", session.generation);
        match self.insist(Method::POST, target, None::<&()>).await? {
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
    ) -> Result<ParkOutcome, Failure> {
        for event in events {
            let target = self
                .target()
                .then("parked")
                .with("cursor", &event.cursor)
                .with("gen", session.generation);
            let body = ParkRequest {
                attempts,
                error: why.to_owned(),
            };
            match self.insist(Method::POST, target, Some(&body)).await {
                Ok(Ok(_)) => {}
                Ok(Err(end)) => return Ok(ParkOutcome::Ended(end)),
                Err(Failure::Client(error)) if error.code() == Some("parking_full") => {
                    return Ok(ParkOutcome::Full);
                }
                Err(failure) => return Err(failure),
            }
        }
        show::note(&format!(
            "{}: parked; see `settled consumers parked {}`",
            names(events),
            self.options.name
        ));
        Ok(ParkOutcome::Parked)
    }

    /// Tries parked events once that are marked for another attempt. A daemon that does not answer is
    /// no reason to stop: the stream will notice.
    async fn retry_parked(&mut self, session: &Session) -> Result<Option<End>, Failure> {
        if self
            .parked_checked_at
            .is_some_and(|at| at.elapsed() < PARKED_CHECK)
        {
            return Ok(None);
        }
        self.parked_checked_at = Some(Instant::now());
        loop {
            let target = self
                .target()
                .then("parked")
                .with("retry", 1)
                .with("limit", 1);
            let Ok(reply) = self.client.get(target).await else {
                return Ok(None);
            };
            let page: ParkedList = reply.read()?;
            let Some(ParkedView {
                cursor,
                attempts,
                event,
                ..
            }) = page.parked.into_iter().next()
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
                    if let Err(end) = self.insist(Method::DELETE, target, None::<&()>).await? {
                        return Ok(Some(end));
                    }
                }
                Err(Unfinished::Interrupted) => return Ok(Some(End::Stopped)),
                Err(Unfinished::Impossible(error)) => return Err(self.impossible(&error)),
                Err(Unfinished::Failed(why)) => {
                    match self.park(&events, attempt, &why, session).await? {
                        ParkOutcome::Parked | ParkOutcome::Full => {}
                        ParkOutcome::Ended(end) => return Ok(Some(end)),
                    }
                }
            }
            if self.stopping() {
                return Ok(Some(End::Stopped));
            }
        }
    }

    /// Sends a request until the daemon answers, or a signal asks us to stop.
    async fn insist<B: Serialize>(
        &self,
        method: Method,
        target: Target,
        body: Option<&B>,
    ) -> Result<Result<WholeReply, End>, Failure> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.client.send(method.clone(), target.clone(), body).await {
                Ok(reply) => return Ok(Ok(reply)),
                Err(error) if error.is_passing() => {
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

    /// Sleeps, unless a signal asks us to stop.
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

/// Whether events were parked.
enum ParkOutcome {
    /// The daemon keeps them.
    Parked,
    /// The session has ended.
    Ended(End),
    /// The consumer has as many parked events as it may.
    Full,
}

impl Event {
    fn read(line: &str) -> Option<Event> {
        #[derive(Deserialize)]
        struct EventLine {
            cursor: String,
            #[serde(flatten)]
            fields: Fields,
        }
        let EventLine { cursor, fields } = serde_json::from_str(line).ok()?;
        Some(Event {
            line: line.to_owned(),
            cursor,
            fields,
        })
    }
}

/// Passes events and bookmarks on, and says how the stream ended.
async fn read(mut lines: Lines, items: mpsc::Sender<Input>) -> End {
    while let Some(line) = lines.next().await {
        let Ok(head) = serde_json::from_str::<FeedLine>(&line) else {
            return End::Refused(format!("a line of the feed is not understood: {line}"));
        };
        let item = if RecordType::from_word(&head.line_type).is_some() {
            Event::read(&line).map(Input::Record)
        } else if head.line_type == "settled.feed.bookmark" {
            head.cursor.map(Input::Mark)
        } else if let Ok(StreamLine { data, .. }) = serde_json::from_str(&line) {
            if let Some(end) = last_line(data) {
                return end;
            }
            None
        } else {
            // A type that a later release added.
            None
        };
        // After the worker has ended, the channel is closed and only the last line counts.
        if let Some(item) = item {
            let _ = items.send(item).await;
        }
    }
    End::Lost("the connection to the daemon broke off".to_owned())
}

/// The reason that the last line of a stream gives.
fn last_line(data: StreamData) -> Option<End> {
    match data {
        StreamData::Superseded(superseded) if superseded.by == "seek" => Some(End::Moved),
        StreamData::Superseded(_) => Some(End::Superseded),
        StreamData::End(_) => Some(End::Lost("the daemon is stopping".to_owned())),
        StreamData::Error(error) => {
            let fatal = matches!(error.code.as_str(), "consumer_deleted" | "cursor_expired");
            Some(if fatal {
                End::Refused(error.message)
            } else {
                End::Lost(error.message)
            })
        }
        StreamData::Hello(_) | StreamData::Paused(_) | StreamData::Bookmark {} => None,
    }
}

/// A stream as lines.
struct Lines {
    stream: ByteStream,
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

/// Ends once two signals have asked us to stop.
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

/// A little more or less, so that many do not come back together.
fn jittered(span: Duration) -> Duration {
    let noise = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    span.mul_f64(0.9 + f64::from(noise % 1_000) / 5_000.0)
}
