//! Records: the lines of the feed, each a CloudEvents 1.0 event.
//!
//! A record is rendered once, when it is appended, and never changes. Only the cursor is put in
//! while reading, since its epoch belongs to the database that serves it. Ids are functions of the
//! run and of what happened to it, so the same history gives the same ids on every machine.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::decide::{Phase, Publication, Run, Settled};
use super::observation::Detail;
use super::{At, Kind, Origin, Outcome, RunKey, words};

words! {
    /// The types of records that are stored.
    RecordType {
        /// A run has settled.
        Completion = "settled.run.completion",
        /// The published end of a run was wrong.
        Amendment = "settled.run.amendment",
        /// An open run's status changed.
        Status = "settled.run.status",
    }
}

/// A position in the feed: `<epoch>.<seq>` on the wire, opaque to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Which database, and which life of it since its last restore.
    pub epoch: String,
    /// The number of the last record before the position.
    pub seq: i64,
}

impl Cursor {
    /// Reads a cursor.
    pub fn parse(text: &str) -> Option<Cursor> {
        let (epoch, seq) = text.split_once('.')?;
        let plain = !epoch.is_empty()
            && epoch.len() <= 32
            && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let digits = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
        (plain && digits).then(|| {
            Some(Cursor {
                epoch: epoch.to_owned(),
                seq: seq.parse().ok()?,
            })
        })?
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}

/// The terminal JSON of a provider that is passed on with a completion.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// At most [`PAYLOAD_BYTES_MAX`] bytes of it.
    Inline(&'a PayloadText<'a>),
    /// Too large or not JSON: the path of the stored body on the control socket.
    Ref(i64),
    /// No provider said anything.
    Absent,
}

/// The largest payload that travels in a record; larger ones are referred to.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;

/// A record ready to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Which of the types it is.
    pub record_type: RecordType,
    /// Deterministic id.
    pub id: String,
    /// The line up to where the cursor goes.
    pub envelope: String,
    /// The `data` object.
    pub data: String,
}

/// The run that a record is about.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The provider's name.
    pub provider: &'a str,
    /// The run's key.
    pub key: &'a RunKey,
}

#[derive(Serialize)]
struct Envelope<'a> {
    specversion: &'static str,
    id: &'a str,
    source: String,
    r#type: RecordType,
    subject: &'a str,
    time: String,
    datacontenttype: &'static str,
}

#[derive(Serialize)]
struct Common<'a> {
    provider: &'a str,
    source: &'a str,
    run_id: &'a str,
    kind: Option<Kind>,
    group_id: Option<&'a str>,
}

#[derive(Serialize)]
struct EndData<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    outcome: Outcome,
    provider_status: Option<&'a str>,
    origin: Origin,
    confirmed: bool,
    reason: Option<&'a str>,
    error: Option<&'a str>,
    counters: Option<&'a serde_json::Map<String, serde_json::Value>>,
    metadata: Option<&'a serde_json::Map<String, serde_json::Value>>,
    opened_at: String,
    provider_time: Option<String>,
    observed_at: String,
    webhooks: Webhooks,
    #[serde(skip_serializing_if = "Option::is_none")]
    amends: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_outcome: Option<Outcome>,
}

#[derive(Serialize)]
struct Webhooks {
    count: u32,
    first_at: Option<String>,
    last_at: Option<String>,
}

#[derive(Serialize)]
struct StatusData<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    provider_status: Option<&'a str>,
    reason: Option<&'a str>,
    metadata: Option<&'a serde_json::Map<String, serde_json::Value>>,
    opened_at: String,
    observed_at: String,
}

