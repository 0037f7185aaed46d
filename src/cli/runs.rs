//! `settled runs`: the list of runs.

use std::process::ExitCode;

use clap::Args;

use super::pages::{Item, Pages, read};
use super::{Context, Failure, Talk, show};
use crate::api::types::{RunList, RunView};
use crate::cli::client::Target;

/// List runs, the newest first
///
/// With --json: one object a line. Runs whose row in the database is damaged are named on stderr.
///
/// Example: settled runs --open --source prod
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct Runs {
    /// Only open runs
    #[arg(long, conflicts_with = "settled")]
    open: bool,
    /// Only settled runs
    #[arg(long)]
    settled: bool,
    /// Only open runs past their deadline
    #[arg(long, conflicts_with = "settled")]
    overdue: bool,
    /// Only runs of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The oldest first: in the order in which settled learned of them
    #[arg(long)]
    oldest: bool,
    /// The most runs to list
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    /// List all of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    #[command(flatten)]
    talk: Talk,
}

impl Runs {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.control(&self.talk)?;
        let limit = (!self.all).then_some(self.limit);
        let position = if self.oldest { "after" } else { "before" };
        let mut pages: Pages<'_, RunList<Item>> =
            Pages::new(&client, self.target(), position, limit);
        let mut found = Vec::new();
        while let Some(items) = pages.page().await? {
            if self.talk.json {
                items.iter().try_for_each(|item| show::json(item.get()))?;
            } else {
                found.extend(
                    items
                        .iter()
                        .map(read)
                        .collect::<Result<Vec<RunView>, _>>()?,
                );
            }
        }
        if !self.talk.json {
            table(&found, context)?;
        }
        for row in &pages.damaged {
            show::note(&format!(
                "{}: its row is damaged and is left out; see `settled check`",
                show::clean(&row.key())
            ));
        }
        if pages.cut_short() {
            show::aside("there may be more; --all lists all of them, --limit N the first N");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn target(&self) -> Target {
        let phase = if self.open {
            Some("open")
        } else {
            self.settled.then_some("settled")
        };
        Target::new(["v1", "runs"])
            .with_some("phase", phase)
            .with_some("source", self.source.as_ref())
            .with_some("overdue", self.overdue.then_some(1))
            .with_some("newest", (!self.oldest).then_some(1))
    }
}

fn table(runs: &[RunView], context: &Context) -> Result<(), Failure> {
    if runs.is_empty() {
        show::note("no such runs");
        return Ok(());
    }
    let now = context.now();
    let mut table = show::table(["SOURCE", "RUN", "KIND", "OPENED", "SETTLED", "BY", "STATE"]);
    for run in runs {
        table.add_row([
            show::clean(&run.source),
            show::clean(&run.run_id),
            run.kind.map_or("-", crate::model::Kind::word).to_owned(),
            show::when_text(now, &run.opened_at),
            show::when_or_dash(now, run.settled_at.as_deref()),
            run.origin
                .map_or("-", crate::model::Origin::word)
                .to_owned(),
            show::state(run),
        ]);
    }
    Ok(show::line(&table.trim_fmt())?)
}
