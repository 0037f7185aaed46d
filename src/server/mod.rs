//! The accept loop of every server. It caps connections, sets a deadline for headers, serves
//! half-closed clients to the end, closes a connection that does not read, and drains when stopping.
//!
//! `axum::serve` installs no timer, so hyper's header deadline is inert there, and it cannot set
//! `half_close`, without which `nc -N` and `socat` get no answer.

pub mod listen;
pub mod systemd;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_io_timeout::TimeoutStream;

use crate::limits;

/// Where connections come from.
pub enum Listener {
    /// For webhook senders, behind a proxy.
    Tcp(TcpListener),
    /// For consumers and operators.
    Unix(UnixListener),
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A local process.
    Unix {
        /// Its user.
        uid: Option<u32>,
        /// Its process id.
        pid: Option<i32>,
    },
}

/// The limits of one server.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Connections at one time; more wait in the kernel's queue.
    pub connections_max: usize,
    /// From the first byte awaited to the end of the headers.
    pub header_timeout: Duration,
    /// How long the peer may leave written bytes unread.
    pub write_timeout: Duration,
    /// How long requests under way may take once the server stops.
    pub drain_timeout: Duration,
}

/// Raises the limit of open files as far as the system allows and the daemon can use, and returns it.
/// Without this, a few hundred idle connections would take every descriptor that a login shell
/// grants, and the database would get none.
pub fn raise_file_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = (limits::FILES_MAX as u64).min(limit.maximum.unwrap_or(u64::MAX));
    let current = limit.current.unwrap_or(u64::MAX);
    let raised = current < wanted
        && setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum: limit.maximum,
            },
        )
        .is_ok();
    let files = if raised { wanted } else { current };
    if files < limits::FILES_MAX as u64 {
        tracing::warn!(
            files,
            wanted = limits::FILES_MAX,
            "few files may be open; fewer connections are taken"
        );
    }
    usize::try_from(files).unwrap_or(usize::MAX)
}

/// Serves connections until `stop` turns true, then lets those in progress finish for at most
/// [`Allowance::drain_timeout`], and closes those that are left. Connections without a request are not closed at once: see
/// [`limits::SHUTDOWN_LINGER`]. A request that comes on one is answered with `Connection: close`.
pub async fn serve<S, B>(
    listener: Listener,
    allowance: Allowance,
    service: impl Fn(Peer) -> S,
    mut stop: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let slots = Arc::new(Semaphore::new(allowance.connections_max));
    let drain = GracefulShutdown::new();
    // Every connection ends when this function returns and drops the sender.
    let (_end, cut) = watch::channel(false);
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot,
            () = stopped(&mut stop) => break,
        };
        let Ok(slot) = slot else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((Stream::Tcp(stream), peer)) => {
                spawn(
                    stream,
                    allowance,
                    last(service(peer), &stop),
                    &drain,
                    &cut,
                    slot,
                );
            }
            Ok((Stream::Unix(stream), peer)) => {
                spawn(
                    stream,
                    allowance,
                    last(service(peer), &stop),
                    &drain,
                    &cut,
                    slot,
                );
            }
            Err(error) => {
                // Out of descriptors, most likely: wait for one rather than spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Connections in the backlog of a socket that systemd holds wait there for the next process.
    drop(listener);
    let all = u32::try_from(allowance.connections_max).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(limits::SHUTDOWN_LINGER, slots.acquire_many(all)).await;
    if tokio::time::timeout(allowance.drain_timeout, drain.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some connections did not finish in time and are cut off");
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender of `stop` is dropped, which is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn last<S>(service: S, stop: &watch::Receiver<bool>) -> Closing<S> {
    Closing {
        service,
        stop: stop.clone(),
    }
}

/// A service whose responses close the connection once the server is stopping.
struct Closing<S> {
    service: S,
    stop: watch::Receiver<bool>,
}

impl<S, B> Service<Request<Incoming>> for Closing<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (answer, stop) = (self.service.call(request), self.stop.clone());
        Box::pin(async move {
            let mut response = answer.await?;
            if *stop.borrow() {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        })
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    async fn accept(&self) -> std::io::Result<(Stream, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred().ok();
                let (uid, pid) = (
                    credentials.map(|who| who.uid()),
                    credentials.and_then(|who| who.pid()),
                );
                Ok((Stream::Unix(stream), Peer::Unix { uid, pid }))
            }
        }
    }
}

fn spawn<I, S, B>(
    io: I,
    allowance: Allowance,
    service: S,
    drain: &GracefulShutdown,
    cut: &watch::Receiver<bool>,
    slot: OwnedSemaphorePermit,
) where
    I: AsyncRead + AsyncWrite + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let mut io = TimeoutStream::new(io);
    io.set_write_timeout(Some(allowance.write_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(allowance.header_timeout)
        .half_close(true)
        .max_buf_size(limits::CONNECTION_BUFFER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(io)), service);
    let connection = drain.watch(connection);
    let mut cut = cut.clone();
    tokio::spawn(async move {
        let _slot = slot;
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::trace!(%error, "a connection ended early");
            },
            () = stopped(&mut cut) => {}
        }
    });
}

/// A body that is either whole or streamed.
pub type AnyBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// A whole body.
pub fn whole(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).boxed_unsync()
}

/// A JSON response, ended by a newline for the terminals it is read on.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response<AnyBody> {
    let mut text = serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned());
    text.push('\n');
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The body of every error reply: `{"error":{"code","message",…}}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ErrorReply {
    /// The error and its values.
    pub error: ErrorBody,
}

/// An error: a code for programs, a sentence for people, and values that depend on the code.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ErrorBody {
    /// A word that does not change between releases.
    pub code: String,
    /// A sentence that says what to do.
    pub message: String,
    /// Further values by name, such as `earliest`.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

/// Why a server refuses a request; becomes an [`ErrorReply`].
#[derive(Clone, Debug)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people, which says what to do.
    pub message: String,
    /// More, by name.
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    /// A problem without further fields.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Problem {
        Problem {
            status,
            code,
            message: message.into(),
            more: serde_json::Map::new(),
        }
    }

    /// The problem without its HTTP status.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            code: self.code.to_owned(),
            message: self.message.clone(),
            more: self.more.clone(),
        }
    }

    /// Adds a named field to the error's JSON.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Problem {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// The response.
    pub fn response(&self) -> Response<AnyBody> {
        let error = self.body();
        let mut response = json(self.status, &ErrorReply { error });
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(limits::RETRY_AFTER_SECONDS));
        }
        response
    }
}

/// A service made of one function.
#[derive(Clone)]
pub struct Function<F>(pub F);

impl<F, R, B> Service<Request<Incoming>> for Function<F>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<B>> + Send + 'static,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let response = (self.0)(request);
        Box::pin(async move { Ok(response.await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_request_that_never_ends_is_cut_off_at_the_drain_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let (began, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let never = move |_: Peer| {
            let began = began.clone();
            Function(move |_: Request<Incoming>| {
                let _ = began.send(());
                std::future::pending::<Response<AnyBody>>()
            })
        };
        let allowance = Allowance {
            connections_max: 4,
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_millis(200),
        };
        let server = tokio::spawn(serve(Listener::Tcp(listener), allowance, never, stopped));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(request).await.unwrap();
        begins.recv().await.unwrap();
        stop.send_replace(true);
        server.await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut rest));
        let _ = end.await.expect("the connection ends with the server");
        assert!(rest.is_empty(), "{rest:?}");
    }
}