/// Renders what `publication` says about `run` at `now`.
pub fn draft(
    about: About<'_>,
    run: &Run,
    publication: Publication,
    payload: Payload<'_>,
    now: At,
) -> Draft {
    let (record_type, suffix) = match publication {
        Publication::Completion => (RecordType::Completion, "completion".to_owned()),
        Publication::Amendment { number, .. } => {
            (RecordType::Amendment, format!("amendment:{number}"))
        }
        Publication::Status(number) => (RecordType::Status, format!("status:{number}")),
    };
    let id = format!("{}:{suffix}", about.key);
    let envelope = json(&Envelope {
        specversion: "1.0",
        id: &id,
        source: format!("/settled/{}", about.key.source),
        r#type: record_type,
        subject: about.key.run_id.as_str(),
        time: now.rfc3339(),
        datacontenttype: "application/json",
    });
    let common = Common {
        provider: about.provider,
        source: about.key.source.as_str(),
        run_id: about.key.run_id.as_str(),
        kind: run.kind,
        group_id: run.detail.group_id.as_deref(),
    };
    let data = match &run.phase {
        Phase::Settled(settled) => with_payload(
            json(&end(about, run, settled, publication, common)),
            payload,
        ),
        Phase::Open(_) => json(&status(run, common, now)),
    };
    Draft {
        record_type,
        id,
        envelope,
        data,
    }
}

fn end<'a>(
    about: About<'_>,
    run: &'a Run,
    settled: &'a Settled,
    publication: Publication,
    common: Common<'a>,
) -> EndData<'a> {
    let Detail {
        provider_status,
        reason,
        error,
        counters,
        provider_time,
        ..
    } = &settled.belief.detail;
    let previous_outcome = match publication {
        Publication::Amendment { previous, .. } => Some(previous),
        _ => None,
    };
    EndData {
        common,
        outcome: settled.belief.ending.outcome,
        provider_status: provider_status.as_deref(),
        origin: settled.origin,
        confirmed: settled.confirmed,
        reason: reason.as_deref(),
        error: error.as_deref(),
        counters: counters.as_ref(),
        metadata: run.detail.metadata.as_ref(),
        opened_at: run.opened_at().rfc3339(),
        provider_time: provider_time.map(At::rfc3339),
        observed_at: settled.belief.received_at.rfc3339(),
        webhooks: Webhooks {
            count: run.webhooks.count,
            first_at: run.webhooks.first.map(At::rfc3339),
            last_at: run.webhooks.last.map(At::rfc3339),
        },
        amends: previous_outcome.map(|_| format!("{}:completion", about.key)),
        previous_outcome,
    }
}

/// Puts the payload last into a `data` object, as the text that it is.
fn with_payload(mut data: String, payload: Payload<'_>) -> String {
    data.pop();
    data.push_str(",\"payload\":");
    match payload {
        Payload::Inline(text) => data.push_str(&text.0),
        Payload::Absent => data.push_str("null"),
        Payload::Ref(report) => {
            data.push_str("null,\"payload_ref\":\"/v1/deliveries/");
            data.push_str(&report.to_string());
            data.push_str("/body\"");
        }
    }
    data.push('}');
    data
}

fn status<'a>(run: &'a Run, common: Common<'a>, now: At) -> StatusData<'a> {
    StatusData {
        common,
        provider_status: run.detail.provider_status.as_deref(),
        reason: run.detail.reason.as_deref(),
        metadata: run.detail.metadata.as_ref(),
        opened_at: run.opened_at().rfc3339(),
        observed_at: now.rfc3339(),
    }
}

/// JSON of a value of ours.
pub fn json(value: &impl Serialize) -> String {
    // BodyBudget for nearly all of them: growing there bit by bit is a twentieth of what a webhook costs.
    let mut text = Vec::with_capacity(1024);
    serde_json::to_writer(&mut text, value)
        .expect("our own types have string keys and cannot fail to render");
    String::from_utf8(text).expect("JSON is text")
}

/// The whole line, without its newline.
pub fn line(envelope: &str, epoch: &str, seq: i64, data: &str) -> String {
    let open = envelope.strip_suffix('}').unwrap_or(envelope);
    [
        open,
        ",\"cursor\":\"",
        epoch,
        ".",
        &seq.to_string(),
        "\",\"data\":",
        data,
        "}",
    ]
    .concat()
}

/// How deep a payload may nest. Common parsers stop at 128, and a record puts it two levels down.
const PAYLOAD_DEPTH_MAX: usize = 100;

/// A provider's JSON as it can travel in a record: on one line, and readable by every consumer's
/// parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadText<'a>(Cow<'a, str>);

