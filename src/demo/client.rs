//! A client of the daemon's sockets, as anybody could write one: tracks runs, follows the feed,
//! and after every break reads on from the last cursor.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::life::Life;
use crate::model::{Origin, Outcome};

/// A completion or an amendment, as far as the demo looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands in the feed.
    pub cursor: String,
    /// Its deterministic id.
    pub id: String,
    /// Whether it corrects an earlier one.
    pub amends: bool,
    /// The account.
    pub source: String,
    /// The run.
    pub run_id: String,
    /// The outcome that the feed published last.
    pub outcome: Outcome,
    /// The origin of the completion.
    pub origin: Origin,
    /// Whether nothing the policy wanted to hear is missing.
    pub confirmed: bool,
    /// One word that qualifies it.
    pub reason: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    id: Option<String>,
    cursor: Option<String>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Data {
    source: String,
    run_id: String,
    outcome: Outcome,
    origin: Origin,
    confirmed: bool,
    reason: Option<String>,
}

/// The kinds of lines of the feed.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// A record.
    Record(Record),
    /// The stream's own; perhaps it has come further.
    Moved(Option<String>),
    /// Not a line of this protocol.
    Nonsense,
}

/// The events that came over the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A record.
    Record(Record),
    /// A line that cannot be understood.
    Nonsense(String),
    /// The stream broke; it will be opened again.
    Broken,
}

/// A client of both sockets.
#[derive(Clone, Debug)]
pub struct Client {
    feed: reqwest::Client,
    control: reqwest::Client,
}

const TYPES: &str = "types=completion,amendment";
/// The daemon may be down, on purpose; it is back soon.
const PAUSE: Duration = Duration::from_millis(100);
const CALL: Duration = Duration::from_secs(10);

impl Client {
    /// A client of these two sockets.
    pub fn new(feed: &Path, control: &Path) -> Client {
        let over = |socket: &Path| {
            reqwest::Client::builder()
                .no_proxy()
                .unix_socket(socket)
                .build()
                .unwrap_or_default()
        };
        Client {
            feed: over(feed),
            control: over(control),
        }
    }

