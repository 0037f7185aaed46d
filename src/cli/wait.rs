//! `settled wait`: blocks until a run settles, for `settled wait … && next step`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Context, Failure, Talk, exit, show};
use crate::api::types::{RunDetail, RunView};
use crate::cli::client::{ANSWER_MAX, Client, ClientError, Target, WholeReply};
use crate::config;
use crate::model::Outcome;

/// How long one request waits: short enough to notice that the daemon was replaced.
const TURN: Duration = Duration::from_secs(60);
/// How long a daemon that has gone away may take to restart.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// Pause between attempts to reach it again.
const PAUSE: Duration = Duration::from_millis(500);

/// Wait until a run has settled
///
/// Prints the outcome and ends with 0 if the run succeeded, 10 failed, 11 was cancelled, 12 timed
/// out, 13 indeterminate, 14 if it was still open at the timeout, and 3 if no daemon answered.
///
/// Example: settled wait prod wr_123 --timeout 10m && next-step
#[derive(Debug, Args)]
pub struct Wait {
    /// The source's name in the configuration
    source: String,
    /// The provider's id of the run
    run_id: String,
    /// Stop waiting after this long, also for the daemon itself, for example 90s, 10m or 2h [default: never]
    #[arg(long, value_name = "DURATION", value_parser = config::duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    talk: Talk,
}

impl Wait {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.control(&self.talk)?;
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let target = Target::run(&self.source, &self.run_id);
        // The timeout covers this request too: nothing is known of the run yet, so the command fails.
        let mut reply = match (self.timeout, deadline) {
            (Some(span), Some(at)) => timeout_at(at, client.get(target.clone()))
                .await
                .map_err(|_| client.silent(span))??,
            _ => client.get(target.clone()).await?,
        };
        let mut run = reply.read::<RunDetail>()?.run;
        while run.outcome.is_none() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            let Some(newer) = next(&client, &target, deadline).await? else {
                break;
            };
            run = newer.read::<RunDetail>()?.run;
            reply = newer;
        }
        self.print(&reply, &run)?;
        Ok(ExitCode::from(code(run.outcome)))
    }

    fn print(&self, reply: &WholeReply, run: &RunView) -> Result<(), Failure> {
        if self.talk.json {
            return Ok(show::json(&reply.text())?);
        }
        let why = show::why(run.reason.as_deref(), run.error.as_deref());
        show::line(run.outcome.map_or("open", Outcome::word))?;
        match run.outcome {
            None => show::note(&format!(
                "still open after {}",
                config::shown(self.timeout.unwrap_or_default())
            )),
            Some(_) if !why.is_empty() => show::note(&why),
            Some(_) => {}
        }
        Ok(())
    }
}

/// The code for how a run ended.
fn code(outcome: Option<Outcome>) -> u8 {
    match outcome {
        Some(Outcome::Succeeded) => exit::OK,
        Some(Outcome::Failed) => exit::RUN_FAILED,
        Some(Outcome::Cancelled) => exit::RUN_CANCELLED,
        Some(Outcome::TimedOut) => exit::RUN_TIMED_OUT,
        Some(Outcome::Indeterminate) => exit::RUN_INDETERMINATE,
        None => exit::STILL_OPEN,
    }
}

/// The next reply, which comes when the run settles or a turn is over; `None` at the deadline.
async fn next(
    client: &Client,
    target: &Target,
    deadline: Option<Instant>,
) -> Result<Option<WholeReply>, ClientError> {
    let sent = Instant::now();
    let left = deadline.map_or(TURN, |deadline| deadline.saturating_duration_since(sent));
    let turn = left.min(TURN).as_secs() + 1;
    let request = target
        .clone()
        .with("wait", turn)
        .answered_within(Duration::from_secs(turn) + ANSWER_MAX);
    let reply = match before(deadline, client.get(request)).await {
        None => return Ok(None),
        Some(Err(error)) if error.is_lost() => return again(client, target, deadline).await,
        Some(reply) => reply?,
    };
    // A daemon that stops answers at once. Without this pause the loop would spin until it is gone.
    if sent.elapsed() < PAUSE && reply.read::<RunDetail>()?.run.outcome.is_none() {
        sleep(PAUSE).await;
    }
    Ok(Some(reply))
}

/// Waits for a daemon that is being restarted; `None` at the deadline.
async fn again(
    client: &Client,
    target: &Target,
    deadline: Option<Instant>,
) -> Result<Option<WholeReply>, ClientError> {
    let lost = Instant::now();
    loop {
        let reply = before(deadline, async {
            sleep(PAUSE).await;
            client.get(target.clone()).await
        });
        match reply.await {
            None => return Ok(None),
            Some(Err(error)) if error.is_lost() && lost.elapsed() < RESTART_MAX => {}
            Some(reply) => return reply.map(Some),
        }
    }
}

/// The output of a future, or `None` if the deadline passes first.
async fn before<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_code() {
        let codes: Vec<u8> = Outcome::ALL
            .iter()
            .map(|outcome| code(Some(*outcome)))
            .collect();
        assert_eq!((codes, code(None)), (vec![0, 10, 11, 12, 13], 14));
    }
}
