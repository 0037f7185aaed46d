//! The daemon: what starts in which order, what stops in which, and who holds whom.
//!
//! Start: the ledger is opened and what an earlier process left undigested is digested; then
//! webhooks are taken; then the sockets answer; then providers are asked. Stop: no new connection,
//! those in progress finish, the writer writes what it was handed, the process ends.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::calls::{Asker, Calls};
use crate::config::Config;
use crate::feed::{self, Desk};
use crate::http::{self, Allowance, Function, Listener, Peer};
use crate::limits;
use crate::poller::{self, Poller};
use crate::receiver::Receiver;
use crate::reconciler::{self, Clock, Fleet, Handle, Reconciler};
use crate::run::At;
use crate::run::asking;
use crate::store::{Reader, RingLimits, StoreError, Writer};

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The webhook endpoint.
    #[error("cannot listen for webhooks on {address}: {source}; is another program using it?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A Unix socket.
    #[error("cannot make the socket {path}: {source}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody answers on a socket that should be ours.
    #[error("another process is serving {0}; stop it, or name other [sockets]")]
    SocketInUse(PathBuf),
    /// The HTTP client.
    #[error("the HTTPS client cannot be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// The writer's thread.
    #[error("the writer's thread cannot be started: {0}")]
    Thread(io::Error),
}

/// The system's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        At(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}

/// A daemon that is serving.
pub struct Daemon {
    /// Where webhooks are taken.
    pub hooks: SocketAddr,
    /// What was found undigested at the start.
    pub recovered: usize,
    stop: watch::Sender<bool>,
    servers: JoinSet<()>,
    askers: JoinSet<()>,
    writer: std::thread::JoinHandle<()>,
    sockets: [PathBuf; 2],
    // Keeps the channels' senders alive for as long as anybody reads them.
    shared: Shared,
}

/// What may be replaced while running.
#[expect(dead_code, reason = "held, not read, until sources can be reloaded")]
struct Shared {
    fleet: watch::Sender<Arc<Fleet>>,
    askers: watch::Sender<Arc<BTreeMap<i64, Arc<Asker>>>>,
}

impl Daemon {
    /// Starts everything. When this returns, webhooks are taken and the sockets answer.
    pub async fn start(config: Config, clock: Clock) -> Result<Daemon, StartError> {
        let files = http::raise_file_limit();
        let mut writer = Writer::open(&config.store_path, clock())?;
        writer.transaction(|tx| tx.clamp_asks(clock(), clock().plus(asking::CHECKS[1] + Duration::from_secs(3600))))?;
        let fleet = Arc::new(Fleet::enlist(&mut writer, &config.sources)?);
        let reader = writer.reader();
        let ring = RingLimits {
            rows_max: i64::try_from(config.hooks.unverified_rows).unwrap_or(i64::MAX),
            bytes_max: i64::try_from(config.hooks.unverified_bytes).unwrap_or(i64::MAX),
        };
        let mut reconciler = Reconciler::new(writer, (*fleet).clone(), ring);
        let recovered = reconciler.recover(clock())?;
        let head = reader.read(|view| Ok(view.bounds()?.head))?;
        let (ledger, serve) = reconciler::channel(reconciler, clock.clone(), head);
        let writer = std::thread::Builder::new().name("writer".to_owned()).spawn(serve).map_err(StartError::Thread)?;

        let address = config.hooks.listen;
        let hooks = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let hooks_address = hooks.local_addr().map_err(|source| StartError::Listen { address, source })?;
        let feed = bind(&config.sockets.feed)?;
        let control = bind(&config.sockets.control)?;

        let calls = Calls::new()?;
        let voices = fleet
            .members()
            .map(|member| (member.id, Arc::new(Asker::new(member.clone(), calls.clone(), clock.clone()))));
        let voices: Arc<BTreeMap<i64, Arc<Asker>>> = Arc::new(voices.collect());
        let (stop, stopped) = watch::channel(false);
        let (fleet_tx, fleet_rx) = watch::channel(fleet);
        let (voices_tx, voices_rx) = watch::channel(voices.clone());
        let desk = Arc::new(Desk {
            ledger: ledger.clone(),
            reader: reader.clone(),
            fleet: fleet_rx.clone(),
            askers: voices_rx,
            clock: clock.clone(),
            started_at: clock(),
            stop: stopped.clone(),
            streams: Arc::new(Semaphore::new(limits::STREAMS_MAX)),
        });
        let receiver = Arc::new(Receiver::new(fleet_rx, ledger.clone(), clock.clone(), config.hooks.body_limit));
        let mut servers = JoinSet::new();
        serve_hooks(&mut servers, hooks, receiver, files, stopped.clone());
        serve_socket(&mut servers, feed, feed::feed_routes(desk.clone()), stopped.clone());
        serve_socket(&mut servers, control, feed::control_routes(desk), stopped.clone());
        let askers = start_asking(&voices, &ledger, &reader, &clock, &stopped);
        let shared = Shared { fleet: fleet_tx, askers: voices_tx };
        let sockets = [config.sockets.feed, config.sockets.control];
        Ok(Daemon { hooks: hooks_address, recovered, stop, servers, askers, writer, sockets, shared })
    }

