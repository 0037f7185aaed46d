//! What the daemon asks of others, and how far it goes.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpListener;
use std::thread;

use crate::support::daemon::{Daemon, Wish, post};
use crate::support::senders::SKYVERN_KEY;

/// Answers the first question with a redirect to `target`, and gives the question's head.
fn redirects_to(target: u16, listener: TcpListener) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap())
            .lines()
            .map_while(Result::ok);
        let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        let answer = format!(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{target}/v1/runs/wr_1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
        head.join("\n")
    })
}

#[test]
fn a_redirect_is_not_followed() {
    let (provider, elsewhere) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let skyvern = Some(format!("http://127.0.0.1:{}", port(&provider)));
    let asked = redirects_to(port(&elsewhere), provider);
    let daemon = Daemon::with(Wish {
        skyvern,
        ..Wish::default()
    });
    let say = |path: &str, body: &str| post(&daemon.control_socket(), path, body).unwrap();
    assert_eq!(
        say("/v1/runs", r#"{"source":"sky","run_id":"wr_1"}"#).status,
        201
    );
    say("/v1/runs/sky/wr_1/poll", "");
    assert!(
        asked.join().unwrap().contains(SKYVERN_KEY),
        "the provider itself is shown the key"
    );
    elsewhere.set_nonblocking(true).unwrap();
    let came = elsewhere.accept().map(|_| ()).map_err(|error| error.kind());
    assert_eq!(
        came,
        Err(ErrorKind::WouldBlock),
        "whoever a redirect names is not"
    );
    assert_eq!(
        daemon.control("/v1/runs/sky/wr_1").json()["run"]["phase"],
        "open"
    );
}
