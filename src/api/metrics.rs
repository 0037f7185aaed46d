//! `GET /metrics`: the numbers of `GET /v1/status` for graphs and alerts, as OpenMetrics text, or in
//! Prometheus' older format for clients that do not accept it.
//!
//! This module counts nothing. It reads every number from the status at each scrape, so that graphs
//! and people see the same, and a restart resets nothing that the ledger stores.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::types::{AnswerClass, ConsumerView, SourceView, StatusView};
use super::{Shared, control};
use crate::model::record::Cursor;
use crate::server::Problem;

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// `GET /metrics`: in the format that the client accepts.
pub async fn metrics(State(state): Shared, headers: HeaderMap) -> Result<Response, Problem> {
    let facts = control::facts(&state).await?;
    let bug = |_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "bug",
            "the metrics cannot be rendered",
        )
    };
    let text = render(&facts).map_err(bug)?;
    let accepted = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let (text, kind) = if accepted
        .into_iter()
        .any(|accepted| accepted.contains(OPEN_METRICS))
    {
        (
            text,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )
    } else {
        (classic(&text), "text/plain; version=0.0.4; charset=utf-8")
    };
    let mut response = Response::new(Body::from(text));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// The text in Prometheus' older format: a metric has the name of its samples, and no type is `info`.
fn classic(text: &str) -> String {
    let types = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let suffixes: BTreeMap<&str, &str> = types
        .filter_map(|(name, kind)| match kind {
            "counter" => Some((name, "_total")),
            "info" => Some((name, "_info")),
            _ => None,
        })
        .collect();
    let mut classic = String::with_capacity(text.len());
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "UNIT", ..] | ["#", "EOF"] => continue,
            ["#", word, name, rest] => {
                let suffix = suffixes.get(name).unwrap_or(&"");
                let rest = if *rest == "info" { "gauge" } else { rest };
                classic.push_str(&format!("# {word} {name}{suffix} {rest}"));
            }
            _ => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

fn render(facts: &StatusView) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("settled");
    whole(&mut registry, facts);
    runs(&mut registry, &facts.sources);
    traffic(&mut registry, &facts.sources);
    losses(&mut registry, &facts.sources);
    limiters(&mut registry, &facts.sources);
    secrets(&mut registry, &facts.sources);
    consumers(&mut registry, &facts.consumers);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Metrics of the daemon and its database file.
fn whole(registry: &mut Registry, facts: &StatusView) {
    let info = vec![
        ("version", facts.version.clone()),
        ("epoch", facts.epoch.clone()),
    ];
    registry.register(
        "build",
        "The program and the epoch of its feed",
        Info::new(info),
    );
    let started = seconds(Some(&facts.started_at)).unwrap_or_default();
    one(
        registry,
        "start_time",
        "When the daemon was ready",
        Some(Unit::Seconds),
        started,
    );
    let help = "Reports that could not be processed and were quarantined";
    one(
        registry,
        "reports_quarantined",
        help,
        None,
        number(facts.quarantined),
    );
    let help = "Damaged rows that were read since the start";
    one(
        registry,
        "rows_damaged",
        help,
        None,
        number(i64::try_from(facts.damaged.len()).unwrap_or(i64::MAX)),
    );
    let sizes = [
        (
            "store_size",
            "Size of the database file",
            size(facts.store.bytes),
        ),
        (
            "store_free",
            "Free space within the database file",
            number(facts.store.free_bytes),
        ),
        (
            "store_wal",
            "Size of the database's write-ahead log",
            size(facts.store.wal_bytes),
        ),
    ];
    for (name, help, bytes) in sizes {
        one(registry, name, help, Some(Unit::Bytes), bytes);
    }
    let seq = |cursor: &str| Cursor::parse(cursor).map_or(0, |cursor| cursor.seq);
    registry.register(
        "feed_records",
        "Records ever appended to the feed",
        counter(seq(&facts.head)),
    );
    let help = "… of which retention has removed";
    registry.register("feed_records_removed", help, counter(seq(&facts.earliest)));
}

fn runs(registry: &mut Registry, sources: &[SourceView]) {
    each(
        registry,
        sources,
        "source_configured",
        "1: the source is in the configuration",
        None,
        |source| Some(if source.configured { 1.0 } else { 0.0 }),
    );
    each(
        registry,
        sources,
        "runs_open",
        "Runs that have not settled",
        None,
        |source| Some(number(source.open)),
    );
    each(
        registry,
        sources,
        "runs_overdue",
        "Open runs past their deadline",
        None,
        |source| Some(number(source.overdue)),
    );
    let unaccounted = Counters::default();
    for source in sources {
        unaccounted
            .get_or_create(&labels(source, None))
            .inc_by(count(source.unaccounted));
    }
    registry.register(
        "runs_unaccounted",
        "Runs that the provider counted and settled does not know",
        unaccounted,
    );
}

