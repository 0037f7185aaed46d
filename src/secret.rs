//! Secrets: held so that they cannot be printed, compared in constant time, and named by labels.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use memchr::memmem;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A secret value. Has no `Display` and no `Serialize`; `Debug` hides it; wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a value. White space around it is dropped: it comes from files and dashboards.
    pub fn new(value: &str) -> Secret {
        Secret(Zeroizing::new(value.trim().to_owned()))
    }

    /// The value itself, for signing, comparing and sending. Never format this.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The name of a configured secret (`api_key`, `webhook_secrets[0]`, …): what may be shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SecretLabel(pub String);

impl fmt::Display for SecretLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A secret with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub label: SecretLabel,
    /// Its value.
    pub secret: Secret,
}

/// A header that a delivery must carry, with the values that are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredHeader {
    /// Lower-case name.
    pub name: String,
    /// Any of these.
    pub values: Vec<Key>,
}

/// Everything a source's deliveries are verified against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    /// Secrets that sign; any of them may have been used.
    pub signing: Vec<Key>,
    /// Path tokens, any of which may be in use; empty: none is asked for.
    pub path_tokens: Vec<Key>,
    /// All of these must match.
    pub headers: Vec<RequiredHeader>,
}

impl Keyring {
    /// Every value in here, for [`Redactor`].
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let headers = self.headers.iter().flat_map(|header| &header.values);
        self.signing
            .iter()
            .chain(&self.path_tokens)
            .chain(headers)
            .map(|key| &key.secret)
    }

    /// The path token that was presented, if it is one of ours. Looks at all of them.
    pub fn matching_token(&self, presented: &TokenDigest) -> Option<&SecretLabel> {
        let ours = |key: &&Key| {
            same(
                TokenDigest::of(key.secret.expose()).0.as_bytes(),
                presented.0.as_bytes(),
            )
        };
        self.path_tokens.iter().fold(None, |found, key| {
            if ours(&key) {
                found.or(Some(&key.label))
            } else {
                found
            }
        })
    }
}

/// SHA-256 of a path token, hex. What is stored instead of the token itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDigest(pub String);

impl TokenDigest {
    /// The digest of a token.
    pub fn of(token: &str) -> TokenDigest {
        TokenDigest(data_encoding::HEXLOWER.encode(&Sha256::digest(token.as_bytes())))
    }
}

/// Whether two byte strings are equal, in time that depends only on their lengths: compares
/// their MACs under one key, by the MAC's own constant-time comparison.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    let mac = |bytes: &[u8]| {
        Hmac::<Sha256>::new_from_slice(b"compare")
            .expect("HMAC takes a key of any length")
            .chain_update(bytes)
    };
    mac(a).verify_slice(&mac(b).finalize().into_bytes()).is_ok()
}

/// Replaces configured secrets wherever they would leave the process inside a text of others (a
/// payload that echoes the webhook URL, an error that quotes a header).
///
/// A secret is found as it is, in upper or lower case, with any of its characters written as a JSON
/// or percent escape, and in base64, alone or within a longer text.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    secrets: Vec<Secret>,
    /// Spellings that are searched for byte by byte: JSON's own, and base64. The longest first,
    /// since one may be a part of another.
    needles: Vec<Secret>,
}

impl Redactor {
    /// Shorter values are not replaced: they would hit innocent text.
    const LENGTH_MIN: usize = 8;
    const REPLACEMENT: &str = "[secret]";

