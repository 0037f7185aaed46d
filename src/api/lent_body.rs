//! Request bodies that are read to their end, whatever the handler does.
//!
//! hyper closes a connection whose request body was not read. A client that is still writing then gets
//! a broken pipe instead of the reply. So the middleware keeps the body, lends it to the handler, and
//! discards the rest before the reply is sent, within limits.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::timeout;

use crate::limits;

/// The body of a request, shared by the middleware and the handler.
pub struct LentBody(Arc<Mutex<Body>>);

/// Gives the middleware's half and the body for the handler.
pub fn lend(body: Body) -> (LentBody, Body) {
    let shared = Arc::new(Mutex::new(body));
    (LentBody(shared.clone()), Body::new(LentBody(shared)))
}

impl LentBody {
    /// Reads and drops what is left of the body, up to a size and a time.
    pub async fn discard(mut self) {
        let rest = async {
            let mut discarded = 0;
            while let Some(Ok(frame)) = self.frame().await {
                discarded += frame.data_ref().map_or(0, Bytes::len);
                if discarded > limits::SOCKET_DISCARDED_BYTES_MAX {
                    break;
                }
            }
        };
        // The reply is sent in any case; the limits only bound what a client can make us read.
        let _ = timeout(limits::SOCKET_DISCARD_TIMEOUT, rest).await;
    }
}

impl hyper::body::Body for LentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.size_hint()
    }
}
