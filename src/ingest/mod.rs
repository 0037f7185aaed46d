//! Webhooks in: bound what is read, verify it, hand it in, and answer only when it is on disk.
//!
//! A sender sees: 200 stored; 401 stored but not authentic; 404 unknown source; 405 with
//! `Allow`; 408 too slow; 411 no length; 413 stored cut off; 415 for a `Content-Encoding`; 503 with
//! `Retry-After` when it could not be stored, never anything else then.

pub mod sender_limit;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderValue,
    TRANSFER_ENCODING,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::{Source, Sources};
use crate::ingest::sender_limit::{SenderLimit, sender};
use crate::limits;
use crate::providers::{Delivery, Headers, Verdict};
use crate::reconciler::{Clock, Handle};
use crate::report::{Meta, Report, WebhookMeta};
use crate::secret::TokenDigest;
use crate::server::{AnyBody, Peer, Problem, json};

/// The webhook endpoint.
pub struct Receiver {
    sender_limit: SenderLimit,
    sources: watch::Receiver<Arc<Sources>>,
    ledger: Handle,
    clock: Clock,
    body_bytes_max: usize,
    budget: BodyBudget,
}

/// The memory for bodies: one permit per KiB. Small bodies have their own, so that large ones that
/// never end cannot keep them out.
struct BodyBudget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// One body's share of it.
#[derive(Default)]
struct Reservation {
    kib: usize,
    permits: Option<OwnedSemaphorePermit>,
}

/// A body as far as it was taken.
struct Taken {
    bytes: Vec<u8>,
    truncated: bool,
    /// Given back when it is stored.
    reservation: Reservation,
}

impl Receiver {
    /// An endpoint for these sources that takes bodies up to `body_bytes_max`.
    pub fn new(
        sources: watch::Receiver<Arc<Sources>>,
        ledger: Handle,
        clock: Clock,
        body_bytes_max: usize,
    ) -> Receiver {
        let permits = |bytes: usize| Arc::new(Semaphore::new(bytes / 1024));
        let budget = BodyBudget {
            small: permits(limits::HOOK_SMALL_BODIES_BYTES_MAX),
            large: permits(limits::HOOK_BODIES_BYTES_MAX),
        };
        Receiver {
            sender_limit: SenderLimit::default(),
            sources,
            ledger,
            clock,
            body_bytes_max,
            budget,
        }
    }

