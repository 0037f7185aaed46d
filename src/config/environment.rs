//! The process environment, as a function that is passed in, and the sources it alone can make.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::source::SourceConfig;
use super::{ConfigError, Problem, secrets};
use crate::model::SourceName;
use crate::providers::Provider;
use crate::secret::{Key, Secret, SecretLabel};

/// What systemd sets for the service, by its unit.
const SERVICE: [(&str, &str); 3] = [
    ("STATE_DIRECTORY", "/var/lib/settled"),
    ("RUNTIME_DIRECTORY", "/run/settled"),
    ("CREDENTIALS_DIRECTORY", "/etc/settled/credentials"),
];

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Looks up environment variables. Tests pass a list; so nothing else in here touches the process.
pub struct Env(Box<Lookup>);

impl Env {
    /// The environment of this process.
    pub fn of_process() -> Env {
        Env(Box::new(|name| std::env::var(name).ok()))
    }

    /// These variables and no others.
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Env {
        let variables =
            BTreeMap::from(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Env(Box::new(move |name| variables.get(name).cloned()))
    }

    /// This environment, with what the unit of the system's service would set beside it: for looking
    /// by hand at how the service is configured. `file` is the unit's `EnvironmentFile`.
    #[must_use]
    pub fn of_service(self, file: &Path) -> Env {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = |line: &str| {
            let (name, value) = line.trim().split_once('=')?;
            let quoted = ['"', '\'']
                .iter()
                .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
            Some((name.to_owned(), quoted.unwrap_or(value).to_owned()))
                .filter(|_| !name.starts_with(['#', ';']))
        };
        let listed: BTreeMap<String, String> = text.lines().filter_map(line).collect();
        Env(Box::new(move |name| {
            let set = || {
                SERVICE
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
            };
            (self.0)(name)
                .or_else(|| listed.get(name).cloned())
                .or_else(set)
        }))
    }

    /// A variable. One that is empty is as good as none.
    pub fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.trim().is_empty())
    }

    /// A variable that holds an absolute path, or several with colons between them: the first.
    pub(super) fn folder(&self, name: &str) -> Option<PathBuf> {
        let value = self.get(name)?;
        let first = PathBuf::from(value.split(':').next()?);
        first.is_absolute().then_some(first)
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Env(…)")
    }
}

/// A source, named after its provider, for each provider one of whose variables is set.
pub(super) fn sources(
    registry: &[&'static dyn Provider],
    env: &Env,
) -> Result<BTreeMap<SourceName, Arc<SourceConfig>>, ConfigError> {
    let mut problems = Vec::new();
    let mut sources = BTreeMap::new();
    for provider in registry {
        // A provider whose name is no source name is caught by the test of the registry.
        let Ok(name) = SourceName::new(provider.name()) else {
            continue;
        };
        if let Some(source) = source(name.clone(), *provider, env, &mut problems) {
            sources.insert(name, Arc::new(source));
        }
    }
    if problems.is_empty() {
        Ok(sources)
    } else {
        Err(ConfigError::Invalid(problems))
    }
}

fn source(
    name: SourceName,
    provider: &'static dyn Provider,
    env: &Env,
    problems: &mut Vec<Problem>,
) -> Option<SourceConfig> {
    let names = provider.environment();
    let mut key = |name: &str| {
        let key = Key {
            label: SecretLabel(name.to_owned()),
            secret: Secret::new(&env.get(name)?),
        };
        if !key
            .secret
            .expose()
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte))
        {
            problems.push(Problem::in_environment(
                name,
                "the secret has to be one line of ASCII",
            ));
        }
        Some(key)
    };
    let api_key = key(names.api_key);
    let webhook_secret = names.webhook_secret.and_then(&mut key);
    let path_token = names.path_token.and_then(&mut key);
    if let Some(token) = &path_token
        && let Err(why) = secrets::check_path_token(token.secret.expose())
    {
        problems.push(Problem::in_environment(&token.label.0, why));
    }
    if api_key.is_none() && webhook_secret.is_none() && path_token.is_none() {
        return None;
    }
    let mut source = SourceConfig::new(name, provider);
    source.keyring.path_tokens.extend(path_token);
    Some(source.with_keys(api_key, webhook_secret))
}
