//! The webhook endpoint's answers, one by one. Never a 2xx without a row.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use crate::support::daemon::{Daemon, Wish, post, suffixed};
use crate::support::senders::{
    PATH_TOKEN, SKYVERN_KEY, browser_use, firecrawl, skyvern, skyvern_body, skyvern_of,
    smartbrowse, unsigned,
};
use crate::support::wire::{ApiResponse, Post};

const SMALL_LIMIT: usize = 64 * 1024;

fn with_small_limit() -> Daemon {
    Daemon::with(Wish {
        hooks: "body_limit = \"64KiB\"".to_owned(),
        ..Wish::default()
    })
}

/// The answer is a 200 and names a row that holds these bytes.
fn assert_stored(daemon: &Daemon, answer: &ApiResponse, body: &[u8]) {
    let id = answer
        .stored()
        .unwrap_or_else(|| panic!("not stored: {answer:?}"));
    assert_eq!(
        daemon.control(&format!("/v1/deliveries/{id}/body")).body,
        body
    );
}

#[test]
fn what_every_provider_signs_is_stored_and_answered_200() {
    let daemon = Daemon::start();
    let posts = [
        (skyvern("wr_1", "completed"), "signed"),
        (
            firecrawl("01989f60-3c1a-7d2e-9b57-0c6f2a7e1d01", "extract.completed"),
            "signed",
        ),
        (smartbrowse("r1", "completed"), "shared_secret"),
        (browser_use("t1", "finished", 0), "signed"),
    ];
    for (post, verdict) in posts {
        let answer = daemon.post(&post);
        assert_stored(&daemon, &answer, &post.body);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(daemon.last_verdict(), verdict, "{}", post.path);
    }
}

#[test]
fn what_cannot_be_stored_is_503_until_it_can() {
    let daemon = Daemon::start();
    let disk = rusqlite::Connection::open(daemon.store()).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON reports BEGIN SELECT RAISE(ABORT, 'as if it were full'); END";
    disk.execute_batch(full).unwrap();
    for post in [skyvern("wr_1", "completed"), unsigned("wr_1", 100)] {
        let answer = daemon.post(&post);
        assert_eq!((answer.status, answer.code().as_str()), (503, "not_stored"));
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    assert_eq!(daemon.kept(), 0);
    disk.execute_batch("DROP TRIGGER full").unwrap();
    let post = skyvern("wr_1", "completed");
    assert_stored(&daemon, &daemon.post(&post), &post.body);
    assert_eq!(daemon.completions(1).len(), 1);
}

#[test]
fn unsigned_and_forged_deliveries_are_401_and_kept_in_the_ring() {
    let daemon = Daemon::start();
    let genuine = skyvern("wr_1", "completed");
    let forged = Post {
        body: skyvern("wr_2", "completed").body,
        ..genuine.clone()
    };
    let told = |answer: &ApiResponse| {
        (
            answer.status,
            answer.code(),
            answer.json()["error"]["verdict"].clone(),
        )
    };
    let refused = |verdict: &str| (401, "not_authentic".to_owned(), verdict.into());
    assert_eq!(
        told(&daemon.post(&unsigned("wr_1", 100))),
        refused("unsigned")
    );
    assert_eq!(told(&daemon.post(&forged)), refused("bad_signature"));
    let kept = daemon.deliveries("source=sky");
    let verdicts: Vec<_> = kept
        .iter()
        .map(|row| row["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(verdicts, ["bad_signature", "unsigned"]);
    let body = daemon
        .control(&format!("/v1/deliveries/{}/body", kept[0]["id"]))
        .body;
    assert_eq!(body, forged.body);
    assert!(daemon.feed().is_empty(), "nothing forged reaches the feed");
}

#[test]
fn unknown_sources_and_paths_are_404_and_leave_nothing() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    for path in [
        "/hooks/nobody",
        "/hooks/SKY",
        "/hooks/",
        "/hooks/%73ky",
        "/hooks/sky%00",
        "/hooks/..",
        "/hooks//sky",
    ] {
        let answer = daemon.post(&post.clone().to(path));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "unknown_source"),
            "{path}"
        );
    }
    for path in [
        "/",
        "/hooks",
        "/hook/sky",
        "/v1/events",
        "/metrics",
        "//hooks/sky",
        "/HOOKS/sky",
    ] {
        let answer = daemon.post(&post.clone().to(path));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "not_found"),
            "{path}"
        );
    }
    assert_eq!(daemon.kept(), 0);
}

