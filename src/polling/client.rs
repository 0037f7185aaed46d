//! Questions to providers over HTTPS: timeouts, a byte cap, no redirects, the key put in last.
//!
//! An [`SourceClient`] is one source's evidence: everything that is asked of its provider goes through it,
//! so that there is one limiter, one breaker and one count of calls per account.

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

/// The one HTTP client of the process.
#[derive(Clone)]
pub struct HttpClient {
    client: reqwest::Client,
}

impl HttpClient {
    /// A client that follows nothing, decompresses nothing, obeys the proxy variables of the
    /// environment, and names itself.
    pub fn new() -> Result<HttpClient, reqwest::Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("settled/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(limits::CONNECT_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(90))
            .build()?;
        Ok(HttpClient { client })
    }

    /// Asks. Failures are answers too.
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
        if let Some(key) = &source.api_key {
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

/// What went wrong, without the address: it is the configured one, and a query may hold secrets.
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

/// One source's evidence.
pub struct SourceClient {
    /// The source.
    pub member: Arc<Source>,
    http: HttpClient,
    limiter: Mutex<RateLimiter>,
    skew_ms: Mutex<Option<i64>>,
    clock: Clock,
}

impl SourceClient {
    /// A evidence with a fresh limiter.
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

    /// The limiter, for looking at and for asking permission.
    pub fn limiter(&self) -> MutexGuard<'_, RateLimiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the provider's clock is ahead of ours, by the last answer's `Date`, in milliseconds.
    pub fn skew_ms(&self) -> Option<i64> {
        *self.skew_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks at once, whatever the limiter says, and lets the limiter learn from the answer.
    pub async fn poll_now(&self, request: &ApiRequest) -> ApiResponse {
        let answer = self.http.ask(&self.member, request).await;
        let now = (self.clock)();
        self.note_skew(&answer, now);
        let class = self.member.config.provider.classify(&answer);
        self.learn(&class, now);
        answer
    }

    /// Waits until the pace allows it, before anything new is started, then polls. `None` once the breaker is
    /// open: only a probe may find out that the key works again.
    pub async fn ask(&self, request: &ApiRequest) -> Option<ApiResponse> {
        loop {
            let now = (self.clock)();
            let allowed = self.limiter().try_acquire_reserved(now, self.member.seed());
            match allowed {
                Ok(()) => return Some(self.poll_now(request).await),
                Err(_) if self.limiter().broken() => return None,
                Err(at) => tokio::time::sleep(at.since(now).max(Duration::from_millis(1))).await,
            }
        }
    }

    /// Runs an exchange up to its next report, and gives what is to be asked further once that is handed
    /// in. `paid`: the pace has let the first request go already. `None`: nothing comes of it, or the
    /// breaker is open.
    pub async fn run(
        &self,
        mut exchange: Exchange,
        mut request: ApiRequest,
        mut paid: bool,
    ) -> Option<(Report, Option<(Exchange, ApiRequest)>)> {
        loop {
            let answer = if paid {
                self.poll_now(&request).await
            } else {
                self.ask(&request).await?
            };
            paid = false;
            match exchange.go_on(request, answer, (self.clock)()) {
                Next::Ask(on, further) => (exchange, request) = (on, further),
                Next::Report(report, further) => return Some((report, further)),
                Next::Done => return None,
            }
        }
    }

    /// Asks about one run, at once, and makes the report of it. `None`: the breaker is open.
    pub async fn poll_run(&self, run_id: &RunId, run: &Run) -> Option<Report> {
        let (exchange, request) = Exchange::about(&self.member, run_id, run, (self.clock)());
        self.run(exchange, request, true)
            .await
            .map(|(report, _)| report)
    }

    fn learn(&self, class: &ResponseClass, now: At) {
        let source = self.member.config.name.as_str();
        let mut limiter = self.limiter();
        let was_open = limiter.broken();
        limiter.observe(class, now, self.member.seed());
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
            tracing::warn!(source, "the provider polls us to slow down");
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
