//! What was changed in the system's resolver, written down before it is changed, so that a crash can be undone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One change that is to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "manager", deny_unknown_fields)]
pub(super) enum Change {
    /// The settings of a link in systemd-resolved.
    Resolved { index: u32, interface: String },
    /// A file of ours for NetworkManager's dnsmasq.
    NetworkManager {},
    /// A record in resolvconf.
    Resolvconf {},
}

/// The file that holds the change.
#[derive(Debug, Clone)]
pub(super) struct Journal(PathBuf);

impl Journal {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// What was noted and not yet undone. A file that cannot be understood is nobody's change.
    pub(super) fn read(&self) -> Option<Change> {
        let text = fs::read_to_string(&self.0).ok()?;
        let change = serde_json::from_str(&text);
        if let Err(err) = &change {
            tracing::warn!(path = %self.0.display(), %err, "the note of what to undo in the resolver is unreadable");
        }
        change.ok()
    }

    /// Notes a change: it is on the disk when this returns.
    pub(super) fn write(&self, change: &Change) -> io::Result<()> {
        let json = serde_json::to_vec(change)?;
        let draft = self.0.with_extension("draft");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&draft, &self.0)?;
        sync_folder(&self.0)
    }

    /// Forgets the change: it is undone.
    pub(super) fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            Ok(()) | Err(_) => sync_folder(&self.0),
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_survives_and_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new(&folder.path().join("names.json"));
        assert_eq!(journal.read(), None);
        for change in [
            Change::Resolved {
                index: 7,
                interface: "proxima0".to_owned(),
            },
            Change::NetworkManager {},
            Change::Resolvconf {},
        ] {
            journal.write(&change).unwrap();
            assert_eq!(journal.read(), Some(change));
        }
        fs::write(folder.path().join("names.json"), "{ half").unwrap();
        assert_eq!(journal.read(), None);
        journal.clear().unwrap();
        journal.clear().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
