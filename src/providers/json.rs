//! Reading providers' JSON without trusting it: every field may be missing, null or of another
//! type, and then simply is not said.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::model::At;

/// A parsed object, or why there is none (in words that quote nothing of the body).
pub fn object(body: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(NOT_AN_OBJECT.to_owned()),
        Err(error) => Err(not_json(&error)),
    }
}

const NOT_AN_OBJECT: &str = "the body is JSON but not an object";

fn not_json(error: &serde_json::Error) -> String {
    format!(
        "the body is not JSON (line {}, column {})",
        error.line(),
        error.column()
    )
}

// ── The surface of large bodies ─────────────────────────────────────────────────────────────────

/// The scalars at the surface of an object: all that decides about a run, without building the
/// megabytes of results that lie beside them, and without needing the rest of a body that was cut
/// off.
#[derive(Debug, Default)]
pub struct Surface {
    /// The scalars at the top. Of a repeated key the last counts; a key whose value is an array, an
    /// object, overlong or no readable number is not said.
    pub fields: Map<String, Value>,
    /// The scalars in the one object that was entered.
    pub below: Map<String, Value>,
    /// Why reading stopped before the end of the body; what was read up to there is kept.
    pub broken: Option<String>,
}

/// A longer text at the surface is a result and not a state.
const SCALAR_BYTES_MAX: usize = 64 * 1024;

/// Reads the surface of an object, and of the object under the key `enter` in it.
pub fn surface(body: &[u8], enter: Option<&str>) -> Surface {
    let mut seen = Surface::default();
    let top = Level {
        fields: &mut seen.fields,
        enter: enter.map(|key| (key, &mut seen.below)),
    };
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = json.deserialize_map(top).and_then(|()| json.end());
    seen.broken = read.err().map(|error| {
        if error.is_data() {
            NOT_AN_OBJECT.to_owned()
        } else {
            not_json(&error)
        }
    });
    seen
}

