//! Skyvern's cloud: Get Run, the older read of workflow runs, the list of runs, retry-webhook, and
//! webhooks signed with the API key over the raw body.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::post::{self, Attempt};
use super::reply::{Ask, Reply};
use super::world::{Count, Found, Keys, World, page};
use super::{Item, Letter, Patience, Service, naive, poisoned, random_hex};
use crate::demo::life::{Cloud, DemoSource, Forgery, Form, Life, State};
use crate::model::Kind;
use crate::providers::signature::sign;

/// The cloud.
pub(super) struct Skyvern;

const STATUSES: [&str; 9] = [
    "created",
    "queued",
    "running",
    "paused",
    "timed_out",
    "failed",
    "terminated",
    "completed",
    "canceled",
];

impl Service for Skyvern {
    fn authorized(&self, ask: &Ask, keys: &Keys) -> bool {
        ask.header("x-api-key") == Some(&keys.skyvern)
    }

    fn refusal(&self, ask: &Ask) -> Reply {
        let why = if ask.header("x-api-key").is_some() {
            "Could not validate credentials"
        } else {
            "Invalid credentials"
        };
        Reply::json(403, &json!({ "detail": why }))
    }

    /// Reads are not rate limited there; what happens is that the server takes no more connections.
    fn overwhelmed(&self, _left: Duration) -> Reply {
        Reply::text(503, "text/plain; charset=utf-8", "Service Unavailable")
    }

    fn broken(&self) -> Reply {
        Reply::json(
            500,
            &json!({ "error": "Unexpected error: OperationalError" }),
        )
    }

    fn answer(&self, world: &World, ask: &Ask) -> Reply {
        match ask.segments()[..] {
            ["v1", "runs"] => list(world, ask),
            ["v1", "runs", id] => {
                let missing = Reply::json(
                    404,
                    &json!({ "detail": format!("Task run not found {id}") }),
                );
                world.status(self, (DemoSource::Skyvern, id), missing, |life, state| {
                    Reply::ok(&run(world, life, state))
                })
            }
            ["api", "v1", "workflows", "runs", id] => {
                let missing = Reply::json(
                    404,
                    &json!({ "detail": format!("WorkflowRun {id} not found") }),
                );
                world.status(self, (DemoSource::Skyvern, id), missing, |life, state| {
                    Reply::ok(&run(world, life, state))
                })
            }
            _ => Reply::json(404, &json!({ "detail": "Not Found" })),
        }
    }

    fn letter(&self, world: &World, item: &Item<'_>) -> Letter {
        let body = body(
            world,
            item.life,
            &item.mail.says,
            item.mail.form == Form::Rewritten,
        );
        let body = match item.mail.form {
            Form::Poisoned(poison) => poisoned(&body.to_string(), poison),
            _ => body.to_string().into_bytes(),
        };
        let signature = match item.mail.form {
            Form::Forged(Forgery::Unsigned) => None,
            Form::Forged(Forgery::MadeUp) => Some(random_hex(item)),
            Form::Forged(Forgery::OtherKey) => Some(sign("eyJ.somebody.else", &[&body])),
            _ => Some(sign(&world.keys.skyvern, &[&body])),
        };
        Letter {
            path_token: None,
            headers: headers(item.written_at.0 / 1000, signature),
            body,
        }
    }

    /// Three attempts, at 0, 1 to 2, and 3 to 5 seconds; here three times as fast.
    fn patience(&self, _life: &Life) -> Patience {
        const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(900)];
        Patience {
            pauses: &PAUSES,
            retries: |status| status >= 500 || matches!(status, 403 | 408 | 425 | 429),
            timeout: Duration::from_secs(30),
        }
    }
}

fn headers(timestamp: i64, signature: Option<String>) -> Vec<(String, String)> {
    let fixed = [
        ("accept", "*/*".to_owned()),
        ("accept-encoding", "gzip, deflate, zstd".to_owned()),
        ("user-agent", "python-httpx/0.28.1".to_owned()),
        ("x-skyvern-timestamp", timestamp.to_string()),
        ("content-type", "application/json".to_owned()),
    ];
    let signature = signature.map(|signature| ("x-skyvern-signature", signature));
    fixed
        .into_iter()
        .chain(signature)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn run_type(life: &Life) -> &'static str {
    match life.kind {
        Kind::Workflow => "workflow_run",
        _ if life.id.starts_with("tsk_v2_") => "task_v2",
        _ => "task_v1",
    }
}

