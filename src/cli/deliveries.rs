//! `settled deliveries`: the stored deliveries, and what verification found.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::pages::{Item, Pages, read};
use super::{Context, Failure, Talk, show};
use crate::api::types::{DeliveryList, DeliveryView};
use crate::cli::client::Target;
use crate::ledger::DeliveryRow;
use crate::model::At;
use crate::providers::Verdict;

/// List deliveries, newest first, or show one
///
/// With --json, a list is one object a line. --body writes the raw bytes as they came.
///
/// Example: settled deliveries --verdict bad_signature --limit 20
#[derive(Debug, Args)]
pub struct Deliveries {
    /// Only deliveries to this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only deliveries with this verdict
    #[arg(long, value_parser = PossibleValuesParser::new(Verdict::ALL.iter().map(|verdict| verdict.word())))]
    verdict: Option<String>,
    /// Only deliveries that named this run
    #[arg(long, value_name = "RUN_ID")]
    run: Option<String>,
    /// The most deliveries to list
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    /// Show this one in full; a report of any kind, as a run's timeline names it
    #[arg(long, value_name = "N", conflicts_with_all = ["source", "verdict", "run", "limit"])]
    id: Option<i64>,
    /// Write its raw body instead
    #[arg(long, requires = "id", conflicts_with = "json")]
    body: bool,
    #[command(flatten)]
    talk: Talk,
}

impl Deliveries {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        match self.id {
            Some(id) => self.one(context, &id.to_string()).await?,
            None => self.list(context).await?,
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn one(&self, context: &Context, id: &str) -> Result<(), Failure> {
        let client = context.control(&self.talk)?;
        let target = Target::new(["v1", "deliveries", id]);
        if self.body {
            return raw(&client.get(target.then("body")).await?.body);
        }
        let reply = client.get(target).await?;
        if self.talk.json {
            return Ok(show::json(&reply.text())?);
        }
        Ok(show::line(&about(&reply.read()?, context.now()))?)
    }

    async fn list(&self, context: &Context) -> Result<(), Failure> {
        let client = context.control(&self.talk)?;
        let target = Target::new(["v1", "deliveries"])
            .with_some("source", self.source.as_ref())
            .with_some("verdict", self.verdict.as_ref())
            .with_some("run_id", self.run.as_ref());
        let mut pages: Pages<'_, DeliveryList<Item>> =
            Pages::new(&client, target, "before", Some(self.limit));
        let mut found = Vec::new();
        while let Some(items) = pages.page().await? {
            if self.talk.json {
                items.iter().try_for_each(|item| show::json(item.get()))?;
            } else {
                found.extend(
                    items
                        .iter()
                        .map(read)
                        .collect::<Result<Vec<DeliveryRow>, _>>()?,
                );
            }
        }
        if !self.talk.json {
            table(&found, context.now())?;
        }
        if pages.cut_short() {
            show::aside("there may be older ones; --limit N lists the newest N");
        }
        Ok(())
    }
}

/// Writes the bytes as they are; on a terminal without what a terminal would obey.
fn raw(body: &Bytes) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        writeln!(out, "{}", show::clean_lines(&String::from_utf8_lossy(body)))?;
    } else {
        out.write_all(body)?;
    }
    Ok(out.flush()?)
}

fn table(rows: &[DeliveryRow], now: At) -> Result<(), Failure> {
    if rows.is_empty() {
        show::note("no such deliveries");
        return Ok(());
    }
    let mut table = show::table([
        "ID", "CAME", "SOURCE", "BY", "VERDICT", "BYTES", "RUNS", "NOTE",
    ]);
    for row in rows {
        table.add_row([
            row.id.to_string(),
            show::when_text(now, &row.at),
            show::clean(&row.source),
            show::clean(&row.via),
            show::or_dash(row.verdict.as_deref()),
            row.bytes.to_string(),
            show::or_dash(Some(&row.runs.join(" "))),
            show::or_dash(row.quarantined.as_deref().or(row.note.as_deref())),
        ]);
    }
    Ok(show::line(&table.trim_fmt())?)
}

fn about(view: &DeliveryView, now: At) -> String {
    let row = &view.row;
    let text = |text: &Option<String>| text.as_deref().map(show::clean);
    let cut = if view.truncated { ", cut off" } else { "" };
    let mut facts = vec![
        ("report", Some(row.id.to_string())),
        ("source", Some(show::clean(&row.source))),
        ("by", Some(show::clean(&row.via))),
        (
            "came",
            Some(format!(
                "{} ({})",
                show::when_text(now, &row.at),
                show::clean(&row.at)
            )),
        ),
        ("verdict", text(&row.verdict)),
        ("verified by", text(&row.secret)),
        ("from", text(&view.peer)),
        ("body", Some(format!("{} bytes{cut}", row.bytes))),
        (
            "runs",
            (!row.runs.is_empty()).then(|| show::clean(&row.runs.join(" "))),
        ),
        ("note", text(&row.note)),
        ("quarantined", text(&row.quarantined)),
    ];
    let headers = view.headers.iter().flatten();
    facts.extend(
        headers.map(|(name, value)| ("header", Some(show::clean(&format!("{name}: {value}"))))),
    );
    facts.extend(view.answers.iter().map(|answer| {
        let said = answer
            .status
            .map(|status| format!("HTTP {status}, {} bytes", answer.bytes));
        let said = said.or_else(|| answer.failed.clone()).unwrap_or_default();
        (
            "request",
            Some(show::clean(&format!("{}: {said}", answer.path))),
        )
    }));
    show::facts(facts)
}
