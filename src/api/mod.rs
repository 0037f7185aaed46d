//! The Unix sockets: the feed for consumers, and everything else for operators.
//!
//! Two routers share one [`ApiState`]. The feed socket serves events and consumers; the control
//! socket serves these and the rest. Both speak HTTP/1.1 and 1.0, NDJSON or JSON. Requests and replies
//! are the types of [`types`].

pub mod access;
mod advice;
mod backup;
mod control;
mod feed;
mod lent_body;
mod metrics;
pub mod types;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use hyper::{Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Sources;
use crate::ledger::commands::Probe;
use crate::ledger::{FeedBounds, LedgerError, Reader, View};
use crate::limits;
use crate::model::At;
use crate::polling::client::SourceClient;
use crate::reconciler::{Clock, Handle, Refusal};
use crate::server::{AnyBody, Problem, json};

pub use feed::{PageCache, Readers};

use feed::{consumers, events};

/// The state that all handlers share.
pub struct ApiState {
    /// Sends commands and reports to the writer.
    pub ledger: Handle,
    /// Reads the ledger.
    pub reader: Reader,
    /// The configured sources.
    pub sources: watch::Receiver<Arc<Sources>>,
    /// The client of each source's provider, by row id of the source.
    pub clients: watch::Receiver<Arc<BTreeMap<i64, Arc<SourceClient>>>>,
    /// Which requests of browsers are answered.
    pub access: access::Access,
    /// Tells the time.
    pub clock: Clock,
    /// When the daemon was ready.
    pub started_at: At,
    /// Turns true when the daemon stops: streams then end.
    pub stop: watch::Receiver<bool>,
    /// Why the last reload was refused, if it was.
    pub trouble: watch::Receiver<Option<String>>,
    /// Permits for streams.
    pub streams: Arc<Semaphore>,
    /// Permits for lookups in the ledger.
    pub lookups: Semaphore,
    /// The consumers that have a reader.
    pub consumers: Readers,
    /// Pages that several streams read together.
    pub page_cache: PageCache,
}

type Shared = State<Arc<ApiState>>;

/// The result of a handler.
type HandlerResult = Result<Response<AnyBody>, Problem>;

/// The routes of the feed socket.
pub fn feed_routes(state: Arc<ApiState>) -> Router {
    guarded(consumer_routes(), state)
}

/// The routes of the control socket: all of them.
pub fn control_routes(state: Arc<ApiState>) -> Router {
    let routes = consumer_routes()
        .route("/v1/runs", get(control::list_runs).post(control::track))
        .route("/v1/runs/{source}/{run_id}", get(control::show_run))
        .route("/v1/runs/{source}/{run_id}/poll", post(control::poll))
        .route(
            "/v1/runs/{source}/{run_id}/retry-webhook",
            post(control::retry_webhook),
        )
        .route(
            "/v1/sources/{source}/missing-webhooks",
            get(control::missing_webhooks),
        )
        .route("/v1/sources/{source}/reverify", post(control::reverify))
        .route("/v1/deliveries", get(control::list_deliveries))
        .route("/v1/deliveries/{id}", get(control::show_delivery))
        .route("/v1/deliveries/{id}/body", get(control::show_body))
        .route("/v1/status", get(control::status))
        .route("/v1/backup", post(backup::backup))
        .route("/metrics", get(metrics::metrics));
    guarded(routes, state)
}

/// These routes behind the rules of [`access`], which hold for unknown paths too.
fn guarded(routes: Router<Arc<ApiState>>, state: Arc<ApiState>) -> Router {
    routes
        .fallback(unknown)
        .layer(from_fn_with_state(state.clone(), judge))
        .with_state(state)
}

/// Refuses requests that a foreign page may have caused, and discards what the handler has not read
/// of the request's body, so that the client sees the reply.
async fn judge(State(state): Shared, request: Request, next: Next) -> Response<Body> {
    let (head, body) = request.into_parts();
    let (lent, body) = lent_body::lend(body);
    let response = match state.access.check(&head) {
        Ok(()) => next.run(Request::from_parts(head, body)).await,
        Err(problem) => problem.into_response(),
    };
    lent.discard().await;
    response
}

fn consumer_routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/healthz", get(health))
        .route("/v1/events", get(events::read))
        .route("/v1/consumers", get(consumers::list))
        .route(
            "/v1/consumers/{name}",
            put(consumers::create)
                .get(consumers::show)
                .delete(consumers::delete),
        )
        .route("/v1/consumers/{name}/events", get(consumers::read))
        .route("/v1/consumers/{name}/ack", post(consumers::ack))
        .route("/v1/consumers/{name}/seek", post(consumers::seek))
        .route(
            "/v1/consumers/{name}/parked",
            get(consumers::parked)
                .post(consumers::park)
                .delete(consumers::drop_parked),
        )
        .route(
            "/v1/consumers/{name}/parked/retry",
            post(consumers::retry_parked),
        )
}

