//! `GET /metrics` over the control socket: both formats, and the numbers of a daemon that has done something.

use crate::support::home::{Home, exchange};
use crate::support::process::until;

/// Meta and text of the metrics for somebody who accepts this.
fn metrics(home: &Home, accept: &str) -> (String, String) {
    let request = format!("GET /metrics HTTP/1.0\r\nAccept: {accept}\r\n\r\n");
    let answer = exchange(&home.path("control.sock"), &request).unwrap();
    (answer.head.to_ascii_lowercase(), answer.text)
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let home = Home::new();
    let _daemon = home.serve();
    home.ask("PUT", "/v1/consumers/mail", "{}");
    home.complete(1..=3);
    home.completed(3);
    let (head, text) = metrics(&home, "text/plain;version=0.0.4, */*;q=0.1");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(!text.contains("# EOF"), "{text}");
    let (head, text) = metrics(
        &home,
        "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
    );
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in [
        "settled_runs_open{source=\"sky\",provider=\"skyvern\"} 0.0",
        "settled_window_completions{source=\"sky\",provider=\"skyvern\",window=\"1h\"} 3.0",
        "settled_consumer_lag{consumer=\"mail\"} 3.0",
        "settled_consumer_connected{consumer=\"mail\"} 0.0",
    ] {
        until(line, || {
            metrics(&home, "*/*").1.lines().any(|found| found == line)
        });
    }
}
