//! SmartBrowse (webscrape.ai): runs of recipes.
//!
//! | run state | claim |
//! |---|---|
//! | `queued` | open, waiting |
//! | `running` | open, started |
//! | `completed` | succeeded |
//! | `failed` | failed (a run killed by the 15-minute limit is told as this) |
//! | `cancelled` | cancelled |
//! | any other, or none | open, waiting |
//!
//! The state stands in three places under three names, and a fourth thing is named like it. There is
//! on purpose no helper that looks for a status:
//!
//! * The **webhook** is flat: `status`, repeated by `event` (with or without `smartbrowse.`, as the
//!   vendor's pages disagree). If the two differ, or say nothing, neither is believed: all webhooks
//!   tell of an end, so the run is asked about at once and nothing else is concluded.
//! * The **read of a run** is enveloped: `data.run_status`. The outer `status` is about the HTTP call
//!   and is `completed` while the run still runs.
//! * **Usage** shows the newest run as `data.last_run`, whose state is `status` again.
//!
//! Where the facts come from: webhooks, <https://webscrape.ai/docs/concepts/webhooks>; envelope and
//! errors, <https://webscrape.ai/docs/api-reference/introduction> and
//! <https://webscrape.ai/docs/concepts/errors>; states and the 15-minute limit,
//! <https://webscrape.ai/docs/api-reference/smartbrowse/get-run> and `…/dispatch`; field types and
//! what is terminal, the vendor's OpenAPI file and SDKs (github.com/webscrape-ai/webscrape-ai,
//! `sdk/openapi.yaml`, and `RunStatus` on docs.rs/webscrape-ai).
//!
//! Webhooks are unsigned and sent once. What shows that one is genuine is what its address and
//! headers know: the path token and the required headers, all that are configured. So a webhook never
//! settles alone under `confirm = "auto"`, and an end is read from the authenticated GET.
//!
//! There is no list of runs. Usage, which is free and unthrottled, stands in: it names the newest run
//! and counts those of the last 30 days. Runs that start more often than it is read, and whose
//! webhooks are lost, show up only as a rise of that count.

use std::time::Duration;

use serde_json::{Map, Value};

use super::json;
use super::{
    ApiRequest, ApiResponse, Delivery, Environment, Gap, Listing, Proof, Provider, Reading, RunRef,
    Settings, Verdict, Webhook,
};
use crate::model::observation::{AnswerPrecedence, Claim, Detail, Ending, Observation, Progress};
use crate::model::schedule::{Confirm, Policy};
use crate::model::{At, Kind, Outcome, RunId};
use crate::secret::{Keyring, RequiredHeader, SecretLabel, same};

/// SmartBrowse of webscrape.ai.
#[derive(Debug)]
pub struct SmartBrowse;

const MINUTE: Duration = Duration::from_secs(60);
/// No run may take longer than 15 minutes, so at these ages an end is to be expected.
const LANDMARKS: &[Duration] = &[
    Duration::from_secs(15 * 60),
    Duration::from_secs(16 * 60),
    Duration::from_secs(18 * 60),
];
/// The answer holds all items of a completed run, and the state may come after them.
const RUN_BYTES_MAX: usize = 64 * 1024 * 1024;
const USAGE: &str = "/v1/smartbrowse/usage";
const COUNTERS: [&str; 3] = ["pages_extracted", "items_extracted", "credits_used"];

