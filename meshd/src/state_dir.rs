//! What the daemon keeps on disk: keys, membership, settings and the last signed map. Durable and private.
//!
//! The directory is 0700 and its files 0600. A file is replaced by writing a new one beside it, flushing it, renaming it
//! and flushing the directory, so that a power cut leaves the old or the new content, never half.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use mesh_proto::id::{NetworkId, NodeId, NodeName};
use mesh_proto::key::{
    CoordinatorKey, CoordinatorPrivateKey, DiscoPrivateKey, MachinePrivateKey, NodeKey,
    NodePrivateKey,
};
use mesh_proto::local::Settings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::inventory::ShareConfig;

const MACHINE_KEY: &str = "machine.key";
const NODE_KEY: &str = "node.key";
const DISCO_KEY: &str = "disco.key";
/// The key that a rotation under way changes to.
const NEXT_NODE_KEY: &str = "node.key.next";
const MEMBERSHIP: &str = "membership.json";
const SETTINGS: &str = "settings.json";
const SHARE: &str = "share.json";
const SWITCH: &str = "switch.json";
/// The key of the relay that the node offers.
const RELAY_KEY: &str = "relay.key";
const NETMAP: &str = "netmap.log";
const STAMPS: &str = "stamps.mark";
const LOCK: &str = "lock";
/// Written and removed to learn whether there is room.
const TRIAL: &str = "trial";

/// URLs of coordinators that a node tries.
const N_URLS_MAX: usize = 16;

/// Timestamps that a run takes for itself, a nanosecond each: enough for two thousand handshakes a second for a year.
const STAMPS_A_RUN_NS: u64 = 60_000_000_000;
/// A clock that is later is not followed (the year 2200): what it would use up never comes back.
const STAMPS_LAST_NS: u64 = 7_258_118_400_000_000_000;

/// A file of ours is never larger; one that is was not written by us.
const FILE_LEN_MAX: u64 = 64 << 20;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon has the directory.
    #[error(
        "{path} is in use by another meshd: stop it first, or give this one its own --state-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file's content makes no sense.
    #[error("{path} is damaged ({reason}): move it away and run `meshctl up --auth-key …` again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// To which mesh the node belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The node's id.
    pub node_id: NodeId,
    /// The name that it got.
    pub name: NodeName,
    /// The mesh.
    pub network_id: NetworkId,
    /// The key that signs its maps.
    pub coordinator_key: CoordinatorKey,
    /// The coordinators, best first.
    pub urls: Vec<String>,
}

impl Membership {
    /// Puts the URLs of a newer auth key first; true when there is a new one among them. The others stay: which of them
    /// answers is not known yet.
    pub fn learn_urls(&mut self, urls: &[String]) -> bool {
        let is_new = urls.iter().any(|url| !self.urls.contains(url));
        if is_new {
            let known = std::mem::take(&mut self.urls);
            self.urls = urls.to_vec();
            let others = known.into_iter().filter(|url| !urls.contains(url));
            self.urls.extend(others);
            self.urls.truncate(N_URLS_MAX);
        }
        is_new
    }
}

/// Whether the node is switched on.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Switch {
    is_on: bool,
}

/// The lines of the kept map.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MapLines {
    /// Whole lines, oldest first.
    pub lines: Vec<String>,
    /// Whether another one, cut short, follows them. What is added would become part of it.
    pub is_cut: bool,
}

