//! HMAC-SHA-256 over exact bytes, with several secrets, in constant time, naming the one that
//! matched. What the bytes are, and what a match is worth, is for each provider to say.

use data_encoding::HEXLOWER_PERMISSIVE;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::secret::{Key, SecretLabel};

/// A signature as it came: 32 bytes written as 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature(Vec<u8>);

impl Signature {
    /// Reads 64 lower-case hex digits; anything else is no signature.
    pub fn from_hex(text: &str) -> Option<Signature> {
        let well_formed = text.len() == 64 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
        let bytes = well_formed.then(|| HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok())??;
        Some(Signature(bytes))
    }

    /// The label of the first key under which this signs the concatenation of `parts`. Every key is
    /// tried, so the time taken does not tell which one matched.
    pub fn signed_by<'a>(&self, keys: &'a [Key], parts: &[&[u8]]) -> Option<&'a SecretLabel> {
        keys.iter().fold(None, |found, key| {
            let matches = mac(key.secret.expose().as_bytes(), parts)
                .verify_slice(&self.0)
                .is_ok();
            if matches {
                found.or(Some(&key.label))
            } else {
                found
            }
        })
    }
}

/// The lower-case hex HMAC-SHA-256 of the concatenation of `parts`: what a sender would put in its
/// header. For the demo's clouds and the tests.
pub fn sign(secret: &str, parts: &[&[u8]]) -> String {
    data_encoding::HEXLOWER.encode(&mac(secret.as_bytes(), parts).finalize().into_bytes())
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    parts.iter().fold(mac, Mac::chain_update)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn keys(values: &[&str]) -> Vec<Key> {
        values
            .iter()
            .map(|value| Key {
                label: SecretLabel((*value).to_owned()),
                secret: Secret::new(value),
            })
            .collect()
    }

    #[test]
    fn the_matching_key_is_named() {
        let signature = Signature::from_hex(&sign("second", &[b"12", b".", b"body"])).unwrap();
        let keys = keys(&["first", "second", "third"]);
        assert_eq!(
            signature
                .signed_by(&keys, &[b"12.body"])
                .map(|label| label.0.as_str()),
            Some("second")
        );
        assert_eq!(signature.signed_by(&keys, &[b"12.bodY"]), None);
        assert_eq!(signature.signed_by(&keys[..1], &[b"12.body"]), None);
    }

    #[test]
    fn only_64_lower_case_hex_digits_are_a_signature() {
        let good = sign("k", &[b""]);
        assert!(Signature::from_hex(&good).is_some());
        for bad in [
            &good[1..],
            &good.to_uppercase(),
            &format!("sha256={good}"),
            &format!(" {}", &good[1..]),
            "",
            &"zz".repeat(32),
        ] {
            assert!(Signature::from_hex(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn rfc_4231_case_2() {
        assert_eq!(
            sign("Jefe", &[b"what do ya want for nothing?"]),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
