//! Dialects: what each provider's bytes mean. Pure: no network, no clock, no database.
//!
//! A [`Provider`] builds [`ApiRequest`]s, verifies deliveries into a [`Proof`], and reads webhooks
//! and [`ApiResponse`]s into a [`Reading`]. It concludes nothing: a reading is a list of observations,
//! and [`crate::model::decide`] decides. Each provider is one file, a translation table whose module
//! documentation names the source of its facts; its name appears in that file, in [`REGISTRY`] and
//! in its test vectors, and nowhere else.
//!
//! To add a provider: write its file, add it to [`REGISTRY`], and add vectors under
//! `tests/vectors/<name>/`.

pub mod browser_use;
pub mod firecrawl;
pub mod json;
pub mod python_json;
pub mod signature;
pub mod skyvern;
pub mod smartbrowse;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::observation::{Claim, Observation};
use crate::model::schedule::Policy;
use crate::model::{At, Kind, RunId, Trust, Via, words};
use crate::secret::{Keyring, SecretLabel, TokenDigest};

/// Every provider settled speaks to.
pub static REGISTRY: &[&dyn Provider] = &[
    &skyvern::Skyvern,
    &browser_use::BrowserUse,
    &smartbrowse::SmartBrowse,
    &firecrawl::Firecrawl,
];

/// The provider of this name.
pub fn named(name: &str) -> Option<&'static dyn Provider> {
    REGISTRY
        .iter()
        .copied()
        .find(|provider| provider.name() == name)
}

/// The part of a source's configuration that its provider reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The generation of the provider's API, where it has several (`v2`, `v3`, `v4`).
    pub api: Option<String>,
}

/// One service kind: how it signs, what it sends, what it can be asked.
pub trait Provider: Sync {
    /// The name in the configuration and the feed.
    fn name(&self) -> &'static str;

    /// Where its API is unless the configuration says otherwise, without a trailing slash.
    fn base_url(&self) -> &'static str;

    /// The header that carries the API key, and what stands before the key in it.
    fn key_header(&self) -> (&'static str, &'static str);

    /// The environment variables people already have set for it.
    fn environment(&self) -> Environment;

