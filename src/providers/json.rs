//! Reading providers' JSON without trusting it: every field may be missing, null or of another
//! type, and then simply is not said.

use serde_json::{Map, Value};

use crate::run::At;

/// A parsed object, or why there is none (in words that quote nothing of the body).
pub fn object(body: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("the body is JSON but not an object".to_owned()),
        Err(error) => Err(format!("the body is not JSON (line {}, column {})", error.line(), error.column())),
    }
}

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
            object.get(*key).filter(|value| value.is_number()).map(|value| ((*key).to_owned(), value.clone()))
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
    let zoned = text.parse::<jiff::Timestamp>().ok();
    let naive =
        || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|at| at.timestamp());
    zoned.or_else(naive).map(|at| At(at.as_millisecond()))
}

/// The first characters of a text, for errors and reasons that must stay small.
pub fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_and_without_a_zone_are_utc() {
        let expected = Some(At(1_795_247_302_144));
        assert_eq!(parse_time("2026-11-21T07:48:22.144163"), expected);
        assert_eq!(parse_time("2026-11-21T07:48:22.144Z"), expected);
        assert_eq!(parse_time("2026-11-21T08:48:22.144163+01:00"), expected);
        assert_eq!(parse_time("2026-11-21T07:48:22"), Some(At(1_795_247_302_000)));
        assert_eq!(parse_time("yesterday"), None);
    }

    #[test]
    fn an_empty_string_says_nothing() {
        let object = object(br#"{"a":"","b":null,"c":3}"#).unwrap();
        assert_eq!((text(&object, "a"), text(&object, "b"), text(&object, "c")), (None, None, None));
    }
}
