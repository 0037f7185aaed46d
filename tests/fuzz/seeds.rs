//! Every target with what its inputs begin as: for the mutations here, and for the fuzzer in `fuzz/`.

use settled::providers::signature;

use crate::mutate::corpus;
use crate::{servers, targets};

/// A target.
pub struct Target {
    /// As `cargo fuzz` calls it.
    pub name: &'static str,
    /// What must hold for any bytes.
    pub run: fn(&[u8]),
    /// Inputs that make sense, without the bytes that choose.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The bytes that choose, for a start; the first chooses the provider.
    pub choices: &'static [u8],
}

pub const TARGETS: &[Target] = &[
    Target {
        name: "webhook",
        run: targets::webhook,
        seeds: corpus,
        choices: &[0, 0, 1, 0],
    },
    Target {
        name: "verify",
        run: targets::verify,
        seeds: headed,
        choices: &[0, 1],
    },
    // A success, whole, that is all there is.
    Target {
        name: "status",
        run: targets::status,
        seeds: corpus,
        choices: &[0, 0, 0, 0, 1, 1, 0, 2, 0, 2, 0, 2, 0, 2],
    },
    Target {
        name: "list",
        run: targets::list,
        seeds: corpus,
        choices: &[0, 0, 0, 2, 0, 2, 0, 2, 0, 2],
    },
    Target {
        name: "retry",
        run: targets::retry,
        seeds: corpus,
        choices: &[0, 0, 2, 0, 2, 0, 2, 0, 2],
    },
    Target {
        name: "python",
        run: targets::python,
        seeds: corpus,
        choices: &[],
    },
    Target {
        name: "cursor",
        run: targets::cursor,
        seeds: cursors,
        choices: &[],
    },
    Target {
        name: "config",
        run: targets::config,
        seeds: configurations,
        choices: &[],
    },
    Target {
        name: "delivery",
        run: servers::delivery,
        seeds: corpus,
        choices: &[0, 1],
    },
    Target {
        name: "hooks",
        run: servers::hooks,
        seeds: posts,
        choices: &[],
    },
    Target {
        name: "control",
        run: servers::control,
        seeds: requests,
        choices: &[],
    },
];

/// The target of this name.
pub fn target(name: &str) -> &'static Target {
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("there is such a target")
}

fn cursors() -> Vec<Vec<u8>> {
    ["earliest", "k3v9.42", "a.0", "00ff00ff.9223372036854775807"]
        .map(|seed| seed.as_bytes().to_vec())
        .into()
}

fn configurations() -> Vec<Vec<u8>> {
    let example = include_str!("../../systemd/settled.toml");
    let live = example.replace("# [", "[").replace("\n# ", "\n");
    let short = "[sources.a]\nprovider = \"skyvern\"\napi_key = { env = \"KEY\" }\npoll = \"0 * * * * *\"\n";
    vec![example.into(), live.into(), short.into()]
}

/// The bodies behind headers as every provider's senders write them, signed with another secret.
fn headed() -> Vec<Vec<u8>> {
    let head = |body: &[u8]| {
        let (sign, time) = (
            signature::sign("another-secret", &[body]),
            targets::NOW.0 / 1_000,
        );
        format!(
            "x-skyvern-signature: {sign}\nx-firecrawl-signature: sha256={sign}\nx-browser-use-signature: {sign}\n\
             x-browser-use-timestamp: {time}\nauthorization: Bearer {sign}\n\n"
        )
    };
    corpus()
        .iter()
        .map(|body| [head(body).as_bytes(), body].concat())
        .collect()
}

/// The bodies in requests that nobody signed.
fn posts() -> Vec<Vec<u8>> {
    let post = |body: &Vec<u8>| {
        let head = format!(
            "POST /hooks/skyvern HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\nX-Skyvern-Signature: 00\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    corpus().iter().map(post).collect()
}

/// What consumers and operators ask for.
fn requests() -> Vec<Vec<u8>> {
    const REQUESTS: &[(&str, &str)] = &[
        ("GET /v1/events?after=earliest&limit=1&types=completion", ""),
        ("GET /v1/consumers/c/events?limit=1&gen=1", ""),
        (
            "PUT /v1/consumers/c",
            r#"{"start":"earliest","filter":{"source":["skyvern"]},"window":3}"#,
        ),
        ("POST /v1/consumers/c/ack?cursor=00ff00ff.1&gen=1", ""),
        ("POST /v1/consumers/c/seek?to=latest", ""),
        (
            "POST /v1/consumers/c/parked?cursor=00ff00ff.1",
            r#"{"attempts":3,"error":"exit 1"}"#,
        ),
        (
            "POST /v1/runs",
            r#"{"source":"skyvern","run_id":"wr_1","kind":"workflow","metadata":{"a":[1]}}"#,
        ),
        (
            "GET /v1/runs?phase=open&source=skyvern&overdue=1&limit=2&after=1",
            "",
        ),
        ("GET /v1/runs/skyvern/wr_1", ""),
        (
            "GET /v1/deliveries?source=skyvern&verdict=signed&run_id=wr_1&before=9&limit=3",
            "",
        ),
        ("POST /v1/sources/skyvern/reverify", ""),
        ("GET /v1/status", ""),
    ];
    let request = |(line, body): &(&str, &str)| {
        format!(
            "{line} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    };
    REQUESTS.iter().map(request).collect()
}
