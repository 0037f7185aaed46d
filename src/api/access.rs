//! Which requests the sockets answer: rules for browsers that something bridges to them.
//!
//! The mode and group of a socket decide which local user may connect. `ssh -L`, `socat` or a proxy
//! can carry a browser there, and then a page of any other site could send requests in that user's
//! name. These rules refuse such requests, and DNS rebinding, on every route of both sockets. Clients
//! that are not browsers (curl, nc, socat, Python, Node) send none of the headers that are judged.
//!
//! Pure: [`Access::check`] is a function of method, target and headers.

use hyper::http::HeaderMap;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use crate::config::{Page, WebOrigin};
use crate::server::Problem;

/// The rules, with the origins that the configuration adds.
#[derive(Clone, Debug, Default)]
pub struct Access {
    page: Page,
}

impl Access {
    /// The rules for a daemon with this `[page]` section.
    pub fn new(page: Page) -> Access {
        Access { page }
    }

    /// Refuses a request that a foreign page, or a foreign name for this host, may have caused.
    pub fn check(&self, head: &Parts) -> Result<(), Problem> {
        let hosts = hosts(head)?;
        for host in &hosts {
            self.check_host(host)?;
        }
        if matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            check_read(&head.headers)
        } else {
            self.check_write(&head.headers, &hosts)
        }
    }

    /// A name that DNS could lead here is answered only if the configuration names it.
    fn check_host(&self, host: &str) -> Result<(), Problem> {
        let configured = self.origins().any(|origin| origin.authority() == host);
        if configured || is_local(without_port(host)) {
            return Ok(());
        }
        Err(forbidden(
            "foreign_host",
            "this Host is not served here; if a proxy of yours sends it, name its address as \
             [page] origin = \"https://…\" in the configuration",
        ))
    }

    /// A change needs a page of ours, or a client that is not a browser.
    fn check_write(&self, headers: &HeaderMap, hosts: &[String]) -> Result<(), Problem> {
        let origin = single(headers, "origin")?;
        let read_only = |authority: &str| {
            let mut origins = self.page.read_only_origins.iter();
            origins.any(|origin| origin.authority() == authority)
        };
        let named = origin.and_then(|origin| Some(origin.split_once("://")?.1));
        if named.is_some_and(read_only) || hosts.iter().any(|host| read_only(host)) {
            return Err(forbidden(
                "read_only",
                "this address is configured as read-only ([page] read_only_origins); use the \
                 command instead",
            ));
        }
        let allowed = match (single(headers, "sec-fetch-site")?, origin) {
            (Some(site), _) => site == "same-origin",
            (None, Some(origin)) => self.is_ours(origin, hosts),
            (None, None) => true,
        };
        if allowed {
            return Ok(());
        }
        Err(forbidden(
            "foreign_origin",
            "a browser sends this for a page of another site; open the page at its own address, \
             or name that address as [page] origin in the configuration",
        ))
    }

    fn is_ours(&self, origin: &str, hosts: &[String]) -> bool {
        let configured = self.origins().any(|ours| ours.as_str() == origin);
        configured || hosts.iter().any(|host| origin == format!("http://{host}"))
    }

    fn origins(&self) -> impl Iterator<Item = &WebOrigin> {
        self.page.origin.iter().chain(&self.page.read_only_origins)
    }
}

/// A read is refused if a page of another site asks for it, except as the page that a person
/// navigates to.
fn check_read(headers: &HeaderMap) -> Result<(), Problem> {
    let site = single(headers, "sec-fetch-site")?;
    let navigates = single(headers, "sec-fetch-mode")? == Some("navigate")
        && single(headers, "sec-fetch-dest")? == Some("document");
    if matches!(site, None | Some("same-origin" | "none")) || navigates {
        return Ok(());
    }
    Err(forbidden(
        "foreign_origin",
        "a browser sends this for a page of another site, which may not read here",
    ))
}

/// Every authority that the request names, in lower case: its `Host` and that of an absolute target.
fn hosts(head: &Parts) -> Result<Vec<String>, Problem> {
    let header = single(&head.headers, "host")?;
    let target = head
        .uri
        .authority()
        .map(hyper::http::uri::Authority::as_str);
    let named = header.into_iter().chain(target);
    Ok(named
        .filter(|host| !host.is_empty())
        .map(str::to_ascii_lowercase)
        .collect())
}

/// The value of a header that may come once at most.
fn single<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    let text = first.map(hyper::header::HeaderValue::to_str).transpose();
    match (text, values.next()) {
        (Ok(text), None) => Ok(text),
        _ => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "bad_request",
            format!("the header {name} comes once at most, as plain text"),
        )),
    }
}

/// The host without its port; the brackets of an IPv6 address stay.
fn without_port(host: &str) -> &str {
    let end_of_address = host.rfind(']').map_or(0, |at| at + 1);
    match host[end_of_address..].rfind(':') {
        Some(at) => &host[..end_of_address + at],
        None => host,
    }
}

