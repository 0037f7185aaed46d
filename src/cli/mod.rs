//! The commands: one file each. Output for people on a terminal, `--json` for programs, errors on
//! stderr in a line or two that say what to do.

mod backup;
mod check;
pub mod client;
mod completions;
mod consume;
mod consumers;
mod deliveries;
mod demo;
mod feed;
mod init;
mod man;
mod pages;
mod poll;
mod retry_webhook;
mod reverify;
mod run;
mod runs;
mod serve;
mod show;
mod status;
mod track;
mod wait;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cli::client::{Client, ClientError};
use crate::config::{self, Config, ConfigError, Env};
use crate::model::At;

/// Exit codes, one sentence each.
pub mod exit {
    /// The command worked; of `wait`: the run succeeded.
    pub const OK: u8 = 0;
    /// The command failed, and stderr says why.
    pub const FAILED: u8 = 1;
    /// The command line is wrong (clap's own code).
    pub const USAGE: u8 = 2;
    /// No daemon answers on the socket.
    pub const UNREACHABLE: u8 = 3;
    /// Of `wait`: the run failed.
    pub const RUN_FAILED: u8 = 10;
    /// Of `wait`: the run was cancelled.
    pub const RUN_CANCELLED: u8 = 11;
    /// Of `wait`: the provider's own time limit ended the run.
    pub const RUN_TIMED_OUT: u8 = 12;
    /// Of `wait`: the run is over, and no authoritative report says how it ended.
    pub const RUN_INDETERMINATE: u8 = 13;
    /// Of `wait`: the run was still open when `--timeout` had passed.
    pub const STILL_OPEN: u8 = 14;
}

/// settled: exactly one completion per run.
///
/// Records the webhooks of your providers before it answers them, polls the runs whose webhook does
/// not come, and gives consumers one completion per run on a Unix socket.
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
    Check(check::Check),
    Completions(completions::Completions),
    Consume(consume::Consume),
    Consumers(consumers::Consumers),
    Deliveries(deliveries::Deliveries),
    Demo(demo::Demo),
    Feed(feed::Feed),
    Init(init::Init),
    Man(man::Man),
    Poll(poll::Poll),
    RetryWebhook(retry_webhook::RetryWebhook),
    Reverify(reverify::Reverify),
    Run(run::Run),
    Runs(runs::Runs),
    Serve(serve::Serve),
    Status(status::Status),
    Track(track::Track),
    Wait(wait::Wait),
}

/// Which socket a command uses, and how it prints the reply.
#[derive(Args, Debug)]
struct Talk {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// The daemon's socket [default: as configured]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
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
    /// The daemon refused the request or did not answer. Its text may quote a provider.
    #[error("{}", show::clean(&.0.to_string()))]
    Client(#[from] ClientError),
    /// The reader of our output has closed it; that is no failure.
    #[error("the output was closed")]
    ClosedPipe,
    /// Anything else; the text says what to do.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The code the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Client(error) if error.is_unreachable() => exit::UNREACHABLE,
            _ => exit::FAILED,
        })
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::Other(error.to_string()),
        }
    }
}

/// The configuration and environment of a command.
pub struct Context {
    config: Option<PathBuf>,
    env: Env,
}

impl Context {
    /// The configuration in force.
    pub fn config(&self) -> Result<Config, Failure> {
        Ok(self.load()?)
    }

    /// The same for the system's service, if this would read its file: the unit sets variables that a
    /// person's shell does not have.
    pub fn service_config(&self) -> Result<Config, Failure> {
        let default = Path::new(config::DEFAULT_FILE);
        let named = self
            .config
            .clone()
            .or_else(|| self.env.get("SETTLED_CONFIG").map(PathBuf::from));
        let its_own = named.is_none_or(|named| named == default) && default.exists();
        let credentials = default.with_file_name("credentials");
        if !its_own || self.env.get("CREDENTIALS_DIRECTORY").is_some() || !credentials.exists() {
            return self.config();
        }
        let env = Env::of_process().of_service(Path::new("/etc/default/settled"));
        Ok(config::load(self.config.as_deref(), &env)?)
    }

    /// The configuration in force, or what is wrong with it.
    pub fn load(&self) -> Result<Config, ConfigError> {
        config::load(self.config.as_deref(), &self.env)
    }

    /// Where the daemon's sockets are.
    pub fn sockets(&self) -> Result<config::Sockets, Failure> {
        Ok(config::client_sockets(self.config.as_deref(), &self.env)?)
    }

    /// A client of the control socket.
    fn control(&self, talk: &Talk) -> Result<Client, Failure> {
        self.client(talk, |sockets| sockets.control)
    }

    /// A client of the feed socket.
    fn feed(&self, talk: &Talk) -> Result<Client, Failure> {
        self.client(talk, |sockets| sockets.feed)
    }

    fn client(
        &self,
        talk: &Talk,
        which: impl Fn(config::Sockets) -> PathBuf,
    ) -> Result<Client, Failure> {
        let socket = match &talk.socket {
            Some(path) => path.clone(),
            None => which(config::client_sockets(self.config.as_deref(), &self.env)?),
        };
        Ok(Client::new(&socket)?)
    }

    /// The time, to show ages.
    #[expect(clippy::unused_self, reason = "commands get what they need from here")]
    fn now(&self) -> At {
        crate::daemon::system_clock()()
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let context = Context {
            config: self.config,
            env: Env::of_process(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let ended = runtime.block_on(async {
            match self.command {
                Command::Backup(command) => command.run(&context).await,
                Command::Check(command) => command.run(&context).await,
                Command::Completions(command) => command.run(),
                Command::Consume(command) => command.run(&context).await,
                Command::Consumers(command) => command.run(&context).await,
                Command::Deliveries(command) => command.run(&context).await,
                Command::Demo(command) => Ok(command.run().await?),
                Command::Feed(command) => command.run(&context).await,
                Command::Init(command) => command.run(&context),
                Command::Man(command) => command.run(),
                Command::Poll(command) => command.run(&context).await,
                Command::RetryWebhook(command) => command.run(&context).await,
                Command::Reverify(command) => command.run(&context).await,
                Command::Run(command) => command.run(&context).await,
                Command::Runs(command) => command.run(&context).await,
                Command::Serve(command) => command.run(&context).await,
                Command::Status(command) => command.run(&context).await,
                Command::Track(command) => command.run(&context).await,
                Command::Wait(command) => command.run(&context).await,
            }
        });
        match ended {
            Err(Failure::ClosedPipe) => Ok(ExitCode::SUCCESS),
            ended => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            let (_, example) = help.split_once("Example").unwrap_or_default();
            assert!(
                example.contains("settled ") && example.contains(command.get_name()),
                "{help}"
            );
        }
    }
}