/// An open state directory, locked against a second daemon.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Opens the directory, making it when it is missing.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another daemon has it, [`StateError::Io`] when it cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let io_error = |verb, source| StateError::Io {
            verb,
            path: root.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|err| io_error("create", err))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))
            .map_err(|err| io_error("protect", err))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(root.join(LOCK))
            .map_err(|err| io_error("lock", err))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                root: root.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse {
                path: root.to_owned(),
            }),
            Err(TryLockError::Error(err)) => Err(io_error("lock", err)),
        }
    }

    /// The directory, for parts of the daemon that keep files of their own in it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The machine key; made at the first call.
    ///
    /// # Errors
    /// [`StateError`] when it can be neither read nor made. It is never replaced when it is damaged.
    pub fn machine_key(&self) -> Result<MachinePrivateKey, StateError> {
        self.secret(MACHINE_KEY)
            .map(|secret| MachinePrivateKey::from_bytes(&secret))
    }

    /// The key that vouches for the certificate of this node's relay; made at the first call.
    ///
    /// # Errors
    /// As [`Self::machine_key`].
    pub fn relay_key(&self) -> Result<CoordinatorPrivateKey, StateError> {
        self.secret(RELAY_KEY)
            .map(|secret| CoordinatorPrivateKey::from_bytes(&secret))
    }

    /// The node key; made at the first call.
    ///
    /// # Errors
    /// As [`Self::machine_key`].
    pub fn node_key(&self) -> Result<NodePrivateKey, StateError> {
        self.secret(NODE_KEY)
            .map(|secret| NodePrivateKey::from_bytes(*secret))
    }

    /// The disco key; made at the first call. Peers may know it from a kept map alone, so it outlives a restart.
    ///
    /// # Errors
    /// As [`Self::machine_key`].
    pub fn disco_key(&self) -> Result<DiscoPrivateKey, StateError> {
        self.secret(DISCO_KEY)
            .map(|secret| DiscoPrivateKey::from_bytes(*secret))
    }

    /// Replaces the node key.
    ///
    /// # Errors
    /// [`StateError::Io`] when it cannot be written; the old one then stays.
    pub fn set_node_key(&self, key: &NodePrivateKey) -> Result<(), StateError> {
        let text = Zeroizing::new(BASE64URL_NOPAD.encode(&*key.to_bytes()));
        self.replace(NODE_KEY, text.as_bytes())?;
        // Left behind, it would be the next rotation's key a second time: harmless.
        let _ = fs::remove_file(self.path(NEXT_NODE_KEY));
        Ok(())
    }

    /// The node key to change to. It is stored before anybody is told of it, and stays the same until it is in use: a
    /// rotation whose end nobody heard of is so taken up again.
    ///
    /// # Errors
    /// As [`Self::machine_key`].
    pub fn next_node_key(&self) -> Result<NodePrivateKey, StateError> {
        self.secret(NEXT_NODE_KEY)
            .map(|secret| NodePrivateKey::from_bytes(*secret))
    }

    /// Takes the next node key into use when the coordinator has it already; `Some` when it did.
    ///
    /// # Errors
    /// [`StateError`] when the files cannot be read or written.
    pub fn adopt_next_node_key(
        &self,
        registered: &NodeKey,
    ) -> Result<Option<NodePrivateKey>, StateError> {
        if !self.path(NEXT_NODE_KEY).exists() {
            return Ok(None);
        }
        let next = self.next_node_key()?;
        if next.public() != *registered || self.node_key()?.public() == *registered {
            return Ok(None);
        }
        self.set_node_key(&next)?;
        Ok(Some(next))
    }

    /// To which mesh the node belongs, if to any.
    ///
    /// # Errors
    /// [`StateError`] when the file is there and cannot be read.
    pub fn membership(&self) -> Result<Option<Membership>, StateError> {
        self.load(MEMBERSHIP)
    }

    /// Stores the membership.
    ///
    /// # Errors
    /// [`StateError::Io`] when it cannot be written.
    pub fn set_membership(&self, membership: &Membership) -> Result<(), StateError> {
        self.store(MEMBERSHIP, membership)
    }

    /// Forgets keys, membership and map. Settings stay.
    ///
    /// # Errors
    /// [`StateError::Io`] when a file cannot be removed.
    pub fn forget(&self) -> Result<(), StateError> {
        self.remove(&[
            MEMBERSHIP,
            NETMAP,
            SWITCH,
            NEXT_NODE_KEY,
            NODE_KEY,
            DISCO_KEY,
            MACHINE_KEY,
            RELAY_KEY,
            STAMPS,
        ])
    }

    /// Stores what is left of the share when its mesh is left. On a full disk, where nothing can be written, the owner's
    /// choices go rather than that sharing stays on.
    ///
    /// # Errors
    /// [`StateError::Io`] when the file can be neither written nor removed.
    pub fn end_share(&self, share: &ShareConfig) -> Result<(), StateError> {
        self.set_share(share).or_else(|_| self.remove(&[SHARE]))
    }

    fn remove(&self, names: &[&str]) -> Result<(), StateError> {
        for name in names {
            match fs::remove_file(self.path(name)) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(StateError::Io {
                        verb: "remove",
                        path: self.path(name),
                        source,
                    });
                }
            }
        }
        self.sync_dir()
    }

    /// The settings of `meshctl set`.
    ///
    /// # Errors
    /// [`StateError`] when the file is there and cannot be read.
    pub fn settings(&self) -> Result<Settings, StateError> {
        Ok(self.load(SETTINGS)?.unwrap_or_default())
    }

    /// Stores the settings.
    ///
    /// # Errors
    /// [`StateError::Io`] when they cannot be written.
    pub fn set_settings(&self, settings: &Settings) -> Result<(), StateError> {
        self.store(SETTINGS, settings)
    }

    /// What the owner shares.
    ///
    /// # Errors
    /// [`StateError`] when the file is there and cannot be read.
    pub fn share(&self) -> Result<ShareConfig, StateError> {
        Ok(self.load(SHARE)?.unwrap_or_default())
    }

    /// Stores what the owner shares.
    ///
    /// # Errors
    /// [`StateError::Io`] when it cannot be written.
    pub fn set_share(&self, share: &ShareConfig) -> Result<(), StateError> {
        self.store(SHARE, share)
    }

    /// Whether the owner switched the node on.
    ///
    /// # Errors
    /// [`StateError`] when the file is there and cannot be read.
    pub fn is_on(&self) -> Result<bool, StateError> {
        Ok(self.load::<Switch>(SWITCH)?.unwrap_or_default().is_on)
    }

    /// Stores whether the node is switched on.
    ///
    /// # Errors
    /// [`StateError::Io`] when it cannot be written.
    pub fn set_on(&self, is_on: bool) -> Result<(), StateError> {
        self.store(SWITCH, &Switch { is_on })
    }

    /// The signed lines of the last map, oldest first. A line that a crash cut short is left out.
    ///
    /// # Errors
    /// [`StateError`] when the file is there and cannot be read.
    pub fn map_lines(&self) -> Result<MapLines, StateError> {
        let Some(text) = self.read(NETMAP)? else {
            return Ok(MapLines::default());
        };
        let text = String::from_utf8_lossy(&text);
        Ok(MapLines {
            is_cut: !text.is_empty() && !text.ends_with('\n'),
            lines: text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .map(str::to_owned)
                .collect(),
        })
    }

    /// Starts the map anew with one full, signed line.
    ///
    /// # Errors
    /// [`StateError::Io`] when it cannot be written; the old lines then stay.
    pub fn replace_map(&self, line: &str) -> Result<(), StateError> {
        self.replace(NETMAP, line.as_bytes())
    }

    /// Adds a signed delta.
    ///
    /// # Errors
    /// [`StateError::Io`] when it cannot be written; start the map anew then.
    pub fn append_map(&self, line: &str) -> Result<(), StateError> {
        let path = self.path(NETMAP);
        let append = || {
            let mut file = OpenOptions::new().append(true).open(&path)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        append().map_err(|source| StateError::Io {
            verb: "append to",
            path: path.clone(),
            source,
        })
    }

    /// Whether so many bytes can be written, tried out.
    ///
    /// # Errors
    /// [`StateError::Io`] when they cannot.
    pub fn has_room(&self, n_bytes: usize) -> Result<(), StateError> {
        self.replace(TRIAL, &vec![0; n_bytes])?;
        self.remove(&[TRIAL])
    }

    /// Forgets the map; what is left is what is known of a node before its first map.
    ///
    /// # Errors
    /// [`StateError::Io`] when it cannot be removed.
    pub fn forget_map(&self) -> Result<(), StateError> {
        self.remove(&[NETMAP])
    }

    /// Takes timestamps of handshakes for one run and returns the first, nanoseconds since 1970: `wall_ns`, this machine's
    /// clock, or what comes after all that earlier runs took, where that is later. They are marked as taken before the
    /// first is used, so that a crash makes none come twice; nothing more is written while they last.
    ///
    /// Beside it the reason, when the mark could be neither read nor written: should the clock go back, a later run may
    /// take the same. A mark that makes no sense is of no use to anybody, and written anew.
    pub fn take_stamps(&self, wall_ns: u64) -> (u64, Result<(), StateError>) {
        let kept = self.read(STAMPS);
        let mark_ns = match &kept {
            Ok(Some(text)) => String::from_utf8_lossy(text).trim().parse().unwrap_or(0),
            Ok(None) | Err(_) => 0,
        };
        let first_ns = wall_ns.min(STAMPS_LAST_NS).max(mark_ns);
        let mark_ns = first_ns.saturating_add(STAMPS_A_RUN_NS).to_string();
        let written = self.replace(STAMPS, mark_ns.as_bytes());
        (first_ns, kept.and(written))
    }

    fn secret(&self, name: &str) -> Result<Zeroizing<[u8; 32]>, StateError> {
        if let Some(text) = self.read(name)? {
            let text = Zeroizing::new(text);
            let bytes = BASE64URL_NOPAD
                .decode(text.trim_ascii())
                .ok()
                .map(Zeroizing::new);
            let secret = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
            return secret
                .map(Zeroizing::new)
                .ok_or_else(|| StateError::Damaged {
                    path: self.path(name),
                    reason: "not a key".to_owned(),
                });
        }
        let secret = self.random()?;
        let text = Zeroizing::new(BASE64URL_NOPAD.encode(&*secret));
        self.replace(name, text.as_bytes())?;
        Ok(secret)
    }

    fn random(&self) -> Result<Zeroizing<[u8; 32]>, StateError> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(|err| StateError::Io {
            verb: "draw random bytes for",
            path: self.root.clone(),
            source: err.into(),
        })?;
        Ok(secret)
    }

    fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        let damaged = |err: serde_json::Error| StateError::Damaged {
            path: self.path(name),
            reason: err.to_string(),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    fn store<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(value).map_err(|err| StateError::Damaged {
            path: self.path(name),
            reason: err.to_string(),
        })?;
        self.replace(name, &text)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StateError::Io {
                    verb: "open",
                    path,
                    source,
                });
            }
        };
        let mut bytes = Vec::new();
        match file.take(FILE_LEN_MAX).read_to_end(&mut bytes) {
            Ok(_) => Ok(Some(bytes)),
            Err(source) => Err(StateError::Io {
                verb: "read",
                path,
                source,
            }),
        }
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        replace_file(&path, content).map_err(|source| StateError::Io {
            verb: "write",
            path,
            source,
        })
    }

    fn sync_dir(&self) -> Result<(), StateError> {
        let sync = || File::open(&self.root)?.sync_all();
        sync().map_err(|source| StateError::Io {
            verb: "flush",
            path: self.root.clone(),
            source,
        })
    }
}

