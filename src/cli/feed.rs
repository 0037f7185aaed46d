//! `settled feed`: reads the feed.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{Context, Failure, Talk, show};
use crate::api::types::{FeedLine, StreamData, StreamLine};
use crate::cli::client::{ByteStream, Client, ClientError, Target};
use crate::limits;
use crate::model::record::RecordType;
use crate::model::{Origin, Outcome};

/// The daemon sends a line at least every [`limits::HEARTBEAT`]. After this long it is taken for gone.
const SILENCE_MAX: Duration = limits::HEARTBEAT.saturating_mul(4);
/// How often the command checks that its output is still open.
const READER_CHECK: Duration = Duration::from_secs(1);
/// Between attempts to reach a daemon that is gone: from here, doubled …
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// … up to here.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Read the feed: one line per completion
///
/// Lines for people on a terminal; in a pipe, or with --json, each line is the record itself, a
/// CloudEvents JSON object. Store the "cursor" of the last one together with what you made of it,
/// and go on later with --after. Lists are written with commas.
///
/// Example: settled feed --follow --after latest --outcome failed,timed_out
#[derive(Debug, Args)]
pub struct Feed {
    /// Go on for ever; when the daemon restarts, go on where it broke off
    #[arg(long, short)]
    follow: bool,
    /// Begin after this: earliest, latest, or a cursor
    #[arg(long, value_name = "CURSOR", default_value = "earliest")]
    after: String,
    /// Which records [default: completion]
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(["completion", "amendment", "status"]))]
    types: Vec<String>,
    /// Only of these sources
    #[arg(long, value_name = "NAMES")]
    source: Option<String>,
    /// Only of these providers
    #[arg(long, value_name = "NAMES")]
    provider: Option<String>,
    /// Only with these outcomes
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(Outcome::ALL.iter().map(|word| word.word())))]
    outcome: Vec<String>,
    /// Only settled by these
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(Origin::ALL.iter().map(|word| word.word())))]
    origin: Vec<String>,
    /// Only of these workflows, recipes, agents or monitors
    #[arg(long, value_name = "IDS")]
    group: Option<String>,
    /// Stop after N records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    talk: Talk,
}

/// The fields of a record that a line for people shows.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ShownRecord {
    time: Option<String>,
    data: ShownData,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ShownData {
    source: Option<String>,
    run_id: Option<String>,
    outcome: Option<String>,
    previous_outcome: Option<String>,
    origin: Option<String>,
    confirmed: Option<bool>,
    provider_status: Option<String>,
    reason: Option<String>,
    error: Option<String>,
}

/// How a stream came to its end.
#[derive(Debug, PartialEq)]
enum End {
    /// All requested records have come.
    Over,
    /// It broke off, or the daemon ended it; there may be more.
    Lost(String),
}

/// How far the command has read.
struct Position {
    /// Everything up to here has been printed, or does not match.
    after: String,
    /// How many records are still to be printed.
    left: Option<u64>,
    /// A stream was open before.
    met: bool,
    /// Records are printed as they are.
    json: bool,
}