/// Whether the writer answers: an empty transaction through the whole hand-off.
async fn health(State(state): Shared) -> HandlerResult {
    state.ledger.execute(Probe).await?;
    let status = "ok".to_owned();
    Ok(json(StatusCode::OK, &types::HealthReply { status }))
}

async fn unknown() -> Problem {
    let message = "nothing is served here; the feed socket has /healthz, /v1/events and /v1/consumers, the control \
                   socket everything";
    Problem::new(StatusCode::NOT_FOUND, "not_found", message)
}

impl ApiState {
    /// A permit for one more stream.
    fn slot(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            let message = format!(
                "{} streams are open, more are not served; close one",
                limits::STREAMS_MAX
            );
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", message)
        })
    }

    /// Where the feed begins and ends.
    #[allow(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is not general enough"
    )]
    async fn bounds(&self) -> Result<FeedBounds, Problem> {
        self.look(|view| view.bounds()).await
    }

    /// Runs a query of the ledger on a thread that may block.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View<'_>) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, Problem> {
        // A new record wakes every stream. A thousand connections would not read faster than a few.
        let _turn = self.lookups.acquire().await;
        let reader = self.reader.clone();
        let looked = tokio::task::spawn_blocking(move || reader.read(look)).await;
        let bug = |_| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "bug",
                "a lookup panicked; please report this",
            )
        };
        looked.map_err(bug)?.map_err(Problem::from)
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Problem {
        tracing::error!(%error, "a lookup failed");
        if let LedgerError::Unreadable(_) = error {
            return Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "damaged",
                error.to_string(),
            );
        }
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            error.to_string(),
        )
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            refusal.to_string(),
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        self.response().map(axum::body::Body::new)
    }
}

/// Query parameters; a wrong or unknown one is a 400 that names it.
struct Params<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Params(value)),
            Err(rejection) => Err(bad_request(rejection.body_text())),
        }
    }
}

/// Path segments; one that cannot be read is a 400.
struct Segments<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Segments(value)),
            Err(rejection) => Err(bad_request(rejection.body_text())),
        }
    }
}

fn bad_request(message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", message)
}

/// Reads a request's JSON body; an empty one is `{}`.
async fn body_json<T: DeserializeOwned>(body: axum::body::Body) -> Result<T, Problem> {
    let bytes = axum::body::to_bytes(body, limits::REQUEST_BYTES_MAX)
        .await
        .map_err(|_| {
            let message = format!("a request may have {} bytes", limits::REQUEST_BYTES_MAX);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        })?;
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text)
        .map_err(|error| bad_request(format!("the body is not what is expected here: {error}")))
}

/// A flag in a query: absent or `0`, bare or `1`.
fn flag(name: &str, value: Option<&str>) -> Result<bool, Problem> {
    match value {
        None | Some("0" | "false") => Ok(false),
        Some("" | "1" | "true") => Ok(true),
        Some(_) => Err(bad_request(format!("{name} is 0 or 1"))),
    }
}
