//! `settled serve`: the daemon in the foreground.

use std::pin::pin;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Context, Failure, exit};
use crate::config::Config;
use crate::daemon::telemetry::{self, LogFormat};
use crate::daemon::{Daemon, StartError, system_clock};
use crate::server::listen::ListenError;
use crate::server::systemd::{self, Inherited};

/// Run the daemon until SIGTERM or Ctrl-C
///
/// SIGHUP reloads sources, secrets and schedules; a wrong file changes nothing. systemd may pass the
/// listening sockets; the daemon then reports when it is ready, and feeds the watchdog.
/// Exit code 2 means that the configuration is wrong.
///
/// Example: settled --config settled.toml serve
#[derive(Debug, Args)]
pub struct Serve {
    /// The log level: error, warn, info, debug or trace, or a list of target=level
    #[arg(
        long,
        env = "SETTLED_LOG",
        default_value = "info",
        value_name = "LEVEL"
    )]
    log: String,
    /// The log format
    #[arg(long, env = "SETTLED_LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
}

/// The signals that a running daemon handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Handles the signals from now on, so that none of them ends the process by itself.
    fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal. True: reload. False: stop.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => false,
            _ = self.hangup.recv() => true,
        }
    }
}

impl Serve {
    /// Runs the command, until a signal stops the daemon.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let inherited =
            Inherited::take().map_err(|error| StartError::Listen(ListenError::Inherited(error)))?;
        telemetry::start(&self.log, self.log_format);
        let mut signals = Signals::listen()?;
        let config = match context.config() {
            Ok(config) => config,
            Err(failure) => return Ok(refuse(&failure)),
        };
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let mut daemon = start(config, inherited).await?;
        let mut fatal = pin!(daemon.fatal());
        let failed = loop {
            tokio::select! {
                reload = signals.next() => {
                    if !reload {
                        break None;
                    }
                    daemon.reload(context.load()).await;
                }
                reason = &mut fatal => break Some(reason),
            }
        };
        if let Some(reason) = &failed {
            tracing::error!("{reason}; ending");
        } else {
            tracing::info!("stopping");
        }
        systemd::stopping("Finishing what is under way");
        daemon.stop().await;
        // The service manager starts a failed daemon again, on the file that is there then.
        Ok(failed.map_or(ExitCode::SUCCESS, |_| ExitCode::FAILURE))
    }
}

/// Reports a wrong configuration. It has its own exit code, by which systemd does not restart the
/// service: the same configuration would fail again.
fn refuse(failure: &Failure) -> ExitCode {
    let text = failure.to_string();
    systemd::status(&format!(
        "Not started: {}",
        text.lines().next().unwrap_or_default()
    ));
    eprintln!("settled: {text}");
    ExitCode::from(exit::USAGE)
}

async fn start(config: Config, inherited: Inherited) -> Result<Daemon, Failure> {
    let (feed, sources) = (config.sockets.feed.clone(), config.sources.len());
    let daemon = Daemon::start(config, &system_clock(), inherited)?;
    tracing::info!(hooks = %daemon.hooks, feed = %feed.display(), sources, recovered = daemon.recovered, "serving");
    systemd::ready(&daemon.line().await);
    Ok(daemon)
}
