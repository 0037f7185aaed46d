//! Seeded mutations of what providers really send, against everything that reads bytes of others.
//!
//! `SETTLED_FUZZ=1000000` for more rounds, `SETTLED_SEED` for others.

mod mutate;
mod targets;

use std::time::{Duration, Instant};

use mutate::{Mutator, corpus, corpus_of, replaced};
use serde_json::Value;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Runs a target on mutations; `choices` random bytes come first.
fn storm(target: fn(&[u8]), seeds: &[Vec<u8>], choices: usize, share: u64) {
    let (rounds, seed) = (env("SETTLED_FUZZ", 4_000) / share, env("SETTLED_SEED", 1));
    let mut mutator = Mutator::new(seed);
    for round in 0..rounds {
        let mut input = mutator.bytes(choices);
        input.extend(mutator.mutation(seeds));
        let began = Instant::now();
        let ran = std::panic::catch_unwind(|| target(&input));
        assert!(ran.is_ok(), "seed {seed}, round {round}: {}", input.escape_ascii());
        assert!(began.elapsed() < Duration::from_secs(20), "seed {seed}, round {round}: {}", input.escape_ascii());
    }
}

#[test]
fn no_webhook_upsets_a_dialect() {
    storm(targets::webhook, &corpus(), 4, 1);
}

#[test]
fn no_answer_upsets_a_dialect() {
    storm(targets::status, &corpus(), 14, 1);
}

#[test]
fn no_list_upsets_a_dialect() {
    storm(targets::list, &corpus(), 10, 2);
}

#[test]
fn no_retry_answer_upsets_a_dialect() {
    storm(targets::retry, &corpus(), 9, 4);
}

#[test]
fn no_text_upsets_pythons_json() {
    storm(targets::python, &corpus(), 0, 1);
}

#[test]
fn no_text_upsets_a_cursor() {
    let seeds = ["earliest", "k3v9.42", "a.0", "00ff00ff.9223372036854775807"].map(|seed| seed.as_bytes().to_vec());
    storm(targets::cursor, &seeds, 0, 1);
}

#[test]
fn no_text_upsets_the_configuration() {
    let example = include_str!("../../systemd/settled.toml");
    let live = example.replace("# [", "[").replace("\n# ", "\n");
    let short = "[sources.a]\nprovider = \"skyvern\"\napi_key = { env = \"KEY\" }\npoll = \"0 * * * * *\"\n";
    storm(targets::config, &[example.into(), live.into(), short.into()], 0, 20);
}

/// Reads every kind of body, as a webhook and as an answer, with this instead of each of its texts.
fn replace_every_text(by: &Value) {
    for provider in 0..4 {
        for body in replaced(&corpus_of(provider), by) {
            targets::webhook(&[&[provider, 0, 1, 0], &body[..]].concat());
            // A success, whole, that is all there is.
            let choices = [provider, 0, 0, 0, 1, 1, 0, 2, 0, 2, 0, 2, 0, 2];
            targets::status(&[&choices, &body[..]].concat());
        }
    }
}

#[test]
fn no_long_word_is_carried_along() {
    replace_every_text(&Value::String("x".repeat(140_000)));
}

#[test]
fn whatever_is_carried_along_can_be_read_back_however_deep_it_came() {
    for depth in 115..=127 {
        replace_every_text(&(0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner])));
    }
}

/// Bodies that are cheap to send and dear to read, if anything is superlinear.
fn greedy(bytes: usize) -> Vec<(&'static str, Vec<u8>)> {
    let list = |item: &str| {
        format!(r#"{{"run_id":"r","id":"r","type":"crawl.page","data":[{}1]}}"#, item.repeat(bytes / item.len()))
    };
    let keys = |count: usize| {
        let pairs: String = (0..count).map(|n| ["\"k", &n.to_string(), "\":1,"].concat()).collect();
        format!(r#"{{{pairs}"run_id":"r"}}"#)
    };
    let text = |unit: &str| format!(r#"{{"run_id":"r","status":"{}"}}"#, unit.repeat(bytes / unit.len()));
    vec![
        ("numbers", list("1,").into()),
        ("strings", list("\"\",").into()),
        ("objects", list("{},").into()),
        ("deep", ["[".repeat(bytes / 2), "]".repeat(bytes / 2)].concat().into()),
        ("deep objects", r#"{"a":"#.repeat(bytes / 5).into()),
        ("many keys", keys(bytes / 12).into()),
        ("the same key", format!("{{{}\"a\":1}}", "\"run_id\":\"r\",".repeat(bytes / 13)).into()),
        ("one long number", format!(r#"{{"run_id":"r","n":{}}}"#, "9".repeat(bytes)).into()),
        ("one long fraction", format!(r#"{{"run_id":"r","n":0.{}e-400}}"#, "3".repeat(bytes)).into()),
        ("escapes", text("\\u00e9").into()),
        ("surrogates", text("\\ud83d\\ude00").into()),
        ("halves of surrogates", text("\\ud83d").into()),
        ("spaces", " ".repeat(bytes).into()),
        ("quotes", "\"".repeat(bytes).into()),
        ("backslashes", text("\\\\").into()),
    ]
}

#[test]
fn reading_takes_time_in_proportion() {
    // This much of anything costs a fraction of a second here; quadratic reading would take hours.
    for (name, body) in greedy(200_000) {
        for (choice, target) in (0..4_u8).flat_map(|choice| {
            [targets::webhook, targets::status, targets::list, targets::retry].map(|target| (choice, target))
        }) {
            let began = Instant::now();
            target(&[&[choice; 14], &body[..]].concat());
            let took = began.elapsed();
            assert!(took < Duration::from_secs(20), "{name}, provider {choice}: {took:?}");
        }
        let began = Instant::now();
        targets::python(&body);
        assert!(began.elapsed() < Duration::from_secs(20), "{name}: {:?}", began.elapsed());
    }
}
