//! One peer as the packet path sees it: its session behind one lock, all else atomic.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_proto::id::NodeId;

use crate::event::{DropReason, Opened, PlaneEvent, Sealed};

/// A peer, shared between the engine and the packet path. Cheap to clone.
#[derive(Clone)]
pub struct PeerHandle(Arc<Peer>);

struct Peer {
    node: NodeId,
}

impl PeerHandle {
    /// Who it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// The selected path; lock-free.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        None
    }

    /// Locks the session for sealing a batch.
    #[must_use]
    pub fn seal(&self) -> Sealer<'_> {
        Sealer { _peer: self }
    }

    /// Locks the session for opening a batch.
    #[must_use]
    pub fn open(&self) -> Opener<'_> {
        Opener { _peer: self }
    }
}

impl PartialEq for PeerHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for PeerHandle {}

impl std::fmt::Debug for PeerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerHandle")
            .field("node", &self.0.node)
            .finish_non_exhaustive()
    }
}

/// A locked session, for sealing. Keep it for a batch and no longer.
#[derive(Debug)]
pub struct Sealer<'a> {
    _peer: &'a PeerHandle,
}

impl Sealer<'_> {
    /// Seals one IP packet into `out`, which needs [`SEAL_OVERHEAD`](crate::SEAL_OVERHEAD) bytes more than the packet.
    pub fn seal(&mut self, _packet: &[u8], _out: &mut [u8]) -> Sealed {
        Sealed::Dropped(DropReason::PeerGone)
    }

    /// Ends the batch and unlocks; what comes back is for [`Engine::handle_plane`](crate::Engine::handle_plane).
    #[must_use]
    pub fn finish(self) -> Option<PlaneEvent> {
        None
    }
}

/// A locked session, for opening. Keep it for a batch and no longer.
#[derive(Debug)]
pub struct Opener<'a> {
    _peer: &'a PeerHandle,
}

impl Opener<'_> {
    /// Opens one datagram into `out`, which must be as long as the datagram.
    pub fn open(&mut self, _from: SocketAddr, _datagram: &[u8], _out: &mut [u8]) -> Opened {
        Opened::Dropped(DropReason::PeerGone)
    }

    /// Ends the batch and unlocks; what comes back is for [`Engine::handle_plane`](crate::Engine::handle_plane).
    #[must_use]
    pub fn finish(self) -> Option<PlaneEvent> {
        None
    }
}
