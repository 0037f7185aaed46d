//! HTTP as bytes on a stream: nothing is corrected, so that a test can say exactly what was sent.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// An answer as it came.
#[derive(Debug)]
pub struct ApiResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl ApiResponse {
    /// The first header of this lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The `code` of an error.
    pub fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The id under which a delivery was stored, if the answer is a 200.
    pub fn stored(&self) -> Option<i64> {
        if self.status == 200 {
            self.json()["stored"].as_i64()
        } else {
            None
        }
    }
}

/// A request for the webhook endpoint.
#[derive(Clone, Debug)]
pub struct Post {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Post {
    pub fn new(path: &str, body: impl Into<Vec<u8>>) -> Post {
        let json = ("Content-Type".to_owned(), "application/json".to_owned());
        Post {
            path: path.to_owned(),
            headers: vec![json],
            body: body.into(),
        }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Post {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub fn to(mut self, path: &str) -> Post {
        path.clone_into(&mut self.path);
        self
    }

    /// The request line and the headers, with these more, and the empty line.
    pub fn head(&self, more: &str) -> String {
        let lines = self
            .headers
            .iter()
            .map(|(name, value)| [name, ": ", value, "\r\n"].concat());
        let lines = lines.collect::<String>();
        format!(
            "POST {} HTTP/1.1\r\nHost: test\r\n{lines}{more}\r\n",
            self.path
        )
    }

    /// The whole request, with its length declared.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self
            .head(&format!("Content-Length: {}\r\n", self.body.len()))
            .into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The whole request, in chunks of `size`.
    pub fn chunked(&self, size: usize) -> Vec<u8> {
        let mut bytes = self.head("Transfer-Encoding: chunked\r\n").into_bytes();
        for chunk in self.body.chunks(size) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }
}

/// A connection to the webhook endpoint.
pub struct Wire {
    stream: TcpStream,
    kept: Vec<u8>,
}

/// Long enough for a noisy machine, short enough that a test that hangs says where.
const PATIENCE: Duration = Duration::from_secs(60);

impl Wire {
    pub fn open(port: u16) -> io::Result<Wire> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Wire {
            stream,
            kept: Vec::new(),
        })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Sends and waits for the answer.
    pub fn ask(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<ApiResponse> {
        self.send(bytes)?;
        self.answer()
    }

    /// The next answer; interim ones are passed over.
    pub fn answer(&mut self) -> io::Result<ApiResponse> {
        loop {
            let (status, headers) = self.head()?;
            if status < 200 {
                continue;
            }
            let length = headers
                .iter()
                .find(|(name, _)| name == "content-length")
                .map(|(_, value)| value.parse());
            let body = match length {
                Some(length) => self.take(length.map_err(io::Error::other)?)?,
                None => Vec::new(),
            };
            return Ok(ApiResponse {
                status,
                headers,
                body,
            });
        }
    }

    /// The status of the next answer that has no body (a 100).
    pub fn interim(&mut self) -> io::Result<u16> {
        Ok(self.head()?.0)
    }

    /// Adds what comes next to `heard`; 0 at the end.
    pub fn read_some(&mut self, heard: &mut Vec<u8>) -> io::Result<usize> {
        let mut some = [0; 4096];
        let n = self.stream.read(&mut some)?;
        heard.extend_from_slice(&some[..n]);
        Ok(n)
    }

    fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let end = loop {
            match self.kept.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => break end,
                None => self.fill()?,
            }
        };
        let head: Vec<u8> = self.kept.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head);
        let mut lines = head.trim_end().lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok((
            status.ok_or_else(|| io::Error::other(format!("no status in {head:?}")))?,
            headers,
        ))
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.kept.len() < length {
            self.fill()?;
        }
        Ok(self.kept.drain(..length).collect())
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut some = [0; 16 * 1024];
        match self.stream.read(&mut some)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.kept.extend_from_slice(&some[..n]);
                Ok(())
            }
        }
    }

    /// Whether the other end has closed, or does within the patience; what it still says is dropped.
    pub fn closes(&mut self) -> bool {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(error) => {
                    return !matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    );
                }
            }
        }
    }
}
