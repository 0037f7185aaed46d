//! Ports, signals, tools and children: what every test with a process of its own needs.

use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that has no limit of its own.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test. A part of the tree that is built without it has no test that needs it.
pub fn program() -> &'static str {
    let Some(program) = option_env!("CARGO_BIN_EXE_settled") else {
        panic!("the program is not part of this build");
    };
    program
}

/// A port on which nobody listens. It lies below the range from which the system gives ports to
/// clients; the process id spreads test programs apart, and no two calls of one process meet.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % 1_900).unwrap_or_default() * 10;
    loop {
        let port = 11_000 + (spread + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal to a process that the test started.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()
        .expect("kill runs");
    assert!(sent.success(), "kill -{name} {pid}");
}

/// Whether a tool is installed. In CI (`CI` is set) every tool must be, so that CI skips no test.
pub fn installed(tool: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()));
    assert!(
        found || std::env::var_os("CI").is_none(),
        "{tool} must be installed in CI"
    );
    if !found {
        eprintln!("NOT TESTED: {tool} is not installed");
    }
    found
}

/// Waits until a condition holds, and fails after [`PATIENCE`].
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(PATIENCE, what, &mut holds);
}

/// Waits until a condition holds, and fails after `most`.
pub fn within(most: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < most, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child that is killed when dropped, with its process group if it leads one.
pub struct Kept(pub Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let _ = group
            .map(|group| rustix::process::kill_process_group(group, rustix::process::Signal::KILL));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
