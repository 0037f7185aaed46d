//! Calls to providers over HTTPS: timeouts, a byte cap, no redirects, the API key added last.
//!
//! Every call of a source goes through its [`SourceClient`], so each account has one rate limiter,
//! one breaker and one count of calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, DATE, HeaderName, HeaderValue};

use crate::config::Source;
use crate::limits;
use crate::model::decide::Run;
use crate::model::{At, RunId};
use crate::polling::exchange::{Exchange, Next};
use crate::polling::rate_limit::RateLimiter;
use crate::providers::{ApiRequest, ApiResponse, Method, Response, ResponseClass};
use crate::reconciler::Clock;
use crate::report::Report;

/// The HTTP client that all sources share: one connection pool for the process.
#[derive(Clone)]
pub struct HttpClient {
    client: reqwest::Client,
}

impl HttpClient {
    /// A client that follows no redirect (a redirect would carry the API key to another host),
    /// decompresses nothing, obeys the proxy variables of the environment, and sends a
    /// `User-Agent`. The error says that TLS could not be set up.
    pub fn new() -> Result<HttpClient, reqwest::Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("settled/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(limits::CONNECT_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(90))
            .build()?;
        Ok(HttpClient { client })
    }

    /// Sends a request. A failure to get an answer is a response too, since the decision needs it.
    async fn ask(&self, member: &Source, request: &ApiRequest) -> ApiResponse {
        match tokio::time::timeout(request.timeout, self.exchange(member, request)).await {
            Ok(Ok(response)) => ApiResponse::Http(response),
            Ok(Err(error)) => ApiResponse::Failed {
                what: describe(error),
            },
            Err(_) => ApiResponse::Failed {
                what: format!("no answer within {} s", request.timeout.as_secs()),
            },
        }
    }

    async fn exchange(
        &self,
        member: &Source,
        request: &ApiRequest,
    ) -> Result<Response, reqwest::Error> {
        let source = &member.config;
        let url = format!("{}{}", source.base_url, request.path);
        let mut call = match request.method {
            Method::Get => self.client.get(url),
            Method::Post => self.client.post(url),
        };
        if let Some(body) = &request.body {
            call = call
                .header(CONTENT_TYPE, "application/json")
                .body(body.clone());
        }
        if let Some(key) = source
            .api_key
            .as_ref()
            .filter(|key| !key.expose().is_empty())
        {
            let (name, prefix) = source.provider.key_header();
            let mut value = HeaderValue::from_str(&format!("{prefix}{}", key.expose()))
                .unwrap_or(HeaderValue::from_static(""));
            value.set_sensitive(true);
            call = call.header(
                HeaderName::from_bytes(name.as_bytes()).unwrap_or(DATE),
                value,
            );
        }
        let mut answer = call.send().await?;
        let mut response = Response {
            status: answer.status().as_u16(),
            headers: headers(answer.headers()),
            ..Response::default()
        };
        while let Some(chunk) = answer.chunk().await? {
            let room = request.bytes_max - response.body.len();
            response
                .body
                .extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                response.truncated = true;
                break;
            }
        }
        Ok(response)
    }
}

