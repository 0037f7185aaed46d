//! The daemon: starts, reloads and stops every thread and task, in this order.
//!
//! Start: the writer opens the ledger and processes the reports that an earlier process left; then
//! the listeners open, the pollers start, and the servers answer. Reload: the writer gets the new
//! sources first, then the webhook endpoint, then the pollers. Stop: the pollers end, the servers
//! accept no new connection and finish those in progress, the writer commits its queue and ends.

pub mod telemetry;
pub mod watchdog;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::api::{self, ApiState};
use crate::config::Sources;
use crate::config::{Config, ConfigError, Hooks};
use crate::daemon::watchdog::Watchdog;
use crate::ingest::Receiver;
use crate::ledger::commands::ClampPolls;
use crate::ledger::{LedgerError, Reader, UnverifiedLimits, Writer};
use crate::limits;
use crate::model::At;
use crate::polling::client::{HttpClient, SourceClient};
use crate::polling::{self, Poller};
use crate::reconciler::{self, Clock, Handle, Reconciler, Refusal};
use crate::retention::Upkeep;
use crate::server::listen::{ListenError, Listeners};
use crate::server::systemd::{self, Inherited};
use crate::server::{self, Allowance, Function, Listener, Peer};

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ledger could not be opened or recovered.
    #[error(transparent)]
    Store(#[from] LedgerError),
    /// A listener could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The HTTP client could not be built.
    #[error("the HTTPS client cannot be set up: {}; are the system's certificates (ca-certificates) installed?", innermost(.0))]
    Client(#[from] reqwest::Error),
    /// The system refused a thread.
    #[error("the writer's thread cannot be started: {0}")]
    Thread(io::Error),
}

/// Why a reload failed. The old configuration stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The new configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The writer could not register its sources.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// The system's clock. The only place where the daemon reads it; everything else is given a [`Clock`].
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        At(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}

/// A running daemon. Holds everything that [`Daemon::stop`] has to end.
pub struct Daemon {
    /// The address of the webhook endpoint.
    pub hooks: SocketAddr,
    /// How many stored reports the start processed that an earlier process had left.
    pub recovered: usize,
    config: Config,
    stop: watch::Sender<bool>,
    servers: JoinSet<()>,
    tasks: JoinSet<()>,
    writer: JoinHandle<()>,
    /// Sockets that the daemon made and removes when it stops.
    sockets: Vec<PathBuf>,
    sources: watch::Sender<Arc<Sources>>,
    trouble: watch::Sender<Option<String>>,
    pollers: Pollers,
    watchdog: Watchdog,
    fatal: watch::Receiver<Option<String>>,
}

impl Daemon {
    /// Starts everything, on the sockets that systemd passed in, and on its own where it passed
    /// none. When this returns, all servers answer. Must be called within a tokio runtime.
    pub fn start(
        config: Config,
        clock: &Clock,
        inherited: Inherited,
    ) -> Result<Daemon, StartError> {
        let files = server::raise_file_limit();
        let http = HttpClient::new()?;
        let (mut reconciler, sources, recovered) = recover(&config, clock)?;
        let checkpointer = reconciler.checkpointer()?;
        thread("checkpointer", move || checkpointer.run())?;
        let (sources, fleet_seen) = watch::channel(Arc::new(sources));
        let reader = reconciler.reader();
        let head = reader.read(|view| Ok(view.bounds()?.head))?;
        let (ledger, serve) = reconciler::channel(reconciler, clock.clone(), head);
        let writer = thread("writer", serve)?;

        let listeners = Listeners::open(&config, inherited)?;
        let (stop, stopped) = watch::channel(false);
        let (clients, askers_seen) = watch::channel(Arc::default());
        let (trouble, trouble_seen) = watch::channel(None);
        let state = Arc::new(ApiState {
            ledger: ledger.clone(),
            reader: reader.clone(),
            sources: fleet_seen.clone(),
            clients: askers_seen,
            access: api::access::Access::new(config.page.clone()),
            clock: clock.clone(),
            started_at: clock(),
            stop: stopped.clone(),
            trouble: trouble_seen.clone(),
            streams: Arc::new(Semaphore::new(limits::STREAMS_MAX)),
            lookups: Semaphore::new(limits::LOOKUPS_MAX),
            consumers: api::Readers::default(),
            page_cache: api::PageCache::default(),
        });
        let (fatal, fatal_seen) = watch::channel(None);
        let watchdog = Watchdog {
            fatal,
            ledger: ledger.clone(),
            reader: reader.clone(),
            sources: fleet_seen.clone(),
            trouble: trouble_seen,
            clock: clock.clone(),
        };
        let body_limit = config.hooks.body_limit;
        let receiver = Arc::new(Receiver::new(
            fleet_seen.clone(),
            ledger.clone(),
            clock.clone(),
            body_limit,
        ));
        // The clients exist before the control socket answers, so that a status shows every
        // source's limiter. Webhooks that come meanwhile wait in the listeners, which are open.
        let mut tasks = JoinSet::new();
        let mut pollers = Pollers {
            clients,
            tasks: BTreeMap::new(),
            http,
            ledger: ledger.clone(),
            reader: reader.clone(),
            clock: clock.clone(),
            stop: stopped.clone(),
        };
        pollers.follow(&fleet_seen.borrow(), &mut tasks);
        let mut servers = JoinSet::new();
        for socket in listeners.hooks {
            serve_hooks(
                &mut servers,
                socket,
                receiver.clone(),
                files,
                stopped.clone(),
            );
        }
        serve_socket(
            &mut servers,
            listeners.feed,
            api::feed_routes(state.clone()),
            stopped.clone(),
        );
        serve_socket(
            &mut servers,
            listeners.control,
            api::control_routes(state),
            stopped.clone(),
        );
        let time = polling::keep_time(
            fleet_seen.clone(),
            ledger.clone(),
            reader.clone(),
            clock.clone(),
            stopped.clone(),
        );
        tasks.spawn(time);
        tasks.spawn(watchdog.clone().beat(stopped.clone()));
        let upkeep = Upkeep {
            ledger: ledger.clone(),
            reader: reader.clone(),
            clock: clock.clone(),
            retention: config.retention.clone(),
        };
        tasks.spawn(upkeep.run(stopped.clone()));
        let keep_feed = crate::retention::feed::keep(
            ledger.clone(),
            clock.clone(),
            config.retention.clone(),
            stopped.clone(),
        );
        tasks.spawn(keep_feed);
        let (hooks, sockets) = (listeners.address, listeners.ours);
        Ok(Daemon {
            hooks,
            recovered,
            config,
            stop,
            servers,
            tasks,
            writer,
            sockets,
            sources,
            trouble,
            pollers,
            watchdog,
            fatal: fatal_seen,
        })
    }

    /// Ends with the reason when the daemon cannot go on and has to start again.
    pub fn fatal(&self) -> impl Future<Output = String> + use<> {
        let mut fatal = self.fatal.clone();
        async move {
            match fatal.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Takes sources, secrets and schedules from a new configuration. If it is wrong, the old one
    /// stays in force; the log, `settled status` and `systemctl status` say so.
    pub async fn reload(&mut self, config: Result<Config, ConfigError>) {
        systemd::reloading();
        let result = match config {
            Ok(config) => self.take(config).await,
            Err(error) => Err(error.into()),
        };
        let trouble = result.err().map(|error| {
            let text = error.to_string();
            tracing::error!(
                "the new configuration is not taken, the old one stays in force: {text}"
            );
            format!(
                "OLD CONFIGURATION IN FORCE ({})",
                text.lines().next().unwrap_or_default()
            )
        });
        self.trouble.send_replace(trouble);
        systemd::ready(&self.watchdog.line().await);
    }

    async fn take(&mut self, config: Config) -> Result<(), ReloadError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        warn_of_fixed(&self.config, &config);
        let registration = reconciler::registration(&config.sources, (self.pollers.clock)());
        let rows = self.pollers.ledger.execute(registration).await?;
        let sources = reconciler::registered(&config.sources, &rows);
        let earlier = self.sources.borrow().clone();
        self.pollers
            .ledger
            .set_sources(sources.remembering(&earlier))
            .await?;
        let sources = Arc::new(sources);
        self.sources.send_replace(sources.clone());
        self.pollers.follow(&sources, &mut self.tasks);
        self.config.sources = config.sources;
        tracing::info!(sources = self.config.sources.len(), origin = %config.origin, "reloaded");
        Ok(())
    }

    /// The status line of `systemctl status`.
    pub async fn line(&self) -> String {
        self.watchdog.line().await
    }

    /// Stops: ends the pollers, drains connections, lets the writer finish, removes our sockets.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.pollers.hush();
        while self.tasks.join_next().await.is_some() {}
        while self.servers.join_next().await.is_some() {}
        drop((self.pollers, self.watchdog, self.sources));
        // All handles are dropped now, so the writer's queue is closed and its loop ends.
        let writer = self.writer;
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        for path in &self.sockets {
            let _ = fs::remove_file(path);
        }
    }
}

/// The innermost cause, which names what is missing; the outer ones only say that something failed.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(StartError::Thread)
}

