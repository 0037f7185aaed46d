//! The commands' side of the sockets: HTTP over a Unix socket, replies as the exact bytes that the
//! daemon sent, failures that say what to do.
//!
//! No request waits for ever: each has a deadline for the first byte of its reply and for every
//! further read. [`ANSWER_MAX`] is the usual one; [`Target::answered_within`] sets another.
//!
//! Deliberately absent: proxies, redirects, retries (a command that tries again does so itself), and
//! any knowledge of what a reply means.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::show;
use crate::api::types::{ErrorBody, ErrorReply};
use crate::config;

/// How long the daemon may take to begin its reply. It reads SQLite and waits for one commit.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);
/// The same where the daemon first has to ask a provider, with up to a few requests.
pub const PROVIDER_ANSWER_MAX: Duration = Duration::from_secs(120);
/// After this long, a person at a terminal is told what the command waits for.
const NOTICE_AFTER: Duration = Duration::from_millis(1_500);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection to the socket failed.
    #[error("the daemon cannot be reached on {}: {why}; {}", .socket.display(), remedy(.why))]
    Unreachable {
        /// Which socket.
        socket: PathBuf,
        /// The system's error.
        why: io::Error,
    },
    /// The connection was accepted, and no reply came within the deadline.
    #[error(
        "the daemon on {} does not answer (for {}); it is stopped or overloaded, see `systemctl status settled`",
        .socket.display(), config::shown(*.after)
    )]
    Silent {
        /// Which socket.
        socket: PathBuf,
        /// The deadline that has passed.
        after: Duration,
    },
    /// The daemon replied with an error.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error's code, for programs.
        code: String,
        /// The error's sentence, for people.
        message: String,
        /// Further values of the error, by name.
        more: Map<String, Value>,
    },
    /// The connection broke off in the middle.
    #[error("the connection to the daemon on {} broke off ({why}); try again", .socket.display())]
    Broken {
        /// Which socket.
        socket: PathBuf,
        /// The error of the system or of the HTTP client.
        why: String,
    },
    /// The reply is not of the type that this version reads.
    #[error(
        "the daemon's answer is not understood ({0}); do the daemon and this command have the same version?"
    )]
    Unreadable(serde_json::Error),
    /// The HTTP client could not be built.
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(reqwest::Error),
}

fn remedy(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::PermissionDenied => {
            "run this as a user who may use the socket (group settled)"
        }
        _ => "start it with `settled serve` or `systemctl start settled`",
    }
}

impl ClientError {
    /// Whether no daemon answered at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            ClientError::Unreachable { .. } | ClientError::Silent { .. }
        )
    }

    /// Whether the connection failed: the daemon may be restarting.
    pub fn is_lost(&self) -> bool {
        self.is_unreachable() || matches!(self, ClientError::Broken { .. })
    }

    /// Whether the daemon may be back, or less busy, in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            ClientError::Refused { status, .. } => matches!(status, 429 | 503),
            error => error.is_lost(),
        }
    }

    /// The code of the daemon's error, if it sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// The target of a request: a path and a query, percent-encoded, and how long the reply may take.
#[derive(Clone, Debug)]
pub struct Target {
    url: Url,
    answer_max: Duration,
}

impl Target {
    /// The path made of these segments, each of which may contain anything.
    ///
    /// # Panics
    /// Never: the address the path is put on is a constant.
    pub fn new<'a>(segments: impl IntoIterator<Item = &'a str>) -> Target {
        let mut url = Url::parse("http://settled/").expect("a constant that is a URL");
        url.path_segments_mut()
            .expect("http has a path")
            .clear()
            .extend(segments);
        Target {
            url,
            answer_max: ANSWER_MAX,
        }
    }

    /// A run's path.
    pub fn run(source: &str, run_id: &str) -> Target {
        Target::new(["v1", "runs", source, run_id])
    }

    /// With one segment more.
    ///
    /// # Panics
    /// Never; see [`Target::new`].
    #[must_use]
    pub fn then(mut self, segment: &str) -> Target {
        self.url
            .path_segments_mut()
            .expect("http has a path")
            .push(segment);
        self
    }

    /// With another deadline for the first byte of the reply.
    #[must_use]
    pub fn answered_within(mut self, answer_max: Duration) -> Target {
        self.answer_max = answer_max;
        self
    }

    /// With a query parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Display) -> Target {
        self.url
            .query_pairs_mut()
            .append_pair(name, &value.to_string());
        self
    }

    /// With a query parameter, if there is a value for it.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Display>) -> Target {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}

