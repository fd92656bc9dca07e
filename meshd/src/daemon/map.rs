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
    /// The map is as it was.
    Same,
    /// The frame does not fit what is known: ask for a full map.
    NeedsFull,
}

/// The map and where it stands.
#[derive(Debug)]
pub(super) struct MapKeeper {
    netmap: Option<Netmap>,
    revision: Option<Revision>,
    n_deltas: usize,
}

impl MapKeeper {
    /// Starts from the lines on disk, each verified again. A line that does not verify ends the reading.
    pub(super) fn load(state: &StateDir, credentials: &Credentials) -> Result<Self, StateError> {
        let mut keeper = Self {
            netmap: None,
            revision: None,
            n_deltas: 0,
        };
        for line in state.map_lines()? {
            let frame =
                MapFrame::from_line(&line, &credentials.coordinator_key, &credentials.node_id);
            let Ok(frame) = frame else {
                tracing::warn!("the kept map does not verify from here on");
                break;
            };
            if keeper.apply(frame) == Applied::NeedsFull {
                break;
            }
        }
        Ok(keeper)
    }

    pub(super) fn netmap(&self) -> Option<&Netmap> {
        self.netmap.as_ref()
    }

    pub(super) fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// Forgets where the map stands, so that the next stream brings a full one. The map itself stays in use.
    pub(super) fn ask_full(&mut self) {
        self.revision = None;
    }

    /// Carries out a verified frame and keeps its line.
    pub(super) fn on_frame(&mut self, frame: MapFrame, line: &str, state: &StateDir) -> Applied {
        let is_full = matches!(frame.body, MapBody::Full(_));
        let applied = self.apply(frame);
        if applied == Applied::Changed {
            let kept = if is_full {
                state.replace_map(line)
            } else {
                state.append_map(line)
            };
            if let Err(err) = kept {
                // The mesh goes on without it; only a restart with no coordinator in reach would miss it.
                tracing::warn!(%err, "cannot keep the map");
            }
            if self.n_deltas >= N_DELTAS_MAX {
                return Applied::NeedsFull;
            }
        }
        applied
    }

    fn apply(&mut self, frame: MapFrame) -> Applied {
        match frame.body {
            MapBody::Full(_) if self.revision.is_some_and(|known| frame.revision < known) => {
                tracing::warn!(known = ?self.revision, told = ?frame.revision, "the coordinator offers an older map; refused");
                Applied::Same
            }
            MapBody::Full(mut netmap) => {
                netmap.peers.retain(is_genuine);
                self.netmap = Some(*netmap);
                self.revision = Some(frame.revision);
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
                self.revision = Some(frame.revision);
                self.n_deltas += 1;
                Applied::Changed
            }
            MapBody::Heartbeat {} => Applied::Same,
        }
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