#[test]
fn other_methods_are_405_and_are_told_which_is_allowed() {
    let daemon = Daemon::start();
    for method in [
        "GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW", "post",
    ] {
        let answer = daemon.raw(format!(
            "{method} /hooks/sky HTTP/1.1\r\nHost: test\r\n\r\n"
        ));
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some("POST")),
            "{method}"
        );
    }
    assert_eq!(daemon.kept(), 0);
}

#[test]
fn an_answer_to_head_has_no_body() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    wire.send("HEAD /hooks/sky HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    let mut heard = Vec::new();
    while wire.read_some(&mut heard).unwrap_or(0) > 0 {}
    assert!(
        heard.starts_with(b"HTTP/1.1 405") && heard.ends_with(b"\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&heard)
    );
}

#[test]
fn a_body_of_unknown_length_is_411() {
    let daemon = Daemon::start();
    let answer = daemon.raw(skyvern("wr_1", "completed").head(""));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (411, "length_required")
    );
    assert_eq!(daemon.kept(), 0);
}

#[test]
fn a_body_at_the_limit_is_taken_and_one_byte_more_is_413() {
    let daemon = with_small_limit();
    for bytes in [SMALL_LIMIT - 1, SMALL_LIMIT] {
        let post = skyvern_of("wr_1", bytes);
        assert_stored(&daemon, &daemon.post(&post), &post.body);
        assert_stored(&daemon, &daemon.raw(post.chunked(1000)), &post.body);
    }
    let over = skyvern_of("wr_1", SMALL_LIMIT + 1);
    for answer in [
        daemon.post(&over),
        daemon.raw(over.chunked(1000)),
        daemon.raw(over.chunked(usize::MAX)),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));
        assert_eq!(answer.stored(), None);
    }
    for row in daemon.deliveries("verdict=truncated") {
        let shown = daemon
            .control(&format!("/v1/deliveries/{}", row["id"]))
            .json();
        assert_eq!(shown["truncated"], true, "{shown}");
        let head = daemon
            .control(&format!("/v1/deliveries/{}/body", row["id"]))
            .body;
        assert_eq!(head, over.body[..16 * 1024], "the head is kept");
    }
    assert_eq!(daemon.deliveries("verdict=truncated").len(), 3);
}

#[test]
fn the_head_of_a_body_that_was_cut_off_is_a_hint() {
    let cloud = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", cloud.local_addr().unwrap());
    let hooks = "body_limit = \"64KiB\"".to_owned();
    let daemon = Daemon::with(Wish {
        hooks,
        skyvern: Some(url),
        ..Wish::default()
    });
    // Asks about all sorts of things come in between; only the run's own counts.
    let asked = thread::spawn(move || {
        cloud.incoming().flatten().any(|mut stream| {
            let mut request = [0; 1024];
            let n = stream.read(&mut request).unwrap_or(0);
            let _ = stream
                .write_all(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            request[..n].starts_with(b"GET /v1/runs/wr_1 ")
        })
    });
    assert_eq!(daemon.post(&skyvern("wr_1", "running")).status, 200);
    assert_eq!(
        daemon.post(&skyvern_of("wr_1", SMALL_LIMIT + 1)).status,
        413
    );
    // By itself a run that young would be asked about after 20 s, at the next gate.
    daemon.until("somebody asks", |_| asked.is_finished());
    assert!(asked.join().unwrap());
}

#[test]
fn the_path_token_and_the_required_headers_must_all_be_right() {
    let daemon = Daemon::start();
    let right = smartbrowse("r1", "completed");
    let without_header = {
        let mut post = right.clone();
        post.headers.retain(|(name, _)| name != "Authorization");
        post
    };
    let wrong_header = without_header.clone().with("Authorization", "Bearer guess");
    let wrong = [
        right.clone().to("/hooks/shop"),
        right.clone().to("/hooks/shop/"),
        right.clone().to("/hooks/shop/wrong"),
        right.clone().to(&format!("/hooks/shop/{PATH_TOKEN}/more")),
        right
            .clone()
            .to(&format!("/hooks/shop/{}", PATH_TOKEN.to_uppercase())),
        right.clone().to(&format!("/hooks/shop/x/{PATH_TOKEN}")),
        without_header,
        wrong_header,
    ];
    for post in &wrong {
        let answer = daemon.post(post);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "not_authentic"),
            "{}",
            post.path
        );
    }
    assert_eq!(daemon.deliveries("verdict=bad_token").len(), wrong.len());
    assert_stored(&daemon, &daemon.post(&right), &right.body);
    assert_stored(
        &daemon,
        &daemon.post(&right.clone().to(&format!("{}/", right.path))),
        &right.body,
    );
    assert_stored(
        &daemon,
        &daemon.post(&right.clone().to(&format!("{}?a=b", right.path))),
        &right.body,
    );
}

