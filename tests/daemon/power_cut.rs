//! The power fails. Needs root: `cargo test --test daemon power -- --ignored --nocapture`.
//!
//! The data is on an ext4 in a file. While deliveries come in, the file is copied: the copy holds
//! what reached the device and nothing that was only in the page cache. It is mounted, opened by a
//! second instance, and compared with what had been acknowledged before. kill -9 shows none of these
//! losses, since the page cache survives the process. Not shown: torn sectors, disks that lie.
//!
//! The same is done to what people use today, for the table in docs/reliability.md:
//! `SETTLED_PYTHON` names a Python with fastapi and uvicorn, `redis-server` must be installed; what
//! is not there is left out.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::acknowledged as ledger;
use crate::support::check::Feed;
use crate::support::daemon::{Daemon, Wish};
use crate::support::disk::Disk;
use crate::support::process::{PATIENCE, free_port, signal};
use crate::support::senders::{SKYVERN_KEY, skyvern};
use crate::support::wire::Wire;

const SENDERS: usize = 4;

fn cuts() -> usize {
    std::env::var("SETTLED_CUTS")
        .ok()
        .and_then(|cuts| cuts.parse().ok())
        .unwrap_or(5)
}

/// Runs whose delivery was acknowledged.
type Acknowledged = Arc<Mutex<BTreeSet<String>>>;

/// Something that takes deliveries: how a sender of it gets one acknowledged.
type Deliver = Box<dyn FnMut(&str) -> std::io::Result<bool> + Send>;

/// Sends until told to stop.
struct Load {
    acknowledged: Acknowledged,
    stop: Arc<AtomicBool>,
    senders: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(connect: impl Fn() -> Deliver) -> Load {
        let (acknowledged, stop) = (Acknowledged::default(), Arc::new(AtomicBool::new(false)));
        let next = Arc::new(AtomicU64::new(0));
        let sender = |mut deliver: Deliver| {
            let (acknowledged, stop, next) = (acknowledged.clone(), stop.clone(), next.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let run = format!("wr_{}", next.fetch_add(1, Ordering::Relaxed));
                    if deliver(&run).is_ok_and(|stored| stored) {
                        acknowledged.lock().expect("no panic").insert(run);
                    }
                }
            })
        };
        let senders = (0..SENDERS).map(|_| sender(connect())).collect();
        Load {
            acknowledged,
            stop,
            senders,
        }
    }

    fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged.lock().expect("no panic").clone()
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.join().expect("a sender");
        }
    }
}

/// Cuts the power several times under load; what was acknowledged and is missing, each time.
fn measure(
    name: &str,
    disk: &Disk,
    pid: u32,
    load: Load,
    found: impl Fn(&Disk) -> BTreeSet<String>,
) -> usize {
    let mut missing = Vec::new();
    for cut in 0..cuts() {
        thread::sleep(Duration::from_millis(1200 + 170 * cut as u64));
        let acknowledged = load.acknowledged();
        // Held still so that the copy is of one moment; nothing is flushed by that.
        signal(pid, "STOP");
        let after = disk.cut();
        signal(pid, "CONT");
        let there = found(&after);
        missing.push((acknowledged.len(), acknowledged.difference(&there).count()));
    }
    load.end();
    let cells: Vec<_> = missing
        .iter()
        .map(|(all, lost)| format!("{all} → {lost}"))
        .collect();
    println!("| {name} | {} |", cells.join(", "));
    missing.iter().map(|(_, lost)| lost).sum()
}

fn over_http(port: u16) -> Deliver {
    let mut wire: Option<Wire> = None;
    Box::new(move |run| {
        let open = match wire.take() {
            Some(open) => open,
            None => Wire::open(port)?,
        };
        let status = wire
            .insert(open)
            .ask(skyvern(run, "completed").bytes())
            .map(|answer| answer.status);
        if status.as_ref().ok() != Some(&200) {
            wire = None;
        }
        Ok(status? == 200)
    })
}

