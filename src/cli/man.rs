//! `settled man`: the manual, generated from the help texts.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;

use super::{Cli, Failure};

/// Print the manual as one page, or write one page per command
///
/// Example: settled man | man -l -
#[derive(Debug, Args)]
pub struct Man {
    /// Write settled.1, settled-track.1 and so on into this folder instead
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

impl Man {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode, Failure> {
        if let Some(folder) = self.dir {
            let unwritable = |error| Failure::Other(format!("{}: {error}", folder.display()));
            std::fs::create_dir_all(&folder).map_err(unwritable)?;
            clap_mangen::generate_to(command(), &folder).map_err(unwritable)?;
        } else {
            let mut out = io::stdout().lock();
            out.write_all(&one_page()?)?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The command line without the commands that clap adds.
fn command() -> Command {
    Cli::command().disable_help_subcommand(true)
}

/// One page for the program, with a section for each command.
fn one_page() -> io::Result<Vec<u8>> {
    let mut command = command();
    command.build();
    let page = Page::new(command.clone());
    let mut roff = Vec::new();
    page.render_title(&mut roff)?;
    page.render_name_section(&mut roff)?;
    page.render_synopsis_section(&mut roff)?;
    page.render_description_section(&mut roff)?;
    page.render_options_section(&mut roff)?;
    for command in command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let heading = format!("settled {}", command.get_name()).to_uppercase();
        writeln!(roff, ".SH \"{heading}\"")?;
        roff.extend(subsections(&Page::new(command.clone()))?);
    }
    page.render_version_section(&mut roff)?;
    Ok(roff)
}

/// The sections of a command, one heading level lower.
fn subsections(page: &Page) -> io::Result<Vec<u8>> {
    let mut roff = Vec::new();
    page.render_synopsis_section(&mut roff)?;
    page.render_description_section(&mut roff)?;
    page.render_options_section(&mut roff)?;
    page.render_extra_section(&mut roff)?;
    let text = String::from_utf8_lossy(&roff).into_owned();
    Ok(format!("\n{text}")
        .replace("\n.SH ", "\n.SS ")
        .trim_start()
        .to_owned()
        .into_bytes())
}