fn traffic(registry: &mut Registry, sources: &[SourceView]) {
    let unit = || Some(Unit::Seconds);
    each(
        registry,
        sources,
        "last_webhook_timestamp",
        "When an authentic delivery last came",
        unit(),
        |source| seconds(source.last_webhook_at.as_ref()),
    );
    each(
        registry,
        sources,
        "last_unverified_timestamp",
        "When one last came that was not authentic",
        unit(),
        |source| seconds(source.last_unverified_at.as_ref()),
    );
    each(
        registry,
        sources,
        "last_answer_timestamp",
        "When the provider last answered us",
        unit(),
        |source| seconds(source.last_answer_at.as_ref()),
    );
    each(
        registry,
        sources,
        "clock_skew",
        "How far the provider's clock is ahead of ours",
        unit(),
        |source| source.clock_skew_ms.map(|skew| number(skew) / 1000.0),
    );
}

fn losses(registry: &mut Registry, sources: &[SourceView]) {
    let (settled, synthesized, late, ratio) = (
        Gauges::default(),
        Gauges::default(),
        Gauges::default(),
        Gauges::default(),
    );
    for source in sources {
        for (window, loss) in &source.loss {
            let labels = || labels(source, Some(("window", window.clone())));
            settled
                .get_or_create(&labels())
                .set(number(loss.completions));
            synthesized
                .get_or_create(&labels())
                .set(number(loss.synthesized));
            late.get_or_create(&labels()).set(number(loss.late));
            ratio.get_or_create(&labels()).set(loss.rate);
        }
    }
    registry.register(
        "window_completions",
        "Runs that settled within the window",
        settled,
    );
    registry.register(
        "window_synthesized",
        "… of which without their webhook",
        synthesized,
    );
    registry.register(
        "window_late_webhooks",
        "… of which the webhook came after all, too late",
        late,
    );
    registry.register("window_loss_ratio", "Synthesized by completions", ratio);
}

fn limiters(registry: &mut Registry, sources: &[SourceView]) {
    let answers = Counters::default();
    for source in sources {
        let Some(responses) = source.limiter.as_ref().map(|limiter| limiter.responses) else {
            continue;
        };
        let results = [
            (AnswerClass::Ok, responses.ok),
            (AnswerClass::RateLimited, responses.rate_limited),
            (AnswerClass::Denied, responses.denied),
            (AnswerClass::Unavailable, responses.unavailable),
        ];
        for (class, count) in results {
            answers
                .get_or_create(&labels(source, Some(("result", class.word().to_owned()))))
                .inc_by(count);
        }
    }
    registry.register(
        "provider_answers",
        "Requests to the provider since the start, by class of the answer",
        answers,
    );
    each(
        registry,
        sources,
        "provider_breaker_open",
        "1: the provider refuses our key, polling has stopped",
        None,
        |s| {
            s.limiter
                .as_ref()
                .map(|limiter| if limiter.breaker.is_some() { 1.0 } else { 0.0 })
        },
    );
    each(
        registry,
        sources,
        "provider_paused",
        "1: polling pauses for a while",
        None,
        |source| {
            source
                .limiter
                .as_ref()
                .map(|limiter| if limiter.pause.is_some() { 1.0 } else { 0.0 })
        },
    );
    each(
        registry,
        sources,
        "provider_rate",
        "Requests a second in force now",
        None,
        |source| {
            source
                .limiter
                .as_ref()
                .map(|limiter| limiter.effective_rate)
        },
    );
    each(
        registry,
        sources,
        "provider_rate_limit",
        "Requests a second, as configured",
        None,
        |source| source.limiter.as_ref().map(|limiter| limiter.rate),
    );
    each(
        registry,
        sources,
        "provider_tokens",
        "Requests that could go out at once",
        None,
        |source| source.limiter.as_ref().map(|limiter| limiter.tokens),
    );
    each(
        registry,
        sources,
        "provider_troubles",
        "Failures of the provider in a row",
        None,
        |source| {
            source
                .limiter
                .as_ref()
                .map(|limiter| f64::from(limiter.troubles_in_a_row))
        },
    );
}