/// The body of Get Run.
fn run(world: &World, life: &Life, state: &State) -> Value {
    let mut run = common(world, life, state);
    run.insert("output".to_owned(), output(state, &json!(42.0)));
    if life.kind == Kind::Workflow {
        run.insert(
            "run_request".to_owned(),
            json!({ "workflow_id": life.group, "parameters": {} }),
        );
    }
    Value::Object(run)
}

/// The fields that Get Run and webhooks share.
fn common(world: &World, life: &Life, state: &State) -> Map<String, Value> {
    let (created, since) = world.times(life, state);
    // Set by whatever ended last, even if the run goes on.
    let ended_before = life
        .states
        .iter()
        .any(|(at, other)| other.over && world.wall(life.begins + *at) <= since);
    let body = json!({
        "run_id": life.id,
        "status": state.word,
        "run_type": run_type(life),
        "downloaded_files": [],
        "recording_url": null,
        "recording_archived": false,
        "screenshot_urls": null,
        "failure_reason": (state.over && state.word != "completed").then_some("The goal could not be reached."),
        "created_at": naive(created),
        "modified_at": naive(since),
        "queued_at": naive(created),
        "started_at": (!matches!(state.word, "created" | "queued")).then(|| naive(created)),
        "finished_at": (state.over || ended_before).then(|| naive(since)),
        "app_url": format!("https://app.skyvern.com/runs/{}", life.id),
        "browser_session_id": null,
        "browser_profile_id": null,
        "max_screenshot_scrolls": null,
        "step_count": 1,
        "script_run": null,
        "errors": [],
    });
    let Value::Object(mut body) = body else {
        unreachable!("an object was written")
    };
    if life.kind == Kind::Workflow {
        body.extend(attempts(world, life, state, since));
    }
    body
}

/// The fields that only workflow runs have.
fn attempts(
    world: &World,
    life: &Life,
    state: &State,
    since: crate::model::At,
) -> Map<String, Value> {
    let next = life
        .states
        .iter()
        .find(|(_, other)| state.retry_pending && other.attempt > state.attempt);
    let next = next.map(|(at, _)| naive(world.wall(life.begins + *at)));
    let body = json!({
        "run_with": "agent",
        "ai_fallback": null,
        "script_id": null,
        "browser_seed_source": "fresh",
        "browser_settings_receipt": null,
        "attempt": state.attempt,
        "retry_pending": state.retry_pending,
        "next_attempt_at": next,
        "attempts": [{
            "attempt_number": state.attempt,
            "status": state.word,
            "failure_reason": null,
            "error_codes": [],
            "started_at": naive(since),
            "finished_at": state.over.then(|| naive(since)),
            "retry_decision": state.retry_pending.then_some("retry"),
            "decision_reason": null,
            "next_attempt_at": next,
            "webhook_sent_at": null,
        }],
    });
    let Value::Object(body) = body else {
        unreachable!("an object was written")
    };
    body
}

/// The output: webhooks write whole floats as integers, Get Run does not.
fn output(state: &State, price: &Value) -> Value {
    if state.word == "completed" {
        json!({ "price": price, "text": "é漢字" })
    } else {
        Value::Null
    }
}

/// The body of a webhook: the older object overlaid with the newer one. Sent again it is never the
/// same: the first delivery's result has been written down in between.
fn body(world: &World, life: &Life, state: &State, again: bool) -> Value {
    let mut body = common(world, life, state);
    body.insert("output".to_owned(), output(state, &json!(42)));
    body.insert(
        "webhook_failure_reason".to_owned(),
        if again { json!("") } else { Value::Null },
    );
    if again {
        let (_, since) = world.times(life, state);
        body.insert(
            "modified_at".to_owned(),
            json!(naive(since.plus(Duration::from_millis(64)))),
        );
    }
    let older = match run_type(life) {
        "workflow_run" => json!({
            "workflow_run_id": life.id,
            "workflow_id": life.group,
            "agent_id": life.group,
            "agent_run_id": life.id,
            "outputs": body["output"],
            "parameters": {},
            "total_steps": (!again).then_some(0),
            "total_cost": null,
            "credits_used": 0,
            "workflow_title": "a demo",
            "retried_from_workflow_run_id": null,
            "retried_by_workflow_run_id": null,
        }),
        "task_v2" => json!({
            "task_id": life.id,
            "organization_id": "o_1",
            "workflow_run_id": life.id.replace("tsk_v2_", "wr_"),
            "workflow_permanent_id": life.group,
            "prompt": "a demo",
            "summary": null,
        }),
        _ => json!({
            "task_id": life.id,
            "extracted_information": body["output"],
            "action_screenshot_urls": null,
            "screenshot_url": null,
            "max_steps_per_run": 10,
            "workflow_run_id": null,
        }),
    };
    if let Value::Object(older) = older {
        body.extend(older);
    }
    Value::Object(body)
}