    /// Where a person enters the URL of our webhook endpoint: completes "enter it …".
    fn webhook_setup(&self) -> &'static str {
        "where the provider asks for a webhook URL"
    }

    /// Values of `api` in the configuration that mean something; the first is the default.
    fn apis(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether deliveries are signed with the API key itself.
    fn signs_with_api_key(&self) -> bool {
        false
    }

    /// The policy for runs of `kind` before the configuration overrides it.
    fn policy(&self, kind: Option<Kind>) -> Policy;

    /// The kind of a run that nobody named, judged by its id and the settings.
    fn kind_of(&self, run_id: &RunId, settings: &Settings) -> Kind;

    /// Whether [`Provider::kind_of`] is a guess that only an answer can confirm.
    fn guesses_kind(&self) -> bool {
        false
    }

    /// Judges a delivery: who can have sent it.
    fn verify(&self, delivery: &Delivery<'_>, keyring: &Keyring, now: At) -> Proof;

    /// Reads a delivery that [`Provider::verify`] gave `trust`. Never fails: what cannot be read
    /// says so. The run ids in a delivery of trust `hint` are only used to find known runs.
    fn read_webhook(&self, webhook: &Webhook<'_>) -> Reading;

    /// Asks for the state of one run.
    fn status_request(&self, run: &RunRef<'_>) -> ApiRequest;

    /// The next request that is needed before `answers` (in the order of the requests) mean
    /// anything. By
    /// default a 404 is followed by the canary: it may be a wrong key.
    fn follow_up(&self, run: &RunRef<'_>, answers: &[ApiResponse]) -> Option<ApiRequest> {
        match answers {
            [ApiResponse::Http(response)] if matches!(response.status, 404 | 410) => {
                Some(self.canary_request(run.settings))
            }
            _ => None,
        }
    }

    /// Reads the answers to [`Provider::status_request`] and its follow-ups, at least one. Always
    /// one observation about the run that was asked about, [`Claim::Nothing`] where nothing is said.
    fn read_status(
        &self,
        run: &RunRef<'_>,
        answers: &[ApiResponse],
        requested_at: At,
    ) -> Observation;

    /// A cheap call that must work whenever the key does.
    fn canary_request(&self, settings: &Settings) -> ApiRequest;

    /// Asks which runs there are, one page at a time; `None` where the provider cannot list.
    /// `page` is what [`Listing::next`] said, `None` for the first.
    fn list_request(&self, page: Option<&str>, settings: &Settings) -> Option<ApiRequest>;

    /// Reads a page of a list, the one that [`Provider::list_request`] asked for with this `page`.
    /// Observations carry [`Claim::Listed`]; trust is authoritative as to the run's existence.
    fn read_list(
        &self,
        page: Option<&str>,
        answer: &ApiResponse,
        settings: &Settings,
        requested_at: At,
    ) -> Listing;

    /// Asks the provider to send a run's webhook again; `None` where it has no such call.
    fn retry_request(&self, run_id: &RunId, webhook_url: Option<&str>) -> Option<ApiRequest> {
        let _ = (run_id, webhook_url);
        None
    }

    /// Reads the answer to [`Provider::retry_request`].
    fn read_retry(&self, run_id: &RunId, answer: &ApiResponse) -> RetryResult {
        let _ = (run_id, answer);
        RetryResult::Refused {
            status: None,
            message: "this provider has no retry-webhook call".to_owned(),
        }
    }

    /// Classifies an answer: what it tells about the account and the service, whatever it says
    /// about a run. An
    /// answer that is no documented one is [`ResponseClass::Unavailable`]; see [`undocumented`].
    fn classify(&self, answer: &ApiResponse) -> ResponseClass {
        classify_by_status(answer)
    }
}

/// A provider is its name: there is one of each.
impl PartialEq for dyn Provider {
    fn eq(&self, other: &dyn Provider) -> bool {
        self.name() == other.name()
    }
}

/// Names of environment variables.
#[derive(Clone, Copy, Debug)]
pub struct Environment {
    /// Holds the API key.
    pub api_key: &'static str,
    /// Holds the webhook secret, where deliveries are signed with one.
    pub webhook_secret: Option<&'static str>,
    /// Holds the path token, where deliveries are unsigned.
    pub path_token: Option<&'static str>,
    /// Hold where the API is, as the vendor's own SDKs and tools read it; the first that is set counts.
    pub base_urls: &'static [&'static str],
}

// ── Webhooks ────────────────────────────────────────────────────────────────────────────────────

/// Header names in lower case with their values, in the order they came.
pub type Headers = Vec<(String, String)>;

/// A webhook as it came, before anything is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Header names in lower case, values as received (bytes that are not UTF-8 replaced).
    pub headers: &'a [(String, String)],
    /// The raw body; cut off if `truncated`.
    pub body: &'a [u8],
    /// The body was larger than we take.
    pub truncated: bool,
    /// Digest of the path segment after the source, if there was one.
    pub path_token: Option<&'a TokenDigest>,
}

impl Delivery<'_> {
    /// The first header of this lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

words! {
    /// The verdict of verification.
    Verdict {
        /// A signature verified (and is fresh, where the scheme has a time).
        Signed = "signed",
        /// Unsigned, but the secret path and/or headers matched.
        SharedSecret = "shared_secret",
        /// The signature is genuine but old: a replay, or a very late retry.
        Stale = "stale",
        /// The signature is genuine but its scheme cannot show when it was made, and for this kind
        /// of run that matters.
        Untimed = "untimed",
        /// The provider's test ping, which comes before a secret can be configured.
        Ping = "ping",
        /// There is no signature.
        Unsigned = "unsigned",
        /// There is a signature and it is wrong.
        BadSignature = "bad_signature",
        /// The path token or a required header is missing or wrong.
        BadToken = "bad_token",
        /// There is nothing configured to verify against.
        NoSecret = "no_secret",
        /// The body was cut off, so nothing can be verified.
        Truncated = "truncated",
    }
}

impl Verdict {
    /// How far what such a delivery says may be believed.
    pub const fn trust(self) -> Trust {
        match self {
            Verdict::Signed => Trust::Signed,
            Verdict::SharedSecret => Trust::SharedSecret,
            _ => Trust::Hint,
        }
    }

    /// Whether the sender has shown that it is the provider (or that it cannot be expected to yet).
    /// Decides between 200 and 401, and between keeping for good and keeping in the unverified buffer.
    pub const fn authentic(self) -> bool {
        matches!(
            self,
            Verdict::Signed | Verdict::SharedSecret | Verdict::Stale | Verdict::Untimed
        )
    }
}

/// The result of verifying one delivery. Only providers can make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    verdict: Verdict,
    secret: Option<SecretLabel>,
}

