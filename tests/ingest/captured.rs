//! Deliveries as real servers sent them, over HTTP into the real binary and out of its socket.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::wire::Post;

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).expect("the vectors are JSON")
}

/// The captured headers, but for those that the connection makes.
fn captured(path: &str, headers: impl Iterator<Item = (String, String)>, body: &str) -> Post {
    let ours = ["host", "connection", "content-length"];
    let headers = headers
        .filter(|(name, _)| !ours.contains(&name.to_ascii_lowercase().as_str()))
        .collect();
    Post {
        path: path.to_owned(),
        headers,
        body: body.as_bytes().to_vec(),
    }
}

fn skyvern_samples() -> Vec<Post> {
    let samples = vectors(include_str!("../vectors/skyvern/samples.json"));
    let webhooks = samples["webhooks"].as_array().expect("webhooks").iter();
    let post = |webhook: &Value| {
        let lines = webhook["header_lines"].as_array().expect("headers").iter();
        let headers = lines.map(|line| {
            line.as_str()
                .and_then(|line| line.split_once(": "))
                .expect("a header")
        });
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        captured(
            "/hooks/sky",
            headers,
            webhook["body"].as_str().expect("a body"),
        )
    };
    webhooks.map(post).collect()
}

/// Each with whether our secret signed it.
fn firecrawl_samples() -> Vec<(Post, bool)> {
    let samples = vectors(include_str!("../vectors/firecrawl/samples.json"));
    let samples = samples["samples"].as_array().expect("samples").iter();
    let post = |sample: &Value| {
        let pairs = sample["headers"].as_array().expect("headers").iter();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let headers = pairs.map(|pair| (text(&pair[0]), text(&pair[1])));
        let ours = sample["secret"] == crate::support::senders::FIRECRAWL_SECRET;
        (
            captured(
                "/hooks/fire",
                headers,
                sample["body"].as_str().expect("a body"),
            ),
            ours,
        )
    };
    samples.map(post).collect()
}

fn outcomes(completions: &[Value]) -> BTreeSet<(String, String)> {
    let word = |value: &Value| value.as_str().expect("a word").to_owned();
    completions
        .iter()
        .map(|line| (word(&line["subject"]), word(&line["data"]["outcome"])))
        .collect()
}

#[test]
fn what_skyvern_really_sent_comes_out_as_one_completion_per_run() {
    let daemon = Daemon::start();
    let samples = skyvern_samples();
    for post in &samples {
        assert_eq!(
            daemon.post(post).status,
            200,
            "{}",
            String::from_utf8_lossy(&post.body)
        );
    }
    let expected: BTreeSet<_> = [
        ("tsk_599430489783879670".to_owned(), "failed".to_owned()),
        ("wr_599430494078844936".to_owned(), "succeeded".to_owned()),
        ("wr_599430644402700610".to_owned(), "failed".to_owned()),
    ]
    .into();
    let completions = daemon.completions(expected.len());
    assert_eq!(outcomes(&completions), expected);
    assert_eq!(completions.len(), expected.len(), "one each");
    let first = completions
        .iter()
        .find(|line| line["subject"] == "tsk_599430489783879670")
        .expect("it is there");
    let sent: Value = serde_json::from_slice(&samples[0].body).expect("JSON");
    assert_eq!(
        first["data"]["payload"], sent,
        "the provider's own words travel along"
    );
}

#[test]
fn what_firecrawl_really_sent_comes_out_as_one_completion_per_run() {
    let daemon = Daemon::start();
    for (post, ours) in firecrawl_samples() {
        let expected = if ours { 200 } else { 401 };
        assert_eq!(
            daemon.post(&post).status,
            expected,
            "{}",
            String::from_utf8_lossy(&post.body)
        );
    }
    let completions = daemon.completions(4);
    let runs: BTreeSet<_> = completions
        .iter()
        .map(|line| line["subject"].as_str())
        .collect();
    assert_eq!(runs.len(), completions.len(), "one each");
    let kinds: BTreeSet<_> = completions
        .iter()
        .map(|line| line["data"]["kind"].as_str().expect("a kind"))
        .collect();
    assert_eq!(
        kinds,
        ["batch_scrape", "crawl", "extract", "monitor_check"].into()
    );
}
