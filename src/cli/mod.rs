//! The commands: one file each. Output for people on a terminal, `--json` for programs, errors on
//! stderr in a line or two that say what to do.

mod backup;
mod demo;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Config, ConfigError, Env};

/// Exit codes, one sentence each.
pub mod exit {
    /// It worked.
    pub const OK: u8 = 0;
    /// It did not, and stderr says why.
    pub const FAILED: u8 = 1;
    /// The command line makes no sense (clap's own code).
    pub const USAGE: u8 = 2;
    /// The daemon cannot be reached on its socket.
    pub const UNREACHABLE: u8 = 3;
}

/// settled: exactly one completion per run.
///
/// Records the webhooks of Skyvern, Browser Use, SmartBrowse and Firecrawl before it answers them,
/// polls the runs whose webhook does not come, and gives consumers one completion per run on a Unix
/// socket.
#[derive(Debug, Parser)]
#[command(name = "settled", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration file [default: $SETTLED_CONFIG, else /etc/settled/settled.toml, else the
    /// providers' environment variables]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Backup(backup::Backup),
    Serve(serve::Serve),
    Demo(demo::Demo),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The daemon did not start.
    #[error("{0}")]
    Start(#[from] crate::daemon::StartError),
    /// The demo did not come to an end.
    #[error("{0}")]
    Demo(#[from] crate::demo::DemoError),
    /// Anything else; the text says what to do.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The code the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(exit::FAILED)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Other(error.to_string())
    }
}

/// What every command may need.
pub struct Context {
    config: Option<PathBuf>,
    env: Env,
}

impl Context {
    /// The configuration in force.
    pub fn config(&self) -> Result<Config, Failure> {
        Ok(self.load()?)
    }

    /// The same, with what is wrong with it.
    pub fn load(&self) -> Result<Config, ConfigError> {
        config::load(self.config.as_deref(), &self.env)
    }

    /// Where the daemon's sockets are.
    pub fn sockets(&self) -> Result<config::Sockets, Failure> {
        Ok(config::client_sockets(self.config.as_deref(), &self.env)?)
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let context = Context { config: self.config, env: Env::of_process() };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.command {
                Command::Backup(command) => command.run(&context),
                Command::Serve(command) => command.run(&context).await,
                Command::Demo(command) => Ok(command.run().await?),
            }
        })
    }
}