impl Proof {
    /// A proof without a secret that matched.
    pub(in crate::providers) fn without(verdict: Verdict) -> Proof {
        Proof {
            verdict,
            secret: None,
        }
    }

    /// A proof by this secret.
    pub(in crate::providers) fn by(verdict: Verdict, secret: SecretLabel) -> Proof {
        Proof {
            verdict,
            secret: Some(secret),
        }
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Which of the configured secrets matched.
    pub fn secret(&self) -> Option<&SecretLabel> {
        self.secret.as_ref()
    }
}

/// A stored webhook, ready to be read.
#[derive(Clone, Copy, Debug)]
pub struct Webhook<'a> {
    /// The raw body, possibly cut off.
    pub body: &'a [u8],
    /// See [`Delivery::truncated`].
    pub truncated: bool,
    /// How far it may be believed.
    pub trust: Trust,
    /// [`Via::Webhook`], or [`Via::Replay`] for a payload out of a retry answer.
    pub via: Via,
    /// When it came in.
    pub received_at: At,
    /// The source's settings.
    pub settings: &'a Settings,
}

/// The meaning of a report, as its provider reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// Claims about runs; none if the report is genuine but says nothing we use.
    Said(Vec<Observation>),
    /// A page of a list, with the counter of runs that came with it.
    Counted(Vec<Observation>, Gap),
    /// A test ping.
    Ping,
    /// Genuine or not, it cannot be understood; the text says why, without quoting the body.
    Unreadable(String),
}

// ── Questions and answers ───────────────────────────────────────────────────────────────────────

/// A run to ask about.
#[derive(Clone, Copy, Debug)]
pub struct RunRef<'a> {
    /// The provider's id of it.
    pub run_id: &'a RunId,
    /// The kind of the run.
    pub kind: Kind,
    /// The kind is not known: `kind` is [`Provider::kind_of`]'s guess.
    pub guessed: bool,
    /// The workflow, recipe, agent or monitor it belongs to, where somebody said: some providers
    /// want it in the path.
    pub group_id: Option<&'a str>,
    /// The source's settings.
    pub settings: &'a Settings,
}

/// HTTP methods we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// A read.
    Get,
    /// Only the retry-webhook call.
    Post,
}

/// A call to a provider. The key is put in last, by [`crate::polling::client`], so that no request can leak
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiRequest {
    /// The method.
    pub method: Method,
    /// Path and query below the base URL, starting with `/`.
    pub path: String,
    /// A JSON body.
    pub body: Option<String>,
    /// How long the whole call may take.
    pub timeout: Duration,
    /// How much of an answer is read; the rest is cut off.
    pub bytes_max: usize,
}

