//! What a process did to its files, read from the record that `strace` made of it.

use std::collections::HashMap;
use std::path::Path;

use super::disk::{Change, Step};

/// Something that happened, in the order in which it did.
#[derive(Clone, Debug)]
pub enum Event {
    /// To the disk.
    Disk(Step),
    /// The workload wrote a line of its log: it was promised something, or read something.
    Said(String),
}

/// The name of the workload's log in the folder.
pub const LOG: &str = "said";

/// Reads a record made with `-f -y -xx`. Writes and what is said count from when they begin, syncs
/// and names from when they are done: what lies in between is for the power cut to decide.
pub fn read(text: &str, folder: &Path) -> Vec<Event> {
    let folder = folder.to_str().unwrap();
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut events = Vec::new();
    for line in text.lines() {
        let Some((process, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(process, begin);
            events.extend(call(begin, folder, Half::Begin));
        } else if let Some((_, end)) = rest
            .strip_prefix("<... ")
            .and_then(|rest| rest.split_once(" resumed>"))
        {
            let whole = format!("{}{end}", begun.remove(process).unwrap_or_default());
            events.extend(call(&whole, folder, Half::End));
        } else {
            events.extend(call(rest, folder, Half::Begin));
            events.extend(call(rest, folder, Half::End));
        }
    }
    events
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Begin,
    End,
}

fn call(text: &str, folder: &str, half: Half) -> Option<Event> {
    let (function, arguments) = text.split_once('(')?;
    let at_its_end = matches!(function, "fsync" | "fdatasync" | "openat");
    if at_its_end != (half == Half::End)
        || (at_its_end && text.rsplit_once(" = ")?.1.starts_with('-'))
    {
        return None;
    }
    match function {
        "openat" | "unlink" => {
            let path = String::from_utf8(strings(arguments).pop()?).ok()?;
            let name = path.strip_prefix(folder)?.strip_prefix('/')?.to_owned();
            match function {
                _ if ignored(&name) => None,
                "unlink" => Some(Event::Disk(Step::Unlink(name))),
                _ => arguments
                    .contains("O_CREAT")
                    .then_some(Event::Disk(Step::Create(name))),
            }
        }
        _ => {
            let path = String::from_utf8(unescape(arguments.split_once('<')?.1.split_once('>')?.0))
                .ok()?;
            let name = path
                .strip_prefix(folder)?
                .trim_start_matches('/')
                .to_owned();
            on_file(function, name, arguments.split_once('>')?.1)
        }
    }
}

fn on_file(function: &str, name: String, arguments: &str) -> Option<Event> {
    let numbers = || {
        arguments
            .split(" = ")
            .next()
            .unwrap_or_default()
            .trim_end_matches(')')
            .rsplit(", ")
    };
    let number = |text: &str| {
        text.parse::<usize>()
            .unwrap_or_else(|_| panic!("{text:?} is no number"))
    };
    if name == LOG && function == "write" {
        return Some(Event::Said(
            String::from_utf8(strings(arguments).pop()?)
                .ok()?
                .trim_end()
                .to_owned(),
        ));
    }
    if ignored(&name) {
        return None;
    }
    Some(Event::Disk(match function {
        "fsync" | "fdatasync" if name.is_empty() => Step::SyncFolder,
        "fsync" | "fdatasync" => Step::Sync(name),
        "ftruncate" => Step::Change(name, Change::Cut(number(numbers().next()?))),
        "pwrite64" => {
            let (bytes, at) = (strings(arguments).pop()?, number(numbers().next()?));
            assert_eq!(
                Some(bytes.len()),
                numbers().nth(1).map(number),
                "the record is cut short"
            );
            Step::Change(name, Change::Write(at, bytes))
        }
        other => panic!("{other} of {name} was not foreseen"),
    }))
}

/// The lock is empty, the index of the log is made anew by whoever comes first, and the workload's
/// own log is no part of the ledger.
fn ignored(name: &str) -> bool {
    ["settled.db.lock", "settled.db-shm", LOG].contains(&name)
}

/// The quoted strings in a call's arguments.
fn strings(arguments: &str) -> Vec<Vec<u8>> {
    arguments
        .split('"')
        .skip(1)
        .step_by(2)
        .map(unescape)
        .collect()
}

/// Bytes written as `\x2f\x64`.
fn unescape(text: &str) -> Vec<u8> {
    let digits: String = text.split("\\x").collect();
    data_encoding::HEXLOWER
        .decode(digits.as_bytes())
        .unwrap_or_else(|_| panic!("{text:?} is not written in hex"))
}
