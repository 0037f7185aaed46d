//! A world for the commands: the real daemon on a temporary folder, and a cloud that answers as told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use settled::providers::signature::sign;
use tempfile::TempDir;

use super::process::free_port;

/// The key of the account, which is what its webhooks are signed with too.
pub const KEY: &str = "test-key-of-nobody";

/// The answers of the cloud, by run: what its state is, and how a webhook that is sent again fares.
type States = Arc<Mutex<BTreeMap<String, (Value, u16)>>>;

/// Stands among the runs for the whole cloud.
const ALL: &str = "";

/// A cloud that speaks as much of Skyvern as the commands need.
pub struct Cloud {
    port: u16,
    states: States,
}

impl Cloud {
    fn start() -> Cloud {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let states = States::default();
        let shared = states.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                std::thread::spawn(move || answer(&stream.unwrap(), &shared));
            }
        });
        Cloud { port, states }
    }

    /// From now on the run is in this state; its webhook, sent again, is answered with `delivered`.
    pub fn says(&self, run_id: &str, state: Value, delivered: u16) {
        self.states
            .lock()
            .unwrap()
            .insert(run_id.to_owned(), (state, delivered));
    }

    /// From now on everything is answered with this status.
    pub fn fails(&self, status: u16) {
        self.says(ALL, Value::Null, status);
    }
}

fn answer(stream: &TcpStream, states: &States) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let (mut length, mut key) = (0, String::new());
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) <= 2 {
                break;
            }
            if let Some((name, value)) = header.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.trim().parse().unwrap(),
                    "x-api-key" => value.trim().clone_into(&mut key),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let path = request.split(' ').nth(1).unwrap();
        let (code, said) = if key == KEY {
            respond(path, states)
        } else {
            (403, json!({"detail": "no"}))
        };
        let body = said.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = stream;
        stream.write_all((head + &body).as_bytes()).unwrap();
    }
}

fn respond(path: &str, states: &States) -> (u16, Value) {
    if let Some((_, status)) = states.lock().unwrap().get(ALL) {
        return (*status, json!({"detail": "everything fails"}));
    }
    let Some(rest) = path.strip_prefix("/v1/runs/") else {
        return (200, json!([]));
    };
    let (run_id, call) = rest.split_once('/').unwrap_or((rest, ""));
    match (states.lock().unwrap().get(run_id), call) {
        (None, _) => (404, json!({"detail": "no such run"})),
        (Some((state, _)), "") => (200, state.clone()),
        (Some((state, delivered)), _) => {
            let payload = state.to_string();
            let fine = (200..300).contains(delivered);
            let answer = json!({
                "status_code": delivered,
                "error": if fine { Value::Null } else { json!("the receiver said no") },
                "target_webhook_url": "https://hooks.example.org/hooks/prod",
                "latency_ms": 5,
                "payload": if fine { json!(payload) } else { Value::Null },
                "headers": {"x-skyvern-signature": sign(KEY, &[payload.as_bytes()])},
            });
            (200, answer)
        }
    }
}

/// A state as Skyvern tells it, in webhooks and answers.
pub fn state(run_id: &str, status: &str) -> Value {
    json!({"run_id": run_id, "run_type": "task_v1", "status": status, "failure_reason": null, "created_at": "2026-11-21T08:00:00"})
}

/// A daemon with one source, `prod`.
pub struct World {
    pub folder: TempDir,
    pub cloud: Cloud,
    hooks: u16,
    daemon: Option<Child>,
}

impl World {
    /// Starts everything.
    pub fn start() -> World {
        let mut world = World::without_daemon();
        world.start_daemon();
        world
    }

    /// Starts the cloud and writes the configuration.
    pub fn without_daemon() -> World {
        let folder = tempfile::tempdir().unwrap();
        let cloud = Cloud::start();
        let hooks = free_port();
        let config = format!(
            "[hooks]\nlisten = \"127.0.0.1:{hooks}\"\n[store]\npath = \"settled.db\"\n[sockets]\nfeed = \"feed.sock\"\ncontrol = \
             \"control.sock\"\n[sources.prod]\nprovider = \"skyvern\"\napi_key = {{ env = \"KEY\" }}\nbase_url = \
             \"http://127.0.0.1:{}\"\ngrace = \"0s\"\nfirst_poll = \"1h\"\nmax_interval = \"1h\"\npoll = \"0 0 0 1 1 *\"\nsweep = \
             \"0 0 0 1 1 *\"\n",
            cloud.port
        );
        std::fs::write(folder.path().join("settled.toml"), config).unwrap();
        World {
            folder,
            cloud,
            hooks,
            daemon: None,
        }
    }

    /// Starts the daemon, or starts it again.
    pub fn start_daemon(&mut self) {
        let daemon = self
            .command(&["serve", "--log", "warn"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        let path = self.folder.path().join("control.sock");
        within(Duration::from_secs(20), || {
            let ended = self
                .daemon
                .as_mut()
                .and_then(|daemon| daemon.try_wait().unwrap());
            assert!(ended.is_none(), "the daemon did not start: {ended:?}");
            UnixStream::connect(&path).is_ok()
        });
        // The sockets answer a moment before the sources have their clients; until then a question is
        // refused with "the source is being reloaded".
        within(Duration::from_secs(20), || {
            self.settled(&["status", "--json"]).json()[0]["sources"][0]["configured"] == true
        });
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// Stops the daemon as a crash would.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// The program with these arguments, in an environment of its own.
    pub fn command(&self, args: &[&str]) -> Command {
        command(
            self.folder.path(),
            &[&["--config", "settled.toml"], args].concat(),
        )
    }

    /// Runs a command to its end.
    pub fn settled(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Sends a signed webhook that says this, and waits until it has been understood: 200 says only
    /// that it is on disk.
    pub fn webhook(&self, state: &Value) {
        let body = state.to_string();
        assert_eq!(self.post(&body, &sign(KEY, &[body.as_bytes()])), 200);
        let run_id = state["run_id"].as_str().unwrap();
        within(Duration::from_secs(10), || {
            self.settled(&["run", "prod", run_id]).code == 0
        });
    }

    /// Sends a webhook, and gives the status of the answer.
    pub fn post(&self, body: &str, signature: &str) -> u16 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.hooks)).unwrap();
        let head = format!(
            "POST /hooks/prod HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-skyvern-signature: {signature}\r\ncontent-length: \
             {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_daemon();
    }
}

/// The program in this folder, with nothing of our own environment but the test's key.
pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PathBuf::from(super::process::program()));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .env("KEY", KEY)
        .stdin(Stdio::null());
    command
}

/// How a command went.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Runs it.
    pub fn of(command: &mut Command) -> Ran {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran {
            code: status.code().unwrap(),
            out: text(stdout),
            err: text(stderr),
        }
    }

    /// Its output, if it went well.
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }

    /// Its output as lines of JSON, if it went well.
    pub fn json(self) -> Vec<Value> {
        self.good()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// How it failed: code and stderr.
    pub fn bad(self) -> (i32, String) {
        assert_ne!(self.code, 0, "stdout: {}", self.out);
        (self.code, self.err)
    }
}

/// Waits until something is so.
pub fn within(most: Duration, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < most, "not within {most:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
