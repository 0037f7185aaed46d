//! `settled track`: makes a run known to the daemon, which then polls it even if no webhook comes.

use std::process::ExitCode;

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Map, Value};

use super::{Context, Failure, Talk, show};
use crate::api::types::{RunView, TrackRequest};
use crate::cli::client::{Target, WholeReply};
use crate::model::{At, Kind};

/// Track a run from now on
///
/// Tracking a run twice changes nothing. For a run that has settled already, the outcome is shown.
///
/// Example: settled track prod wr_123 --metadata order=4711 --metadata customer=acme
#[derive(Debug, Args)]
pub struct Track {
    /// The source's name in the configuration
    source: String,
    /// The provider's id of the run
    run_id: String,
    /// The kind of run [default: by the id and the source]
    #[arg(long, value_parser = PossibleValuesParser::new(Kind::ALL.iter().map(|kind| kind.word())))]
    kind: Option<String>,
    /// The workflow, recipe, agent or monitor it belongs to
    #[arg(long, value_name = "ID")]
    group: Option<String>,
    /// A value that its completion repeats; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, conflicts_with = "metadata_json")]
    metadata: Vec<(String, String)>,
    /// The same as a JSON object
    #[arg(long, value_name = "OBJECT", value_parser = object)]
    metadata_json: Option<Map<String, Value>>,
    #[command(flatten)]
    talk: Talk,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| {
        format!("this is not a JSON object ({error}); write {{\"key\":\"value\"}}")
    })
}

impl Track {
    /// Runs the command.
    pub async fn run(mut self, context: &Context) -> Result<ExitCode, Failure> {
        let pairs: Map<String, Value> = self
            .metadata
            .drain(..)
            .map(|(key, value)| (key, value.into()))
            .collect();
        let metadata = self
            .metadata_json
            .take()
            .or((!pairs.is_empty()).then_some(pairs));
        let body = TrackRequest {
            source: self.source,
            run_id: self.run_id,
            kind: self.kind.as_deref().and_then(Kind::from_word),
            group_id: self.group,
            metadata,
        };
        let reply = context
            .control(&self.talk)?
            .post(Target::new(["v1", "runs"]), &body)
            .await?;
        if self.talk.json {
            show::json(&reply.text())?;
        } else {
            show::line(&sentence(&reply, &reply.read()?, context.now()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn sentence(reply: &WholeReply, run: &RunView, now: At) -> String {
    let name = format!("{} {}", show::clean(&run.source), show::clean(&run.run_id));
    let next = run
        .next_poll_at
        .as_deref()
        .map(|at| format!("; next poll {}", show::when_text(now, at)));
    let next = next.unwrap_or_default();
    match (reply.status, run.outcome) {
        (_, Some(_)) => format!("{name} has settled already: {}", show::state(run)),
        (201, None) => format!("{name} is tracked from now on{next}"),
        _ => format!("{name} is known: {}{next}", show::state(run)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_are_pairs_or_an_object() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        assert!(pair("a").is_err() && pair("=b").is_err());
        assert_eq!(object(r#"{"a":1}"#).unwrap()["a"], 1);
        assert!(
            object("[1]")
                .unwrap_err()
                .starts_with("this is not a JSON object (")
        );
    }
}
