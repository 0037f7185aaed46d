//! The outside of a test: six accounts at four clouds, asked and written to without a network.
//!
//! The clouds are the demo's: they answer, list and sign like their providers. Here their time is
//! moved by hand, and what comes out of them is handed over as a value.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use settled::config::Source;
use settled::config::SourceConfig;
use settled::demo::clouds::{Ask, Keys, Letter, Reply, Transfer, World, service};
use settled::demo::life;
use settled::model::{At, SourceName};
use settled::providers::{self, ApiRequest, ApiResponse, Delivery, Method, Response};
use settled::report::{Meta, Report, WebhookMeta};
use settled::secret::{Key, RequiredHeader, Secret, SecretLabel, TokenDigest};

/// When every world begins: a Saturday morning.
pub const BEGIN: At = At(1_795_248_000_000);

/// The accounts as the daemon is configured with them.
pub fn accounts(keys: &Keys) -> BTreeMap<SourceName, Arc<SourceConfig>> {
    let account = |source: &life::DemoSource| {
        let source = account(*source, keys);
        (source.name.clone(), Arc::new(source))
    };
    life::DemoSource::ALL.iter().map(account).collect()
}

/// One account.
pub fn account(source: life::DemoSource, keys: &Keys) -> SourceConfig {
    let provider = providers::named(source.cloud().word()).unwrap();
    let mut made = SourceConfig::new(SourceName::new(source.word()).unwrap(), provider);
    if let Some(api) = source.api() {
        made.settings.api = Some(api.to_owned());
    }
    let hooks = match source.cloud() {
        life::Cloud::BrowserUse => Some(&keys.browser_use_hooks),
        life::Cloud::Firecrawl => Some(&keys.firecrawl_hooks),
        life::Cloud::Skyvern | life::Cloud::SmartBrowse => None,
    };
    let api_key = key("api_key", &keys.api_key(source));
    made = made.with_keys(
        Some(api_key),
        hooks.map(|hooks| key("webhook_secrets[0]", hooks)),
    );
    if source == life::DemoSource::Recipes {
        made.keyring.path_tokens = vec![key("path_token", &keys.smartbrowse_path)];
        let values = vec![key(
            "require_headers.Authorization",
            &keys.smartbrowse_header,
        )];
        made.keyring.headers = vec![RequiredHeader {
            name: "authorization".to_owned(),
            values,
        }];
    }
    made
}

/// A secret with its name.
pub fn key(label: &str, value: &str) -> Key {
    Key {
        label: SecretLabel(label.to_owned()),
        secret: Secret::new(value),
    }
}

/// Asks a cloud, with the account's key; also gives how long it takes to answer.
pub fn ask(
    world: &World,
    cloud: life::Cloud,
    member: &Source,
    question: &ApiRequest,
) -> (ApiResponse, Duration) {
    let ask = request(member, question);
    let service = service(cloud);
    let reply = if service.authorized(&ask, &world.keys) {
        service.answer(world, &ask)
    } else {
        service.refusal(&ask)
    };
    answer(reply, question)
}

/// The question as the cloud's server reads it.
fn request(member: &Source, question: &ApiRequest) -> Ask {
    let method = match question.method {
        Method::Get => hyper::Method::GET,
        Method::Post => hyper::Method::POST,
    };
    let mut headers = HeaderMap::new();
    if let Some(key) = &member.config.api_key {
        let (name, prefix) = member.config.provider.key_header();
        let value = HeaderValue::from_str(&format!("{prefix}{}", key.expose())).unwrap();
        headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
    }
    Ask::new(
        method,
        &question.path,
        headers,
        question.body.clone().unwrap_or_default().into(),
    )
}

/// The reply as our client reads it.
pub fn answer(reply: Reply, question: &ApiRequest) -> (ApiResponse, Duration) {
    let usual = Duration::from_millis(120);
    match reply.transfer {
        Transfer::CutOff => (
            ApiResponse::Failed {
                what: "the connection was closed".to_owned(),
            },
            usual,
        ),
        Transfer::Slow(span) if span > question.timeout => (
            ApiResponse::Failed {
                what: "no answer in time".to_owned(),
            },
            question.timeout,
        ),
        transfer => {
            let headers = reply
                .headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
            let mut body = reply.body.to_vec();
            let truncated = body.len() > question.bytes_max;
            body.truncate(question.bytes_max);
            let late = if let Transfer::Slow(span) = transfer {
                span
            } else {
                Duration::ZERO
            };
            (
                ApiResponse::Http(Response {
                    status: reply.status,
                    headers,
                    body,
                    truncated,
                }),
                usual + late,
            )
        }
    }
}

/// A letter as the receiver reports it.
pub fn receive(member: &Source, letter: Letter, now: At) -> Report {
    let path_token = letter.path_token.as_deref().map(TokenDigest::of);
    let delivery = Delivery {
        headers: &letter.headers,
        body: &letter.body,
        truncated: false,
        path_token: path_token.as_ref(),
    };
    let source = &member.config;
    let proof = source.provider.verify(&delivery, &source.keyring, now);
    let meta = WebhookMeta {
        verdict: proof.verdict(),
        secret: proof.secret().cloned(),
        headers: letter.headers,
        path_token,
        truncated: false,
        peer: None,
    };
    Report {
        source: member.id,
        at: now,
        meta: Meta::Webhook(meta),
        body: letter.body,
    }
}