/// Metrics of the configured secrets and their use.
fn secrets(registry: &mut Registry, sources: &[SourceView]) {
    let (uses, last) = (Counters::default(), Gauges::default());
    for source in sources {
        for secret in &source.secrets {
            let labels = || labels(source, Some(("secret", secret.label.clone())));
            uses.get_or_create(&labels()).inc_by(count(secret.uses));
            if let Some(at) = seconds(secret.last_used_at.as_ref()) {
                last.get_or_create(&labels()).set(at);
            }
        }
    }
    registry.register(
        "secret_uses",
        "Deliveries that a configured secret has verified",
        uses,
    );
    let help = "When a configured secret last verified one";
    register(
        registry,
        "secret_last_use_timestamp",
        help,
        Some(Unit::Seconds),
        last,
    );
}

fn consumers(registry: &mut Registry, consumers: &[ConsumerView]) {
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    let mut of_each = |name, help, unit, value: &dyn Fn(&ConsumerView) -> Option<f64>| {
        let family = Gauges::default();
        for one in consumers {
            if let Some(value) = value(one) {
                family
                    .get_or_create(&vec![("consumer", one.name.clone())])
                    .set(value);
            }
        }
        register(registry, name, help, unit, family);
    };
    of_each(
        "consumer_lag",
        "Records a consumer has not acknowledged",
        None,
        &|one| Some(number(one.lag)),
    );
    of_each(
        "consumer_parked",
        "Events a consumer has given up on for now",
        None,
        &|one| Some(number(one.parked)),
    );
    of_each(
        "consumer_connected",
        "1: somebody is reading",
        None,
        &|one| Some(flag(one.connected)),
    );
    let help = "1: retention removed records it has not acknowledged";
    of_each("consumer_expired", help, None, &|one| {
        Some(flag(one.expired))
    });
    let help = "When it was last opened or acknowledged";
    of_each(
        "consumer_last_seen_timestamp",
        help,
        Some(Unit::Seconds),
        &|one| seconds(Some(&one.seen_at)),
    );
}

fn counter(value: i64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(count(value));
    counter
}

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn one(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: f64) {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(value);
    register(registry, name, help, unit, gauge);
}

fn each(
    registry: &mut Registry,
    sources: &[SourceView],
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: impl Fn(&SourceView) -> Option<f64>,
) {
    let family = Gauges::default();
    for source in sources {
        if let Some(value) = value(source) {
            family.get_or_create(&labels(source, None)).set(value);
        }
    }
    register(registry, name, help, unit, family);
}

fn register(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    metric: impl Metric,
) {
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, metric),
        None => registry.register(name, help, metric),
    }
}

fn labels(source: &SourceView, more: Option<(&'static str, String)>) -> Labels {
    let mut labels = vec![
        ("source", source.name.clone()),
        ("provider", source.provider.clone()),
    ];
    labels.extend(more);
    labels
}

fn seconds(at: Option<&String>) -> Option<f64> {
    let at: jiff::Timestamp = at?.parse().ok()?;
    Some(number(at.as_millisecond()) / 1000.0)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus knows no other numbers"
)]
fn number(value: i64) -> f64 {
    value as f64
}

