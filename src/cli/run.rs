//! `settled run`: one run and its timeline.

use std::process::ExitCode;

use clap::Args;

use super::{Context, Failure, Talk, show};
use crate::api::types::{RunDetail, RunView, TimelineLine};
use crate::cli::client::Target;
use crate::model::{At, Kind, Origin};

/// Show one run with its timeline
///
/// Example: settled run prod wr_123
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "it is called run_id everywhere")]
pub struct Run {
    /// The source's name in the configuration
    source: String,
    /// The provider's id of the run
    run_id: String,
    #[command(flatten)]
    talk: Talk,
}

impl Run {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let reply = context
            .control(&self.talk)?
            .get(Target::run(&self.source, &self.run_id))
            .await?;
        if self.talk.json {
            show::json(&reply.text())?;
            return Ok(ExitCode::SUCCESS);
        }
        let detail: RunDetail = reply.read()?;
        let now = context.now();
        show::line(&about(&detail.run, now))?;
        if !detail.timeline.is_empty() {
            show::line("")?;
            show::line(&timeline(&detail.timeline, now))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn about(run: &RunView, now: At) -> String {
    let ago = |at: &Option<String>| at.as_deref().map(|at| show::when_text(now, at));
    let text = |text: &Option<String>| text.as_deref().map(show::clean);
    let webhooks = match (
        run.webhooks,
        ago(&run.first_webhook_at),
        ago(&run.last_webhook_at),
    ) {
        (0, ..) => "none".to_owned(),
        (1, Some(first), _) => format!("1, {first}"),
        (count, first, last) => {
            format!(
                "{count}, the first {}, the last {}",
                first.unwrap_or_default(),
                last.unwrap_or_default()
            )
        }
    };
    let answered = ago(&run.answered_at)
        .map(|at| format!(", last answered {at}"))
        .unwrap_or_default();
    let rows = [
        (
            "source",
            Some(format!(
                "{} ({})",
                show::clean(&run.source),
                show::clean(&run.provider)
            )),
        ),
        ("run", Some(show::clean(&run.run_id))),
        ("kind", run.kind.map(Kind::word).map(str::to_owned)),
        ("group", text(&run.group_id)),
        ("state", Some(show::state(run))),
        (
            "why",
            Some(show::why(run.reason.as_deref(), run.error.as_deref()))
                .filter(|why| !why.is_empty()),
        ),
        (
            "settled",
            ago(&run.settled_at)
                .map(|at| format!("{at}, by {}", run.origin.map_or("-", Origin::word))),
        ),
        ("opened", Some(show::when_text(now, &run.opened_at))),
        (
            "known since",
            Some(format!(
                "{}, by {}",
                show::when_text(now, &run.known_since),
                run.found_by
            )),
        ),
        ("webhooks", Some(webhooks)),
        ("polls", Some(format!("{}{answered}", run.polls))),
        ("next poll", ago(&run.next_poll_at)),
        (
            "amendments",
            (run.amendments > 0).then(|| run.amendments.to_string()),
        ),
        (
            "metadata",
            run.metadata
                .as_ref()
                .map(|data| show::clean(&serde_json::Value::Object(data.clone()).to_string())),
        ),
        ("completion", text(&run.completion)),
    ];
    show::facts(rows)
}

fn timeline(lines: &[TimelineLine], now: At) -> String {
    let mut table = show::table([
        "WHEN", "BY", "TRUST", "SAYS", "STATUS", "EFFECT", "REPORT", "RECORD",
    ]);
    for line in lines {
        table.add_row([
            show::when_text(now, &line.at),
            show::clean(&line.via),
            show::clean(&line.trust),
            show::clean(&line.claim),
            show::or_dash(line.status.as_deref()),
            show::clean(&line.effect),
            line.report.to_string(),
            show::or_dash(line.record.as_deref()),
        ]);
    }
    table.trim_fmt()
}
