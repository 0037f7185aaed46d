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

/// Blots out configured secrets wherever they would leave the process inside someone else's text
/// (a payload that echoes the webhook URL, an error that quotes a header).
#[derive(Clone, Debug, Default)]
pub struct Redactor(Vec<Secret>);

impl Redactor {
    /// Shorter values are not blotted out: they would hit innocent text.
    const LENGTH_MIN: usize = 8;

    /// Hides these, as they are and as JSON may write them.
    pub fn new<'a>(secrets: impl Iterator<Item = &'a Secret>) -> Redactor {
        let long = secrets.filter(|secret| secret.expose().len() >= Redactor::LENGTH_MIN);
        let mut spellings: Vec<Secret> = long.flat_map(Redactor::spellings).collect();
        spellings.sort_by(|a, b| a.expose().cmp(b.expose()));
        spellings.dedup();
        // The longest first: one may be a part of another.
        spellings.sort_by_key(|spelling| std::cmp::Reverse(spelling.expose().len()));
        Redactor(spellings)
    }

    fn spellings(secret: &Secret) -> impl Iterator<Item = Secret> {
        let quoted = Zeroizing::new(serde_json::Value::from(secret.expose()).to_string());
        let escaped = Zeroizing::new(quoted[1..quoted.len() - 1].to_owned());
        let solidus = Zeroizing::new(escaped.replace('/', "\\/"));
        let other = [escaped, solidus]
            .into_iter()
            .filter(|spelling| spelling.as_str() != secret.expose());
        std::iter::once(secret.clone()).chain(other.map(Secret).collect::<Vec<_>>())
    }

    /// The text with every secret replaced.
    pub fn redact(&self, text: String) -> String {
        self.redacted(&text).unwrap_or(text)
    }

    /// The text with every secret replaced; `None` if there is none in it.
    pub fn redacted(&self, text: &str) -> Option<String> {
        self.0
            .iter()
            .fold(None, |redacted: Option<String>, secret| {
                let text = redacted.as_deref().unwrap_or(text);
                let found = memmem::find(text.as_bytes(), secret.expose().as_bytes()).is_some();
                if found {
                    Some(text.replace(secret.expose(), "[secret]"))
                } else {
                    redacted
                }
            })
    }
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
    fn redaction_blots_out_every_occurrence() {
        let redactor = Redactor::new([Secret::new("topsecret1"), Secret::new("abc")].iter());
        assert_eq!(
            redactor.redact("x topsecret1 abc topsecret1".to_owned()),
            "x [secret] abc [secret]"
        );
    }
}
