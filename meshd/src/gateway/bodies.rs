//! Memory for the bodies of requests: so much for all, and of that so much for one peer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_proto::id::NodeId;

/// Bodies that may be in memory at once, in MiB.
const ALL_MAX_MIB: usize = 256;
/// Bodies of one peer that may be in memory at once, in MiB: one for each connection that it may have.
const PER_PEER_MAX_MIB: usize = 128;

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error("too many large requests at once; try again shortly")]
    Full,
    #[error("too many large requests of yours at once; try again when some are answered")]
    PeerFull,
}

/// Grants memory by the MiB.
#[derive(Debug)]
pub(crate) struct Bodies {
    per_peer_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    n_mib: usize,
    of: BTreeMap<Option<NodeId>, usize>,
}

/// Memory that was granted; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    bodies: Arc<Bodies>,
    who: Option<NodeId>,
    n_mib: usize,
}

impl Bodies {
    /// For the requests of peers: none of them can take all.
    pub(crate) fn of_peers() -> Arc<Self> {
        Self::new(PER_PEER_MAX_MIB)
    }

    /// For the requests of this machine's own programs.
    pub(crate) fn own() -> Arc<Self> {
        Self::new(ALL_MAX_MIB)
    }

    fn new(per_peer_max: usize) -> Arc<Self> {
        Arc::new(Self {
            per_peer_max,
            taken: Mutex::default(),
        })
    }

    /// Room for a body that begins; `None` stands for this machine itself.
    pub(crate) fn enter(self: &Arc<Self>, who: Option<NodeId>) -> Result<Room, NoRoom> {
        let mut room = Room {
            bodies: Arc::clone(self),
            who,
            n_mib: 0,
        };
        room.grow_to(1)?;
        Ok(room)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Has at least so much from now on, or as much as before.
    pub(crate) fn grow_to(&mut self, n_mib: usize) -> Result<(), NoRoom> {
        let more = n_mib.saturating_sub(self.n_mib);
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.bodies.lock();
        let of_peer = taken.of.get(&self.who).copied().unwrap_or(0);
        if of_peer + more > self.bodies.per_peer_max {
            return Err(NoRoom::PeerFull);
        }
        if taken.n_mib + more > ALL_MAX_MIB {
            return Err(NoRoom::Full);
        }
        taken.n_mib += more;
        taken.of.insert(self.who, of_peer + more);
        self.n_mib += more;
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = self.bodies.lock();
        taken.n_mib = taken.n_mib.saturating_sub(self.n_mib);
        if let Some(of_peer) = taken.of.get_mut(&self.who) {
            *of_peer = of_peer.saturating_sub(self.n_mib);
            if *of_peer == 0 {
                taken.of.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> Option<NodeId> {
        Some(NodeId::from_bytes([n; 10]))
    }

    #[test]
    fn one_peer_gets_its_share_and_leaves_the_rest_to_others() {
        let bodies = Bodies::of_peers();
        let mut greedy = bodies.enter(peer(1)).unwrap();
        greedy.grow_to(PER_PEER_MAX_MIB).unwrap();
        assert_eq!(greedy.grow_to(PER_PEER_MAX_MIB + 1), Err(NoRoom::PeerFull));
        assert_eq!(bodies.enter(peer(1)).unwrap_err(), NoRoom::PeerFull);
        let mut other = bodies.enter(peer(2)).unwrap();
        other.grow_to(PER_PEER_MAX_MIB).unwrap();
        assert_eq!(bodies.enter(peer(3)).unwrap_err(), NoRoom::Full);
        drop(greedy);
        bodies.enter(peer(3)).unwrap();
        drop(other);
        let taken = bodies.lock();
        assert_eq!(
            (taken.n_mib, taken.of.len()),
            (0, 0),
            "some was not given back"
        );
    }

    #[test]
    fn this_machine_has_all_of_its_own_room() {
        let bodies = Bodies::own();
        let mut room = bodies.enter(None).unwrap();
        room.grow_to(ALL_MAX_MIB).unwrap();
        room.grow_to(3).unwrap();
        assert_eq!(bodies.lock().n_mib, ALL_MAX_MIB);
        assert!(room.grow_to(ALL_MAX_MIB + 1).is_err());
    }
}
