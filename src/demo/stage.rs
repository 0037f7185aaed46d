//! The stage: a folder with secrets and a configuration, the clouds, and the real daemon as a
//! child process that can be killed and started again.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::DemoError;
use super::client::Client;
use super::clouds::{Clouds, Keys};
use super::life::DemoSource;
use super::plan::Plan;

/// How long the daemon may take to answer after its start.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long the daemon may take to stop when it is asked to.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
/// Unix sockets have short names; below folders with longer ones they would not fit.
const FOLDER_BYTES_MAX: usize = 60;

/// A folder of our own, readable by nobody else.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    port: u16,
}

impl Place {
    /// A new, empty one, and a port for the webhook endpoint.
    pub fn new() -> io::Result<Place> {
        let above =
            Some(std::env::temp_dir()).filter(|dir| dir.as_os_str().len() <= FOLDER_BYTES_MAX);
        let above = above.unwrap_or_else(|| PathBuf::from("/tmp"));
        for number in 0..1000 {
            let dir = above.join(format!("settled-demo-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {
                    return Ok(Place {
                        dir,
                        port: free_port()?,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!(
            "{} is full of other demos' folders",
            above.display()
        )))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where webhooks go.
    pub fn hooks(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The daemon's configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("settled.toml")
    }

    /// The file that takes the standard output and error of the daemon.
    pub fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// The daemon's database.
    pub fn store(&self) -> PathBuf {
        self.dir.join("settled.db")
    }

    /// A client of the daemon's sockets.
    pub fn client(&self) -> Client {
        Client::new(&self.dir.join("feed.sock"), &self.dir.join("control.sock"))
    }

    /// Writes the secrets and the configuration.
    pub fn furnish(&self, clouds: &Clouds) -> io::Result<()> {
        let keys = &clouds.world().keys;
        for (name, value) in secrets(keys) {
            self.write(name, value)?;
        }
        for source in DemoSource::ALL {
            self.write(&format!("{source}.key"), &keys.api_key(*source))?;
        }
        self.write("settled.toml", &self.toml(clouds))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.dir.join(name))?
            .write_all(text.as_bytes())
    }

    fn toml(&self, clouds: &Clouds) -> String {
        let sources: String = DemoSource::ALL
            .iter()
            .map(|source| self.source(*source, clouds))
            .collect();
        format!(
            "[hooks]\nlisten = \"127.0.0.1:{}\"\n\n[store]\npath = \"{}\"\n\n[sockets]\nfeed = \"{}\"\ncontrol = \
             \"{}\"\n{sources}",
            self.port,
            self.store().display(),
            self.dir.join("feed.sock").display(),
            self.dir.join("control.sock").display(),
        )
    }

    /// One account. Runs here live for seconds instead of minutes, so everything waits for less.
    fn source(&self, source: DemoSource, clouds: &Clouds) -> String {
        let file = |name: &str| format!("{{ file = \"{}\" }}", self.dir.join(name).display());
        let cloud = source.cloud();
        let mut lines = vec![
            format!("\n[sources.{source}]"),
            format!("provider = \"{cloud}\""),
            format!("base_url = \"{}\"", clouds.address(cloud)),
            format!("api_key = {}", file(&format!("{source}.key"))),
        ];
        lines.extend(source.api().map(|api| format!("api = \"{api}\"")));
        match source {
            DemoSource::Skyvern => lines.push("grace = \"2s\"".to_owned()),
            DemoSource::Tasks | DemoSource::Sessions | DemoSource::Runs | DemoSource::Jobs => {
                lines.push(format!(
                    "webhook_secrets = [{}]",
                    file(&format!("{cloud}.hooks"))
                ));
            }
            DemoSource::Recipes => {
                // Its webhooks tell the truth, so here it does no harm to give up soon.
                lines.push("confirm_timeout = \"8s\"".to_owned());
                lines.push(format!("path_token = {}", file("smartbrowse.path")));
                lines.push(format!(
                    "require_headers = {{ Authorization = {} }}",
                    file("smartbrowse.header")
                ));
            }
        }
        lines.push(PACE.to_owned());
        lines.join("\n")
    }

    /// Removes the folder with everything in it.
    pub fn remove(self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

const PACE: &str = r#"poll = "* * * * * *"
sweep = "*/3 * * * * *"
first_poll = "1s"
max_interval = "2s"
rate = "1000/s"
concurrency = 32
"#;

/// The secrets that prove webhooks, beside API keys.
fn secrets(keys: &Keys) -> [(&'static str, &str); 4] {
    [
        ("browser-use.hooks", &keys.browser_use_hooks),
        ("smartbrowse.path", &keys.smartbrowse_path),
        ("smartbrowse.header", &keys.smartbrowse_header),
        ("firecrawl.hooks", &keys.firecrawl_hooks),
    ]
}

/// A port that nobody listens on now. Below the range from which the system gives out ports to
/// clients, or one of the clouds' own connections could take it while the daemon is being killed.
/// Every call looks at other ports, so that several stages of one process do not meet.
fn free_port() -> io::Result<u16> {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 1_000).unwrap_or_default() * 12;
    let ports =
        (0..12_000).map(|_| 20_000 + own.wrapping_add(CALLS.fetch_add(1, Relaxed)) % 12_000);
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports
        .into_iter()
        .find(free)
        .ok_or_else(|| io::Error::other("no free port between 20000 and 32000 on 127.0.0.1"))
}

/// A stage on which a plan can be played.
#[derive(Debug)]
pub struct Stage {
    /// The folder.
    pub place: Place,
    /// The clouds.
    pub clouds: Clouds,
    /// The program that is the daemon.
    program: PathBuf,
    daemon: Option<Child>,
}

impl Stage {
    /// Sets the stage for a plan: folder, clouds and configuration. `program` is the `settled`
    /// binary.
    pub async fn set(plan: Plan, program: &Path) -> Result<Stage, DemoError> {
        let place = Place::new().map_err(DemoError::Folder)?;
        let clouds = Clouds::start(plan, &place.hooks())
            .await
            .map_err(DemoError::Clouds)?;
        place.furnish(&clouds).map_err(DemoError::Folder)?;
        Ok(Stage {
            place,
            clouds,
            program: program.to_owned(),
            daemon: None,
        })
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&mut self) -> Result<(), DemoError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.place.log())
            .map_err(DemoError::Folder)?;
        let errors = log.try_clone().map_err(DemoError::Folder)?;
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.place.config());
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|why| DemoError::Start {
            program: self.program.clone(),
            why,
        })?;
        self.daemon = Some(child);
        self.ready().await
    }

    async fn ready(&mut self) -> Result<(), DemoError> {
        let (client, began) = (self.place.client(), Instant::now());
        while !client.healthy().await {
            let exited = self
                .daemon
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            if exited.is_some() || began.elapsed() > READY_WITHIN {
                return Err(DemoError::NotReady {
                    exited,
                    log: tail(&self.place.log()),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// `kill -9`: no drain, no goodbye.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill().await;
        }
    }

    /// Asks the daemon to stop and waits for it; `None` if it had to be killed.
    pub async fn stop(&mut self) -> Option<ExitStatus> {
        let mut child = self.daemon.take()?;
        if let Some(pid) = child.id() {
            let terminate = Command::new("sh")
                .arg("-c")
                .arg(format!("kill -TERM {pid}"))
                .status()
                .await;
            let asked = terminate.is_ok_and(|status| status.success());
            if asked
                && let Ok(Ok(status)) = tokio::time::timeout(STOPPED_WITHIN, child.wait()).await
            {
                return Some(status);
            }
        }
        let _ = child.kill().await;
        None
    }

    /// Whether the daemon is there, as far as we know.
    pub fn running(&mut self) -> bool {
        self.daemon
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }
}

/// The end of a log file.
pub(super) fn tail(path: &Path) -> String {
    const BYTES: u64 = 4000;
    let read = || -> io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}