impl Provider for SmartBrowse {
    fn name(&self) -> &'static str {
        "smartbrowse"
    }

    fn base_url(&self) -> &'static str {
        "https://api.webscrape.ai"
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("X-API-Key", "")
    }

    fn environment(&self) -> Environment {
        Environment {
            api_key: "WEBSCRAPE_API_KEY",
            webhook_secret: None,
            path_token: Some("SMARTBROWSE_PATH_TOKEN"),
            base_urls: &[],
        }
    }

    fn webhook_setup(&self) -> &'static str {
        "in the dashboard, in the webhook settings"
    }

    fn policy(&self, _kind: Option<Kind>) -> Policy {
        Policy {
            confirm: Confirm::Auto,
            confirm_timeout: MINUTE,
            grace: Duration::ZERO,
            deadline: 25 * MINUTE,
            give_up: 24 * 60 * MINUTE,
            first_poll: Duration::from_secs(20),
            max_interval: 5 * MINUTE,
            expected_end_ages: LANDMARKS,
            answer_precedence: AnswerPrecedence::LastWins,
            can_poll: true,
            listed_for: Duration::ZERO,
        }
    }

    fn kind_of(&self, _run_id: &RunId, _settings: &Settings) -> Kind {
        Kind::Recipe
    }

    /// A cut-off body changes nothing here: the proof is in the address and the headers.
    fn verify(&self, delivery: &Delivery<'_>, keyring: &Keyring, _now: At) -> Proof {
        if keyring.path_tokens.is_empty() && keyring.headers.is_empty() {
            return Proof::without(Verdict::NoSecret);
        }
        let token = delivery
            .path_token
            .and_then(|presented| keyring.matching_token(presented));
        let headers: Vec<_> = keyring
            .headers
            .iter()
            .map(|required| matching_value(required, delivery))
            .collect();
        let all = (keyring.path_tokens.is_empty() || token.is_some())
            && headers.iter().all(Option::is_some);
        match token.or_else(|| headers.iter().copied().flatten().next()) {
            Some(label) if all => Proof::by(Verdict::SharedSecret, label.clone()),
            _ => Proof::without(Verdict::BadToken),
        }
    }

    fn read_webhook(&self, webhook: &Webhook<'_>) -> Reading {
        let said = json::surface(webhook.body, None);
        if let (Some(why), false) = (&said.broken, webhook.truncated) {
            return Reading::Unreadable(why.clone());
        }
        let fields = &said.fields;
        let Some(run_id) = json::text(fields, "run_id") else {
            return Reading::Unreadable("the body names no run".to_owned());
        };
        let Ok(run_id) = RunId::new(run_id) else {
            return Reading::Unreadable("the run id is not usable as one".to_owned());
        };
        let status = if webhook.truncated {
            None
        } else {
            webhook_state(fields)
        };
        // Something ended, we cannot tell how: take a closer look.
        let claim = status.map_or(Claim::Listed { over: true }, claim_of);
        let detail = Detail {
            provider_status: status.map(|status| json::shortened(status, 100)),
            provider_time: json::time(fields, "timestamp"),
            ..detail(fields)
        };
        Reading::Said(vec![Observation {
            detail,
            ..super::told(run_id, Some(Kind::Recipe), claim, webhook)
        }])
    }

    fn status_request(&self, run: &RunRef<'_>) -> ApiRequest {
        let path = format!(
            "/v1/smartbrowse/runs/{}",
            super::encoded(run.run_id.as_str())
        );
        ApiRequest {
            bytes_max: RUN_BYTES_MAX,
            ..ApiRequest::get(path)
        }
    }

    fn read_status(
        &self,
        run: &RunRef<'_>,
        answers: &[ApiResponse],
        requested_at: At,
    ) -> Observation {
        let heard = |claim, detail| Observation {
            detail,
            ..super::answered(run.run_id, Some(Kind::Recipe), claim, requested_at)
        };
        match answers {
            [ApiResponse::Http(response), ..] if matches!(response.status, 404 | 410) => heard(
                super::missing_if_canary_worked(self, answers),
                Detail::default(),
            ),
            [ApiResponse::Http(response), ..] if (200..300).contains(&response.status) => {
                let (claim, detail) = read_run(&response.body, run.run_id);
                heard(claim, detail)
            }
            _ => heard(Claim::Nothing, Detail::default()),
        }
    }

    fn canary_request(&self, _settings: &Settings) -> ApiRequest {
        ApiRequest::get(USAGE)
    }

    fn list_request(&self, page: Option<&str>, _settings: &Settings) -> Option<ApiRequest> {
        page.is_none().then(|| ApiRequest::get(USAGE))
    }

    fn read_list(
        &self,
        _page: Option<&str>,
        answer: &ApiResponse,
        _settings: &Settings,
        requested_at: At,
    ) -> Listing {
        let body = match answer {
            ApiResponse::Http(response) if (200..300).contains(&response.status) => {
                json::object(&response.body)
            }
            _ => return Listing::default(),
        };
        let Some(Value::Object(data)) = body.ok().and_then(|mut body| body.remove("data")) else {
            return Listing::default();
        };
        let counted = data.get("runs_used_30d").and_then(Value::as_u64);
        Listing {
            runs: json::child(&data, "last_run")
                .and_then(|run| newest_run(run, requested_at))
                .into_iter()
                .collect(),
            next: None,
            gap: counted.map(|runs_counted| Gap { runs_counted }),
        }
    }
}