/// Reads one object into `fields` as it goes, so that an error further on costs nothing read.
struct Level<'a> {
    fields: &'a mut Map<String, Value>,
    enter: Option<(&'a str, &'a mut Map<String, Value>)>,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.fields.clear();
        while let Some(key) = map.next_key::<String>()? {
            match &mut self.enter {
                Some((entered, below)) if *entered == key => {
                    self.fields.remove(&key);
                    below.clear();
                    map.next_value_seed(Level {
                        fields: below,
                        enter: None,
                    })?;
                }
                _ => keep(self.fields, key, map.next_value()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    // Where an object was expected below the top, anything else says nothing.
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

fn keep(fields: &mut Map<String, Value>, key: String, raw: &RawValue) {
    let text = raw.get();
    let scalar = text.len() <= SCALAR_BYTES_MAX && !text.starts_with(['{', '[']);
    match scalar.then(|| value(text)).flatten() {
        Some(value) => fields.insert(key, value),
        None => fields.remove(&key),
    };
}

/// One JSON value. A lone surrogate escape, which no Rust text can hold, becomes U+FFFD, so that it
/// costs one character and not the value it stands in.
pub fn value(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().or_else(|| {
        let document = super::python_json::parse(text.as_bytes()).ok()?;
        document.has_lone_surrogates().then(|| document.into_json())
    })
}

// ── Fields ──────────────────────────────────────────────────────────────────────────────────────

/// A non-empty string.
pub fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// A nested object.
pub fn child<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    object.get(key)?.as_object()
}

/// A non-empty nested object, copied.
pub fn map(object: &Map<String, Value>, key: &str) -> Option<Map<String, Value>> {
    child(object, key).filter(|map| !map.is_empty()).cloned()
}

/// The numbers among these keys, under their own names.
pub fn counters(object: &Map<String, Value>, keys: &[&str]) -> Option<Map<String, Value>> {
    let counted: Map<String, Value> = keys
        .iter()
        .filter_map(|key| {
            object
                .get(*key)
                .filter(|value| value.is_number())
                .map(|value| ((*key).to_owned(), value.clone()))
        })
        .collect();
    (!counted.is_empty()).then_some(counted)
}

/// A time: RFC 3339, or without a zone, which every provider here means as UTC.
pub fn time(object: &Map<String, Value>, key: &str) -> Option<At> {
    parse_time(text(object, key)?)
}

/// See [`time`].
pub fn parse_time(text: &str) -> Option<At> {
    // A civil time is read out of a zoned one too, so those that name a zone must be tried as such.
    let named = text
        .get(10..)
        .is_some_and(|clock| clock.contains(['Z', 'z', '+', '-', '[']));
    let zoned = if named {
        text.parse::<jiff::Timestamp>().ok()
    } else {
        None
    };
    let naive = || {
        text.parse::<jiff::civil::DateTime>()
            .ok()?
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()
            .map(|at| at.timestamp())
    };
    zoned.or_else(naive).map(|at| At(at.as_millisecond()))
}

pub use crate::model::observation::shortened;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_and_without_a_zone_are_utc() {
        let expected = Some(At(1_795_247_302_144));
        assert_eq!(parse_time("2026-11-21T07:48:22.144163"), expected);
        assert_eq!(parse_time("2026-11-21T07:48:22.144Z"), expected);
        assert_eq!(parse_time("2026-11-21T08:48:22.144163+01:00"), expected);
        assert_eq!(
            parse_time("2026-11-21T07:48:22"),
            Some(At(1_795_247_302_000))
        );
        assert_eq!(parse_time("yesterday"), None);
    }

    #[test]
    fn an_empty_string_says_nothing() {
        let object = object(br#"{"a":"","b":null,"c":3}"#).unwrap();
        assert_eq!(
            (text(&object, "a"), text(&object, "b"), text(&object, "c")),
            (None, None, None)
        );
    }

    #[test]
    fn the_surface_is_scalars_and_nothing_below_them() {
        let body = br#"{"a":"x","b":{"a":"y"},"c":[1,"z"],"d":2.5,"e":null,"f":true,"g":{"h":1,"i":{"h":2}}}"#;
        let seen = surface(body, Some("g"));
        assert_eq!(
            Value::Object(seen.fields),
            serde_json::json!({"a":"x","d":2.5,"e":null,"f":true})
        );
        assert_eq!(Value::Object(seen.below), serde_json::json!({"h":1}));
        assert_eq!(seen.broken, None);
    }

    #[test]
    fn what_was_read_before_the_cut_is_kept() {
        let body =
            r#"{"id":"r","data":{"state":"done","result":{"pages":["é"]}},"late":1}"#.as_bytes();
        for cut in 0..body.len() {
            let seen = surface(&body[..cut], Some("data"));
            assert!(seen.broken.is_some(), "{cut}");
            assert_eq!(text(&seen.below, "state").is_some(), cut >= 32, "{cut}");
        }
        assert_eq!(surface(body, Some("data")).broken, None);
    }

    #[test]
    fn of_a_repeated_key_the_last_counts() {
        let seen = surface(
            br#"{"s":"a","s":"b","t":"a","t":{},"d":{"x":1},"d":{"y":2},"e":{"x":1},"e":3}"#,
            Some("d"),
        );
        assert_eq!(
            Value::Object(seen.fields),
            serde_json::json!({"s":"b","e":3})
        );
        assert_eq!(Value::Object(seen.below), serde_json::json!({"y":2}));
    }

    #[test]
    fn numbers_that_do_not_fit_say_nothing_and_break_nothing() {
        let seen = surface(br#"{"a":1e999,"b":12345678901234567890123,"c":"x"}"#, None);
        assert_eq!(
            (seen.fields.get("a"), text(&seen.fields, "c"), seen.broken),
            (None, Some("x"), None)
        );
        assert!(seen.fields["b"].is_f64());
    }

    #[test]
    fn depth_beside_the_surface_costs_no_stack() {
        let body = format!(
            r#"{{"deep":{}{},"s":"x"}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let seen = surface(body.as_bytes(), Some("none"));
        assert_eq!((text(&seen.fields, "s"), seen.broken), (Some("x"), None));
    }

    #[test]
    fn an_entered_value_of_another_type_says_nothing() {
        for other in ["null", "1", "-1", "1.5", "true", "\"x\"", "[1,[2]]"] {
            let seen = surface(
                format!(r#"{{"data":{other},"s":"x"}}"#).as_bytes(),
                Some("data"),
            );
            assert_eq!(
                (seen.below.len(), text(&seen.fields, "s"), seen.broken),
                (0, Some("x"), None),
                "{other}"
            );
        }
    }

    #[test]
    fn what_is_no_object_says_why() {
        let why = |body: &[u8]| surface(body, None).broken.unwrap();
        assert_eq!(why(b"[1]"), NOT_AN_OBJECT);
        assert_eq!(why(b"\"text\""), NOT_AN_OBJECT);
        assert!(why(b"").starts_with("the body is not JSON"));
        assert!(why(b"\xef\xbb\xbf{}").starts_with("the body is not JSON"));
        assert!(why(b"{} {}").starts_with("the body is not JSON"));
        assert!(why(b"{\"a\":NaN}").starts_with("the body is not JSON"));
        assert!(why(b"{\"a\":\"\xff\"}").starts_with("the body is not JSON"));
    }
}