#[test]
fn a_token_on_a_source_that_has_none_does_not_matter() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    assert_stored(
        &daemon,
        &daemon.post(&post.clone().to("/hooks/sky/whatever")),
        &post.body,
    );
}

#[test]
fn neither_token_nor_header_nor_key_is_shown_or_logged() {
    let skyvern_api = Some("http://127.0.0.1:9".to_owned());
    let daemon = Daemon::with(Wish {
        log: Some("trace"),
        skyvern: skyvern_api,
        ..Wish::default()
    });
    let id = daemon
        .post(&smartbrowse("r1", "completed"))
        .stored()
        .unwrap();
    daemon.post(&smartbrowse("r1", "completed").to("/hooks/shop/a-token-that-somebody-guessed"));
    daemon.post(&skyvern("wr_1", "running"));
    daemon.until("it is known", |daemon| {
        daemon.control("/v1/runs/sky/wr_1").status == 200
    });
    let asked = post(&daemon.control_socket(), "/v1/runs/sky/wr_1/poll", "")
        .expect("the control socket answers");
    assert_eq!(asked.status, 200, "{asked:?}");
    let mut shown = daemon.log() + &String::from_utf8_lossy(&asked.body);
    for path in [
        format!("/v1/deliveries/{id}"),
        "/v1/deliveries".to_owned(),
        "/v1/status".to_owned(),
    ] {
        shown += &String::from_utf8(daemon.control(&path).body).unwrap();
    }
    for secret in [
        PATH_TOKEN,
        "a-header-that-is-required",
        SKYVERN_KEY,
        "a-token-that-somebody-guessed",
    ] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

#[test]
fn unsigned_pings_are_small_and_under_the_limit_of_their_sender() {
    let daemon = Daemon::start();
    let padded = |bytes: usize| {
        let padding = "x".repeat(bytes);
        Post::new(
            "/hooks/bu",
            format!(r#"{{"type":"test","payload":{{"test":"{padding}"}}}}"#),
        )
    };
    assert_eq!(daemon.post(&padded(200 << 10)).status, 401);
    let statuses: Vec<u16> = (0..200).map(|_| daemon.post(&padded(10)).status).collect();
    let stored = statuses.iter().filter(|status| **status == 200).count();
    assert!((100..150).contains(&stored), "{stored} of 200 were stored");
    assert_eq!(statuses.last(), Some(&429));
    assert!(
        daemon
            .post(&skyvern("wr_1", "completed"))
            .stored()
            .is_some(),
        "an authentic delivery of the same sender is stored"
    );
}

#[test]
fn test_pings_are_200_and_touch_no_run() {
    let daemon = Daemon::start();
    let sample = skyvern_body(r#"{"run_id":"wr_sample_123456789","status":"completed"}"#);
    assert_stored(&daemon, &daemon.post(&sample), &sample.body);
    let ping = Post::new("/hooks/bu", r#"{"type":"test","payload":{"test":"ok"}}"#);
    let answer = daemon.post(&ping);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.json(),
        serde_json::json!({"ping": true}),
        "the answer to an unsigned ping names no report"
    );
    assert_eq!(daemon.last_verdict(), "ping");
    assert_eq!(
        daemon.control("/v1/runs").json()["runs"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
}

#[test]
fn the_age_of_a_timestamped_delivery_counts_on_both_sides() {
    // The tolerance is 300 s; the clock may tick between signing and arriving.
    let daemon = Daemon::start();
    for (age, verdict) in [
        (295, "signed"),
        (-295, "signed"),
        (302, "stale"),
        (-305, "stale"),
    ] {
        assert!(
            daemon
                .post(&browser_use("t1", "finished", age))
                .stored()
                .is_some()
        );
        assert_eq!(daemon.last_verdict(), verdict, "{age} s");
    }
}

#[test]
fn a_trailing_slash_and_a_query_change_nothing() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    for path in [
        "/hooks/sky/",
        "/hooks/sky?corr=abc123",
        "/hooks/sky/?x",
        "http://example.com/hooks/sky",
    ] {
        assert_stored(&daemon, &daemon.post(&post.clone().to(path)), &post.body);
    }
}

#[test]
fn header_names_are_read_in_any_case() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let shouted = |name: &str| {
        name.chars()
            .map(|c| c.to_ascii_uppercase())
            .collect::<String>()
    };
    let mixed = |name: &str| {
        name.split('-')
            .map(|part| part[..1].to_uppercase() + &part[1..])
            .collect::<Vec<_>>()
            .join("-")
    };
    for case in [&shouted as &dyn Fn(&str) -> String, &mixed] {
        let mut post = post.clone();
        post.headers
            .iter_mut()
            .for_each(|(name, _)| *name = case(name));
        assert_stored(&daemon, &daemon.post(&post), &post.body);
    }
}

#[test]
fn of_two_signatures_the_first_counts() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let wrong = "0".repeat(64);
    assert_stored(
        &daemon,
        &daemon.post(&post.clone().with("x-skyvern-signature", &wrong)),
        &post.body,
    );
    let mut reversed = post.clone().with("x-skyvern-signature", &wrong);
    reversed.headers.reverse();
    assert_eq!(daemon.post(&reversed).status, 401);
    assert_eq!(daemon.kept(), 2);
}

#[test]
fn too_many_headers_or_too_long_ones_are_431() {
    let daemon = Daemon::start();
    let mut many = skyvern("wr_1", "completed");
    many.headers
        .extend((0..200).map(|n| (format!("x-{n}"), "x".to_owned())));
    assert_eq!(daemon.post(&many).status, 431);
    let long = skyvern("wr_1", "completed").with("x-long", "x".repeat(300_000));
    assert_eq!(daemon.raw(long.head("Content-Length: 0\r\n")).status, 431);
    assert_eq!(daemon.kept(), 0);
}

#[test]
fn what_is_not_http_is_400_and_the_connection_ends() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let bad = [
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}".to_owned(),
        "POST /hooks/sky\r\n\r\n".to_owned(),
        "POST /hooks/sky HTTP/9.9\r\n\r\n".to_owned(),
        "POST  /hooks/sky HTTP/1.1\r\n\r\n".to_owned(),
        post.head("Content-Length: -1\r\n"),
        post.head("Content-Length: 5, 6\r\n"),
        post.head("Content-Length: 5\r\nContent-Length: 6\r\n"),
        post.head("Content-Length: 99999999999999999999999\r\n"),
        post.head("Transfer-Encoding: gzip\r\n"),
        post.head("A header: x\r\n"),
        post.head("x-nul: \0\r\n"),
    ];
    for request in bad {
        let mut wire = daemon.wire();
        assert_eq!(
            wire.ask(&request).expect("an answer").status,
            400,
            "{request:?}"
        );
        assert!(wire.closes(), "{request:?}");
    }
    assert_eq!(daemon.kept(), 0);
}

