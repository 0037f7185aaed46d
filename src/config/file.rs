//! From a file to a [`Config`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use super::document::{self, Document, Section, suggestion};
use super::{
    Config, ConfigError, Env, Hooks, NO_STORE, Origin, Page, PolicyOverrides, Retention, Sockets,
    SourceConfig, WebOrigin, default_sockets, default_store, reachable, secrets, socket_trouble,
    values, verifier, warnings,
};
use crate::config::cron::Schedule;
use crate::limits;
use crate::model::schedule::{Confirm, Policy};
use crate::model::{Kind, SourceName};
use crate::providers::Provider;

const ROOT: &[&str] = &["hooks", "store", "sockets", "page", "sources", "retention"];
const HOOKS: &[&str] = &[
    "listen",
    "body_limit",
    "unverified_rows",
    "unverified_bytes",
];
const STORE: &[&str] = &["path"];
const SOCKETS: &[&str] = &["feed", "control", "feed_group", "control_group"];
const PAGE: &[&str] = &["origin", "read_only_origins"];
const RETENTION: &[&str] = &["deliveries", "feed", "feed_bytes", "store_bytes"];
const SOURCE: &[&str] = &[
    "provider",
    "base_url",
    "api",
    "api_key",
    "webhook_secrets",
    "path_token",
    "path_tokens",
    "require_headers",
    "poll",
    "sweep",
    "first_poll",
    "max_interval",
    "grace",
    "confirm",
    "confirm_timeout",
    "deadline",
    "give_up",
    "rate",
    "concurrency",
];

/// Every key there is, for the test that the example shows them all.
#[cfg(test)]
pub(super) fn every_key() -> impl Iterator<Item = &'static str> {
    [HOOKS, STORE, SOCKETS, PAGE, RETENTION, SOURCE]
        .into_iter()
        .flatten()
        .copied()
}

/// Reads a whole file, with its secrets.
pub(super) fn read(
    registry: &[&'static dyn Provider],
    file: &Path,
    text: &str,
    env: &Env,
) -> Result<Config, ConfigError> {
    let doc = Document::new(file, text);
    let table = doc.parse()?;
    let origin = Origin::File(file.to_owned());
    let found = {
        let root = doc.root(&table, ROOT);
        let store_path = store(&root, env);
        (
            hooks(&root),
            sockets(&root, env, &store_path),
            page(&root),
            sources(&root, registry, env),
            retention(&root),
            store_path,
        )
    };
    let (hooks, sockets, page, sources, retention, store_path) = found;
    let mut told = doc.finish()?;
    told.extend(warnings(&hooks, &sources, registry, &origin));
    Ok(Config {
        hooks,
        store_path,
        sockets,
        page,
        sources,
        retention,
        origin,
        warnings: told,
    })
}

/// Reads only where the sockets are; sources and secrets are none of a client's business.
pub(super) fn client_sockets(file: &Path, text: &str, env: &Env) -> Result<Sockets, ConfigError> {
    let doc = Document::new(file, text);
    let table: DeTable<'_> = doc.parse()?;
    let sockets = {
        let root = doc.root(&table, ROOT);
        let store = root
            .get("store")
            .is_some()
            .then(|| store(&root, env))
            .or_else(|| default_store(env));
        let configured = root.says("sockets") || root.says("store");
        let found = sockets(&root, env, &store.unwrap_or_default());
        if configured {
            found
        } else {
            reachable(found, env)
        }
    };
    doc.finish()?;
    Ok(sockets)
}

fn hooks(root: &Section<'_>) -> Hooks {
    let section = root.section("hooks", HOOKS);
    let default = Hooks::default();
    let size = |name, least, most| section.parse(name, "\"32MiB\"", values::bytes(least, most));
    let body_limit = size(
        "body_limit",
        limits::HOOK_BODY_BYTES_MIN as u64,
        limits::HOOK_BODY_BYTES_MAX as u64,
    );
    let rows = section
        .get("unverified_rows")
        .and_then(|entry| entry.number(1, u64::from(u32::MAX)));
    let hooks = Hooks {
        listen: section
            .parse("listen", "\"127.0.0.1:8675\"", values::listen)
            .unwrap_or(default.listen),
        body_limit: body_limit
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or(default.body_limit),
        unverified_rows: rows.unwrap_or(default.unverified_rows),
        unverified_bytes: size("unverified_bytes", 0, u64::MAX / 2)
            .unwrap_or(default.unverified_bytes),
    };
    if hooks.unverified_bytes < hooks.body_limit as u64 {
        let text = "one delivery may be larger than this (see body_limit); write a larger size here or a smaller there";
        section.problem("unverified_bytes", text);
    }
    hooks
}

fn store(root: &Section<'_>, env: &Env) -> PathBuf {
    let section = root.section("store", STORE);
    let configured = section.get("path").is_some();
    let path = section.parse("path", "\"/var/lib/settled/settled.db\"", |text| {
        document::path(section.doc(), text)
    });
    path.or_else(|| default_store(env)).unwrap_or_else(|| {
        if !configured {
            section.doc().problem(None, "store.path", NO_STORE);
        }
        PathBuf::new()
    })
}

fn sockets(root: &Section<'_>, env: &Env, store: &Path) -> Sockets {
    let section = root.section("sockets", SOCKETS);
    let default = default_sockets(env, Some(store));
    let path =
        |name, example| section.parse(name, example, |text| document::path(section.doc(), text));
    let group = |name| {
        section.parse(name, "\"settled-feed\"", |text| match text {
            "" => Err("write the name of a group, or leave this out"),
            name => Ok(name.to_owned()),
        })
    };
    let sockets = Sockets {
        feed: path("feed", "\"/run/settled/feed.sock\"").unwrap_or(default.feed),
        control: path("control", "\"/run/settled/control.sock\"").unwrap_or(default.control),
        feed_group: group("feed_group"),
        control_group: group("control_group"),
    };
    for (key, text) in socket_trouble(&sockets) {
        section.problem(key, text);
    }
    sockets
}

fn page(root: &Section<'_>) -> Page {
    const EXAMPLE: &str = "\"https://runs.example.org\"";
    let section = root.section("page", PAGE);
    let read_only = section.get("read_only_origins");
    let listed = read_only.map(|entry| entry.list(&format!("write [{EXAMPLE}]")));
    Page {
        origin: section.parse("origin", EXAMPLE, WebOrigin::parse),
        read_only_origins: listed
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.parse(EXAMPLE, WebOrigin::parse))
            .collect(),
    }
}

