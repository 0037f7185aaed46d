//! One run of the user's command.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::super::{Failure, show};
use crate::limits;

/// How long a command has between SIGTERM and SIGKILL.
const TERMINATE_MAX: Duration = Duration::from_secs(5);

/// A record: its line, and the fields that the command gets as variables.
pub struct Event {
    /// The line, without its end.
    pub line: String,
    /// Cursor of the record.
    pub cursor: String,
    /// The fields that become variables.
    pub fields: Fields,
}

/// The fields of a record that become variables.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Fields {
    id: Option<String>,
    r#type: Option<String>,
    time: Option<String>,
    data: RunFields,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RunFields {
    source: Option<String>,
    provider: Option<String>,
    run_id: Option<String>,
    kind: Option<String>,
    group_id: Option<String>,
    outcome: Option<String>,
    previous_outcome: Option<String>,
    origin: Option<String>,
    confirmed: Option<bool>,
    provider_status: Option<String>,
    reason: Option<String>,
    error: Option<String>,
}

impl Fields {
    /// The variables of one event.
    fn variables(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Fields {
            id,
            r#type,
            time,
            data,
        } = self;
        let confirmed = data
            .confirmed
            .map(|confirmed| if confirmed { "1" } else { "0" }.to_owned());
        [
            ("SETTLED_ID", id.clone()),
            ("SETTLED_TYPE", r#type.clone()),
            ("SETTLED_TIME", time.clone()),
            ("SETTLED_SOURCE", data.source.clone()),
            ("SETTLED_PROVIDER", data.provider.clone()),
            ("SETTLED_RUN_ID", data.run_id.clone()),
            ("SETTLED_KIND", data.kind.clone()),
            ("SETTLED_GROUP_ID", data.group_id.clone()),
            ("SETTLED_OUTCOME", data.outcome.clone()),
            ("SETTLED_PREVIOUS_OUTCOME", data.previous_outcome.clone()),
            ("SETTLED_ORIGIN", data.origin.clone()),
            ("SETTLED_CONFIRMED", confirmed),
            ("SETTLED_PROVIDER_STATUS", data.provider_status.clone()),
            ("SETTLED_REASON", data.reason.clone()),
            ("SETTLED_ERROR", data.error.clone()),
        ]
        .into_iter()
        .map(|(name, value)| (name, variable(&value.unwrap_or_default())))
    }
}

/// Variables of ours that the command keeps; every other may hold a secret.
const KEPT: [&str; 10] = [
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM",
];

/// `NAME`, which passes a variable on, or `NAME=VALUE`, which sets it.
pub fn variable_option(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    if name.is_empty() || !name.chars().all(plain) || name.starts_with("SETTLED_") {
        return Err("write NAME or NAME=VALUE; a name has letters, digits and _, and does not begin with SETTLED_".to_owned());
    }
    Ok((name.to_owned(), value))
}

/// The command's environment without the event: what is kept of ours, and what `--env` adds.
pub fn environment(
    added: &[(String, Option<String>)],
) -> Result<Vec<(OsString, OsString)>, Failure> {
    let kept = |name: &OsString| {
        let name = name.to_str();
        name.is_some_and(|name| KEPT.contains(&name) || name.starts_with("LC_"))
    };
    let mut variables: Vec<_> = std::env::vars_os().filter(|(name, _)| kept(name)).collect();
    for (name, value) in added {
        let value = match value {
            Some(value) => OsString::from(value),
            None => std::env::var_os(name).ok_or_else(|| {
                Failure::Other(format!(
                    "--env {name}: {name} is not set here; write {name}=VALUE"
                ))
            })?,
        };
        variables.push((name.into(), value));
    }
    Ok(variables)
}

/// A provider's text as a variable: short, without control characters, and never an option.
fn variable(text: &str) -> String {
    let mut kept = show::clean(text);
    if let Some(rest) = kept.strip_prefix('-') {
        kept = format!("%2D{rest}");
    }
    if kept.len() <= limits::VARIABLE_BYTES {
        return kept;
    }
    let end = (0..=limits::VARIABLE_BYTES)
        .rev()
        .find(|at| kept.is_char_boundary(*at))
        .unwrap_or(0);
    kept.truncate(end);
    kept
}

/// How a command is run.
pub struct Program {
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// The consumer's name.
    pub consumer: String,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// Its environment without the event; see [`environment`].
    pub environment: Vec<(OsString, OsString)>,
}

/// Why an event is not done.
pub enum Unfinished {
    /// The command failed, for this reason.
    Failed(String),
    /// It was ended because a second signal asked us to stop.
    Interrupted,
    /// It cannot be run at all.
    Impossible(io::Error),
}

impl Program {
    /// Runs the command once on these events. `abort` ends it.
    pub async fn run(
        &self,
        events: &[Event],
        attempt: u32,
        abort: impl Future<Output = ()>,
    ) -> Result<(), Unfinished> {
        let mut child = match self.command(events, attempt).spawn() {
            Ok(child) => child,
            // Too many processes or too little memory: a later attempt may work.
            Err(error) if !never(&error) => return Err(Unfinished::Failed(error.to_string())),
            Err(error) => return Err(Unfinished::Impossible(error)),
        };
        let input = events
            .iter()
            .flat_map(|event| [event.line.as_str(), "\n"])
            .collect::<String>();
        let expired = async {
            match self.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = finish(&mut child, input) => match status {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(Unfinished::Failed(status.to_string())),
                Err(error) => Err(Unfinished::Failed(error.to_string())),
            },
            () = expired => {
                end(&mut child).await;
                Err(Unfinished::Failed(format!("it took longer than {:?}", self.timeout.unwrap_or_default())))
            }
            () = abort => {
                end(&mut child).await;
                Err(Unfinished::Interrupted)
            }
        }
    }