    /// Answers one request.
    pub async fn respond(&self, request: Request<Incoming>, peer: &Peer) -> Response<AnyBody> {
        let (head, mut body) = request.into_parts();
        match self.receive(&head, &mut body, peer).await {
            Ok(response) => response,
            Err(problem) => {
                // A sender that waits for `100 Continue` learns from the answer that it need not send.
                let sends = problem.status == StatusCode::PAYLOAD_TOO_LARGE
                    || !head.headers.contains_key(EXPECT);
                if sends && problem.status != StatusCode::REQUEST_TIMEOUT {
                    discard(&mut body).await;
                }
                let mut response = problem.response();
                if problem.status == StatusCode::METHOD_NOT_ALLOWED {
                    response
                        .headers_mut()
                        .insert(ALLOW, HeaderValue::from_static("POST"));
                }
                // The unread rest of this request must not be taken for the next one.
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        }
    }

    async fn receive(
        &self,
        head: &Parts,
        body: &mut Incoming,
        peer: &Peer,
    ) -> Result<Response<AnyBody>, Problem> {
        let (member, path_token) = self.route(&head.method, head.uri.path())?;
        check_headers(&head.headers)?;
        let declared = content_length(&head.headers);
        let taken = self.take(body, declared).await?;
        let headers = flatten(&head.headers);
        let delivery = Delivery {
            headers: &headers,
            body: &taken.bytes,
            truncated: taken.truncated,
            path_token: path_token.as_ref(),
        };
        let now = (self.clock)();
        let proof = member
            .config
            .provider
            .verify(&delivery, &member.config.keyring, now);
        let (truncated, sender) = (taken.truncated, sender(peer, &headers));
        let authentic = proof.verdict().authentic();
        if !authentic && !self.sender_limit.admit(sender, taken.bytes.len(), now) {
            return Err(too_many());
        }
        let meta = WebhookMeta {
            headers,
            path_token,
            verdict: proof.verdict(),
            secret: proof.secret().cloned(),
            truncated,
            peer: sender.map(|address| address.to_string()),
        };
        let _share = taken.reservation;
        let report = Report {
            source: member.id,
            at: now,
            meta: Meta::Webhook(meta),
            body: taken.bytes,
        };
        let id = self.ledger.store(report).await.map_err(|refusal| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not_stored",
                refusal.to_string(),
            )
        })?;
        if truncated {
            let problem = too_large(self.body_bytes_max);
            return Err(if authentic {
                problem.with("id", id)
            } else {
                problem
            });
        }
        answer(proof.verdict(), id)
    }

    /// Reads a body up to the limit; of a larger one only the head is kept.
    async fn take(&self, body: &mut Incoming, declared: usize) -> Result<Taken, Problem> {
        let deadline = Instant::now() + limits::HOOK_BODY_TIMEOUT;
        // Not more than a first page is believed of the declared length until bytes show it.
        let mut bytes = Vec::with_capacity(declared.min(limits::TRUNCATED_HEAD_BYTES));
        let mut reservation = Reservation::default();
        if declared > self.body_bytes_max {
            // The rest is not worth reading: a head is all that will be kept.
            let head = timeout(limits::HOOK_BODY_IDLE_TIMEOUT, head_of(body))
                .await
                .map_err(|_| slow())??;
            return Ok(Taken {
                bytes: head,
                truncated: true,
                reservation,
            });
        }
        loop {
            let next = timeout(limits::HOOK_BODY_IDLE_TIMEOUT, body.frame());
            let frame = timeout_at(deadline, next)
                .await
                .map_err(|_| slow())?
                .map_err(|_| slow())?;
            let Some(frame) = frame else {
                return Ok(Taken {
                    bytes,
                    truncated: false,
                    reservation,
                });
            };
            let Some(data) = frame.map_err(broken)?.into_data().ok() else {
                continue;
            };
            if bytes.len() + data.len() > self.body_bytes_max {
                bytes.extend_from_slice(&data);
                bytes.truncate(limits::TRUNCATED_HEAD_BYTES);
                return Ok(Taken {
                    bytes,
                    truncated: true,
                    reservation,
                });
            }
            let more = self.budget.grow(&mut reservation, bytes.len() + data.len());
            timeout_at(deadline, more).await.map_err(|_| busy())?;
            bytes.extend_from_slice(&data);
        }
    }

    /// Which source a path names, and the token in it.
    fn route(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<(Arc<Source>, Option<TokenDigest>), Problem> {
        let not_found = || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "post webhooks to /hooks/SOURCE",
            )
        };
        let rest = path.strip_prefix("/hooks/").ok_or_else(not_found)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (name, token) = match rest.split_once('/') {
            Some((name, token)) => (name, Some(token)),
            None => (rest, None),
        };
        let Some(member) = self.sources.borrow().named(name).cloned() else {
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "unknown_source",
                "no source of this name is configured",
            ));
        };
        if method != Method::POST {
            return Err(Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "webhooks are sent with POST",
            ));
        }
        Ok((member, token.map(TokenDigest::of)))
    }
}

impl BodyBudget {
    /// Makes a share large enough for `bytes`, which have really arrived; waits while there is none.
    async fn grow(&self, reservation: &mut Reservation, bytes: usize) {
        let kib = bytes.div_ceil(1024);
        let mut more = kib.saturating_sub(reservation.kib);
        let small = bytes <= limits::HOOK_SMALL_BODY_BYTES;
        let was_small = reservation.kib * 1024 <= limits::HOOK_SMALL_BODY_BYTES;
        if more == 0 {
            return;
        }
        if was_small && !small {
            (reservation.permits, more) = (None, kib);
        }
        let pool = if small { &self.small } else { &self.large };
        let permits = pool
            .clone()
            .acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX))
            .await;
        let permits = permits.expect("never closed");
        match &mut reservation.permits {
            Some(held) => held.merge(permits),
            None => reservation.permits = Some(permits),
        }
        reservation.kib = kib;
    }
}

