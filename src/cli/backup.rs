//! `settled backup`: a copy of the database while the daemon runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{Context, Failure, exit};
use crate::api::types::ErrorReply;
use crate::cli::client::{Client, Target};

/// How long the daemon may take to make the copy.
const COPY_MAX: Duration = Duration::from_secs(3_600);

/// Copy the database to FILE while the daemon runs
///
/// The copy is complete and of one moment; webhooks are stored meanwhile. It is readable by its
/// owner alone, and is never put over a file that is there. To restore: stop settled, put the copy
/// in the place of the database (and remove its -wal and -shm), start. The feed then has a new
/// epoch, so that no position is taken for another.
///
/// Example: settled backup /var/backups/settled-$(date +%F).db
#[derive(Debug, Args)]
pub struct Backup {
    /// The file to write
    file: PathBuf,
}

impl Backup {
    /// Fetches the copy from the daemon.
    pub async fn run(&self, context: &Context) -> Result<ExitCode, Failure> {
        let socket = context.sockets()?.control;
        // The copy is made before its first byte comes, which may take minutes. So ask first whether
        // the daemon answers at all: a stopped one would keep this command waiting.
        Client::new(&socket)?.get(Target::new(["healthz"])).await?;
        let stream = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(error) => return Ok(unreachable(&socket, &error)),
        };
        if self.file.exists() {
            return Err(Failure::Other(format!(
                "{} exists already; name another file",
                self.file.display()
            )));
        }
        let bytes = fetch(stream, &self.file)?;
        println!("{}: {bytes} bytes", self.file.display());
        Ok(ExitCode::SUCCESS)
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> ExitCode {
    eprintln!(
        "settled: the daemon cannot be reached on {}: {error}; start it, or, with it stopped, copy the file itself",
        socket.display()
    );
    ExitCode::from(exit::UNREACHABLE)
}

/// Requests the copy and writes it: whole under its name, or not at all.
fn fetch(mut stream: UnixStream, file: &Path) -> Result<u64, Failure> {
    stream.set_read_timeout(Some(COPY_MAX))?;
    stream.write_all(b"POST /v1/backup HTTP/1.0\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let (status, length) = head(&mut answer)?;
    if status != 200 {
        let mut text = String::new();
        answer.take(64 * 1024).read_to_string(&mut text)?;
        return Err(Failure::Other(message(&text).unwrap_or(text)));
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let written = write(&mut answer, &part, length).and_then(|()| settle(&part, file));
    if let Err(error) = written {
        let _ = fs::remove_file(&part);
        return Err(Failure::Other(format!(
            "{} cannot be written: {error}",
            file.display()
        )));
    }
    Ok(length)
}

/// The status and the length that are announced.
fn head(answer: &mut impl BufRead) -> io::Result<(u16, u64)> {
    let nonsense = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the daemon's answer is not HTTP",
        )
    };
    let mut line = String::new();
    answer.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(nonsense)?;
    let mut length = 0;
    loop {
        line.clear();
        if answer.read_line(&mut line)? == 0 {
            return Err(nonsense());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| nonsense())?;
        }
    }
    Ok((status, length))
}

/// The message of an error reply.
fn message(text: &str) -> Option<String> {
    let reply: ErrorReply = serde_json::from_str(text).ok()?;
    Some(reply.error.message)
}

fn write(from: &mut impl Read, part: &Path, length: u64) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(part)?;
    let copied = io::copy(&mut from.take(length), &mut file)?;
    if copied < length {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the daemon stopped sending; try again",
        ));
    }
    file.sync_all()
}

/// Gives the finished file its name, without ever taking it from another.
fn settle(part: &Path, file: &Path) -> io::Result<()> {
    fs::hard_link(part, file)?;
    fs::remove_file(part)?;
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