fn size(bytes: u64) -> f64 {
    number(i64::try_from(bytes).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A status in which every number is different.
    fn facts() -> StatusView {
        let source = json!({"name": "a", "provider": "acme", "configured": true, "open": 11, "overdue": 12,
            "loss": {"24h": {"completions": 4, "synthesized": 1, "late": 2, "rate": 0.25}},
            "last_webhook_at": "1970-01-01T00:00:13Z", "last_unverified_at": "1970-01-01T00:00:14Z",
            "last_answer_at": "1970-01-01T00:00:15Z", "clock_skew_ms": -1500, "unaccounted": 16, "notes": [],
            "limiter": {"rate": 17.0, "effective_rate": 18.0, "tokens": 19.0, "troubles_in_a_row": 20, "pause": null,
                "breaker": {"since": 0, "why": "no", "next_probe": 0, "probes": 0},
                "responses": {"ok": 21, "rate_limited": 22, "denied": 23, "unavailable": 24}},
            "secrets": [{"label": "secrets[0]", "last_used_at": "1970-01-01T00:00:25Z", "uses": 26, "can_go": false},
                {"label": "secrets[1]", "last_used_at": null, "uses": 0, "can_go": false}]});
        let left = json!({"name": "b", "provider": "other", "configured": false, "open": 31, "overdue": 32, "loss": {},
            "unaccounted": 33, "notes": [], "secrets": []});
        let consumer = json!({"name": "mail", "acked": "e.4", "head": "e.7", "lag": 41, "parked": 42, "connected": true,
            "expired": false, "window": 0, "generation": 1, "created_at": "", "seen_at": "1970-01-01T00:00:43Z",
            "filter": {}});
        let damaged = json!({"table": "runs", "name": "r"});
        let facts = json!({"version": "1", "started_at": "1970-01-01T00:00:02.500Z", "epoch": "e", "head": "e.7",
            "earliest": "e.5", "open": 0, "overdue": 0, "quarantined": 51, "damaged": [damaged],
            "store": {"path": "", "bytes": 52, "free_bytes": 53, "wal_bytes": 54}, "sources": [source, left],
            "consumers": [consumer]});
        serde_json::from_value(facts).unwrap()
    }

    const SAMPLES: &str = r#"
settled_build_info{version="1",epoch="e"} 1
settled_start_time_seconds 2.5
settled_reports_quarantined 51.0
settled_rows_damaged 1.0
settled_store_size_bytes 52.0
settled_store_free_bytes 53.0
settled_store_wal_bytes 54.0
settled_feed_records_total 7
settled_feed_records_removed_total 5
settled_source_configured{source="a",provider="acme"} 1.0
settled_source_configured{source="b",provider="other"} 0.0
settled_runs_open{source="a",provider="acme"} 11.0
settled_runs_open{source="b",provider="other"} 31.0
settled_runs_overdue{source="a",provider="acme"} 12.0
settled_runs_overdue{source="b",provider="other"} 32.0
settled_runs_unaccounted_total{source="a",provider="acme"} 16
settled_runs_unaccounted_total{source="b",provider="other"} 33
settled_last_webhook_timestamp_seconds{source="a",provider="acme"} 13.0
settled_last_unverified_timestamp_seconds{source="a",provider="acme"} 14.0
settled_last_answer_timestamp_seconds{source="a",provider="acme"} 15.0
settled_clock_skew_seconds{source="a",provider="acme"} -1.5
settled_window_completions{source="a",provider="acme",window="24h"} 4.0
settled_window_synthesized{source="a",provider="acme",window="24h"} 1.0
settled_window_late_webhooks{source="a",provider="acme",window="24h"} 2.0
settled_window_loss_ratio{source="a",provider="acme",window="24h"} 0.25
settled_provider_answers_total{source="a",provider="acme",result="ok"} 21
settled_provider_answers_total{source="a",provider="acme",result="rate_limited"} 22
settled_provider_answers_total{source="a",provider="acme",result="denied"} 23
settled_provider_answers_total{source="a",provider="acme",result="unavailable"} 24
settled_provider_breaker_open{source="a",provider="acme"} 1.0
settled_provider_paused{source="a",provider="acme"} 0.0
settled_provider_rate{source="a",provider="acme"} 18.0
settled_provider_rate_limit{source="a",provider="acme"} 17.0
settled_provider_tokens{source="a",provider="acme"} 19.0
settled_provider_troubles{source="a",provider="acme"} 20.0
settled_secret_uses_total{source="a",provider="acme",secret="secrets[0]"} 26
settled_secret_uses_total{source="a",provider="acme",secret="secrets[1]"} 0
settled_secret_last_use_timestamp_seconds{source="a",provider="acme",secret="secrets[0]"} 25.0
settled_consumer_lag{consumer="mail"} 41.0
settled_consumer_parked{consumer="mail"} 42.0
settled_consumer_connected{consumer="mail"} 1.0
settled_consumer_expired{consumer="mail"} 0.0
settled_consumer_last_seen_timestamp_seconds{consumer="mail"} 43.0
"#;

    fn samples(text: &str) -> Vec<&str> {
        let mut samples: Vec<&str> = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        samples.sort_unstable();
        samples
    }

    #[test]
    fn every_fact_is_there_under_the_name_that_prometheus_wants() {
        let text = render(&facts()).unwrap();
        assert_eq!(samples(&text), samples(SAMPLES));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_older_format_has_the_same_samples_each_under_its_own_name() {
        let text = render(&facts()).unwrap();
        let classic = classic(&text);
        assert_eq!(samples(&classic), samples(&text));
        for line in [
            "# TYPE settled_build_info gauge",
            "# TYPE settled_feed_records_total counter",
            "# HELP settled_feed_records_total Records ever appended to the feed.",
            "# TYPE settled_store_size_bytes gauge",
        ] {
            assert!(
                classic.lines().any(|found| found == line),
                "{line} is not in\n{classic}"
            );
        }
        assert!(!classic.contains("EOF") && !classic.contains("# UNIT"));
        let typed: Vec<&str> = classic
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        for sample in samples(&classic) {
            let name = sample.split(['{', ' ']).next().unwrap();
            assert!(typed.contains(&name), "{name} has no type");
        }
    }
}
