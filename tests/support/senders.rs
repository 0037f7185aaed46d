//! Deliveries as the four providers send them.

use std::time::{SystemTime, UNIX_EPOCH};

use settled::providers::python_json;
use settled::providers::signature::sign;

use super::wire::Post;

pub const SKYVERN_KEY: &str = "test-skyvern-api-key-not-a-secret";
pub const FIRECRAWL_SECRET: &str = "whsec-test-9b1c2d3e4f";
pub const BROWSER_USE_SECRET: &str = "bu_whsec_3f9c1d7a5b2e48f0";
pub const PATH_TOKEN: &str = "a-path-token-of-32-characters-00";
pub const REQUIRED_HEADER: &str = "Bearer a-header-that-is-required";

/// Any body, signed as Skyvern does.
pub fn skyvern_body(body: impl Into<Vec<u8>>) -> Post {
    let body = body.into();
    let signature = sign(SKYVERN_KEY, &[&body]);
    Post::new("/hooks/sky", body).with("x-skyvern-signature", signature)
}

pub fn skyvern(run: &str, status: &str) -> Post {
    skyvern_body(format!(r#"{{"run_id":"{run}","status":"{status}"}}"#))
}

/// Of this many bytes in all.
pub fn skyvern_of(run: &str, bytes: usize) -> Post {
    let frame = format!(r#"{{"run_id":"{run}","status":"completed","output":""}}"#);
    let padding = "x".repeat(bytes.checked_sub(frame.len()).expect("room for the frame"));
    skyvern_body(frame.replace(r#""output":"""#, &format!(r#""output":"{padding}""#)))
}

/// A delivery that names a run and is not signed.
pub fn unsigned(run: &str, bytes: usize) -> Post {
    let mut post = skyvern_of(run, bytes);
    post.headers
        .retain(|(name, _)| name != "x-skyvern-signature");
    post
}

pub fn firecrawl_body(body: impl Into<Vec<u8>>) -> Post {
    let body = body.into();
    let signature = format!("sha256={}", sign(FIRECRAWL_SECRET, &[&body]));
    Post::new("/hooks/fire", body).with("X-Firecrawl-Signature", signature)
}

pub fn firecrawl(run: &str, event: &str) -> Post {
    firecrawl_body(format!(
        r#"{{"success":true,"type":"{event}","id":"{run}","data":[],"metadata":{{}}}}"#
    ))
}

pub fn smartbrowse(run: &str, status: &str) -> Post {
    let body = format!(
        r#"{{"event":"{status}","status":"{status}","run_id":"{run}","recipe_id":"rcp_1"}}"#
    );
    Post::new(&format!("/hooks/shop/{PATH_TOKEN}"), body).with("Authorization", REQUIRED_HEADER)
}

/// In the timestamped scheme, made `age` seconds ago (or ahead, if negative).
pub fn browser_use(run: &str, status: &str, age: i64) -> Post {
    let body = format!(
        r#"{{"type":"agent.task.status_update","timestamp":"2026-11-21T08:00:00Z","payload":{{"task_id":"{run}","session_id":"s","status":"{status}"}}}}"#
    );
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let time = (i64::try_from(now).expect("before the year 292 billion") - age).to_string();
    let canonical = python_json::parse(body.as_bytes())
        .ok()
        .and_then(|document| document.canonical())
        .expect("JSON");
    let signature = sign(
        BROWSER_USE_SECRET,
        &[time.as_bytes(), b".", canonical.as_bytes()],
    );
    let post = Post::new("/hooks/bu", body).with("X-Browser-Use-Timestamp", time);
    post.with("X-Browser-Use-Signature", signature)
}