impl ApiRequest {
    /// How long a read may take.
    pub const TIMEOUT: Duration = Duration::from_secs(30);
    /// How much of an answer is read unless a provider wants more.
    pub const BYTES_MAX: usize = 8 * 1024 * 1024;

    /// A read with the usual limits.
    pub fn get(path: impl Into<String>) -> ApiRequest {
        ApiRequest {
            method: Method::Get,
            path: path.into(),
            body: None,
            timeout: ApiRequest::TIMEOUT,
            bytes_max: ApiRequest::BYTES_MAX,
        }
    }
}

/// The result of a request, failures included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiResponse {
    /// An HTTP response.
    Http(Response),
    /// No response: refused, timed out, broken off.
    Failed {
        /// The failure, in a few words, with no secret in them.
        what: String,
    },
}

/// An HTTP response, as far as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case with their values.
    pub headers: Headers,
    /// The body, possibly cut off.
    pub body: Vec<u8>,
    /// The body was longer than [`ApiRequest::bytes_max`].
    pub truncated: bool,
}

impl Response {
    /// The first header of this lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Runs on this page, each as a [`Claim::Listed`].
    pub runs: Vec<Observation>,
    /// The token that [`Provider::list_request`] takes for the next page; `None` at the end.
    pub next: Option<String>,
    /// Something the list (or the counters that stand in for one) shows to be wrong, in a few
    /// words: for instance runs that are counted but that we never heard of.
    pub gap: Option<Gap>,
}

/// A counter of runs that a provider without a list offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Runs the provider has counted in its window. Only a rise means anything.
    pub runs_counted: u64,
}

/// The class of an answer: what it says about the account and the service. The source's rate
/// limiter observes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseClass {
    /// The call worked, or failed for a reason of this run alone.
    Ok,
    /// Too fast: nothing more before this long.
    RateLimited {
        /// The wait that the provider asked for, if it did.
        retry_after: Option<Duration>,
    },
    /// Our key is not accepted. Says nothing about runs.
    Denied {
        /// A few words for `status`.
        why: String,
    },
    /// The service is in trouble or unreachable.
    Unavailable {
        /// A few words for `status`.
        why: String,
        /// The wait that the provider asked for, if it did.
        retry_after: Option<Duration>,
    },
}

/// The result of asking a provider to send a webhook again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryResult {
    /// The provider tried. Whether the delivery arrived is inside.
    Tried {
        /// The delivery's HTTP status, if there was one.
        delivered_status: Option<u16>,
        /// The provider's words for what went wrong.
        error: Option<String>,
        /// Where it sent it.
        target_url: Option<String>,
        /// How long it took, in milliseconds.
        latency_ms: Option<u64>,
        /// The exact signed bytes, with the headers they were sent with, lower-case names.
        payload: Option<(Vec<u8>, Headers)>,
    },
    /// The provider would not, or could not be asked.
    Refused {
        /// The HTTP status of the refusal.
        status: Option<u16>,
        /// The meaning of the refusal, and the remedy.
        message: String,
    },
}

/// Why a response cannot come from the documented API, or `None` if it can. A redirect, a page of
/// HTML and a success that is no JSON come from a proxy, a challenge or a landing page on the way:
/// they say nothing about the key or a run.
pub fn undocumented(response: &Response) -> Option<String> {
    let status = response.status;
    let start = response
        .body
        .iter()
        .copied()
        .find(|byte| !byte.is_ascii_whitespace());
    let declared_html = response
        .header("content-type")
        .is_some_and(|value| value.trim().to_ascii_lowercase().starts_with("text/html"));
    let what = if (300..400).contains(&status) {
        "a redirect"
    } else if start == Some(b'<') || declared_html {
        "an HTML page"
    } else if (200..300).contains(&status) && !matches!(start, Some(b'{' | b'[')) {
        "a body that is not JSON"
    } else {
        return None;
    };
    Some(format!(
        "HTTP {status} with {what}, which is not a documented answer: check base_url and proxies"
    ))
}

