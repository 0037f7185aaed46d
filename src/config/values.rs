//! Single values out of text, each refused with what would be right.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;

use crate::limits;

/// Seconds of each unit, largest first.
const UNITS: [(&str, u64); 5] = [
    ("w", 604_800),
    ("d", 86_400),
    ("h", 3_600),
    ("m", 60),
    ("s", 1),
];

/// A duration from nothing to ten years: `20s`, `5m`, `1h30m`, `7d`, `0s`. A day has 24 hours.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration; write for example \"60s\", \"5m\" or \"7d\"");
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit());
        let (unit, after) = split(after, |c| c.is_ascii_alphabetic());
        let number: u32 = number.parse().map_err(|_| bad())?;
        sum = unit_of(unit)
            .and_then(|unit| sum.checked_add(unit.checked_mul(number)?))
            .ok_or_else(bad)?;
        rest = after.trim_start();
    }
    if sum > limits::DURATION_MAX {
        return Err(format!(
            "{text:?} is too long; the most is {:?}",
            shown(limits::DURATION_MAX)
        ));
    }
    Ok(sum)
}

/// A duration that is not shorter than `least`.
pub(super) fn duration_from(least: Duration) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| match duration(text)? {
        short if short < least => Err(format!(
            "{text:?} is too short; the least is {:?}",
            shown(least)
        )),
        enough => Ok(enough),
    }
}

fn unit_of(unit: &str) -> Option<Duration> {
    match unit {
        "ms" => Some(Duration::from_millis(1)),
        "min" => Some(Duration::from_secs(60)),
        _ => UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, seconds)| Duration::from_secs(*seconds)),
    }
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// A duration as one would write it: in the largest unit that leaves nothing over.
pub fn shown(span: Duration) -> String {
    let seconds = span.as_secs();
    if span.subsec_millis() > 0 {
        return format!("{}ms", span.as_millis());
    }
    // Weeks are read but not shown: "7d" is what people write.
    let unit = UNITS[1..]
        .iter()
        .find(|(_, length)| seconds.is_multiple_of(*length) && seconds >= *length);
    unit.map_or_else(
        || format!("{seconds}s"),
        |(name, length)| format!("{}{name}", seconds / length),
    )
}

/// Questions per second: `5/s`, `300/min`, `1000/h`.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let bad = || format!("{text:?} is not a rate; write for example \"5/s\" or \"300/min\"");
    let (count, unit) = text.split_once('/').ok_or_else(bad)?;
    let count: u32 = count.trim().parse().map_err(|_| bad())?;
    let seconds = match unit.trim() {
        "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        _ => return Err(bad()),
    };
    let rate = f64::from(count) / seconds;
    if count == 0 {
        return Err(format!(
            "{text:?} would ask nothing at all; leave api_key out if that is meant"
        ));
    }
    if rate > limits::RATE_PER_SECOND_MAX {
        return Err(format!(
            "{text:?} is too fast; the most is \"{:.0}/s\"",
            limits::RATE_PER_SECOND_MAX
        ));
    }
    Ok(rate)
}

/// A number of bytes within the borders: `32MiB`, `500 kB`.
pub(super) fn bytes(least: u64, most: u64) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let bytes = text.trim().parse::<ByteSize>();
        let bytes = bytes
            .map_err(|_| format!("{text:?} is not a size; write for example \"32MiB\""))?
            .as_u64();
        let size = |bytes| ByteSize::b(bytes).display().iec();
        match bytes {
            _ if bytes < least => Err(format!(
                "{text:?} is too small; the least is \"{}\"",
                size(least)
            )),
            _ if bytes > most => Err(format!(
                "{text:?} is too large; the most is \"{}\"",
                size(most)
            )),
            _ => Ok(bytes),
        }
    }
}

/// An address to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address with a port; write for example \"127.0.0.1:8675\" or \"[::1]:8675\"")
    })
}