/// The label of the accepted value that one of the headers of this name carries. Looks at all of
/// them.
fn matching_value<'a>(
    required: &'a RequiredHeader,
    delivery: &Delivery<'_>,
) -> Option<&'a SecretLabel> {
    let given = delivery
        .headers
        .iter()
        .filter(|(name, _)| *name == required.name)
        .map(|(_, value)| value.trim());
    given.fold(None, |found, value| {
        required.values.iter().fold(found, |found, key| {
            let matches = same(key.secret.expose().as_bytes(), value.as_bytes());
            if matches {
                found.or(Some(&key.label))
            } else {
                found
            }
        })
    })
}

// ── The words ───────────────────────────────────────────────────────────────────────────────────

/// The claim of a run state, wherever it was found.
fn claim_of(state: &str) -> Claim {
    match (end(state), state) {
        (Some(outcome), _) => Claim::Ended(Ending::needs_answer(outcome)),
        (None, "running") => Claim::Open(Progress::Started),
        _ => Claim::Open(Progress::Waiting),
    }
}

fn end(state: &str) -> Option<Outcome> {
    match state {
        "completed" => Some(Outcome::Succeeded),
        "failed" => Some(Outcome::Failed),
        "cancelled" => Some(Outcome::Cancelled),
        _ => None,
    }
}

/// The fields that all three bodies call by the same names.
fn detail(fields: &Map<String, Value>) -> Detail {
    Detail {
        group_id: json::text(fields, "recipe_id").map(|recipe| json::shortened(recipe, 200)),
        error: json::text(fields, "error").map(|error| json::shortened(error, 1000)),
        counters: json::counters(fields, &COUNTERS),
        opened_at: json::time(fields, "created_at"),
        ..Detail::default()
    }
}

// ── The three bodies ────────────────────────────────────────────────────────────────────────────

/// The state in a flat webhook body: `status` and `event`, as far as they are there, must agree.
fn webhook_state(fields: &Map<String, Value>) -> Option<&str> {
    let status = json::text(fields, "status");
    let event = json::text(fields, "event")
        .map(|event| event.strip_prefix("smartbrowse.").unwrap_or(event));
    match (status, event) {
        (Some(status), Some(event)) => (status == event).then_some(status),
        (one, other) => one.or(other),
    }
}

/// The state in an enveloped answer about one run: `data.run_status` and nothing else.
fn read_run(body: &[u8], run_id: &RunId) -> (Claim, Detail) {
    let said = json::surface(body, Some("data"));
    let data = &said.below;
    let ours = json::text(data, "id").is_none_or(|id| id == run_id.as_str());
    let Some(state) = json::text(data, "run_status").filter(|_| ours) else {
        // A whole answer that omits the state shows that the run is there; a broken one nothing.
        let there = ours && !data.is_empty() && said.broken.is_none();
        return (
            if there {
                Claim::Open(Progress::Waiting)
            } else {
                Claim::Nothing
            },
            Detail::default(),
        );
    };
    let detail = Detail {
        provider_status: Some(json::shortened(state, 100)),
        provider_time: json::time(data, "completed_at").or_else(|| json::time(data, "started_at")),
        ..detail(data)
    };
    (claim_of(state), detail)
}

/// The newest run, as the usage call shows it: `last_run.status`.
fn newest_run(run: &Map<String, Value>, requested_at: At) -> Option<Observation> {
    let run_id = RunId::new(json::text(run, "id")?).ok()?;
    let over = json::text(run, "status").is_some_and(|state| end(state).is_some());
    let detail = Detail {
        opened_at: json::time(run, "created_at"),
        ..Detail::default()
    };
    Some(Observation {
        detail,
        ..super::listed(&run_id, Some(Kind::Recipe), over, requested_at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_words_of_a_webhook_must_agree() {
        let state =
            |body: &str| webhook_state(&json::object(body.as_bytes()).unwrap()).map(str::to_owned);
        assert_eq!(
            state(r#"{"status":"failed","event":"failed"}"#).as_deref(),
            Some("failed")
        );
        assert_eq!(
            state(r#"{"status":"failed","event":"smartbrowse.failed"}"#).as_deref(),
            Some("failed")
        );
        assert_eq!(state(r#"{"status":"failed"}"#).as_deref(), Some("failed"));
        assert_eq!(
            state(r#"{"event":"smartbrowse.cancelled","status":null}"#).as_deref(),
            Some("cancelled")
        );
        for neither in [
            r#"{"status":"failed","event":"completed"}"#,
            r#"{"status":"","event":""}"#,
            "{}",
        ] {
            assert_eq!(state(neither), None, "{neither}");
        }
    }
}
