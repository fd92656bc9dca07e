//! The map that the node goes by: verified, kept on disk, and never rolled back.

use mesh_proto::id::NodeId;
use mesh_proto::netmap::{MapBody, MapFrame, Netmap, PeerEntry, Revision};

use crate::control::Credentials;
use crate::state_dir::{StateDir, StateError};

/// After this many deltas a full map is asked for, so that the kept lines stay short.
const N_DELTAS_MAX: usize = 512;

/// What a frame did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    /// The map is another.
    Changed,
    /// The map is another, and a full one should follow.
    ChangedNeedsFull,
    /// The map is as it was.
    Same,
    /// The frame is older than the map that the node has; it was refused.
    Older,
    /// The frame does not fit what is known: ask for a full map.
    NeedsFull,
}

impl Applied {
    pub(super) fn is_changed(self) -> bool {
        matches!(self, Self::Changed | Self::ChangedNeedsFull)
    }

    pub(super) fn needs_full(self) -> bool {
        matches!(self, Self::NeedsFull | Self::ChangedNeedsFull)
    }
}

/// The map and where it stands.
#[derive(Debug)]
pub(super) struct MapKeeper {
    netmap: Option<Netmap>,
    /// What the next stream resumes from; `None` asks for a full map.
    revision: Option<Revision>,
    /// The newest that was ever taken in. Nothing older is, whatever was asked for in between.
    newest: Option<Revision>,
    n_deltas: usize,
    /// The kept lines end in one that is cut or missing: nothing may follow it, only a full map mends it.
    is_log_broken: bool,
    /// Why the map is not kept.
    trouble: Option<String>,
    /// How much room a full map takes, bytes.
    full_len: usize,
    /// When the newest line that was kept was said, Unix milliseconds.
    kept_at_ms: u64,
}

impl MapKeeper {
    /// Starts from the lines on disk, each verified again. A line that does not verify ends the reading.
    pub(super) fn load(state: &StateDir, credentials: &Credentials) -> Result<Self, StateError> {
        let mut keeper = Self {
            netmap: None,
            revision: None,
            newest: None,
            n_deltas: 0,
            is_log_broken: false,
            trouble: None,
            full_len: 0,
            kept_at_ms: 0,
        };
        let kept = state.map_lines()?;
        keeper.is_log_broken = kept.is_cut;
        for line in kept.lines {
            let frame =
                MapFrame::from_line(&line, &credentials.coordinator_key, &credentials.node_id);
            let Ok(frame) = frame else {
                tracing::warn!("the kept map does not verify from here on");
                keeper.is_log_broken = true;
                break;
            };
            keeper.kept_at_ms = keeper.kept_at_ms.max(frame.sent_at_ms);
            keeper.full_len += line.len();
            if matches!(keeper.apply(frame), Applied::NeedsFull | Applied::Older) {
                keeper.is_log_broken = true;
                break;
            }
        }
        if keeper.is_log_broken {
            keeper.ask_full();
        }
        Ok(keeper)
    }

    pub(super) fn netmap(&self) -> Option<&Netmap> {
        self.netmap.as_ref()
    }

    /// What to resume from.
    pub(super) fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// Where the map in use stands.
    pub(super) fn newest(&self) -> Option<Revision> {
        self.newest
    }

    /// When the newest line that was read at the start was said, Unix milliseconds.
    pub(super) fn kept_at_ms(&self) -> u64 {
        self.kept_at_ms
    }

    /// Why the map is not kept, when it is not.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Whether the map was not kept, and there is room for it by now.
    pub(super) fn is_mendable(&self, state: &StateDir) -> bool {
        self.trouble.is_some() && state.has_room(self.full_len).is_ok()
    }

    /// Has the next stream bring a full map. The map in use stays, and with it what counts as older.
    pub(super) fn ask_full(&mut self) {
        self.revision = None;
    }

    /// Carries out a verified frame and keeps its line.
    pub(super) fn on_frame(&mut self, frame: MapFrame, line: &str, state: &StateDir) -> Applied {
        let is_full = matches!(frame.body, MapBody::Full(_));
        let applied = self.apply(frame);
        if applied != Applied::Changed {
            return applied;
        }
        let kept = if is_full {
            self.full_len = line.len();
            state.replace_map(line).map(|()| true)
        } else if self.is_log_broken {
            Ok(false)
        } else {
            state.append_map(line).map(|()| true)
        };
        match kept {
            Ok(true) => {
                self.is_log_broken = false;
                self.trouble = None;
            }
            Ok(false) => {}
            Err(err) => {
                // The mesh goes on without it; only a restart with no coordinator in reach would miss it.
                tracing::warn!(%err, "cannot keep the map");
                self.is_log_broken = true;
                self.trouble = Some(err.to_string());
            }
        }
        if self.n_deltas >= N_DELTAS_MAX {
            return Applied::ChangedNeedsFull;
        }
        applied
    }

    fn apply(&mut self, frame: MapFrame) -> Applied {
        let is_older = self.newest.is_some_and(|newest| frame.revision < newest);
        match frame.body {
            MapBody::Heartbeat {} => Applied::Same,
            MapBody::Full(_) | MapBody::Delta { .. } if is_older => {
                tracing::warn!(known = ?self.newest, told = ?frame.revision, "the coordinator offers an older map; refused");
                Applied::Older
            }
            MapBody::Full(mut netmap) => {
                netmap.peers.retain(is_genuine);
                self.netmap = Some(*netmap);
                self.take(frame.revision);
                self.n_deltas = 0;
                Applied::Changed
            }
            MapBody::Delta { since, mut delta } => {
                let follows = self.revision.is_some_and(|known| {
                    known.epoch == frame.revision.epoch && known.version == since
                });
                let (true, Some(netmap)) = (follows, self.netmap.as_mut()) else {
                    return Applied::NeedsFull;
                };
                delta.peers.retain(is_genuine);
                netmap.apply(*delta);
                self.take(frame.revision);
                self.n_deltas += 1;
                Applied::Changed
            }
        }
    }

    fn take(&mut self, revision: Revision) {
        self.revision = Some(revision);
        self.newest = Some(revision);
    }
}

/// A peer whose keys are not its machine's own is left out: a coordinator cannot slip a tunnel key in.
fn is_genuine(id: &NodeId, peer: &mut PeerEntry) -> bool {
    let verdict = peer.verify(id);
    if let Err(err) = verdict {
        tracing::warn!(node = %id, %err, "a peer's keys do not verify; left out");
    }
    verdict.is_ok()
}

#[cfg(test)]
mod tests;
