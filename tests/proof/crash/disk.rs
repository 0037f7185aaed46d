//! A disk as a power cut sees it: what was synced is there, of the rest anything may be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use settled::demo::dice::Dice;

use crate::files::Remains;

/// What becomes of what was written and not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All of it is lost.
    Lost,
    /// All of it is there.
    Kept,
    /// Some writes are there, whatever their order.
    Mixed,
    /// Of each write some sectors are there.
    Torn,
}

impl Fate {
    pub const ALL: [Fate; 4] = [Fate::Lost, Fate::Kept, Fate::Mixed, Fate::Torn];
}

/// What is written in one piece.
const SECTOR: usize = 512;

/// A change of one file.
#[derive(Clone, Debug)]
pub enum Change {
    /// Bytes at a position.
    Write(usize, Vec<u8>),
    /// Another length.
    Cut(usize),
}

/// Something done to the disk.
#[derive(Clone, Debug)]
pub enum Step {
    Create(String),
    Change(String, Change),
    Sync(String),
    Unlink(String),
    SyncFolder,
}

/// One folder on a disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    files: Vec<File>,
    names: BTreeMap<String, Name>,
}

#[derive(Clone, Debug, Default)]
struct File {
    synced: Vec<u8>,
    pending: Vec<Change>,
}

/// Which file a name stands for: for the programs, and for who looks after a power cut.
#[derive(Clone, Copy, Debug, Default)]
struct Name {
    now: Option<usize>,
    synced: Option<usize>,
}

impl Disk {
    /// A ledger's disk while a commit is under way: what the log has in `after` and not in `before`
    /// is not synced yet. Nothing, if more than the log was written: a checkpoint, whose order of
    /// writes cannot be told from the files.
    pub fn committing(before: &Remains, after: &Remains) -> Option<Disk> {
        if after.bytes != before.bytes {
            return None;
        }
        let mut disk = Disk::default();
        let none = Vec::new();
        let (old, new) = (
            before.log.as_ref().unwrap_or(&none),
            after.log.as_ref().unwrap_or(&none),
        );
        for (name, bytes) in [("settled.db", &before.bytes), ("settled.db-wal", old)] {
            disk.take(&Step::Create(name.to_owned()));
            disk.take(&Step::Change(
                name.to_owned(),
                Change::Write(0, bytes.clone()),
            ));
            disk.take(&Step::Sync(name.to_owned()));
        }
        disk.take(&Step::SyncFolder);
        for change in written(old, new) {
            disk.take(&Step::Change("settled.db-wal".to_owned(), change));
        }
        Some(disk)
    }

    /// Does something to it.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Create(name) => {
                let entry = self.names.entry(name.clone()).or_default();
                if entry.now.is_none() {
                    self.files.push(File::default());
                    entry.now = Some(self.files.len() - 1);
                }
            }
            Step::Change(name, change) => self.file(name).pending.push(change.clone()),
            Step::Sync(name) => {
                let file = self.file(name);
                for change in std::mem::take(&mut file.pending) {
                    change.apply(&mut file.synced);
                }
            }
            Step::Unlink(name) => self.names.entry(name.clone()).or_default().now = None,
            Step::SyncFolder => self
                .names
                .values_mut()
                .for_each(|name| name.synced = name.now),
        }
    }

    fn file(&mut self, name: &str) -> &mut File {
        let number = self.names.get(name).and_then(|name| name.now);
        &mut self.files[number.unwrap_or_else(|| panic!("{name} is written and was never made"))]
    }

    /// Lays out in `folder` what is there after a power cut.
    pub fn cut(&self, fate: Fate, dice: &mut Dice, folder: &Path) {
        for (name, entry) in &self.names {
            let number = match fate {
                Fate::Lost => entry.synced,
                Fate::Mixed | Fate::Torn if dice.chance(0.5) => entry.synced,
                _ => entry.now,
            };
            if let Some(number) = number {
                fs::write(folder.join(name), self.files[number].after(fate, dice)).unwrap();
            }
        }
    }
}

/// The sectors in which two states of a file differ, as writes.
fn written(before: &[u8], after: &[u8]) -> Vec<Change> {
    let sector = |bytes: &'_ [u8], at: usize| {
        bytes
            .get(at..bytes.len().min(at + SECTOR))
            .map(<[u8]>::to_vec)
    };
    let differ = (0..after.len())
        .step_by(SECTOR)
        .filter(|at| sector(before, *at) != sector(after, *at));
    differ
        .map(|at| Change::Write(at, sector(after, at).unwrap()))
        .collect()
}

impl File {
    fn after(&self, fate: Fate, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        // How likely a write is to be there: often hardly any, often nearly all.
        let likely = *dice.pick(&[0.1, 0.5, 0.9]);
        for change in &self.pending {
            let parts = if fate == Fate::Torn {
                change.sectors()
            } else {
                vec![change.clone()]
            };
            for part in parts {
                let there = match fate {
                    Fate::Lost => false,
                    Fate::Kept => true,
                    Fate::Mixed | Fate::Torn => dice.chance(likely),
                };
                if there {
                    part.apply(&mut bytes);
                }
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, written) => {
                let end = at + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(written);
            }
            Change::Cut(length) => bytes.resize(*length, 0),
        }
    }

    /// The same in the pieces in which a disk writes it.
    fn sectors(&self) -> Vec<Change> {
        let Change::Write(at, written) = self else {
            return vec![self.clone()];
        };
        let (mut parts, mut from) = (Vec::new(), 0);
        while from < written.len() {
            let to = written.len().min(from + SECTOR - (at + from) % SECTOR);
            parts.push(Change::Write(at + from, written[from..to].to_vec()));
            from = to;
        }
        parts
    }
}
