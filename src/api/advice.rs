//! The notes of a source for people: what is wrong, and which secrets may be removed. Pure.

use std::time::Duration;

use super::types::SecretView;
use crate::config::Source;
use crate::config::SourceConfig;
use crate::ledger::SecretUse;
use crate::model::At;
use crate::polling::rate_limit::Breaker;
use crate::secret::Key;

/// A larger difference of clocks is a note: signatures with a timestamp are valid for 300 s.
const SKEW_MS_MAX: i64 = 30_000;

/// How long webhooks of a run may come after the run can no longer be alive.
const LATE: Duration = Duration::from_secs(7 * 86_400);

/// The notes of a source, one sentence each.
pub fn notes(
    source: &SourceConfig,
    unaccounted: i64,
    breaker: Option<&Breaker>,
    skew_ms: Option<i64>,
    secrets: &[SecretView],
) -> Vec<String> {
    let mut notes = Vec::new();
    if unaccounted > 0 {
        notes.push(format!(
            "the provider has counted {unaccounted} runs that settled does not know"
        ));
    }
    if source.api_key.is_none() {
        notes.push("no api_key: webhooks are recorded, nothing can be polled".to_owned());
    }
    if !source.can_verify() {
        notes.push("nothing to verify deliveries against: all of them are hints".to_owned());
    }
    if let Some(breaker) = breaker {
        notes.push(format!("polling has stopped: {}", breaker.why));
    }
    if let Some(skew) = skew_ms.filter(|skew| skew.abs() > SKEW_MS_MAX) {
        notes.push(format!(
            "the provider's clock and ours differ by {} s",
            skew / 1000
        ));
    }
    notes.extend(secrets.iter().filter(|secret| secret.can_go).map(|secret| {
        format!(
            "{} has verified nothing for longer than a run lives: it can be removed",
            secret.label
        )
    }));
    notes
}

/// The configured secrets and their use. An old one may be removed if another of its kind has
/// verified deliveries since, and it has verified none for as long as a run started under it may
/// live, plus [`LATE`].
pub fn secrets(member: &Source, uses: &[SecretUse], now: At) -> Vec<SecretView> {
    let Source {
        id, config: source, ..
    } = member;
    let lifetime = source.policy(None).give_up + LATE;
    let used = |key: &Key| {
        uses.iter()
            .find(|used| used.source == *id && used.label == key.label.0)
    };
    let group = |keys: &[Key]| -> Vec<SecretView> {
        let newest = keys.iter().filter_map(used).map(|used| used.last_at).max();
        let replaced =
            |used: &SecretUse| newest > Some(used.last_at) && now.since(used.last_at) > lifetime;
        keys.iter()
            .map(|key| SecretView::of(&key.label, used(key), used(key).is_some_and(replaced)))
            .collect()
    };
    let keyring = &source.keyring;
    let headers = keyring
        .headers
        .iter()
        .flat_map(|header| group(&header.values));
    group(&keyring.signing)
        .into_iter()
        .chain(group(&keyring.path_tokens))
        .chain(headers)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::SourceRow;
    use crate::model::SourceName;
    use crate::providers::REGISTRY;
    use crate::secret::{Secret, SecretLabel};

    const NOW: At = At(10_000_000_000);

    fn source() -> SourceConfig {
        let provider = REGISTRY
            .iter()
            .find(|provider| provider.environment().path_token.is_none())
            .unwrap();
        SourceConfig::new(SourceName::new("prod").unwrap(), *provider)
    }

    fn key(label: &str) -> Key {
        Key {
            label: SecretLabel(label.to_owned()),
            secret: Secret::new("a secret of sixteen bytes"),
        }
    }

    fn used(source: i64, label: &str, last_at: At) -> SecretUse {
        SecretUse {
            source,
            label: label.to_owned(),
            last_at,
            uses: 7,
        }
    }

    #[test]
    fn a_source_without_trouble_has_no_notes() {
        let source = source().with_keys(Some(key("api_key")), []);
        for skew_ms in [None, Some(30_000), Some(-30_000)] {
            assert_eq!(notes(&source, 0, None, skew_ms, &[]), [""; 0]);
        }
    }

    #[test]
    fn each_trouble_has_a_note() {
        let bare = notes(&source(), 0, None, None, &[]);
        assert!(
            bare.len() == 2
                && bare[0].starts_with("no api_key")
                && bare[1].starts_with("nothing to verify"),
            "{bare:?}"
        );
        let source = source().with_keys(Some(key("api_key")), []);
        let breaker = Breaker {
            since: NOW,
            why: "401".to_owned(),
            next_probe: NOW,
            probes: 0,
        };
        let old = SecretView::of(&SecretLabel("old".to_owned()), None, true);
        assert_eq!(
            notes(&source, 1, Some(&breaker), Some(-30_001), &[old]),
            [
                "the provider has counted 1 runs that settled does not know",
                "polling has stopped: 401",
                "the provider's clock and ours differ by -30 s",
                "old has verified nothing for longer than a run lives: it can be removed",
            ]
        );
    }

    /// Which of the secrets `old`, `new` and `unused` may be removed.
    fn can_go(uses: &[SecretUse]) -> Vec<String> {
        let source = source().with_keys(None, ["old", "new", "unused"].map(key));
        let member = Source::new(
            SourceRow {
                id: 1,
                since: At(0),
            },
            Arc::new(source),
        );
        let secrets = secrets(&member, uses, NOW);
        assert_eq!(secrets.len(), 3);
        secrets
            .into_iter()
            .filter(|secret| secret.can_go)
            .map(|secret| secret.label)
            .collect()
    }

    #[test]
    fn an_old_secret_can_go_once_its_last_run_must_be_over() {
        let lifetime = source().policy(None).give_up + Duration::from_secs(604_800);
        let before = |span: Duration| At(NOW.0 - i64::try_from(span.as_millis()).unwrap());
        let millisecond = Duration::from_millis(1);
        let (just, long) = (before(lifetime), before(lifetime + millisecond));
        assert_eq!(
            can_go(&[used(1, "old", long), used(1, "new", NOW)]),
            ["old"]
        );
        assert_eq!(
            can_go(&[used(1, "old", just), used(1, "new", NOW)]),
            [""; 0],
            "a late webhook may still come"
        );
        assert_eq!(
            can_go(&[used(1, "old", long)]),
            [""; 0],
            "none has taken its place"
        );
        assert_eq!(
            can_go(&[used(1, "old", long), used(1, "new", long)]),
            [""; 0],
            "neither is older"
        );
        assert_eq!(
            can_go(&[used(1, "old", long), used(2, "new", NOW)]),
            [""; 0],
            "that was at another source"
        );
        assert_eq!(
            can_go(&[used(2, "old", long), used(1, "new", NOW)]),
            [""; 0],
            "so was that"
        );
    }
}
