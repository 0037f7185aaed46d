//! The commands' side of the sockets: HTTP over a Unix socket, answers as the exact bytes the daemon
//! sent, failures that say what to do.
//!
//! Deliberately absent: proxies, redirects, retries (a command that wants to try again says so
//! itself), and any knowledge of what an answer means.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::limits;

/// Longer than the daemon ever takes: it answers a `wait` within [`limits::WAIT_MAX`].
const SILENCE_MAX: Duration = limits::WAIT_MAX.saturating_add(Duration::from_secs(60));

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("the daemon cannot be reached on {}: {why}; {}", .socket.display(), remedy(.why))]
    Unreachable {
        /// Which socket.
        socket: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// The daemon answered with an error.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its word for programs.
        code: String,
        /// Its sentence for people.
        message: String,
        /// What else it said, by name.
        more: Map<String, Value>,
    },
    /// The connection broke off in the middle.
    #[error("the connection to the daemon on {} broke off ({why}); try again", .socket.display())]
    Broken {
        /// Which socket.
        socket: PathBuf,
        /// How.
        why: String,
    },
    /// The answer is not what this version knows.
    #[error(
        "the daemon's answer is not understood ({0}); do the daemon and this command have the same version?"
    )]
    Unreadable(serde_json::Error),
    /// The HTTP client itself.
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
    /// Whether nobody answered at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ClientError::Unreachable { .. })
    }

    /// The daemon's word for what is wrong, if it gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// What is asked for: a path and a query, percent-encoded.
#[derive(Clone, Debug)]
pub struct Target(Url);

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
        Target(url)
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
        self.0
            .path_segments_mut()
            .expect("http has a path")
            .push(segment);
        self
    }

    /// With a query parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Display) -> Target {
        self.0
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

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status, below 300.
    pub status: u16,
    /// The exact bytes.
    pub body: Bytes,
}

impl Reply {
    /// Reads the JSON.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(ClientError::Unreadable)
    }

    /// The JSON as it came, without a line's end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }
}

/// An answer that goes on.
#[derive(Debug)]
pub struct Stream {
    response: reqwest::Response,
    socket: PathBuf,
}

impl Stream {
    /// The next bytes; `None` at the end.
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
    /// A client of this socket. Nothing is connected yet.
    pub fn new(socket: &Path) -> Result<Client, ClientError> {
        let http = reqwest::Client::builder()
            .unix_socket(socket.to_owned())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("settled/", env!("CARGO_PKG_VERSION")))
            // Nothing is encrypted on a Unix socket, so no certificates need to be read.
            .tls_certs_only([])
            .read_timeout(SILENCE_MAX)
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Client {
            http,
            socket: socket.to_owned(),
        })
    }

    /// `GET`.
    pub async fn get(&self, target: Target) -> Result<Reply, ClientError> {
        self.whole(Method::GET, target, None).await
    }

    /// `POST` with a JSON body.
    pub async fn post(&self, target: Target, body: &Value) -> Result<Reply, ClientError> {
        self.whole(Method::POST, target, Some(body)).await
    }

    /// Any method, with a JSON body or none.
    pub async fn send(
        &self,
        method: Method,
        target: Target,
        body: Option<&Value>,
    ) -> Result<Reply, ClientError> {
        self.whole(method, target, body).await
    }

    /// `GET` of an answer that goes on.
    pub async fn stream(&self, target: Target) -> Result<Stream, ClientError> {
        let response = self.ask(Method::GET, target, None).await?;
        if response.status().is_success() {
            return Ok(Stream {
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
        body: Option<&Value>,
    ) -> Result<Reply, ClientError> {
        let response = self.ask(method, target, body).await?;
        let reply = self.body(response).await?;
        if reply.status < 300 {
            Ok(reply)
        } else {
            Err(refused(&reply))
        }
    }

    async fn ask(
        &self,
        method: Method,
        target: Target,
        body: Option<&Value>,
    ) -> Result<reqwest::Response, ClientError> {
        let mut request = self.http.request(method, target.0);
        if let Some(body) = body {
            request = request
                .header(CONTENT_TYPE, "application/json")
                .body(body.to_string());
        }
        request
            .send()
            .await
            .map_err(|error| match connecting(&error) {
                Some(why) => ClientError::Unreachable {
                    socket: self.socket.clone(),
                    why,
                },
                None => broken(&self.socket, &error),
            })
    }

    async fn body(&self, response: reqwest::Response) -> Result<Reply, ClientError> {
        let status = response.status().as_u16();
        let body = response
            .bytes()
            .await
            .map_err(|error| broken(&self.socket, &error))?;
        Ok(Reply { status, body })
    }
}

/// What the system said when there was nobody to connect to.
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
        Some(io::ErrorKind::ConnectionRefused) => io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "nobody is listening there",
        ),
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
    let why = if error.is_timeout() {
        "it has been silent for too long".to_owned()
    } else {
        last_cause(error)
    };
    ClientError::Broken {
        socket: socket.to_owned(),
        why,
    }
}

fn refused(reply: &Reply) -> ClientError {
    let said = serde_json::from_slice::<Value>(&reply.body).ok();
    let mut more = match said.map(|mut said| said["error"].take()) {
        Some(Value::Object(error)) => error,
        _ => Map::new(),
    };
    let mut word = |name: &str| match more.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let status = reply.status;
    let code = word("code").unwrap_or_else(|| "unknown".to_owned());
    let message = word("message")
        .unwrap_or_else(|| format!("the daemon answered HTTP {status} and nothing more"));
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
            target.0.as_str(),
            "http://settled/v1/runs/a%20b/x%2Fy%232%3Fz%25/poll?wait=1%262%3D%C3%BC"
        );
        assert_eq!(
            Target::new(["healthz"])
                .with_some("a", None::<u8>)
                .0
                .as_str(),
            "http://settled/healthz"
        );
    }

    #[test]
    fn an_error_is_taken_apart() {
        let body = br#"{"error":{"code":"cursor_expired","message":"gone","earliest":"a.1"}}"#;
        let error = refused(&Reply {
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
        let mute = refused(&Reply {
            status: 500,
            body: Bytes::from_static(b"<html>"),
        });
        assert_eq!(
            mute.to_string(),
            "the daemon answered HTTP 500 and nothing more"
        );
    }

    #[tokio::test]
    async fn who_is_not_there_is_named_with_a_remedy() {
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
                .contains(": nobody is listening there; start it")
        );
    }
}
