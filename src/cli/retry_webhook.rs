//! `settled retry-webhook`: asks the provider to send webhooks again.

use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::poll::meaning;
use super::{Context, Failure, Talk, exit, show};
use crate::api::types::{RunView, StatusView};
use crate::cli::client::{Client, ClientError, Reply, Target};
use crate::model::RunId;
use crate::model::decide::Effect;
use crate::providers::{self, Provider};

/// The most runs the daemon names at one time.
const MISSING_MAX: usize = 1_000;

/// Ask the provider to send a run's webhook again
///
/// With --missing: of every settled run whose webhook never came. Ends with 1 if any of them could
/// not be delivered. With --json, --missing prints one object a line.
///
/// Example: settled retry-webhook skyvern-prod --missing
#[derive(Debug, Args)]
pub struct RetryWebhook {
    /// The source's name in the configuration [default, with --missing: every source that can]
    #[arg(required_unless_present = "missing")]
    source: Option<String>,
    /// The provider's id of the run
    #[arg(required_unless_present = "missing", conflicts_with = "missing")]
    run_id: Option<String>,
    /// Send it here, this once
    #[arg(long, conflicts_with = "missing")]
    url: Option<String>,
    /// Every settled run whose webhook never came
    #[arg(long)]
    missing: bool,
    #[command(flatten)]
    talk: Talk,
}

/// What came of it.
#[derive(Deserialize)]
struct Told {
    delivered: bool,
    delivered_status: Option<u16>,
    error: Option<String>,
    target_url: Option<String>,
    latency_ms: Option<u64>,
    effect: Option<Effect>,
}

impl RetryWebhook {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.control(&self.talk)?;
        match (&self.source, &self.run_id) {
            (Some(source), Some(run_id)) => self.one(&client, source, run_id).await,
            _ => self.all(&client).await,
        }
    }

    async fn one(&self, client: &Client, source: &str, run_id: &str) -> Result<ExitCode, Failure> {
        let body = self
            .url
            .as_ref()
            .map_or_else(|| json!({}), |url| json!({ "webhook_url": url }));
        let reply = client.post(again(source, run_id), &body).await?;
        let told: Told = reply.read()?;
        if self.talk.json {
            show::json(&reply.text())?;
        } else {
            show::line(&sentence(&told))?;
        }
        Ok(code(told.delivered))
    }

    async fn all(&self, client: &Client) -> Result<ExitCode, Failure> {
        let mut tally = Tally::default();
        for source in self.sources(client).await? {
            let missing = missing(client, &source).await?;
            tally.more |= missing.len() == MISSING_MAX;
            let bar = bar(&source, missing.len());
            for run in &missing {
                let answer = client.post(again(&source, &run.run_id), &json!({})).await;
                let over = self.told(&mut tally, run, answer, &bar)?;
                bar.inc(1);
                if over {
                    break;
                }
            }
            bar.finish_and_clear();
        }
        if !self.talk.json {
            show::line(&tally.summary())?;
        }
        if tally.more {
            show::note(&format!(
                "there were {MISSING_MAX} of one source, and there may be more; run this again"
            ));
        }
        Ok(code(tally.failed == 0))
    }

    /// The named source, or every one that can.
    async fn sources(&self, client: &Client) -> Result<Vec<String>, Failure> {
        let status: StatusView = client.get(Target::new(["v1", "status"])).await?.read()?;
        let Some(name) = &self.source else {
            let able = status
                .sources
                .into_iter()
                .filter(|source| source.configured && can(&source.provider));
            return Ok(able.map(|source| source.name).collect());
        };
        match status.sources.iter().find(|source| &source.name == name) {
            Some(source) if !can(&source.provider) => {
                let provider = show::clean(&source.provider);
                Err(Failure::Other(format!(
                    "{provider} has no call that sends a webhook again; `settled poll` asks it"
                )))
            }
            // An unknown one is the daemon's to refuse.
            _ => Ok(vec![name.clone()]),
        }
    }

    /// Takes an answer down. True: it is no use to go on with this source.
    fn told(
        &self,
        tally: &mut Tally,
        run: &RunView,
        answer: Result<Reply, ClientError>,
        bar: &ProgressBar,
    ) -> Result<bool, Failure> {
        let (trouble, over) = match &answer {
            Ok(reply) => (reply.read::<Told>()?.trouble(), false),
            Err(ClientError::Refused { code, message, .. }) => (
                Some(message.clone()),
                matches!(code.as_str(), "cannot_ask" | "provider_unreachable"),
            ),
            Err(_) => return answer.map(|_| false).map_err(Failure::from),
        };
        match &trouble {
            None => tally.delivered += 1,
            Some(_) => tally.failed += 1,
        }
        if self.talk.json {
            show::json(&json_line(run, &answer)?)?;
        } else if let Some(trouble) = trouble {
            let (source, run_id) = (show::clean(&run.source), show::clean(&run.run_id));
            bar.suspend(|| show::note(&format!("{source} {run_id}: {}", show::clean(&trouble))));
        }
        Ok(over)
    }
}

