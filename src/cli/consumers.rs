//! `settled consumers`: the named consumers of the feed, their positions and their parked events.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;

use super::consume::FilterOptions;
use super::pages::{Item, Pages, read};
use super::{Context, Failure, Talk, show, status};
use crate::api::types::{
    ConsumerList, ConsumerView, CreateConsumerRequest, ParkedList, ParkedView,
};
use crate::cli::client::{Client, ClientError, Target};

/// List named consumers; create, move and delete them; handle their parked events
///
/// Example: settled consumers seek mail earliest
#[derive(Debug, Args)]
pub struct Consumers {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a consumer; one that exists and is the same is left as it is
    Create {
        /// The consumer's name
        name: String,
        /// Where it begins: earliest, latest, or a cursor
        #[arg(long, value_name = "CURSOR", default_value = "earliest")]
        from: String,
        #[command(flatten)]
        filter: FilterOptions,
        /// The most events that may be out unacknowledged; 0 is any number
        #[arg(long, value_name = "N", default_value_t = crate::limits::WINDOW)]
        window: u32,
    },
    /// Move a consumer's position
    Seek {
        /// The consumer's name
        name: String,
        /// earliest, latest, or a cursor
        to: String,
    },
    /// Delete a consumer and its parked events
    Delete {
        /// The consumer's name
        name: String,
    },
    /// List a consumer's parked events
    Parked {
        /// The consumer's name
        name: String,
    },
    /// Have `settled consume` try parked events again
    Retry(ParkedOptions),
    /// Forget parked events
    Drop(ParkedOptions),
}

#[derive(Args, Debug)]
struct ParkedOptions {
    /// The consumer's name
    name: String,
    /// The event's cursor
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    cursor: Option<String>,
    /// All of its parked events
    #[arg(long)]
    all: bool,
}

impl Consumers {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.feed(&self.talk)?;
        match &self.action {
            None => self.list(&client, context).await?,
            Some(Action::Create {
                name,
                from,
                filter,
                window,
            }) => {
                let body = CreateConsumerRequest {
                    start: Some(from.clone()),
                    filter: filter.query(),
                    window: Some(*window),
                };
                self.change(&client, Method::PUT, target(name), Some(&body))
                    .await?;
            }
            Some(Action::Seek { name, to }) => {
                self.change(
                    &client,
                    Method::POST,
                    target(name).then("seek").with("to", to),
                    None,
                )
                .await?;
            }
            Some(Action::Delete { name }) => {
                self.change(&client, Method::DELETE, target(name), None)
                    .await?;
            }
            Some(Action::Parked { name }) => self.parked(&client, name, context).await?,
            Some(Action::Retry(which)) => {
                self.change(&client, Method::POST, which.target(Some("retry")), None)
                    .await?;
            }
            Some(Action::Drop(which)) => {
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
        body: Option<&CreateConsumerRequest>,
    ) -> Result<(), Failure> {
        let reply = client.send(method, target, body).await?;
        if self.talk.json {
            show::json(&reply.text())?;
        }
        Ok(())
    }

    async fn list(&self, client: &Client, context: &Context) -> Result<(), Failure> {
        let listed: ConsumerList<Item> =
            client.get(Target::new(["v1", "consumers"])).await?.read()?;
        if self.talk.json {
            return Ok(listed
                .consumers
                .iter()
                .try_for_each(|one| show::json(one.get()))?);
        }
        if listed.consumers.is_empty() {
            show::note(
                "no consumers; `settled consume` and `settled consumers create` create them",
            );
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
        let mut pages: Pages<'_, ParkedList<Item>> =
            Pages::new(client, target(name).then("parked"), "after", None);
        let mut found = Vec::new();
        while let Some(items) = pages.page().await? {
            if self.talk.json {
                items.iter().try_for_each(|item| show::json(item.get()))?;
            } else {
                found.extend(
                    items
                        .iter()
                        .map(read)
                        .collect::<Result<Vec<ParkedView>, _>>()?,
                );
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
            let (id, error) = (show::clean(&event_id(&one)?), show::clean(&one.error));
            table.add_row([one.cursor, id, attempts, last, state.to_owned(), error]);
        }
        Ok(show::line(&table.to_string())?)
    }
}

impl ParkedOptions {
    fn target(&self, then: Option<&str>) -> Target {
        let lot = target(&self.name).then("parked");
        let lot = then.into_iter().fold(lot, Target::then);
        lot.with_some("cursor", self.cursor.as_ref())
            .with_some("all", self.all.then_some(1))
    }
}

/// The CloudEvents id of a parked event.
fn event_id(parked: &ParkedView) -> Result<String, ClientError> {
    #[derive(Deserialize)]
    struct EventId {
        id: String,
    }
    Ok(read::<EventId>(&parked.event)?.id)
}

fn target(name: &str) -> Target {
    Target::new(["v1", "consumers", name])
}
