//! The real daemon in a folder of its own, webhooks as Skyvern signs them, and a client of the
//! sockets made of the standard library alone.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::process::{PATIENCE, free_port, signal};

pub const KEY: &str = "a-key-for-tests";
/// A place for a daemon: its database, sockets and port outlive its process.
pub struct Home {
    folder: TempDir,
    pub port: u16,
}

impl Home {
    pub fn new() -> Home {
        Home::with("")
    }

    /// With more lines of configuration.
    pub fn with(more: &str) -> Home {
        let home = Home {
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
        };
        home.configure(more);
        home
    }

    pub fn configure(&self, more: &str) {
        let folder = self.folder.path().display();
        let text = format!(
            "[hooks]\nlisten = \"127.0.0.1:{}\"\n[store]\npath = \"{folder}/settled.db\"\n\
             [sockets]\nfeed = \"{folder}/feed.sock\"\ncontrol = \"{folder}/control.sock\"\n\
             [sources.sky]\nprovider = \"skyvern\"\napi_key = {{ env = \"KEY_FOR_TESTS\" }}\n\
             base_url = \"http://127.0.0.1:1\"\npoll = \"0 0 0 1 1 *\"\nsweep = \"0 0 0 1 1 *\"\n{more}\n",
            self.port
        );
        fs::write(self.path("settled.toml"), text).unwrap();
    }

    /// Puts a provider behind it that answers every question with this body, for as long as the
    /// test runs.
    pub fn provider_says(&self, body: &str) {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let file = self.path("settled.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(
            file,
            text.replace("http://127.0.0.1:1\"", &format!("http://{address}\"")),
        )
        .unwrap();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut head = BufReader::new(stream.try_clone().unwrap())
                    .lines()
                    .map_while(Result::ok);
                while head.next().is_some_and(|line| !line.is_empty()) {}
                let _ = stream.write_all(answer.as_bytes());
            }
        });
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn feed(&self) -> PathBuf {
        self.path("feed.sock")
    }

    /// The program with this configuration and these arguments.
    pub fn settled(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(super::process::program());
        command
            .arg("--config")
            .arg(self.path("settled.toml"))
            .args(arguments)
            .env("KEY_FOR_TESTS", KEY);
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn serve(&self) -> Daemon<'_> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let child = self
            .settled(&["serve"])
            .stderr(log)
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut daemon = Daemon { home: self, child };
        let began = Instant::now();
        while ask(&self.feed(), "GET", "/healthz", "")
            .map(|answer| answer.status)
            .ok()
            != Some(200)
        {
            assert!(
                daemon.child.try_wait().unwrap().is_none(),
                "the daemon ended: {}",
                self.log()
            );
            assert!(
                began.elapsed() < PATIENCE,
                "the daemon does not answer: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Sends a signed webhook once.
    pub fn post(&self, body: &str) -> io::Result<u16> {
        let signature = settled::providers::signature::sign(KEY, &[body.as_bytes()]);
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!(
            "POST /hooks/sky HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             x-skyvern-signature: {signature}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        answer
            .get(9..12)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| io::Error::other("no answer"))
    }

    /// Settles runs, as a provider that sends until it hears a 200.
    pub fn complete(&self, runs: impl IntoIterator<Item = u32>) {
        for run in runs {
            self.say(run, "completed");
        }
    }

    pub fn say(&self, run: u32, status: &str) {
        let body =
            format!(r#"{{"run_id":"wr_{run}","status":"{status}","run_type":"workflow_run"}}"#);
        self.insist(&body);
    }

    pub fn insist(&self, body: &str) {
        let began = Instant::now();
        while self.post(body).ok() != Some(200) {
            assert!(
                began.elapsed() < PATIENCE,
                "no 200 for a webhook: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn ask(&self, method: &str, path: &str, body: &str) -> ApiResponse {
        ask(&self.feed(), method, path, body).unwrap()
    }

    /// All lines of a read that ends by itself.
    pub fn read(&self, path: &str) -> Vec<Value> {
        Lines::open(&self.feed(), path).unwrap().collect()
    }

    /// Waits until this many records are in the feed, and gives the runs in their order.
    pub fn completed(&self, count: usize) -> Vec<String> {
        let began = Instant::now();
        loop {
            let runs = subjects(&self.read("/v1/events"));
            if runs.len() >= count {
                return runs;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{} of {count} completions: {}",
                runs.len(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon<'h> {
    pub home: &'h Home,
    pub child: Child,
}

impl Daemon<'_> {
    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and a clean end.
    pub fn stop(mut self) {
        signal(self.child.id(), "TERM");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.home.log());
    }

    /// Resident memory, in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds an example and says where it is. Quick when it is fresh.
pub fn example(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let profile = program.parent().and_then(Path::parent).unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--example", name, "--target-dir"])
        .arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(
        cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap()
            .success(),
        "{name} cannot be built"
    );
    profile.join("examples").join(name)
}

/// A whole answer.
#[derive(Debug)]
pub struct ApiResponse {
    pub status: u16,
    pub head: String,
    pub text: String,
}

impl ApiResponse {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The code of an error.
    pub fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// One request over a Unix socket. HTTP/1.0, so that the end of the connection is the end of the
/// answer.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<ApiResponse> {
    exchange(
        socket,
        &format!(
            "{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
}

/// Any request over HTTP/1.0.
pub fn exchange(socket: &Path, request: &str) -> io::Result<ApiResponse> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // What is too large is answered before it is read to the end.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other("no answer"))?;
    let status = head
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    Ok(ApiResponse {
        status,
        head: head.to_owned(),
        text: text.to_owned(),
    })
}

/// A stream, line by line. A line without its end is no line.
pub struct Lines {
    reader: BufReader<UnixStream>,
}

impl Lines {
    pub fn open(socket: &Path, path: &str) -> io::Result<Lines> {
        Lines::request(socket, &format!("GET {path} HTTP/1.0\r\n\r\n"))
    }

    /// Any request that is answered with a stream over HTTP/1.0.
    pub fn request(socket: &Path, request: &str) -> io::Result<Lines> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut status = String::new();
        reader.read_line(&mut status)?;
        let mut line = status.clone();
        while line.trim_end() != "" {
            line.clear();
            reader.read_line(&mut line)?;
        }
        if status.contains(" 200 ") {
            Ok(Lines { reader })
        } else {
            Err(io::Error::other(status))
        }
    }

    /// Closes our sending side, as `nc -N` does.
    pub fn half_close(&self) {
        self.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// The next line as it came.
    pub fn raw(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(_) if line.ends_with('\n') => Some(line),
            _ => None,
        }
    }

    /// The next line of this type; those before it are passed over.
    pub fn until(&mut self, kind: &str) -> Value {
        self.find(|line| line["type"] == kind)
            .unwrap_or_else(|| panic!("no {kind} came"))
    }

    /// The next completion.
    pub fn completion(&mut self) -> Value {
        self.until("settled.run.completion")
    }
}

impl Iterator for Lines {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        serde_json::from_str(&self.raw()?).ok()
    }
}

/// The run ids of the records among these lines.
pub fn subjects(lines: &[Value]) -> Vec<String> {
    let runs = lines.iter().filter(|line| {
        line["type"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("settled.run."))
    });
    runs.map(|line| line["subject"].as_str().unwrap().to_owned())
        .collect()
}

pub fn cursor(line: &Value) -> &str {
    line["cursor"].as_str().unwrap()
}

/// `wr_1`, `wr_2`, …
pub fn runs(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|run| format!("wr_{run}")).collect()
}
