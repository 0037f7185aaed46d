//! The program: parse, dispatch, print the error, choose the exit code.

use std::process::ExitCode;

use clap::Parser;
use settled::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("settled: {failure}");
            failure.exit_code()
        }
    }
}
