//! A daemon of our own: the real binary, on a temporary folder and a free port of loopback.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::process::{PATIENCE, free_port};
use super::senders;
use super::wire::{ApiResponse, Post, Wire};

/// What a test wants of its daemon.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Lines for `[hooks]`.
    pub hooks: String,
    /// Where to put the database instead of into the folder.
    pub store: Option<PathBuf>,
    /// Where Skyvern's API is; without, no source can be polled.
    pub skyvern: Option<String>,
    /// What to log, if not as usual.
    pub log: Option<&'static str>,
    /// Start with this soft limit of open files.
    pub files: Option<u32>,
}

/// The real binary, serving.
pub struct Daemon {
    pub folder: tempfile::TempDir,
    pub port: u16,
    wish: Wish,
    child: Option<Child>,
}

impl Daemon {
    /// Starts one with the usual sources.
    pub fn start() -> Daemon {
        Daemon::with(Wish::default())
    }

    /// Starts one as wished for.
    pub fn with(wish: Wish) -> Daemon {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut daemon = Daemon {
            folder,
            port: free_port(),
            wish,
            child: None,
        };
        daemon.furnish();
        daemon.launch();
        daemon.ready();
        daemon
    }

    fn furnish(&self) {
        let wish = &self.wish;
        let mut toml = format!(
            "[hooks]\nlisten = \"127.0.0.1:{}\"\n{}\n",
            self.port, wish.hooks
        );
        let _ = writeln!(toml, "[store]\npath = \"{}\"", self.store().display());
        let (feed, control) = (self.feed_socket(), self.control_socket());
        let _ = writeln!(
            toml,
            "[sockets]\nfeed = \"{}\"\ncontrol = \"{}\"",
            feed.display(),
            control.display()
        );
        let secret = |name: &str, value: &str| {
            let path = self.folder.path().join(name);
            let mut file = fs::OpenOptions::new();
            let file = file
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path);
            file.and_then(|mut file| file.write_all(value.as_bytes()))
                .expect("a secret's file");
            format!("{{ file = \"{}\" }}", path.display())
        };
        let key = secret("skyvern", senders::SKYVERN_KEY);
        let skyvern = match &wish.skyvern {
            Some(url) => format!("api_key = {key}\nbase_url = {url:?}"),
            None => format!("webhook_secrets = [{key}]"),
        };
        let _ = writeln!(
            toml,
            "[sources.sky]\nprovider = \"skyvern\"\n{skyvern}\ngrace = \"0s\""
        );
        let key = secret("firecrawl", senders::FIRECRAWL_SECRET);
        let _ = writeln!(
            toml,
            "[sources.fire]\nprovider = \"firecrawl\"\nwebhook_secrets = [{key}]"
        );
        let key = secret("browser-use", senders::BROWSER_USE_SECRET);
        let _ = writeln!(
            toml,
            "[sources.bu]\nprovider = \"browser-use\"\nwebhook_secrets = [{key}]"
        );
        let (token, header) = (
            secret("token", senders::PATH_TOKEN),
            secret("header", senders::REQUIRED_HEADER),
        );
        let _ = writeln!(
            toml,
            "[sources.shop]\nprovider = \"smartbrowse\"\npath_token = {token}"
        );
        let _ = writeln!(toml, "require_headers = {{ Authorization = {header} }}");
        fs::write(self.folder.path().join("settled.toml"), toml).expect("the configuration");
    }

    pub fn store(&self) -> PathBuf {
        self.wish
            .store
            .clone()
            .unwrap_or_else(|| self.folder.path().join("settled.db"))
    }

    pub fn feed_socket(&self) -> PathBuf {
        self.folder.path().join("feed.sock")
    }

    pub fn control_socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Starts the process and does not wait for it.
    pub fn launch(&mut self) {
        let log = self.folder.path().join("log");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log");
        let limit = self
            .wish
            .files
            .map_or_else(String::new, |files| format!("ulimit -S -n {files}; "));
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{limit}exec \"$0\" \"$@\""))
            .arg(super::process::program());
        command
            .arg("serve")
            .arg("--config")
            .arg(self.folder.path().join("settled.toml"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command.env("SETTLED_LOG", self.wish.log.unwrap_or("info"));
        self.child = Some(command.spawn().expect("the binary starts"));
    }

    /// Waits until the feed's socket says that all is well.
    pub fn ready(&mut self) {
        let began = Instant::now();
        while self
            .try_feed("/healthz")
            .is_none_or(|answer| answer.status != 200)
        {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "not ready ({ended:?}):\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The exit code, once the process has ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        let child = self.child.as_mut()?;
        child.try_wait().expect("it can be waited for")?.code()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn wire(&self) -> Wire {
        Wire::open(self.port).expect("the webhook endpoint is there")
    }

    /// Posts on a connection of its own.
    pub fn post(&self, post: &Post) -> ApiResponse {
        self.raw(post.bytes())
    }

    /// Sends these bytes on a connection of its own.
    pub fn raw(&self, bytes: impl AsRef<[u8]>) -> ApiResponse {
        self.wire().ask(bytes).expect("an answer")
    }

    fn try_feed(&self, path: &str) -> Option<ApiResponse> {
        get(&self.feed_socket(), path).ok()
    }

    /// Asks the control socket.
    pub fn control(&self, path: &str) -> ApiResponse {
        get(&self.control_socket(), path).expect("the control socket answers")
    }

    /// The kept deliveries, newest first.
    pub fn deliveries(&self, query: &str) -> Vec<Value> {
        let answer = self
            .control(&format!("/v1/deliveries?limit=1000&{query}"))
            .json();
        answer["deliveries"]
            .as_array()
            .cloned()
            .expect("a list of deliveries")
    }

    /// What verification found of the delivery that came last.
    pub fn last_verdict(&self) -> Value {
        self.deliveries("")[0]["verdict"].clone()
    }

    /// How many deliveries are kept.
    pub fn kept(&self) -> usize {
        self.deliveries("").len()
    }

    /// The records of the feed, by cursor.
    pub fn feed(&self) -> BTreeMap<i64, String> {
        let answer = self
            .try_feed("/v1/events?types=completion,amendment,status")
            .expect("the feed answers");
        // A reader that is stopped for a minute is shown out, which is no loss.
        let end = answer
            .body
            .trim_ascii_end()
            .rsplit(|byte| *byte == b'\n')
            .next()
            .map(String::from_utf8_lossy);
        assert!(
            end.is_some_and(|line| line.contains("settled.feed.end")),
            "the answer was cut off"
        );
        answer
            .body
            .split(|byte| *byte == b'\n')
            .filter_map(|line| record(&String::from_utf8_lossy(line)))
            .collect()
    }

    /// The completions in the feed, as JSON, once there are so many.
    pub fn completions(&self, at_least: usize) -> Vec<Value> {
        let completed = || {
            let records = self.feed();
            let lines = records
                .values()
                .map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
            lines
                .filter(|line| line["type"] == "settled.run.completion")
                .collect::<Vec<_>>()
        };
        self.until("the completions are there", |_| {
            completed().len() >= at_least
        });
        completed()
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, so: impl Fn(&Daemon) -> bool) {
        let began = Instant::now();
        while !so(self) {
            assert!(began.elapsed() < PATIENCE, "in vain until {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Follows the feed until the connection ends.
    pub fn follow(&self) -> thread::JoinHandle<BTreeMap<i64, String>> {
        let stream = UnixStream::connect(self.feed_socket());
        thread::spawn(move || {
            let mut seen = BTreeMap::new();
            let Ok(mut stream) = stream else { return seen };
            let request =
                "GET /v1/events?follow=1&types=completion,amendment,status HTTP/1.0\r\n\r\n";
            if stream.write_all(request.as_bytes()).is_ok() {
                let lines = BufReader::new(stream).split(b'\n').map_while(Result::ok);
                seen.extend(lines.filter_map(|line| record(&String::from_utf8_lossy(&line))));
            }
            seen
        })
    }

    /// A number out of /proc/PID/status, in KiB.
    pub fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .expect("the line");
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number")
    }

    /// Bytes of the database and its log.
    pub fn disk(&self) -> u64 {
        ["", "-wal"]
            .iter()
            .map(|suffix| size(&suffixed(&self.store(), suffix)))
            .sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the daemon's log ends:\n{}", tail(&self.log()));
        }
        self.kill();
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

pub fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// A whole line of the feed that is a record, with its number.
fn record(line: &str) -> Option<(i64, String)> {
    let json: Value = serde_json::from_str(line).ok()?;
    if !json["type"].as_str()?.starts_with("settled.run.") {
        return None;
    }
    let seq = json["cursor"].as_str()?.split_once('.')?.1.parse().ok()?;
    Some((seq, line.to_owned()))
}

/// A GET on a Unix socket.
pub fn get(socket: &Path, path: &str) -> std::io::Result<ApiResponse> {
    ask(socket, &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

/// A POST on a Unix socket.
pub fn post(socket: &Path, path: &str, body: &str) -> std::io::Result<ApiResponse> {
    ask(
        socket,
        &format!(
            "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
}

/// Asks in HTTP/1.0: the answer is what comes until the end.
fn ask(socket: &Path, request: &str) -> std::io::Result<ApiResponse> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let broken = || std::io::Error::other("the answer broke off");
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or_else(broken)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(broken)?;
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let headers = headers
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Ok(ApiResponse {
        status,
        headers,
        body: bytes.split_off(end + 4),
    })
}
