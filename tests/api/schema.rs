//! `docs/schema/feed-v1.json` against what the daemon emits: every line must be as it says, every
//! field must be in it, and every type must have been seen.
//!
//! The checker knows the part of JSON Schema that the file uses and refuses any other keyword, so
//! that nothing in the file can go unchecked. It is stricter than the schema: a field that is not
//! described is an error here, while consumers are told to ignore what they do not know.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::home::{Home, Lines, ask, cursor};

pub struct Schema(Value);

impl Schema {
    pub fn load() -> Schema {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema/feed-v1.json");
        Schema(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    /// What is wrong with a line of the feed; its type's name if nothing is.
    pub fn check(&self, line: &Value) -> Result<String, String> {
        let variants = self.0["oneOf"].as_array().unwrap();
        let name = |variant: &Value| {
            variant["$ref"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned()
        };
        let matching = variants.iter().find(|variant| {
            self.0["$defs"][name(variant)]["properties"]["type"]["const"] == line["type"]
        });
        let variant = matching.ok_or_else(|| format!("no such type: {}", line["type"]))?;
        self.valid(variant, line, "")?;
        Ok(name(variant))
    }

    fn valid(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{at}: {what}: {value}"));
        for (keyword, said) in schema.as_object().unwrap() {
            let good = match keyword.as_str() {
                "description" | "format" | "required" | "additionalProperties" => continue,
                "$ref" => {
                    let name = said.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                    self.valid(&self.0["$defs"][name], value, at)?;
                    true
                }
                "const" => value == said,
                "enum" => said.as_array().unwrap().contains(value),
                "type" => match said {
                    Value::Array(types) => types.iter().any(|one| is(one.as_str().unwrap(), value)),
                    one => is(one.as_str().unwrap(), value),
                },
                "minimum" => value
                    .as_f64()
                    .is_none_or(|number| number >= said.as_f64().unwrap()),
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        self.valid(said, item, &format!("{at}[]"))?;
                    }
                    true
                }
                "properties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        let schema = said
                            .get(name)
                            .ok_or_else(|| format!("{at}.{name} is not described"))?;
                        self.valid(schema, value, &format!("{at}.{name}"))?;
                    }
                    true
                }
                other => panic!("the checker does not know {other}"),
            };
            if !good {
                return wrong(keyword);
            }
        }
        let required = schema["required"].as_array().into_iter().flatten();
        let object = value.as_object();
        for name in required.filter_map(Value::as_str) {
            if object.is_some_and(|object| !object.contains_key(name)) {
                return wrong(&format!("{name} is missing"));
            }
        }
        match (schema.get("format"), value.as_str()) {
            (Some(format), Some(text)) if format == "date-time" => {
                let good = text.parse::<jiff::Timestamp>().is_ok() && text.ends_with('Z');
                if good { Ok(()) } else { wrong("format") }
            }
            _ => Ok(()),
        }
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no such type: {other}"),
    }
}

#[test]
fn what_is_not_described_is_found() {
    let schema = Schema::load();
    let good = json!({
        "specversion": "1.0", "id": "x", "source": "/settled", "type": "settled.feed.end",
        "time": "2026-11-21T08:00:00.123Z", "datacontenttype": "application/json", "cursor": "a.1",
        "data": { "more": true },
    });
    assert_eq!(schema.check(&good).as_deref(), Ok("end"));
    let with = |path: &str, value: Value| {
        let mut line = good.clone();
        *line.pointer_mut(path).unwrap() = value;
        schema.check(&line).unwrap_err()
    };
    assert_eq!(with("/data", json!({})), ".data: more is missing: {}");
    assert_eq!(
        with("/data", json!({ "more": true, "color": 1 })),
        ".data.color is not described"
    );
    assert_eq!(
        with("/data/more", json!("yes")),
        ".data.more: type: \"yes\""
    );
    assert_eq!(
        with("/specversion", json!("2")),
        ".specversion: const: \"2\""
    );
    assert_eq!(
        with("/time", json!("yesterday")),
        ".time: format: \"yesterday\""
    );
    assert_eq!(
        with("/type", json!("settled.feed.bye")),
        "no such type: \"settled.feed.bye\""
    );
}

#[test]
fn every_type_of_line_is_as_the_schema_says() {
    let schema = Schema::load();
    let home = Home::new();
    home.provider_says(r#"{"run_id":"wr_1","status":"completed","run_type":"workflow_run"}"#);
    let daemon = home.serve();
    let mut seen = BTreeSet::new();
    let mut check = |line: &Value| {
        let name = schema
            .check(line)
            .unwrap_or_else(|wrong| panic!("{wrong}\nin {line}"));
        seen.insert(name);
    };
    home.say(1, "running");
    home.insist(
        r#"{"run_id":"wr_1","status":"failed","run_type":"workflow_run","failure_reason":"no luck","step_count":3}"#,
    );
    home.insist(&format!(
        r#"{{"run_id":"wr_2","status":"completed","run_type":"workflow_run","outputs":"{}"}}"#,
        "x".repeat(300_000)
    ));
    home.ask(
        "PUT",
        "/v1/consumers/small",
        r#"{"window":1,"filter":{"types":"completion,amendment,status"}}"#,
    );
    home.completed(2);
    // Who knows better says otherwise.
    ask(
        &home.path("control.sock"),
        "POST",
        "/v1/runs/sky/wr_1/poll",
        "",
    )
    .unwrap();
    home.read("/v1/events?types=completion,amendment,status")
        .iter()
        .for_each(&mut check);

    let follow = "/v1/consumers/small/events?follow=1&heartbeat=1";
    let mut lines = Lines::open(&home.feed(), follow).unwrap();
    for kind in ["hello", "paused", "bookmark"] {
        check(&lines.until(&format!("settled.feed.{kind}")));
    }
    let mut newer = Lines::open(&home.feed(), follow).unwrap();
    check(&lines.until("settled.feed.superseded"));
    let record = newer
        .find(|line| line["type"].as_str().unwrap().starts_with("settled.run."))
        .unwrap();
    check(&record);
    home.ask(
        "POST",
        &format!("/v1/consumers/small/ack?cursor={}", cursor(&record)),
        "",
    );
    home.ask("DELETE", "/v1/consumers/small", "");
    check(&newer.until("settled.feed.error"));
    drop(daemon);
    let all = [
        "amendment",
        "bookmark",
        "completion",
        "end",
        "error",
        "hello",
        "paused",
        "status",
        "superseded",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
}