#[test]
fn a_length_beside_chunks_smuggles_nothing() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let hidden = skyvern("wr_2", "completed").bytes();
    let mut bytes = post
        .head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")
        .into_bytes();
    bytes.extend_from_slice(format!("{:x}\r\n", post.body.len()).as_bytes());
    bytes.extend_from_slice(&post.body);
    bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    bytes.extend_from_slice(&hidden);
    let mut wire = daemon.wire();
    let first = wire.ask(&bytes).expect("an answer");
    match first.status {
        // Either it is refused, or the chunks are the body and what follows is the next request.
        400 => assert_eq!(daemon.kept(), 0),
        _ => assert_stored(&daemon, &first, &post.body),
    }
}

#[test]
fn http_1_0_is_served() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let text = String::from_utf8(post.bytes())
        .unwrap()
        .replace("HTTP/1.1", "HTTP/1.0")
        .replace("Host: test\r\n", "");
    let mut wire = daemon.wire();
    assert_stored(&daemon, &wire.ask(text).unwrap(), &post.body);
    assert!(wire.closes(), "without keep-alive the connection ends");
}

#[test]
fn a_sender_that_waits_to_be_told_to_continue_is_told() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let mut wire = daemon.wire();
    wire.send(post.head(&format!(
        "Content-Length: {}\r\nExpect: 100-continue\r\n",
        post.body.len()
    )))
    .unwrap();
    assert_eq!(wire.interim().unwrap(), 100);
    assert_stored(&daemon, &wire.ask(&post.body).unwrap(), &post.body);
}

