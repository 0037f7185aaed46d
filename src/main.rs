//! The program: parse, dispatch, print the error, choose the exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use settled::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(failure) => {
            // Not eprintln!, which panics when nobody reads stderr.
            let _ = writeln!(std::io::stderr(), "settled: {failure}");
            failure.exit_code()
        }
    }
}