    /// Stops: drains connections, lets the writer finish, takes the sockets away.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.askers.join_next().await.is_some() {}
        while self.servers.join_next().await.is_some() {}
        drop(self.shared);
        // Every handle is gone with the tasks that held it, so the writer's loop ends by itself.
        let writer = self.writer;
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        for path in &self.sockets {
            let _ = fs::remove_file(path);
        }
    }
}

fn serve_hooks(
    servers: &mut JoinSet<()>,
    listener: TcpListener,
    receiver: Arc<Receiver>,
    files: usize,
    stop: watch::Receiver<bool>,
) {
    // Half of what may be open, where that is little: the database and the sockets need the rest.
    let allowance = Allowance {
        connections_max: limits::HOOK_CONNECTIONS_MAX.min(files / 2),
        header_timeout: limits::HOOK_HEADER_TIMEOUT,
        write_timeout: limits::WRITE_STALL,
    };
    let service = move |peer: Peer| {
        let receiver = receiver.clone();
        let peer = Arc::new(peer);
        Function(move |request| {
            let (receiver, peer) = (receiver.clone(), peer.clone());
            async move { receiver.respond(request, &peer).await }
        })
    };
    servers.spawn(http::serve(Listener::Tcp(listener), allowance, service, stop));
}

fn serve_socket(servers: &mut JoinSet<()>, listener: UnixListener, routes: axum::Router, stop: watch::Receiver<bool>) {
    let allowance = Allowance {
        connections_max: limits::SOCKET_CONNECTIONS_MAX,
        header_timeout: limits::SOCKET_HEADER_TIMEOUT,
        write_timeout: limits::WRITE_STALL,
    };
    let service = move |peer: Peer| {
        if let Peer::Unix { uid, pid } = peer {
            tracing::debug!(uid, pid, "a local client connected");
        }
        TowerToHyperService::new(routes.clone())
    };
    servers.spawn(http::serve(Listener::Unix(listener), allowance, service, stop));
}

fn start_asking(
    voices: &BTreeMap<i64, Arc<Asker>>,
    ledger: &Handle,
    reader: &Reader,
    clock: &Clock,
    stop: &watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(poller::keep_time(ledger.clone(), reader.clone(), clock.clone(), stop.clone()));
    for voice in voices.values() {
        if voice.member.source.api_key.is_none() {
            tracing::warn!(source = %voice.member.source.name, "no api_key: webhooks are recorded, nothing can be polled");
            continue;
        }
        let poller = Poller::new(voice.clone(), ledger.clone(), reader.clone(), clock.clone());
        tasks.spawn(poller.run(stop.clone()));
    }
    tasks
}

/// Makes a Unix socket. A stale file is replaced, a live one is not.
fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let wrong = |source| StartError::Socket { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(wrong)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(StartError::SocketInUse(path.to_owned()));
        }
        fs::remove_file(path).map_err(wrong)?;
    }
    let listener = UnixListener::bind(path).map_err(wrong)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(wrong)?;
    Ok(listener)
}
