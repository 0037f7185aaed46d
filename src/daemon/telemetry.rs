//! The log: fields in the journal under systemd, lines for people on a terminal, JSON lines
//! elsewhere.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// The journal if stderr goes there, text on a terminal, JSON otherwise.
    Auto,
    /// Lines for people, with colours on a terminal.
    Text,
    /// One JSON object per line, for log collectors.
    Json,
    /// Fields in systemd's journal: SETTLED_SOURCE, SETTLED_RUN_ID, …
    Journal,
}

/// Starts logging. `filter` is a level (`info`) or a list of `target=level`; one that cannot be
/// read falls back to `info` and says so.
pub fn start(filter: &str, format: LogFormat) {
    let parsed = filter.parse::<Targets>();
    let targets = parsed
        .as_ref()
        .ok()
        .cloned()
        .unwrap_or_else(|| Targets::new().with_default(tracing::Level::INFO));
    let layer = layer(match format {
        LogFormat::Auto => guess(),
        format => format,
    });
    // A second start (in tests) keeps the first.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(targets))
        .try_init();
    if let Err(error) = parsed {
        tracing::warn!(filter, %error, "the log filter cannot be read; logging at info");
    }
}

fn guess() -> LogFormat {
    if stderr_is_journal() {
        LogFormat::Journal
    } else if std::io::stderr().is_terminal() {
        LogFormat::Text
    } else {
        LogFormat::Json
    }
}

/// Whether stderr still is the journal's stream: systemd sets its device and inode in
/// `$JOURNAL_STREAM`, and a redirected stderr has others.
fn stderr_is_journal() -> bool {
    let Ok(told) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = std::io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from);
    stderr
        .and_then(|file| file.metadata())
        .is_ok_and(|meta| told == format!("{}:{}", meta.dev(), meta.ino()))
}

fn layer(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = || fmt::layer().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Json => lines().json().flatten_event(true).boxed(),
        LogFormat::Journal => match tracing_journald::layer() {
            Ok(journal) => journal
                .with_field_prefix(Some("SETTLED".to_owned()))
                .with_syslog_identifier("settled".to_owned())
                .boxed(),
            // stderr goes to the journal all the same, line by line.
            Err(_) => lines().with_ansi(false).without_time().boxed(),
        },
        LogFormat::Text | LogFormat::Auto => {
            lines().with_ansi(std::io::stderr().is_terminal()).boxed()
        }
    }
}
