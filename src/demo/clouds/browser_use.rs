//! Browser Use's cloud: v2 tasks, v3 sessions and v4 runs, each with its status and its lists, and
//! webhooks for the first two in both signature schemes.

use std::time::Duration;

use serde_json::{Value, json};

use super::reply::{Ask, Reply};
use super::world::{Keys, World, page};
use super::{Item, Letter, Patience, Service, naive, poisoned, random_hex};
use crate::demo::life::{DemoSource, Forgery, Form, Life, State};
use crate::model::{At, schedule};
use crate::providers::signature::sign;

/// The cloud.
pub(super) struct BrowserUse;

/// How old a stale letter is: well beyond what any receiver should take for fresh.
const HOUR_MS: i64 = 3_600_000;

impl Service for BrowserUse {
    fn authorized(&self, ask: &Ask, keys: &Keys) -> bool {
        let ours = [DemoSource::Tasks, DemoSource::Sessions, DemoSource::Runs]
            .map(|source| keys.api_key(source));
        ask.header("x-browser-use-api-key")
            .is_some_and(|key| ours.iter().any(|ours| ours == key))
    }

    fn refusal(&self, _ask: &Ask) -> Reply {
        Reply::json(401, &json!({ "detail": "Invalid or missing API key" }))
    }

    /// A project's throttle says in its body how long to wait, not in a header.
    fn overwhelmed(&self, left: Duration) -> Reply {
        let detail = "Too many requests";
        Reply::json(429, &json!({ "detail": detail, "limit_rps": 25, "retry_after_seconds": left.as_secs_f64() }))
            .with("x-ratelimit-limit", "125")
    }

    fn broken(&self) -> Reply {
        Reply::text(500, "text/plain; charset=utf-8", "Internal Server Error")
    }

    fn answer(&self, world: &World, ask: &Ask) -> Reply {
        let missing =
            |what: &str| Reply::json(404, &json!({ "detail": format!("{what} not found") }));
        match ask.segments()[..] {
            ["api", "v2" | "v3", "billing", "account"] => {
                Reply::ok(&json!({ "totalCreditsBalanceUsd": 10.0,
                "monthlyCreditsBalanceUsd": 10.0, "additionalCreditsBalanceUsd": 0.0, "rateLimit": 50,
                "planInfo": { "planName": "demo" }, "projectId": "00000000-0000-4000-8000-000000000000" }))
            }
            ["api", "v2", "tasks"] => tasks(world, ask),
            ["api", "v2", "tasks", id, "status"] => world.status(
                self,
                (DemoSource::Tasks, id),
                missing("Task"),
                |life, state| Reply::ok(&task_status(world, life, state)),
            ),
            ["api", "v2", "tasks", id] => world.status(
                self,
                (DemoSource::Tasks, id),
                missing("Task"),
                |life, state| {
                    let mut view = task(world, life, state);
                    view["steps"] = json!([]);
                    view["outputFiles"] = json!([]);
                    Reply::ok(&view)
                },
            ),
            ["api", "v3", "sessions"] => sessions(world, ask),
            ["api", "v3", "sessions", id] => world.status(
                self,
                (DemoSource::Sessions, id),
                missing("Session"),
                |life, state| Reply::ok(&session(world, life, state)),
            ),
            ["api", "v3", "sessions", _, "messages"] => {
                Reply::ok(&json!({ "messages": [], "hasMore": false }))
            }
            ["api", "v4", "runs"] => runs(world, ask),
            ["api", "v4", "runs", id, "status"] => {
                world.status(self, (DemoSource::Runs, id), missing("Run"), |_, state| {
                    Reply::ok(&json!({ "status": state.word }))
                })
            }
            ["api", "v4", "runs", id] => world.status(
                self,
                (DemoSource::Runs, id),
                missing("Run"),
                |life, state| Reply::ok(&run(world, life, state)),
            ),
            ["api", "v4", "sessions"] => slim_sessions(world, ask),
            _ => Reply::json(404, &json!({ "detail": "Not Found" })),
        }
    }

    fn letter(&self, world: &World, item: &Item<'_>) -> Letter {
        if item.mail.form == Form::Ping {
            let body = json!({ "type": "test", "timestamp": stamp(item, item.written_at), "payload": { "test": "ok" } });
            let body = body.to_string().into_bytes();
            return Letter {
                path_token: None,
                headers: with_content_type(std::iter::empty()),
                body,
            };
        }
        let stale = item.mail.form == Form::Stale;
        let written_at = if stale {
            At(item.written_at.0 - HOUR_MS)
        } else {
            item.written_at
        };
        if untimed(item) {
            untimed_letter(world, item, written_at)
        } else {
            timed_letter(world, item, written_at)
        }
    }

    /// Up to five attempts; when is not documented.
    fn patience(&self, _life: &Life) -> Patience {
        const PAUSES: [Duration; 4] = [
            Duration::from_millis(300),
            Duration::from_millis(600),
            Duration::from_millis(1200),
            Duration::from_millis(2400),
        ];
        Patience {
            pauses: &PAUSES,
            retries: |status| status >= 300,
            timeout: Duration::from_secs(15),
        }
    }
}