/// Opens the ledger and processes the reports that an earlier process left.
fn recover(config: &Config, clock: &Clock) -> Result<(Reconciler, Sources, usize), LedgerError> {
    let mut writer = Writer::open(&config.store_path, clock())?;
    let sources = reconciler::register(&mut writer, &config.sources, clock())?;
    writer.execute(ClampPolls::of(&sources, clock()))?;
    let unverified = unverified(&config.hooks);
    let mut reconciler = Reconciler::new(writer, sources.clone(), unverified);
    let tell = |count: usize| {
        if count % 100 == 1 {
            systemd::starting(
                &format!("Recovering: {count} reports read"),
                limits::RECOVERY_STEP,
            );
        }
    };
    let recovered = reconciler.recover(clock(), tell)?;
    Ok((reconciler, sources, recovered))
}

fn unverified(hooks: &Hooks) -> UnverifiedLimits {
    UnverifiedLimits {
        rows_max: i64::try_from(hooks.unverified_rows).unwrap_or(i64::MAX),
        bytes_max: i64::try_from(hooks.unverified_bytes).unwrap_or(i64::MAX),
    }
}

/// Logs which changes of the configuration take a restart.
fn warn_of_fixed(old: &Config, new: &Config) {
    let changed = [
        ("hooks", old.hooks != new.hooks),
        ("store", old.store_path != new.store_path),
        ("sockets", old.sockets != new.sockets),
        ("page", old.page != new.page),
        ("retention", old.retention != new.retention),
    ];
    for (table, _) in changed.into_iter().filter(|(_, changed)| *changed) {
        tracing::warn!("[{table}] has changed, which takes a restart: systemctl restart settled");
    }
}

