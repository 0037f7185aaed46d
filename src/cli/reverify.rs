//! `settled reverify`: applies unverified deliveries once the secret is right.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Context, Failure, Talk, show};
use crate::api::types::StatusView;
use crate::cli::client::{Client, Target};
use crate::reconciler::Reverified;

/// Verify again what could not be verified, after a secret was corrected
///
/// Looks at the unverified deliveries that are still kept, oldest first, with the secrets in force
/// now (correct the configuration and reload first). Those that verify are applied in the order in
/// which they came, as if they had verified then.
///
/// Example: settled reverify skyvern-prod
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
                .post(
                    Target::new(["v1", "sources", &source, "reverify"]),
                    &json!({}),
                )
                .await?;
            let done: Reverified = reply.read()?;
            if self.talk.json {
                let Reverified {
                    examined,
                    verified,
                    changed,
                } = done;
                let line = json!({ "source": source, "examined": examined, "verified": verified, "changed": changed });
                show::json(&line.to_string())?;
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

fn sentence(source: &str, done: Reverified) -> String {
    let Reverified {
        examined,
        verified,
        changed,
    } = done;
    if examined == 0 {
        format!("{source}: nothing is kept that could not be verified")
    } else {
        format!(
            "{source}: {verified} of {examined} deliveries verify now; runs told something by them: {changed}"
        )
    }
}
