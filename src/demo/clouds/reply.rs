//! Questions to a cloud as it sees them, and its replies, the broken ones included.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

/// A request, read.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The method.
    pub method: hyper::Method,
    /// The path in segments, empty ones left out, decoded.
    pub path: Vec<String>,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: hyper::HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Ask {
    /// Reads a request. `target` is its path and query.
    pub fn new(method: hyper::Method, target: &str, headers: hyper::HeaderMap, body: Bytes) -> Ask {
        let url = reqwest::Url::parse("http://cloud")
            .and_then(|base| base.join(target))
            .ok();
        let segments = url
            .as_ref()
            .and_then(|url| Some(url.path_segments()?.map(decoded).collect::<Vec<_>>()));
        let query = url
            .iter()
            .flat_map(|url| url.query_pairs().into_owned().collect::<Vec<_>>())
            .collect();
        let path = segments
            .unwrap_or_default()
            .into_iter()
            .filter(|segment| !segment.is_empty())
            .collect();
        Ask {
            method,
            path,
            query,
            headers,
            body,
        }
    }

    /// The path as a slice to match on.
    pub fn segments(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// The first value of a query parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every value of a query parameter.
    pub fn params<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A query parameter that is a whole number, or `default`.
    pub fn number(&self, name: &str, default: usize) -> usize {
        self.param(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or(default)
    }

    /// A header that is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// One path segment, percent-decoded.
fn decoded(segment: &str) -> String {
    let query = format!("http://cloud/?x={}", segment.replace('+', "%2B"));
    let url = reqwest::Url::parse(&query).ok();
    url.and_then(|url| {
        url.query_pairs()
            .next()
            .map(|(_, value)| value.into_owned())
    })
    .unwrap_or_default()
}

/// How a reply leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transfer {
    /// At once and whole.
    #[default]
    Proper,
    /// Late.
    Slow(Duration),
    /// Half of it, then the connection is closed.
    CutOff,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Headers beside the length.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
    /// How it leaves.
    pub transfer: Transfer,
}

impl Reply {
    /// JSON.
    pub fn json(status: u16, body: &Value) -> Reply {
        Reply::text(status, "application/json", body.to_string())
    }

    /// 200 with JSON.
    pub fn ok(body: &Value) -> Reply {
        Reply::json(200, body)
    }

    /// Anything else.
    pub fn text(status: u16, content_type: &str, body: impl Into<String>) -> Reply {
        let headers = vec![("content-type", content_type.to_owned())];
        Reply {
            status,
            headers,
            body: Bytes::from(body.into()),
            transfer: Transfer::Proper,
        }
    }

    /// With a further header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    /// In another transfer.
    #[must_use]
    pub fn transfer(self, transfer: Transfer) -> Reply {
        Reply { transfer, ..self }
    }

    /// As hyper sends it.
    pub(super) fn into_response(self) -> hyper::Response<BoxBody<Bytes, std::io::Error>> {
        let mut response = hyper::Response::builder()
            .status(self.status)
            .header("content-length", self.body.len());
        for (name, value) in &self.headers {
            response = response.header(*name, value);
        }
        let body = if self.transfer == Transfer::CutOff {
            let half = self.body.slice(..self.body.len() / 2);
            let broken = std::io::Error::other("as planned");
            StreamBody::new(stream::iter([Ok(Frame::data(half)), Err(broken)])).boxed()
        } else {
            Full::new(self.body).map_err(|never| match never {}).boxed()
        };
        response.body(body).unwrap_or_else(|_| {
            let empty = Full::new(Bytes::new())
                .map_err(|never| match never {})
                .boxed();
            hyper::Response::new(empty)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_apart() {
        let ask = Ask::new(
            hyper::Method::GET,
            "/v1/runs/a%20b/?status=created&status=queued&page=2",
            hyper::HeaderMap::new(),
            Bytes::new(),
        );
        assert_eq!(ask.segments(), ["v1", "runs", "a b"]);
        assert_eq!(
            ask.params("status").collect::<Vec<_>>(),
            ["created", "queued"]
        );
        assert_eq!(
            (ask.number("page", 1), ask.number("page_size", 10)),
            (2, 10)
        );
    }
}
