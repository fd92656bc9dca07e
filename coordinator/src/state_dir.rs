//! The state directory: the coordinator key and the database, for the coordinator's own eyes.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use data_encoding::BASE64;
use mesh_proto::key::CoordinatorPrivateKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::auth::secret::random;

const KEY_FILE: &str = "coordinator.key";
const RELAY_KEY_FILE: &str = "relay.key";
/// What a relay keeps of its mesh once it is in.
pub(crate) const MEMBERSHIP_FILE: &str = "relay.json";
const DATABASE_FILE: &str = "coordinator.db";
const SOCKET_FILE: &str = "coordinator.sock";
const LOCK_FILE: &str = "lock";

/// An opened state directory; the lock on it lasts as long as this.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Where the admin socket of a state directory is.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join(SOCKET_FILE)
}

impl StateDir {
    /// Opens the directory, making it when absent, and keeps other coordinators out of it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| {
                format!(
                    "cannot make the state directory {}; choose one with --state-dir",
                    path.display()
                )
            })?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).with_context(|| {
            format!(
                "cannot make {} private; it must belong to this user",
                path.display()
            )
        })?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .with_context(|| format!("cannot write in the state directory {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => bail!(
                "another coordinator runs on {}; stop it, or choose another --state-dir",
                path.display()
            ),
            Err(TryLockError::Error(err)) => Err(err).context("cannot lock the state directory"),
        }
    }

    /// The database's file, made with mode 0600 when absent: SQLite gives its side files the same mode.
    pub(crate) fn database(&self) -> anyhow::Result<PathBuf> {
        let path = self.path.join(DATABASE_FILE);
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        sync_dir(&self.path)?;
        Ok(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The coordinator key, drawn at the first start.
    pub(crate) fn coordinator_key(&self) -> anyhow::Result<CoordinatorPrivateKey> {
        let secret = self.secret(KEY_FILE, DATABASE_FILE)?;
        Ok(CoordinatorPrivateKey::from_bytes(&secret))
    }

    /// The key of a relay that stands alone, drawn at the first start.
    pub(crate) fn relay_key(&self) -> anyhow::Result<Zeroizing<[u8; 32]>> {
        self.secret(RELAY_KEY_FILE, MEMBERSHIP_FILE)
    }

    /// Reads a file of this program's own JSON; `None` when there is none.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, file: &str) -> anyhow::Result<Option<T>> {
        let path = self.path.join(file);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("{} is damaged; remove it to begin anew", path.display())),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes JSON durably.
    pub(crate) fn write_json(&self, file: &str, value: &impl Serialize) -> anyhow::Result<()> {
        write_json_in(&self.path, file, value)
    }

    /// A secret of 32 bytes, drawn when there is none, unless `made_with_it` shows that it was there before.
    fn secret(&self, file: &str, made_with_it: &str) -> anyhow::Result<Zeroizing<[u8; 32]>> {
        let path = self.path.join(file);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let text = Zeroizing::new(text);
                let secret =
                    Zeroizing::new(BASE64.decode(text.trim().as_bytes()).unwrap_or_default());
                let secret: [u8; 32] = secret.as_slice().try_into().map_err(|_| {
                    anyhow::anyhow!("{} is damaged; restore it from a backup", path.display())
                })?;
                Ok(Zeroizing::new(secret))
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                if self.path.join(made_with_it).exists() {
                    bail!(
                        "{} is gone, but the mesh in {} knows it; restore it from a backup",
                        path.display(),
                        self.path.display()
                    );
                }
                let secret = Zeroizing::new(random::<32>()?);
                let text = Zeroizing::new(BASE64.encode(secret.as_slice()) + "\n");
                write_durably(&path, text.as_bytes())
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(secret)
            }
            Err(err) => Err(err).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// Writes JSON durably into a state directory.
pub(crate) fn write_json_in(dir: &Path, file: &str, value: &impl Serialize) -> anyhow::Result<()> {
    let path = dir.join(file);
    let text = serde_json::to_vec(value)?;
    write_durably(&path, &text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a private file so that after a crash either the old content is there or the new one, whole.
fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let key = state.coordinator_key().unwrap().public();
        assert_eq!(state.coordinator_key().unwrap().public(), key);
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(KEY_FILE)), 0o600);
        assert_eq!(mode(&state.database().unwrap()), 0o600);
    }

    #[test]
    fn a_second_coordinator_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let err = StateDir::open(dir.path()).unwrap_err();
        assert!(err.to_string().contains("another coordinator"), "{err}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_lost_or_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.coordinator_key().unwrap();
        state.database().unwrap();
        fs::write(dir.path().join(KEY_FILE), "nonsense").unwrap();
        assert!(state.coordinator_key().is_err());
        fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
        assert!(
            state
                .coordinator_key()
                .unwrap_err()
                .to_string()
                .contains("backup")
        );
    }
}