// ── Answers ─────────────────────────────────────────────────────────────────────────────────────

/// The output of the agent, once it is over.
fn output(state: &State) -> Option<&'static str> {
    (state.over && state.success.is_some()).then_some("what was found")
}

fn task_status(world: &World, life: &Life, state: &State) -> Value {
    let (_, since) = world.times(life, state);
    json!({
        "id": life.id,
        "status": state.word,
        "output": output(state),
        "finishedAt": state.over.then(|| naive(since)),
        "isSuccess": state.success,
        "cost": "0.01",
    })
}

fn task(world: &World, life: &Life, state: &State) -> Value {
    let (created, _) = world.times(life, state);
    let mut view = task_status(world, life, state);
    view["sessionId"] = json!(life.group);
    view["llm"] = json!("browser-use-llm");
    view["task"] = json!("a demo");
    view["createdAt"] = json!(naive(created));
    view["startedAt"] = json!((state.word != "created").then(|| naive(created)));
    view["metadata"] = json!({ "story": life.story });
    view
}

fn tasks(world: &World, ask: &Ask) -> Reply {
    let (number, size) = (ask.number("pageNumber", 1), ask.number("pageSize", 10));
    if !(1..=100).contains(&size) {
        return Reply::json(
            422,
            &json!({ "detail": [{ "loc": ["query", "pageSize"], "msg": "1 to 100", "type": "value_error" }] }),
        );
    }
    let wanted = ask.param("filterBy");
    let rows: Vec<_> = world
        .listed(DemoSource::Tasks)
        .filter(|(_, state)| wanted.is_none_or(|word| word == state.word))
        .collect();
    let total = rows.len();
    let items: Vec<Value> = world
        .shown(page(rows.into_iter(), number, size), size)
        .into_iter()
        .map(|(life, state)| task(world, life, state))
        .collect();
    Reply::ok(
        &json!({ "items": items, "totalItems": total, "pageNumber": number, "pageSize": size }),
    )
}

fn session(world: &World, life: &Life, state: &State) -> Value {
    let (created, since) = world.times(life, state);
    let worked = !matches!(state.word, "created" | "idle");
    json!({
        "id": life.id,
        "status": state.word,
        "model": "bu-mini",
        "title": worked.then_some("a demo"),
        "output": output(state),
        "outputSchema": null,
        "stepCount": u8::from(worked),
        "lastStepSummary": null,
        "isTaskSuccessful": state.success,
        "liveUrl": null,
        "recordingUrls": [],
        "totalInputTokens": 100,
        "totalOutputTokens": 10,
        "totalCostUsd": "0.01",
        "createdAt": created.rfc3339(),
        "updatedAt": since.rfc3339(),
    })
}

fn sessions(world: &World, ask: &Ask) -> Reply {
    let (number, size) = (ask.number("page", 1), ask.number("page_size", 20).min(100));
    let rows: Vec<_> = world.listed(DemoSource::Sessions).collect();
    let total = rows.len();
    let rows: Vec<Value> = world
        .shown(page(rows.into_iter(), number, size), size)
        .into_iter()
        .map(|(life, state)| session(world, life, state))
        .collect();
    Reply::ok(&json!({ "sessions": rows, "total": total, "page": number, "pageSize": size }))
}

fn run(world: &World, life: &Life, state: &State) -> Value {
    let (created, since) = world.times(life, state);
    json!({
        "id": life.id,
        "task": "a demo",
        "title": null,
        "model": "bu-mini",
        "contextLimit": 100_000,
        "status": state.word,
        "result": (state.word == "completed").then_some("what was found"),
        "error": (state.word == "failed").then_some("the agent gave up"),
        "sessionId": life.group,
        "workspaceId": null,
        "judgement": null,
        "totalInputTokens": 100,
        "totalOutputTokens": 10,
        "totalCostUsd": "0.01",
        "createdAt": created.rfc3339(),
        "updatedAt": since.rfc3339(),
    })
}

/// The rows of a keyset page: those after the cursor, which is the last id seen.
fn after_cursor<'a>(
    world: &'a World,
    ask: &Ask,
    default: usize,
) -> (Vec<(&'a Life, &'a State)>, Option<String>) {
    let limit = ask.number("limit", default).min(100);
    let cursor = ask.param("cursor").map(str::to_owned);
    let mut rows = world
        .listed(DemoSource::Runs)
        .skip_while(|(life, _)| cursor.as_ref().is_some_and(|id| *id != life.id));
    if cursor.is_some() {
        rows.next();
    }
    let mut rows: Vec<_> = rows.take(limit + 1).collect();
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows
        .last()
        .filter(|_| more)
        .map(|(life, _)| life.id.clone());
    (world.shown(rows, limit), next)
}

