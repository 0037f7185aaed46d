//! Firecrawl's cloud: crawls, batches, extracts and agents with their statuses and lists, and
//! webhooks by both of its senders: the API itself (one attempt) and the dispatcher, which writes
//! the JSON anew for every attempt.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::reply::{Ask, Reply};
use super::world::{Found, Keys, World};
use super::{Item, Letter, Patience, Service, poisoned, random_hex};
use crate::demo::dice::Dice;
use crate::demo::life::{DemoSource, Forgery, Form, Life, State};
use crate::model::{Kind, schedule};
use crate::providers::signature::sign;

/// The cloud.
pub(super) struct Firecrawl;

const EXPIRES: Duration = Duration::from_secs(24 * 3600);

impl Service for Firecrawl {
    fn authorized(&self, ask: &Ask, keys: &Keys) -> bool {
        ask.header("authorization") == Some(&format!("Bearer {}", keys.firecrawl))
    }

    fn refusal(&self, _ask: &Ask) -> Reply {
        Reply::json(
            401,
            &json!({ "success": false, "error": "Unauthorized: Invalid token" }),
        )
    }

    /// No `Retry-After` on these routes, whatever the documentation says: it stands in the text.
    fn overwhelmed(&self, left: Duration) -> Reply {
        let after = left.as_secs_f64().ceil().max(1.0);
        let error = format!(
            "Rate limit exceeded. Consumed (req/min): 501, Remaining (req/min): 0. Upgrade your plan or please \
             retry after {after}s, resets at soon"
        );
        Reply::json(429, &json!({ "success": false, "error": error }))
    }

    fn broken(&self) -> Reply {
        let error = "An unexpected error occurred.";
        Reply::json(
            500,
            &json!({ "success": false, "code": "UNKNOWN_ERROR", "error": error }),
        )
    }

    fn answer(&self, world: &World, ask: &Ask) -> Reply {
        let path = ask.segments();
        let missing = || Reply::json(404, &json!({ "success": false, "error": "Job not found" }));
        let of_kind =
            |id: &str, kinds: &[Kind], render: fn(&World, &Ask, &Life, &State) -> Value| {
                if world
                    .life(DemoSource::Jobs, id)
                    .is_some_and(|life| !kinds.contains(&life.kind))
                {
                    return missing();
                }
                world.status(self, (DemoSource::Jobs, id), missing(), |life, state| {
                    Reply::ok(&render(world, ask, life, state))
                })
            };
        match path[..] {
            ["v1" | "v2", "crawl", "active" | "ongoing"] => active(world),
            ["v1" | "v2", "crawl", id] | ["v1" | "v2", "batch", "scrape", id] => {
                of_kind(id, &[Kind::Crawl, Kind::BatchScrape], crawl)
            }
            ["v1" | "v2", "crawl", id, "errors"]
            | ["v1" | "v2", "batch", "scrape", id, "errors"] => {
                match world.find(DemoSource::Jobs, id) {
                    Found::Seen(..) => Reply::ok(&json!({ "errors": [], "robotsBlocked": [] })),
                    Found::Missing => missing(),
                }
            }
            ["v1" | "v2", "extract", id] => of_kind(id, &[Kind::Extract], extract),
            ["v2", "agent", id] => of_kind(id, &[Kind::Agent], agent),
            ["v2", "team", "activity"] => activity(world, ask),
            ["v1" | "v2", "team", "queue-status"] => queue_status(world),
            ["v1" | "v2", "team", "credit-usage"] => Reply::ok(
                &json!({ "success": true, "data": { "remainingCredits": 1000, "planCredits": 1000 } }),
            ),
            _ => Reply::text(404, "text/html; charset=utf-8", "<pre>Cannot GET</pre>"),
        }
    }

    fn letter(&self, world: &World, item: &Item<'_>) -> Letter {
        let body = body(item);
        let body = match item.mail.form {
            Form::Poisoned(poison) => poisoned(&body, poison),
            _ => body.into_bytes(),
        };
        let signature = match item.mail.form {
            Form::Forged(Forgery::Unsigned) => None,
            Form::Forged(Forgery::MadeUp) => Some(random_hex(item)),
            Form::Forged(Forgery::OtherKey) => Some(sign("somebody else's secret", &[&body])),
            _ => Some(sign(&world.keys.firecrawl_hooks, &[&body])),
        };
        let own: &[(&str, &str)] = if dispatched(item.life) {
            &[("content-type", "application/json")]
        } else {
            &[
                ("content-type", "application/json"),
                ("user-agent", "undici"),
                ("accept-language", "*"),
                ("sec-fetch-mode", "cors"),
                ("accept-encoding", "gzip, deflate"),
            ]
        };
        let own = own
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let signature =
            signature.map(|hex| ("x-firecrawl-signature".to_owned(), format!("sha256={hex}")));
        Letter {
            path_token: None,
            headers: own.chain(signature).collect(),
            body,
        }
    }

