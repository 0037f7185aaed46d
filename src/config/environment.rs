//! The sources that environment variables alone can make, without a file.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::env::Env;
use super::source::SourceConfig;
use super::{ConfigError, Problem, secrets, values};
use crate::model::SourceName;
use crate::providers::Provider;
use crate::secret::{Key, Secret, SecretLabel};

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
    let api_key = key(names.api_key).map(secrets::none_is_no_key);
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
    let set = names
        .base_urls
        .iter()
        .find_map(|name| Some((*name, env.get(name)?)));
    if let Some((name, url)) = set {
        match values::base_url(&url) {
            Ok(url) => values::without_version(&url).clone_into(&mut source.base_url),
            // The default would send the key of somebody's own server to the vendor.
            Err(why) => problems.push(Problem::in_environment(name, why)),
        }
    }
    source.keyring.path_tokens.extend(path_token);
    Some(source.with_keys(api_key, webhook_secret))
}
