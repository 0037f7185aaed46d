//! Seeded mutations of what providers really send, against everything that reads bytes of others.
//!
//! `SETTLED_FUZZ=1000000` for more rounds, `SETTLED_SEED` for others.

mod mutate;
mod seeds;
mod servers;
mod targets;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mutate::{Mutator, corpus_of, replaced};
use seeds::{TARGETS, target};
use serde_json::Value;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// Runs a target on mutations of its seeds, a share of the rounds.
fn storm(name: &str, share: u64) {
    let target = target(name);
    let seeds = (target.seeds)();
    let (rounds, seed) = (env("SETTLED_FUZZ", 4_000) / share, env("SETTLED_SEED", 1));
    let mut mutator = Mutator::new(seed);
    for round in 0..rounds {
        let mut input = mutator.bytes(target.choices.len());
        input.extend(mutator.mutation(&seeds));
        let began = Instant::now();
        let ran = std::panic::catch_unwind(|| (target.run)(&input));
        assert!(
            ran.is_ok(),
            "seed {seed}, round {round}: {}",
            input.escape_ascii()
        );
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "seed {seed}, round {round}: {}",
            input.escape_ascii()
        );
    }
}

#[test]
fn no_webhook_upsets_a_dialect() {
    storm("webhook", 1);
}

#[test]
fn no_headers_that_were_made_up_prove_anything() {
    storm("verify", 1);
}

#[test]
fn no_answer_upsets_a_dialect() {
    storm("status", 1);
}

#[test]
fn no_list_upsets_a_dialect() {
    storm("list", 2);
}

#[test]
fn no_retry_answer_upsets_a_dialect() {
    storm("retry", 4);
}

#[test]
fn no_text_upsets_pythons_json() {
    storm("python", 1);
}

#[test]
fn no_text_upsets_a_cursor() {
    storm("cursor", 1);
}

#[test]
fn no_text_upsets_the_configuration() {
    storm("config", 20);
}

#[test]
fn what_verifies_is_stored_byte_for_byte_whatever_it_says() {
    storm("delivery", 4);
}

#[test]
fn no_bytes_upset_the_webhook_endpoint() {
    storm("hooks", 4);
}

#[test]
fn no_bytes_upset_the_sockets() {
    storm("control", 4);
}

/// Where the fuzzer's own inputs lie.
fn corpus_folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

#[test]
fn what_the_fuzzer_came_upon_upsets_nobody_any_more() {
    for target in TARGETS {
        let mut files: Vec<_> = std::fs::read_dir(corpus_folder(target.name))
            .unwrap()
            .flatten()
            .collect();
        files.sort_by_key(|file| file.file_name());
        assert!(!files.is_empty(), "{} has no corpus", target.name);
        for file in files {
            let ran =
                std::panic::catch_unwind(|| (target.run)(&std::fs::read(file.path()).unwrap()));
            assert!(ran.is_ok(), "{}", file.path().display());
        }
    }
}

/// Not a test: makes the inputs that the fuzzer begins with, out of the vectors.
#[test]
#[ignore = "writes into the folder that SETTLED_CORPUS names; run it after the vectors have changed"]
fn the_corpus_is_written() {
    let Some(folder) = std::env::var_os("SETTLED_CORPUS").map(PathBuf::from) else {
        return;
    };
    for target in TARGETS {
        let folder = folder.join(target.name);
        std::fs::create_dir_all(&folder).unwrap();
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let providers = if target.choices.is_empty() { 1 } else { 4 };
            for provider in 0..providers {
                let mut input = target.choices.to_vec();
                input
                    .iter_mut()
                    .take(1)
                    .for_each(|choice| *choice = provider);
                input.extend(&seed);
                std::fs::write(folder.join(format!("{number:04}-{provider}")), input).unwrap();
            }
        }
    }
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
        format!(
            r#"{{"run_id":"r","id":"r","type":"crawl.page","data":[{}1]}}"#,
            item.repeat(bytes / item.len())
        )
    };
    let keys = |count: usize| {
        let pairs: String = (0..count)
            .map(|n| ["\"k", &n.to_string(), "\":1,"].concat())
            .collect();
        format!(r#"{{{pairs}"run_id":"r"}}"#)
    };
    let text = |unit: &str| {
        format!(
            r#"{{"run_id":"r","status":"{}"}}"#,
            unit.repeat(bytes / unit.len())
        )
    };
    vec![
        ("numbers", list("1,").into()),
        ("strings", list("\"\",").into()),
        ("objects", list("{},").into()),
        (
            "deep",
            ["[".repeat(bytes / 2), "]".repeat(bytes / 2)]
                .concat()
                .into(),
        ),
        ("deep objects", r#"{"a":"#.repeat(bytes / 5).into()),
        ("many keys", keys(bytes / 12).into()),
        (
            "the same key",
            format!("{{{}\"a\":1}}", "\"run_id\":\"r\",".repeat(bytes / 13)).into(),
        ),
        (
            "one long number",
            format!(r#"{{"run_id":"r","n":{}}}"#, "9".repeat(bytes)).into(),
        ),
        (
            "one long fraction",
            format!(r#"{{"run_id":"r","n":0.{}e-400}}"#, "3".repeat(bytes)).into(),
        ),
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
            [
                targets::webhook,
                targets::status,
                targets::list,
                targets::retry,
            ]
            .map(|target| (choice, target))
        }) {
            let began = Instant::now();
            target(&[&[choice; 14], &body[..]].concat());
            let took = began.elapsed();
            assert!(
                took < Duration::from_secs(20),
                "{name}, provider {choice}: {took:?}"
            );
        }
        let began = Instant::now();
        targets::python(&body);
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{name}: {:?}",
            began.elapsed()
        );
    }
}
