//! SmartBrowse's cloud: the enveloped read of a run, usage in place of a list, and flat, unsigned
//! webhooks that are sent once.

use std::time::Duration;

use serde_json::{Value, json};

use super::reply::{Ask, Reply};
use super::world::{Keys, World};
use super::{Item, Letter, Patience, Service, poisoned};
use crate::demo::life::{DemoSource, Forgery, Form, Life, State};
use crate::model::schedule;

/// The cloud.
pub(super) struct SmartBrowse;

impl Service for SmartBrowse {
    fn authorized(&self, ask: &Ask, keys: &Keys) -> bool {
        ask.header("x-api-key") == Some(&keys.smartbrowse)
    }

    /// Authentication failures are the one answer without an envelope.
    fn refusal(&self, _ask: &Ask) -> Reply {
        Reply::json(401, &json!({ "error": "invalid API key" }))
    }

    fn overwhelmed(&self, left: Duration) -> Reply {
        let error = json!({ "code": "rate_limited", "message": "too many requests",
            "details": { "reason": "max_concurrent_requests" } });
        Reply::json(
            429,
            &json!({ "status": "error", "request_id": "req_429", "error": error }),
        )
        .with("retry-after", seconds(left))
    }

    fn broken(&self) -> Reply {
        failed(500, "internal_error", "something went wrong")
    }

    fn answer(&self, world: &World, ask: &Ask) -> Reply {
        match ask.segments()[..] {
            ["v1", "smartbrowse", "runs", id] => {
                let missing = failed(404, "not_found", "run not found");
                world.status(self, (DemoSource::Recipes, id), missing, |life, state| {
                    enveloped(&run(world, life, state))
                })
            }
            ["v1", "smartbrowse", "usage"] => usage(world),
            _ => failed(404, "not_found", "no such route"),
        }
    }

    fn letter(&self, world: &World, item: &Item<'_>) -> Letter {
        let body = body(item).to_string();
        let body = match item.mail.form {
            Form::Poisoned(poison) => poisoned(&body, poison),
            _ => body.into_bytes(),
        };
        let (right_path, right_header) =
            (&world.keys.smartbrowse_path, &world.keys.smartbrowse_header);
        let (path_token, authorization) = match item.mail.form {
            Form::Forged(Forgery::Unsigned) => (None, None),
            Form::Forged(Forgery::MadeUp) => {
                (Some("a-guess".to_owned()), Some(right_header.clone()))
            }
            Form::Forged(Forgery::OtherKey) => {
                (Some(right_path.clone()), Some("Bearer a-guess".to_owned()))
            }
            _ => (Some(right_path.clone()), Some(right_header.clone())),
        };
        let content_type = ("content-type".to_owned(), "application/json".to_owned());
        let headers = authorization
            .map(|value| ("authorization".to_owned(), value))
            .into_iter()
            .chain([content_type]);
        Letter {
            path_token,
            headers: headers.collect(),
            body,
        }
    }

    /// One attempt, whatever comes of it.
    fn patience(&self, _life: &Life) -> Patience {
        Patience {
            pauses: &[],
            retries: |_| false,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Whole seconds, rounded up: `Retry-After` knows no others.
fn seconds(left: Duration) -> String {
    left.as_secs_f64().ceil().max(1.0).to_string()
}

/// The envelope of an answer that worked. Its status is about the call, not about the run.
fn enveloped(data: &Value) -> Reply {
    Reply::ok(
        &json!({ "status": "completed", "request_id": "req_200", "data": data, "credits_used": 0,
        "credits_remaining": 1000 }),
    )
    .with("x-request-id", "req_200")
}

fn failed(status: u16, code: &str, message: &str) -> Reply {
    let error = json!({ "code": code, "message": message });
    Reply::json(
        status,
        &json!({ "status": "error", "request_id": "req_err", "error": error }),
    )
}

fn run(world: &World, life: &Life, state: &State) -> Value {
    let (created, since) = world.times(life, state);
    let mut data = json!({
        "id": life.id,
        "recipe_id": life.group,
        "run_status": state.word,
        "pages_extracted": 3,
        "items_extracted": 12,
        "credits_used": if state.word == "completed" { 6 } else { 0 },
        "created_at": created.rfc3339(),
    });
    if state.word != "queued" {
        data["started_at"] = json!(created.rfc3339());
    }
    if state.over {
        data["completed_at"] = json!(since.rfc3339());
    }
    match state.word {
        "completed" => {
            let pages = json!([{ "items": [{ "title": "an item" }] }]);
            data["result"] = json!({ "pages": pages, "mode": "list", "drift": 0, "warnings": [] });
        }
        "failed" => data["error"] = json!("the page could not be loaded"),
        _ => {}
    }
    data
}

fn usage(world: &World) -> Reply {
    let mut runs = world.listed(DemoSource::Recipes).peekable();
    let last = runs.peek().map(|(life, state)| {
        let (created, _) = world.times(life, state);
        json!({ "id": life.id, "status": state.word, "pages_extracted": 3, "effective_cap": 50,
            "clamped_by_credits": false, "created_at": created.rfc3339() })
    });
    enveloped(&json!({
        "runs_used_30d": runs.count(),
        "runs_per_month_cap": 100_000,
        "pages_per_run_cap": 50,
        "cost_per_page": 2,
        "schedules_count": 0,
        "schedules_allowed": 10,
        "last_run": last,
    }))
}

/// The flat body of a webhook. The vendor's pages disagree about the event's name, so both occur.
fn body(item: &Item<'_>) -> Value {
    let (life, says) = (item.life, item.mail.says);
    let prefix = if schedule::seed("event", &life.id) & 1 == 0 {
        "smartbrowse."
    } else {
        ""
    };
    let completed = says.word == "completed";
    json!({
        "event": format!("{prefix}{}", says.word),
        "status": says.word,
        "run_id": life.id,
        "recipe_id": life.group,
        "timestamp": format!("{}Z", &item.written_at.rfc3339()[..19]),
        "pages_extracted": 3,
        "items_extracted": 12,
        "credits_used": if completed { 6 } else { 0 },
        "mode": if completed { "list" } else { "" },
        "drift": 0,
        "warnings": [],
        "error": if says.word == "failed" { "the page could not be loaded" } else { "" },
    })
}
