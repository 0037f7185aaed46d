//! `[page]`: the addresses under which a proxy shows the sockets to browsers.

/// `[page]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The address of a proxy with authentication in front of the control socket.
    pub origin: Option<WebOrigin>,
    /// Addresses at which browsers may read and change nothing.
    pub read_only_origins: Vec<WebOrigin>,
}

/// The origin of a web page as browsers send it: scheme, host, and a port if it is not the
/// scheme's own. Lower case, without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin {
    text: String,
    authority: usize,
}

impl WebOrigin {
    /// Reads an origin. The error completes a sentence for the person who wrote it.
    pub fn parse(text: &str) -> Result<WebOrigin, &'static str> {
        let lower = text.to_ascii_lowercase();
        let (scheme, authority) = lower
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "https" | "http"))
            .ok_or("begin with https:// or http://")?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        if authority.is_empty() || !authority.bytes().all(plain) {
            return Err("write scheme and host only, without a path or a trailing slash");
        }
        // Browsers leave the scheme's own port out, so one that is written down would never match.
        let own_port = if scheme == "https" { ":443" } else { ":80" };
        let kept = lower.strip_suffix(own_port).unwrap_or(&lower).to_owned();
        let authority = scheme.len() + "://".len();
        Ok(WebOrigin {
            text: kept,
            authority,
        })
    }

    /// As the header `Origin` says it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As the header `Host` says it.
    pub fn authority(&self) -> &str {
        &self.text[self.authority..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_as_browsers_write_it() {
        let read = |text| WebOrigin::parse(text).map(|origin| origin.as_str().to_owned());
        assert_eq!(read("https://A.example").unwrap(), "https://a.example");
        assert_eq!(read("https://a.example:443").unwrap(), "https://a.example");
        assert_eq!(read("http://a:8080").unwrap(), "http://a:8080");
        let origin = WebOrigin::parse("http://a:8080").unwrap();
        assert_eq!(origin.authority(), "a:8080");
        for wrong in [
            "a.example",
            "ftp://a",
            "https://",
            "https://a/",
            "https://u@a",
            "null",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
