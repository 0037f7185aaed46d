//! `settled retry-webhook`: has the provider send webhooks again.

use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;

use super::poll::meaning;
use super::{Context, Failure, Talk, exit, show};
use crate::api::types::{
    ErrorBody, MissingWebhooks, RetryWebhookReply, RetryWebhookRequest, RunView, StatusView,
};
use crate::cli::client::{Client, ClientError, PROVIDER_ANSWER_MAX, Target, WholeReply};
use crate::model::RunId;
use crate::providers::{self, Provider};

/// The most runs the daemon names at one time.
const MISSING_MAX: usize = 1_000;

/// Have the provider send a run's webhook again
///
/// With --missing: of every settled run whose webhook never came. Ends with 1 if any of them could
/// not be delivered. With --json, --missing prints one object a line.
///
/// Example: settled retry-webhook prod --missing
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
        let body = RetryWebhookRequest {
            webhook_url: self.url.clone(),
        };
        let reply = client.post(again(source, run_id), &body).await?;
        let retried: RetryWebhookReply = reply.read()?;
        if self.talk.json {
            show::json(&reply.text())?;
        } else {
            show::line(&sentence(&retried))?;
        }
        Ok(code(retried.delivered))
    }

    async fn all(&self, client: &Client) -> Result<ExitCode, Failure> {
        let mut tally = Tally::default();
        for source in self.sources(client).await? {
            let missing = missing(client, &source).await?;
            tally.more |= missing.len() == MISSING_MAX;
            let bar = bar(&source, missing.len());
            for run in &missing {
                let answer = client.post_empty(again(&source, &run.run_id)).await;
                let over = self.count(&mut tally, run, answer, &bar)?;
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
                    "{provider} has no call that sends a webhook again; use `settled poll`"
                )))
            }
            // An unknown one is the daemon's to refuse.
            _ => Ok(vec![name.clone()]),
        }
    }

    /// Counts and shows a reply. True: the other runs of this source would fail in the same way.
    fn count(
        &self,
        tally: &mut Tally,
        run: &RunView,
        answer: Result<WholeReply, ClientError>,
        bar: &ProgressBar,
    ) -> Result<bool, Failure> {
        let (trouble, over) = match &answer {
            Ok(reply) => (trouble(&reply.read()?), false),
            Err(ClientError::Refused { code, message, .. }) => (
                Some(message.clone()),
                matches!(code.as_str(), "cannot_poll" | "provider_unreachable"),
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
    Target::run(source, run_id)
        .then("retry-webhook")
        .answered_within(PROVIDER_ANSWER_MAX)
}

async fn missing(client: &Client, source: &str) -> Result<Vec<RunView>, ClientError> {
    let reply = client
        .get(Target::new(["v1", "sources", source, "missing-webhooks"]))
        .await?;
    Ok(reply.read::<MissingWebhooks>()?.runs)
}

/// Hidden unless stderr is a terminal.
fn bar(source: &str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}  {bar:30}  {pos}/{len}");
    ProgressBar::new(length as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_prefix(show::clean(source))
}

/// A line of `--missing --json`: the run, and the reply or the error.
#[derive(Serialize)]
struct OfRun<'r> {
    source: &'r str,
    run_id: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
}

fn json_line(run: &RunView, answer: &Result<WholeReply, ClientError>) -> Result<String, Failure> {
    let (result, error) = match answer {
        Ok(reply) => (Some(reply.read()?), None),
        Err(error) => {
            let body = ErrorBody {
                code: error.code().unwrap_or("unreachable").to_owned(),
                message: error.to_string(),
                more: serde_json::Map::new(),
            };
            (None, Some(body))
        }
    };
    let line = serde_json::to_string(&OfRun {
        source: &run.source,
        run_id: &run.run_id,
        result,
        error,
    });
    Ok(line.map_err(ClientError::Unreadable)?)
}

fn code(delivered: bool) -> ExitCode {
    ExitCode::from(if delivered { exit::OK } else { exit::FAILED })
}

/// Why the webhook was not delivered; `None` if it was.
fn trouble(retried: &RetryWebhookReply) -> Option<String> {
    let status = || {
        let status = retried.delivered_status;
        status.map_or("no answer".to_owned(), |status| format!("HTTP {status}"))
    };
    (!retried.delivered).then(|| retried.error.clone().unwrap_or_else(status))
}

fn sentence(retried: &RetryWebhookReply) -> String {
    let url = retried.target_url.as_deref().map(show::clean);
    let to = url.map(|url| format!(" to {url}")).unwrap_or_default();
    let effect = retried
        .effect
        .map(|effect| format!("; here: {}", meaning(effect)))
        .unwrap_or_default();
    if let Some(trouble) = trouble(retried) {
        let trouble = show::clean(&trouble);
        return format!("sent again{to}, but not delivered: {trouble}{effect}");
    }
    let latency = retried.latency_ms.map(|ms| format!(" in {ms} ms"));
    let status = retried
        .delivered_status
        .map(|status| format!(": HTTP {status}"));
    format!(
        "sent again{to}{}{}{effect}",
        latency.unwrap_or_default(),
        status.unwrap_or_default()
    )
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
    fn providers_without_the_call_and_unknown_ones_cannot() {
        assert!(
            providers::REGISTRY
                .iter()
                .any(|provider| can(provider.name()))
        );
        assert!(!can("no-such-provider"));
        let without = providers::REGISTRY.iter().find(|provider| {
            let any = RunId::new("any").unwrap();
            provider.retry_request(&any, None).is_none()
        });
        assert!(!can(without.unwrap().name()));
    }
}