fn retention(root: &Section<'_>) -> Retention {
    let section = root.section("retention", RETENTION);
    let default = Retention::default();
    let span = |name| {
        section.parse(
            name,
            "\"30d\"",
            values::duration_from(limits::RETENTION_MIN),
        )
    };
    let bytes =
        |name, example, least| section.parse(name, example, values::bytes(least, u64::MAX / 2));
    Retention {
        deliveries: span("deliveries").unwrap_or(default.deliveries),
        feed: span("feed").unwrap_or(default.feed),
        feed_bytes: bytes("feed_bytes", "\"8GiB\"", limits::RETENTION_FEED_BYTES_MIN)
            .unwrap_or(default.feed_bytes),
        store_bytes: bytes(
            "store_bytes",
            "\"10GiB\"",
            limits::RETENTION_STORE_BYTES_MIN,
        ),
    }
}

fn sources(
    root: &Section<'_>,
    registry: &[&'static dyn Provider],
    env: &Env,
) -> BTreeMap<SourceName, Arc<SourceConfig>> {
    let mut sources = BTreeMap::new();
    let Some(table) = root
        .get("sources")
        .and_then(|entry| entry.open_section("write [sources.NAME]"))
    else {
        return sources;
    };
    for entry in table.entries() {
        let name = SourceName::new(entry.name())
            .map_err(|error| entry.problem(error))
            .ok();
        let Some(section) = entry.section(
            &format!("write [sources.{}] and its keys below", entry.name()),
            SOURCE,
        ) else {
            continue;
        };
        let provider = provider(&section, registry);
        if let (Some(name), Some(provider)) = (name, provider) {
            sources.insert(
                name.clone(),
                Arc::new(source(&section, name, provider, env)),
            );
        }
    }
    sources
}

fn provider(
    section: &Section<'_>,
    registry: &[&'static dyn Provider],
) -> Option<&'static dyn Provider> {
    let names: Vec<&str> = registry.iter().map(|provider| provider.name()).collect();
    if section.get("provider").is_none() {
        section.problem(
            "provider",
            format!("this is missing; {}", suggestion("", &names)),
        );
        return None;
    }
    section.parse(
        "provider",
        &format!("{:?}", names.first().unwrap_or(&"")),
        |text| {
            let found = registry
                .iter()
                .copied()
                .find(|provider| provider.name() == text);
            found.ok_or_else(|| {
                format!(
                    "there is no provider {text:?}; {}",
                    suggestion(text, &names)
                )
            })
        },
    )
}

fn source(
    section: &Section<'_>,
    name: SourceName,
    provider: &'static dyn Provider,
    env: &Env,
) -> SourceConfig {
    let mut source = SourceConfig::new(name, provider);
    let url = format!("{:?}", provider.base_url());
    source.base_url = section
        .parse("base_url", &url, values::base_url)
        .unwrap_or(source.base_url);
    source.settings.api = api(section, provider).or(source.settings.api);
    source.poll = schedule(section, "poll", Schedule::POLL).unwrap_or(source.poll);
    source.sweep = schedule(section, "sweep", Schedule::SWEEP).unwrap_or(source.sweep);
    source.rate = section
        .parse("rate", "\"5/s\"", values::rate)
        .unwrap_or(source.rate);
    let concurrency = section
        .get("concurrency")
        .and_then(|entry| entry.number(1, limits::CONCURRENCY_MAX as u64));
    source.concurrency = concurrency
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(source.concurrency);
    source.overrides = overrides(section);
    check_order(section, &source);
    with_secrets(section, source, env)
}

fn api(section: &Section<'_>, provider: &dyn Provider) -> Option<String> {
    let apis = provider.apis();
    section.parse(
        "api",
        &format!("{:?}", apis.first().unwrap_or(&"")),
        |text| match apis {
            [] => Err(format!(
                "{} has one API only; remove this key",
                provider.name()
            )),
            _ if apis.contains(&text) => Ok(text.to_owned()),
            _ => Err(format!(
                "there is no {} API {text:?}; there are: {}",
                provider.name(),
                apis.join(", ")
            )),
        },
    )
}

fn schedule(section: &Section<'_>, name: &str, default: &str) -> Option<Schedule> {
    section.parse(name, &format!("{default:?}"), Schedule::parse)
}

fn overrides(section: &Section<'_>) -> PolicyOverrides {
    let from = |name, example, least| section.parse(name, example, values::duration_from(least));
    let short = limits::POLL_INTERVAL_MIN;
    PolicyOverrides {
        confirm: section.parse("confirm", "\"auto\"", |text| {
            let words: Vec<&str> = Confirm::ALL.iter().map(|confirm| confirm.word()).collect();
            Confirm::from_word(text).ok_or_else(|| {
                format!(
                    "{text:?} is no way to confirm; {}",
                    suggestion(text, &words)
                )
            })
        }),
        confirm_timeout: from("confirm_timeout", "\"60s\"", Duration::ZERO),
        grace: from("grace", "\"60s\"", Duration::ZERO),
        deadline: from("deadline", "\"24h\"", short),
        give_up: from("give_up", "\"7d\"", short),
        first_poll: from("first_poll", "\"20s\"", short),
        max_interval: from("max_interval", "\"5m\"", short),
    }
}

type Part = (&'static str, fn(&Policy) -> Duration);
const GIVE_UP: Part = ("give_up", |policy| policy.give_up);

/// Pairs of which the first must not be longer than the second, or the second would have no effect.
const ORDER: [(Part, Part); 4] = [
    (
        ("first_poll", |policy| policy.first_poll),
        ("max_interval", |policy| policy.max_interval),
    ),
    (("deadline", |policy| policy.deadline), GIVE_UP),
    (("grace", |policy| policy.grace), GIVE_UP),
    (
        ("confirm_timeout", |policy| policy.confirm_timeout),
        GIVE_UP,
    ),
];

fn check_order(section: &Section<'_>, source: &SourceConfig) {
    let kinds = || std::iter::once(None).chain(Kind::ALL.iter().copied().map(Some));
    for (short, long) in ORDER {
        let wrong = |policy: &Policy| (short.1)(policy) > (long.1)(policy);
        let found = kinds()
            .map(|kind| (kind, source.policy(kind)))
            .find(|(_, policy)| wrong(policy));
        let Some((kind, policy)) = found else {
            continue;
        };
        // If neither is configured it is the provider's mistake, which its own tests find.
        if section.get(short.0).is_some() {
            blame(section, short, "longer", long, kind, &policy);
        } else if section.get(long.0).is_some() {
            blame(section, long, "shorter", short, kind, &policy);
        }
    }
}

fn blame(
    section: &Section<'_>,
    (key, span): Part,
    word: &str,
    other: Part,
    kind: Option<Kind>,
    policy: &Policy,
) {
    let (other, other_span) = (other.0, values::shown((other.1)(policy)));
    let by_default = match kind {
        _ if section.get(other).is_some() => String::new(),
        None => " by default".to_owned(),
        Some(kind) => format!(" by default for a {kind}"),
    };
    let span = values::shown(span(policy));
    let text = format!(
        "{span:?} is {word} than {other} ({other_span:?}{by_default}); change one, or set {other} too"
    );
    section.problem(key, text);
}

fn with_secrets(section: &Section<'_>, mut source: SourceConfig, env: &Env) -> SourceConfig {
    let provider = source.provider;
    let api_key = section
        .get("api_key")
        .and_then(|entry| secrets::api_key(&entry, env));
    let webhook_secrets = secrets::webhook_secrets(section, env);
    if provider.environment().path_token.is_some() {
        source.keyring.path_tokens = secrets::path_tokens(section, env);
        source.keyring.headers = secrets::headers(section, env);
    } else {
        // A person who writes these believes that they protect something.
        for name in ["path_token", "path_tokens", "require_headers"]
            .into_iter()
            .filter(|name| section.get(name).is_some())
        {
            let text = "signs its webhooks, and this is without effect; remove it and use";
            section.problem(
                name,
                format!("{} {text} {}", provider.name(), verifier(provider)),
            );
        }
    }
    let signs = provider.signs_with_api_key() || provider.environment().webhook_secret.is_some();
    if section.get("webhook_secrets").is_some() && !signs {
        let text = format!(
            "{} does not sign its webhooks; use {} instead",
            provider.name(),
            verifier(provider)
        );
        section.problem("webhook_secrets", text);
    }
    if source.overrides.confirm == Some(Confirm::Always) && section.get("api_key").is_none() {
        section.problem(
            "confirm",
            "\"always\" means to ask the provider first, which takes an api_key; add one",
        );
    }
    source.with_keys(api_key, webhook_secrets)
}