/// Where a provider's API is: `http(s)://host[:port][/path]`, returned without a slash at the end.
pub fn base_url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let bad = |why: &str| {
        format!("this is not a base URL ({why}); write for example \"https://api.example.com\"")
    };
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let rest = rest.ok_or_else(|| bad("it has to start with https:// or http://"))?;
    let host = rest.split('/').next().unwrap_or_default();
    if host.contains('@') {
        return Err(bad(
            "it must not carry a user or password; the key belongs into api_key",
        ));
    }
    if rest.contains(['?', '#']) {
        return Err(bad("it must not have a \"?\" or \"#\""));
    }
    if host.is_empty()
        || host.starts_with(':')
        || text.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return Err(bad("there is no host in it, or a space"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// A base URL without the version of the API at its end (`/v1`, `/api/v1`), which some SDKs want
/// there and every path of a provider already has.
pub(super) fn without_version(url: &str) -> &str {
    let versioned = |last: &str| {
        last.strip_prefix('v')
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
    };
    match url.rsplit_once('/') {
        Some((rest, last)) if versioned(last) && !rest.ends_with('/') => {
            rest.strip_suffix("/api").unwrap_or(rest)
        }
        _ => url,
    }
}

/// Whether calls to this base URL would carry the key over a network unencrypted.
pub(super) fn in_the_clear(base_url: &str) -> bool {
    let Some(rest) = base_url.strip_prefix("http://") else {
        return false;
    };
    let host = rest.split('/').next().unwrap_or_default();
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host != "localhost"
        && !host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let seconds = |text: &str| duration(text).unwrap().as_secs();
        assert_eq!(
            [seconds("20s"), seconds("5m"), seconds("24h"), seconds("7d")],
            [20, 300, 86_400, 604_800]
        );
        assert_eq!(
            [
                seconds("1h30m"),
                seconds("1h 30min"),
                seconds("0s"),
                seconds("2w")
            ],
            [5400, 5400, 0, 1_209_600]
        );
        assert_eq!(duration("1s500ms").unwrap().as_millis(), 1500);
    }

    #[test]
    fn what_is_no_duration_is_refused_with_one_that_is() {
        for bad in [
            "60 parsecs",
            "",
            " ",
            "60",
            "s",
            "-5s",
            "1.5h",
            "5M",
            "99999999999s",
            "4294967295w5",
        ] {
            let right =
                format!("{bad:?} is not a duration; write for example \"60s\", \"5m\" or \"7d\"");
            assert_eq!(duration(bad).unwrap_err(), right);
        }
        assert_eq!(
            duration("4000d").unwrap_err(),
            "\"4000d\" is too long; the most is \"3650d\""
        );
        let short = duration_from(limits::POLL_INTERVAL_MIN)("0s").unwrap_err();
        assert_eq!(short, "\"0s\" is too short; the least is \"100ms\"");
    }

    #[test]
    fn durations_are_shown_as_people_write_them() {
        let shown = |seconds| shown(Duration::from_secs(seconds));
        assert_eq!(
            [
                shown(0),
                shown(90),
                shown(300),
                shown(86_400),
                shown(604_800)
            ],
            ["0s", "90s", "5m", "1d", "7d"]
        );
    }

    #[test]
    fn rates_are_per_second_minute_or_hour() {
        let near =
            |text: &str, right: f64| assert!((rate(text).unwrap() - right).abs() < 1e-9, "{text}");
        near("5/s", 5.0);
        near("300/min", 5.0);
        near("36 / h", 0.01);
        for bad in ["5", "5/d", "x/s", "1.5/s", "-1/s", "/s"] {
            let right = format!("{bad:?} is not a rate; write for example \"5/s\" or \"300/min\"");
            assert_eq!(rate(bad).unwrap_err(), right);
        }
        assert_eq!(
            rate("0/s").unwrap_err(),
            "\"0/s\" would ask nothing at all; leave api_key out if that is meant"
        );
        assert_eq!(
            rate("5000/s").unwrap_err(),
            "\"5000/s\" is too fast; the most is \"1000/s\""
        );
    }

    #[test]
    fn sizes_have_borders() {
        let read = bytes(
            limits::HOOK_BODY_BYTES_MIN as u64,
            limits::HOOK_BODY_BYTES_MAX as u64,
        );
        assert_eq!(read("32MiB").unwrap(), 32 << 20);
        assert_eq!(read("1 MB").unwrap(), 1_000_000);
        assert_eq!(
            read("1 lot").unwrap_err(),
            "\"1 lot\" is not a size; write for example \"32MiB\""
        );
        assert_eq!(
            read("1KiB").unwrap_err(),
            "\"1KiB\" is too small; the least is \"64.0 KiB\""
        );
        assert_eq!(
            read("1TiB").unwrap_err(),
            "\"1TiB\" is too large; the most is \"256.0 MiB\""
        );
    }

    #[test]
    fn base_urls_lose_the_slash_and_keep_the_path() {
        assert_eq!(
            base_url("https://api.skyvern.com/").unwrap(),
            "https://api.skyvern.com"
        );
        assert_eq!(
            base_url("http://127.0.0.1:9000/fake/").unwrap(),
            "http://127.0.0.1:9000/fake"
        );
        for bad in [
            "api.skyvern.com",
            "ftp://x",
            "https://",
            "https://:80",
            "https://a b",
            "https://x?y",
            "https://u:p@x",
        ] {
            assert!(
                base_url(bad)
                    .unwrap_err()
                    .starts_with("this is not a base URL ("),
                "{bad}"
            );
        }
        assert!(
            !base_url("https://user:hunter2@x")
                .unwrap_err()
                .contains("hunter2")
        );
    }

    #[test]
    fn only_loopback_may_be_spoken_to_in_the_clear() {
        for fine in [
            "https://x",
            "http://localhost:1",
            "http://127.0.0.1/x",
            "http://[::1]:80",
            "http://[::1]/x",
        ] {
            assert!(!in_the_clear(fine), "{fine}");
        }
        for clear in [
            "http://example.com",
            "http://10.0.0.1:80/x",
            "http://[2001:db8::1]",
        ] {
            assert!(in_the_clear(clear), "{clear}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_value_panic(text in "\\PC{0,16}|[0-9a-z/. ]{0,24}") {
            let _ = (duration(&text), rate(&text), bytes(0, u64::MAX)(&text), listen(&text));
            let _ = base_url(&text).map(|url| in_the_clear(&url));
        }

        #[test]
        fn a_duration_is_read_back_as_it_was_shown(seconds in 0_u64..=3_650 * 86_400) {
            assert_eq!(duration(&shown(Duration::from_secs(seconds))), Ok(Duration::from_secs(seconds)));
        }
    }
}