    fn command(&self, events: &[Event], attempt: u32) -> Command {
        let mut command = Command::new(&self.words[0]);
        command
            .args(&self.words[1..])
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        // A process group of its own, so that Ctrl-C reaches only us and the command can finish.
        command.process_group(0);
        command
            .env("SETTLED_CONSUMER", &self.consumer)
            .env("SETTLED_ATTEMPT", attempt.to_string());
        command.env("SETTLED_COUNT", events.len().to_string());
        if let Some(last) = events.last() {
            command.env("SETTLED_CURSOR", &last.cursor);
        }
        if let [event] = events {
            command.envs(event.fields.variables());
        }
        command
    }
}

fn never(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput
    )
}

/// Writes the events to the command and waits for its end. The command need not read them.
async fn finish(child: &mut Child, input: String) -> io::Result<ExitStatus> {
    let stdin = child.stdin.take();
    let write = async move {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let mut ended = std::pin::pin!(child.wait());
    // The command's end counts, even if it has not read everything.
    tokio::select! {
        status = &mut ended => return status,
        () = write => {}
    }
    ended.await
}

/// Ends a command and every process of its group.
async fn end(child: &mut Child) {
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    let Some(group) = group else { return };
    let _ = kill_process_group(group, Signal::TERM);
    if tokio::time::timeout(TERMINATE_MAX, child.wait())
        .await
        .is_err()
    {
        let _ = kill_process_group(group, Signal::KILL);
        let _ = child.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_providers_text_is_no_option_and_no_command_to_a_terminal() {
        assert_eq!(variable("wr_1"), "wr_1");
        assert_eq!(variable("-rf /"), "%2Drf /");
        assert_eq!(variable("\n--help"), "%2D-help");
        assert_eq!(variable("a\nb\u{1b}[2J\0c"), "a b [2J c");
        assert_eq!(variable(&"ü".repeat(5_000)).len(), limits::VARIABLE_BYTES);
    }

    #[test]
    fn added_variables_are_passed_on_or_set() {
        let set = |text| variable_option(text).unwrap();
        assert_eq!(set("A=b=c"), ("A".to_owned(), Some("b=c".to_owned())));
        assert_eq!(set("A"), ("A".to_owned(), None));
        for wrong in ["", "=b", "A B", "SETTLED_ID=1", "-x"] {
            assert!(variable_option(wrong).is_err(), "{wrong:?}");
        }
    }
}
