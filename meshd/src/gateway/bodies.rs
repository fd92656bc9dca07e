//! Memory for the bodies of requests: so much for all, and of that so much for one peer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_proto::id::NodeId;

/// What memory is granted by: small enough that a thousand bodies which never go on take little of it.
const UNIT: usize = 64 << 10;
/// Bodies that may be in memory at once, 256 MiB.
const ALL_MAX: usize = (256 << 20) / UNIT;
/// Bodies of one peer that may be in memory at once, half of that.
const PER_PEER_MAX: usize = ALL_MAX / 2;

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error("too many large requests at once; try again shortly")]
    Full,
    #[error("too many large requests of yours at once; try again when some are answered")]
    PeerFull,
}

/// Grants memory.
#[derive(Debug)]
pub(crate) struct Bodies {
    per_peer_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    n_units: usize,
    of: BTreeMap<Option<NodeId>, usize>,
}

/// Memory that was granted; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    bodies: Arc<Bodies>,
    who: Option<NodeId>,
    n_units: usize,
}

impl Bodies {
    /// For the requests of peers: none of them can take all.
    pub(crate) fn of_peers() -> Arc<Self> {
        Self::new(PER_PEER_MAX)
    }

    /// For the requests of this machine's own programs.
    pub(crate) fn own() -> Arc<Self> {
        Self::new(ALL_MAX)
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
            n_units: 0,
        };
        room.grow_to(0)?;
        Ok(room)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Has room for at least so many bytes from now on, or as much as before.
    pub(crate) fn grow_to(&mut self, n_bytes: usize) -> Result<(), NoRoom> {
        self.grow(n_bytes / UNIT + 1)
    }

    fn grow(&mut self, n_units: usize) -> Result<(), NoRoom> {
        let more = n_units.saturating_sub(self.n_units);
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.bodies.lock();
        let of_peer = taken.of.get(&self.who).copied().unwrap_or(0);
        if of_peer + more > self.bodies.per_peer_max {
            return Err(NoRoom::PeerFull);
        }
        if taken.n_units + more > ALL_MAX {
            return Err(NoRoom::Full);
        }
        taken.n_units += more;
        taken.of.insert(self.who, of_peer + more);
        self.n_units += more;
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = self.bodies.lock();
        taken.n_units = taken.n_units.saturating_sub(self.n_units);
        if let Some(of_peer) = taken.of.get_mut(&self.who) {
            *of_peer = of_peer.saturating_sub(self.n_units);
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
        greedy.grow(PER_PEER_MAX).unwrap();
        assert_eq!(greedy.grow(PER_PEER_MAX + 1), Err(NoRoom::PeerFull));
        assert_eq!(bodies.enter(peer(1)).unwrap_err(), NoRoom::PeerFull);
        let mut other = bodies.enter(peer(2)).unwrap();
        other.grow(PER_PEER_MAX).unwrap();
        assert_eq!(bodies.enter(peer(3)).unwrap_err(), NoRoom::Full);
        drop(greedy);
        bodies.enter(peer(3)).unwrap();
        drop(other);
        let taken = bodies.lock();
        assert_eq!(
            (taken.n_units, taken.of.len()),
            (0, 0),
            "some was not given back"
        );
    }

    #[test]
    fn this_machine_has_all_of_its_own_room() {
        let bodies = Bodies::own();
        let mut room = bodies.enter(None).unwrap();
        room.grow(ALL_MAX).unwrap();
        room.grow(3).unwrap();
        assert_eq!(bodies.lock().n_units, ALL_MAX);
        assert!(room.grow(ALL_MAX + 1).is_err());
    }
}