impl Feed {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.feed(&self.talk)?;
        let json = self.talk.json || !io::stdout().is_terminal();
        let mut position = Position {
            after: self.after.clone(),
            left: self.limit,
            met: false,
            json,
        };
        let mut pause = PAUSE_MIN;
        loop {
            let lost = match self.read(&client, &mut position, &mut pause).await? {
                End::Over => return Ok(ExitCode::SUCCESS),
                End::Lost(why) => why,
            };
            if !self.follow {
                let text = format!(
                    "the feed broke off ({lost}); go on with --after {}",
                    position.after
                );
                return Err(Failure::Other(text));
            }
            if pause == PAUSE_MIN {
                show::aside(&format!(
                    "the feed broke off ({lost}); it goes on when the daemon is back"
                ));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One connection, from beginning to end.
    async fn read(
        &self,
        client: &Client,
        position: &mut Position,
        pause: &mut Duration,
    ) -> Result<End, Failure> {
        if position.left == Some(0) {
            return Ok(End::Over);
        }
        let stream = match client.stream(self.target(position)).await {
            Ok(stream) => stream,
            Err(error) if self.follow && position.met && error.is_passing() => {
                return Ok(End::Lost(error.to_string()));
            }
            Err(error) => return Err(with_earliest(error)),
        };
        position.met = true;
        let end = position.take(stream, pause).await?;
        Ok(match end {
            _ if position.left == Some(0) => End::Over,
            // Only a daemon that stops ends a stream that follows.
            End::Over if self.follow => End::Lost("the daemon has stopped".to_owned()),
            end => end,
        })
    }

    fn target(&self, position: &Position) -> Target {
        let list = |words: &[String]| (!words.is_empty()).then(|| words.join(","));
        Target::new(["v1", "events"])
            .with("after", &position.after)
            .with_some("follow", self.follow.then_some(1))
            .with_some("limit", position.left)
            .with_some("types", list(&self.types))
            .with_some("source", self.source.as_ref())
            .with_some("provider", self.provider.as_ref())
            .with_some("outcome", list(&self.outcome))
            .with_some("origin", list(&self.origin))
            .with_some("group", self.group.as_ref())
    }
}

/// The daemon refuses an expired cursor with one that can be used: the message names it.
fn with_earliest(error: ClientError) -> Failure {
    match &error {
        ClientError::Refused { message, more, .. } if more.contains_key("earliest") => {
            let earliest = more["earliest"].as_str().unwrap_or("earliest");
            Failure::Other(show::clean(&format!("{message} (--after {earliest})")))
        }
        _ => error.into(),
    }
}

impl Position {
    /// Prints what comes until it ends.
    async fn take(&mut self, mut stream: ByteStream, pause: &mut Duration) -> Result<End, Failure> {
        let mut waiting = Vec::new();
        let mut check = interval(READER_CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let chunk = tokio::select! {
                chunk = timeout(SILENCE_MAX, stream.chunk()) => chunk,
                () = output_closed(&mut check) => return Err(Failure::ClosedPipe),
            };
            let chunk = match chunk {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(End::Lost("it ended without saying so".to_owned())),
                Ok(Err(error)) => return Ok(End::Lost(error.to_string())),
                Err(_) => return Ok(End::Lost("the daemon is silent".to_owned())),
            };
            *pause = PAUSE_MIN;
            waiting.extend_from_slice(&chunk);
            let whole = waiting
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            for line in String::from_utf8_lossy(&waiting[..whole]).lines() {
                if let Some(end) = self.line(line)? {
                    return Ok(end);
                }
            }
            waiting.drain(..whole);
        }
    }

    /// Takes one line; the last one says how the stream ended.
    fn line(&mut self, text: &str) -> Result<Option<End>, Failure> {
        let line: FeedLine = read(text)?;
        let is_record = RecordType::from_word(&line.line_type).is_some();
        if is_record {
            if self.json {
                show::json(text)?;
            } else {
                show::line(&sentence(&read(text)?))?;
            }
            self.left = self.left.map(|left| left.saturating_sub(1));
        }
        if let Some(cursor) = line.cursor {
            self.after = cursor;
        }
        // Later releases may add types of record, whose data is not that of a line about the stream.
        if is_record || !line.line_type.starts_with("settled.feed.") {
            return Ok(None);
        }
        Ok(match read::<StreamLine>(text)?.data {
            // The daemon also ends streams because it stops; then there may be more.
            StreamData::End(end) if !end.more => Some(End::Over),
            StreamData::End(_) => Some(End::Lost("the daemon has stopped".to_owned())),
            StreamData::Error(error) => Some(End::Lost(error.message)),
            _ => None,
        })
    }
}

fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, ClientError> {
    serde_json::from_str(text).map_err(ClientError::Unreadable)
}

/// Ends when the reader of our output has closed it. A write would notice that too, but only once
/// there is a record to write.
async fn output_closed(check: &mut tokio::time::Interval) {
    loop {
        check.tick().await;
        let stdout = io::stdout();
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        let polled = poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        );
        if polled.is_ok() && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return;
        }
    }
}

