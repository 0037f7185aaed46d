//! One run of the user's command.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::limits;

/// Between asking a command to end and ending it.
const MERCY: Duration = Duration::from_secs(5);

/// A record as it came, and as far as it is looked at.
pub struct Event {
    /// The line, without its end.
    pub line: String,
    /// Where it stands.
    pub cursor: String,
    /// What goes into the environment.
    pub fields: Fields,
}

/// The main fields.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Fields {
    id: Option<String>,
    r#type: Option<String>,
    time: Option<String>,
    data: Data,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
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
        .map(|(name, value)| (name, variable(value.unwrap_or_default())))
    }
}

/// What an environment can hold: no NUL, and not much.
fn variable(text: String) -> String {
    if text.len() <= limits::VARIABLE_BYTES && !text.contains('\0') {
        return text;
    }
    let mut kept = text.replace('\0', "");
    let end = (0..=limits::VARIABLE_BYTES)
        .rev()
        .find(|at| kept.is_char_boundary(*at))
        .unwrap_or(0);
    kept.truncate(end);
    kept
}

/// How a command is run.
pub struct Program {
    /// What to run.
    pub words: Vec<OsString>,
    /// The consumer's name.
    pub consumer: String,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// Why an event is not done.
pub enum Unfinished {
    /// The command failed; this is how.
    Failed(String),
    /// It was ended because we were told to stop at once.
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
            // Too many processes, too little memory: that passes.
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
            .kill_on_drop(true);
        // A group of its own: Ctrl-C is for us, and lets the command finish.
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

/// Hands the events over and waits for the end. A command that does not read them is not wrong.
async fn finish(child: &mut Child, input: String) -> io::Result<ExitStatus> {
    let stdin = child.stdin.take();
    let write = async move {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let mut ended = std::pin::pin!(child.wait());
    // The command's end is what counts, whatever it has left unread.
    tokio::select! {
        status = &mut ended => return status,
        () = write => {}
    }
    ended.await
}

/// Ends a command and everything it has started.
async fn end(child: &mut Child) {
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    let Some(group) = group else { return };
    let _ = kill_process_group(group, Signal::TERM);
    if tokio::time::timeout(MERCY, child.wait()).await.is_err() {
        let _ = kill_process_group(group, Signal::KILL);
        let _ = child.wait().await;
    }
}