    /// Whether the daemon answers.
    pub async fn healthy(&self) -> bool {
        let asked = self
            .feed
            .get("http://settled/healthz")
            .timeout(CALL)
            .send()
            .await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    /// Tells the daemon of a run. The status, or `None` if it cannot be reached.
    pub async fn track(&self, life: &Life) -> Option<u16> {
        let body = json!({ "source": life.source, "run_id": life.id, "kind": life.kind,
            "metadata": { "story": life.story } });
        let call = self
            .control
            .post("http://settled/v1/runs")
            .header("content-type", "application/json");
        let answer = call
            .body(body.to_string())
            .timeout(CALL)
            .send()
            .await
            .ok()?;
        Some(answer.status().as_u16())
    }

    /// Asks the daemon to have a run's webhook sent again, perhaps to another address. The status,
    /// or `None` if it cannot be reached.
    pub async fn replay(&self, life: &Life, address: Option<&str>) -> Option<u16> {
        let body = address.map_or_else(|| json!({}), |address| json!({ "webhook_url": address }));
        let url = format!(
            "http://settled/v1/runs/{}/{}/retry-webhook",
            life.source, life.id
        );
        let call = self
            .control
            .post(url)
            .header("content-type", "application/json")
            .body(body.to_string());
        Some(call.timeout(CALL).send().await.ok()?.status().as_u16())
    }

    /// How many webhooks the daemon has counted for each run; `None` if that cannot be read.
    pub async fn webhooks(&self) -> Option<HashMap<(String, String), u64>> {
        let (mut all, mut after) = (HashMap::new(), 0);
        loop {
            let page = self
                .get(&format!("/v1/runs?limit=1000&after={after}"))
                .await?;
            for run in page["runs"].as_array()? {
                let text = |key: &str| run[key].as_str().map(str::to_owned);
                all.insert(
                    (text("source")?, text("run_id")?),
                    run["webhooks"].as_u64()?,
                );
            }
            match page["next"].as_i64() {
                Some(next) => after = next,
                None => return Some(all),
            }
        }
    }

    /// The daemon's view of a run, with its timeline.
    pub async fn run(&self, source: &str, run_id: &str) -> Option<Value> {
        self.get(&format!("/v1/runs/{source}/{run_id}")).await
    }

    /// A read on the control socket.
    pub async fn get(&self, path: &str) -> Option<Value> {
        let answer = self
            .control
            .get(format!("http://settled{path}"))
            .timeout(CALL)
            .send()
            .await
            .ok()?;
        serde_json::from_str(&answer.text().await.ok()?).ok()
    }

    /// Follows the feed from its beginning for as long as somebody listens.
    pub async fn follow(self, news: mpsc::UnboundedSender<News>) {
        let mut after = "earliest".to_owned();
        loop {
            let url =
                format!("http://settled/v1/events?follow=1&heartbeat=1&after={after}&{TYPES}");
            if let Ok(answer) = self.feed.get(url).send().await
                && answer.status().is_success()
            {
                let _ = listen(answer, &mut after, &news).await;
                let _ = news.send(News::Broken);
            }
            if news.is_closed() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads the whole feed once more, from the beginning: cursors and ids in their order. `None`
    /// if that fails.
    pub async fn reread(&self) -> Option<Vec<(String, String)>> {
        let (mut after, mut all) = ("earliest".to_owned(), Vec::new());
        loop {
            let url = format!("http://settled/v1/events?follow=0&limit=1000&after={after}&{TYPES}");
            let text = self
                .feed
                .get(url)
                .timeout(CALL)
                .send()
                .await
                .ok()?
                .text()
                .await
                .ok()?;
            let before = all.len();
            for line in text.lines() {
                if let Read::Record(record) = read(line) {
                    after.clone_from(&record.cursor);
                    all.push((record.cursor, record.id));
                }
            }
            if all.len() == before {
                return Some(all);
            }
        }
    }
}

/// Passes on what comes until the stream ends. A line without its end is no line.
async fn listen(
    mut answer: reqwest::Response,
    after: &mut String,
    news: &mpsc::UnboundedSender<News>,
) -> Option<()> {
    let mut pending = Vec::new();
    loop {
        pending.extend_from_slice(&answer.chunk().await.ok()??);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            match read(line.trim_end()) {
                Read::Record(record) => {
                    after.clone_from(&record.cursor);
                    news.send(News::Record(record)).ok()?;
                }
                Read::Moved(cursor) => *after = cursor.unwrap_or_else(|| after.clone()),
                Read::Nonsense => news.send(News::Nonsense(line.trim_end().to_owned())).ok()?,
            }
        }
    }
}

fn read(line: &str) -> Read {
    let Ok(line) = serde_json::from_str::<Line>(line) else {
        return Read::Nonsense;
    };
    let amends = match line.r#type.as_str() {
        "settled.run.completion" => false,
        "settled.run.amendment" => true,
        _ => return Read::Moved(line.cursor),
    };
    let data = line
        .data
        .and_then(|data| serde_json::from_value::<Data>(data).ok());
    match (line.cursor, line.id, data) {
        (Some(cursor), Some(id), Some(data)) => Read::Record(Record {
            cursor,
            id,
            amends,
            source: data.source,
            run_id: data.run_id,
            outcome: data.outcome,
            origin: data.origin,
            confirmed: data.confirmed,
            reason: data.reason,
        }),
        _ => Read::Nonsense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_feed_are_told_apart() {
        let hello = r#"{"specversion":"1.0","type":"settled.feed.hello","cursor":"e.0","data":{}}"#;
        assert_eq!(read(hello), Read::Moved(Some("e.0".to_owned())));
        let completion = r#"{"type":"settled.run.completion","id":"s:r:completion","cursor":"e.1","data":{"source":"s",
            "run_id":"r","outcome":"failed","origin":"poll","confirmed":true,"reason":null,"payload":{}}}"#;
        assert!(matches!(
            read(completion),
            Read::Record(Record {
                amends: false,
                outcome: Outcome::Failed,
                ..
            })
        ));
        assert_eq!(
            read("{\"type\":\"settled.run.completion\"}"),
            Read::Nonsense
        );
        assert_eq!(read("half a li"), Read::Nonsense);
    }
}