/// The clients and polling loops, one of each per source.
struct Pollers {
    clients: watch::Sender<Arc<BTreeMap<i64, Arc<SourceClient>>>>,
    tasks: BTreeMap<i64, AbortHandle>,
    http: HttpClient,
    ledger: Handle,
    reader: Reader,
    clock: Clock,
    stop: watch::Receiver<bool>,
}

impl Pollers {
    /// Gives every source its client and its loop. An unchanged source keeps both, and a changed one
    /// keeps its rate limiter with pause, breaker and counts. Polls of changed sources that are under way are dropped; their runs stay due, so
    /// the new loop polls them again.
    fn follow(&mut self, sources: &Sources, tasks: &mut JoinSet<()>) {
        let earlier = self.clients.borrow().clone();
        let unchanged = |id: &i64| {
            let client: &Arc<SourceClient> = earlier.get(id)?;
            let member = sources.members().find(|member| member.id == *id)?;
            (client.member.config == member.config).then(|| client.clone())
        };
        self.tasks.retain(|id, task| {
            let keep = unchanged(id).is_some();
            if !keep {
                task.abort();
            }
            keep
        });
        let pollers: BTreeMap<i64, Arc<SourceClient>> = sources
            .members()
            .map(|member| {
                let fresh = || {
                    let (http, clock) = (self.http.clone(), self.clock.clone());
                    Arc::new(match earlier.get(&member.id) {
                        Some(client) => client.reloaded(member.clone()),
                        None => SourceClient::new(member.clone(), http, clock),
                    })
                };
                (member.id, unchanged(&member.id).unwrap_or_else(fresh))
            })
            .collect();
        for (id, client) in &pollers {
            self.start_loop(*id, client, tasks);
        }
        self.clients.send_replace(Arc::new(pollers));
    }

    fn start_loop(&mut self, id: i64, client: &Arc<SourceClient>, tasks: &mut JoinSet<()>) {
        if client.member.config.api_key.is_none() {
            tracing::warn!(source = %client.member.config.name, "no api_key: webhooks are recorded, nothing can be polled");
        } else if !self.tasks.contains_key(&id) {
            let poller = Poller::new(
                client.clone(),
                self.ledger.clone(),
                self.reader.clone(),
                self.clock.clone(),
            );
            self.tasks
                .insert(id, tasks.spawn(poller.run(self.stop.clone())));
        }
    }

    /// Aborts every polling loop.
    fn hush(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

fn serve_hooks(
    servers: &mut JoinSet<()>,
    listener: TcpListener,
    receiver: Arc<Receiver>,
    files: usize,
    stop: watch::Receiver<bool>,
) {
    // At most half of the open files that the system allows: the database and the Unix sockets need
    // the rest.
    let allowance = Allowance {
        connections_max: limits::HOOK_CONNECTIONS_MAX.min(files / 2),
        header_timeout: limits::HOOK_HEADER_TIMEOUT,
        write_timeout: limits::WRITE_STALL,
        drain_timeout: limits::SHUTDOWN_DRAIN,
    };
    let service = move |peer: Peer| {
        let receiver = receiver.clone();
        let peer = Arc::new(peer);
        Function(move |request| {
            let (receiver, peer) = (receiver.clone(), peer.clone());
            async move { receiver.respond(request, &peer).await }
        })
    };
    servers.spawn(server::serve(
        Listener::Tcp(listener),
        allowance,
        service,
        stop,
    ));
}

fn serve_socket(
    servers: &mut JoinSet<()>,
    listener: UnixListener,
    routes: axum::Router,
    stop: watch::Receiver<bool>,
) {
    let allowance = Allowance {
        connections_max: limits::SOCKET_CONNECTIONS_MAX,
        header_timeout: limits::SOCKET_HEADER_TIMEOUT,
        write_timeout: limits::WRITE_STALL,
        drain_timeout: limits::SHUTDOWN_DRAIN,
    };
    let service = move |peer: Peer| {
        if let Peer::Unix { uid, pid } = peer {
            tracing::debug!(uid, pid, "a local client connected");
        }
        let (routes, peer) = (TowerToHyperService::new(routes.clone()), Arc::new(peer));
        Function(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let answer = routes.call(request);
            async move { answer.await.unwrap_or_else(|never| match never {}) }
        })
    };
    servers.spawn(server::serve(
        Listener::Unix(listener),
        allowance,
        service,
        stop,
    ));
}
