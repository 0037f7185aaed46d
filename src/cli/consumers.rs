//! `settled consumers`: who reads the feed under a name, how far they have come, and what they
//! have parked.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::consume::Filtered;
use super::pages::{Pages, read};
use super::{Context, Failure, Talk, show, status};
use crate::api::ConsumerView;
use crate::cli::client::{Client, Target};

/// List named consumers; make, move and delete them; see to what they have parked
///
/// Example: settled consumers seek mail earliest
#[derive(Debug, Args)]
pub struct Consumers {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a consumer, or see that it is there
    Create {
        /// Its name
        name: String,
        /// Where it begins: earliest, latest, or a cursor
        #[arg(long, value_name = "CURSOR", default_value = "earliest")]
        from: String,
        #[command(flatten)]
        filter: Filtered,
        /// Events that may be out unacknowledged; 0: any number
        #[arg(long, value_name = "N", default_value_t = crate::limits::WINDOW)]
        window: u32,
    },
    /// Put a consumer's position somewhere else
    Seek {
        /// Its name
        name: String,
        /// earliest, latest, or a cursor
        to: String,
    },
    /// Delete a consumer with everything it has parked
    Delete {
        /// Its name
        name: String,
    },
    /// List what a consumer has parked
    Parked {
        /// Its name
        name: String,
    },
    /// Have `settled consume` try parked events again
    Retry(Which),
    /// Forget parked events
    Drop(Which),
}

#[derive(Args, Debug)]
struct Which {
    /// The consumer's name
    name: String,
    /// The event's cursor
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    cursor: Option<String>,
    /// All that it has parked
    #[arg(long)]
    all: bool,
}

#[derive(Deserialize)]
struct Listed {
    consumers: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Parked {
    cursor: String,
    attempts: u32,
    error: String,
    at: String,
    retry: bool,
    event: ParkedEvent,
}

#[derive(Deserialize)]
struct ParkedEvent {
    id: String,
}

impl Consumers {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.feed(&self.talk)?;
        match &self.what {
            None => self.list(&client, context).await?,
            Some(What::Create {
                name,
                from,
                filter,
                window,
            }) => {
                let body = json!({ "start": from, "filter": filter.json(), "window": window });
                self.change(&client, Method::PUT, target(name), Some(&body))
                    .await?;
            }
            Some(What::Seek { name, to }) => {
                self.change(
                    &client,
                    Method::POST,
                    target(name).then("seek").with("to", to),
                    None,
                )
                .await?;
            }
            Some(What::Delete { name }) => {
                self.change(&client, Method::DELETE, target(name), None)
                    .await?;
            }
            Some(What::Parked { name }) => self.parked(&client, name, context).await?,
            Some(What::Retry(which)) => {
                self.change(&client, Method::POST, which.target(Some("retry")), None)
                    .await?;
            }
            Some(What::Drop(which)) => {
                self.change(&client, Method::DELETE, which.target(None), None)
                    .await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn change(
        &self,
        client: &Client,
        method: Method,
        target: Target,
        body: Option<&serde_json::Value>,
    ) -> Result<(), Failure> {
        let reply = client.send(method, target, body).await?;
        if self.talk.json {
            show::json(&reply.text())?;
        }
        Ok(())
    }

    async fn list(&self, client: &Client, context: &Context) -> Result<(), Failure> {
        let listed: Listed = client.get(Target::new(["v1", "consumers"])).await?.read()?;
        if self.talk.json {
            return Ok(listed
                .consumers
                .iter()
                .try_for_each(|one| show::json(one.get()))?);
        }
        if listed.consumers.is_empty() {
            show::note("no consumers; `settled consume` and `settled consumers create` make them");
            return Ok(());
        }
        let views = listed
            .consumers
            .iter()
            .map(read)
            .collect::<Result<Vec<ConsumerView>, _>>()?;
        Ok(show::line(&status::consumers(&views, context.now()))?)
    }

    async fn parked(&self, client: &Client, name: &str, context: &Context) -> Result<(), Failure> {
        let mut pages = Pages::new(
            client,
            target(name).then("parked"),
            ("parked", "after"),
            None,
        );
        let mut found = Vec::new();
        while let Some(items) = pages.page().await? {
            if self.talk.json {
                items.iter().try_for_each(|item| show::json(item.get()))?;
            } else {
                found.extend(items.iter().map(read).collect::<Result<Vec<Parked>, _>>()?);
            }
        }
        if self.talk.json {
            return Ok(());
        }
        if found.is_empty() {
            show::note("nothing is parked");
            return Ok(());
        }
        let now = context.now();
        let mut table = show::table(["CURSOR", "EVENT", "ATTEMPTS", "LAST", "STATE", "ERROR"]);
        for one in found {
            let state = if one.retry { "to retry" } else { "parked" };
            let (attempts, last) = (one.attempts.to_string(), show::when_text(now, &one.at));
            let (id, error) = (show::clean(&one.event.id), show::clean(&one.error));
            table.add_row([one.cursor, id, attempts, last, state.to_owned(), error]);
        }
        Ok(show::line(&table.to_string())?)
    }
}

impl Which {
    fn target(&self, then: Option<&str>) -> Target {
        let lot = target(&self.name).then("parked");
        let lot = then.into_iter().fold(lot, Target::then);
        lot.with_some("cursor", self.cursor.as_ref())
            .with_some("all", self.all.then_some(1))
    }
}

fn target(name: &str) -> Target {
    Target::new(["v1", "consumers", name])
}
