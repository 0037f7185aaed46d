//! `settled poll`: asks the provider about one run now.

use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::{Context, Failure, Talk, show};
use crate::api::types::{DeliveryView, RunView};
use crate::cli::client::{Client, ClientError, Target};
use crate::model::At;
use crate::model::decide::Effect;

/// Ask the provider about a run now
///
/// Ends with 1 if the provider could not be asked.
///
/// Example: settled poll skyvern-prod wr_123
#[derive(Debug, Args)]
pub struct Poll {
    /// The source's name in the configuration
    source: String,
    /// The provider's id of the run
    run_id: String,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Deserialize)]
struct Told {
    report: i64,
    effect: Option<Effect>,
    run: RunView,
}

impl Poll {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.control(&self.talk)?;
        let reply = client
            .post(
                Target::run(&self.source, &self.run_id).then("poll"),
                &json!({}),
            )
            .await?;
        let told: Told = reply.read()?;
        if self.talk.json {
            show::json(&reply.text())?;
        }
        if let Some(trouble) = trouble(&client, &told).await? {
            let (run_id, state) = (show::clean(&told.run.run_id), show::state(&told.run));
            return Err(Failure::Other(format!(
                "{} {trouble}; {run_id} is {state}",
                show::clean(&told.run.provider)
            )));
        }
        if !self.talk.json {
            show::line(&sentence(&told, context.now()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Why the answer says nothing about the run, if that is so: it is in the report of the poll.
async fn trouble(client: &Client, told: &Told) -> Result<Option<String>, ClientError> {
    let target = Target::new(["v1", "deliveries", &told.report.to_string()]);
    let view: DeliveryView = client.get(target).await?.read()?;
    Ok(view
        .answers
        .last()
        .and_then(|answer| match (answer.status, &answer.failed) {
            (None, failed) => Some(format!(
                "could not be asked: {}",
                show::or_dash(failed.as_deref())
            )),
            (Some(401 | 403), _) => Some("does not accept the API key".to_owned()),
            (Some(429), _) => Some("asks us to slow down".to_owned()),
            (Some(status @ 500..), _) => Some(format!("is in trouble (HTTP {status})")),
            (Some(_), _) => None,
        }))
}

fn sentence(told: &Told, now: At) -> String {
    let Told { effect, run, .. } = told;
    let effect = effect.map_or("the answer says nothing of the run", meaning);
    let next = run
        .next_poll_at
        .as_deref()
        .filter(|_| run.outcome.is_none());
    let next = next
        .map(|at| format!("; next question {}", show::when_text(now, at)))
        .unwrap_or_default();
    format!(
        "{effect}: {} {} is {}{next}",
        show::clean(&run.source),
        show::clean(&run.run_id),
        show::state(run)
    )
}

/// What an effect means, in the words of somebody who has just asked.
pub fn meaning(effect: Effect) -> &'static str {
    match effect {
        Effect::Opened => "watched from now on",
        Effect::Status => "its status has changed",
        Effect::Unchanged => "nothing new",
        Effect::Held => "an end that is held until it is confirmed",
        Effect::Withdrawn => "it goes on after all",
        Effect::Settled => "settled",
        Effect::Amended => "what was published is corrected",
        Effect::Confirmed => "confirmed",
        Effect::Disputed => "a contradiction that is being looked into",
        Effect::Exhausted => "a contradiction that stays unpublished, after too many",
        Effect::Missed => "the provider does not know it",
        Effect::Overdue => "past its deadline",
        Effect::Hinted => "asked about soon",
        Effect::Ignored => "without consequence",
    }
}