#[test]
fn a_connection_is_kept_and_requests_may_follow_before_their_answers() {
    let daemon = Daemon::start();
    let posts: Vec<_> = (0..20)
        .map(|n| skyvern(&format!("wr_{n}"), "completed"))
        .collect();
    let mut wire = daemon.wire();
    for post in &posts[..10] {
        assert_stored(&daemon, &wire.ask(post.bytes()).unwrap(), &post.body);
    }
    wire.send(posts[10..].iter().flat_map(Post::bytes).collect::<Vec<_>>())
        .unwrap();
    for post in &posts[10..] {
        assert_stored(&daemon, &wire.answer().unwrap(), &post.body);
    }
    assert_eq!(daemon.completions(20).len(), 20);
}

#[test]
fn nothing_is_taken_from_a_connection_after_an_error() {
    let daemon = Daemon::start();
    let (wrong, right) = (unsigned("wr_1", 100), skyvern("wr_2", "completed"));
    let mut wire = daemon.wire();
    wire.send([wrong.bytes(), right.bytes()].concat()).unwrap();
    let first = wire.answer().unwrap();
    assert_eq!(
        (first.status, first.header("connection")),
        (401, Some("close"))
    );
    assert!(wire.answer().is_err(), "no second answer");
    assert_eq!(daemon.kept(), 1);
}

#[test]
fn a_sender_that_half_closes_gets_its_answer() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    let mut wire = daemon.wire();
    wire.send(post.bytes()).unwrap();
    wire.finish().unwrap();
    assert_stored(&daemon, &wire.answer().unwrap(), &post.body);
}

#[test]
fn an_id_at_the_limit_is_a_run_and_a_longer_one_is_kept_unread() {
    let daemon = Daemon::start();
    let (fits, over) = ("r".repeat(200), "r".repeat(201));
    for id in [&fits, &over, &"ä".repeat(100), &"ä".repeat(101)] {
        let post = skyvern(id, "completed");
        assert_stored(&daemon, &daemon.post(&post), &post.body);
    }
    let settled: Vec<_> = daemon
        .completions(2)
        .iter()
        .map(|line| line["subject"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(settled, [fits, "ä".repeat(100)]);
    daemon.until("both are looked at", |daemon| {
        daemon
            .deliveries("")
            .iter()
            .filter(|row| row["note"].is_string())
            .count()
            == 2
    });
}

#[test]
fn an_encoded_body_is_415_and_never_inflated() {
    let daemon = Daemon::start();
    let post = skyvern("wr_1", "completed");
    for encoding in ["gzip", "deflate", "br", "GZIP", "identity, gzip", "x"] {
        let answer = daemon.post(&post.clone().with("Content-Encoding", encoding));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (415, "content_encoding"),
            "{encoding}"
        );
    }
    let twice = post
        .clone()
        .with("Content-Encoding", "identity")
        .with("content-encoding", "gzip");
    assert_eq!(daemon.post(&twice).status, 415);
    assert_eq!(daemon.kept(), 0);
    assert_stored(
        &daemon,
        &daemon.post(&post.clone().with("Content-Encoding", "identity")),
        &post.body,
    );
}

#[test]
fn a_signature_behind_many_other_headers_is_found() {
    let daemon = Daemon::start();
    let signed = skyvern("wr_1", "completed");
    for others in [60, 62, 63, 90] {
        let mut post = signed.clone();
        let many = (0..others).map(|n| (format!("x-forwarded-{n}"), "proxy".to_owned()));
        post.headers.splice(0..0, many);
        assert_stored(&daemon, &daemon.post(&post), &post.body);
    }
}

#[test]
fn whoever_sends_far_too_much_still_reads_the_413() {
    let daemon = with_small_limit();
    for bytes in [200_000, 2_000_000, 20_000_000] {
        let over = skyvern_of("wr_1", bytes);
        assert_eq!(daemon.raw(over.bytes()).status, 413, "{bytes} declared");
        assert_eq!(
            daemon.raw(over.chunked(8000)).status,
            413,
            "{bytes} chunked"
        );
    }
}

#[test]
fn files_and_sockets_are_closed_to_everybody_else() {
    let daemon = Daemon::start();
    daemon.post(&skyvern("wr_1", "completed"));
    let mode = |path: &std::path::Path| {
        std::fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    for suffix in ["", "-wal", "-shm", ".lock"] {
        assert_eq!(
            mode(&suffixed(&daemon.store(), suffix)) & 0o137,
            0,
            "{suffix}"
        );
    }
    for socket in [daemon.feed_socket(), daemon.control_socket()] {
        assert_eq!(mode(&socket), 0o660);
    }
}