fn list(world: &World, ask: &Ask) -> Reply {
    let (number, size) = (ask.number("page", 1), ask.number("page_size", 10));
    if !(1..=100).contains(&size) {
        let why = json!([{ "type": "less_than_equal", "loc": ["query", "page_size"], "input": size.to_string(),
            "msg": "Input should be less than or equal to 100", "ctx": { "le": 100 } }]);
        return Reply::json(422, &json!({ "detail": why }));
    }
    let wanted: Vec<&str> = ask.params("status").collect();
    if let Some(bogus) = wanted.iter().find(|status| !STATUSES.contains(status)) {
        let why = json!([{ "type": "enum", "loc": ["query", "status", 0], "msg": "Input should be …", "input": bogus }]);
        return Reply::json(422, &json!({ "detail": why }));
    }
    let rows = world
        .listed(DemoSource::Skyvern)
        .filter(|(_, state)| wanted.is_empty() || wanted.contains(&state.word));
    let rows = world.shown(page(rows, number, size), size);
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|(life, state)| row(world, life, state))
        .collect();
    Reply::ok(&Value::Array(rows))
}

fn row(world: &World, life: &Life, state: &State) -> Value {
    let (created, since) = world.times(life, state);
    json!({
        "task_run_id": format!("tr_{}", life.id.trim_start_matches(|c: char| !c.is_ascii_digit())),
        "run_id": life.id,
        "task_run_type": run_type(life),
        "status": state.word,
        "title": null,
        "started_at": naive(created),
        "finished_at": state.over.then(|| naive(since)),
        "created_at": naive(created),
        "workflow_permanent_id": (life.kind == Kind::Workflow).then_some(&life.group),
        "workflow_deleted": false,
        "script_run": false,
        "trigger_type": "api",
        "created_by": null,
        "attempt": state.attempt,
        "retry_pending": state.retry_pending,
        "next_attempt_at": null,
    })
}

/// The run that a question wants the webhook of sent again.
pub(super) fn wants_replay(cloud: Cloud, ask: &Ask) -> Option<String> {
    match ask.segments()[..] {
        ["v1", "runs", id, "retry_webhook"]
            if cloud == Cloud::Skyvern && ask.method == hyper::Method::POST =>
        {
            Some(id.to_owned())
        }
        _ => None,
    }
}

/// Sends a run's webhook once more, waits for the result and tells it, with the payload.
pub(super) async fn replay(world: &World, ask: &Ask, run_id: &str) -> Reply {
    let Found::Seen(life, state) = world.find(DemoSource::Skyvern, run_id) else {
        return Reply::json(404, &json!({ "detail": format!("Run {run_id} not found") }));
    };
    if state.retry_pending {
        let why =
            format!("Run {run_id} is not final; webhook replay is unavailable until it is final.");
        return Reply::json(409, &json!({ "detail": why }));
    }
    if !state.over {
        let why = format!(
            "Run {run_id} has not reached a terminal state (status={}).",
            state.word
        );
        return Reply::json(400, &json!({ "detail": why }));
    }
    world.tally.add(Count::Replays);
    let body = body(world, life, state, true).to_string();
    let signature = sign(&world.keys.skyvern, &[body.as_bytes()]);
    let timestamp = world.wall(world.now()).0 / 1000;
    let usual = world.address(DemoSource::Skyvern, None);
    let wanted = serde_json::from_slice::<Value>(&ask.body).ok();
    let target = wanted
        .as_ref()
        .and_then(|body| body["webhook_url"].as_str())
        .unwrap_or(&usual)
        .to_owned();
    let headers = headers(timestamp, Some(signature.clone()));
    let letter = Letter {
        path_token: None,
        headers,
        body: body.clone().into_bytes(),
    };
    let began = std::time::Instant::now();
    let tried = post::post(&post::carrier(), &target, letter, Duration::from_secs(60)).await;
    let (status, text, error) = match tried {
        Attempt::Answered(status, text) => (Some(status), Some(text), None),
        Attempt::Broken(why) => (None, None, Some(format!("Could not reach URL: {why}"))),
    };
    Reply::ok(&json!({
        "run_id": run_id,
        "run_type": run_type(life),
        "default_webhook_url": usual,
        "target_webhook_url": target,
        "payload": body,
        "headers": {
            "x-skyvern-timestamp": timestamp.to_string(),
            "x-skyvern-signature": signature,
            "Content-Type": "application/json",
        },
        "status_code": status,
        "latency_ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "response_body": text,
        "error": error,
    }))
}