fn runs(world: &World, ask: &Ask) -> Reply {
    let (rows, next) = after_cursor(world, ask, 50);
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|(life, state)| run(world, life, state))
        .collect();
    Reply::ok(&json!({ "runs": rows, "hasMore": next.is_some(), "nextCursor": next }))
}

fn slim_sessions(world: &World, ask: &Ask) -> Reply {
    let (rows, next) = after_cursor(world, ask, 50);
    let slim = |(life, state): (&Life, &State)| {
        let (created, since) = world.times(life, state);
        json!({ "sessionId": life.group, "workspaceId": null, "latestRunId": life.id, "task": "a demo", "title": null,
            "status": state.word, "createdAt": created.rfc3339(), "updatedAt": since.rfc3339() })
    };
    let rows: Vec<Value> = rows.into_iter().map(slim).collect();
    Reply::ok(&json!({ "sessions": rows, "hasMore": next.is_some(), "nextCursor": next }))
}

// ── Letters ─────────────────────────────────────────────────────────────────────────────────────

/// Whether a letter is of the generation that signs the raw body without a time: a part of the
/// tasks, and whatever the other scheme could not rewrite before signing it.
fn untimed(item: &Item<'_>) -> bool {
    let part = item.life.source == DemoSource::Tasks
        && schedule::seed("scheme", &item.life.id).is_multiple_of(5);
    matches!(item.mail.form, Form::Poisoned(_)) || (part && item.mail.form != Form::Stale)
}

/// `X-Webhook-Signature`, camel case, over the bytes as sent.
fn untimed_letter(world: &World, item: &Item<'_>, written_at: At) -> Letter {
    let (life, says) = (item.life, item.mail.says);
    let payload = if life.source == DemoSource::Sessions {
        json!({ "sessionId": life.id, "status": says.word })
    } else {
        json!({ "taskId": life.id, "status": says.word, "sessionId": life.group })
    };
    let timestamp = stamp(item, written_at);
    let body =
        json!({ "type": "agent.task.status_update", "timestamp": timestamp, "payload": payload })
            .to_string();
    let body = match item.mail.form {
        Form::Poisoned(poison) => poisoned(&body, poison),
        _ => body.into_bytes(),
    };
    let signature = proof(world, item, &[&body]);
    let headers = signature.map(|signature| ("x-webhook-signature".to_owned(), signature));
    Letter {
        path_token: None,
        headers: with_content_type(headers.into_iter()),
        body,
    }
}

/// `X-Browser-Use-Signature` over the time and Python's rewriting of the body; the body itself is
/// sent as Python writes it by default, with spaces and in the order of the fields.
fn timed_letter(world: &World, item: &Item<'_>, written_at: At) -> Letter {
    let (life, says) = (item.life, item.mail.says);
    let stamp = stamp(item, written_at);
    let (session, task) = if life.source == DemoSource::Sessions {
        (&life.id, "")
    } else {
        (&life.group, life.id.as_str())
    };
    let task = if task.is_empty() {
        String::new()
    } else {
        format!("\"task_id\": \"{task}\", ")
    };
    let body = format!(
        "{{\"type\": \"agent.task.status_update\", \"timestamp\": \"{stamp}\", \"payload\": {{\"session_id\": \
         \"{session}\", {task}\"status\": \"{}\", \"metadata\": {{}}}}}}",
        says.word
    );
    let time = (written_at.0 / 1000).to_string();
    let signature = proof(
        world,
        item,
        &[time.as_bytes(), b".", canonical(&body).as_bytes()],
    );
    let signed = signature.map(|signature| ("x-browser-use-signature".to_owned(), signature));
    let headers = [("x-browser-use-timestamp".to_owned(), time)]
        .into_iter()
        .chain(signed);
    Letter {
        path_token: None,
        headers: with_content_type(headers),
        body: body.into_bytes(),
    }
}

/// The envelope's time; a letter written once more has another one.
fn stamp(item: &Item<'_>, written_at: At) -> String {
    let at = if item.mail.form == Form::Rewritten {
        written_at.plus(Duration::from_millis(7))
    } else {
        written_at
    };
    format!("{}+00:00", naive(at))
}

/// Python's `json.dumps` with sorted keys and no spaces. Every string in these bodies is plain
/// ASCII, for which the two languages agree.
pub(super) fn canonical(body: &str) -> String {
    serde_json::from_str::<Value>(body)
        .map(|value| value.to_string())
        .unwrap_or_default()
}

fn proof(world: &World, item: &Item<'_>, signed: &[&[u8]]) -> Option<String> {
    match item.mail.form {
        Form::Forged(Forgery::Unsigned) => None,
        Form::Forged(Forgery::MadeUp) => Some(random_hex(item)),
        Form::Forged(Forgery::OtherKey) => Some(sign("bu_whsec_of_somebody_else", signed)),
        _ => Some(sign(&world.keys.browser_use_hooks, signed)),
    }
}

fn with_content_type(headers: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    headers
        .chain([("content-type".to_owned(), "application/json".to_owned())])
        .collect()
}
