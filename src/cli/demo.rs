//! `settled demo`: shows on this machine, in under a minute, that every run gets one completion.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;

use crate::demo::{self, DemoError, Ledger, Options, Rates};

/// Run the daemon against lying clouds and count what its feed holds
///
/// Starts a cloud of each provider on 127.0.0.1. They answer, list and sign like the real ones,
/// and they drop, delay, repeat, reorder, forge and contradict webhooks and fail polls. The real
/// daemon runs against them on a fresh database, and its real feed is compared with what the
/// clouds know. Ends with 0 only if every run has exactly one completion, and the right one.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = EXAMPLES)]
pub struct Demo {
    /// The number of runs
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,

    /// The seed of all randomness: the same seed gives the same lies
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// Kill the daemon N times with SIGKILL, and start it again
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    kill: u32,

    /// Print the ledger as JSON
    #[arg(long)]
    json: bool,

    /// Keep the folder with configuration, database and log, and print its path
    #[arg(long)]
    keep: bool,
}

const EXAMPLES: &str = "Examples:
  settled demo
  settled demo --runs 10000 --seed 7
  settled demo --kill 5
  settled demo --json | jq .by_origin";

impl Demo {
    /// Runs the command.
    pub async fn run(self) -> Result<ExitCode, DemoError> {
        let options = Options {
            runs: self.runs as usize,
            seed: self.seed,
            kills: self.kill as usize,
            rates: Rates::default(),
            program: None,
            keep: self.keep,
        };
        let ledger = demo::run(options).await?;
        let _ = self.print(&ledger); // a closed pipe is no failure
        Ok(if ledger.ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn print(&self, ledger: &Ledger) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, ledger)?;
            writeln!(out)?;
        } else {
            write!(out, "{ledger}")?;
        }
        if let Some(folder) = ledger.folder.as_ref().filter(|_| !self.json) {
            writeln!(out, "everything is in {}", folder.display())?;
        }
        out.flush()
    }
}
