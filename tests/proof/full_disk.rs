//! The real daemon on a disk that fills up, and has room again: 503 while it is full, never 2xx for
//! what is not stored, and on it goes without a restart.
//!
//! Needs root, for a disk of a few pages: run `tests/proof/full-disk`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use settled::providers::signature::sign;

use crate::check::{self, Acked, Feed};
use crate::files::folder;

const KEY: &str = "eyJ.full.disk";

/// A disk of so many bytes, in memory.
struct Disk(PathBuf);

impl Disk {
    fn new(at: PathBuf, bytes: u32) -> Disk {
        fs::create_dir(&at).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).status().unwrap();
        assert!(mounted.success(), "a disk can only be mounted by root");
        Disk(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

struct Daemon {
    child: Child,
    port: u16,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// The real program over a ledger on `disk`; everything else is in `folder`.
    fn start(folder: &Path, disk: &Path) -> Daemon {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (place, store) = (folder.display(), disk.join("settled.db"));
        let config = format!(
            "[hooks]\nlisten = \"127.0.0.1:{port}\"\n[store]\npath = \"{}\"\n[sockets]\nfeed = \"{place}/f.sock\"\n\
             control = \"{place}/c.sock\"\n[sources.skyvern]\nprovider = \"skyvern\"\n\
             base_url = \"http://127.0.0.1:9\"\napi_key = {{ env = \"SKYVERN_API_KEY\" }}\n",
            store.display(),
        );
        fs::write(folder.join("settled.toml"), config).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_settled"))
            .arg("serve")
            .arg("--config")
            .arg(folder.join("settled.toml"))
            .env("SKYVERN_API_KEY", KEY)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Daemon { child, port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "{}", fs::read_to_string(folder.join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// Delivers a signed webhook; gives the status, and the report's id if it was stored.
    fn deliver(&self, number: u32) -> (u16, Option<Acked>) {
        let body =
            format!("{{\"run_id\":\"tsk_{number}\",\"status\":\"completed\",\"output\":\"{}\"}}", "x".repeat(60_000));
        let signature = sign(KEY, &[body.as_bytes()]);
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(
            stream,
            "POST /hooks/skyvern HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-skyvern-signature: \
             {signature}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        let stored = answer.rsplit_once("\"stored\":").map(|(_, id)| id.trim_end_matches(['}', '\r', '\n']));
        let acked = stored.and_then(|id| id.parse().ok()).map(|report| Acked {
            report,
            verdict: "signed".to_owned(),
            body: check::digest(body.as_bytes()),
        });
        (status, acked)
    }
}

#[test]
#[ignore = "needs root; run tests/proof/full-disk"]
fn a_full_disk_is_refused_and_forgiven() {
    let folder = folder();
    let disk = Disk::new(folder.path().join("disk"), 40 << 20);
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 24 << 20]).unwrap();
    let daemon = Daemon::start(folder.path(), &disk.0);
    let (mut acked, mut number) = (Vec::new(), 0);
    let mut deliver_until = |wanted: u16, most: u32| {
        for _ in 0..most {
            number += 1;
            let (status, stored) = daemon.deliver(number);
            assert!(matches!((status, &stored), (200, Some(_)) | (503, None)), "{status}");
            acked.extend(stored);
            if status == wanted {
                return;
            }
        }
        panic!("no {wanted} in {most} deliveries");
    };
    deliver_until(503, 400);
    (0..20).for_each(|_| deliver_until(503, 5));
    fs::remove_file(&ballast).unwrap();
    deliver_until(200, 40);
    (0..20).for_each(|_| deliver_until(200, 1));
    std::thread::sleep(Duration::from_secs(1)); // the opinions follow the promises
    let store = disk.0.join("settled.db");
    let exists = |source: &str, id: &str| source == "skyvern" && id.starts_with("tsk_");
    let world = check::World { store: &store, acked: &acked, exists: &exists, ring_rows_max: 0, digested: true };
    check::check(&world, &mut Feed::new()).unwrap();
    println!("{} of {number} deliveries were stored, the others refused", acked.len());
    drop(daemon);
}
