//! `settled status`: the state of the daemon, its sources and its consumers.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{Context, Failure, Talk, show};
use crate::api::types::{ConsumerView, SourceView, StatusView};
use crate::cli::client::{Client, ClientError, Target, WholeReply};
use crate::ledger::{LOSS_SPANS, Loss};
use crate::model::At;
use crate::polling::rate_limit::RateLimiterState;

/// How often `--watch` reads the status.
const EVERY: Duration = Duration::from_secs(2);
/// How many damaged rows are named.
const NAMED_MAX: usize = 5;
/// Clears a terminal and moves the cursor to its upper left corner.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J\u{1b}[3J";

/// Show the state of the daemon and its sources
///
/// With --watch and --json: one object a line, every two seconds.
///
/// Example: settled status --watch
#[derive(Debug, Args)]
pub struct Status {
    /// Show it again every two seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    talk: Talk,
}

impl Status {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.control(&self.talk)?;
        self.print(&ask(&client).await?, context.now())?;
        if !self.watch {
            return Ok(ExitCode::SUCCESS);
        }
        loop {
            tokio::time::sleep(EVERY).await;
            match ask(&client).await {
                Ok(reply) => self.print(&reply, context.now())?,
                // A daemon that restarts is back soon, and `--watch` shows that.
                Err(error) if self.talk.json => show::note(&error.to_string()),
                Err(error) => self.page(&format!("settled: {error}"))?,
            }
        }
    }

    fn print(&self, reply: &WholeReply, now: At) -> Result<(), Failure> {
        if self.talk.json {
            return Ok(show::json(&reply.text())?);
        }
        self.page(&text(&reply.read()?, now))
    }

    /// Prints one status; on a terminal that watches, in place of the last.
    fn page(&self, text: &str) -> Result<(), Failure> {
        match (self.watch, io::stdout().is_terminal()) {
            (true, true) => show::line(&format!("{CLEAR}{text}"))?,
            (true, false) => show::line(&format!("{text}\n"))?,
            (false, _) => show::line(text)?,
        }
        Ok(())
    }
}

async fn ask(client: &Client) -> Result<WholeReply, ClientError> {
    client.get(Target::new(["v1", "status"])).await
}

fn text(status: &StatusView, now: At) -> String {
    let store = &status.store;
    let path = show::clean(&store.path);
    let free = u64::try_from(store.free_bytes).unwrap_or(0);
    let (size, log) = (show::size(store.bytes), show::size(store.wal_bytes));
    let size = format!(
        "{path}, {size} ({} of it free) and a log of {log}",
        show::size(free)
    );
    let up = show::when_text(now, &status.started_at);
    let facts = show::facts([
        (
            "settled",
            Some(format!("{}, started {up}", show::clean(&status.version))),
        ),
        (
            "runs",
            Some(format!("{} open, {} overdue", status.open, status.overdue)),
        ),
        (
            "feed",
            Some(format!(
                "head {}, earliest {}",
                show::clean(&status.head),
                show::clean(&status.earliest)
            )),
        ),
        ("store", Some(size)),
    ]);
    let mut parts = vec![facts];
    parts.extend(status.trouble.as_deref().map(show::clean));
    if !status.sources.is_empty() {
        parts.extend([sources(&status.sources, now), losses(&status.sources)]);
    }
    if !status.consumers.is_empty() {
        parts.push(consumers(&status.consumers, now));
    }
    let mut notes: Vec<String> = status
        .sources
        .iter()
        .flat_map(|source| notes(source, now))
        .collect();
    if status.quarantined > 0 {
        notes.push(format!(
            "{} reports could not be processed and were quarantined; please report this",
            status.quarantined
        ));
    }
    let damaged = status.damaged.iter().take(NAMED_MAX);
    notes.extend(damaged.map(|row| {
        format!(
            "the row of {} is damaged; see `settled check`",
            show::clean(&row.to_string())
        )
    }));
    if status.damaged.len() > NAMED_MAX {
        notes.push(format!(
            "… and {} more rows",
            status.damaged.len() - NAMED_MAX
        ));
    }
    if !notes.is_empty() {
        parts.push(notes.join("\n"));
    }
    parts.join("\n\n")
}