#[test]
#[ignore = "needs root"]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let disk = Disk::ext4(256);
    let daemon = Daemon::with(Wish {
        store: Some(disk.root.join("settled.db")),
        ..Wish::default()
    });
    let load = Load::start(|| over_http(daemon.port));
    let lost = measure("settled", &disk, daemon.pid(), load, |after| {
        let store = after.root.join("settled.db");
        let second = Daemon::with(Wish {
            store: Some(store.clone()),
            ..Wish::default()
        });
        ledger::hold(&store, &[], &mut Feed::new());
        second
            .completions(0)
            .iter()
            .map(|line| line["subject"].as_str().expect("a run").to_owned())
            .collect()
    });
    assert_eq!(lost, 0);
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command, port: u16) -> Option<Process> {
    let process = Process(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?,
    );
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if began.elapsed() > PATIENCE / 4 {
            return None;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Some(process)
}

fn receiver(port: u16, database: &Path, pragmas: &str) -> Option<Process> {
    let python = std::env::var("SETTLED_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/daemon/peers");
    let mut command = Command::new(python);
    command.args([
        "-m",
        "uvicorn",
        "--log-level",
        "error",
        "--app-dir",
        folder,
        "receiver:app",
    ]);
    command
        .args(["--port", &port.to_string()])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
        .env("DATABASE", database)
        .env("PRAGMAS", pragmas)
        .env("SECRET", SKYVERN_KEY);
    spawn(&mut command, port)
}

fn runs_in(database: &Path) -> BTreeSet<String> {
    let read = || {
        let connection = rusqlite::Connection::open(database)?;
        let mut select = connection.prepare("SELECT run_id FROM events")?;
        select
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()
    };
    read().unwrap_or_default()
}

#[test]
#[ignore = "needs root, and fastapi and uvicorn"]
fn a_power_cut_under_a_receiver_as_guides_show_it() {
    for (name, pragmas) in [
        ("FastAPI + SQLite as it comes", ""),
        (
            "FastAPI + SQLite, WAL and synchronous=NORMAL",
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        ),
    ] {
        let (disk, port) = (Disk::ext4(256), free_port());
        let Some(process) = receiver(port, &disk.root.join("events.db"), pragmas) else {
            println!("| {name} | not measured: no uvicorn here |");
            return;
        };
        let load = Load::start(|| over_http(port));
        measure(name, &disk, process.0.id(), load, |after| {
            runs_in(&after.root.join("events.db"))
        });
    }
}

fn redis(port: u16, folder: &Path, fsync: &str) -> Option<Process> {
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "yes",
    ]);
    spawn(
        command
            .args(["--appendfsync", fsync])
            .arg("--dir")
            .arg(folder),
        port,
    )
}

/// Sends one line to Redis and reads one.
fn command(reader: &mut BufReader<TcpStream>, line: &str) -> std::io::Result<String> {
    reader.get_mut().write_all(line.as_bytes())?;
    let mut answer = String::new();
    reader.read_line(&mut answer)?;
    Ok(answer)
}

fn to_redis(port: u16) -> Deliver {
    let mut reader =
        BufReader::new(TcpStream::connect(("127.0.0.1", port)).expect("redis is there"));
    Box::new(move |run| {
        Ok(command(&mut reader, &format!("RPUSH events {run}\r\n"))?.starts_with(':'))
    })
}

fn runs_in_redis(folder: &Path, fsync: &str) -> BTreeSet<String> {
    let port = free_port();
    let Some(_second) = redis(port, folder, fsync) else {
        return BTreeSet::new();
    };
    let mut reader =
        BufReader::new(TcpStream::connect(("127.0.0.1", port)).expect("redis is there"));
    let began = Instant::now();
    while command(&mut reader, "PING\r\n").is_ok_and(|answer| !answer.starts_with("+PONG"))
        && began.elapsed() < PATIENCE
    {
        thread::sleep(Duration::from_millis(50));
    }
    let count = command(&mut reader, "LRANGE events 0 -1\r\n").unwrap_or_default();
    let count: usize = count.trim().trim_start_matches('*').parse().unwrap_or(0);
    let lines: Vec<_> = reader
        .lines()
        .take(2 * count)
        .map_while(Result::ok)
        .collect();
    lines
        .into_iter()
        .filter(|line| line.starts_with("wr_"))
        .collect()
}

#[test]
#[ignore = "needs root, and redis-server"]
fn a_power_cut_under_redis() {
    for fsync in ["everysec", "always"] {
        let (disk, port) = (Disk::ext4(256), free_port());
        let name = format!("Redis, appendfsync {fsync}");
        let Some(process) = redis(port, &disk.root, fsync) else {
            println!("| {name} | not measured: no redis-server here |");
            return;
        };
        let load = Load::start(|| to_redis(port));
        measure(&name, &disk, process.0.id(), load, |after| {
            runs_in_redis(&after.root, fsync)
        });
    }
}
