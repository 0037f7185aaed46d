//! Disks of our own: an ext4 in a file, or a tmpfs. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system, unmounted when dropped.
pub struct Disk {
    _folder: tempfile::TempDir,
    image: PathBuf,
    pub root: PathBuf,
}

/// Runs a command that has to work.
pub fn run(command: &str, args: &[&str]) {
    let output = Command::new(command)
        .args(args)
        .output()
        .expect("the command is installed");
    assert!(
        output.status.success(),
        "{command} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

impl Disk {
    /// A new ext4 of this size, on memory if there is some: what a loop device has been given is
    /// then all in the file, and a copy is quick.
    pub fn ext4(mib: u64) -> Disk {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let folder = folder.expect("a temporary folder");
        let image = folder.path().join("image");
        fs::File::create(&image)
            .and_then(|file| file.set_len(mib << 20))
            .expect("a sparse file");
        run("mkfs.ext4", &["-q", "-F", text(&image)]);
        Disk::mount(folder, image)
    }

    /// A tmpfs of this size.
    pub fn tmpfs(mib: u64) -> Disk {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().join("root");
        fs::create_dir(&root).expect("a mount point");
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}m"),
                "none",
                text(&root),
            ],
        );
        Disk {
            image: PathBuf::new(),
            _folder: folder,
            root,
        }
    }

    /// What would be found after the power had failed now: the bytes that reached the device.
    pub fn cut(&self) -> Disk {
        let folder = tempfile::tempdir_in(self.image.parent().expect("a folder"))
            .expect("a temporary folder");
        let image = folder.path().join("image");
        run("cp", &["--sparse=always", text(&self.image), text(&image)]);
        Disk::mount(folder, image)
    }

    fn mount(folder: tempfile::TempDir, image: PathBuf) -> Disk {
        let root = folder.path().join("root");
        fs::create_dir(&root).expect("a mount point");
        run("mount", &["-o", "loop", text(&image), text(&root)]);
        Disk {
            _folder: folder,
            image,
            root,
        }
    }

    /// Leaves this many KiB free.
    pub fn fill(&self, leave_kib: u64) {
        let free = self.free_kib().saturating_sub(leave_kib);
        let ballast = self.root.join("ballast");
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(ballast)
            .expect("a file");
        let _ = std::io::copy(
            &mut std::io::Read::take(std::io::repeat(1), free << 10),
            &mut file,
        );
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn empty(&self) {
        fs::remove_file(self.root.join("ballast")).expect("it is there");
    }

    fn free_kib(&self) -> u64 {
        let output = Command::new("df")
            .args(["--output=avail", "-k", text(&self.root)])
            .output()
            .expect("df");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok())
            .expect("a number")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.root).status();
    }
}