/// A record in one line for people.
fn sentence(line: &ShownRecord) -> String {
    let data = &line.data;
    let text = |text: &Option<String>| text.as_deref().map(show::clean).unwrap_or_default();
    let by = format!(
        "{}{}",
        text(&data.origin),
        if data.confirmed == Some(false) {
            ", not confirmed"
        } else {
            ""
        }
    );
    let what = match (&data.previous_outcome, &data.outcome) {
        (Some(_), outcome) => format!(
            "{} (amended, was {}; by {by})",
            text(outcome),
            text(&data.previous_outcome)
        ),
        (None, Some(_)) => format!("{} (by {by})", text(&data.outcome)),
        (None, None) => format!("open ({})", text(&data.provider_status)),
    };
    let why = show::why(data.reason.as_deref(), data.error.as_deref());
    let why = if why.is_empty() {
        why
    } else {
        format!(": {}", show::short(&why))
    };
    let time = line.time.as_deref().map(second).unwrap_or_default();
    format!(
        "{time}  {}  {}  {what}{why}",
        text(&data.source),
        text(&data.run_id)
    )
}

/// `2026-11-21T08:00:00.123Z` without the milliseconds.
fn second(time: &str) -> String {
    let time = show::clean(time);
    time.split_once('.')
        .map_or(time.clone(), |(seconds, _)| format!("{seconds}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, data: &str) -> String {
        format!(
            r#"{{"specversion":"1.0","id":"i","source":"/settled","type":"{kind}","time":"2026-11-21T08:00:00.123Z","datacontenttype":"application/json","cursor":"k3v9.42","data":{data}}}"#
        )
    }

    fn shown(kind: &str, data: &str) -> String {
        sentence(&serde_json::from_str(&line(kind, data)).unwrap())
    }

    #[test]
    fn a_record_is_one_line_for_people() {
        let run = r#""source":"prod","run_id":"wr_1""#;
        let completion = shown(
            "settled.run.completion",
            &format!(
                r#"{{{run},"outcome":"failed","origin":"webhook","confirmed":false,"reason":"terminated","error":"no\nluck"}}"#
            ),
        );
        let time = "2026-11-21T08:00:00Z  prod  wr_1  ";
        assert_eq!(
            completion,
            format!("{time}failed (by webhook, not confirmed): terminated: no luck")
        );
        let amendment = shown(
            "settled.run.amendment",
            &format!(
                r#"{{{run},"outcome":"failed","previous_outcome":"succeeded","origin":"poll","confirmed":true}}"#
            ),
        );
        assert_eq!(
            amendment,
            format!("{time}failed (amended, was succeeded; by poll)")
        );
        let status = shown(
            "settled.run.status",
            &format!(r#"{{{run},"provider_status":"running"}}"#),
        );
        assert_eq!(status, format!("{time}open (running)"));
    }

    #[test]
    fn the_streams_own_lines_move_the_position_and_print_nothing() {
        let mut position = Position {
            after: "latest".to_owned(),
            left: Some(2),
            met: true,
            json: true,
        };
        let mut take = |kind: &str, data: &str| position.line(&line(kind, data)).unwrap();
        assert_eq!(
            take("settled.feed.hello", r#"{"protocol":1,"later":true}"#),
            None
        );
        assert_eq!(take("settled.feed.bookmark", "{}"), None);
        assert_eq!(
            take("settled.feed.end", r#"{"more":false}"#),
            Some(End::Over)
        );
        assert_eq!(
            take("settled.feed.end", r#"{"more":true}"#),
            Some(End::Lost("the daemon has stopped".to_owned()))
        );
        assert_eq!(
            take("settled.feed.error", r#"{"code":"y","message":"x"}"#),
            Some(End::Lost("x".to_owned()))
        );
        assert_eq!(
            (position.after.as_str(), position.left),
            ("k3v9.42", Some(2))
        );
    }
}
