//! `settled wait`: blocks until a run settles, for `settled wait … && next step`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep, timeout_at};

use super::run::Told;
use super::{Context, Failure, Talk, exit, show};
use crate::api::types::RunView;
use crate::cli::client::{Client, ClientError, Reply, Target};
use crate::config;
use crate::model::Outcome;

/// How long one request waits: short enough that a change of the daemon is noticed.
const TURN: Duration = Duration::from_secs(60);
/// A daemon that was there and is gone is being restarted, for this long.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// Between attempts to reach it again.
const PAUSE: Duration = Duration::from_millis(500);

/// Wait until a run has settled
///
/// Prints the outcome and ends with 0 if the run succeeded, 10 failed, 11 was cancelled, 12 timed
/// out, 13 indeterminate, 14 if it was still open at the timeout.
///
/// Example: settled wait skyvern-prod wr_123 --timeout 10m && next-step
#[derive(Debug, Args)]
pub struct Wait {
    /// The source's name in the configuration
    source: String,
    /// The provider's id of the run
    run_id: String,
    /// Give up after this long, for example 90s, 10m or 2h [default: never]
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
        let mut reply = client.get(target.clone()).await?;
        let mut run = reply.read::<Told>()?.run;
        while run.outcome.is_none() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            let Some(newer) = next(&client, &target, deadline).await? else {
                break;
            };
            run = newer.read::<Told>()?.run;
            reply = newer;
        }
        self.tell(&reply, &run)?;
        Ok(ExitCode::from(code(run.outcome)))
    }

    fn tell(&self, reply: &Reply, run: &RunView) -> Result<(), Failure> {
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

/// The next answer, which comes when the run settles or a turn is over; `None` at the deadline.
async fn next(
    client: &Client,
    target: &Target,
    deadline: Option<Instant>,
) -> Result<Option<Reply>, ClientError> {
    let asked = Instant::now();
    let until = deadline.unwrap_or(asked + TURN * 2);
    let turn = until.saturating_duration_since(asked).min(TURN).as_secs() + 1;
    let question = target.clone().with("wait", turn);
    let answer = match timeout_at(until, client.get(question)).await {
        Err(_) if deadline.is_some() => return Ok(None),
        Err(_) => return Ok(Some(client.get(target.clone()).await?)),
        Ok(Err(ClientError::Unreachable { .. } | ClientError::Broken { .. })) => {
            return again(client, target, until).await;
        }
        Ok(answer) => answer?,
    };
    // A daemon that stops answers at once; asked again without a pause it would be asked in circles.
    if asked.elapsed() < PAUSE && answer.read::<Told>()?.run.outcome.is_none() {
        sleep(PAUSE).await;
    }
    Ok(Some(answer))
}

/// Waits for a daemon that is being restarted.
async fn again(
    client: &Client,
    target: &Target,
    until: Instant,
) -> Result<Option<Reply>, ClientError> {
    let lost = Instant::now();
    loop {
        sleep(PAUSE).await;
        match client.get(target.clone()).await {
            Err(ClientError::Unreachable { .. } | ClientError::Broken { .. })
                if lost.elapsed() < RESTART_MAX && Instant::now() < until => {}
            answer => return answer.map(Some),
        }
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