/// Whether this provider has a call that sends a webhook again.
fn can(provider: &str) -> bool {
    let any = RunId::new("any");
    let asks = |provider: &dyn Provider| {
        any.is_ok_and(|run_id| provider.retry_request(&run_id, None).is_some())
    };
    providers::named(provider).is_some_and(asks)
}

fn again(source: &str, run_id: &str) -> Target {
    Target::run(source, run_id).then("retry-webhook")
}

async fn missing(client: &Client, source: &str) -> Result<Vec<RunView>, ClientError> {
    #[derive(Deserialize)]
    struct Missing {
        runs: Vec<RunView>,
    }
    let reply = client
        .get(Target::new(["v1", "sources", source, "missing-webhooks"]))
        .await?;
    Ok(reply.read::<Missing>()?.runs)
}

/// Hidden unless stderr is a terminal.
fn bar(source: &str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}  {bar:30}  {pos}/{len}");
    ProgressBar::new(length as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_prefix(show::clean(source))
}

fn json_line(run: &RunView, answer: &Result<Reply, ClientError>) -> Result<String, Failure> {
    let (source, run_id) = (
        Value::from(run.source.as_str()),
        Value::from(run.run_id.as_str()),
    );
    let (name, value) = match answer {
        Ok(reply) => ("result", reply.read::<Box<RawValue>>()?.get().to_owned()),
        Err(error) => (
            "error",
            json!({ "code": error.code(), "message": error.to_string() }).to_string(),
        ),
    };
    Ok(format!(
        "{{\"source\":{source},\"run_id\":{run_id},\"{name}\":{value}}}"
    ))
}

fn code(delivered: bool) -> ExitCode {
    ExitCode::from(if delivered { exit::OK } else { exit::FAILED })
}

impl Told {
    /// What went wrong.
    fn trouble(&self) -> Option<String> {
        let status = || {
            self.delivered_status
                .map_or("no answer".to_owned(), |status| format!("HTTP {status}"))
        };
        (!self.delivered).then(|| self.error.clone().unwrap_or_else(status))
    }
}

fn sentence(told: &Told) -> String {
    let to = told
        .target_url
        .as_deref()
        .map(|url| format!(" to {}", show::clean(url)))
        .unwrap_or_default();
    let took = told
        .latency_ms
        .map(|ms| format!(" in {ms} ms"))
        .unwrap_or_default();
    let status = told
        .delivered_status
        .map(|status| format!(": HTTP {status}"))
        .unwrap_or_default();
    let effect = told
        .effect
        .map(|effect| format!("; here: {}", meaning(effect)))
        .unwrap_or_default();
    match told.trouble() {
        None => format!("sent again{to}{took}{status}{effect}"),
        Some(trouble) => format!(
            "sent again{to}, but not delivered: {}{effect}",
            show::clean(&trouble)
        ),
    }
}

#[derive(Default)]
struct Tally {
    delivered: usize,
    failed: usize,
    more: bool,
}

impl Tally {
    fn summary(&self) -> String {
        match (self.delivered, self.failed) {
            (0, 0) => "no settled run lacks its webhook".to_owned(),
            (delivered, 0) => format!("sent again: {delivered}"),
            (delivered, failed) => format!("sent again: {delivered}; failed: {failed}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_add_up() {
        let summary = |delivered, failed| {
            Tally {
                delivered,
                failed,
                more: false,
            }
            .summary()
        };
        assert_eq!(summary(0, 0), "no settled run lacks its webhook");
        assert_eq!(
            [summary(3, 0), summary(3, 2)],
            ["sent again: 3", "sent again: 3; failed: 2"]
        );
    }

    #[test]
    fn some_providers_can_and_strangers_cannot() {
        assert!(can("skyvern") && !can("firecrawl") && !can("nobody"));
    }
}