    /// The dispatcher tries four times, a minute apart (here a second); the API itself once.
    fn patience(&self, life: &Life) -> Patience {
        const PAUSES: [Duration; 3] = [Duration::from_secs(1); 3];
        Patience {
            pauses: if dispatched(life) { &PAUSES } else { &[] },
            retries: |status| status >= 500 || matches!(status, 408 | 429),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Whether the run's letters go through the dispatcher.
fn dispatched(life: &Life) -> bool {
    schedule::seed("dispatcher", &life.id).is_multiple_of(2)
}

// ── Answers ─────────────────────────────────────────────────────────────────────────────────────

fn crawl(world: &World, ask: &Ask, life: &Life, state: &State) -> Value {
    let (created, since) = world.times(life, state);
    if life.ends().is_zero() {
        return json!({ "success": false, "status": "failed", "completed": 0, "total": 0, "data": [],
            "error": "The crawl could not be queued.", "creditsUsed": 0,
            "expiresAt": created.plus(EXPIRES).rfc3339() });
    }
    let pages = life
        .mail
        .iter()
        .filter(|mail| mail.says.word == "page")
        .count();
    let (skip, limit) = (ask.number("skip", 0), ask.number("limit", 100));
    let document = |number| {
        json!({ "markdown": "# A page", "metadata": { "sourceURL": format!("https://example.com/{number}"),
        "statusCode": 200, "creditsUsed": 1 } })
    };
    let data: Vec<Value> = (0..pages).skip(skip).take(limit).map(document).collect();
    let mut view = json!({
        "success": true,
        "status": state.word,
        "completed": if state.over { pages } else { 0 },
        "total": pages,
        "creditsUsed": pages,
        "expiresAt": created.plus(EXPIRES).rfc3339(),
        "data": data,
    });
    if ask.path.first().is_some_and(|version| version == "v2") {
        view["createdAt"] = json!(created.rfc3339());
        if state.over {
            view["completedAt"] = json!(since.rfc3339());
        }
    }
    // Present whenever the status is not "completed", on a cancelled crawl as well.
    if state.word != "completed" {
        view["next"] = json!(format!(
            "https://api.firecrawl.dev/v2/crawl/{}?skip={}",
            life.id,
            skip + limit
        ));
    }
    view
}

fn extract(world: &World, _ask: &Ask, life: &Life, state: &State) -> Value {
    let (created, _) = world.times(life, state);
    let mut view = json!({
        "success": state.word != "failed",
        "status": state.word,
        "data": if state.word == "completed" { json!({ "name": "a name" }) } else { json!([]) },
        "expiresAt": created.plus(EXPIRES).rfc3339(),
        "tokensUsed": 300,
        "creditsUsed": 20,
    });
    if state.word == "failed" {
        view["error"] = json!("All provided URLs are invalid.");
    }
    view
}

/// `success` is true even for a failed agent, and a cancelled one shows as failed.
fn agent(world: &World, _ask: &Ask, life: &Life, state: &State) -> Value {
    let (created, _) = world.times(life, state);
    let mut view = json!({
        "success": true,
        "status": state.word,
        "model": "spark-1-pro",
        "expiresAt": created.plus(EXPIRES).rfc3339(),
        "creditsUsed": 5,
    });
    match state.word {
        "completed" => view["data"] = json!({ "answer": "42" }),
        "failed" => view["error"] = json!("The agent did not finish."),
        _ => {}
    }
    view
}

/// Open crawls only, without a status and without pages.
fn active(world: &World) -> Reply {
    let open = world
        .listed(DemoSource::Jobs)
        .filter(|(life, state)| life.kind == Kind::Crawl && !state.over);
    let crawls: Vec<Value> = world
        .shown(open.collect(), usize::MAX)
        .into_iter()
        .map(|(life, state)| {
            let (created, _) = world.times(life, state);
            json!({ "id": life.id, "teamId": "team-demo", "url": "https://example.com/",
                "created_at": created.rfc3339(), "options": { "scrapeOptions": {} } })
        })
        .collect();
    Reply::ok(&json!({ "success": true, "crawls": crawls }))
}

/// Everything of the last day, without a status.
fn activity(world: &World, ask: &Ask) -> Reply {
    let wanted = ask.param("endpoint");
    let limit = ask.number("limit", 50).clamp(1, 100);
    let skip = ask.number("cursor", 0);
    let mut rows: Vec<(&Life, &State)> = world
        .listed(DemoSource::Jobs)
        .filter(|(life, _)| wanted.is_none_or(|endpoint| endpoint == life.kind.word()))
        .skip(skip)
        .take(limit + 1)
        .collect();
    let more = rows.len() > limit;
    rows.truncate(limit);
    let data: Vec<Value> = world
        .shown(rows, limit)
        .into_iter()
        .map(|(life, state)| {
            let (created, _) = world.times(life, state);
            json!({ "id": life.id, "endpoint": life.kind.word(), "api_version": "v2",
                "created_at": created.rfc3339(), "target": "https://example.com/" })
        })
        .collect();
    let cursor = more.then(|| (skip + limit).to_string());
    Reply::ok(&json!({ "success": true, "data": data, "cursor": cursor, "has_more": more }))
}

fn queue_status(world: &World) -> Reply {
    let active = world
        .listed(DemoSource::Jobs)
        .filter(|(_, state)| !state.over)
        .count();
    Reply::ok(
        &json!({ "success": true, "jobsInQueue": active, "activeJobsInQueue": active, "waitingJobsInQueue": 0,
        "maxConcurrency": 50, "mostRecentSuccess": null }),
    )
}

// ── Letters ─────────────────────────────────────────────────────────────────────────────────────

/// A letter as the API itself writes it.
#[derive(Serialize)]
struct Direct<'a> {
    success: bool,
    r#type: &'a str,
    id: &'a str,
    #[serde(rename = "webhookId")]
    webhook_id: &'a str,
    data: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    metadata: Value,
}

/// A letter as the dispatcher writes it: another order, a new one of `metadata` for each attempt.
#[derive(Serialize)]
struct Dispatched<'a> {
    success: bool,
    r#type: &'a str,
    #[serde(rename = "webhookId")]
    webhook_id: &'a str,
    id: &'a str,
    data: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    metadata: Box<serde_json::value::RawValue>,
}

const CANCELLED_PAGE: &str = "This scrape was not completed because the parent crawl or batch scrape was cancelled. This happens when …";

fn body(item: &Item<'_>) -> String {
    let (life, says) = (item.life, item.mail.says);
    let event = format!("{}.{}", life.kind.word(), says.word);
    let again = u64::from(item.mail.form == Form::Rewritten);
    let webhook_id = Dice::new(
        schedule::seed("webhook", &life.id),
        item.number as u64 * 2 + again,
    )
    .uuid(4);
    // A page that ran into the cancellation of its crawl.
    let cancelled = says.word == "page"
        && life
            .states
            .iter()
            .any(|(at, state)| state.word == "cancelled" && item.mail.times[0] > *at);
    let success = !cancelled && !matches!(says.word, "failed" | "cancelled");
    let error = match says.word {
        "page" if cancelled => Some(CANCELLED_PAGE),
        "failed" => Some("It did not work."),
        _ => None,
    };
    let data = data(item, cancelled);
    let (id, r#type) = (life.id.as_str(), event.as_str());
    let text = if dispatched(life) {
        let metadata = metadata(item);
        serde_json::to_string(&Dispatched {
            success,
            r#type,
            webhook_id: &webhook_id,
            id,
            data,
            error,
            metadata,
        })
    } else {
        let metadata = json!({ "env": "demo", "order": "42" });
        serde_json::to_string(&Direct {
            success,
            r#type,
            id,
            webhook_id: &webhook_id,
            data,
            error,
            metadata,
        })
    };
    text.expect("a letter has only string keys and cannot fail to render")
}

fn data(item: &Item<'_>, cancelled: bool) -> Value {
    let life = item.life;
    match (life.kind, item.mail.says.word) {
        (_, "page") if cancelled => {
            json!([{ "metadata": { "sourceURL": "https://example.com/late" } }])
        }
        (_, "page") => {
            let scrape = Dice::new(schedule::seed("page", &life.id), item.number as u64).uuid(7);
            json!([{ "markdown": "# Tést page ✓", "metadata": { "sourceURL": "https://example.com/", "statusCode": 200,
                "scrapeId": scrape } }])
        }
        (Kind::Extract, "completed") => json!([{ "success": true, "data": { "name": "a name" },
            "extractId": life.id, "llmUsage": 0.002, "totalUrlsScraped": 1, "sources": {} }]),
        (Kind::Agent, "completed") => json!([{ "creditsUsed": 5, "data": { "answer": "42" } }]),
        (Kind::Agent, "failed" | "cancelled") => json!([{ "creditsUsed": 5 }]),
        _ => json!([]),
    }
}

/// The dispatcher's metadata: a hash map, so the order is another one for each attempt.
fn metadata(item: &Item<'_>) -> Box<serde_json::value::RawValue> {
    let text = if item.attempt.is_multiple_of(2) {
        r#"{"env":"demo","order":"42"}"#
    } else {
        r#"{"order":"42","env":"demo"}"#
    };
    serde_json::value::RawValue::from_string(text.to_owned()).expect("it is JSON")
}