/// A whole reply.
#[derive(Clone, Debug)]
pub struct WholeReply {
    /// The HTTP status, below 300.
    pub status: u16,
    /// The exact bytes of the body.
    pub body: Bytes,
}

impl WholeReply {
    /// The body as one of the types of the API.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(ClientError::Unreadable)
    }

    /// The JSON as it came, without the newline at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }
}

/// A reply whose body is read piece by piece.
#[derive(Debug)]
pub struct ByteStream {
    response: reqwest::Response,
    socket: PathBuf,
}

impl ByteStream {
    /// The next bytes; `None` at the end. The caller sets its own deadline.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.response
            .chunk()
            .await
            .map_err(|error| broken(&self.socket, &error))
    }
}

/// A client of one socket.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    /// A client of this socket, which connects when a request is sent.
    pub fn new(socket: &Path) -> Result<Client, ClientError> {
        let http = reqwest::Client::builder()
            .unix_socket(socket.to_owned())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("settled/", env!("CARGO_PKG_VERSION")))
            // Nothing is encrypted on a Unix socket, so no certificates need to be read.
            .tls_certs_only([])
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Client {
            http,
            socket: socket.to_owned(),
        })
    }

    /// Sends a `GET`.
    pub async fn get(&self, target: Target) -> Result<WholeReply, ClientError> {
        self.whole(Method::GET, target, None).await
    }

    /// Sends a `POST` with a JSON body.
    pub async fn post(
        &self,
        target: Target,
        body: &impl Serialize,
    ) -> Result<WholeReply, ClientError> {
        self.send(Method::POST, target, Some(body)).await
    }

    /// Sends a `POST` without a body.
    pub async fn post_empty(&self, target: Target) -> Result<WholeReply, ClientError> {
        self.whole(Method::POST, target, None).await
    }

    /// Sends a request of any method, with a JSON body or none.
    pub async fn send<B: Serialize>(
        &self,
        method: Method,
        target: Target,
        body: Option<&B>,
    ) -> Result<WholeReply, ClientError> {
        let body = body.map(serde_json::to_string).transpose();
        let body = body.map_err(ClientError::Unreadable)?;
        self.whole(method, target, body).await
    }

    /// The error for a deadline of the command's own, such as `wait --timeout`.
    pub fn silent(&self, after: Duration) -> ClientError {
        ClientError::Silent {
            socket: self.socket.clone(),
            after,
        }
    }

    /// Sends a `GET` whose reply goes on.
    pub async fn stream(&self, target: Target) -> Result<ByteStream, ClientError> {
        let response = self.begin(Method::GET, target, None).await?;
        if response.status().is_success() {
            return Ok(ByteStream {
                response,
                socket: self.socket.clone(),
            });
        }
        Err(refused(&self.body(response).await?))
    }

    async fn whole(
        &self,
        method: Method,
        target: Target,
        body: Option<String>,
    ) -> Result<WholeReply, ClientError> {
        let response = self.begin(method, target, body).await?;
        let reply = self.body(response).await?;
        if reply.status < 300 {
            Ok(reply)
        } else {
            Err(refused(&reply))
        }
    }

    /// Sends the request and waits for the head of the reply, at most until the target's deadline.
    async fn begin(
        &self,
        method: Method,
        target: Target,
        body: Option<String>,
    ) -> Result<reqwest::Response, ClientError> {
        let Target { url, answer_max } = target;
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let answered = timeout(answer_max, self.noticed(request.send())).await;
        let answered = answered.map_err(|_| self.silent(answer_max))?;
        answered.map_err(|error| match connecting(&error) {
            Some(why) => ClientError::Unreachable {
                socket: self.socket.clone(),
                why,
            },
            None => broken(&self.socket, &error),
        })
    }

    /// Waits for an answer; says so on a terminal if it takes long.
    async fn noticed<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        if let Ok(answer) = timeout(NOTICE_AFTER, &mut answer).await {
            return answer;
        }
        show::aside(&format!(
            "waiting for the daemon on {} to answer",
            self.socket.display()
        ));
        answer.await
    }

    async fn body(&self, mut response: reqwest::Response) -> Result<WholeReply, ClientError> {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        loop {
            let piece = timeout(ANSWER_MAX, response.chunk()).await;
            let piece = piece.map_err(|_| self.silent(ANSWER_MAX))?;
            match piece.map_err(|error| broken(&self.socket, &error))? {
                Some(piece) => body.extend_from_slice(&piece),
                None => break,
            }
        }
        Ok(WholeReply {
            status,
            body: body.into(),
        })
    }
}