    /// Hides these secrets.
    pub fn new<'a>(secrets: impl Iterator<Item = &'a Secret>) -> Redactor {
        let mut secrets: Vec<Secret> = secrets
            .filter(|secret| secret.expose().len() >= Redactor::LENGTH_MIN)
            .cloned()
            .collect();
        secrets.sort_by(|a, b| a.expose().cmp(b.expose()));
        secrets.dedup();
        let mut needles: Vec<Secret> = secrets
            .iter()
            .flat_map(|secret| json_spellings(secret).chain(base64_spellings(secret)))
            .collect();
        needles.sort_by(|a, b| a.expose().cmp(b.expose()));
        needles.dedup();
        let longest_first = |secret: &Secret| std::cmp::Reverse(secret.expose().len());
        secrets.sort_by_key(longest_first);
        needles.sort_by_key(longest_first);
        Redactor { secrets, needles }
    }

    /// The text with every secret replaced.
    pub fn redact(&self, text: String) -> String {
        self.redacted(&text).unwrap_or(text)
    }

    /// The text with every secret replaced; `None` if there is none in it.
    pub fn redacted(&self, text: &str) -> Option<String> {
        let mut redacted: Option<String> = None;
        for needle in &self.needles {
            let text = redacted.as_deref().unwrap_or(text);
            if memmem::find(text.as_bytes(), needle.expose().as_bytes()).is_some() {
                redacted = Some(text.replace(needle.expose(), Redactor::REPLACEMENT));
            }
        }
        for secret in &self.secrets {
            let text = redacted.as_deref().unwrap_or(text);
            let found = occurrences(text.as_bytes(), secret.expose().as_bytes());
            if !found.is_empty() {
                redacted = Some(replaced(text, &found));
            }
        }
        redacted
    }
}

/// A secret as it is, and as JSON writes it.
fn json_spellings(secret: &Secret) -> impl Iterator<Item = Secret> {
    let quoted = Zeroizing::new(serde_json::Value::from(secret.expose()).to_string());
    let escaped = Zeroizing::new(quoted[1..quoted.len() - 1].to_owned());
    let solidus = Zeroizing::new(escaped.replace('/', "\\/"));
    [secret.0.clone(), escaped, solidus].into_iter().map(Secret)
}

/// The base64 of a secret within a longer text, whatever stands before and after it: the
/// characters that depend on the secret alone, for each of the three ways it can be aligned.
fn base64_spellings(secret: &Secret) -> impl Iterator<Item = Secret> {
    let spell = |before: usize| {
        let mut bytes = Zeroizing::new(vec![0; before]);
        bytes.extend_from_slice(secret.expose().as_bytes());
        // The first characters hold bits of what stands before, the last ones of what follows.
        let begin = (before * 8).div_ceil(6);
        let end = bytes.len() * 8 / 6;
        let standard = Zeroizing::new(data_encoding::BASE64_NOPAD.encode(&bytes));
        let core = Zeroizing::new(standard[begin..end].to_owned());
        let url = Zeroizing::new(core.replace('+', "-").replace('/', "_"));
        [core, url].map(Secret)
    };
    (0..3).flat_map(spell).collect::<Vec<_>>().into_iter()
}

/// Where a secret stands in a text: in any case, with any of its characters escaped.
fn occurrences(text: &[u8], secret: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    let Some(first) = secret.first() else {
        return found;
    };
    let (lower, upper) = (first.to_ascii_lowercase(), first.to_ascii_uppercase());
    let plain = memchr::memchr2_iter(lower, upper, text);
    let escaped = memchr::memchr2_iter(b'\\', b'%', text);
    for start in plain.chain(escaped) {
        if let Some(end) = end_of_match(text, start, secret) {
            found.push(start..end);
        }
    }
    found.sort_by_key(|range| range.start);
    found.dedup_by(|later, earlier| later.start < earlier.end);
    found
}

/// The end of the secret, if it begins at `start`.
fn end_of_match(text: &[u8], start: usize, secret: &[u8]) -> Option<usize> {
    let (mut at, mut matched) = (start, 0);
    while matched < secret.len() {
        let (bytes, length, next) = unescaped(text, at)?;
        let wanted = secret.get(matched..matched + length)?;
        if !wanted.eq_ignore_ascii_case(&bytes[..length]) {
            return None;
        }
        (at, matched) = (next, matched + length);
    }
    Some(at)
}

