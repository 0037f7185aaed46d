//! One configured account at a provider.

use std::fmt;
use std::time::Duration;

use crate::config::cron::Schedule;
use crate::limits;
use crate::model::schedule::{Confirm, Policy};
use crate::model::{Kind, SourceName};
use crate::providers::{Provider, Settings};
use crate::secret::{Key, Keyring, Redactor, Secret};

/// Everything settled knows about an account before it has spoken to it.
#[derive(Clone, PartialEq)]
pub struct SourceConfig {
    /// The name the person gave to it.
    pub name: SourceName,
    /// How its provider speaks.
    pub provider: &'static dyn Provider,
    /// Where the provider's API is, without a slash at the end.
    pub base_url: String,
    /// The settings that the provider reads.
    pub settings: Settings,
    /// The key to ask with; without one, webhooks are recorded and nothing is asked.
    /// An empty one stands for a server that needs no key.
    pub api_key: Option<Secret>,
    /// The secrets that deliveries are verified against.
    pub keyring: Keyring,
    /// When polls may start.
    pub poll: Schedule,
    /// When lists are read.
    pub sweep: Schedule,
    /// Questions per second.
    pub rate: f64,
    /// Questions at once.
    pub concurrency: usize,
    /// The configured parts of the policy for settling and polling.
    pub overrides: PolicyOverrides,
}

/// The parts of a [`Policy`] that the configuration may set; what is not set stays the provider's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyOverrides {
    /// See [`Policy::confirm`].
    pub confirm: Option<Confirm>,
    /// See [`Policy::confirm_timeout`].
    pub confirm_timeout: Option<Duration>,
    /// See [`Policy::grace`].
    pub grace: Option<Duration>,
    /// See [`Policy::deadline`].
    pub deadline: Option<Duration>,
    /// See [`Policy::give_up`].
    pub give_up: Option<Duration>,
    /// See [`Policy::first_poll`].
    pub first_poll: Option<Duration>,
    /// See [`Policy::max_interval`].
    pub max_interval: Option<Duration>,
}

impl PolicyOverrides {
    fn over(&self, policy: &Policy) -> Policy {
        Policy {
            confirm: self.confirm.unwrap_or(policy.confirm),
            confirm_timeout: self.confirm_timeout.unwrap_or(policy.confirm_timeout),
            grace: self.grace.unwrap_or(policy.grace),
            deadline: self.deadline.unwrap_or(policy.deadline),
            give_up: self.give_up.unwrap_or(policy.give_up),
            first_poll: self.first_poll.unwrap_or(policy.first_poll),
            max_interval: self.max_interval.unwrap_or(policy.max_interval),
            ..policy.clone()
        }
    }
}

impl SourceConfig {
    /// A source with the defaults of its provider and no secrets.
    ///
    /// # Panics
    /// Never: the default schedules are valid, which a test shows.
    pub fn new(name: SourceName, provider: &'static dyn Provider) -> SourceConfig {
        let schedule = |text| Schedule::parse(text).expect("the default schedules are valid");
        SourceConfig {
            name,
            provider,
            base_url: provider.base_url().to_owned(),
            settings: Settings {
                api: provider.apis().first().map(|api| (*api).to_owned()),
            },
            api_key: None,
            keyring: Keyring::default(),
            poll: schedule(Schedule::POLL),
            sweep: schedule(Schedule::SWEEP),
            rate: limits::RATE_PER_SECOND,
            concurrency: limits::CONCURRENCY,
            overrides: PolicyOverrides::default(),
        }
    }

    /// With this API key and these secrets beside what is there. Where the provider signs with the
    /// API key, that comes first among the signing secrets.
    #[must_use]
    pub fn with_keys(
        mut self,
        api_key: Option<Key>,
        webhook_secrets: impl IntoIterator<Item = Key>,
    ) -> SourceConfig {
        self.api_key = api_key.as_ref().map(|key| key.secret.clone());
        // An empty key stands for a server without keys: anybody can sign with it.
        let signs = self.provider.signs_with_api_key();
        let signing = api_key.filter(|key| signs && !key.secret.expose().is_empty());
        self.keyring.signing.extend(signing);
        self.keyring.signing.extend(webhook_secrets);
        self
    }

    /// How runs of this kind are settled and asked about: the provider's way, with the
    /// configuration's values laid over it.
    pub fn policy(&self, kind: Option<Kind>) -> Policy {
        let can_poll = self.api_key.is_some();
        // Half as long again as lists are apart, so that one late list does not set off a question
        // for every run on it.
        let listed_for = if can_poll {
            self.sweep.largest_gap().mul_f64(1.5)
        } else {
            Duration::ZERO
        };
        Policy {
            can_poll,
            listed_for,
            ..self.overrides.over(&self.provider.policy(kind))
        }
    }

    /// Blots out all of this source's secrets.
    pub fn redactor(&self) -> Redactor {
        Redactor::new(self.api_key.iter().chain(self.keyring.secrets()))
    }

    /// Whether there is anything to verify a delivery against.
    pub fn can_verify(&self) -> bool {
        let Keyring {
            signing,
            path_tokens,
            headers,
        } = &self.keyring;
        !(signing.is_empty() && path_tokens.is_empty() && headers.is_empty())
    }
}

impl fmt::Debug for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceConfig")
            .field("name", &self.name.as_str())
            .field("provider", &self.provider.name())
            .field("base_url", &self.base_url)
            .field("settings", &self.settings)
            .field("api_key", &self.api_key)
            .field("keyring", &self.keyring)
            .field("poll", &self.poll)
            .field("sweep", &self.sweep)
            .field("rate", &self.rate)
            .field("concurrency", &self.concurrency)
            .field("overrides", &self.overrides)
            .finish()
    }
}