/// The system's error, if the connection was refused.
fn connecting(error: &reqwest::Error) -> Option<io::Error> {
    if !error.is_connect() {
        return None;
    }
    let kind = causes(error)
        .find_map(|cause| cause.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    Some(match kind {
        Some(io::ErrorKind::NotFound) => {
            io::Error::new(io::ErrorKind::NotFound, "there is no such socket")
        }
        Some(io::ErrorKind::ConnectionRefused) => {
            io::Error::new(io::ErrorKind::ConnectionRefused, "no process listens there")
        }
        Some(kind) => io::Error::new(kind, last_cause(error)),
        None => io::Error::other(last_cause(error)),
    })
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

fn last_cause(error: &reqwest::Error) -> String {
    causes(error)
        .last()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

fn broken(socket: &Path, error: &reqwest::Error) -> ClientError {
    ClientError::Broken {
        socket: socket.to_owned(),
        why: last_cause(error),
    }
}

fn refused(reply: &WholeReply) -> ClientError {
    let status = reply.status;
    let error = serde_json::from_slice(&reply.body).map_or_else(
        |_| ErrorBody {
            code: "unknown".to_owned(),
            message: format!("the daemon answered HTTP {status} and nothing more"),
            more: Map::new(),
        },
        |reply: ErrorReply| reply.error,
    );
    let ErrorBody {
        code,
        message,
        more,
    } = error;
    ClientError::Refused {
        status,
        code,
        message,
        more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_values_may_contain_anything() {
        let target = Target::run("a b", "x/y#2?z%")
            .then("poll")
            .with("wait", "1&2=ü");
        assert_eq!(
            target.url.as_str(),
            "http://settled/v1/runs/a%20b/x%2Fy%232%3Fz%25/poll?wait=1%262%3D%C3%BC"
        );
        assert_eq!(
            Target::new(["healthz"])
                .with_some("a", None::<u8>)
                .url
                .as_str(),
            "http://settled/healthz"
        );
    }

    #[test]
    fn an_error_reply_gives_its_code_message_and_values() {
        let body = br#"{"error":{"code":"cursor_expired","message":"gone","earliest":"a.1"}}"#;
        let error = refused(&WholeReply {
            status: 410,
            body: Bytes::from_static(body),
        });
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            (Some("cursor_expired"), "gone")
        );
        let ClientError::Refused { more, .. } = error else {
            panic!("not refused")
        };
        assert_eq!(more["earliest"], "a.1");
        let mute = refused(&WholeReply {
            status: 500,
            body: Bytes::from_static(b"<html>"),
        });
        assert_eq!(
            mute.to_string(),
            "the daemon answered HTTP 500 and nothing more"
        );
    }

    #[tokio::test]
    async fn a_socket_without_a_daemon_is_named_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let ask = || async {
            Client::new(&path)
                .unwrap()
                .get(Target::new(["healthz"]))
                .await
                .unwrap_err()
        };
        let absent = ask().await;
        assert!(absent.is_unreachable());
        assert_eq!(
            absent.to_string(),
            format!(
                "the daemon cannot be reached on {}: there is no such socket; start it with `settled serve` or \
                 `systemctl start settled`",
                path.display()
            )
        );
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(
            ask()
                .await
                .to_string()
                .contains(": no process listens there; start it")
        );
    }
}
