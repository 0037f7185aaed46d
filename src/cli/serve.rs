//! `settled serve`: the daemon in the foreground.

use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Failure};
use crate::daemon::{Daemon, system_clock};
use crate::telemetry::{self, LogFormat};

/// Run the daemon until SIGTERM or Ctrl-C
///
/// Example: settled --config settled.toml serve
#[derive(Debug, Args)]
pub struct Serve {
    /// What to log: error, warn, info, debug or trace, or a list of target=level
    #[arg(long, env = "SETTLED_LOG", default_value = "info", value_name = "LEVEL")]
    log: String,
    /// How to log
    #[arg(long, env = "SETTLED_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

impl Serve {
    /// Serves until told to stop.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        telemetry::start(&self.log, self.log_format);
        let config = context.config()?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (feed, sources) = (config.sockets.feed.clone(), config.sources.len());
        let daemon = Daemon::start(config, system_clock()).await?;
        tracing::info!(hooks = %daemon.hooks, feed = %feed.display(), sources, recovered = daemon.recovered, "serving");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        daemon.stop().await;
        Ok(ExitCode::SUCCESS)
    }
}