/// 200 for what is authentic or a test ping, 401 for the rest. Only an authentic delivery's answer
/// names the report: its id counts all reports, of all sources.
fn answer(verdict: Verdict, id: i64) -> Result<Response<AnyBody>, Problem> {
    if verdict.authentic() {
        return Ok(json(StatusCode::OK, &serde_json::json!({ "stored": id })));
    }
    if verdict == Verdict::Ping {
        return Ok(json(StatusCode::OK, &serde_json::json!({ "ping": true })));
    }
    let message = match verdict {
        Verdict::NoSecret => "nothing is configured to verify this source's deliveries against",
        Verdict::Unsigned => "the delivery is not signed",
        Verdict::BadToken => "the path token or a required header is missing or wrong",
        _ => "the signature does not verify",
    };
    Err(
        Problem::new(StatusCode::UNAUTHORIZED, "not_authentic", message)
            .with("verdict", verdict.word()),
    )
}

/// Refuses what cannot be verified on raw bytes, and bodies whose end cannot be known.
fn check_headers(headers: &HeaderMap) -> Result<(), Problem> {
    let identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(identity) {
        let message = "send the body without Content-Encoding";
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_encoding",
            message,
        ));
    }
    if !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) {
        return Err(Problem::new(
            StatusCode::LENGTH_REQUIRED,
            "length_required",
            "send a Content-Length",
        ));
    }
    Ok(())
}

fn content_length(headers: &HeaderMap) -> usize {
    headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

/// Reads the rest of a refused body and throws it away. Its sender sends to the end before it reads,
/// and would see a broken connection instead of our answer.
async fn discard(body: &mut Incoming) {
    let mut left = limits::HOOK_DISCARDED_BYTES_MAX;
    let rest = async {
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    let _ = timeout(limits::HOOK_DISCARD_TIMEOUT, rest).await;
}

/// The first bytes of a body.
async fn head_of(body: &mut Incoming) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while bytes.len() < limits::TRUNCATED_HEAD_BYTES {
        let Some(frame) = body.frame().await else {
            break;
        };
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    bytes.truncate(limits::TRUNCATED_HEAD_BYTES);
    Ok(bytes)
}

fn slow() -> Problem {
    Problem::new(
        StatusCode::REQUEST_TIMEOUT,
        "too_slow",
        "the body did not arrive in time",
    )
}

fn busy() -> Problem {
    let message = "too many large bodies at once; try again in a few seconds";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
}

/// The sender broke off or broke the protocol; it will hardly read this.
#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function for map_err"
)]
fn broken(error: hyper::Error) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "broken_body",
        format!("the body broke off ({error})"),
    )
}

fn too_large(bytes_max: usize) -> Problem {
    let message =
        format!("bodies may have {bytes_max} bytes; only the beginning of this one was kept");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

/// Headers as they are stored: lower-case names, at most as much as a delivery reasonably carries.
fn flatten(headers: &HeaderMap) -> Headers {
    headers
        .iter()
        .take(limits::HOOK_HEADERS_MAX)
        .map(|(name, value)| {
            (
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect()
}

fn too_many() -> Problem {
    let message =
        "too many deliveries that are not authentic; those that are get through at any rate";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(small: usize, large: usize) -> BodyBudget {
        BodyBudget {
            small: Arc::new(Semaphore::new(small)),
            large: Arc::new(Semaphore::new(large)),
        }
    }

    #[tokio::test]
    async fn room_is_taken_by_what_came_and_not_by_how_often() {
        let budget = budget(64, 1024);
        let mut reservation = Reservation::default();
        for bytes in 1..=3000 {
            budget.grow(&mut reservation, bytes).await;
        }
        assert_eq!(
            (
                budget.small.available_permits(),
                budget.large.available_permits()
            ),
            (61, 1024)
        );
        drop(reservation);
        assert_eq!(budget.small.available_permits(), 64);
    }

    #[tokio::test]
    async fn a_body_that_grows_moves_out_of_the_room_of_the_small_ones() {
        let budget = budget(64, 1024);
        let mut reservation = Reservation::default();
        for bytes in [
            1,
            limits::HOOK_SMALL_BODY_BYTES,
            limits::HOOK_SMALL_BODY_BYTES + 1,
            100 * 1024,
        ] {
            budget.grow(&mut reservation, bytes).await;
        }
        assert_eq!(
            (
                budget.small.available_permits(),
                budget.large.available_permits()
            ),
            (64, 924)
        );
        drop(reservation);
        assert_eq!(budget.large.available_permits(), 1024);
    }
}