fn headers(map: &reqwest::header::HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .map(|(name, value)| {
            (
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect()
}

/// Describes an error with its causes and without the URL, whose query may hold secrets.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Sends the requests of one source, and keeps its rate limiter and clock skew.
pub struct SourceClient {
    /// The source whose provider is called, with its configuration.
    pub member: Arc<Source>,
    http: HttpClient,
    limiter: Mutex<RateLimiter>,
    skew_ms: Mutex<Option<i64>>,
    clock: Clock,
}

impl SourceClient {
    /// A client with a full rate limiter and no known clock skew.
    pub fn new(member: Arc<Source>, http: HttpClient, clock: Clock) -> SourceClient {
        let limiter = RateLimiter::new(member.config.rate, clock());
        SourceClient {
            member,
            http,
            limiter: Mutex::new(limiter),
            skew_ms: Mutex::new(None),
            clock,
        }
    }

    /// The client of a source whose configuration has changed. It keeps the rate limiter and the
    /// clock skew, unless the source now leads to another API.
    #[must_use]
    pub fn reloaded(&self, member: Arc<Source>) -> SourceClient {
        let (old, new) = (&self.member.config, &member.config);
        let now = (self.clock)();
        let same_api = old.base_url == new.base_url && old.provider == new.provider;
        let (limiter, skew_ms) = if same_api {
            let new_key = old.api_key != new.api_key;
            let limiter = self.limiter().reloaded(new.rate, new_key, now);
            (limiter, self.skew_ms())
        } else {
            (RateLimiter::new(new.rate, now), None)
        };
        SourceClient {
            member,
            http: self.http.clone(),
            limiter: Mutex::new(limiter),
            skew_ms: Mutex::new(skew_ms),
            clock: self.clock.clone(),
        }
    }

    /// Locks the rate limiter. Do not hold the guard across an `await`.
    pub fn limiter(&self) -> MutexGuard<'_, RateLimiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many milliseconds the provider's clock is ahead of ours, from the `Date` header of its
    /// last answer. `None`: no answer had one.
    pub fn skew_ms(&self) -> Option<i64> {
        *self.skew_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request at once, without a token of the limiter; the limiter observes the answer. A
    /// refusal does not open the breaker: it may concern this request alone.
    pub async fn poll_now(&self, request: &ApiRequest) -> ApiResponse {
        self.send(request, false).await
    }

    /// `speaks_for_account`: see [`Exchange::speaks_for_account`].
    async fn send(&self, request: &ApiRequest, speaks_for_account: bool) -> ApiResponse {
        let answer = self.http.ask(&self.member, request).await;
        let now = (self.clock)();
        self.note_skew(&answer, now);
        let class = self.member.config.provider.classify(&answer);
        self.learn(&class, speaks_for_account, now);
        answer
    }

    /// Waits for a reserved token, then sends the request. `None` once the breaker is open: only a
    /// probe may find out that the key works again.
    async fn ask(&self, request: &ApiRequest, speaks_for_account: bool) -> Option<ApiResponse> {
        loop {
            let now = (self.clock)();
            let allowed = self.limiter().try_acquire_reserved(now, self.member.seed());
            match allowed {
                Ok(()) => return Some(self.send(request, speaks_for_account).await),
                Err(_) if self.limiter().broken() => return None,
                Err(at) => tokio::time::sleep(at.since(now).max(Duration::from_millis(1))).await,
            }
        }
    }

    /// Runs an exchange up to its next report. Returns the report, and the request that follows once
    /// the report is stored. `paid`: the first request has its token already. `None`: the exchange
    /// ends without a report, or the breaker is open.
    pub async fn run(
        &self,
        mut exchange: Exchange,
        mut request: ApiRequest,
        mut paid: bool,
    ) -> Option<(Report, Option<(Exchange, ApiRequest)>)> {
        loop {
            let speaks = exchange.speaks_for_account();
            let answer = if paid {
                Some(self.send(&request, speaks).await)
            } else {
                self.ask(&request, speaks).await
            };
            let Some(answer) = answer else {
                // The breaker is open. What was answered before that is used all the same.
                let report = exchange.cut_short((self.clock)());
                return report.map(|report| (report, None));
            };
            paid = false;
            match exchange.go_on(request, answer, (self.clock)()) {
                Next::Ask(on, further) => (exchange, request) = (on, further),
                Next::Report(report, further) => return Some((report, further)),
                Next::Done => return None,
            }
        }
    }

    /// Polls one run at once, and returns the report. `None`: the breaker is open.
    pub async fn poll_run(&self, run_id: &RunId, run: &Run) -> Option<Report> {
        let (exchange, request) = Exchange::about(&self.member, run_id, run, (self.clock)());
        self.run(exchange, request, true)
            .await
            .map(|(report, _)| report)
    }

    fn learn(&self, class: &ResponseClass, speaks_for_account: bool, now: At) {
        let source = self.member.config.name.as_str();
        let mut limiter = self.limiter();
        let was_open = limiter.broken();
        limiter.observe_answer(class, speaks_for_account, now, self.member.seed());
        match (was_open, limiter.state(now).breaker) {
            (false, Some(breaker)) => {
                tracing::error!(
                    source,
                    why = breaker.why,
                    "polling stops until the key works; check the API key"
                );
            }
            (true, None) => tracing::info!(source, "the key works again; polling goes on"),
            _ => {}
        }
        if let ResponseClass::RateLimited { .. } = class {
            tracing::warn!(source, "the provider asks us to slow down");
        }
    }

    fn note_skew(&self, answer: &ApiResponse, now: At) {
        let ApiResponse::Http(response) = answer else {
            return;
        };
        let date = response
            .header("date")
            .and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        if let Some(date) = date {
            *self.skew_ms.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(date.timestamp().as_millisecond() - now.0);
        }
    }
}
