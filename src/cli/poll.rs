//! `settled poll`: polls one run at once, and says what the provider answered.

use std::process::ExitCode;

use clap::Args;

use super::{Context, Failure, Talk, show};
use crate::api::types::{AnswerClass, PollAnswer, PollReply};
use crate::cli::client::{PROVIDER_ANSWER_MAX, Target};
use crate::model::At;
use crate::model::decide::Effect;

/// Poll a run now, and show what the provider answered
///
/// Ends with 1 if the answer says nothing of the run, for example if the provider does not accept
/// the key, fails, or cannot be reached.
///
/// Example: settled poll prod wr_123
#[derive(Debug, Args)]
pub struct Poll {
    /// The source's name in the configuration
    source: String,
    /// The provider's id of the run
    run_id: String,
    #[command(flatten)]
    talk: Talk,
}

impl Poll {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let client = context.control(&self.talk)?;
        let target = Target::run(&self.source, &self.run_id)
            .then("poll")
            .answered_within(PROVIDER_ANSWER_MAX);
        let reply = client.post_empty(target).await?;
        let polled: PollReply = reply.read()?;
        if self.talk.json {
            show::json(&reply.text())?;
        }
        if !polled.learned {
            return Err(Failure::Other(nothing_learned(&polled)));
        }
        if !self.talk.json {
            show::line(&sentence(&polled, context.now()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `acme answered HTTP 503 (unavailable): HTTP 503; nothing was learned, tsk_1 is open`.
fn nothing_learned(polled: &PollReply) -> String {
    let run = &polled.run;
    format!(
        "{} {}; nothing was learned, {} is {}",
        show::clean(&run.provider),
        polled
            .answer
            .as_ref()
            .map_or_else(|| "was not asked".to_owned(), answered),
        show::clean(&run.run_id),
        show::state(run)
    )
}

/// Status, class and reason of an answer: `answered HTTP 401 (denied): the API key is not accepted`.
fn answered(answer: &PollAnswer) -> String {
    let status = answer.status.map_or_else(
        || "did not answer".to_owned(),
        |status| format!("answered HTTP {status}"),
    );
    let class = match answer.class {
        AnswerClass::Ok => String::new(),
        class => format!(" ({})", class.word()),
    };
    let reason = answer.reason.as_deref().map(show::clean);
    let reason = reason
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    format!("{status}{class}{reason}")
}

fn sentence(polled: &PollReply, now: At) -> String {
    let PollReply { effect, run, .. } = polled;
    let effect = effect.map_or("nothing new", meaning);
    let next = run
        .next_poll_at
        .as_deref()
        .filter(|_| run.outcome.is_none());
    let next = next
        .map(|at| format!("; next poll {}", show::when_text(now, at)))
        .unwrap_or_default();
    format!(
        "{effect}: {} {} is {}{next}",
        show::clean(&run.source),
        show::clean(&run.run_id),
        show::state(run)
    )
}

/// The sentence for an effect, after a poll or a webhook that was sent again.
pub fn meaning(effect: Effect) -> &'static str {
    match effect {
        Effect::Opened => "tracked from now on",
        Effect::Status => "its status has changed",
        Effect::Unchanged => "nothing new",
        Effect::Held => "an end that is held until a poll confirms it",
        Effect::Withdrawn => "it goes on after all",
        Effect::Settled => "settled",
        Effect::Amended => "the published outcome is corrected",
        Effect::Confirmed => "confirmed",
        Effect::Disputed => "a contradiction that a poll has to resolve",
        Effect::Exhausted => "a contradiction that is not published, as there were too many",
        Effect::Missed => "the provider does not know it",
        Effect::Overdue => "past its deadline",
        Effect::Hinted => "polled soon",
        Effect::Ignored => "without consequence",
    }
}