/// The next character of a text with its escape undone: its bytes, how many there are, and where
/// the text goes on. Several backslashes are one: JSON may stand inside a string of JSON.
fn unescaped(text: &[u8], at: usize) -> Option<([u8; 4], usize, usize)> {
    let one = |byte: u8, next: usize| Some(([byte, 0, 0, 0], 1, next));
    let hex = |from: usize, digits: usize| {
        let digits = std::str::from_utf8(text.get(from..from + digits)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    match *text.get(at)? {
        b'%' => match hex(at + 1, 2).and_then(|code| u8::try_from(code).ok()) {
            Some(byte) => one(byte, at + 3),
            None => one(b'%', at + 1),
        },
        b'\\' => {
            let after = text[at..].iter().take_while(|byte| **byte == b'\\').count() + at;
            match *text.get(after)? {
                b'u' => {
                    let code = char::from_u32(hex(after + 1, 4)?)?;
                    let mut bytes = [0; 4];
                    let length = code.encode_utf8(&mut bytes).len();
                    Some((bytes, length, after + 5))
                }
                byte => one(byte, after + 1),
            }
        }
        byte => one(byte, at + 1),
    }
}

/// The text with these parts replaced. A part begins and ends at whole characters, being one.
fn replaced(text: &str, parts: &[std::ops::Range<usize>]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for part in parts {
        out.push_str(text.get(from..part.start).unwrap_or_default());
        out.push_str(Redactor::REPLACEMENT);
        from = part.end;
    }
    out.push_str(text.get(from..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_cannot_be_printed() {
        let secret = Secret::new(" hunter2-hunter2\n");
        assert_eq!(secret.expose(), "hunter2-hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn a_label_is_shown_as_wide_as_it_is_asked_for() {
        assert_eq!(
            format!("{:<8}|", SecretLabel("api_key".to_owned())),
            "api_key |"
        );
    }

    #[test]
    fn comparison_is_of_bytes() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"abcd") && !same(b"", b"a"));
    }

    #[test]
    fn redaction_knows_how_json_writes_a_secret() {
        let redactor = Redactor::new([Secret::new("pa\"ss/wo\\rd")].iter());
        for text in [r#"pa"ss/wo\rd"#, r#"pa\"ss/wo\\rd"#, r#"pa\"ss\/wo\\rd"#] {
            assert_eq!(redactor.redact(format!("<{text}>")), "<[secret]>", "{text}");
        }
    }

    #[test]
    fn redaction_knows_every_spelling_that_json_has() {
        let redactor = Redactor::new([Secret::new("pa55-Wörd/x")].iter());
        for text in [
            "pa55-Wörd/x",
            "PA55-WöRD/X",
            r"\u0070a55-W\u00f6rd/x",
            r"\u0070\u0061\u0035\u0035\u002D\u0057\u00F6\u0072\u0064\u002f\u0078",
            r"pa55-Wörd\/x",
            r"\\u0070a55-W\\u00f6rd\\/x",
            "pa55-W%C3%B6rd%2Fx",
            "%70a55-W%c3%b6rd%2fx",
        ] {
            assert_eq!(redactor.redact(format!("<{text}>")), "<[secret]>", "{text}");
        }
        for innocent in [
            "pa55-Word/x",
            "pa55",
            r"\u0070a55-W",
            "%70",
            r"\",
            "%",
            r"\u00",
        ] {
            assert_eq!(redactor.redacted(innocent), None, "{innocent}");
        }
    }

    #[test]
    fn redaction_finds_a_secret_within_base64() {
        let secret = "sk-0123456789abcdef?>~";
        let redactor = Redactor::new([Secret::new(secret)].iter());
        for before in ["", "u", "us", "user:", "user:a"] {
            for after in ["", "x", "xy", "xyz"] {
                let whole = format!("{before}{secret}{after}");
                for encoding in [data_encoding::BASE64, data_encoding::BASE64URL_NOPAD] {
                    let text = encoding.encode(whole.as_bytes());
                    let redacted = redactor.redact(text.clone());
                    assert!(redacted.contains("[secret]"), "{whole}: {text}");
                    assert!(redacted.len() < text.len(), "{whole}: {redacted}");
                }
            }
        }
    }

    #[test]
    fn redaction_blots_out_every_occurrence() {
        let redactor = Redactor::new([Secret::new("topsecret1"), Secret::new("abc")].iter());
        assert_eq!(
            redactor.redact("x topsecret1 abc topsecret1".to_owned()),
            "x [secret] abc [secret]"
        );
    }
}
