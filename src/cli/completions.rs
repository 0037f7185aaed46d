//! `settled completions`: completion scripts for shells.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure};

/// Print a completion script for a shell
///
/// Example: settled completions bash > ~/.local/share/bash-completion/completions/settled
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that reads the script
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode, Failure> {
        // Not directly to stdout: the generator panics if stdout is closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "settled", &mut script);
        let mut out = std::io::stdout().lock();
        out.write_all(&script)?;
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}