impl PayloadText<'_> {
    /// The text.
    pub fn get(&self) -> &str {
        &self.0
    }
}

/// A body as it can travel. `None` for what some parser would refuse: no JSON, lone surrogates,
/// numbers beyond a double, deep nesting. One odd payload must not break the line it is in.
pub fn payload_text(body: &[u8]) -> Option<PayloadText<'_>> {
    let text = std::str::from_utf8(body).ok()?;
    serde_json::from_str::<Readable>(text).ok()?;
    compact(text).map(PayloadText)
}

/// Strips the white space between tokens of JSON text; `None` if it nests too deep.
fn compact(json: &str) -> Option<Cow<'_, str>> {
    let (bytes, mut out, mut from) = (json.as_bytes(), String::new(), 0);
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                out.push_str(&json[from..at]);
                from = at + 1;
            }
            b'"' => at += string_end(&bytes[at + 1..]) + 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > PAYLOAD_DEPTH_MAX {
            return None;
        }
        at += 1;
    }
    if from == 0 {
        return Some(Cow::Borrowed(json));
    }
    out.push_str(&json[from..]);
    Some(Cow::Owned(out))
}

/// Where the closing quote of a string stands whose opening one came before `rest`.
fn string_end(rest: &[u8]) -> usize {
    let mut at = 0;
    while let Some(next) = rest
        .get(at..)
        .and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
    {
        at += next;
        if rest[at] == b'"' {
            return at;
        }
        at += 2;
    }
    rest.len()
}

/// JSON every part of which was read, unlike what is skipped over, and none of which is kept.
struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Readable, D::Error> {
        deserializer.deserialize_any(Readable)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = Readable;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Readable, E> {
        Ok(Readable)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Readable, E> {
        Ok(Readable)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Readable, E> {
        Ok(Readable)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Readable, E> {
        Ok(Readable)
    }
    fn visit_str<E>(self, _: &str) -> Result<Readable, E> {
        Ok(Readable)
    }
    fn visit_unit<E>(self) -> Result<Readable, E> {
        Ok(Readable)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Readable, A::Error> {
        while seq.next_element::<Readable>()?.is_some() {}
        Ok(Readable)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Readable, A::Error> {
        while map.next_entry::<Readable, Readable>()?.is_some() {}
        Ok(Readable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacting_keeps_strings_and_drops_the_rest() {
        let json = "{ \"a b\" : [ 1 ,\n\t2 ], \"q\\\" \\\\\" : \" \\n \" }";
        assert_eq!(
            compact(json).as_deref(),
            Some("{\"a b\":[1,2],\"q\\\" \\\\\":\" \\n \"}")
        );
    }

    #[test]
    fn a_payload_that_some_parser_would_refuse_is_not_inlined() {
        let deep = format!("{}1{}", "[".repeat(101), "]".repeat(101));
        for bad in [
            r#"{"a":"\ud800"}"#,
            r#"{"a":1e999}"#,
            r#"{"a":NaN}"#,
            "{",
            "",
            &deep,
        ] {
            assert!(payload_text(bad.as_bytes()).is_none(), "{bad}");
        }
        let shallow = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        for good in [
            r#"{"a":"\ud83d\ude00","b":12345678901234567890123}"#,
            "null",
            &shallow,
        ] {
            assert_eq!(
                payload_text(good.as_bytes()).as_ref().map(PayloadText::get),
                Some(good)
            );
        }
    }

    #[test]
    fn cursors_are_read_back_and_nonsense_is_not() {
        let cursor = Cursor {
            epoch: "k3v9".to_owned(),
            seq: 42,
        };
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        for bad in [
            "",
            ".",
            "k.",
            ".4",
            "k.-1",
            "k.+1",
            "k.4x",
            "k 3.4",
            "k.99999999999999999999",
            "earliest",
        ] {
            assert_eq!(Cursor::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_cursor_is_spliced_before_the_data() {
        assert_eq!(
            line(r#"{"id":"x"}"#, "e", 7, r#"{"a":1}"#),
            r#"{"id":"x","cursor":"e.7","data":{"a":1}}"#
        );
    }
}