/// The usual meaning of status codes: 401 and 403 are about the key, 429 about pace, 5xx and
/// silence about the service; everything else is about the run. An undocumented answer is none of
/// these, whatever its status, unless the status already says how long to wait.
pub fn classify_by_status(answer: &ApiResponse) -> ResponseClass {
    match answer {
        ApiResponse::Failed { what } => ResponseClass::Unavailable {
            why: what.clone(),
            retry_after: None,
        },
        ApiResponse::Http(response) => match (response.status, undocumented(response)) {
            (status, Some(why)) if status != 429 && status < 500 => ResponseClass::Unavailable {
                why,
                retry_after: retry_after(response),
            },
            (401 | 403, _) => ResponseClass::Denied {
                why: format!("the API key is not accepted ({})", response.status),
            },
            (429, _) => ResponseClass::RateLimited {
                retry_after: retry_after(response),
            },
            (500.., _) => ResponseClass::Unavailable {
                why: format!("HTTP {}", response.status),
                retry_after: retry_after(response),
            },
            _ => ResponseClass::Ok,
        },
    }
}

/// The claim of a 404: the run is missing if the canary asked after it worked, else nothing. Every
/// answer must be a documented one: a proxy's own 404 says nothing about the run.
pub(in crate::providers) fn missing_if_canary_worked(
    provider: &dyn Provider,
    answers: &[ApiResponse],
) -> Claim {
    let documented = |answer: &ApiResponse| {
        matches!(answer,
        ApiResponse::Http(response) if undocumented(response).is_none())
    };
    let worked = |answer: &ApiResponse| matches!(answer, ApiResponse::Http(response) if response.status < 300);
    match answers {
        [_, .., canary]
            if answers.iter().all(documented)
                && worked(canary)
                && provider.classify(canary) == ResponseClass::Ok =>
        {
            Claim::Missing
        }
        _ => Claim::Nothing,
    }
}

/// `Retry-After` in seconds; as a date it is taken relative to the answer's own `Date`.
pub fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.header("retry-after")?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return (0.0..=86_400.0)
            .contains(&seconds)
            .then(|| Duration::from_secs_f64(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    let from = jiff::fmt::rfc2822::parse(response.header("date")?)
        .ok()?
        .timestamp();
    let seconds = u64::try_from(until.as_second() - from.as_second()).ok()?;
    Some(Duration::from_secs(seconds.min(86_400)))
}

/// An observation about `run_id` from an answer, with nothing but the claim filled in.
pub(in crate::providers) fn answered(
    run_id: &RunId,
    kind: Option<Kind>,
    claim: Claim,
    requested_at: At,
) -> Observation {
    Observation {
        run_id: run_id.clone(),
        kind,
        claim,
        trust: Trust::Authoritative,
        via: Via::Poll,
        requested_at,
        poll_after: None,
        detail: crate::model::observation::Detail::default(),
    }
}

/// An observation about `run_id` from a webhook, with nothing but the claim filled in.
pub(in crate::providers) fn told(
    run_id: RunId,
    kind: Option<Kind>,
    claim: Claim,
    webhook: &Webhook<'_>,
) -> Observation {
    Observation {
        run_id,
        kind,
        claim,
        trust: webhook.trust,
        via: webhook.via,
        requested_at: webhook.received_at,
        poll_after: None,
        detail: crate::model::observation::Detail::default(),
    }
}

/// An observation that a list shows a run.
pub(in crate::providers) fn listed(
    run_id: &RunId,
    kind: Option<Kind>,
    over: bool,
    requested_at: At,
) -> Observation {
    Observation {
        via: Via::Sweep,
        ..answered(run_id, kind, Claim::Listed { over }, requested_at)
    }
}

/// A path segment or query value, percent-encoded.
pub(in crate::providers) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                out.push(char::from(byte));
            } else {
                let _ = write!(out, "%{byte:02X}");
            }
            out
        })
}