/// Whether a name leads to this machine whatever DNS says: a loopback address, a name below
/// `localhost`, or a single label, which no public name is.
fn is_local(name: &str) -> bool {
    if let Ok(address) = name.parse::<std::net::Ipv4Addr>() {
        return address.is_loopback();
    }
    let label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    name == "[::1]" || name.ends_with(".localhost") || (!name.is_empty() && name.bytes().all(label))
}

fn forbidden(code: &'static str, message: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, code, message)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn access() -> Access {
        Access::new(Page {
            origin: Some(WebOrigin::parse("https://runs.example.org").unwrap()),
            read_only_origins: vec![WebOrigin::parse("https://look.example.org").unwrap()],
        })
    }

    /// The code of the refusal of a request, or `None`.
    fn outcome(method: &str, headers: &[(&str, &str)]) -> Option<&'static str> {
        let mut request = Request::builder().method(method).uri("/v1/runs");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        access().check(&head).err().map(|problem| problem.code)
    }

    #[test]
    fn clients_that_are_no_browsers_are_answered() {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
            let local = [
                "settled",
                "localhost",
                "localhost:8676",
                "page.localhost:80",
                "127.0.0.1",
                "127.9.9.9:8676",
                "[::1]",
                "[::1]:8676",
                "LOCALHOST",
                "",
            ];
            for host in local {
                assert_eq!(outcome(method, &[("host", host)]), None, "{method} {host}");
            }
            assert_eq!(outcome(method, &[]), None, "{method} without a Host");
        }
    }

    #[test]
    fn a_name_that_dns_could_lead_here_is_refused_unless_it_is_configured() {
        for method in ["GET", "POST"] {
            for host in [
                "evil.example",
                "evil.example:8676",
                "localhost.evil.example",
                "127.0.0.1.evil.example",
                "192.168.0.7",
                "10.0.0.1:80",
                "0.0.0.0",
                "[::ffff:127.0.0.1]",
                "[2001:db8::1]",
                "user@localhost",
                "localhost.",
                "a b",
                ":8676",
            ] {
                let refused = Some("foreign_host");
                assert_eq!(
                    outcome(method, &[("host", host)]),
                    refused,
                    "{method} {host}"
                );
            }
            assert_eq!(outcome(method, &[("host", "runs.example.org")]), None);
        }
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(outcome("GET", &two), Some("bad_request"));
        let target = Request::get("http://evil.example/v1/runs")
            .body(())
            .unwrap();
        assert!(access().check(&target.into_parts().0).is_err());
    }

    #[test]
    fn a_change_comes_from_a_page_of_ours_or_from_no_browser() {
        let host = ("host", "localhost:8676");
        for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE"] {
            let site = |site| outcome(method, &[host, ("sec-fetch-site", site)]);
            assert_eq!(site("same-origin"), None, "{method}");
            for foreign in ["cross-site", "same-site", "none", "", "SAME-ORIGIN"] {
                assert_eq!(
                    site(foreign),
                    Some("foreign_origin"),
                    "{method} {foreign:?}"
                );
            }
            let origin = |origin| outcome(method, &[host, ("origin", origin)]);
            assert_eq!(origin("http://localhost:8676"), None, "{method}");
            assert_eq!(origin("https://runs.example.org"), None, "{method}");
            for foreign in [
                "null",
                "https://evil.example",
                "http://localhost",
                "http://localhost:9999",
                "https://localhost:8676",
                "http://runs.example.org",
                "https://runs.example.org.evil.example",
            ] {
                let refused = Some("foreign_origin");
                assert_eq!(origin(foreign), refused, "{method} {foreign}");
            }
            let both = [
                host,
                ("sec-fetch-site", "cross-site"),
                ("origin", "http://localhost:8676"),
            ];
            assert_eq!(outcome(method, &both), Some("foreign_origin"));
        }
    }

    #[test]
    fn a_foreign_page_reads_nothing_but_a_person_may_follow_a_link() {
        for method in ["GET", "HEAD", "OPTIONS"] {
            for site in ["cross-site", "same-site", "anything"] {
                let fetch = [("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")];
                assert_eq!(outcome(method, &fetch), Some("foreign_origin"));
                let frame = [
                    ("sec-fetch-site", site),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "iframe"),
                ];
                assert_eq!(outcome(method, &frame), Some("foreign_origin"));
                let link = [
                    ("sec-fetch-site", site),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "document"),
                ];
                assert_eq!(outcome(method, &link), None);
            }
            for site in ["same-origin", "none"] {
                assert_eq!(outcome(method, &[("sec-fetch-site", site)]), None);
            }
        }
    }

    #[test]
    fn a_read_only_address_reads_and_changes_nothing() {
        let host = ("host", "look.example.org");
        assert_eq!(outcome("GET", &[host]), None);
        assert_eq!(outcome("POST", &[host]), Some("read_only"));
        let rewritten = [
            ("host", "localhost"),
            ("origin", "https://look.example.org"),
            ("sec-fetch-site", "same-origin"),
        ];
        assert_eq!(outcome("POST", &rewritten), Some("read_only"));
    }
}
