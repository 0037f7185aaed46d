//! Mutations that keep some of the shape of what they mutate.

use std::collections::BTreeSet;

use serde_json::Value;

/// Everything in the vectors that was ever a body, and parts of it.
pub fn corpus() -> Vec<Vec<u8>> {
    (0..4).flat_map(corpus_of).collect()
}

/// As [`corpus`], of the n-th provider in the registry.
pub fn corpus_of(provider: u8) -> Vec<Vec<u8>> {
    let vectors: &[&str] = match provider {
        0 => &[
            include_str!("../vectors/skyvern/samples.json"),
            include_str!("../vectors/skyvern/states.json"),
        ],
        1 => &[include_str!("../vectors/browser-use/signatures.json")],
        2 => &[
            include_str!("../vectors/smartbrowse/runs.json"),
            include_str!("../vectors/smartbrowse/webhooks.json"),
        ],
        _ => &[include_str!("../vectors/firecrawl/samples.json")],
    };
    let mut found = Vec::new();
    for text in vectors {
        gather(
            &serde_json::from_str(text).expect("vectors are JSON"),
            &mut found,
        );
    }
    found
}

fn gather(value: &Value, found: &mut Vec<Vec<u8>>) {
    match value {
        Value::String(text) if text.starts_with(['{', '[']) => {
            found.push(text.clone().into_bytes());
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, found)),
        Value::Object(fields) => {
            if fields.values().any(Value::is_string) && fields.len() > 1 {
                found.push(value.to_string().into_bytes());
            }
            fields.values().for_each(|field| gather(field, found));
        }
        _ => {}
    }
}

/// Each kind of body once for each key it has text under, with this instead of the text.
pub fn replaced(bodies: &[Vec<u8>], by: &Value) -> Vec<Vec<u8>> {
    let (mut seen, mut made) = (BTreeSet::new(), Vec::new());
    for body in bodies {
        let Ok(mut value) = serde_json::from_slice::<Value>(body) else {
            continue;
        };
        let kind: String = value["type"].as_str().unwrap_or_default().to_owned();
        let mut paths = Vec::new();
        places(&value, "", &mut paths);
        for path in paths
            .into_iter()
            .filter(|path| seen.insert((kind.clone(), path.rsplit('/').next().map(str::to_owned))))
        {
            let place = value.pointer_mut(&path).expect("it is there");
            let before = std::mem::replace(place, by.clone());
            made.push(value.to_string().into_bytes());
            *value.pointer_mut(&path).expect("it is there") = before;
        }
    }
    made
}

/// Where text stands.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(at.to_owned()),
        Value::Object(fields) => fields
            .iter()
            .for_each(|(key, field)| places(field, &format!("{at}/{key}"), found)),
        Value::Array(items) => items
            .iter()
            .take(1)
            .for_each(|item| places(item, &format!("{at}/0"), found)),
        _ => {}
    }
}

const TOKENS: &[&str] = &[
    "null",
    "true",
    "-1",
    "0",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "1e308",
    "1e999",
    "-0",
    "0.1",
    "\"\"",
    "{}",
    "[]",
    "\"completed\"",
    "\"failed\"",
    "\"canceled\"",
    "\"finished\"",
    "\"idle\"",
    "\"stopped\"",
    "\"2026-11-21T08:00:00Z\"",
    "\"9999-12-31T23:59:59Z\"",
    "\"-009999-01-02T01:59:59Z\"",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\"test\"",
    "\"crawl.completed\"",
    "\"extract.completed\"",
    "\"monitor.check.completed\"",
    "\"session.status.update\"",
    "\"retry_pending\":true,",
    "\"next_attempt_at\":\"9999-12-31T23:59:59\",",
    "\"metadata\":{\"a\":1},",
    "\"data\":[{}],",
    "\"status\":",
    "\"run_id\":\"r\",",
    "[[[[[[[[",
    "{\"a\":{\"a\":",
    "\u{feff}",
    "\u{ff}",
    " ",
    ",",
    "}",
    "]",
];

/// The same mutations for the same seed.
pub struct Mutator(u64);

impl Mutator {
    pub fn new(seed: u64) -> Mutator {
        Mutator(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n.max(1) as u64)).unwrap_or(0)
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// One of the seeds, changed a few times.
    pub fn mutation(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(5) {
            self.change(&mut input, seeds);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.next().to_le_bytes()[0],
            2 => input.truncate(at),
            3 => drop(input.drain(at..(at + self.below(20)).min(input.len()))),
            4 => {
                let slice = input[at..(at + self.below(60)).min(input.len())].to_vec();
                input.splice(at..at, slice);
            }
            5 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => self.exchange(input, at),
            7 => {
                let token = TOKENS[self.below(TOKENS.len())];
                input.splice(at..at, token.bytes());
            }
            _ => self.nest(input, at),
        }
    }

    /// Puts another token where a value stands.
    fn exchange(&mut self, input: &mut Vec<u8>, at: usize) {
        let Some(colon) = input[at..]
            .iter()
            .position(|byte| *byte == b':')
            .map(|offset| at + offset + 1)
        else {
            return;
        };
        let end = input[colon..]
            .iter()
            .position(|byte| matches!(byte, b',' | b'}'))
            .map_or(input.len(), |n| colon + n);
        let token = TOKENS[self.below(TOKENS.len())];
        input.splice(colon..end, token.bytes());
    }

    /// Wraps a value in up to 130 levels.
    fn nest(&mut self, input: &mut Vec<u8>, at: usize) {
        let Some(colon) = input[at..]
            .iter()
            .position(|byte| *byte == b':')
            .map(|offset| at + offset + 1)
        else {
            return;
        };
        let end = input[colon..]
            .iter()
            .position(|byte| matches!(byte, b',' | b'}'))
            .map_or(input.len(), |n| colon + n);
        // Parsers stop at 128, so that is where it gets interesting.
        let depth = 110 + self.below(20);
        let wrapped = [
            b"[".repeat(depth),
            input[colon..end].to_vec(),
            b"]".repeat(depth),
        ]
        .concat();
        input.splice(colon..end, wrapped);
    }
}
