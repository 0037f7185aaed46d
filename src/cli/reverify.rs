//! `settled reverify`: applies unverified deliveries once the secret is right.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Context, Failure, Talk, show};
use crate::api::types::{ReverifyReply, StatusView};
use crate::cli::client::{Client, ClientError, Target};

/// How long verifying the whole unverified buffer of a source may take.
const REVERIFY_MAX: Duration = Duration::from_secs(600);

/// A line of `--json`: the reply, and which source it is of.
#[derive(Serialize)]
struct OfSource<'s> {
    source: &'s str,
    #[serde(flatten)]
    done: ReverifyReply,
}

/// Verify unverified deliveries again, after a secret was corrected
///
/// Reads the unverified deliveries that are still kept, oldest first, and verifies them with the
/// secrets in force now. Correct the configuration and reload first. Those that verify are applied
/// in the order in which they came, as if they had verified then.
///
/// Example: settled reverify prod
#[derive(Debug, Args)]
pub struct Reverify {
    /// The source's name in the configuration [default: every source]
    source: Option<String>,
    #[command(flatten)]
    talk: Talk,
}

impl Reverify {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.control(&self.talk)?;
        let sources = match self.source {
            Some(source) => vec![source],
            None => configured(&client).await?,
        };
        for source in sources {
            let reply = client
                .post_empty(
                    Target::new(["v1", "sources", &source, "reverify"])
                        .answered_within(REVERIFY_MAX),
                )
                .await?;
            let done: ReverifyReply = reply.read()?;
            if self.talk.json {
                let line = serde_json::to_string(&OfSource {
                    source: &source,
                    done,
                });
                show::json(&line.map_err(ClientError::Unreadable)?)?;
            } else {
                show::line(&sentence(&source, done))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn configured(client: &Client) -> Result<Vec<String>, Failure> {
    let status: StatusView = client.get(Target::new(["v1", "status"])).await?.read()?;
    Ok(status
        .sources
        .into_iter()
        .filter(|source| source.configured)
        .map(|source| source.name)
        .collect())
}

fn sentence(source: &str, done: ReverifyReply) -> String {
    let ReverifyReply {
        examined,
        verified,
        changed,
    } = done;
    if examined == 0 {
        format!("{source}: no unverified delivery is kept")
    } else {
        format!(
            "{source}: {verified} of {examined} deliveries verify now; runs changed by them: {changed}"
        )
    }
}