/// Puts a file of ours, 0600, in the place of another, whole or not at all.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let write = || {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    // A half-written file must not stay behind on a full disk; failing to remove it changes nothing.
    write().inspect_err(|_| drop(fs::remove_file(&beside)))?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("state");
        let state = StateDir::open(&root).unwrap();
        let first = state.machine_key().unwrap().public();
        assert_eq!(state.machine_key().unwrap().public(), first);
        let disco = state.disco_key().unwrap().public();
        assert_eq!(state.disco_key().unwrap().public(), disco);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&root), mode(&root.join(MACHINE_KEY))), (0o700, 0o600));
    }

    #[test]
    fn a_damaged_key_is_told_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        fs::write(state.path(MACHINE_KEY), "short").unwrap();
        assert!(matches!(
            state.machine_key(),
            Err(StateError::Damaged { .. })
        ));
        assert_eq!(fs::read(state.path(MACHINE_KEY)).unwrap(), b"short");
    }

    #[test]
    fn a_rotation_cut_off_after_the_coordinators_yes_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let old = state.node_key().unwrap().public();
        assert!(state.adopt_next_node_key(&old).unwrap().is_none());
        let next = state.next_node_key().unwrap().public();
        assert_eq!(state.next_node_key().unwrap().public(), next);
        // The coordinator has not heard of it: the old one stays.
        assert!(state.adopt_next_node_key(&old).unwrap().is_none());
        assert_eq!(state.node_key().unwrap().public(), old);
        let adopted = state.adopt_next_node_key(&next).unwrap();
        assert_eq!(adopted.map(|key| key.public()), Some(next));
        assert_eq!(state.node_key().unwrap().public(), next);
        assert_ne!(state.next_node_key().unwrap().public(), next);
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert!(matches!(
            StateDir::open(dir.path()),
            Err(StateError::InUse { .. })
        ));
        drop(first);
        assert!(StateDir::open(dir.path()).is_ok());
    }

    #[test]
    fn a_line_cut_by_a_crash_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.replace_map("one {}\n").unwrap();
        state.append_map("two {}\n").unwrap();
        state.append_map("thr").unwrap();
        let kept = state.map_lines().unwrap();
        assert_eq!(kept.lines, ["one {}\n", "two {}\n"]);
        assert!(kept.is_cut);
    }

    #[test]
    fn urls_of_a_newer_key_come_first_and_the_others_stay() {
        let key = CoordinatorPrivateKey::from_bytes(&[1; 32]).public();
        let url = |n: usize| format!("https://192.0.2.{n}:7443");
        let mut membership = Membership {
            node_id: NodeId::from_bytes([1; 10]),
            name: "own".parse().unwrap(),
            network_id: NetworkId::of(&key),
            coordinator_key: key,
            urls: vec![url(1), url(2)],
        };
        assert!(!membership.learn_urls(&[url(2)]));
        assert_eq!(membership.urls, [url(1), url(2)]);
        assert!(membership.learn_urls(&[url(3), url(2)]));
        assert_eq!(membership.urls, [url(3), url(2), url(1)]);
        for n in 4..40 {
            membership.learn_urls(&[url(n)]);
        }
        assert_eq!(membership.urls.len(), N_URLS_MAX);
        assert_eq!(membership.urls[0], url(39));
    }

    #[test]
    fn stamps_only_grow_whatever_the_clock_says() {
        const DAY_NS: u64 = 86_400_000_000_000;
        let now_ns = 1_800_000_000_000_000_000;
        let dir = tempfile::tempdir().unwrap();
        let take = |wall_ns| {
            // Each run ends without a word.
            let state = StateDir::open(dir.path()).unwrap();
            let (first_ns, kept) = state.take_stamps(wall_ns);
            kept.unwrap();
            first_ns
        };
        assert_eq!(take(now_ns), now_ns);
        // The clock goes back by a day, stands, goes back by years, and is right again.
        let walls = [now_ns - DAY_NS, now_ns - DAY_NS, 0, now_ns];
        let mut last_ns = now_ns;
        for wall_ns in walls {
            let first_ns = take(wall_ns);
            assert_eq!(first_ns, last_ns + STAMPS_A_RUN_NS);
            last_ns = first_ns;
        }
        assert_eq!(take(now_ns + DAY_NS), now_ns + DAY_NS);
        // Gone for ever are at most the years up to 2200, whatever the clock said once.
        assert_eq!(take(u64::MAX), STAMPS_LAST_NS);
        assert_eq!(take(now_ns), STAMPS_LAST_NS + STAMPS_A_RUN_NS);
        fs::write(dir.path().join(STAMPS), "soon").unwrap();
        assert_eq!(take(now_ns), now_ns);
        assert_eq!(take(0), now_ns + STAMPS_A_RUN_NS);
    }

    #[test]
    fn stamps_are_given_also_where_nothing_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.take_stamps(10).1.unwrap();
        // A folder in its place stands for a disk that takes nothing, also for root.
        fs::create_dir(state.path("stamps.mark.new")).unwrap();
        let (first_ns, kept) = state.take_stamps(5);
        assert_eq!(first_ns, 10 + STAMPS_A_RUN_NS);
        assert!(kept.is_err());
    }

    #[test]
    fn room_is_tried_out_and_nothing_of_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.has_room(100_000).unwrap();
        state.has_room(0).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "only the lock: {left:?}");
        // A folder in its place stands for a disk that takes nothing, also for root.
        fs::create_dir(state.path(TRIAL)).unwrap();
        assert!(state.has_room(1).is_err());
    }

    #[test]
    fn sharing_ends_also_where_nothing_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let shared = ShareConfig {
            is_on: true,
            n_slots: 7,
            ..ShareConfig::default()
        };
        state.set_share(&shared).unwrap();
        state.end_share(&shared.after_leaving()).unwrap();
        assert_eq!(state.share().unwrap(), shared.after_leaving());
        state.set_share(&shared).unwrap();
        fs::create_dir(state.path("share.json.new")).unwrap();
        state.end_share(&shared.after_leaving()).unwrap();
        assert_eq!(state.share().unwrap(), ShareConfig::default());
    }

    #[test]
    fn forgetting_keeps_the_settings() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let settings = Settings {
            dns: false,
            ..Settings::default()
        };
        state.set_settings(&settings).unwrap();
        let key = state.machine_key().unwrap().public();
        state.forget().unwrap();
        assert_eq!(state.settings().unwrap(), settings);
        assert_ne!(state.machine_key().unwrap().public(), key);
        assert!(state.membership().unwrap().is_none());
    }
}