fn notes(source: &SourceView, now: At) -> Vec<String> {
    let name = show::clean(&source.name);
    let unverified = source.last_unverified_at.as_deref();
    let unverified = unverified.map(|at| {
        format!(
            "the last delivery that was not authentic came {}",
            show::when_text(now, at)
        )
    });
    source
        .notes
        .iter()
        .map(|note| show::clean(note))
        .chain(unverified)
        .map(|note| format!("{name}: {note}"))
        .collect()
}

fn sources(sources: &[SourceView], now: At) -> String {
    let mut table = show::table([
        "SOURCE", "PROVIDER", "OPEN", "OVERDUE", "WEBHOOK", "ANSWER", "OK", "429", "DENIED",
        "ERRORS", "RATE",
    ]);
    for source in sources {
        let responses = source.limiter.as_ref().map(|limiter| limiter.responses);
        let count = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
        table.add_row([
            show::clean(&source.name),
            show::clean(&source.provider),
            source.open.to_string(),
            source.overdue.to_string(),
            show::when_or_dash(now, source.last_webhook_at.as_deref()),
            show::when_or_dash(now, source.last_answer_at.as_deref()),
            count(responses.map(|responses| responses.ok)),
            count(responses.map(|responses| responses.rate_limited)),
            count(responses.map(|responses| responses.denied)),
            count(responses.map(|responses| responses.unavailable)),
            source
                .limiter
                .as_ref()
                .map_or("no longer configured".to_owned(), |limiter| {
                    rate(limiter, now)
                }),
        ]);
    }
    table.trim_fmt()
}

/// How many completions had no webhook, by source and span of time.
fn losses(sources: &[SourceView]) -> String {
    let [hour, day, month] = LOSS_SPANS.map(|(name, _)| format!("IN {}", name.to_uppercase()));
    let mut table = show::table(["LOST WEBHOOKS", &hour, &day, &month]);
    for source in sources {
        let losses = |name| source.loss.get(name).map_or("-".to_owned(), lost);
        let [hour, day, month] = LOSS_SPANS.map(|(name, _)| losses(name));
        table.add_row([show::clean(&source.name), hour, day, month]);
    }
    table.trim_fmt()
}

/// `3 of 120 (2.5 %), 1 late`.
fn lost(loss: &Loss) -> String {
    let rate = if loss.synthesized > 0 {
        format!(" ({:.1} %)", loss.rate * 100.0)
    } else {
        String::new()
    };
    let late = if loss.late > 0 {
        format!(", {} late", loss.late)
    } else {
        String::new()
    };
    match loss.completions {
        0 => "-".to_owned(),
        all => format!("{} of {all}{rate}{late}", loss.synthesized),
    }
}

/// The table of named consumers.
pub(super) fn consumers(consumers: &[ConsumerView], now: At) -> String {
    let mut table = show::table(["CONSUMER", "ACKED", "LAG", "PARKED", "SEEN", "STATE"]);
    for view in consumers {
        let state = match (view.expired, view.connected) {
            (true, _) => "expired: retention removed its next events; seek",
            (false, true) => "connected",
            (false, false) => "away",
        };
        table.add_row([
            show::clean(&view.name),
            show::clean(&view.acked),
            view.lag.to_string(),
            view.parked.to_string(),
            show::when_text(now, &view.seen_at),
            state.to_owned(),
        ]);
    }
    table.trim_fmt()
}

/// How fast a source is polled, or why it is not.
fn rate(limiter: &RateLimiterState, now: At) -> String {
    if let Some(breaker) = &limiter.breaker {
        let probe = show::when(now, breaker.next_probe);
        return format!(
            "stopped {}, next probe {probe}",
            show::when(now, breaker.since)
        );
    }
    if let Some(pause) = limiter.pause.as_ref().filter(|pause| pause.until > now) {
        return format!(
            "paused ({}), goes on {}",
            show::clean(&pause.why),
            show::when(now, pause.until)
        );
    }
    if limiter.effective_rate < limiter.rate {
        return format!("{:.1}/s of {}/s", limiter.effective_rate, limiter.rate);
    }
    format!("{}/s", limiter.rate)
}
