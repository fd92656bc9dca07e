//! A disk that is soon full.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::ensure_success;

/// What the rest of the disk is filled with.
const FILLER: &str = "filler";

/// A small file system over a folder. Whoever is to see it must be started after it; it goes away when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many KiB.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn mount(folder: &Path, n_kib: usize) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let size = format!("size={n_kib}k,mode=700");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder)
            .output()?;
        ensure_success("mount", &output)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Leaves no byte free.
    ///
    /// # Errors
    /// When writing fails for another reason than the disk's end.
    pub fn fill(&self) -> Result<()> {
        let path = self.folder.join(FILLER);
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        for chunk in [65_536, 4_096, 1] {
            fill_by(&mut file, chunk).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Gives all of it back that [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// When it was not filled.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.folder.join(FILLER))?)
    }
}

fn fill_by(file: &mut File, chunk: usize) -> std::io::Result<()> {
    let zeros = vec![0; chunk];
    loop {
        match file.write_all(&zeros) {
            Ok(()) => {}
            Err(err) if err.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(err) => return Err(err),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.folder);
    }
}

/// Unmounts a folder, whoever still uses it.
pub(crate) fn unmount(folder: &Path) {
    // The sweep of a later lab tries again.
    drop(Command::new("umount").arg("--lazy").arg(folder).output());
}

/// What is mounted below a folder, the innermost first.
pub(crate) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut below: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(PathBuf::from))
        .filter(|path| path.starts_with(folder))
        .collect();
    below.reverse();
    below
}
